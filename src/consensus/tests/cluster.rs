//! A group of cores in one process: disks that lose what was not synced, state machines with
//! checkpoints, and a network that loses, doubles and reorders.
//!
//! Decides nothing by itself: each action is asked for by a test, which draws them from a seed.
//! After every action the safety properties of Raft are checked across all members.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use prost::Message as _;
use proto::raftpb::{
    ConfChange, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, Snapshot,
    SnapshotMetadata,
};

use crate::{
    consensus::{Batch, Config, Raft, RaftState, ReadState, Role},
    model::{LogIndex, MemberId, Term, entry_data, entry_index, entry_kind, entry_term},
};

/// Numbers from a seed.
#[derive(Clone, Debug)]
pub(super) struct Seeded(pub(super) u64);

impl Seeded {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub(super) fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(u64::try_from(bound).unwrap())).unwrap()
    }

    pub(super) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// A state machine: a digest of everything it applied, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Machine {
    pub(super) applied: LogIndex,
    pub(super) digest: u64,
    pub(super) conf_state: ConfState,
}

impl Machine {
    fn snapshot(&self, term: Term) -> Snapshot {
        Snapshot {
            data: Some(Bytes::copy_from_slice(&self.digest.to_le_bytes())),
            metadata: Some(SnapshotMetadata {
                conf_state: Some(self.conf_state.clone()),
                index: Some(self.applied.0),
                term: Some(term.0),
            }),
        }
    }

    fn of(snapshot: &Snapshot) -> Self {
        let metadata = snapshot.metadata.clone().unwrap();
        let data = snapshot.data.clone().unwrap();
        Self {
            applied: LogIndex(metadata.index.unwrap()),
            digest: u64::from_le_bytes(data.as_ref().try_into().unwrap()),
            conf_state: metadata.conf_state.unwrap(),
        }
    }
}

/// What survives a crash.
#[derive(Clone, Debug, Default)]
struct Disk {
    hard_state: HardState,
    snapshot: Snapshot,
    entries: Vec<Entry>,
}

impl Disk {
    fn snapshot_index(&self) -> u64 {
        self.snapshot.metadata.as_ref().map_or(0, |metadata| metadata.index.unwrap())
    }

    fn write(&mut self, batch: &Batch) {
        if let Some(snapshot) = &batch.snapshot {
            self.snapshot = snapshot.clone();
            // As in a log file, older entries after the snapshot stay until they are overwritten.
            let index = self.snapshot_index();
            self.entries.retain(|entry| index < entry.index.unwrap());
            if self.entries.first().is_some_and(|entry| index + 1 < entry.index.unwrap()) {
                self.entries.clear();
            }
        }
        if let Some(first) = batch.entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend_from_slice(&batch.entries);
        }
        if let Some(hard_state) = batch.hard_state {
            self.hard_state = hard_state;
        }
    }
}

#[derive(Debug)]
enum Work {
    Install(Snapshot),
    Apply(Vec<Entry>),
}

/// One member, running or crashed.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) raft: Option<Raft>,
    /// What was written.
    disk: Disk,
    /// What of it cannot get lost any more.
    synced: Disk,
    writing: VecDeque<Batch>,
    applying: VecDeque<Work>,
    pub(super) machine: Machine,
    checkpoint: Machine,
}

/// What a read must see, by its context.
type Reads = BTreeMap<Bytes, LogIndex>;

#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) members: BTreeMap<u64, Member>,
    pub(super) network: Vec<Message>,
    pub(super) random: Seeded,
    config: fn(MemberId) -> Config,
    /// R1: who led each term.
    leaders: BTreeMap<Term, MemberId>,
    /// R4: what was applied at each index, by whoever came first.
    applied: BTreeMap<LogIndex, (Term, Bytes)>,
    reads: Reads,
    pub(super) reads_answered: usize,
    pub(super) snapshots_installed: usize,
    next_payload: u64,
    /// A digest of every message that was received, in order.
    pub(super) trace: u64,
}

