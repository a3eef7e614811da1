//! The same for programs, and back: a report can be made in several runs.

use serde_json::{Value, json};

use super::{Line, Report};
use crate::bench::{
    campaign::{Disturbed, Outcome, Trouble},
    row::{Bound, Figures, Pair},
    rows::ROWS,
};

/// What two runs must have in common for their rows to stand in one report.
const COMMON: [&str; 6] =
    ["build", "versions", "machine", "window_seconds", "large_store_keys", "disturbed_pairs_count"];

/// The whole document.
pub(super) fn document(report: &Report) -> String {
    let machine = &report.machine;
    let document = json!({
        "date": report.date,
        "build": report.build,
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

/// The rows of an earlier document, if it is of the same programs and settings as `report`.
pub(super) fn earlier(text: &str, report: &Report) -> Option<Vec<Outcome>> {
    let old: Value = serde_json::from_str(text).ok()?;
    let new: Value = serde_json::from_str(&document(report)).ok()?;
    if COMMON.iter().any(|name| old[name] != new[name]) {
        return None;
    }
    old["rows"].as_array()?.iter().map(outcome).collect()
}

fn outcome(value: &Value) -> Option<Outcome> {
    let row = ROWS.iter().find(|row| value["row"] == row.id)?;
    let pairs = value["pairs"].as_array()?.iter().map(pair).collect::<Option<_>>()?;
    let discarded = value["discarded"].as_array()?.iter();
    let discarded =
        discarded.map(|one| Some((pair(&one["pair"])?, one["reason"].as_str()?.to_owned())));
    let trouble = value["trouble"].as_str().map(Trouble::parse);
    Some(Outcome { row, pairs, discarded: discarded.collect::<Option<_>>()?, trouble })
}

fn pair(value: &Value) -> Option<Pair> {
    Some(Pair { official: figures(&value["etcd"])?, ours: figures(&value["oxetcd"])? })
}

fn figures(value: &Value) -> Option<Figures> {
    let figures = value.as_object()?.iter();
    figures.map(|(name, figure)| Some((name.clone(), figure.as_f64()?))).collect()
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
