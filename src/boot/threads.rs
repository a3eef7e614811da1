//! The threads of a member.
//!
//! Decides which threads run and what the failure of one means. Every thread of the member but
//! those of `serve` and a long read's or backup's starts here.
//!
//! | thread | body | ends when |
//! |---|---|---|
//! | `flush` | `storage::flusher` | its handles are gone |
//! | `hash` | hashes of compactions | the apply thread is gone |
//! | `scrub` | `boot::scrub` | the rest has ended |
//! | `watch-N` | `watch::thread::WatchThread` | it is stopped |
//! | `log` | `replica::LogThread` | the replica thread is gone |
//! | `apply` | `replica::ApplyThread` | the replica thread is gone |
//! | `peer` | `transport::Service` | it is stopped |
//! | `replica` | `replica::ReplicaThread` | it is stopped |

use std::{
    error::Error,
    net::TcpListener,
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use serde_json::json;

use crate::{
    api::{ETCD_VERSION, edge::REQUEST_OVERHEAD_BYTES},
    base::{
        clock::Clock,
        error::chain,
        log,
        queue::{Drained, Receiver, Sender, bounded},
        random::Random,
        thread::{Priority, spawn},
    },
    config::Config,
    model::{ClusterId, MemberId, Term},
    mvcc::{HashJob, View},
    replica::{Assembled, Handle, Ingredients, Limits, Settings, assemble},
    storage::flusher::{self, FlusherOptions, mailbox},
    transport,
    watch::{self, frame::Identity, hub},
};

use super::{
    local::PeerSide,
    member::LocalMember,
    open::{Opened, StartError},
    scrub,
};

/// Watch threads. One encodes and queues more events than two cores can send.
const WATCH_LANES: usize = 1;

/// Responses that may wait for one stream before its watchers lag.
///
/// Source: etcd `chanBufLen` is 128; a response here may be shared, and costs less.
const QUEUE_FRAMES_MAX: usize = 1_024;

/// Bytes of responses that may wait for one stream before its watchers lag.
const QUEUE_BYTES_MAX: usize = 4 << 20;

/// Revisions that a watcher which catches up is given before the next one's turn.
///
/// Source: etcd `watchBatchMaxRevs`.
const TURN_REVISIONS_MAX: usize = 1_000;

/// The running threads, in the order in which they are to be waited for.
#[derive(Debug)]
pub(super) struct Threads {
    handle: Handle,
    joins: Vec<JoinHandle<()>>,
    /// Ends the scrub thread when it is dropped.
    _scrub: Sender<()>,
}

impl Threads {
    /// Starts everything that a member is but its edge.
    pub(super) fn start(
        config: &Config,
        clock: &Clock,
        opened: Opened,
        peer_listeners: Vec<TcpListener>,
    ) -> Result<Self, StartError> {
        let Opened {
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
        } = opened;
        let view = machine.publish().kv;
        let (flusher, inbox) = mailbox(machine.applied(), view.revision(), finished_compaction);
        let term = Arc::new(AtomicU64::new(0));
        let identity = Identity { cluster, member };
        let (watch, watch_threads) = start_watch(config, clock, identity, &view, &term);
        let (transport, service) =
            transport::transport(transport_settings(config, member, cluster), clock.clone());
        for (peer, urls) in peers {
            transport.set_peer(peer, urls);
        }
        let assembled = assemble(Ingredients {
            member,
            cluster,
            raft,
            machine,
            wal,
            snap_dir: config.snap_dir(),
            snapshot,
            flusher,
            backend,
            watch,
            clock: clock.clone(),
            term,
            transport,
            settings: replica_settings(config),
        });
        let Assembled { handle, replica, log, apply, hashes } = assembled;
        let (flush_options, flush_clock) = (flush_options(config), clock.clone());
        let mut joins = vec![
            start_thread("replica", Priority::Normal, move || or_die("replica", replica.run()))?,
            start_thread("apply", Priority::Normal, move || or_die("apply", apply.run()))?,
            start_thread("log", Priority::Normal, move || or_die("log", log.run()))?,
        ];
        let local = Arc::new(PeerSide {
            handle: handle.clone(),
            member: LocalMember::new(handle.clone(), config),
            snap_dir: config.snap_dir(),
        });
        joins.push(start_thread("peer", Priority::Normal, move || {
            or_die("peer", service.run(peer_listeners, local));
        })?);
        for thread in watch_threads {
            joins.push(start_thread("watch-0", Priority::Normal, move || thread.run())?);
        }
        // These end with the last handle, which a client's connection may still hold.
        start_thread("hash", Priority::Background, move || run_hashes(hashes))?;
        start_thread("flush", Priority::Background, move || {
            or_die("flush", flusher::run(writer, inbox, flush_options, flush_clock));
        })?;
        let (scrub, stopped) = bounded(1);
        let backend = handle.backend().clone();
        start_thread("scrub", Priority::Background, move || scrub::run(&backend, stopped))?;
        Ok(Self { handle, joins, _scrub: scrub })
    }

    pub(super) const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Stops everything and waits for what is in the path of a write. The backend is brought up to
    /// date, which saves the next start a replay.
    pub(super) fn stop(self) {
        self.handle.stop();
        self.handle.transport().stop();
        self.handle.watch().stop();
        for join in self.joins {
            if join.join().is_err() {
                tracing::warn!("a thread ended badly");
            }
        }
        if self.handle.sync_backend_blocking().is_err() {
            tracing::warn!("the backend is behind; the next start replays the log");
        }
    }
}

fn start_thread(
    name: &'static str,
    priority: Priority,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    spawn(name, priority, body).map_err(StartError::System)
}

/// Ends the process if a thread that owns something durable has failed (B2).
fn or_die<E: Error + 'static>(name: &str, result: Result<(), E>) {
    let Err(error) = result else { return };
    log::write(
        log::Level::Fatal,
        "the member cannot make writes durable and stops",
        &[("thread", json!(name)), ("error", json!(chain(&error)))],
    );
    process::exit(1);
}

