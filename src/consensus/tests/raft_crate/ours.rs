//! A member that runs our core.

use bytes::Bytes;
use proto::raftpb::{
    ConfChangeV2, ConfState, Entry, HardState, Message, Snapshot, SnapshotMetadata,
};

use super::member::{FOUNDED, Member, Turn, change_of};
use crate::{
    consensus::{Batch, Config, Raft, RaftState, Role, SnapshotReport, tests::cluster::Seeded},
    model::{LogIndex, MemberId, Term, entry_data, entry_index, entry_term},
};

/// One of ours, with its disk.
pub(super) struct Ours {
    id: u64,
    raft: Option<Raft>,
    dice: Seeded,
    hard_state: HardState,
    snapshot: SnapshotMetadata,
    entries: Vec<Entry>,
    conf_state: ConfState,
    applied: LogIndex,
}

impl Ours {
    /// A founder among `founders`, or a newcomer who knows nobody.
    pub(super) fn new(id: u64, founders: Option<&ConfState>, dice: Seeded) -> Self {
        let mut member = Self {
            id,
            raft: None,
            dice,
            hard_state: HardState::default(),
            snapshot: SnapshotMetadata::default(),
            entries: Vec::new(),
            conf_state: ConfState::default(),
            applied: LogIndex(0),
        };
        if let Some(founders) = founders {
            let (index, term) = FOUNDED;
            member.hard_state.term = Some(term.0);
            member.hard_state.commit = Some(index.0);
            member.conf_state = founders.clone();
            member.applied = index;
            member.snapshot = SnapshotMetadata {
                conf_state: Some(founders.clone()),
                index: Some(index.0),
                term: Some(term.0),
            };
        }
        member
    }

    fn raft(&mut self) -> &mut Raft {
        self.raft.as_mut().expect("it runs")
    }

    fn state(&self) -> Snapshot {
        let raft = self.raft.as_ref().expect("it runs");
        Snapshot {
            data: Some(Bytes::new()),
            metadata: Some(SnapshotMetadata {
                conf_state: Some(self.conf_state.clone()),
                index: Some(self.applied.0),
                term: Some(raft.term_of(self.applied).expect("it is in the log").0),
            }),
        }
    }

    fn write(&mut self, batch: &Batch, turn: &mut Turn) {
        if let Some(metadata) = batch.snapshot.as_ref().and_then(|it| it.metadata.clone()) {
            self.applied = LogIndex(metadata.index());
            self.conf_state = metadata.conf_state.clone().unwrap();
            turn.installed = Some((self.applied, self.conf_state.clone()));
            self.snapshot = metadata;
            self.entries.clear();
        }
        if let Some(first) = batch.entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend_from_slice(&batch.entries);
        }
        self.hard_state = batch.hard_state.unwrap_or(self.hard_state);
    }

    fn apply(&mut self, entry: &Entry, turn: &mut Turn) {
        self.applied = entry_index(entry);
        turn.applied.push((self.applied, entry_term(entry), entry_data(entry)));
        if let Some(change) = change_of(entry)
            && let Ok(conf_state) = self.raft().apply_conf_change_v2(&change)
        {
            self.conf_state = conf_state;
            turn.conf_states.push((self.applied, self.conf_state.clone()));
        }
    }
}

impl Member for Ours {
    fn start(&mut self) {
        if self.raft.is_some() {
            return;
        }
        let state = RaftState {
            hard_state: self.hard_state,
            conf_state: self.conf_state.clone(),
            snapshot: self.snapshot.clone(),
            entries: self.entries.clone(),
            applied: self.applied,
        };
        let mut dice = Seeded(self.dice.below(u64::MAX));
        let config = Config {
            append_bytes_max: 200,
            appends_in_flight_max: 4,
            ..Config::new(MemberId(self.id))
        };
        let raft = Raft::new(config, state, Box::new(move |bound| dice.below(bound)));
        self.raft = Some(raft.expect("it was written like that"));
    }

    fn crash(&mut self) {
        self.raft = None;
    }

    fn is_running(&self) -> bool {
        self.raft.is_some()
    }

    fn tick(&mut self) {
        self.raft().tick();
    }

    fn step(&mut self, message: Message) {
        // Refused ones are those of strangers, and proposals that nobody takes.
        self.raft().step(message).ok();
    }

    fn turn(&mut self) -> Turn {
        let mut turn = Turn::default();
        while let Some(ready) = self.raft().ready() {
            for mut message in ready.messages {
                if message.snapshot.is_some() {
                    message.snapshot = Some(self.state());
                }
                turn.messages.push(message);
            }
            if let Some(mut batch) = ready.batch {
                self.write(&batch, &mut turn);
                turn.messages.append(&mut batch.messages);
                let applied = self.applied;
                self.raft().persisted(batch.number);
                if batch.snapshot.is_some() {
                    self.raft().applied(applied);
                }
            }
            for entry in &ready.committed {
                self.apply(entry, &mut turn);
            }
            if !ready.committed.is_empty() {
                let applied = self.applied;
                self.raft().applied(applied);
            }
            turn.reads.extend(ready.read_states.into_iter().map(|it| (it.context, it.index)));
        }
        turn
    }

    fn propose(&mut self, payload: Bytes) {
        self.raft().propose(vec![payload]).ok();
    }

    fn propose_change(&mut self, change: &ConfChangeV2) {
        self.raft().propose_conf_change_v2(change).ok();
    }

    fn read(&mut self, context: Bytes) {
        self.raft().read_index(context);
    }

    fn transfer(&mut self, to: u64) {
        self.raft().transfer_leader(MemberId(to));
    }

    fn report_snapshot(&mut self, about: u64, arrived: bool) {
        let report = if arrived { SnapshotReport::Sent } else { SnapshotReport::Failed };
        self.raft().report_snapshot(MemberId(about), report);
    }

    fn report_unreachable(&mut self, about: u64) {
        self.raft().report_unreachable(MemberId(about));
    }

    fn compact(&mut self) {
        let applied = self.applied;
        if applied <= LogIndex(self.snapshot.index()) {
            return;
        }
        let state = self.state();
        self.snapshot = state.metadata.clone().expect("just made");
        self.entries.retain(|entry| applied < entry_index(entry));
        self.raft().snapshot_taken(state);
        self.raft().truncate_to(applied);
    }

    fn leads(&self) -> Option<Term> {
        let raft = self.raft.as_ref()?;
        (raft.role() == Role::Leader).then(|| raft.term())
    }

    fn applied(&self) -> LogIndex {
        self.applied
    }
}
