//! Leases: keepalives, and very many that expire together.

use std::{
    net::SocketAddr,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use anyhow::ensure;
use proto::etcdserverpb::LeaseLeasesRequest;

use super::life::{Life, count};
use crate::bench::{
    caller::Caller,
    ledger::Ledger,
    load::{Requests, Shape, TellAtEnd, Until},
    path,
    probe::pause,
    requests::{Grants, KeepAlives, Puts, RefusablePuts},
    server::Side,
};

/// Streams of keepalives, each with one lease.
const STREAMS: usize = 64;
/// The time to live of leases that must not expire, in seconds.
const LONG_SECONDS: i64 = 3600;
/// Leases that expire together.
const EXPIRING: u64 = 200_000;
/// From the first grant to the common expiry; granting them all must take less.
const EXPIRY_AFTER: Duration = Duration::from_secs(25);
/// How long the expiry of all is watched. Official etcd revokes a thousand a second and would take
/// minutes; its rate over this time says enough.
const EXPIRY_WATCHED: Duration = Duration::from_secs(30);
/// The same for official etcd.
const EXPIRY_WATCHED_OFFICIAL: Duration = Duration::from_secs(8);
/// How often the leases that are left are counted.
const COUNT_EVERY: Duration = Duration::from_millis(100);
/// Puts per second meanwhile.
const PUTS_PER_SECOND: f64 = 1000.0;

/// Measures the rows of this life that are wanted.
pub(super) fn run(life: &mut Life<'_>) -> anyhow::Result<()> {
    if life.wants("lease-keepalive") {
        keep_alive(life)?;
    }
    if life.wants("lease-expiry") {
        expiry(life)?;
    }
    Ok(())
}

fn keep_alive(life: &mut Life<'_>) -> anyhow::Result<()> {
    let mut caller = life.caller()?;
    let leases: anyhow::Result<Vec<_>> = (0..STREAMS).map(|_| caller.grant(LONG_SECONDS)).collect();
    let shape = Shape::Closed { in_flight: STREAMS };
    life.load("lease-keepalive", "", shape, &mut KeepAlives::new(leases?))?;
    Ok(())
}

/// Grants whose time to live ends at one instant, as near as whole seconds allow.
struct DueTogether {
    grants: Grants,
    due: Instant,
}

impl Requests for DueTogether {
    fn path(&self) -> &'static str {
        path::LEASE_GRANT
    }

    fn next(&mut self, slot: usize, message: &mut Vec<u8>) {
        let left = self.due.saturating_duration_since(Instant::now());
        self.grants.ttl_seconds = i64::try_from(left.as_secs()).expect("half a minute");
        self.grants.next(slot, message);
    }
}

fn expiry(life: &mut Life<'_>) -> anyhow::Result<()> {
    let row = "lease-expiry";
    let mut ledger = Ledger::new("e/", 1000);
    let shape = Shape::Open { per_second: PUTS_PER_SECOND };
    life.load(row, "quiet.", shape, &mut Puts { ledger: &mut ledger })?;

    let due = Instant::now() + EXPIRY_AFTER;
    let grants = Grants { ttl_seconds: 0, next_id: 1_000_000 };
    let closed = Shape::Closed { in_flight: 256 };
    let mut grants = DueTogether { grants, due };
    life.generator(256)?.run(closed, Until::Sent(EXPIRING), &mut grants)?;
    ensure!(Instant::now() < due, "granting {EXPIRING} leases took longer than {EXPIRY_AFTER:?}");
    let bytes_of_all = life.caller()?.count(path::LEASE_LEASES, &LeaseLeasesRequest {})?;
    // Whole seconds left of the time to live were cut off: the first expire a second early.
    let first_due = due.checked_sub(Duration::from_secs(1)).unwrap_or(due);
    pause(first_due.saturating_duration_since(Instant::now()));

    let watched = match life.side() {
        Side::Official => EXPIRY_WATCHED_OFFICIAL,
        Side::Ours => EXPIRY_WATCHED,
    };
    let address = life.server.address();
    let ((tally, expired), cost) = life.window(row, |life| {
        let over = AtomicBool::new(false);
        let mut generator = life.generator(8)?;
        std::thread::scope(|scope| {
            let counting = scope.spawn(|| {
                let _end = TellAtEnd(&over);
                count_expired(address, count(bytes_of_all), first_due, watched)
            });
            let mut puts = RefusablePuts(Puts { ledger: &mut ledger });
            let tally = generator.run(shape, Until::Told(&over), &mut puts)?;
            let expired = counting.join().expect("counting reports faults as errors")?;
            Ok((tally, expired))
        })
    })?;
    life.record_load(row, "during.", &tally, &cost);
    life.record(row, "expired", expired.leases);
    life.record(row, "per_second", expired.leases / expired.seconds);
    Ok(())
}

struct Expired {
    leases: f64,
    seconds: f64,
}

/// Counts leases by the bytes of their list until (nearly) all are gone or the time is over.
fn count_expired(
    address: SocketAddr,
    bytes_of_all: f64,
    due: Instant,
    watched: Duration,
) -> anyhow::Result<Expired> {
    let mut caller = Caller::connect(address)?;
    let all = count(EXPIRING);
    loop {
        let bytes = count(caller.count(path::LEASE_LEASES, &LeaseLeasesRequest {})?);
        let left = all * bytes / bytes_of_all;
        let seconds = due.elapsed().as_secs_f64().max(0.001);
        if left < all / 100.0 || watched.as_secs_f64() < seconds {
            return Ok(Expired { leases: all - left, seconds });
        }
        pause(COUNT_EVERY);
    }
}
