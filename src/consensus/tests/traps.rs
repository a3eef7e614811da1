//! Mistakes that other Raft cores have made, each kept out by a script.

use bytes::Bytes;
use proto::raftpb::{
    ConfChange, ConfChangeType, ConfState, Entry, EntryType, HardState, Message, MessageType,
    Snapshot, SnapshotMetadata,
};

use super::{finish, from};
use crate::{
    consensus::{
        Batch, Config, ProgressState, ProposeError, Raft, RaftState, Ready, Role, StepError,
    },
    model::{LogIndex, MemberId, Term, entry_index, new_entry},
};

/// Member 1 of `voters`, with this log after an empty position 0, all of it applied.
fn member(voters: &[u64], terms: &[u64], config: Config) -> Raft {
    let entry = |(index, term): (u64, &u64)| {
        let data = Bytes::from(format!("entry {index} of term {term}"));
        new_entry(EntryType::EntryNormal, Term(*term), LogIndex(index), data)
    };
    let state = RaftState {
        hard_state: HardState { term: terms.last().copied(), vote: None, commit: None },
        conf_state: ConfState { voters: voters.to_vec(), ..ConfState::default() },
        snapshot: SnapshotMetadata::default(),
        entries: (1..).zip(terms).map(entry).collect(),
        applied: LogIndex(0),
    };
    Raft::new(config, state, Box::new(|_| 0)).unwrap()
}

fn three(terms: &[u64]) -> Raft {
    member(&[1, 2, 3], terms, Config { pre_vote: false, ..Config::new(MemberId(1)) })
}

fn ready(raft: &mut Raft) -> Ready {
    raft.ready().unwrap_or_default()
}

/// Makes a member of a group of three the leader, with 2's vote.
fn elect(raft: &mut Raft) {
    raft.campaign();
    finish(raft);
    raft.step(from(2, MessageType::MsgVoteResp, raft.term().0)).unwrap();
    assert_eq!(raft.role(), Role::Leader);
}

fn acknowledge(raft: &mut Raft, id: u64, index: u64) {
    let term = raft.term().0;
    let message = Message { index: Some(index), ..from(id, MessageType::MsgAppResp, term) };
    raft.step(message).unwrap();
}

