//! What the disk costs, as etcd measures it.
//!
//! Decides which series exist: etcd's names and buckets, so that its dashboards and alerts apply.
//! Used by the other files of this folder, which measure.

use std::sync::LazyLock;

use super::environment::Sizes;
use crate::base::metrics::{Histogram, IntGauge, gauge, histogram};

pub(super) static DB_TOTAL_BYTES: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge(
        "etcd_mvcc_db_total_size_in_bytes",
        "Total size of the underlying database physically allocated in bytes.",
    )
});

pub(super) static DB_IN_USE_BYTES: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge(
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "Total size of the underlying database logically in use in bytes.",
    )
});

pub(super) static OPEN_READ_TRANSACTIONS: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge("etcd_mvcc_db_open_read_transactions", "The number of currently open read transactions")
});

pub(super) static COMMIT_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "etcd_disk_backend_commit_duration_seconds",
        "The latency distributions of commit called by backend.",
        0.001,
        14,
    )
});

pub(super) static WAL_FSYNC_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "etcd_disk_wal_fsync_duration_seconds",
        "The latency distributions of fsync called by WAL.",
        0.001,
        14,
    )
});

pub(super) static WAL_WRITE_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "etcd_disk_wal_write_duration_seconds",
        "The latency distributions of write called by WAL.",
        0.001,
        14,
    )
});

pub(super) static WAL_WRITE_BYTES: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge("etcd_disk_wal_write_bytes_total", "Total number of bytes written in WAL.")
});

/// Publishes the size of the database.
pub(super) fn set_sizes(sizes: Sizes) {
    DB_TOTAL_BYTES.set(i64::try_from(sizes.total).unwrap_or(i64::MAX));
    DB_IN_USE_BYTES.set(i64::try_from(sizes.in_use).unwrap_or(i64::MAX));
}

/// Makes every series of this folder exist.
pub fn register_metrics() {
    for gauge in [&DB_TOTAL_BYTES, &DB_IN_USE_BYTES, &OPEN_READ_TRANSACTIONS, &WAL_WRITE_BYTES] {
        LazyLock::force(gauge);
    }
    for histogram in [&COMMIT_SECONDS, &WAL_FSYNC_SECONDS, &WAL_WRITE_SECONDS] {
        LazyLock::force(histogram);
    }
}
