//! `oxetcdutl`: work on files of a member that is not running, with the commands of `etcdutl`.
//!
//! Decides which function of `oxetcd::offline` a command is, and the exit code.

mod arguments;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory, Parser};
use oxetcd::{
    base::{duration, error::chain, log},
    offline::{
        API_VERSION, ETCD_VERSION, Ending, Format, LockTimeout, OfflineError, RestoreOptions,
        defragment, export_database, hash_kv, hash_kv_text, restore, snapshot_status, status_text,
        verify,
    },
};

use arguments::{Arguments, Command, Hashkv, Restore, Snapshot, SnapshotCommand, complaint};

fn main() -> ExitCode {
    log::install();
    let console = log::Options { format: log::Format::Console, ..log::Options::default() };
    log::configure(&console).expect("standard error needs no opening");
    match run() {
        Ok(text) => match io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_gone) => ExitCode::FAILURE,
        },
        Err(failure) => {
            // Nothing can be done about a standard error that is gone.
            drop(writeln!(io::stderr(), "Error: {}", failure.text));
            ExitCode::from(failure.exit_code)
        }
    }
}

/// What goes wrong, as printed after `Error: `.
struct Failure {
    text: String,
    exit_code: u8,
}

impl From<OfflineError> for Failure {
    fn from(error: OfflineError) -> Self {
        Self { text: chain(&error), exit_code: error.exit_code() }
    }
}

/// What the command prints.
fn run() -> Result<String, Failure> {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if !error.use_stderr() => return Ok(error.to_string()),
        Err(error) => return Err(Failure { text: complaint(&error), exit_code: 1 }),
    };
    let timeout = lock_timeout(&arguments.timeout)?;
    let format = || Format::parse(&arguments.write_out);
    match arguments.command {
        None => Ok(help(&[])),
        Some(Command::Snapshot(Snapshot { command: None })) => Ok(help(&["snapshot"])),
        Some(Command::Snapshot(Snapshot { command: Some(command) })) => match command {
            SnapshotCommand::Status { filename } => {
                let path = only("snapshot status", filename)?;
                let format = format()?;
                Ok(status_text(&snapshot_status(&path)?, format)?)
            }
            SnapshotCommand::Restore(arguments) => {
                restore(&restore_options(arguments)?)?;
                Ok(String::new())
            }
        },
        Some(Command::Hashkv(Hashkv { filename, rev })) => {
            let [path] = filename.as_slice() else {
                let text = format!("accepts 1 arg(s), received {}", filename.len());
                return Err(Failure { text, exit_code: 1 });
            };
            let format = format()?;
            Ok(hash_kv_text(&hash_kv(path, rev, timeout)?, format)?)
        }
        Some(Command::Defrag(arguments)) => {
            defragment(&arguments.data_dir, timeout)?;
            Ok(String::new())
        }
        Some(Command::Verify(arguments)) => {
            let found = verify(&arguments.data_dir, arguments.wal_dir.as_deref(), timeout)?;
            Ok(format!(
                "verified: {} rows, {} records, {} snapshots, and the write-ahead log\n",
                found.rows, found.records, found.snapshots
            ))
        }
        Some(Command::Export(arguments)) => {
            let ending = if arguments.with_hash { Ending::Hash } else { Ending::Plain };
            export_database(&arguments.data_dir, &arguments.filename, ending, timeout)?;
            Ok(String::new())
        }
        Some(Command::Version) => Ok(format!(
            "etcdutl version: {ETCD_VERSION}\nAPI version: {API_VERSION}\noxetcdutl version: {}\n",
            env!("CARGO_PKG_VERSION")
        )),
    }
}

fn lock_timeout(text: &str) -> Result<LockTimeout, Failure> {
    let nanos = duration::parse(text).map_err(|_go_words_it_otherwise| Failure {
        text: format!(
            "invalid argument {text:?} for \"--timeout\" flag: time: invalid duration {text:?}"
        ),
        exit_code: 1,
    })?;
    // Go takes a negative time for one that is over; here, for the shortest.
    Ok(LockTimeout(Duration::from_nanos(u64::try_from(nanos).unwrap_or(1))))
}

fn help(path: &[&str]) -> String {
    let mut command = Arguments::command();
    command.build();
    let found = path.iter().try_fold(&mut command, |at, name| at.find_subcommand_mut(name));
    found.map(|command| command.render_help().to_string()).unwrap_or_default()
}

fn only(command: &str, paths: Vec<PathBuf>) -> Result<PathBuf, OfflineError> {
    match <[PathBuf; 1]>::try_from(paths) {
        Ok([path]) => Ok(path),
        Err(_) => Err(OfflineError::Usage(format!("{command} requires exactly one argument"))),
    }
}

fn restore_options(arguments: Restore) -> Result<RestoreOptions, OfflineError> {
    Ok(RestoreOptions {
        snapshot: only("snapshot restore", arguments.filename)?,
        data_dir: arguments.data_dir,
        wal_dir: arguments.wal_dir,
        name: arguments.name,
        initial_cluster: arguments.initial_cluster,
        initial_cluster_token: arguments.initial_cluster_token,
        initial_advertise_peer_urls: arguments.initial_advertise_peer_urls,
        skip_hash_check: arguments.skip_hash_check,
        bump_revision: arguments.bump_revision,
        mark_compacted: arguments.mark_compacted,
    })
}
