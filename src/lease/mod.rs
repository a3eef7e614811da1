//! Leases: keys that go when their owner is silent for too long.
//!
//! Decides when a lease ends and which keys hang on it. Two halves share each lease:
//!
//! ```text
//!   committed entries --> LeaseTable (apply thread)      Lessor (any thread) <-- keep-alives, TTL
//!                           grant, revoke,   |                |   renew, time_to_live, leases
//!                           checkpoint       +--> Lease <-----+
//!                           attach, detach   |   keys | deadline (atomic)
//!                                            |                |
//!                              Table::Lease <+                +--> expired --> revoke proposals
//! ```
//!
//! Invariants
//! - L1 A lease that ended never comes back; a new one with its id is another entry.
//! - L2 An expired lease becomes live again only by a change of leadership, never by a renewal.
//! - L3 A key hangs on at most one lease, and that lease is live.
//! - L4 Which leases there are, and their keys, is replicated; deadlines are the leader's own. A
//!   deadline is never earlier than the TTL after the last grant or renewal that was answered.
//!
//! A renewal is one look-up and one compare-and-swap: no raft entry, no lock that another lease's
//! renewal would wait for.
//!
//! Deliberately absent: a rate limit on expiry (see `lessor`), and the clock, which comes in as a
//! parameter.

mod entry;
mod lessor;
mod metrics;
mod schedule;
mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use entry::{ExpiredLease, LeasedKey};
pub use lessor::{LeaseKeys, LeaseSettings, Lessor, Renewal, TimeToLive};
pub use metrics::register_metrics;
pub use table::{LeaseError, LeaseTable, Persist};

/// The longest TTL a client may ask for, in seconds (about 285 years).
pub const TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// How often the leader records the remaining time of a long lease.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(300);

/// The shortest TTL that is granted, in whole seconds: one and a half elections, so that a change
/// of leadership does not cost a lease.
///
/// Source: etcd `server/etcdserver/server.go`, `NewServer`.
#[must_use]
pub fn ttl_seconds_min(heartbeat: Duration, election_ticks: u32) -> i64 {
    let shortest = heartbeat.saturating_mul(election_ticks.saturating_mul(3) / 2);
    let up = u64::from(0 < shortest.subsec_nanos());
    i64::try_from(shortest.as_secs().saturating_add(up)).unwrap_or(TTL_SECONDS_MAX)
}
