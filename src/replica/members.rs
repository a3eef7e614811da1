//! Changes of the membership, from a caller's wish to the members after it.
//!
//! Decides which changes are proposed at all: with strict checks, none that would cost the quorum
//! as this member sees it; a learner is promoted only by the leader, which alone knows how far the
//! learner's log reaches, so a follower passes that call on. What the cluster makes of a change is
//! decided when it is applied. Called for clients, and for followers that pass a call on.
//!
//! Source: etcd `server/etcdserver/server.go`, `AddMember` and its siblings.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use proto::{
    etcdserverpb as pb,
    raftpb::{ConfChange, ConfChangeType},
};

use crate::{
    cluster::{
        CONNECTED_MIN, Leaving, Member, MemberContext, MemberOrigin, Membership, NewMember,
        ReconfigureError, Voters, may_add, may_promote, may_remove, member_id,
    },
    model::{Answer, MemberId, Rejection, Unavailable},
    transport::{PeerConnections, PeerReply},
};

use super::{
    Handle, KnownProgress, metrics,
    remote::{Asking, Turn, shown},
};

/// How etcd's server begins its errors.
const SERVER: &str = "etcdserver";

/// What a leader says of a learner that it does not promote; the beginning is its module's.
const NOT_LEARNER: &str = "can only promote a learner member";

/// What it says of one whose log is too short: the longer text, so it is looked for first.
const NOT_READY: &str = "can only promote a learner member which is in sync with leader";

/// Whether changes that would cost the quorum are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuorumChecks {
    /// They are.
    Strict,
    /// Whoever asks knows better.
    Off,
}

/// Changes of the membership, wherever the leader is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MemberCalls {
    handle: Handle,
    connections: PeerConnections,
    checks: QuorumChecks,
}

/// Why a change was not made, or is not known to have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeError {
    /// The cluster refused it.
    Rejected(Rejection),
    /// Nobody knows.
    Unavailable(Unavailable),
    /// Too few members have started.
    NotEnoughStarted,
    /// Too few members are connected.
    Unhealthy,
    /// The learner's log is too short.
    LearnerNotReady,
}

impl From<Rejection> for ChangeError {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<Unavailable> for ChangeError {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable)
    }
}

impl From<ReconfigureError> for ChangeError {
    fn from(error: ReconfigureError) -> Self {
        match error {
            ReconfigureError::NotEnoughStarted => Self::NotEnoughStarted,
            ReconfigureError::Unhealthy => Self::Unhealthy,
        }
    }
}

/// The members after a change.
type Changed = Result<Vec<pb::Member>, ChangeError>;

impl MemberCalls {
    /// Changes of the cluster of the member behind `handle`.
    #[must_use]
    pub fn new(handle: Handle, checks: QuorumChecks) -> Self {
        Self { handle, connections: PeerConnections::default(), checks }
    }

    /// Adds a member that has not started yet; returns it, and all members.
    ///
    /// # Errors
    /// - [`ChangeError`].
    pub async fn add(
        &self,
        mut peer_urls: Vec<String>,
        new: NewMember,
    ) -> Result<(Member, Vec<pb::Member>), ChangeError> {
        if self.checks == QuorumChecks::Strict {
            may_add(self.voters(), new).inspect_err(|error| self.log_refusal("add", *error))?;
        }
        peer_urls.sort_unstable();
        let id = member_id(&peer_urls, MemberOrigin::Added { unix: self.handle.clock().unix() });
        let is_learner = new == NewMember::Learner;
        let member = Member { id, peer_urls, is_learner, ..Member::default() };
        let kind = match new {
            NewMember::Voter => ConfChangeType::ConfChangeAddNode,
            NewMember::Learner => ConfChangeType::ConfChangeAddLearnerNode,
        };
        let members = self.change(kind, id, Some(member.to_json())).await?;
        Ok((member, members))
    }

    /// Removes a member.
    ///
    /// # Errors
    /// - [`ChangeError`].
    pub async fn remove(&self, id: MemberId) -> Changed {
        if self.checks == QuorumChecks::Strict
            && let Some(leaving) = self.leaving(id)
        {
            may_remove(self.voters(), leaving)
                .inspect_err(|error| self.log_refusal("remove", *error))?;
        }
        self.change(ConfChangeType::ConfChangeRemoveNode, id, None).await
    }

