//! The configuration of one member, checked before anything starts.
//!
//! Decides what every flag, variable and line of the configuration file means, in etcd's words,
//! and which combinations a member starts with. Owns no state: `bin/oxetcd.rs` calls [`load`]
//! once and hands the [`Config`] to `boot`.
//!
//! ```text
//!   arguments --> syntax --+                                   +--> help, version --> exit 0
//!                          |                                   |
//!   environment -----------+--> table --> Flags --> validate --+--> pending --> Config --> boot
//!                          |   (slots)             (etcd's     |   (ours)
//!   file (YAML) -----------+                        checks)    +--> a sentence --> exit 1 or 2
//! ```
//!
//! Invariants
//! - C1 A [`Config`] exists only for flags that passed every check.
//! - C2 The table is the only list of flags; the file, the environment, the help and the list of
//!   missing features go through it.
//! - C3 A flag is never silently without effect: either it works, or it has none by its nature
//!   here (its help says so), or [`pending`] stops the start.
//!
//! Faults have etcd's texts and exit codes: 2 for arguments that cannot be read, 1 for everything
//! else. A removed flag of an older etcd is as unknown as to etcd 3.7.
//!
//! Deliberately absent: reloading. A member reads its configuration once.
//!
//! Source: etcd `server/embed/config.go`, `server/etcdmain`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

pub mod bootstrap;
pub mod gates;
pub mod url;
mod environment;
mod file;
mod flags;
mod help;
mod load;
mod pending;
mod report;
mod slot;
mod syntax;
mod table;
mod validate;

use gates::FeatureGates;
use url::Url;

pub use help::{COMMIT, ETCD_VERSION, VERSION};
pub use load::{Start, load};

/// Everything that `boot` needs to know. Fields are named as their flags; the flag's help in the
/// table has the meaning, fields say only what the type does not.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "etcd's boolean flags are booleans")]
pub struct Config {
    /// Unique in the cluster.
    pub name: String,
    /// Never empty: the default is the name followed by `.etcd`.
    pub data_dir: PathBuf,
    /// `None` keeps the log below the data directory.
    pub wal_dir: Option<PathBuf>,
    /// In committed entries.
    pub snapshot_count: u64,
    /// In entries.
    pub snapshot_catchup_entries: u64,
    /// 0 keeps all.
    pub max_snapshots: usize,
    /// 0 keeps all.
    pub max_wals: usize,
    /// One raft tick.
    pub heartbeat_interval: Duration,
    /// The election timeout in ticks; at least 5.
    pub election_ticks: u32,
    /// Skip most of the first election timeout.
    pub initial_election_tick_advance: bool,
    /// Sorted; IP addresses or `localhost` only.
    pub listen_peer_urls: Vec<Url>,
    /// Sorted; IP addresses, `localhost` or Unix sockets.
    pub listen_client_urls: Vec<Url>,
    /// If not empty, HTTP leaves the client URLs.
    pub listen_client_http_urls: Vec<Url>,
    /// Metrics and health apart from clients.
    pub listen_metrics_urls: Vec<Url>,
    /// Sorted, as is the next.
    pub initial_advertise_peer_urls: Vec<Url>,
    /// What `Cluster.MemberList` tells clients.
    pub advertise_client_urls: Vec<Url>,
    /// As given; [`Config::bootstrap_members`] reads it.
    pub initial_cluster: String,
    /// Found a cluster or join one.
    pub initial_cluster_state: ClusterState,
    /// Mixed into the cluster's ID.
    pub initial_cluster_token: String,
    /// A cluster of etcd where the members of a new cluster find one another.
    pub discovery: Option<Discovery>,
    /// DNS records that name the members of a new cluster.
    pub discovery_srv: Option<DiscoverySrv>,
    /// In bytes; `None` is no limit.
    pub quota_backend_bytes: Option<u64>,
    /// Operations in one transaction.
    pub max_txn_ops: usize,
    /// In bytes.
    pub max_request_bytes: usize,
    /// On one connection.
    pub max_concurrent_streams: u32,
    /// Zero lets clients ping as often as they like.
    pub grpc_keepalive_min_time: Duration,
    /// Zero sends no pings.
    pub grpc_keepalive_interval: Duration,
    /// Zero waits for ever.
    pub grpc_keepalive_timeout: Duration,
    /// `SO_REUSEPORT` on listeners.
    pub socket_reuse_port: bool,
    /// `SO_REUSEADDR` on listeners.
    pub socket_reuse_address: bool,
    /// Serve the JSON form of the API.
    pub enable_grpc_gateway: bool,
    /// Refuse membership changes that would lose the quorum.
    pub strict_reconfig_check: bool,
    /// Ask before standing for election.
    pub pre_vote: bool,
    /// At least 5 s.
    pub raft_read_timeout: Duration,
    /// At least 5 s.
    pub raft_write_timeout: Duration,
    /// What to compact by itself.
    pub auto_compaction: AutoCompaction,
    /// `simple`, or `jwt` with options.
    pub auth_token: String,
    /// bcrypt's cost.
    pub bcrypt_cost: u32,
    /// Of an unused simple token.
    pub auth_token_ttl: Duration,
    /// Origins; a star allows all.
    pub cors: BTreeSet<String>,
    /// Host names; a star allows all.
    pub host_whitelist: BTreeSet<String>,
    /// Serve `/debug/pprof/`; also on at log level debug.
    pub enable_pprof: bool,
    /// Whether lines below info are logged.
    pub debug: bool,
    /// Histograms of every call.
    pub metrics_extensive: bool,
    /// Log a warning for a call that takes longer.
    pub warning_unary_request_duration: Duration,
    /// Log a warning for an entry that takes longer.
    pub warning_apply_duration: Duration,
    /// Zero compares never.
    pub corrupt_check_time: Duration,
    /// Above zero.
    pub compact_hash_check_time: Duration,
    /// Revisions in one step of a compaction.
    pub compaction_batch_limit: usize,
    /// Between two steps of a compaction.
    pub compaction_sleep_interval: Duration,
    /// At least 100 ms.
    pub watch_progress_notify_interval: Duration,
    /// Between checks whether a downgrade is complete.
    pub downgrade_check_time: Duration,
    /// 0 reclaims nothing at start.
    pub bootstrap_defrag_threshold_megabytes: u64,
    /// Learners allowed in the cluster.
    pub max_learners: usize,
    /// Start alone with the data at hand.
    pub force_new_cluster: bool,
    /// Do not wait for the disk.
    pub unsafe_no_fsync: bool,
    /// Switches for what is not settled.
    pub feature_gates: FeatureGates,
    flags: flags::Flags,
}

