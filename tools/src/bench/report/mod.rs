//! What a campaign found, for people (Markdown, charts) and programs (JSON).
//!
//! Decides what is shown: every claim with its interval against floor and goal, all pairs, and what
//! was discarded and why. Nothing is left out because it looks bad. Pure but for [`Report::write`]
//! and [`Report::join`], with which a report is made in several runs.
//!
//! ```text
//!   Outcome --> Line (claim, estimate, verdict) --> summary, report.md, report.json
//!   Figures ------------------------------------> chart --> *.svg
//! ```

mod chart;
mod json;
mod markdown;
mod svg;

use std::{fs, path::Path};

use anyhow::Context;

use super::{
    campaign::{Disturbed, Outcome},
    machine::Machine,
    row::{Bound, Criterion, Measure, Verdict},
    rows::ROWS,
    statistics::{Estimate, percentile},
};

/// Seeds the bootstrap, so that a report can be made again from its pairs.
pub const SEED: u64 = 20_260_101;

/// The report for programs.
const DOCUMENT: &str = "report.json";

/// A whole campaign.
#[derive(Debug)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// When, as `2026-01-31`.
    pub date: String,
    /// The versions of etcd (if it ran) and of ours.
    pub versions: (Option<String>, String),
    /// What tells the measured oxetcd from other builds.
    pub build: String,
    /// What was done with disturbed pairs.
    pub disturbed: Disturbed,
    /// Median of a sync on the quiet disk, in microseconds.
    pub quiet_median_micros: f64,
    /// Length of a window in seconds.
    pub window_seconds: f64,
    /// Keys of a large store.
    pub large: u64,
    /// What was found.
    pub outcomes: Vec<Outcome>,
}

/// One claim and how it came out.
#[derive(Debug)]
pub struct Line<'a> {
    /// Whose claim.
    pub outcome: &'a Outcome,
    /// The claim.
    pub criterion: &'static Criterion,
    /// The median and its interval.
    pub estimate: Option<Estimate>,
    /// How it came out.
    pub verdict: Verdict,
}

impl Report {
    /// All claims in order.
    #[must_use]
    pub fn lines(&self) -> Vec<Line<'_>> {
        let mut lines = Vec::new();
        for outcome in &self.outcomes {
            for criterion in outcome.row.criteria {
                let estimate = criterion.estimate(&outcome.pairs, SEED);
                let verdict = criterion.verdict(estimate.as_ref());
                lines.push(Line { outcome, criterion, estimate, verdict });
            }
        }
        lines
    }

    /// Whether nothing failed and no floor was missed by more than its interval.
    #[must_use]
    pub fn passed(&self) -> bool {
        let missed = self.lines().iter().any(|line| line.verdict == Verdict::Missed);
        !missed && !self.outcomes.iter().any(Outcome::failed)
    }

    /// One line of text per claim. Where only ours ran: its figures, and the claims about it alone.
    #[must_use]
    pub fn summary(&self) -> String {
        let alone = self.versions.0.is_none();
        let mut lines = Vec::new();
        if alone {
            lines.extend(self.outcomes.iter().map(own_figures));
        }
        let claims = self.lines();
        let told = claims.iter().filter(|line| !(alone && line.criterion.measure.is_ratio()));
        lines.extend(told.map(Line::text));
        lines.join("\n")
    }

    /// Takes in the rows of the report in `dir` that were not measured now, if it is of the same
    /// programs and settings. Whether there is such a report.
    pub fn join(&mut self, dir: &Path) -> bool {
        let text = fs::read_to_string(dir.join(DOCUMENT)).unwrap_or_default();
        let Some(earlier) = json::earlier(&text, self) else { return false };
        let measured = |id| self.outcomes.iter().any(|one| one.row.id == id);
        let others: Vec<_> = earlier.into_iter().filter(|one| !measured(one.row.id)).collect();
        self.outcomes.extend(others);
        let place = |id| ROWS.iter().position(|row| row.id == id);
        self.outcomes.sort_by_key(|one| place(one.row.id));
        true
    }

    /// Writes `report.md`, `report.json` and the charts into `dir`.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let charts = chart::charts(&self.outcomes);
        for (name, svg) in &charts {
            fs::write(dir.join(format!("{name}.svg")), svg)?;
        }
        let names: Vec<_> = charts.iter().map(|(name, _)| *name).collect();
        fs::write(dir.join("report.md"), markdown::page(self, &names))?;
        fs::write(dir.join(DOCUMENT), json::document(self))?;
        Ok(())
    }
}

impl Line<'_> {
    /// The verdict, and what limits its meaning.
    fn words(&self) -> String {
        let word = self.verdict.word();
        if self.generator_bound() { format!("{word} (generator-bound)") } else { word.to_owned() }
    }

    /// Whether this is op/s that the generator kept low.
    fn generator_bound(&self) -> bool {
        let shares: Vec<_> = self
            .outcome
            .pairs
            .iter()
            .filter_map(|pair| pair.ours.get("generator_share").copied())
            .collect();
        self.criterion.measure == Measure::More(OPERATIONS)
            && GENERATOR_SHARE_MAX < percentile(&shares, 50.0)
    }

    fn text(&self) -> String {
        let name = format!("{}, {}", self.outcome.row.id, self.criterion.what);
        let times = if self.criterion.measure.is_ratio() { "x" } else { "" };
        let sign = match self.criterion.floor {
            Bound::AtLeast(_) => ">=",
            Bound::AtMost(_) => "<=",
        };
        let floor = number(self.criterion.floor.value());
        let goal = self.criterion.goal.map_or_else(|| "-".to_owned(), number);
        let found = self.estimate.map_or_else(
            || self.outcome.shortage(),
            |one| {
                let interval = format!("[{}, {}]", number(one.low), number(one.high));
                format!("{times}{:<8} {interval:<20}", number(one.median))
            },
        );
        let verdict = self.words();
        format!("{name:<44} {found:<31} floor {sign} {floor:<6} goal {goal:<6} {verdict}")
    }
}

/// A load's operations per second: the figure that a busy generator limits.
const OPERATIONS: &str = "ops";

/// A generator that takes a larger share of the processor time says little about op/s.
const GENERATOR_SHARE_MAX: f64 = 0.25;

/// Figures that a quick look can do without.
const DETAILS: [&str; 10] = [
    "anonymous",
    "operations",
    "refused",
    "generator_cpu",
    "generator_share",
    "system_cpu",
    "device_written_per_op",
    "p90",
    "p99.9",
    "max",
];

/// The medians of our own figures, without details.
fn own_figures(outcome: &Outcome) -> String {
    let names = outcome.pairs.first().map(|pair| pair.ours.keys()).into_iter().flatten();
    let detail =
        |name: &str| DETAILS.iter().any(|one| name == *one || name.ends_with(&format!(".{one}")));
    let mut words = vec![format!("{:<16}", outcome.row.id)];
    for name in names.filter(|name| !detail(name)) {
        let values: Vec<_> =
            outcome.pairs.iter().filter_map(|pair| pair.ours.get(name).copied()).collect();
        words.push(format!("{name}={}", number(percentile(&values, 50.0))));
    }
    if outcome.pairs.is_empty() {
        words.push(outcome.shortage());
    }
    words.join(" ")
}

/// A figure with three significant digits.
fn number(value: f64) -> String {
    if value.is_infinite() {
        return "-".to_owned();
    }
    let digits = match value.abs() {
        large if 100.0 <= large => 0,
        middle if 10.0 <= middle => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests;
