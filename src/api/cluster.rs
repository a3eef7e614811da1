//! The service `etcdserverpb.Cluster`.
//!
//! Decides which changes of the membership are proposed at all: peer URLs have to be well formed,
//! and a learner is promoted only by a leader. What the cluster then makes of a change is decided
//! when it is applied. Answers have no revision in their header, as with etcd. Called by `dispatch`.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/member.go` and `server/etcdserver/server.go`.

use proto::{
    etcdserverpb::{
        Member as PbMember, MemberAddRequest, MemberAddResponse, MemberListRequest,
        MemberListResponse, MemberPromoteRequest, MemberRemoveRequest, MemberRemoveResponse,
        MemberUpdateRequest, MemberUpdateResponse,
    },
    raftpb::{ConfChange, ConfChangeType},
};
use serde_json::json;
use sha1::{Digest, Sha1};

use super::{
    answer::Reply,
    caller::Caller,
    edge::{Edge, wrong_answer},
    header,
    member::{Member, State},
    status::{CallError, Refusal},
};
use crate::model::{Answer, MemberId, Rejection};

/// Lists the members.
pub(super) async fn list<M: Member>(
    edge: &Edge<M>,
    _caller: Caller,
    request: MemberListRequest,
) -> Result<Reply, CallError> {
    let state = if request.linearizable {
        edge.member.linearizable().await?
    } else {
        edge.member.published()
    };
    let header = Some(header::without_revision(&edge.member));
    Ok(Reply::message(&MemberListResponse { header, members: state.members() }))
}

/// Adds a member that has not started yet.
pub(super) async fn add<M: Member>(
    edge: &Edge<M>,
    _caller: Caller,
    request: MemberAddRequest,
) -> Result<Reply, CallError> {
    let peer_urls = parse_urls(&request.peer_ur_ls)?;
    if edge.settings.strict_reconfiguration && !request.is_learner {
        check_started(&edge.member.published().members())?;
    }
    let id = member_id(&peer_urls, edge.clock.unix().as_secs());
    let mut context = json!({ "id": id.0, "peerURLs": peer_urls });
    if request.is_learner {
        context["isLearner"] = true.into();
    }
    let kind = if request.is_learner {
        ConfChangeType::ConfChangeAddLearnerNode
    } else {
        ConfChangeType::ConfChangeAddNode
    };
    let members = change(edge, kind, id, Some(context)).await?;
    let member = PbMember {
        id: id.0,
        peer_ur_ls: peer_urls,
        is_learner: request.is_learner,
        ..PbMember::default()
    };
    Ok(Reply::message(&MemberAddResponse {
        header: Some(header::without_revision(&edge.member)),
        member: Some(member),
        members,
    }))
}

/// Removes a member.
pub(super) async fn remove<M: Member>(
    edge: &Edge<M>,
    _caller: Caller,
    request: MemberRemoveRequest,
) -> Result<Reply, CallError> {
    if edge.settings.strict_reconfiguration {
        check_started_without(&edge.member.published().members(), request.id)?;
    }
    let kind = ConfChangeType::ConfChangeRemoveNode;
    let members = change(edge, kind, MemberId(request.id), None).await?;
    let header = Some(header::without_revision(&edge.member));
    Ok(Reply::message(&MemberRemoveResponse { header, members }))
}

/// Gives a member other peer URLs. They are not looked at, as etcd does not.
pub(super) async fn update<M: Member>(
    edge: &Edge<M>,
    _caller: Caller,
    request: MemberUpdateRequest,
) -> Result<Reply, CallError> {
    let id = MemberId(request.id);
    let mut context = json!({ "id": id.0, "peerURLs": request.peer_ur_ls });
    if edge.member.published().is_learner(id) == Some(true) {
        context["isLearner"] = true.into();
    }
    let kind = ConfChangeType::ConfChangeUpdateNode;
    let members = change(edge, kind, id, Some(context)).await?;
    let header = Some(header::without_revision(&edge.member));
    Ok(Reply::message(&MemberUpdateResponse { header, members }))
}

/// Gives a learner a vote once it has nearly the whole log. Nothing is sent to other members yet,
/// so none ever has, and a voter that has nothing would take this one's quorum away.
///
/// Source: etcd `EtcdServer.mayPromoteMember`.
pub(super) async fn promote<M: Member>(
    edge: &Edge<M>,
    _caller: Caller,
    request: MemberPromoteRequest,
) -> Result<Reply, CallError> {
    let id = MemberId(request.id);
    match edge.member.published().is_learner(id) {
        None => Err(Rejection::MemberNotFound { member: id }.into()),
        Some(false) => Err(Rejection::MemberNotLearner { member: id }.into()),
        Some(true) => Err(Refusal::LearnerNotReady.into()),
    }
}

