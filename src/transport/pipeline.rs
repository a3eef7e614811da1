//! Messages one by one, each with a request of its own.
//!
//! Decides how messages travel while a stream is missing: a few requests at a time, on connections
//! that are kept for the next. One for each peer runs on the `peer` thread.
//!
//! Source: etcd `server/etcdserver/api/rafthttp/pipeline.go`.

use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use http::Method;
use http_body_util::Full;
use prost::Message as _;
use proto::raftpb::Message;
use tokio::time::timeout;
use tracing::info;

use super::{
    dial::{self, Connection, PeerError, check_posted},
    peer::Peer,
    shared::Shared,
    socket::SILENCE_MAX,
};

/// Requests at a time.
///
/// Source: etcd `rafthttp/pipeline.go`, `connPerPipeline`.
const REQUESTS_MAX: usize = 4;

/// A peer that has not answered by then will not; raft has sent its message again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends one peer its messages one by one.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: Arc<Peer>,
}

type Idle = Connection<Full<Bytes>>;

impl Pipeline {
    /// Sends until the peer is not one any more.
    pub(super) async fn run(self) {
        info!(
            "local-member-id" = %self.shared.settings.member,
            "remote-peer-id" = %self.peer.id,
            "started HTTP pipelining with remote peer"
        );
        let mut idle: Vec<Idle> = Vec::new();
        let mut posts = FuturesUnordered::new();
        loop {
            let next = poll_fn(|context| self.peer.lanes.poll_pipeline(context));
            tokio::select! {
                next = next, if posts.len() < REQUESTS_MAX => match next {
                    Some(message) => posts.push(self.post(idle.pop(), message)),
                    None => return,
                },
                Some(connection) = posts.next(), if !posts.is_empty() => idle.extend(connection),
            }
        }
    }

    /// Sends `message`, and returns the connection if it can be used again.
    async fn post(&self, idle: Option<Idle>, message: Message) -> Option<Idle> {
        let bytes = Bytes::from(message.encode_to_vec());
        let length = bytes.len() as u64;
        let url = self.peer.picker.pick();
        let posting = timeout(ANSWER_TIMEOUT, self.post_at(&url, idle, bytes));
        match posting.await.unwrap_or(Err(PeerError::TimedOut)) {
            Ok(connection) => {
                self.peer.status.activate(self.shared.clock.now());
                self.peer.sent_bytes.inc_by(length);
                Some(connection)
            }
            Err(error) => {
                self.peer.picker.unreachable(&url);
                self.peer.status.deactivate("write", "pipeline", error);
                self.peer.count_failure();
                self.shared.local().unreachable(self.peer.id);
                None
            }
        }
    }

    async fn post_at(
        &self,
        url: &str,
        idle: Option<Idle>,
        bytes: Bytes,
    ) -> Result<Idle, PeerError> {
        // The peer ends connections on which nothing happens, so a kept one may be gone.
        if let Some(mut connection) = idle.filter(|connection| !connection.requests.is_closed())
            && connection.requests.ready().await.is_ok()
            && let Ok(answer) =
                connection.requests.send_request(self.request(url, bytes.clone())?).await
        {
            check_posted(&self.shared, &self.peer, answer).await?;
            return Ok(connection);
        }
        let mut connection = dial::connect(url, SILENCE_MAX).await?;
        let answer = connection.requests.send_request(self.request(url, bytes)?).await?;
        check_posted(&self.shared, &self.peer, answer).await?;
        Ok(connection)
    }

    fn request(&self, url: &str, bytes: Bytes) -> Result<http::Request<Full<Bytes>>, PeerError> {
        dial::request(&self.shared, Method::POST, url, "/raft")
            .header("Content-Type", "application/protobuf")
            .body(Full::new(bytes))
            .map_err(|_invalid| PeerError::Url(url.to_owned()))
    }
}
