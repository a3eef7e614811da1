//! Partitions of a group under a ledger, many of them.
//!
//! `partition --runs 24` cuts the network between three members that often, in turn in every way,
//! and compares after each.

use std::process::ExitCode;

use clap::Parser;
use oxetcd_compat_tests::{
    network,
    partition::{CUTS, PartitionRun},
    server::Kind,
};

/// Cuts the network between members again and again and checks that nothing acknowledged is lost.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often.
    #[arg(long, default_value_t = 24)]
    runs: usize,
    /// Makes the same plans again.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Try official etcd instead, to check the check.
    #[arg(long)]
    official: bool,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "a person watches")]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    network::enter()?;
    let kind = if arguments.official { Kind::Official } else { Kind::Oxetcd };
    let mut partitions = PartitionRun::start(kind, arguments.seed)?;
    let (mut passed, mut failed) = (0, 0);
    for (number, cut) in (1..=arguments.runs).zip(CUTS.into_iter().cycle()) {
        match partitions.run(cut).await {
            Ok(()) => {
                passed += 1;
                let (acknowledged, recovered) = partitions.counts();
                println!("{number} {cut:?}: {acknowledged} writes found, {recovered} more");
            }
            Err(error) => {
                failed += 1;
                println!("{number} {cut:?} (seed {}): {error:#}", arguments.seed);
                break;
            }
        }
    }
    println!("partitions: {passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
