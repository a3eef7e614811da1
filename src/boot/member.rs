//! The running member, as the edge sees it.
//!
//! Decides nothing about calls: it joins what the edge asks for (`api::member`) to who has it: the
//! replica, the lessor, the flusher, the backend. It stands here because the edge must not know
//! them and they must not know the edge.

use std::{future::Future, sync::Arc, time::Duration};

use proto::etcdserverpb::{self as pb, AlarmMember, RangeRequest, TxnRequest};
use tokio::sync::mpsc;

use crate::{
    api::{
        caller::Caller,
        member::{
            Backup, DatabaseBytes, HashedBackend, HashedHistory, LeaseTime, Member, Position,
            State, StateError, read,
        },
        status::{CallError, Refusal},
    },
    base::thread::{self, Priority},
    cluster::NewMember,
    config::Config,
    exchange::{hash_backend, receive_backup, run_backup},
    model::{
        LeaseId, MemberId, Outcome, RangeAnswer, Rejection, Request, RequestId, Revision,
        TxnAnswer, Unavailable,
    },
    mvcc::{self, HashKv, RangeOptions, ReadError},
    replica::{ChangeError, Handle, Hasher, Identity, LeaseCalls, MemberCalls, QuorumChecks},
    state::{self, Published, Quota},
    watch::thread::Streams,
};

use super::long_reads::LongReads;

/// Parts of a backup between the thread that makes them and the one that sends them.
const BACKUP_PARTS_MAX: usize = 4;

/// Leases that are listed on the caller's thread, in less than half a millisecond.
const LEASES_LISTED_HERE_MAX: usize = 4096;

/// A member that runs in this process.
#[derive(Clone, Debug)]
pub(super) struct LocalMember {
    handle: Handle,
    quota: Quota,
    leases: LeaseCalls,
    members: MemberCalls,
    long_reads: LongReads,
    /// Beside the others: milliseconds, not seconds, and under locks of the lease table.
    lease_lists: LongReads,
}

impl LocalMember {
    pub(super) fn new(handle: Handle, config: &Config) -> Self {
        let quota = Quota::from_flag(super::quota_bytes(config));
        let leases = LeaseCalls::new(handle.clone());
        let checks =
            if config.strict_reconfig_check { QuorumChecks::Strict } else { QuorumChecks::Off };
        let members = MemberCalls::new(handle.clone(), checks);
        let long_reads = LongReads::new(Priority::Background);
        let lease_lists = LongReads::new(Priority::Normal);
        Self { handle, quota, leases, members, long_reads, lease_lists }
    }

    /// The leases, wherever the leader is.
    pub(super) const fn leases(&self) -> &LeaseCalls {
        &self.leases
    }

    fn seconds_since(&self, started: Duration) -> f64 {
        self.handle.clock().now().saturating_sub(started).as_secs_f64()
    }
}

impl Hasher for LocalMember {
    async fn hash_now(&self) -> Option<(HashKv, Revision)> {
        match self.hash_history(Revision(0)).await {
            Ok(hashed) => {
                let HashedHistory { hash, compacted, revision, current } = hashed;
                let hash = HashKv { hash, compact_revision: compacted, hash_revision: revision };
                Some((hash, current))
            }
            Err(error) => {
                tracing::warn!(%error, "failed to hash the history");
                None
            }
        }
    }
}

/// Keeps what the edge can say apart from what only the log can.
fn state_error(error: ReadError) -> StateError {
    match error {
        ReadError::Rejected(rejection) => rejection.into(),
        ReadError::Outdated => StateError::Outdated,
        ReadError::Damaged(damage) => {
            tracing::error!(%damage, "stored history is damaged; the read is refused");
            Refusal::Damaged.into()
        }
    }
}

