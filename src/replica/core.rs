//! The decisions of a replica: inputs in, effects out.
//!
//! Decides when the Raft core is asked what to do, in which order that is carried out, when the
//! in-memory log is cut, and what happens to proposals while nobody leads. Owned by the replica
//! thread; a script drives it in tests.
//!
//! ```text
//!   Input --handle--> Raft --take_effects--> Persist, Send, Apply, ConfirmRead, Answer, Leadership
//! ```
//!
//! Invariants
//! - C1 A message that promises durability leaves only after its batch is reported as persisted.
//! - C2 A proposal that came while nobody led is made when somebody leads, or forgotten after its
//!   caller has been told that it timed out; never made later than that.
//! - C3 A leader's reads need no round only while nobody else can have answered a client with
//!   anything that is not applied here: it is alone, and has applied its log as it was then.
//!
//! A leader proposes what has come together while it writes its log, and sends it on while it writes
//! that: at a write's end everything that waits becomes one batch, for its own disk and for each
//! follower, and commit positions travel with it. A follower forwards in one message what came in
//! one turn. Measured with three members on
//! two processors: a fifth less processor time per put at 64 and at 512 in flight.
//!
//! Reads are held alike: those that come while a quorum confirms earlier ones share the next round.
//!
//! Deliberately absent: time (a tick is an input), threads, sockets, files.

use std::{collections::VecDeque, fmt, mem};

use bytes::Bytes;
use proto::raftpb::{
    ConfChange, Entry, EntryType, Message, MessageType, Snapshot, SnapshotMetadata,
};

use crate::{
    consensus::{Batch, BatchNumber, ProposeError, Raft, Ready, Role, SnapshotReport},
    model::{LogIndex, MemberId, Outcome, RequestId, Term, entry_kind},
};

/// Everything that can make a replica act.
#[derive(Debug)]
pub enum Input {
    /// One raft tick passed.
    Tick,
    /// A caller proposed this command.
    Propose(Bytes),
    /// This member proposes this command as the leader of a term; it is nobody's if another one
    /// leads meanwhile, who knows better.
    ProposeAsLeader(Term, Bytes),
    /// A caller proposed this change of membership.
    ProposeConfChange(Box<ConfChange>),
    /// At least one reader waits for a linearizable point.
    Read,
    /// A peer's message.
    Peer(Box<Message>),
    /// A message to this member did not get through.
    Unreachable(MemberId),
    /// What became of the state that was sent to this member.
    SnapshotSent(MemberId, SnapshotReport),
    /// The log thread made every batch up to this one durable.
    Persisted(BatchNumber),
    /// The apply thread met a change of membership and has carried it out, or refused it.
    ConfChange {
        /// Its entry, up to which everything is applied.
        index: LogIndex,
        /// What raft is to do: the change, or one of nobody if it was refused.
        change: Box<ConfChange>,
        /// Whom to answer.
        id: RequestId,
        /// With what.
        outcome: Outcome,
    },
    /// The apply thread has put the state that a leader sent in the place of its own; what it has
    /// applied has been shown.
    Installed,
    /// How far a member's log is known to reach is asked for.
    AskProgress(MemberId, ProgressReply),
    /// Confirmed readers wait for an entry that has been applied meanwhile.
    Applied,
    /// The backend is durable up to a snapshot: record it in the log.
    SaveSnapshot {
        /// The position, with the membership and what older versions read at start.
        snapshot: Box<Snapshot>,
        /// No entry below this is needed again.
        release_to: LogIndex,
    },
    /// The record of a snapshot at this position is durable.
    SnapshotSaved(Box<SnapshotMetadata>),
    /// Hand leadership over.
    TransferLeader(MemberId),
    /// Finish.
    Stop,
}

/// How far a member's log agrees with the leader's, and how far the leader's reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownProgress {
    /// The last entry that the member is known to have.
    pub matched: LogIndex,
    /// The last one that the leader is known to have.
    pub leader: LogIndex,
}

/// Takes the answer to [`Input::AskProgress`]: `None` if this member does not lead, inside if it
/// knows no such member.
pub struct ProgressReply(pub Box<dyn FnOnce(Option<Option<KnownProgress>>) + Send>);

