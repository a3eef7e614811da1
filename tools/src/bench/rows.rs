//! The table of floors: every claim about speed and memory that a report checks.
//!
//! Decides floors and goals. Ratios are official etcd's figure against ours, one member where the
//! row does not say three, two processors, 32 B keys and 256 B values; CPU is the server's processor time per operation.

use super::{
    row::{
        Bound::{AtLeast, AtMost},
        Criterion,
        Measure::{self, Less, More, Ours, OursOver},
        Row,
        Set::{Full, Headline},
    },
    scenario::Scenario,
};

const fn at_least(what: &'static str, measure: Measure, floor: f64, goal: f64) -> Criterion {
    Criterion { what, measure, floor: AtLeast(floor), goal: Some(goal) }
}

const fn at_most(what: &'static str, measure: Measure, floor: f64, goal: f64) -> Criterion {
    Criterion { what, measure, floor: AtMost(floor), goal: Some(goal) }
}

/// All rows, in the order of the report.
pub const ROWS: &[Row] = &[
    Row {
        id: "idle",
        title: "memory of an idle server, MB",
        scenario: Scenario::Keys,
        set: Headline,
        criteria: &[at_most("RSS, MB", Ours("rss"), 15.0, 8.0)],
    },
    Row {
        id: "put-1",
        title: "put, 1 in flight",
        scenario: Scenario::Keys,
        set: Headline,
        criteria: &[
            at_least("op/s", More("ops"), 1.5, 2.0),
            at_least("CPU", Less("cpu"), 2.0, 3.5),
        ],
    },
    Row {
        id: "put-64",
        title: "put, 64 in flight",
        scenario: Scenario::Keys,
        set: Headline,
        criteria: &[
            at_least("CPU", Less("cpu"), 4.0, 10.0),
            at_least("op/s", More("ops"), 3.0, 8.0),
        ],
    },
    Row {
        id: "put-256",
        title: "put, 256 in flight",
        scenario: Scenario::Keys,
        set: Headline,
        criteria: &[
            at_least("CPU", Less("cpu"), 5.0, 10.0),
            at_least("op/s", More("ops"), 3.0, 8.0),
        ],
    },
    Row {
        id: "put-open",
        title: "put, open loop, 10,000 per second",
        scenario: Scenario::Keys,
        set: Headline,
        criteria: &[
            at_least("p99", Less("p99"), 5.0, 10.0),
            at_least("CPU", Less("cpu"), 4.0, 8.0),
        ],
    },
    Row {
        id: "get",
        title: "get, 64 in flight",
        scenario: Scenario::Keys,
        set: Headline,
        criteria: &[
            at_least("CPU serializable", Less("s.cpu"), 4.5, 12.0),
            at_least("CPU linearizable", Less("l.cpu"), 5.0, 12.0),
            at_most("CPU linearizable / serializable", OursOver("l.cpu", "s.cpu"), 1.15, 1.1),
        ],
    },
    Row {
        id: "txn",
        title: "txn create and update (Kubernetes), 256 in flight",
        scenario: Scenario::Keys,
        set: Headline,
        criteria: &[at_least("CPU", Less("cpu"), 4.5, 9.0)],
    },
    Row {
        id: "concurrency",
        title: "put and get by requests in flight (chart only)",
        scenario: Scenario::Keys,
        set: Full,
        criteria: &[],
    },
    Row {
        id: "watch-10x100",
        title: "watch fan-out, 10 streams of 100 watchers",
        scenario: Scenario::Watch,
        set: Headline,
        criteria: &[at_least("CPU per event", Less("cpu"), 3.0, 5.0)],
    },
    Row {
        id: "watch-100x1",
        title: "watch fan-out, 100 streams of 1 watcher",
        scenario: Scenario::Watch,
        set: Headline,
        criteria: &[at_least("CPU per event", Less("cpu"), 3.0, 6.0)],
    },
    Row {
        id: "watch-latency",
        title: "from a put's answer to its event, 1,000 puts per second",
        scenario: Scenario::Watch,
        set: Full,
        criteria: &[at_least("p99", Less("p99"), 2.0, 4.0)],
    },
    Row {
        id: "watch-catch-up",
        title: "10,000 watchers of 8 old events each",
        scenario: Scenario::Watch,
        set: Full,
        criteria: &[
            at_least("CPU", Less("cpu"), 4.0, 8.0),
            at_least("time", Less("seconds"), 4.0, 8.0),
        ],
    },
    Row {
        id: "lease-keepalive",
        title: "lease keepalive, 64 streams",
        scenario: Scenario::Lease,
        set: Headline,
        criteria: &[at_least("CPU", Less("cpu"), 2.5, 8.0)],
    },
    Row {
        id: "lease-expiry",
        title: "200,000 leases due at once",
        scenario: Scenario::Lease,
        set: Full,
        criteria: &[
            at_least("expired per second", Ours("per_second"), 20_000.0, 50_000.0),
            at_most("put p99 / quiet", OursOver("during.p99", "quiet.p99"), 3.0, 1.5),
        ],
    },
    Row {
        id: "slow-disk",
        title: "get while puts wait for a disk that syncs in 20 ms",
        scenario: Scenario::SlowDisk,
        set: Full,
        criteria: &[at_most("get p99 / quiet", OursOver("during.p99", "quiet.p99"), 2.0, 1.2)],
    },
    Row {
        id: "list",
        title: "list of 500 out of 1 M keys",
        scenario: Scenario::Large,
        set: Headline,
        criteria: &[
            at_least("CPU at head", Less("head.cpu"), 200.0, 400.0),
            at_least("CPU at an older revision", Less("old.cpu"), 200.0, 400.0),
        ],
    },
    Row {
        id: "count",
        title: "count of 1 M keys",
        scenario: Scenario::Large,
        set: Headline,
        criteria: &[at_least("CPU", Less("cpu"), 1000.0, 5000.0)],
    },
    Row {
        id: "keys-only",
        title: "all of 1 M keys without values",
        scenario: Scenario::Large,
        set: Headline,
        criteria: &[at_least("CPU", Less("cpu"), 4.0, 8.0)],
    },
    Row {
        id: "full-list",
        title: "all of 1 M keys with values",
        scenario: Scenario::Large,
        set: Headline,
        criteria: &[
            at_least("CPU unary", Less("unary.cpu"), 4.0, 8.0),
            at_least("CPU RangeStream", Less("stream.cpu"), 4.0, 8.0),
            at_least("CPU pages of 10,000", Less("pages.cpu"), 15.0, 40.0),
            at_most("memory of RangeStream, MB", Ours("stream.extra"), 16.0, 8.0),
            at_most(
                "memory of unary beyond the answer, MB",
                Ours("unary.extra_over_answer"),
                64.0,
                16.0,
            ),
        ],
    },
    Row {
        id: "memory",
        title: "anonymous memory with 1 M keys",
        scenario: Scenario::Large,
        set: Headline,
        criteria: &[
            at_least("loaded", Less("loaded.anonymous"), 2.0, 3.0),
            at_least("after lists", Less("lists.anonymous"), 2.0, 3.0),
            at_least("after a restart", Less("restarted.anonymous"), 2.0, 3.0),
            at_most("loaded, MB", Ours("loaded.anonymous"), f64::INFINITY, 250.0),
            at_most("after lists, MB", Ours("lists.anonymous"), f64::INFINITY, 250.0),
            at_most("after a restart, MB", Ours("restarted.anonymous"), f64::INFINITY, 250.0),
        ],
    },
    Row {
        id: "restart",
        title: "restart with 1 M keys until a linearizable get",
        scenario: Scenario::Large,
        set: Headline,
        criteria: &[at_least("time", Less("seconds"), 4.0, 10.0)],
    },
    Row {
        id: "snapshot",
        title: "snapshot of 1 M keys",
        scenario: Scenario::Large,
        set: Full,
        criteria: &[
            at_least("time", Less("alone.seconds"), 1.2, 2.0),
            at_most("put p99 / quiet", OursOver("during.p99", "quiet.p99"), 2.0, 1.5),
        ],
    },
    Row {
        id: "compaction",
        title: "compaction of 1 M revisions, 1,000 puts per second",
        scenario: Scenario::Large,
        set: Full,
        criteria: &[at_most("put p99 / quiet", OursOver("during.p99", "quiet.p99"), 2.0, 1.5)],
    },
    Row {
        id: "defragment",
        title: "defragmentation, 1,000 puts per second",
        scenario: Scenario::Large,
        set: Full,
        criteria: &[at_most("put p99 / quiet", OursOver("during.p99", "quiet.p99"), 2.0, 1.5)],
    },
    Row {
        id: "group-idle",
        title: "three idle members",
        scenario: Scenario::Group,
        set: Headline,
        criteria: &[at_least("CPU", Less("cpu"), 3.0, 3.0)],
    },
    Row {
        id: "group-put-64",
        title: "three members: put, 64 in flight",
        scenario: Scenario::Group,
        set: Headline,
        criteria: &[
            at_least("CPU of all members", Less("cpu"), 3.0, 8.0),
            at_least("op/s", More("ops"), 2.0, 4.0),
        ],
    },
    Row {
        id: "group-put-512",
        title: "three members: put, 512 in flight",
        scenario: Scenario::Group,
        set: Headline,
        criteria: &[
            at_least("CPU of all members", Less("cpu"), 4.0, 8.0),
            at_least("op/s", More("ops"), 3.0, 6.0),
        ],
    },
    Row {
        id: "group-get",
        title: "three members: linearizable get, 64 in flight",
        scenario: Scenario::Group,
        set: Headline,
        criteria: &[at_least("CPU of all members", Less("cpu"), 4.0, 10.0)],
    },
    Row {
        id: "fail-over",
        title: "three members: a put after kill -9 of the leader",
        scenario: Scenario::Group,
        set: Full,
        criteria: &[at_least("time", Less("mean"), 1.0, 1.0)],
    },
    Row {
        id: "growth",
        title: "cost at 10 M keys / at 1,000",
        scenario: Scenario::Growth,
        set: Full,
        criteria: &[
            at_most("put", OursOver("10000000.put.cpu", "1000.put.cpu"), 2.0, 1.2),
            at_most("get", OursOver("10000000.get.cpu", "1000.get.cpu"), 2.0, 1.2),
            at_most("list of 500", OursOver("10000000.list.cpu", "1000.list.cpu"), 2.0, 1.2),
            at_most("count", OursOver("10000000.count.cpu", "1000.count.cpu"), 2.0, 1.2),
        ],
    },
];
