//! The service `etcdserverpb.Lease`.
//!
//! Decides what an unknown lease looks like to a client: not an error, but a remaining time of 0
//! (keep-alive) or -1 (time to live). Granting and revoking are proposals; the rest asks the lease
//! table of this member without one. Called by `dispatch`.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/lease.go` and `server/etcdserver/v3_server.go`.

use std::sync::Arc;

use proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};

use super::{
    answer::Reply,
    body::Outbox,
    caller::Caller,
    edge::{Edge, wrong_answer},
    header, kv,
    member::{LeaseTime, Member},
    metrics,
    rpc::Rpc,
    status::{CallError, Failure},
    wire::{Messages, decode},
};
use crate::model::{Answer, LeaseId, Rejection, Request};

/// Creates a lease.
pub(super) async fn grant<M: Member>(
    edge: &Edge<M>,
    caller: Caller,
    mut request: LeaseGrantRequest,
) -> Result<Reply, CallError> {
    while request.id == 0 {
        // The members would disagree on an id of their own making, so it is chosen here.
        request.id = (edge.member.new_request_id().0 & i64::MAX as u64).cast_signed();
    }
    let request = Request::LeaseGrant(request);
    kv::check_quota(edge, &caller, &request).await?;
    let answer = edge.propose(caller, request).await?;
    let Answer::LeaseGrant { lease, ttl_seconds } = answer else {
        return Err(wrong_answer(&answer));
    };
    Ok(Reply::message(&LeaseGrantResponse {
        header: Some(header::now(&edge.member)),
        id: lease.0,
        ttl: ttl_seconds,
        error: String::new(),
    }))
}

/// Ends a lease and deletes its keys.
pub(super) async fn revoke<M: Member>(
    edge: &Edge<M>,
    caller: Caller,
    request: LeaseRevokeRequest,
) -> Result<Reply, CallError> {
    let answer = edge.propose(caller, Request::LeaseRevoke(request)).await?;
    let Answer::LeaseRevoke { revision } = answer else { return Err(wrong_answer(&answer)) };
    let header = Some(header::at(&edge.member, revision));
    Ok(Reply::message(&LeaseRevokeResponse { header }))
}

/// Tells what is left of a lease.
pub(super) async fn time_to_live<M: Member>(
    edge: &Edge<M>,
    _caller: Caller,
    request: LeaseTimeToLiveRequest,
) -> Result<Reply, CallError> {
    let time = edge.member.lease_time(LeaseId(request.id), request.keys).await?;
    let time = time.unwrap_or(LeaseTime { ttl_seconds: -1, ..LeaseTime::default() });
    Ok(Reply::message(&LeaseTimeToLiveResponse {
        header: Some(header::now(&edge.member)),
        id: request.id,
        ttl: time.ttl_seconds,
        granted_ttl: time.granted_ttl_seconds,
        keys: time.keys,
    }))
}

/// Lists the leases.
pub(super) async fn leases<M: Member>(
    edge: &Edge<M>,
    _caller: Caller,
    _request: LeaseLeasesRequest,
) -> Result<Reply, CallError> {
    let leases = edge.member.leases();
    Ok(Reply::message(&LeaseLeasesResponse {
        header: Some(header::now(&edge.member)),
        leases: leases.into_iter().map(|lease| LeaseStatus { id: lease.0 }).collect(),
    }))
}

/// Renews leases for as long as the client asks: one answer per question, in order.
pub(super) async fn keep_alive<M: Member>(
    edge: Arc<Edge<M>>,
    mut messages: Messages,
    outbox: Outbox,
) -> Result<(), Failure> {
    let counters = metrics::of(Rpc::LeaseKeepAlive);
    while let Some(bytes) = messages.next().await? {
        counters.receive();
        let request: LeaseKeepAliveRequest = decode(bytes)?;
        // Before the renewal: the client must not see a revision after which the lease may have
        // been revoked again.
        let header = Some(header::now(&edge.member));
        let ttl = match edge.member.renew_lease(LeaseId(request.id)).await {
            Ok(ttl_seconds) => ttl_seconds,
            Err(CallError::Rejected(Rejection::LeaseNotFound { .. })) => 0,
            Err(error) => return Err(error.into()),
        };
        let response = LeaseKeepAliveResponse { header, id: request.id, ttl };
        outbox.send(Reply::message(&response)).await?;
    }
    Ok(())
}
