//! Announces the space quota.
//!
//! Decides the words and the metric; what the quota allows is decided in `state::gate`, with what a
//! request costs and `Backend::sizes().total`, which is what etcd calls the size of the database.
//! Called once by `boot`.
//!
//! Source: etcd `server/storage/quota.go`.

use super::metrics;

/// The quota while the flag is 0, in bytes.
pub const QUOTA_BYTES_DEFAULT: i64 = 2 << 30;
/// Above this etcd warns of slow recoveries, in bytes.
pub const QUOTA_BYTES_ADVISED_MAX: i64 = 8 << 30;

/// Logs and publishes what `--quota-backend-bytes` comes to: 0 is the default, below 0 is none.
pub fn announce(flag_bytes: i64) {
    let bytes = if flag_bytes == 0 { QUOTA_BYTES_DEFAULT } else { flag_bytes };
    metrics::QUOTA_BYTES.set(bytes);
    let Ok(limit) = u64::try_from(bytes) else {
        tracing::info!(
            "quota-name" = "v3-applier",
            "quota-size-bytes" = bytes,
            "disabled backend quota"
        );
        return;
    };
    let size = metrics::human_bytes(limit);
    if flag_bytes == 0 {
        tracing::info!(
            "quota-name" = "v3-applier",
            "quota-size-bytes" = bytes,
            "quota-size" = size,
            "enabled backend quota with default value"
        );
        return;
    }
    if QUOTA_BYTES_ADVISED_MAX < bytes {
        tracing::warn!(
            "quota-name" = "v3-applier",
            "quota-size-bytes" = bytes,
            "quota-size" = size,
            "quota-maximum-size-bytes" = QUOTA_BYTES_ADVISED_MAX,
            "quota-maximum-size" = "8.6 GB",
            "quota exceeds the maximum value"
        );
    }
    tracing::info!(
        "quota-name" = "v3-applier",
        "quota-size-bytes" = bytes,
        "quota-size" = size,
        "enabled backend quota"
    );
}
