//! What the store counts, under etcd's names.
//!
//! Decides which series this module registers. Durations are observed by whoever runs the timed
//! work, because the store reads no clock; their histograms are public for that reason.

use std::sync::LazyLock;

use crate::base::metrics::{Histogram, IntCounter, IntGauge, counter, gauge, histogram};

pub(super) static RANGES: LazyLock<IntCounter> = LazyLock::new(|| {
    counter("etcd_mvcc_range_total", "Total number of ranges seen by this member.")
});
pub(super) static PUTS: LazyLock<IntCounter> =
    LazyLock::new(|| counter("etcd_mvcc_put_total", "Total number of puts seen by this member."));
pub(super) static DELETES: LazyLock<IntCounter> = LazyLock::new(|| {
    counter("etcd_mvcc_delete_total", "Total number of deletes seen by this member.")
});
pub(super) static TXNS: LazyLock<IntCounter> =
    LazyLock::new(|| counter("etcd_mvcc_txn_total", "Total number of txns seen by this member."));
pub(super) static KEYS: LazyLock<IntGauge> =
    LazyLock::new(|| gauge("etcd_debugging_mvcc_keys_total", "Total number of keys."));
pub(super) static PUT_BYTES: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge(
        "etcd_debugging_mvcc_total_put_size_in_bytes",
        "The total size of put kv pairs seen by this member.",
    )
});
pub(super) static REVISION: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge("etcd_debugging_mvcc_current_revision", "The current revision of store.")
});
pub(super) static COMPACT_REVISION: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge("etcd_debugging_mvcc_compact_revision", "The revision of the last compaction in store.")
});
pub(super) static COMPACTED_ROWS: LazyLock<IntCounter> = LazyLock::new(|| {
    counter("etcd_debugging_mvcc_db_compaction_keys_total", "Total number of db keys compacted.")
});

/// How long one step of a compaction held up the apply thread, in milliseconds.
pub static INDEX_COMPACTION_PAUSE_MILLISECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
        "Bucketed histogram of index compaction pause duration.",
        0.5,
        14,
    )
});
/// How long a hash of the whole backend took, in seconds.
pub static HASH_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "etcd_mvcc_hash_duration_seconds",
        "The latency distribution of storage hash operation.",
        0.01,
        15,
    )
});
/// How long a hash of the key space at a revision took, in seconds.
pub static HASH_REV_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "etcd_mvcc_hash_rev_duration_seconds",
        "The latency distribution of storage hash by revision operation.",
        0.01,
        15,
    )
});

/// Makes every series of this module exist.
pub fn register_metrics() {
    let counters = [&RANGES, &PUTS, &DELETES, &TXNS, &COMPACTED_ROWS];
    counters.into_iter().for_each(|counter| {
        LazyLock::force(counter);
    });
    [&KEYS, &PUT_BYTES, &REVISION, &COMPACT_REVISION].into_iter().for_each(|gauge| {
        LazyLock::force(gauge);
    });
    let histograms = [&INDEX_COMPACTION_PAUSE_MILLISECONDS, &HASH_SECONDS, &HASH_REV_SECONDS];
    histograms.into_iter().for_each(|histogram| {
        LazyLock::force(histogram);
    });
}