impl fmt::Debug for ProgressReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProgressReply")
    }
}

/// Everything that a replica makes happen.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every effect is a batch")]
pub enum Effect {
    /// Write this to the log; its messages stay here until it is durable.
    Persist(Batch),
    /// Send these to their peers.
    Send(Vec<Message>),
    /// Apply these, in order.
    Apply(Vec<Entry>),
    /// Put the state of this snapshot in the place of the machine's; its record is durable.
    Install(Box<Snapshot>),
    /// A read round is confirmed.
    ConfirmRead {
        /// Which round.
        context: u64,
        /// Everything committed before it is at or below this.
        index: LogIndex,
    },
    /// Answer the caller of a change of membership.
    Answer {
        /// Whom.
        id: RequestId,
        /// With what.
        outcome: Outcome,
    },
    /// Who leads, the term, or whether reads need a round has changed.
    Leadership(Leadership),
}

/// Who leads, and what that means for reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The present term.
    pub term: Term,
    /// Who leads it; 0 is nobody known.
    pub leader: MemberId,
    /// This member leads, nobody else is a member, and it has applied everything that anybody can
    /// have been told of (C3).
    pub reads_without_round: bool,
}

/// Settings of the core.
#[derive(Clone, Copy, Debug)]
pub struct CoreSettings {
    /// Entries kept in memory behind the applied index for followers that are a little late.
    pub catch_up_entries: u64,
    /// How far the in-memory log may outgrow that before it is cut.
    pub truncate_every_entries: u64,
    /// Ticks for which a proposal waits for a leader; its caller has given up by then (C2).
    pub park_ticks_max: u64,
}

/// How far the in-memory log may outgrow `catch_up_entries` before it is cut.
///
/// Source: etcd cuts its in-memory log every 100 applied entries.
pub(super) const TRUNCATE_EVERY_ENTRIES: u64 = 100;

/// Commands that are forwarded to the leader in one message, in bytes; a single one may be larger.
///
/// Source: etcd raft `MaxSizePerMsg` as the server sets it is 512 KiB; a message is one frame of a
/// stream that others wait behind.
const FORWARDED_BYTES_MAX: usize = 512 << 10;

/// A replica without its surroundings.
#[derive(Debug)]
pub struct Core {
    raft: Raft,
    settings: CoreSettings,
    effects: Vec<Effect>,
    /// Messages of batches that are not durable yet, oldest first (C1).
    unsent: VecDeque<(BatchNumber, Vec<Message>)>,
    /// Snapshots of batches that are not durable yet, oldest first.
    uninstalled: VecDeque<(BatchNumber, Box<Snapshot>)>,
    /// Commands that are to be proposed together, oldest first.
    held: Vec<Bytes>,
    /// Reads, followers' and one's own, that are to be confirmed together.
    held_reads: Vec<HeldRead>,
    /// The newest batch with entries that is not durable yet.
    writing: Option<BatchNumber>,
    /// Proposals that came while nobody led, with the tick of their arrival.
    parked: VecDeque<(u64, Proposal)>,
    ticks: u64,
    leadership: Leadership,
    /// Where the log ended when this member began to lead alone. A former member may have applied
    /// that much, and so may this one have before a restart.
    alone_from: Option<LogIndex>,
    stopped: bool,
}

/// A read that waits for the round before it.
#[derive(Debug)]
enum HeldRead {
    /// Of this member's readers.
    Own(Bytes),
    /// As a follower asked for it.
    Follower(Box<Message>),
}

#[derive(Debug)]
enum Proposal {
    Command(Bytes),
    ConfChange(Box<ConfChange>),
}

impl Core {
    /// A replica that continues from where `raft` stands.
    #[must_use]
    pub fn new(raft: Raft, settings: CoreSettings) -> Self {
        Self {
            raft,
            settings,
            effects: Vec::new(),
            unsent: VecDeque::new(),
            uninstalled: VecDeque::new(),
            held: Vec::new(),
            held_reads: Vec::new(),
            writing: None,
            parked: VecDeque::new(),
            ticks: 0,
            leadership: Leadership::default(),
            alone_from: None,
            stopped: false,
        }
    }

