//! Takes over a directory that etcd wrote.
//!
//! Decides which of the databases in `member/snap` is the member's state, and brings it into
//! `db.lmdb`. Called by `boot` before the backend is opened, and by nobody while a server runs.
//!
//! Source: etcd `server/etcdserver/bootstrap.go`, `recoverSnapshot`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use rustix::{fs::FlockOperation, io::Errno};

use super::{
    EtcdFile, ExchangeError,
    import::{import, remove_leftovers, sync_parent, system},
};
use crate::{
    model::LogIndex,
    storage::{Backend, BackendOptions, backend::BACKEND_DIRECTORY},
};

/// The file in which etcd has its database.
const DATABASE_FILE: &str = "db";
/// What that file is called after its content was taken over. Nothing reads it again; it may be
/// deleted, or renamed back together with the removal of `db.lmdb` to return to etcd as of then.
pub const IMPORTED_FILE: &str = "db.imported";
/// The beginning of the names of files that an interrupted defragmentation of etcd leaves.
const ORPHAN_PREFIX: &str = "db.tmp";

/// The end of the names of databases that leaders sent.
const RECEIVED_SUFFIX: &str = ".snap.db";

/// Where the state came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adopted {
    /// There is no database yet.
    Nothing,
    /// `db.lmdb` was there, and is the newest.
    Own,
    /// From etcd's `db`.
    Database,
    /// From a `.snap.db` that a leader sent.
    Snapshot,
}

/// The name of the database that came with the snapshot at `index`.
#[must_use]
pub fn snapshot_file(index: LogIndex) -> String {
    format!("{:016x}{RECEIVED_SUFFIX}", index.0)
}

/// Makes `db.lmdb` in `snap_dir` the newest state that the directory holds. `newest` is the newest
/// snapshot that the log knows; 0 if none.
///
/// # Errors
/// - [`ExchangeError::Missing`] if the log needs a database and there is none.
/// - [`ExchangeError::Behind`] if every database is older than the start of the log.
/// - Others if a database is damaged or the file system refuses; the directory is as it was.
pub fn adopt(snap_dir: &Path, newest: LogIndex) -> Result<Adopted, ExchangeError> {
    if !snap_dir.exists() {
        return Ok(Adopted::Nothing);
    }
    let own_dir = snap_dir.join(BACKEND_DIRECTORY);
    let database = snap_dir.join(DATABASE_FILE);
    remove_leftovers(&own_dir)?;
    remove_orphans(snap_dir)?;

    let theirs = if database.exists() { Some(Theirs::open(&database)?) } else { None };
    let their_index = theirs.as_ref().map(|theirs| theirs.index);
    let own_index = index_of(&own_dir)?;
    // Absent sorts before 0.
    let best = own_index.max(their_index);
    let received = snap_dir.join(snapshot_file(newest));
    let adopted = if best.unwrap_or_default() < newest && received.exists() {
        take_snapshot(&received, &own_dir, best.unwrap_or_default(), newest)?;
        Adopted::Snapshot
    } else {
        refuse_old(best, newest, if their_index == best { &database } else { &own_dir })?;
        match &theirs {
            // X4: after a return to etcd, its database has gone on.
            Some(theirs) if own_index < their_index => {
                take(&theirs.file, &own_dir)?;
                Adopted::Database
            }
            Some(_) | None if own_index.is_some() => Adopted::Own,
            Some(_) | None => Adopted::Nothing,
        }
    };
    if theirs.is_some() {
        set_aside(&database)?;
    }
    remove_received(snap_dir)?;
    Ok(adopted)
}

/// Etcd's database, closed to etcd while this lives.
struct Theirs {
    file: EtcdFile,
    index: LogIndex,
    _lock: File,
}

impl Theirs {
    fn open(path: &Path) -> Result<Self, ExchangeError> {
        let lock = lock(path)?;
        let file = EtcdFile::open(path)?;
        Ok(Self { index: file.consistent_index()?, file, _lock: lock })
    }
}

