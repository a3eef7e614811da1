//! The receiving end of a stream.
//!
//! Decides when a peer is dialled for its stream, what its answer means, and when the stream is
//! given up. Two for each peer run on the `peer` thread for as long as it is one. The receiver dials
//! and the sender answers, with an answer that does not end.
//!
//! Source: etcd `server/etcdserver/api/rafthttp/stream.go`, `streamReader`.

use std::{fmt, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use prost::Message as _;
use proto::raftpb::Message;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::{
    codec::{DecodeError, Decoder},
    dial::{self, Connection, PeerError},
    kind::{StreamKind, is_link_heartbeat},
    metrics,
    peer::Peer,
    shared::Shared,
    socket::SILENCE_MAX,
    version,
};
use crate::{base::metrics::IntCounter, model::MemberId};

/// A peer is not dialled more often than this.
///
/// Source: etcd `rafthttp/transport.go`, `DialRetryFrequency`.
const DIAL_INTERVAL: Duration = Duration::from_millis(100);

/// Receives one stream of one peer.
#[derive(Debug)]
pub(super) struct Reader {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    kind: StreamKind,
    /// Signs of life have no sender.
    heartbeat_bytes: IntCounter,
}

/// Why a stream ended.
#[derive(Debug)]
enum Over {
    /// The peer ended it.
    End,
    Silence,
    Http(hyper::Error),
    Decode(DecodeError),
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End => f.write_str("EOF"),
            Self::Silence => f.write_str("i/o timeout"),
            Self::Http(error) => write!(f, "{error}"),
            Self::Decode(error) => write!(f, "{error}"),
        }
    }
}

