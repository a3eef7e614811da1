//! From a configuration to a running member, and back to nothing.
//!
//! Decides the order of start and end, and owns the list of threads: no other file starts one,
//! but for the threads of `serve`. It is the only module that knows all others. Called by
//! `bin/oxetcd.rs`.
//!
//! ```text
//!   Config --> bind --> open (directory, log, backend, machine, raft)
//!                         |
//!                         v
//!              assemble --> spawn: flush, hash, scrub, watch-N, log, apply, replica
//!                         |
//!                         v
//!              publish name and URLs --> serve --> ready --> signal --> drain --> joined
//! ```
//!
//! Invariants
//! - B1 Clients are served only after everything that the log holds as committed is applied and
//!   the cluster knows this member.
//! - B2 A thread that fails ends the process at once; what it had not made durable was never
//!   acknowledged.

use std::{
    net::TcpListener,
    panic,
    process::{self, ExitCode},
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    api::{self, Edge},
    base::{clock::Clock, error::chain, log, ready, task},
    config::{AutoCompaction, Config, gates::Gate},
    http::{self, Access, Http},
    model::{MemberId, Unavailable},
    replica::{self, CheckTimes, Compaction, CorruptionChecks, Duties, DutySettings, Handle},
    serve::{self, Endpoint, Listeners, Serving, Traffic},
};

mod discovery;
mod dns;
mod first_start;
#[cfg(test)]
mod first_start_tests;
mod force_new;
mod hand_over;
mod local;
mod long_reads;
mod member;
mod open;
mod peers;
mod scrub;
mod srv;
mod threads;

use discovery::DiscoveryError;
use member::LocalMember;
use open::{StartError, open};
use threads::Threads;

/// How long requests that are under way may take at the end.
///
/// Source: etcd waits for as long as a request may take, and for open streams as long.
const GRACE: Duration = Duration::from_secs(2);

/// How long a member that was removed stays, so that answers and the last messages get through.
///
/// Source: etcd `stopWithDelay(10*100*time.Millisecond, ..)`.
const REMOVED_GRACE: Duration = Duration::from_secs(1);

/// How many election timeouts the lead may take to go to another member at the end.
const TRANSFER_ELECTIONS: u32 = 2;

/// The signals that end a member: terminate, interrupt.
type Signals = (Signal, Signal);

/// Runs a member until it is told to stop, or cannot go on.
#[must_use]
pub fn run(config: Config) -> ExitCode {
    abort_on_panic();
    register_metrics(&config);
    match start(&config) {
        Ok(Ended::By(signal)) => end_by(signal),
        Ok(Ended::Removed(member)) | Err(StartError::Removed { member }) => {
            log_removed(member);
            ExitCode::SUCCESS
        }
        Err(StartError::Discovery(error)) => {
            log_discovery(&config, &error);
            ExitCode::FAILURE
        }
        Err(error) => {
            fatal(&error);
            ExitCode::FAILURE
        }
    }
}

/// The signal that ended the member.
#[derive(Clone, Copy, Debug)]
struct EndedBy(SignalKind);

/// Why a member that ran has ended.
#[derive(Clone, Copy, Debug)]
enum Ended {
    /// It was told to.
    By(EndedBy),
    /// It was removed from the cluster.
    Removed(MemberId),
}

/// A panic means that this process computed something impossible. It must not go on with a
/// thread missing.
fn abort_on_panic() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        tracing::error!(panic = %info, "a thread panicked; the process ends");
        usual(info);
        process::abort();
    }));
}

fn register_metrics(config: &Config) {
    config.feature_gates.register_metrics();
    api::metrics::register_metrics(config.metrics_extensive);
    crate::storage::register_metrics();
    crate::storage::quota::announce(quota_flag(config));
    crate::mvcc::register_metrics();
    crate::lease::register_metrics();
    crate::cluster::register_metrics();
    crate::state::register_metrics();
    crate::watch::register_metrics();
    crate::transport::register_metrics();
    replica::register_metrics();
}

/// The quota as its flag had it: 0 is the default, below 0 is none.
fn quota_flag(config: &Config) -> i64 {
    match config.quota_backend_bytes.map(i64::try_from) {
        None => -1,
        Some(Ok(crate::storage::quota::QUOTA_BYTES_DEFAULT)) => 0,
        Some(bytes) => bytes.unwrap_or(i64::MAX),
    }
}

/// Says why a member ends that has no cluster any more, in etcd's words.
fn log_removed(member: MemberId) {
    tracing::warn!(
        "local-member-id" = %member,
        error = "the member has been permanently removed from the cluster",
        "server error"
    );
    tracing::warn!("data-dir used by this member must be removed");
}

