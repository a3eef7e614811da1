//! What the core shows of itself.
//!
//! Decides nothing: reading access for status answers, metrics, and the checks before a change of
//! membership. Part of [`Raft`].

use proto::raftpb::ConfState;

use super::{Progress, Raft, Role};
use crate::model::{LogIndex, MemberId, Term};

impl Raft {
    /// This member.
    #[must_use]
    pub const fn id(&self) -> MemberId {
        self.config.id
    }

    /// The current term.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }

    /// Who leads the current term; 0 if nobody is known to.
    #[must_use]
    pub const fn leader(&self) -> MemberId {
        self.leader
    }

    /// What this member is.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// The last entry known to be committed.
    #[must_use]
    pub const fn committed_index(&self) -> LogIndex {
        self.log.committed()
    }

    /// The last entry reported as applied.
    #[must_use]
    pub const fn applied_index(&self) -> LogIndex {
        self.log.applied()
    }

    /// The first entry that is still in memory.
    #[must_use]
    pub const fn first_index(&self) -> LogIndex {
        self.log.first_index()
    }

    /// The last entry of the log, durable or not.
    #[must_use]
    pub fn last_index(&self) -> LogIndex {
        self.log.last_index()
    }

    /// The term of the entry at `index`, if the log knows it.
    #[must_use]
    pub fn term_of(&self, index: LogIndex) -> Option<Term> {
        self.log.term(index)
    }

    /// The membership in effect.
    #[must_use]
    pub fn conf_state(&self) -> ConfState {
        self.members.conf_state()
    }

    /// Whether this member decides alone.
    #[must_use]
    pub fn is_sole_voter(&self) -> bool {
        self.members.is_singleton() && self.members.votes(self.config.id)
    }

    /// Whether this member leads and asks a quorum for reads.
    #[must_use]
    pub fn confirms_reads(&self) -> bool {
        self.role == Role::Leader && self.reads.is_waiting()
    }

    /// Whether nobody else is a member, not even a learner.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.is_sole_voter() && self.members.progress.len() == 1
    }

    /// Whether this member only follows. One that is not in the membership at all does not.
    #[must_use]
    pub fn is_learner(&self) -> bool {
        self.members.progress.get(&self.config.id).is_some_and(|own| own.is_learner)
    }

    /// Whether the membership in effect does not have this member, neither as a voter nor as a
    /// learner: it was removed, or has not heard of its addition.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        !self.members.progress.contains_key(&self.config.id)
    }

    /// Whom leadership is being handed to.
    #[must_use]
    pub const fn transferee(&self) -> Option<MemberId> {
        self.transferee
    }

    /// What is known of each member's log. Only a leader's knowledge is current.
    pub fn progress(&self) -> impl Iterator<Item = (MemberId, &Progress)> {
        self.members.progress.iter().map(|(id, progress)| (*id, progress))
    }
}
