//! Single requests to a peer URL that are not raft's: membership, versions, leases, hashes.
//!
//! Decides how one request is made: a connection of its own or a kept one, a limit on the time for
//! all of it and on the bytes of the answer, no redirects. What the answers mean is the callers' business, who
//! are the start of a member, its duties and the forwarding of calls to the leader.
//!
//! Deliberately absent: retries, TLS.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::{
    client::legacy::{self, Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::net::TcpStream;

/// The header in which members name their cluster.
pub const CLUSTER_ID_HEADER: &str = "x-etcd-cluster-id";

/// Bytes of an answer that are taken if the caller sets no other limit: far more than the members
/// of any cluster need.
pub const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Idle connections that are kept with one peer: as many as calls are usually under way.
const KEPT_MAX: usize = 16;

/// A request that waits to be sent.
#[derive(Clone, Debug)]
pub struct PeerRequest {
    method: Method,
    url: String,
    headers: HeaderMap,
    body: Bytes,
    timeout: Duration,
    answer_bytes_max: usize,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerReply {
    /// The HTTP status.
    pub status: u16,
    /// The cluster of whoever answered, as its header has it; empty if there is none.
    pub cluster: String,
    /// All of the body.
    pub body: Bytes,
}

/// Why nothing came back.
#[derive(Debug)]
pub enum RequestError {
    /// The URL cannot be reached over TCP without TLS.
    Url(String),
    /// No connection.
    Connect(std::io::Error),
    /// The connection broke, or the answer is no HTTP.
    Http(hyper::Error),
    /// The same, over a kept connection.
    Kept(legacy::Error),
    /// The body ended early, or is longer than it may be.
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// It took too long.
    Timeout,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => write!(f, "{url} is not reachable over plain TCP"),
            Self::Connect(_) => f.write_str("cannot connect"),
            Self::Http(_) | Self::Kept(_) => f.write_str("the exchange failed"),
            Self::Body(_) => f.write_str("the answer cannot be read"),
            Self::Timeout => f.write_str("no answer in time"),
        }
    }
}

impl std::error::Error for RequestError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect(source) => Some(source),
            Self::Http(source) => Some(source),
            Self::Kept(source) => Some(source),
            Self::Body(source) => Some(&**source),
            Self::Url(_) | Self::Timeout => None,
        }
    }
}

impl PeerRequest {
    /// A `GET` of `peer_url` followed by `path`.
    #[must_use]
    pub fn get(peer_url: &str, path: &str, timeout: Duration) -> Self {
        Self {
            method: Method::GET,
            url: format!("{peer_url}{path}"),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            timeout,
            answer_bytes_max: ANSWER_BYTES_MAX,
        }
    }

    /// A `POST` to `peer_url` followed by `path`.
    #[must_use]
    pub fn post(peer_url: &str, path: &str, timeout: Duration) -> Self {
        Self { method: Method::POST, ..Self::get(peer_url, path, timeout) }
    }

    /// Adds a header. One whose value cannot be sent is left out.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }

    /// Gives it a body of the named type.
    #[must_use]
    pub fn body(mut self, content_type: &'static str, body: Bytes) -> Self {
        self.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        self.body = body;
        self
    }

    /// Takes answers of up to this many bytes.
    #[must_use]
    pub const fn answer_bytes_max(mut self, bytes: usize) -> Self {
        self.answer_bytes_max = bytes;
        self
    }

    /// Where it goes, for logs.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sends it and waits for the whole answer, whatever its status.
    ///
    /// # Errors
    /// - [`RequestError`] if none came in time.
    pub async fn send(self) -> Result<PeerReply, RequestError> {
        let timeout = self.timeout;
        tokio::time::timeout(timeout, self.exchange()).await.unwrap_or(Err(RequestError::Timeout))
    }

    async fn exchange(self) -> Result<PeerReply, RequestError> {
        let (authority, path) = split(&self.url)?;
        let stream = TcpStream::connect(authority).await.map_err(RequestError::Connect)?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(RequestError::Http)?;
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() =
            path.parse().map_err(|_malformed| RequestError::Url(self.url.clone()))?;
        *request.headers_mut() = self.headers.clone();
        let host = HeaderValue::from_str(authority);
        let host = host.map_err(|_malformed| RequestError::Url(self.url.clone()))?;
        request.headers_mut().insert(header::HOST, host);
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        let bytes_max = self.answer_bytes_max;
        let exchange = async move {
            let response = sender.send_request(request).await.map_err(RequestError::Http)?;
            read(response, bytes_max).await
        };
        // The connection has to be driven; how it ends after the answer is nobody's concern.
        let (reply, _ended) = futures::future::join(exchange, connection).await;
        reply
    }
}

async fn read(response: Response<Incoming>, bytes_max: usize) -> Result<PeerReply, RequestError> {
    let status = response.status().as_u16();
    let cluster = response.headers().get(CLUSTER_ID_HEADER);
    let cluster = cluster.and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let body = Limited::new(response.into_body(), bytes_max).collect().await;
    let body = body.map_err(RequestError::Body)?.to_bytes();
    Ok(PeerReply { status, cluster, body })
}

/// Connections that are kept from one request to the next, for calls that come often. Cheap to
/// clone.
#[derive(Clone, Debug)]
pub struct PeerConnections(Client<HttpConnector, Full<Bytes>>);

