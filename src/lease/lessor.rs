//! The time of leases, without raft.
//!
//! Decides when a lease expires. Only the leader counts time down: it is promoted when it has
//! applied everything from before its term, and demoted when it stops leading. Any thread may call
//! anything here; time comes in as the reading of the member's clock. The apply thread adds and
//! ends leases through `LeaseTable`.
//!
//! Deliberately absent: a limit on how many leases expire per second, and with it etcd's spreading
//! of deadlines over a longer time after a promotion. Expired leases are handed out in batches, as
//! many as the caller asks for.
//!
//! Source: etcd `server/lease/lessor.go`.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use proto::etcdserverpb::LeaseCheckpoint;

use super::{
    CHECKPOINT_INTERVAL,
    entry::{EXPIRED, ExpiredLease, FOREVER, Lease, LeasedKey, lock, nanos, time_of},
    metrics,
    schedule::Schedule,
};
use crate::model::LeaseId;

/// Parts of the table that are locked separately; a power of two, well above the number of threads.
const SHARDS: u8 = 64;

/// How leases behave on this member; the same on all of them, as it decides what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseSettings {
    /// The shortest TTL that is granted, in seconds: see [`super::ttl_seconds_min`].
    pub ttl_seconds_min: i64,
    /// Whether the leader records remaining times in the log (etcd's gate `LeaseCheckpoint`).
    pub checkpoints: bool,
    /// Whether they are stored whatever the cluster version (gate `LeaseCheckpointPersist`).
    pub checkpoints_persist: bool,
    /// After this time an expired lease that is still there is handed out again.
    pub revoke_retry: Duration,
}

/// Leases as seen by the threads that serve. Cloning shares.
#[derive(Clone, Debug)]
pub struct Lessor(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    shards: Vec<RwLock<HashMap<LeaseId, Arc<Lease>>>>,
    live: AtomicUsize,
    settings: LeaseSettings,
    /// Changes only under the lock of `due`.
    is_primary: AtomicBool,
    role_changes: Arc<AtomicU64>,
    due: Mutex<DueLeases>,
}

#[derive(Debug, Default)]
struct DueLeases {
    expiry: Schedule,
    checkpoint: Schedule,
}

/// What became of a renewal.
#[derive(Debug)]
pub enum Renewal {
    /// The lease has its full time again.
    Renewed {
        /// That time, in seconds.
        ttl_seconds: i64,
    },
    /// No such lease.
    NotFound,
    /// This member does not lead: ask the leader.
    NotPrimary,
    /// Its time is over, but it has not been revoked yet: wait, then renew again.
    Expired(ExpiredLease),
    /// A remaining time is on record: propose a checkpoint of 0 first, then renew again.
    CheckpointFirst,
}

/// What a lease has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimeToLive {
    /// This much.
    Live {
        /// What is left, in whole seconds, rounded down; 0 if it has expired.
        remaining_seconds: i64,
        /// What it was granted, in seconds.
        granted_seconds: i64,
        /// The attached keys in ascending order, if asked for.
        keys: Vec<LeasedKey>,
    },
    /// No such lease.
    NotFound,
    /// This member does not lead, so it does not know.
    NotPrimary,
}

/// Whether an answer should list the attached keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseKeys {
    /// List them.
    Listed,
    /// Leave them out.
    Omitted,
}

impl Lessor {
    pub(super) fn new(settings: LeaseSettings) -> Self {
        Self(Arc::new(Shared {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            live: AtomicUsize::new(0),
            settings,
            is_primary: AtomicBool::new(false),
            role_changes: Arc::default(),
            due: Mutex::default(),
        }))
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &LeaseSettings {
        &self.0.settings
    }

    /// Whether this member counts the time of leases.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.0.is_primary.load(Ordering::Acquire)
    }

