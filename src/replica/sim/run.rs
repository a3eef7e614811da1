//! Many seeds, and what they must show.
//!
//! The tests of every day run a few hundred. `make sim SEEDS=n` runs that many, from
//! `FIRST` on, `make sim SEED=n` one, with everything that happened in it.

use std::{
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::{Bug, checks::Counts, world::World};

/// Seeds of every run of the tests, in two halves that run side by side.
const SEEDS: u64 = 300;
/// Seeds within which a planted bug must be found.
const SEEDS_FOR_A_BUG: u64 = 200;

/// Events of a failed run that are shown; all of them with `SEED`.
const TRACE_LINES: usize = 80;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// One run: what happened and the digest of its events, or what went wrong.
fn run(seed: u64, bug: Option<Bug>) -> Result<(Counts, u64), String> {
    let run = |is_verbose| {
        let mut world = World::new(seed, bug, is_verbose);
        let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
        let panicked = ended.err().map(|cause| {
            let text = cause.downcast_ref::<String>().map(String::as_str);
            text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("?").to_owned()
        });
        let violation = panicked.or_else(|| world.checks.violation().cloned());
        (world, violation)
    };
    let (world, violation) = run(false);
    let Some(violation) = violation else { return Ok((world.checks.counts, world.digest)) };
    if bug.is_some() {
        return Err(violation);
    }
    // The same again, with notes.
    let (world, _) = run(true);
    let shown = if number("SEED").is_some() { usize::MAX } else { TRACE_LINES };
    let trace = world.trace();
    let trace = &trace[trace.len().saturating_sub(shown)..];
    Err(format!(
        "seed {seed}: {violation}\n{}\n{}\n{:?}\nto repeat: SEED={seed} cargo test --lib \
         replica::sim::run::seeds_of_the_environment -- --ignored --nocapture",
        trace.join("\n"),
        world.describe(),
        world.plan
    ))
}

fn add(total: &mut Counts, one: Counts) {
    total.elections += one.elections;
    total.crashes += one.crashes;
    total.restarts += one.restarts;
    total.partitions += one.partitions;
    total.writes += one.writes;
    total.reads += one.reads;
    total.unknown += one.unknown;
    total.installed += one.installed;
    total.members_changed += one.members_changed;
    total.transfers += one.transfers;
    total.obituaries += one.obituaries;
    total.committed += one.committed;
    total.compared += one.compared;
}

/// Runs seeds; what happened in all of them, and those that failed.
fn run_all(seeds: impl Iterator<Item = u64>) -> (Counts, Vec<String>) {
    let mut total = Counts::default();
    let mut failures = Vec::new();
    for seed in seeds {
        match run(seed, None) {
            Ok((counts, _)) => add(&mut total, counts),
            Err(failure) => failures.push(failure),
        }
    }
    (total, failures)
}

fn check_seeds(seeds: impl Iterator<Item = u64>) {
    let (total, failures) = run_all(seeds);
    assert!(failures.is_empty(), "{} seeds failed\n{}", failures.len(), failures[0]);
    let Counts {
        reads,
        writes,
        crashes,
        installed,
        members_changed,
        elections,
        compared,
        obituaries,
        ..
    } = total;
    let least =
        [reads, writes, crashes, installed, members_changed, elections, compared, obituaries];
    assert!(least.iter().all(|count| 50 < *count), "little happened: {total:?}");
}

#[test]
fn groups_keep_their_promises_in_any_weather() {
    check_seeds((0..SEEDS).step_by(2));
}

#[test]
fn groups_keep_their_promises_in_more_weather() {
    check_seeds((1..SEEDS).step_by(2));
}

#[test]
fn seed_gives_the_same_run_bit_for_bit() {
    for seed in 0..5 {
        assert_eq!(run(seed, None), run(seed, None), "seed {seed}");
    }
}

/// The first seed that finds the bug, and as what.
fn find(bug: Bug) -> (u64, String) {
    let found = (0..SEEDS_FOR_A_BUG).find_map(|seed| Some((seed, run(seed, Some(bug)).err()?)));
    found.unwrap_or_else(|| panic!("{bug:?} was not found in {SEEDS_FOR_A_BUG} seeds"))
}

#[test]
fn unsynced_write_that_counts_as_persisted_is_found() {
    find(Bug::UnsyncedCountsAsPersisted);
}

#[test]
fn answer_before_a_quorum_has_the_entry_is_found() {
    find(Bug::AnswersBeforeQuorum);
}

#[test]
fn linearizable_read_without_a_round_is_found() {
    let (seed, found) = find(Bug::ReadsWithoutRound);
    assert!(found.starts_with("not linearizable"), "seed {seed}: {found}");
}

#[test]
fn read_of_a_lone_voter_that_lags_behind_its_learner_is_found() {
    let (seed, found) = find(Bug::LoneVoterReadsAtOnce);
    assert!(found.starts_with("not linearizable"), "seed {seed}: {found}");
}

#[test]
fn forgotten_vote_is_found() {
    find(Bug::VoteIsForgotten);
}

#[test]
fn replayed_change_of_members_is_found() {
    find(Bug::ChangesAreReplayed);
}

#[test]
#[ignore = "as many seeds as asked for: make sim SEEDS=1000"]
fn seeds_of_the_environment() {
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("FIRST").unwrap_or(0);
            first..first + number("SEEDS").unwrap_or(SEEDS)
        }
    };
    let count = seeds.end - seeds.start;
    let (total, failures) = run_all(seeds);
    let mut out = std::io::stdout();
    for failure in failures.iter().take(3) {
        writeln!(out, "{failure}\n").expect("the test's own output");
    }
    let failed = u64::try_from(failures.len()).expect("fits");
    writeln!(out, "{total:?}").expect("the test's own output");
    writeln!(out, "simulator: {} passed, {failed} failed", count - failed)
        .expect("the test's own output");
    assert!(failures.is_empty(), "{failed} seeds failed");
}
