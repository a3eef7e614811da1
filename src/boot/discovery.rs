//! How the members of a new cluster find one another through another cluster of etcd.
//!
//! Decides who belongs to the new cluster: of all that register under its token, the first ones, as
//! many as the registry asks for. Called by `first_start` if `--discovery-endpoints` is set.
//!
//! ```text
//!   /_etcd/registry/<token>/_config/size          how many, written by the operator
//!   /_etcd/registry/<token>/members/<member id>   name=url,name=url of one member
//! ```
//!
//! Deliberately absent: TLS, users, and a watch: there is one look per second for a few members.
//!
//! Source: etcd `server/etcdserver/api/v3discovery/discovery.go`.

use std::{fmt, time::Duration};

use bytes::Bytes;
use proto::etcdserverpb::{PutRequest, RangeRequest, RangeResponse, kv_client::KvClient};
use tonic::{Status, transport::Channel, transport::Endpoint};

use crate::{
    config::{
        Discovery,
        bootstrap::{Members, shown},
    },
    model::MemberId,
};

/// Time between two looks for members that are missing.
const LOOK: Duration = Duration::from_secs(1);

/// After so many failures the pause between them does not double any more.
const DOUBLINGS_MAX: u32 = 8;

/// Why the members were not found.
#[derive(Debug)]
pub(super) enum DiscoveryError {
    /// Nobody said how many members there are to be.
    SizeNotFound,
    /// What was said is no number of members.
    BadSize,
    /// The cluster has its members already.
    Full,
    /// An endpoint cannot be dialed.
    Endpoint(String),
}

impl fmt::Display for DiscoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SizeNotFound => f.write_str("discovery: size key not found"),
            Self::BadSize => f.write_str("discovery: size key is bad"),
            Self::Full => f.write_str("discovery: cluster is full"),
            Self::Endpoint(endpoint) => {
                write!(f, "--discovery-endpoints has {endpoint}, which cannot be dialed")
            }
        }
    }
}

impl std::error::Error for DiscoveryError {}

/// One registered member.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Registered {
    key: Bytes,
    /// `name=url`, separated by commas.
    urls: String,
    /// Who came first.
    revision: i64,
}

/// The registry of one new cluster.
#[derive(Debug)]
struct Registry<'a> {
    clients: Vec<KvClient<Channel>>,
    prefix: String,
    discovery: &'a Discovery,
}

/// Registers `member` with what `own` says of it, and waits until the cluster is complete. Returns
/// the members in the form of `--initial-cluster`.
///
/// # Errors
/// - [`DiscoveryError`]; a registry that cannot be reached is asked again and again.
pub(super) async fn join_cluster(
    discovery: &Discovery,
    member: MemberId,
    own: &Members,
) -> Result<String, DiscoveryError> {
    let registry = Registry::new(discovery)?;
    let key = format!("{}/members/{member}", registry.prefix);
    registry.check(&key).await?;
    registry.register(&key, &shown(own)).await;
    let (size, mut members) = registry.check(&key).await?;
    tracing::info!(
        clusterSize = size,
        "found-peers" = members.len(),
        "waiting for peers from discovery service"
    );
    while members.len() < size {
        tokio::time::sleep(LOOK).await;
        members = registry.members().await;
    }
    members.truncate(size);
    let urls: Vec<_> = members.into_iter().map(|member| member.urls).collect();
    let cluster = urls.join(",");
    tracing::info!(cluster, "discovery joined cluster successfully");
    Ok(cluster)
}

impl<'a> Registry<'a> {
    fn new(discovery: &'a Discovery) -> Result<Self, DiscoveryError> {
        let dial = |endpoint: &String| {
            let url = if endpoint.contains("://") {
                endpoint.clone()
            } else {
                format!("http://{endpoint}")
            };
            let dialed = Endpoint::from_shared(url);
            let dialed = dialed.map_err(|_bad| DiscoveryError::Endpoint(endpoint.clone()))?;
            let dialed =
                dialed.connect_timeout(discovery.dial_timeout).timeout(discovery.request_timeout);
            Ok(KvClient::new(dialed.connect_lazy()))
        };
        Ok(Self {
            clients: discovery.endpoints.iter().map(dial).collect::<Result<_, _>>()?,
            prefix: format!("/_etcd/registry/{}", discovery.token),
            discovery,
        })
    }

