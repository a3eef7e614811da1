//! What a leader sends, and what it makes of the answers.
//!
//! Decides what is committed. A leader probes a member until their logs agree, then streams, and
//! sends a snapshot when the entries a member needs are gone. Part of [`Raft`]; how each member is
//! treated is in [`super::progress`].

use bytes::Bytes;
use proto::raftpb::{Entry, EntryType, Message, MessageType};

use super::{
    ProgressState, ProposeError, Raft, Role, SnapshotReport, StepError,
    log::{payload_bytes, snapshot_id},
    membership::Members,
    message::{self, AppendAnswer, EntryId, conf_change},
};
use crate::model::{LogIndex, MemberId};

/// Whether an append without entries is worth sending: it carries the commit index, or probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Empty {
    Send,
    Skip,
}

impl Raft {
    pub(super) fn tick_leader(&mut self) {
        self.heartbeat_elapsed = self.heartbeat_elapsed.saturating_add(1);
        self.election_elapsed = self.election_elapsed.saturating_add(1);
        if self.config.election_ticks <= self.election_elapsed {
            self.election_elapsed = 0;
            if self.config.check_quorum {
                self.check_quorum();
            }
            self.transferee = None;
        }
        if self.role == Role::Leader && self.config.heartbeat_ticks <= self.heartbeat_elapsed {
            self.heartbeat_elapsed = 0;
            self.broadcast_heartbeats();
        }
        // It could not be proposed while leadership was being handed over.
        self.leave_joint_when_applied();
    }

    /// Appends proposed entries, or forwards them to the leader.
    pub(super) fn take_proposal(&mut self, entries: Vec<Entry>) -> Result<(), ProposeError> {
        assert!(!entries.is_empty(), "a proposal of nothing");
        match self.role {
            Role::Leader => self.propose_as_leader(entries),
            Role::Follower if self.leader.0 != 0 => {
                let message = message::to(self.leader, MessageType::MsgProp);
                self.send(Message { entries, ..message });
                Ok(())
            }
            Role::Follower | Role::PreCandidate | Role::Candidate => {
                tracing::info!(target: "raft", "{} no leader at term {}; dropping proposal",
                    self.config.id, self.term);
                Err(ProposeError::NoLeader)
            }
        }
    }

    fn propose_as_leader(&mut self, mut entries: Vec<Entry>) -> Result<(), ProposeError> {
        if !self.members.progress.contains_key(&self.config.id) {
            return Err(ProposeError::NotMember);
        }
        if let Some(to) = self.transferee {
            return Err(ProposeError::Transferring { to });
        }
        let bytes: u64 = entries.iter().map(payload_bytes).sum();
        let uncommitted_bytes_max = self.config.uncommitted_bytes_max;
        // A single proposal may be larger than the limit, and an empty one always fits.
        if 0 < self.uncommitted_bytes
            && 0 < bytes
            && uncommitted_bytes_max < self.uncommitted_bytes.saturating_add(bytes)
        {
            return Err(ProposeError::Overloaded { uncommitted_bytes_max });
        }
        for (index, entry) in (self.log.last_index().0 + 1..).zip(&mut entries) {
            self.admit_conf_change(LogIndex(index), entry);
        }
        self.append_own(entries);
        self.broadcast_appends();
        Ok(())
    }

    /// Lets a membership change pass if no other one can be under way, or puts an empty entry in
    /// its place.
    fn admit_conf_change(&mut self, index: LogIndex, entry: &mut Entry) {
        let Ok(change) = conf_change(entry) else {
            *entry = empty_entry();
            return;
        };
        let Some(change) = change else { return };
        let is_joint = self.members.membership.voters.is_joint();
        let leaves = change.changes.is_empty();
        let refusal = if self.log.applied() < self.pending_conf_index {
            Some("possible unapplied conf change")
        } else if is_joint && !leaves {
            Some("must transition out of joint config first")
        } else if !is_joint && leaves {
            Some("not in joint state; refusing empty conf change")
        } else {
            None
        };
        if let Some(refusal) = refusal {
            tracing::info!(target: "raft", "{} ignoring conf change {change:?} at config {}: \
                {refusal} (index {}, applied to {})", self.config.id, self.members.membership,
                self.pending_conf_index, self.log.applied());
            *entry = empty_entry();
        } else {
            self.pending_conf_index = index;
        }
    }

    /// Appends to the log of the leader, which counts itself when that is durable.
    pub(super) fn append_own(&mut self, mut entries: Vec<Entry>) {
        assert!(self.role == Role::Leader, "only a leader appends");
        let first = self.log.last_index().next();
        for (index, entry) in (first.0..).zip(&mut entries) {
            entry.term = Some(self.term.0);
            entry.index = Some(index);
            self.uncommitted_bytes += payload_bytes(entry);
        }
        self.log.append(entries);
    }

    pub(super) fn broadcast_appends(&mut self) {
        for id in self.peers() {
            self.send_append(id);
        }
    }

    pub(super) fn send_append(&mut self, to: MemberId) {
        self.maybe_send_append(to, Empty::Send);
    }

