//! One lease, shared by the thread that applies and the threads that serve.
//!
//! Decides who may change which part. The apply thread alone changes the keys and the checkpointed
//! time, and ends the lease. The deadline is one atomic number: renewals move it on, expiry sets it
//! to [`EXPIRED`]; whichever comes first wins, so no lease is both renewed and expired.
//!
//! Invariants
//! - L1 A lease that ended never comes back; a new one with its id is another entry.
//! - L2 From [`EXPIRED`] only a change of leadership leads back.

use std::{
    collections::BTreeSet,
    fmt, mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use crate::model::LeaseId;

/// A key that is attached to a lease, shared by the lease and the map from keys to leases.
pub type LeasedKey = Arc<[u8]>;

/// The deadline of every lease while this member does not lead.
pub(super) const FOREVER: u64 = u64::MAX;
/// The deadline of a lease that has been handed out for revoking.
pub(super) const EXPIRED: u64 = 0;

/// A live lease.
pub(super) struct Lease {
    pub(super) id: LeaseId,
    pub(super) ttl_seconds: i64,
    /// What a checkpoint said is left; 0 if none did.
    remaining_seconds: AtomicI64,
    /// Nanoseconds on the member's clock.
    deadline: AtomicU64,
    keys: Mutex<BTreeSet<LeasedKey>>,
    has_ended: AtomicBool,
    /// Whether it stands in the queue of checkpoints.
    checkpoint_planned: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("id", &self.id)
            .field("ttl_seconds", &self.ttl_seconds)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// A lock whose holder never panics half way: nothing behind it can be in between two states.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A point in time as a deadline: below [`FOREVER`], above [`EXPIRED`].
pub(super) fn nanos(time: Duration) -> u64 {
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(FOREVER);
    nanos.saturating_add(EXPIRED + 1).min(FOREVER - 1)
}

/// The point in time that a deadline stands for.
pub(super) fn time_of(deadline: u64) -> Duration {
    Duration::from_nanos(deadline.saturating_sub(EXPIRED + 1))
}

impl Lease {
    pub(super) fn new(id: LeaseId, ttl_seconds: i64, remaining_seconds: i64) -> Self {
        Self {
            id,
            ttl_seconds,
            remaining_seconds: AtomicI64::new(remaining_seconds),
            deadline: AtomicU64::new(FOREVER),
            keys: Mutex::default(),
            has_ended: AtomicBool::new(false),
            checkpoint_planned: AtomicBool::new(false),
            waiting: Mutex::default(),
        }
    }

    pub(super) fn remaining_seconds(&self) -> i64 {
        self.remaining_seconds.load(Ordering::Acquire)
    }

    pub(super) fn set_remaining_seconds(&self, seconds: i64) {
        self.remaining_seconds.store(seconds, Ordering::Release);
    }

    /// The time that a new leader gives it.
    pub(super) fn time_left(&self) -> Duration {
        let remaining = self.remaining_seconds();
        seconds(if 0 < remaining { remaining } else { self.ttl_seconds })
    }

    pub(super) fn ttl(&self) -> Duration {
        seconds(self.ttl_seconds)
    }

    pub(super) fn deadline(&self) -> u64 {
        self.deadline.load(Ordering::Acquire)
    }

    pub(super) fn set_deadline(&self, deadline: u64) {
        self.deadline.store(deadline, Ordering::Release);
    }

    /// Moves the deadline unless somebody else did since it was read as `seen`.
    pub(super) fn move_deadline(&self, seen: u64, to: u64) -> bool {
        self.deadline.compare_exchange(seen, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Returns what it was before.
    pub(super) fn set_checkpoint_planned(&self, planned: bool) -> bool {
        self.checkpoint_planned.swap(planned, Ordering::AcqRel)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Ends the lease and returns its keys in ascending order.
    pub(super) fn end(&self) -> BTreeSet<LeasedKey> {
        assert!(!self.has_ended(), "lease {} ended twice", self.id);
        self.has_ended.store(true, Ordering::Release);
        self.wake();
        mem::take(&mut lock(&self.keys))
    }

    /// Lets those who wait look again.
    pub(super) fn wake(&self) {
        for waker in mem::take(&mut *lock(&self.waiting)) {
            waker.wake();
        }
    }

    pub(super) fn keys(&self) -> Vec<LeasedKey> {
        lock(&self.keys).iter().cloned().collect()
    }

    pub(super) fn attach(&self, key: LeasedKey) {
        lock(&self.keys).insert(key);
    }

    pub(super) fn detach(&self, key: &[u8]) {
        lock(&self.keys).remove(key);
    }
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Resolves when an expired lease has been revoked, or this member has lost or won leadership since;
/// then it is time to renew again and learn which.
#[derive(Debug)]
pub struct ExpiredLease {
    pub(super) lease: Arc<Lease>,
    /// Counts changes of leadership.
    pub(super) role_changes: Arc<AtomicU64>,
    pub(super) role_changes_seen: u64,
}

impl ExpiredLease {
    fn is_settled(&self) -> bool {
        let changes = self.role_changes.load(Ordering::Acquire);
        self.lease.has_ended() || changes != self.role_changes_seen
    }
}

impl Future for ExpiredLease {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // Whoever settles it does so first and takes this lock afterwards, so that no waker can be
        // left behind.
        let mut waiting = lock(&self.lease.waiting);
        if self.is_settled() {
            return Poll::Ready(());
        }
        if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.push(context.waker().clone());
        }
        Poll::Pending
    }
}
