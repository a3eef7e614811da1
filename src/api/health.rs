//! The service `grpc.health.v1.Health`.
//!
//! Decides what is healthy: the server as a whole, under the empty name, from its start, but for
//! defragmentations if the operator wants them to count. Other names are unknown. Called by
//! `dispatch`.
//!
//! Source: grpc-go `health/server.go`, etcd `server/etcdserver/api/v3rpc/health.go`.

use std::sync::Arc;

use bytes::Bytes;
use proto::health::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
};

use super::{
    answer::Reply,
    body::Outbox,
    caller::Caller,
    edge::Edge,
    member::Member,
    status::{CallError, Failure, Refusal},
};

/// Tells whether a service is healthy.
pub(super) fn check<M: Member>(
    edge: &Edge<M>,
    _caller: Caller,
    request: HealthCheckRequest,
) -> Result<Reply, CallError> {
    if request.service.is_empty() {
        Ok(reply(status(*edge.serving().borrow())))
    } else {
        Err(Refusal::UnknownHealthService.into())
    }
}

/// Tells the health of every service: a map with the empty name in it.
pub(super) fn list<M: Member>(edge: &Edge<M>, _caller: Caller, _request: Bytes) -> Reply {
    let status = if *edge.serving().borrow() { 1 } else { 2 };
    Reply::encoded(&[0x0a, 6, 0x0a, 0, 0x12, 2, 0x08, status])
}

/// Tells the health of a service now and whenever it changes.
pub(super) async fn watch<M: Member>(
    edge: Arc<Edge<M>>,
    request: HealthCheckRequest,
    outbox: Outbox,
) -> Result<(), Failure> {
    if !request.service.is_empty() {
        outbox.send(reply(ServingStatus::ServiceUnknown)).await?;
        outbox.closed().await;
        return Err(Refusal::ContextCanceled.into());
    }
    let mut serving = edge.serving();
    loop {
        let now = *serving.borrow_and_update();
        outbox.send(reply(status(now))).await?;
        tokio::select! {
            changed = serving.changed() => if changed.is_err() { return Ok(()) },
            () = outbox.closed() => return Err(Refusal::ContextCanceled.into()),
        }
    }
}

const fn status(serving: bool) -> ServingStatus {
    if serving { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn reply(status: ServingStatus) -> Reply {
    Reply::message(&HealthCheckResponse { status: status.into() })
}
