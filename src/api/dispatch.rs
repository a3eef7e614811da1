//! From an HTTP request to the service that answers it, and back.
//!
//! Decides the order of things around every call: read, count, admit, answer, count, log. Calls are
//! found by a match on the path; there is no router, no box and no layer between the connection and
//! the service. A unary call runs in the connection's own task for it; a stream gets a task, which
//! ends when the client goes away. Called by `serve` for each gRPC request.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/grpc.go` and `interceptor.go`.

use std::{fmt::Display, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use proto::{etcdserverpb::RangeRequest, health::HealthCheckRequest};
use tonic::Code;

use super::{
    answer::Reply,
    auth, backup,
    body::{Body, Outbox, put_status, stream},
    caller::{self, Caller},
    cluster,
    codec::count_sent,
    edge::Edge,
    gate::{self, Learner},
    health, kv, lease, maintenance,
    member::Member,
    metrics::{self, Counters},
    range_stream,
    rpc::{self, Kind, Rpc},
    stats,
    status::{CallError, Failure, Refusal},
    validate, watch,
    wire::{Messages, decode, timeout},
};
use crate::{
    base::{clock::Clock, task},
    model::Unavailable,
};

/// Answers a gRPC request.
pub async fn call<M, B>(
    edge: Arc<Edge<M>>,
    remote: Option<SocketAddr>,
    request: Request<B>,
) -> Response<Body>
where
    M: Member,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Display,
{
    let (parts, body) = request.into_parts();
    let Some(rpc) = Rpc::from_path(parts.uri.path()) else {
        return failed(&rpc::unknown(parts.uri.path()));
    };
    let messages = Messages::new(&parts.headers, body, edge.message_bytes_max());
    match rpc.kind() {
        Kind::Unary => unary(&edge, rpc, remote, &parts.headers, messages).await,
        Kind::ServerStream | Kind::Bidirectional => {
            streaming(edge, rpc, &parts.headers, messages).await
        }
    }
}

/// A call that has begun and counts as canceled unless it is finished.
pub(super) struct Call {
    clock: Clock,
    counters: &'static Counters,
    started: Duration,
    finished: bool,
}

impl Call {
    fn start<M: Member>(edge: &Edge<M>, rpc: Rpc) -> Self {
        let counters = metrics::of(rpc);
        counters.start();
        let clock = edge.clock.clone();
        Self { counters, started: clock.now(), finished: false, clock }
    }

    /// Counts the call as one that ended with `code`, and says how long it took.
    pub(super) fn finish(&mut self, code: Code) -> Duration {
        self.finished = true;
        let took = self.clock.now().saturating_sub(self.started);
        self.counters.finish(code, took);
        took
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.finished {
            // The client reset the stream, so hyper dropped the call.
            self.finish(Code::Cancelled);
        }
    }
}

async fn unary<M, B>(
    edge: &Edge<M>,
    rpc: Rpc,
    remote: Option<SocketAddr>,
    headers: &HeaderMap,
    mut messages: Messages<B>,
) -> Response<Body>
where
    M: Member,
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let bytes = match messages.only().await {
        Ok(bytes) => bytes,
        Err(failure) => return failed(&failure),
    };
    let mut call = Call::start(edge, rpc);
    call.counters.receive();
    let answer = answer(edge, rpc, headers, bytes.clone());
    let result = match timeout(headers) {
        None => answer.await,
        Some(limit) => {
            tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| Err(too_late(rpc).into()))
        }
    };
    let took = call.finish(result.as_ref().err().map_or(Code::Ok, |failure| failure.code));
    let start_time = edge.clock.unix().saturating_sub(took);
    let request = &bytes;
    let finished = stats::Finished { rpc, remote, request, result: &result, start_time, took };
    stats::log(&finished, edge.settings.slow_request);
    match result {
        Ok(reply) => {
            call.counters.send();
            count_sent(reply.message_bytes);
            response(Body::Message(reply.payload))
        }
        Err(failure) => failed(&failure),
    }
}

