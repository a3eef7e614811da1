//! Requests that bring messages, and requests for streams of them.
//!
//! Decides which peers are listened to, and what the others are told. Called by `routes`.
//!
//! Source: etcd `server/etcdserver/api/rafthttp/http.go`.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;
use prost::Message as _;
use proto::raftpb::Message;
use tracing::{debug, warn};

use super::{
    body::read_body,
    kind::StreamKind,
    metrics,
    outlet::Granted,
    replies::{Reply, SERVER_VERSION, closing, empty, error, method_not_allowed, of_cluster},
    shared::Shared,
    version::{self, MIN_CLUSTER_VERSION},
};
use crate::model::MemberId;

/// The largest message that comes in a request of its own. Entries of such size have no place in a
/// log.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Why a peer is not listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Incompatible {
    /// Its server is too old, or too new.
    Version,
    /// It belongs to another cluster.
    Cluster,
}

impl Incompatible {
    /// What it is told.
    pub(super) fn reply(self) -> Reply {
        error(
            StatusCode::PRECONDITION_FAILED,
            match self {
                Self::Version => "incompatible version",
                Self::Cluster => "cluster ID mismatch",
            },
        )
    }
}

/// Takes one message.
pub(super) async fn message(
    shared: &Shared,
    remote: SocketAddr,
    request: Request<Incoming>,
) -> Reply {
    if request.method() != Method::POST {
        return method_not_allowed("POST");
    }
    let reply = match take_message(shared, remote, request).await {
        Ok(()) => empty(StatusCode::NO_CONTENT),
        Err(reply) => *reply,
    };
    of_cluster(reply, shared.settings.cluster)
}

async fn take_message(
    shared: &Shared,
    remote: SocketAddr,
    request: Request<Incoming>,
) -> Result<(), Box<Reply>> {
    let local = shared.settings.member;
    check_compatible(shared, request.headers()).map_err(|failed| Box::new(failed.reply()))?;
    learn_of_sender(shared, request.headers());
    let bad_request = |text| {
        metrics::received_failures_at(remote).inc();
        Box::new(error(StatusCode::BAD_REQUEST, text))
    };
    let bytes = read_body(request.into_body(), MESSAGE_BYTES_MAX, &shared.room_for_bodies)
        .await
        .map_err(|error| {
            warn!("local-member-id" = %local, %error, "failed to read Raft message");
            bad_request("error reading raft message")
        })?;
    let length = bytes.len() as u64;
    let message = Message::decode(bytes).map_err(|error| {
        warn!("local-member-id" = %local, %error, "failed to unmarshal Raft message");
        bad_request("error unmarshalling raft message")
    })?;
    shared.count_received(MemberId(message.from()), length);
    shared.receive(message).map_err(|refused| {
        warn!("local-member-id" = %local, error = refused.text(), "failed to process Raft message");
        // Not 403, which the sender would take for its own end.
        let text = "error processing raft message";
        Box::new(closing(error(StatusCode::INTERNAL_SERVER_ERROR, text)))
    })
}

/// Grants a stream.
///
/// # Errors
/// With the answer to a request that is refused.
pub(super) fn stream(shared: &Shared, request: &Request<Incoming>) -> Result<Granted, Box<Reply>> {
    if request.method() != Method::GET {
        return Err(Box::new(method_not_allowed("GET")));
    }
    let (cluster, version) = (shared.settings.cluster, shared.settings.server_version);
    grant(shared, request).map_err(|mut reply| {
        reply.headers_mut().insert(SERVER_VERSION, HeaderValue::from_static(version));
        Box::new(of_cluster(*reply, cluster))
    })
}