    /// Gives a member other peer URLs. They are not looked at, as etcd does not.
    ///
    /// # Errors
    /// - [`ChangeError`].
    pub async fn update(&self, id: MemberId, peer_urls: Vec<String>) -> Changed {
        let membership = self.membership();
        let is_learner = membership.member(id).is_some_and(|member| member.is_learner);
        let member = Member { id, peer_urls, is_learner, ..Member::default() };
        self.change(ConfChangeType::ConfChangeUpdateNode, id, Some(member.to_json())).await
    }

    /// Gives a learner a vote, here or through the leader.
    ///
    /// # Errors
    /// - [`ChangeError`].
    pub async fn promote(&self, id: MemberId) -> Changed {
        let mut asking = Asking::new(&self.handle, &self.connections);
        loop {
            match asking.turn().await? {
                Turn::Here => match self.promote_here(id).await {
                    Err(ChangeError::Unavailable(Unavailable::NotLeader)) => {}
                    outcome => {
                        count_promotion(&outcome);
                        return outcome;
                    }
                },
                Turn::There(leader) => {
                    let reply = leader.promote(id).await;
                    match reply.and_then(|reply| read_promotion(id, &reply)) {
                        Ok(outcome) => return outcome,
                        Err(error) => tracing::debug!(error, "the leader did not promote"),
                    }
                }
            }
        }
    }

    async fn promote_here(&self, id: MemberId) -> Changed {
        let known = self.handle.progress_of(id).await?;
        let known = known.ok_or(Rejection::MemberNotFound { member: id })?;
        if !is_ready(known) {
            tracing::error!(
                "learner-match" = known.matched.0,
                "leader-match" = known.leader.0,
                "rejecting promote learner: learner is not ready"
            );
            return Err(ChangeError::LearnerNotReady);
        }
        if self.checks == QuorumChecks::Strict {
            may_promote(self.voters()).inspect_err(|error| self.log_refusal("promote", *error))?;
        }
        let member = Member { id, ..Member::default() };
        let context = MemberContext { member, is_promote: true };
        self.change(ConfChangeType::ConfChangeAddNode, id, Some(context.to_json())).await
    }

    async fn change(&self, kind: ConfChangeType, id: MemberId, context: Option<Bytes>) -> Changed {
        let change = ConfChange {
            r#type: Some(kind.into()),
            node_id: Some(id.0),
            context,
            ..ConfChange::default()
        };
        let answer = self.handle.change_members(change).await??;
        let Answer::Members(members) = answer else {
            unreachable!("a change of members was answered with {answer:?}")
        };
        Ok(members)
    }

    fn membership(&self) -> Arc<Membership> {
        Arc::clone(&self.handle.published().membership)
    }

    fn voters(&self) -> Voters {
        let membership = self.membership();
        let connected = membership.voters().filter(|voter| self.is_connected_long(voter.id));
        Voters {
            total: membership.voters().count(),
            started: membership.voters().filter(|voter| voter.is_started()).count(),
            connected: connected.count(),
        }
    }

    fn is_connected_long(&self, id: MemberId) -> bool {
        let now = self.handle.clock().now();
        let since = self.handle.transport().active_since(id);
        self.is_self(id) || since.is_some_and(|since| since + CONNECTED_MIN <= now)
    }

    fn is_self(&self, id: MemberId) -> bool {
        id == self.handle.status().member
    }

    /// The voter to be removed; none for a learner, which may always go, and for nobody, which the
    /// cluster refuses by itself.
    fn leaving(&self, id: MemberId) -> Option<Leaving> {
        let membership = self.membership();
        let member = membership.member(id).filter(|member| !member.is_learner)?;
        let is_connected = self.is_self(id) || self.handle.transport().active_since(id).is_some();
        Some(Leaving { is_started: member.is_started(), is_connected })
    }

    fn log_refusal(&self, change: &str, error: ReconfigureError) {
        tracing::warn!(
            "local-member-id" = %self.handle.status().member,
            "rejecting member {change} request; {}",
            match error {
                ReconfigureError::NotEnoughStarted => "not enough healthy members",
                ReconfigureError::Unhealthy => {
                    "local member has not been connected to all peers, reconfigure breaks active \
                     quorum"
                }
            }
        );
    }
}

