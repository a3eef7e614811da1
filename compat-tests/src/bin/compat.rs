//! etcd's own black-box suite, run against oxetcd.
//!
//! Builds `tests/common` of official etcd from its Go module, puts our binary beside the official
//! `etcdctl` and `etcdutl` under the name `etcd`, and runs every case in a network namespace of
//! its own, as the suite has fixed ports. Cases that need what this version does not have are named
//! in `go/not-yet.txt` by pattern and reason; every other case must pass.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use oxetcd_compat_tests::server::oxetcd_program;
use oxetcd_tools::official;

/// Runs etcd's common test suite against oxetcd.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only cases whose Go test name matches this pattern.
    #[arg(long, default_value = ".")]
    run: String,
    /// Try official etcd instead, to see what it passes.
    #[arg(long)]
    official: bool,
    /// Keep the suite's output here.
    #[arg(long)]
    log: Option<PathBuf>,
}

/// What became of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// Cases that are expected not to pass yet.
#[derive(Debug)]
struct NotYet {
    /// A part of the case's name, and why.
    patterns: Vec<(String, String)>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let bin_dir = official::bin_dir()?.context("the suite needs Go")?;
    let work = tempfile::tempdir()?;
    let suite = prepare(work.path(), &bin_dir, arguments.official)?;
    let output = run_suite(&suite, work.path(), &arguments.run)?;
    if let Some(log) = &arguments.log {
        fs::write(log, &output)?;
    }
    let outcomes = parse(&output);
    ensure!(!outcomes.is_empty(), "the suite ran no case; its output is:\n{output}");
    Ok(report(&outcomes, &NotYet::read()?))
}

/// A writable copy of the suite's module, because it leaves files behind and has its fixtures
/// there; and a directory with the three programs.
fn prepare(work: &Path, bin_dir: &Path, try_official: bool) -> anyhow::Result<PathBuf> {
    let go = official::go_module_dir();
    let suite = bin_dir.join("common.test");
    if !suite.exists() {
        run(Command::new("go")
            .args(["test", "-tags", "e2e", "-c", "-o"])
            .arg(&suite)
            .arg("go.etcd.io/etcd/tests/v3/common")
            .current_dir(&go))?;
    }
    let listed = Command::new("go")
        .args(["list", "-m", "-f", "{{.Dir}}", "go.etcd.io/etcd/tests/v3"])
        .current_dir(&go)
        .output()?;
    let module = String::from_utf8(listed.stdout)?;
    let tests = work.join("tests");
    run(Command::new("cp").arg("-r").arg(module.trim()).arg(&tests))?;
    run(Command::new("chmod").args(["-R", "u+w"]).arg(&tests))?;
    let programs = work.join("bin");
    fs::create_dir(&programs)?;
    let server = if try_official { bin_dir.join("etcd") } else { oxetcd_program("oxetcd")? };
    symlink(server.canonicalize()?, programs.join("etcd"))?;
    for tool in ["etcdctl", "etcdutl"] {
        symlink(bin_dir.join(tool).canonicalize()?, programs.join(tool))?;
    }
    Ok(suite.canonicalize()?)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed");
    }
    Ok(())
}

fn run_suite(suite: &Path, work: &Path, pattern: &str) -> anyhow::Result<String> {
    let tests = work.join("tests");
    let script = "ip link set lo up && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["-n", "sh", "-c", script, "sh"])
        .arg(suite)
        .args(["-test.v", "-test.timeout=60m"])
        .arg(format!("-test.run={pattern}"))
        .arg(format!("-bin-dir={}", work.join("bin").display()))
        .arg(format!("-cert-dir={}", tests.join("fixtures").display()))
        .env("E2E_TEST_MINIMAL", "true")
        .current_dir(tests.join("common"))
        .output()
        .context("cannot run the suite: it needs `unshare` and `ip`, and the right to use them")?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// The outcome of every case that has none inside.
fn parse(output: &str) -> BTreeMap<String, Outcome> {
    let mut all = BTreeMap::new();
    for line in output.lines() {
        let Some(rest) = line.trim_start().strip_prefix("--- ") else { continue };
        let Some((word, rest)) = rest.split_once(": ") else { continue };
        let outcome = match word {
            "PASS" => Outcome::Passed,
            "FAIL" => Outcome::Failed,
            "SKIP" => Outcome::Skipped,
            _ => continue,
        };
        let name = rest.rsplit_once(" (").map_or(rest, |(name, _took)| name);
        all.insert(name.to_owned(), outcome);
    }
    let names: Vec<_> = all.keys().cloned().collect();
    all.retain(|name, _| {
        let inside = |other: &String| {
            other.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        !names.iter().any(inside)
    });
    all
}

impl NotYet {
    fn read() -> anyhow::Result<Self> {
        let text = fs::read_to_string(official::go_module_dir().join("not-yet.txt"))?;
        let patterns = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| {
                let (pattern, reason) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
                (pattern.to_owned(), reason.trim().to_owned())
            })
            .collect();
        Ok(Self { patterns })
    }

    fn reason(&self, case: &str) -> Option<&str> {
        let found = self.patterns.iter().find(|(pattern, _)| case.contains(pattern.as_str()));
        found.map(|(_, reason)| reason.as_str())
    }
}

#[expect(clippy::print_stdout, reason = "a person reads the report")]
fn report(outcomes: &BTreeMap<String, Outcome>, not_yet: &NotYet) -> ExitCode {
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (case, outcome) in outcomes {
        match (outcome, not_yet.reason(case)) {
            (Outcome::Passed, reason) => {
                passed += 1;
                let note = reason.map(|reason| format!(" (listed as: {reason})"));
                println!("passed   {case}{}", note.unwrap_or_default());
            }
            (Outcome::Failed, None) => {
                failed += 1;
                println!("FAILED   {case}");
            }
            (Outcome::Failed, Some(reason)) => {
                skipped += 1;
                println!("not yet  {case}: {reason}");
            }
            (Outcome::Skipped, _) => {
                skipped += 1;
                println!("skipped by the suite itself: {case}");
            }
        }
    }
    println!("etcd tests/common: {passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
