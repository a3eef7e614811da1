//! The flush thread: carries state changes from memory to the backend.
//!
//! Decides how many batches make one commit. It owns the backend's writer; `boot` runs it on its
//! own thread at low priority, the apply thread hands it work.
//!
//! ```text
//!   apply --submit--> Mailbox --take--> Pending --commit--> LMDB --> flushed(), replies
//!                     64 MiB            1 MiB or 100 ms
//!                        |                                    between commits, one step at a time:
//!                        +-- Compact ----> dead rows, all --> delete 1000, rest 10 ms
//!                        +-- Defragment -> copy ------------> copy 128 KiB, rest 1 ms, swap, then
//!                        |                                    give 2 MiB of the old file back, rest 5 ms
//!                        +-- Install ----> swap
//! ```
//!
//! Invariants
//! - F1 Batches are committed in the order in which they came, each whole, with its consistent
//!   index, term and membership.
//! - F2 `flushed` moves only after a commit; whoever sees it finds the rows in a new reader.
//! - F3 A row is deleted only after every batch submitted before its compaction was committed; of
//!   one key, the older row goes no later than the newer, so that a crash between two
//!   transactions cannot bring back a deleted key.
//! - F4 `finishedCompactRev` is committed with the last deletion of its compaction.
//! - F5 A failed commit ends the thread with an error; nothing is retried.
//!
//! Deliberately absent: deciding what is dead (the key index does) and stopping the member.

mod compaction;
mod mailbox;
mod pending;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;

use self::{compaction::Compactions, mailbox::Flushed, pending::Pending};
use super::{
    defragment::{Copy, CopyStep},
    error::BackendError,
    install::{self, Reach},
    remains::{Remains, RemainsStep},
    tables::TableWrite,
    writer::Writer,
};
use crate::{
    base::{clock::Clock, error::chain},
    model::{LogIndex, Revision, Row, RowRevision, Term},
};

pub use mailbox::{FlusherHandle, Inbox, Stopped, mailbox};

/// What changed between two applied positions: one unit of the checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlushBatch {
    /// New rows, in order, after those of every earlier batch.
    pub rows: Vec<Row>,
    /// Changes of small tables, oldest first.
    pub tables: Vec<TableWrite>,
    /// The last applied entry that the batch holds; stored as `consistent_index`.
    pub applied: LogIndex,
    /// The term of that entry; stored as `term`.
    pub term: Term,
    /// The membership as JSON, if it changed; stored as `confState`.
    pub conf_state: Option<Bytes>,
}

/// Called once with the outcome, on the flush thread; so it only passes it on. Dropped without a
/// call if the thread ends first.
pub type Reply = Box<dyn FnOnce(Result<(), DefragmentError>) + Send>;

/// Why a job that can fail alone did; the database is as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefragmentError(pub String);

impl std::fmt::Display for DefragmentError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl std::error::Error for DefragmentError {}

/// Work for the flush thread.
pub enum FlushJob {
    /// Store this.
    Batch(FlushBatch),
    /// Delete rows that a compaction dropped.
    Compact {
        /// The revision of the compaction.
        revision: Revision,
        /// The rows; of one key, older ones first.
        dead: Vec<RowRevision>,
        /// Whether the compaction has no more.
        last: bool,
    },
    /// Reclaim the space of deleted rows.
    Defragment(Reply),
    /// Commit everything submitted before.
    Sync(Reply),
    /// Go on with the database in this directory, which is durable and nobody has open.
    Install(PathBuf, Reply),
}

impl std::fmt::Debug for FlushJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Batch(batch) => f.debug_tuple("Batch").field(&batch.applied).finish(),
            Self::Compact { revision, dead, last } => {
                f.debug_tuple("Compact").field(revision).field(&dead.len()).field(last).finish()
            }
            Self::Defragment(_) => f.write_str("Defragment"),
            Self::Sync(_) => f.write_str("Sync"),
            Self::Install(dir, _) => f.debug_tuple("Install").field(dir).finish(),
        }
    }
}