/// Says that a cluster was not found, in etcd's words, which take for granted that it is full.
fn log_discovery(config: &Config, error: &DiscoveryError) {
    let (token, endpoints) = match &config.discovery {
        Some(discovery) => (discovery.token.as_str(), discovery.endpoints.join(",")),
        None => ("", String::new()),
    };
    tracing::warn!(
        "discovery-token" = token,
        "discovery-endpoints" = endpoints,
        error = format!("failed to join discovery cluster ({error})"),
        "failed to bootstrap; discovery token was already used"
    );
    tracing::warn!("do not reuse discovery token; generate a new one to bootstrap a cluster");
}

/// Logs the whole chain of an error, as the reason why the process ends.
fn fatal(error: &(dyn std::error::Error + 'static)) {
    log::write(log::Level::Fatal, "discovery failed", &[("error", json!(chain(error)))]);
}

/// The quota in bytes; below 0 is none.
fn quota_bytes(config: &Config) -> i64 {
    config.quota_backend_bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX))
}

fn start(config: &Config) -> Result<Ended, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::System)?;
    runtime.block_on(async {
        let mut signals = (
            signal(SignalKind::terminate()).map_err(StartError::System)?,
            signal(SignalKind::interrupt()).map_err(StartError::System)?,
        );
        let peers = bind_peers(config)?;
        let listeners = bind(config)?;
        let clock = Clock::system();
        let opened = tokio::select! {
            opened = open(config, &clock) => opened?,
            // It may wait for other members for as long as it takes.
            ended_by = ended_by(&mut signals) => return Ok(Ended::By(ended_by)),
        };
        let member = opened.member;
        let threads = Threads::start(config, &clock, opened, peers)?;
        serve_until_signal(config, &clock, member, listeners, threads, signals).await
    })
}

fn bind(config: &Config) -> Result<Listeners, StartError> {
    let texts = |urls: &[crate::config::url::Url]| -> Vec<String> {
        urls.iter().map(|url| url.as_str().to_owned()).collect()
    };
    let clients = texts(&config.listen_client_urls);
    let plain = texts(&config.listen_client_http_urls);
    let mut endpoints = Endpoint::of_clients(&clients, &plain).map_err(StartError::Socket)?;
    for url in texts(&config.listen_metrics_urls) {
        endpoints.push(Endpoint::from_url(&url, Traffic::Metrics).map_err(StartError::Socket)?);
    }
    let options = serve_options(config);
    Listeners::bind(&endpoints, &options).map_err(StartError::Socket)
}

fn bind_peers(config: &Config) -> Result<Vec<TcpListener>, StartError> {
    let urls: Vec<String> =
        config.listen_peer_urls.iter().map(|url| url.as_str().to_owned()).collect();
    serve::bind_peers(&urls, &serve_options(config)).map_err(StartError::Socket)
}

fn serve_options(config: &Config) -> serve::Options {
    serve::Options {
        concurrent_streams_max: config.max_concurrent_streams,
        ping_interval_min: config.grpc_keepalive_min_time,
        keepalive_interval: config.grpc_keepalive_interval,
        keepalive_timeout: config.grpc_keepalive_timeout,
        reuse_port: config.socket_reuse_port,
        show_authority: std::env::var("GODEBUG").is_ok_and(|text| text.contains("http2debug=2")),
        ..serve::Options::default()
    }
}

async fn serve_until_signal(
    config: &Config,
    clock: &Clock,
    member: MemberId,
    listeners: Listeners,
    threads: Threads,
    mut signals: Signals,
) -> Result<Ended, StartError> {
    let handle = threads.handle().clone();
    let duties = Duties::new(handle.clone(), duty_settings(config));
    let local = LocalMember::new(handle.clone(), config);
    duties.clone().start();
    let checks = CorruptionChecks::new(handle.clone(), local.clone());
    task::spawn(checks.run(corruption_checks(config)));
    let published = tokio::select! {
        published = duties.publish() => published,
        ended_by = ended_by(&mut signals) => {
            threads.stop();
            return Ok(Ended::By(ended_by));
        }
        () = handle.removed() => {
            threads.stop();
            return Ok(Ended::Removed(member));
        }
    };
    published.map_err(|_stopped: Unavailable| StartError::Stopped)?;
    wait_for_version(&handle).await;
    let serving = serve_clients(config, clock, member, local, listeners)?;
    tracing::info!("notifying init daemon");
    match ready::notify() {
        Ok(()) => tracing::info!("successfully notified init daemon"),
        Err(error) => tracing::error!(%error, "failed to notify systemd for readiness"),
    }
    let ended = tokio::select! {
        ended_by = ended_by(&mut signals) => {
            tracing::info!(signal = ended_by.name(), "received signal; shutting down");
            Ended::By(ended_by)
        }
        () = removed(&handle) => {
            Ended::Removed(member)
        }
    };
    end(config, serving, threads).await;
    Ok(ended)
}

