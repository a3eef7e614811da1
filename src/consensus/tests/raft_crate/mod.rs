//! Mixed groups: some members run the `raft` crate, an independent implementation of the same
//! protocol. Under crashes, partitions, lost, doubled and reordered messages, snapshots and changes
//! of membership, whatever one kind commits the other one commits, and both know the same members.
//!
//! `OXETCD_SEED` runs one seed, `OXETCD_SEEDS` that many.
//!
//! What the crate does otherwise, and what is therefore left out or allowed here
//! - It draws election timeouts itself; each of its members gets a fixed one instead.
//! - Its leader forgets reads that come before its term's first commit. Reads may stay unanswered.
//! - Its in-memory storage stamps a snapshot with the present membership and the commit index, so
//!   each of its members applies everything at once before it does anything else.
//! - It lists members in no order.
//! - A leader that has removed itself panics when it is given a proposal or has written its log. It is
//!   stopped at once; ours goes on until its server stops it.
//! - It has another number for learners, and does not know etcd's updates of members.
//! - It tells of a snapshot's fate by itself when the receiver acknowledges a later entry, and waits
//!   for a report otherwise, as we do: whoever carries a snapshot reports.

mod member;
mod ours;
mod theirs;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::raftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Message,
};

use self::{
    member::{FOUNDED, Member},
    ours::Ours,
    theirs::Theirs,
};
use super::{cluster::Seeded, run_seeds};
use crate::model::{LogIndex, Term};

const MEMBERS: u64 = 5;
const FOUNDERS: u64 = 3;
const ACTIONS: usize = 4_000;
const SEEDS: u64 = 30;

/// A group of both kinds, and what must be true of it.
struct Group {
    is_ours: fn(u64) -> bool,
    members: BTreeMap<u64, Box<dyn Member>>,
    network: Vec<Message>,
    random: Seeded,
    cut: Option<u64>,
    leaders: BTreeMap<Term, u64>,
    applied: BTreeMap<LogIndex, (Term, Bytes)>,
    conf_states: BTreeMap<LogIndex, ConfState>,
    reads: BTreeMap<Bytes, LogIndex>,
    seen: Seen,
}

/// How often something happened, so that a run cannot pass for lack of events.
#[derive(Debug, Default)]
struct Seen {
    kinds_that_led: BTreeSet<bool>,
    snapshots: usize,
    reads: usize,
    changes: usize,
}

impl Group {
    fn new(seed: u64, is_ours: fn(u64) -> bool) -> Self {
        let mut random = Seeded(seed);
        let founders = ConfState {
            voters: (1..=FOUNDERS).collect(),
            auto_leave: Some(false),
            ..ConfState::default()
        };
        let members = (1..=MEMBERS).map(|id| {
            let known = (id <= FOUNDERS).then_some(&founders);
            let member: Box<dyn Member> = if is_ours(id) {
                Box::new(Ours::new(id, known, Seeded(random.below(u64::MAX))))
            } else {
                Box::new(Theirs::new(id, known))
            };
            (id, member)
        });
        let mut members: BTreeMap<_, _> = members.collect();
        members.values_mut().for_each(|member| member.start());
        Self {
            is_ours,
            members,
            network: Vec::new(),
            random,
            cut: None,
            leaders: BTreeMap::new(),
            applied: BTreeMap::new(),
            conf_states: BTreeMap::from([(FOUNDED.0, founders)]),
            reads: BTreeMap::new(),
            seen: Seen::default(),
        }
    }

    fn member(&mut self, id: u64) -> Option<&mut Box<dyn Member>> {
        self.members.get_mut(&id).filter(|member| member.is_running())
    }

    fn leader(&self) -> Option<u64> {
        let leaders = self.members.iter().filter_map(|(id, member)| Some((member.leads()?, *id)));
        leaders.max().map(|(_, id)| id)
    }