    /// How many members there are to be, and who has registered; an error if the cluster is full
    /// without the one with this key.
    async fn check(&self, key: &str) -> Result<(usize, Vec<Registered>), DiscoveryError> {
        let size = self.size().await?;
        let members = self.members().await;
        if size <= members.len() && !members.iter().take(size).any(|member| member.key == key) {
            return Err(DiscoveryError::Full);
        }
        Ok((size, members))
    }

    async fn size(&self) -> Result<usize, DiscoveryError> {
        let key = format!("{}/_config/size", self.prefix);
        let found = self.range(key.into(), Bytes::new()).await;
        let found = found.kvs.first().ok_or(DiscoveryError::SizeNotFound)?;
        let size = std::str::from_utf8(&found.value).ok().and_then(|text| text.parse().ok());
        size.filter(|size| 0 < *size).ok_or(DiscoveryError::BadSize)
    }

    /// Who has registered, the first one first.
    async fn members(&self) -> Vec<Registered> {
        let first = format!("{}/members/", self.prefix);
        // The next text after all that begin so.
        let end = format!("{}/members0", self.prefix);
        registered(&self.range(first.into(), end.into()).await)
    }

    async fn register(&self, key: &str, urls: &str) {
        let request = PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(urls.as_bytes()),
            ..PutRequest::default()
        };
        self.until_answered("register member itself", |mut client| {
            let request = request.clone();
            async move { client.put(request).await }
        })
        .await;
        tracing::info!(memberKey = key, memberInfo = urls, "register member itself successfully");
    }

    async fn range(&self, key: Bytes, range_end: Bytes) -> RangeResponse {
        let request = RangeRequest { key, range_end, ..RangeRequest::default() };
        self.until_answered("cluster status check", |mut client| {
            let request = request.clone();
            async move { client.range(request).await }
        })
        .await
    }

    /// Asks one endpoint after the other, and then again after a pause, until there is an answer.
    async fn until_answered<T, F: Future<Output = Result<tonic::Response<T>, Status>>>(
        &self,
        reason: &str,
        ask: impl Fn(KvClient<Channel>) -> F,
    ) -> T {
        let mut failures = 0;
        loop {
            for (client, endpoint) in self.clients.iter().zip(&self.discovery.endpoints) {
                match ask(client.clone()).await {
                    Ok(answer) => return answer.into_inner(),
                    Err(error) => tracing::warn!(
                        endpoint,
                        error = error.message(),
                        "failed to reach the discovery service"
                    ),
                }
            }
            failures = DOUBLINGS_MAX.min(failures + 1);
            let backoff = Duration::from_secs(1 << failures);
            tracing::warn!(reason, ?backoff, "retry connecting to discovery service");
            tokio::time::sleep(backoff).await;
        }
    }
}

fn registered(found: &RangeResponse) -> Vec<Registered> {
    let mut members = Vec::new();
    for kv in &found.kvs {
        let urls = String::from_utf8_lossy(&kv.value).trim().to_owned();
        let key = String::from_utf8_lossy(&kv.key).into_owned();
        if urls.contains('=') {
            let revision = kv.create_revision;
            members.push(Registered { key: kv.key.clone(), urls, revision });
        } else {
            tracing::warn!(
                memberKey = key,
                memberInfo = urls,
                "invalid peer info returned from discovery service"
            );
        }
    }
    members.sort_by_key(|member| member.revision);
    members
}

#[cfg(test)]
mod tests {
    use proto::mvccpb::KeyValue;

    use super::*;

    #[test]
    fn members_are_those_that_came_first_and_can_be_read() {
        let kv = |key: &'static str, value: &'static str, create_revision| KeyValue {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::from_static(value.as_bytes()),
            create_revision,
            ..KeyValue::default()
        };
        let found = RangeResponse {
            kvs: vec![kv("a", " x=http://x:1 ", 7), kv("b", "junk", 5), kv("c", "y=http://y:1", 6)],
            ..RangeResponse::default()
        };
        let members = registered(&found);
        let urls: Vec<_> = members.iter().map(|member| member.urls.as_str()).collect();
        assert_eq!(urls, ["y=http://y:1", "x=http://x:1"]);
    }
}
