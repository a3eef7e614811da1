//! The service `etcdserverpb.Maintenance`, but for its stream.
//!
//! Decides what a member tells about itself and what it does on an operator's word. `Defragment`
//! and `MoveLeader` answer without a header, as with etcd. Called by `dispatch`.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/maintenance.go` and
//! `server/etcdserver/v3_server.go`, `Downgrade`.

use proto::{
    etcdserverpb::{
        AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
        DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest,
        HashResponse, MoveLeaderRequest, MoveLeaderResponse, StatusResponse,
        downgrade_request::DowngradeAction,
    },
    membershippb::DowngradeInfoSetRequest,
};
use tracing::{info, warn};

use super::{
    answer::Reply,
    caller::Caller,
    edge::{Edge, wrong_answer},
    header,
    member::{Member, State},
    status::{CallError, Refusal, status as status_of},
};
use crate::model::{Answer, MemberId, Request, Revision};

/// The version of etcd that this server stands in for.
pub const ETCD_VERSION: &str = "3.7.1";

/// The quota while the flag says nothing: 2 GiB.
const QUOTA_BYTES_DEFAULT: i64 = 2 << 30;

/// Lists, raises or clears alarms.
pub(super) async fn alarm<M: Member>(
    edge: &Edge<M>,
    caller: Caller,
    request: AlarmRequest,
) -> Result<Reply, CallError> {
    let answer = edge.propose(caller, Request::Alarm(request)).await?;
    let Answer::Alarms(alarms) = answer else { return Err(wrong_answer(&answer)) };
    let header = Some(header::now(&edge.member));
    Ok(Reply::message(&AlarmResponse { header, alarms }))
}

/// Tells where the member stands.
pub(super) fn status<M: Member>(edge: &Edge<M>) -> Reply {
    let position = edge.member.position();
    let state = edge.member.published();
    let database = edge.member.database();
    let mut errors = Vec::new();
    if position.leader == MemberId(0) {
        errors.push(status_of(&Refusal::NoLeader.into()).1.to_owned());
    }
    errors.extend(state.alarms().iter().map(alarm_text));
    Reply::message(&StatusResponse {
        header: Some(header::now(&edge.member)),
        version: ETCD_VERSION.to_owned(),
        db_size: database.total,
        leader: position.leader.0,
        raft_index: position.committed.0,
        raft_term: position.term.0,
        raft_applied_index: position.applied.0,
        errors,
        db_size_in_use: database.in_use,
        is_learner: state.is_learner(position.member) == Some(true),
        storage_version: state.storage_version().unwrap_or_default(),
        db_size_quota: match edge.settings.quota_bytes {
            0 => QUOTA_BYTES_DEFAULT,
            quota_bytes => quota_bytes,
        },
        downgrade_info: Some(state.downgrade()),
    })
}

/// An alarm as protobuf's text form has it.
pub(super) fn alarm_text(alarm: &AlarmMember) -> String {
    let mut parts = Vec::with_capacity(2);
    if alarm.member_id != 0 {
        parts.push(format!("memberID:{}", alarm.member_id));
    }
    match AlarmType::try_from(alarm.alarm) {
        Ok(AlarmType::None) => {}
        Ok(kind) => parts.push(format!("alarm:{}", kind.as_str_name())),
        Err(_) => parts.push(format!("alarm:{}", alarm.alarm)),
    }
    parts.join(" ")
}

/// Rewrites the backend without its free pages.
pub(super) async fn defragment<M: Member>(
    edge: &Edge<M>,
    _caller: Caller,
    _request: DefragmentRequest,
) -> Result<Reply, CallError> {
    info!("starting defragment");
    if edge.settings.unhealthy_while_defragmenting {
        edge.set_serving(false, "defrag is active");
    }
    let done = edge.member.defragment().await;
    if edge.settings.unhealthy_while_defragmenting {
        edge.set_serving(true, "");
    }
    if let Err(error) = done {
        warn!(%error, "failed to defragment");
        return Err(error);
    }
    info!("finished defragment");
    Ok(Reply::message(&DefragmentResponse { header: None }))
}

/// Hashes everything that the member has stored.
pub(super) async fn hash<M: Member>(
    edge: &Edge<M>,
    _caller: Caller,
    _request: HashRequest,
) -> Result<Reply, CallError> {
    let hashed = edge.member.hash_backend().await?;
    let header = Some(header::at(&edge.member, hashed.current));
    Ok(Reply::message(&HashResponse { header, hash: hashed.hash }))
}

/// Hashes the key history up to a revision.
pub(super) async fn hash_kv<M: Member>(
    edge: &Edge<M>,
    _caller: Caller,
    request: HashKvRequest,
) -> Result<Reply, CallError> {
    let hashed = edge.member.hash_history(Revision(request.revision)).await?;
    Ok(Reply::message(&HashKvResponse {
        header: Some(header::at(&edge.member, hashed.current)),
        hash: hashed.hash,
        compact_revision: hashed.compacted.0,
        hash_revision: hashed.revision.0,
    }))
}

