//! The voters and learners that a database implies.
//!
//! Decides that the table of members is right where the stored membership of raft differs. Etcd
//! writes the latter and never reads it; its restore leaves there what the *old* cluster had, and a
//! restored member that runs on keeps it until somebody joins or leaves. Used by imports and by a
//! restore.
//!
//! Source: etcd `server/storage/schema/confstate.go`, `etcdutl/snapshot/v3_snapshot.go`.

use bytes::Bytes;
use proto::raftpb::ConfState;
use serde::Serialize;
use serde_json::Value;

/// The stored form of a membership without a change under way.
#[derive(Serialize)]
struct Json<'a> {
    voters: &'a [u64],
    #[serde(skip_serializing_if = "<[u64]>::is_empty")]
    learners: &'a [u64],
    auto_leave: bool,
}

/// `state` as etcd stores it beside the consistent index.
#[must_use]
pub fn conf_state_json(state: &ConfState) -> Bytes {
    let json = Json { voters: &state.voters, learners: &state.learners, auto_leave: false };
    Bytes::from(serde_json::to_vec(&json).expect("numbers have a JSON form"))
}

/// The membership that the values of the table `members` make; `None` if there are none, or if one
/// is not a member.
pub(super) fn conf_state_of(members: impl Iterator<Item = impl AsRef<[u8]>>) -> Option<ConfState> {
    let mut state = ConfState::default();
    for member in members {
        let member: Value = serde_json::from_slice(member.as_ref()).ok()?;
        let id = member.get("id")?.as_u64()?;
        let is_learner = member.get("isLearner").and_then(Value::as_bool).unwrap_or(false);
        if is_learner { state.learners.push(id) } else { state.voters.push(id) }
    }
    state.voters.sort_unstable();
    state.learners.sort_unstable();
    (!state.voters.is_empty()).then_some(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership_of_raft_is_read_from_the_members() {
        let members = [
            br#"{"id":5,"peerURLs":["http://b:1"],"name":"b","clientURLs":["http://b:2"]}"#
                .as_slice(),
            br#"{"id":7,"peerURLs":["http://c:1"],"isLearner":true}"#,
            br#"{"id":3,"peerURLs":["http://a:1"],"name":"a"}"#,
        ];
        let state = conf_state_of(members.into_iter()).expect("three members");
        let expected = br#"{"voters":[3,5],"learners":[7],"auto_leave":false}"#.as_slice();
        assert_eq!(conf_state_json(&state), expected);
        let alone = ConfState { learners: Vec::new(), voters: vec![3], ..state };
        assert_eq!(conf_state_json(&alone), br#"{"voters":[3],"auto_leave":false}"#.as_slice());
        assert_eq!(conf_state_of(std::iter::empty::<&[u8]>()), None);
        assert_eq!(conf_state_of([b"x".as_slice()].into_iter()), None);
    }
}
