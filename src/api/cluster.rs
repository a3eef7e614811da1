//! The service `etcdserverpb.Cluster`.
//!
//! Decides only that the peer URLs of a new member are well formed; whether a change is proposed,
//! and what the cluster makes of it, is decided by the member and at its application. Answers have
//! no revision in their header, as with etcd. Called by `dispatch`.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/member.go`.

use proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse,
};

use super::{
    answer::Reply,
    caller::Caller,
    edge::Edge,
    header,
    member::{Member, State},
    status::{CallError, Refusal},
};
use crate::{config::url::Url, model::MemberId};

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
    let (member, members) = edge.member.add_member(peer_urls, request.is_learner).await?;
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
    let members = edge.member.remove_member(MemberId(request.id)).await?;
    let header = Some(header::without_revision(&edge.member));
    Ok(Reply::message(&MemberRemoveResponse { header, members }))
}

/// Gives a member other peer URLs. They are not looked at, as etcd does not.
pub(super) async fn update<M: Member>(
    edge: &Edge<M>,
    _caller: Caller,
    request: MemberUpdateRequest,
) -> Result<Reply, CallError> {
    let members = edge.member.update_member(MemberId(request.id), request.peer_ur_ls).await?;
    let header = Some(header::without_revision(&edge.member));
    Ok(Reply::message(&MemberUpdateResponse { header, members }))
}

/// Gives a learner a vote once it has nearly the whole log.
pub(super) async fn promote<M: Member>(
    edge: &Edge<M>,
    _caller: Caller,
    request: MemberPromoteRequest,
) -> Result<Reply, CallError> {
    let members = edge.member.promote_member(MemberId(request.id)).await?;
    let header = Some(header::without_revision(&edge.member));
    Ok(Reply::message(&MemberPromoteResponse { header, members }))
}

/// Checks and sorts the peer URLs of a new member.
///
/// Source: etcd `client/pkg/types/urls.go`, `NewURLs`.
fn parse_urls(urls: &[String]) -> Result<Vec<String>, Refusal> {
    if urls.is_empty() {
        return Err(Refusal::BadMemberUrls);
    }
    let parsed: Result<Vec<_>, _> = urls.iter().map(|url| Url::parse(url)).collect();
    let Ok(mut parsed) = parsed else { return Err(Refusal::BadMemberUrls) };
    parsed.sort();
    Ok(parsed.iter().map(|url| url.as_str().to_owned()).collect())
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
}
