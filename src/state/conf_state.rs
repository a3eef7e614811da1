//! Who counts in raft, as the log says.
//!
//! Decides how a change of one member changes the voters and learners, and the JSON in which they
//! stand in the backend. The machine follows raft's rules here so that the configuration of an
//! applied position is known without asking raft.
//!
//! Source: raft `confchange/confchange.go`, etcd `server/storage/schema/confstate.go`.

use bytes::Bytes;
use proto::raftpb::{ConfChange, ConfChangeType, ConfState};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct ConfStateJson {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    voters: Vec<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    learners: Vec<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    voters_outgoing: Vec<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    learners_next: Vec<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    auto_leave: Option<bool>,
}

/// The JSON of `state` as official members store it.
pub(super) fn to_json(state: &ConfState) -> Bytes {
    let json = ConfStateJson {
        voters: state.voters.clone(),
        learners: state.learners.clone(),
        voters_outgoing: state.voters_outgoing.clone(),
        learners_next: state.learners_next.clone(),
        auto_leave: Some(state.auto_leave.unwrap_or(false)),
    };
    Bytes::from(serde_json::to_vec(&json).expect("numbers have a JSON form"))
}

/// Reads what an official member or [`to_json`] wrote.
///
/// # Errors
/// If it is not the JSON of a membership.
pub fn from_json(json: &[u8]) -> Result<ConfState, serde_json::Error> {
    let json: ConfStateJson = serde_json::from_slice(json)?;
    Ok(ConfState {
        voters: json.voters,
        learners: json.learners,
        voters_outgoing: json.voters_outgoing,
        learners_next: json.learners_next,
        auto_leave: json.auto_leave,
    })
}

/// The configuration after `change`; `None` if nobody would be left to vote.
pub(crate) fn after(state: &ConfState, change: &ConfChange) -> Option<ConfState> {
    let id = change.node_id.unwrap_or(0);
    let mut next = state.clone();
    let kind = ConfChangeType::try_from(change.r#type.unwrap_or(0)).ok()?;
    if id != 0 && kind != ConfChangeType::ConfChangeUpdateNode {
        next.voters.retain(|voter| *voter != id);
        next.learners.retain(|learner| *learner != id);
        match kind {
            ConfChangeType::ConfChangeAddNode => next.voters.push(id),
            ConfChangeType::ConfChangeAddLearnerNode => next.learners.push(id),
            ConfChangeType::ConfChangeRemoveNode | ConfChangeType::ConfChangeUpdateNode => {}
        }
        next.voters.sort_unstable();
        next.learners.sort_unstable();
    }
    (!next.voters.is_empty()).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: ConfChangeType, id: u64) -> ConfChange {
        let mut change = ConfChange { node_id: Some(id), ..Default::default() };
        change.r#type = Some(kind.into());
        change
    }

    #[test]
    fn json_is_that_of_official_members() {
        let state = ConfState { voters: vec![3, 5], ..ConfState::default() };
        assert_eq!(to_json(&state), r#"{"voters":[3,5],"auto_leave":false}"#);
        let learner = ConfState { learners: vec![7], auto_leave: Some(false), ..state };
        assert_eq!(to_json(&learner), r#"{"voters":[3,5],"learners":[7],"auto_leave":false}"#);
        assert_eq!(from_json(&to_json(&learner)).expect("own JSON"), learner);
    }

    #[test]
    fn last_voter_cannot_go() {
        let one = ConfState { voters: vec![3], ..ConfState::default() };
        assert_eq!(after(&one, &change(ConfChangeType::ConfChangeRemoveNode, 3)), None);
        assert_eq!(after(&one, &change(ConfChangeType::ConfChangeAddLearnerNode, 3)), None);
        assert_eq!(
            after(&one, &change(ConfChangeType::ConfChangeUpdateNode, 3)),
            Some(one.clone())
        );
        let two = after(&one, &change(ConfChangeType::ConfChangeAddNode, 2)).expect("voters");
        assert_eq!(two.voters, [2, 3]);
    }
}
