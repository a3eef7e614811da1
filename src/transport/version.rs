//! Which versions of etcd a member talks to.
//!
//! Decides from the two versions that a peer names: that of its server, and the oldest cluster
//! version that it can be in.
//!
//! Source: etcd `server/etcdserver/api/rafthttp/util.go`, `stream.go`.

use http::HeaderMap;

/// The oldest cluster version that this server can be in.
///
/// Source: etcd `api/version/version.go`.
pub(super) const MIN_CLUSTER_VERSION: &str = "3.0.0";

/// What a peer without a version has.
const UNNAMED: &str = "2.0.0";

/// A version without its patch, which decides nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Minor(u64, u64);

impl Minor {
    /// Reads `3.7.1`; `None` if it is not a version.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let core = text.split(['-', '+']).next()?;
        let mut parts = core.splitn(3, '.').map(str::parse::<u64>);
        let (major, minor, patch) = (parts.next()?, parts.next()?, parts.next()?);
        patch.ok()?;
        Some(Self(major.ok()?, minor.ok()?))
    }

    /// The version that the header `name` has.
    fn of(headers: &HeaderMap, name: &str) -> Option<Self> {
        let text = headers.get(name).map_or(Ok(UNNAMED), |value| value.to_str());
        text.ok().and_then(Self::parse)
    }
}

/// Whether a peer with these headers and a server of version `local` understand each other.
pub(super) fn is_compatible(local: &str, headers: &HeaderMap) -> bool {
    let local = Minor::parse(local).expect("our own version is one");
    let oldest = Minor::parse(MIN_CLUSTER_VERSION).expect("a constant");
    let server = Minor::of(headers, "X-Server-Version");
    let cluster = Minor::of(headers, "X-Min-Cluster-Version");
    match (server, cluster) {
        (Some(server), Some(cluster)) => oldest <= server && cluster <= local,
        _ => false,
    }
}

/// Whether the peer whose answer has these headers offers streams to a server of version `local`;
/// both kinds have come together.
pub(super) fn offers_stream(local: &str, headers: &HeaderMap) -> bool {
    let local = Minor::parse(local).expect("our own version is one");
    Minor::of(headers, "X-Server-Version").is_some_and(|remote| {
        local <= remote || Minor(2, 1) <= remote && (remote <= Minor(2, 3) || Minor(3, 0) <= remote)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(server: &'static str, cluster: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("X-Server-Version", server.parse().expect("a value"));
        headers.insert("X-Min-Cluster-Version", cluster.parse().expect("a value"));
        headers
    }

    #[test]
    fn versions_that_have_a_cluster_version_in_common_understand_each_other() {
        assert!(is_compatible("3.7.1", &headers("3.7.1", "3.0.0")));
        assert!(is_compatible("3.7.1", &headers("3.4.23", "3.0.0")));
        assert!(is_compatible("3.7.1", &headers("3.9.0-alpha.0", "3.7.0")));
        assert!(!is_compatible("3.7.1", &headers("3.9.0", "3.8.0")));
        assert!(!is_compatible("3.7.1", &headers("2.3.8", "2.1.0")));
        assert!(!is_compatible("3.7.1", &headers("three", "3.0.0")));
        assert!(!is_compatible("3.7.1", &HeaderMap::new()));
    }

    #[test]
    fn a_peer_without_a_version_offers_no_streams() {
        assert!(offers_stream("3.7.1", &headers("3.4.0", "")));
        assert!(offers_stream("3.7.1", &headers("3.8.0", "")));
        assert!(!offers_stream("3.7.1", &HeaderMap::new()));
    }
}