fn grant(shared: &Shared, request: &Request<Incoming>) -> Result<Granted, Box<Reply>> {
    let refuse = |status, text| Box::new(error(status, text));
    let local = shared.settings.member;
    check_compatible(shared, request.headers()).map_err(|failed| Box::new(failed.reply()))?;
    let path = request.uri().path();
    let (endpoint, from) = path.rsplit_once('/').unwrap_or(("", path));
    let Some(kind) = StreamKind::ALL.into_iter().find(|kind| kind.endpoint() == endpoint) else {
        debug!("local-member-id" = %local, path, "ignored unexpected streaming request path");
        return Err(refuse(StatusCode::NOT_FOUND, "invalid path"));
    };
    let Some(from) = member_id(from) else {
        warn!("local-member-id" = %local, path = from, "failed to parse path into ID");
        return Err(refuse(StatusCode::NOT_FOUND, "invalid from"));
    };
    if shared.local().is_removed(from) {
        warn!(
            "local-member-id" = %local,
            "remote-peer-id-stream-handler" = %local,
            "remote-peer-id-from" = %from,
            "rejected stream from remote peer because it was removed"
        );
        return Err(refuse(StatusCode::GONE, "removed member"));
    }
    let Some(peer) = shared.member(from) else {
        if let Some(urls) = header(request.headers(), "X-PeerURLs") {
            shared.add_remote(from, urls);
        }
        warn!(
            "local-member-id" = %local,
            "remote-peer-id-stream-handler" = %local,
            "remote-peer-id-from" = %from,
            "cluster-id" = %shared.settings.cluster,
            "failed to find remote peer in cluster"
        );
        return Err(refuse(StatusCode::NOT_FOUND, "error sender not found"));
    };
    let to = header(request.headers(), "X-Raft-To").unwrap_or_default();
    if to != local.to_string() {
        warn!(
            "local-member-id" = %local,
            "remote-peer-id-stream-handler" = %local,
            "remote-peer-id-header" = to,
            "remote-peer-id-from" = %from,
            "cluster-id" = %shared.settings.cluster,
            "ignored streaming request; ID mismatch"
        );
        return Err(refuse(StatusCode::PRECONDITION_FAILED, "to field mismatch"));
    }
    Ok(Granted { peer, kind })
}

/// Whether the peer with these headers is listened to.
///
/// # Errors
/// - [`Incompatible`] if not.
pub(super) fn check_compatible(shared: &Shared, headers: &HeaderMap) -> Result<(), Incompatible> {
    let settings = &shared.settings;
    let named = |name| header(headers, name).unwrap_or_default();
    let failed = if !version::is_compatible(settings.server_version, headers) {
        Incompatible::Version
    } else if named("X-Etcd-Cluster-ID") != settings.cluster.to_string() {
        Incompatible::Cluster
    } else {
        return Ok(());
    };
    let text = match failed {
        Incompatible::Version => "failed version compatibility check",
        Incompatible::Cluster => "request cluster ID mismatch",
    };
    warn!(
        "local-member-id" = %settings.member,
        "local-member-cluster-id" = %settings.cluster,
        "local-member-server-version" = settings.server_version,
        "local-member-server-minimum-cluster-version" = MIN_CLUSTER_VERSION,
        "remote-peer-server-name" = named("X-Server-From"),
        "remote-peer-server-version" = named("X-Server-Version"),
        "remote-peer-server-minimum-cluster-version" = named("X-Min-Cluster-Version"),
        "remote-peer-cluster-id" = named("X-Etcd-Cluster-ID"),
        "{text}"
    );
    Err(failed)
}

/// Remembers where the sender of a request can be reached.
pub(super) fn learn_of_sender(shared: &Shared, headers: &HeaderMap) {
    let from = header(headers, "X-Server-From").and_then(member_id);
    if let (Some(from), Some(urls)) = (from, header(headers, "X-PeerURLs")) {
        shared.add_remote(from, urls);
    }
}

/// A header that says something.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().filter(|value| !value.is_empty())
}

/// The member that hexadecimal digits name.
fn member_id(text: &str) -> Option<MemberId> {
    let is_plain = !text.starts_with('+');
    u64::from_str_radix(text, 16).ok().filter(|_| is_plain).map(MemberId)
}
