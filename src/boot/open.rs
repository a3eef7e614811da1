//! Opens what is on disk: directory, log, backend, and the state that they make together.
//!
//! Decides whether a start is the first of a member or one of many, and refuses directories that
//! cannot be served without guessing. What a first start begins with is `first_start`'s business.
//! Called by `boot` before any thread runs.
//!
//! ```text
//!   no log:   bootstrap entries --> new log          log: newest snapshot <= backend's position
//!                     \                                        /
//!                      +--> backend --> Machine <--- replay ---+ --> Raft at the machine's position
//! ```
//!
//! Invariants
//! - O1 The backend's position lies within the log: not before its start, not after its end
//!   (`replica` checks it).

use std::{
    error::Error,
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{
    base::{clock::Clock, random::Random},
    cluster::BootstrapError,
    config::{Config, gates::Gate},
    consensus::{self, Raft},
    exchange::{self, ExchangeError},
    lease::{self, LeaseSettings},
    model::{ClusterId, LogIndex, MemberId, Revision},
    replica::{
        check_before_start,
        restart::{self, OutsideLog},
    },
    serve::SocketError,
    state::{self, Machine, Quota, RecoverError, RecoveredAt},
    storage::{
        Backend, BackendError, BackendOptions, Writer,
        backend::BACKEND_DIRECTORY,
        wal::{Recovered, Wal, WalError, WalOptions, WalSnapshot},
    },
};

use super::{
    discovery::DiscoveryError,
    first_start::{self, JoinError},
    force_new::force_new_cluster,
    srv,
};

/// Everything that was on disk, opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) member: MemberId,
    pub(super) cluster: ClusterId,
    pub(super) wal: Wal,
    pub(super) snapshot: LogIndex,
    pub(super) backend: Backend,
    pub(super) writer: Writer,
    pub(super) machine: Machine,
    pub(super) raft: Raft,
    pub(super) finished_compaction: Revision,
    /// The other members as far as they are known before the log is applied.
    pub(super) peers: Peers,
}

/// Why a member does not start.
#[derive(Debug)]
pub(super) enum StartError {
    /// The system refused something that every process may have.
    System(io::Error),
    /// A file or directory cannot be used.
    Path { path: PathBuf, error: io::Error },
    /// The flags contradict each other.
    Config(String),
    /// The flags make no cluster.
    Bootstrap(BootstrapError),
    /// A socket cannot be had.
    Socket(SocketError),
    /// The log cannot be used.
    Wal(WalError),
    /// The backend cannot be used.
    Backend(BackendError),
    /// The database of etcd cannot be taken over.
    Exchange(ExchangeError),
    /// The stored state cannot be served.
    Recover(RecoverError),
    /// Log and state do not make a member.
    Raft(consensus::StartError),
    /// The backend is outside of the log (O1).
    OutsideLog(OutsideLog),
    /// The cluster that is to be joined does not take this member.
    Join(JoinError),
    /// The members of the new cluster were not found.
    Discovery(DiscoveryError),
    /// A peer holds other data.
    Corrupt(String),
    /// The cluster has removed this member, for ever.
    Removed { member: MemberId },
    /// The log is gone, the backend is not.
    LogMissing { wal_dir: PathBuf },
    /// The first start ended before the log said who founds the cluster.
    Unfinished { wal_dir: PathBuf },
    /// The member was stopped while it started.
    Stopped,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(_) => f.write_str("the system refused a thread, a timer or a signal"),
            Self::Path { path, .. } => write!(f, "cannot use {}", path.display()),
            Self::Config(text) | Self::Corrupt(text) => f.write_str(text),
            Self::Bootstrap(error) => error.fmt(f),
            Self::Socket(error) => error.fmt(f),
            Self::Wal(error) => error.fmt(f),
            Self::Backend(error) => error.fmt(f),
            Self::Exchange(error) => error.fmt(f),
            Self::Recover(error) => error.fmt(f),
            Self::Raft(error) => error.fmt(f),
            Self::OutsideLog(error) => error.fmt(f),
            Self::LogMissing { wal_dir } => write!(
                f,
                "there is a database but no log in {}: bring back the log, or remove the data \
                 directory and restore the member from a backup",
                wal_dir.display()
            ),
            Self::Join(error) => error.fmt(f),
            Self::Discovery(_) => f.write_str("failed to join discovery cluster"),
            Self::Removed { member } => write!(
                f,
                "the member {member} has been permanently removed from the cluster; the data-dir \
                 used by this member must be removed"
            ),
            Self::Unfinished { wal_dir } => write!(
                f,
                "the log in {} is empty, because the first start of this member ended early, and the \
                 flags do not describe the cluster that it was to found: start it with the flags of \
                 its first start, or with --initial-cluster-state=existing if it has joined a \
                 cluster, or remove the data directory and begin again",
                wal_dir.display()
            ),
            Self::Stopped => f.write_str("the member was stopped while it started"),
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::System(error) | Self::Path { error, .. } => Some(error),
            Self::Bootstrap(error) => error.source(),
            Self::Socket(error) => error.source(),
            Self::Wal(error) => error.source(),
            Self::Backend(error) => error.source(),
            Self::Exchange(error) => error.source(),
            Self::Recover(error) => error.source(),
            Self::Raft(error) => error.source(),
            Self::Join(error) => error.source(),
            Self::Discovery(error) => Some(error),
            Self::Config(_)
            | Self::OutsideLog(_)
            | Self::Corrupt(_)
            | Self::LogMissing { .. }
            | Self::Removed { .. }
            | Self::Unfinished { .. }
            | Self::Stopped => None,
        }
    }
}

