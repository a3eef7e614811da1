//! Renewals and remaining times of leases, which only the leader counts.
//!
//! Decides where a call is answered: here while this member leads, else by the leader, who is asked
//! again until somebody answers or the caller's time is over. Called for clients and, without a
//! detour, for followers that ask this member.
//!
//! Source: etcd `server/etcdserver/v3_server.go`, `LeaseRenew` and `leaseTimeToLive`.

use bytes::Bytes;
use proto::etcdserverpb::{LeaseCheckpoint, LeaseCheckpointRequest, LeaseTimeToLiveResponse};

use crate::{
    lease::{LeaseKeys, Renewal, TimeToLive},
    model::{LeaseId, Rejection, Request, Unavailable},
    transport::PeerConnections,
};

use super::{
    Handle, Identity,
    remote::{Asking, Turn},
};

/// Leases, wherever the leader is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LeaseCalls {
    handle: Handle,
    connections: PeerConnections,
}

/// What the leader says: the answer, or that there is no such lease.
type Said<T> = Result<T, Rejection>;

impl LeaseCalls {
    /// The leases of the member behind `handle`.
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        Self { handle, connections: PeerConnections::default() }
    }

    /// Renews a lease and returns its time to live in seconds.
    ///
    /// # Errors
    /// - [`Unavailable::NoLeader`], [`Unavailable::Timeout`] if no leader answers in time.
    /// - inside, [`Rejection::LeaseNotFound`].
    pub async fn renew(&self, lease: LeaseId) -> Result<Said<i64>, Unavailable> {
        let mut asking = Asking::new(&self.handle, &self.connections);
        loop {
            match asking.turn().await? {
                Turn::Here => match self.renew_here(lease).await {
                    Err(Unavailable::NotPrimary) => {}
                    answer => return answer,
                },
                Turn::There(leader) => match leader.renew_lease(lease).await {
                    Ok(ttl) => return Ok(ttl.ok_or(Rejection::LeaseNotFound { lease })),
                    Err(error) => tracing::debug!(error, "the leader did not renew a lease"),
                },
            }
        }
    }

    /// What is left of a lease.
    ///
    /// # Errors
    /// As [`LeaseCalls::renew`].
    pub async fn time_to_live(
        &self,
        lease: LeaseId,
        keys: bool,
    ) -> Result<Said<LeaseTimeToLiveResponse>, Unavailable> {
        let mut asking = Asking::new(&self.handle, &self.connections);
        loop {
            match asking.turn().await? {
                Turn::Here => match self.time_to_live_here(lease, keys).await {
                    Err(Unavailable::NotPrimary) => {}
                    answer => return answer,
                },
                Turn::There(leader) => match leader.lease_time(lease, keys).await {
                    Ok(time) => return Ok(time.ok_or(Rejection::LeaseNotFound { lease })),
                    Err(error) => tracing::debug!(error, "the leader did not tell of a lease"),
                },
            }
        }
    }

    /// Renews a lease without asking anybody.
    ///
    /// # Errors
    /// - [`Unavailable::NotPrimary`] if this member does not lead.
    /// - inside, [`Rejection::LeaseNotFound`].
    pub async fn renew_here(&self, lease: LeaseId) -> Result<Said<i64>, Unavailable> {
        self.ensure_leadership().await?;
        let mut is_settled = false;
        loop {
            match self.handle.lessor().renew(lease, self.handle.clock().now()) {
                Renewal::Renewed { ttl_seconds } => return Ok(Ok(ttl_seconds)),
                // Its grant may be acknowledged elsewhere and not applied here yet.
                Renewal::NotFound if !is_settled => {
                    self.handle.linearizable().await?;
                    is_settled = true;
                }
                Renewal::NotFound => return Ok(Err(Rejection::LeaseNotFound { lease })),
                Renewal::NotPrimary => return Err(Unavailable::NotPrimary),
                Renewal::Expired(settled) => settled.await,
                Renewal::CheckpointFirst => {
                    if let Err(rejection) = self.reset_checkpoint(lease).await? {
                        return Ok(Err(rejection));
                    }
                }
            }
        }
    }

    /// Asks a quorum whether this member still leads, if it may have slept through its successor.
    ///
    /// Source: etcd `EtcdServer.ensureLeadership`.
    async fn ensure_leadership(&self) -> Result<(), Unavailable> {
        if self.handle.is_awake() {
            return Ok(());
        }
        self.handle.linearizable().await?;
        let status = self.handle.status();
        if status.leader == status.member { Ok(()) } else { Err(Unavailable::NotPrimary) }
    }

    /// Records that the remaining time of a lease is its full one again.
    async fn reset_checkpoint(&self, lease: LeaseId) -> Result<Said<()>, Unavailable> {
        let checkpoint = LeaseCheckpoint { id: lease.0, remaining_ttl: 0 };
        let request = LeaseCheckpointRequest { checkpoints: vec![checkpoint] };
        let request = Request::LeaseCheckpoint(request);
        Ok(self.handle.propose(Identity::default(), request).await?.map(drop))
    }

    /// What is left of a lease, without asking anybody but a quorum for what has been committed.
    ///
    /// # Errors
    /// - [`Unavailable::NotPrimary`] if this member does not lead.
    /// - inside, [`Rejection::LeaseNotFound`].
    pub async fn time_to_live_here(
        &self,
        lease: LeaseId,
        keys: bool,
    ) -> Result<Said<LeaseTimeToLiveResponse>, Unavailable> {
        // What has been acknowledged before this question must show in its answer.
        self.handle.linearizable().await?;
        let keys = if keys { LeaseKeys::Listed } else { LeaseKeys::Omitted };
        let now = self.handle.clock().now();
        match self.handle.lessor().time_to_live(lease, keys, now) {
            TimeToLive::Live { remaining_seconds, granted_seconds, keys } => {
                Ok(Ok(LeaseTimeToLiveResponse {
                    header: None,
                    id: lease.0,
                    ttl: remaining_seconds,
                    granted_ttl: granted_seconds,
                    keys: keys.iter().map(|key| Bytes::copy_from_slice(key)).collect(),
                }))
            }
            TimeToLive::NotFound => Ok(Err(Rejection::LeaseNotFound { lease })),
            TimeToLive::NotPrimary => Err(Unavailable::NotPrimary),
        }
    }
}
