//! The edge of one member: what all of its connections share.
//!
//! Decides which limits hold, and remembers the two facts that outlive a call: that the cluster
//! version has been seen, and whether the health service says that it serves. Made by `boot`
//! through `serve`, shared by every connection.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    gate::LeaderLosses,
    member::{Member, State},
    status::{CallError, Refusal},
};
use crate::{
    base::clock::Clock,
    model::{Answer, Request, Unavailable},
};

/// Bytes that a request may have beyond the limit on what is proposed: room for the parts of a
/// message that do not count.
///
/// Source: etcd `server/config/config.go`, `grpcOverheadBytes`.
pub const REQUEST_OVERHEAD_BYTES: usize = 512 << 10;

/// The limits and thresholds of the edge.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The largest command, in bytes (`--max-request-bytes`).
    pub request_bytes_max: usize,
    /// Operations per transaction (`--max-txn-ops`).
    pub txn_operations_max: usize,
    /// Calls that take longer are logged (`--warning-unary-request-duration`).
    pub slow_request: Duration,
    /// Reads that take longer are logged (`--warning-apply-duration`).
    pub slow_apply: Duration,
    /// The shortest time without a leader that counts.
    pub election_timeout: Duration,
    /// The time between two looks at a leadership transfer.
    pub heartbeat_interval: Duration,
    /// How long a request may wait for its outcome.
    pub request_timeout: Duration,
    /// The quota as the flag has it, in bytes: 0 is the default, below 0 is none.
    pub quota_bytes: i64,
    /// Whether the health service stops serving during a defragmentation.
    pub unhealthy_while_defragmenting: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            request_bytes_max: 1_572_864,
            txn_operations_max: 128,
            slow_request: Duration::from_millis(300),
            slow_apply: Duration::from_millis(100),
            election_timeout: Duration::from_secs(1),
            heartbeat_interval: Duration::from_millis(100),
            request_timeout: Duration::from_secs(7),
            quota_bytes: 0,
            unhealthy_while_defragmenting: false,
        }
    }
}

/// The edge of one member.
#[derive(Debug)]
pub struct Edge<M> {
    /// The member that it speaks for.
    pub member: M,
    /// Its limits.
    pub settings: Settings,
    /// The time that latencies are measured with.
    pub clock: Clock,
    /// What ends streams of callers that insist on a leader.
    pub leader_losses: LeaderLosses,
    serving: watch::Sender<bool>,
    /// The cluster version is known for good once it has been seen.
    capable: AtomicBool,
}

impl<M: Member> Edge<M> {
    /// The edge of `member`.
    pub fn new(member: M, settings: Settings, clock: Clock) -> Self {
        info!(service = "", status = "SERVING", "grpc service status changed");
        Self {
            member,
            settings,
            clock,
            leader_losses: LeaderLosses::default(),
            serving: watch::Sender::new(true),
            capable: AtomicBool::new(false),
        }
    }

    /// The largest message that is read, in bytes.
    #[must_use]
    pub const fn message_bytes_max(&self) -> usize {
        self.settings.request_bytes_max + REQUEST_OVERHEAD_BYTES
    }

    /// Whether the cluster version is known.
    pub(super) fn capable(&self, state: &M::State) -> bool {
        if self.capable.load(Ordering::Relaxed) {
            return true;
        }
        let capable = state.cluster_version().is_some();
        self.capable.store(capable, Ordering::Relaxed);
        capable
    }

    /// What the health service says, now and later.
    pub(super) fn serving(&self) -> watch::Receiver<bool> {
        self.serving.subscribe()
    }

    pub(super) fn set_serving(&self, serving: bool, reason: &str) {
        if serving {
            info!(service = "", status = "SERVING", "grpc service status changed");
        } else {
            warn!(service = "", status = "NOT_SERVING", reason, "grpc service status changed");
        }
        self.serving.send_replace(serving);
    }

    /// Proposes `request` and measures how long its answer takes.
    pub(super) async fn propose(
        &self,
        caller: super::caller::Caller,
        request: Request,
    ) -> Result<Answer, CallError> {
        let kind = request.name();
        let started = self.clock.now();
        let outcome = self.member.propose(caller, request).await;
        let answer = flatten(outcome);
        let took = self.clock.now().saturating_sub(started);
        super::metrics::observe_request(kind, answer.is_ok(), took);
        answer
    }
}

fn flatten(outcome: Result<crate::model::Outcome, Unavailable>) -> Result<Answer, CallError> {
    match outcome {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(rejection)) => Err(rejection.into()),
        Err(unavailable) => Err(unavailable.into()),
    }
}

/// The answer is not of the kind that the request gets.
pub(super) fn wrong_answer(answer: &Answer) -> CallError {
    tracing::error!(answer = ?answer, "an answer of another kind than its request");
    Refusal::WrongAnswer.into()
}