    /// Whether [`Input::Stop`] has been handled.
    #[must_use]
    pub const fn stopped(&self) -> bool {
        self.stopped
    }

    /// The consensus core, to look at.
    #[cfg(test)]
    pub(super) const fn raft(&self) -> &Raft {
        &self.raft
    }

    /// The last entry known to be committed.
    #[must_use]
    pub const fn committed(&self) -> LogIndex {
        self.raft.committed_index()
    }

    /// Whether a proposal that comes now waits for the end of a write.
    #[must_use]
    pub fn holds_proposals(&self) -> bool {
        self.writing.is_some() && self.raft.role() == Role::Leader
    }

    /// Takes notice of what the apply thread has applied, as long as it may: what follows a change
    /// of membership waits until raft has made that change. A position that is known is old news.
    pub fn note_applied(&mut self, index: LogIndex) {
        if self.raft.applied_index() < index {
            self.raft.applied(index);
        }
    }

    /// Takes one input in. Its effects are taken out with [`Core::take_effects`].
    pub fn handle(&mut self, input: Input) {
        match input {
            Input::Tick => self.tick(),
            Input::Propose(data) => self.propose(Proposal::Command(data)),
            Input::ProposeAsLeader(term, data) => {
                if self.raft.role() == Role::Leader && self.raft.term() == term {
                    note_dropped(self.raft.propose(vec![data]));
                }
            }
            Input::ProposeConfChange(change) => self.propose(Proposal::ConfChange(change)),
            // The thread gives a round its context with `read`, applied positions with
            // `note_applied`, and snapshots to the log.
            Input::Read | Input::Applied | Input::Installed | Input::SaveSnapshot { .. } => {}
            Input::AskProgress(member, ProgressReply(reply)) => reply(self.progress_of(member)),
            Input::Peer(message) => self.take_message(*message),
            Input::Unreachable(member) => self.raft.report_unreachable(member),
            Input::SnapshotSent(member, report) => self.raft.report_snapshot(member, report),
            Input::Persisted(number) => self.persisted(number),
            Input::ConfChange { index, change, id, outcome } => {
                self.change_members(&change);
                // Raft takes no further change before it knows that this one is applied, and
                // whoever is answered may propose the next one at once.
                self.note_applied(index);
                self.effects.push(Effect::Answer { id, outcome });
            }
            Input::SnapshotSaved(metadata) => self.snapshot_saved(*metadata),
            Input::TransferLeader(to) => self.raft.transfer_leader(to),
            Input::Stop => self.stopped = true,
        }
    }

    /// Starts a read round; its confirmation comes as [`Effect::ConfirmRead`].
    pub fn read(&mut self, context: u64) {
        self.held_reads.push(HeldRead::Own(Bytes::copy_from_slice(&context.to_be_bytes())));
    }

    /// Asks for what waits in one round, unless one is under way.
    fn read_when_confirmed(&mut self) {
        if !self.raft.confirms_reads() {
            self.read_held();
        }
    }

    fn read_held(&mut self) {
        for read in mem::take(&mut self.held_reads) {
            match read {
                HeldRead::Own(context) => self.raft.read_index(context),
                HeldRead::Follower(message) => self.step(*message),
            }
        }
    }

    fn step(&mut self, message: Message) {
        if let Err(error) = self.raft.step(message) {
            tracing::warn!(%error, "dropped a message of a peer");
        }
    }

    /// A group of one has nobody to wait for.
    pub fn campaign_if_alone(&mut self) {
        let idle = self.raft.leader() == MemberId(0) && self.raft.role() == Role::Follower;
        if idle && self.raft.is_sole_voter() {
            self.raft.campaign();
        }
    }

    fn progress_of(&self, member: MemberId) -> Option<Option<KnownProgress>> {
        if self.raft.role() != Role::Leader {
            return None;
        }
        let matched =
            |id| self.raft.progress().find(|(of, _)| *of == id).map(|(_, is)| is.matched());
        let leader = matched(self.raft.id()).unwrap_or_default();
        Some(matched(member).map(|matched| KnownProgress { matched, leader }))
    }

