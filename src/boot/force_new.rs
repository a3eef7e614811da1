//! A member that goes on alone, because its operator has given the others up for lost.
//!
//! Decides what is added to the log: nothing that was not committed stays, this member gets a vote
//! if it has none, and all others are removed. Ids of member and cluster stay. Called by `open` if
//! `--force-new-cluster` is set.
//!
//! Source: etcd `server/etcdserver/bootstrap.go`, `server/storage/util.go`.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use proto::raftpb::{ConfChange, ConfChangeType, Entry, EntryType};

use crate::{
    cluster::{Member, MemberContext},
    model::{LogIndex, MemberId, Term, entry_data, entry_index, entry_kind, new_entry},
    storage::wal::{Recovered, Wal, WalError},
};

/// Leaves this member alone in the log and in what was recovered of it. `applied` is what the
/// backend holds, which was committed even if the log does not say so.
///
/// # Errors
/// - [`WalError`] if the log cannot be written.
pub(super) fn force_new_cluster(
    wal: &mut Wal,
    recovered: &mut Recovered,
    applied: LogIndex,
    peer_urls: Vec<String>,
) -> Result<(), WalError> {
    let commit_before = recovered.hard_state.commit.unwrap_or(0);
    let added = single_out(recovered, applied, peer_urls);
    wal.append(Some(&recovered.hard_state), &added, true)?;
    tracing::info!(
        "cluster-id" = %recovered.cluster,
        "local-member-id" = %recovered.member,
        "wal-commit-index" = commit_before,
        "commit-index" = recovered.hard_state.commit,
        "forcing restart member"
    );
    Ok(())
}

/// Changes what was recovered; the entries that were added to it.
fn single_out(recovered: &mut Recovered, applied: LogIndex, peer_urls: Vec<String>) -> Vec<Entry> {
    let commit = applied.max(LogIndex(recovered.hard_state.commit.unwrap_or(0)));
    let kept = recovered.entries.partition_point(|entry| entry_index(entry) <= commit);
    if kept < recovered.entries.len() {
        tracing::info!(
            "commit-index-from-wal" = commit.0,
            "number-of-discarded-entries" = recovered.entries.len() - kept,
            "discarding uncommitted WAL entries"
        );
    }
    recovered.entries.truncate(kept);
    let term = Term(recovered.hard_state.term.unwrap_or(0));
    let mut added = Vec::new();
    let mut last = recovered.entries.last().map_or(recovered.snapshot.index, entry_index);
    for change in changes(recovered, peer_urls) {
        last = last.next();
        let data = Bytes::from(change.encode_to_vec());
        added.push(new_entry(EntryType::EntryConfChange, term, last, data));
    }
    recovered.entries.extend(added.iter().cloned());
    recovered.hard_state.commit = Some(last.0);
    added
}

/// The changes that leave this member as the only one, itself first: there has to be a voter at any
/// time.
fn changes(recovered: &Recovered, peer_urls: Vec<String>) -> Vec<ConfChange> {
    let own = recovered.member;
    let votes = votes(recovered);
    let mut changes = Vec::new();
    let member = Member { id: own, ..Member::default() };
    let context = match votes.get(&own) {
        Some(true) => None,
        Some(false) => Some(MemberContext { member, is_promote: true }.to_json()),
        None => Some(Member { peer_urls, ..member }.to_json()),
    };
    if context.is_some() {
        changes.push(change(ConfChangeType::ConfChangeAddNode, own, context));
    }
    for other in votes.keys().filter(|id| **id != own) {
        changes.push(change(ConfChangeType::ConfChangeRemoveNode, *other, None));
    }
    changes
}

fn change(kind: ConfChangeType, id: MemberId, context: Option<Bytes>) -> ConfChange {
    let mut change = ConfChange { node_id: Some(id.0), context, ..ConfChange::default() };
    change.r#type = Some(kind.into());
    change
}

