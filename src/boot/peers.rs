//! What this member answers on its peer URLs beside raft's messages.
//!
//! Decides the status, type and body of each answer: they are what official members and tools read.
//! Paths, methods and the header of the cluster are the transport's. Called on the `peer` thread
//! through `local`; what takes long is done elsewhere.
//!
//! Source: etcd `server/etcdserver/api/etcdhttp/peer.go`, `server/lease/leasehttp/http.go`,
//! `server/etcdserver/corrupt.go`.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::{
        LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseTimeToLiveResponse, Member as PbMember,
        ResponseHeader,
    },
    leasepb::{LeaseInternalRequest, LeaseInternalResponse},
};
use serde_json::{Map, Value, json};

use crate::{
    api::{
        member::{HashedHistory, Member as _},
        status::{CallError, Refusal},
    },
    cluster::{Member, Versions},
    model::{LeaseId, MemberId, Rejection, Revision, Unavailable},
    transport::{PeerAnswer, PeerCall},
};

use super::member::LocalMember;

/// How long a lease's answer may wait for what has been committed.
///
/// Source: etcd `leasehttp.applyTimeout`.
const LEASE_WAIT_MAX: Duration = Duration::from_secs(1);

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/protobuf";
const BAD_REQUEST: &str = "error unmarshalling request";

/// Answers a peer, or an operator.
pub(super) async fn answer(member: LocalMember, call: PeerCall) -> PeerAnswer {
    match call {
        PeerCall::Members => members(&member),
        PeerCall::Version => version(&member),
        PeerCall::Promote(learner) => promote(&member, learner).await,
        PeerCall::HashKv(body) => hash_kv(&member, &body).await,
        PeerCall::DowngradeEnabled => downgrade_enabled(&member).await,
        PeerCall::Lease(body) => in_time(renew(&member, body)).await,
        PeerCall::LeaseTime(body) => in_time(lease_time(&member, body)).await,
    }
}

fn members(member: &LocalMember) -> PeerAnswer {
    let membership = &member.published().membership;
    let all: Vec<_> = membership.members().collect();
    ok(JSON, Member::list_to_json(&all))
}

fn version(member: &LocalMember) -> PeerAnswer {
    let state = member.published();
    let versions = Versions::of_this_server(state.cluster_version(), state.storage_version);
    ok(JSON, versions.to_json())
}

async fn promote(member: &LocalMember, learner: MemberId) -> PeerAnswer {
    match member.promote_member(learner).await {
        Ok(members) => ok(JSON, list_of(members)),
        Err(error) => {
            tracing::warn!("member-id" = %learner, %error, "failed to promote a member");
            refused_promotion(&error)
        }
    }
}

fn list_of(members: Vec<PbMember>) -> Bytes {
    let members: Vec<_> = members.into_iter().map(from_wire).collect();
    Member::list_to_json(&members.iter().collect::<Vec<_>>())
}

fn from_wire(member: PbMember) -> Member {
    Member {
        id: MemberId(member.id),
        name: member.name,
        peer_urls: member.peer_ur_ls,
        client_urls: member.client_ur_ls,
        is_learner: member.is_learner,
    }
}