/// How the flush thread paces itself.
#[derive(Clone, Debug)]
pub struct FlusherOptions {
    /// How long changes may wait for company. Default: 100 ms. A commit writes its rows and some ten
    /// pages more, so what it costs a put at 1,000 puts/s are 2.2 KB with 15 ms, 0.7 KB with 100;
    /// and it is one visit less to the memory map, which counts as the process's memory.
    ///
    /// Source: etcd `server/storage/backend/backend.go`, `defaultBatchInterval`.
    pub interval: Duration,
    /// The changes that make a commit due, in bytes. Default: 1 MiB.
    pub batch_bytes: usize,
    /// Dead rows deleted in one transaction: `--compaction-batch-limit`. Default: 1000.
    pub compaction_rows: usize,
    /// Rest between such transactions: `--compaction-sleep-interval`. Default: 10 ms.
    pub compaction_pause: Duration,
}

impl Default for FlusherOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(100),
            batch_bytes: 1 << 20,
            compaction_rows: 1000,
            compaction_pause: Duration::from_millis(10),
        }
    }
}

/// Rest between two steps of a copy, so that log syncs get through.
const COPY_PAUSE: Duration = Duration::from_millis(1);

/// Rest between two steps of giving back a file that was replaced.
const REMAINS_PAUSE: Duration = Duration::from_millis(5);

/// Between two looks whether somebody still reads such a file.
const REMAINS_LOOK: Duration = Duration::from_millis(100);

/// Runs until every handle is gone, then commits what is left. A compaction that is not finished
/// goes on after the next start.
///
/// # Errors
/// - Any [`BackendError`] of a commit (F5); the member stops.
pub fn run(
    writer: Writer,
    inbox: Inbox,
    options: FlusherOptions,
    clock: Clock,
) -> Result<(), BackendError> {
    let mut flusher = Flusher {
        writer,
        inbox,
        options,
        clock,
        pending: Pending::default(),
        compactions: Compactions::default(),
        copy: None,
        remains: VecDeque::new(),
        step_due: Duration::ZERO,
    };
    while flusher.turn()? {}
    flusher.commit()
}

struct Flusher {
    writer: Writer,
    inbox: Inbox,
    options: FlusherOptions,
    clock: Clock,
    pending: Pending,
    compactions: Compactions,
    copy: Option<Copy>,
    /// Files that were replaced, oldest first.
    remains: VecDeque<Remains>,
    /// When the next step of any of these may be done.
    step_due: Duration,
}

impl Flusher {
    /// Waits for something to do and does it; whether there may be more.
    fn turn(&mut self) -> Result<bool, BackendError> {
        let patience = self.patience();
        let room = self.options.batch_bytes.saturating_sub(self.pending.bytes());
        let taken = self.inbox.take(patience, room);
        let open = taken.is_some();
        for job in taken.into_iter().flatten() {
            self.accept(job)?;
        }
        if self.commit_due() {
            self.commit()?;
        }
        if open && self.has_steps() && self.step_due <= self.clock.now() {
            self.step()?;
        }
        Ok(open)
    }

    /// How long to wait for more; for ever if there is nothing to do.
    fn patience(&self) -> Option<Duration> {
        let now = self.clock.now();
        let step = self.has_steps().then(|| self.step_due.saturating_sub(now));
        let commit = self.pending.due(self.options.interval).map(|due| due.saturating_sub(now));
        match (step, commit) {
            (Some(step), Some(commit)) => Some(step.min(commit)),
            (step, commit) => step.or(commit),
        }
    }

    fn accept(&mut self, job: FlushJob) -> Result<(), BackendError> {
        match job {
            FlushJob::Batch(batch) => self.pending.add(batch, self.clock.now()),
            FlushJob::Compact { revision, dead, last } => {
                // F3: what waits was submitted before.
                self.commit()?;
                self.compactions.add(revision, dead, last, self.clock.now());
            }
            FlushJob::Sync(reply) => {
                self.commit()?;
                reply(Ok(()));
            }
            FlushJob::Defragment(reply) => {
                self.commit()?;
                self.defragment(reply);
            }
            FlushJob::Install(dir, reply) => {
                self.commit()?;
                self.install(&dir)?;
                reply(Ok(()));
            }
        }
        Ok(())
    }