/// Computes hashes of compactions until nobody can ask for any.
fn run_hashes(mut hashes: Receiver<HashJob>) {
    let mut jobs = Vec::new();
    while hashes.drain(&mut jobs, None) != Drained::Closed {
        for job in jobs.drain(..) {
            if let Err(error) = job.run() {
                tracing::warn!(%error, "failed to hash the history at a compaction");
            }
        }
    }
}

fn start_watch(
    config: &Config,
    clock: &Clock,
    identity: Identity,
    view: &View,
    term: &Arc<AtomicU64>,
) -> (watch::thread::Handle<View>, Vec<watch::thread::WatchThread<View>>) {
    let settings = hub::Settings {
        identity,
        fragment_bytes_max: config.max_request_bytes + REQUEST_OVERHEAD_BYTES,
        progress_notify_interval: config.watch_progress_notify_interval,
        queue_frames_max: QUEUE_FRAMES_MAX,
        queue_bytes_max: QUEUE_BYTES_MAX,
        turn_revisions_max: TURN_REVISIONS_MAX,
    };
    let term = Arc::clone(term);
    let term: watch::thread::TermSource = Arc::new(move || Term(term.load(Ordering::Relaxed)));
    let mut random = Random::from_system();
    watch::thread::start(&settings, view, WATCH_LANES, clock, &term, &mut random)
}

fn flush_options(config: &Config) -> FlusherOptions {
    FlusherOptions {
        compaction_rows: config.compaction_batch_limit,
        compaction_pause: config.compaction_sleep_interval,
        ..FlusherOptions::default()
    }
}

fn transport_settings(
    config: &Config,
    member: MemberId,
    cluster: ClusterId,
) -> transport::Settings {
    let urls = &config.initial_advertise_peer_urls;
    transport::Settings {
        member,
        cluster,
        peer_urls: urls.iter().map(|url| url.as_str().to_owned()).collect(),
        server_version: ETCD_VERSION,
    }
}

fn replica_settings(config: &Config) -> Settings {
    Settings {
        heartbeat: config.heartbeat_interval,
        election_timeout: config.election_timeout(),
        limits: Limits {
            request_bytes_max: config.max_request_bytes,
            request_timeout: config.request_timeout(),
        },
        snapshot_entries: config.snapshot_count,
        catch_up_entries: config.snapshot_catchup_entries,
        log_files_max: config.max_wals,
        snap_files_max: config.max_snapshots,
        slow_apply: config.warning_apply_duration,
    }
}