/// A stream that is there.
#[derive(Debug)]
struct Stream {
    body: Incoming,
    _connection: Connection<Empty<Bytes>>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, peer: Arc<Peer>, kind: StreamKind) -> Self {
        Self { shared, peer, kind, heartbeat_bytes: metrics::received_bytes(MemberId(0)) }
    }

    /// Receives until it is dropped.
    pub(super) async fn run(self) {
        let (local, remote) = (self.shared.settings.member, self.peer.id);
        info!(
            "stream-reader-type" = %self.kind,
            "local-member-id" = %local,
            "remote-peer-id" = %remote,
            "started stream reader with remote peer"
        );
        loop {
            let next_dial = Instant::now() + DIAL_INTERVAL;
            match self.dial().await {
                Ok(stream) => self.receive(stream).await,
                Err(PeerError::UnsupportedStream) => {}
                Err(error) => self.peer.status.deactivate("dial", self.kind, error),
            }
            sleep_until(next_dial).await;
        }
    }

    async fn receive(&self, stream: Stream) {
        let (local, remote) = (self.shared.settings.member, self.peer.id);
        self.peer.status.activate(self.shared.clock.now());
        info!(
            "stream-reader-type" = %self.kind,
            "local-member-id" = %local,
            "remote-peer-id" = %remote,
            "established TCP streaming connection with remote peer"
        );
        let attached = self.peer.presence.attach();
        let over = self.read(stream).await;
        drop(attached);
        warn!(
            "stream-reader-type" = %self.kind,
            "local-member-id" = %local,
            "remote-peer-id" = %remote,
            error = %over,
            "lost TCP streaming connection with remote peer"
        );
        match over {
            // It is dialled again at once, and that will show whether it is still there.
            Over::End | Over::Http(_) => {}
            Over::Silence | Over::Decode(_) => {
                self.peer.status.deactivate("read", self.kind, over);
            }
        }
    }

    async fn read(&self, mut stream: Stream) -> Over {
        let mut decoder = Decoder::new(self.kind, self.shared.settings.member, self.peer.id);
        let mut input = BytesMut::new();
        loop {
            let frame = match timeout(SILENCE_MAX, stream.body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Over::Http(error),
                Ok(None) => return Over::End,
                Err(_) => return Over::Silence,
            };
            let Ok(bytes) = frame.into_data() else { continue };
            input.extend_from_slice(&bytes);
            if let Err(error) = self.decode(&mut decoder, &mut input) {
                return Over::Decode(error);
            }
        }
    }

    /// Hands on every message that is there in full.
    fn decode(&self, decoder: &mut Decoder, input: &mut BytesMut) -> Result<(), DecodeError> {
        while let Some(message) = decoder.decode(input)? {
            self.count(&message);
            if !is_link_heartbeat(&message)
                && let Err(refused) = self.shared.receive(message)
            {
                warn!(error = refused.text(), "failed to process Raft message");
            }
        }
        Ok(())
    }

    fn count(&self, message: &Message) {
        let bytes = message.encoded_len() as u64;
        // A peer also passes on what others ask of a leader.
        if message.from() == self.peer.id.0 {
            self.peer.received_bytes.inc_by(bytes);
        } else if is_link_heartbeat(message) {
            self.heartbeat_bytes.inc_by(bytes);
        } else {
            self.shared.count_received(MemberId(message.from()), bytes);
        }
    }

    async fn dial(&self) -> Result<Stream, PeerError> {
        let url = self.peer.picker.pick();
        let dialled = self.dial_at(&url).await;
        if let Err(error) = &dialled {
            self.peer.picker.unreachable(&url);
            if self.peer.presence.failed(&url, error, self.peer.picker.count()) {
                self.shared.local().gone(self.peer.id);
            }
        }
        dialled
    }

    async fn dial_at(&self, url: &str) -> Result<Stream, PeerError> {
        let settings = &self.shared.settings;
        let path = format!("{}/{}", self.kind.endpoint(), settings.member);
        debug!(
            from = %settings.member,
            to = %self.peer.id,
            address = format_args!("{url}{path}"),
            "dial stream reader"
        );
        let request = dial::request(&self.shared, Method::GET, url, &path)
            .header("X-Raft-To", self.peer.id.to_string())
            .body(Empty::new())
            .map_err(|_invalid| PeerError::Url(url.to_owned()))?;
        let mut connection = dial::connect(url, SILENCE_MAX).await?;
        let answer = timeout(SILENCE_MAX, connection.requests.send_request(request)).await;
        let answer = answer.map_err(|_elapsed| PeerError::TimedOut)??;
        if !version::offers_stream(settings.server_version, answer.headers()) {
            return Err(PeerError::UnsupportedStream);
        }
        match answer.status() {
            StatusCode::OK => Ok(Stream { body: answer.into_body(), _connection: connection }),
            StatusCode::GONE => {
                self.shared.report_removed();
                Err(PeerError::Removed)
            }
            StatusCode::NOT_FOUND => Err(PeerError::NotFound(format!(
                "peer {} failed to find local node {}",
                self.peer.id, settings.member
            ))),
            StatusCode::PRECONDITION_FAILED => {
                let remote_cluster = dial::cluster_of(&answer);
                let failed = dial::precondition(&dial::sentence(answer).await?);
                self.tell_refused(&failed, &remote_cluster);
                Err(failed)
            }
            other => Err(PeerError::Status(other)),
        }
    }

    fn tell_refused(&self, failed: &PeerError, remote_cluster: &str) {
        let settings = &self.shared.settings;
        if let PeerError::IncompatibleVersion = failed {
            warn!(
                "local-member-id" = %settings.member,
                "remote-peer-id" = %self.peer.id,
                error = %failed,
                "request sent was ignored by remote peer due to server version incompatibility"
            );
        } else if let PeerError::ClusterIdMismatch = failed {
            warn!(
                "remote-peer-id" = %self.peer.id,
                "remote-peer-cluster-id" = remote_cluster,
                "local-member-id" = %settings.member,
                "local-member-cluster-id" = %settings.cluster,
                error = %failed,
                "request sent was ignored by remote peer due to cluster ID mismatch"
            );
        }
    }
}
