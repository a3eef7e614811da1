//! Messages between members: what a received one means, and how ours are built.
//!
//! Decides which bytes from a peer are a message at all. Everything a peer sends is input: it is
//! either one of the closed set of [`Body`] or a [`StepError`], never a reason to stop. The core
//! matches on `Body`; nothing behind this file looks at `raftpb::MessageType`.

use std::fmt;

use bytes::Bytes;
use proto::raftpb::{ConfChange, ConfChangeV2, Entry, EntryType, Message, MessageType, Snapshot};

use super::ProposeError;
use crate::model::{LogIndex, MemberId, Term, entry_index, entry_kind, entry_term};

/// The context of a vote request that must be answered even while a leader is known.
///
/// Source: etcd raft `raft.go`, `campaignTransfer`.
pub(super) const TRANSFER_CONTEXT: &[u8] = b"CampaignTransfer";

/// The highest term and index that are believed. Counting up from here does not overflow within the
/// lifetime of anything.
const POSITION_MAX: u64 = u64::MAX / 2;

/// The term and position of one entry; two logs with the same pair agree up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct EntryId {
    pub(super) term: Term,
    pub(super) index: LogIndex,
}

impl EntryId {
    pub(super) fn of(entry: &Entry) -> Self {
        Self { term: entry_term(entry), index: entry_index(entry) }
    }
}

/// Whether a vote is asked for real or as a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VoteKind {
    /// Would you vote for me in that term? Changes nothing.
    Pre,
    /// Vote for me in this term.
    Real,
}

impl VoteKind {
    pub(super) const fn request(self) -> MessageType {
        match self {
            Self::Pre => MessageType::MsgPreVote,
            Self::Real => MessageType::MsgVote,
        }
    }

    pub(super) const fn response(self) -> MessageType {
        match self {
            Self::Pre => MessageType::MsgPreVoteResp,
            Self::Real => MessageType::MsgVoteResp,
        }
    }
}

/// Entries from a leader, which continue `previous` without a gap and with terms that never fall.
#[derive(Debug)]
pub(super) struct Append {
    pub(super) previous: EntryId,
    pub(super) entries: Vec<Entry>,
    pub(super) commit: LogIndex,
}

/// A follower's answer to an append.
#[derive(Debug)]
pub(super) enum AppendAnswer {
    /// The logs agree up to here.
    Matches(LogIndex),
    /// They do not agree at `rejected`; they may at `hint`, if the follower knows.
    Differs { rejected: LogIndex, hint: EntryId },
}

/// What a peer says.
#[derive(Debug)]
pub(super) enum Body {
    Propose(Vec<Entry>),
    Append(Append),
    AppendAnswer(AppendAnswer),
    Vote { kind: VoteKind, last: EntryId, transfer: bool },
    VoteAnswer { kind: VoteKind, granted: bool },
    Snapshot(Snapshot),
    Heartbeat { commit: LogIndex, context: Bytes },
    HeartbeatAnswer { context: Bytes },
    TransferLeader,
    TimeoutNow,
    ReadIndex { context: Bytes },
    ReadIndexAnswer { index: LogIndex, context: Bytes },
}

impl Body {
    /// The name of the message on the wire, for the log.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Propose(_) => "MsgProp",
            Self::Append(_) => "MsgApp",
            Self::AppendAnswer(_) => "MsgAppResp",
            Self::Vote { kind: VoteKind::Real, .. } => "MsgVote",
            Self::Vote { kind: VoteKind::Pre, .. } => "MsgPreVote",
            Self::VoteAnswer { kind: VoteKind::Real, .. } => "MsgVoteResp",
            Self::VoteAnswer { kind: VoteKind::Pre, .. } => "MsgPreVoteResp",
            Self::Snapshot(_) => "MsgSnap",
            Self::Heartbeat { .. } => "MsgHeartbeat",
            Self::HeartbeatAnswer { .. } => "MsgHeartbeatResp",
            Self::TransferLeader => "MsgTransferLeader",
            Self::TimeoutNow => "MsgTimeoutNow",
            Self::ReadIndex { .. } => "MsgReadIndex",
            Self::ReadIndexAnswer { .. } => "MsgReadIndexResp",
        }
    }

    /// What a request for a vote asks for, and where the candidate's log ends.
    pub(super) const fn candidate(&self) -> Option<(VoteKind, EntryId)> {
        match self {
            Self::Vote { kind, last, .. } => Some((*kind, *last)),
            Self::Propose(_)
            | Self::Append(_)
            | Self::AppendAnswer(_)
            | Self::VoteAnswer { .. }
            | Self::Snapshot(_)
            | Self::Heartbeat { .. }
            | Self::HeartbeatAnswer { .. }
            | Self::TransferLeader
            | Self::TimeoutNow
            | Self::ReadIndex { .. }
            | Self::ReadIndexAnswer { .. } => None,
        }
    }

    /// Whether only a member that was asked can send this.
    pub(super) const fn is_answer(&self) -> bool {
        match self {
            Self::AppendAnswer(_)
            | Self::VoteAnswer { .. }
            | Self::HeartbeatAnswer { .. }
            | Self::ReadIndexAnswer { .. } => true,
            Self::Propose(_)
            | Self::Append(_)
            | Self::Vote { .. }
            | Self::Snapshot(_)
            | Self::Heartbeat { .. }
            | Self::TransferLeader
            | Self::TimeoutNow
            | Self::ReadIndex { .. } => false,
        }
    }

    /// Whether the message may come back to whom it names as its sender, because it is forwarded
    /// in that member's name.
    pub(super) const fn is_forwarded(&self) -> bool {
        matches!(self, Self::Propose(_) | Self::ReadIndex { .. } | Self::TransferLeader)
    }

    /// Whether the message belongs to no term: it is forwarded to whoever leads.
    const fn is_termless(&self) -> bool {
        matches!(self, Self::Propose(_) | Self::ReadIndex { .. })
    }
}

