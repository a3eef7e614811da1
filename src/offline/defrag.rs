//! Reclaims the space that deleted rows left in a data directory: `defrag`.
//!
//! Decides the moment of the change: the copy is whole and durable, then one rename puts it in
//! place of the original, whose lock is held all the while. Called by the binary.
//!
//! Source: etcd `etcdutl/etcdutl/defrag_command.go`, `server/storage/backend/backend.go`.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    LockTimeout, OfflineError, Progress, export::backend_directory, lock, print::human_bytes,
    status::stat,
};
use crate::{
    base::{clock::Clock, duration::Took},
    model::RowRevision,
    storage::{Backend, BackendOptions, Reader, Table, Writer},
};

/// The file in which LMDB has its data.
const DATA_FILE: &str = "data.mdb";
/// What is written in one transaction.
const TRANSACTION_BYTES: usize = 16 << 20;

/// Rewrites the backend in `data_dir` without free pages.
///
/// # Errors
/// - [`OfflineError::Defragment`] with the reason; the original is as it was.
pub fn defragment(data_dir: &Path, timeout: LockTimeout) -> Result<(), OfflineError> {
    let dir = backend_directory(data_dir);
    rewrite(&dir, timeout).map_err(|source| OfflineError::Defragment {
        data_dir: data_dir.to_owned(),
        source: Box::new(source),
    })
}

fn rewrite(dir: &Path, timeout: LockTimeout) -> Result<(), OfflineError> {
    stat(dir)?;
    let clock = Clock::system();
    let (backend, _writer) = lock::open(dir.to_owned(), timeout)?;
    let before = backend.sizes();
    tracing::info!(
        path = %dir.display(),
        "current-db-size-bytes" = before.total,
        "current-db-size" = human_bytes(before.total),
        "current-db-size-in-use-bytes" = before.in_use,
        "current-db-size-in-use" = human_bytes(before.in_use),
        "defragmenting"
    );
    let copy_dir = copy_directory(dir);
    remove(&copy_dir)?;
    let after = {
        let (copy, mut writer) = Backend::open(&BackendOptions::new(copy_dir.clone()))?;
        let progress = Progress::new("copying", before.in_use);
        copy_all(&backend.reader()?, &mut writer, &progress)?;
        copy.sizes()
    };
    let renamed = fs::rename(copy_dir.join(DATA_FILE), dir.join(DATA_FILE));
    renamed.and_then(|()| File::open(dir)?.sync_all()).map_err(OfflineError::Io)?;
    remove(&copy_dir)?;
    tracing::info!(
        path = %dir.display(),
        "current-db-size-bytes" = after.total,
        "current-db-size" = human_bytes(after.total),
        "current-db-size-in-use-bytes" = after.in_use,
        "current-db-size-in-use" = human_bytes(after.in_use),
        took = ?Took(clock.now()),
        "finished defragmenting directory"
    );
    Ok(())
}

fn copy_all(
    reader: &Reader<'_>,
    writer: &mut Writer,
    progress: &Progress,
) -> Result<(), OfflineError> {
    let mut transaction = writer.begin()?;
    for table in Table::ALL {
        for record in reader.scan(table)? {
            let (key, value) = record?;
            transaction.put(table, key, value)?;
        }
    }
    transaction.commit()?;
    let mut rows = reader.rows(RowRevision::default())?;
    loop {
        let mut transaction = writer.begin()?;
        let mut bytes = 0;
        while bytes < TRANSACTION_BYTES {
            let Some(row) = rows.next() else {
                transaction.commit()?;
                return Ok(());
            };
            let row = row?;
            transaction.append(&row)?;
            bytes += row.value.len();
            progress.add(row.value.len() as u64);
        }
        transaction.commit()?;
    }
}

fn copy_directory(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(".defragmenting");
    PathBuf::from(name)
}

fn remove(dir: &Path) -> Result<(), OfflineError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(OfflineError::Io(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
