//! The same for programs.

use serde_json::{Value, json};

use super::{Line, Report};
use crate::bench::{
    campaign::{Disturbed, Outcome},
    row::{Bound, Pair},
};

/// The whole document.
pub(super) fn document(report: &Report) -> String {
    let machine = &report.machine;
    let document = json!({
        "date": report.date,
        "versions": { "etcd": report.versions.0, "oxetcd": report.versions.1 },
        "machine": {
            "processor": machine.processor,
            "processors": machine.processors,
            "memory_gib": machine.memory_gib,
            "kernel": machine.kernel,
            "file_system": machine.file_system,
        },
        "quiet_sync_micros": report.quiet_median_micros,
        "window_seconds": report.window_seconds,
        "large_store_keys": report.large,
        "disturbed_pairs_count": report.disturbed == Disturbed::Keep,
        "claims": report.lines().iter().map(claim).collect::<Vec<_>>(),
        "rows": report.outcomes.iter().map(row).collect::<Vec<_>>(),
    });
    format!("{document:#}\n")
}

fn claim(line: &Line<'_>) -> Value {
    let (least, most) = match line.criterion.floor {
        Bound::AtLeast(value) => (Some(value), None),
        Bound::AtMost(value) => (None, Some(value)),
    };
    json!({
        "row": line.outcome.row.id,
        "what": line.criterion.what,
        "median": line.estimate.map(|one| one.median),
        "low": line.estimate.map(|one| one.low),
        "high": line.estimate.map(|one| one.high),
        "at_least": least,
        "at_most": most,
        "goal": line.criterion.goal,
        "verdict": line.verdict.word(),
    })
}

fn row(outcome: &Outcome) -> Value {
    let pair = |pair: &Pair| json!({ "etcd": pair.official, "oxetcd": pair.ours });
    json!({
        "row": outcome.row.id,
        "title": outcome.row.title,
        "pairs": outcome.pairs.iter().map(pair).collect::<Vec<_>>(),
        "discarded": outcome.discarded.iter().map(|(discarded, reason)| {
            json!({ "reason": reason, "pair": pair(discarded) })
        }).collect::<Vec<_>>(),
        "trouble": outcome.trouble.as_ref().map(ToString::to_string),
    })
}
