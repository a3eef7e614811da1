//! What a leader knows of one other member's log, and how much it may send.
//!
//! Decides when to probe, when to stream, and when to wait; [`super::replication`] does the
//! sending. One per member of the membership, learners and the leader itself included.
//!
//! ```text
//!             answered              a needed entry was truncated
//!   Probe ---------------> Replicate --------------+
//!     ^  <---------------     ^                    v
//!     |  rejected or          |                Snapshot
//!     |  unreachable          +--------------------+ |
//!     |                  the answer reaches our log   |
//!     +----------------------------------------------+ reported sent or failed
//! ```
//!
//! Invariants
//! - P1 `matched < next`, in every state.
//! - P2 While replicating, the entries in `matched + 1 .. next` are on their way.

use std::{collections::VecDeque, fmt};

use crate::model::LogIndex;

/// How a leader treats a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressState {
    /// One message at a time, to find where the logs agree.
    Probe,
    /// A stream of messages, limited by what is unanswered.
    Replicate,
    /// Nothing until the snapshot that was sent is in.
    Snapshot,
}

/// A leader's knowledge of one member.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The logs agree up to here.
    pub(super) matched: LogIndex,
    /// The next entry to send; P1.
    pub(super) next: LogIndex,
    pub(super) state: ProgressState,
    /// The index of the snapshot that was sent, while one is.
    pub(super) pending_snapshot: LogIndex,
    /// It answered since the last check of the quorum.
    pub(super) recently_active: bool,
    pub(super) is_learner: bool,
    pub(super) in_flight: InFlight,
    /// No more appends until a heartbeat is answered or the window opens.
    appends_paused: bool,
    /// The highest commit index on its way.
    sent_commit: LogIndex,
}

/// What a new progress starts with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub(super) next: LogIndex,
    pub(super) is_learner: bool,
    pub(super) recently_active: bool,
    pub(super) appends_in_flight_max: usize,
}

impl Progress {
    pub(super) fn new(start: Start) -> Self {
        assert!(0 < start.next.0, "the first entry has index 1");
        Self {
            matched: LogIndex(0),
            next: start.next,
            state: ProgressState::Probe,
            pending_snapshot: LogIndex(0),
            recently_active: start.recently_active,
            is_learner: start.is_learner,
            in_flight: InFlight::new(start.appends_in_flight_max),
            appends_paused: false,
            sent_commit: LogIndex(0),
        }
    }

    /// The last entry the member is known to share with the leader.
    #[must_use]
    pub const fn matched(&self) -> LogIndex {
        self.matched
    }

    /// How the leader treats the member.
    #[must_use]
    pub const fn state(&self) -> ProgressState {
        self.state
    }

    /// Whether the member only follows.
    #[must_use]
    pub const fn is_learner(&self) -> bool {
        self.is_learner
    }

    /// Starts over from the last match, or from the snapshot that was just sent.
    pub(super) fn become_probe(&mut self) {
        let after_snapshot = match self.state {
            ProgressState::Snapshot => self.pending_snapshot.next(),
            ProgressState::Probe | ProgressState::Replicate => LogIndex(0),
        };
        self.reset(ProgressState::Probe);
        self.next = self.matched.next().max(after_snapshot);
        self.sent_commit = self.sent_commit.min(self.previous());
        self.check();
    }

    pub(super) fn become_replicate(&mut self) {
        self.reset(ProgressState::Replicate);
        self.next = self.matched.next();
        self.check();
    }

    pub(super) fn become_snapshot(&mut self, snapshot: LogIndex) {
        self.reset(ProgressState::Snapshot);
        self.pending_snapshot = snapshot;
        self.next = snapshot.next().max(self.matched.next());
        self.sent_commit = snapshot;
        self.check();
    }

    fn reset(&mut self, state: ProgressState) {
        self.appends_paused = false;
        self.pending_snapshot = LogIndex(0);
        self.state = state;
        self.in_flight.clear();
    }

