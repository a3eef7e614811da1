//! When raft snapshots are taken, and those under way.
//!
//! Decides that every so many applied entries a position is noted, that it is recorded in the log
//! only once the backend is durable up to there, and what of the log is let go then (R4 of the
//! folder). Owned by the apply thread.

use std::collections::VecDeque;

use proto::raftpb::Snapshot;

use crate::model::LogIndex;

use super::{Input, snapshot::position};

/// When raft snapshots are taken, and those under way.
#[derive(Debug)]
pub(super) struct SnapshotPolicy {
    /// Applied entries between two snapshots.
    entries: u64,
    /// Entries kept behind a snapshot for followers that are a little late.
    catch_up_entries: u64,
    /// The position of the last snapshot noted.
    last: LogIndex,
    /// Noted, and waiting for the backend to be durable; oldest first.
    waiting: VecDeque<Snapshot>,
}

impl SnapshotPolicy {
    /// A snapshot every `entries` entries after the one at `last`; each lets go of what lies more
    /// than `catch_up_entries` before it.
    pub(super) const fn new(entries: u64, catch_up_entries: u64, last: LogIndex) -> Self {
        Self { entries, catch_up_entries, last, waiting: VecDeque::new() }
    }

    /// The position of the last snapshot noted, or of the log's when it was opened.
    pub(super) const fn last(&self) -> LogIndex {
        self.last
    }

    /// Applied entries between two snapshots.
    pub(super) const fn entries(&self) -> u64 {
        self.entries
    }

    /// Whether a snapshot is to be noted at `applied`.
    pub(super) const fn is_due(&self, applied: LogIndex) -> bool {
        self.entries <= applied.0.saturating_sub(self.last.0)
    }

    /// Notes a snapshot of the present position.
    pub(super) fn note(&mut self, snapshot: Snapshot) {
        assert!(self.last <= position(&snapshot), "a snapshot before {}", self.last);
        self.last = position(&snapshot);
        self.waiting.push_back(snapshot);
    }

    /// Whether one is noted and not recorded.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next snapshot to be recorded, now that the backend is durable up to `durable`.
    pub(super) fn take_durable(&mut self, durable: LogIndex) -> Option<Input> {
        let index = position(self.waiting.front()?);
        if durable < index {
            return None;
        }
        let snapshot = self.waiting.pop_front().expect("the front was just seen");
        let release_to = LogIndex(index.0.saturating_sub(self.catch_up_entries));
        Some(Input::SaveSnapshot { snapshot: Box::new(snapshot), release_to })
    }

    /// The state was replaced by one at `index`, which the log has recorded.
    pub(super) fn installed(&mut self, index: LogIndex) {
        self.last = index;
        self.waiting.clear();
    }
}
