//! Scripts on the core of a replica: inputs, and what they make happen.

use proto::raftpb::{ConfChangeType, ConfState, EntryType, HardState};

use super::*;
use crate::{
    consensus::{Config, RaftState},
    model::{Answer, RequestId, Term, entry_data, entry_index},
};

const ONE: MemberId = MemberId(1);

fn lone_voter() -> Core {
    let conf_state = ConfState { voters: vec![ONE.0], ..ConfState::default() };
    let hard_state = HardState::default();
    let state = RaftState { hard_state, conf_state, ..RaftState::default() };
    let dice = Box::new(|_| 0);
    let raft = Raft::new(Config::new(ONE), state, dice).expect("the state is legal");
    let settings = CoreSettings {
        catch_up_entries: 10,
        truncate_every_entries: TRUNCATE_EVERY_ENTRIES,
        park_ticks_max: 3,
    };
    Core::new(raft, settings)
}

/// Carries effects out until nothing happens any more, with a disk that is done at once. `applied`
/// hears of each entry that is to be applied. Gives what was sent, and those entries.
fn carry_out(core: &mut Core, applied: fn(&mut Core, LogIndex)) -> (Vec<Message>, Vec<Entry>) {
    let (mut sent, mut to_apply) = (Vec::new(), Vec::new());
    loop {
        let effects = core.take_effects();
        if effects.is_empty() {
            return (sent, to_apply);
        }
        for effect in effects {
            match effect {
                Effect::Persist(batch) => core.handle(Input::Persisted(batch.number)),
                Effect::Apply(entries) => {
                    entries.iter().for_each(|entry| applied(core, entry_index(entry)));
                    to_apply.extend(entries);
                }
                Effect::Send(messages) => sent.extend(messages),
                Effect::Install(snapshot) => panic!("nobody sent {snapshot:?}"),
                Effect::ConfirmRead { .. } | Effect::Answer { .. } | Effect::Leadership(_) => {}
            }
        }
    }
}

/// Makes everything durable and applied, in a group of one; what was applied.
fn settle(core: &mut Core) -> Vec<Bytes> {
    let (sent, applied) = carry_out(core, Core::note_applied);
    assert_eq!(sent, [], "nobody to send to");
    applied.iter().map(entry_data).collect()
}

/// Makes everything durable and nothing applied; the last entry handed out for that.
fn commit(core: &mut Core) -> LogIndex {
    let (_, committed) = carry_out(core, |_, _| {});
    committed.last().map_or(LogIndex(0), entry_index)
}

/// Makes everything durable and applied; what was sent.
fn persist_all(core: &mut Core) -> Vec<Message> {
    carry_out(core, Core::note_applied).0
}

#[test]
fn what_a_leader_decides_is_not_passed_on_to_another_term() {
    let mut core = lone_voter();
    core.handle(Input::ProposeAsLeader(Term(1), "nobody leads yet".into()));
    core.campaign_if_alone();
    settle(&mut core);
    let term = core.raft().term();
    core.handle(Input::ProposeAsLeader(Term(term.0 - 1), "of an earlier term".into()));
    core.handle(Input::ProposeAsLeader(term, "mine".into()));
    let applied: Vec<_> = settle(&mut core).into_iter().filter(|data| !data.is_empty()).collect();
    assert_eq!(applied, [Bytes::from_static(b"mine")]);
}

#[test]
fn proposal_made_before_the_election_is_applied_after_it() {
    let mut core = lone_voter();
    core.handle(Input::Propose("early".into()));
    assert!(settle(&mut core).is_empty());
    core.campaign_if_alone();
    assert_eq!(settle(&mut core), ["", "early"]);
}

#[test]
fn parked_proposal_is_forgotten_when_its_caller_has_given_up() {
    let mut core = lone_voter();
    core.handle(Input::Propose("late".into()));
    for _ in 0..5 {
        core.handle(Input::Tick);
    }
    core.campaign_if_alone();
    assert_eq!(settle(&mut core), [""]);
}

#[test]
fn nothing_is_applied_before_it_is_durable() {
    let mut core = lone_voter();
    core.campaign_if_alone();
    settle(&mut core);
    core.handle(Input::Propose("a".into()));
    let effects = core.take_effects();
    assert!(matches!(effects.as_slice(), [Effect::Persist(_)]), "{effects:?}");
}

