//! The service `etcdserverpb.KV`, but for its stream.
//!
//! Decides how each call becomes a read on this thread or a proposal. Reads never leave the
//! connection's thread: a serializable one uses the published state, a linearizable one waits for a
//! confirmed point first, which costs nothing while there is one voter. A transaction that only
//! reads is a read.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/key.go`, `quota.go` and `server/etcdserver/v3_server.go`.

use std::{sync::Arc, time::Duration};

use proto::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, CompactionResponse, DeleteRangeRequest, PutRequest,
    RangeRequest, TxnRequest, alarm_request::AlarmAction, request_op::Request as Operation,
};
use tracing::warn;

use super::{
    answer::Reply,
    caller::Caller,
    edge::{Edge, wrong_answer},
    header,
    member::{Member, State, read},
    metrics, stats,
    status::{CallError, Refusal},
    validate,
};
use crate::model::{Answer, Request};

/// Reads keys.
pub(super) async fn range<M: Member>(
    edge: &Edge<M>,
    _caller: Caller,
    request: RangeRequest,
) -> Result<Reply, CallError> {
    validate::range(&request)?;
    let started = edge.clock.now();
    let read = read_range(edge, &request).await;
    let took = edge.clock.now().saturating_sub(started);
    metrics::observe_request("Range", read.is_ok(), took);
    let rows = read.as_ref().map_or(0, |answer| answer.rows.len());
    let reply = read.map(|answer| Reply::range(&header::at(&edge.member, answer.revision), answer));
    if edge.settings.slow_apply < took {
        let response = reply.as_ref().map_or_else(
            |_| String::new(),
            |reply| format!("range_response_count:{rows} size:{}", reply.message_bytes),
        );
        let request = stats::text(&Request::Range(request));
        warn_slow(edge.settings.slow_apply, took, "read-only range ", &request, &response, &reply);
    }
    reply
}

async fn read_range<M: Member>(
    edge: &Edge<M>,
    request: &RangeRequest,
) -> Result<crate::model::RangeAnswer, CallError> {
    let state = read_point(edge, request.serializable).await?;
    let started = edge.clock.now();
    let answer = read(&edge.member, state, |state| state.range(request));
    metrics::observe_range(answer.is_ok(), edge.clock.now().saturating_sub(started));
    answer
}

async fn read_point<M: Member>(
    edge: &Edge<M>,
    serializable: bool,
) -> Result<Arc<M::State>, CallError> {
    if serializable { Ok(edge.member.published()) } else { Ok(edge.member.linearizable().await?) }
}

fn warn_slow(
    expected: Duration,
    took: Duration,
    prefix: &str,
    request: &str,
    response: &str,
    reply: &Result<Reply, CallError>,
) {
    let error = reply.as_ref().err().map(tracing::field::display);
    warn!(
        took = ?took,
        "expected-duration" = ?expected,
        prefix,
        request,
        response,
        error,
        "apply request took too long"
    );
}

/// Writes one key.
pub(super) async fn put<M: Member>(
    edge: &Edge<M>,
    caller: Caller,
    request: PutRequest,
) -> Result<Reply, CallError> {
    let request = Request::Put(request);
    check_quota(edge, &caller, &request).await?;
    if let Request::Put(put) = &request {
        validate::put(put)?;
    }
    let answer = edge.propose(caller, request).await?;
    let Answer::Put(answer) = &answer else { return Err(wrong_answer(&answer)) };
    Ok(Reply::put(&header::at(&edge.member, answer.revision), answer))
}

/// Deletes keys.
pub(super) async fn delete_range<M: Member>(
    edge: &Edge<M>,
    caller: Caller,
    request: DeleteRangeRequest,
) -> Result<Reply, CallError> {
    validate::delete_range(&request)?;
    let answer = edge.propose(caller, Request::DeleteRange(request)).await?;
    let Answer::DeleteRange(answer) = &answer else { return Err(wrong_answer(&answer)) };
    Ok(Reply::delete(&header::at(&edge.member, answer.revision), answer))
}

/// Runs a transaction.
pub(super) async fn txn<M: Member>(
    edge: &Edge<M>,
    caller: Caller,
    request: TxnRequest,
) -> Result<Reply, CallError> {
    let reads = Reads::of(&request);
    let request = Request::Txn(request);
    check_quota(edge, &caller, &request).await?;
    let Request::Txn(txn) = &request else { return Err(Refusal::WrongAnswer.into()) };
    validate::txn(txn, edge.settings.txn_operations_max)?;
    match reads {
        Reads::Serializable => read_txn(edge, txn, true).await,
        Reads::Linearizable => read_txn(edge, txn, false).await,
        Reads::AndWrites => {
            let answer = edge.propose(caller, request).await?;
            let Answer::Txn(answer) = &answer else { return Err(wrong_answer(&answer)) };
            Ok(Reply::txn(&header::at(&edge.member, answer.revision), answer))
        }
    }
}

