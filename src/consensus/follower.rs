//! What a follower does with its leader's entries, heartbeats and snapshots.
//!
//! Decides what this member acknowledges. Every acknowledgement waits for the disk; see
//! [`Raft::send`]. Part of [`Raft`].

use bytes::Bytes;
use proto::raftpb::{ConfState, Message, MessageType, Snapshot};

use super::{
    Raft, Role, StepError,
    log::snapshot_id,
    membership::Members,
    message::{self, Append},
};
use crate::model::{LogIndex, MemberId};

impl Raft {
    /// Accepts `from` as the leader of the current term.
    ///
    /// # Errors
    /// [`StepError::SecondLeader`] if this member leads it.
    pub(super) fn follow(&mut self, from: MemberId) -> Result<(), StepError> {
        match self.role {
            Role::Leader => return Err(StepError::SecondLeader(from)),
            Role::PreCandidate | Role::Candidate => self.become_follower(self.term, from),
            Role::Follower => {
                self.election_elapsed = 0;
                self.leader_gone_ticks = None;
                self.leader = from;
            }
        }
        Ok(())
    }

    /// Takes a leader's entries, or tells it where the logs may agree.
    pub(super) fn take_append(&mut self, from: MemberId, append: Append) -> Result<(), StepError> {
        let previous = append.previous;
        if previous.index < self.log.committed() {
            self.acknowledge(from, self.log.committed());
            return Ok(());
        }
        if let Some(agreed) = self.log.follow(append)? {
            self.acknowledge(from, agreed);
            return Ok(());
        }
        tracing::debug!(target: "raft",
            "{} [logterm: {}, index: {}] rejected MsgApp [logterm: {}, index: {}] from {from}",
            self.config.id, self.log.term(previous.index).unwrap_or_default(), previous.index,
            previous.term, previous.index);
        // The leader's terms up to there are at most its term there, so our later ones cannot
        // match: one hint skips all of them.
        let index = previous.index.min(self.log.last_index());
        let hint = self.log.agreement(index, previous.term);
        self.send(Message {
            index: Some(previous.index.0),
            reject: Some(true),
            reject_hint: Some(hint.index.0),
            log_term: Some(hint.term.0),
            ..message::to(from, MessageType::MsgAppResp)
        });
        Ok(())
    }

    fn acknowledge(&mut self, to: MemberId, index: LogIndex) {
        assert!(index <= self.log.last_index(), "acknowledged {index}, which is not in the log");
        self.send(Message { index: Some(index.0), ..message::to(to, MessageType::MsgAppResp) });
    }

    pub(super) fn take_heartbeat(
        &mut self,
        from: MemberId,
        commit: LogIndex,
        context: Bytes,
    ) -> Result<(), StepError> {
        self.log.commit(commit)?;
        self.send(Message {
            context: (!context.is_empty()).then_some(context),
            ..message::to(from, MessageType::MsgHeartbeatResp)
        });
        Ok(())
    }

    /// Takes a snapshot, unless it has nothing new.
    pub(super) fn take_snapshot(&mut self, from: MemberId, snapshot: Snapshot) {
        let id = snapshot_id(&snapshot);
        let restored = self.restore(snapshot);
        let verdict = if restored { "restored" } else { "ignored" };
        tracing::info!(target: "raft", "{} [commit: {}] {verdict} snapshot [index: {}, term: {}]",
            self.config.id, self.log.committed(), id.index, id.term);
        let index = if restored { self.log.last_index() } else { self.log.committed() };
        self.acknowledge(from, index);
    }

    fn restore(&mut self, snapshot: Snapshot) -> bool {
        let id = snapshot_id(&snapshot);
        if id.index <= self.log.committed() {
            return false;
        }
        let state = snapshot.metadata.as_ref().and_then(|metadata| metadata.conf_state.clone());
        let state = state.unwrap_or_default();
        if !is_named_in(self.config.id, &state) {
            tracing::warn!(target: "raft", "{} attempted to restore snapshot but it is not in the \
                ConfState {state:?}; should never happen", self.config.id);
            return false;
        }
        // The log already leads there: the entries are better than the snapshot, because a leader
        // can continue them.
        if self.log.holds(id) {
            let last = self.log.last();
            tracing::info!(target: "raft", "{} [commit: {}, lastindex: {}, lastterm: {}] \
                fast-forwarded commit to snapshot [index: {}, term: {}]", self.config.id,
                self.log.committed(), last.index, last.term, id.index, id.term);
            self.log.commit(id.index).expect("the log holds the snapshot's entry");
            return false;
        }
        let members = match Members::restore(&state, id.index, self.config.appends_in_flight_max) {
            Ok(members) => members,
            Err(error) => {
                tracing::warn!(target: "raft", %error, "{} ignored a snapshot with an \
                        impossible membership {state:?}", self.config.id);
                return false;
            }
        };
        self.log.restore(snapshot);
        self.switch_to(members);
        let last = self.log.last();
        tracing::info!(target: "raft", "{} [commit: {}, lastindex: {}, lastterm: {}] restored \
            snapshot [index: {}, term: {}]", self.config.id, self.log.committed(), last.index,
            last.term, id.index, id.term);
        true
    }
}

fn is_named_in(id: MemberId, state: &ConfState) -> bool {
    let mut everybody = state.voters.iter().chain(&state.learners).chain(&state.voters_outgoing);
    everybody.any(|other| *other == id.0)
}
