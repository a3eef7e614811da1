//! Series that etcd has for reasons that do not hold here, but which dashboards and etcd's own tests
//! look for by name.
//!
//! Decides what they show: what is closest to their meaning where there is something, else 0. Go's
//! runtime, the scrape handler, the old store and the proxy are such. Appended to every scrape.
//!
//! Source: etcd `tests/e2e/metrics_test.go` for the list.

use std::{collections::BTreeSet, fmt::Write, fs};

/// The Go version that etcd 3.7.1 is built with.
pub(super) const GO_VERSION: &str = "go1.26.8";

/// Gauges that stay 0.
const GAUGES: [&str; 28] = [
    "etcd_server_snapshot_apply_in_progress_total",
    "etcd_debugging_store_watchers",
    "etcd_grpc_proxy_cache_hits_total",
    "etcd_grpc_proxy_cache_keys_total",
    "etcd_grpc_proxy_cache_misses_total",
    "etcd_grpc_proxy_watchers_coalescing_total",
    "go_gc_gogc_percent",
    "go_gc_gomemlimit_bytes",
    "go_memstats_buck_hash_sys_bytes",
    "go_memstats_gc_sys_bytes",
    "go_memstats_heap_alloc_bytes",
    "go_memstats_heap_idle_bytes",
    "go_memstats_heap_inuse_bytes",
    "go_memstats_heap_objects",
    "go_memstats_heap_released_bytes",
    "go_memstats_heap_sys_bytes",
    "go_memstats_last_gc_time_seconds",
    "go_memstats_mcache_inuse_bytes",
    "go_memstats_mcache_sys_bytes",
    "go_memstats_mspan_inuse_bytes",
    "go_memstats_mspan_sys_bytes",
    "go_memstats_next_gc_bytes",
    "go_memstats_other_sys_bytes",
    "go_memstats_stack_inuse_bytes",
    "go_memstats_stack_sys_bytes",
    "go_memstats_sys_bytes",
    "go_memstats_alloc_bytes",
    "go_sched_gomaxprocs_threads",
];

/// Counters that stay 0.
const COUNTERS: [&str; 7] = [
    "etcd_server_heartbeat_send_failures_total",
    "etcd_debugging_store_expires_total",
    "etcd_debugging_store_watch_requests_total",
    "etcd_grpc_proxy_events_coalescing_total",
    "go_memstats_alloc_bytes_total",
    "go_memstats_frees_total",
    "go_memstats_mallocs_total",
];

/// Histograms that stay empty: phases of a bbolt commit, snapshots from peers, and a loop that is
/// not one here.
const HISTOGRAMS: [&str; 9] = [
    "etcd_debugging_disk_backend_commit_rebalance_duration_seconds",
    "etcd_debugging_disk_backend_commit_spill_duration_seconds",
    "etcd_debugging_disk_backend_commit_write_duration_seconds",
    "etcd_debugging_server_watch_send_loop_control_stream_duration_seconds",
    "etcd_debugging_server_watch_send_loop_progress_duration_seconds",
    "etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds",
    "etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds",
    "etcd_snap_db_fsync_duration_seconds",
    "etcd_snap_db_save_total_duration_seconds",
];

/// Appends those that are not in `known`, which are measured; `scrapes` were answered before this
/// one.
pub(super) fn append(scrapes: u64, known: &BTreeSet<&str>, out: &mut String) {
    let missing = |name: &&str| !known.contains(name);
    for name in GAUGES.into_iter().filter(missing) {
        series("gauge", name, 0, out);
    }
    for name in COUNTERS.into_iter().filter(missing) {
        series("counter", name, 0, out);
    }
    for name in HISTOGRAMS.into_iter().filter(missing) {
        push(
            out,
            format_args!(
                "# TYPE {name} histogram\n{name}_bucket{{le=\"+Inf\"}} 0\n{name}_sum 0\n\
                 {name}_count 0\n"
            ),
        );
    }
    // Of a permission table that was never changed.
    series("gauge", "etcd_debugging_auth_revision", 1, out);
    let threads = fs::read_dir("/proc/self/task").map_or(0, Iterator::count) as u64;
    series("gauge", "go_threads", threads, out);
    series("gauge", "go_goroutines", threads, out);
    push(out, format_args!("# TYPE go_info gauge\ngo_info{{version=\"{GO_VERSION}\"}} 1\n"));
    push(
        out,
        format_args!(
            "# TYPE go_gc_duration_seconds summary\n\
             go_gc_duration_seconds{{quantile=\"0.5\"}} 0\n\
             go_gc_duration_seconds_sum 0\ngo_gc_duration_seconds_count 0\n"
        ),
    );
    series("gauge", "promhttp_metric_handler_requests_in_flight", 1, out);
    let total = "promhttp_metric_handler_requests_total";
    push(out, format_args!("# TYPE {total} counter\n"));
    for (code, count) in [(200, scrapes), (500, 0), (503, 0)] {
        push(out, format_args!("{total}{{code=\"{code}\"}} {count}\n"));
    }
    let (received, sent) = network_bytes();
    series("counter", "process_network_receive_bytes_total", received, out);
    series("counter", "process_network_transmit_bytes_total", sent, out);
    series("gauge", "process_virtual_memory_max_bytes", u64::MAX, out);
}

fn series(kind: &str, name: &str, value: u64, out: &mut String) {
    push(out, format_args!("# TYPE {name} {kind}\n{name} {value}\n"));
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes everything");
}

/// Bytes received and sent by every interface of the process's network namespace.
fn network_bytes() -> (u64, u64) {
    let table = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let columns = table.lines().filter_map(|line| line.split_once(':')).map(|(_, columns)| columns);
    columns.fold((0, 0), |(received, sent), columns| {
        let number = |position| {
            let column: Option<&str> = columns.split_whitespace().nth(position);
            column.and_then(|column| column.parse::<u64>().ok()).unwrap_or(0)
        };
        (received + number(0), sent + number(8))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_series_is_announced_once_and_has_a_value() {
        let mut text = String::new();
        let known = BTreeSet::from(["go_memstats_sys_bytes"]);
        append(3, &known, &mut text);
        assert!(!text.contains("go_memstats_sys_bytes"), "what is measured is not told twice");
        let types: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let names: BTreeSet<&str> = types.iter().copied().collect();
        assert_eq!(names.len(), types.len(), "a series is announced twice");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (_, value) = line.rsplit_once(' ').expect("a name and a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