impl Cluster {
    /// Members 1 to `voters` start together, those up to `members` empty and unknown.
    pub(super) fn new(
        seed: u64,
        voters: u64,
        members: u64,
        config: fn(MemberId) -> Config,
    ) -> Self {
        let mut cluster = Self {
            members: BTreeMap::new(),
            network: Vec::new(),
            random: Seeded(seed),
            config,
            leaders: BTreeMap::new(),
            applied: BTreeMap::new(),
            reads: Reads::new(),
            reads_answered: 0,
            snapshots_installed: 0,
            next_payload: 0,
            trace: 0,
        };
        for id in 1..=members {
            let machine = if id <= voters {
                Machine {
                    applied: LogIndex(1),
                    digest: 0,
                    conf_state: ConfState {
                        voters: (1..=voters).collect(),
                        auto_leave: Some(false),
                        ..ConfState::default()
                    },
                }
            } else {
                Machine::default()
            };
            let mut disk = Disk::default();
            if id <= voters {
                disk.snapshot = machine.snapshot(Term(1));
                disk.hard_state.term = Some(1);
                disk.hard_state.commit = Some(1);
            }
            let checkpoint = machine.clone();
            let writing = VecDeque::new();
            let applying = VecDeque::new();
            let synced = disk.clone();
            let member =
                Member { raft: None, disk, synced, writing, applying, machine, checkpoint };
            cluster.members.insert(id, member);
            cluster.start(id);
        }
        cluster
    }

    pub(super) fn start(&mut self, id: u64) {
        let config = (self.config)(MemberId(id));
        let mut dice = Seeded(self.random.below(u64::MAX));
        let member = self.members.get_mut(&id).unwrap();
        if member.raft.is_some() {
            return;
        }
        member.machine = member.checkpoint.clone();
        // A snapshot that was stored but not installed is installed now.
        if member.machine.applied.0 < member.disk.snapshot_index() {
            member.machine = Machine::of(&member.disk.snapshot);
            member.checkpoint = member.machine.clone();
        }
        let state = RaftState {
            hard_state: member.disk.hard_state,
            conf_state: member.machine.conf_state.clone(),
            snapshot: member.disk.snapshot.metadata.clone().unwrap_or_default(),
            entries: member.disk.entries.clone(),
            applied: member.machine.applied,
        };
        let raft = Raft::new(config, state, Box::new(move |bound| dice.below(bound)));
        member.raft = Some(raft.unwrap());
    }

    /// Loses what was not synced. Some of it may have reached the disk all the same, in order.
    pub(super) fn crash(&mut self, id: u64) {
        let Self { members, random, .. } = self;
        let member = members.get_mut(&id).unwrap();
        if member.raft.take().is_none() {
            return;
        }
        member.applying.clear();
        if random.one_in(2) {
            member.disk = member.synced.clone();
        }
        let survivors = random.index(member.writing.len() + 1);
        for mut batch in std::mem::take(&mut member.writing).into_iter().take(survivors) {
            if random.one_in(2) {
                // The state comes after the entries, as in etcd's log.
                batch.entries.truncate(random.index(batch.entries.len() + 1));
                batch.hard_state = None;
                member.disk.write(&batch);
                break;
            }
            member.disk.write(&batch);
        }
        member.synced = member.disk.clone();
    }

    fn raft(&mut self, id: u64) -> Option<&mut Raft> {
        self.members.get_mut(&id).unwrap().raft.as_mut()
    }

    pub(super) fn tick(&mut self, id: u64) {
        if let Some(raft) = self.raft(id) {
            raft.tick();
        }
        self.check(id);
    }

    /// Takes what is ready and puts its parts in their queues.
    pub(super) fn take_ready(&mut self, id: u64) {
        let Some(ready) = self.raft(id).and_then(Raft::ready) else { return };
        let member = self.members.get_mut(&id).unwrap();
        for mut message in ready.messages {
            // The core knows which snapshot is needed at least; the sender has the newest.
            if let Some(asked) = message.snapshot.take() {
                let applied = member.machine.applied;
                assert!(asked.metadata.unwrap().index <= Some(applied.0));
                let term = member.raft.as_ref().unwrap().term_of(applied).unwrap();
                message.snapshot = Some(member.machine.snapshot(term));
            }
            self.network.push(message);
        }
        member.writing.extend(ready.batch);
        if !ready.committed.is_empty() {
            member.applying.push_back(Work::Apply(ready.committed));
        }
        self.check_reads(ready.read_states);
        self.check(id);
    }

    /// Writes and syncs some batches, then reports the last of them.
    pub(super) fn sync(&mut self, id: u64) {
        let Self { members, random, network, .. } = self;
        let member = members.get_mut(&id).unwrap();
        if member.raft.is_none() || member.writing.is_empty() {
            return;
        }
        let count = 1 + random.index(member.writing.len());
        let mut last = None;
        for batch in member.writing.drain(..count) {
            member.disk.write(&batch);
            if batch.must_sync {
                member.synced = member.disk.clone();
            }
            network.extend(batch.messages);
            last = Some(batch.number);
            member.applying.extend(batch.snapshot.map(Work::Install));
        }
        member.raft.as_mut().unwrap().persisted(last.unwrap());
        self.check(id);
    }

