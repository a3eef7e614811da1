//! Connections to peers, and the requests that go over them.
//!
//! Decides how a peer's URL becomes a connection, which headers every request has, and what an
//! answer to a message means. Used by `reader`, `pipeline` and `snapshot_sender`.
//!
//! Source: etcd `server/etcdserver/api/rafthttp/util.go`.

use std::{error::Error, fmt, io, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, request};
use http_body::Body;
use http_body_util::{BodyExt as _, Limited};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::error;

use super::{peer::Peer, shared::Shared, socket::Socket, version::MIN_CLUSTER_VERSION};
use crate::base::task;

/// How long a connection may take to come about.
///
/// Source: etcd `server/config/config.go`, `peerDialTimeout`, with the default election timeout.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// What is read of an answer that should be a sentence.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Why a peer could not be asked, or did not do what it was asked for.
#[derive(Debug)]
pub(super) enum PeerError {
    /// The URL is not one that can be reached.
    Url(String),
    /// Nothing came in time.
    TimedOut,
    /// The system refused.
    Io(io::Error),
    /// The connection failed, or its bytes are not HTTP.
    Http(hyper::Error),
    /// The peer does not talk to servers of this version.
    IncompatibleVersion,
    /// The peer belongs to another cluster.
    ClusterIdMismatch,
    /// A precondition failed that is not known here.
    Precondition(String),
    /// The peer knows that this member was removed.
    Removed,
    /// The peer does not know this member.
    NotFound(String),
    /// The peer offers no streams of this kind.
    UnsupportedStream,
    /// Another answer.
    Status(StatusCode),
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => write!(f, "cannot reach peers at {url:?}"),
            Self::TimedOut => f.write_str("i/o timeout"),
            Self::Io(error) => write!(f, "{error}"),
            Self::Http(error) => match error.source() {
                Some(cause) => write!(f, "{error}: {cause}"),
                None => write!(f, "{error}"),
            },
            Self::IncompatibleVersion => f.write_str("incompatible version"),
            Self::ClusterIdMismatch => f.write_str("cluster ID mismatch"),
            Self::Precondition(text) => {
                write!(f, "unhandled error {text:?} when precondition failed")
            }
            Self::Removed => {
                f.write_str("the member has been permanently removed from the cluster")
            }
            Self::NotFound(text) => f.write_str(text),
            Self::UnsupportedStream => f.write_str("unsupported stream type"),
            Self::Status(status) => write!(f, "unhandled http status {}", status.as_u16()),
        }
    }
}

impl Error for PeerError {}

impl From<io::Error> for PeerError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<hyper::Error> for PeerError {
    fn from(error: hyper::Error) -> Self {
        Self::Http(error)
    }
}

/// A connection on which requests are made, one after the other.
#[derive(Debug)]
pub(super) struct Connection<B> {
    pub(super) requests: SendRequest<B>,
    /// What moves its bytes.
    _driver: AbortOnDropHandle<()>,
}

/// Connects to the peer at `url`; a write there may wait for `patience`.
///
/// # Errors
/// - [`PeerError`] if it cannot be reached.
pub(super) async fn connect<B>(url: &str, patience: Duration) -> Result<Connection<B>, PeerError>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (host, port) = address(url).ok_or_else(|| PeerError::Url(url.to_owned()))?;
    let stream = timeout(DIAL_TIMEOUT, TcpStream::connect((host.as_str(), port))).await;
    let stream = stream.map_err(|_elapsed| PeerError::TimedOut)??;
    let io = TokioIo::new(Socket::new(stream, patience)?);
    let (requests, connection) = http1::Builder::new().handshake(io).await?;
    // Whoever waits for an answer hears of a failure.
    let driver = task::spawn(async move { drop(connection.await) });
    Ok(Connection { requests, _driver: AbortOnDropHandle::new(driver) })
}

/// Where the URL leads.
fn address(url: &str) -> Option<(String, u16)> {
    let uri: Uri = url.parse().ok()?;
    if uri.scheme_str() != Some("http") {
        return None;
    }
    // An address of version 6 stands in brackets.
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    Some((host.to_owned(), uri.port_u16().unwrap_or(80)))
}

/// A request to the peer at `url`, with the headers by which it knows us.
pub(super) fn request(shared: &Shared, method: Method, url: &str, path: &str) -> request::Builder {
    let settings = &shared.settings;
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest.trim_end_matches('/'));
    let mut builder = Request::builder()
        .method(method)
        .uri(path)
        .header("Host", authority)
        .header("X-Server-From", settings.member.to_string())
        .header("X-Server-Version", settings.server_version)
        .header("X-Min-Cluster-Version", MIN_CLUSTER_VERSION)
        .header("X-Etcd-Cluster-ID", settings.cluster.to_string());
    if !settings.peer_urls.is_empty() {
        builder = builder.header("X-PeerURLs", settings.peer_urls.join(","));
    }
    builder
}

/// What `peer` says to a message that was posted to it.
///
/// # Errors
/// - [`PeerError`] unless it took the message.
pub(super) async fn check_posted(
    shared: &Shared,
    peer: &Peer,
    answer: Response<Incoming>,
) -> Result<(), PeerError> {
    let status = answer.status();
    let remote_cluster = cluster_of(&answer);
    let text = sentence(answer).await?;
    let failed = match status {
        StatusCode::NO_CONTENT => return Ok(()),
        StatusCode::FORBIDDEN => PeerError::Removed,
        StatusCode::PRECONDITION_FAILED => precondition(&text),
        other => PeerError::Status(other),
    };
    if let PeerError::IncompatibleVersion = failed {
        error!("remote-peer-id" = %peer.id, "request sent was ignored by peer");
    } else if let PeerError::ClusterIdMismatch = failed {
        error!(
            "remote-peer-id" = %peer.id,
            "remote-peer-cluster-id" = remote_cluster,
            "local-member-cluster-id" = %shared.settings.cluster,
            "request sent was ignored due to cluster ID mismatch"
        );
    } else if let PeerError::Removed = failed {
        shared.report_removed();
    }
    Err(failed)
}

/// The cluster that an answer names.
pub(super) fn cluster_of(answer: &Response<Incoming>) -> String {
    let header = answer.headers().get("X-Etcd-Cluster-ID");
    header.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// Which precondition a peer says has failed.
pub(super) fn precondition(text: &str) -> PeerError {
    match text {
        "incompatible version" => PeerError::IncompatibleVersion,
        "cluster ID mismatch" => PeerError::ClusterIdMismatch,
        other => PeerError::Precondition(other.to_owned()),
    }
}

/// The text of an answer, without the end of its line.
///
/// # Errors
/// - [`PeerError`] if it does not come, or is too long.
pub(super) async fn sentence(answer: Response<Incoming>) -> Result<String, PeerError> {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect();
    let collected = timeout(super::socket::SILENCE_MAX, body).await;
    let bytes: Bytes = match collected.map_err(|_elapsed| PeerError::TimedOut)? {
        Ok(collected) => collected.to_bytes(),
        Err(_) => return Err(PeerError::Status(status)),
    };
    Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_peers_have_a_host_and_a_port() {
        assert_eq!(address("http://127.0.0.1:2380"), Some(("127.0.0.1".to_owned(), 2380)));
        assert_eq!(address("http://[::1]:2380"), Some(("::1".to_owned(), 2380)));
        assert_eq!(address("http://etcd-0.etcd"), Some(("etcd-0.etcd".to_owned(), 80)));
        assert_eq!(address("https://127.0.0.1:2380"), None);
        assert_eq!(address("127.0.0.1:2380"), None);
        assert_eq!(address(""), None);
    }
}