    /// How many leases there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.live.load(Ordering::Acquire)
    }

    /// Whether there is no lease.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the lease exists here. It may be granted and not applied yet.
    #[must_use]
    pub fn contains(&self, lease: LeaseId) -> bool {
        self.find(lease).is_some()
    }

    /// The keys attached to `lease`, in ascending order; none if there is no such lease.
    #[must_use]
    pub fn keys(&self, lease: LeaseId) -> Vec<LeasedKey> {
        self.find(lease).map_or_else(Vec::new, |found| found.keys())
    }

    /// Gives a lease its full time again.
    #[must_use]
    pub fn renew(&self, lease: LeaseId, now: Duration) -> Renewal {
        if !self.is_primary() {
            return Renewal::NotPrimary;
        }
        let Some(lease) = self.find(lease) else { return Renewal::NotFound };
        let role_changes_seen = self.0.role_changes.load(Ordering::Acquire);
        let full = nanos(now.saturating_add(lease.ttl()));
        loop {
            let seen = lease.deadline();
            if seen == FOREVER {
                return Renewal::NotPrimary;
            }
            if seen <= nanos(now) {
                let role_changes = Arc::clone(&self.0.role_changes);
                return Renewal::Expired(ExpiredLease { lease, role_changes, role_changes_seen });
            }
            if self.0.settings.checkpoints && 0 < lease.remaining_seconds() {
                return Renewal::CheckpointFirst;
            }
            if lease.move_deadline(seen, full) {
                break;
            }
        }
        if lease.has_ended() {
            return Renewal::NotFound;
        }
        metrics::count_renewed();
        Renewal::Renewed { ttl_seconds: lease.ttl_seconds }
    }

    /// What a lease has left.
    #[must_use]
    pub fn time_to_live(&self, lease: LeaseId, keys: LeaseKeys, now: Duration) -> TimeToLive {
        if !self.is_primary() {
            return TimeToLive::NotPrimary;
        }
        let Some(lease) = self.find(lease) else { return TimeToLive::NotFound };
        let keys = match keys {
            LeaseKeys::Listed => lease.keys(),
            LeaseKeys::Omitted => Vec::new(),
        };
        let deadline = lease.deadline();
        if deadline == FOREVER {
            return TimeToLive::NotPrimary;
        }
        let left = Duration::from_nanos(deadline.saturating_sub(nanos(now)));
        let remaining_seconds = i64::try_from(left.as_secs()).expect("2^64 ns are 585 years");
        TimeToLive::Live { remaining_seconds, granted_seconds: lease.ttl_seconds, keys }
    }

    /// Every lease; on the leader, the one with the least time left first.
    #[must_use]
    pub fn leases(&self) -> Vec<LeaseId> {
        let mut all: Vec<(u64, LeaseId)> = Vec::with_capacity(self.len());
        self.for_each(|lease| all.push((lease.deadline(), lease.id)));
        all.sort_unstable();
        all.into_iter().map(|(_, id)| id).collect()
    }

    /// Up to `leases_max` leases whose time is over, for the leader to propose their end. Each is
    /// handed out again after the retry time if it is still there.
    #[must_use]
    pub fn expired(&self, now: Duration, leases_max: usize) -> Vec<LeaseId> {
        let mut due = lock(&self.0.due);
        let mut expired = Vec::new();
        if !self.is_primary() {
            return expired;
        }
        let retry_at = nanos(now.saturating_add(self.0.settings.revoke_retry));
        while expired.len() < leases_max
            && let Some(lease) = due.expiry.pop_due(nanos(now))
        {
            loop {
                let seen = lease.deadline();
                if nanos(now) < seen {
                    due.expiry.push(seen, lease);
                    break;
                }
                if lease.move_deadline(seen, EXPIRED) {
                    expired.push(lease.id);
                    due.expiry.push(retry_at, lease);
                    break;
                }
            }
        }
        expired
    }

    /// When [`Lessor::expired`] may next have something, as a reading of the clock. May be too
    /// early, never too late, except for leases that are granted meanwhile.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Duration> {
        lock(&self.0.due).expiry.next_at().map(time_of)
    }

    /// Up to `checkpoints_max` remaining times that are due to be recorded; none unless this
    /// member leads and checkpoints are on.
    #[must_use]
    pub fn due_checkpoints(&self, now: Duration, checkpoints_max: usize) -> Vec<LeaseCheckpoint> {
        let mut due = lock(&self.0.due);
        let mut checkpoints = Vec::new();
        while self.is_primary()
            && checkpoints.len() < checkpoints_max
            && let Some(lease) = due.checkpoint.pop_due(nanos(now))
        {
            lease.set_checkpoint_planned(false);
            let left = Duration::from_nanos(lease.deadline().saturating_sub(nanos(now)));
            let up = u64::from(0 < left.subsec_nanos());
            let remaining = i64::try_from(left.as_secs() + up).expect("2^64 ns are 585 years");
            if 0 < remaining && remaining < lease.ttl_seconds {
                checkpoints.push(LeaseCheckpoint { id: lease.id.0, remaining_ttl: remaining });
            } else if 0 < remaining {
                // Just renewed: nothing to record now, but there will be.
                self.plan_checkpoint(&mut due, &lease, now);
            }
        }
        checkpoints
    }

    /// Makes this member the one that counts time. Every lease gets the time it has left according
    /// to the log, and `extend` on top, as clients could not renew while there was no leader.
    pub fn promote(&self, now: Duration, extend: Duration) {
        let mut due = lock(&self.0.due);
        self.0.is_primary.store(true, Ordering::Release);
        self.0.role_changes.fetch_add(1, Ordering::AcqRel);
        due.expiry.clear();
        due.checkpoint.clear();
        self.for_each(|lease| {
            let left = lease.time_left().saturating_add(extend);
            lease.set_checkpoint_planned(false);
            self.schedule(&mut due, lease, now, left);
            lease.wake();
        });
    }

    /// Makes this member one that does not count time. Every lease then lasts for ever here.
    pub fn demote(&self) {
        let mut due = lock(&self.0.due);
        self.0.is_primary.store(false, Ordering::Release);
        self.0.role_changes.fetch_add(1, Ordering::AcqRel);
        due.expiry.clear();
        due.checkpoint.clear();
        self.for_each(|lease| {
            lease.set_deadline(FOREVER);
            lease.wake();
        });
    }

    pub(super) fn find(&self, lease: LeaseId) -> Option<Arc<Lease>> {
        self.read_shard(lease).get(&lease).map(Arc::clone)
    }

    pub(super) fn add(&self, lease: &Arc<Lease>, now: Duration) {
        // The lock keeps a promotion from seeing the lease as well.
        let mut due = lock(&self.0.due);
        let replaced = self.write_shard(lease.id).insert(lease.id, Arc::clone(lease));
        assert!(replaced.is_none(), "lease {} was granted twice", lease.id);
        let live = self.0.live.fetch_add(1, Ordering::AcqRel) + 1;
        if self.is_primary() {
            self.schedule(&mut due, lease, now, lease.time_left());
            due.expiry.sweep(live);
            due.checkpoint.sweep(live);
        }
    }

    pub(super) fn remove(&self, lease: LeaseId) -> Option<Arc<Lease>> {
        let removed = self.write_shard(lease).remove(&lease);
        if removed.is_some() {
            self.0.live.fetch_sub(1, Ordering::AcqRel);
        }
        removed
    }

    /// Ends every lease, because another state takes the place of all.
    pub(super) fn end_all(&self) {
        let mut due = lock(&self.0.due);
        due.expiry.clear();
        due.checkpoint.clear();
        for shard in &self.0.shards {
            let mut leases = shard.write().unwrap_or_else(PoisonError::into_inner);
            self.0.live.fetch_sub(leases.len(), Ordering::AcqRel);
            for (_, lease) in leases.drain() {
                drop(lease.end());
            }
        }
    }

    /// Plans the next checkpoint of a lease that has just had one.
    pub(super) fn schedule_checkpoint(&self, lease: &Arc<Lease>, now: Duration) {
        let mut due = lock(&self.0.due);
        if self.is_primary() {
            self.plan_checkpoint(&mut due, lease, now);
        }
    }

    fn schedule(&self, due: &mut DueLeases, lease: &Arc<Lease>, now: Duration, left: Duration) {
        let deadline = nanos(now.saturating_add(left));
        lease.set_deadline(deadline);
        due.expiry.push(deadline, Arc::clone(lease));
        self.plan_checkpoint(due, lease, now);
    }

    fn plan_checkpoint(&self, due: &mut DueLeases, lease: &Arc<Lease>, now: Duration) {
        let is_due_later = self.0.settings.checkpoints && CHECKPOINT_INTERVAL < lease.time_left();
        if is_due_later && !lease.set_checkpoint_planned(true) {
            let at = nanos(now.saturating_add(CHECKPOINT_INTERVAL));
            due.checkpoint.push(at, Arc::clone(lease));
        }
    }

    fn for_each(&self, mut visit: impl FnMut(&Arc<Lease>)) {
        for shard in &self.0.shards {
            shard.read().unwrap_or_else(PoisonError::into_inner).values().for_each(&mut visit);
        }
    }

    fn read_shard(&self, lease: LeaseId) -> RwLockReadGuard<'_, HashMap<LeaseId, Arc<Lease>>> {
        self.shard(lease).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_shard(&self, lease: LeaseId) -> RwLockWriteGuard<'_, HashMap<LeaseId, Arc<Lease>>> {
        self.shard(lease).write().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, lease: LeaseId) -> &RwLock<HashMap<LeaseId, Arc<Lease>>> {
        // Ids that the server chooses differ in their low bits.
        let low = lease.0.rem_euclid(i64::from(SHARDS));
        &self.0.shards[usize::try_from(low).expect("a remainder of 64 is small")]
    }

    #[cfg(test)]
    pub(super) fn scheduled(&self) -> usize {
        lock(&self.0.due).expiry.len()
    }
}
