//! What operators and etcd's own tests read in the log about members and versions.
//!
//! Decides the words, which are etcd's. Called by the machine where these things happen.
//!
//! Source: etcd `server/etcdserver/api/membership/cluster.go`.

use super::Settings;
use crate::{
    base::log::Json,
    cluster::{MemberChange, Membership, SERVER_VERSION, Version},
};

/// A cluster version was agreed on.
pub(super) fn cluster_version(settings: &Settings, before: Option<Version>, version: Version) {
    let (cluster, local) = (settings.cluster, settings.member);
    match before {
        Some(from) => tracing::info!(
            "cluster-id" = %cluster,
            "local-member-id" = %local,
            from = %from.cluster_text(),
            to = %version.cluster_text(),
            "updated cluster version"
        ),
        None => tracing::info!(
            "cluster-id" = %cluster,
            "local-member-id" = %local,
            "cluster-version" = %version.cluster_text(),
            "set initial cluster version"
        ),
    }
    tracing::info!(
        "cluster-version" = %version.cluster_text(),
        "enabled capabilities for version"
    );
}

/// The storage has the cluster's version; during a downgrade that is what operators wait for.
pub(super) fn ready_to_downgrade(membership: &Membership) {
    if let Some(downgrade) = membership.downgrade().filter(|downgrade| downgrade.enabled) {
        tracing::info!(
            "target-version" = downgrade.target_version,
            "server-version" = %SERVER_VERSION,
            "The server is ready to downgrade"
        );
    }
}

/// A change of the membership.
pub(super) fn member_change(settings: &Settings, change: &MemberChange) {
    let (cluster, local) = (settings.cluster, settings.member);
    match change {
        MemberChange::Add(member) => tracing::info!(
            "cluster-id" = %cluster,
            "local-member-id" = %local,
            "added-peer-id" = %member.id,
            "added-peer-peer-urls" = ?Json(&member.peer_urls),
            "added-peer-is-learner" = member.is_learner,
            "added member"
        ),
        MemberChange::Promote(id) => tracing::info!(
            "cluster-id" = %cluster,
            "local-member-id" = %local,
            "promoted-member-id" = %id,
            "promote member"
        ),
        MemberChange::Remove(id) => tracing::info!(
            "cluster-id" = %cluster,
            "local-member-id" = %local,
            "removed-remote-peer-id" = %id,
            "removed member"
        ),
        MemberChange::Update { member, peer_urls } => tracing::info!(
            "cluster-id" = %cluster,
            "local-member-id" = %local,
            "updated-remote-peer-id" = %member,
            "updated-remote-peer-urls" = ?Json(peer_urls),
            "updated member"
        ),
    }
}

/// The membership that was found at boot.
pub(super) fn recovered(settings: &Settings, membership: &Membership) {
    let (cluster, local) = (settings.cluster, settings.member);
    for member in membership.members() {
        tracing::info!(
            "cluster-id" = %cluster,
            "local-member-id" = %local,
            "recovered-remote-peer-id" = %member.id,
            "recovered-remote-peer-urls" = ?Json(&member.peer_urls),
            "recovered-remote-peer-is-learner" = member.is_learner,
            "recovered/added member from store"
        );
    }
    if let Some(version) = membership.version() {
        tracing::info!(
            "cluster-version" = %version.cluster_text(),
            "set cluster version from store"
        );
    }
}
