//! What a member does without being asked.
//!
//! Decides when the member proposes on its own behalf: publishing its name and client URLs, the
//! cluster version, the end of expired leases, checkpoints of lease times, and auto-compaction.
//! Runs as tasks on the administrative runtime, through [`Handle`] like any client; the state
//! machine alone decides what becomes of a proposal. Started by `boot`.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use proto::{
    etcdserverpb::{LeaseCheckpointRequest, LeaseRevokeRequest},
    membershippb::{Attributes, ClusterMemberAttrSetRequest},
};
use tokio::time::MissedTickBehavior;

use crate::{
    base::task,
    model::{LeaseId, MemberId, Request, Term, Unavailable},
};

use super::{Handle, Identity};

mod compaction;
mod versions;
pub use compaction::Compaction;

/// How often the leader looks for expired leases.
///
/// Source: etcd `lessor.runLoop` looks every 500 ms; ours is finer because it is cheaper.
const LEASE_LOOK: Duration = Duration::from_millis(100);

/// The same while none is due soon: an idle member wakes up rarely.
const LEASE_LOOK_MAX: Duration = Duration::from_secs(1);

/// Leases whose end is proposed together: few enough that a client's request hardly notices those
/// before it.
const REVOKES_TOGETHER_MAX: usize = 26;

/// The time from one lot to the next, which leaves the threads to clients: up to 26,000 leases expire
/// per second, in etcd 1,000.
const REVOKES_PERIOD: Duration = Duration::from_millis(1);

/// How often the leader looks whether remaining lease times are to be replicated.
const CHECKPOINT_LOOK: Duration = Duration::from_secs(1);

/// Lease times in one checkpoint.
const CHECKPOINT_LEASES_MAX: usize = 1_000;

/// Pause before something that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Settings of the duties.
#[derive(Clone, Debug)]
pub struct DutySettings {
    /// The name that the member publishes.
    pub name: String,
    /// The client URLs that it publishes.
    pub client_urls: Vec<String>,
    /// How often the leader looks whether a downgrade is complete; `None` is never.
    pub downgrade_check: Option<Duration>,
    /// Whether lease times are checkpointed.
    pub lease_checkpoints: bool,
    /// When history is dropped by itself.
    pub compaction: Option<Compaction>,
}

/// Whether the member behind `handle` leads.
pub(super) fn leads(handle: &Handle) -> bool {
    let status = handle.status();
    status.leader == status.member && status.leader != MemberId(0)
}

/// The duties of one member.
#[derive(Clone, Debug)]
pub struct Duties {
    handle: Handle,
    settings: Arc<DutySettings>,
}

impl Duties {
    /// The duties of the member behind `handle`.
    #[must_use]
    pub fn new(handle: Handle, settings: DutySettings) -> Self {
        Self { handle, settings: Arc::new(settings) }
    }

    /// Tells the cluster the member's name and client URLs. Returns when the cluster knows; only
    /// then is the member ready for clients.
    ///
    /// # Errors
    /// - [`Unavailable::Stopped`] if the member stops first. Everything else is tried again.
    pub async fn publish(&self) -> Result<(), Unavailable> {
        let attributes = Attributes {
            name: self.settings.name.clone(),
            client_urls: self.settings.client_urls.clone(),
        };
        let request = Request::ClusterMemberAttrSet(ClusterMemberAttrSetRequest {
            member_id: self.handle.status().member.0,
            member_attributes: Some(attributes),
        });
        loop {
            match self.handle.propose(Identity::default(), request.clone()).await {
                Ok(_) => break,
                Err(Unavailable::Stopped) => return Err(Unavailable::Stopped),
                Err(error) => {
                    tracing::warn!(
                        ?error,
                        "failed to publish local member to cluster through raft"
                    );
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
        tracing::info!(
            "local-member-id" = %self.handle.status().member,
            name = self.settings.name,
            "published local member to cluster through raft"
        );
        Ok(())
    }

    /// Starts everything that goes on for as long as the member runs.
    pub fn start(self) {
        task::spawn(versions::keep_cluster_version(self.handle.clone()));
        if let Some(interval) = self.settings.downgrade_check {
            task::spawn(versions::end_downgrades(self.handle.clone(), interval));
        }
        task::spawn(self.clone().expire_leases());
        if self.settings.lease_checkpoints {
            task::spawn(self.clone().checkpoint_leases());
        }
        if let Some(compaction) = self.settings.compaction.clone() {
            task::spawn(compaction.run(self.handle));
        }
    }

    async fn expire_leases(self) {
        while !self.handle.stopping() {
            tokio::time::sleep(self.until_lease_look()).await;
            if leads(&self.handle) {
                self.revoke_expired().await;
            }
        }
    }

    /// A lease that is granted meanwhile lasts longer than the longest pause.
    fn until_lease_look(&self) -> Duration {
        let now = self.handle.clock().now();
        let next = self.handle.lessor().next_expiry();
        next.map_or(LEASE_LOOK_MAX, |at| at.saturating_sub(now).clamp(LEASE_LOOK, LEASE_LOOK_MAX))
    }

    /// Ends every lease that is due, many at a time. A flood of expiries is a load like any other to
    /// the replica, so it is here that it gives way to clients.
    async fn revoke_expired(&self) {
        let term = self.handle.status().term;
        let mut beat = tokio::time::interval(REVOKES_PERIOD);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            let now = self.handle.clock().now();
            let expired = self.handle.lessor().expired(now, REVOKES_TOGETHER_MAX);
            let is_last = expired.len() < REVOKES_TOGETHER_MAX;
            join_all(expired.into_iter().map(|lease| self.revoke(lease, term))).await;
            if is_last {
                return;
            }
        }
    }

    /// An expired lease that is still there after a while is offered again by the lessor, so a
    /// failed proposal needs no more than a line in the log. It must not reach another leader, for
    /// whom the lease may have been renewed meanwhile.
    async fn revoke(&self, lease: LeaseId, term: Term) {
        super::metrics::LEASES_EXPIRED.inc();
        let request = Request::LeaseRevoke(LeaseRevokeRequest { id: lease.0 });
        if let Err(error) = self.handle.propose_as_leader(term, request).await {
            tracing::warn!("lease-id" = %lease, ?error, "failed to revoke lease");
        }
    }

    async fn checkpoint_leases(self) {
        while !self.handle.stopping() {
            tokio::time::sleep(CHECKPOINT_LOOK).await;
            let now = self.handle.clock().now();
            let term = self.handle.status().term;
            loop {
                let lessor = self.handle.lessor();
                let checkpoints = lessor.due_checkpoints(now, CHECKPOINT_LEASES_MAX);
                if checkpoints.is_empty() {
                    break;
                }
                let request = Request::LeaseCheckpoint(LeaseCheckpointRequest { checkpoints });
                if let Err(error) = self.handle.propose_as_leader(term, request).await {
                    tracing::warn!(?error, "failed to checkpoint leases");
                    break;
                }
            }
        }
    }
}