/// The log, and what it says.
pub(super) struct Log {
    pub(super) wal: Wal,
    pub(super) recovered: Recovered,
}

/// Members and where they are reached.
pub(super) type Peers = Vec<(MemberId, Vec<String>)>;

/// Opens the member's directory, making it if it is new.
///
/// # Errors
/// - [`StartError`], before anything is changed that a corrected start would miss.
pub(super) async fn open(config: &Config, clock: &Clock) -> Result<Opened, StartError> {
    prepare_directories(config)?;
    let wal_options =
        WalOptions { fsync: !config.unsafe_no_fsync, ..WalOptions::new(config.wal_path()) };
    let is_new = !Wal::exists(&wal_options.dir);
    let discovered = match &config.discovery_srv {
        Some(discovery) if is_new => Some(srv::discovered(config, discovery).await?),
        _ => None,
    };
    let config = discovered.as_ref().unwrap_or(config);
    config.report(!is_new);
    let newest = newest_snapshot(&wal_options, is_new)?;
    exchange::adopt(&config.snap_dir(), newest.index).map_err(StartError::Exchange)?;
    if is_new && Backend::exists(&config.snap_dir().join(BACKEND_DIRECTORY)) {
        return Err(StartError::LogMissing { wal_dir: wal_options.dir });
    }
    // Before there is a backend: a start that is refused here, or ends here, may be tried again.
    let founded =
        if is_new { Some(first_start::create_log(config, &wal_options).await?) } else { None };
    let options = BackendOptions::new(config.snap_dir().join(BACKEND_DIRECTORY));
    let (backend, writer) = Backend::open(&options).map_err(StartError::Backend)?;
    let position = backend.reader().and_then(|reader| reader.consistent_index());
    let position = position.map_err(StartError::Backend)?;
    let (log, peers) = match founded {
        Some(founded) => founded,
        None => (open_log(config, &wal_options, newest, position)?, Vec::new()),
    };
    let opened = assemble_state(config, clock, log, peers, backend, writer)?;
    if !is_new && config.feature_gates.enabled(Gate::InitialCorruptCheck) {
        check_for_corruption(config, &opened).await?;
    }
    Ok(opened)
}

/// Compares the recovered state with what the peers hold.
async fn check_for_corruption(config: &Config, opened: &Opened) -> Result<(), StartError> {
    let Opened { member, cluster, machine, .. } = opened;
    let state = machine.publish();
    let own = (*member, *cluster);
    let timeout = config.request_timeout();
    let checked = check_before_start(&state.kv, &state.membership, own, timeout).await;
    checked.map_err(|sentence| {
        tracing::error!(error = sentence, "checkInitialHashKV failed");
        StartError::Corrupt(sentence)
    })
}

fn prepare_directories(config: &Config) -> Result<(), StartError> {
    let existed = config.data_dir.exists();
    for dir in [config.data_dir.clone(), config.member_dir(), config.snap_dir()] {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|error| StartError::Path { path: dir, error })?;
    }
    if existed {
        warn_of_permissions(&config.data_dir)?;
    }
    Ok(())
}

