//! Puts a replica together from what `boot` has opened.
//!
//! Decides which queue joins which threads, and how long each may get. Nothing runs yet when it
//! returns: `boot` starts the threads.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use crate::{
    base::{
        clock::Clock,
        file::Disk,
        queue::{Receiver, Sender, bounded},
    },
    cluster::RequestIds,
    consensus::Raft,
    model::{ClusterId, LogIndex, MemberId},
    mvcc::{HashJob, View},
    state::Machine,
    storage::{backend::Backend, flusher::FlusherHandle, wal::Wal},
    transport::Transport,
    watch,
};

use super::{
    ApplyThread, Core, Handle, Limits, LogThread, ReplicaThread,
    core::{CoreSettings, TRUNCATE_EVERY_ENTRIES},
    group_commit::GroupCommit,
    handle::{Parts, QUEUE_PROPOSALS_MAX},
    log_writer::LogWriter,
    replica_thread::Log,
    rounds::{READ_RETRY, Rounds},
    shared::Shared,
    snapshot::{Installer, SnapshotSender},
    snapshot_policy::SnapshotPolicy,
};

/// Batches that may wait for the log thread, which takes all of them at once: enough that the
/// replica thread never waits for a disk that works.
const LOG_BATCHES_MAX: usize = 4_096;

/// Batches that may wait for the apply thread. Raft bounds the bytes in them.
const APPLY_BATCHES_MAX: usize = 4_096;

/// Hashes that may wait to be computed. Each belongs to a compaction, and compactions wait for
/// their hash.
const HASH_JOBS_MAX: usize = 64;

/// What a replica is made of.
#[derive(Debug)]
pub struct Ingredients {
    /// This member.
    pub member: MemberId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// The consensus core, at the position where the machine stands.
    pub raft: Raft,
    /// The recovered state.
    pub machine: Machine,
    /// The open log.
    pub wal: Wal,
    /// The directory of `.snap` files.
    pub snap_dir: PathBuf,
    /// The position of the newest snapshot in the log.
    pub snapshot: LogIndex,
    /// Access to the thread that writes the backend.
    pub flusher: FlusherHandle,
    /// The backend, for reading.
    pub backend: Backend,
    /// Where events go.
    pub watch: watch::thread::Handle<View>,
    /// The member's time.
    pub clock: Clock,
    /// Where the term is shown to those who are not part of the replica.
    pub term: Arc<AtomicU64>,
    /// The way to the other members.
    pub transport: Transport,
    /// Everything that flags decide.
    pub settings: Settings,
}

/// What flags decide about a replica.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The time between two raft ticks.
    pub heartbeat: Duration,
    /// The shortest time without a leader that starts an election.
    pub election_timeout: Duration,
    /// Bounds on requests.
    pub limits: Limits,
    /// Applied entries between two snapshots.
    pub snapshot_entries: u64,
    /// Entries kept behind a snapshot for followers that are a little late.
    pub catch_up_entries: u64,
    /// Log files to keep, 0 for all.
    pub log_files_max: usize,
    /// `.snap` files to keep, 0 for all.
    pub snap_files_max: usize,
    /// An apply that takes longer is worth a line in the log.
    pub slow_apply: Duration,
}

/// A replica whose threads have not been started.
#[derive(Debug)]
pub struct Assembled {
    /// For everybody who wants something of it.
    pub handle: Handle,
    /// The body of the `replica` thread.
    pub replica: ReplicaThread,
    /// The body of the `log` thread.
    pub log: LogThread,
    /// The body of the `apply` thread.
    pub apply: ApplyThread,
    /// Hashes to be computed in the background; the body of the `hash` thread takes them.
    pub hashes: Receiver<HashJob>,
}

/// Joins the parts.
#[must_use]
pub fn assemble(ingredients: Ingredients) -> Assembled {
    let Ingredients {
        member,
        cluster,
        raft,
        machine,
        wal,
        snap_dir,
        snapshot,
        flusher,
        backend,
        watch,
        clock,
        term,
        transport,
        settings,
    } = ingredients;
    let applied = machine.applied();
    let shared = Shared::new(clock, member, cluster, term, machine.publish(), applied);
    let lessor = machine.lessor().clone();
    let (inputs, replica_inputs) = bounded(QUEUE_PROPOSALS_MAX);
    let (log, log_inputs) = bounded(LOG_BATCHES_MAX);
    let (apply, apply_inputs) = bounded(APPLY_BATCHES_MAX);
    let (hash, hashes): (Sender<HashJob>, _) = bounded(HASH_JOBS_MAX);
    let park_ticks_max =
        settings.limits.request_timeout.as_millis() / settings.heartbeat.as_millis().max(1);
    let core_settings = CoreSettings {
        catch_up_entries: settings.catch_up_entries,
        truncate_every_entries: TRUNCATE_EVERY_ENTRIES,
        park_ticks_max: u64::try_from(park_ticks_max).unwrap_or(u64::MAX),
    };
    let installer = Installer { snap_dir: snap_dir.clone(), flusher: flusher.clone() };
    let snapshots = SnapshotSender {
        shared: Arc::clone(&shared),
        backend: backend.clone(),
        flusher: flusher.clone(),
        transport: transport.clone(),
        replica: inputs.clone(),
    };
    let writer = LogWriter {
        wal,
        disk: Disk::system(),
        snap_dir,
        files_max: settings.log_files_max,
        snaps_max: settings.snap_files_max,
        recorded: snapshot,
    };
    let contexts = RequestIds::new(member, shared.clock.unix());
    let replica = ReplicaThread {
        core: Core::new(raft, core_settings),
        shared: Arc::clone(&shared),
        inputs: replica_inputs,
        log: Log { here: Some(Box::new(writer)), waiting: Vec::new(), thread: log },
        apply,
        lessor: lessor.clone(),
        tick: settings.heartbeat,
        request_timeout: settings.limits.request_timeout,
        election_timeout: settings.election_timeout,
        rounds: Rounds::new(contexts, READ_RETRY),
        leaderless_since: Some(Duration::ZERO),
        transport: transport.clone(),
        snapshots,
        peers: BTreeMap::new(),
        group_commit: GroupCommit::default(),
    };
    let log_thread = LogThread { inputs: log_inputs, reports: inputs.clone() };
    let apply_thread = ApplyThread {
        machine,
        shared: Arc::clone(&shared),
        inputs: apply_inputs,
        replica: inputs.clone(),
        flusher: flusher.clone(),
        watch: watch.clone(),
        lessor: lessor.clone(),
        hash,
        snapshots: SnapshotPolicy::new(
            settings.snapshot_entries,
            settings.catch_up_entries,
            snapshot,
        ),
        installer,
        election_timeout: settings.election_timeout,
        warning_duration: settings.slow_apply,
    };
    let limits = settings.limits;
    let handle =
        Handle::new(Parts { shared, inputs, limits, lessor, flusher, backend, watch, transport });
    Assembled { handle, replica, log: log_thread, apply: apply_thread, hashes }
}
