//! Requests to be sent to two servers alike.
//!
//! Decides how a request is sent and its answer written down. Scripts use the generated messages
//! rather than a client library, so that malformed requests can be sent too.

use std::time::Duration;

use anyhow::Context;
use proto::etcdserverpb::{
    AlarmRequest, AuthStatusRequest, CompactionRequest, DefragmentRequest, DeleteRangeRequest,
    DowngradeRequest, HashKvRequest, HashRequest, LeaseGrantRequest, LeaseLeasesRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, MoveLeaderRequest, PutRequest, RangeRequest,
    RangeStreamResponse, StatusRequest, TxnRequest, WatchRequest, WatchResponse,
    auth_client::AuthClient, kv_client::KvClient, lease_client::LeaseClient,
    maintenance_client::MaintenanceClient, watch_client::WatchClient,
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    server::Server,
    transcript::{Normalize, line},
};

/// How long an answer may take before the check fails.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// One request with one answer.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each variant is the request of its name")]
pub enum Call {
    Range(RangeRequest),
    RangeStream(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    HashKv(HashKvRequest),
    Hash(HashRequest),
    Grant(LeaseGrantRequest),
    Revoke(LeaseRevokeRequest),
    Leases(LeaseLeasesRequest),
    TimeToLive(LeaseTimeToLiveRequest),
    Alarm(AlarmRequest),
    Status(StatusRequest),
    Defragment(DefragmentRequest),
    MoveLeader(MoveLeaderRequest),
    Downgrade(DowngradeRequest),
    AuthStatus(AuthStatusRequest),
}

/// A connection to one server.
#[derive(Clone, Debug)]
pub struct Client {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    auth: AuthClient<Channel>,
    watch: WatchClient<Channel>,
}

impl Client {
    /// Connects to `server`.
    ///
    /// # Errors
    /// If nothing answers.
    pub async fn connect(server: &Server) -> anyhow::Result<Self> {
        Self::connect_to(server.endpoint()).await
    }

    /// Connects to an endpoint such as `http://127.0.0.1:2379`.
    ///
    /// # Errors
    /// If nothing answers.
    pub async fn connect_to(endpoint: String) -> anyhow::Result<Self> {
        let channel = Endpoint::from_shared(endpoint)?.connect().await?;
        Ok(Self {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            lease: LeaseClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            auth: AuthClient::new(channel.clone()),
            watch: WatchClient::new(channel).max_decoding_message_size(usize::MAX),
        })
    }

    /// The generated client of the key-value service.
    #[must_use]
    pub fn kv(&self) -> KvClient<Channel> {
        self.kv.clone()
    }

    /// The generated client of the maintenance service.
    #[must_use]
    pub fn maintenance(&self) -> MaintenanceClient<Channel> {
        self.maintenance.clone()
    }

    /// The generated client of the lease service.
    #[must_use]
    pub fn lease(&self) -> LeaseClient<Channel> {
        self.lease.clone()
    }

    /// Sends `call` and writes its answer down.
    ///
    /// # Panics
    /// If no answer comes in time.
    pub async fn call(&mut self, call: Call) -> String {
        let text = format!("{call:?}");
        tokio::time::timeout(ANSWER_TIMEOUT, self.send(call))
            .await
            .unwrap_or_else(|_| panic!("no answer within {ANSWER_TIMEOUT:?} to {text}"))
    }

    async fn send(&mut self, call: Call) -> String {
        match call {
            Call::Range(request) => line(inner(self.kv.range(request).await)),
            Call::RangeStream(request) => self.range_stream(request).await,
            Call::Put(request) => line(inner(self.kv.put(request).await)),
            Call::Delete(request) => line(inner(self.kv.delete_range(request).await)),
            Call::Txn(request) => line(inner(self.kv.txn(request).await)),
            Call::Compact(request) => line(inner(self.kv.compact(request).await)),
            Call::HashKv(request) => line(inner(self.maintenance.hash_kv(request).await)),
            Call::Hash(request) => line(inner(self.maintenance.hash(request).await)),
            Call::Grant(request) => line(inner(self.lease.lease_grant(request).await)),
            Call::Revoke(request) => line(inner(self.lease.lease_revoke(request).await)),
            Call::Leases(request) => line(inner(self.lease.lease_leases(request).await)),
            Call::TimeToLive(request) => line(inner(self.lease.lease_time_to_live(request).await)),
            Call::Alarm(request) => line(inner(self.maintenance.alarm(request).await)),
            Call::Status(request) => line(inner(self.maintenance.status(request).await)),
            Call::Defragment(request) => line(inner(self.maintenance.defragment(request).await)),
            Call::MoveLeader(request) => line(inner(self.maintenance.move_leader(request).await)),
            Call::Downgrade(request) => line(inner(self.maintenance.downgrade(request).await)),
            Call::AuthStatus(request) => line(inner(self.auth.auth_status(request).await)),
        }
    }

