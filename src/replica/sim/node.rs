//! One simulated member: the real core, log writer, read rounds and snapshot policy, and between
//! them what the threads of a member do, as steps.
//!
//! Decides nothing that a real member decides; it takes the steps in the order in which the threads
//! take theirs, at the moments that the world chooses. Owned by the world.
//!
//! ```text
//!   receive, propose, read --> inputs --turn--> Core --+--> log queue ---log_step--> WAL --reports-+
//!                                ^                     +--> apply queue --apply_step--> State      |
//!                                |                     +--> Outgoing messages                      |
//!                                +-----------------------------------------------------------------+
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    path::PathBuf,
    time::Duration,
};

use prost::Message as _;
use proto::raftpb::{ConfChange, Entry, EntryType, HardState, Message, Snapshot, SnapshotMetadata};
use tokio::sync::oneshot;

use super::{Bug, Micros, Plan, checks::Checks, machine::RealState, state::State};
use crate::{
    base::{file::Disk, random::Random},
    cluster::{BOOTSTRAP_TERM, RequestIds},
    consensus::{Config, Raft, Role},
    model::{
        Answer, ClusterId, LogIndex, MemberId, Rejection, RequestId, Unavailable, entry_data,
        entry_index, entry_kind, entry_term,
    },
    replica::{
        Core, Effect, Input, Leadership,
        apply_thread::ApplyInput,
        core::CoreSettings,
        log_writer::{LogInput, LogWriter},
        reads::Reads,
        restart,
        rounds::Rounds,
        snapshot::position,
        snapshot_policy::SnapshotPolicy,
    },
    state::RecoveredAt,
    storage::wal::{Recovered, Wal, WalOptions, WalSnapshot},
};

const CLUSTER: ClusterId = ClusterId(99);
const WAL_DIR: &str = "/member/wal";
const SNAP_DIR: &str = "/member/snap";
/// A few entries fill a segment, so that runs have many.
const SEGMENT_BYTES: u64 = 4096;
const FILES_MAX: usize = 2;
/// How long a caller waits, in ticks; a round, before it is asked for again.
const REQUEST_TICKS: u64 = 70;
const ROUND_TICKS: u64 = 5;

/// What a member asks of the world.
#[derive(Debug)]
pub(super) enum Out {
    /// Send this.
    Send(Message),
    /// Send the whole state, as this message announces it.
    SendState(Message),
    /// A proposer has its answer: done, or unknown.
    Proposed(RequestId, Result<(), ()>),
    /// A reader has its answer; the state is the member's.
    Read(u64, Result<(), ()>),
    /// Something waits for this thread.
    Wake(Thread),
    /// The disk has failed: the member is gone.
    Crash,
}

/// The threads of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thread {
    Replica,
    Log,
    Apply,
}

/// What a step may use of the world.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) now: Micros,
    pub(super) plan: &'a Plan,
    pub(super) checks: &'a mut Checks,
    pub(super) random: &'a mut Random,
    pub(super) out: &'a mut Vec<Out>,
}

/// What becomes of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It has not been started.
    Waiting,
    /// It runs, or has crashed and will be started again.
    Alive,
    /// It was removed and stays down.
    Gone,
}

/// One member, running or not.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: MemberId,
    pub(super) fate: Fate,
    /// Counts its starts, so that what was meant for an earlier life is recognized.
    pub(super) life: u64,
    pub(super) disk: Disk,
    /// The checkpoint.
    pub(super) stored: State,
    /// The states that leaders have sent, as files.
    pub(super) received: BTreeMap<LogIndex, State>,
    /// Its tick, which may be faster or slower than the others'.
    pub(super) tick: Micros,
    /// The real state machine, in some of the runs.
    pub(super) real: Option<RealState>,
    pub(super) running: Option<Box<Running>>,
}

/// What a crash loses.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) core: Core,
    rounds: Rounds,
    reads: Reads,
    inputs: Vec<Input>,
    pub(super) next_tick: Micros,
    leadership: Leadership,
    writer: LogWriter,
    /// Whether the replica thread writes the log itself.
    writes_here: bool,
    waiting: Vec<LogInput>,
    log_queue: Vec<LogInput>,
    /// What the log thread has done and not yet reported.
    reports: Option<Vec<Input>>,
    pub(super) state: State,
    /// The applied position that other threads see.
    shown: LogIndex,
    apply_queue: Vec<ApplyInput>,
    snapshots: SnapshotPolicy,
    flushed: LogIndex,
    proposers: BTreeMap<RequestId, Micros>,
    readers: Vec<(u64, oneshot::Receiver<Result<(), Unavailable>>)>,
    ids: RequestIds,
    /// Whom the transport reaches, and the members among them that the replica thread knows of.
    reached: BTreeSet<MemberId>,
    peers: BTreeSet<MemberId>,
}

