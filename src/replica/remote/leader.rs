//! Calls that only the leader can answer, made to its peer URLs.
//!
//! Decides who is asked, and what the leader's status codes mean. A call that got no answer that
//! counts is tried again by the caller, until its time is over: by then somebody else may lead.
//!
//! Source: etcd `server/lease/leasehttp/http.go`, `server/etcdserver/cluster_util.go`.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::{
        LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseTimeToLiveRequest,
        LeaseTimeToLiveResponse,
    },
    leasepb::{LeaseInternalRequest, LeaseInternalResponse},
};

use crate::{
    cluster::Member,
    model::{LeaseId, MemberId, Unavailable},
    replica::Handle,
    transport::{PeerConnections, PeerReply, PeerRequest},
};

/// How often it is looked for a leader while there is none.
const LEADER_LOOK: Duration = Duration::from_millis(20);

/// Pause before the leader is asked again.
///
/// Source: etcd `LeaseRenew`.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// How long one request to the leader may take: long enough for a leader that is busy, short enough
/// to ask its successor before the caller gives up.
const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(2);

/// Bytes of a lease's answer, which may list its keys.
///
/// Source: etcd `maxLeaseHTTPResponseSize`.
const LEASE_ANSWER_BYTES_MAX: usize = 100 << 20;

/// The content type of messages.
const PROTOBUF: &str = "application/protobuf";

/// A call that is made here or to the leader until somebody answers, or its time is over.
#[derive(Debug)]
pub struct Asking<'a> {
    handle: &'a Handle,
    connections: &'a PeerConnections,
    /// In the member's time.
    deadline: Duration,
    is_again: bool,
}

/// Whose turn it is to answer.
#[derive(Clone, Debug)]
pub enum Turn {
    /// This member leads.
    Here,
    /// Another one does.
    There(Box<LeaderCall>),
}

impl<'a> Asking<'a> {
    /// A call that may take as long as any request.
    #[must_use]
    pub fn new(handle: &'a Handle, connections: &'a PeerConnections) -> Self {
        let deadline = handle.clock().now() + handle.limits().request_timeout;
        Self { handle, connections, deadline, is_again: false }
    }

    /// Waits for a leader, and before that a moment if somebody was asked in vain.
    ///
    /// # Errors
    /// - [`Unavailable::NoLeader`], [`Unavailable::Timeout`] when the time is over.
    /// - [`Unavailable::Stopped`] while the member stops.
    pub async fn turn(&mut self) -> Result<Turn, Unavailable> {
        if self.is_again {
            if self.remaining() == Duration::ZERO {
                return Err(Unavailable::Timeout);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        self.is_again = true;
        let leader = self.leader().await?;
        if leader.id == self.handle.status().member {
            return Ok(Turn::Here);
        }
        Ok(Turn::There(Box::new(LeaderCall {
            connections: self.connections.clone(),
            urls: leader.peer_urls,
            remaining: self.remaining(),
        })))
    }

    fn remaining(&self) -> Duration {
        self.deadline.saturating_sub(self.handle.clock().now())
    }

    async fn leader(&self) -> Result<Member, Unavailable> {
        loop {
            let leader = self.handle.status().leader;
            if leader != MemberId(0)
                && let Some(member) = self.handle.published().membership.member(leader)
            {
                return Ok(member.clone());
            }
            if self.handle.stopping() {
                return Err(Unavailable::Stopped);
            }
            if self.remaining() == Duration::ZERO {
                return Err(Unavailable::NoLeader);
            }
            tokio::time::sleep(LEADER_LOOK).await;
        }
    }
}

/// A call to the leader.
#[derive(Clone, Debug)]
pub struct LeaderCall {
    connections: PeerConnections,
    /// The leader's peer URLs.
    urls: Vec<String>,
    /// What is left of the caller's time.
    remaining: Duration,
}

impl LeaderCall {
    /// Renews a lease and returns its time to live in seconds, or `None` if it does not exist.
    ///
    /// # Errors
    /// - with the reason, if the leader did not say; it may be none any more.
    pub async fn renew_lease(&self, lease: LeaseId) -> Result<Option<i64>, String> {
        let body = LeaseKeepAliveRequest { id: lease.0 }.encode_to_vec();
        let Some(body) = self.lease("/leases", body.into()).await? else { return Ok(None) };
        let answer = LeaseKeepAliveResponse::decode(body).map_err(|error| error.to_string())?;
        if answer.id == lease.0 { Ok(Some(answer.ttl)) } else { Err("another lease".to_owned()) }
    }

    /// What is left of a lease, or `None` if it does not exist.
    ///
    /// # Errors
    /// - with the reason, if the leader did not say; it may be none any more.
    pub async fn lease_time(
        &self,
        lease: LeaseId,
        keys: bool,
    ) -> Result<Option<LeaseTimeToLiveResponse>, String> {
        let request = LeaseTimeToLiveRequest { id: lease.0, keys };
        let request = LeaseInternalRequest { lease_time_to_live_request: Some(request) };
        let body = self.lease("/leases/internal", request.encode_to_vec().into()).await?;
        let Some(body) = body else { return Ok(None) };
        let answer = LeaseInternalResponse::decode(body).map_err(|error| error.to_string())?;
        let answer = answer.lease_time_to_live_response.unwrap_or_default();
        if answer.id == lease.0 { Ok(Some(answer)) } else { Err("another lease".to_owned()) }
    }

    async fn lease(&self, path: &str, body: Bytes) -> Result<Option<Bytes>, String> {
        let reply = self.first_answer(|url, timeout| {
            PeerRequest::post(url, path, timeout)
                .body(PROTOBUF, body.clone())
                .answer_bytes_max(LEASE_ANSWER_BYTES_MAX)
        });
        let reply = reply.await?;
        match reply.status {
            200 => Ok(Some(reply.body)),
            404 => Ok(None),
            _ => Err(shown(&reply)),
        }
    }

    /// Promotes a learner. A refusal is an answer, too.
    ///
    /// # Errors
    /// - with the reason, if the leader could not be asked.
    pub async fn promote(&self, learner: MemberId) -> Result<PeerReply, String> {
        let path = format!("/members/promote/{}", learner.0);
        self.first_answer(|url, timeout| PeerRequest::post(url, &path, timeout)).await
    }

    async fn first_answer(
        &self,
        request: impl Fn(&str, Duration) -> PeerRequest,
    ) -> Result<PeerReply, String> {
        let timeout = self.remaining.min(REQUEST_TIMEOUT_MAX);
        let mut last_error = "the leader has no peer URL".to_owned();
        for url in &self.urls {
            match self.connections.send(request(url, timeout)).await {
                Ok(reply) => return Ok(reply),
                Err(error) => last_error = format!("{url}: {error}"),
            }
        }
        Err(last_error)
    }
}

/// An answer that is not the one that was hoped for.
pub(in crate::replica) fn shown(reply: &PeerReply) -> String {
    format!("status {}: {}", reply.status, String::from_utf8_lossy(&reply.body).trim_end())
}
