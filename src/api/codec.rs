//! The bytes of gRPC messages, as etcd's codec counts them.
//!
//! Decides what counts: the messages themselves, without gRPC's prefix and HTTP/2's framing.
//! Called wherever a message is taken apart or put together: `wire`, `body`, `dispatch`, `watch`.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/codec.go`.

use std::sync::LazyLock;

use crate::base::metrics::{IntCounter, counter};

static SENT_BYTES: LazyLock<IntCounter> = LazyLock::new(|| {
    counter(
        "etcd_network_client_grpc_sent_bytes_total",
        "The total number of bytes sent to grpc clients.",
    )
});

static RECEIVED_BYTES: LazyLock<IntCounter> = LazyLock::new(|| {
    counter(
        "etcd_network_client_grpc_received_bytes_total",
        "The total number of bytes received from grpc clients.",
    )
});

/// Makes the series of this file exist from the start.
pub fn register_metrics() {
    LazyLock::force(&SENT_BYTES);
    LazyLock::force(&RECEIVED_BYTES);
}

/// Counts `bytes` of messages that leave for a client.
pub fn count_sent(bytes: usize) {
    SENT_BYTES.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
}

/// Counts `bytes` of messages that came from a client.
pub fn count_received(bytes: usize) {
    RECEIVED_BYTES.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
}
