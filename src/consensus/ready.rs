//! What the core asks for, and what it is told when that is done.
//!
//! Decides what may happen before the disk has answered and what may not. `replica::core` takes a
//! [`Ready`] after each input or batch of inputs, hands its parts to the log thread, the apply
//! thread and the peers, and reports back with [`Raft::persisted`] and [`Raft::applied`].

use proto::raftpb::{Entry, HardState, Message, Snapshot};

use super::{Raft, ReadState, Role, config::CommitWrites, message::VoteKind, raft::Outgoing};
use crate::model::{LogIndex, MemberId, Term};

/// The number of a batch for the log. They rise by one; later batches are written later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct BatchNumber(pub u64);

/// Who leads, and what this member is; nothing that must be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftState {
    /// The leader; 0 if nobody is known.
    pub leader: MemberId,
    /// This member's role.
    pub role: Role,
}

/// Work for the log thread, to be done in one go and in the order of the numbers.
#[derive(Debug, Default)]
pub struct Batch {
    /// What to report with [`Raft::persisted`] once this batch, and all before it, are durable.
    pub number: BatchNumber,
    /// Term, vote and commit index, if they changed. They go after the entries and the snapshot,
    /// which they may refer to.
    pub hard_state: Option<HardState>,
    /// To be appended. If the log holds entries with these indexes or later ones, these replace
    /// them.
    pub entries: Vec<Entry>,
    /// A snapshot that replaces the log and the state machine. It must be durable before the
    /// record of it in the log, and applied before any entry that is handed out later.
    pub snapshot: Option<Snapshot>,
    /// Whether what is written must be made durable. If not, only the commit index changed, which
    /// may get lost; the batch may be reported as soon as it is written.
    pub must_sync: bool,
    /// To be sent when this batch, and all before it, are durable.
    pub messages: Vec<Message>,
}

/// Everything there is to do at the moment. Each part is handed out once.
#[derive(Debug, Default)]
pub struct Ready {
    /// Set when the leader or the role changed.
    pub soft_state: Option<SoftState>,
    /// To be sent at once, before `batch` is written or while it is: a leader's entries travel
    /// while it writes them itself.
    pub messages: Vec<Message>,
    /// Work for the log thread. Order matters only among batches.
    pub batch: Option<Batch>,
    /// Committed entries for the state machine, in log order, each once. To be reported with
    /// [`Raft::applied`].
    pub committed: Vec<Entry>,
    /// Reads that may be served once their index is applied.
    pub read_states: Vec<ReadState>,
}

/// A vote for oneself, which counts like anybody's: once it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OwnVote {
    pub(super) kind: VoteKind,
    pub(super) term: Term,
}

impl Outgoing {
    pub(super) const fn new(hard_state: HardState) -> Self {
        Self {
            messages: Vec::new(),
            messages_after: Vec::new(),
            own_votes: Vec::new(),
            read_states: Vec::new(),
            own_votes_writing: Vec::new(),
            last_batch: BatchNumber(0),
            written: BatchNumber(0),
            soft_state: SoftState { leader: MemberId(0), role: Role::Follower },
            hard_state,
            commit_due: false,
        }
    }
}

