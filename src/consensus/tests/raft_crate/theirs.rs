//! A member that runs the `raft` crate. Messages cross as bytes.

use bytes::Bytes;
use prost::Message as _;
use prost_of_raft::Message as _;
use proto::raftpb::{ConfChangeType, ConfChangeV2, ConfState, Entry, Message};
use raft::{
    RawNode, SnapshotStatus, StateRole, eraftpb,
    storage::{MemStorage, Storage as _},
};

use super::member::{FOUNDED, Member, Turn, change_of};
use crate::model::{LogIndex, Term};

/// One of theirs, with the crate's own storage.
pub(super) struct Theirs {
    id: u64,
    node: Option<RawNode<MemStorage>>,
    storage: MemStorage,
    applied: LogIndex,
}

fn ours_of(message: &eraftpb::Message) -> Message {
    Message::decode(message.encode_to_vec().as_slice()).expect("the formats are the same")
}

fn our_conf_state(conf_state: &eraftpb::ConfState) -> ConfState {
    ConfState::decode(conf_state.encode_to_vec().as_slice()).expect("the formats are the same")
}

/// The same change; the crate has another number for learners, and none for etcd's updates.
fn their_change(change: &ConfChangeV2) -> eraftpb::ConfChangeV2 {
    let changes = change.changes.iter().map(|single| {
        let node_id = single.node_id();
        let mut theirs = eraftpb::ConfChangeSingle { node_id, ..Default::default() };
        theirs.set_change_type(match single.r#type() {
            ConfChangeType::ConfChangeAddNode => eraftpb::ConfChangeType::AddNode,
            ConfChangeType::ConfChangeRemoveNode => eraftpb::ConfChangeType::RemoveNode,
            ConfChangeType::ConfChangeAddLearnerNode => eraftpb::ConfChangeType::AddLearnerNode,
            ConfChangeType::ConfChangeUpdateNode => panic!("nobody proposes an update"),
        });
        theirs
    });
    let changes = changes.collect();
    let transition = change.transition.unwrap_or(0);
    eraftpb::ConfChangeV2 { transition, changes, ..Default::default() }
}

impl Theirs {
    /// A founder among `founders`, or a newcomer who knows nobody.
    pub(super) fn new(id: u64, founders: Option<&ConfState>) -> Self {
        let storage = MemStorage::new();
        let mut applied = LogIndex(0);
        if let Some(founders) = founders {
            let mut snapshot = eraftpb::Snapshot::default();
            let metadata = snapshot.mut_metadata();
            (metadata.index, metadata.term) = (FOUNDED.0.0, FOUNDED.1.0);
            metadata.mut_conf_state().voters.clone_from(&founders.voters);
            storage.wl().apply_snapshot(snapshot).expect("nothing is there yet");
            applied = FOUNDED.0;
        }
        Self { id, node: None, storage, applied }
    }

    fn node(&mut self) -> &mut RawNode<MemStorage> {
        self.node.as_mut().expect("it runs")
    }

    fn apply(&mut self, entries: Vec<eraftpb::Entry>, turn: &mut Turn) {
        for entry in entries {
            self.applied = LogIndex(entry.index);
            turn.applied.push((self.applied, Term(entry.term), entry.data.clone().into()));
            let entry = Entry::decode(entry.encode_to_vec().as_slice()).expect("the same format");
            let Some(change) = change_of(&entry) else { continue };
            let change = their_change(&change);
            if let Ok(conf_state) = self.node().apply_conf_change(&change) {
                turn.conf_states.push((self.applied, our_conf_state(&conf_state)));
                self.storage.wl().set_conf_state(conf_state);
            }
        }
    }
}

impl Member for Theirs {
    fn start(&mut self) {
        if self.node.is_some() {
            return;
        }
        let ticks = 10 + 2 * usize::try_from(self.id).expect("small");
        let config = raft::Config {
            id: self.id,
            election_tick: 10,
            heartbeat_tick: 1,
            min_election_tick: ticks,
            max_election_tick: ticks + 1,
            applied: self.applied.0,
            max_size_per_msg: 200,
            max_inflight_msgs: 4,
            check_quorum: true,
            pre_vote: true,
            ..raft::Config::default()
        };
        let silent = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, self.storage.clone(), &silent);
        self.node = Some(node.expect("it was written like that"));
    }

    fn crash(&mut self) {
        self.node = None;
    }

    fn is_running(&self) -> bool {
        self.node.is_some()
    }

    fn tick(&mut self) {
        self.node().tick();
    }

    fn step(&mut self, message: Message) {
        let bytes = message.encode_to_vec();
        let message = eraftpb::Message::decode(bytes.as_slice()).expect("the formats are the same");
        self.node().step(message).ok();
    }

    fn turn(&mut self) -> Turn {
        let mut turn = Turn::default();
        while self.node().has_ready() {
            let mut ready = self.node().ready();
            let mut messages = ready.take_messages();
            if *ready.snapshot() != eraftpb::Snapshot::default() {
                let snapshot = ready.snapshot().clone();
                let metadata = snapshot.metadata.clone().expect("it has a position");
                self.applied = LogIndex(metadata.index);
                let conf_state = metadata.conf_state.expect("it has members");
                turn.installed = Some((self.applied, our_conf_state(&conf_state)));
                self.storage.wl().apply_snapshot(snapshot).expect("it is a newer one");
            }
            self.storage.wl().append(ready.entries()).expect("in memory");
            if let Some(hard_state) = ready.hs() {
                self.storage.wl().set_hardstate(hard_state.clone());
            }
            messages.extend(ready.take_persisted_messages());
            let reads = ready.take_read_states().into_iter();
            turn.reads.extend(reads.map(|read| (read.request_ctx.into(), LogIndex(read.index))));
            let committed = ready.take_committed_entries();
            self.apply(committed, &mut turn);
            let mut light = self.node().advance(ready);
            if let Some(commit) = light.commit_index() {
                self.storage.wl().mut_hard_state().commit = commit;
            }
            messages.extend(light.take_messages());
            self.apply(light.take_committed_entries(), &mut turn);
            self.node().advance_apply();
            turn.messages.extend(messages.iter().map(ours_of));
        }
        turn
    }

    fn propose(&mut self, payload: Bytes) {
        self.node().propose(Vec::new(), payload.to_vec()).ok();
    }

    fn propose_change(&mut self, change: &ConfChangeV2) {
        // As a message, since the log has numbers of ours.
        let mut entry = eraftpb::Entry::default();
        entry.set_entry_type(eraftpb::EntryType::EntryConfChangeV2);
        entry.data = change.encode_to_vec();
        let mut message = eraftpb::Message::default();
        message.set_msg_type(eraftpb::MessageType::MsgPropose);
        message.entries.push(entry);
        self.node().raft.step(message).ok();
    }

    fn read(&mut self, context: Bytes) {
        self.node().read_index(context.to_vec());
    }

    fn transfer(&mut self, to: u64) {
        self.node().transfer_leader(to);
    }

    fn report_snapshot(&mut self, about: u64, arrived: bool) {
        let status = if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.node().report_snapshot(about, status);
    }

    fn report_unreachable(&mut self, about: u64) {
        self.node().report_unreachable(about);
    }

    fn compact(&mut self) {
        if self.storage.first_index().expect("in memory") < self.applied.0 {
            self.storage.wl().compact(self.applied.0).expect("in memory");
        }
    }

    fn leads(&self) -> Option<Term> {
        let raft = &self.node.as_ref()?.raft;
        (raft.state == StateRole::Leader).then_some(Term(raft.term))
    }

    fn applied(&self) -> LogIndex {
        self.applied
    }
}
