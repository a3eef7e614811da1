//! A store of a million keys: lists, memory, restart, snapshot, compaction, defragmentation.
//!
//! The store is filled once. What only reads comes first, then what restarts, then what writes:
//!
//! ```text
//!   load --> memory --> lists, counts --> memory --> restart --> memory --> full lists
//!        --> snapshot --> second version of every key --> compaction --> defragmentation
//! ```

use std::{
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use proto::etcdserverpb::{RangeRequest, SnapshotRequest, range_request::SortOrder};

use super::life::{Life, count, megabytes};
use crate::bench::{
    caller::Caller,
    ledger::Ledger,
    load::{CONNECTIONS, Generator, Shape, TellAtEnd, Until},
    path,
    probe::pause,
    requests::{Puts, RefusablePuts, Same},
    usage,
};

/// Puts in flight that fill the store.
const FILL: Shape = Shape::Closed { in_flight: 256 };
/// Calls under way for what is measured one call at a time.
const ALONE: Shape = Shape::Closed { in_flight: 1 };
/// Puts per second while something large goes on.
const MEANWHILE: Shape = Shape::Open { per_second: 1000.0 };
/// Keys of a page, as Kubernetes asks.
const PAGE: i64 = 500;
/// Keys of a page of a full list.
const LARGE_PAGE: i64 = 10_000;
/// How far back "an older revision" is, in puts.
const OLDER: i64 = 1000;
/// Keys that are put while something large goes on.
const BESIDE_KEYS: u64 = 10_000;
/// Time for a server to give back what a step allocated, before memory is read.
const SETTLE: Duration = Duration::from_secs(3);
/// Time in which the latency during something short is measured at least.
const MEANWHILE_MIN: Duration = Duration::from_secs(2);

/// Measures the rows of this life that are wanted.
pub(super) fn run(life: &mut Life<'_>) -> anyhow::Result<()> {
    let base = life.caller()?.revision()?;
    let mut ledger = Ledger::new("m/", life.plan.large);
    let keys = ledger.keys();
    life.generator(256)?.run(FILL, Until::Sent(keys), &mut Puts { ledger: &mut ledger })?;
    memory(life, "loaded")?;
    lists(life, &ledger)?;
    memory(life, "lists")?;
    restart(life)?;
    memory(life, "restarted")?;
    full_lists(life, &ledger)?;
    let mut beside = Beside { ledger: Ledger::new("z/", BESIDE_KEYS), refused: 0 };
    snapshot(life, &mut beside)?;
    if life.wants_any(&["compaction", "defragment"]) {
        rewrite(life, &mut ledger, &mut beside)?;
    }
    let sent = base + i64::try_from(ledger.sent() + beside.ledger.sent())?;
    let refused = i64::try_from(beside.refused)?;
    let revisions = sent - refused..=sent;
    life.caller()?.verify(&ledger, &revisions).context("acknowledged writes are lost")
}

/// Puts beside something large, on keys of their own.
struct Beside {
    ledger: Ledger,
    /// Puts that the server refused meanwhile.
    refused: u64,
}

/// All keys of the ledger.
fn all(ledger: &Ledger) -> RangeRequest {
    RangeRequest {
        key: ledger.prefix().into(),
        range_end: ledger.range_end().into(),
        ..Default::default()
    }
}

fn memory(life: &mut Life<'_>, state: &str) -> anyhow::Result<()> {
    if life.wants("memory") {
        life.window("memory", |_| {
            pause(SETTLE);
            Ok(())
        })?;
        let memory = life.server.memory()?;
        life.record("memory", &format!("{state}.anonymous"), megabytes(memory.anonymous));
        life.record("memory", &format!("{state}.rss"), megabytes(memory.resident));
    }
    Ok(())
}

/// What is asked often and must be cheap: a window of calls, one after the other.
fn lists(life: &mut Life<'_>, ledger: &Ledger) -> anyhow::Result<()> {
    let page = RangeRequest { limit: PAGE, ..all(ledger) };
    let older = life.caller()?.revision()? - OLDER;
    let counting = RangeRequest { count_only: true, ..all(ledger) };
    let keys_only = RangeRequest { keys_only: true, ..all(ledger) };
    let calls = [
        ("list", "head.", page.clone()),
        ("list", "old.", RangeRequest { revision: older, ..page }),
        ("count", "", counting),
        ("keys-only", "", keys_only),
    ];
    for (row, prefix, request) in calls {
        if life.wants(row) {
            life.load(row, prefix, ALONE, &mut Same::new(path::RANGE, &request))?;
        }
    }
    Ok(())
}

fn restart(life: &mut Life<'_>) -> anyhow::Result<()> {
    if life.wants("restart") {
        life.server.terminate()?;
        let took = life.server.resume()?;
        life.record("restart", "seconds", took.as_secs_f64());
        // A window needs one process from end to end; whether the machine was busy shows just after.
        life.window("restart", |life| {
            pause(life.plan.warm_up);
            Ok(())
        })?;
    } else if life.wants("memory") {
        life.server.terminate()?;
        life.server.resume()?;
    }
    Ok(())
}

/// Everything with its values: one answer, a stream, pages.
fn full_lists(life: &mut Life<'_>, ledger: &Ledger) -> anyhow::Result<()> {
    if !life.wants("full-list") {
        return Ok(());
    }
    let request = all(ledger);
    full(life, "unary.", |caller| caller.count(path::RANGE, &request))?;
    full(life, "stream.", |caller| caller.count(path::RANGE_STREAM, &request))?;
    let ledger = ledger.clone();
    full(life, "pages.", |caller| pages(caller, &ledger))
}

fn full(
    life: &mut Life<'_>,
    prefix: &str,
    list: impl Fn(&mut Caller) -> anyhow::Result<u64>,
) -> anyhow::Result<()> {
    let row = "full-list";
    let expected = life.plan.large * 256;
    let pid = life.server.pid()?;
    let ((bytes, extra), cost) = life.window(row, |life| {
        let mut caller = life.caller()?;
        usage::growth(pid, || list(&mut caller))
    })?;
    ensure!(expected < bytes, "{prefix}: {bytes} bytes are less than all values");
    let mut figure = |name: &str, value| life.record(row, &format!("{prefix}{name}"), value);
    figure("seconds", cost.elapsed.as_secs_f64());
    figure("cpu", cost.server.as_secs_f64());
    figure("extra", megabytes(extra));
    figure("extra_over_answer", megabytes(extra) - megabytes(bytes));
    figure("answer", megabytes(bytes));
    Ok(())
}

/// Reads all keys page by page, as clients that list do; returns the bytes of all values and keys.
fn pages(caller: &mut Caller, ledger: &Ledger) -> anyhow::Result<u64> {
    let mut request =
        RangeRequest { limit: LARGE_PAGE, sort_order: SortOrder::None.into(), ..all(ledger) };
    let mut bytes = 0;
    loop {
        let answer = caller.range(&request)?;
        bytes += answer.kvs.iter().map(|kv| kv.value.len() + kv.key.len()).sum::<usize>() as u64;
        let last = answer.kvs.last().context("a page is not empty")?;
        request.key = [&last.key[..], b"\0"].concat().into();
        request.revision = answer.header.as_ref().context("an answer has a header")?.revision;
        if !answer.more {
            return Ok(bytes);
        }
    }
}

/// Runs `work` beside puts at a steady rate; notes how long it took and the latency of the puts.
fn meanwhile(
    life: &mut Life<'_>,
    row: &'static str,
    beside: &mut Beside,
    work: impl FnOnce(&mut Caller) -> anyhow::Result<()> + Send,
) -> anyhow::Result<()> {
    let mut puts = RefusablePuts(Puts { ledger: &mut beside.ledger });
    let quiet = life.load(row, "quiet.", MEANWHILE, &mut puts)?;
    let mut caller = life.caller()?;
    let mut generator = Generator::connect(&[life.server.address()], CONNECTIONS)?;
    let ((tally, took), cost) = life.window(row, |_| {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let over = &over;
            let working = scope.spawn(move || {
                let _end = TellAtEnd(over);
                let started = Instant::now();
                let outcome = work(&mut caller);
                let took = started.elapsed();
                // Too few puts would make no percentile.
                pause(MEANWHILE_MIN.saturating_sub(took));
                outcome.map(|()| took)
            });
            let tally = generator.run(MEANWHILE, Until::Told(over), &mut puts)?;
            let took = working.join().expect("a call reports faults as errors")?;
            Ok((tally, took))
        })
    })?;
    beside.refused += quiet.refused + tally.refused;
    life.record_load(row, "during.", &tally, &cost);
    life.record(row, "seconds", took.as_secs_f64());
    Ok(())
}

