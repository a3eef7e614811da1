//! Checks every checksum of a data directory.
//!
//! Decides that one damaged place does not hide the next: it goes on where it can, and names each.
//! Called by the binary.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    LockTimeout, OfflineError, Progress, export::backend_directory, lock, pages, status::stat,
};
use crate::{
    base::error::chain,
    exchange::{EtcdFile, IMPORTED_FILE},
    model::RowRevision,
    storage::{Backend, Table, snap, wal::Wal},
};

/// The file in which LMDB has its data.
const DATA_FILE: &str = "data.mdb";

/// What was found in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Changes of keys in the backend.
    pub rows: u64,
    /// Records of small tables.
    pub records: u64,
    /// `.snap` files.
    pub snapshots: u64,
}

/// Reads everything in `data_dir`, and the log in `wal_dir` if it is elsewhere.
///
/// A record that a crash may have cut short at the very end of the log is no damage: a start cuts
/// it off and keeps a copy.
///
/// # Errors
/// - [`OfflineError::Path`] without such a directory.
/// - [`OfflineError::Refused`] if a server has it for longer than `timeout`.
/// - [`OfflineError::Damaged`] with every damaged place: its file, and where in it.
pub fn verify(
    data_dir: &Path,
    wal_dir: Option<&Path>,
    timeout: LockTimeout,
) -> Result<Verified, OfflineError> {
    stat(data_dir)?;
    let snap_dir = data_dir.join("member").join("snap");
    let usual = data_dir.join("member").join("wal");
    let wal_dir = wal_dir.unwrap_or(&usual);
    let mut found = Verified::default();
    let mut damage = Vec::new();
    if Wal::exists(wal_dir) {
        // Finding the snapshots reads every record of every segment along the checksum chain.
        damage.extend(Wal::snapshots(wal_dir).err().map(|error| chain(&error)));
    } else {
        damage.push(format!("no write-ahead log in {}", wal_dir.display()));
    }
    verify_backend(data_dir, timeout, &mut found, &mut damage)?;
    for path in files(&snap_dir)? {
        verify_file(&path, &mut found, &mut damage);
    }
    if damage.is_empty() { Ok(found) } else { Err(OfflineError::Damaged(damage)) }
}

/// Checks the backend alone.
pub(super) fn verify_backend(
    data_dir: &Path,
    timeout: LockTimeout,
    found: &mut Verified,
    damage: &mut Vec<String>,
) -> Result<(), OfflineError> {
    let dir = backend_directory(data_dir);
    if !Backend::exists(&dir) {
        return Ok(());
    }
    let data = dir.join(DATA_FILE);
    let held = lock::take(&dir, timeout)?;
    let faults = pages::check(&data).map_err(OfflineError::Io)?;
    drop(held);
    if !faults.is_empty() {
        // LMDB would follow them too.
        damage.extend(faults.iter().map(|fault| format!("{}: {fault}", data.display())));
        return Ok(());
    }
    let (backend, _writer) = match lock::open(dir, timeout) {
        Ok(opened) => opened,
        Err(error @ OfflineError::Refused(_)) => return Err(error),
        Err(error) => {
            damage.push(chain(&error));
            return Ok(());
        }
    };
    let progress = Progress::new("verifying", backend.sizes().in_use);
    let reader = backend.reader()?;
    for row in reader.row_refs(RowRevision::default())? {
        match row {
            Ok(row) => {
                found.rows += 1;
                progress.add(row.value.len() as u64);
            }
            Err(error) => damage.push(chain(&error)),
        }
    }
    for table in Table::ALL {
        for record in reader.scan(table)? {
            match record {
                Ok(_) => found.records += 1,
                Err(error) => damage.push(chain(&error)),
            }
        }
    }
    Ok(())
}

/// A `.snap` file, or a database of etcd.
fn verify_file(path: &Path, found: &mut Verified, damage: &mut Vec<String>) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name == "db" || name == IMPORTED_FILE || name.ends_with(".snap.db") {
        match EtcdFile::open(path) {
            Err(error) => damage.push(chain(&error)),
            Ok(file) => damage.extend(
                file.check().iter().map(|finding| format!("{}: {finding}", path.display())),
            ),
        }
    } else if name.ends_with(".snap") {
        match fs::read(path).map(|bytes| snap::decode(&bytes)) {
            Ok(Some(_)) => found.snapshots += 1,
            Ok(None) => damage.push(format!(
                "{} is damaged: the checksum at offset 0 does not match",
                path.display()
            )),
            Err(error) => damage.push(format!("{}: {error}", path.display())),
        }
    }
}

fn files(dir: &Path) -> Result<Vec<PathBuf>, OfflineError> {
    let failed = |source| OfflineError::Path { operation: "open", path: dir.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        files.push(entry.map_err(failed)?.path());
    }
    files.sort();
    Ok(files)
}
