//! Puts another database in the place of the one in use.
//!
//! Decides the order in which files change names, so that a crash at any instant leaves one whole
//! database. Called by the flusher: at the end of a defragmentation, and when a leader has sent the
//! state that this member lacks.
//!
//! Readers of the old file keep it until they end: a rename does not touch what is open. The new
//! environment keeps the path under which it was opened, so each one that is to be installed has a
//! name of its own: LMDB must not open one file twice in a process.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    backend::BACKEND_DIRECTORY,
    defragment::COPY_PREFIX,
    environment::{DATA_FILE, Environment, LOCK_FILE},
    error::BackendError,
    remains::Remains,
    writer::Writer,
};
use crate::{
    failpoint,
    model::{LogIndex, Revision},
};

/// Tells the databases of this process apart.
static RECEIVED: AtomicU64 = AtomicU64::new(1);

/// A new place where a database that a leader sent is prepared, for the directory of `.snap` files.
/// What is found there at the start is unfinished, and removed.
#[must_use]
pub fn received_dir(snap_dir: &Path) -> PathBuf {
    let number = RECEIVED.fetch_add(1, Ordering::Relaxed);
    snap_dir.join(BACKEND_DIRECTORY).join(format!("{COPY_PREFIX}received-{number}"))
}

/// How far a database reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) applied: LogIndex,
    /// The last row's, if there is one.
    pub(super) revision: Option<Revision>,
    /// The last compaction whose rows are all gone; -1 before any.
    pub(super) finished_compaction: Revision,
}

/// Puts the durable database in `from`, which nobody has open, in the place of the one in use: how
/// far it reaches, and what is left to give back of the old one.
pub(super) fn received(writer: &mut Writer, from: &Path) -> Result<(Reach, Remains), BackendError> {
    let environment = Environment::open(from, writer.shared.options.map_bytes)?;
    let remains = take_over(writer, Arc::new(environment), from)?;
    let backend = writer.backend();
    let reader = backend.reader()?;
    let reach = Reach {
        applied: reader.consistent_index()?,
        revision: reader.last_row()?.map(|row| row.main),
        finished_compaction: reader.finished_compaction()?,
    };
    Ok((reach, remains))
}

/// Makes `environment`, whose files lie durably in `from`, the one that `writer` writes and
/// everybody reads: what is left to give back of the old one.
pub(super) fn take_over(
    writer: &mut Writer,
    environment: Arc<Environment>,
    from: &Path,
) -> Result<Remains, BackendError> {
    let dir = writer.shared.options.dir.clone();
    let system = |source| BackendError::System { file: dir.clone(), source };
    let remains = Remains::of(&writer.environment, &dir.join(DATA_FILE)).map_err(system)?;
    let sizes = environment.sizes()?;
    failpoint!("defragBeforeRename");
    rename(&dir, from).map_err(system)?;
    writer.replace(environment, sizes);
    // It holds nothing of value now, and is removed at the next start if it stays.
    if let Err(error) = fs::remove_dir_all(from) {
        tracing::warn!(path = %from.display(), %error, "could not remove a directory");
    }
    Ok(remains)
}

/// Renames the files of `from` over those of `dir`, durably. The data file goes first, and with it
/// the decision; the lock file holds nothing that outlives a process, but tools look at it.
fn rename(dir: &Path, from: &Path) -> io::Result<()> {
    fs::rename(from.join(DATA_FILE), dir.join(DATA_FILE))?;
    failpoint!("defragAfterRename");
    fs::rename(from.join(LOCK_FILE), dir.join(LOCK_FILE))?;
    File::open(dir)?.sync_all()
}
