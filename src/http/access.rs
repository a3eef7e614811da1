//! Who may use plain HTTP on the client port.
//!
//! Decides which origins a browser may call from, and which host names a request may name. The
//! latter keeps a web page from reaching a local member by rebinding a name of its own (CVE-2018-5702).
//! An empty list allows everybody, as does a star.
//!
//! Source: etcd `server/etcdserver/server_access_control.go` and `server/embed/serve.go`.

use std::collections::BTreeSet;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use tracing::warn;

use super::{body::Body, error};

/// The two lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    origins: BTreeSet<String>,
    hosts: BTreeSet<String>,
}

const CORS: [(HeaderName, HeaderValue); 2] = [
    (
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE"),
    ),
    (
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("accept, content-type, authorization"),
    ),
];

impl Access {
    /// Allows these origins (`--cors`) and host names (`--host-whitelist`).
    #[must_use]
    pub const fn new(origins: BTreeSet<String>, hosts: BTreeSet<String>) -> Self {
        Self { origins, hosts }
    }

    pub(super) fn add_cors(&self, request: &HeaderMap, response: &mut HeaderMap) {
        let origin = if self.origins.is_empty() || self.origins.contains("*") {
            HeaderValue::from_static("*")
        } else {
            let Some(origin) = request.get(header::ORIGIN) else { return };
            let known = origin.to_str().is_ok_and(|origin| self.origins.contains(origin));
            if !known {
                return;
            }
            origin.clone()
        };
        response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        for (name, value) in CORS {
            response.insert(name, value);
        }
    }

    pub(super) fn check_host<B>(&self, request: &Request<B>) -> Option<Response<Body>> {
        let host = host_name(request);
        if self.hosts.is_empty() || self.hosts.contains("*") || self.hosts.contains(host) {
            return None;
        }
        warn!(host, "rejecting HTTP request to prevent DNS rebinding attacks");
        Some(error(StatusCode::MISDIRECTED_REQUEST, &misdirected(host)))
    }
}

/// The host that the request names, without its port.
fn host_name<B>(request: &Request<B>) -> &str {
    let header = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = header.or_else(|| request.uri().authority().map(http::uri::Authority::as_str));
    let host = host.unwrap_or_default();
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

fn misdirected(host: &str) -> String {
    format!(
        "\noxetcd received this request, but does not know the host name in it.\n\n\
         To allow it, either\n\
         - use TLS: then every host name is allowed, or\n\
         - add the name to the list of known ones:\n  \
           oxetcd --host-whitelist {host:?}\n\n\
         This keeps web pages from reaching a member by DNS rebinding (CVE-2018-5702).\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(items: &[&str]) -> BTreeSet<String> {
        items.iter().map(|item| (*item).to_owned()).collect()
    }

    fn request(name: HeaderName, value: &str) -> Request<()> {
        Request::builder().header(name, value).body(()).expect("a request")
    }

    #[test]
    fn unknown_host_is_told_how_to_become_known() {
        let access = Access::new(set(&[]), set(&["localhost"]));
        assert!(access.check_host(&request(header::HOST, "localhost:2379")).is_none());
        let refused = access.check_host(&request(header::HOST, "evil:80")).expect("refused");
        assert_eq!(refused.status(), StatusCode::MISDIRECTED_REQUEST);
        let Body::Content(text) = refused.into_body() else { panic!("a text") };
        let text = String::from_utf8(text.to_vec()).expect("a text");
        assert!(text.contains("CVE-2018-5702") && text.contains("--host-whitelist \"evil\""));
    }

    #[test]
    fn empty_lists_allow_everybody() {
        let access = Access::default();
        assert!(access.check_host(&request(header::HOST, "anything")).is_none());
        let mut headers = HeaderMap::new();
        access.add_cors(&HeaderMap::new(), &mut headers);
        assert_eq!(headers["access-control-allow-origin"], "*");
    }

    #[test]
    fn listed_origin_is_echoed_and_others_get_nothing() {
        let access = Access::new(set(&["http://a"]), set(&[]));
        for (origin, allowed) in [("http://a", true), ("http://b", false)] {
            let mut headers = HeaderMap::new();
            access.add_cors(request(header::ORIGIN, origin).headers(), &mut headers);
            assert_eq!(headers.contains_key("access-control-allow-methods"), allowed, "{origin}");
        }
    }
}