fn refused_promotion(error: &CallError) -> PeerAnswer {
    match error {
        CallError::Rejected(Rejection::MemberNotFound { .. }) => {
            text(404, "membership: ID not found")
        }
        CallError::Rejected(Rejection::MemberNotLearner { .. }) => {
            text(412, "membership: can only promote a learner member")
        }
        CallError::Refused(Refusal::LearnerNotReady) => text(412, &error.to_string()),
        CallError::Refused(_) | CallError::Rejected(_) | CallError::Unavailable(_) => {
            let body = Bytes::from_static(br#"{"message":"Internal Server Error"}"#);
            PeerAnswer { status: 500, content_type: JSON, body }
        }
    }
}

async fn hash_kv(member: &LocalMember, body: &[u8]) -> PeerAnswer {
    let Some(revision) = read_hash_request(body) else { return text(400, BAD_REQUEST) };
    match member.hash_history(revision).await {
        Ok(hashed) => ok(JSON, hash_json(&hashed)),
        Err(error) => {
            tracing::warn!("requested-revision" = revision.0, %error, "failed to get hashKV");
            let shown = error.to_string();
            text(400, shown.split_once(": ").map_or(&*shown, |(_, text)| text))
        }
    }
}

/// As lenient as Go: names match without regard to case, what is missing or `null` is 0.
fn read_hash_request(body: &[u8]) -> Option<Revision> {
    let object: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let revision = object.iter().find(|(key, _)| key.eq_ignore_ascii_case("revision"));
    match revision.map(|(_, value)| value) {
        None | Some(Value::Null) => Some(Revision(0)),
        Some(value) => value.as_i64().map(Revision),
    }
}

/// Fields that are 0 are left out, as Go's encoder does with etcd's types.
fn hash_json(hashed: &HashedHistory) -> Bytes {
    let mut object = Map::new();
    object.insert("header".to_owned(), json!({ "revision": hashed.current.0 }));
    for (name, number) in [
        ("hash", i64::from(hashed.hash)),
        ("compact_revision", hashed.compacted.0),
        ("hash_revision", hashed.revision.0),
    ] {
        if number != 0 {
            object.insert(name.to_owned(), json!(number));
        }
    }
    Value::Object(object).to_string().into()
}

async fn downgrade_enabled(member: &LocalMember) -> PeerAnswer {
    match member.linearizable().await {
        Ok(state) => {
            let downgrade = state.membership.downgrade();
            let enabled = downgrade.is_some_and(|downgrade| downgrade.enabled);
            ok("text/plain", Bytes::from(enabled.to_string()))
        }
        Err(error) => text(500, &format!("failed linearized read: {}", CallError::from(error))),
    }
}

async fn in_time(answer: impl Future<Output = PeerAnswer>) -> PeerAnswer {
    let late = || text(408, "waiting for node to catch up its applied index has timed out");
    tokio::time::timeout(LEASE_WAIT_MAX, answer).await.unwrap_or_else(|_elapsed| late())
}

async fn renew(member: &LocalMember, body: Bytes) -> PeerAnswer {
    let Ok(request) = LeaseKeepAliveRequest::decode(body) else { return text(400, BAD_REQUEST) };
    match member.leases().renew_here(LeaseId(request.id)).await {
        Ok(Ok(ttl)) => {
            let answer = LeaseKeepAliveResponse { header: None, id: request.id, ttl };
            ok(PROTOBUF, answer.encode_to_vec().into())
        }
        Ok(Err(rejection)) => unknown_lease(&rejection),
        Err(unavailable) => not_primary(400, &unavailable),
    }
}

async fn lease_time(member: &LocalMember, body: Bytes) -> PeerAnswer {
    let Ok(request) = LeaseInternalRequest::decode(body) else { return text(400, BAD_REQUEST) };
    let request = request.lease_time_to_live_request.unwrap_or_default();
    match member.leases().time_to_live_here(LeaseId(request.id), request.keys).await {
        Ok(Ok(time)) => ok(PROTOBUF, lease_time_body(time)),
        Ok(Err(rejection)) => unknown_lease(&rejection),
        Err(unavailable) => not_primary(500, &unavailable),
    }
}

/// With an empty header, which official members expect to be there.
fn lease_time_body(time: LeaseTimeToLiveResponse) -> Bytes {
    let time = LeaseTimeToLiveResponse { header: Some(ResponseHeader::default()), ..time };
    LeaseInternalResponse { lease_time_to_live_response: Some(time) }.encode_to_vec().into()
}

fn unknown_lease(rejection: &Rejection) -> PeerAnswer {
    if matches!(rejection, Rejection::LeaseNotFound { .. }) {
        return text(404, "lease not found");
    }
    text(500, &CallError::from(rejection.clone()).to_string())
}

fn not_primary(status: u16, unavailable: &Unavailable) -> PeerAnswer {
    text(status, &CallError::from(unavailable.clone()).to_string())
}

const fn ok(content_type: &'static str, body: Bytes) -> PeerAnswer {
    PeerAnswer { status: 200, content_type, body }
}

/// A refusal as Go's server writes it: one line.
fn text(status: u16, line: &str) -> PeerAnswer {
    let body = Bytes::from(format!("{line}\n"));
    PeerAnswer { status, content_type: "text/plain; charset=utf-8", body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_asked_for_and_told_as_official_members_do() {
        for (body, revision) in [
            ("{}", Some(0)),
            (r#"{"revision":5}"#, Some(5)),
            (r#"{"Revision":null}"#, Some(0)),
            ("", None),
            ("x", None),
            (r#"{"revision":"5"}"#, None),
        ] {
            let read = read_hash_request(body.as_bytes());
            assert_eq!(read, revision.map(Revision), "{body:?}");
        }
        let hashed = HashedHistory {
            hash: 1_090_769_097,
            compacted: Revision(-1),
            revision: Revision(3),
            current: Revision(8),
        };
        // As an official 3.7.1 member answered.
        let expected = concat!(
            r#"{"header":{"revision":8},"hash":1090769097,"#,
            r#""compact_revision":-1,"hash_revision":3}"#,
        );
        assert_eq!(hash_json(&hashed), expected);
    }

    #[test]
    fn remaining_times_are_the_bytes_of_official_members() {
        let time = LeaseTimeToLiveResponse {
            header: None,
            id: 0x3cee_a1ff_6040_e809,
            ttl: 99,
            granted_ttl: 100,
            keys: vec![Bytes::from_static(b"a"), Bytes::from_static(b"c")],
        };
        let expected = b"\x0a\x16\x0a\x00\x10\x89\xd0\x83\x82\xf6\xbf\xa8\xf7\x3c\x18\x63\x20\x64\
            \x2a\x01a\x2a\x01c";
        assert_eq!(&lease_time_body(time)[..], expected);
    }

    #[test]
    fn refusals_have_the_status_and_line_that_official_members_look_for() {
        let member = MemberId(12);
        let refused = refused_promotion(&Rejection::MemberNotFound { member }.into());
        assert_eq!((refused.status, &refused.body[..]), (404, &b"membership: ID not found\n"[..]));
        let refused = refused_promotion(&Rejection::MemberNotLearner { member }.into());
        let line = &b"membership: can only promote a learner member\n"[..];
        assert_eq!((refused.status, &refused.body[..]), (412, line));
        let refused = refused_promotion(&Refusal::LearnerNotReady.into());
        assert_eq!(refused.status, 412, "worth no second try");
        let refused = refused_promotion(&Refusal::Unhealthy.into());
        assert_eq!((refused.status, refused.content_type), (500, JSON));
        let unknown = unknown_lease(&Rejection::LeaseNotFound { lease: LeaseId(5) });
        assert_eq!((unknown.status, &unknown.body[..]), (404, &b"lease not found\n"[..]));
        let elsewhere = not_primary(400, &Unavailable::NotPrimary);
        assert_eq!(&elsewhere.body[..], b"not a primary lessor\n");
    }
}