/// What a caller is told of a change of members that was not made.
fn change_error(error: ChangeError) -> CallError {
    match error {
        ChangeError::Rejected(rejection) => CallError::Rejected(rejection),
        ChangeError::Unavailable(unavailable) => CallError::Unavailable(unavailable),
        ChangeError::NotEnoughStarted => CallError::Refused(Refusal::NotEnoughStarted),
        ChangeError::Unhealthy => CallError::Refused(Refusal::Unhealthy),
        ChangeError::LearnerNotReady => CallError::Refused(Refusal::LearnerNotReady),
    }
}

impl State for Published {
    fn revision(&self) -> Revision {
        self.kv.revision()
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeAnswer, StateError> {
        self.kv.range(&RangeOptions::from_wire(request)).map_err(state_error)
    }

    fn read_txn(&self, request: &TxnRequest) -> Result<TxnAnswer, StateError> {
        self.read_only_txn(request).map_err(state_error)
    }

    fn members(&self) -> Vec<pb::Member> {
        Self::members(self)
    }

    fn is_learner(&self, member: MemberId) -> Option<bool> {
        Self::is_learner(self, member)
    }

    fn alarms(&self) -> Vec<AlarmMember> {
        self.alarms.of(pb::AlarmType::None)
    }

    fn cluster_version(&self) -> Option<String> {
        Self::cluster_version(self).map(|version| version.to_string())
    }

    fn storage_version(&self) -> Option<String> {
        self.storage_version.map(|version| version.to_string())
    }

    fn downgrade(&self) -> pb::DowngradeInfo {
        let downgrade = self.membership.downgrade();
        downgrade.map_or_else(pb::DowngradeInfo::default, |downgrade| pb::DowngradeInfo {
            enabled: downgrade.enabled,
            target_version: downgrade.target_version.clone(),
        })
    }
}

impl Member for LocalMember {
    type State = Published;

    fn published(&self) -> Arc<Published> {
        self.handle.published()
    }

    fn linearizable(&self) -> impl Future<Output = Result<Arc<Published>, Unavailable>> + Send {
        self.handle.linearizable()
    }

    fn propose(
        &self,
        caller: Caller,
        request: Request,
    ) -> impl Future<Output = Result<Outcome, Unavailable>> + Send {
        let Caller { username, auth_revision } = caller;
        self.handle.propose(Identity { username, auth_revision }, request)
    }

    async fn add_member(
        &self,
        peer_urls: Vec<String>,
        is_learner: bool,
    ) -> Result<(pb::Member, Vec<pb::Member>), CallError> {
        let new = if is_learner { NewMember::Learner } else { NewMember::Voter };
        let added = self.members.add(peer_urls, new).await.map_err(change_error)?;
        Ok((added.0.to_wire(), added.1))
    }

    async fn remove_member(&self, member: MemberId) -> Result<Vec<pb::Member>, CallError> {
        self.members.remove(member).await.map_err(change_error)
    }

    async fn update_member(
        &self,
        member: MemberId,
        peer_urls: Vec<String>,
    ) -> Result<Vec<pb::Member>, CallError> {
        self.members.update(member, peer_urls).await.map_err(change_error)
    }

    async fn promote_member(&self, member: MemberId) -> Result<Vec<pb::Member>, CallError> {
        self.members.promote(member).await.map_err(change_error)
    }

    fn position(&self) -> Position {
        let status = self.handle.status();
        Position {
            member: status.member,
            cluster: status.cluster,
            leader: status.leader,
            term: status.term,
            committed: status.committed,
            applied: status.applied,
        }
    }

    fn gathers_until(&self) -> Duration {
        self.handle.gathers_until()
    }

    fn new_request_id(&self) -> RequestId {
        self.handle.new_request_id()
    }

    fn database(&self) -> DatabaseBytes {
        let sizes = self.handle.backend().sizes();
        let signed = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        DatabaseBytes { total: signed(sizes.total), in_use: signed(sizes.in_use) }
    }

    fn has_room_for(&self, request: &Request) -> bool {
        self.quota.admits(state::cost(request), self.handle.backend().sizes().total)
    }

