//! What equal and different hashes say about the data of members.
//!
//! Decides who is suspected. Hashes can be compared only if they were computed with the same
//! compaction: otherwise they cover different rows. Pure; called by the checks beside it.

use std::collections::BTreeMap;

use crate::{
    model::{MemberId, Revision},
    mvcc::HashKv,
    replica::remote::{RemoteHash, RemoteHashError},
};

/// A member's answer.
type Told = (MemberId, Result<RemoteHash, RemoteHashError>);

/// The leader's own data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    pub(super) member: MemberId,
    /// Before the others were asked.
    pub(super) first: HashKv,
    /// After they had answered.
    pub(super) second: HashKv,
    /// The newest revision at the second time.
    pub(super) current: Revision,
}

/// Whether a member that is about to start holds other data than one of its peers.
pub(super) fn differs_at_start(own: &HashKv, peers: &[Told]) -> bool {
    let mut differs = false;
    for (peer, told) in peers {
        match told {
            Ok(hash) if hash.hash == own.hash => {}
            Ok(hash) => {
                let comparable = hash.compact_revision == own.compact_revision;
                differs |= comparable;
                tracing::warn!(
                    "remote-peer-id" = %peer,
                    "local-member-revision" = own.hash_revision.0,
                    "local-member-compact-revision" = own.compact_revision.0,
                    "local-member-hash" = own.hash,
                    "remote-peer-revision" = hash.current.0,
                    "remote-peer-compact-revision" = hash.compact_revision.0,
                    "remote-peer-hash" = hash.hash,
                    "found different {} values from remote peer",
                    if comparable { "hash" } else { "compact revision" }
                );
            }
            Err(error) => tracing::warn!(
                "remote-peer-id" = %peer,
                "local-member-revision" = own.hash_revision.0,
                %error,
                "{}",
                match error {
                    RemoteHashError::Future => "cannot fetch hash from slow remote peer",
                    RemoteHashError::Compacted => {
                        "cannot fetch hash from remote peer; local member is behind"
                    }
                    RemoteHashError::OtherCluster => "cluster ID mismatch",
                    RemoteHashError::NoAnswer(_) => "cannot fetch hash from remote peer",
                }
            ),
        }
    }
    differs
}

/// The first member whose data cannot be right, seen from the leader.
pub(super) fn differs_now(own: &Own, peers: &[Told]) -> Option<MemberId> {
    let Own { first, second, .. } = own;
    if first.hash != second.hash
        && first.hash_revision == second.hash_revision
        && first.compact_revision == second.compact_revision
    {
        tracing::warn!(
            "revision" = first.hash_revision.0,
            "hash-1" = first.hash,
            "hash-2" = second.hash,
            "found hash mismatch"
        );
        return Some(own.member);
    }
    let told = peers.iter().filter_map(|(peer, told)| Some((*peer, told.as_ref().ok()?)));
    let mut suspects = told.filter_map(|(peer, hash)| {
        let why = impossible(own, hash)?;
        tracing::warn!(
            "leader-revision" = own.current.0,
            "leader-compact-revision" = second.compact_revision.0,
            "leader-hash" = first.hash,
            "follower-revision" = hash.current.0,
            "follower-compact-revision" = hash.compact_revision.0,
            "follower-hash" = hash.hash,
            "follower-peer-id" = %peer,
            "{why}"
        );
        Some(peer)
    });
    suspects.next()
}

fn impossible(own: &Own, hash: &RemoteHash) -> Option<&'static str> {
    if own.current < hash.current {
        return Some("revision from follower must be less than or equal to leader's");
    }
    if own.second.compact_revision < hash.compact_revision {
        return Some("compact revision from follower must be less than or equal to leader's");
    }
    let comparable = hash.compact_revision == own.first.compact_revision;
    (comparable && hash.hash != own.first.hash)
        .then_some("same compact revision then hashes must match")
}

/// What the hashes of one compaction say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Compacted {
    /// All members have the leader's.
    Same,
    /// Nobody has another, but somebody has none.
    NotAll,
    /// These have others than a quorum has; 0 if there is no quorum of equal ones, so that nobody
    /// knows who is right.
    Differs(Vec<MemberId>),
}