impl Node {
    pub(super) fn new(id: MemberId) -> Self {
        Self {
            id,
            fate: Fate::Waiting,
            life: 0,
            disk: Disk::memory(),
            stored: State::default(),
            received: BTreeMap::new(),
            tick: 0,
            real: None,
            running: None,
        }
    }

    fn wal_options(&self, plan: &Plan) -> WalOptions {
        WalOptions {
            fsync: plan.bug != Some(Bug::UnsyncedCountsAsPersisted),
            segment_bytes: SEGMENT_BYTES,
            zero_fill: false,
            disk: self.disk.clone(),
            ..WalOptions::new(PathBuf::from(WAL_DIR))
        }
    }

    /// Starts for the first time, with these entries committed.
    pub(super) fn found(
        &mut self,
        entries: Vec<Entry>,
        peers: &[MemberId],
        around: &mut Surroundings<'_>,
    ) {
        let options = self.wal_options(around.plan);
        self.disk.create_directory(SNAP_DIR.as_ref()).expect("a new disk works");
        let mut wal = Wal::create(&options, self.id, CLUSTER).expect("a new disk works");
        let mut hard_state = HardState::default();
        if !entries.is_empty() {
            hard_state.term = Some(BOOTSTRAP_TERM.0);
            hard_state.vote = Some(0);
            hard_state.commit = u64::try_from(entries.len()).ok();
            wal.append(Some(&hard_state), &entries, true).expect("a new disk works");
        }
        let snapshot = WalSnapshot::default();
        let recovered =
            Recovered { member: self.id, cluster: CLUSTER, hard_state, entries, snapshot };
        self.fate = Fate::Alive;
        if around.plan.has_machine {
            let mut real = RealState::new(self.id);
            real.restart(LogIndex(0));
            self.real = Some(real);
        }
        let run = self.run(wal, recovered, peers, around);
        run.unwrap_or_else(|error| panic!("{} cannot start: {error}", self.id));
    }

    /// Starts again from what is on disk.
    pub(super) fn restart(&mut self, around: &mut Surroundings<'_>) -> Result<(), String> {
        assert!(self.running.is_none(), "{} runs", self.id);
        self.disk = self.disk.restarted();
        let options = self.wal_options(around.plan);
        let text = |error: &dyn std::error::Error| error.to_string();
        let newest = Wal::newest_snapshot(&options, LogIndex(u64::MAX)).map_err(|it| text(&it))?;
        let newest = newest.unwrap_or_default();
        // As `exchange::adopt` does.
        if self.stored.applied < newest.index {
            let received = self.received.remove(&newest.index);
            self.stored = received.ok_or("the state of the newest snapshot is not there")?;
        }
        self.received.clear();
        if let Some(real) = &mut self.real {
            real.restart(newest.index);
            real.check(&self.stored, around.checks);
        }
        if self.stored.membership.is_removed(self.id) {
            self.fate = Fate::Gone;
            return Ok(());
        }
        let opened = restart::open_log(&options, newest, self.stored.applied);
        let (wal, mut recovered) = opened.map_err(|it| text(&it))?;
        if around.plan.bug == Some(Bug::VoteIsForgotten) {
            recovered.hard_state.vote = Some(0);
        }
        let peers: Vec<MemberId> = self.stored.membership.members().map(|it| it.id).collect();
        self.run(wal, recovered, &peers, around)
    }

