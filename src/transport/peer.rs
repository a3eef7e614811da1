//! One member that this one talks to.
//!
//! Decides nothing: it holds together what belongs to one peer. Shared by the replica, which puts
//! messages in, and by the tasks on the `peer` thread, which move them.

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    kind::StreamKind, lanes::Lanes, metrics, picker::Picker, presence::Presence, status::Status,
};
use crate::{base::metrics::IntCounter, model::MemberId};

/// What a peer is to this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// In the cluster.
    Member,
    /// Known only because it asked for something: this member has yet to learn of it. It is reached
    /// through the pipeline alone.
    Remote,
}

/// A peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: MemberId,
    pub(super) standing: Standing,
    pub(super) picker: Picker,
    pub(super) status: Status,
    pub(super) presence: Presence,
    pub(super) lanes: Lanes,
    /// Cancelled when it is not a peer any more.
    pub(super) over: CancellationToken,
    pub(super) sent_bytes: IntCounter,
    pub(super) received_bytes: IntCounter,
}

impl Peer {
    pub(super) fn new(
        local: MemberId,
        id: MemberId,
        standing: Standing,
        urls: Vec<String>,
        over: CancellationToken,
    ) -> Self {
        Self {
            id,
            standing,
            picker: Picker::new(urls),
            status: Status::new(local, id),
            presence: Presence::default(),
            lanes: Lanes::new(),
            over,
            sent_bytes: metrics::sent_bytes(id),
            received_bytes: metrics::received_bytes(id),
        }
    }

    /// A message could not be sent.
    pub(super) fn count_failure(&self) {
        // A peer that never failed has no series.
        metrics::sent_failures(self.id).inc();
    }

    /// Ends everything that goes on with it.
    pub(super) fn end(&self, local: MemberId) {
        let remote = self.id;
        info!("remote-peer-id" = %remote, "stopping remote peer");
        self.over.cancel();
        self.status.end();
        for kind in self.lanes.end() {
            warn!(
                "stream-writer-type" = %kind,
                "remote-peer-id" = %remote,
                "closed TCP streaming connection with remote peer"
            );
        }
        for kind in StreamKind::ALL {
            info!(
                "stream-writer-type" = %kind,
                "remote-peer-id" = %remote,
                "stopped TCP streaming connection with remote peer"
            );
        }
        info!(
            "local-member-id" = %local,
            "remote-peer-id" = %remote,
            "stopped HTTP pipelining with remote peer"
        );
        for kind in StreamKind::ALL {
            info!(
                "stream-reader-type" = %kind,
                "local-member-id" = %local,
                "remote-peer-id" = %remote,
                "stopped stream reader with remote peer"
            );
        }
        info!("remote-peer-id" = %remote, "stopped remote peer");
    }
}