    /// Sends what `to` needs next; true if that was a message.
    fn maybe_send_append(&mut self, to: MemberId, empty: Empty) -> bool {
        let progress = self.members.progress.get_mut(&to).expect("members are tracked");
        if progress.is_paused() {
            return false;
        }
        let previous = progress.previous();
        let Some(term) = self.log.term(previous) else {
            return self.send_snapshot(to);
        };
        // A full window still lets an empty message through: it is answered, and the answer opens
        // the window again if everything in it was lost.
        let is_full = progress.state == ProgressState::Replicate && progress.in_flight.is_full();
        let entries = if is_full {
            Vec::new()
        } else {
            self.log.entries_from(progress.next, self.config.append_bytes_max)
        };
        if entries.is_empty() && empty == Empty::Skip {
            return false;
        }
        let commit = self.log.committed();
        progress.sent_entries(u64::try_from(entries.len()).expect("a length fits 64 bits"));
        progress.sent_commit(commit);
        self.send(Message {
            index: Some(previous.0),
            log_term: Some(term.0),
            entries,
            commit: Some(commit.0),
            ..message::to(to, MessageType::MsgApp)
        });
        true
    }

    fn send_snapshot(&mut self, to: MemberId) -> bool {
        let snapshot = self.log.snapshot(|| self.members.conf_state());
        let progress = self.members.progress.get_mut(&to).expect("members are tracked");
        if !progress.recently_active {
            tracing::debug!(target: "raft", "ignore sending snapshot to {to} since it is not \
                recently active");
            return false;
        }
        let EntryId { term, index } = snapshot_id(&snapshot);
        assert!(0 < index.0, "entries are gone from memory without a snapshot");
        tracing::debug!(target: "raft", "{} [firstindex: {}, commit: {}] sent snapshot[index: \
            {index}, term: {term}] to {to} [{progress}]", self.config.id, self.log.first_index(),
            self.log.committed());
        progress.become_snapshot(index);
        self.send(Message { snapshot: Some(snapshot), ..message::to(to, MessageType::MsgSnap) });
        true
    }

    pub(super) fn broadcast_heartbeats(&mut self) {
        let context = self.reads.heartbeat_context();
        for id in self.peers() {
            self.send_heartbeat(id, context.clone());
        }
    }

    fn send_heartbeat(&mut self, to: MemberId, context: Bytes) {
        let committed = self.log.committed();
        let progress = self.members.progress.get_mut(&to).expect("members are tracked");
        // The member may not have what is committed, or something else in its place.
        let commit = progress.matched.min(committed);
        progress.sent_commit(commit);
        self.send(Message {
            commit: Some(commit.0),
            context: (!context.is_empty()).then_some(context),
            ..message::to(to, MessageType::MsgHeartbeat)
        });
    }

    pub(super) fn take_append_answer(
        &mut self,
        from: MemberId,
        answer: AppendAnswer,
    ) -> Result<(), StepError> {
        if self.role != Role::Leader {
            return Ok(());
        }
        let last = self.log.last_index();
        match answer {
            AppendAnswer::Matches(index) if last < index => {
                return Err(StepError::AnswerBeyondLog { index, last });
            }
            AppendAnswer::Matches(index) => {
                self.member(from).recently_active = true;
                self.agrees(from, index);
            }
            AppendAnswer::Differs { rejected, hint } => {
                self.member(from).recently_active = true;
                self.disagrees(from, rejected, hint);
            }
        }
        Ok(())
    }

    fn member(&mut self, id: MemberId) -> &mut super::Progress {
        self.members.progress.get_mut(&id).expect("answers come from members")
    }

    fn disagrees(&mut self, from: MemberId, rejected: LogIndex, hint: EntryId) {
        tracing::debug!(target: "raft", "{} received MsgAppResp(rejected, hint: (index {}, term \
            {})) from {from} for index {rejected}", self.config.id, hint.index, hint.term);
        // Our entries of later terms than the member's last cannot be in its log; a probe at each
        // term of our log is enough to find where the logs part.
        let next = if 0 < hint.term.0 {
            self.log.agreement(hint.index, hint.term).index
        } else {
            hint.index
        };
        let progress = self.member(from);
        if !progress.differs(rejected, next) {
            return;
        }
        match progress.state {
            ProgressState::Replicate => progress.become_probe(),
            ProgressState::Probe | ProgressState::Snapshot => {}
        }
        self.send_append(from);
    }