/// Where the members of a new cluster find one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Addresses of the cluster that serves discovery, with or without `http://`.
    pub endpoints: Vec<String>,
    /// What tells one new cluster from another.
    pub token: String,
    /// How long a connection may take.
    pub dial_timeout: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
}

/// Where DNS names the members of a new cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoverySrv {
    /// The domain with the records.
    pub domain: String,
    /// What follows the name of the service; empty for none.
    pub service_suffix: String,
}

/// Whether a member founds its cluster or joins one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// Found it, with all members that the flags list.
    New,
    /// Join it; its members know of us already.
    Existing,
}

impl ClusterState {
    /// The flag's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Existing => "existing",
        }
    }
}

/// Which history goes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// None.
    Off,
    /// What is older than this.
    Periodic(Duration),
    /// All but this many revisions.
    Revision(i64),
}

/// The quota that 0 stands for.
const QUOTA_BYTES_DEFAULT: u64 = 2 << 30;

/// Progress notices more frequent than this would be noise; etcd rounds up as well.
const WATCH_PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Peers are silent for longer than a shorter timeout would bear.
const RAFT_TIMEOUT_MIN: Duration = Duration::from_secs(5);

impl Config {
    /// Where the member's files are.
    #[must_use]
    pub fn member_dir(&self) -> PathBuf {
        self.data_dir.join("member")
    }

    /// Where the log is.
    #[must_use]
    pub fn wal_path(&self) -> PathBuf {
        self.wal_dir.clone().unwrap_or_else(|| self.member_dir().join("wal"))
    }

    /// Where snapshots and the backend are.
    #[must_use]
    pub fn snap_dir(&self) -> PathBuf {
        self.member_dir().join("snap")
    }

    /// The election timeout: a whole number of heartbeats.
    #[must_use]
    pub fn election_timeout(&self) -> Duration {
        self.heartbeat_interval * self.election_ticks
    }

