//! Plain HTTP on the client port and on the metrics port.
//!
//! Decides which paths exist where, who may ask (origins, host names), and what a probe hears. The
//! checks behind a probe are reads of the same state that clients read, so they fail when those do.
//!
//! ```text
//!   client port --> access (origin, host) --+--> /health /livez /readyz --> health --> api::Member
//!                                           +--> /version, /debug/vars
//!   metrics port ---------------------------+--> /metrics --------------> the process registry
//! ```
//!
//! Invariants
//! - H1 The metrics port serves metrics and health and nothing else, whatever the paths are on the
//!   client port.
//! - H2 No probe waits longer than a request may.
//!
//! Deliberately absent: the JSON gateway (`/v3/` is not found), profiles, TLS.
//!
//! Source: etcd `server/etcdserver/api/etcdhttp` and `server/embed/serve.go`.

mod access;
mod body;
mod health;
mod historical;
mod metrics;

use std::sync::Arc;

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use serde_json::json;

use crate::api::{
    ETCD_VERSION, Edge,
    member::{Member, State},
};

pub use access::Access;
pub use body::Body;
pub use metrics::register_metrics;

/// Which paths a port has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// Everything.
    Client,
    /// Metrics and health.
    Metrics,
}

/// Answers plain HTTP requests about one member.
#[derive(Debug)]
pub struct Http<M> {
    edge: Arc<Edge<M>>,
    access: Access,
}

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const NO_SNIFF: (HeaderName, HeaderValue) =
    (http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));

impl<M: Member> Http<M> {
    /// Answers about the member of `edge` to whom `access` allows it.
    pub const fn new(edge: Arc<Edge<M>>, access: Access) -> Self {
        Self { edge, access }
    }

    /// Answers one request. Its body is never read.
    pub async fn call<B>(&self, surface: Surface, request: Request<B>) -> Response<Body> {
        match surface {
            Surface::Metrics => self.route(surface, &request).await,
            Surface::Client => {
                if let Some(refused) = self.access.check_host(&request) {
                    return refused;
                }
                let mut response = if request.method() == Method::OPTIONS {
                    Response::new(Body::Empty)
                } else {
                    self.route(surface, &request).await
                };
                self.access.add_cors(request.headers(), response.headers_mut());
                response
            }
        }
    }

    async fn route<B>(&self, surface: Surface, request: &Request<B>) -> Response<Body> {
        let path = request.uri().path();
        match path {
            "/metrics" => return metrics::serve(),
            "/version" if surface == Surface::Client => {
                return get_only(request).unwrap_or_else(|| self.version());
            }
            "/debug/vars" if surface == Surface::Client => {
                return get_only(request).unwrap_or_else(|| self.variables());
            }
            _ => {}
        }
        match health::Probe::at(path) {
            Some(probe) => match get_only(request) {
                Some(refused) => refused,
                None => probe.run(&self.edge, request.uri().query().unwrap_or_default()).await,
            },
            None => error(StatusCode::NOT_FOUND, "404 page not found"),
        }
    }

    fn version(&self) -> Response<Body> {
        let state = self.edge.member.published();
        let cluster = state.cluster_version().unwrap_or_else(|| "not_decided".to_owned());
        let storage = state.storage_version().unwrap_or_else(|| "unknown".to_owned());
        let versions =
            json!({ "etcdserver": ETCD_VERSION, "etcdcluster": cluster, "storage": storage });
        content(HeaderValue::from_static("application/json"), versions.to_string())
    }

    /// What Go's `expvar` would show, as far as there is a counterpart.
    fn variables(&self) -> Response<Body> {
        let position = self.edge.member.position();
        let leads = position.member == position.leader;
        let member = position.member.to_string();
        let progress = if leads {
            json!({ member.as_str(): {
                "match": position.committed.0,
                "next": position.committed.0 + 1,
                "state": "StateReplicate",
            }})
        } else {
            json!({})
        };
        let variables = json!({
            "cmdline": std::env::args().collect::<Vec<_>>(),
            "file_descriptor_limit": metrics::descriptors_max(),
            "memstats": {},
            "raft.status": {
                "id": member,
                "term": position.term.0,
                "vote": position.leader.to_string(),
                "commit": position.committed.0,
                "lead": position.leader.to_string(),
                "raftState": if leads { "StateLeader" } else { "StateFollower" },
                "applied": position.applied.0,
                "progress": progress,
                "leadtransferee": "0",
            },
        });
        let mut text = variables.to_string();
        text.push('\n');
        content(HeaderValue::from_static("application/json; charset=utf-8"), text)
    }
}

/// The refusal of any method but GET.
fn get_only<B>(request: &Request<B>) -> Option<Response<Body>> {
    if request.method() == Method::GET {
        return None;
    }
    let mut refused = error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    Some(refused)
}

fn content(kind: HeaderValue, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Content(text.into()));
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A failure as Go's `http.Error` writes it.
fn error(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = content(TEXT, format!("{text}\n"));
    *response.status_mut() = status;
    let (name, value) = NO_SNIFF;
    response.headers_mut().insert(name, value);
    response
}
