//! The codes and texts that clients see, for every way in which a call can fail.
//!
//! Decides what each [`Refusal`], [`Rejection`] and [`Unavailable`] looks like on the wire. Clients
//! recognise errors by their text, so a text is part of the contract and stands nowhere else. Two
//! texts go out as `Unknown` although a better code exists, because etcd sends them so. Used by
//! every service of this folder and by `http`.
//!
//! Source: etcd `api/v3rpc/rpctypes/error.go` and `server/etcdserver/api/v3rpc/util.go`.

use std::{borrow::Cow, fmt};

use tonic::Code;

use crate::model::{Rejection, Unavailable};

/// Why the edge itself refused a call. Nothing was proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A key is empty.
    EmptyKey,
    /// A put that keeps the value brings one.
    ValueProvided,
    /// A put that keeps the lease brings one.
    LeaseProvided,
    /// A transaction has more operations than the limit.
    TooManyOperations,
    /// A branch of a transaction writes a key twice.
    DuplicateKey,
    /// An operation of a transaction is empty.
    EmptyOperation,
    /// The order or its target is unknown.
    InvalidSortOption,
    /// `RangeStream` was asked for an order.
    StreamSortOrder,
    /// `RangeStream` was asked for revision filters.
    StreamRevisionFilter,
    /// The metadata `client-api-version` is not UTF-8.
    InvalidClientVersion,
    /// The cluster version is not known yet.
    NotCapable,
    /// A learner does not serve this call.
    LearnerUnsupported,
    /// The caller requires a leader and there is none.
    NoLeader,
    /// This member does not lead.
    NotLeader,
    /// The database is at its quota.
    NoSpace,
    /// A peer URL of a new member is malformed.
    BadMemberUrls,
    /// The change would leave too few started members.
    NotEnoughStarted,
    /// The cluster is not healthy enough for the change.
    Unhealthy,
    /// The learner to promote lags too far behind.
    LearnerNotReady,
    /// Leadership cannot be given to this member.
    BadTransferee,
    /// The transferee did not take over before the caller gave up.
    TransferTimeout,
    /// The version to downgrade to is not a version.
    DowngradeFormat,
    /// The version to downgrade to is not the one below the cluster's.
    DowngradeTarget,
    /// A downgrade was asked for before the cluster version was known.
    DowngradeClusterVersion,
    /// A downgrade is under way already.
    DowngradeInProgress,
    /// The action of a downgrade request is unknown.
    UnknownDowngradeAction,
    /// The health service knows the empty name only.
    UnknownHealthService,
    /// The client gave up on the watch.
    WatchCanceled,
    /// The call was given up before there was an answer.
    ContextCanceled,
    /// The caller's deadline passed before there was an answer.
    DeadlineExceeded,
    /// A stored row failed its checksum.
    Damaged,
    /// The backend could not be read; the reason stands in the log.
    BackendFailed,
    /// The state machine answered another request than the one that was asked.
    WrongAnswer,
    /// This version does not have the service yet.
    AuthUnsupported,
    /// This version does not have the service yet.
    ElectionUnsupported,
    /// This version does not have the service yet.
    LockUnsupported,
}

/// Everything that can be the outcome of a call but an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// Refused at the edge.
    Refused(Refusal),
    /// Refused by the state machine, on every member alike.
    Rejected(Rejection),
    /// The outcome is unknown.
    Unavailable(Unavailable),
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Rejection> for CallError {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<Unavailable> for CallError {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(status(self).1)
    }
}

impl std::error::Error for CallError {}

/// A failed call as it goes out: a code and a text.
///
/// Made from a [`CallError`] through the table, or with one of the transport's own texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The gRPC code; never `Ok`.
    pub code: Code,
    /// The description.
    pub text: Cow<'static, str>,
}

