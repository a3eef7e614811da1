//! Whether a peer can be reached.
//!
//! Decides what "active" means: the last thing that was tried with the peer succeeded. Written by
//! everything that talks to it, read by the replica.
//!
//! Source: etcd `server/etcdserver/api/rafthttp/peer_status.go`.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tracing::{debug, info, warn};

use super::metrics;
use crate::model::MemberId;

/// The state of the connection with one peer.
#[derive(Debug)]
pub(super) struct Status {
    local: MemberId,
    peer: MemberId,
    active_since: Mutex<Option<Duration>>,
}

impl Status {
    pub(super) const fn new(local: MemberId, peer: MemberId) -> Self {
        Self { local, peer, active_since: Mutex::new(None) }
    }

    /// Something succeeded at the time `now`.
    pub(super) fn activate(&self, now: Duration) {
        let mut active_since = self.lock();
        if active_since.is_none() {
            *active_since = Some(now);
            info!("peer-id" = %self.peer, "peer became active");
            metrics::active_peers(self.local, self.peer).inc();
        }
    }

    /// `action` failed on the connection `source`, because of `reason`.
    pub(super) fn deactivate(
        &self,
        action: &'static str,
        source: impl fmt::Display,
        reason: impl fmt::Display,
    ) {
        let peer = self.peer;
        let error = format_args!("failed to {action} {peer} on {source} ({reason})");
        if self.lock().take().is_none() {
            debug!("peer-id" = %peer, %error, "peer deactivated again");
            return;
        }
        warn!(
            "peer-id" = %peer,
            %error,
            "peer became inactive (message send to peer failed)"
        );
        metrics::active_peers(self.local, peer).dec();
        metrics::disconnected_peers(self.local, peer).inc();
    }

    /// The peer is not one any more.
    pub(super) fn end(&self) {
        if self.lock().take().is_some() {
            metrics::active_peers(self.local, self.peer).dec();
        }
    }

    pub(super) fn active_since(&self) -> Option<Duration> {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Duration>> {
        // Nothing panics half-way through a change, so a poisoned state is still whole.
        self.active_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
