//! Runs pairs of server lives until every row has enough undisturbed ones.
//!
//! Decides the order (A B, B A, A B ...), what is discarded and when to give up. Only one server is
//! alive at a time: an idle one uses the processor too. Called by the `oxetcd-bench` program.
//!
//! Invariants
//! - P1 A pair counts for a row only if both of its samples are undisturbed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use anyhow::Context;

use super::{
    row::{Pair, Row},
    scenario::{Life, Plan, Sample, Scenario},
    server::{self, Server, Side},
};

/// Attempts per wanted pair, plus [`ATTEMPTS_MORE`]: how noisy a machine may be.
const ATTEMPTS_PER_PAIR: usize = 2;
/// Attempts beside those.
const ATTEMPTS_MORE: usize = 1;

/// Which servers are measured.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Official etcd; without it only ours is measured.
    pub official: Option<PathBuf>,
    /// oxetcd.
    pub ours: PathBuf,
}

/// What is done with a disturbed pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbed {
    /// It is discarded and another is tried.
    Discard,
    /// It counts. For trying things out on a busy machine; a report says so.
    Keep,
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which servers.
    pub programs: Programs,
    /// Undisturbed pairs per row.
    pub pairs: usize,
    /// What is done with a disturbed pair.
    pub disturbed: Disturbed,
    /// How long and how much.
    pub plan: Plan,
    /// Where data directories are made.
    pub work_dir: PathBuf,
}

/// What came out for one row.
#[derive(Debug)]
pub struct Outcome {
    /// The row.
    pub row: &'static Row,
    /// Undisturbed pairs.
    pub pairs: Vec<Pair>,
    /// Disturbed pairs, which count for nothing.
    pub discarded: Vec<(Pair, String)>,
    /// Why there are fewer pairs than wanted, if a part failed or does not work here.
    pub trouble: Option<Trouble>,
}

/// Why a row has no figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A server failed, or lost an acknowledged write.
    Failed(String),
    /// It cannot be measured on this machine.
    NotHere(String),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(reason) => write!(formatter, "failed: {reason}"),
            Self::NotHere(reason) => write!(formatter, "not run: {reason}"),
        }
    }
}

impl Trouble {
    /// Reads what was written.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match (text.strip_prefix("not run: "), text.strip_prefix("failed: ")) {
            (Some(reason), _) => Self::NotHere(reason.to_owned()),
            (None, reason) => Self::Failed(reason.unwrap_or(text).to_owned()),
        }
    }
}

impl Outcome {
    /// Whether a server failed, or lost an acknowledged write.
    #[must_use]
    pub const fn failed(&self) -> bool {
        matches!(self.trouble, Some(Trouble::Failed(_)))
    }

    /// Why there are no pairs.
    #[must_use]
    pub fn shortage(&self) -> String {
        match (&self.trouble, self.discarded.len()) {
            (Some(trouble), _) => trouble.to_string().replace('\n', " "),
            (None, 0) => "not measured".to_owned(),
            (None, discarded) => format!("too noisy: {discarded} pairs discarded"),
        }
    }
}