    fn run(
        &mut self,
        wal: Wal,
        recovered: Recovered,
        peers: &[MemberId],
        around: &mut Surroundings<'_>,
    ) -> Result<(), String> {
        let state = self.stored.clone();
        let mut at = RecoveredAt {
            applied: state.applied,
            term: state.term,
            conf_state: Some(state.conf_state.clone()),
        };
        let snapshot = recovered.snapshot.index;
        if around.plan.bug == Some(Bug::ChangesAreReplayed) {
            at.applied = snapshot;
        }
        let raft_state = restart::raft_state(recovered, &at).map_err(|error| error.to_string())?;
        let mut dice = Random::from_seed(around.random.next());
        let bound_max = if around.plan.weather.rivals { 3 } else { u64::MAX };
        let dice = Box::new(move |bound: u64| dice.below(bound.min(bound_max)));
        let raft = Raft::new(around.plan.raft(self.id), raft_state, dice);
        let raft = raft.map_err(|error| error.to_string())?;
        let settings = CoreSettings {
            catch_up_entries: around.plan.catch_up_entries,
            truncate_every_entries: around.plan.truncate_every_entries,
            park_ticks_max: REQUEST_TICKS,
        };
        let unix = Duration::from_micros(around.now);
        let round = Duration::from_micros(ROUND_TICKS * self.tick);
        let policy = around.plan;
        self.life += 1;
        let mut running = Box::new(Running {
            core: Core::new(raft, settings),
            rounds: Rounds::new(RequestIds::new(self.id, unix), round),
            reads: Reads::default(),
            inputs: Vec::new(),
            next_tick: around.now + self.tick,
            leadership: Leadership::default(),
            writer: LogWriter {
                wal,
                disk: self.disk.clone(),
                snap_dir: PathBuf::from(SNAP_DIR),
                files_max: FILES_MAX,
                snaps_max: FILES_MAX,
                recorded: snapshot,
            },
            writes_here: true,
            waiting: Vec::new(),
            log_queue: Vec::new(),
            reports: None,
            shown: state.applied,
            apply_queue: Vec::new(),
            snapshots: SnapshotPolicy::new(
                policy.snapshot_entries,
                policy.catch_up_entries,
                snapshot,
            ),
            flushed: state.applied,
            state,
            proposers: BTreeMap::new(),
            readers: Vec::new(),
            ids: RequestIds::new(self.id, unix),
            reached: peers.iter().copied().filter(|peer| *peer != self.id).collect(),
            peers: BTreeSet::new(),
        });
        running.follow_membership();
        running.core.campaign_if_alone();
        running.carry_out(around);
        self.running = Some(running);
        Ok(())
    }

    /// Loses everything that was not synced, or an arbitrary part of it.
    pub(super) fn crash(&mut self, random: &mut Random) {
        self.running = None;
        if let Some(real) = &mut self.real {
            real.crash();
        }
        self.disk.crash(random).expect("memory can be changed");
    }

    /// The state as a leader sends it: the checkpoint, which is the present state then.
    pub(super) fn export(&mut self) -> State {
        self.flush();
        let mut state = self.stored.clone();
        state.database = self.real.as_ref().map(RealState::export);
        state
    }

    /// Keeps a state that a leader has sent.
    pub(super) fn receive(&mut self, mut state: State) {
        let database = state.database.take();
        if let (Some(real), Some(database)) = (&mut self.real, database) {
            real.receive(state.applied, database);
        }
        self.received.insert(state.applied, state);
    }

    /// What the flush thread does, all at once.
    pub(super) fn flush(&mut self) {
        let Some(running) = &mut self.running else { return };
        if self.stored.applied < running.state.applied {
            self.stored = running.state.clone();
            if let Some(real) = &mut self.real {
                real.flush();
            }
        }
        running.flushed = self.stored.applied;
        running.look_after_snapshots();
    }

    /// What the apply thread does with all that has come.
    pub(super) fn apply_step(&mut self, around: &mut Surroundings<'_>) {
        let Some(running) = &mut self.running else { return };
        let mut answers = Vec::new();
        for input in mem::take(&mut running.apply_queue) {
            match input {
                ApplyInput::Entries(entries) => {
                    for entry in &entries {
                        running.apply(entry, &mut answers, around);
                        if let Some(real) = &mut self.real {
                            real.apply(entry);
                        }
                    }
                }
                ApplyInput::Install(snapshot) => {
                    running.show(mem::take(&mut answers), around);
                    let index = position(&snapshot);
                    let Some(state) = self.received.remove(&index) else {
                        around.checks.violated(|| format!("no state came with snapshot {index}"));
                        return;
                    };
                    self.stored = state.clone();
                    if let Some(real) = &mut self.real {
                        real.install(index);
                    }
                    running.install(state, around);
                }
            }
        }
        running.show(answers, around);
        if let Some(real) = &self.real {
            real.check(&running.state, around.checks);
        }
        running.look_after_snapshots();
        around.out.push(Out::Wake(Thread::Replica));
    }
}

