//! The paths of a peer URL.
//!
//! Decides which request goes where, and answers those that go nowhere as Go's HTTP library does.
//! Called by `server` for each request.
//!
//! ```text
//!   /raft, /raft/stream/..      --> incoming            messages
//!   /raft/snapshot              --> snapshot_receiver   databases
//!   /raft/probing               --> here                signs of life
//!   /members, /version, ..      --> Local::call         everything else
//! ```
//!
//! Source: etcd `server/etcdserver/api/etcdhttp/peer.go`, `rafthttp/transport.go`.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;
use tracing::warn;

use super::{
    PeerAnswer, PeerCall,
    body::{BodyError, read_body},
    incoming,
    outlet::Granted,
    replies::{Reply, TEXT, closing, content, error, method_not_allowed, of_cluster, redirect},
    shared::Shared,
    snapshot_receiver,
};
use crate::{base::log, model::MemberId};

/// The body of a request that is not raft's.
///
/// Source: etcd `server/lease/leasehttp/http.go`, `maxLeaseHTTPRequestSize`.
const CALL_BYTES_MAX: usize = 64 << 10;

/// Answers a request.
///
/// # Errors
/// No error: with a stream that is granted. It is answered by whoever takes over the connection.
pub(super) async fn route(
    shared: &Shared,
    remote: SocketAddr,
    request: Request<Incoming>,
) -> Result<Reply, Granted> {
    let path = request.uri().path();
    if let Some(location) = redirection(path) {
        let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
        let location = format!("{location}{query}");
        return Ok(redirect(&location, request.method() == Method::GET));
    }
    if path.starts_with("/raft/stream/") {
        return match incoming::stream(shared, &request) {
            Ok(granted) => Err(granted),
            Err(refused) => Ok(*refused),
        };
    }
    Ok(match path {
        "/raft" => incoming::message(shared, remote, request).await,
        "/raft/snapshot" => snapshot_receiver::receive(shared, remote, request).await,
        "/raft/probing" => probing(shared),
        _ => call(shared, request).await,
    })
}

/// Where Go's library would send whoever asks for `path`.
fn redirection(path: &str) -> Option<String> {
    match path {
        "/raft/stream" | "/members/promote" => Some(format!("{path}/")),
        _ => Some(clean(path)).filter(|cleaned| cleaned != path),
    }
}

/// The path without empty parts and parts of dots.
fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    let mut cleaned = format!("/{}", parts.join("/"));
    if path.ends_with('/') && cleaned != "/" {
        cleaned.push('/');
    }
    cleaned
}

/// Tells that this member is there, and what time it has.
fn probing(shared: &Shared) -> Reply {
    let now = log::timestamp(shared.clock.unix());
    content(StatusCode::OK, TEXT, format!("{{\"OK\":true,\"Now\":\"{now}\"}}\n"))
}

/// Asks the member behind the transport.
async fn call(shared: &Shared, request: Request<Incoming>) -> Reply {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let cluster = shared.settings.cluster;
    let answer = match (path, &parts.method) {
        ("/members", &Method::GET) => ask(shared, PeerCall::Members).await,
        ("/version", &Method::GET) => return ask(shared, PeerCall::Version).await,
        ("/downgrade/enabled", &Method::GET) => ask(shared, PeerCall::DowngradeEnabled).await,
        ("/members/hashkv", &Method::GET) => {
            if !is_of_cluster(&parts.headers, &cluster.to_string()) {
                return error(StatusCode::PRECONDITION_FAILED, "cluster ID mismatch");
            }
            match read_body(body, CALL_BYTES_MAX, &shared.room_for_bodies).await {
                Ok(body) => ask(shared, PeerCall::HashKv(body)).await,
                Err(_) => return error(StatusCode::BAD_REQUEST, "error reading body"),
            }
        }
        ("/members" | "/version" | "/downgrade/enabled" | "/members/hashkv", _) => {
            return method_not_allowed("GET");
        }
        ("/leases" | "/leases/internal", &Method::POST) => {
            return lease(shared, path, body).await;
        }
        ("/leases" | "/leases/internal", _) => {
            return error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        }
        _ => match path.strip_prefix("/members/promote/") {
            Some(_) if parts.method != Method::POST => return method_not_allowed("POST"),
            Some(id) => promote(shared, id).await,
            None => return error(StatusCode::NOT_FOUND, "404 page not found"),
        },
    };
    // Where etcd names the cluster only in an answer that is one.
    if path == "/members/hashkv" && answer.status() != StatusCode::OK {
        return answer;
    }
    of_cluster(answer, cluster)
}

async fn promote(shared: &Shared, id: &str) -> Reply {
    // Go's numbers have no sign.
    match id.parse::<u64>().ok().filter(|_| !id.starts_with('+')) {
        Some(member) => ask(shared, PeerCall::Promote(MemberId(member))).await,
        None => error(StatusCode::NOT_FOUND, &format!("member {id} not found in cluster")),
    }
}

async fn lease(shared: &Shared, path: &str, body: Incoming) -> Reply {
    match read_body(body, CALL_BYTES_MAX, &shared.room_for_bodies).await {
        Ok(body) if path == "/leases" => ask(shared, PeerCall::Lease(body)).await,
        Ok(body) => ask(shared, PeerCall::LeaseTime(body)).await,
        Err(BodyError::TooLarge) => {
            closing(error(StatusCode::PAYLOAD_TOO_LARGE, "request body too large"))
        }
        Err(_) => error(StatusCode::BAD_REQUEST, "error reading body"),
    }
}

async fn ask(shared: &Shared, call: PeerCall) -> Reply {
    let PeerAnswer { status, content_type, body } = shared.local().call(call).await;
    let status = StatusCode::from_u16(status).unwrap_or_else(|_| {
        warn!(status, "an answer to a peer has no valid status");
        StatusCode::INTERNAL_SERVER_ERROR
    });
    content(status, HeaderValue::from_static(content_type), body)
}

/// Whether the request names this cluster, or none.
fn is_of_cluster(headers: &HeaderMap, cluster: &str) -> bool {
    let named = headers.get("X-Etcd-Cluster-ID").map_or(b"".as_slice(), HeaderValue::as_bytes);
    named.is_empty() || named == cluster.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_before_they_are_looked_up() {
        assert_eq!(redirection("/raft//probing"), Some("/raft/probing".to_owned()));
        assert_eq!(redirection("/raft/./probing"), Some("/raft/probing".to_owned()));
        assert_eq!(redirection("/raft/x/../probing/"), Some("/raft/probing/".to_owned()));
        assert_eq!(redirection("/members/promote"), Some("/members/promote/".to_owned()));
        assert_eq!(redirection("/raft/stream"), Some("/raft/stream/".to_owned()));
        for settled in ["/", "/raft", "/raft/", "/raft/stream/msgapp/1", "/members/"] {
            assert_eq!(redirection(settled), None, "{settled}");
        }
    }
}