/// Waits until this member is not one any more, and those who asked for it have their answer.
async fn removed(handle: &Handle) {
    handle.removed().await;
    tokio::time::sleep(REMOVED_GRACE).await;
}

/// Without a cluster version every call would be refused, so nobody is told before that the
/// member is ready.
async fn wait_for_version(handle: &Handle) {
    while handle.published().cluster_version().is_none() && !handle.stopping() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn serve_clients(
    config: &Config,
    clock: &Clock,
    member: MemberId,
    local: LocalMember,
    listeners: Listeners,
) -> Result<Serving, StartError> {
    let edge = Arc::new(Edge::new(local, edge_settings(config), clock.clone()));
    http::register_metrics(member);
    let access = Access::new(config.cors.clone(), config.host_whitelist.clone());
    let http = Http::new(Arc::clone(&edge), access);
    serve::start(listeners, edge, http, serve_options(config)).map_err(StartError::System)
}

fn edge_settings(config: &Config) -> api::Settings {
    api::Settings {
        request_bytes_max: config.max_request_bytes,
        txn_operations_max: config.max_txn_ops,
        slow_request: config.warning_unary_request_duration,
        slow_apply: config.warning_apply_duration,
        election_timeout: config.election_timeout(),
        heartbeat_interval: config.heartbeat_interval,
        request_timeout: config.request_timeout(),
        quota_bytes: quota_bytes(config),
        unhealthy_while_defragmenting: config.feature_gates.enabled(Gate::StopGRPCServiceOnDefrag),
    }
}

fn corruption_checks(config: &Config) -> CheckTimes {
    let checks_compactions = config.feature_gates.enabled(Gate::CompactHashCheck);
    CheckTimes {
        periodic: Some(config.corrupt_check_time).filter(|time| !time.is_zero()),
        compaction: Some(config.compact_hash_check_time).filter(|_| checks_compactions),
    }
}

fn duty_settings(config: &Config) -> DutySettings {
    DutySettings {
        name: config.name.clone(),
        client_urls: config
            .advertise_client_urls
            .iter()
            .map(|url| url.as_str().to_owned())
            .collect(),
        downgrade_check: Some(config.downgrade_check_time).filter(|time| !time.is_zero()),
        lease_checkpoints: config.feature_gates.enabled(Gate::LeaseCheckpoint),
        compaction: match config.auto_compaction {
            AutoCompaction::Off => None,
            AutoCompaction::Periodic(period) => Some(Compaction::Periodic(period)),
            AutoCompaction::Revision(retention) => Some(Compaction::Revision(retention)),
        },
    }
}

impl EndedBy {
    const fn name(self) -> &'static str {
        if self.0.as_raw_value() == SignalKind::interrupt().as_raw_value() {
            "interrupt"
        } else {
            "terminated"
        }
    }
}

async fn ended_by((terminate, interrupt): &mut Signals) -> EndedBy {
    tokio::select! {
        _ = terminate.recv() => EndedBy(SignalKind::terminate()),
        _ = interrupt.recv() => EndedBy(SignalKind::interrupt()),
    }
}

async fn end(config: &Config, serving: Serving, threads: Threads) {
    let name = config.name.as_str();
    let data_dir = config.data_dir.display().to_string();
    tracing::info!(name, "data-dir" = data_dir, "closing etcd server");
    // Watches and keep-alives would go on until their clients end them, so they are cut; what else
    // is under way ends by itself soon.
    threads.handle().watch().stop();
    serving.stop(GRACE.min(config.request_timeout()));
    hand_over::hand_over(threads.handle(), TRANSFER_ELECTIONS * config.election_timeout()).await;
    threads.stop();
    tracing::info!(name, "data-dir" = data_dir, "closed etcd server");
}

/// Dies of the signal that ended the member, so that whoever started it sees what happened. As
/// process 1, which cannot die of a signal it has no handler for, it ends normally.
fn end_by(EndedBy(kind): EndedBy) -> ExitCode {
    if process::id() == 1 {
        return ExitCode::SUCCESS;
    }
    let signal = kind.as_raw_value();
    if let Err(error) = signal_hook::low_level::emulate_default_handler(signal) {
        tracing::warn!(%error, "cannot end by the signal that was received");
    }
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX))
}