fn kinds(messages: &[Message], to: u64) -> Vec<MessageType> {
    let to = messages.iter().filter(|message| message.to == Some(to));
    to.map(|message| MessageType::try_from(message.r#type.unwrap()).unwrap()).collect()
}

fn append(term: u64, previous: (u64, u64), terms: &[u64], commit: u64) -> Message {
    let entry = |(index, term): (u64, &u64)| Entry {
        r#type: None,
        term: Some(*term),
        index: Some(index),
        data: Some(Bytes::from_static(b"x")),
    };
    Message {
        log_term: Some(previous.0),
        index: Some(previous.1),
        entries: (previous.1 + 1..).zip(terms).map(entry).collect(),
        commit: Some(commit),
        ..from(2, MessageType::MsgApp, term)
    }
}

fn batch(raft: &mut Raft) -> Batch {
    ready(raft).batch.unwrap()
}

#[test]
fn a_late_heartbeat_answer_does_not_confirm_a_later_read() {
    let mut raft = three(&[]);
    elect(&mut raft);
    finish(&mut raft);
    acknowledge(&mut raft, 2, 1);
    finish(&mut raft);

    let context = Bytes::from_static(b"the same each time");
    raft.read_index(context.clone());
    let asked = ready(&mut raft).messages;
    let answer = |message: &Message| Message {
        context: message.context.clone(),
        ..from(message.to.unwrap(), MessageType::MsgHeartbeatResp, 1)
    };
    raft.step(answer(&asked[0])).unwrap();
    assert_eq!(ready(&mut raft).read_states.len(), 1);

    // 3 answers the first heartbeat only now; it may have elected somebody else since.
    raft.read_index(context);
    let asked_again = ready(&mut raft).messages;
    raft.step(answer(&asked[1])).unwrap();
    assert!(ready(&mut raft).read_states.is_empty());
    raft.step(answer(&asked_again[1])).unwrap();
    assert_eq!(ready(&mut raft).read_states.len(), 1);
}

#[test]
fn a_read_waits_for_the_first_commit_of_the_term() {
    let mut raft = three(&[1]);
    elect(&mut raft);
    finish(&mut raft);
    raft.read_index(Bytes::from_static(b"parked"));
    assert!(ready(&mut raft).messages.is_empty(), "no heartbeat carries a parked read");
    acknowledge(&mut raft, 2, 2);
    let heartbeats = finish(&mut raft);
    let heartbeat = heartbeats.iter().find(|message| message.context.is_some()).unwrap();
    let answer = from(2, MessageType::MsgHeartbeatResp, raft.term().0);
    raft.step(Message { context: heartbeat.context.clone(), ..answer }).unwrap();
    let states = ready(&mut raft).read_states;
    assert_eq!(states[0].index, LogIndex(2));
}

#[test]
fn a_refusal_never_moves_the_next_index_to_what_matches() {
    let mut raft = three(&[1, 1, 1, 1]);
    elect(&mut raft);
    finish(&mut raft);
    acknowledge(&mut raft, 2, 3);
    raft.report_unreachable(MemberId(2));
    // The refusal of the probe after 3 with a hint far below what is known to match.
    let refusal = Message {
        index: Some(3),
        reject: Some(true),
        reject_hint: Some(0),
        ..from(2, MessageType::MsgAppResp, raft.term().0)
    };
    raft.step(refusal).unwrap();
    let progress = raft.progress().find(|(id, _)| *id == MemberId(2)).unwrap().1;
    assert_eq!(progress.state(), ProgressState::Probe);
    assert_eq!(progress.matched(), LogIndex(3));
    assert_eq!(progress.next, LogIndex(4));
}

#[test]
fn a_leader_does_not_count_its_own_entry_before_it_is_durable() {
    let mut raft = three(&[]);
    elect(&mut raft);
    let batch = batch(&mut raft);
    assert_eq!(batch.entries.len(), 1);
    acknowledge(&mut raft, 2, 1);
    assert_eq!(raft.committed_index(), LogIndex(0), "one of three has it on disk");
    raft.persisted(batch.number);
    assert_eq!(raft.committed_index(), LogIndex(1));
}

#[test]
fn a_leader_commits_entries_of_earlier_terms_only_with_one_of_its_own() {
    let mut raft = three(&[1]);
    elect(&mut raft);
    finish(&mut raft);
    acknowledge(&mut raft, 2, 1);
    assert_eq!(raft.committed_index(), LogIndex(0), "another leader could still replace it");
    acknowledge(&mut raft, 2, 2);
    assert_eq!(raft.committed_index(), LogIndex(2));
}

#[test]
fn a_candidate_asks_for_votes_and_counts_its_own_only_after_its_term_is_durable() {
    let mut raft = three(&[1]);
    raft.campaign();
    let asked = ready(&mut raft);
    assert!(asked.messages.is_empty());
    let batch = asked.batch.unwrap();
    assert_eq!(kinds(&batch.messages, 2), [MessageType::MsgVote]);
    assert_eq!(batch.hard_state.unwrap().vote, Some(1));
    assert!(batch.must_sync);
    raft.step(from(2, MessageType::MsgVoteResp, 2)).unwrap();
    assert_eq!(raft.role(), Role::Candidate);
    raft.persisted(batch.number);
    assert_eq!(raft.role(), Role::Leader);
}

#[test]
fn a_late_report_does_not_confirm_entries_that_were_replaced() {
    let mut raft = three(&[]);
    raft.step(append(1, (0, 0), &[1, 1], 0)).unwrap();
    let old = batch(&mut raft);
    raft.step(append(2, (0, 0), &[2, 2], 2)).unwrap();
    let new = batch(&mut raft);
    raft.persisted(old.number);
    assert!(ready(&mut raft).committed.is_empty(), "the entries on disk are not these");
    raft.persisted(new.number);
    assert_eq!(ready(&mut raft).committed.len(), 2);
}

#[test]
fn an_acknowledgement_waits_for_the_disk() {
    let mut raft = three(&[]);
    raft.step(append(1, (0, 0), &[1], 0)).unwrap();
    let answered = ready(&mut raft);
    assert!(answered.messages.is_empty());
    let batch = answered.batch.unwrap();
    assert_eq!(kinds(&batch.messages, 2), [MessageType::MsgAppResp]);
    assert_eq!(batch.entries.len(), 1);
}

#[test]
fn a_removed_member_does_not_stand_for_election() {
    let mut raft = three(&[]);
    raft.step(append(1, (0, 0), &[1], 0)).unwrap();
    finish(&mut raft);
    let removal = ConfChange {
        r#type: Some(ConfChangeType::ConfChangeRemoveNode.into()),
        node_id: Some(1),
        ..ConfChange::default()
    };
    raft.apply_conf_change(&removal).unwrap();
    assert!(raft.is_removed());
    for _ in 0..100 {
        raft.tick();
    }
    raft.campaign();
    assert_eq!(raft.role(), Role::Follower);
    assert!(finish(&mut raft).is_empty());
}

#[test]
fn a_member_with_an_unapplied_change_of_membership_does_not_stand_for_election() {
    let mut raft = three(&[]);
    let mut message = append(1, (0, 0), &[1], 1);
    message.entries[0].r#type = Some(EntryType::EntryConfChange.into());
    raft.step(message).unwrap();
    let batch = batch(&mut raft);
    raft.persisted(batch.number);
    raft.campaign();
    assert_eq!(raft.role(), Role::Follower);
    finish(&mut raft);
    raft.campaign();
    assert_eq!(raft.role(), Role::Candidate);
}

#[test]
fn a_snapshot_of_any_index_that_reaches_the_log_resumes_streaming() {
    let mut raft = three(&[1, 1, 1, 1, 1]);
    elect(&mut raft);
    finish(&mut raft);
    acknowledge(&mut raft, 2, 6);
    finish(&mut raft);
    let snapshot =
        SnapshotMetadata { conf_state: Some(raft.conf_state()), index: Some(6), term: Some(2) };
    raft.snapshot_taken(Snapshot { data: None, metadata: Some(snapshot) });
    raft.truncate_to(LogIndex(4));
    let term = raft.term().0;
    let refusal =
        Message { index: Some(5), reject: Some(true), ..from(3, MessageType::MsgAppResp, term) };
    raft.step(refusal).unwrap();
    assert_eq!(kinds(&finish(&mut raft), 3), [MessageType::MsgSnap]);
    let state = |raft: &Raft| raft.progress().find(|(id, _)| *id == MemberId(3)).unwrap().1.state();
    assert_eq!(state(&raft), ProgressState::Snapshot);
    // Not enough: entry 4 is gone.
    acknowledge(&mut raft, 3, 3);
    assert_eq!(state(&raft), ProgressState::Snapshot);
    // Enough, although the snapshot that was asked for has index 6.
    acknowledge(&mut raft, 3, 4);
    assert_eq!(state(&raft), ProgressState::Replicate);
    let appends = finish(&mut raft);
    assert_eq!(appends.last().unwrap().index, Some(4));
    assert_eq!(appends.last().unwrap().entries.len(), 2);
}

#[test]
fn nothing_is_applied_while_a_snapshot_is_being_installed() {
    let mut raft = three(&[1]);
    let metadata =
        SnapshotMetadata { conf_state: Some(raft.conf_state()), index: Some(10), term: Some(2) };
    let snapshot = Snapshot { data: None, metadata: Some(metadata) };
    let message = Message { snapshot: Some(snapshot), ..from(2, MessageType::MsgSnap, 2) };
    raft.step(message).unwrap();
    raft.step(append(2, (2, 10), &[2], 11)).unwrap();
    let install = batch(&mut raft);
    assert!(install.snapshot.is_some());
    raft.persisted(install.number);
    assert!(ready(&mut raft).committed.is_empty());
    raft.campaign();
    assert_eq!(raft.role(), Role::Follower, "its state machine is behind its log");
    raft.applied(LogIndex(10));
    let committed = ready(&mut raft).committed;
    assert_eq!(committed.len(), 1);
    assert_eq!(entry_index(&committed[0]), LogIndex(11));
}

#[test]
fn a_second_snapshot_may_come_while_the_first_is_being_installed() {
    let mut raft = three(&[1]);
    let conf_state = Some(raft.conf_state());
    let install = |raft: &mut Raft, index| {
        let metadata =
            SnapshotMetadata { conf_state: conf_state.clone(), index: Some(index), term: Some(2) };
        let snapshot = Snapshot { data: None, metadata: Some(metadata) };
        let message = Message { snapshot: Some(snapshot), ..from(2, MessageType::MsgSnap, 2) };
        raft.step(message).unwrap();
        batch(raft).number
    };
    let first = install(&mut raft, 10);
    let second = install(&mut raft, 20);
    raft.persisted(first);
    raft.applied(LogIndex(10));
    raft.persisted(second);
    raft.campaign();
    assert_eq!(raft.role(), Role::Follower);
    raft.applied(LogIndex(20));
    raft.campaign();
    assert_eq!(raft.role(), Role::Candidate);
}

#[test]
fn a_log_that_is_truncated_without_a_snapshot_names_the_applied_position() {
    let mut raft = three(&[1, 1, 1]);
    elect(&mut raft);
    finish(&mut raft);
    acknowledge(&mut raft, 2, 4);
    finish(&mut raft);
    raft.truncate_to(LogIndex(2));
    let term = raft.term().0;
    let refusal =
        Message { index: Some(3), reject: Some(true), ..from(3, MessageType::MsgAppResp, term) };
    raft.step(refusal).unwrap();
    let messages = finish(&mut raft);
    let snapshot = messages.iter().find_map(|message| message.snapshot.clone()).unwrap();
    assert_eq!(snapshot.metadata.as_ref().unwrap().index, Some(4));
    assert_eq!(snapshot.metadata.unwrap().conf_state, Some(raft.conf_state()));
}

#[test]
fn a_vote_in_a_known_term_must_be_synced() {
    let mut raft = three(&[]);
    raft.step(from(3, MessageType::MsgVoteResp, 5)).unwrap();
    finish(&mut raft);
    raft.step(from(2, MessageType::MsgVote, 5)).unwrap();
    let batch = batch(&mut raft);
    assert!(batch.must_sync);
    assert_eq!(batch.hard_state.unwrap().vote, Some(2));
}

#[test]
fn a_member_that_hears_from_a_leader_ignores_other_candidates() {
    let mut raft = three(&[]);
    raft.step(append(1, (0, 0), &[1], 0)).unwrap();
    let vote = |context: Option<Bytes>| Message {
        index: Some(9),
        log_term: Some(1),
        context,
        ..from(3, MessageType::MsgVote, 5)
    };
    raft.step(vote(None)).unwrap();
    assert_eq!(raft.term(), Term(1));
    // Unless the leader wants it so.
    raft.step(vote(Some(Bytes::from_static(b"CampaignTransfer")))).unwrap();
    assert_eq!(raft.term(), Term(5));
    assert_eq!(kinds(&finish(&mut raft), 3), [MessageType::MsgVoteResp]);
}

#[test]
fn a_leader_without_a_quorum_steps_down() {
    let mut raft = three(&[]);
    elect(&mut raft);
    for _ in 0..10 {
        raft.tick();
    }
    assert_eq!(raft.role(), Role::Follower);
    assert_eq!(raft.propose(vec![Bytes::new()]), Err(ProposeError::NoLeader));
}

#[test]
fn a_message_from_a_peer_is_refused_and_never_fatal() {
    let mut raft = three(&[1, 1]);
    raft.step(append(1, (1, 2), &[], 2)).unwrap();
    finish(&mut raft);
    let refused = [
        (append(1, (1, 1), &[2, 1], 0), "falling terms"),
        (append(2, (1, 1), &[3], 0), "later than the sender's term"),
        (append(2, (0, 0), &[2], 0), "no refusal: what is committed is acknowledged"),
        (from(2, MessageType::MsgApp, u64::MAX), "a term beyond belief"),
        (from(2, MessageType::MsgHup, 3), "a local kind"),
        (from(2, MessageType::MsgStorageAppend, 3), "a kind that never travels"),
        (from(9, MessageType::MsgAppResp, 3), "a stranger's answer"),
        (from(1, MessageType::MsgApp, 3), "oneself"),
        (from(2, MessageType::MsgApp, 0), "no term"),
        (from(2, MessageType::MsgReadIndex, 3), "a term too many"),
        (Message { commit: Some(99), ..from(2, MessageType::MsgHeartbeat, 3) }, "lost log"),
        (Message { r#type: Some(77), ..from(2, MessageType::MsgApp, 3) }, "unknown kind"),
    ];
    for (message, why) in refused {
        let result = raft.step(message);
        assert_eq!(result.is_err(), !why.starts_with("no refusal"), "{why}: {result:?}");
    }
    let gap = append(3, (1, 2), &[3, 3], 0);
    let mut gap = Message { term: Some(4), ..gap };
    gap.entries.remove(0);
    assert!(matches!(raft.step(gap), Err(StepError::Malformed(_))));
}

#[test]
fn a_follower_that_claims_more_than_the_leader_has_is_not_believed() {
    let mut raft = three(&[]);
    elect(&mut raft);
    finish(&mut raft);
    let message = Message { index: Some(7), ..from(2, MessageType::MsgAppResp, raft.term().0) };
    assert_eq!(
        raft.step(message),
        Err(StepError::AnswerBeyondLog { index: LogIndex(7), last: LogIndex(1) })
    );
    assert_eq!(raft.committed_index(), LogIndex(0));
}

#[test]
fn a_second_change_of_membership_becomes_an_empty_entry_while_one_is_under_way() {
    let mut raft = member(&[1], &[], Config::new(MemberId(1)));
    raft.campaign();
    finish(&mut raft);
    let add = |id| ConfChange {
        r#type: Some(ConfChangeType::ConfChangeAddLearnerNode.into()),
        node_id: Some(id),
        ..ConfChange::default()
    };
    raft.propose_conf_change(&add(2)).unwrap();
    raft.propose_conf_change(&add(3)).unwrap();
    let kinds: Vec<Option<i32>> = batch(&mut raft).entries.iter().map(|it| it.r#type).collect();
    assert_eq!(kinds, [Some(1), Some(0)]);
}

#[test]
fn removing_the_last_voter_is_refused_and_changes_nothing() {
    let mut raft = member(&[1], &[], Config::new(MemberId(1)));
    let before = raft.conf_state();
    let remove = ConfChange {
        r#type: Some(ConfChangeType::ConfChangeRemoveNode.into()),
        node_id: Some(1),
        ..ConfChange::default()
    };
    assert!(raft.apply_conf_change(&remove).is_err());
    assert_eq!(raft.conf_state(), before);
}

#[test]
fn a_full_window_stops_the_stream_until_an_answer() {
    let config = Config { appends_in_flight_max: 2, ..Config::new(MemberId(1)) };
    let mut raft = member(&[1, 2, 3], &[], Config { pre_vote: false, ..config });
    elect(&mut raft);
    finish(&mut raft);
    acknowledge(&mut raft, 2, 1);
    finish(&mut raft);
    let appends = |raft: &mut Raft| {
        raft.propose(vec![Bytes::from_static(b"x")]).unwrap();
        kinds(&finish(raft), 2).len()
    };
    assert_eq!([appends(&mut raft), appends(&mut raft), appends(&mut raft)], [1, 1, 0]);
    acknowledge(&mut raft, 2, 2);
    assert!(!kinds(&finish(&mut raft), 2).is_empty());
}

#[test]
fn stale_entries_behind_a_snapshot_are_not_taken_up_again() {
    let entry = |index| new_entry(EntryType::EntryNormal, Term(2), LogIndex(index), Bytes::new());
    let state = RaftState {
        hard_state: HardState { term: Some(3), vote: None, commit: Some(15) },
        conf_state: ConfState { voters: vec![1, 2, 3], ..ConfState::default() },
        snapshot: SnapshotMetadata { index: Some(15), term: Some(3), conf_state: None },
        entries: vec![entry(16), entry(17)],
        applied: LogIndex(15),
    };
    let raft = Raft::new(Config::new(MemberId(1)), state, Box::new(|_| 0)).unwrap();
    assert_eq!(raft.last_index(), LogIndex(15));
}

#[test]
fn leadership_is_handed_to_a_member_that_has_everything() {
    let mut raft = three(&[]);
    elect(&mut raft);
    finish(&mut raft);
    raft.transfer_leader(MemberId(2));
    assert_eq!(
        raft.propose(vec![Bytes::from_static(b"x")]),
        Err(ProposeError::Transferring { to: MemberId(2) })
    );
    assert!(!kinds(&finish(&mut raft), 2).contains(&MessageType::MsgTimeoutNow));
    acknowledge(&mut raft, 2, 1);
    assert!(kinds(&finish(&mut raft), 2).contains(&MessageType::MsgTimeoutNow));
    // Nothing came of it.
    acknowledge(&mut raft, 3, 1);
    for _ in 0..10 {
        raft.tick();
    }
    assert_eq!(raft.transferee(), None);
}
