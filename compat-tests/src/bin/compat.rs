//! etcd's own black-box suites, run against oxetcd, and Kubernetes' API server on a group of it.
//!
//! Builds `tests/common` and `tests/e2e` of official etcd from their Go module, puts our binary
//! beside the official `etcdctl` and `etcdutl` under the name `etcd`, and runs the cases in a network
//! namespace of their own, as the suites have fixed ports. Of `tests/e2e` these are the cases of the
//! files that look at a server from outside. Of `tests/robustness` it is the exploratory scenarios,
//! some times over. Cases that need what this version does not have are
//! named in `go/not-yet.txt` by pattern and reason; every other case must pass.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, bail, ensure};
use clap::{Parser, ValueEnum};
use oxetcd_compat_tests::{
    kubernetes, robustness,
    server::{Kind, oxetcd_program},
};
use oxetcd_tools::official;

/// The files of `tests/e2e` whose cases are run.
const E2E_FILES: &[&str] = &[
    "corrupt_test.go",
    "ctl_v3_kv_test.go",
    "ctl_v3_lease_test.go",
    "ctl_v3_member_no_proxy_test.go",
    "ctl_v3_member_test.go",
    "ctl_v3_move_leader_test.go",
    "ctl_v3_snapshot_test.go",
    "ctl_v3_watch_test.go",
    "discovery_v3_test.go",
    "failover_test.go",
    "force_new_cluster_test.go",
    "graceful_shutdown_test.go",
    "http_health_check_test.go",
    "leader_snapshot_no_proxy_test.go",
    "member_no_proxy_test.go",
    "runtime_reconfiguration_test.go",
    "txn_range_consistency_test.go",
    "v3_lease_no_proxy_test.go",
    "watch_test.go",
];

/// One of etcd's suites.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// `tests/common`.
    Common,
    /// The black-box cases of `tests/e2e`.
    E2e,
    /// The exploratory scenarios of `tests/robustness`.
    Robustness,
    /// Not etcd's: a Kubernetes API server on three members that are killed in turn.
    Kubernetes,
}

/// Runs etcd's test suites against oxetcd.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only this suite.
    #[arg(long, value_enum)]
    suite: Option<Suite>,
    /// Only cases whose Go test name matches this pattern.
    #[arg(long)]
    run: Option<String>,
    /// How often the robustness suite is run; each time it has eight scenarios.
    #[arg(long, default_value_t = 3)]
    robustness_rounds: u32,
    /// Serves empty lists of failpoints for the robustness suite instead.
    #[arg(long, hide = true)]
    serve_failpoints: bool,
    /// Try official etcd instead, to see what it passes.
    #[arg(long)]
    official: bool,
    /// Keep the suites' output here.
    #[arg(long)]
    log: Option<PathBuf>,
}

/// What became of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Skipped,
    Passed,
    Failed,
}

/// Cases that are expected not to pass yet.
#[derive(Debug)]
struct NotYet {
    /// A part of the case's name, or `=` and all of it; and why.
    patterns: Vec<(String, String)>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.serve_failpoints {
        robustness::serve_failpoints()?;
    }
    let Some(bin_dir) = official::bin_dir()? else {
        say("SKIPPED: etcd's suites and Kubernetes are built with Go, and Go is not installed");
        return Ok(Total::default().conclude());
    };
    let work = tempfile::tempdir()?;
    if arguments.suite != Some(Suite::Kubernetes) {
        prepare(work.path(), &bin_dir, arguments.official)?;
    }
    let (mut total, mut output) = (Total::default(), String::new());
    let mut suites =
        arguments.suite.map_or_else(|| Suite::value_variants().to_vec(), |only| vec![only]);
    // It has no cases to choose from.
    suites.retain(|suite| *suite != Suite::Kubernetes || arguments.run.is_none());
    for suite in suites {
        let program = match suite {
            Suite::Kubernetes => {
                total.add(run_kubernetes(arguments.official)?);
                continue;
            }
            Suite::Robustness => robustness::build(&work.path().join("tests"))?,
            Suite::Common | Suite::E2e => suite.build(&bin_dir)?,
        };
        let pattern = match &arguments.run {
            Some(pattern) => pattern.clone(),
            None => suite.pattern(work.path())?,
        };
        let rounds = if suite == Suite::Robustness { arguments.robustness_rounds } else { 1 };
        let text = run_suite(suite, &program, work.path(), &pattern, rounds)?;
        let outcomes = parse(&text);
        ensure!(!outcomes.is_empty(), "the suite ran no case; its output is:\n{text}");
        output.push_str(&text);
        total.add(report(suite, &outcomes, &NotYet::read()?));
    }
    if let Some(log) = &arguments.log {
        fs::write(log, &output)?;
    }
    Ok(total.conclude())
}

