//! Compactions under way.
//!
//! Decides in which order the parts of a compaction happen. The revision becomes unreadable at
//! once; the rest is done in steps that the apply thread takes between batches:
//!
//! ```text
//!   schedule -> Hash(job) -> Working ... Working -> Delete(rows) ... -> Delete(rows, last)
//!               another       index steps            after the job has ended
//!               thread
//! ```
//!
//! The hash reads rows that the compaction is about to delete, so none is handed out before the
//! job has ended. Dropping the job unrun ends it too: then there is no hash to remember.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;

use super::{hash::HashJob, index::KeyIndex, metrics};
use crate::model::{Revision, RowRevision};

/// Dead rows that wait for the hash to end; the index rests when there are more.
const DEAD_ROWS_MAX: usize = 256 * 1024;

/// Dead rows handed out at once, about: a few transactions of the flusher.
const DELETE_ROWS_MAX: usize = 4096;

/// A compaction was scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// At which revision.
    pub revision: Revision,
    /// The revision of the one before; -1 if there was none.
    pub previous: Revision,
}

/// What a step of a compaction came to.
#[derive(Debug)]
pub enum CompactionStep {
    /// No compaction is under way.
    Idle,
    /// There is more to do, now or soon.
    Working,
    /// A hash is to be computed, on a thread that may take long.
    Hash(HashJob),
    /// Rows are to be deleted from the backend.
    Delete {
        /// The revision of the compaction.
        revision: Revision,
        /// The rows; those of one key in ascending order.
        dead: Vec<RowRevision>,
        /// Whether these are the last ones of this compaction.
        last: bool,
    },
}

/// The compactions under way, oldest first.
#[derive(Debug, Default)]
pub(super) struct Compactions(VecDeque<Running>);

#[derive(Debug)]
struct Running {
    revision: Revision,
    hash: Option<HashJob>,
    hash_ended: Arc<AtomicBool>,
    /// Where the index goes on; `None` at the end.
    from: Option<Bytes>,
    /// As the steps found them.
    dead: VecDeque<Vec<RowRevision>>,
    dead_rows: usize,
}

impl Compactions {
    pub(super) fn is_idle(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn schedule(&mut self, revision: Revision, hash: Option<HashJob>) {
        let last = self.0.back().map(|running| running.revision);
        assert!(last < Some(revision), "compaction at {revision} after one at {last:?}");
        let hash_ended = hash.as_ref().map_or_else(|| Arc::new(true.into()), HashJob::ended);
        let from = Some(Bytes::new());
        let dead = VecDeque::new();
        self.0.push_back(Running { revision, hash, hash_ended, from, dead, dead_rows: 0 });
    }

    pub(super) fn step(&mut self, index: &mut KeyIndex) -> CompactionStep {
        let Some(running) = self.0.front_mut() else { return CompactionStep::Idle };
        let step = running.step(index);
        if matches!(step, CompactionStep::Delete { last: true, .. }) {
            self.0.pop_front();
        }
        step
    }
}

impl Running {
    fn step(&mut self, index: &mut KeyIndex) -> CompactionStep {
        if let Some(job) = self.hash.take() {
            tracing::info!(revision = self.revision.0, "compact tree index");
            return CompactionStep::Hash(job);
        }
        if let Some(from) = &self.from
            && self.dead_rows < DEAD_ROWS_MAX
        {
            let mut found = Vec::new();
            self.from = index.compact(self.revision, from, &mut found);
            self.dead_rows += found.len();
            if !found.is_empty() {
                self.dead.push_back(found);
            }
        }
        let ended = self.hash_ended.load(Ordering::Acquire);
        if !ended || (self.from.is_some() && self.dead_rows < DELETE_ROWS_MAX) {
            return CompactionStep::Working;
        }
        let mut dead = Vec::new();
        while dead.len() < DELETE_ROWS_MAX
            && let Some(found) = self.dead.pop_front()
        {
            dead.extend(found);
        }
        self.dead_rows -= dead.len();
        metrics::COMPACTED_ROWS.inc_by(dead.len() as u64);
        let last = self.from.is_none() && self.dead.is_empty();
        CompactionStep::Delete { revision: self.revision, dead, last }
    }
}