    /// Whether nobody else is a member, so that there is nothing to send to anybody.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.raft.is_alone()
    }

    fn tick(&mut self) {
        self.ticks += 1;
        // A round whose messages were lost holds nobody up.
        self.read_held();
        self.raft.tick();
        let forgotten = self.ticks.saturating_sub(self.settings.park_ticks_max);
        while self.parked.front().is_some_and(|(arrived, _)| *arrived < forgotten) {
            self.parked.pop_front();
        }
        let wanted = self.truncation_point();
        if self.raft.first_index().0 + self.settings.truncate_every_entries < wanted.0 {
            self.raft.truncate_to(wanted);
        }
    }

    fn truncation_point(&self) -> LogIndex {
        let applied = self.raft.applied_index().0;
        LogIndex(applied.saturating_sub(self.settings.catch_up_entries))
    }

    fn snapshot_saved(&mut self, metadata: SnapshotMetadata) {
        self.raft.snapshot_taken(Snapshot { data: None, metadata: Some(metadata) });
    }

    fn change_members(&mut self, change: &ConfChange) {
        if let Err(error) = self.raft.apply_conf_change(change) {
            // The state machine lets only legal changes through; a foreign log may hold others.
            tracing::error!(%error, "raft refused a change of membership");
        }
        self.note_company();
    }

    fn note_company(&mut self) {
        let raft = &self.raft;
        let committed_in_term = raft.term_of(raft.committed_index()) == Some(raft.term());
        if raft.role() != Role::Leader || !raft.is_alone() || !committed_in_term {
            self.alone_from = None;
        } else if self.alone_from.is_none() {
            self.alone_from = Some(raft.last_index());
        }
    }

    /// Commands that a follower forwards wait for the end of a write like one's own.
    fn take_message(&mut self, message: Message) {
        let is_command = |entry: &Entry| entry_kind(entry) == Some(EntryType::EntryNormal);
        let forwards = message.r#type == Some(MessageType::MsgProp.into())
            && self.raft.role() == Role::Leader
            && message.entries.iter().all(is_command);
        if forwards {
            self.held
                .extend(message.entries.into_iter().map(|entry| entry.data.unwrap_or_default()));
        } else if message.r#type == Some(MessageType::MsgReadIndex.into()) {
            self.held_reads.push(HeldRead::Follower(Box::new(message)));
        } else {
            self.step(message);
        }
    }

    fn propose(&mut self, proposal: Proposal) {
        if self.raft.leader() == MemberId(0) {
            self.parked.push_back((self.ticks, proposal));
            return;
        }
        match proposal {
            Proposal::Command(data) => self.held.push(data),
            Proposal::ConfChange(change) => {
                // In the order in which they came.
                self.propose_held();
                note_dropped(self.raft.propose_conf_change(&change));
            }
        }
    }

    fn propose_held(&mut self) {
        let held = mem::take(&mut self.held);
        if self.raft.leader() == MemberId(0) {
            let parked = held.into_iter().map(|data| (self.ticks, Proposal::Command(data)));
            self.parked.extend(parked);
            return;
        }
        let mut together = Vec::new();
        let mut bytes = 0;
        for data in held {
            if FORWARDED_BYTES_MAX < bytes + data.len() && !together.is_empty() {
                note_dropped(self.raft.propose(mem::take(&mut together)));
                bytes = 0;
            }
            bytes += data.len();
            together.push(data);
        }
        note_dropped(self.raft.propose(together));
    }

    /// Proposes what waits, unless this member leads and writes what it proposed before.
    fn propose_when_written(&mut self) {
        if !self.held.is_empty() && !self.holds_proposals() {
            self.propose_held();
        }
    }

    fn persisted(&mut self, number: BatchNumber) {
        while self.unsent.front().is_some_and(|(batch, _)| *batch <= number) {
            let (_, messages) = self.unsent.pop_front().expect("the front was just seen");
            self.effects.push(Effect::Send(messages));
        }
        self.raft.persisted(number);
        self.writing = self.writing.filter(|writing| number < *writing);
        while self.uninstalled.front().is_some_and(|(batch, _)| *batch <= number) {
            let (_, snapshot) = self.uninstalled.pop_front().expect("the front was just seen");
            self.effects.push(Effect::Install(snapshot));
        }
    }

    /// Takes out everything that the inputs so far make happen, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        loop {
            // A new leader may be given what waited for one.
            self.note_leadership();
            self.propose_when_written();
            self.read_when_confirmed();
            let Some(ready) = self.raft.ready() else { break };
            self.absorb(ready);
        }
        mem::take(&mut self.effects)
    }

    fn absorb(&mut self, mut ready: Ready) {
        if !ready.messages.is_empty() {
            drop_superseded(&mut ready.messages);
            self.effects.push(Effect::Send(ready.messages));
        }
        if let Some(mut batch) = ready.batch {
            if !batch.entries.is_empty() {
                self.writing = Some(batch.number);
            }
            let messages = mem::take(&mut batch.messages);
            if !messages.is_empty() {
                self.unsent.push_back((batch.number, messages));
            }
            if let Some(snapshot) = &batch.snapshot {
                self.uninstalled.push_back((batch.number, Box::new(snapshot.clone())));
            }
            self.effects.push(Effect::Persist(batch));
        }
        for read in ready.read_states {
            let context = read.context.as_ref().try_into().map(u64::from_be_bytes);
            let context = context.expect("contexts are made of eight bytes in `read`");
            self.effects.push(Effect::ConfirmRead { context, index: read.index });
        }
        if !ready.committed.is_empty() {
            self.effects.push(Effect::Apply(ready.committed));
        }
    }

    fn note_leadership(&mut self) {
        self.note_company();
        let applied = self.raft.applied_index();
        let leadership = Leadership {
            term: self.raft.term(),
            leader: self.raft.leader(),
            reads_without_round: self.alone_from.is_some_and(|from| from <= applied),
        };
        if leadership == self.leadership {
            return;
        }
        self.leadership = leadership;
        self.effects.push(Effect::Leadership(leadership));
        if leadership.leader != MemberId(0) {
            for (_, proposal) in mem::take(&mut self.parked) {
                self.propose(proposal);
            }
        }
    }
}

