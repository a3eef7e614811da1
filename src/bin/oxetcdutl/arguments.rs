//! The command line of `oxetcdutl`: the flags of `etcdutl`, and what we add.
//!
//! Decides names and defaults; they are etcd's. Called by `main`.
//!
//! Source: etcd `etcdutl/etcdutl/*_command.go`.

use std::path::PathBuf;

use clap::{
    Args, Parser, Subcommand,
    error::{ContextKind, ErrorKind},
};

/// An administrative command line tool for etcd3.
#[derive(Debug, Parser)]
#[command(name = "oxetcdutl", disable_version_flag = true)]
pub(crate) struct Arguments {
    /// Set the output format (fields, json, protobuf, simple, table)
    #[arg(short = 'w', long, global = true, default_value = "simple")]
    pub(crate) write_out: String,
    /// Time to wait to obtain a file lock on db file, 0 to block indefinitely
    #[arg(long, global = true, default_value = "10s")]
    pub(crate) timeout: String,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Manages etcd node snapshots
    Snapshot(Snapshot),
    /// Prints the KV history hash of a given file or data directory
    Hashkv(Hashkv),
    /// Defragments the storage of a data directory not in use
    Defrag(DataDir),
    /// Checks every checksum of a data directory not in use
    Verify(Verify),
    /// Writes the state of a data directory as a database file of etcd
    Export(Export),
    /// Prints the version of oxetcdutl
    Version,
}

#[derive(Debug, Args)]
pub(crate) struct Snapshot {
    #[command(subcommand)]
    pub(crate) command: Option<SnapshotCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Restores an etcd member snapshot to an etcd directory
    Restore(Restore),
    /// Gets backend snapshot status of a given file
    Status {
        /// The snapshot file
        filename: Vec<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The snapshot file
    pub(crate) filename: Vec<PathBuf>,
    /// Path to the output data directory
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Path to the WAL directory (use --data-dir if none given)
    #[arg(long)]
    pub(crate) wal_dir: Option<PathBuf>,
    /// Initial cluster configuration for restore bootstrap
    #[arg(long, default_value = "default=http://localhost:2380")]
    pub(crate) initial_cluster: String,
    /// Initial cluster token for the etcd cluster during restore bootstrap
    #[arg(long, default_value = "etcd-cluster")]
    pub(crate) initial_cluster_token: String,
    /// List of this member's peer URLs to advertise to the rest of the cluster
    #[arg(long, default_value = "http://localhost:2380")]
    pub(crate) initial_advertise_peer_urls: String,
    /// Human-readable name for this member
    #[arg(long, default_value = "default")]
    pub(crate) name: String,
    /// Ignore snapshot integrity hash value (required if copied from data directory)
    #[arg(long, default_value_t = false, default_missing_value = "true", num_args = 0..=1)]
    #[arg(require_equals = true, action = clap::ArgAction::Set)]
    pub(crate) skip_hash_check: bool,
    /// Accepted for compatibility; memory maps are not sized here
    #[arg(long, default_value_t = 10 << 30)]
    pub(crate) initial_memory_map_size: u64,
    /// How much to increase the latest revision after restore
    #[arg(long, default_value_t = 0)]
    pub(crate) bump_revision: u64,
    /// Mark the latest revision after restore as the point of scheduled compaction (required if
    /// --bump-revision > 0, disallowed otherwise)
    #[arg(long, default_value_t = false, default_missing_value = "true", num_args = 0..=1)]
    #[arg(require_equals = true, action = clap::ArgAction::Set)]
    pub(crate) mark_compacted: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Hashkv {
    /// A database file, or a data directory
    pub(crate) filename: Vec<PathBuf>,
    /// Maximum revision to hash (default: latest revision)
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) rev: i64,
}

#[derive(Debug, Args)]
pub(crate) struct DataDir {
    /// Required. A data directory not in use
    #[arg(long)]
    pub(crate) data_dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Required. A data directory not in use
    #[arg(long)]
    pub(crate) data_dir: PathBuf,
    /// Path to the WAL directory (use --data-dir if none given)
    #[arg(long)]
    pub(crate) wal_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Required. A data directory not in use
    #[arg(long)]
    pub(crate) data_dir: PathBuf,
    /// End the file in its hash, as a snapshot has it
    #[arg(long)]
    pub(crate) with_hash: bool,
    /// The file to write; `<data-dir>/member/snap/db` lets etcd take the directory back
    pub(crate) filename: PathBuf,
}

/// What is wrong with a command line, in the words of `etcdutl` where scripts may look for them.
#[expect(clippy::wildcard_enum_match_arm, reason = "clap has many kinds and adds more")]
pub(crate) fn complaint(error: &clap::Error) -> String {
    let context = |kind| {
        let value = error.get(kind).map(ToString::to_string);
        // An argument is shown with its placeholder; the flag is the first word.
        value.map(|text| text.split([' ', '=']).next().unwrap_or_default().to_owned())
    };
    let known = match error.kind() {
        ErrorKind::UnknownArgument => {
            context(ContextKind::InvalidArg).map(|flag| format!("unknown flag: {flag}"))
        }
        ErrorKind::InvalidSubcommand => context(ContextKind::InvalidSubcommand)
            .map(|command| format!("unknown command {command:?} for \"etcdutl\"")),
        ErrorKind::MissingRequiredArgument => context(ContextKind::InvalidArg)
            .map(|flag| format!("required flag(s) {:?} not set", flag.trim_start_matches('-'))),
        _ => None,
    };
    known.unwrap_or_else(|| {
        let text = error.to_string();
        text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned()
    })
}