    async fn range_stream(&mut self, request: RangeRequest) -> String {
        let mut stream = match self.kv.range_stream(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return format!("{:?}: {}", status.code(), status.message()),
        };
        let mut lines = Vec::new();
        while let Some(part) = stream.next().await {
            let end = part.is_err();
            lines.push(line(part.map(RangeStreamResponse::range_response)));
            if end {
                break;
            }
        }
        lines.join(" | ")
    }

    /// Opens a watch stream. The server shows itself with its first response only, so nothing is
    /// waited for here.
    #[must_use]
    pub fn watch(&self) -> WatchStream {
        let (requests, queue) = mpsc::channel(16);
        let (found, responses) = mpsc::channel(16);
        let mut client = self.watch.clone();
        tokio::spawn(async move {
            match client.watch(ReceiverStream::new(queue)).await {
                Ok(stream) => {
                    let mut stream = stream.into_inner();
                    while let Some(response) = stream.next().await {
                        if found.send(response).await.is_err() {
                            break;
                        }
                    }
                }
                // A check that has ended does not read how its stream was refused.
                Err(status) => drop(found.send(Err(status)).await),
            }
        });
        WatchStream { requests, responses }
    }
}

trait IntoRange {
    fn range_response(self) -> proto::etcdserverpb::RangeResponse;
}

impl IntoRange for RangeStreamResponse {
    fn range_response(self) -> proto::etcdserverpb::RangeResponse {
        self.range_response.unwrap_or_default()
    }
}

fn inner<M>(answer: Result<tonic::Response<M>, Status>) -> Result<M, Status> {
    answer.map(tonic::Response::into_inner)
}

/// An open watch stream.
#[derive(Debug)]
pub struct WatchStream {
    requests: mpsc::Sender<WatchRequest>,
    responses: mpsc::Receiver<Result<WatchResponse, Status>>,
}

impl WatchStream {
    /// Sends a request.
    ///
    /// # Errors
    /// If the stream is gone.
    pub async fn send(&self, request: WatchRequest) -> anyhow::Result<()> {
        self.requests.send(request).await.context("the watch stream is gone")
    }

    /// The next response, normalised.
    ///
    /// # Errors
    /// If none comes in time, or the stream ends.
    pub async fn next(&mut self) -> anyhow::Result<WatchResponse> {
        let mut response = tokio::time::timeout(ANSWER_TIMEOUT, self.responses.recv())
            .await
            .context("no watch response in time")?
            .context("the watch stream ended")??;
        response.normalize();
        Ok(response)
    }

    /// Responses until `done` says that it has seen enough.
    ///
    /// # Errors
    /// As [`WatchStream::next`].
    pub async fn until(
        &mut self,
        mut done: impl FnMut(&WatchResponse) -> bool,
    ) -> anyhow::Result<Vec<WatchResponse>> {
        let mut responses = Vec::new();
        loop {
            let response = self.next().await?;
            let enough = done(&response);
            responses.push(response);
            if enough {
                return Ok(responses);
            }
        }
    }
}

/// Sends `calls` to `server`, one after the other.
///
/// # Errors
/// If the server cannot be reached.
pub async fn run(server: &Server, calls: &[Call]) -> anyhow::Result<Vec<String>> {
    let mut client = Client::connect(server).await?;
    let mut lines = Vec::with_capacity(calls.len());
    for call in calls {
        lines.push(client.call(call.clone()).await);
    }
    Ok(lines)
}
