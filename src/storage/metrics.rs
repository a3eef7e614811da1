//! What the disk costs, as etcd measures it.
//!
//! Decides which series exist: etcd's names and buckets, so that its dashboards and alerts apply.
//! Used by the other files of this folder, which measure.

use std::{sync::LazyLock, time::Duration};

use super::environment::Sizes;
use crate::base::metrics::{Histogram, IntCounter, IntGauge, counter, gauge, histogram};

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

/// Not one of etcd's: it has no checksums to compare with.
pub(super) static DAMAGED: LazyLock<IntCounter> = LazyLock::new(|| {
    counter(
        "oxetcd_storage_damaged_total",
        "The total number of damaged rows and records that the scrub has met.",
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

/// The whole of a commit: LMDB has no rebalancing or spilling apart from it, whose series exist
/// for the sake of dashboards.
pub(super) static COMMIT_WRITE_SECONDS: LazyLock<Histogram> =
    LazyLock::new(|| commit_part("write"));
static COMMIT_REBALANCE_SECONDS: LazyLock<Histogram> = LazyLock::new(|| commit_part("rebalance"));
static COMMIT_SPILL_SECONDS: LazyLock<Histogram> = LazyLock::new(|| commit_part("spill"));

fn commit_part(part: &str) -> Histogram {
    histogram(
        &format!("etcd_debugging_disk_backend_commit_{part}_duration_seconds"),
        &format!("The latency distributions of commit.{part} called by bboltdb backend."),
        0.001,
        14,
    )
}

static BACKUP_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "etcd_disk_backend_snapshot_duration_seconds",
        "The latency distribution of backend snapshots.",
        0.01,
        17,
    )
});

/// Notes how long the sending of a backup took.
pub fn backup_took(took: Duration) {
    BACKUP_SECONDS.observe(took.as_secs_f64());
}

pub(super) static DEFRAGMENTING: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge(
        "etcd_disk_defrag_inflight",
        "Whether or not defrag is active on the member. 1 means active, 0 means not.",
    )
});

pub(super) static DEFRAGMENT_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "etcd_disk_backend_defrag_duration_seconds",
        "The latency distribution of backend defragmentation.",
        0.1,
        13,
    )
});

pub(super) static COMPACTION_PAUSE_MILLIS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
        "Bucketed histogram of db compaction pause duration.",
        1.0,
        13,
    )
});

pub(super) static COMPACTION_TOTAL_MILLIS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
        "Bucketed histogram of db compaction total duration.",
        100.0,
        14,
    )
});

pub(super) static COMPACTION_LAST: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge(
        "etcd_debugging_mvcc_db_compaction_last",
        "The unix time of the last db compaction. Resets to 0 on start.",
    )
});

pub(super) static SNAP_MARSHAL_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "etcd_debugging_snap_save_marshalling_duration_seconds",
        "The marshalling cost distributions of save called by snapshot.",
        0.001,
        14,
    )
});

pub(super) static SNAP_SAVE_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "etcd_debugging_snap_save_total_duration_seconds",
        "The total latency distributions of save called by snapshot.",
        0.001,
        14,
    )
});

pub(super) static SNAP_FSYNC_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "etcd_snap_fsync_duration_seconds",
        "The latency distributions of fsync called by snap.",
        0.001,
        14,
    )
});

pub(super) static QUOTA_BYTES: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge("etcd_server_quota_backend_bytes", "Current backend storage quota size in bytes.")
});

/// `bytes` as etcd's log lines have it: decimal units, one digit below ten.
pub(super) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut scale = 1;
    while 1000 <= bytes / scale {
        scale *= 1000;
        unit += 1;
    }
    let tenths = (u128::from(bytes) * 10 + u128::from(scale) / 2) / u128::from(scale);
    let name = UNITS[unit];
    if tenths < 100 {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    } else {
        // To the nearest; a half goes to the even neighbour, as in Go's `%.0f`.
        let (whole, rest) = (tenths / 10, tenths % 10);
        let up = 5 < rest || (rest == 5 && whole % 2 == 1);
        format!("{} {name}", whole + u128::from(up))
    }
}

/// Publishes the size of the database.
pub(super) fn set_sizes(sizes: Sizes) {
    DB_TOTAL_BYTES.set(i64::try_from(sizes.total).unwrap_or(i64::MAX));
    DB_IN_USE_BYTES.set(i64::try_from(sizes.in_use).unwrap_or(i64::MAX));
}

/// Makes every series of this folder exist.
pub fn register_metrics() {
    LazyLock::force(&DAMAGED);
    let gauges = [
        &DB_TOTAL_BYTES,
        &DB_IN_USE_BYTES,
        &OPEN_READ_TRANSACTIONS,
        &WAL_WRITE_BYTES,
        &DEFRAGMENTING,
        &COMPACTION_LAST,
        &QUOTA_BYTES,
    ];
    for gauge in gauges {
        LazyLock::force(gauge);
    }
    let histograms = [
        &COMMIT_SECONDS,
        &WAL_FSYNC_SECONDS,
        &WAL_WRITE_SECONDS,
        &DEFRAGMENT_SECONDS,
        &COMPACTION_PAUSE_MILLIS,
        &COMPACTION_TOTAL_MILLIS,
        &COMMIT_WRITE_SECONDS,
        &COMMIT_REBALANCE_SECONDS,
        &COMMIT_SPILL_SECONDS,
        &BACKUP_SECONDS,
        &SNAP_MARSHAL_SECONDS,
        &SNAP_SAVE_SECONDS,
        &SNAP_FSYNC_SECONDS,
    ];
    for histogram in histograms {
        LazyLock::force(histogram);
    }
}

#[cfg(test)]
mod tests {
    use super::human_bytes;

    #[test]
    fn sizes_read_as_in_the_log_of_etcd() {
        // As github.com/dustin/go-humanize writes them.
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (20_480, "20 kB"),
            (16_805_888, "17 MB"),
            (8_589_934_592, "8.6 GB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
