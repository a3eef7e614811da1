//! Hashes of the key history, as other members have them.
//!
//! Decides what a member's answer means to whoever compares hashes. Asked by the checks for
//! corruption.
//!
//! Source: etcd `server/etcdserver/corrupt.go`.

use std::{fmt, time::Duration};

use bytes::Bytes;
use serde::Deserialize;

use crate::{
    cluster::Member,
    model::{ClusterId, Revision},
    transport::{CLUSTER_ID_HEADER, PeerReply, PeerRequest},
};

use super::leader::shown;

/// A member's hash of its key history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteHash {
    /// The hash.
    pub hash: u32,
    /// The compaction that it was computed with; -1 before any.
    pub compact_revision: Revision,
    /// The newest revision that the member has.
    pub current: Revision,
}

/// Why a member gave no hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteHashError {
    /// It does not have the revision yet.
    Future,
    /// It does not have the revision any more.
    Compacted,
    /// It belongs to another cluster.
    OtherCluster,
    /// It did not answer, or not in a way that can be read.
    NoAnswer(String),
}

impl fmt::Display for RemoteHashError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Future => f.write_str("the revision is in its future"),
            Self::Compacted => f.write_str("the revision is compacted there"),
            Self::OtherCluster => f.write_str("it belongs to another cluster"),
            Self::NoAnswer(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for RemoteHashError {}

/// Asks `member` for its hash at `revision`, at one URL after the other.
///
/// # Errors
/// - [`RemoteHashError`] of the last URL, if none answered.
pub async fn hash_of(
    member: &Member,
    cluster: ClusterId,
    revision: Revision,
    timeout: Duration,
) -> Result<RemoteHash, RemoteHashError> {
    let mut last_error = RemoteHashError::NoAnswer("it has no peer URL".to_owned());
    for url in &member.peer_urls {
        let body = Bytes::from(format!(r#"{{"revision":{}}}"#, revision.0));
        let request = PeerRequest::get(url, "/members/hashkv", timeout)
            .header(CLUSTER_ID_HEADER, &cluster.to_string())
            .body("application/json", body);
        let reply = request.send().await;
        let reply = reply.map_err(|error| RemoteHashError::NoAnswer(error.to_string()));
        match reply.and_then(|reply| read(&reply)) {
            Ok(hash) => return Ok(hash),
            Err(error) => {
                tracing::warn!(
                    "requested-revision" = revision.0,
                    "remote-peer-endpoint" = url,
                    %error,
                    "failed hash kv request"
                );
                last_error = error;
            }
        }
    }
    Err(last_error)
}

/// What is missing is 0.
#[derive(Deserialize)]
struct Json {
    #[serde(default)]
    header: HeaderJson,
    #[serde(default)]
    hash: u32,
    #[serde(default)]
    compact_revision: i64,
}

#[derive(Default, Deserialize)]
struct HeaderJson {
    #[serde(default)]
    revision: i64,
}

fn read(reply: &PeerReply) -> Result<RemoteHash, RemoteHashError> {
    let text = String::from_utf8_lossy(&reply.body);
    match reply.status {
        200 => {
            let json: Json = serde_json::from_slice(&reply.body)
                .map_err(|error| RemoteHashError::NoAnswer(error.to_string()))?;
            Ok(RemoteHash {
                hash: json.hash,
                compact_revision: Revision(json.compact_revision),
                current: Revision(json.header.revision),
            })
        }
        400 if text.contains("required revision is a future revision") => {
            Err(RemoteHashError::Future)
        }
        400 if text.contains("required revision has been compacted") => {
            Err(RemoteHashError::Compacted)
        }
        412 => Err(RemoteHashError::OtherCluster),
        _ => Err(RemoteHashError::NoAnswer(shown(reply))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_official_members_are_understood() {
        let read = |status, body: &'static str| {
            let body = Bytes::from_static(body.as_bytes());
            read(&PeerReply { status, cluster: String::new(), body })
        };
        let answer = concat!(
            r#"{"header":{"revision":8},"hash":1090769097,"#,
            r#""compact_revision":-1,"hash_revision":3}"#
        );
        let hash = RemoteHash {
            hash: 1_090_769_097,
            compact_revision: Revision(-1),
            current: Revision(8),
        };
        assert_eq!(read(200, answer), Ok(hash));
        let future = read(400, "mvcc: required revision is a future revision\n");
        assert_eq!(future, Err(RemoteHashError::Future));
        let compacted = read(400, "mvcc: required revision has been compacted\n");
        assert_eq!(compacted, Err(RemoteHashError::Compacted));
        assert_eq!(read(412, "cluster ID mismatch\n"), Err(RemoteHashError::OtherCluster));
        assert!(matches!(read(404, "404 page not found\n"), Err(RemoteHashError::NoAnswer(_))));
    }
}
