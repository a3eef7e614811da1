//! Three members on one machine: puts, gets, an idle group, and the time without a leader.
//!
//! Clients are connected to all three in turn, as clients of a group are, so two thirds of the
//! requests go through followers. Every write is in a ledger. The group's cost is that of all
//! members together.
//!
//! A leader is killed in a group at rest: all members have applied the same log and have had the same
//! leader for a while. A member that has just started counts towards an election what it has slept,
//! in etcd, so a kill right after a start would measure that instead.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use proto::etcdserverpb::{PutRequest, PutResponse, StatusRequest, StatusResponse};

use super::life::{Life, count};
use crate::bench::{
    caller::Caller,
    ledger::Ledger,
    load::Shape,
    path,
    probe::pause,
    requests::{Gets, Puts, Reading},
    statistics::percentile,
};

/// Members beside the first.
pub(super) const COMPANIONS: usize = 2;
/// Keys that are put and read.
const KEYS: u64 = 100_000;
/// How long an idle group is watched at least. It uses less than a hundredth of a processor, which
/// the system counts in hundredths of a second.
const IDLE_MIN: Duration = Duration::from_secs(20);
/// How often the leader is killed in one life.
const KILLS: usize = 5;
/// Between two looks for a leader.
const LOOK: Duration = Duration::from_millis(1);
/// How long a group must have been at rest before its leader is killed.
const REST: Duration = Duration::from_secs(3);
/// How long a group may take until it is at rest.
const REST_MAX: Duration = Duration::from_secs(60);
/// Between two looks whether a group is at rest: seldom, so that looking costs its members nothing.
const REST_LOOK: Duration = Duration::from_millis(100);
/// How long a group may be without a leader.
const FAIL_OVER_MAX: Duration = Duration::from_secs(30);

/// Measures the rows of this life that are wanted.
pub(super) fn run(life: &mut Life<'_>) -> anyhow::Result<()> {
    if life.wants("group-idle") {
        let (elapsed, cost) = life.window("group-idle", |life| {
            let started = Instant::now();
            pause(life.plan.window.max(IDLE_MIN));
            Ok(started.elapsed())
        })?;
        let share = cost.server.as_secs_f64() / elapsed.as_secs_f64();
        life.record("group-idle", "cpu", share * 100.0);
    }
    let base = life.caller()?.revision()?;
    let mut puts = Ledger::new("a/", KEYS);
    for (row, in_flight) in [("group-put-64", 64), ("group-put-512", 512)] {
        if life.wants(row) {
            let shape = Shape::Closed { in_flight };
            life.load(row, "", shape, &mut Puts { ledger: &mut puts })?;
            verify(life, &puts, base)?;
        }
    }
    if life.wants("group-get") && 0 < puts.sent() {
        let shape = Shape::Closed { in_flight: 64 };
        let mut gets = Gets::new(&puts, Reading::Linearizable);
        life.load("group-get", "", shape, &mut gets)?;
    }
    if life.wants("fail-over") {
        fail_over(life)?;
    }
    Ok(())
}

fn verify(life: &Life<'_>, puts: &Ledger, base: i64) -> anyhow::Result<()> {
    let revision = base + i64::try_from(puts.sent())?;
    let name = life.side().name();
    for address in life.server.addresses() {
        Caller::connect(address)?
            .verify(puts, &(revision..=revision))
            .with_context(|| format!("{name} has lost acknowledged writes"))?;
    }
    Ok(())
}

/// Kills the leader again and again; how long until a put through another member is answered.
fn fail_over(life: &mut Life<'_>) -> anyhow::Result<()> {
    let mut times = Vec::new();
    for kill in 1..=KILLS {
        wait_for_rest(life)?;
        let dead = life.server.kill_leader()?;
        let killed = Instant::now();
        let mut survivor = Caller::connect(life.server.address_of_running()?)?;
        // A put before there is a leader would go to the dead one, and tell of a time-out.
        while [0, dead].contains(&survivor.leader()?.0) {
            ensure!(killed.elapsed() < FAIL_OVER_MAX, "nobody leads after {FAIL_OVER_MAX:?}");
            pause(LOOK);
        }
        let request =
            PutRequest { key: "fail-over".into(), value: "x".into(), ..Default::default() };
        let _answer: PutResponse = survivor.call(path::PUT, &request)?;
        let time = killed.elapsed().as_secs_f64() * 1e3;
        life.record("fail-over", &format!("kill-{kill}"), time);
        times.push(time);
        life.server.resume_ended()?;
    }
    let mean = times.iter().sum::<f64>() / count(KILLS as u64);
    life.record("fail-over", "mean", mean);
    life.record("fail-over", "median", percentile(&times, 50.0));
    life.record("fail-over", "max", times.iter().copied().fold(0.0, f64::max));
    Ok(())
}

/// Waits until all members have had the same leader, term and applied log for [`REST`].
fn wait_for_rest(life: &Life<'_>) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut members = Vec::new();
    for address in life.server.addresses() {
        members.push(Caller::connect(address)?);
    }
    let mut since: Option<(Position, Instant)> = None;
    loop {
        ensure!(started.elapsed() < REST_MAX, "the group was not at rest within {REST_MAX:?}");
        let positions =
            members.iter_mut().map(position).collect::<anyhow::Result<BTreeSet<Position>>>()?;
        let shared = positions.first().filter(|one| positions.len() == 1 && one.is_settled());
        since = match (shared, since) {
            (Some(now), Some((then, from))) if now.is_led_like(&then) => Some((*now, from)),
            (now, _) => now.map(|now| (*now, Instant::now())),
        };
        if since.is_some_and(|(_, from)| REST <= from.elapsed()) {
            return Ok(());
        }
        pause(REST_LOOK);
    }
}

/// Where a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    leader: u64,
    term: u64,
    last: u64,
    applied: u64,
}

impl Position {
    const fn is_settled(&self) -> bool {
        self.leader != 0 && self.last == self.applied
    }

    /// A server writes entries of its own now and then, which disturb nobody.
    const fn is_led_like(&self, other: &Self) -> bool {
        self.leader == other.leader && self.term == other.term
    }
}

fn position(member: &mut Caller) -> anyhow::Result<Position> {
    let StatusResponse { leader, raft_term, raft_index, raft_applied_index, .. } =
        member.call(path::STATUS, &StatusRequest {})?;
    Ok(Position { leader, term: raft_term, last: raft_index, applied: raft_applied_index })
}
