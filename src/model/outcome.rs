//! What became of a command.
//!
//! Decides the three families of failure: a [`Rejection`] is the same on every member and part of
//! the outcome, an [`Unavailable`] says that the outcome is unknown, and everything fatal stops
//! the process and has no type here. Codes and texts for clients are given at the edge, in
//! `api/status.rs`. Produced by `state` and `replica`, read by `api`.

use bytes::Bytes;
use proto::etcdserverpb::{AlarmMember, Member};

use super::{LeaseId, MemberId, Revision};

/// What applying a command came to.
pub type Outcome = Result<Answer, Rejection>;

/// The answer to a command that was not refused. Keys and values inside are stored rows: the
/// wire form of `mvccpb.KeyValue`, copied into the reply without being decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A read inside a transaction.
    Range(RangeAnswer),
    /// One key was written.
    Put(PutAnswer),
    /// Keys were deleted, perhaps none.
    DeleteRange(DeleteAnswer),
    /// A transaction ran.
    Txn(TxnAnswer),
    /// History up to a revision is gone for readers; its rows go in the background.
    Compaction {
        /// The current revision.
        revision: Revision,
    },
    /// A lease exists now.
    LeaseGrant {
        /// Its identifier.
        lease: LeaseId,
        /// The time to live that it was given, in seconds.
        ttl_seconds: i64,
    },
    /// A lease and its keys are gone.
    LeaseRevoke {
        /// The revision after the deletion.
        revision: Revision,
    },
    /// Alarms that the request listed, raised or cleared.
    Alarms(Vec<AlarmMember>),
    /// The membership after a change of it, in ascending order of id.
    Members(Vec<Member>),
    /// Done, with nothing to tell.
    Done,
}

/// Keys selected by a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeAnswer {
    /// The current revision of the store, not the one that was read.
    pub revision: Revision,
    /// The selected rows, in the order asked for.
    pub rows: Vec<Bytes>,
    /// Whether the limit cut the answer.
    pub more: bool,
    /// How many keys the range holds at the revision read, whatever the limit and filters.
    pub count: i64,
}

/// One key was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutAnswer {
    /// The revision of the write.
    pub revision: Revision,
    /// The row before it, if asked for and there was one.
    pub previous: Option<Bytes>,
}

/// Keys were deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteAnswer {
    /// The revision of the deletion, or the current one if nothing was deleted.
    pub revision: Revision,
    /// How many keys.
    pub deleted: i64,
    /// Their rows before, in key order, if asked for.
    pub previous: Vec<Bytes>,
}

/// A transaction ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnAnswer {
    /// The revision of its writes, or the current one if it wrote nothing.
    pub revision: Revision,
    /// Whether every compare held.
    pub succeeded: bool,
    /// The answers of the branch that ran, in order: `Range`, `Put`, `DeleteRange` or `Txn`.
    pub answers: Vec<Answer>,
}

/// Why the state machine refused a committed command.
///
/// A refusal is part of the replicated outcome: every member reaches the same variant for the
/// same log entry, so nothing that depends on a clock, a disk or a peer belongs here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The entry holds no request that this version understands.
    UnknownCommand,
    /// A key is missing where one is needed (`ignore_value`, `ignore_lease`).
    KeyNotFound,
    /// The request names history below the compaction point.
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The compaction point.
        compacted: Revision,
    },
    /// The request names a revision that does not exist yet.
    FutureRevision {
        /// What was asked for.
        requested: Revision,
        /// The newest one.
        current: Revision,
    },
    /// No such lease.
    LeaseNotFound {
        /// What was asked for.
        lease: LeaseId,
    },
    /// A lease with this id is live.
    LeaseExists {
        /// What was asked for.
        lease: LeaseId,
    },
    /// The requested TTL is above the limit.
    TtlTooLarge {
        /// What was asked for, in seconds.
        ttl_seconds: i64,
    },
    /// The backend is at its quota, or a NOSPACE alarm is active.
    NoSpace,
    /// A CORRUPT alarm is active.
    Corrupt,
    /// The id of a member to be added is taken.
    MemberIdExists {
        /// The id.
        member: MemberId,
    },
    /// A peer URL of a member to be added or changed belongs to another one.
    PeerUrlExists {
        /// The URL.
        url: String,
    },
    /// No such member, or it has been removed.
    MemberNotFound {
        /// The id.
        member: MemberId,
    },
    /// The member to be promoted is a voter already.
    MemberNotLearner {
        /// The id.
        member: MemberId,
    },
    /// The cluster has as many learners as it may have.
    TooManyLearners,
    /// Authentication is off.
    AuthNotEnabled,
    /// The user `root` is missing.
    RootUserNotFound,
    /// The user `root` lacks the role `root`.
    RootRoleNotGranted,
    /// The name of a user is empty.
    UserEmpty,
    /// A user of this name exists.
    UserExists,
    /// No such user.
    UserNotFound,
    /// A role of this name exists.
    RoleExists,
    /// No such role.
    RoleNotFound,
    /// The name of a role is empty.
    RoleEmpty,
    /// Wrong user or password.
    AuthFailed,
    /// No permission was given to grant.
    PermissionNotGiven,
    /// The user may not do this.
    PermissionDenied,
    /// The user does not have this role.
    RoleNotGranted,
    /// The role does not have this permission.
    PermissionNotGranted,
    /// A change that would lock everybody out, or a malformed permission.
    InvalidAuthManagement,
    /// The permissions have changed since the caller was checked.
    AuthOldRevision,
    /// The token is unknown or has expired.
    InvalidAuthToken,
}

/// Why the outcome of a request is unknown to this member. The command may still be applied,
/// unless the variant says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// No leader is known.
    NoLeader,
    /// The leader changed while the request was under way.
    LeaderChanged,
    /// Too much is committed that is not applied yet; nothing was proposed.
    Overloaded {
        /// The limit, in entries.
        backlog_entries_max: u64,
    },
    /// No answer in time.
    Timeout,
    /// No answer in time, and a leader was lost meanwhile.
    TimeoutLeaderLost,
    /// No answer in time, and the quorum could not be reached meanwhile.
    TimeoutConnectionLost,
    /// No answer in time, and nobody led all the while, so nothing was proposed.
    NobodyLed,
    /// The wait for the applied index took too long.
    TimeoutApplied,
    /// The caller went away.
    Canceled,
    /// This member is stopping.
    Stopped,
    /// This member does not lead, and only a leader can do this.
    NotLeader,
    /// The member does not have the lease's time: it does not lead.
    NotPrimary,
    /// The command is larger than the limit; nothing was proposed.
    TooLarge {
        /// The limit, in bytes.
        request_bytes_max: usize,
    },
}