    pub(super) fn apply(&mut self, id: u64) {
        let member = self.members.get_mut(&id).unwrap();
        match member.applying.pop_front() {
            None => return,
            Some(Work::Install(snapshot)) => {
                member.machine = Machine::of(&snapshot);
                member.checkpoint = member.machine.clone();
                self.snapshots_installed += 1;
            }
            Some(Work::Apply(entries)) => {
                for entry in &entries {
                    self.apply_entry(id, entry);
                }
            }
        }
        let member = self.members.get_mut(&id).unwrap();
        let applied = member.machine.applied;
        member.raft.as_mut().unwrap().applied(applied);
        self.check(id);
    }

    fn apply_entry(&mut self, id: u64, entry: &Entry) {
        let (index, term, data) = (entry_index(entry), entry_term(entry), entry_data(entry));
        let first = self.applied.entry(index).or_insert_with(|| (term, data.clone()));
        assert_eq!(*first, (term, data.clone()), "R4: member {id} differs at {index}");
        let member = self.members.get_mut(&id).unwrap();
        let machine = &mut member.machine;
        assert_eq!(index, machine.applied.next(), "member {id} skipped an entry");
        machine.applied = index;
        for byte in term.0.to_le_bytes().iter().chain(&data) {
            machine.digest = machine.digest.wrapping_mul(31).wrapping_add(u64::from(*byte));
        }
        let raft = member.raft.as_mut().unwrap();
        let changed = match entry_kind(entry).unwrap() {
            EntryType::EntryNormal => return,
            EntryType::EntryConfChange => {
                raft.apply_conf_change(&ConfChange::decode(data).unwrap())
            }
            EntryType::EntryConfChangeV2 => {
                raft.apply_conf_change_v2(&ConfChangeV2::decode(data).unwrap())
            }
        };
        if let Ok(conf_state) = changed {
            machine.conf_state = conf_state;
        }
    }

    /// Makes the state machine durable as it is, as far as its log is.
    pub(super) fn checkpoint(&mut self, id: u64) {
        let member = self.members.get_mut(&id).unwrap();
        let durable = member.synced.entries.last().map_or(0, |entry| entry.index.unwrap());
        if member.raft.is_some() && member.machine.applied.0 <= durable {
            member.checkpoint = member.machine.clone();
        }
    }

    /// Takes a snapshot, shortens the log on disk, and that in memory by a little less.
    pub(super) fn snapshot(&mut self, id: u64) {
        self.checkpoint(id);
        let Self { members, random, .. } = self;
        let member = members.get_mut(&id).unwrap();
        let Some(raft) = member.raft.as_mut() else { return };
        let applied = member.checkpoint.applied;
        let is_durable = member.synced.hard_state.commit.unwrap_or(0) >= applied.0;
        if applied != raft.applied_index() || !is_durable {
            return;
        }
        let Some(term) = raft.term_of(applied) else { return };
        let snapshot = member.checkpoint.snapshot(term);
        raft.snapshot_taken(snapshot.clone());
        raft.truncate_to(LogIndex(applied.0.saturating_sub(random.below(8))));
        if member.disk.snapshot_index() < applied.0 {
            member.disk.snapshot = snapshot;
            member.disk.entries.retain(|entry| applied.0 < entry.index.unwrap());
            member.synced = member.disk.clone();
        }
    }

    /// Delivers a random message, which may also get lost or stay for a second delivery.
    pub(super) fn deliver(&mut self, is_cut: impl Fn(u64, u64) -> bool) {
        if self.network.is_empty() {
            return;
        }
        // Mostly in order, as on a stream.
        let position =
            if self.random.one_in(3) { self.random.index(self.network.len()) } else { 0 };
        let message = self.network.remove(position);
        if is_cut(message.from.unwrap(), message.to.unwrap()) || self.random.one_in(20) {
            return;
        }
        if self.random.one_in(20) {
            self.network.push(message.clone());
        }
        self.receive(message);
    }

