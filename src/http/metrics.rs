//! `/metrics`: every series of the process as Prometheus text.
//!
//! Decides the format (text, version 0.0.4) and adds what only the process knows: descriptors,
//! versions, and the series that etcd has for historical reasons (`historical`).
//!
//! Source: etcd `server/etcdserver/api/etcdhttp/metrics.go`, `server/etcdserver/metrics.go`.

use std::{
    fs,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{HeaderValue, Response, StatusCode};
use prometheus::TextEncoder;

use super::{body::Body, content, error, health, historical};
use crate::{
    api::ETCD_VERSION,
    base::metrics::{IntGauge, gauge, gauges},
    model::MemberId,
};

static DESCRIPTORS_USED: LazyLock<IntGauge> =
    LazyLock::new(|| gauge("os_fd_used", "The number of used file descriptors."));

static DESCRIPTORS_MAX: LazyLock<IntGauge> =
    LazyLock::new(|| gauge("os_fd_limit", "The file descriptor limit."));

/// Scrapes that were answered.
static SCRAPES: AtomicU64 = AtomicU64::new(0);

/// Makes every series of this folder exist from the start.
pub fn register_metrics(member: MemberId) {
    health::register_metrics();
    let constants = [
        (
            "etcd_server_version",
            "Which version is running. 1 for 'server_version' label with current version.",
            "server_version",
            ETCD_VERSION.to_owned(),
        ),
        (
            "etcd_server_go_version",
            "Which Go version server is running with. 1 for 'server_go_version' label with \
             current version.",
            "server_go_version",
            historical::GO_VERSION.to_owned(),
        ),
        (
            "etcd_server_id",
            "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
            "server_id",
            member.to_string(),
        ),
    ];
    for (name, help, label, value) in constants {
        gauges(name, help, &[label]).with_label_values(&[value.as_str()]).set(1);
    }
    refresh_descriptors();
}

/// How many descriptors the process may have.
pub(super) fn descriptors_max() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn refresh_descriptors() {
    let used = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    DESCRIPTORS_USED.set(i64::try_from(used).unwrap_or(i64::MAX));
    DESCRIPTORS_MAX.set(i64::try_from(descriptors_max()).unwrap_or(i64::MAX));
}

pub(super) fn serve() -> Response<Body> {
    refresh_descriptors();
    let mut text = String::new();
    let families = prometheus::gather();
    if let Err(reason) = TextEncoder::new().encode_utf8(&families, &mut text) {
        return error(StatusCode::INTERNAL_SERVER_ERROR, &reason.to_string());
    }
    let known = families.iter().map(prometheus::proto::MetricFamily::name).collect();
    historical::append(SCRAPES.fetch_add(1, Ordering::Relaxed), &known, &mut text);
    let kind = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
    content(HeaderValue::from_static(kind), text)
}