    fn agrees(&mut self, from: MemberId, index: LogIndex) {
        let first = self.log.first_index();
        let progress = self.member(from);
        let is_new = progress.matches(index);
        // An answer that is not new still ends a probe: the member is there.
        let ends_probe = progress.matched == index && progress.state == ProgressState::Probe;
        if !is_new && !ends_probe {
            return;
        }
        match progress.state {
            ProgressState::Probe => progress.become_replicate(),
            ProgressState::Snapshot => {
                // Whatever snapshot got there, our entries continue it.
                if first <= progress.matched.next() {
                    tracing::debug!(target: "raft", "recovered from needing snapshot, resumed \
                        sending replication messages to {from} [{progress}]");
                    progress.become_probe();
                    progress.become_replicate();
                }
            }
            ProgressState::Replicate => progress.in_flight.answered(index),
        }
        let committed = self.log.committed();
        let can_bump = self.member(from).can_bump_commit(committed);
        if !self.commit_and_tell() && can_bump {
            self.send_append(from);
        }
        while self.maybe_send_append(from, Empty::Skip) {}
        let last = self.log.last_index();
        if self.transferee == Some(from) && self.member(from).matched == last {
            tracing::info!(target: "raft", "{} sent MsgTimeoutNow to {from} after received \
                MsgAppResp", self.config.id);
            self.send(message::to(from, MessageType::MsgTimeoutNow));
        }
    }

    /// Commits what a quorum has, and tells everybody; true if the commit index moved.
    fn commit_and_tell(&mut self) -> bool {
        let progress = &self.members.progress;
        let matched = |id| progress.get(&id).map(|progress| progress.matched.0);
        let reached = LogIndex(self.members.membership.voters.reached(matched));
        if !self.log.commit_in_term(reached, self.term) {
            return false;
        }
        self.release_parked_reads();
        self.broadcast_appends();
        true
    }

    /// Counts the leader's own entries that became durable.
    pub(super) fn count_own_entries(&mut self) {
        let persisted = self.log.persisted();
        // A leader that was removed counts no more, but goes on until it steps down.
        let Some(own) = self.members.progress.get_mut(&self.config.id) else { return };
        if own.matches(persisted) {
            self.commit_and_tell();
        }
    }

    pub(super) fn take_heartbeat_answer(&mut self, from: MemberId, context: &[u8]) {
        if self.role != Role::Leader {
            return;
        }
        let last = self.log.last_index();
        let progress = self.member(from);
        progress.recently_active = true;
        progress.resume_appends();
        // It lacks entries, or must be given a reason to answer so that streaming can go on.
        if progress.matched < last || progress.state == ProgressState::Probe {
            self.send_append(from);
        }
        if !context.is_empty() {
            self.reads.answer(from, context);
            self.release_confirmed_reads();
        }
    }

    pub(super) fn lost_contact(&mut self, id: MemberId) {
        if self.role != Role::Leader || id == self.config.id {
            return;
        }
        let Some(progress) = self.members.progress.get_mut(&id) else { return };
        match progress.state {
            // What was streamed is probably lost.
            ProgressState::Replicate => progress.become_probe(),
            ProgressState::Probe | ProgressState::Snapshot => {}
        }
        tracing::debug!(target: "raft", "{} failed to send message to {id} because it is \
            unreachable [{progress}]", self.config.id);
    }

    pub(super) fn snapshot_sent(&mut self, id: MemberId, report: SnapshotReport) {
        if self.role != Role::Leader {
            return;
        }
        let Some(progress) = self.members.progress.get_mut(&id) else { return };
        if progress.state != ProgressState::Snapshot {
            return;
        }
        match report {
            SnapshotReport::Sent => progress.become_probe(),
            SnapshotReport::Failed => {
                progress.pending_snapshot = LogIndex(0);
                progress.become_probe();
            }
        }
        // After success the member answers; after failure it is tried again a heartbeat later.
        progress.pause_appends();
    }

    /// Takes up a new membership.
    pub(super) fn switch_to(&mut self, members: Members) {
        self.members = members;
        tracing::info!(target: "raft", "{} switched to configuration {}", self.config.id,
            self.members.membership);
        if self.role != Role::Leader {
            return;
        }
        let own = self.members.progress.get(&self.config.id);
        if own.is_none_or(|own| own.is_learner) {
            if self.config.step_down_on_removal {
                self.become_follower(self.term, MemberId(0));
            }
            return;
        }
        if !self.commit_and_tell() {
            for id in self.peers() {
                self.maybe_send_append(id, Empty::Skip);
            }
        }
        // With fewer voters, those that answered may suffice.
        self.release_confirmed_reads();
        if self.transferee.is_some_and(|to| !self.members.membership.voters.contains(to)) {
            self.transferee = None;
        }
    }

    /// Leaves a joint membership that asked for it, once everything up to its entry is applied.
    pub(super) fn leave_joint_when_applied(&mut self) {
        if self.role != Role::Leader
            || !self.members.membership.auto_leave
            || self.log.applied() < self.pending_conf_index
        {
            return;
        }
        let change =
            Entry { r#type: Some(EntryType::EntryConfChangeV2.into()), ..Entry::default() };
        match self.take_proposal(vec![change]) {
            Ok(()) => {
                tracing::info!(target: "raft", "initiating automatic transition out of joint \
                configuration {}", self.members.membership)
            }
            // Tried again with the next applied entry and at the next tick.
            Err(error) => tracing::debug!(target: "raft", %error, "not initiating automatic \
                transition out of joint configuration {}", self.members.membership),
        }
    }
}

fn empty_entry() -> Entry {
    Entry { r#type: Some(EntryType::EntryNormal.into()), ..Entry::default() }
}
