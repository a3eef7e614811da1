//! From a call to the service that answers it.
//!
//! Decides the order of things around every call: count, admit, answer, count, log. There is no
//! router and no layer between the connection and the service: `serve` finds the call by its path,
//! cuts its message out of what came, and polls what is returned here in the connection's own task.
//! Dropping that ends the call as canceled.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/grpc.go` and `interceptor.go`.

use std::{future::Future, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use proto::{etcdserverpb::RangeRequest, health::HealthCheckRequest};
use tonic::Code;

use super::{
    answer::{Payload, Reply},
    auth, backup,
    body::{Body, Outbox},
    caller::Caller,
    cluster,
    codec::count_sent,
    edge::Edge,
    gate::{self, Learner},
    health, kv, lease, maintenance,
    member::Member,
    metadata::Metadata,
    metrics::{self, Counters},
    range_stream,
    rpc::{Kind, Rpc},
    stats,
    status::{CallError, Failure, Refusal},
    validate, watch,
    wire::{Messages, decode},
};
use crate::{base::clock::Clock, model::Unavailable};

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
            // The client reset the stream, so its connection dropped the call.
            self.finish(Code::Cancelled);
        }
    }
}

/// Answers a call with one question and one answer.
///
/// # Errors
/// With the status that the client is told.
pub async fn unary<M: Member>(
    edge: Arc<Edge<M>>,
    rpc: Rpc,
    remote: Option<SocketAddr>,
    metadata: Metadata,
    message: Bytes,
) -> Result<Payload, Failure> {
    let mut call = Call::start(&edge, rpc);
    call.counters.receive();
    // Pinned once: moving it about would make room for it in this future twice.
    let answer = pin!(answer(&edge, rpc, &metadata, message.clone()));
    let result = match metadata.timeout {
        None => answer.await,
        Some(limit) => {
            tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| Err(too_late(rpc).into()))
        }
    };
    let took = call.finish(result.as_ref().err().map_or(Code::Ok, |failure| failure.code));
    let (request, clock) = (&message, &edge.clock);
    let finished = stats::Finished { rpc, remote, request, result: &result, clock, took };
    stats::log(&finished, edge.settings.slow_request);
    let reply = result?;
    call.counters.send();
    count_sent(reply.message_bytes);
    Ok(reply.payload)
}