/// Runs a unary call. The match is the list of what this server does.
async fn answer<M: Member>(
    edge: &Edge<M>,
    rpc: Rpc,
    headers: &HeaderMap,
    bytes: Bytes,
) -> Result<Reply, Failure> {
    let admit = || gate::admit(edge, Kind::Unary, headers, Learner::Refused);
    /// Decodes, admits and runs.
    macro_rules! run {
        (await $handler:path) => {{
            let request = decode(bytes)?;
            Ok($handler(edge, admit()?, request).await?)
        }};
        ($handler:path) => {{
            let request = decode(bytes)?;
            Ok($handler(edge, admit()?, request)?)
        }};
    }
    match rpc {
        Rpc::Range => {
            let request: RangeRequest = decode(bytes)?;
            let learner = if request.serializable { Learner::Served } else { Learner::Refused };
            let caller = gate::admit(edge, Kind::Unary, headers, learner)?;
            Ok(kv::range(edge, caller, request).await?)
        }
        Rpc::Put => run!(await kv::put),
        Rpc::DeleteRange => run!(await kv::delete_range),
        Rpc::Txn => run!(await kv::txn),
        Rpc::Compact => run!(await kv::compact),
        Rpc::LeaseGrant => run!(await lease::grant),
        Rpc::LeaseRevoke => run!(await lease::revoke),
        Rpc::LeaseTimeToLive => run!(await lease::time_to_live),
        Rpc::LeaseLeases => run!(await lease::leases),
        Rpc::MemberAdd => run!(await cluster::add),
        Rpc::MemberRemove => run!(await cluster::remove),
        Rpc::MemberUpdate => run!(await cluster::update),
        Rpc::MemberList => run!(await cluster::list),
        Rpc::MemberPromote => run!(await cluster::promote),
        Rpc::Alarm => run!(await maintenance::alarm),
        Rpc::Status => {
            gate::admit(edge, Kind::Unary, headers, Learner::Served)?;
            Ok(maintenance::status(edge))
        }
        Rpc::Defragment => run!(await maintenance::defragment),
        Rpc::Hash => run!(await maintenance::hash),
        Rpc::HashKv => run!(await maintenance::hash_kv),
        Rpc::MoveLeader => run!(await maintenance::move_leader),
        Rpc::Downgrade => run!(await maintenance::downgrade),
        Rpc::AuthStatus => run!(auth::status),
        Rpc::HealthCheck => run!(health::check),
        Rpc::HealthList => Ok(health::list(edge, admit()?, bytes)),
        Rpc::AuthEnable
        | Rpc::AuthDisable
        | Rpc::Authenticate
        | Rpc::UserAdd
        | Rpc::UserGet
        | Rpc::UserList
        | Rpc::UserDelete
        | Rpc::UserChangePassword
        | Rpc::UserGrantRole
        | Rpc::UserRevokeRole
        | Rpc::RoleAdd
        | Rpc::RoleGet
        | Rpc::RoleList
        | Rpc::RoleDelete
        | Rpc::RoleGrantPermission
        | Rpc::RoleRevokePermission => unsupported(admit(), Refusal::AuthUnsupported),
        Rpc::Campaign | Rpc::Proclaim | Rpc::Leader | Rpc::Resign => {
            unsupported(admit(), Refusal::ElectionUnsupported)
        }
        Rpc::Lock | Rpc::Unlock => unsupported(admit(), Refusal::LockUnsupported),
        Rpc::RangeStream
        | Rpc::Watch
        | Rpc::LeaseKeepAlive
        | Rpc::Snapshot
        | Rpc::HealthWatch
        | Rpc::Observe => unreachable!("{rpc:?} is a stream"),
    }
}

fn unsupported(admitted: Result<Caller, Refusal>, refusal: Refusal) -> Result<Reply, Failure> {
    admitted?;
    Err(refusal.into())
}