/// A proposal that raft does not take: its caller learns of it by time-out, as with a message that a
/// leader never got.
fn note_dropped(proposed: Result<(), ProposeError>) {
    if let Err(error) = proposed {
        tracing::debug!(%error, "a proposal was dropped");
    }
}

/// Takes out messages that only tell a commit position which a later message to the same member
/// tells as well, and heartbeats before the last one, whose answer confirms every read. Any message
/// may be lost on its way, so none is missed.
fn drop_superseded(messages: &mut Vec<Message>) {
    let append = Some(MessageType::MsgApp.into());
    let heartbeat = Some(MessageType::MsgHeartbeat.into());
    let mut later: Vec<(Option<u64>, Option<u64>)> = Vec::new();
    let mut alive: Vec<Option<u64>> = Vec::new();
    let mut kept = Vec::with_capacity(messages.len());
    for message in messages.drain(..).rev() {
        if message.r#type == append {
            let (to, commit) = (message.to, message.commit);
            let is_told = later.iter().any(|(other, told)| *other == to && commit <= *told);
            if message.entries.is_empty() && is_told {
                continue;
            }
            later.push((to, commit));
        } else if message.r#type == heartbeat {
            if alive.contains(&message.to) {
                continue;
            }
            alive.push(message.to);
        }
        kept.push(message);
    }
    kept.reverse();
    *messages = kept;
}

#[cfg(test)]
mod tests {
    use proto::raftpb::{ConfChangeType, ConfState, EntryType, HardState};

    use super::*;
    use crate::consensus::{Config, RaftState};

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

