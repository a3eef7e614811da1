//! The way back to etcd: a data directory's state as a database file.
//!
//! Decides that a file appears under its name only when it is complete. Called by the binary.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{LockTimeout, OfflineError, Progress, lock, status::stat};
use crate::{exchange::export, storage::backend::BACKEND_DIRECTORY};

/// How much is written to the file at a time.
const WRITE_BYTES: usize = 1 << 20;

/// Whether the file ends in the hash that makes it a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A plain database, as etcd keeps it in `member/snap/db`.
    Plain,
    /// A backup, as `etcdctl snapshot save` writes it.
    Hash,
}

/// Where the backend of a data directory is.
#[must_use]
pub(super) fn backend_directory(data_dir: &Path) -> PathBuf {
    data_dir.join("member").join("snap").join(BACKEND_DIRECTORY)
}

/// Writes the checkpoint in `data_dir` as a database file of etcd to `target`, which must not
/// exist. Log entries after the checkpoint are not in it; etcd reads them from the log.
///
/// # Errors
/// - [`OfflineError::Path`] without a backend, or if `target` exists or cannot be written.
/// - [`OfflineError::Backend`] if the backend is damaged.
pub fn export_database(
    data_dir: &Path,
    target: &Path,
    ending: Ending,
    timeout: LockTimeout,
) -> Result<(), OfflineError> {
    let dir = backend_directory(data_dir);
    stat(&dir)?;
    let failed =
        |operation| move |source| OfflineError::Path { operation, path: target.to_owned(), source };
    if target.exists() {
        return Err(failed("open")(io::ErrorKind::AlreadyExists.into()));
    }
    let mut part = target.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part);
    let file = file.map_err(failed("open"))?;
    let written = write(&dir, &file, ending, timeout).and_then(|()| {
        file.sync_all().and_then(|()| fs::rename(&part, target)).map_err(failed("rename"))
    });
    if written.is_err() {
        // The error says what happened; a part that stays says it again.
        drop(fs::remove_file(&part));
    }
    written
}

fn write(
    dir: &Path,
    file: &File,
    ending: Ending,
    timeout: LockTimeout,
) -> Result<(), OfflineError> {
    let (backend, _writer) = lock::open(dir.to_owned(), timeout)?;
    let reader = backend.reader()?;
    let out = Hashing {
        out: BufWriter::with_capacity(WRITE_BYTES, file),
        hash: Sha256::new(),
        progress: None,
    };
    let mut out = export(&reader, out, |bytes_total, out| Hashing {
        progress: Some(Progress::new("exporting", bytes_total)),
        ..out
    })?;
    if ending == Ending::Hash {
        let hash = out.hash.finalize();
        out.out.write_all(&hash).map_err(OfflineError::Io)?;
    }
    out.out.flush().map_err(OfflineError::Io)
}

/// Hashes what it passes on.
struct Hashing<W> {
    out: W,
    hash: Sha256,
    progress: Option<Progress>,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.out.write(bytes)?;
        self.hash.update(&bytes[..taken]);
        if let Some(progress) = &self.progress {
            progress.add(taken as u64);
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
