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
//! one turn. With three members on two processors that is a fifth less processor time per put at 64
//! and at 512 in flight.
//!
//! Reads are held alike: those that come while a quorum confirms earlier ones share the next round.
//!
//! Deliberately absent: time (a tick is an input), threads, sockets, files.

mod effect;
mod input;
mod superseded;

use std::{collections::VecDeque, mem};

use bytes::Bytes;
use proto::raftpb::{
    ConfChange, Entry, EntryType, Message, MessageType, Snapshot, SnapshotMetadata,
};

pub use effect::{Effect, Leadership};
pub use input::{Input, KnownProgress, ProgressReply};

use self::superseded::drop_superseded;
use crate::{
    consensus::{BatchNumber, ProposeError, Raft, Ready, Role},
    model::{LogIndex, MemberId, entry_kind},
};

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
            Input::LeaderGone(member) => self.raft.report_gone(member),
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

#[cfg(test)]
mod tests;
