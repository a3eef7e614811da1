//! Crash cycles under a ledger, many of them.
//!
//! `fault --cycles 1000` kills and restarts an oxetcd that many times and compares after each.

use anyhow::Context;
use clap::Parser;
use oxetcd_compat_tests::{
    fault::{FLAGS, FaultRun},
    server::{Kind, Server},
};

/// Kills a server again and again and checks that nothing acknowledged is lost.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often.
    #[arg(long, default_value_t = 1000)]
    cycles: u64,
    /// Makes the same plans again.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Try official etcd instead, to check the check.
    #[arg(long)]
    official: bool,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "a person watches")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let kind = if arguments.official { Kind::Official } else { Kind::Oxetcd };
    let server = Server::start(kind, &FLAGS)?.context("the server is not installed")?;
    let mut run = FaultRun::new(server, arguments.seed);
    let mut failed = 0;
    let mut passed = 0;
    for cycle in 1..=arguments.cycles {
        if let Err(error) = run.cycle().await {
            println!("cycle {cycle} (seed {}): {error:#}", arguments.seed);
            failed += 1;
            break;
        }
        passed += 1;
        if cycle % 50 == 0 {
            let (acknowledged, recovered) = run.counts();
            println!("{cycle} cycles: {acknowledged} acknowledged writes found, {recovered} more");
        }
    }
    println!("{passed} passed, {failed} failed");
    anyhow::ensure!(failed == 0, "a cycle failed");
    Ok(())
}