/// A message that passed the checks that need no state.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) from: MemberId,
    pub(super) term: Term,
    pub(super) body: Body,
}

/// Why a peer's message was dropped. None of them is fatal: the sender retries or was mistaken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepError {
    /// A kind that never travels between members, or that nobody knows.
    ForeignKind(i32),
    /// An answer from somebody who is not in the membership.
    UnknownPeer(MemberId),
    /// The message contradicts itself.
    Malformed(&'static str),
    /// A leader asks to replace an entry that this member knows to be committed. Either log was
    /// damaged or lost.
    CommittedConflict { index: LogIndex, committed: LogIndex },
    /// A leader says that this member has committed what its log does not hold: its log was
    /// damaged or lost after it had answered for it.
    CommitBeyondLog { commit: LogIndex, last: LogIndex },
    /// A follower says that it holds more than the leader does.
    AnswerBeyondLog { index: LogIndex, last: LogIndex },
    /// Another member leads the same term.
    SecondLeader(MemberId),
    /// A forwarded proposal could not be taken.
    Proposal(ProposeError),
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForeignKind(kind) => write!(f, "no peer may send a raft message of kind {kind}"),
            Self::UnknownPeer(from) => write!(f, "an answer from {from}, which is no member"),
            Self::Malformed(reason) => f.write_str(reason),
            Self::CommittedConflict { index, committed } => write!(
                f,
                "entry {index} conflicts with a committed entry (committed up to {committed})"
            ),
            Self::CommitBeyondLog { commit, last } => write!(
                f,
                "the commit index {commit} is beyond the last entry {last}: was the raft log \
                 damaged or lost?"
            ),
            Self::AnswerBeyondLog { index, last } => {
                write!(f, "a follower acknowledges entry {index}, but the last one is {last}")
            }
            Self::SecondLeader(other) => write!(f, "{other} leads the same term"),
            Self::Proposal(_) => f.write_str("a forwarded proposal was dropped"),
        }
    }
}

impl std::error::Error for StepError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Proposal(source) => Some(source),
            Self::ForeignKind(_)
            | Self::UnknownPeer(_)
            | Self::Malformed(_)
            | Self::CommittedConflict { .. }
            | Self::CommitBeyondLog { .. }
            | Self::AnswerBeyondLog { .. }
            | Self::SecondLeader(_) => None,
        }
    }
}

/// Reads a peer's message.
///
/// # Errors
/// [`StepError::ForeignKind`] and [`StepError::Malformed`].
pub(super) fn receive(message: Message) -> Result<Received, StepError> {
    let wire_kind = message.r#type.unwrap_or(0);
    let kind =
        MessageType::try_from(wire_kind).map_err(|_other| StepError::ForeignKind(wire_kind))?;
    let from = MemberId(message.from.unwrap_or(0));
    let term = Term(message.term.unwrap_or(0));
    let body = match kind {
        MessageType::MsgProp => Body::Propose(proposed(message.entries)?),
        MessageType::MsgApp => Body::Append(append(term, message)?),
        MessageType::MsgAppResp => Body::AppendAnswer(append_answer(&message)),
        MessageType::MsgVote => vote(VoteKind::Real, &message),
        MessageType::MsgPreVote => vote(VoteKind::Pre, &message),
        MessageType::MsgVoteResp => vote_answer(VoteKind::Real, &message),
        MessageType::MsgPreVoteResp => vote_answer(VoteKind::Pre, &message),
        MessageType::MsgSnap => Body::Snapshot(snapshot(message.snapshot)?),
        MessageType::MsgHeartbeat => Body::Heartbeat {
            commit: LogIndex(message.commit.unwrap_or(0)),
            context: message.context.unwrap_or_default(),
        },
        MessageType::MsgHeartbeatResp => {
            Body::HeartbeatAnswer { context: message.context.unwrap_or_default() }
        }
        MessageType::MsgTransferLeader => Body::TransferLeader,
        MessageType::MsgTimeoutNow => Body::TimeoutNow,
        MessageType::MsgReadIndex => Body::ReadIndex { context: read_context(message.entries)? },
        MessageType::MsgReadIndexResp => Body::ReadIndexAnswer {
            index: LogIndex(message.index.unwrap_or(0)),
            context: read_context(message.entries)?,
        },
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgStorageAppend
        | MessageType::MsgStorageAppendResp
        | MessageType::MsgStorageApply
        | MessageType::MsgStorageApplyResp
        | MessageType::MsgForgetLeader => return Err(StepError::ForeignKind(wire_kind)),
    };
    if from.0 == 0 {
        return Err(StepError::Malformed("a message without a sender"));
    }
    if POSITION_MAX < term.0 {
        return Err(StepError::Malformed("a term that no group can have reached"));
    }
    if (term.0 == 0) != body.is_termless() {
        return Err(StepError::Malformed("a message with a term too few or too many"));
    }
    Ok(Received { from, term, body })
}