/// Runs all rows. The quiet median of the disk is lowered when a quieter time is met.
///
/// # Errors
/// If the work directory cannot be used. A server that fails is a row's trouble, not an error.
pub fn run(
    settings: &mut Settings,
    rows: &[&'static Row],
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<Outcome>> {
    std::fs::create_dir_all(&settings.work_dir)
        .with_context(|| format!("cannot create {}", settings.work_dir.display()))?;
    server::remove_leftovers(&settings.work_dir)?;
    let mut outcomes: BTreeMap<&str, Outcome> = rows
        .iter()
        .map(|row| {
            let outcome = Outcome { row, pairs: vec![], discarded: vec![], trouble: None };
            (row.id, outcome)
        })
        .collect();
    let scenarios: BTreeSet<Scenario> = rows.iter().map(|row| row.scenario).collect();
    for scenario in scenarios {
        repeat(settings, scenario, &mut outcomes, say);
    }
    Ok(rows.iter().filter_map(|row| outcomes.remove(row.id)).collect())
}

/// Repeats one scenario until its rows have their pairs.
fn repeat(
    settings: &mut Settings,
    scenario: Scenario,
    outcomes: &mut BTreeMap<&str, Outcome>,
    say: &mut dyn FnMut(&str),
) {
    let pairs = scenario.pairs(settings.pairs);
    for attempt in 0..pairs * ATTEMPTS_PER_PAIR + ATTEMPTS_MORE {
        let wanted: BTreeSet<&'static str> = outcomes
            .values()
            .filter(|one| one.row.scenario == scenario && one.trouble.is_none())
            .filter(|one| one.pairs.len() < pairs)
            .map(|one| one.row.id)
            .collect();
        if wanted.is_empty() {
            return;
        }
        let names = wanted.iter().copied().collect::<Vec<_>>().join(" ");
        say(&format!("{scenario:?}, pair {}: {names}", attempt + 1));
        let lives = pair(settings, scenario, attempt, &wanted, say);
        note(settings, lives, &wanted, outcomes, say);
    }
}

/// What a pair of lives left.
#[derive(Default)]
struct Lives {
    samples: BTreeMap<Side, BTreeMap<&'static str, Sample>>,
    /// Why one of them ended early, or ended badly.
    fault: Option<anyhow::Error>,
}

/// One life of each server, in the order of this attempt. The second is lived whatever becomes of
/// the first.
fn pair(
    settings: &mut Settings,
    scenario: Scenario,
    attempt: usize,
    wanted: &BTreeSet<&'static str>,
    say: &mut dyn FnMut(&str),
) -> Lives {
    let mut order = vec![(Side::Ours, settings.programs.ours.clone())];
    if let Some(official) = settings.programs.official.clone() {
        order.insert(attempt % 2, (Side::Official, official));
    }
    let mut lives = Lives::default();
    for (side, program) in order {
        let started = std::time::Instant::now();
        let options = scenario.options();
        let server = match Server::start(side, &program, &settings.work_dir, &options) {
            Ok(server) => server,
            Err(error) => {
                lives.fault = Some(error);
                continue;
            }
        };
        let mut life = Life::new(server, &settings.plan, wanted);
        life.ends_with_kill = attempt == 0;
        if let Err(error) = scenario.run(&mut life) {
            let error = error.context(format!("on {}", side.name()));
            say(&format!("  failed {error:#}"));
            lives.fault.get_or_insert(error);
        }
        let quietest = life.quietest_median_micros();
        lives.samples.insert(side, life.into_samples());
        settings.plan.quiet_median_micros = quietest;
        say(&format!("  {} took {:.0} s", side.name(), started.elapsed().as_secs_f64()));
    }
    lives
}

/// Puts the samples of one pair where they belong (P1).
fn note(
    settings: &Settings,
    mut lives: Lives,
    wanted: &BTreeSet<&'static str>,
    outcomes: &mut BTreeMap<&str, Outcome>,
    say: &mut dyn FnMut(&str),
) {
    let mut failed = 0;
    for id in wanted {
        let mut take = |side| lives.samples.get_mut(&side).and_then(|all| all.remove(id));
        let (official, ours) = (take(Side::Official), take(Side::Ours).unwrap_or_default());
        let official = official.unwrap_or_default();
        let outcome = outcomes.get_mut(id).expect("wanted rows come from there");
        if let Some(reason) = official.not_run.or(ours.not_run) {
            outcome.trouble = Some(Trouble::NotHere(reason));
            continue;
        }
        let disturbed = official.disturbed.or(ours.disturbed);
        let pair = Pair { official: official.figures, ours: ours.figures };
        if let Some(fault) = lives.fault.as_ref().filter(|_| !outcome.row.is_complete(&pair)) {
            outcome.trouble = Some(Trouble::Failed(format!("{fault:#}")));
            failed += 1;
            continue;
        }
        match disturbed {
            Some(reason) if settings.disturbed == Disturbed::Discard => {
                say(&format!("  {id}: discarded, {reason}"));
                outcome.discarded.push((pair, reason));
            }
            _ => outcome.pairs.push(pair),
        }
    }
    // A fault that kept no figure back was found at the end: something was lost, and whose load did
    // it cannot be told.
    if let Some(fault) = lives.fault.filter(|_| failed == 0) {
        for id in wanted {
            let outcome = outcomes.get_mut(id).expect("wanted rows come from there");
            outcome.trouble = Some(Trouble::Failed(format!("{fault:#}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        path::PathBuf,
        time::Duration,
    };

    use super::{Disturbed, Lives, Outcome, Programs, Sample, Settings, Side, note};
    use crate::bench::{rows::ROWS, scenario::Plan};

    fn settings() -> Settings {
        Settings {
            programs: Programs { official: None, ours: PathBuf::new() },
            pairs: 1,
            disturbed: Disturbed::Discard,
            plan: Plan {
                window: Duration::from_secs(1),
                warm_up: Duration::from_secs(1),
                large: 1,
                sizes: &[],
                quiet_median_micros: 100.0,
            },
            work_dir: PathBuf::new(),
        }
    }

    fn sample(disturbed: Option<&str>) -> Sample {
        let figures = [("ops", 2.0), ("cpu", 1.0)].map(|(name, value)| (name.to_owned(), value));
        Sample { figures: figures.into(), disturbed: disturbed.map(str::to_owned), not_run: None }
    }

    /// Both servers have these samples of `put-1`; `put-64` was wanted too.
    fn noted(
        official: Option<Sample>,
        ours: Option<Sample>,
        fault: Option<&str>,
    ) -> BTreeMap<&'static str, Outcome> {
        let wanted: BTreeSet<_> = ["put-1", "put-64"].into();
        let rows = ROWS.iter().filter(|row| wanted.contains(row.id));
        let outcome = |row| Outcome { row, pairs: vec![], discarded: vec![], trouble: None };
        let mut outcomes: BTreeMap<_, _> = rows.map(|row| (row.id, outcome(row))).collect();
        let mut lives =
            Lives { fault: fault.map(|text| anyhow::anyhow!("{text}")), ..Lives::default() };
        for (side, one) in [(Side::Official, official), (Side::Ours, ours)] {
            let both = one.map(|one| [("put-1", one.clone()), ("put-64", one)].into());
            lives.samples.insert(side, both.unwrap_or_default());
        }
        // Ours did not get as far as the second row in the lives that failed half-way.
        if fault == Some("half-way") {
            lives.samples.get_mut(&Side::Ours).unwrap().remove("put-64");
        }
        note(&settings(), lives, &wanted, &mut outcomes, &mut |_| {});
        outcomes
    }

    #[test]
    fn pair_counts_unless_one_side_was_disturbed() {
        let outcomes = noted(Some(sample(None)), Some(sample(None)), None);
        assert_eq!(outcomes["put-1"].pairs.len(), 1);
        let outcomes = noted(Some(sample(Some("a busy disk"))), Some(sample(None)), None);
        let one = &outcomes["put-1"];
        assert_eq!((one.pairs.len(), one.discarded.len()), (0, 1));
        assert_eq!(one.discarded[0].1, "a busy disk");
    }

    #[test]
    fn fault_half_way_fails_the_rows_behind_it() {
        let outcomes = noted(Some(sample(None)), Some(sample(None)), Some("half-way"));
        assert!(!outcomes["put-1"].failed() && outcomes["put-1"].pairs.len() == 1);
        assert!(outcomes["put-64"].failed());
    }

    #[test]
    fn loss_found_at_the_end_fails_every_row() {
        let outcomes = noted(Some(sample(None)), Some(sample(None)), Some("a key is lost"));
        assert!(outcomes.values().all(Outcome::failed), "{outcomes:?}");
    }
}
