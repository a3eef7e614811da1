//! What is measured between members.
//!
//! Decides nothing; names, labels and buckets are etcd's.
//!
//! Source: etcd `server/etcdserver/api/rafthttp/metrics.go`, `server/etcdserver/api/snap/metrics.go`.

use std::{net::SocketAddr, sync::LazyLock};

use crate::{
    base::metrics::{
        Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, counters,
        gauges, histogram, histograms,
    },
    model::MemberId,
};

static ACTIVE_PEERS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    gauges(
        "etcd_network_active_peers",
        "The current number of active peer connections.",
        &["Local", "Remote"],
    )
});
static DISCONNECTED_PEERS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "etcd_network_disconnected_peers_total",
        "The total number of disconnected peers.",
        &["Local", "Remote"],
    )
});
static SENT_BYTES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "etcd_network_peer_sent_bytes_total",
        "The total number of bytes sent to peers.",
        &["To"],
    )
});
static RECEIVED_BYTES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "etcd_network_peer_received_bytes_total",
        "The total number of bytes received from peers.",
        &["From"],
    )
});
static SENT_FAILURES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "etcd_network_peer_sent_failures_total",
        "The total number of send failures from peers.",
        &["To"],
    )
});
static RECEIVED_FAILURES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "etcd_network_peer_received_failures_total",
        "The total number of receive failures from peers.",
        &["From"],
    )
});
pub(super) static SNAPSHOT_SEND: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "etcd_network_snapshot_send_success",
        "Total number of successful snapshot sends",
        &["To"],
    )
});
pub(super) static SNAPSHOT_SEND_INFLIGHTS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    gauges(
        "etcd_network_snapshot_send_inflights_total",
        "Total number of inflight snapshot sends",
        &["To"],
    )
});
pub(super) static SNAPSHOT_SEND_FAILURES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "etcd_network_snapshot_send_failures",
        "Total number of snapshot send failures",
        &["To"],
    )
});
pub(super) static SNAPSHOT_SEND_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    histograms(
        "etcd_network_snapshot_send_total_duration_seconds",
        "Total latency distributions of v3 snapshot sends",
        0.1,
        10,
        &["To"],
    )
});
pub(super) static SNAPSHOT_RECEIVE: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "etcd_network_snapshot_receive_success",
        "Total number of successful snapshot receives",
        &["From"],
    )
});
pub(super) static SNAPSHOT_RECEIVE_INFLIGHTS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    gauges(
        "etcd_network_snapshot_receive_inflights_total",
        "Total number of inflight snapshot receives",
        &["From"],
    )
});
pub(super) static SNAPSHOT_RECEIVE_FAILURES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counters(
        "etcd_network_snapshot_receive_failures",
        "Total number of snapshot receive failures",
        &["From"],
    )
});
pub(super) static SNAPSHOT_RECEIVE_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    histograms(
        "etcd_network_snapshot_receive_total_duration_seconds",
        "Total latency distributions of v3 snapshot receives",
        0.1,
        10,
        &["From"],
    )
});
static ROUND_TRIP_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    histograms(
        "etcd_network_peer_round_trip_time_seconds",
        "Round-Trip-Time histogram between peers",
        0.0001,
        16,
        &["To"],
    )
});
pub(super) static SNAP_DB_FSYNC_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "etcd_snap_db_fsync_duration_seconds",
        "The latency distributions of fsyncing .snap.db file",
        0.001,
        14,
    )
});

pub(super) static SNAP_DB_SAVE_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "etcd_snap_db_save_total_duration_seconds",
        "The total latency distributions of v3 snapshot save",
        0.1,
        10,
    )
});

/// Makes every family known. A series appears with its first peer.
pub fn register_metrics() {
    for counters in [
        &DISCONNECTED_PEERS,
        &SENT_BYTES,
        &RECEIVED_BYTES,
        &SENT_FAILURES,
        &RECEIVED_FAILURES,
        &SNAPSHOT_SEND,
        &SNAPSHOT_SEND_FAILURES,
        &SNAPSHOT_RECEIVE,
        &SNAPSHOT_RECEIVE_FAILURES,
    ] {
        LazyLock::force(counters);
    }
    for gauges in [&ACTIVE_PEERS, &SNAPSHOT_SEND_INFLIGHTS, &SNAPSHOT_RECEIVE_INFLIGHTS] {
        LazyLock::force(gauges);
    }
    for histograms in [&SNAPSHOT_SEND_SECONDS, &SNAPSHOT_RECEIVE_SECONDS, &ROUND_TRIP_SECONDS] {
        LazyLock::force(histograms);
    }
    for histogram in [&SNAP_DB_FSYNC_SECONDS, &SNAP_DB_SAVE_SECONDS] {
        LazyLock::force(histogram);
    }
}

pub(super) fn active_peers(local: MemberId, remote: MemberId) -> IntGauge {
    ACTIVE_PEERS.with_label_values(&[local.to_string(), remote.to_string()])
}

pub(super) fn disconnected_peers(local: MemberId, remote: MemberId) -> IntCounter {
    DISCONNECTED_PEERS.with_label_values(&[local.to_string(), remote.to_string()])
}

pub(super) fn sent_bytes(to: MemberId) -> IntCounter {
    SENT_BYTES.with_label_values(&[to.to_string()])
}

pub(super) fn received_bytes(from: MemberId) -> IntCounter {
    RECEIVED_BYTES.with_label_values(&[from.to_string()])
}

pub(super) fn sent_failures(to: MemberId) -> IntCounter {
    SENT_FAILURES.with_label_values(&[to.to_string()])
}

pub(super) fn round_trip_seconds(to: MemberId) -> Histogram {
    ROUND_TRIP_SECONDS.with_label_values(&[to.to_string()])
}

/// Of a sender that is known by its address only.
pub(super) fn received_failures_at(from: SocketAddr) -> IntCounter {
    RECEIVED_FAILURES.with_label_values(&[from.ip().to_string()])
}
