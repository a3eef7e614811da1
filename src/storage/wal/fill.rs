//! Makes segments ahead of need, and fills them with zeros.
//!
//! Decides when a block of the log is allocated: before it is written. Overwriting zeros leaves
//! the file's extents alone, so a sync of the log flushes data and nothing else; on reserved but
//! unwritten blocks every sync also waits for the journal (a batch of 16 entries: 153 instead of
//! 93 us). It fills no more than the log is about to need: the log's own syncs wait behind its
//! writes, and a member that writes little has them for nothing. Owned by the log; each fill is one
//! thread that ends by itself.
//!
//! Invariants
//! - L1 The filler never writes below `filled`; the log never writes above it while one runs.
//! - L2 A filler that rests is woken once a chunk more is wanted.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::base::{
    file::{Disk, File},
    thread::{self, Priority},
};

/// Zeros that are written and synced at a time: little enough to slip between the log's own syncs.
pub(super) const CHUNK_BYTES: usize = 256 << 10;
/// Zeros of one write. The kernel caches what one write brings as one piece, if it can, and a sync
/// looks at every block of a piece that has changed: with 256 KiB, one of 4 KiB took 46 us of the
/// processor instead of 39.
const WRITE_BYTES: usize = 16 << 10;
/// Rest between chunks while the filler is far enough ahead of the log.
const CHUNK_PAUSE: Duration = Duration::from_millis(5);
/// How far ahead of the log that is: what it writes in half a second at most. Under such a load the
/// filler needs the time, because it is the last to get the processor.
const AHEAD_BYTES: u64 = if cfg!(test) { 8 * CHUNK_BYTES as u64 } else { 32 << 20 };

/// A fill in progress, or done.
#[derive(Debug)]
pub(super) struct Fill {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<io::Result<Arc<File>>>>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Zeros stand below this offset.
    filled: AtomicU64,
    /// Zeros are wanted below this offset.
    wanted: AtomicU64,
    /// The filler sleeps until more is wanted.
    rests: AtomicBool,
    stop: AtomicBool,
}

impl Fill {
    /// Fills an open file from `from` to `to`.
    pub(super) fn start(file: Arc<File>, from: u64, to: u64) -> io::Result<Self> {
        Self::spawn(from, to, move || Ok(file))
    }

    /// Creates, locks and fills a new file of `bytes` bytes.
    pub(super) fn create(disk: Disk, path: PathBuf, bytes: u64) -> io::Result<Self> {
        Self::spawn(0, bytes, move || Ok(Arc::new(reserve(&disk, &path, bytes)?)))
    }

    fn spawn(
        from: u64,
        to: u64,
        file: impl FnOnce() -> io::Result<Arc<File>> + Send + 'static,
    ) -> io::Result<Self> {
        let progress = Arc::new(Progress::default());
        progress.filled.store(from, Ordering::Release);
        progress.wanted.store(from + AHEAD_BYTES, Ordering::Release);
        let shared = Arc::clone(&progress);
        let thread = thread::spawn("wal-fill", Priority::Background, move || {
            let file = file()?;
            run(&file, &shared, to)?;
            Ok(file)
        })?;
        Ok(Self { progress, thread: Some(thread) })
    }

    /// Has the filler keep its distance from `position` (L2), if it still runs.
    pub(super) fn keep_ahead_of(&self, position: u64) {
        let Some(thread) = &self.thread else { return };
        let wanted = position + AHEAD_BYTES;
        self.progress.wanted.store(wanted, Ordering::SeqCst);
        let lacks_chunk = self.progress.filled() + CHUNK_BYTES as u64 <= wanted;
        if lacks_chunk && self.progress.rests.swap(false, Ordering::SeqCst) {
            thread.thread().unpark();
        }
    }

    /// Makes sure that the log may write up to `end` (L1).
    pub(super) fn make_way(&mut self, end: u64) {
        if self.progress.filled() < end {
            self.finish_early();
        }
        self.keep_ahead_of(end);
    }

