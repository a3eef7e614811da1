//! Gives back the space of segments that nobody needs.
//!
//! Decides when their blocks are freed: bit by bit, on a thread of its own. The name of a segment
//! goes at once; freeing 64 MiB at once, as the last close of a nameless file does, takes the disk
//! some 15 ms, in which no sync of the log comes through. A small segment goes at once. Called by
//! the log; each thread ends by itself, and what it leaves undone, the system does at the end of
//! the process.

use std::{io, path::Path, time::Duration};

use crate::base::{
    file::{Disk, File},
    thread::{self, Priority},
};

/// What is given back at a time: less than a millisecond of the file system's work.
const STEP_BYTES: u64 = 2 << 20;

/// Rest between two steps, in which the log syncs.
const STEP_PAUSE: Duration = Duration::from_millis(5);

/// Removes the segment `path` and starts giving back its space.
pub(super) fn purge(disk: &Disk, path: &Path) -> io::Result<()> {
    let file = disk.open(path)?;
    disk.remove(path)?;
    if file.len()? <= STEP_BYTES {
        return Ok(());
    }
    // Without a thread it is given back at once, when the file is closed.
    if let Err(error) = thread::spawn("wal-purge", Priority::Background, move || shrink(&file)) {
        tracing::warn!(%error, "could not start a thread that removes a WAL segment");
    }
    Ok(())
}

fn shrink(file: &File) {
    let mut bytes = file.len().unwrap_or(0);
    while 0 < bytes {
        bytes = bytes.saturating_sub(STEP_BYTES);
        if let Err(error) = file.set_len(bytes) {
            tracing::warn!(%error, "could not shorten a WAL segment that was removed");
            return;
        }
        thread::pause(STEP_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purged_segment_loses_its_name_at_once_and_then_all_its_bytes() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("0.wal");
        let file = Disk::system().create(&path).unwrap();
        file.set_len(2 * STEP_BYTES + 1).unwrap();
        let other = Disk::system().open(&path).unwrap();
        purge(&Disk::system(), &path).unwrap();
        assert!(!path.exists(), "the name stays");
        shrink(&other);
        assert_eq!(file.len().unwrap(), 0, "bytes stay");
    }
}
