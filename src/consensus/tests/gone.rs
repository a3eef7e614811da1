//! A follower that hears that its leader's process has ended.

use proto::raftpb::{ConfState, MessageType};

use super::{finish, from};
use crate::{
    consensus::{Config, Raft, RaftState, Role},
    model::MemberId,
};

const LEADER: MemberId = MemberId(2);
/// The random part of the election timeout, in ticks.
const EXTRA: u64 = 4;

/// Member 1 of three, which follows member 2 in term 1.
fn follower(config: Config) -> Raft {
    let conf_state = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
    let state = RaftState { conf_state, ..RaftState::default() };
    let mut raft = Raft::new(config, state, Box::new(|_| EXTRA)).unwrap();
    raft.step(from(LEADER.0, MessageType::MsgHeartbeat, 1)).unwrap();
    sent(&mut raft);
    raft
}

fn with_pre_vote() -> Raft {
    follower(Config::new(MemberId(1)))
}

fn sent(raft: &mut Raft) -> Vec<(u64, MessageType)> {
    finish(raft).iter().map(|message| (message.to(), message.r#type())).collect()
}

/// What is sent in the next `count` ticks, with the tick.
fn ticks(raft: &mut Raft, count: u64) -> Vec<(u64, u64, MessageType)> {
    let mut all = Vec::new();
    for tick in 1..=count {
        raft.tick();
        all.extend(sent(raft).into_iter().map(|(to, kind)| (tick, to, kind)));
    }
    all
}

#[test]
fn follower_of_a_gone_leader_waits_only_the_random_part_of_its_timeout() {
    let mut raft = with_pre_vote();
    raft.report_gone(LEADER);
    let asked = [2, 3].map(|to| (EXTRA + 1, to, MessageType::MsgPreVote));
    assert_eq!(ticks(&mut raft, EXTRA + 2), asked);
    assert_eq!(raft.role(), Role::PreCandidate);
}

#[test]
fn nobody_asks_later_because_it_asked_early() {
    let mut raft = with_pre_vote();
    ticks(&mut raft, 3);
    raft.report_gone(LEADER);
    let asked: Vec<u64> = ticks(&mut raft, 20).into_iter().map(|(tick, _, _)| tick).collect();
    let whole = u64::from(Config::new(MemberId(1)).election_ticks) + EXTRA - 3;
    assert_eq!(asked, [EXTRA + 1, EXTRA + 1, whole, whole], "after nobody answered");
}

#[test]
fn follower_of_a_gone_leader_listens_to_others_at_once() {
    let ask = || from(3, MessageType::MsgPreVote, 2);
    let mut raft = with_pre_vote();
    raft.step(ask()).unwrap();
    assert_eq!(sent(&mut raft), [], "its leader was just heard");
    raft.report_gone(LEADER);
    raft.step(ask()).unwrap();
    assert_eq!(sent(&mut raft), [(3, MessageType::MsgPreVoteResp)]);
    raft.step(from(3, MessageType::MsgVote, 2)).unwrap();
    assert_eq!(sent(&mut raft), [(3, MessageType::MsgVoteResp)]);
}

#[test]
fn leader_that_is_heard_again_is_not_gone() {
    let mut raft = with_pre_vote();
    raft.report_gone(LEADER);
    raft.step(from(LEADER.0, MessageType::MsgHeartbeat, 1)).unwrap();
    sent(&mut raft);
    raft.step(from(3, MessageType::MsgPreVote, 2)).unwrap();
    assert_eq!(sent(&mut raft), [], "the leader is in its lease");
    assert_eq!(ticks(&mut raft, EXTRA + 5), []);
}

#[test]
fn end_of_a_member_that_does_not_lead_is_of_no_interest() {
    let mut raft = with_pre_vote();
    raft.report_gone(MemberId(3));
    assert_eq!(ticks(&mut raft, EXTRA + 5), []);
    let mut leader = with_pre_vote();
    leader.step(from(LEADER.0, MessageType::MsgTimeoutNow, 1)).unwrap();
    sent(&mut leader);
    leader.step(from(3, MessageType::MsgVoteResp, 2)).unwrap();
    assert_eq!(leader.role(), Role::Leader);
    leader.report_gone(MemberId(1));
    leader.report_gone(LEADER);
    ticks(&mut leader, EXTRA + 2);
    assert_eq!(leader.role(), Role::Leader);
}

#[test]
fn second_report_changes_nothing() {
    let mut raft = with_pre_vote();
    raft.report_gone(LEADER);
    ticks(&mut raft, EXTRA);
    raft.report_gone(LEADER);
    assert_eq!(ticks(&mut raft, 1).len(), 2, "it asks when the first report made it ask");
    raft.report_gone(LEADER);
    assert_eq!(ticks(&mut raft, 2), []);
}

#[test]
fn wrong_report_does_not_depose_a_leader_that_others_hear() {
    let mut raft = with_pre_vote();
    raft.report_gone(LEADER);
    ticks(&mut raft, EXTRA + 1);
    assert_eq!(raft.term().0, 1, "asking costs no term");
    raft.step(from(LEADER.0, MessageType::MsgHeartbeat, 1)).unwrap();
    assert_eq!((raft.role(), raft.leader()), (Role::Follower, LEADER));
}

#[test]
fn without_pre_votes_the_whole_timeout_is_waited() {
    let mut raft = follower(Config { pre_vote: false, ..Config::new(MemberId(1)) });
    raft.report_gone(LEADER);
    assert_eq!(ticks(&mut raft, EXTRA + 5), []);
}