    /// Lets `id` do its work, and checks what came of it.
    fn turn(&mut self, id: u64) {
        let Some(member) = self.member(id) else { return };
        let turn = member.turn();
        let leads = member.leads();
        if let Some(term) = leads {
            let first = *self.leaders.entry(term).or_insert(id);
            assert_eq!(first, id, "two lead term {term}");
            self.seen.kinds_that_led.insert((self.is_ours)(id));
        }
        if let Some((index, conf_state)) = turn.installed {
            let (_, known) = self.conf_states.range(..=index).next_back().expect("founders");
            assert_eq!(&sorted(conf_state), known, "{id} installed other members at {index}");
            self.seen.snapshots += 1;
        }
        for (index, term, data) in turn.applied {
            let first = self.applied.entry(index).or_insert_with(|| (term, data.clone()));
            assert_eq!(*first, (term, data), "{id} applied something else at {index}");
        }
        let mut is_removed = false;
        for (index, conf_state) in turn.conf_states {
            let conf_state = sorted(conf_state);
            is_removed = !is_member(&conf_state, id);
            let first = self.conf_states.entry(index).or_insert_with(|| conf_state.clone());
            assert_eq!(*first, conf_state, "{id} has other members after {index}");
            self.seen.changes += 1;
        }
        for (context, index) in turn.reads {
            let seen = self.reads[&context];
            assert!(seen <= index, "a read of {id} at {index} misses {seen}");
            self.seen.reads += 1;
        }
        self.network.extend(turn.messages);
        if is_removed && leads.is_some() && !(self.is_ours)(id) {
            self.members.get_mut(&id).expect("it had a turn").crash();
        }
    }

    fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let at = if self.random.one_in(3) { self.random.index(self.network.len()) } else { 0 };
        let message = self.network.remove(at);
        let (from, to) = (message.from(), message.to());
        let is_cut = (Some(from) == self.cut) != (Some(to) == self.cut);
        let is_lost = is_cut || self.random.one_in(20);
        if !is_lost && self.random.one_in(20) {
            self.network.push(message.clone());
        }
        self.hand_over(message, !is_lost);
    }

    fn hand_over(&mut self, message: Message, arrives: bool) {
        let (from, to) = (message.from(), message.to());
        let is_snapshot = message.snapshot.as_ref().is_some_and(|it| it.metadata.is_some());
        let arrived = arrives && self.member(to).map(|member| member.step(message)).is_some();
        if is_snapshot && let Some(sender) = self.member(from) {
            sender.report_snapshot(to, arrived);
        }
    }

    fn act(&mut self) {
        let id = 1 + self.random.below(MEMBERS);
        let what = self.random.below(1000);
        if (985..990).contains(&what) {
            self.members.get_mut(&id).expect("one of all").start();
        }
        if (500..520).contains(&what) {
            return self.ask_for_a_read(id);
        }
        if (970..976).contains(&what) {
            return self.change_members(id);
        }
        let other = 1 + self.random.below(MEMBERS);
        let payload = Bytes::from(format!("payload {}", self.random.below(u64::MAX)));
        let cut = self.cut;
        let Some(member) = self.member(id) else { return };
        match what {
            0..100 => member.tick(),
            520..570 => member.propose(payload),
            570..575 => member.transfer(other),
            575..580 => member.report_unreachable(other),
            580..590 => member.compact(),
            976..980 => member.crash(),
            980..985 => self.cut = if cut.is_some() { None } else { Some(id) },
            _ => self.deliver(),
        }
    }

    fn ask_for_a_read(&mut self, id: u64) {
        let seen = self.applied.last_key_value().map_or(LogIndex(0), |(index, _)| *index);
        let context = Bytes::from(format!("read {}", self.random.below(u64::MAX)));
        if let Some(member) = self.member(id) {
            member.read(context.clone());
            self.reads.insert(context, seen);
        }
    }

    fn change_members(&mut self, about: u64) {
        let Some(leader) = self.leader() else { return };
        let kind = match self.random.below(4) {
            0 | 1 => ConfChangeType::ConfChangeAddNode,
            2 => ConfChangeType::ConfChangeAddLearnerNode,
            _ => ConfChangeType::ConfChangeRemoveNode,
        };
        let (_, known) = self.conf_states.last_key_value().expect("founders");
        // Two that lose one of them may not be able to go on, and nobody can mend that.
        if known.voters.len() <= 3 && kind != ConfChangeType::ConfChangeAddNode {
            return;
        }
        let single = |kind: ConfChangeType, id| ConfChangeSingle {
            r#type: Some(kind.into()),
            node_id: Some(id),
        };
        let mut change = ConfChangeV2 { changes: vec![single(kind, about)], ..Default::default() };
        if self.random.one_in(3) {
            let other = 1 + self.random.below(MEMBERS);
            change.changes.push(single(ConfChangeType::ConfChangeAddNode, other));
            change.transition = Some(ConfChangeTransition::JointImplicit.into());
        }
        self.member(leader).expect("it leads").propose_change(&change);
    }

    /// Without further trouble there is a leader, and every member knows what it knows.
    fn settle(&mut self) {
        self.cut = None;
        self.members.values_mut().for_each(|member| member.start());
        let mut target = None;
        for round in 0..3_000 {
            for id in 1..=MEMBERS {
                let Some(member) = self.member(id) else { continue };
                member.tick();
                self.turn(id);
            }
            for message in std::mem::take(&mut self.network) {
                self.hand_over(message, true);
            }
            let Some(leader) = self.leader() else { continue };
            let (_, known) = self.conf_states.last_key_value().expect("founders");
            if round == 100 && !is_member(known, leader) {
                // As the server of a member that was removed ends, after a while.
                self.members.get_mut(&leader).expect("it leads").crash();
                continue;
            }
            if round == 500 {
                let payload = Bytes::from_static(b"the last one");
                self.member(leader).expect("it leads").propose(payload);
            }
            let last = self.applied.iter().next_back();
            let is_last = last.is_some_and(|(_, (_, data))| data == "the last one");
            target = if is_last { last.map(|(index, _)| *index) } else { target };
            let (_, known) = self.conf_states.last_key_value().expect("founders");
            let members: Vec<u64> = known.voters.iter().chain(&known.learners).copied().collect();
            if target
                .is_some_and(|target| members.iter().all(|id| target <= self.members[id].applied()))
            {
                return;
            }
        }
        let members: Vec<_> = self
            .members
            .iter()
            .map(|(id, member)| {
                let (ours, leads) = ((self.is_ours)(*id), member.leads());
                format!("{id}: ours={ours} leads={leads:?} applied={}", member.applied())
            })
            .collect();
        panic!("the group did not settle:\n{}\n{:?}", members.join("\n"), self.conf_states);
    }
}