/// Refuses a state that the log cannot complete any more.
fn refuse_old(best: Option<LogIndex>, newest: LogIndex, file: &Path) -> Result<(), ExchangeError> {
    match best {
        _ if newest == LogIndex(0) => Ok(()),
        None => Err(ExchangeError::Missing { file: file.to_owned() }),
        Some(LogIndex(0)) => {
            tracing::warn!("snapshot-index" = newest.0, "consistent index was never saved");
            Ok(())
        }
        Some(index) if index < newest => {
            Err(ExchangeError::Behind { file: file.to_owned(), index, snapshot: newest })
        }
        Some(_) => Ok(()),
    }
}

fn take_snapshot(
    received: &Path,
    own_dir: &Path,
    have: LogIndex,
    newest: LogIndex,
) -> Result<(), ExchangeError> {
    tracing::info!(
        "consistent-index" = have.0,
        "snapshot-index" = newest.0,
        "Recovering from snapshot backend"
    );
    take(&EtcdFile::open(received)?, own_dir)
}

/// Renames etcd's database, so that no etcd mistakes it for the member's state.
fn set_aside(database: &Path) -> Result<(), ExchangeError> {
    let kept = database.with_file_name(IMPORTED_FILE);
    fs::rename(database, &kept).map_err(system(database))?;
    sync_parent(database)?;
    tracing::info!(
        path = %database.display(),
        kept = %kept.display(),
        "set the database of etcd aside"
    );
    Ok(())
}

fn take(file: &EtcdFile, own_dir: &Path) -> Result<(), ExchangeError> {
    tracing::info!(path = %file.path().display(), "importing the database of etcd");
    let imported = import(file, own_dir, |_bytes| {})?;
    tracing::info!(
        path = %file.path().display(),
        rows = imported.rows,
        revision = imported.last_row.map_or(0, |last| last.main.0),
        "imported the database of etcd"
    );
    Ok(())
}

fn index_of(own_dir: &Path) -> Result<Option<LogIndex>, ExchangeError> {
    if !Backend::exists(own_dir) {
        return Ok(None);
    }
    let (backend, _writer) = Backend::open(&BackendOptions::new(own_dir.to_owned()))?;
    let index = backend.reader()?.consistent_index()?;
    Ok(Some(index))
}

/// Waits until no etcd has the file open: bbolt locks it for as long as it runs.
fn lock(database: &Path) -> Result<File, ExchangeError> {
    let failed = |error: Errno| system(database)(error.into());
    let file = File::open(database).map_err(system(database))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(file),
        Err(Errno::WOULDBLOCK) => {}
        Err(error) => return Err(failed(error)),
    }
    tracing::info!(
        path = %database.display(),
        "db file is flocked by another process, or taking too long"
    );
    rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(failed)?;
    Ok(file)
}

/// Removes databases that leaders sent: the newest that counts has been taken, and a leader sends
/// again what it still has to.
fn remove_received(snap_dir: &Path) -> Result<(), ExchangeError> {
    for entry in fs::read_dir(snap_dir).map_err(system(snap_dir))? {
        let path = entry.map_err(system(snap_dir))?.path();
        if path.file_name().unwrap_or_default().to_string_lossy().ends_with(RECEIVED_SUFFIX) {
            fs::remove_file(&path).map_err(system(&path))?;
        }
    }
    Ok(())
}

fn remove_orphans(snap_dir: &Path) -> Result<(), ExchangeError> {
    for entry in fs::read_dir(snap_dir).map_err(system(snap_dir))? {
        let path: PathBuf = entry.map_err(system(snap_dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(ORPHAN_PREFIX) {
            tracing::info!(path = %path.display(), "found orphaned defragmentation file; deleting");
            fs::remove_file(&path).map_err(system(&path))?;
        }
    }
    Ok(())
}