fn proposed(entries: Vec<Entry>) -> Result<Vec<Entry>, StepError> {
    if entries.is_empty() {
        return Err(StepError::Malformed("a proposal of nothing"));
    }
    for entry in &entries {
        conf_change(entry)?;
    }
    Ok(entries)
}

/// The membership change in `entry`, if it is one.
///
/// # Errors
/// [`StepError::Malformed`] if the entry's kind is unknown or its payload is no such change.
pub(super) fn conf_change(entry: &Entry) -> Result<Option<ConfChangeV2>, StepError> {
    use prost::Message as _;

    let data = || entry.data.clone().unwrap_or_default();
    let broken = |_| StepError::Malformed("a membership change that does not decode");
    match entry_kind(entry) {
        Some(EntryType::EntryNormal) => Ok(None),
        Some(EntryType::EntryConfChange) => {
            Ok(Some(super::membership::several(&ConfChange::decode(data()).map_err(broken)?)))
        }
        Some(EntryType::EntryConfChangeV2) => {
            Ok(Some(ConfChangeV2::decode(data()).map_err(broken)?))
        }
        None => Err(StepError::Malformed("an entry of an unknown kind")),
    }
}

fn append(term: Term, message: Message) -> Result<Append, StepError> {
    let previous = EntryId {
        term: Term(message.log_term.unwrap_or(0)),
        index: LogIndex(message.index.unwrap_or(0)),
    };
    let mut last = previous;
    for entry in &message.entries {
        let next = EntryId::of(entry);
        if last.index.0.checked_add(1) != Some(next.index.0) {
            return Err(StepError::Malformed("an append with a gap"));
        }
        if next.term < last.term {
            return Err(StepError::Malformed("an append with falling terms"));
        }
        last = next;
    }
    if term < last.term {
        return Err(StepError::Malformed("an append from a later term than its sender's"));
    }
    Ok(Append { previous, entries: message.entries, commit: LogIndex(message.commit.unwrap_or(0)) })
}

fn snapshot(snapshot: Option<Snapshot>) -> Result<Snapshot, StepError> {
    let snapshot = snapshot.unwrap_or_default();
    let EntryId { term, index } = super::log::snapshot_id(&snapshot);
    if POSITION_MAX < index.0 || POSITION_MAX < term.0 {
        return Err(StepError::Malformed("a snapshot that no group can have reached"));
    }
    Ok(snapshot)
}

fn append_answer(message: &Message) -> AppendAnswer {
    let index = LogIndex(message.index.unwrap_or(0));
    if !message.reject.unwrap_or(false) {
        return AppendAnswer::Matches(index);
    }
    AppendAnswer::Differs {
        rejected: index,
        hint: EntryId {
            term: Term(message.log_term.unwrap_or(0)),
            index: LogIndex(message.reject_hint.unwrap_or(0)),
        },
    }
}

fn vote(kind: VoteKind, message: &Message) -> Body {
    Body::Vote {
        kind,
        last: EntryId {
            term: Term(message.log_term.unwrap_or(0)),
            index: LogIndex(message.index.unwrap_or(0)),
        },
        transfer: message.context.as_deref() == Some(TRANSFER_CONTEXT),
    }
}

fn vote_answer(kind: VoteKind, message: &Message) -> Body {
    Body::VoteAnswer { kind, granted: !message.reject.unwrap_or(false) }
}

fn read_context(entries: Vec<Entry>) -> Result<Bytes, StepError> {
    let [entry] = <[Entry; 1]>::try_from(entries)
        .map_err(|_other| StepError::Malformed("a read with more or less than one context"))?;
    Ok(entry.data.unwrap_or_default())
}

/// A message of `kind` for `to`; sender and term are filled in when it is sent.
pub(super) fn to(to: MemberId, kind: MessageType) -> Message {
    Message { r#type: Some(kind.into()), to: Some(to.0), ..Message::default() }
}
