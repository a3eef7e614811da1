//! The transport's two ends: the handle that sends, and the service that moves bytes.
//!
//! Decides what runs: tasks for each peer, for each listener, and for each snapshot on its way, all
//! of them on the `peer` thread. `boot` makes the pair; the replica keeps the handle.

use std::{io, net::TcpListener, sync::Arc, time::Duration};

use proto::raftpb::Message;
use tokio::{runtime::Builder, sync::Semaphore};

use super::{
    Local, Settings, SnapshotBody,
    kind::StreamKind,
    peer::{Peer, Standing},
    pipeline::Pipeline,
    probe::Probe,
    reader::Reader,
    server::{self, CONNECTIONS_MAX},
    shared::{Job, Shared},
    snapshot_sender,
};
use crate::{
    base::{clock::Clock, task},
    model::MemberId,
};

/// How the member reaches its peers. Cheap to clone; no call waits.
#[derive(Clone, Debug)]
pub struct Transport(Arc<Shared>);

/// What runs on the `peer` thread.
#[derive(Debug)]
pub struct Service(Arc<Shared>);

/// A transport that is not running yet. Its clock is the one of [`Transport::active_since`].
#[must_use]
pub fn transport(settings: Settings, clock: Clock) -> (Transport, Service) {
    let shared = Arc::new(Shared::new(settings, clock));
    (Transport(Arc::clone(&shared)), Service(shared))
}

impl Transport {
    /// Sends messages, each to the member that it names. Those for members that are not known are
    /// dropped. Messages to one member that take the same way keep their order.
    pub fn send(&self, messages: Vec<Message>) {
        self.0.send(messages);
    }

    /// Sends a snapshot: its message, and the database that belongs to it. How it went is told with
    /// [`Local::snapshot_sent`].
    pub fn send_snapshot(&self, message: Message, body: SnapshotBody) {
        self.0.send_snapshot(message, body);
    }

    /// Begins to reach a member, or to reach it elsewhere.
    pub fn set_peer(&self, member: MemberId, peer_urls: Vec<String>) {
        self.0.set_peer(member, peer_urls);
    }

    /// Ends all connections with a member.
    pub fn remove_peer(&self, member: MemberId) {
        self.0.remove_peer(member);
    }

    /// When the connection with a member became active, in the clock's time; `None` if it is not.
    #[must_use]
    pub fn active_since(&self, member: MemberId) -> Option<Duration> {
        self.0.member(member)?.status.active_since()
    }

    /// Ends everything; the service returns.
    pub fn stop(&self) {
        self.0.end();
    }
}

impl Service {
    /// Serves `listeners` and moves messages until the transport is stopped.
    ///
    /// # Errors
    /// If the system refuses what every process may have.
    pub fn run(self, listeners: Vec<TcpListener>, local: Arc<dyn Local>) -> io::Result<()> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let shared = self.0;
        let result = runtime.block_on(serve(&shared, listeners, local));
        // Cuts what is left.
        runtime.shutdown_background();
        result
    }
}

async fn serve(
    shared: &Arc<Shared>,
    listeners: Vec<TcpListener>,
    local: Arc<dyn Local>,
) -> io::Result<()> {
    shared.begin(local);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        until(&shared.stop, server::accept(Arc::clone(shared), listener, Arc::clone(&room)));
    }
    let starting = async {
        loop {
            for job in shared.take_jobs() {
                start(shared, job);
            }
            shared.jobs_waiting.notified().await;
        }
    };
    shared.stop.run_until_cancelled(starting).await;
    Ok(())
}

fn start(shared: &Arc<Shared>, job: Job) {
    match job {
        Job::Peer(peer) => start_peer(shared, peer),
        Job::Snapshot(peer, message, body) => {
            let sending =
                snapshot_sender::send(Arc::clone(shared), Arc::clone(&peer), message, body);
            until(&peer.over, sending);
        }
    }
}

fn start_peer(shared: &Arc<Shared>, peer: Arc<Peer>) {
    let pipeline = Pipeline { shared: Arc::clone(shared), peer: Arc::clone(&peer) };
    until(&peer.over, pipeline.run());
    if peer.standing == Standing::Remote {
        return;
    }
    let probe = Probe { shared: Arc::clone(shared), peer: Arc::clone(&peer) };
    until(&peer.over, probe.run());
    for kind in StreamKind::ALL {
        let reader = Reader::new(Arc::clone(shared), Arc::clone(&peer), kind);
        until(&peer.over, reader.run());
    }
}

/// Runs `work` until it is done or `over` is cancelled.
fn until(
    over: &tokio_util::sync::CancellationToken,
    work: impl Future<Output = ()> + Send + 'static,
) {
    let over = over.clone();
    // It ends by itself, or with the runtime.
    drop(task::spawn(async move {
        over.run_until_cancelled(work).await;
    }));
}
