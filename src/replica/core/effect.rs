//! What a replica makes happen.
//!
//! Decides the words in which the core tells the replica thread what to do. Made by
//! [`Core::take_effects`](super::Core::take_effects); carried out by the replica thread.

use proto::raftpb::{Entry, Message, Snapshot};

use crate::{
    consensus::Batch,
    model::{LogIndex, MemberId, Outcome, RequestId, Term},
};

/// Everything that a replica makes happen.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every effect is a batch")]
pub enum Effect {
    /// Write this to the log; its messages stay here until it is durable.
    Persist(Batch),
    /// Send these to their peers.
    Send(Vec<Message>),
    /// Apply these, in order.
    Apply(Vec<Entry>),
    /// Put the state of this snapshot in the place of the machine's; its record is durable.
    Install(Box<Snapshot>),
    /// A read round is confirmed.
    ConfirmRead {
        /// Which round.
        context: u64,
        /// Everything committed before it is at or below this.
        index: LogIndex,
    },
    /// Answer the caller of a change of membership.
    Answer {
        /// Whom.
        id: RequestId,
        /// With what.
        outcome: Outcome,
    },
    /// Who leads, the term, or whether reads need a round has changed.
    Leadership(Leadership),
}

/// Who leads, and what that means for reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The present term.
    pub term: Term,
    /// Who leads it; 0 is nobody known.
    pub leader: MemberId,
    /// This member leads, nobody else is a member, and it has applied everything that anybody can
    /// have been told of (C3).
    pub reads_without_round: bool,
}
