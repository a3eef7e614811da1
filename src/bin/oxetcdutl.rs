//! `oxetcdutl`: work on files of a member that is not running, with the commands of `etcdutl`.
//!
//! Decides the command line and the exit code; the work is in `oxetcd::offline`.

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, CommandFactory, Parser, Subcommand};
use oxetcd::offline::{
    API_VERSION, ETCD_VERSION, Ending, Format, OfflineError, export_database, hash_kv,
    hash_kv_text, snapshot_status, status_text,
};

/// An administrative command line tool for etcd3.
#[derive(Debug, Parser)]
#[command(name = "oxetcdutl", disable_version_flag = true)]
struct Arguments {
    /// Set the output format (fields, json, protobuf, simple, table)
    #[arg(short = 'w', long, global = true, default_value = "simple")]
    write_out: String,
    /// Time to wait to obtain a file lock on db file, 0 to block indefinitely
    #[arg(long, global = true, default_value = "10s")]
    timeout: String,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Manages etcd node snapshots
    Snapshot(Snapshot),
    /// Prints the KV history hash of a given file or data directory
    Hashkv(Hashkv),
    /// Writes the state of a data directory as a database file of etcd
    Export(Export),
    /// Prints the version of oxetcdutl
    Version,
}

#[derive(Debug, Args)]
struct Export {
    /// A data directory not in use
    #[arg(long)]
    data_dir: PathBuf,
    /// End the file in its hash, as a snapshot has it
    #[arg(long)]
    with_hash: bool,
    /// The file to write; `<data-dir>/member/snap/db` lets etcd take the directory back
    filename: PathBuf,
}

#[derive(Debug, Args)]
struct Snapshot {
    #[command(subcommand)]
    command: Option<SnapshotCommand>,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// Gets backend snapshot status of a given file
    Status {
        /// The snapshot file
        filename: Vec<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct Hashkv {
    /// A database file, or a data directory
    filename: Vec<PathBuf>,
    /// Maximum revision to hash (default: latest revision)
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    rev: i64,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).with_target(false).init();
    let text = match run(std::env::args_os()) {
        Ok(text) => text,
        Err(failure) => {
            // Nothing can be done about a standard error that is gone.
            drop(writeln!(io::stderr(), "Error: {}", failure.text));
            return ExitCode::from(failure.exit_code);
        }
    };
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_gone) => ExitCode::FAILURE,
    }
}

/// What goes wrong, as printed after `Error: `.
struct Failure {
    text: String,
    exit_code: u8,
}

impl From<OfflineError> for Failure {
    fn from(error: OfflineError) -> Self {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        Self { text, exit_code: error.exit_code() }
    }
}

fn run(arguments: impl Iterator<Item = OsString>) -> Result<String, Failure> {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) if !error.use_stderr() => return Ok(error.to_string()),
        Err(error) => {
            let text = error.to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text).to_owned();
            return Err(Failure { text, exit_code: 1 });
        }
    };
    let help = |path: &[&str]| {
        let mut command = Arguments::command();
        command.build();
        let found = path.iter().try_fold(&mut command, |at, name| at.find_subcommand_mut(name));
        found.map(|command| command.render_help().to_string()).unwrap_or_default()
    };
    let format = || Format::parse(&arguments.write_out);
    match arguments.command {
        None => Ok(help(&[])),
        Some(Command::Snapshot(Snapshot { command: None })) => Ok(help(&["snapshot"])),
        Some(Command::Snapshot(Snapshot { command: Some(command) })) => match command {
            SnapshotCommand::Status { filename } => {
                let [path] = filename.as_slice() else {
                    let text = "snapshot status requires exactly one argument".to_owned();
                    return Err(OfflineError::Usage(text).into());
                };
                let format = format()?;
                Ok(status_text(&snapshot_status(path)?, format)?)
            }
        },
        Some(Command::Hashkv(Hashkv { filename, rev })) => {
            let [path] = filename.as_slice() else {
                let text = format!("accepts 1 arg(s), received {}", filename.len());
                return Err(Failure { text, exit_code: 1 });
            };
            let format = format()?;
            Ok(hash_kv_text(&hash_kv(path, rev)?, format)?)
        }
        Some(Command::Export(Export { data_dir, with_hash, filename })) => {
            let ending = if with_hash { Ending::Hash } else { Ending::Plain };
            export_database(&data_dir, &filename, ending)?;
            Ok(String::new())
        }
        Some(Command::Version) => Ok(format!(
            "etcdutl version: {ETCD_VERSION}\nAPI version: {API_VERSION}\noxetcdutl version: {}\n",
            env!("CARGO_PKG_VERSION")
        )),
    }
}
