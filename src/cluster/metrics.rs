//! What dashboards see of the membership.
//!
//! Decides the labels of three gauges. Set by the state machine after each change and once after
//! recovery, from the apply thread only.
//!
//! Source: etcd `server/etcdserver/api/membership/metrics.go`.

use std::sync::LazyLock;

use super::{Membership, Version};
use crate::{
    base::metrics::{self, IntGauge, IntGaugeVec},
    model::MemberId,
};

static CLUSTER_VERSION: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    metrics::gauges(
        "etcd_cluster_version",
        "Which version is running. 1 for 'cluster_version' label with current cluster version",
        &["cluster_version"],
    )
});

static KNOWN_PEERS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    metrics::gauges(
        "etcd_network_known_peers",
        "The current number of known peers.",
        &["Local", "Remote"],
    )
});

static IS_LEARNER: LazyLock<IntGauge> = LazyLock::new(|| {
    metrics::gauge(
        "etcd_server_is_learner",
        "Whether or not this member is a learner. 1 if is, 0 otherwise.",
    )
});

/// Makes every series exist from the start.
pub fn register_metrics() {
    LazyLock::force(&CLUSTER_VERSION);
    LazyLock::force(&KNOWN_PEERS);
    LazyLock::force(&IS_LEARNER);
}

/// The gauges as this member last set them.
#[derive(Clone, Debug)]
pub struct ClusterGauges {
    local: MemberId,
    version: Option<Version>,
}

impl ClusterGauges {
    /// Nothing shown yet, for the member `local`.
    #[must_use]
    pub const fn new(local: MemberId) -> Self {
        Self { local, version: None }
    }

    /// Shows `membership`.
    pub fn show(&mut self, membership: &Membership) {
        self.show_version(membership.version());
        let local = self.local.to_string();
        for member in membership.members() {
            KNOWN_PEERS.with_label_values(&[local.as_str(), &member.id.to_string()]).set(1);
        }
        for removed in membership.removed() {
            KNOWN_PEERS.with_label_values(&[local.as_str(), &removed.to_string()]).set(0);
        }
        let is_learner = membership.member(self.local).is_some_and(|member| member.is_learner);
        IS_LEARNER.set(i64::from(is_learner));
    }

    fn show_version(&mut self, version: Option<Version>) {
        if let Some(old) = self.version
            && self.version != version
        {
            CLUSTER_VERSION.with_label_values(&[old.cluster_text().as_str()]).set(0);
        }
        if let Some(new) = version {
            CLUSTER_VERSION.with_label_values(&[new.cluster_text().as_str()]).set(1);
        }
        self.version = version;
    }
}
