//! Auto-compaction: history is dropped without anybody asking.
//!
//! Decides when, and up to which revision. Only the leader acts; others look on, so that a new
//! leader has its samples ready. Started by [`super::Duties`].
//!
//! Source: etcd `server/etcdserver/api/v3compactor`.

use std::{collections::VecDeque, time::Duration};

use proto::etcdserverpb::CompactionRequest;

use crate::model::{Rejection, Request, Revision};

use super::super::{Handle, Identity};

/// How often the revision mode looks.
const REVISION_LOOK: Duration = Duration::from_secs(300);

/// Samples of the revision in one period.
const SAMPLES: u32 = 10;

/// The longest pause between two compactions by period.
const PERIOD_PAUSE_MAX: Duration = Duration::from_secs(3_600);

/// When history is dropped by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compaction {
    /// Keep what changed within this time.
    Periodic(Duration),
    /// Keep this many revisions.
    Revision(i64),
}

impl Compaction {
    pub(super) async fn run(self, handle: Handle) {
        match self {
            Self::Periodic(period) => periodic(handle, period).await,
            Self::Revision(retention) => by_revision(handle, retention).await,
        }
    }
}

async fn periodic(handle: Handle, period: Duration) {
    let pause = period.min(PERIOD_PAUSE_MAX) / SAMPLES;
    let compact_every = period.min(PERIOD_PAUSE_MAX);
    let samples_max =
        usize::try_from(period.as_nanos() / pause.as_nanos().max(1)).unwrap_or(usize::MAX).max(1);
    let mut samples = VecDeque::new();
    let mut last = Revision(0);
    let mut due = handle.clock().now() + period;
    while !handle.stopping() {
        samples.push_back(handle.published().kv.revision());
        while samples_max < samples.len() {
            samples.pop_front();
        }
        tokio::time::sleep(pause).await;
        let now = handle.clock().now();
        let Some(&oldest) = samples.front() else { continue };
        if now < due || oldest == last || !leads(&handle) {
            continue;
        }
        tracing::info!(
            revision = oldest.0,
            "compact-period" = ?period,
            "starting auto periodic compaction"
        );
        if compact(&handle, oldest, "auto periodic compaction").await {
            last = oldest;
            due = now + compact_every;
        }
    }
}

async fn by_revision(handle: Handle, retention: i64) {
    let mut last = Revision(0);
    while !handle.stopping() {
        tokio::time::sleep(REVISION_LOOK).await;
        let target = Revision(handle.published().kv.revision().0.saturating_sub(retention));
        if target <= Revision(0) || target == last || !leads(&handle) {
            continue;
        }
        tracing::info!(
            revision = target.0,
            "revision-compaction-retention" = retention,
            "starting auto revision compaction"
        );
        if compact(&handle, target, "auto revision compaction").await {
            last = target;
        }
    }
}

fn leads(handle: &Handle) -> bool {
    let status = handle.status();
    status.leader == status.member
}

/// Whether history up to `revision` is gone now.
async fn compact(handle: &Handle, revision: Revision, what: &str) -> bool {
    let request = CompactionRequest { revision: revision.0, physical: false };
    match handle.propose(Identity::default(), Request::Compaction(request)).await {
        Ok(Ok(_) | Err(Rejection::Compacted { .. })) => {
            tracing::info!(revision = revision.0, "completed {what}");
            true
        }
        failed => {
            tracing::warn!(revision = revision.0, ?failed, "failed {what}");
            false
        }
    }
}