    pub(super) fn receive(&mut self, message: Message) {
        let to = message.to.unwrap();
        // What travels is bytes.
        let bytes = message.encode_to_vec();
        for byte in &bytes {
            self.trace = self.trace.wrapping_mul(31).wrapping_add(u64::from(*byte));
        }
        let message = Message::decode(bytes.as_slice()).unwrap();
        let Some(raft) = self.raft(to) else { return };
        let kind = message.r#type;
        match raft.step(message) {
            Ok(()) | Err(super::super::StepError::UnknownPeer(_)) => {}
            Err(super::super::StepError::Proposal(_)) => {}
            Err(error) => panic!("a message of kind {kind:?} was refused: {error}"),
        }
        self.check(to);
    }

    pub(super) fn propose(&mut self, id: u64) -> Option<Bytes> {
        self.next_payload += 1;
        let payload = Bytes::from(format!("payload {}", self.next_payload));
        self.raft(id)?.propose(vec![payload.clone()]).ok()?;
        Some(payload)
    }

    pub(super) fn read(&mut self, id: u64) {
        // Whatever somebody applied may have been acknowledged to somebody.
        let seen = self.applied.last_key_value().map_or(LogIndex(0), |(index, _)| *index);
        let context = Bytes::from(format!("read {}", self.random.below(u64::MAX)));
        if let Some(raft) = self.raft(id) {
            raft.read_index(context.clone());
            self.reads.insert(context, seen);
        }
    }

    fn check_reads(&mut self, states: Vec<ReadState>) {
        for state in states {
            let seen = self.reads[&state.context];
            assert!(seen <= state.index, "a read at {} misses {seen}", state.index);
            self.reads_answered += 1;
        }
    }

    pub(super) fn leader(&self) -> Option<u64> {
        let leads = |raft: &Raft| raft.role() == Role::Leader;
        let leaders =
            self.members.iter().filter(|(_, member)| member.raft.as_ref().is_some_and(leads));
        leaders.max_by_key(|(_, member)| member.raft.as_ref().unwrap().term()).map(|(id, _)| *id)
    }

    /// Every member in a few words, for a failing test.
    pub(super) fn describe(&self) -> String {
        let describe = |(id, member): (&u64, &Member)| {
            let Some(raft) = &member.raft else { return format!("{id} crashed") };
            let progress = raft.progress().map(|(id, progress)| format!("{id}: {progress}"));
            format!(
                "{id} {:?} term={} leader={} last={} commit={} applied={} machine={} {} [{}]",
                raft.role(),
                raft.term(),
                raft.leader(),
                raft.last_index(),
                raft.committed_index(),
                raft.applied_index(),
                member.machine.applied,
                raft.members.membership,
                progress.collect::<Vec<_>>().join(", ")
            )
        };
        self.members.iter().map(describe).collect::<Vec<_>>().join("\n")
    }

    /// Checks what must hold at any time, after member `id` did something.
    fn check(&mut self, id: u64) {
        let Some(raft) = self.members[&id].raft.as_ref() else { return };
        if raft.role() == Role::Leader {
            let first = *self.leaders.entry(raft.term()).or_insert(raft.id());
            assert_eq!(first, raft.id(), "R1: two leaders in term {}", raft.term());
            // R3: whatever was applied anywhere by an earlier term is in its log.
            for (index, (term, _)) in self.applied.iter().rev().take(20) {
                if raft.term() < *term || *index < raft.first_index() {
                    continue;
                }
                assert_eq!(raft.term_of(*index), Some(*term), "R3: leader {id} lacks {index}");
            }
        }
        let raft_applied = raft.applied_index();
        assert!(
            raft_applied <= raft.committed_index() && raft.committed_index() <= raft.last_index()
        );
    }

    /// R2, for every pair of members.
    pub(super) fn check_logs(&self) {
        let running: Vec<&Raft> =
            self.members.values().filter_map(|member| member.raft.as_ref()).collect();
        for left in &running {
            for right in &running {
                check_pair(left, right);
            }
        }
    }
}

fn check_pair(left: &Raft, right: &Raft) {
    let first = left.first_index().max(right.first_index()).0;
    let last = left.last_index().min(right.last_index()).0;
    let mut agreed = false;
    for index in (first..=last).rev().map(LogIndex) {
        let (ours, theirs) = (left.log.entries_from(index, 1), right.log.entries_from(index, 1));
        agreed |= ours[0].term == theirs[0].term;
        assert!(
            !agreed || ours[0] == theirs[0],
            "R2: {} and {} differ at {index}",
            left.id(),
            right.id()
        );
    }
}