/// What a caller learns whose deadline passed first: proposals may still be applied.
fn too_late(rpc: Rpc) -> CallError {
    match rpc {
        Rpc::Put
        | Rpc::DeleteRange
        | Rpc::Txn
        | Rpc::Compact
        | Rpc::LeaseGrant
        | Rpc::LeaseRevoke
        | Rpc::MemberAdd
        | Rpc::MemberRemove
        | Rpc::MemberUpdate
        | Rpc::MemberPromote
        | Rpc::Alarm
        | Rpc::Downgrade
        | Rpc::AuthEnable
        | Rpc::AuthDisable
        | Rpc::AuthStatus
        | Rpc::Authenticate
        | Rpc::UserAdd
        | Rpc::UserGet
        | Rpc::UserList
        | Rpc::UserDelete
        | Rpc::UserChangePassword
        | Rpc::UserGrantRole
        | Rpc::UserRevokeRole
        | Rpc::RoleAdd
        | Rpc::RoleGet
        | Rpc::RoleList
        | Rpc::RoleDelete
        | Rpc::RoleGrantPermission
        | Rpc::RoleRevokePermission => Unavailable::Timeout.into(),
        Rpc::MoveLeader => Refusal::TransferTimeout.into(),
        Rpc::Range
        | Rpc::RangeStream
        | Rpc::Watch
        | Rpc::LeaseKeepAlive
        | Rpc::LeaseTimeToLive
        | Rpc::LeaseLeases
        | Rpc::MemberList
        | Rpc::Status
        | Rpc::Defragment
        | Rpc::Hash
        | Rpc::HashKv
        | Rpc::Snapshot
        | Rpc::HealthCheck
        | Rpc::HealthList
        | Rpc::HealthWatch
        | Rpc::Campaign
        | Rpc::Proclaim
        | Rpc::Leader
        | Rpc::Observe
        | Rpc::Resign
        | Rpc::Lock
        | Rpc::Unlock => Refusal::DeadlineExceeded.into(),
    }
}

/// Runs a call with a stream of answers.
async fn streaming<M, B>(
    edge: Arc<Edge<M>>,
    rpc: Rpc,
    headers: &HeaderMap,
    mut messages: Messages<B>,
) -> Response<Body>
where
    M: Member,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Display,
{
    let learner = if rpc == Rpc::Snapshot { Learner::Served } else { Learner::Refused };
    if let Err(refusal) = gate::admit(&edge, rpc.kind(), headers, learner) {
        return refused_stream(&edge, rpc, refusal.into());
    }
    let run = Streaming { edge: Arc::clone(&edge), rpc, headers };
    if rpc == Rpc::Watch {
        let call = Call::start(&edge, rpc);
        return response(watch::begin(&edge, headers, messages, call));
    }
    if rpc == Rpc::LeaseKeepAlive {
        return run.start(|edge, outbox| lease::keep_alive(edge, messages, outbox));
    }
    let begun = match messages.only().await {
        Ok(bytes) => server_stream(run, bytes),
        Err(failure) => Err(failure),
    };
    begun.unwrap_or_else(|failure| refused_stream(&edge, rpc, failure))
}

/// Starts a call with one question and many answers.
fn server_stream<M: Member>(
    run: Streaming<'_, M>,
    bytes: Bytes,
) -> Result<Response<Body>, Failure> {
    let rpc = run.rpc;
    metrics::of(rpc).receive();
    if rpc == Rpc::RangeStream {
        let request = decode(bytes)?;
        validate::range_stream(&request)?;
        Ok(run.start(|edge, outbox| range_stream::run(edge, request, outbox)))
    } else if rpc == Rpc::Snapshot {
        Ok(run.start(backup::run))
    } else if rpc == Rpc::HealthWatch {
        let request: HealthCheckRequest = decode(bytes)?;
        Ok(run.start(|edge, outbox| health::watch(edge, request, outbox)))
    } else {
        Err(Refusal::ElectionUnsupported.into())
    }
}

/// What the task of a stream needs to begin and to end.
struct Streaming<'a, M> {
    edge: Arc<Edge<M>>,
    rpc: Rpc,
    headers: &'a HeaderMap,
}

