//! An etcd database file becomes our backend.
//!
//! Decides when the result counts: it is built under another name, made durable, and renamed (X3).
//! Called when a data directory of etcd is taken over, and by a restore.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use super::{
    EtcdFile, ExchangeError,
    bucket::{BUCKETS, Content},
    conf_state::{conf_state_json, conf_state_of},
};
use crate::{
    bolt::Source,
    model::RowRevision,
    storage::{Backend, BackendOptions, Table, Writer, tables::CONF_STATE},
};

/// What is written in one transaction: few enough bytes that it fits memory many times over, many
/// enough that commits cost nothing.
const TRANSACTION_BYTES: usize = 16 << 20;
/// The end of the name under which a backend is built.
const UNFINISHED: &str = ".importing";

/// What an import found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Changes of keys.
    pub rows: u64,
    /// The last of them.
    pub last_row: Option<RowRevision>,
}

/// Replaces the backend in `dir` by the content of `file`; afterwards it is durable there, and
/// nobody has it open. `progress` is told how many bytes were taken each time.
///
/// # Errors
/// - [`ExchangeError::Bolt`], [`ExchangeError::RowKey`] if the file is damaged.
/// - [`ExchangeError::Backend`], [`ExchangeError::System`] if the copy cannot be written.
///
/// After an error the backend in `dir` is as it was.
pub fn import<S: Source>(
    file: &EtcdFile<S>,
    dir: &Path,
    progress: impl FnMut(u64),
) -> Result<Imported, ExchangeError> {
    let unfinished = unfinished(dir);
    remove(&unfinished)?;
    let (backend, mut writer) = Backend::open(&BackendOptions::new(unfinished.clone()))?;
    let imported = import_into(file, &mut writer, progress)?;
    settle_membership(&backend, &mut writer)?;
    drop(writer);
    drop(backend);
    remove(dir)?;
    fs::rename(&unfinished, dir).map_err(system(dir))?;
    sync_parent(dir)?;
    Ok(imported)
}

/// Copies every bucket of `file` through `writer` into an empty backend.
///
/// # Errors
/// As [`import`].
pub fn import_into<S: Source>(
    file: &EtcdFile<S>,
    writer: &mut Writer,
    mut progress: impl FnMut(u64),
) -> Result<Imported, ExchangeError> {
    for name in file.bucket_names() {
        if !BUCKETS.iter().any(|content| content.name().as_bytes() == name) {
            let bucket = String::from_utf8_lossy(name);
            tracing::warn!(path = %file.path().display(), %bucket, "ignored an unknown bucket");
        }
    }
    let mut transaction = writer.begin()?;
    for content in BUCKETS {
        let Content::Records(table) = content else { continue };
        for entry in file.records(table) {
            let entry = entry?;
            transaction.put(table, &entry.key, &entry.value)?;
        }
    }
    transaction.commit()?;

    let mut imported = Imported { rows: 0, last_row: None };
    let mut rows = file.rows();
    loop {
        let mut transaction = writer.begin()?;
        let mut bytes = 0;
        while bytes < TRANSACTION_BYTES {
            let Some(row) = rows.next() else {
                transaction.commit()?;
                return Ok(imported);
            };
            let row = row?;
            transaction.append(&row)?;
            imported = Imported { rows: imported.rows + 1, last_row: Some(row.revision) };
            bytes += row.value.len();
            progress(row.value.len() as u64);
        }
        transaction.commit()?;
    }
}

/// Makes raft's membership the one that the members make.
fn settle_membership(backend: &Backend, writer: &mut Writer) -> Result<(), ExchangeError> {
    let reader = backend.reader()?;
    let members = reader.scan(Table::Members)?.collect::<Result<Vec<_>, _>>()?;
    let Some(state) = conf_state_of(members.iter().map(|(_, value)| *value)) else {
        return Ok(());
    };
    let stored = reader.get(Table::Meta, CONF_STATE)?;
    let right = conf_state_json(&state);
    if stored.is_some_and(|stored| stored != right) {
        tracing::info!(
            stored = %String::from_utf8_lossy(stored.unwrap_or_default()),
            members = %String::from_utf8_lossy(&right),
            "replaced the stored membership by that of the members"
        );
    }
    let mut transaction = writer.begin()?;
    transaction.put(Table::Meta, CONF_STATE, &right)?;
    transaction.commit()?;
    Ok(())
}

/// Removes what an import that was cut short left beside `dir`.
pub(super) fn remove_leftovers(dir: &Path) -> Result<(), ExchangeError> {
    remove(&unfinished(dir))
}

fn unfinished(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(UNFINISHED);
    PathBuf::from(name)
}

fn remove(dir: &Path) -> Result<(), ExchangeError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(system(dir)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes the names in the directory of `path` durable.
pub(super) fn sync_parent(path: &Path) -> Result<(), ExchangeError> {
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) | None => Path::new("."),
    };
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(system(parent))
}

pub(super) fn system(file: &Path) -> impl FnOnce(std::io::Error) -> ExchangeError {
    let file = file.to_owned();
    |source| ExchangeError::System { file, source }
}
