//! Compares oxetcd with official etcd, row by row of the table of floors.
//!
//! Reads the command line and prints; everything else is in the library. Ends with 1 when a floor
//! is missed by more than its interval, a server failed, or an acknowledged write was lost.

use std::{
    hash::{DefaultHasher, Hasher},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::Parser;
use oxetcd_tools::{
    bench::{
        campaign::{self, Disturbed, Programs, Settings},
        go_tool,
        machine::{self, Machine},
        probe::Probe,
        report::Report,
        row::{Row, Set},
        rows::ROWS,
        scenario::Plan,
    },
    official,
};

/// Sizes of the store at which costs are compared.
const SIZES: &[u64] = &[1_000, 100_000, 1_000_000, 10_000_000];

/// A local disk that is quiet syncs faster than this.
const BUSY_MICROS: f64 = 1000.0;

/// Measures oxetcd and official etcd side by side and writes a report.
///
/// The two run in turn, never together, each on a fresh directory of the same disk with default
/// flags. What disturbs a pair (another process, a busy disk) discards it; the machine should be
/// otherwise idle. Ends with 1 when a floor is missed by more than its interval.
#[derive(Debug, Parser)]
#[command(name = "oxetcd-bench", version)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
struct Arguments {
    /// Rows to run, by id and separated by commas; see --list. Default: the headline rows
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,

    /// Run all rows, with long windows
    #[arg(long, conflicts_with = "rows")]
    full: bool,

    /// Print the rows with their floors and goals, and end
    #[arg(long)]
    list: bool,

    /// Undisturbed pairs per row; rows of leases and of large stores take half as many. Default: 4,
    /// with --full 10
    #[arg(long)]
    pairs: Option<usize>,

    /// Seconds of a measured window. Default: 3, with --full 10
    #[arg(long)]
    seconds: Option<f64>,

    /// Keys of a large store
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,

    /// Measure only oxetcd: a quick look at its own figures, without ratios
    #[arg(long)]
    only_ours: bool,

    /// Instead of rows: show that the generator agrees with etcd's own `benchmark` at a low rate
    #[arg(long, conflicts_with_all = ["rows", "full", "only_ours"])]
    check_generator: bool,

    /// Count disturbed pairs too. For trials on a busy machine: the figures mean little
    #[arg(long)]
    keep_disturbed: bool,

    /// The official etcd; oxetcd here too shows the noise. Default: the one in
    /// $OXETCD_OFFICIAL_BIN, or built once with Go
    #[arg(long, value_name = "FILE")]
    bin_etcd: Option<PathBuf>,

    /// The oxetcd. Default: the one beside this program
    #[arg(long, value_name = "FILE")]
    bin_ours: Option<PathBuf>,

    /// Where data directories are made; the disk under it is the one that is measured (a directory in
    /// memory leaves the disk out)
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    work_dir: PathBuf,

    /// Where the report is written. Rows of a report there that is of the same build and settings
    /// are kept, so that one can be made in several runs. Default: nowhere
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a person waits for the result")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        println!("{}", list());
        return ExitCode::SUCCESS;
    }
    if arguments.check_generator {
        return match check_generator(&arguments) {
            Ok(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("oxetcd-bench: {error:#}");
                ExitCode::from(2)
            }
        };
    }
    match run(&arguments, &mut |line| eprintln!("{line}")) {
        Ok(report) => {
            println!("{}", report.summary());
            ExitCode::from(u8::from(!report.passed()))
        }
        Err(error) => {
            eprintln!("oxetcd-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments, say: &mut dyn FnMut(&str)) -> anyhow::Result<Report> {
    let rows = chosen(arguments)?;
    let (pairs, seconds) = if arguments.full { (10, 10.0) } else { (4, 3.0) };
    let seconds = arguments.seconds.unwrap_or(seconds);
    let programs = programs(arguments)?;
    std::fs::create_dir_all(&arguments.work_dir)
        .with_context(|| format!("cannot create {}", arguments.work_dir.display()))?;
    let quiet_median_micros = Probe::quiet_median(&arguments.work_dir)?;
    say(&format!("the quiet disk takes {quiet_median_micros:.0} us per sync"));
    if BUSY_MICROS < quiet_median_micros {
        say("that is slow for a quiet disk: if somebody else uses it, the figures mean little");
    }
    let mut settings = Settings {
        pairs: arguments.pairs.unwrap_or(pairs),
        disturbed: if arguments.keep_disturbed { Disturbed::Keep } else { Disturbed::Discard },
        plan: Plan {
            window: Duration::from_secs_f64(seconds),
            warm_up: Duration::from_secs_f64((seconds / 3.0).min(3.0)),
            large: arguments.keys,
            sizes: SIZES,
            quiet_median_micros,
        },
        work_dir: arguments.work_dir.clone(),
        programs,
    };
    let versions = versions(&settings.programs)?;
    let outcomes = campaign::run(&mut settings, &rows, say)?;
    let mut report = Report {
        machine: Machine::look(&settings.work_dir),
        date: machine::today(),
        versions,
        build: build(&settings.programs.ours)?,
        disturbed: settings.disturbed,
        quiet_median_micros: settings.plan.quiet_median_micros,
        window_seconds: seconds,
        large: arguments.keys,
        outcomes,
    };
    if let Some(dir) = &arguments.report {
        if report.join(dir) {
            say("rows that were measured before are kept");
        }
        report.write(dir)?;
        say(&format!("the report is in {}", dir.display()));
    }
    Ok(report)
}

fn chosen(arguments: &Arguments) -> anyhow::Result<Vec<&'static Row>> {
    for id in &arguments.rows {
        ensure!(ROWS.iter().any(|row| row.id == id), "there is no row {id}; see --list");
    }
    let wanted = |row: &&'static Row| {
        if arguments.rows.is_empty() {
            arguments.full || row.set == Set::Headline
        } else {
            arguments.rows.iter().any(|id| row.id == id)
        }
    };
    Ok(ROWS.iter().filter(wanted).collect())
}

fn programs(arguments: &Arguments) -> anyhow::Result<Programs> {
    let ours = match &arguments.bin_ours {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("oxetcd"),
    };
    ensure!(
        ours.exists(),
        "{} is missing: build it, or name another with --bin-ours",
        ours.display()
    );
    let official = if arguments.only_ours { None } else { Some(official_etcd(arguments)?) };
    Ok(Programs { official, ours })
}

fn official_etcd(arguments: &Arguments) -> anyhow::Result<PathBuf> {
    let named = arguments.bin_etcd.clone();
    let found = match named {
        Some(path) => Some(path),
        None => official::program("etcd")?,
    };
    let path = found.context("official etcd needs Go; --only-ours does without")?;
    ensure!(path.exists(), "{} is missing", path.display());
    Ok(path)
}

/// Both generators against official etcd, one line each.
fn check_generator(arguments: &Arguments) -> anyhow::Result<String> {
    let etcd = official_etcd(arguments)?;
    let tool = official::benchmark_tool()?.context("etcd's benchmark tool needs Go")?;
    std::fs::create_dir_all(&arguments.work_dir)?;
    let found = go_tool::compare(&etcd, &tool, &arguments.work_dir)?;
    let lines = found.map(|one| {
        format!(
            "{:<16} {:>7.1} op/s   p50 {:.3} ms   p99 {:.3} ms   CPU/100k: server {:.1} s, generator {:.1} s",
            one.name, one.per_second, one.p50_ms, one.p99_ms, one.server_cpu, one.generator_cpu
        )
    });
    Ok(lines.join("\n"))
}

/// What both print as their versions. An oxetcd on etcd's side is told as one.
fn versions(programs: &Programs) -> anyhow::Result<(Option<String>, String)> {
    let official = programs.official.as_deref().map(version).transpose()?;
    Ok((official, version(&programs.ours)?))
}

/// A hash of the program, which tells builds of one version apart.
fn build(program: &Path) -> anyhow::Result<String> {
    let bytes =
        std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    Ok(format!("{:016x}", hasher.finish()))
}

fn version(program: &Path) -> anyhow::Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = printed.lines().find(|line| line.contains("oxetcd")).or(printed.lines().next());
    Ok(line.unwrap_or("unknown").to_owned())
}

fn list() -> String {
    let mut lines = Vec::new();
    for row in ROWS {
        lines.push(format!("{:<16} {}", row.id, row.title));
        for criterion in row.criteria {
            let goal = criterion.goal.map_or_else(String::new, |goal| format!(", goal {goal}"));
            lines.push(format!("{:16}   {}: {:?}{goal}", "", criterion.what, criterion.floor));
        }
    }
    lines.join("\n")
}
