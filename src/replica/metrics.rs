//! What a replica measures: leadership, proposals and applies.
//!
//! Decides nothing; names, labels and buckets are etcd's.

use std::{sync::LazyLock, time::Duration};

use crate::base::metrics::{
    HistogramVec, IntCounter, IntCounterVec, IntGauge, counter, counters, gauge, histograms,
};

pub(super) static HAS_LEADER: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge("etcd_server_has_leader", "Whether or not a leader exists. 1 is existence, 0 is not.")
});
pub(super) static IS_LEADER: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge("etcd_server_is_leader", "Whether or not this member is a leader. 1 if is, 0 otherwise.")
});
pub(super) static LEADER_CHANGES: LazyLock<IntCounter> = LazyLock::new(|| {
    counter("etcd_server_leader_changes_seen_total", "The number of leader changes seen.")
});
pub(super) static PROPOSALS_PENDING: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge("etcd_server_proposals_pending", "The current number of pending proposals to commit.")
});
pub(super) static PROPOSALS_FAILED: LazyLock<IntCounter> = LazyLock::new(|| {
    counter("etcd_server_proposals_failed_total", "The total number of failed proposals seen.")
});
pub(super) static PROPOSALS_COMMITTED: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge(
        "etcd_server_proposals_committed_total",
        "The total number of consensus proposals committed.",
    )
});
pub(super) static PROPOSALS_APPLIED: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge("etcd_server_proposals_applied_total", "The total number of consensus proposals applied.")
});
pub(super) static SLOW_APPLIES: LazyLock<IntCounter> = LazyLock::new(|| {
    counter("etcd_server_slow_apply_total", "The total number of slow apply requests.")
});
pub(super) static SLOW_READS: LazyLock<IntCounter> = LazyLock::new(|| {
    counter(
        "etcd_server_slow_read_indexes_total",
        "The total number of pending read indexes not in sync with leader's or timed out.",
    )
});
pub(super) static FAILED_READS: LazyLock<IntCounter> = LazyLock::new(|| {
    counter("etcd_server_read_indexes_failed_total", "The total number of failed read indexes.")
});
pub(super) static LEASES_EXPIRED: LazyLock<IntCounter> = LazyLock::new(|| {
    counter("etcd_debugging_server_lease_expired_total", "The total number of expired leases.")
});
pub(super) static LEARNER_PROMOTE_SUCCESSES: LazyLock<IntCounter> = LazyLock::new(|| {
    counter(
        "etcd_server_learner_promote_successes",
        "The total number of successful learner promotions while this member is leader.",
    )
});
pub(super) static LEARNER_PROMOTE_FAILURES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "etcd_server_learner_promote_failures",
        "The total number of failed learner promotions (likely learner not ready) while this \
         member is leader.",
        &["Reason"],
    )
});
static APPLY_DURATION: LazyLock<HistogramVec> = LazyLock::new(|| {
    histograms(
        "etcd_server_apply_duration_seconds",
        "The latency distributions of v2 apply called by backend.",
        0.0001,
        20,
        &["version", "op", "success"],
    )
});

/// Makes every series exist.
pub fn register_metrics() {
    for gauge in
        [&HAS_LEADER, &IS_LEADER, &PROPOSALS_PENDING, &PROPOSALS_COMMITTED, &PROPOSALS_APPLIED]
    {
        LazyLock::force(gauge);
    }
    for counter in [
        &LEADER_CHANGES,
        &PROPOSALS_FAILED,
        &SLOW_APPLIES,
        &SLOW_READS,
        &FAILED_READS,
        &LEASES_EXPIRED,
        &LEARNER_PROMOTE_SUCCESSES,
    ] {
        LazyLock::force(counter);
    }
    LazyLock::force(&LEARNER_PROMOTE_FAILURES);
    LazyLock::force(&APPLY_DURATION);
}

/// Notes how long one request took to apply.
pub(super) fn apply_duration(operation: &str, success: bool, took: Duration) {
    let success = if success { "true" } else { "false" };
    APPLY_DURATION.with_label_values(&["v3", operation, success]).observe(took.as_secs_f64());
}
