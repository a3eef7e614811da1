//! What the edge needs of the member that it speaks for.
//!
//! Decides nothing. The services are written against these two traits, so that their tests run
//! against a member made of a few fields; the real one is `replica::Handle`, adapted in `local`.
//! Everything that a service may ask for stands here, which makes this file the list of what the
//! edge depends on.

use std::{future::Future, io, sync::Arc, time::Duration};

use bytes::Bytes;
use proto::etcdserverpb::{self as pb, AlarmMember, RangeRequest, TxnRequest};

use super::{
    caller::Caller,
    status::{CallError, Refusal},
};
use crate::{
    model::{
        ClusterId, LeaseId, LogIndex, MemberId, Outcome, RangeAnswer, Request, RequestId, Revision,
        Term, TxnAnswer, Unavailable,
    },
    watch::thread::Streams,
};

/// How often a read may find that its state is outdated. Each time a compaction has passed, so one
/// more look is enough unless compactions are minutes apart no longer.
const OUTDATED_MAX: usize = 16;

/// Where a member stands in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// This member.
    pub member: MemberId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Who leads; 0 is nobody known.
    pub leader: MemberId,
    /// The present term.
    pub term: Term,
    /// The last entry known to be committed.
    pub committed: LogIndex,
    /// The last entry applied here.
    pub applied: LogIndex,
}

/// How large the database is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatabaseBytes {
    /// What it occupies.
    pub total: i64,
    /// What of that holds data.
    pub in_use: i64,
}

/// How long a lease lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseTime {
    /// What is left, in seconds.
    pub ttl_seconds: i64,
    /// What it was granted, in seconds.
    pub granted_ttl_seconds: i64,
    /// The keys attached to it, if asked for.
    pub keys: Vec<Bytes>,
}

/// A hash over the key history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashedHistory {
    /// The hash.
    pub hash: u32,
    /// The compaction point that it was computed with; -1 before any.
    pub compacted: Revision,
    /// The newest revision in it.
    pub revision: Revision,
    /// The newest revision of the store at that time.
    pub current: Revision,
}

/// A hash over the whole backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashedBackend {
    /// The hash.
    pub hash: u32,
    /// The newest revision of the store at that time.
    pub current: Revision,
}

/// A copy of the database under way: a bbolt file, in pieces.
pub struct Backup {
    /// The size of the file; a multiple of 512.
    pub total_bytes: u64,
    /// The file from its start, in pieces of any size. Runs on a thread that may block.
    pub pieces: Box<dyn Iterator<Item = io::Result<Bytes>> + Send>,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup").field("total_bytes", &self.total_bytes).finish_non_exhaustive()
    }
}

/// Why a state did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateError {
    /// History has been dropped since the state was published: ask a newer one.
    Outdated,
    /// The call fails.
    Failed(CallError),
}

impl<E: Into<CallError>> From<E> for StateError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What has been applied: one immutable state, whatever is written meanwhile.
pub trait State: Send + Sync + 'static {
    /// The newest revision.
    fn revision(&self) -> Revision;

    /// Reads keys, as a `Range` does.
    ///
    /// # Errors
    /// - compacted or future revisions, and damaged rows.
    fn range(&self, request: &RangeRequest) -> Result<RangeAnswer, StateError>;

    /// Evaluates a transaction that only reads.
    ///
    /// # Errors
    /// - compacted or future revisions, and damaged rows.
    fn read_txn(&self, request: &TxnRequest) -> Result<TxnAnswer, StateError>;

    /// The members, by ascending id.
    fn members(&self) -> Vec<pb::Member>;

    /// Whether `member` is a learner; `None` if it is no member.
    fn is_learner(&self, member: MemberId) -> Option<bool>;

    /// The active alarms.
    fn alarms(&self) -> Vec<AlarmMember>;

    /// The version that the cluster has agreed on, such as `3.7.0`; `None` before it has.
    fn cluster_version(&self) -> Option<String>;

    /// The version of the stored schema, such as `3.7.0`; `None` if it is unknown.
    fn storage_version(&self) -> Option<String>;

    /// Whether the cluster is being downgraded, and to what.
    fn downgrade(&self) -> pb::DowngradeInfo;
}

/// Asks `state`, and newer ones as often as it is outdated.
///
/// # Errors
/// As `ask`.
pub fn read<M: Member, T>(
    member: &M,
    mut state: Arc<M::State>,
    ask: impl Fn(&M::State) -> Result<T, StateError>,
) -> Result<T, CallError> {
    for _ in 0..OUTDATED_MAX {
        match ask(&state) {
            Ok(answer) => return Ok(answer),
            Err(StateError::Failed(error)) => return Err(error),
            Err(StateError::Outdated) => state = member.published(),
        }
    }
    // Compactions cannot follow one another as fast as that.
    Err(Refusal::BackendFailed.into())
}

