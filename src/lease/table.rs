//! The replicated part of leases: which there are, and which keys hang on them.
//!
//! Decides what granting, revoking and checkpointing do, and mirrors it into the table `lease`.
//! Owned by `state::Machine` on the apply thread; the same committed entries give the same table on
//! every member. Which key hangs on which lease is not stored: it stands in the key's newest row.
//!
//! Invariants
//! - L3 A key hangs on at most one lease, and that lease is live.
//! - L4 Nothing here depends on the clock but the deadlines that the lessor keeps.
//!
//! Source: etcd `server/lease/lessor.go` and `server/storage/schema/lease.go`.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use prost::{DecodeError, Message};
use proto::leasepb;

use super::{LeaseSettings, LeasedKey, Lessor, TTL_SECONDS_MAX, entry::Lease, metrics};
use crate::{
    model::{LeaseId, Rejection},
    storage::{Table, TableWrite},
};

/// No lease.
const NONE: LeaseId = LeaseId(0);

/// The leases and their keys.
#[derive(Debug)]
pub struct LeaseTable {
    lessor: Lessor,
    leases: HashMap<LeasedKey, LeaseId>,
}

/// A stored lease that cannot be read. The data directory is damaged.
#[derive(Debug)]
pub struct LeaseError {
    key: Bytes,
    source: DecodeError,
}

impl fmt::Display for LeaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the stored lease {:?} is unreadable", self.key)
    }
}

impl std::error::Error for LeaseError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl LeaseTable {
    /// A table without leases.
    #[must_use]
    pub fn new(settings: LeaseSettings) -> Self {
        Self { lessor: Lessor::new(settings), leases: HashMap::new() }
    }

    /// A table without leases for those who have `lessor` already; its leases end.
    #[must_use]
    pub fn with_lessor(lessor: &Lessor) -> Self {
        lessor.end_all();
        Self { lessor: lessor.clone(), leases: HashMap::new() }
    }

    /// The lessor of these leases, for the threads that serve.
    #[must_use]
    pub const fn lessor(&self) -> &Lessor {
        &self.lessor
    }