    /// Notes that an append with this many entries was sent from `next`.
    pub(super) fn sent_entries(&mut self, entries: u64) {
        match self.state {
            ProgressState::Replicate => {
                if 0 < entries {
                    self.next = LogIndex(self.next.0 + entries);
                    self.in_flight.add(self.previous());
                }
                // The message that fills the window also serves as the probe that opens it again.
                self.appends_paused = self.in_flight.is_full();
            }
            ProgressState::Probe => {
                if 0 < entries {
                    self.appends_paused = true;
                }
            }
            ProgressState::Snapshot => unreachable!("nothing is appended during a snapshot"),
        }
        self.check();
    }

    pub(super) const fn sent_commit(&mut self, commit: LogIndex) {
        self.sent_commit = commit;
    }

    /// Whether sending `commit` could move the member's commit index.
    pub(super) fn can_bump_commit(&self, commit: LogIndex) -> bool {
        self.sent_commit < commit && self.sent_commit < self.previous()
    }

    /// Notes that the logs agree up to `index`; false if that was known.
    pub(super) fn matches(&mut self, index: LogIndex) -> bool {
        if index <= self.matched {
            return false;
        }
        self.matched = index;
        self.next = self.next.max(index.next());
        self.appends_paused = false;
        self.check();
        true
    }

    /// Notes that the member refused the append after `rejected` and may agree at `hint`. False if
    /// the refusal is older than what is known by now.
    pub(super) fn differs(&mut self, rejected: LogIndex, hint: LogIndex) -> bool {
        match self.state {
            ProgressState::Replicate => {
                if rejected <= self.matched {
                    return false;
                }
                self.next = self.matched.next();
            }
            ProgressState::Probe | ProgressState::Snapshot => {
                // One probe is under way at a time, so an answer to any other one is late.
                if self.previous() != rejected {
                    return false;
                }
                self.next = rejected.min(LogIndex(hint.0.saturating_add(1)));
                self.next = self.next.max(self.matched.next());
                self.appends_paused = false;
            }
        }
        self.sent_commit = self.sent_commit.min(self.previous());
        self.check();
        true
    }

    pub(super) const fn pause_appends(&mut self) {
        self.appends_paused = true;
    }

    pub(super) const fn resume_appends(&mut self) {
        self.appends_paused = false;
    }

    /// Whether nothing may be appended now.
    pub(super) const fn is_paused(&self) -> bool {
        match self.state {
            ProgressState::Probe | ProgressState::Replicate => self.appends_paused,
            ProgressState::Snapshot => true,
        }
    }

    /// The entry before the next one to send.
    pub(super) const fn previous(&self) -> LogIndex {
        LogIndex(self.next.0 - 1)
    }

    fn check(&self) {
        assert!(self.matched < self.next, "P1: matched {} next {}", self.matched, self.next);
    }
}

/// Prints what etcd's status shows of a follower.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "State{:?} match={} next={}", self.state, self.matched, self.next)?;
        if self.is_learner {
            f.write_str(" learner")?;
        }
        if self.is_paused() {
            f.write_str(" paused")?;
        }
        if 0 < self.pending_snapshot.0 {
            write!(f, " pendingSnap={}", self.pending_snapshot)?;
        }
        if !self.recently_active {
            f.write_str(" inactive")?;
        }
        if !self.in_flight.messages.is_empty() {
            write!(f, " inflight={}", self.in_flight.messages.len())?;
            if self.in_flight.is_full() {
                f.write_str("[full]")?;
            }
        }
        Ok(())
    }
}

/// The last entries of the appends that wait for an answer, oldest first.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    messages: VecDeque<LogIndex>,
    messages_max: usize,
}

impl InFlight {
    const fn new(messages_max: usize) -> Self {
        Self { messages: VecDeque::new(), messages_max }
    }

    fn add(&mut self, last: LogIndex) {
        assert!(!self.is_full(), "{} appends are in flight already", self.messages.len());
        assert!(self.messages.back().is_none_or(|before| *before < last), "append {last} is old");
        self.messages.push_back(last);
    }

    /// Forgets the appends that an answer up to `index` covers.
    pub(super) fn answered(&mut self, index: LogIndex) {
        while self.messages.front().is_some_and(|last| *last <= index) {
            self.messages.pop_front();
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.messages_max <= self.messages.len()
    }

    fn clear(&mut self) {
        self.messages.clear();
    }
}