impl Default for PeerConnections {
    fn default() -> Self {
        let mut client = Client::builder(TokioExecutor::new());
        Self(client.pool_max_idle_per_host(KEPT_MAX).build_http())
    }
}

impl PeerConnections {
    /// Sends a request and waits for the whole answer, whatever its status.
    ///
    /// # Errors
    /// - [`RequestError`] if none came in time.
    pub async fn send(&self, request: PeerRequest) -> Result<PeerReply, RequestError> {
        let timeout = request.timeout;
        let answer = tokio::time::timeout(timeout, self.exchange(request)).await;
        answer.unwrap_or(Err(RequestError::Timeout))
    }

    async fn exchange(&self, request: PeerRequest) -> Result<PeerReply, RequestError> {
        split(&request.url)?;
        let mut sent = Request::new(Full::new(request.body));
        *sent.method_mut() = request.method;
        *sent.uri_mut() =
            request.url.parse().map_err(|_malformed| RequestError::Url(request.url.clone()))?;
        *sent.headers_mut() = request.headers;
        let response = self.0.request(sent).await.map_err(RequestError::Kept)?;
        read(response, request.answer_bytes_max).await
    }
}

/// `host:port` and the path of an `http` URL.
fn split(url: &str) -> Result<(&str, &str), RequestError> {
    let bad = || RequestError::Url(url.to_owned());
    let rest = url.strip_prefix("http://").ok_or_else(bad)?;
    let (authority, path) = rest.split_at(rest.find('/').ok_or_else(bad)?);
    let host_port = authority.rsplit_once('@').map_or(authority, |(_, host_port)| host_port);
    Ok((host_port, path))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::base::task;

    const SOON: Duration = Duration::from_secs(5);

    /// Runs `body` with a listener and its URL.
    fn with_listener<T>(body: impl AsyncFnOnce(TcpListener, String) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let url = format!("http://{}", listener.local_addr().expect("its address"));
            body(listener, url).await
        })
    }

    /// Runs `body` against a peer that answers one connection with `answer`; what it was sent.
    fn against(answer: &'static str, body: impl AsyncFnOnce(String)) -> String {
        with_listener(async |listener, url| {
            let peer = task::spawn(async move {
                let (mut stream, _) = listener.accept().await.expect("one connection");
                let mut received = vec![0; 4096];
                let length = stream.read(&mut received).await.expect("a request");
                stream.write_all(answer.as_bytes()).await.expect("answered");
                received.truncate(length);
                String::from_utf8(received).expect("text")
            });
            body(url).await;
            peer.await.expect("no panic")
        })
    }

    #[test]
    fn an_answer_comes_whole_with_status_and_cluster() {
        let answer =
            "HTTP/1.1 404 Not Found\r\nX-Etcd-Cluster-ID: 2a\r\nContent-Length: 3\r\n\r\nno\n";
        let sent = against(answer, async |url| {
            let request = PeerRequest::post(&url, "/x/1", SOON).header("authorization", "token");
            let reply = request.body("text/plain", Bytes::from_static(b"abc")).send().await;
            let expected = PeerReply {
                status: 404,
                cluster: "2a".to_owned(),
                body: Bytes::from_static(b"no\n"),
            };
            assert_eq!(reply.expect("an answer"), expected, "a refusal is an answer");
        });
        assert!(sent.starts_with("POST /x/1 HTTP/1.1\r\n"), "{sent}");
        for part in ["authorization: token\r\n", "content-type: text/plain\r\n", "\r\n\r\nabc"] {
            assert!(sent.contains(part), "{part:?} is missing in {sent:?}");
        }
    }

    #[test]
    fn a_kept_connection_serves_one_request_after_the_other() {
        with_listener(async |listener, url| {
            let peer = task::spawn(async move {
                let (mut stream, _) = listener.accept().await.expect("one connection");
                for _ in 0..2 {
                    let mut received = [0; 4096];
                    let length = stream.read(&mut received).await.expect("a request");
                    assert!(0 < length, "the connection was not kept");
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    stream.write_all(answer).await.expect("answered");
                }
            });
            let connections = PeerConnections::default();
            for _ in 0..2 {
                let reply = connections.send(PeerRequest::get(&url, "/x", SOON)).await;
                assert_eq!(&reply.expect("an answer").body[..], b"ok");
            }
            peer.await.expect("no panic");
        });
    }

    #[test]
    fn a_long_answer_is_cut_off() {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789";
        against(answer, async |url| {
            let request = PeerRequest::get(&url, "/", SOON).answer_bytes_max(8);
            let refused = request.send().await;
            assert!(matches!(refused, Err(RequestError::Body(_))), "{refused:?}");
        });
    }

    #[test]
    fn silence_ends_with_the_time() {
        with_listener(async |_listener, url| {
            let refused = PeerRequest::get(&url, "/", Duration::from_millis(20)).send().await;
            assert!(matches!(refused, Err(RequestError::Timeout)), "{refused:?}");
            for url in ["https://127.0.0.1:1", "unix://x"] {
                let refused = PeerRequest::get(url, "/", SOON).send().await;
                assert!(matches!(refused, Err(RequestError::Url(_))), "{url}: {refused:?}");
            }
        });
    }
}