impl Failure {
    /// A failure of the transport, whose text depends on the call.
    #[must_use]
    pub fn new(code: Code, text: impl Into<Cow<'static, str>>) -> Self {
        assert!(code != Code::Ok, "a failure has a code other than OK");
        Self { code, text: text.into() }
    }
}

impl<E: Into<CallError>> From<E> for Failure {
    fn from(error: E) -> Self {
        let (code, text) = status(&error.into());
        Self { code, text: Cow::Borrowed(text) }
    }
}

/// The code and text of `error`.
#[must_use]
pub const fn status(error: &CallError) -> (Code, &'static str) {
    match error {
        CallError::Refused(refusal) => refused(*refusal),
        CallError::Rejected(rejection) => rejected(rejection),
        CallError::Unavailable(unavailable) => unavailable_status(unavailable),
    }
}

const fn refused(refusal: Refusal) -> (Code, &'static str) {
    use Code::{
        Cancelled, DataLoss, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound,
        ResourceExhausted, Unimplemented, Unknown,
    };
    match refusal {
        Refusal::EmptyKey => (InvalidArgument, "etcdserver: key is not provided"),
        Refusal::ValueProvided => (InvalidArgument, "etcdserver: value is provided"),
        Refusal::LeaseProvided => (InvalidArgument, "etcdserver: lease is provided"),
        Refusal::TooManyOperations => {
            (InvalidArgument, "etcdserver: too many operations in txn request")
        }
        Refusal::DuplicateKey => {
            (InvalidArgument, "etcdserver: duplicate key given in txn request")
        }
        Refusal::EmptyOperation => (InvalidArgument, "etcdserver: key not found"),
        Refusal::InvalidSortOption => (InvalidArgument, "etcdserver: invalid sort option"),
        Refusal::StreamSortOrder => {
            (Unimplemented, "RangeStream does not support custom sort orders")
        }
        Refusal::StreamRevisionFilter => {
            (Unimplemented, "RangeStream does not support revision filters")
        }
        Refusal::InvalidClientVersion => {
            (InvalidArgument, "etcdserver: invalid client api version")
        }
        Refusal::NotCapable => (FailedPrecondition, "etcdserver: not capable"),
        Refusal::LearnerUnsupported => {
            (FailedPrecondition, "etcdserver: rpc not supported for learner")
        }
        Refusal::NoLeader => (Code::Unavailable, "etcdserver: no leader"),
        Refusal::NotLeader => (FailedPrecondition, "etcdserver: not leader"),
        Refusal::NoSpace => (ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        Refusal::BadMemberUrls => (InvalidArgument, "etcdserver: given member URLs are invalid"),
        // etcd maps this one to an error without a code.
        Refusal::NotEnoughStarted => {
            (Unknown, "etcdserver: re-configuration failed due to not enough started members")
        }
        Refusal::Unhealthy => (Code::Unavailable, "etcdserver: unhealthy cluster"),
        Refusal::LearnerNotReady => (
            FailedPrecondition,
            "etcdserver: can only promote a learner member which is in sync with leader",
        ),
        Refusal::BadTransferee => (FailedPrecondition, "etcdserver: bad leader transferee"),
        Refusal::TransferTimeout => {
            (Unknown, "etcdserver: request timed out, leader transfer took too long")
        }
        Refusal::DowngradeFormat => {
            (InvalidArgument, "etcdserver: wrong downgrade target version format")
        }
        Refusal::DowngradeTarget => {
            (InvalidArgument, "etcdserver: invalid downgrade target version")
        }
        Refusal::DowngradeClusterVersion => {
            (FailedPrecondition, "etcdserver: cluster version not found during downgrade")
        }
        Refusal::DowngradeInProgress => {
            (FailedPrecondition, "etcdserver: cluster has a downgrade job in progress")
        }
        Refusal::UnknownDowngradeAction => (Unknown, "etcdserver: unknown method"),
        Refusal::UnknownHealthService => (NotFound, "unknown service"),
        Refusal::WatchCanceled => (Cancelled, "etcdserver: watch canceled"),
        Refusal::ContextCanceled => (Cancelled, "context canceled"),
        Refusal::DeadlineExceeded => (DeadlineExceeded, "context deadline exceeded"),
        Refusal::Damaged => (DataLoss, "etcdserver: corrupt cluster"),
        Refusal::BackendFailed => (Code::Internal, "oxetcd: the backend could not be read"),
        Refusal::WrongAnswer => (Code::Internal, "oxetcd: an answer of another kind"),
        Refusal::AuthUnsupported => {
            (Unimplemented, "oxetcd: authentication cannot be configured in this version")
        }
        Refusal::ElectionUnsupported => {
            (Unimplemented, "oxetcd: the election service is not available in this version")
        }
        Refusal::LockUnsupported => {
            (Unimplemented, "oxetcd: the lock service is not available in this version")
        }
    }
}

const fn rejected(rejection: &Rejection) -> (Code, &'static str) {
    use Code::{
        DataLoss, FailedPrecondition, InvalidArgument, NotFound, OutOfRange, PermissionDenied,
        ResourceExhausted, Unauthenticated, Unknown,
    };
    match rejection {
        Rejection::UnknownCommand => (Unknown, "oxetcd: unknown kind of request"),
        Rejection::KeyNotFound => (InvalidArgument, "etcdserver: key not found"),
        Rejection::Compacted { .. } => {
            (OutOfRange, "etcdserver: mvcc: required revision has been compacted")
        }
        Rejection::FutureRevision { .. } => {
            (OutOfRange, "etcdserver: mvcc: required revision is a future revision")
        }
        Rejection::LeaseNotFound { .. } => (NotFound, "etcdserver: requested lease not found"),
        Rejection::LeaseExists { .. } => (FailedPrecondition, "etcdserver: lease already exists"),
        Rejection::TtlTooLarge { .. } => (OutOfRange, "etcdserver: too large lease TTL"),
        Rejection::NoSpace => (ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        Rejection::Corrupt => (DataLoss, "etcdserver: corrupt cluster"),
        Rejection::MemberIdExists { .. } => {
            (FailedPrecondition, "etcdserver: member ID already exist")
        }
        Rejection::PeerUrlExists { .. } => {
            (FailedPrecondition, "etcdserver: Peer URLs already exists")
        }
        Rejection::MemberNotFound { .. } => (NotFound, "etcdserver: member not found"),
        Rejection::MemberNotLearner { .. } => {
            (FailedPrecondition, "etcdserver: can only promote a learner member")
        }
        Rejection::TooManyLearners => {
            (FailedPrecondition, "etcdserver: too many learner members in cluster")
        }
        Rejection::AuthNotEnabled => {
            (FailedPrecondition, "etcdserver: authentication is not enabled")
        }
        Rejection::RootUserNotFound => (FailedPrecondition, "etcdserver: root user does not exist"),
        Rejection::RootRoleNotGranted => {
            (FailedPrecondition, "etcdserver: root user does not have root role")
        }
        Rejection::UserEmpty => (InvalidArgument, "etcdserver: user name is empty"),
        Rejection::UserExists => (FailedPrecondition, "etcdserver: user name already exists"),
        Rejection::UserNotFound => (FailedPrecondition, "etcdserver: user name not found"),
        Rejection::RoleExists => (FailedPrecondition, "etcdserver: role name already exists"),
        Rejection::RoleNotFound => (FailedPrecondition, "etcdserver: role name not found"),
        Rejection::RoleEmpty => (InvalidArgument, "etcdserver: role name is empty"),
        Rejection::AuthFailed => {
            (InvalidArgument, "etcdserver: authentication failed, invalid user ID or password")
        }
        Rejection::PermissionNotGiven => (InvalidArgument, "etcdserver: permission not given"),
        Rejection::PermissionDenied => (PermissionDenied, "etcdserver: permission denied"),
        Rejection::RoleNotGranted => {
            (FailedPrecondition, "etcdserver: role is not granted to the user")
        }
        Rejection::PermissionNotGranted => {
            (FailedPrecondition, "etcdserver: permission is not granted to the role")
        }
        Rejection::InvalidAuthManagement => {
            (InvalidArgument, "etcdserver: invalid auth management")
        }
        Rejection::AuthOldRevision => {
            (InvalidArgument, "etcdserver: revision of auth store is old")
        }
        Rejection::InvalidAuthToken => (Unauthenticated, "etcdserver: invalid auth token"),
    }
}

const fn unavailable_status(unavailable: &Unavailable) -> (Code, &'static str) {
    use Code::{Cancelled, FailedPrecondition, InvalidArgument, Unknown};
    match unavailable {
        Unavailable::NoLeader => (Code::Unavailable, "etcdserver: no leader"),
        Unavailable::LeaderChanged => (Code::Unavailable, "etcdserver: leader changed"),
        // etcd maps this one to an error without a code.
        Unavailable::Overloaded { .. } => (Unknown, "etcdserver: too many requests"),
        Unavailable::Timeout => (Code::Unavailable, "etcdserver: request timed out"),
        Unavailable::TimeoutLeaderLost => (
            Code::Unavailable,
            "etcdserver: request timed out, possibly due to previous leader failure",
        ),
        Unavailable::TimeoutConnectionLost => {
            (Code::Unavailable, "etcdserver: request timed out, possibly due to connection lost")
        }
        // A Go server's words for a context that has ended.
        Unavailable::NobodyLed => (Code::DeadlineExceeded, "context deadline exceeded"),
        Unavailable::TimeoutApplied => (
            Code::Unavailable,
            "etcdserver: request timed out, waiting for the applied index took too long",
        ),
        Unavailable::Canceled => (Cancelled, "etcdserver: request canceled"),
        Unavailable::Stopped => (Code::Unavailable, "etcdserver: server stopped"),
        Unavailable::NotLeader => (FailedPrecondition, "etcdserver: not leader"),
        Unavailable::NotPrimary => (Unknown, "not a primary lessor"),
        Unavailable::TooLarge { .. } => (InvalidArgument, "etcdserver: request is too large"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LeaseId, MemberId, Revision};

    /// Read off a running etcd 3.7.1: every refusal of the state machine, with code and text.
    fn declared() -> Vec<(CallError, i32, &'static str)> {
        let rejected: [(Rejection, i32, &'static str); 30] = [
            (Rejection::KeyNotFound, 3, "etcdserver: key not found"),
            (
                Rejection::Compacted { requested: Revision(1), compacted: Revision(2) },
                11,
                "etcdserver: mvcc: required revision has been compacted",
            ),
            (
                Rejection::FutureRevision { requested: Revision(9), current: Revision(2) },
                11,
                "etcdserver: mvcc: required revision is a future revision",
            ),
            (
                Rejection::LeaseNotFound { lease: LeaseId(1) },
                5,
                "etcdserver: requested lease not found",
            ),
            (Rejection::LeaseExists { lease: LeaseId(1) }, 9, "etcdserver: lease already exists"),
            (Rejection::TtlTooLarge { ttl_seconds: 1 }, 11, "etcdserver: too large lease TTL"),
            (Rejection::NoSpace, 8, "etcdserver: mvcc: database space exceeded"),
            (Rejection::Corrupt, 15, "etcdserver: corrupt cluster"),
            (
                Rejection::MemberIdExists { member: MemberId(1) },
                9,
                "etcdserver: member ID already exist",
            ),
            (
                Rejection::PeerUrlExists { url: String::new() },
                9,
                "etcdserver: Peer URLs already exists",
            ),
            (Rejection::MemberNotFound { member: MemberId(1) }, 5, "etcdserver: member not found"),
            (
                Rejection::MemberNotLearner { member: MemberId(1) },
                9,
                "etcdserver: can only promote a learner member",
            ),
            (Rejection::TooManyLearners, 9, "etcdserver: too many learner members in cluster"),
            (Rejection::AuthNotEnabled, 9, "etcdserver: authentication is not enabled"),
            (Rejection::RootUserNotFound, 9, "etcdserver: root user does not exist"),
            (Rejection::RootRoleNotGranted, 9, "etcdserver: root user does not have root role"),
            (Rejection::UserEmpty, 3, "etcdserver: user name is empty"),
            (Rejection::UserExists, 9, "etcdserver: user name already exists"),
            (Rejection::UserNotFound, 9, "etcdserver: user name not found"),
            (Rejection::RoleExists, 9, "etcdserver: role name already exists"),
            (Rejection::RoleNotFound, 9, "etcdserver: role name not found"),
            (Rejection::RoleEmpty, 3, "etcdserver: role name is empty"),
            (
                Rejection::AuthFailed,
                3,
                "etcdserver: authentication failed, invalid user ID or password",
            ),
            (Rejection::PermissionNotGiven, 3, "etcdserver: permission not given"),
            (Rejection::PermissionDenied, 7, "etcdserver: permission denied"),
            (Rejection::RoleNotGranted, 9, "etcdserver: role is not granted to the user"),
            (
                Rejection::PermissionNotGranted,
                9,
                "etcdserver: permission is not granted to the role",
            ),
            (Rejection::InvalidAuthManagement, 3, "etcdserver: invalid auth management"),
            (Rejection::AuthOldRevision, 3, "etcdserver: revision of auth store is old"),
            (Rejection::InvalidAuthToken, 16, "etcdserver: invalid auth token"),
        ];
        rejected.into_iter().map(|(error, code, text)| (error.into(), code, text)).collect()
    }

    #[test]
    fn refusals_of_the_state_machine_have_the_code_and_text_of_etcd() {
        for (error, code, text) in declared() {
            assert_eq!(status(&error), (Code::from_i32(code), text), "{error:?}");
        }
    }

    #[test]
    fn unknown_outcomes_have_the_code_and_text_of_etcd() {
        let table: [(Unavailable, Code, &str); 13] = [
            (Unavailable::NoLeader, Code::Unavailable, "etcdserver: no leader"),
            (Unavailable::LeaderChanged, Code::Unavailable, "etcdserver: leader changed"),
            (
                Unavailable::Overloaded { backlog_entries_max: 5000 },
                Code::Unknown,
                "etcdserver: too many requests",
            ),
            (Unavailable::Timeout, Code::Unavailable, "etcdserver: request timed out"),
            (
                Unavailable::TimeoutLeaderLost,
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
            ),
            (
                Unavailable::TimeoutConnectionLost,
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to connection lost",
            ),
            (Unavailable::NobodyLed, Code::DeadlineExceeded, "context deadline exceeded"),
            (
                Unavailable::TimeoutApplied,
                Code::Unavailable,
                "etcdserver: request timed out, waiting for the applied index took too long",
            ),
            (Unavailable::Canceled, Code::Cancelled, "etcdserver: request canceled"),
            (Unavailable::Stopped, Code::Unavailable, "etcdserver: server stopped"),
            (Unavailable::NotLeader, Code::FailedPrecondition, "etcdserver: not leader"),
            (Unavailable::NotPrimary, Code::Unknown, "not a primary lessor"),
            (
                Unavailable::TooLarge { request_bytes_max: 1 },
                Code::InvalidArgument,
                "etcdserver: request is too large",
            ),
        ];
        for (error, code, text) in table {
            assert_eq!(status(&error.clone().into()), (code, text), "{error:?}");
        }
    }

    #[test]
    fn too_few_started_members_go_out_without_a_code() {
        assert_eq!(status(&Refusal::NotEnoughStarted.into()).0, Code::Unknown);
    }
}
