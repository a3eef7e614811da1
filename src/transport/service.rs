//! The transport's two ends: the handle that sends, and the service that moves bytes.
//!
//! Decides nothing yet: whatever is sent is reported as undeliverable.

use std::{
    collections::BTreeSet,
    io,
    net::TcpListener,
    sync::{Arc, OnceLock},
    time::Duration,
};

use proto::raftpb::Message;

use super::{Local, Settings, SnapshotBody};
use crate::{base::clock::Clock, consensus::SnapshotReport, model::MemberId};

/// How the member reaches its peers. Cheap to clone; no call waits.
#[derive(Clone, Debug)]
pub struct Transport(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    local: OnceLock<Arc<dyn Local>>,
}

/// What runs on the `peer` thread.
#[derive(Debug)]
pub struct Service(Transport);

/// A transport that is not running yet.
#[must_use]
pub fn transport(_settings: Settings, _clock: Clock) -> (Transport, Service) {
    let transport = Transport(Arc::new(Shared { local: OnceLock::new() }));
    (transport.clone(), Service(transport))
}

impl Transport {
    /// Sends messages, each to the member that it names. Those for members that are not known are
    /// dropped.
    pub fn send(&self, messages: Vec<Message>) {
        let Some(local) = self.0.local.get() else { return };
        let members: BTreeSet<_> = messages.iter().filter_map(|message| message.to).collect();
        for member in members {
            local.unreachable(MemberId(member));
        }
    }

    /// Sends a snapshot: its message, and the database that belongs to it. How it went is told with
    /// [`Local::snapshot_sent`].
    pub fn send_snapshot(&self, message: Message, body: SnapshotBody) {
        drop(body);
        let Some(local) = self.0.local.get() else { return };
        local.snapshot_sent(MemberId(message.to.unwrap_or(0)), SnapshotReport::Failed);
    }

    /// Begins to reach a member, or to reach it elsewhere.
    pub fn set_peer(&self, _member: MemberId, _peer_urls: Vec<String>) {}

    /// Ends all connections with a member.
    pub fn remove_peer(&self, _member: MemberId) {}

    /// When the connection with a member became active, in the clock's time; `None` if it is not.
    #[must_use]
    pub fn active_since(&self, _member: MemberId) -> Option<Duration> {
        None
    }

    /// Ends everything; the service returns.
    pub fn stop(&self) {}
}

impl Service {
    /// Serves `listeners` and moves messages until the transport is stopped.
    ///
    /// # Errors
    /// If the system refuses what every process may have.
    pub fn run(self, _listeners: Vec<TcpListener>, local: Arc<dyn Local>) -> io::Result<()> {
        // Only the first call has a service to run.
        self.0.0.local.set(local).ok();
        Ok(())
    }
}