/// One member, as its edge sees it. Cheap to clone.
pub trait Member: Clone + Send + Sync + 'static {
    /// What it has applied.
    type State: State;

    /// What has been applied here, without asking anybody.
    fn published(&self) -> Arc<Self::State>;

    /// A state that holds every write acknowledged anywhere before the call.
    ///
    /// # Errors
    /// - if no quorum confirms it in time.
    fn linearizable(&self) -> impl Future<Output = Result<Arc<Self::State>, Unavailable>> + Send;

    /// Replicates `request` and returns what applying it came to.
    ///
    /// # Errors
    /// - if the outcome is unknown.
    fn propose(
        &self,
        caller: Caller,
        request: Request,
    ) -> impl Future<Output = Result<Outcome, Unavailable>> + Send;

    /// Adds a member with these sorted peer URLs; returns it, and all members after that.
    ///
    /// # Errors
    /// - what the checks or the cluster refuse, and if the outcome is unknown.
    fn add_member(
        &self,
        peer_urls: Vec<String>,
        is_learner: bool,
    ) -> impl Future<Output = Result<(pb::Member, Vec<pb::Member>), CallError>> + Send;

    /// Removes a member; returns those that stay.
    ///
    /// # Errors
    /// As [`Member::add_member`].
    fn remove_member(
        &self,
        member: MemberId,
    ) -> impl Future<Output = Result<Vec<pb::Member>, CallError>> + Send;

    /// Gives a member other peer URLs; returns all members.
    ///
    /// # Errors
    /// As [`Member::add_member`].
    fn update_member(
        &self,
        member: MemberId,
        peer_urls: Vec<String>,
    ) -> impl Future<Output = Result<Vec<pb::Member>, CallError>> + Send;

    /// Gives a learner a vote; returns all members.
    ///
    /// # Errors
    /// As [`Member::add_member`].
    fn promote_member(
        &self,
        member: MemberId,
    ) -> impl Future<Output = Result<Vec<pb::Member>, CallError>> + Send;

    /// Where watch streams are opened.
    fn watch(&self) -> Streams;

    /// Where the member stands now.
    fn position(&self) -> Position;

    /// Until when proposals are gathered that will be written together, in the clock's time: one
    /// that comes earlier is not answered sooner. In the past while none are.
    fn gathers_until(&self) -> Duration;

    /// An id that no other request of the cluster has.
    fn new_request_id(&self) -> RequestId;

    /// The size of the database.
    fn database(&self) -> DatabaseBytes;

    /// Whether the quota has room for what `request` would add.
    fn has_room_for(&self, request: &Request) -> bool;

    /// Renews a lease and returns its time to live in seconds.
    ///
    /// # Errors
    /// - an unknown lease, or a member that cannot know.
    fn renew_lease(&self, lease: LeaseId) -> impl Future<Output = Result<i64, CallError>> + Send;

    /// What is left of a lease; `None` if there is none.
    ///
    /// # Errors
    /// - if this member cannot know.
    fn lease_time(
        &self,
        lease: LeaseId,
        with_keys: bool,
    ) -> impl Future<Output = Result<Option<LeaseTime>, CallError>> + Send;

    /// Every lease, the one that ends first first.
    ///
    /// # Errors
    /// - if the system has no thread for a long list.
    fn leases(&self) -> impl Future<Output = Result<Vec<LeaseId>, CallError>> + Send;

    /// Waits until the rows below the compaction point are gone from the backend.
    ///
    /// # Errors
    /// - while the member stops.
    fn compaction_finished(
        &self,
        revision: Revision,
    ) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// Rewrites the backend without its free pages.
    ///
    /// # Errors
    /// - if that fails; the backend is as before.
    fn defragment(&self) -> impl Future<Output = Result<(), CallError>> + Send;

    /// Hashes the key history up to `revision`; 0 is all of it.
    ///
    /// # Errors
    /// - compacted or future revisions, and damaged rows.
    fn hash_history(
        &self,
        revision: Revision,
    ) -> impl Future<Output = Result<HashedHistory, CallError>> + Send;

    /// Hashes everything that the backend holds, as etcd hashes its file.
    ///
    /// # Errors
    /// - if the backend cannot be read, or is damaged.
    fn hash_backend(&self) -> impl Future<Output = Result<HashedBackend, CallError>> + Send;

    /// Begins a copy of the database.
    ///
    /// # Errors
    /// - if the backend cannot be read.
    fn backup(&self) -> impl Future<Output = Result<Backup, CallError>> + Send;

    /// Hands leadership to `target`.
    ///
    /// # Errors
    /// - if the transfer was given up.
    fn transfer_leadership(
        &self,
        target: MemberId,
    ) -> impl Future<Output = Result<(), CallError>> + Send;
}
