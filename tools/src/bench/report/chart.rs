//! Which charts a report has, and what of the figures they show.

use super::svg::{Chart, Series};
use crate::bench::{
    campaign::Outcome,
    row::{Figures, Pair},
    statistics::percentile,
};

/// The points of the latency chart.
const PERCENTILES: [&str; 5] = ["p50", "p90", "p99", "p99.9", "max"];
/// Requests in flight of the charts by concurrency.
const IN_FLIGHT: [&str; 5] = ["1", "8", "64", "256", "1000"];

/// Picks one server's figures out of a pair.
type Side = fn(&Pair) -> &Figures;

/// Sizes of the store in the chart of growth.
const SIZES: [(&str, &str); 4] =
    [("1000", "1 k"), ("100000", "100 k"), ("1000000", "1 M"), ("10000000", "10 M")];

/// The charts that have something to show, with their names.
pub(super) fn charts(outcomes: &[Outcome]) -> Vec<(&'static str, String)> {
    let all = [
        ("latency", latency(outcomes)),
        ("throughput", by_concurrency(outcomes, "ops", "Throughput", "op/s")),
        ("cpu", by_concurrency(outcomes, "cpu", "Processor time of the server", "s per 100,000")),
        ("growth", growth(outcomes)),
    ];
    all.into_iter().filter_map(|(name, chart)| Some((name, chart?.svg()?))).collect()
}

fn pairs<'a>(outcomes: &'a [Outcome], id: &str) -> Option<&'a [Pair]> {
    let outcome = outcomes.iter().find(|one| one.row.id == id)?;
    Some(&outcome.pairs)
}

/// The median of a figure over all pairs.
fn median(pairs: &[Pair], side: Side, name: &str) -> Option<f64> {
    let values: Vec<_> = pairs.iter().filter_map(|pair| side(pair).get(name).copied()).collect();
    (!values.is_empty()).then(|| percentile(&values, 50.0))
}

/// A line for each server.
fn both(pairs: &[Pair], label: &str, dashed: bool, names: &[String]) -> Vec<Series> {
    let sides: [(&str, bool, Side); 2] =
        [("etcd", false, |pair| &pair.official), ("oxetcd", true, |pair| &pair.ours)];
    sides
        .into_iter()
        .map(|(server, ours, side)| Series {
            name: format!("{server}{label}"),
            ours,
            dashed,
            values: names.iter().map(|name| median(pairs, side, name)).collect(),
        })
        .collect()
}

fn latency(outcomes: &[Outcome]) -> Option<Chart> {
    let pairs = pairs(outcomes, "put-open")?;
    let names = PERCENTILES.map(str::to_owned);
    Some(Chart {
        title: "Latency of a put".to_owned(),
        below: "10,000 puts due per second, one member".to_owned(),
        left: "ms".to_owned(),
        ticks: names.to_vec(),
        series: both(pairs, "", false, &names),
    })
}

fn by_concurrency(outcomes: &[Outcome], figure: &str, title: &str, unit: &str) -> Option<Chart> {
    let pairs = pairs(outcomes, "concurrency")?;
    let names = |kind: &str| IN_FLIGHT.map(|count| format!("{kind}.{count}.{figure}"));
    let mut series = both(pairs, " put", false, &names("put"));
    series.extend(both(pairs, " get", true, &names("get")));
    Some(Chart {
        title: title.to_owned(),
        below: "requests in flight".to_owned(),
        left: unit.to_owned(),
        ticks: IN_FLIGHT.map(str::to_owned).to_vec(),
        series,
    })
}

fn growth(outcomes: &[Outcome]) -> Option<Chart> {
    let pairs = pairs(outcomes, "growth")?;
    let mut series = Vec::new();
    for (operation, dashed) in [("put", false), ("list", true)] {
        let names = SIZES.map(|(keys, _)| format!("{keys}.{operation}.cpu"));
        series.extend(both(pairs, &format!(" {operation}"), dashed, &names));
    }
    Some(Chart {
        title: "Processor time of the server".to_owned(),
        below: "keys in the store (list: 500 of them)".to_owned(),
        left: "s per 100,000".to_owned(),
        ticks: SIZES.map(|(_, name)| name.to_owned()).to_vec(),
        series,
    })
}