async fn change<M: Member>(
    edge: &Edge<M>,
    kind: ConfChangeType,
    member: MemberId,
    context: Option<serde_json::Value>,
) -> Result<Vec<PbMember>, CallError> {
    let context = context.map(|context| context.to_string().into());
    let change = ConfChange {
        r#type: Some(kind.into()),
        node_id: Some(member.0),
        context,
        ..ConfChange::default()
    };
    let answer = edge.member.change_members(change).await??;
    let Answer::Members(members) = answer else { return Err(wrong_answer(&answer)) };
    Ok(members)
}

/// One more voter must leave a quorum of started ones. A cluster of one may always grow.
///
/// Source: etcd `membership.RaftCluster.IsReadyToAddVotingMember`.
fn check_started(members: &[PbMember]) -> Result<(), Refusal> {
    let voters = || members.iter().filter(|member| !member.is_learner);
    let started = voters().filter(|member| !member.name.is_empty()).count();
    let after = voters().count() + 1;
    if (started == 1 && after == 2) || after / 2 < started {
        Ok(())
    } else {
        Err(Refusal::NotEnoughStarted)
    }
}

/// One voter less must leave a quorum of started ones. Learners may always go, and so may members
/// that do not exist: that is another refusal.
///
/// Source: etcd `membership.RaftCluster.IsReadyToRemoveVotingMember`.
fn check_started_without(members: &[PbMember], removed: u64) -> Result<(), Refusal> {
    if !members.iter().any(|member| member.id == removed && !member.is_learner) {
        return Ok(());
    }
    let left = || members.iter().filter(|member| !member.is_learner && member.id != removed);
    let started = left().filter(|member| !member.name.is_empty()).count();
    if left().count() / 2 < started { Ok(()) } else { Err(Refusal::NotEnoughStarted) }
}

/// The id that etcd would give to a member added in this second: a hash of its URLs and the time.
///
/// Source: etcd `membership.computeMemberID`.
fn member_id(sorted_urls: &[String], unix_seconds: u64) -> MemberId {
    let mut hash = Sha1::new();
    for url in sorted_urls {
        hash.update(url);
    }
    hash.update(unix_seconds.to_string());
    let digest = hash.finalize();
    let first = digest.first_chunk().expect("a SHA-1 digest has 20 bytes");
    MemberId(u64::from_be_bytes(*first))
}

/// Checks and sorts the peer URLs of a new member.
///
/// Source: etcd `client/pkg/types/urls.go`, `NewURLs`.
fn parse_urls(urls: &[String]) -> Result<Vec<String>, Refusal> {
    if urls.is_empty() {
        return Err(Refusal::BadMemberUrls);
    }
    let parsed: Option<Vec<String>> = urls.iter().map(|url| parse_url(url.trim())).collect();
    let mut parsed = parsed.ok_or(Refusal::BadMemberUrls)?;
    parsed.sort();
    Ok(parsed)
}

fn parse_url(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let plain = !rest.bytes().any(|byte| byte.is_ascii_control() || byte == b' ');
    let valid = match scheme.to_ascii_lowercase().as_str() {
        "http" | "https" => {
            let (host, port) = rest.rsplit_once(':')?;
            let bracketed = host.starts_with('[') && host.ends_with(']');
            port.bytes().all(|byte| byte.is_ascii_digit())
                && !host.contains(['/', '?', '#'])
                && (bracketed || !host.contains(':'))
        }
        "unix" | "unixs" => true,
        _ => false,
    };
    (valid && plain).then(|| format!("{}://{rest}", scheme.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls_need_a_known_scheme_a_port_and_no_path() {
        let parse = |urls: &[&str]| {
            parse_urls(&urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>())
        };
        let refused = Err(Refusal::BadMemberUrls);
        let sorted = ["http://a:1", "https://b:2"].map(str::to_owned).to_vec();
        assert_eq!(parse(&["https://b:2", " http://a:1 "]), Ok(sorted));
        assert_eq!(parse(&["http://[::1]:2380"]), Ok(vec!["http://[::1]:2380".to_owned()]));
        assert_eq!(parse(&[]), refused);
        for bad in ["http://a", "http://a:1/", "ftp://a:1", "a:1", "http://a:x", "http://::1:2"] {
            assert_eq!(parse(&[bad]), refused, "{bad}");
        }
    }

    #[test]
    fn voter_is_added_only_to_a_quorum_of_started_members() {
        let member = |name: &str| PbMember { name: name.to_owned(), ..PbMember::default() };
        let learner = PbMember { is_learner: true, ..member("") };
        assert_eq!(check_started(&[member("a")]), Ok(()));
        assert_eq!(check_started(&[member("a"), learner]), Ok(()));
        assert_eq!(check_started(&[member("a"), member("")]), Err(Refusal::NotEnoughStarted));
        assert_eq!(check_started(&[member("a"), member("b")]), Ok(()));
    }
}