    async fn renew_lease(&self, lease: LeaseId) -> Result<i64, CallError> {
        Ok(self.leases.renew(lease).await??)
    }

    async fn lease_time(
        &self,
        lease: LeaseId,
        with_keys: bool,
    ) -> Result<Option<LeaseTime>, CallError> {
        match self.leases.time_to_live(lease, with_keys).await? {
            Ok(time) => Ok(Some(LeaseTime {
                ttl_seconds: time.ttl,
                granted_ttl_seconds: time.granted_ttl,
                keys: time.keys,
            })),
            Err(Rejection::LeaseNotFound { .. }) => Ok(None),
            Err(rejection) => Err(rejection.into()),
        }
    }

    fn watch(&self) -> Streams {
        self.handle.watch().streams().clone()
    }

    async fn leases(&self) -> Result<Vec<LeaseId>, CallError> {
        let lessor = self.handle.lessor().clone();
        if lessor.len() <= LEASES_LISTED_HERE_MAX {
            return Ok(lessor.leases());
        }
        self.lease_lists.run(move || lessor.leases()).await
    }

    fn compaction_finished(
        &self,
        revision: Revision,
    ) -> impl Future<Output = Result<(), Unavailable>> + Send {
        self.handle.compaction_finished(revision)
    }

    async fn defragment(&self) -> Result<(), CallError> {
        self.handle.defragment().await?.map_err(|error| {
            tracing::error!(%error, "failed to defragment");
            CallError::from(Refusal::BackendFailed)
        })
    }

    async fn hash_history(&self, revision: Revision) -> Result<HashedHistory, CallError> {
        let member = self.clone();
        let hash = move |published: &Published| {
            let hash = published.kv.hash_kv(revision).map_err(state_error)?;
            Ok(HashedHistory {
                hash: hash.hash,
                compacted: hash.compact_revision,
                revision: hash.hash_revision,
                current: published.kv.revision(),
            })
        };
        self.long_reads
            .run(move || {
                let started = member.handle.clock().now();
                let hashed = read(&member, member.published(), hash);
                mvcc::HASH_REV_SECONDS.observe(member.seconds_since(started));
                hashed
            })
            .await?
    }

    async fn hash_backend(&self) -> Result<HashedBackend, CallError> {
        // What has been applied may still be on its way to the backend.
        let current = self.handle.published().kv.revision();
        self.handle.sync_backend().await?;
        let member = self.clone();
        let hash = self.long_reads.run(move || {
            let started = member.handle.clock().now();
            let reader = member.handle.backend().reader()?;
            let hash = hash_backend(&reader);
            mvcc::HASH_SECONDS.observe(member.seconds_since(started));
            hash
        });
        match hash.await? {
            Ok(hash) => Ok(HashedBackend { hash, current }),
            Err(error) => {
                tracing::error!(%error, "failed to hash the backend");
                Err(Refusal::BackendFailed.into())
            }
        }
    }

    async fn backup(&self) -> Result<Backup, CallError> {
        // What has been acknowledged before this request must be in its answer.
        self.handle.linearizable().await?;
        self.handle.sync_backend().await?;
        let (parts, receiver) = mpsc::channel(BACKUP_PARTS_MAX);
        let backend = self.handle.backend().clone();
        let spawned = thread::spawn("backup", Priority::Background, move || {
            run_backup(&backend, &parts);
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "cannot start a thread for a backup");
            return Err(Refusal::BackendFailed.into());
        }
        let (about, pieces) = receive_backup(receiver).await.map_err(|error| {
            tracing::error!(%error, "failed to begin a backup");
            CallError::from(Refusal::BackendFailed)
        })?;
        Ok(Backup { total_bytes: about.bytes_total, pieces: Box::new(pieces) })
    }

    async fn transfer_leadership(&self, target: MemberId) -> Result<(), CallError> {
        self.handle.transfer_leadership(target)?;
        // Whoever asks looks at the position until it has changed.
        Ok(())
    }
}
