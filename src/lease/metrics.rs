//! Counters of leases.
//!
//! Decides their names, which dashboards know. Counted where it happens: grants and revocations on
//! the apply thread, renewals on the threads that serve. Expirations are the replica's to count, as
//! it proposes them.
//!
//! Source: etcd `server/lease/metrics.go`.

use std::sync::LazyLock;

use crate::base::metrics::{self, Histogram, IntCounter};

static GRANTED: LazyLock<IntCounter> = LazyLock::new(|| {
    metrics::counter("etcd_debugging_lease_granted_total", "The total number of granted leases.")
});

static REVOKED: LazyLock<IntCounter> = LazyLock::new(|| {
    metrics::counter("etcd_debugging_lease_revoked_total", "The total number of revoked leases.")
});

static RENEWED: LazyLock<IntCounter> = LazyLock::new(|| {
    metrics::counter(
        "etcd_debugging_lease_renewed_total",
        "The number of renewed leases seen by the leader.",
    )
});

static TTL_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    metrics::histogram(
        "etcd_debugging_lease_ttl_total",
        "Bucketed histogram of lease TTLs.",
        1.0,
        24,
    )
});

/// Makes every series exist from the start.
pub fn register_metrics() {
    for counter in [&GRANTED, &REVOKED, &RENEWED] {
        LazyLock::force(counter);
    }
    LazyLock::force(&TTL_SECONDS);
}

pub(super) fn count_renewed() {
    RENEWED.inc();
}

pub(super) fn count_revoked() {
    REVOKED.inc();
}

pub(super) fn count_granted(ttl_seconds: i64) {
    GRANTED.inc();
    let whole = u32::try_from(ttl_seconds).unwrap_or(u32::MAX);
    TTL_SECONDS.observe(f64::from(whole));
}
