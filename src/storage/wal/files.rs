//! What the log does to its directory and to a segment before records go in.
//!
//! Decides that a log appears whole, that a segment has one owner, and what becomes of a torn tail:
//! it is cut off, after the segment was copied. Used by the log when it is created or opened.

use std::{io, path::Path, sync::Arc};

use super::{
    Segment, WalError, WalOptions,
    fill::CHUNK_BYTES,
    segments::{self, SegmentName},
};
use crate::base::file::{Disk, File};

/// Opens and locks a segment.
pub(super) fn hold(disk: &Disk, dir: &Path, name: SegmentName) -> Result<Segment, WalError> {
    let path = segments::path(dir, name);
    let failed = |source| WalError::System { file: path.clone(), source };
    let file = disk.open(&path).map_err(failed)?;
    if !file.try_lock().map_err(failed)? {
        return Err(WalError::Locked { file: path });
    }
    Ok(Segment { name, file: Arc::new(file) })
}

/// Makes the last segment writable from `offset` on; up to where zeros stand already.
pub(super) fn prepare_tail(
    options: &WalOptions,
    file: &File,
    path: &Path,
    offset: u64,
    torn: bool,
) -> io::Result<u64> {
    if torn {
        tracing::info!(path = %path.display(), "repairing");
        let mut broken = path.as_os_str().to_owned();
        broken.push(".broken");
        let copy = options.disk.create(Path::new(&broken))?;
        copy.write_at(&options.disk.read(path)?, 0)?;
        copy.sync()?;
        // What comes back when the file grows again are zeros.
        file.set_len(offset)?;
        tracing::info!(path = %path.display(), "repaired");
    }
    // What was read may have been written by a process that died before it synced. From here on it
    // counts as durable.
    if options.fsync {
        file.sync()?;
    }
    if file.len()? < options.segment_bytes {
        file.allocate(options.segment_bytes)?;
    }
    // How far the filler of that process came is not known. The log goes on before this one's.
    Ok(offset + CHUNK_BYTES as u64)
}

/// Makes an empty directory, whatever was there before.
pub(super) fn empty_directory(disk: &Disk, path: &Path) -> io::Result<()> {
    disk.create_directory(path)?;
    for name in disk.list(path)? {
        disk.remove(&path.join(name))?;
    }
    Ok(())
}

/// Puts the finished directory in its place, durably. One that stands there holds no segment.
pub(super) fn publish(disk: &Disk, temporary: &Path, dir: &Path) -> io::Result<()> {
    if disk.exists(dir) {
        for name in disk.list(dir)?.iter().filter(|name| name.ends_with(".tmp")) {
            disk.remove(&dir.join(name))?;
        }
    }
    disk.rename(temporary, dir)?;
    disk.sync_directory(dir.parent().unwrap_or(Path::new("")))
}

/// The zeros that a new log begins with, in bytes; the rest is filled in the background.
pub(super) fn first_chunk(options: &WalOptions) -> usize {
    usize::try_from(options.segment_bytes).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)
}