    /// Takes in one stored lease, without its keys.
    ///
    /// # Errors
    /// - [`LeaseError`] if it is unreadable.
    pub fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), LeaseError> {
        let unreadable = |source| LeaseError { key: Bytes::copy_from_slice(key), source };
        let stored = leasepb::Lease::decode(value).map_err(unreadable)?;
        let ttl_seconds = stored.ttl.max(self.lessor.settings().ttl_seconds_min);
        let lease = Lease::new(LeaseId(stored.id), ttl_seconds, stored.remaining_ttl);
        if !self.lessor.contains(lease.id) {
            self.lessor.add(&Arc::new(lease), Duration::ZERO);
        }
        Ok(())
    }

    /// Whether the lease is live.
    #[must_use]
    pub fn contains(&self, lease: LeaseId) -> bool {
        self.lessor.contains(lease)
    }

    /// Creates a lease and returns the TTL it was given, in seconds: at least the minimum.
    ///
    /// # Errors
    /// - [`Rejection::LeaseNotFound`] for the id 0, which means none.
    /// - [`Rejection::TtlTooLarge`] above [`TTL_SECONDS_MAX`].
    /// - [`Rejection::LeaseExists`] if the lease is live.
    pub fn grant(
        &mut self,
        lease: LeaseId,
        ttl_seconds: i64,
        now: Duration,
        writes: &mut Vec<TableWrite>,
    ) -> Result<i64, Rejection> {
        if lease == NONE {
            return Err(Rejection::LeaseNotFound { lease });
        }
        if TTL_SECONDS_MAX < ttl_seconds {
            return Err(Rejection::TtlTooLarge { ttl_seconds });
        }
        if self.contains(lease) {
            return Err(Rejection::LeaseExists { lease });
        }
        let ttl_seconds = ttl_seconds.max(self.lessor.settings().ttl_seconds_min);
        let granted = Arc::new(Lease::new(lease, ttl_seconds, 0));
        self.lessor.add(&granted, now);
        writes.push(stored(&granted));
        metrics::count_granted(ttl_seconds);
        Ok(ttl_seconds)
    }

    /// Ends a lease and returns the keys that hung on it, in ascending order, for the caller to
    /// delete at once.
    ///
    /// # Errors
    /// - [`Rejection::LeaseNotFound`] if there is no such lease.
    pub fn revoke(
        &mut self,
        lease: LeaseId,
        writes: &mut Vec<TableWrite>,
    ) -> Result<BTreeSet<LeasedKey>, Rejection> {
        let ended = self.lessor.remove(lease).ok_or(Rejection::LeaseNotFound { lease })?;
        let keys = ended.end();
        for key in &keys {
            let attached = self.leases.remove(key);
            assert!(attached == Some(lease), "{key:?} hung on {attached:?}, not on {lease}");
        }
        writes.push(TableWrite { table: Table::Lease, key: stored_key(lease), value: None });
        metrics::count_revoked();
        Ok(keys)
    }

    /// Records the time that a lease had left; 0 stands for its full time. An unknown lease is
    /// passed over, as it may have been revoked meanwhile.
    pub fn checkpoint(
        &mut self,
        lease: LeaseId,
        remaining_seconds: i64,
        now: Duration,
        persist: Persist,
        writes: &mut Vec<TableWrite>,
    ) {
        let Some(found) = self.lessor.find(lease) else { return };
        found.set_remaining_seconds(remaining_seconds);
        if persist == Persist::Yes || self.lessor.settings().checkpoints_persist {
            writes.push(stored(&found));
        }
        self.lessor.schedule_checkpoint(&found, now);
    }

    /// Hangs `key` on `lease`, or on none, and off whichever it hung on before.
    ///
    /// # Errors
    /// - [`Rejection::LeaseNotFound`] if there is no such lease; nothing has changed then.
    pub fn attach(&mut self, key: &[u8], lease: LeaseId) -> Result<(), Rejection> {
        if self.lease_of(key) == lease {
            return Ok(());
        }
        if lease == NONE {
            self.detach(key);
            return Ok(());
        }
        let found = self.lessor.find(lease).ok_or(Rejection::LeaseNotFound { lease })?;
        self.detach(key);
        // A copy: the key may be a slice of a large request.
        let key = LeasedKey::from(key);
        self.leases.insert(Arc::clone(&key), lease);
        found.attach(key);
        Ok(())
    }

    /// Takes a deleted key off its lease.
    pub fn detach(&mut self, key: &[u8]) {
        if self.leases.is_empty() {
            return;
        }
        if let Some(lease) = self.leases.remove(key)
            && let Some(found) = self.lessor.find(lease)
        {
            found.detach(key);
        }
    }

    /// The lease that `key` hangs on; 0 if none.
    #[must_use]
    pub fn lease_of(&self, key: &[u8]) -> LeaseId {
        if self.leases.is_empty() { NONE } else { self.leases.get(key).copied().unwrap_or(NONE) }
    }
}

/// Whether a checkpoint is stored. In clusters below 3.6 it is only kept in memory, as older members
/// could not read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persist {
    /// Store it.
    Yes,
    /// Keep it in memory.
    No,
}

fn stored_key(lease: LeaseId) -> Bytes {
    Bytes::copy_from_slice(&lease.0.to_be_bytes())
}

fn stored(lease: &Lease) -> TableWrite {
    let value = leasepb::Lease {
        id: lease.id.0,
        ttl: lease.ttl_seconds,
        remaining_ttl: lease.remaining_seconds(),
    };
    let value = Some(Bytes::from(value.encode_to_vec()));
    TableWrite { table: Table::Lease, key: stored_key(lease.id), value }
}