impl Running {
    pub(super) fn is_leader(&self) -> bool {
        self.core.raft().role() == Role::Leader
    }

    /// Whether the transport has this member among its peers.
    pub(super) fn reaches(&self, member: MemberId) -> bool {
        self.reached.contains(&member)
    }

    /// Whoever makes contact can be answered, even if the membership is not known yet.
    pub(super) fn meet(&mut self, member: MemberId) {
        self.reached.insert(member);
    }

    pub(super) fn push(&mut self, input: Input) {
        self.inputs.push(input);
    }

    /// As `Handle::propose`.
    pub(super) fn propose(
        &mut self,
        now: Micros,
        make: impl FnOnce(RequestId) -> Input,
    ) -> RequestId {
        let id = self.ids.next();
        self.proposers.insert(id, now);
        self.inputs.push(make(id));
        id
    }

    /// As `Handle::linearizable`; true if the reader need not wait.
    pub(super) fn read(&mut self, reader: u64, now: Micros, plan: &Plan) -> bool {
        let raft = self.core.raft();
        let skips = match plan.bug {
            Some(Bug::ReadsWithoutRound) => self.leadership.leader == raft.id(),
            Some(Bug::LoneVoterReadsAtOnce) => {
                let committed_in_term = raft.term_of(raft.committed_index()) == Some(raft.term());
                self.is_leader() && raft.is_sole_voter() && committed_in_term
            }
            Some(
                Bug::UnsyncedCountsAsPersisted
                | Bug::AnswersBeforeQuorum
                | Bug::VoteIsForgotten
                | Bug::ChangesAreReplayed,
            )
            | None => false,
        };
        if self.leadership.reads_without_round || skips {
            return true;
        }
        let (reply, answer) = oneshot::channel();
        if self.reads.join(Duration::from_micros(now), reply) {
            self.inputs.push(Input::Read);
        }
        self.readers.push((reader, answer));
        false
    }

    /// One turn of the replica thread.
    pub(super) fn turn(&mut self, tick: Micros, around: &mut Surroundings<'_>) {
        let applied = self.shown;
        for input in mem::take(&mut self.inputs) {
            self.take_in(input);
        }
        self.core.note_applied(applied);
        self.core.campaign_if_alone();
        if self.next_tick <= around.now {
            self.core.handle(Input::Tick);
            self.expire(tick, around);
            self.next_tick = around.now + tick;
        }
        self.start_round(around.now);
        self.carry_out(around);
        while self.start_round(around.now) {
            self.carry_out(around);
        }
        self.answer_readers(around);
    }

    fn start_round(&mut self, now: Micros) -> bool {
        let context = self.rounds.start(Duration::from_micros(now), &self.reads);
        if let Some(context) = context {
            self.core.read(context);
        }
        context.is_some()
    }

    fn take_in(&mut self, input: Input) {
        if let Input::SaveSnapshot { snapshot, release_to } = input {
            self.write(LogInput::Snapshot { snapshot, release_to }, &mut Vec::new());
            return;
        }
        if matches!(input, Input::Applied | Input::Installed) {
            self.reads.answer_applied(self.shown);
        }
        let changes_members = matches!(input, Input::ConfChange { .. } | Input::Installed);
        self.core.handle(input);
        if changes_members {
            self.follow_membership();
        }
    }

    fn follow_membership(&mut self) {
        let own = self.core.raft().id();
        let members = self.state.membership.members().map(|member| member.id);
        let now: BTreeSet<MemberId> = members.filter(|id| *id != own).collect();
        for gone in self.peers.difference(&now) {
            self.reached.remove(gone);
        }
        self.reached.extend(&now);
        self.peers = now;
    }

    fn expire(&mut self, tick: Micros, around: &mut Surroundings<'_>) {
        let Some(before) = around.now.checked_sub(REQUEST_TICKS * tick) else { return };
        self.reads.fail_older(Duration::from_micros(before), &Unavailable::Timeout);
        for (id, _) in self.proposers.extract_if(.., |_, since| *since <= before) {
            around.out.push(Out::Proposed(id, Err(())));
        }
    }

