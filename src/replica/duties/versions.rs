//! What the members have agreed to be able to.
//!
//! Decides when the leader asks all members for their versions, and proposes the version of the
//! cluster that follows from them, or the end of a downgrade. What may follow what is decided by
//! `cluster`.
//!
//! Source: etcd `server/etcdserver/version/monitor.go`, `server/etcdserver/server.go`.

use std::{sync::Arc, time::Duration};

use proto::membershippb::{ClusterVersionSetRequest, DowngradeInfoSetRequest};

use crate::{
    cluster::{
        Downgrade, Member, Membership, SERVER_VERSION, Version, downgrade_is_finished,
        next_cluster_version,
    },
    model::{Request, Term},
    replica::{Handle, Identity, remote::versions_of},
};

/// How often the leader compares versions.
///
/// Source: etcd `monitorVersionInterval` (raft write timeout less one second).
const VERSION_LOOK: Duration = Duration::from_secs(4);

/// How often a member looks whether it leads, so that a new leader compares versions at once.
const LEADER_LOOK: Duration = Duration::from_millis(20);

/// The same, once the cluster has a version: then nobody waits for it.
const LEADER_LOOK_LATER: Duration = Duration::from_secs(2);

/// Keeps the cluster's version while this member leads.
pub(super) async fn keep_cluster_version(handle: Handle) {
    let mut last: Option<(Term, Duration)> = None;
    while !handle.stopping() {
        let status = handle.status();
        let now = handle.clock().now();
        let known = handle.published().cluster_version().is_some();
        let is_due = last.is_none_or(|(term, at)| term != status.term || at + VERSION_LOOK <= now);
        if super::leads(&handle) && is_due {
            if update_cluster_version(&handle).await {
                last = Some((status.term, now));
            }
        } else {
            tokio::time::sleep(if known { LEADER_LOOK_LATER } else { LEADER_LOOK }).await;
        }
    }
}

/// Proposes the version that follows from those of the members; `false` if that failed.
async fn update_cluster_version(handle: &Handle) -> bool {
    let membership = Arc::clone(&handle.published().membership);
    let members = server_versions(handle, &membership).await;
    let next = next_cluster_version(membership.version(), &members, membership.downgrade());
    let Some(next) = next else { return true };
    match membership.version() {
        None => tracing::info!("cluster-version" = %next, "setting up initial cluster version"),
        Some(from) => tracing::info!(
            "from" = from.cluster_text(),
            "to" = next.cluster_text(),
            "updating cluster version using v3 API"
        ),
    }
    let request = ClusterVersionSetRequest { ver: next.to_string() };
    let request = Request::ClusterVersionSet(request);
    match handle.propose(Identity::default(), request).await {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(?error, "failed to set the cluster version");
            tokio::time::sleep(super::RETRY_PAUSE).await;
            false
        }
    }
}

/// The releases that the members run; `None` for one that does not say.
async fn server_versions(handle: &Handle, membership: &Membership) -> Vec<Option<Version>> {
    let own = handle.status().member;
    let timeout = handle.limits().request_timeout;
    let versions = membership.members().map(async |member| {
        if member.id == own { Some(SERVER_VERSION) } else { server_version(member, timeout).await }
    });
    futures::future::join_all(versions).await
}

async fn server_version(member: &Member, timeout: Duration) -> Option<Version> {
    let versions = versions_of(member, timeout).await?;
    match versions.server.parse::<Version>() {
        Ok(version) => {
            if SERVER_VERSION < version {
                tracing::warn!(
                    "local-member-version" = %SERVER_VERSION,
                    "remote-member-id" = %member.id,
                    "remote-member-version" = %version,
                    "leader found higher-versioned member"
                );
            }
            Some(version)
        }
        Err(error) => {
            tracing::warn!(
                "remote-member-id" = %member.id,
                "remote-member-version" = versions.server,
                %error,
                "failed to parse server version of remote member"
            );
            None
        }
    }
}

/// Ends a downgrade when all members run what they were to come down to. `interval` is the time
/// between two looks.
pub(super) async fn end_downgrades(handle: Handle, interval: Duration) {
    while !handle.stopping() {
        tokio::time::sleep(interval).await;
        let membership = Arc::clone(&handle.published().membership);
        let Some(target) = membership.downgrade().and_then(Downgrade::target) else { continue };
        if !super::leads(&handle) {
            continue;
        }
        let members = server_versions(&handle, &membership).await;
        if !downgrade_is_finished(target, &members) {
            continue;
        }
        tracing::info!("cluster-version" = %target, "the cluster has been downgraded");
        let request = DowngradeInfoSetRequest { enabled: false, ver: String::new() };
        let request = Request::DowngradeInfoSet(request);
        if let Err(error) = handle.propose(Identity::default(), request).await {
            tracing::warn!(?error, "failed to cancel downgrade");
        }
    }
}