/// The members after all entries, and whether each votes.
fn votes(recovered: &Recovered) -> BTreeMap<MemberId, bool> {
    let snapshot = recovered.snapshot.conf_state.clone().unwrap_or_default();
    let voters = snapshot.voters.iter().map(|id| (MemberId(*id), true));
    let learners = snapshot.learners.iter().map(|id| (MemberId(*id), false));
    let mut votes: BTreeMap<_, _> = voters.chain(learners).collect();
    for entry in &recovered.entries {
        if entry_kind(entry) != Some(EntryType::EntryConfChange) {
            continue;
        }
        // What cannot be read changed nobody when it was applied.
        let Ok(change) = ConfChange::decode(entry_data(entry)) else { continue };
        let id = MemberId(change.node_id.unwrap_or(0));
        match change.r#type() {
            ConfChangeType::ConfChangeAddNode => drop(votes.insert(id, true)),
            ConfChangeType::ConfChangeAddLearnerNode => drop(votes.insert(id, false)),
            ConfChangeType::ConfChangeRemoveNode => drop(votes.remove(&id)),
            ConfChangeType::ConfChangeUpdateNode => {}
        }
    }
    votes
}

#[cfg(test)]
mod tests {
    use proto::raftpb::{ConfState, HardState};

    use super::*;
    use crate::{model::ClusterId, storage::wal::WalSnapshot};

    const OWN: MemberId = MemberId(2);

    fn entry(index: u64, kind: ConfChangeType, id: u64) -> Entry {
        let data = change(kind, MemberId(id), None).encode_to_vec();
        new_entry(EntryType::EntryConfChange, Term(3), LogIndex(index), data.into())
    }

    fn recovered(voters: &[u64], learners: &[u64], entries: Vec<Entry>) -> Recovered {
        let conf_state = ConfState {
            voters: voters.to_vec(),
            learners: learners.to_vec(),
            ..ConfState::default()
        };
        let snapshot =
            WalSnapshot { index: LogIndex(10), term: Term(3), conf_state: Some(conf_state) };
        let hard_state = HardState { term: Some(3), vote: Some(1), commit: Some(11) };
        Recovered { member: OWN, cluster: ClusterId(1), hard_state, entries, snapshot }
    }

    /// The kind, member and context of what is added.
    fn added(recovered: &mut Recovered, applied: u64) -> Vec<(ConfChangeType, u64, String)> {
        let added = single_out(recovered, LogIndex(applied), vec!["http://x:1".to_owned()]);
        let read = |entry: &Entry| {
            let change = ConfChange::decode(entry_data(entry)).expect("own bytes");
            let context = change.context.clone().unwrap_or_default();
            let context = String::from_utf8(context.to_vec()).expect("JSON");
            (change.r#type(), change.node_id.expect("a member"), context)
        };
        added.iter().map(read).collect()
    }

    #[test]
    fn others_go_and_what_was_not_committed_is_forgotten() {
        let add = ConfChangeType::ConfChangeAddNode;
        let learner = ConfChangeType::ConfChangeAddLearnerNode;
        let entries = vec![entry(11, learner, 7), entry(12, add, 8), entry(13, add, 9)];
        let mut recovered = recovered(&[1, 2, 3], &[], entries);
        let remove = ConfChangeType::ConfChangeRemoveNode;
        let expected = [1, 3, 7, 8].map(|id| (remove, id, String::new()));
        assert_eq!(added(&mut recovered, 12), expected, "applied entries were committed");
        assert_eq!(recovered.hard_state.commit, Some(16));
        let indexes: Vec<_> = recovered.entries.iter().map(entry_index).collect();
        assert_eq!(indexes, (11..=16).map(LogIndex).collect::<Vec<_>>());
    }

    #[test]
    fn a_learner_gets_its_vote_first_and_a_stranger_joins() {
        let add = ConfChangeType::ConfChangeAddNode;
        let remove = ConfChangeType::ConfChangeRemoveNode;
        let promotion = r#"{"id":2,"peerURLs":null,"isPromote":true}"#.to_owned();
        let mut learner = recovered(&[1], &[2], Vec::new());
        let expected = vec![(add, 2, promotion), (remove, 1, String::new())];
        assert_eq!(added(&mut learner, 10), expected);
        let mut stranger = recovered(&[1], &[], Vec::new());
        let joining = r#"{"id":2,"peerURLs":["http://x:1"]}"#.to_owned();
        let expected = vec![(add, 2, joining), (remove, 1, String::new())];
        assert_eq!(added(&mut stranger, 10), expected);
    }

    #[test]
    fn whoever_is_alone_already_stays_as_it_is() {
        let mut alone = recovered(&[2], &[], Vec::new());
        assert_eq!(added(&mut alone, 10), []);
        assert_eq!(alone.hard_state.commit, Some(10), "nothing after the snapshot was there");
    }
}
