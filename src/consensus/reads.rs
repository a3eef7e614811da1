//! The way of a linearizable read through the core.
//!
//! Decides where a read is answered: by the leader, when its term has a commit of its own and a
//! quorum still follows it. Part of [`Raft`]; the waiting itself is [`super::read_index`].

use bytes::Bytes;
use proto::raftpb::{Entry, Message, MessageType};

use super::{Raft, ReadState, Role, config::READS_WAITING_MAX, message, read_index::ReadRequest};
use crate::model::LogIndex;

impl Raft {
    /// Takes a read of this member or of a follower.
    pub(super) fn take_read(&mut self, request: ReadRequest) {
        match self.role {
            Role::Leader => self.read_as_leader(request),
            Role::Follower if self.leader.0 != 0 => {
                // A forwarded request keeps its sender, whom the leader answers.
                self.send(Message {
                    from: Some(request.from.0),
                    entries: context_entry(request.context),
                    ..message::to(self.leader, MessageType::MsgReadIndex)
                });
            }
            Role::Follower | Role::PreCandidate | Role::Candidate => {
                tracing::info!(target: "raft", "{} no leader at term {}; dropping index reading \
                    msg", self.config.id, self.term);
            }
        }
    }

    fn read_as_leader(&mut self, request: ReadRequest) {
        // Until then the commit index may be behind what earlier leaders answered for. This holds
        // for a single voter as well, which stores its commit index lazily.
        if !self.has_commit_in_term() {
            if self.parked_reads.len() < READS_WAITING_MAX {
                self.parked_reads.push(request);
            }
            return;
        }
        let commit = self.log.committed();
        if self.members.is_singleton() {
            self.answer_read(request, commit);
        } else if self.reads.add(self.config.id, request, commit) {
            self.broadcast_heartbeats();
        }
    }

    pub(super) fn has_commit_in_term(&self) -> bool {
        self.log.term(self.log.committed()) == Some(self.term)
    }

    /// Lets the reads go on that waited for the first commit of the term.
    pub(super) fn release_parked_reads(&mut self) {
        if !self.has_commit_in_term() {
            return;
        }
        for request in std::mem::take(&mut self.parked_reads) {
            self.read_as_leader(request);
        }
    }

    /// Answers the reads that a quorum has confirmed.
    pub(super) fn release_confirmed_reads(&mut self) {
        for (request, index) in self.reads.take_confirmed(&self.members.membership.voters) {
            self.answer_read(request, index);
        }
    }

    fn answer_read(&mut self, request: ReadRequest, index: LogIndex) {
        assert!(index <= self.log.committed(), "a read at {index}, which is not committed");
        if request.from == self.config.id {
            self.outgoing.read_states.push(ReadState { index, context: request.context });
            return;
        }
        self.send(Message {
            index: Some(index.0),
            entries: context_entry(request.context),
            ..message::to(request.from, MessageType::MsgReadIndexResp)
        });
    }

    /// Takes the leader's answer to a read of this member.
    pub(super) fn take_read_answer(&mut self, index: LogIndex, context: Bytes) {
        match self.role {
            Role::Follower => self.outgoing.read_states.push(ReadState { index, context }),
            // The term has changed its mind about who leads; the reader asks again.
            Role::PreCandidate | Role::Candidate | Role::Leader => {}
        }
    }
}

fn context_entry(context: Bytes) -> Vec<Entry> {
    vec![Entry { data: Some(context), ..Entry::default() }]
}
