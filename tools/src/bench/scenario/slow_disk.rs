//! Reads on a disk that takes 20 ms to sync, while puts wait for it.
//!
//! The delay is injected into the sync calls of the server process by `strace`, which works alike
//! for a server that calls the system directly (Go) and one that goes through the C library. With
//! its filter inside the kernel, all other calls run at full speed.

use std::{
    process::{Command, Stdio},
    sync::atomic::AtomicBool,
    time::Duration,
};

use super::life::Life;
use crate::bench::{
    ledger::Ledger,
    load::{Shape, TellAtEnd, Until},
    requests::{Gets, Puts, Reading},
    server::Options,
};

/// The row of this scenario.
const ROW: &str = "slow-disk";
/// How much longer a sync takes, in microseconds.
const DELAY_MICROS: u64 = 20_000;
/// A put that takes less was not delayed.
const PUT_MIN: Duration = Duration::from_millis(15);
/// Gets per second.
const GETS: Shape = Shape::Open { per_second: 1000.0 };
/// Puts that are under way meanwhile.
const PUTS: Shape = Shape::Closed { in_flight: 64 };
/// Keys that are put and read.
const KEYS: u64 = 1000;

/// A server whose syncs are slow, where that can be had.
pub(super) fn options() -> Options {
    let mut words = tracer();
    if !works(&words) {
        words.clear();
    }
    Options { wrapper: words, ..Options::default() }
}

/// The tracer as the server's grandchild, so that the process started is the server itself.
fn tracer() -> Vec<String> {
    let calls = "fsync,fdatasync,msync,sync_file_range";
    let inject = format!("inject={calls}:delay_enter={DELAY_MICROS}");
    let trace = format!("trace={calls}");
    ["strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", &trace, "-e", &inject]
        .map(str::to_owned)
        .to_vec()
}

fn works(words: &[String]) -> bool {
    let [program, rest @ ..] = words else { return false };
    let status = Command::new(program)
        .args(rest)
        .arg("true")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

/// Measures the row.
pub(super) fn run(life: &mut Life<'_>) -> anyhow::Result<()> {
    if life.server.is_wrapped() {
        measure(life)
    } else {
        life.skip(ROW, "it needs strace with --seccomp-bpf, and the right to trace");
        Ok(())
    }
}

fn measure(life: &mut Life<'_>) -> anyhow::Result<()> {
    let mut ledger = Ledger::new("s/", KEYS);
    life.generator(64)?.run(PUTS, Until::Sent(KEYS), &mut Puts { ledger: &mut ledger })?;
    let one = Shape::Closed { in_flight: 1 };
    let alone = life.generator(1)?.run(one, Until::Sent(3), &mut Puts { ledger: &mut ledger })?;
    if alone.latency.min() < u64::try_from(PUT_MIN.as_micros())? {
        life.skip(ROW, "the delay did not reach the server's syncs");
        return Ok(());
    }
    let keys = ledger.clone();
    life.load(ROW, "quiet.", GETS, &mut Gets::new(&keys, Reading::Linearizable))?;

    let over = AtomicBool::new(false);
    let mut putting = life.generator(64)?;
    let tally = std::thread::scope(|scope| {
        let load = scope
            .spawn(|| putting.run(PUTS, Until::Told(&over), &mut Puts { ledger: &mut ledger }));
        let gets = {
            let _end = TellAtEnd(&over);
            life.load(ROW, "during.", GETS, &mut Gets::new(&keys, Reading::Linearizable))
        };
        let puts = load.join().expect("a load reports faults as errors");
        gets.and(puts)
    })?;
    life.record(ROW, "puts_per_second", tally.per_second());
    Ok(())
}