fn is_member(conf_state: &ConfState, id: u64) -> bool {
    let ConfState { voters, learners, voters_outgoing, learners_next, .. } = conf_state;
    [voters, learners, voters_outgoing, learners_next].iter().any(|ids| ids.contains(&id))
}

/// Lists in order, and nothing left unsaid.
fn sorted(mut conf_state: ConfState) -> ConfState {
    let ConfState { voters, learners, voters_outgoing, learners_next, auto_leave } =
        &mut conf_state;
    for ids in [voters, learners, voters_outgoing, learners_next] {
        ids.sort_unstable();
    }
    *auto_leave = Some(auto_leave.unwrap_or(false));
    conf_state
}

fn run(name: &str, is_ours: fn(u64) -> bool) {
    let all = run_seeds(name, SEEDS, |seed| {
        let mut group = Group::new(seed, is_ours);
        for _ in 0..ACTIONS {
            group.act();
            (1..=MEMBERS).for_each(|id| group.turn(id));
        }
        group.settle();
        group.seen
    });
    let count = all.len();
    let mut total = Seen::default();
    for seen in all {
        total.kinds_that_led.extend(seen.kinds_that_led);
        total.snapshots += seen.snapshots;
        total.reads += seen.reads;
        total.changes += seen.changes;
    }
    let is_vacuous = total.kinds_that_led.len() < 2
        || total.snapshots == 0
        || total.reads == 0
        || total.changes == 0;
    assert!(count < 10 || !is_vacuous, "{name}: {total:?}");
}

#[test]
fn a_group_in_which_one_founder_runs_the_raft_crate_agrees() {
    run("mostly ours", |id| id != 2 && id != 4);
}

#[test]
fn a_group_in_which_one_founder_is_ours_agrees() {
    run("mostly theirs", |id| id == 2 || id == 4);
}