/// Source: etcd `client/pkg/fileutil`, `CheckDirPermission`, and embed, which only warns.
fn warn_of_permissions(dir: &Path) -> Result<(), StartError> {
    let metadata = fs::metadata(dir);
    let metadata = metadata.map_err(|error| StartError::Path { path: dir.to_owned(), error })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode != 0o700 {
        tracing::warn!(
            "data-dir" = %dir.display(),
            mode = format!("{mode:o}"),
            "the data directory has other permissions than the recommended 700"
        );
    }
    Ok(())
}

fn newest_snapshot(options: &WalOptions, is_new: bool) -> Result<WalSnapshot, StartError> {
    if is_new {
        return Ok(WalSnapshot::default());
    }
    let newest = Wal::newest_snapshot(options, LogIndex(u64::MAX)).map_err(StartError::Wal)?;
    Ok(newest.unwrap_or_default())
}

/// The log of a member that has run before, from the newest snapshot that the backend holds: of
/// the whole log's `newest`, or an older one.
fn open_log(
    config: &Config,
    options: &WalOptions,
    newest: WalSnapshot,
    position: LogIndex,
) -> Result<Log, StartError> {
    let opened = restart::open_log(options, newest, position);
    let (mut wal, mut recovered) = opened.map_err(StartError::Wal)?;
    if config.force_new_cluster {
        let urls = config.initial_advertise_peer_urls.iter().map(ToString::to_string).collect();
        force_new_cluster(&mut wal, &mut recovered, position, urls).map_err(StartError::Wal)?;
        return Ok(Log { wal, recovered });
    }
    tracing::info!(
        "cluster-id" = %recovered.cluster,
        "local-member-id" = %recovered.member,
        "commit-index" = recovered.hard_state.commit,
        "restarting local member"
    );
    let mut log = Log { wal, recovered };
    first_start::finish_log(config, &mut log)?;
    Ok(log)
}

fn assemble_state(
    config: &Config,
    clock: &Clock,
    log: Log,
    mut peers: Peers,
    backend: Backend,
    writer: Writer,
) -> Result<Opened, StartError> {
    let Log { wal, recovered } = log;
    let (member, cluster) = (recovered.member, recovered.cluster);
    let started = clock.now();
    let (machine, at) = Machine::recover(&backend, machine_settings(config, member, cluster))
        .map_err(StartError::Recover)?;
    let membership = machine.publish().membership;
    if membership.is_removed(member) {
        return Err(StartError::Removed { member });
    }
    let learners = membership.members().filter(|member| member.is_learner).count();
    if config.max_learners < learners {
        return Err(StartError::Join(JoinError::TooManyLearners));
    }
    let stored = membership.members().map(|member| (member.id, member.peer_urls.clone()));
    peers.extend(stored.filter(|(id, _)| *id != member));
    state::check_log(&recovered.entries, at.applied).map_err(StartError::Recover)?;
    let snapshot = recovered.snapshot.index;
    let raft = start_raft(config, recovered, &at)?;
    tracing::info!(
        took = ?(clock.now().saturating_sub(started)),
        "applied-index" = at.applied.0,
        "recovered the state of the member"
    );
    let reader = backend.reader().map_err(StartError::Backend)?;
    let finished_compaction = reader.finished_compaction().map_err(StartError::Backend)?;
    drop(reader);
    Ok(Opened {
        member,
        cluster,
        wal,
        snapshot,
        backend,
        writer,
        machine,
        raft,
        finished_compaction,
        peers,
    })
}

fn machine_settings(config: &Config, member: MemberId, cluster: ClusterId) -> state::Settings {
    state::Settings {
        member,
        cluster,
        quota: Quota::from_flag(super::quota_bytes(config)),
        learners_max: config.max_learners,
        leases: LeaseSettings {
            ttl_seconds_min: lease::ttl_seconds_min(
                config.heartbeat_interval,
                config.election_ticks,
            ),
            checkpoints: config.feature_gates.enabled(Gate::LeaseCheckpoint),
            checkpoints_persist: config.feature_gates.enabled(Gate::LeaseCheckpointPersist),
            revoke_retry: config.request_timeout(),
        },
    }
}

fn start_raft(config: &Config, recovered: Recovered, at: &RecoveredAt) -> Result<Raft, StartError> {
    let member = recovered.member;
    let state = restart::raft_state(recovered, at).map_err(StartError::OutsideLog)?;
    let settings = consensus::Config {
        election_ticks: config.election_ticks,
        pre_vote: config.pre_vote,
        ..consensus::Config::new(member)
    };
    let mut random = Random::from_system();
    let dice = Box::new(move |bound| random.below(bound));
    Raft::new(settings, state, dice).map_err(StartError::Raft)
}