/// Compares the hashes of one compaction.
pub(super) fn of_compaction(leader: MemberId, own: &HashKv, peers: &[Told]) -> Compacted {
    let mut groups = BTreeMap::from([(own.hash, vec![leader])]);
    let mut compared = 0;
    for (peer, told) in peers {
        match told {
            Ok(hash) if hash.compact_revision == own.compact_revision => {
                compared += 1;
                groups.entry(hash.hash).or_default().push(*peer);
            }
            Ok(_) | Err(_) => tracing::warn!(
                "leader-id" = %leader,
                "peer-id" = %peer,
                "Skipped peer's hash"
            ),
        }
    }
    if groups.len() == 1 {
        return if compared == peers.len() { Compacted::Same } else { Compacted::NotAll };
    }
    let quorum = peers.len().div_ceil(2) + 1;
    let right = groups.iter().find(|(_, members)| quorum <= members.len()).map(|(hash, _)| *hash);
    let Some(right) = right else {
        tracing::error!(
            "leader-id" = %leader,
            "leader-revision" = own.hash_revision.0,
            "Detected compaction hash mismatch but cannot identify the corrupted members, so \
             intentionally set the memberID as 0"
        );
        return Compacted::Differs(vec![MemberId(0)]);
    };
    groups.remove(&right);
    let members: Vec<_> = groups.into_values().flatten().collect();
    let shown: Vec<_> = members.iter().map(ToString::to_string).collect();
    tracing::error!(
        "leader-id" = %leader,
        "leader-revision" = own.hash_revision.0,
        "leader-compact-revision" = own.compact_revision.0,
        "leader-hash" = own.hash,
        "peer-ids" = shown.join(","),
        "Detected compaction hash mismatch"
    );
    Compacted::Differs(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: MemberId = MemberId(1);

    const fn hash(hash: u32, compacted: i64, revision: i64) -> HashKv {
        HashKv { hash, compact_revision: Revision(compacted), hash_revision: Revision(revision) }
    }

    const fn told(member: u64, hash: u32, compacted: i64, current: i64) -> Told {
        let (compact_revision, current) = (Revision(compacted), Revision(current));
        (MemberId(member), Ok(RemoteHash { hash, compact_revision, current }))
    }

    fn silent(member: u64) -> Told {
        (MemberId(member), Err(RemoteHashError::NoAnswer("down".to_owned())))
    }

    #[test]
    fn only_another_hash_of_the_same_rows_keeps_a_member_from_starting() {
        let own = hash(5, 2, 10);
        assert!(!differs_at_start(&own, &[told(2, 5, 2, 12), silent(3)]));
        assert!(!differs_at_start(&own, &[told(2, 6, 3, 12)]), "another compaction");
        assert!(differs_at_start(&own, &[silent(3), told(2, 6, 2, 12)]));
    }

    #[test]
    fn a_follower_may_be_behind_but_not_ahead_or_different() {
        let (first, second) = (hash(5, 2, 10), hash(7, 3, 12));
        let own = Own { member: LEADER, first, second, current: Revision(12) };
        let fine = [told(2, 5, 2, 9), silent(3), told(4, 9, 1, 12)];
        assert_eq!(differs_now(&own, &fine), None);
        assert_eq!(differs_now(&own, &[told(2, 5, 2, 13)]), Some(MemberId(2)), "ahead");
        assert_eq!(differs_now(&own, &[told(2, 5, 4, 12)]), Some(MemberId(2)), "compacted ahead");
        assert_eq!(differs_now(&own, &[told(2, 6, 2, 12)]), Some(MemberId(2)), "different");
        let unstable = Own { second: hash(6, 2, 10), ..own };
        assert_eq!(differs_now(&unstable, &fine), Some(LEADER), "its own data changed");
    }

    #[test]
    fn after_a_compaction_the_minority_is_suspected() {
        let own = hash(5, 2, 10);
        let check = |peers: &[Told]| of_compaction(LEADER, &own, peers);
        assert_eq!(check(&[told(2, 5, 2, 0), told(3, 5, 2, 0)]), Compacted::Same);
        assert_eq!(check(&[told(2, 5, 2, 0), silent(3)]), Compacted::NotAll);
        assert_eq!(check(&[told(2, 6, 1, 0), told(3, 5, 2, 0)]), Compacted::NotAll);
        let differs =
            |members: &[u64]| Compacted::Differs(members.iter().map(|id| MemberId(*id)).collect());
        assert_eq!(check(&[told(2, 6, 2, 0), told(3, 5, 2, 0)]), differs(&[2]));
        assert_eq!(check(&[told(2, 6, 2, 0), told(3, 6, 2, 0)]), differs(&[1]), "the leader");
        assert_eq!(check(&[told(2, 6, 2, 0), silent(3)]), differs(&[0]), "nobody knows");
        assert_eq!(check(&[told(2, 6, 2, 0)]), differs(&[0]), "one against one");
    }
}