fn count_promotion(outcome: &Changed) {
    match outcome {
        Ok(_) => metrics::LEARNER_PROMOTE_SUCCESSES.inc(),
        Err(error) => {
            let reason = error.to_string();
            metrics::LEARNER_PROMOTE_FAILURES.with_label_values(&[reason.as_str()]).inc();
        }
    }
}

/// The words of etcd's own code, which its metrics have as well; what clients are told stands
/// elsewhere.
impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(Rejection::MemberNotFound { .. }) => {
                f.write_str("membership: ID not found")
            }
            Self::Rejected(Rejection::MemberNotLearner { .. }) => {
                write!(f, "membership: {NOT_LEARNER}")
            }
            Self::Rejected(rejection) => write!(f, "the cluster refused: {rejection:?}"),
            Self::Unavailable(unavailable) => write!(f, "no outcome: {unavailable:?}"),
            Self::NotEnoughStarted => {
                write!(f, "{SERVER}: re-configuration failed due to not enough started members")
            }
            Self::Unhealthy => write!(f, "{SERVER}: unhealthy cluster"),
            Self::LearnerNotReady => write!(f, "{SERVER}: {NOT_READY}"),
        }
    }
}

impl std::error::Error for ChangeError {}

/// Whether a learner has nine tenths of the leader's log.
///
/// Source: etcd `readyPercentThreshold`.
fn is_ready(known: KnownProgress) -> bool {
    u128::from(known.leader.0) * 9 <= u128::from(known.matched.0) * 10
}

/// What a leader answered to a promotion.
///
/// # Errors
/// - with the reason, if it is worth asking again.
fn read_promotion(id: MemberId, reply: &PeerReply) -> Result<Changed, String> {
    let text = String::from_utf8_lossy(&reply.body);
    match reply.status {
        200 => {
            let members = Member::list_from_json(&reply.body).map_err(|error| error.to_string())?;
            Ok(Ok(members.iter().map(Member::to_wire).collect()))
        }
        404 => Ok(Err(Rejection::MemberNotFound { member: id }.into())),
        412 if text.contains(NOT_READY) => Ok(Err(ChangeError::LearnerNotReady)),
        412 if text.contains(NOT_LEARNER) => {
            Ok(Err(Rejection::MemberNotLearner { member: id }.into()))
        }
        _ => Err(shown(reply)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LogIndex;

    #[test]
    fn a_learner_is_ready_with_nine_tenths_of_the_log() {
        let known = |matched, leader| KnownProgress {
            matched: LogIndex(matched),
            leader: LogIndex(leader),
        };
        assert!(is_ready(known(9, 10)));
        assert!(!is_ready(known(8, 10)));
        assert!(!is_ready(known(0, 1)), "it has nothing");
        assert!(is_ready(known(u64::MAX, u64::MAX)));
    }

    #[test]
    fn answers_of_a_leader_are_told_apart_by_status_and_text() {
        let read = |status: u16, body: &'static str| {
            let body = Bytes::from_static(body.as_bytes());
            read_promotion(MemberId(7), &PeerReply { status, cluster: String::new(), body })
        };
        let members = read(200, "[{\"id\":7,\"peerURLs\":[\"x\"]}]\n").expect("an answer");
        assert_eq!(members.expect("promoted")[0].id, 7);
        let member = MemberId(7);
        for (status, body, error) in [
            (404, "membership: ID not found\n", Rejection::MemberNotFound { member }.into()),
            (
                412,
                "membership: can only promote a learner member\n",
                Rejection::MemberNotLearner { member }.into(),
            ),
            (
                412,
                "etcdserver: can only promote a learner member which is in sync with leader\n",
                ChangeError::LearnerNotReady,
            ),
        ] {
            assert_eq!(read(status, body), Ok(Err(error)), "{status} {body}");
        }
        for (status, body) in [(500, "{}"), (408, ""), (412, "other"), (200, "x")] {
            assert!(read(status, body).is_err(), "{status} {body:?} is worth another try");
        }
    }
}
