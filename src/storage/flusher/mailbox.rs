//! How work reaches the flush thread and how its progress is seen.
//!
//! Decides who waits for whom: a producer waits when too many bytes are not yet committed, and
//! wakes the flush thread only if that sleeps for want of anything, or if a commit has become due.
//! So a steady stream of batches costs one wake-up per commit.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{FlushBatch, FlushJob, Reply, pending};
use crate::model::{LogIndex, Revision};

/// Bytes that may wait for their commit: enough for a disk that hangs for a second under a full
/// stream of writes; beyond, writers are slowed down rather than memory filled.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// What a job weighs beside its rows.
const JOB_BYTES: usize = 256;

/// The flush thread is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the flush thread has stopped")
    }
}

impl std::error::Error for Stopped {}

/// The producers' end. Cloning shares it.
pub struct FlusherHandle(Arc<Shared>);

/// The flush thread's end.
pub struct Inbox(Arc<Shared>);

/// How far the flush thread has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flushed {
    pub(super) applied: LogIndex,
    /// The last row's revision, if there was one.
    pub(super) revision: Option<Revision>,
    /// What the commit weighed.
    pub(super) bytes: usize,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
    applied: AtomicU64,
    revision: AtomicI64,
    compacted: AtomicI64,
}

struct State {
    jobs: Vec<FlushJob>,
    /// Bytes in `jobs`.
    queued_bytes: usize,
    /// Bytes not yet committed: those in `jobs` and those that the flush thread has taken.
    waiting_bytes: usize,
    handles: usize,
    stopped: bool,
    /// Whether a job is queued that does not wait for company.
    urgent: bool,
    sleep: Sleep,
    waiters: Vec<(Revision, Reply)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sleep {
    Awake,
    /// Any job ends it.
    ForAny,
    /// Urgent jobs end it, or this many queued bytes.
    ForBytes(usize),
}

/// Connects producers with a flush thread that starts from what the backend holds already.
#[must_use]
pub fn mailbox(
    applied: LogIndex,
    revision: Revision,
    compacted: Revision,
) -> (FlusherHandle, Inbox) {
    let state = State {
        jobs: Vec::new(),
        queued_bytes: 0,
        waiting_bytes: 0,
        handles: 1,
        stopped: false,
        urgent: false,
        sleep: Sleep::Awake,
        waiters: Vec::new(),
    };
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        work: Condvar::new(),
        room: Condvar::new(),
        applied: AtomicU64::new(applied.0),
        revision: AtomicI64::new(revision.0),
        compacted: AtomicI64::new(compacted.0),
    });
    (FlusherHandle(Arc::clone(&shared)), Inbox(shared))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FlusherHandle {
    /// Hands over a job; waits while more than 64 MiB are not yet committed.
    ///
    /// # Errors
    /// - [`Stopped`] if the flush thread is gone: it failed, and the member is to stop.
    pub fn submit(&self, job: FlushJob) -> Result<(), Stopped> {
        let bytes = weight(&job);
        let mut state = self.0.lock();
        while WAITING_BYTES_MAX <= state.waiting_bytes && !state.stopped {
            state = self.0.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopped {
            return Err(Stopped);
        }
        state.urgent |= !matches!(job, FlushJob::Batch(_));
        state.jobs.push(job);
        state.queued_bytes += bytes;
        state.waiting_bytes += bytes;
        let wake = match state.sleep {
            Sleep::Awake => false,
            Sleep::ForAny => true,
            Sleep::ForBytes(enough) => state.urgent || enough <= state.queued_bytes,
        };
        if wake {
            state.sleep = Sleep::Awake;
        }
        drop(state);
        if wake {
            self.0.work.notify_one();
        }
        Ok(())
    }

    /// The last applied entry and the last revision that a new reader of the backend is sure to
    /// find.
    #[must_use]
    pub fn flushed(&self) -> (LogIndex, Revision) {
        let applied = LogIndex(self.0.applied.load(Ordering::Acquire));
        (applied, Revision(self.0.revision.load(Ordering::Acquire)))
    }

    /// The revision of the last compaction whose rows are all deleted; -1 before any.
    #[must_use]
    pub fn finished_compaction(&self) -> Revision {
        Revision(self.0.compacted.load(Ordering::Acquire))
    }

    /// Calls `reply` once a compaction at `revision` or later is finished; at once if it is.
    pub fn on_compaction_finished(&self, revision: Revision, reply: Reply) {
        let mut state = self.0.lock();
        if self.finished_compaction() < revision {
            state.waiters.push((revision, reply));
            return;
        }
        drop(state);
        reply(Ok(()));
    }

    /// Waits until everything submitted before is committed. Not for asynchronous tasks.
    ///
    /// # Errors
    /// - [`Stopped`] if the flush thread ended first.
    pub fn sync(&self) -> Result<(), Stopped> {
        self.submit_and_wait(FlushJob::Sync)
    }

    /// Goes on with the database in `dir`, which is durable and nobody has open, and waits until it
    /// is in place. Not for asynchronous tasks.
    ///
    /// # Errors
    /// - [`Stopped`] if the flush thread ended first.
    pub fn install(&self, dir: PathBuf) -> Result<(), Stopped> {
        self.submit_and_wait(|reply| FlushJob::Install(dir, reply))
    }

    fn submit_and_wait(&self, job: impl FnOnce(Reply) -> FlushJob) -> Result<(), Stopped> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.submit(job(Box::new(move |outcome| {
            // Nobody waits any more if this fails.
            drop(sender.send(outcome));
        })))?;
        receiver.recv().map(drop).map_err(|_dropped| Stopped)
    }
}