impl<M: Member> Streaming<'_, M> {
    /// Starts the task that fills the stream.
    fn start<F, Run>(self, run: F) -> Response<Body>
    where
        F: FnOnce(Arc<Edge<M>>, Outbox) -> Run,
        Run: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let Self { edge, rpc, headers } = self;
        let (outbox, body) = stream(rpc);
        let filled = run(Arc::clone(&edge), outbox.clone());
        let requires_leader = caller::requires_leader(headers);
        let limit = timeout(headers);
        task::spawn(async move {
            let mut call = Call::start(&edge, rpc);
            let late = async {
                match limit {
                    None => std::future::pending().await,
                    Some(limit) => tokio::time::sleep(limit).await,
                }
            };
            let result = tokio::select! {
                result = filled => result,
                () = edge.leader_losses.next(requires_leader) => Err(Refusal::NoLeader.into()),
                () = late => Err(Refusal::DeadlineExceeded.into()),
            };
            call.finish(result.as_ref().err().map_or(Code::Ok, |failure| failure.code));
            if let Err(failure) = result {
                outbox.fail(failure).await;
            }
        });
        response(body)
    }
}

/// A stream that was refused before it began still counts as one.
fn refused_stream<M: Member>(edge: &Edge<M>, rpc: Rpc, failure: Failure) -> Response<Body> {
    Call::start(edge, rpc).finish(failure.code);
    failed(&failure)
}

fn response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// An answer that is only a status, which then stands in the headers.
fn failed(failure: &Failure) -> Response<Body> {
    let mut response = response(Body::Empty);
    put_status(failure, response.headers_mut());
    response
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use http_body_util::Full;

    use super::*;
    use crate::{
        api::{Settings, fake::Fake},
        base::clock::Clock,
        model::MemberId,
    };

    /// The code and text of a call with a deadline of 20 ms.
    fn status_of(fake: Fake, rpc: Rpc, message: &'static [u8]) -> (String, String) {
        let edge = Arc::new(Edge::new(fake, Settings::default(), Clock::system()));
        let length = u8::try_from(message.len()).expect("tests are small");
        let body = [&[0, 0, 0, 0, length], message].concat();
        let request = Request::builder()
            .uri(rpc.path())
            .header("grpc-timeout", "20m")
            .body(Full::new(Bytes::from(body)))
            .expect("a request");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let response = runtime.expect("a runtime").block_on(call(edge, None, request));
        let text = |name| {
            let value = response.headers().get(name).map(HeaderValue::to_str);
            value.map_or_else(String::new, |value| value.expect("ASCII").to_owned())
        };
        (text("grpc-status"), text("grpc-message"))
    }

    #[test]
    fn read_that_waits_too_long_ends_with_the_caller_s_deadline() {
        let fake = Fake::default();
        fake.with(|inner| inner.leader = MemberId(0));
        let (code, text) = status_of(fake, Rpc::Range, b"\x0a\x01k");
        assert_eq!((code.as_str(), text.as_str()), ("4", "context deadline exceeded"));
    }

    #[test]
    fn services_that_are_missing_say_so() {
        for rpc in [Rpc::AuthEnable, Rpc::Campaign, Rpc::Lock] {
            let (code, text) = status_of(Fake::default(), rpc, b"");
            assert_eq!(code, "12", "{rpc:?}");
            assert!(text.starts_with("oxetcd: "), "{text}");
        }
    }

    #[test]
    fn call_whose_client_has_gone_counts_as_canceled() {
        let fake = Fake::default();
        fake.with(|inner| inner.leader = MemberId(0));
        let edge = Edge::new(fake, Settings::default(), Clock::system());
        let body = Full::new(Bytes::from_static(b"\0\0\0\0\x03\x0a\x01k"));
        let headers = HeaderMap::new();
        let messages = Messages::new(&headers, body, 64);
        let mut call = Box::pin(unary(&edge, Rpc::Range, None, &headers, messages));
        let before = metrics::of(Rpc::Range).finished(Code::Cancelled);
        block_on(async {
            assert!(futures::poll!(call.as_mut()).is_pending(), "there is no leader to ask");
        });
        drop(call);
        assert!(before < metrics::of(Rpc::Range).finished(Code::Cancelled), "not counted");
    }
}