    /// Carries effects out until nothing happens any more; entries that were applied.
    fn settle(core: &mut Core) -> Vec<Bytes> {
        let mut applied = Vec::new();
        loop {
            let effects = core.take_effects();
            if effects.is_empty() {
                return applied;
            }
            for effect in effects {
                match effect {
                    Effect::Persist(batch) => core.handle(Input::Persisted(batch.number)),
                    Effect::Apply(entries) => {
                        for entry in entries {
                            core.note_applied(crate::model::entry_index(&entry));
                            applied.push(crate::model::entry_data(&entry));
                        }
                    }
                    Effect::Send(messages) => assert_eq!(messages, [], "nobody to send to"),
                    Effect::Install(snapshot) => panic!("nobody sent {snapshot:?}"),
                    Effect::ConfirmRead { .. } | Effect::Answer { .. } | Effect::Leadership(_) => {}
                }
            }
        }
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
        let applied: Vec<_> =
            settle(&mut core).into_iter().filter(|data| !data.is_empty()).collect();
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
        let mut index = LogIndex(0);
        while index == LogIndex(0) {
            for effect in core.take_effects() {
                if let Effect::Persist(batch) = effect {
                    core.handle(Input::Persisted(batch.number));
                } else if let Effect::Apply(entries) = effect {
                    index = crate::model::entry_index(&entries[0]);
                }
            }
        }
        let (id, outcome) = (RequestId(7), Ok(crate::model::Answer::Done));
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

    /// Carries effects out with a disk that is done at once; what was sent.
    fn persist_all(core: &mut Core) -> Vec<Message> {
        let mut sent = Vec::new();
        loop {
            let effects = core.take_effects();
            if effects.is_empty() {
                return sent;
            }
            for effect in effects {
                match effect {
                    Effect::Persist(batch) => core.handle(Input::Persisted(batch.number)),
                    Effect::Send(messages) => sent.extend(messages),
                    Effect::Apply(entries) => {
                        core.note_applied(crate::model::entry_index(entries.last().expect("some")));
                    }
                    Effect::Install(_)
                    | Effect::ConfirmRead { .. }
                    | Effect::Answer { .. }
                    | Effect::Leadership(_) => {}
                }
            }
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
    fn only_a_message_that_tells_nothing_but_an_older_commit_is_left_out() {
        let append = |to: u64, commit: u64, entries: usize| Message {
            r#type: Some(MessageType::MsgApp.into()),
            to: Some(to),
            commit: Some(commit),
            entries: vec![Entry::default(); entries],
            ..Message::default()
        };
        let heartbeat = Message {
            r#type: Some(MessageType::MsgHeartbeat.into()),
            to: Some(2),
            ..append(2, 0, 0)
        };
        let mut messages = vec![
            append(2, 5, 0),
            append(3, 5, 0),
            append(2, 4, 1),
            heartbeat.clone(),
            append(2, 5, 2),
            heartbeat,
            append(3, 4, 1),
        ];
        let mut expected = messages.clone();
        expected.remove(3);
        expected.remove(0);
        drop_superseded(&mut messages);
        assert_eq!(messages, expected);
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

    /// Makes everything durable and nothing applied; the last entry handed out for that.
    fn commit(core: &mut Core) -> LogIndex {
        let mut committed = LogIndex(0);
        loop {
            let effects = core.take_effects();
            if effects.is_empty() {
                return committed;
            }
            for effect in effects {
                if let Effect::Persist(batch) = effect {
                    core.handle(Input::Persisted(batch.number));
                } else if let Effect::Apply(entries) = effect {
                    committed = entries.last().map_or(committed, crate::model::entry_index);
                }
            }
        }
    }

    fn change(kind: ConfChangeType, id: u64) -> Box<ConfChange> {
        Box::new(ConfChange {
            r#type: Some(kind.into()),
            node_id: Some(id),
            ..ConfChange::default()
        })
    }

    fn make_change(core: &mut Core, change: Box<ConfChange>) {
        core.handle(Input::ProposeConfChange(change.clone()));
        let index = commit(core);
        let (id, outcome) = (RequestId(0), Ok(crate::model::Answer::Done));
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
        let (id, outcome) = (RequestId(0), Ok(crate::model::Answer::Done));
        core.handle(Input::ConfChange { index, change: removal, id, outcome });
        core.take_effects();
        assert!(!core.leadership.reads_without_round);
        core.note_applied(last);
        core.take_effects();
        assert!(core.leadership.reads_without_round);
    }
}
