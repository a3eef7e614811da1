//! Whether the members still hold the same data.
//!
//! Decides when hashes are compared, and raises the alarm for members whose data differ: before a
//! member serves, from time to time, and after compactions. What a difference means is decided in
//! [`verdict`]. Only the leader compares while the cluster runs. Started by `boot`.
//!
//! ```text
//!   own hash at revision R  --+
//!                             +--> verdict --> nothing, or Alarm CORRUPT of a member (by raft)
//!   GET /members/hashkv R   --+
//! ```
//!
//! Source: etcd `server/etcdserver/corrupt.go`.

mod verdict;

use std::{sync::Arc, time::Duration};

use proto::etcdserverpb::{AlarmRequest, AlarmType, alarm_request::AlarmAction};

use crate::{
    cluster::{Member, Membership},
    model::{ClusterId, MemberId, Request, Revision, Unavailable},
    mvcc::{HashKv, View},
};

use super::{
    Handle, Identity,
    remote::{RemoteHash, RemoteHashError, hash_of},
};
use verdict::{Compacted, Own};

/// Computes hashes away from the threads that serve.
pub trait Hasher: Send + Sync + 'static {
    /// Hashes the newest state; `None` if that failed, which is in the log. With the newest
    /// revision.
    fn hash_now(&self) -> impl Future<Output = Option<(HashKv, Revision)>> + Send;
}

/// How often hashes are compared. `None` is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckTimes {
    /// Those of the newest state.
    pub periodic: Option<Duration>,
    /// Those of compactions.
    pub compaction: Option<Duration>,
}

/// The checks of a running member.
#[derive(Debug)]
pub struct CorruptionChecks<H> {
    handle: Handle,
    hasher: H,
}

/// The members beside this one, asked for a hash at a revision.
async fn hashes_of(
    membership: &Membership,
    (own, cluster): (MemberId, ClusterId),
    revision: Revision,
    timeout: Duration,
) -> Vec<(MemberId, Result<RemoteHash, RemoteHashError>)> {
    let asked =
        membership.members().filter(|member| member.id != own && !member.peer_urls.is_empty()).map(
            async |member: &Member| (member.id, hash_of(member, cluster, revision, timeout).await),
        );
    futures::future::join_all(asked).await
}

/// Compares the state of a member that has not started yet with what its peers hold; `Err` if it
/// must not start.
///
/// # Errors
/// - with etcd's sentence, if a peer has other data at the same revision.
pub async fn check_before_start(
    view: &View,
    membership: &Membership,
    (own, cluster): (MemberId, ClusterId),
    timeout: Duration,
) -> Result<(), String> {
    tracing::info!(
        "local-member-id" = %own,
        ?timeout,
        "starting initial corruption check"
    );
    let hash = view.hash_kv(Revision(0));
    let hash = hash.map_err(|error| format!("{own} failed to fetch hash ({error:?})"))?;
    let peers = hashes_of(membership, (own, cluster), hash.hash_revision, timeout).await;
    if verdict::differs_at_start(&hash, &peers) {
        return Err(format!("{own} found data inconsistency with peers"));
    }
    tracing::info!(
        "local-member-id" = %own,
        "initial corruption checking passed; no corruption"
    );
    Ok(())
}

impl<H: Hasher> CorruptionChecks<H> {
    /// Checks of the member behind `handle`.
    #[must_use]
    pub const fn new(handle: Handle, hasher: H) -> Self {
        Self { handle, hasher }
    }

    /// Compares for as long as the member runs.
    pub async fn run(self, times: CheckTimes) {
        futures::future::join(
            async {
                if let Some(interval) = times.periodic {
                    tracing::info!(
                        "local-member-id" = %self.handle.status().member,
                        ?interval,
                        "enabled corruption checking"
                    );
                    self.run_periodic(interval).await;
                }
            },
            async {
                if let Some(interval) = times.compaction {
                    self.run_compactions(interval).await;
                }
            },
        )
        .await;
    }

    async fn run_periodic(&self, interval: Duration) {
        while self.wait(interval).await {
            if self.leads() && self.check_now().await.is_none() {
                tracing::warn!("failed to check hash KV");
            }
        }
    }

    async fn run_compactions(&self, interval: Duration) {
        let mut checked = Revision(0);
        while self.wait(interval).await {
            if self.leads() {
                self.check_compactions(&mut checked).await;
            }
        }
    }

    async fn wait(&self, interval: Duration) -> bool {
        tokio::time::sleep(interval).await;
        !self.handle.stopping()
    }

    fn leads(&self) -> bool {
        super::duties::leads(&self.handle)
    }

    async fn peers(&self, at: Revision) -> Vec<(MemberId, Result<RemoteHash, RemoteHashError>)> {
        let membership = Arc::clone(&self.handle.published().membership);
        let status = self.handle.status();
        let timeout = self.handle.limits().request_timeout;
        hashes_of(&membership, (status.member, status.cluster), at, timeout).await
    }

    /// Compares the newest state; `None` if it could not be hashed, or has no quorum.
    async fn check_now(&self) -> Option<()> {
        let (first, _) = self.hasher.hash_now().await?;
        let peers = self.peers(first.hash_revision).await;
        self.handle.linearizable().await.ok()?;
        let (second, current) = self.hasher.hash_now().await?;
        let own = Own { member: self.handle.status().member, first, second, current };
        if let Some(member) = verdict::differs_now(&own, &peers) {
            self.raise(member).await;
        }
        let checked = peers.iter().filter(|(_, hash)| hash.is_ok()).count();
        tracing::info!("number-of-peers-checked" = checked, "finished peer corruption check");
        Some(())
    }

    /// Compares the hashes of compactions after the last one that all members agreed on, the newest
    /// first, until there is one that all of them have.
    async fn check_compactions(&self, checked: &mut Revision) {
        let own = self.handle.status().member;
        tracing::info!("local-member-id" = %own, "starting compact hash check");
        let mut hashes = self.handle.published().kv.compaction_hashes();
        hashes.retain(|hash| *checked < hash.hash_revision);
        hashes.sort_by_key(|hash| std::cmp::Reverse(hash.hash_revision));
        let mut count = 0;
        for hash in &hashes {
            count += 1;
            let peers = self.peers(hash.hash_revision).await;
            if peers.is_empty() {
                continue;
            }
            match verdict::of_compaction(own, hash, &peers) {
                Compacted::Same => {
                    tracing::info!(
                        "number-of-peers-checked" = peers.len(),
                        revision = hash.hash_revision.0,
                        compactRevision = hash.compact_revision.0,
                        "successfully checked hash on whole cluster"
                    );
                    *checked = (*checked).max(hash.hash_revision);
                    break;
                }
                Compacted::NotAll => tracing::warn!(
                    revision = hash.hash_revision.0,
                    "skipped revision in compaction hash check; was not able to check all peers"
                ),
                Compacted::Differs(members) => {
                    for member in members {
                        self.raise(member).await;
                    }
                    break;
                }
            }
        }
        tracing::info!("number-of-hashes-checked" = count, "finished compaction hash check");
    }

    /// Raises the alarm for a member; 0 is for all.
    async fn raise(&self, member: MemberId) {
        let request = Request::Alarm(AlarmRequest {
            action: AlarmAction::Activate.into(),
            member_id: member.0,
            alarm: AlarmType::Corrupt.into(),
        });
        let raised: Result<_, Unavailable> =
            self.handle.propose(Identity::default(), request).await;
        if let Err(error) = raised {
            tracing::error!("member-id" = %member, ?error, "failed to raise the alarm CORRUPT");
        }
    }
}
