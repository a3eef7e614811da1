//! What kinds of streams and messages there are.
//!
//! Decides which message may travel how, and which may come from a peer at all. Used by everything
//! in this folder that sees a message.

use std::fmt;

use proto::raftpb::{Message, MessageType};

/// One of the two streams that a member has from each peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamKind {
    /// For appends alone, which are most of all bytes.
    Append,
    /// For everything but snapshots.
    Message,
}

impl StreamKind {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Append, Self::Message];

    /// The last but one part of the path at which a peer offers it.
    pub(super) const fn endpoint(self) -> &'static str {
        match self {
            Self::Append => "/raft/stream/msgapp",
            Self::Message => "/raft/stream/message",
        }
    }
}

/// As etcd's log has it.
impl fmt::Display for StreamKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Append => "stream MsgApp v2",
            Self::Message => "stream Message",
        })
    }
}

/// Ids that raft uses for its own threads: nobody else may speak in their names.
const LOCAL_TARGETS: [u64; 2] = [u64::MAX, u64::MAX - 1];

/// A message that says only that the connection lives.
pub(super) fn link_heartbeat() -> Message {
    Message { r#type: Some(MessageType::MsgHeartbeat.into()), ..Message::default() }
}

/// Whether `message` says only that the connection lives. Raft sends none without sender and
/// receiver.
pub(super) fn is_link_heartbeat(message: &Message) -> bool {
    message.r#type() == MessageType::MsgHeartbeat && message.from() == 0 && message.to() == 0
}

/// Whether `message` is an append.
pub(super) fn is_append(message: &Message) -> bool {
    message.r#type() == MessageType::MsgApp
}

/// Whether `message` may come from another member. Those that a member has for itself may not, nor
/// may those of a type that is not known.
pub(super) fn may_come_from_peer(message: &Message) -> bool {
    // What has no type has the first one.
    let Ok(kind) = MessageType::try_from(message.r#type.unwrap_or_default()) else { return false };
    let is_local = match kind {
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgStorageAppend
        | MessageType::MsgStorageAppendResp
        | MessageType::MsgStorageApply
        | MessageType::MsgStorageApplyResp
        | MessageType::MsgForgetLeader => true,
        MessageType::MsgProp
        | MessageType::MsgApp
        | MessageType::MsgAppResp
        | MessageType::MsgVote
        | MessageType::MsgVoteResp
        | MessageType::MsgSnap
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResp
        | MessageType::MsgTransferLeader
        | MessageType::MsgTimeoutNow
        | MessageType::MsgReadIndex
        | MessageType::MsgReadIndexResp
        | MessageType::MsgPreVote
        | MessageType::MsgPreVoteResp => false,
    };
    !is_local && !LOCAL_TARGETS.contains(&message.from())
}

/// About how many bytes a waiting message holds in memory.
pub(super) fn weight_bytes(message: &Message) -> usize {
    let entries = message.entries.iter();
    let data: usize = entries.map(|entry| entry.data.as_ref().map_or(0, |data| data.len())).sum();
    let context = message.context.as_ref().map_or(0, |context| context.len());
    size_of_val(message) + size_of_val(message.entries.as_slice()) + data + context
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: MessageType, from: u64) -> Message {
        Message { r#type: Some(kind.into()), from: Some(from), ..Message::default() }
    }

    #[test]
    fn what_a_member_tells_itself_does_not_come_from_a_peer() {
        assert!(may_come_from_peer(&of(MessageType::MsgApp, 2)));
        assert!(!may_come_from_peer(&of(MessageType::MsgApp, u64::MAX)));
        assert!(!may_come_from_peer(&of(MessageType::MsgStorageAppend, 2)));
        assert!(!may_come_from_peer(&Message::default()), "no type is the first, MsgHup");
        assert!(!may_come_from_peer(&Message { r#type: Some(99), ..Message::default() }));
    }

    #[test]
    fn a_heartbeat_of_raft_is_not_one_of_the_link() {
        assert!(is_link_heartbeat(&link_heartbeat()));
        assert!(!is_link_heartbeat(&of(MessageType::MsgHeartbeat, 1)));
    }
}