async fn read_txn<M: Member>(
    edge: &Edge<M>,
    request: &TxnRequest,
    serializable: bool,
) -> Result<Reply, CallError> {
    let started = edge.clock.now();
    let answer = match read_point(edge, serializable).await {
        Ok(state) => read(&edge.member, state, |state| state.read_txn(request)),
        Err(error) => Err(error),
    };
    let took = edge.clock.now().saturating_sub(started);
    metrics::observe_request("ReadonlyTxn", answer.is_ok(), took);
    let reply =
        answer.map(|answer| Reply::txn(&header::at(&edge.member, answer.revision), &answer));
    if edge.settings.slow_apply < took {
        let size = reply.as_ref().map_or(0, |reply| reply.message_bytes);
        let request = stats::text(&Request::Txn(request.clone()));
        let response = format!("responses:<> size:{size}");
        warn_slow(edge.settings.slow_apply, took, "read-only txn ", &request, &response, &reply);
    }
    reply
}

/// What a transaction needs, by the operations of its two branches. Operations inside of a nested
/// transaction are not looked at: it counts as a write.
///
/// Source: etcd `server/etcdserver/txn/txn.go`, `IsTxnReadonly` and `IsTxnSerializable`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    /// Every operation is a serializable read, which holds for no operation at all as well.
    Serializable,
    /// Every operation is a read.
    Linearizable,
    /// Some operation writes, or may.
    AndWrites,
}

impl Reads {
    fn of(request: &TxnRequest) -> Self {
        let mut reads = Self::Serializable;
        for operation in request.success.iter().chain(&request.failure) {
            match &operation.request {
                Some(Operation::RequestRange(range)) if range.serializable => {}
                Some(Operation::RequestRange(_)) => reads = Self::Linearizable,
                Some(
                    Operation::RequestPut(_)
                    | Operation::RequestDeleteRange(_)
                    | Operation::RequestTxn(_),
                )
                | None => return Self::AndWrites,
            }
        }
        reads
    }
}

/// Refuses a request that would exceed the quota and raises the alarm for this member.
pub(super) async fn check_quota<M: Member>(
    edge: &Edge<M>,
    caller: &Caller,
    request: &Request,
) -> Result<(), CallError> {
    if edge.member.has_room_for(request) {
        return Ok(());
    }
    let alarm = Request::Alarm(AlarmRequest {
        action: AlarmAction::Activate.into(),
        member_id: edge.member.position().member.0,
        alarm: AlarmType::Nospace.into(),
    });
    // The refusal stands whether or not the alarm could be raised. Boxed, because every write would
    // have to make room for this rare one.
    drop(Box::pin(edge.propose(caller.clone(), alarm)).await);
    Err(Refusal::NoSpace.into())
}

/// Drops history.
pub(super) async fn compact<M: Member>(
    edge: &Edge<M>,
    caller: Caller,
    request: CompactionRequest,
) -> Result<Reply, CallError> {
    let physical = request.physical;
    let compacted = crate::model::Revision(request.revision);
    let answer = edge.propose(caller, Request::Compaction(request)).await?;
    let Answer::Compaction { revision } = answer else { return Err(wrong_answer(&answer)) };
    if physical {
        edge.member.compaction_finished(compacted).await?;
    }
    let header = Some(header::at(&edge.member, revision));
    Ok(Reply::message(&CompactionResponse { header }))
}

#[cfg(test)]
mod tests {
    use proto::etcdserverpb::RequestOp;

    use super::*;

    #[test]
    fn transaction_is_a_read_if_all_its_own_operations_are() {
        let op = |operation| RequestOp { request: Some(operation) };
        let range = |serializable| {
            op(Operation::RequestRange(RangeRequest { serializable, ..Default::default() }))
        };
        let reads = |success: Vec<RequestOp>, failure: Vec<RequestOp>| {
            Reads::of(&TxnRequest { compare: Vec::new(), success, failure })
        };
        assert_eq!(reads(vec![], vec![]), Reads::Serializable, "no operation at all");
        assert_eq!(reads(vec![range(true)], vec![range(true)]), Reads::Serializable);
        assert_eq!(reads(vec![range(true)], vec![range(false)]), Reads::Linearizable);
        let put = op(Operation::RequestPut(PutRequest::default()));
        assert_eq!(reads(vec![range(true)], vec![put]), Reads::AndWrites);
        let nested = op(Operation::RequestTxn(TxnRequest::default()));
        assert_eq!(reads(vec![nested], vec![]), Reads::AndWrites, "a nested one");
    }
}
