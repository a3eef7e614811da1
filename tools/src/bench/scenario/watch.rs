//! Watchers: many on one stream, many streams, how soon an event comes, and old events.

use anyhow::Context;
use proto::etcdserverpb::{PutResponse, WatchCreateRequest};

use std::time::{Duration, Instant};

use prost::Message;

use super::life::{Life, count};
use crate::bench::{
    ledger::Ledger,
    load::{Requests, Shape, Tally, Until},
    path,
    requests::Puts,
    statistics::percentile,
    watchers::{Detail, Observer, Spread, watching},
};

/// Puts between two looks whether all watchers have caught up.
const PUTS_AHEAD: u64 = 16;
/// Puts in flight meanwhile.
const PUTS_IN_FLIGHT: usize = 8;
/// Puts per second while latency is measured.
const LATENCY_RATE: f64 = 1000.0;
/// Watchers whose latency is measured.
const LATENCY_SPREAD: Spread = Spread { streams: 10, per_stream: 1 };
/// Watchers that ask for old events, each for all of them.
const CATCH_UP: Spread = Spread { streams: 1, per_stream: 10_000 };
/// How many old events there are.
const OLD_EVENTS: u64 = 8;
/// How often catching up is repeated in a window.
const CATCH_UP_ROUNDS: u32 = 3;

/// Measures the rows of this life that are wanted.
pub(super) fn run(life: &mut Life<'_>) -> anyhow::Result<()> {
    if life.wants("watch-10x100") {
        fan_out(life, "watch-10x100", Spread { streams: 10, per_stream: 100 })?;
    }
    if life.wants("watch-100x1") {
        fan_out(life, "watch-100x1", Spread { streams: 100, per_stream: 1 })?;
    }
    if life.wants("watch-latency") {
        latency(life)?;
    }
    if life.wants("watch-catch-up") {
        catch_up(life)?;
    }
    Ok(())
}

fn watch_of(ledger: &Ledger) -> WatchCreateRequest {
    WatchCreateRequest {
        key: ledger.prefix().into(),
        range_end: ledger.range_end().into(),
        ..Default::default()
    }
}

/// Puts as fast as all watchers see them: a watcher that lags would get its events in lumps, and
/// the cost of an event would depend on how far it lags.
fn fan_out(life: &mut Life<'_>, row: &'static str, spread: Spread) -> anyhow::Result<()> {
    let address = life.server.address();
    let mut ledger = Ledger::new("w/", 1000);
    let create = watch_of(&ledger);
    let work = |observer: &Observer<'_>| {
        observer.wait_created(spread.watchers())?;
        let warm_up = life.plan.warm_up;
        put_and_wait(life, &mut ledger, spread, observer, warm_up)?;
        let before = ledger.sent();
        let (_, cost) = life.window(row, |life| {
            let window = life.plan.window;
            put_and_wait(life, &mut ledger, spread, observer, window)
        })?;
        let events = count((ledger.sent() - before) * spread.watchers());
        life.record(row, "events", events);
        life.record(row, "events_per_second", events / cost.elapsed.as_secs_f64());
        life.record(row, "cpu", cost.server.as_secs_f64() / events * 1e5);
        life.record(row, "generator_cpu", cost.generator.as_secs_f64() / events * 1e5);
        Ok(())
    };
    watching(address, spread, &create, Detail::Count, work)
        .with_context(|| format!("row {row}"))?;
    Ok(())
}

fn put_and_wait(
    life: &Life<'_>,
    ledger: &mut Ledger,
    spread: Spread,
    observer: &Observer<'_>,
    time: Duration,
) -> anyhow::Result<()> {
    let mut generator = life.generator(PUTS_IN_FLIGHT)?;
    let shape = Shape::Closed { in_flight: PUTS_IN_FLIGHT };
    let started = Instant::now();
    while started.elapsed() < time {
        generator.run(shape, Until::Sent(PUTS_AHEAD), &mut Puts { ledger })?;
        observer.wait_events(ledger.sent() * spread.watchers())?;
    }
    Ok(())
}

/// Puts that note when each was answered.
struct TimedPuts<'a> {
    puts: Puts<'a>,
    answers: Vec<(i64, Instant)>,
}

impl Requests for TimedPuts<'_> {
    fn path(&self) -> &'static str {
        path::PUT
    }

    fn next(&mut self, slot: usize, message: &mut Vec<u8>) {
        self.puts.next(slot, message);
    }

    fn answered(&mut self, _slot: usize, message: &[u8]) -> anyhow::Result<()> {
        let now = Instant::now();
        let answer = PutResponse::decode(message)?;
        let revision = answer.header.context("an answer has a header")?.revision;
        self.answers.push((revision, now));
        Ok(())
    }
}

/// From a put's answer to its event, at a steady rate.
fn latency(life: &mut Life<'_>) -> anyhow::Result<()> {
    let row = "watch-latency";
    let address = life.server.address();
    let mut ledger = Ledger::new("x/", 1000);
    let create = watch_of(&ledger);
    let mut answers = Vec::new();
    let work = |observer: &Observer<'_>| {
        observer.wait_created(LATENCY_SPREAD.watchers())?;
        let mut puts = TimedPuts { puts: Puts { ledger: &mut ledger }, answers: Vec::new() };
        let shape = Shape::Open { per_second: LATENCY_RATE };
        let tally: Tally = life.load(row, "put.", shape, &mut puts)?;
        answers = puts.answers;
        let events = answers.len() as u64 * LATENCY_SPREAD.watchers();
        assert!(tally.operations <= answers.len() as u64, "the warm-up is noted too");
        observer.wait_events(events)
    };
    let ((), arrivals) = watching(address, LATENCY_SPREAD, &create, Detail::Arrivals, work)?;
    answers.sort_unstable_by_key(|(revision, _)| *revision);
    let late_ms: Vec<f64> = arrivals
        .iter()
        .filter_map(|(revision, arrived)| {
            let at = answers.binary_search_by_key(revision, |one| one.0).ok()?;
            Some(arrived.saturating_duration_since(answers[at].1).as_secs_f64() * 1e3)
        })
        .collect();
    for (name, percent) in [("p50", 50.0), ("p99", 99.0)] {
        // An event that comes with or before the answer counts as a microsecond.
        life.record(row, name, percentile(&late_ms, percent).max(0.001));
    }
    Ok(())
}

/// Ten thousand watchers that begin in the past.
fn catch_up(life: &mut Life<'_>) -> anyhow::Result<()> {
    let row = "watch-catch-up";
    let mut ledger = Ledger::new("y/", 1);
    let from = life.caller()?.revision()? + 1;
    let mut generator = life.generator(1)?;
    let shape = Shape::Closed { in_flight: 1 };
    generator.run(shape, Until::Sent(OLD_EVENTS), &mut Puts { ledger: &mut ledger })?;
    let create = WatchCreateRequest { start_revision: from, ..watch_of(&ledger) };
    let (_, cost) = life.window(row, |life| {
        for _ in 0..CATCH_UP_ROUNDS {
            let work =
                |observer: &Observer<'_>| observer.wait_events(CATCH_UP.watchers() * OLD_EVENTS);
            watching(life.server.address(), CATCH_UP, &create, Detail::Count, work)?;
        }
        Ok(())
    })?;
    let rounds = f64::from(CATCH_UP_ROUNDS);
    life.record(row, "seconds", cost.elapsed.as_secs_f64() / rounds);
    life.record(row, "cpu", cost.server.as_secs_f64() / rounds);
    Ok(())
}
