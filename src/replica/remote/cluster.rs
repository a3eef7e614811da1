//! Members and versions of a cluster, as its members tell them.
//!
//! Decides that any member's word about the membership is as good as another's, and that a member
//! is asked on each of its URLs until one answers.

use std::{fmt, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};

use crate::{
    base::error::chain,
    cluster::{Member, Versions},
    model::ClusterId,
    transport::{PeerReply, PeerRequest, RequestError},
};

/// A cluster, as one of its members described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteCluster {
    /// Its id.
    pub id: ClusterId,
    /// Its members, at least one.
    pub members: Vec<Member>,
}

/// Why nobody described the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteClusterError {
    /// Nobody gave an answer that can be read.
    NoAnswer,
    /// Whoever answered knows of no members.
    NoMembers,
}

impl fmt::Display for RemoteClusterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAnswer => "could not retrieve cluster information from the given URLs",
            Self::NoMembers => "failed to get raft cluster member(s) from the given URLs",
        })
    }
}

impl std::error::Error for RemoteClusterError {}

/// Whether it is worth a line in the log that a member does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failures {
    /// Somebody ought to answer.
    Warned,
    /// Nobody needs to.
    Expected,
}

/// Asks at all of `urls` at once who the members of the cluster are; the first answer counts.
///
/// # Errors
/// - [`RemoteClusterError`] if there is none within `timeout`.
pub async fn cluster_at(
    urls: &[String],
    timeout: Duration,
    failures: Failures,
) -> Result<RemoteCluster, RemoteClusterError> {
    let mut answers: FuturesUnordered<_> = urls
        .iter()
        .map(|url| async move {
            let request = PeerRequest::get(url, "/members", timeout);
            (request.url().to_owned(), request.send().await)
        })
        .collect();
    while let Some((address, answer)) = answers.next().await {
        match answer.map_err(|error| chain(&error)).and_then(|reply| read_cluster(&reply)) {
            Ok(cluster) if cluster.members.is_empty() => return Err(RemoteClusterError::NoMembers),
            Ok(cluster) => return Ok(cluster),
            Err(error) if failures == Failures::Warned => {
                tracing::warn!(address, error, "failed to get cluster response");
            }
            Err(error) => tracing::debug!(address, error, "no cluster to be heard of yet"),
        }
    }
    Err(RemoteClusterError::NoAnswer)
}

fn read_cluster(reply: &PeerReply) -> Result<RemoteCluster, String> {
    let members = Member::list_from_json(&reply.body).map_err(|error| chain(&error))?;
    let id = u64::from_str_radix(&reply.cluster, 16)
        .map_err(|error| format!("the cluster id {:?} cannot be read: {error}", reply.cluster))?;
    Ok(RemoteCluster { id: ClusterId(id), members })
}

/// Asks a member for the versions of itself and of what it knows; `None` if it does not answer.
pub async fn versions_of(member: &Member, timeout: Duration) -> Option<Versions> {
    let versions = ask(member, "/version", timeout, |reply| {
        Versions::from_json(&reply.body).map_err(|error| chain(&error))
    });
    let versions = versions.await;
    if versions.is_none() {
        tracing::warn!("remote-member-id" = %member.id, "failed to get version");
    }
    versions
}

/// Asks the `others` of a cluster, one after the other, whether it is being downgraded. Their
/// answers are linearizable, so the first one counts.
pub async fn downgrade_is_enabled(others: &[Member], timeout: Duration) -> bool {
    for member in others {
        let enabled = ask(member, "/downgrade/enabled", timeout, |reply| match &reply.body[..] {
            b"true" => Ok(true),
            b"false" => Ok(false),
            other => Err(format!("{:?} is neither true nor false", other.escape_ascii())),
        });
        if let Some(enabled) = enabled.await {
            return enabled;
        }
        tracing::warn!("remote-member-id" = %member.id, "failed to get downgrade enabled status");
    }
    false
}

/// Asks a member at one URL after the other until `read` can make something of an answer.
async fn ask<T>(
    member: &Member,
    path: &str,
    timeout: Duration,
    read: impl Fn(&PeerReply) -> Result<T, String>,
) -> Option<T> {
    for url in &member.peer_urls {
        let request = PeerRequest::get(url, path, timeout);
        let address = request.url().to_owned();
        let answer: Result<_, RequestError> = request.send().await;
        match answer.map_err(|error| chain(&error)).and_then(|reply| read(&reply)) {
            Ok(answer) => return Some(answer),
            Err(error) => tracing::warn!(
                address,
                "remote-member-id" = %member.id,
                error,
                "failed to reach the peer URL"
            ),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::MemberId;

    #[test]
    fn a_cluster_is_read_from_body_and_header() {
        let reply = |cluster: &str, body: &'static str| PeerReply {
            status: 200,
            cluster: cluster.to_owned(),
            body: Bytes::from_static(body.as_bytes()),
        };
        let read = read_cluster(&reply("cdf818194e3a8c32", r#"[{"id":7,"peerURLs":["x"]}]"#));
        let read = read.expect("as an official member answers");
        assert_eq!(read.id, ClusterId(0xcdf8_1819_4e3a_8c32));
        assert_eq!(read.members[0].id, MemberId(7));
        for (cluster, body) in [("", "[]"), ("xyz", "[]"), ("1", "404 page not found\n")] {
            assert!(read_cluster(&reply(cluster, body)).is_err(), "{cluster:?} {body:?}");
        }
    }
}