/// Hands leadership to another voter.
pub(super) async fn move_leader<M: Member>(
    edge: &Edge<M>,
    _caller: Caller,
    request: MoveLeaderRequest,
) -> Result<Reply, CallError> {
    let position = edge.member.position();
    if position.member != position.leader {
        return Err(Refusal::NotLeader.into());
    }
    let target = MemberId(request.target_id);
    if edge.member.published().is_learner(target) != Some(false) {
        return Err(Refusal::BadTransferee.into());
    }
    if target != position.leader {
        edge.member.transfer_leadership(target).await?;
        // No limit on the time but the caller's: whoever stops waiting gives the call up.
        while edge.member.position().leader != target {
            tokio::time::sleep(edge.settings.heartbeat_interval).await;
        }
    }
    Ok(Reply::message(&MoveLeaderResponse { header: None }))
}

/// Begins, ends or only checks a downgrade of the cluster.
pub(super) async fn downgrade<M: Member>(
    edge: &Edge<M>,
    caller: Caller,
    request: DowngradeRequest,
) -> Result<Reply, CallError> {
    let action = DowngradeAction::try_from(request.action)
        .map_err(|_unknown| Refusal::UnknownDowngradeAction)?;
    let cluster = edge.member.published().cluster_version();
    match action {
        DowngradeAction::Validate => {
            check_downgrade(edge, &request.version).await?;
        }
        DowngradeAction::Enable => {
            let target = match check_downgrade(edge, &request.version).await {
                Ok(target) => target,
                Err(error) => {
                    warn!(%error, "reject downgrade request");
                    return Err(error);
                }
            };
            let request = DowngradeInfoSetRequest { enabled: true, ver: target };
            edge.propose(caller, Request::DowngradeInfoSet(request)).await?;
        }
        DowngradeAction::Cancel => cancel_downgrade(edge, caller).await,
    }
    Ok(Reply::message(&DowngradeResponse {
        header: Some(header::now(&edge.member)),
        version: cluster
            .as_deref()
            .and_then(minor)
            .map_or_else(String::new, |(major, minor)| format!("{major}.{minor}")),
    }))
}

/// The version to go to, with a patch of 0, if a downgrade to it may begin.
async fn check_downgrade<M: Member>(edge: &Edge<M>, target: &str) -> Result<String, CallError> {
    let (major, minor_target) = minor(target).ok_or(Refusal::DowngradeFormat)?;
    if edge.member.published().cluster_version().is_none() {
        return Err(Refusal::DowngradeClusterVersion.into());
    }
    let state = edge.member.linearizable().await?;
    let cluster = state.cluster_version();
    let cluster = cluster.as_deref().and_then(minor).ok_or(Refusal::DowngradeClusterVersion)?;
    if (major, minor_target.saturating_add(1)) != cluster {
        return Err(Refusal::DowngradeTarget.into());
    }
    if state.downgrade().enabled {
        return Err(Refusal::DowngradeInProgress.into());
    }
    Ok(format!("{major}.{minor_target}.0"))
}

/// Never fails, as with etcd: whoever cancels wants it gone, and it is or it will be logged.
async fn cancel_downgrade<M: Member>(edge: &Edge<M>, caller: Caller) {
    let canceled = async {
        let state = edge.member.linearizable().await?;
        if state.downgrade().enabled {
            let request = DowngradeInfoSetRequest { enabled: false, ver: String::new() };
            edge.propose(caller, Request::DowngradeInfoSet(request)).await?;
        }
        Ok::<(), CallError>(())
    };
    if let Err(error) = canceled.await {
        warn!(%error, "failed to cancel downgrade");
    }
}

/// The first two numbers of `X.Y` or `X.Y.Z`.
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    let numbers = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let patch = parts.next();
    let rest = parts.next();
    let valid = patch.is_none_or(|patch| patch.parse::<u32>().is_ok()) && rest.is_none();
    valid.then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_with_or_without_a_patch() {
        assert_eq!(minor("3.6"), Some((3, 6)));
        assert_eq!(minor("3.6.11"), Some((3, 6)));
        for bad in ["3", "3.x", "3.6.x", "3.6.0.1", "", "v3.6"] {
            assert_eq!(minor(bad), None, "{bad}");
        }
    }

    #[test]
    fn alarm_reads_as_in_the_text_form_of_protobuf() {
        let alarm = AlarmMember { member_id: 5, alarm: AlarmType::Nospace.into() };
        assert_eq!(alarm_text(&alarm), "memberID:5 alarm:NOSPACE");
    }
}