#[test]
fn change_of_membership_may_follow_the_answer_to_the_one_before() {
    let mut core = lone_voter();
    core.campaign_if_alone();
    settle(&mut core);
    // Refused by the state machine, so a change of nobody.
    let change = || Box::new(ConfChange { node_id: Some(0), ..ConfChange::default() });
    core.handle(Input::ProposeConfChange(change()));
    let index = commit(&mut core);
    let (id, outcome) = (RequestId(7), Ok(Answer::Done));
    core.handle(Input::ConfChange { index, change: change(), id, outcome });
    core.handle(Input::ProposeConfChange(change()));
    let kinds = core.take_effects().into_iter().filter_map(|effect| {
        let Effect::Persist(batch) = effect else { return None };
        batch.entries.first().and_then(entry_kind)
    });
    let kinds: Vec<EntryType> = kinds.collect();
    assert_eq!(kinds, [EntryType::EntryConfChange], "the second change was not taken");
}

/// A leader of two whose other member answers when the test says so.
fn leader_of_two() -> Core {
    let conf_state = ConfState { voters: vec![ONE.0, 2], ..ConfState::default() };
    let state = RaftState { conf_state, ..RaftState::default() };
    let config = Config { pre_vote: false, ..Config::new(ONE) };
    let raft = Raft::new(config, state, Box::new(|_| 0)).expect("the state is legal");
    let settings =
        CoreSettings { catch_up_entries: 10, truncate_every_entries: 100, park_ticks_max: 3 };
    let mut core = Core::new(raft, settings);
    core.raft.campaign();
    assert_eq!(persist_all(&mut core).len(), 1, "a vote is asked for");
    let vote = Message {
        r#type: Some(MessageType::MsgVoteResp.into()),
        from: Some(2),
        to: Some(ONE.0),
        term: Some(1),
        ..Message::default()
    };
    core.handle(Input::Peer(Box::new(vote)));
    persist_all(&mut core);
    assert_eq!(core.raft.role(), Role::Leader);
    core.handle(Input::Peer(Box::new(acknowledges(LogIndex(1)))));
    persist_all(&mut core);
    core
}

fn acknowledges(index: LogIndex) -> Message {
    Message {
        r#type: Some(MessageType::MsgAppResp.into()),
        from: Some(2),
        to: Some(ONE.0),
        term: Some(1),
        index: Some(index.0),
        ..Message::default()
    }
}

fn written(effects: &[Effect]) -> Vec<(BatchNumber, usize)> {
    let written = effects.iter().filter_map(|effect| {
        let Effect::Persist(batch) = effect else { return None };
        Some((batch.number, batch.entries.len()))
    });
    written.collect()
}

#[test]
fn what_comes_while_a_leader_writes_is_proposed_together_when_it_has_written() {
    let mut core = leader_of_two();
    core.handle(Input::Propose("a".into()));
    let [(number, 1)] = written(&core.take_effects())[..] else { panic!("one is written") };
    assert!(core.holds_proposals());
    core.handle(Input::Propose("b".into()));
    let entry = Entry { data: Some("c".into()), ..Entry::default() };
    let forwarded = Message {
        r#type: Some(MessageType::MsgProp.into()),
        from: Some(2),
        to: Some(ONE.0),
        entries: vec![entry],
        ..Message::default()
    };
    core.handle(Input::Peer(Box::new(forwarded)));
    assert!(written(&core.take_effects()).is_empty(), "the write is under way");
    core.handle(Input::Persisted(number));
    core.handle(Input::Peer(Box::new(acknowledges(LogIndex(2)))));
    let effects = core.take_effects();
    let [(_, 2)] = written(&effects)[..] else { panic!("{effects:?}") };
    let sent: Vec<&Message> = effects
        .iter()
        .filter_map(|effect| {
            let Effect::Send(messages) = effect else { return None };
            Some(messages)
        })
        .flatten()
        .collect();
    let [message] = sent[..] else { panic!("the commit travels with the entries: {sent:?}") };
    assert_eq!((message.entries.len(), message.commit), (2, Some(2)));
}

