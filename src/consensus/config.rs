//! What a member is told before it takes part: timeouts, limits, and the state it starts from.
//!
//! Decides what a legal configuration is. `replica` fills it in; [`super::Raft`] keeps it.

use std::fmt;

use proto::raftpb::{ConfState, Entry, HardState, SnapshotMetadata};

use crate::model::{LogIndex, MemberId};

/// The largest encoded size of the entries of one append message, in bytes, unless a single entry
/// is larger.
///
/// Source: etcd `server/etcdserver/raft.go`, `maxSizePerMsg`.
pub const APPEND_BYTES_MAX: u64 = 1024 * 1024;

/// How many append messages may be on their way to one member without an answer.
///
/// Source: etcd `server/etcdserver/raft.go`, `maxInflightMsgs`.
pub const APPENDS_IN_FLIGHT_MAX: usize = 512;

/// The encoded size of committed entries that may be handed out and not yet reported applied, in
/// bytes. It bounds what the apply thread can have queued; one entry is always let through.
pub const APPLYING_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How many linearizable reads may wait for a quorum, or for the first commit of a term. Each
/// member batches its readers into one request, so this is never reached by a healthy cluster.
pub const READS_WAITING_MAX: usize = 16 * 1024;

/// The settings of one member. [`Config::new`] gives etcd's values.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member; never 0.
    pub id: MemberId,
    /// Ticks without a leader before an election, at least; the timeout is drawn anew from
    /// `election_ticks..2 * election_ticks` each time.
    pub election_ticks: u32,
    /// Ticks between two heartbeats of a leader; below `election_ticks`.
    pub heartbeat_ticks: u32,
    /// Ask for votes without raising the term first, so that a member that comes back from a
    /// partition does not depose a working leader.
    pub pre_vote: bool,
    /// A leader that hears from no quorum for an election timeout steps down, and a member that
    /// hears from a leader ignores other candidates.
    pub check_quorum: bool,
    /// A leader that applies its own removal becomes a follower at once. Off by default: it goes on
    /// without counting itself, so that the others learn that the removal is committed. Of two
    /// voters, the one that stays could otherwise need the vote of the one that went and be refused
    /// it for ever, because that one's log is longer.
    ///
    /// Source: etcd's server leaves it off and stops the removed member a second later.
    pub step_down_on_removal: bool,
    /// See [`APPEND_BYTES_MAX`].
    pub append_bytes_max: u64,
    /// See [`APPENDS_IN_FLIGHT_MAX`].
    pub appends_in_flight_max: usize,
    /// See [`APPLYING_BYTES_MAX`].
    pub applying_bytes_max: u64,
    /// The payload of proposals a leader accepts before they are applied, in bytes.
    pub uncommitted_bytes_max: u64,
    /// When committed entries are handed out.
    pub apply_when: ApplyWhen,
    /// When an advance of the commit index alone is handed to the log.
    pub commit_writes: CommitWrites,
}

/// Which committed entries may be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplyWhen {
    /// Those that are durable in this member's own log too, so that the state machine never gets
    /// ahead of the log it would be rebuilt from.
    Persisted,
    /// All of them, even while this member's own write is on its way.
    Committed,
}

/// When an advance of the commit index, with nothing else to write, becomes a batch for the log.
///
/// The commit index need not be durable: a quorum knows it again after the first commit of the
/// next term. It always travels with the next batch of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitWrites {
    /// At the next tick, so that a busy log is not woken twice per proposal.
    AtTick,
    /// At once, as etcd does.
    AtOnce,
}

impl Config {
    /// etcd's settings for member `id`.
    #[must_use]
    pub const fn new(id: MemberId) -> Self {
        Self {
            id,
            election_ticks: 10,
            heartbeat_ticks: 1,
            pre_vote: true,
            check_quorum: true,
            step_down_on_removal: false,
            append_bytes_max: APPEND_BYTES_MAX,
            appends_in_flight_max: APPENDS_IN_FLIGHT_MAX,
            applying_bytes_max: APPLYING_BYTES_MAX,
            uncommitted_bytes_max: u64::MAX,
            apply_when: ApplyWhen::Persisted,
            commit_writes: CommitWrites::AtTick,
        }
    }

    pub(super) const fn validate(&self) -> Result<(), StartError> {
        if self.id.0 == 0 {
            return Err(StartError::Config("a member id is never 0"));
        }
        if self.heartbeat_ticks == 0 {
            return Err(StartError::Config("heartbeat ticks must be positive"));
        }
        if self.election_ticks <= self.heartbeat_ticks {
            return Err(StartError::Config("election ticks must exceed heartbeat ticks"));
        }
        if self.appends_in_flight_max == 0 {
            return Err(StartError::Config("one append must be allowed in flight"));
        }
        if self.applying_bytes_max == 0 {
            return Err(StartError::Config("one entry must be allowed to be applied"));
        }
        Ok(())
    }
}

/// What a member remembers from before.
#[derive(Clone, Debug, Default)]
pub struct RaftState {
    /// Term, vote and commit index from the log; all absent for a new member.
    pub hard_state: HardState,
    /// The membership in effect at `applied`.
    pub conf_state: ConfState,
    /// The position before the first of `entries`: the snapshot the log continues, or zero.
    pub snapshot: SnapshotMetadata,
    /// The log after `snapshot`, without gaps.
    pub entries: Vec<Entry>,
    /// The last entry the state machine holds; at least `snapshot`'s index.
    pub applied: LogIndex,
}

/// Why a member cannot start from what it was given. All of it comes from disk or from the
/// command line, so none of it is an assertion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The settings contradict themselves.
    Config(&'static str),
    /// Entries do not follow one another; `found` came after `after`.
    Gap { after: LogIndex, found: LogIndex },
    /// The commit index lies outside of the log.
    CommitOutOfRange { commit: LogIndex, first: LogIndex, last: LogIndex },
    /// The state machine is behind the log's first entry or ahead of its last.
    AppliedOutOfRange { applied: LogIndex, first: LogIndex, last: LogIndex },
    /// The membership is not a legal one.
    Membership(super::ConfChangeError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(reason) => f.write_str(reason),
            Self::Gap { after, found } => {
                write!(f, "the raft log continues with entry {found} after entry {after}")
            }
            Self::CommitOutOfRange { commit, first, last } => write!(
                f,
                "the commit index {commit} is out of range: the raft log holds {first} to {last}"
            ),
            Self::AppliedOutOfRange { applied, first, last } => write!(
                f,
                "the applied index {applied} is out of range: the raft log holds {first} to {last}"
            ),
            Self::Membership(_) => f.write_str("the stored membership is not a legal one"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Membership(source) => Some(source),
            Self::Config(_)
            | Self::Gap { .. }
            | Self::CommitOutOfRange { .. }
            | Self::AppliedOutOfRange { .. } => None,
        }
    }
}