fn snapshot(life: &mut Life<'_>, beside: &mut Beside) -> anyhow::Result<()> {
    if !life.wants("snapshot") {
        return Ok(());
    }
    let mut caller = life.caller()?;
    // On its own first: beside puts, how long it takes depends on them.
    let (bytes, cost) =
        life.window("snapshot", |_| caller.count(path::SNAPSHOT, &SnapshotRequest {}))?;
    life.record("snapshot", "alone.seconds", cost.elapsed.as_secs_f64());
    life.record("snapshot", "alone.cpu", cost.server.as_secs_f64());
    life.record("snapshot", "answer", megabytes(bytes));
    meanwhile(life, "snapshot", beside, |caller| {
        caller.count(path::SNAPSHOT, &SnapshotRequest {}).map(|_| ())
    })
}

/// A second version of every key, then what gets rid of the first ones.
fn rewrite(life: &mut Life<'_>, ledger: &mut Ledger, beside: &mut Beside) -> anyhow::Result<()> {
    let keys = ledger.keys();
    life.generator(256)?.run(FILL, Until::Sent(keys), &mut Puts { ledger })?;
    let revision = life.caller()?.revision()?;
    if life.wants("compaction") {
        meanwhile(life, "compaction", beside, |caller| caller.compact(revision))?;
        life.record("compaction", "revisions", count(keys));
    }
    if life.wants("defragment") {
        meanwhile(life, "defragment", beside, Caller::defragment)?;
    }
    Ok(())
}