impl Raft {
    /// Whether [`Self::ready`] has something to do.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.outgoing.soft_state != self.soft_state()
            || !self.outgoing.messages.is_empty()
            || !self.outgoing.read_states.is_empty()
            || self.needs_batch()
            || self.log.has_appliable()
    }

    fn needs_batch(&self) -> bool {
        self.log.has_unhanded()
            || !self.outgoing.messages_after.is_empty()
            || !self.outgoing.own_votes.is_empty()
            || self.needs_sync_for_state()
            || (self.writes_commit_now() && self.outgoing.hard_state != self.hard_state())
    }

    /// Whether the term or the vote changed, which must never be forgotten.
    fn needs_sync_for_state(&self) -> bool {
        let (before, now) = (&self.outgoing.hard_state, self.hard_state());
        before.term != now.term || before.vote != now.vote
    }

    fn writes_commit_now(&self) -> bool {
        match self.config.commit_writes {
            CommitWrites::AtOnce => true,
            CommitWrites::AtTick => self.outgoing.commit_due,
        }
    }

    fn soft_state(&self) -> SoftState {
        SoftState { leader: self.leader, role: self.role }
    }

    /// Term, vote and commit index as they are, whether or not they were handed out.
    #[must_use]
    pub fn hard_state(&self) -> HardState {
        HardState {
            term: Some(self.term.0),
            vote: Some(self.vote.0),
            commit: Some(self.log.committed().0),
        }
    }

    /// Hands out what there is to do, if anything.
    pub fn ready(&mut self) -> Option<Ready> {
        if !self.has_ready() {
            return None;
        }
        let batch = self.needs_batch().then(|| self.take_batch());
        Some(Ready {
            soft_state: self.take_soft_state(),
            messages: std::mem::take(&mut self.outgoing.messages),
            batch,
            committed: self.log.take_appliable(),
            read_states: std::mem::take(&mut self.outgoing.read_states),
        })
    }

    fn take_soft_state(&mut self) -> Option<SoftState> {
        let (before, now) = (self.outgoing.soft_state, self.soft_state());
        if before == now {
            return None;
        }
        self.outgoing.soft_state = now;
        let (id, old, new, term) = (self.config.id, before.leader, now.leader, self.term);
        if old != new {
            match (old.0, new.0) {
                (0, _) => tracing::info!(target: "raft",
                    "raft.node: {id} elected leader {new} at term {term}"),
                (_, 0) => tracing::info!(target: "raft",
                    "raft.node: {id} lost leader {old} at term {term}"),
                (_, _) => tracing::info!(target: "raft",
                    "raft.node: {id} changed leader from {old} to {new} at term {term}"),
            }
        }
        Some(now)
    }

    fn take_batch(&mut self) -> Batch {
        let number = BatchNumber(self.outgoing.last_batch.0 + 1);
        self.outgoing.last_batch = number;
        self.outgoing.commit_due = false;
        let is_state_new = self.needs_sync_for_state();
        let (entries, snapshot) = self.log.hand_out(number);
        let now = self.hard_state();
        let hard_state = (self.outgoing.hard_state != now).then_some(now);
        self.outgoing.hard_state = now;
        let votes = std::mem::take(&mut self.outgoing.own_votes);
        self.outgoing.own_votes_writing.extend(votes.into_iter().map(|vote| (number, vote)));
        Batch {
            number,
            hard_state,
            must_sync: is_state_new || !entries.is_empty() || snapshot.is_some(),
            entries,
            snapshot,
            messages: std::mem::take(&mut self.outgoing.messages_after),
        }
    }

    /// Notes that all batches up to `number` are durable; those that need no sync, written.
    pub fn persisted(&mut self, number: BatchNumber) {
        let (written, last) = (self.outgoing.written, self.outgoing.last_batch);
        assert!(written <= number, "batch {number:?} was reported after {written:?}");
        assert!(number <= last, "batch {number:?} was reported, but {last:?} is the last one");
        self.outgoing.written = number;
        self.log.written(number);
        self.count_own_votes(number);
        match self.role {
            Role::Leader => self.count_own_entries(),
            Role::Follower | Role::PreCandidate | Role::Candidate => {}
        }
    }

    fn count_own_votes(&mut self, number: BatchNumber) {
        let writing = std::mem::take(&mut self.outgoing.own_votes_writing);
        let (durable, rest) = writing.into_iter().partition(|(batch, _)| *batch <= number);
        self.outgoing.own_votes_writing = rest;
        let durable: Vec<(BatchNumber, OwnVote)> = durable;
        for (_, OwnVote { kind, term }) in durable {
            let asked = match kind {
                VoteKind::Pre => Term(self.term.0 + 1),
                VoteKind::Real => self.term,
            };
            // An earlier candidacy's vote comes too late.
            if term == asked {
                self.take_vote(self.config.id, kind, true);
            }
        }
    }

    /// Notes that the state machine holds everything up to `index`: entries that were handed out,
    /// or a snapshot. Membership changes among them were applied here before.
    pub fn applied(&mut self, index: LogIndex) {
        let bytes = self.log.applied_to(index);
        self.uncommitted_bytes = self.uncommitted_bytes.saturating_sub(bytes);
        self.leave_joint_when_applied();
    }
}