    fn carry_out(&mut self, around: &mut Surroundings<'_>) {
        loop {
            for effect in self.core.take_effects() {
                self.perform(effect, around);
            }
            if self.log_queue.is_empty() {
                // Whether it is busy, the world knows.
            } else {
                around.out.push(Out::Wake(Thread::Log));
            }
            if self.waiting.is_empty() {
                return;
            }
            let core = &mut self.core;
            if self.writer.carry_out(&mut self.waiting, |report| core.handle(report)).is_err() {
                around.out.push(Out::Crash);
                return;
            }
        }
    }

    fn perform(&mut self, effect: Effect, around: &mut Surroundings<'_>) {
        match effect {
            Effect::Persist(batch) => {
                around.checks.appended(self.core.raft(), &batch.entries);
                if around.plan.bug == Some(Bug::AnswersBeforeQuorum) {
                    self.answer_early(&batch.entries, around);
                }
                self.write(LogInput::Append(batch), around.out);
            }
            Effect::Apply(entries) => {
                self.apply_queue.push(ApplyInput::Entries(entries));
                around.out.push(Out::Wake(Thread::Apply));
            }
            Effect::Install(snapshot) => {
                self.apply_queue.push(ApplyInput::Install(snapshot));
                around.out.push(Out::Wake(Thread::Apply));
            }
            Effect::Send(messages) => around.out.extend(messages.into_iter().map(|message| {
                if message.snapshot.is_some() {
                    Out::SendState(message)
                } else {
                    Out::Send(message)
                }
            })),
            Effect::ConfirmRead { context, index } => {
                self.rounds.confirm(context, index, self.shown, &self.reads);
            }
            Effect::Answer { id, outcome } => {
                if self.proposers.remove(&id).is_some() {
                    around.out.push(Out::Proposed(id, outcome.map(drop).map_err(drop)));
                }
            }
            Effect::Leadership(leadership) => self.lead(leadership, around),
        }
    }

    fn lead(&mut self, leadership: Leadership, around: &mut Surroundings<'_>) {
        around.checks.led(self.core.raft());
        let before = mem::replace(&mut self.leadership, leadership);
        if before.leader != leadership.leader && leadership.leader != MemberId(0) {
            self.reads.fail_unconfirmed(&Unavailable::LeaderChanged);
        }
    }

    fn answer_early(&mut self, entries: &[Entry], around: &mut Surroundings<'_>) {
        for entry in entries {
            let command = crate::model::Command::decode(entry_data(entry));
            let Ok(command) = command else { continue };
            if self.proposers.remove(&command.id).is_some() {
                around.checks.acknowledge(command.id);
                around.out.push(Out::Proposed(command.id, Ok(())));
            }
        }
    }

    fn write(&mut self, input: LogInput, out: &mut Vec<Out>) {
        if self.core.is_alone() && self.writes_here {
            self.waiting.push(input);
            return;
        }
        self.writes_here = false;
        self.log_queue.append(&mut self.waiting);
        self.log_queue.push(input);
        out.push(Out::Wake(Thread::Log));
    }

    /// What the log thread does with all that has come. It reports later.
    pub(super) fn log_step(&mut self, around: &mut Surroundings<'_>) {
        let mut reports = Vec::new();
        let written = self.writer.carry_out(&mut self.log_queue, |report| reports.push(report));
        if written.is_err() {
            around.out.push(Out::Crash);
            return;
        }
        let replaced = self.reports.replace(reports);
        assert!(replaced.is_none(), "the log thread does one thing at a time");
    }

    /// The log thread is done; whether there is more to do.
    pub(super) fn log_done(&mut self) -> bool {
        self.inputs.extend(self.reports.take().into_iter().flatten());
        !self.log_queue.is_empty()
    }

    fn apply(
        &mut self,
        entry: &Entry,
        answers: &mut Vec<RequestId>,
        around: &mut Surroundings<'_>,
    ) {
        let (index, term) = (entry_index(entry), entry_term(entry));
        if index <= self.state.applied {
            // As the machine does with entries that it holds already.
            if entry_kind(entry) == Some(EntryType::EntryConfChange) {
                self.change_members(entry, around);
            }
            return;
        }
        let now = self.core.raft().term();
        match entry_kind(entry) {
            Some(EntryType::EntryNormal) => {
                let request = self.state.apply(index, term, &entry_data(entry));
                around.checks.applied(entry, now, request);
                answers.extend(request);
            }
            Some(EntryType::EntryConfChange) => {
                around.checks.applied(entry, now, None);
                self.change_members(entry, around);
            }
            Some(EntryType::EntryConfChangeV2) | None => panic!("nobody proposes {entry:?}"),
        }
        around.checks.state(index, self.state.digest);
    }