impl Clone for FlusherHandle {
    fn clone(&self) -> Self {
        self.0.lock().handles += 1;
        Self(Arc::clone(&self.0))
    }
}

impl Drop for FlusherHandle {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.handles -= 1;
        let last = state.handles == 0;
        drop(state);
        if last {
            self.0.work.notify_one();
        }
    }
}

impl fmt::Debug for FlusherHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlusherHandle").field("flushed", &self.flushed()).finish_non_exhaustive()
    }
}

impl Inbox {
    /// Takes every queued job. Without a `patience` it waits for the first; with one it waits that
    /// long for `enough_bytes` or an urgent job. `None` once every producer is gone and nothing is
    /// left.
    pub(super) fn take(
        &self,
        patience: Option<Duration>,
        enough_bytes: usize,
    ) -> Option<Vec<FlushJob>> {
        let mut state = self.0.lock();
        if patience.is_none() {
            while state.jobs.is_empty() && 0 < state.handles {
                state.sleep = Sleep::ForAny;
                state = self.0.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        } else if let Some(patience) = patience
            && !state.urgent
            && state.queued_bytes < enough_bytes
            && 0 < state.handles
        {
            state.sleep = Sleep::ForBytes(enough_bytes);
            let waited = self.0.work.wait_timeout(state, patience);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.sleep = Sleep::Awake;
        state.urgent = false;
        state.queued_bytes = 0;
        if state.jobs.is_empty() && state.handles == 0 {
            return None;
        }
        let jobs = std::mem::take(&mut state.jobs);
        // Only batches hold bytes until their commit.
        let light = jobs.iter().filter(|job| !matches!(job, FlushJob::Batch(_)));
        state.waiting_bytes -= light.map(weight).sum::<usize>();
        Some(jobs)
    }

    /// Publishes a commit, and lets producers go on.
    pub(super) fn flushed(&self, flushed: Flushed) {
        if let Some(revision) = flushed.revision {
            self.0.revision.store(revision.0, Ordering::Release);
        }
        let before = self.0.applied.swap(flushed.applied.0, Ordering::AcqRel);
        assert!(before <= flushed.applied.0, "applied {before} then {}", flushed.applied);
        let mut state = self.0.lock();
        state.waiting_bytes -= flushed.bytes;
        drop(state);
        self.0.room.notify_all();
    }

    /// Publishes the end of a compaction.
    pub(super) fn finished_compaction(&self, revision: Revision) {
        let mut state = self.0.lock();
        self.0.compacted.store(revision.0, Ordering::Release);
        let waiters = std::mem::take(&mut state.waiters);
        let (done, waiting): (Vec<_>, _) =
            waiters.into_iter().partition(|(wanted, _)| *wanted <= revision);
        state.waiters = waiting;
        drop(state);
        for (_, reply) in done {
            reply(Ok(()));
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.stopped = true;
        let orphans = (std::mem::take(&mut state.jobs), std::mem::take(&mut state.waiters));
        drop(state);
        drop(orphans);
        self.0.room.notify_all();
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

/// What a job weighs, in bytes, about.
pub(super) fn weight(job: &FlushJob) -> usize {
    match job {
        FlushJob::Batch(batch) => batch_weight(batch),
        FlushJob::Compact { .. }
        | FlushJob::Defragment(_)
        | FlushJob::Sync(_)
        | FlushJob::Install(..) => JOB_BYTES,
    }
}

/// What a batch weighs until it is committed.
pub(super) fn batch_weight(batch: &FlushBatch) -> usize {
    pending::weight(batch) + JOB_BYTES
}
