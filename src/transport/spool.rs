//! A database that is being received, on its way to the disk.
//!
//! Decides that a file appears under its name when it is whole and durable, and not before. Each has
//! a thread of its own for as long as it takes, because a disk may block and the `peer` thread must
//! not. Used by `snapshot_receiver`.
//!
//! Source: etcd `server/etcdserver/api/snap/db.go`.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::metrics;
use crate::base::{
    clock::Clock,
    file::Disk,
    thread::{self, Priority},
};

/// Parts that wait for the disk. Each has at most what a connection reads at once.
const PARTS_MAX: usize = 16;

/// The file is synced whenever so much has come: a large database at once would keep the disk from
/// the log, and the sender waiting at the end.
const SYNC_BYTES: u64 = 32 << 20;

/// What starts the name of a file that is not whole; etcd removes such when it starts.
const TEMPORARY_PREFIX: &str = "tmp-";

/// The way to the thread. Without [`Spool::finish`], nothing stays.
#[derive(Debug)]
pub(super) struct Spool {
    parts: mpsc::Sender<Part>,
    done: oneshot::Receiver<io::Result<u64>>,
}

#[derive(Debug)]
enum Part {
    Bytes(Bytes),
    End,
}

impl Spool {
    /// Begins to write the file that is to be at `path`.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub(super) fn start(path: PathBuf, clock: Clock) -> io::Result<Self> {
        let (parts, receiver) = mpsc::channel(PARTS_MAX);
        let (report, done) = oneshot::channel();
        thread::spawn("snapshot-in", Priority::Normal, move || {
            let began = clock.now();
            let written = write(&path, receiver, &clock);
            metrics::SNAP_DB_SAVE_SECONDS.observe((clock.now() - began).as_secs_f64());
            // Whoever asked may have gone, and with it the file.
            report.send(written).ok();
        })?;
        Ok(Self { parts, done })
    }

    /// Adds bytes, waiting for the disk. After an error of the disk they are ignored:
    /// [`Spool::finish`] tells.
    pub(super) async fn write(&self, bytes: Bytes) {
        self.parts.send(Part::Bytes(bytes)).await.ok();
    }

    /// Makes the file whole, and returns its length.
    ///
    /// # Errors
    /// Those of the disk; nothing is left behind.
    pub(super) async fn finish(self) -> io::Result<u64> {
        self.parts.send(Part::End).await.ok();
        self.done.await.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }
}

fn write(path: &Path, parts: mpsc::Receiver<Part>, clock: &Clock) -> io::Result<u64> {
    let disk = Disk::system();
    let temporary = temporary(path);
    let written = write_temporary(&disk, &temporary, parts, clock).and_then(|bytes| {
        // A database of this index that came before is as good, and may be in use.
        if path.exists() {
            disk.remove(&temporary)?;
            return Ok(bytes);
        }
        disk.rename(&temporary, path)?;
        disk.sync_directory(path.parent().unwrap_or(path))?;
        Ok(bytes)
    });
    if written.is_err() {
        disk.remove(&temporary).ok();
    }
    written
}

fn write_temporary(
    disk: &Disk,
    temporary: &Path,
    mut parts: mpsc::Receiver<Part>,
    clock: &Clock,
) -> io::Result<u64> {
    let file = disk.create(temporary)?;
    let (mut offset, mut synced) = (0, 0);
    loop {
        match parts.blocking_recv() {
            Some(Part::Bytes(bytes)) => {
                file.write_at(&bytes, offset)?;
                offset += bytes.len() as u64;
                if synced + SYNC_BYTES <= offset {
                    file.sync()?;
                    synced = offset;
                }
            }
            Some(Part::End) => {
                let written = clock.now();
                file.sync()?;
                metrics::SNAP_DB_FSYNC_SECONDS.observe((clock.now() - written).as_secs_f64());
                return Ok(offset);
            }
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// A name beside `path` that nobody else uses.
fn temporary(path: &Path) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut name = OsString::from(TEMPORARY_PREFIX);
    name.push(path.file_name().unwrap_or_default());
    name.push(format!("-{number}"));
    path.with_file_name(name)
}