    /// The file, as far as it is filled.
    pub(super) fn take(mut self) -> io::Result<Arc<File>> {
        self.progress.stop.store(true, Ordering::Release);
        let thread = self.thread.take().expect("only a finished fill has none");
        thread.thread().unpark();
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the filler panicked")))
    }

    fn finish_early(&mut self) {
        self.progress.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else { return };
        thread.thread().unpark();
        // What is not filled is written into as it is; only speed was at stake.
        if let Ok(Err(error)) = thread.join() {
            tracing::warn!(%error, "could not fill a WAL segment with zeros");
        }
        self.progress.filled.store(u64::MAX, Ordering::Release);
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.finish_early();
    }
}

/// Creates a file with room for `bytes` bytes, locked.
pub(super) fn reserve(disk: &Disk, path: &std::path::Path, bytes: u64) -> io::Result<File> {
    let file = disk.create(path)?;
    if !file.try_lock()? {
        return Err(io::Error::from(io::ErrorKind::WouldBlock));
    }
    file.allocate(bytes)?;
    Ok(file)
}

impl Progress {
    fn filled(&self) -> u64 {
        self.filled.load(Ordering::Acquire)
    }

    /// Where the next chunk ends, once it is wanted; `None` when there is no more to do.
    fn next_chunk(&self, to: u64) -> Option<u64> {
        let end = to.min(self.filled() + CHUNK_BYTES as u64);
        while !self.stop.load(Ordering::Acquire) {
            if end <= self.wanted.load(Ordering::SeqCst) {
                return Some(end);
            }
            self.rests.store(true, Ordering::SeqCst);
            if self.wanted.load(Ordering::SeqCst) < end && !self.stop.load(Ordering::Acquire) {
                std::thread::park();
            }
            self.rests.store(false, Ordering::SeqCst);
        }
        None
    }
}

fn run(file: &File, progress: &Progress, to: u64) -> io::Result<()> {
    let zeros = vec![0; WRITE_BYTES];
    let mut filled = progress.filled();
    while filled < to
        && let Some(end) = progress.next_chunk(to)
    {
        while filled < end {
            let write = usize::try_from(end - filled).unwrap_or(WRITE_BYTES).min(WRITE_BYTES);
            file.write_at(&zeros[..write], filled)?;
            filled += write as u64;
        }
        file.sync()?;
        progress.filled.store(filled, Ordering::Release);
        let wanted = progress.wanted.load(Ordering::SeqCst);
        if wanted.saturating_sub(filled) <= AHEAD_BYTES / 2 {
            std::thread::park_timeout(CHUNK_PAUSE);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filled_file_is_all_zeros_and_stays_writable_behind_the_filler() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("0.tmp");
        let bytes = 3 * u64::try_from(CHUNK_BYTES).unwrap() + 17;
        let mut fill = Fill::create(Disk::system(), path.clone(), bytes).unwrap();
        fill.make_way(bytes);
        assert_eq!(fill.progress.filled(), u64::MAX, "a filler still runs");
        fill.keep_ahead_of(bytes);
        let stored = std::fs::read(&path).unwrap();
        assert_eq!(u64::try_from(stored.len()).unwrap(), bytes);
        assert!(stored.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn filler_keeps_a_distance_and_goes_on_when_more_is_wanted() {
        let dir = tempfile::TempDir::new().unwrap();
        let bytes = 2 * AHEAD_BYTES + 17;
        let fill = Fill::create(Disk::system(), dir.path().join("0.tmp"), bytes).unwrap();
        let progress = Arc::clone(&fill.progress);
        let rests_at = |filled: u64| {
            while !progress.rests.load(Ordering::SeqCst) || progress.filled() < filled {
                std::thread::yield_now();
            }
            assert_eq!(progress.filled(), filled);
        };
        rests_at(AHEAD_BYTES);
        fill.keep_ahead_of(CHUNK_BYTES as u64 - 1);
        rests_at(AHEAD_BYTES);
        fill.keep_ahead_of(CHUNK_BYTES as u64);
        rests_at(AHEAD_BYTES + CHUNK_BYTES as u64);
        fill.keep_ahead_of(bytes);
        while progress.filled() < bytes {
            std::thread::yield_now();
        }
        fill.take().expect("it was filled");
    }
}
