//! What makes a replica act.
//!
//! Decides the words in which the replica thread tells the core what happened. Made by the handle,
//! the transport, the log and apply threads; taken by [`Core::handle`](super::Core::handle).

use std::fmt;

use bytes::Bytes;
use proto::raftpb::{ConfChange, Message, Snapshot, SnapshotMetadata};

use crate::{
    consensus::{BatchNumber, SnapshotReport},
    model::{LogIndex, MemberId, Outcome, RequestId, Term},
};

/// Everything that can make a replica act.
#[derive(Debug)]
pub enum Input {
    /// One raft tick passed.
    Tick,
    /// A caller proposed this command.
    Propose(Bytes),
    /// This member proposes this command as the leader of a term; it is nobody's if another one
    /// leads meanwhile, who knows better.
    ProposeAsLeader(Term, Bytes),
    /// A caller proposed this change of membership.
    ProposeConfChange(Box<ConfChange>),
    /// At least one reader waits for a linearizable point.
    Read,
    /// A peer's message.
    Peer(Box<Message>),
    /// A message to this member did not get through.
    Unreachable(MemberId),
    /// The process of this member has ended.
    LeaderGone(MemberId),
    /// What became of the state that was sent to this member.
    SnapshotSent(MemberId, SnapshotReport),
    /// The log thread made every batch up to this one durable.
    Persisted(BatchNumber),
    /// The apply thread met a change of membership and has carried it out, or refused it.
    ConfChange {
        /// Its entry, up to which everything is applied.
        index: LogIndex,
        /// What raft is to do: the change, or one of nobody if it was refused.
        change: Box<ConfChange>,
        /// Whom to answer.
        id: RequestId,
        /// With what.
        outcome: Outcome,
    },
    /// The apply thread has put the state that a leader sent in the place of its own; what it has
    /// applied has been shown.
    Installed,
    /// How far a member's log is known to reach is asked for.
    AskProgress(MemberId, ProgressReply),
    /// Confirmed readers wait for an entry that has been applied meanwhile.
    Applied,
    /// The backend is durable up to a snapshot: record it in the log.
    SaveSnapshot {
        /// The position, with the membership and what older versions read at start.
        snapshot: Box<Snapshot>,
        /// No entry below this is needed again.
        release_to: LogIndex,
    },
    /// The record of a snapshot at this position is durable.
    SnapshotSaved(Box<SnapshotMetadata>),
    /// Hand leadership over.
    TransferLeader(MemberId),
    /// Finish.
    Stop,
}

/// How far a member's log agrees with the leader's, and how far the leader's reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownProgress {
    /// The last entry that the member is known to have.
    pub matched: LogIndex,
    /// The last one that the leader is known to have.
    pub leader: LogIndex,
}

/// Takes the answer to [`Input::AskProgress`]: `None` if this member does not lead, inside if it
/// knows no such member.
pub struct ProgressReply(pub Box<dyn FnOnce(Option<Option<KnownProgress>>) + Send>);

impl fmt::Debug for ProgressReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProgressReply")
    }
}