#[test]
fn reads_that_come_while_a_round_is_under_way_share_the_next_one() {
    let mut core = leader_of_two();
    let ask = |context: u8| Message {
        r#type: Some(MessageType::MsgReadIndex.into()),
        from: Some(2),
        to: Some(ONE.0),
        entries: vec![Entry { data: Some(vec![context].into()), ..Entry::default() }],
        ..Message::default()
    };
    let heartbeats = |core: &mut Core| -> Vec<Message> {
        let kind = Some(MessageType::MsgHeartbeat.into());
        persist_all(core).into_iter().filter(|message| message.r#type == kind).collect()
    };
    let confirm = |heartbeat: &Message| Message {
        r#type: Some(MessageType::MsgHeartbeatResp.into()),
        from: Some(2),
        to: Some(ONE.0),
        term: Some(1),
        context: heartbeat.context.clone(),
        ..Message::default()
    };
    core.handle(Input::Peer(Box::new(ask(1))));
    let [first] = &heartbeats(&mut core)[..] else { panic!("one round begins") };
    core.handle(Input::Peer(Box::new(ask(2))));
    core.read(3);
    assert!(heartbeats(&mut core).is_empty(), "a round is under way");
    core.handle(Input::Peer(Box::new(confirm(first))));
    let [second] = &heartbeats(&mut core)[..] else { panic!("one round for both") };
    core.handle(Input::Peer(Box::new(ask(4))));
    assert!(heartbeats(&mut core).is_empty());
    core.handle(Input::Tick);
    assert!(!heartbeats(&mut core).is_empty(), "a lost round holds nobody up");
    core.handle(Input::Peer(Box::new(confirm(second))));
    let answered = core
        .take_effects()
        .into_iter()
        .any(|effect| matches!(effect, Effect::ConfirmRead { context: 3, .. }));
    assert!(answered);
}

#[test]
fn reads_need_no_round_once_the_lone_voter_has_applied_its_log() {
    let mut core = lone_voter();
    assert!(!core.leadership.reads_without_round);
    core.campaign_if_alone();
    let committed = commit(&mut core);
    assert!(!core.leadership.reads_without_round, "what was acknowledged is not applied yet");
    core.note_applied(committed);
    core.take_effects();
    assert!(core.leadership.reads_without_round);
}

fn change(kind: ConfChangeType, id: u64) -> Box<ConfChange> {
    Box::new(ConfChange { r#type: Some(kind.into()), node_id: Some(id), ..ConfChange::default() })
}

fn make_change(core: &mut Core, change: Box<ConfChange>) {
    core.handle(Input::ProposeConfChange(change.clone()));
    let index = commit(core);
    let (id, outcome) = (RequestId(0), Ok(Answer::Done));
    core.handle(Input::ConfChange { index, change, id, outcome });
    core.take_effects();
}

#[test]
fn reads_need_rounds_while_a_learner_may_be_ahead() {
    let mut core = lone_voter();
    core.campaign_if_alone();
    settle(&mut core);
    make_change(&mut core, change(ConfChangeType::ConfChangeAddLearnerNode, 2));
    assert!(!core.leadership.reads_without_round);
    make_change(&mut core, change(ConfChangeType::ConfChangeRemoveNode, 2));
    assert!(core.leadership.reads_without_round, "alone, with the whole log applied");
}

#[test]
fn reads_need_rounds_until_all_is_applied_that_a_former_member_may_have_applied() {
    let mut core = lone_voter();
    core.campaign_if_alone();
    settle(&mut core);
    make_change(&mut core, change(ConfChangeType::ConfChangeAddLearnerNode, 2));
    let removal = change(ConfChangeType::ConfChangeRemoveNode, 2);
    core.handle(Input::ProposeConfChange(removal.clone()));
    let index = commit(&mut core);
    core.handle(Input::Propose("sent to the learner, too".into()));
    let last = commit(&mut core);
    let (id, outcome) = (RequestId(0), Ok(Answer::Done));
    core.handle(Input::ConfChange { index, change: removal, id, outcome });
    core.take_effects();
    assert!(!core.leadership.reads_without_round);
    core.note_applied(last);
    core.take_effects();
    assert!(core.leadership.reads_without_round);
}