    fn commit_due(&self) -> bool {
        let now = self.clock.now();
        self.options.batch_bytes <= self.pending.bytes()
            || self.pending.due(self.options.interval).is_some_and(|due| due <= now)
    }

    /// Commits what waits, in one transaction.
    fn commit(&mut self) -> Result<(), BackendError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut txn = self.writer.begin()?;
        self.pending.write(&mut txn)?;
        txn.commit()?;
        if let Some(copy) = &mut self.copy {
            copy.touched(self.pending.touched());
        }
        let flushed = self.pending.clear();
        self.inbox.flushed(flushed);
        Ok(())
    }

    fn has_steps(&self) -> bool {
        self.copy.is_some() || !self.remains.is_empty() || !self.compactions.is_idle()
    }

    /// One step of a copy, or else of giving back what it replaced, or else of a compaction.
    fn step(&mut self) -> Result<(), BackendError> {
        let pause = if self.copy.is_some() {
            self.copy_step()?;
            COPY_PAUSE
        } else if self.give_back() {
            REMAINS_PAUSE
        } else if self.compactions.is_idle() {
            REMAINS_LOOK
        } else {
            let finished = self.compactions.step(&mut self.writer, &self.options, &self.clock)?;
            if let Some(revision) = finished {
                self.inbox.finished_compaction(revision);
            }
            self.options.compaction_pause
        };
        self.step_due = self.clock.now() + pause;
        Ok(())
    }

    /// Gives back a part of what was replaced; whether there was something that could be.
    fn give_back(&mut self) -> bool {
        let Some(oldest) = self.remains.front_mut() else { return false };
        match oldest.step() {
            Ok(RemainsStep::InUse) => return false,
            Ok(RemainsStep::More) => {}
            Ok(RemainsStep::Gone) => drop(self.remains.pop_front()),
            Err(error) => {
                // The system gives it back when it is closed.
                tracing::warn!(%error, "could not shorten a file that was replaced");
                self.remains.pop_front();
            }
        }
        true
    }

    /// Begins a copy, or joins the one under way.
    fn defragment(&mut self, reply: Reply) {
        match &mut self.copy {
            Some(copy) => copy.join(reply),
            None => match Copy::begin(&self.writer, self.clock.now()) {
                Ok(mut copy) => {
                    copy.join(reply);
                    self.copy = Some(copy);
                }
                Err(error) => reply(Err(DefragmentError(chain(&error)))),
            },
        }
    }

    /// What was under way for the old database ends with it.
    fn install(&mut self, dir: &Path) -> Result<(), BackendError> {
        if let Some(copy) = self.copy.take() {
            let superseded = "a leader has sent a newer database";
            copy.give_up(&DefragmentError(superseded.to_owned()));
        }
        self.compactions = Compactions::default();
        let (reach, remains) = install::received(&mut self.writer, dir)?;
        self.remains.push_back(remains);
        let Reach { applied, revision, finished_compaction } = reach;
        self.inbox.flushed(Flushed { applied, revision, bytes: 0 });
        self.inbox.finished_compaction(finished_compaction);
        Ok(())
    }

    fn copy_step(&mut self) -> Result<(), BackendError> {
        let Some(mut copy) = self.copy.take() else { return Ok(()) };
        match copy.step(&mut self.writer) {
            Ok(CopyStep::More) => self.copy = Some(copy),
            Ok(CopyStep::Complete) => {
                // What waits goes into the new environment; what was committed is in the copy.
                let remains = copy.publish(&mut self.writer, self.clock.now())?;
                self.remains.push_back(remains);
            }
            // The copy is given up: no room, or damage in what was copied. The database stays.
            Err(error) => copy.give_up(&DefragmentError(chain(&error))),
        }
        Ok(())
    }
}
