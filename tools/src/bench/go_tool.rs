//! The generator beside etcd's own `benchmark`, at a rate that both reach with ease.
//!
//! Shows that the light generator measures what the known one measures: at a low rate neither is a
//! bottleneck, so rate, latency and the server's processor time must agree. Called by
//! `oxetcd-bench --check-generator`.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use super::{
    ledger::{KEY_BYTES, Ledger, VALUE_BYTES},
    load::{CONNECTIONS, Generator, Shape, Until},
    requests::Puts,
    server::{Options, Server, Side},
    usage::{Window, ended_children},
};

/// Puts per second. Both send as an open loop would: far below what the server can do.
const PER_SECOND: u32 = 500;
/// How long.
const SECONDS: u32 = 10;
/// Keys that are put.
const KEYS: u32 = 10_000;

/// What one generator found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Which one.
    pub name: &'static str,
    /// Answers per second.
    pub per_second: f64,
    /// Median latency in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile in milliseconds.
    pub p99_ms: f64,
    /// Processor time of the server, seconds per 100,000.
    pub server_cpu: f64,
    /// Processor time of the generator, seconds per 100,000.
    pub generator_cpu: f64,
}

/// Runs both against the server `program`, ours first.
///
/// # Errors
/// If the server or the tool fails.
pub fn compare(program: &Path, tool: &Path, work_dir: &Path) -> anyhow::Result<[Found; 2]> {
    Ok([ours(program, work_dir)?, official(program, tool, work_dir)?])
}

fn ours(program: &Path, work_dir: &Path) -> anyhow::Result<Found> {
    let server = Server::start(Side::Official, program, work_dir, &Options::default())?;
    let mut generator = Generator::connect(&[server.address()], CONNECTIONS)?;
    let mut ledger = Ledger::new("a/", u64::from(KEYS));
    let shape = Shape::Open { per_second: f64::from(PER_SECOND) };
    let window = Window::open(server.pids()?, work_dir)?;
    let until = Until::Elapsed(Duration::from_secs(u64::from(SECONDS)));
    let tally = generator.run(shape, until, &mut Puts { ledger: &mut ledger })?;
    let cost = window.close()?;
    let operations = f64::from(u32::try_from(tally.operations)?);
    Ok(Found {
        name: "oxetcd-bench",
        per_second: tally.per_second(),
        p50_ms: tally.latency_ms(50.0),
        p99_ms: tally.latency_ms(99.0),
        server_cpu: cost.server.as_secs_f64() / operations * 1e5,
        generator_cpu: cost.generator.as_secs_f64() / operations * 1e5,
    })
}

fn official(program: &Path, tool: &Path, work_dir: &Path) -> anyhow::Result<Found> {
    let server = Server::start(Side::Official, program, work_dir, &Options::default())?;
    let window = Window::open(server.pids()?, work_dir)?;
    let before = ended_children()?;
    let started = Instant::now();
    let output = Command::new(tool)
        .arg(format!("--endpoints={}", server.address()))
        .arg(format!("--conns={CONNECTIONS}"))
        .args(["--clients=64", "--precise", "put"])
        .arg(format!("--rate={PER_SECOND}"))
        .arg(format!("--total={}", PER_SECOND * SECONDS))
        .arg(format!("--key-size={KEY_BYTES}"))
        .arg(format!("--val-size={VALUE_BYTES}"))
        .arg(format!("--key-space-size={KEYS}"))
        .output()
        .with_context(|| format!("cannot run {}", tool.display()))?;
    let elapsed = started.elapsed();
    ensure!(output.status.success(), "the tool ended with {}", output.status);
    let cost = window.close()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let operations = f64::from(PER_SECOND * SECONDS);
    Ok(Found {
        name: "benchmark (Go)",
        per_second: operations / elapsed.as_secs_f64(),
        p50_ms: seconds_at(&text, "50% in ")? * 1e3,
        p99_ms: seconds_at(&text, "99% in ")? * 1e3,
        server_cpu: cost.server.as_secs_f64() / operations * 1e5,
        generator_cpu: (ended_children()? - before).as_secs_f64() / operations * 1e5,
    })
}

/// The number of seconds behind `name` in the tool's summary.
fn seconds_at(text: &str, name: &str) -> anyhow::Result<f64> {
    let (_, rest) = text.split_once(name).with_context(|| format!("no {name:?} in {text}"))?;
    let word = rest.split_whitespace().next().context("the summary ends early")?;
    word.parse().with_context(|| format!("{word} is no number"))
}

#[cfg(test)]
mod tests {
    use super::seconds_at;

    #[test]
    fn summary_of_the_tool_is_read() {
        let text = "Latency distribution:\n  50% in 0.0004 secs.\n  99% in 0.0051 secs.\n";
        assert!((seconds_at(text, "50% in ").unwrap() - 0.0004).abs() < 1e-12);
        assert!((seconds_at(text, "99% in ").unwrap() - 0.0051).abs() < 1e-12);
        assert!(seconds_at(text, "90% in ").is_err());
    }
}
