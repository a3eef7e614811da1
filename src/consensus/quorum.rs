//! Majorities, alone and in pairs.
//!
//! Decides what "a quorum" is while a membership changes: a majority of the incoming and of the
//! outgoing voters. Pure functions of sets; used for commits, votes and reads alike.

use std::collections::BTreeSet;

use crate::model::MemberId;

/// What a vote has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VoteResult {
    Pending,
    Lost,
    Won,
}

/// Voters, and during a change of several at once also those that are going.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Voters {
    pub(super) incoming: BTreeSet<MemberId>,
    /// Empty unless the membership is joint.
    pub(super) outgoing: BTreeSet<MemberId>,
}

impl Voters {
    /// Every voter once, in order.
    pub(super) fn ids(&self) -> BTreeSet<MemberId> {
        self.incoming.union(&self.outgoing).copied().collect()
    }

    pub(super) fn contains(&self, id: MemberId) -> bool {
        self.incoming.contains(&id) || self.outgoing.contains(&id)
    }

    pub(super) fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// The highest position that a quorum has reached, where `reached` gives each voter's; `None`
    /// is as good as 0.
    pub(super) fn reached(&self, reached: impl Fn(MemberId) -> Option<u64>) -> u64 {
        let incoming = majority_reached(&self.incoming, &reached);
        let outgoing = majority_reached(&self.outgoing, &reached);
        incoming.min(outgoing)
    }

    /// What the votes amount to, where `vote` gives each voter's, if it has voted.
    pub(super) fn result(&self, vote: impl Fn(MemberId) -> Option<bool>) -> VoteResult {
        let incoming = majority_result(&self.incoming, &vote);
        let outgoing = majority_result(&self.outgoing, &vote);
        match (incoming, outgoing) {
            (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
            (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
            (VoteResult::Pending, VoteResult::Pending | VoteResult::Won)
            | (VoteResult::Won, VoteResult::Pending) => VoteResult::Pending,
        }
    }
}

/// An empty set has reached everything, so that a pair with one empty half is the other half.
fn majority_reached(
    voters: &BTreeSet<MemberId>,
    reached: &impl Fn(MemberId) -> Option<u64>,
) -> u64 {
    if voters.is_empty() {
        return u64::MAX;
    }
    let mut positions: Vec<u64> = voters.iter().map(|id| reached(*id).unwrap_or(0)).collect();
    positions.sort_unstable();
    positions[voters.len() - majority(voters.len())]
}

/// An election among nobody is won, for the same reason.
fn majority_result(
    voters: &BTreeSet<MemberId>,
    vote: &impl Fn(MemberId) -> Option<bool>,
) -> VoteResult {
    let granted = voters.iter().filter(|id| vote(**id) == Some(true)).count();
    let missing = voters.iter().filter(|id| vote(**id).is_none()).count();
    if voters.is_empty() || majority(voters.len()) <= granted {
        VoteResult::Won
    } else if majority(voters.len()) <= granted + missing {
        VoteResult::Pending
    } else {
        VoteResult::Lost
    }
}

const fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::{VoteResult, Voters};
    use crate::model::MemberId;

    fn voters(incoming: &[u64], outgoing: &[u64]) -> Voters {
        Voters {
            incoming: incoming.iter().map(|id| MemberId(*id)).collect(),
            outgoing: outgoing.iter().map(|id| MemberId(*id)).collect(),
        }
    }

    #[test]
    fn a_position_counts_once_a_majority_has_it() {
        let all = voters(&[1, 2, 3], &[]);
        assert_eq!(all.reached(|id| Some(id.0 * 10)), 20);
        assert_eq!(all.reached(|id| (id.0 == 1).then_some(10)), 0);
        assert_eq!(voters(&[1, 2, 3, 4], &[]).reached(|id| Some(id.0 * 10)), 20);
    }

    #[test]
    fn a_joint_quorum_needs_both_majorities() {
        let joint = voters(&[1, 2, 3], &[3, 4, 5]);
        assert_eq!(joint.reached(|id| Some(if id.0 <= 3 { 9 } else { 4 })), 4);
        assert_eq!(joint.result(|id| (id.0 <= 3).then_some(true)), VoteResult::Pending);
        assert_eq!(joint.result(|id| Some(id.0 <= 3)), VoteResult::Lost);
        assert_eq!(joint.result(|_| Some(true)), VoteResult::Won);
    }

    proptest! {
        #[test]
        fn the_quorum_is_the_highest_position_a_majority_reached(
            positions in prop::collection::vec(any::<Option<u8>>(), 1..9)
        ) {
            let ids: Vec<u64> = (0..).zip(&positions).map(|(id, _)| id).collect();
            let at = |id: MemberId| {
                let position = usize::try_from(id.0).expect("ids are small");
                positions[position].map(u64::from)
            };
            let expected = (0..=u64::from(u8::MAX))
                .rev()
                .find(|position| {
                    let count =
                        ids.iter().filter(|id| *position <= at(MemberId(**id)).unwrap_or(0)).count();
                    positions.len() / 2 < count
                })
                .expect("everybody has reached 0");
            prop_assert_eq!(voters(&ids, &[]).reached(at), expected);
            prop_assert_eq!(voters(&ids, &ids).reached(at), expected);
        }
    }
}