/// Runs a unary call. The match is the list of what this server does.
async fn answer<M: Member>(
    edge: &Edge<M>,
    rpc: Rpc,
    metadata: &Metadata,
    bytes: Bytes,
) -> Result<Reply, Failure> {
    let admit = || gate::admit(edge, Kind::Unary, metadata, Learner::Refused);
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
            let caller = gate::admit(edge, Kind::Unary, metadata, learner)?;
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
            gate::admit(edge, Kind::Unary, metadata, Learner::Served)?;
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

/// Begins a call with a stream of answers.
///
/// # Errors
/// With the status that the client is told, if the call is refused before it begins.
pub fn streaming<M: Member>(
    edge: &Arc<Edge<M>>,
    rpc: Rpc,
    metadata: &Metadata,
    messages: Messages,
) -> Result<Body, Failure> {
    let mut call = Call::start(edge, rpc);
    let learner = if rpc == Rpc::Snapshot { Learner::Served } else { Learner::Refused };
    if let Err(refusal) = gate::admit(edge, rpc.kind(), metadata, learner) {
        let failure = Failure::from(refusal);
        call.finish(failure.code);
        return Err(failure);
    }
    if rpc == Rpc::Watch {
        return Ok(watch::begin(edge, metadata, messages, call));
    }
    let (shared, limits) = (Arc::clone(edge), Limits::of(metadata));
    let run = async move |outbox| {
        if rpc == Rpc::LeaseKeepAlive {
            lease::keep_alive(shared, messages, outbox).await
        } else {
            server_stream(shared, rpc, messages, outbox).await
        }
    };
    let edge = Arc::clone(edge);
    Ok(Body::stream(rpc, |outbox| limits.guard(edge, call, run(outbox))))
}

/// Runs a call with one question and many answers.
async fn server_stream<M: Member>(
    edge: Arc<Edge<M>>,
    rpc: Rpc,
    mut messages: Messages,
    outbox: Outbox,
) -> Result<(), Failure> {
    let bytes = messages.only().await?;
    metrics::of(rpc).receive();
    if rpc == Rpc::RangeStream {
        let request = decode(bytes)?;
        validate::range_stream(&request)?;
        range_stream::run(edge, request, outbox).await
    } else if rpc == Rpc::Snapshot {
        backup::run(edge, outbox).await
    } else if rpc == Rpc::HealthWatch {
        let request: HealthCheckRequest = decode(bytes)?;
        health::watch(edge, request, outbox).await
    } else {
        Err(Refusal::ElectionUnsupported.into())
    }
}

/// What ends a stream although both sides want more.
struct Limits {
    requires_leader: bool,
    timeout: Option<Duration>,
}

impl Limits {
    const fn of(metadata: &Metadata) -> Self {
        Self { requires_leader: metadata.requires_leader(), timeout: metadata.timeout }
    }

    /// Runs a call to its end, or until it has to end.
    async fn guard<M: Member>(
        self,
        edge: Arc<Edge<M>>,
        mut call: Call,
        run: impl Future<Output = Result<(), Failure>>,
    ) -> Result<(), Failure> {
        let late = async {
            match self.timeout {
                None => std::future::pending().await,
                Some(limit) => tokio::time::sleep(limit).await,
            }
        };
        let result = tokio::select! {
            biased;
            () = edge.leader_losses.next(self.requires_leader) => Err(Refusal::NoLeader.into()),
            () = late => Err(Refusal::DeadlineExceeded.into()),
            result = run => result,
        };
        call.finish(result.as_ref().err().map_or(Code::Ok, |failure| failure.code));
        result
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::{
        api::{Settings, fake::Fake},
        base::clock::Clock,
        model::MemberId,
    };

    /// What becomes of a call with a deadline of 20 ms.
    fn failure_of(fake: Fake, rpc: Rpc, message: &'static [u8]) -> Failure {
        let edge = Arc::new(Edge::new(fake, Settings::default(), Clock::system()));
        let metadata = Metadata::default().with("grpc-timeout", b"20m");
        let message = Bytes::from_static(message);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let answer = unary(edge, rpc, None, metadata, message);
        runtime.expect("a runtime").block_on(answer).expect_err("it fails")
    }

    #[test]
    fn read_that_waits_too_long_ends_with_the_caller_s_deadline() {
        let fake = Fake::default();
        fake.with(|inner| inner.leader = MemberId(0));
        let failure = failure_of(fake, Rpc::Range, b"\x0a\x01k");
        assert_eq!(failure, Failure::new(Code::DeadlineExceeded, "context deadline exceeded"));
    }

    #[test]
    fn services_that_are_missing_say_so() {
        for rpc in [Rpc::AuthEnable, Rpc::Campaign, Rpc::Lock] {
            let failure = failure_of(Fake::default(), rpc, b"");
            assert_eq!(failure.code, Code::Unimplemented, "{rpc:?}");
            assert!(failure.text.starts_with("oxetcd: "), "{}", failure.text);
        }
    }

    #[test]
    fn call_whose_client_has_gone_counts_as_canceled() {
        let fake = Fake::default();
        fake.with(|inner| inner.leader = MemberId(0));
        let edge = Arc::new(Edge::new(fake, Settings::default(), Clock::system()));
        let message = Bytes::from_static(b"\x0a\x01k");
        let mut call = Box::pin(unary(edge, Rpc::Range, None, Metadata::default(), message));
        let before = metrics::of(Rpc::Range).finished(Code::Cancelled);
        block_on(async {
            assert!(futures::poll!(call.as_mut()).is_pending(), "there is no leader to ask");
        });
        drop(call);
        assert!(before < metrics::of(Rpc::Range).finished(Code::Cancelled), "not counted");
    }
}