impl Suite {
    const fn name(self) -> &'static str {
        match self {
            Self::Common => "common",
            Self::E2e => "e2e",
            Self::Robustness => "robustness",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// The suite's program, built if it is not there yet.
    fn build(self, bin_dir: &Path) -> anyhow::Result<PathBuf> {
        let program = bin_dir.join(format!("{}.test", self.name()));
        if !program.exists() {
            run(Command::new("go")
                .args(["test", "-tags", "e2e", "-c", "-o"])
                .arg(&program)
                .arg(format!("go.etcd.io/etcd/tests/v3/{}", self.name()))
                .current_dir(official::go_module_dir()))?;
        }
        Ok(program.canonicalize()?)
    }

    /// What matches the names of the cases that are wanted.
    fn pattern(self, work: &Path) -> anyhow::Result<String> {
        match self {
            Self::Common => return Ok(".".to_owned()),
            Self::Robustness => return Ok("^TestRobustnessExploratory$".to_owned()),
            Self::Kubernetes => bail!("the Kubernetes suite has no Go tests"),
            Self::E2e => {}
        }
        let mut names = Vec::new();
        for file in E2E_FILES {
            let file = work.join("tests/e2e").join(file);
            let text =
                fs::read_to_string(&file).with_context(|| format!("no {}", file.display()))?;
            let found = text.lines().filter_map(|line| line.strip_prefix("func Test"));
            names.extend(found.filter_map(|rest| Some(rest.split_once('(')?.0.to_owned())));
        }
        Ok(format!("^Test({})$", names.join("|")))
    }
}

/// Makes a writable copy of the suites' module, because they leave files behind and have their
/// fixtures there; and a directory with the three programs.
fn prepare(work: &Path, bin_dir: &Path, try_official: bool) -> anyhow::Result<()> {
    let go = official::go_module_dir();
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
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a person reads the report")]
fn say(line: &str) {
    println!("{line}");
}

/// Kubernetes on a group whose members are killed.
fn run_kubernetes(try_official: bool) -> anyhow::Result<Total> {
    let kind = if try_official { Kind::Official } else { Kind::Oxetcd };
    let program = official::kube_apiserver()?.context("Go was there before")?;
    let steps = kubernetes::drill(kind, &program)?.context("official etcd was there before")?;
    let mut total = Total::default();
    for kubernetes::Step { name, outcome } in steps {
        let (count, word, detail) = match outcome {
            Ok(figures) => (&mut total.passed, "passed  ", figures),
            Err(reason) => (&mut total.failed, "FAILED  ", reason),
        };
        *count += 1;
        say(&format!("{word} {name}: {detail}"));
    }
    total.show("Kubernetes");
    Ok(total)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed");
    }
    Ok(())
}

fn run_suite(
    suite: Suite,
    program: &Path,
    work: &Path,
    pattern: &str,
    rounds: u32,
) -> anyhow::Result<String> {
    let tests = work.join("tests");
    let script = match suite {
        Suite::Robustness => {
            "ip link set lo up && { \"$COMPAT\" --serve-failpoints & \"$@\"; kill $!; }"
        }
        Suite::Common | Suite::E2e | Suite::Kubernetes => "ip link set lo up && exec \"$@\"",
    };
    let output = Command::new("unshare")
        .args(["-n", "sh", "-c", script, "sh"])
        .arg(program)
        .args(["-test.v", "-test.timeout=60m"])
        .arg(format!("-test.count={rounds}"))
        .arg(format!("-test.run={pattern}"))
        .arg(format!("-bin-dir={}", work.join("bin").display()))
        .arg(format!("-cert-dir={}", tests.join("fixtures").display()))
        .env("E2E_TEST_MINIMAL", "true")
        .env("COMPAT", std::env::current_exe()?)
        .current_dir(tests.join(suite.name()))
        .output()
        .context("cannot run a suite: it needs `unshare` and `ip`, and the right to use them")?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// The outcome of every case that has none inside.
fn parse(output: &str) -> BTreeMap<String, Outcome> {
    let mut all: BTreeMap<String, Outcome> = BTreeMap::new();
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
        // A case that is run several times has failed if it failed once.
        all.entry(name.to_owned())
            .and_modify(|before| *before = (*before).max(outcome))
            .or_insert(outcome);
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
        let matches = |pattern: &str| match pattern.strip_prefix('=') {
            Some(whole) => case == whole,
            None => case.contains(pattern),
        };
        let found = self.patterns.iter().find(|(pattern, _)| matches(pattern));
        found.map(|(_, reason)| reason.as_str())
    }
}

/// How many cases came to what.
#[derive(Clone, Copy, Debug, Default)]
struct Total {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Total {
    const fn add(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
        self.skipped += more.skipped;
    }

    fn show(self, what: &str) {
        let Self { passed, failed, skipped } = self;
        say(&format!("{what}: {passed} passed, {failed} failed, {skipped} skipped"));
    }

    fn conclude(self) -> ExitCode {
        self.show("all suites");
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[expect(clippy::print_stdout, reason = "a person reads the report")]
fn report(suite: Suite, outcomes: &BTreeMap<String, Outcome>, not_yet: &NotYet) -> Total {
    let mut total = Total::default();
    for (case, outcome) in outcomes {
        match (outcome, not_yet.reason(case)) {
            (Outcome::Passed, reason) => {
                total.passed += 1;
                let note = reason.map(|reason| format!(" (listed as: {reason})"));
                println!("passed   {case}{}", note.unwrap_or_default());
            }
            (Outcome::Failed, None) => {
                total.failed += 1;
                println!("FAILED   {case}");
            }
            (Outcome::Failed, Some(reason)) => {
                total.skipped += 1;
                println!("not yet  {case}: {reason}");
            }
            (Outcome::Skipped, _) => {
                total.skipped += 1;
                println!("skipped by the suite itself: {case}");
            }
        }
    }
    total.show(&format!("etcd tests/{}", suite.name()));
    total
}
