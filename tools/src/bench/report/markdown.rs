//! The page for people.

use std::fmt::Write;

use super::{Line, Report, number};
use crate::bench::{
    campaign::{Disturbed, Outcome},
    row::{Figures, Verdict},
};

/// Keys of the store that the claims about large stores mean.
const LARGE: u64 = 1_000_000;

/// The whole page; `charts` are names of files beside it.
pub(super) fn page(report: &Report, charts: &[&str]) -> String {
    let mut page = String::new();
    head(report, &mut page);
    table(&report.lines(), &mut page);
    for chart in charts {
        add(&mut page, format_args!("\n![{chart}]({chart}.svg)\n"));
    }
    page.push_str("\n## All pairs\n\nFigures of etcd and of oxetcd, pair by pair.\n");
    for outcome in &report.outcomes {
        pairs(outcome, &mut page);
    }
    page
}

/// Appends to a string, which cannot fail.
fn add(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("a string grows as needed");
}

fn head(report: &Report, page: &mut String) {
    let machine = &report.machine;
    let (official, ours) = &report.versions;
    let official = official.as_deref().unwrap_or("not run");
    add(
        page,
        format_args!(
            "# oxetcd and etcd, side by side\n\n\
             | | |\n|---|---|\n\
             | date | {} |\n\
             | etcd | {official} |\n\
             | oxetcd | {ours} |\n\
             | machine | {} x {}, {} GiB, {}, {} |\n\
             | quiet disk | {:.0} us per sync of 4 KiB (median) |\n\
             | windows | {:.0} s after a warm-up, one member, default flags, synced before the answer |\n\n",
            report.date,
            machine.processors,
            machine.processor,
            machine.memory_gib,
            machine.kernel,
            machine.file_system,
            report.quiet_median_micros,
            report.window_seconds,
        ),
    );
    if report.large != LARGE {
        let large = report.large;
        add(
            page,
            format_args!(
                "**The large store has {large} keys, not the million of its claims.**\n\n"
            ),
        );
    }
    if report.disturbed == Disturbed::Keep {
        page.push_str("**Disturbed pairs count here: this page is a trial, not a result.**\n\n");
    }
    page.push_str(
        "Medians of paired figures with bootstrap 95 % intervals. A ratio above 1 is in favour of \
         oxetcd. *Generator-bound* op/s would be higher with a generator on another machine. *Missed* means that the whole interval is short of the floor, *unclear* that \
         only the median is.\n\n",
    );
}

fn table(lines: &[Line<'_>], page: &mut String) {
    page.push_str("| what | claim | found | 95 % | floor | goal | pairs | discarded | verdict |\n");
    page.push_str("|---|---|---|---|---|---|---|---|---|\n");
    for line in lines {
        let (found, interval) = line.estimate.map_or_else(
            || ("-".to_owned(), "-".to_owned()),
            |one| (number(one.median), format!("{} to {}", number(one.low), number(one.high))),
        );
        let verdict = match line.verdict {
            Verdict::NotRun => line.outcome.shortage(),
            Verdict::Goal | Verdict::Met | Verdict::Unclear | Verdict::Missed => line.words(),
        };
        add(
            page,
            format_args!(
                "| {} | {} | {found} | {interval} | {} | {} | {} | {} | {verdict} |\n",
                line.outcome.row.title,
                line.criterion.what,
                number(line.criterion.floor.value()),
                line.criterion.goal.map_or_else(|| "-".to_owned(), number),
                line.outcome.pairs.len(),
                line.outcome.discarded.len(),
            ),
        );
    }
}

fn pairs(outcome: &Outcome, page: &mut String) {
    add(page, format_args!("\n### {}: {}\n\n", outcome.row.id, outcome.row.title));
    for (at, pair) in outcome.pairs.iter().enumerate() {
        add(page, format_args!("{}. etcd {}\n", at + 1, figures(&pair.official)));
        add(page, format_args!("   oxetcd {}\n", figures(&pair.ours)));
    }
    for (_, reason) in &outcome.discarded {
        add(page, format_args!("* discarded: {reason}\n"));
    }
    if outcome.trouble.is_some() {
        add(page, format_args!("* {}\n", outcome.shortage()));
    }
}

fn figures(figures: &Figures) -> String {
    let words: Vec<_> =
        figures.iter().map(|(name, value)| format!("{name}={}", number(*value))).collect();
    words.join(" ")
}
