//! The service `etcdserverpb.Lease`.
//!
//! Decides what an unknown lease looks like to a client: not an error, but a remaining time of 0
//! (keep-alive) or -1 (time to live). Granting and revoking are proposals; the rest asks the lease
//! table of this member without one. Called by `dispatch`.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/lease.go` and `server/etcdserver/v3_server.go`.

use std::sync::Arc;

use prost::Message as _;
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

/// Leases that are written into an answer before the connection's other calls have their turn: a
/// fraction of a millisecond.
const LISTED_AT_ONCE_MAX: usize = 4096;

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
    let leases = edge.member.leases().await?;
    let header = Some(header::now(&edge.member));
    let mut message = LeaseLeasesResponse { header, leases: Vec::new() }.encode_to_vec();
    for part in leases.chunks(LISTED_AT_ONCE_MAX) {
        // Messages one behind the other are one message with the lists joined.
        let leases = part.iter().map(|lease| LeaseStatus { id: lease.0 }).collect();
        LeaseLeasesResponse { header: None, leases }
            .encode(&mut message)
            .expect("a Vec grows as needed");
        if part.len() == LISTED_AT_ONCE_MAX {
            tokio::task::yield_now().await;
        }
    }
    Ok(Reply::encoded(&message))
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

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use prost::bytes::Bytes;

    use super::*;
    use crate::{
        api::{Settings, answer::PREFIX_BYTES, fake::Fake},
        base::clock::Clock,
    };

    #[test]
    fn long_list_is_written_in_parts_and_is_the_same_message() {
        let count = 2 * LISTED_AT_ONCE_MAX + 5;
        let ids: Vec<LeaseId> = (1..).take(count).map(LeaseId).collect();
        let fake = Fake::default();
        fake.with(|inner| inner.leases = ids.clone());
        let edge = Edge::new(fake, Settings::default(), Clock::system());
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let bytes: Bytes = runtime.block_on(async {
            let mut call =
                Box::pin(leases(&edge, Caller::default(), LeaseLeasesRequest::default()));
            assert!(call.as_mut().now_or_never().is_none(), "others have a turn in between");
            call.await.expect("a list").payload.into_bytes()
        });
        let listed = LeaseLeasesResponse::decode(bytes.slice(PREFIX_BYTES..)).expect("a message");
        assert_eq!(listed.header, Some(header::now(&edge.member)));
        assert!(listed.leases.iter().map(|lease| LeaseId(lease.id)).eq(ids), "in their order");
    }
}
