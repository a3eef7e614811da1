//! The table of floors: every claim about speed and memory that a report checks.
//!
//! Decides floors and goals. Ratios are official etcd's figure against ours, one member, two
//! processors, 32 B keys and 256 B values; CPU is the server's processor time per operation.

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
];
