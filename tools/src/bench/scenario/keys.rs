//! Puts, gets and transactions on single keys, from an empty store.
//!
//! Every write of the life is in a ledger; after each window that wrote, the store is compared with
//! it. The first pair ends with a load that is cut off by a kill, after which nothing acknowledged
//! may be missing.

use anyhow::Context;
use proto::etcdserverpb::{RangeRequest, RangeResponse};

use super::life::{Life, megabytes};
use crate::bench::{
    ledger::Ledger,
    load::{Shape, Until},
    path,
    requests::{Gets, Puts, Reading, Txns},
};

/// Keys that are put and read.
const KEYS: u64 = 100_000;
/// Keys that transactions update.
const UPDATED: u64 = 10_000;
/// More creates than any run makes.
const CREATED_MAX: u64 = 1 << 32;
/// Requests in flight for puts that fill or end a life.
const FILL_IN_FLIGHT: usize = 256;
/// Puts of the load that a kill ends.
const LAST_PUTS: u64 = 20_000;
/// Requests in flight for the chart.
const CHART_IN_FLIGHT: [usize; 5] = [1, 8, 64, 256, 1000];

/// The store as it must be.
struct Store {
    puts: Ledger,
    created: Ledger,
    updated: Ledger,
    /// The revision before the first write.
    base: i64,
}

impl Store {
    fn revision(&self) -> anyhow::Result<i64> {
        let writes = self.puts.sent() + self.created.sent() + self.updated.sent();
        Ok(self.base + i64::try_from(writes)?)
    }

    fn verify(&self, life: &Life<'_>) -> anyhow::Result<()> {
        let mut caller = life.caller()?;
        let revision = self.revision()?;
        for ledger in [&self.puts, &self.created, &self.updated] {
            let name = life.side().name();
            caller
                .verify(ledger, &(revision..=revision))
                .with_context(|| format!("{name} has lost acknowledged writes"))?;
        }
        Ok(())
    }
}

/// Measures the rows of this life that are wanted.
pub(super) fn run(life: &mut Life<'_>) -> anyhow::Result<()> {
    if life.wants("idle") {
        idle(life)?;
    }
    let mut store = Store {
        puts: Ledger::new("a/", KEYS),
        created: Ledger::new("c/", CREATED_MAX),
        updated: Ledger::new("u/", UPDATED),
        base: life.caller()?.revision()?,
    };
    puts(life, &mut store)?;
    if life.wants_any(&["get", "concurrency"]) {
        fill(life, &mut store)?;
    }
    if life.wants("get") {
        gets(life, &store)?;
    }
    if life.wants("txn") {
        txns(life, &mut store)?;
    }
    if life.wants("concurrency") {
        by_concurrency(life, &mut store)?;
    }
    if life.ends_with_kill {
        kill_after_load(life, &mut store)?;
    }
    Ok(())
}

fn idle(life: &mut Life<'_>) -> anyhow::Result<()> {
    let (_, _) = life.window("idle", |life| {
        // An idle server settles: what its start allocated is given back.
        crate::bench::probe::pause(life.plan.warm_up);
        Ok(())
    })?;
    let memory = life.server.memory()?;
    life.record("idle", "rss", megabytes(memory.resident));
    life.record("idle", "anonymous", megabytes(memory.anonymous));
    Ok(())
}

fn puts(life: &mut Life<'_>, store: &mut Store) -> anyhow::Result<()> {
    let rows = [
        ("put-1", Shape::Closed { in_flight: 1 }),
        ("put-64", Shape::Closed { in_flight: 64 }),
        ("put-256", Shape::Closed { in_flight: 256 }),
        ("put-open", Shape::Open { per_second: 10_000.0 }),
    ];
    for (row, shape) in rows {
        if life.wants(row) {
            life.load(row, "", shape, &mut Puts { ledger: &mut store.puts })?;
            store.verify(life)?;
        }
    }
    Ok(())
}

/// Makes sure that all keys exist.
fn fill(life: &Life<'_>, store: &mut Store) -> anyhow::Result<()> {
    let missing = KEYS.saturating_sub(store.puts.sent());
    if 0 < missing {
        let mut generator = life.generator(FILL_IN_FLIGHT)?;
        let shape = Shape::Closed { in_flight: FILL_IN_FLIGHT };
        generator.run(shape, Until::Sent(missing), &mut Puts { ledger: &mut store.puts })?;
    }
    Ok(())
}

fn gets(life: &mut Life<'_>, store: &Store) -> anyhow::Result<()> {
    let shape = Shape::Closed { in_flight: 64 };
    for (prefix, reading) in [("s.", Reading::Serializable), ("l.", Reading::Linearizable)] {
        life.load("get", prefix, shape, &mut Gets::new(&store.puts, reading))?;
    }
    Ok(())
}

fn txns(life: &mut Life<'_>, store: &mut Store) -> anyhow::Result<()> {
    let mut generator = life.generator(FILL_IN_FLIGHT)?;
    let shape = Shape::Closed { in_flight: FILL_IN_FLIGHT };
    generator.run(shape, Until::Sent(UPDATED), &mut Puts { ledger: &mut store.updated })?;
    let revisions = revisions_of(life, &store.updated)?;
    let mut txns = Txns::new(&mut store.created, &mut store.updated, revisions);
    life.load("txn", "", shape, &mut txns)?;
    store.verify(life)
}

/// When each key was last written, by its place in key order.
fn revisions_of(life: &Life<'_>, ledger: &Ledger) -> anyhow::Result<Vec<i64>> {
    let request = RangeRequest {
        key: ledger.prefix().into(),
        range_end: ledger.range_end().into(),
        keys_only: true,
        ..Default::default()
    };
    let answer: RangeResponse = life.caller()?.call(path::RANGE, &request)?;
    Ok(answer.kvs.iter().map(|kv| kv.mod_revision).collect())
}

fn by_concurrency(life: &mut Life<'_>, store: &mut Store) -> anyhow::Result<()> {
    for in_flight in CHART_IN_FLIGHT {
        let shape = Shape::Closed { in_flight };
        let prefix = format!("put.{in_flight}.");
        life.load("concurrency", &prefix, shape, &mut Puts { ledger: &mut store.puts })?;
        let prefix = format!("get.{in_flight}.");
        let mut gets = Gets::new(&store.puts, Reading::Linearizable);
        life.load("concurrency", &prefix, shape, &mut gets)?;
    }
    store.verify(life)
}

/// Puts, and a kill at the instant the last one is acknowledged.
fn kill_after_load(life: &mut Life<'_>, store: &mut Store) -> anyhow::Result<()> {
    let mut generator = life.generator(FILL_IN_FLIGHT)?;
    let shape = Shape::Closed { in_flight: FILL_IN_FLIGHT };
    generator.run(shape, Until::Sent(LAST_PUTS), &mut Puts { ledger: &mut store.puts })?;
    life.server.kill();
    life.server.resume()?;
    store.verify(life).context("after a kill")
}