    /// How long a request may wait for its outcome: queues and disk, and two elections.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election_timeout()
    }

    /// Makes a configuration of checked flags.
    ///
    /// # Errors
    /// If the retention cannot be read, which etcd too finds out this late.
    fn of(flags: flags::Flags) -> Result<Self, String> {
        let dir = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
        let ticks = flags.election_timeout / flags.heartbeat_interval.max(1);
        Ok(Self {
            data_dir: dir(&flags.data_dir)
                .unwrap_or_else(|| Path::new(&format!("{}.etcd", flags.name)).to_path_buf()),
            wal_dir: dir(&flags.wal_dir),
            snapshot_count: flags.snapshot_count,
            snapshot_catchup_entries: flags.snapshot_catchup_entries,
            max_snapshots: saturated(flags.max_snapshots),
            max_wals: saturated(flags.max_wals),
            heartbeat_interval: Duration::from_millis(flags.heartbeat_interval),
            election_ticks: u32::try_from(ticks).unwrap_or(u32::MAX),
            initial_election_tick_advance: flags.initial_election_tick_advance,
            listen_peer_urls: flags.listen_peer_urls.0.clone(),
            listen_client_urls: flags.listen_client_urls.0.clone(),
            listen_client_http_urls: flags.listen_client_http_urls.0.clone(),
            listen_metrics_urls: flags.listen_metrics_urls.0.clone(),
            initial_advertise_peer_urls: flags.initial_advertise_peer_urls.0.clone(),
            advertise_client_urls: flags.advertise_client_urls.0.clone(),
            initial_cluster: flags.initial_cluster.clone(),
            initial_cluster_state: match flags.initial_cluster_state.value {
                "existing" => ClusterState::Existing,
                _ => ClusterState::New,
            },
            initial_cluster_token: flags.initial_cluster_token.clone(),
            discovery: discovery(&flags),
            discovery_srv: (!flags.discovery_srv.is_empty()).then(|| DiscoverySrv {
                domain: flags.discovery_srv.clone(),
                service_suffix: flags.discovery_srv_name.clone(),
            }),
            quota_backend_bytes: match u64::try_from(flags.quota_backend_bytes) {
                Ok(0) => Some(QUOTA_BYTES_DEFAULT),
                quota => quota.ok(),
            },
            max_txn_ops: saturated(flags.max_txn_ops),
            max_request_bytes: saturated(flags.max_request_bytes),
            max_concurrent_streams: flags.max_concurrent_streams,
            grpc_keepalive_min_time: duration(flags.grpc_keepalive_min_time),
            grpc_keepalive_interval: duration(flags.grpc_keepalive_interval),
            grpc_keepalive_timeout: duration(flags.grpc_keepalive_timeout),
            socket_reuse_port: flags.socket_reuse_port,
            socket_reuse_address: flags.socket_reuse_address,
            enable_grpc_gateway: flags.enable_grpc_gateway,
            strict_reconfig_check: flags.strict_reconfig_check,
            pre_vote: flags.pre_vote,
            raft_read_timeout: duration(flags.raft_read_timeout).max(RAFT_TIMEOUT_MIN),
            raft_write_timeout: duration(flags.raft_write_timeout).max(RAFT_TIMEOUT_MIN),
            auto_compaction: auto_compaction(&flags)?,
            auth_token: flags.auth_token.clone(),
            bcrypt_cost: u32::try_from(flags.bcrypt_cost).unwrap_or(u32::MAX),
            auth_token_ttl: Duration::from_secs(flags.auth_token_ttl),
            cors: flags.cors.0.clone(),
            host_whitelist: flags.host_whitelist.0.0.clone(),
            enable_pprof: flags.enable_pprof,
            debug: flags.log_level == "debug",
            metrics_extensive: flags.metrics == "extensive",
            warning_unary_request_duration: duration(flags.warning_unary_request_duration),
            warning_apply_duration: duration(flags.warning_apply_duration),
            corrupt_check_time: duration(flags.corrupt_check_time),
            compact_hash_check_time: duration(flags.compact_hash_check_time),
            compaction_batch_limit: usize::try_from(flags.compaction_batch_limit)
                .ok()
                .filter(|limit| 0 < *limit)
                .unwrap_or(1_000),
            compaction_sleep_interval: duration(flags.compaction_sleep_interval),
            watch_progress_notify_interval: duration(flags.watch_progress_notify_interval)
                .max(WATCH_PROGRESS_INTERVAL_MIN),
            downgrade_check_time: duration(flags.downgrade_check_time),
            bootstrap_defrag_threshold_megabytes: flags.bootstrap_defrag_threshold_megabytes,
            max_learners: usize::try_from(flags.max_learners).unwrap_or(0),
            force_new_cluster: flags.force_new_cluster,
            unsafe_no_fsync: flags.unsafe_no_fsync,
            feature_gates: flags.feature_gates.clone(),
            name: flags.name.clone(),
            flags,
        })
    }
}

fn discovery(flags: &flags::Flags) -> Option<Discovery> {
    (!flags.discovery_endpoints.0.is_empty()).then(|| Discovery {
        endpoints: flags.discovery_endpoints.0.iter().cloned().collect(),
        token: flags.discovery_token.clone(),
        dial_timeout: duration(flags.discovery_dial_timeout),
        request_timeout: duration(flags.discovery_request_timeout),
    })
}

fn auto_compaction(flags: &flags::Flags) -> Result<AutoCompaction, String> {
    let retention = validate::retention(flags)?;
    Ok(match (u64::try_from(retention), flags.auto_compaction_mode.as_str()) {
        (Err(_) | Ok(0), _) => AutoCompaction::Off,
        (Ok(_), "revision") => AutoCompaction::Revision(retention),
        (Ok(nanos), _) => AutoCompaction::Periodic(Duration::from_nanos(nanos)),
    })
}

/// A negative duration means the same as none wherever etcd accepts one.
fn duration(nanos: slot::Nanos) -> Duration {
    Duration::from_nanos(u64::try_from(nanos.0).unwrap_or(0))
}

fn saturated(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