    fn change_members(&mut self, entry: &Entry, around: &mut Surroundings<'_>) {
        let (index, term) = (entry_index(entry), entry_term(entry));
        let mut change = ConfChange::decode(entry_data(entry)).expect("a change is proposed");
        let id = RequestId(change.id.unwrap_or(0));
        let is_new = self.state.applied < index;
        let accepted = !is_new || self.state.apply_conf_change(index, term, &change);
        if accepted && is_new {
            around.checks.counts.members_changed += 1;
        }
        if !accepted {
            change.node_id = Some(0);
        }
        let outcome = if accepted { Ok(Answer::Done) } else { Err(Rejection::UnknownCommand) };
        // The order of the apply thread.
        self.inputs.push(Input::ConfChange { index, change: Box::new(change), id, outcome });
        self.shown = self.state.applied;
    }

    fn install(&mut self, state: State, around: &mut Surroundings<'_>) {
        assert!(self.shown <= state.applied, "the position moved back from {}", self.shown);
        around.checks.counts.installed += 1;
        around.checks.state(state.applied, state.digest);
        self.snapshots.installed(state.applied);
        self.flushed = state.applied;
        self.shown = state.applied;
        self.state = state;
        self.inputs.push(Input::Installed);
    }

    fn show(&mut self, answers: Vec<RequestId>, around: &mut Surroundings<'_>) {
        if self.shown < self.state.applied {
            self.shown = self.state.applied;
        }
        for id in answers {
            if self.proposers.remove(&id).is_some() {
                around.checks.acknowledge(id);
                around.out.push(Out::Proposed(id, Ok(())));
            }
        }
        if self.reads.waits_for_apply() {
            self.inputs.push(Input::Applied);
        }
    }

    fn look_after_snapshots(&mut self) {
        let State { applied, term, .. } = self.state;
        if self.snapshots.is_due(applied) {
            self.snapshots.note(Snapshot {
                data: None,
                metadata: Some(SnapshotMetadata {
                    conf_state: Some(self.state.conf_state.clone()),
                    index: Some(applied.0),
                    term: Some(term.0),
                }),
            });
        }
        while let Some(input) = self.snapshots.take_durable(self.flushed) {
            self.inputs.push(input);
        }
    }

    fn answer_readers(&mut self, around: &mut Surroundings<'_>) {
        self.readers.retain_mut(|(reader, answer)| {
            let answered = match answer.try_recv() {
                Ok(answered) => answered.map_err(drop),
                Err(oneshot::error::TryRecvError::Empty) => return true,
                Err(oneshot::error::TryRecvError::Closed) => Err(()),
            };
            around.out.push(Out::Read(*reader, answered));
            false
        });
    }

    /// What waits for the threads, for a failed run.
    pub(super) fn describe_queues(&self) -> String {
        format!(
            "inputs {} log {} reports {} apply {}",
            self.inputs.len(),
            self.log_queue.len(),
            self.reports.is_some(),
            self.apply_queue.len()
        )
    }

    /// K6: raft and the state machine agree about the members.
    pub(super) fn check_members(&self, checks: &mut Checks) {
        let raft = self.core.raft();
        let applied = raft.applied_index();
        let is_installing = applied.next() < raft.first_index();
        if applied != self.state.applied || is_installing {
            return;
        }
        let (theirs, ours) = (raft.conf_state(), &self.state.conf_state);
        if theirs.voters != ours.voters || theirs.learners != ours.learners {
            let (id, at) = (raft.id(), self.state.applied);
            checks.violated(|| format!("K6: {id} at {at} counts {theirs:?}, should {ours:?}"));
        }
    }
}

/// A snapshot of `state`, as a leader announces it.
pub(super) fn snapshot_of(state: &State) -> Snapshot {
    Snapshot {
        data: None,
        metadata: Some(SnapshotMetadata {
            conf_state: Some(state.conf_state.clone()),
            index: Some(state.applied.0),
            term: Some(state.term.0),
        }),
    }
}

impl Plan {
    fn raft(&self, id: MemberId) -> Config {
        Config {
            pre_vote: self.pre_vote,
            append_bytes_max: self.append_bytes_max,
            appends_in_flight_max: self.appends_in_flight_max,
            applying_bytes_max: self.applying_bytes_max,
            ..Config::new(id)
        }
    }
}
