//! The core's state, its inputs, and the changes of role.
//!
//! Decides what a message means in the current term and role, and hands it to the file that knows
//! the subject: [`super::election`], [`super::replication`], [`super::follower`],
//! [`super::reads`]. `replica::core` is the only caller and the only owner.

use std::{cmp::Ordering, collections::BTreeMap, fmt};

use bytes::Bytes;
use prost::Message as _;
use proto::raftpb::{
    ConfChange, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, MessageType,
    Snapshot,
};

use super::{
    BatchNumber, ConfChangeError, Config, RaftState, ReadState, StartError, StepError,
    election::Campaign,
    log::Log,
    membership::Members,
    message::{self, Body, Received, VoteKind},
    read_index::{ReadQueue, ReadRequest},
    ready::{OwnVote, SoftState},
};
use crate::model::{LogIndex, MemberId, Term};

/// What a member is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes entries from a leader, if it knows one.
    Follower,
    /// Asks whether it could win an election.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Takes proposals and replicates them.
    Leader,
}

/// Why a proposal was not taken. Nothing was appended; the proposer may try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProposeError {
    /// No leader is known.
    NoLeader,
    /// Leadership is being handed over.
    Transferring { to: MemberId },
    /// This leader was removed from the membership.
    NotMember,
    /// Too much is proposed and not yet applied.
    Overloaded { uncommitted_bytes_max: u64 },
}

impl fmt::Display for ProposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLeader => f.write_str("no leader is known"),
            Self::Transferring { to } => write!(f, "leadership is being handed to {to}"),
            Self::NotMember => f.write_str("this leader is no member any more"),
            Self::Overloaded { uncommitted_bytes_max } => {
                write!(f, "more than {uncommitted_bytes_max} bytes are proposed and not applied")
            }
        }
    }
}

impl std::error::Error for ProposeError {}

/// Whether a snapshot that was sent arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotReport {
    /// The receiver took it.
    Sent,
    /// It did not get through.
    Failed,
}

/// Where the core's random numbers come from: given a bound, a number below it.
pub type Dice = Box<dyn FnMut(u64) -> u64 + Send>;

/// One member's part in the consensus. Owned by the replica thread.
pub struct Raft {
    pub(super) config: Config,
    pub(super) dice: Dice,
    pub(super) term: Term,
    /// Who got this member's vote in `term`; 0 is nobody.
    pub(super) vote: MemberId,
    /// Who leads `term`; 0 is nobody known.
    pub(super) leader: MemberId,
    pub(super) role: Role,
    pub(super) log: Log,
    pub(super) members: Members,
    /// The answers to this member's candidacy.
    pub(super) votes: BTreeMap<MemberId, bool>,
    pub(super) transferee: Option<MemberId>,
    /// No membership change is taken before this entry is applied: there may be one up to here.
    pub(super) pending_conf_index: LogIndex,
    pub(super) uncommitted_bytes: u64,
    pub(super) reads: ReadQueue,
    /// Reads that arrived before the first commit of the term.
    pub(super) parked_reads: Vec<ReadRequest>,
    /// Ticks since this member last heard from a leader or started an election; of a leader, since
    /// it last checked its quorum.
    pub(super) election_elapsed: u32,
    pub(super) heartbeat_elapsed: u32,
    /// Ticks since the leader's process is known to have ended, if it is.
    pub(super) leader_gone_ticks: Option<u32>,
    /// This time's random timeout.
    pub(super) election_timeout: u32,
    pub(super) outgoing: Outgoing,
}

/// What waits for the next [`super::Ready`].
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) messages: Vec<Message>,
    pub(super) messages_after: Vec<Message>,
    pub(super) own_votes: Vec<OwnVote>,
    pub(super) read_states: Vec<ReadState>,
    /// Votes for oneself that count once their batch is durable.
    pub(super) own_votes_writing: Vec<(BatchNumber, OwnVote)>,
    pub(super) last_batch: BatchNumber,
    pub(super) written: BatchNumber,
    pub(super) soft_state: SoftState,
    pub(super) hard_state: HardState,
    pub(super) commit_due: bool,
}

impl fmt::Debug for Raft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raft")
            .field("id", &self.config.id)
            .field("term", &self.term)
            .field("role", &self.role)
            .field("leader", &self.leader)
            .field("log", &self.log)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

impl Raft {
    /// A member that continues from `state`, as a follower.
    ///
    /// # Errors
    /// [`StartError`] if the settings or the state contradict themselves.
    pub fn new(config: Config, state: RaftState, dice: Dice) -> Result<Self, StartError> {
        config.validate()?;
        let hard_state = state.hard_state;
        let conf_state = state.conf_state.clone();
        let log = Log::new(state, config.applying_bytes_max, config.apply_when)?;
        let last = log.last();
        let (term, vote) = remembered(&hard_state, &log);
        let members = Members::restore(&conf_state, last.index, config.appends_in_flight_max)
            .map_err(StartError::Membership)?;
        let mut raft = Self {
            outgoing: Outgoing::new(HardState {
                term: Some(hard_state.term.unwrap_or(0)),
                vote: Some(hard_state.vote.unwrap_or(0)),
                commit: Some(log.committed().0),
            }),
            config,
            dice,
            term,
            vote,
            leader: MemberId(0),
            role: Role::Follower,
            log,
            members,
            votes: BTreeMap::new(),
            transferee: None,
            pending_conf_index: LogIndex(0),
            uncommitted_bytes: 0,
            reads: ReadQueue::default(),
            parked_reads: Vec::new(),
            election_elapsed: 0,
            heartbeat_elapsed: 0,
            leader_gone_ticks: None,
            election_timeout: 0,
        };
        tracing::info!(target: "raft", "{} switched to configuration {}", raft.config.id,
            raft.members.membership);
        raft.become_follower(term, MemberId(0));
        raft.log_start();
        Ok(raft)
    }

    fn log_start(&self) {
        let voters = self.members.membership.voters.ids();
        let peers: Vec<String> = voters.iter().map(ToString::to_string).collect();
        let last = self.log.last();
        tracing::info!(target: "raft",
            "newRaft {} [peers: [{}], term: {}, commit: {}, applied: {}, lastindex: {}, \
             lastterm: {}]", self.config.id, peers.join(","), self.term, self.log.committed(),
            self.log.applied(), last.index, last.term);
    }

    /// Notes that one tick passed.
    pub fn tick(&mut self) {
        self.outgoing.commit_due = true;
        match self.role {
            Role::Leader => self.tick_leader(),
            Role::Follower | Role::PreCandidate | Role::Candidate => self.tick_election(),
        }
    }

    /// Starts an election now, if this member may win one.
    pub fn campaign(&mut self) {
        self.start_election(if self.config.pre_vote { Campaign::Pre } else { Campaign::Real });
    }

    /// Takes a message from a peer.
    ///
    /// # Errors
    /// [`StepError`] if the message was dropped. None is fatal to this member, but
    /// [`StepError::CommitBeyondLog`] and [`StepError::CommittedConflict`] say that a log was lost.
    pub fn step(&mut self, message: Message) -> Result<(), StepError> {
        let received = message::receive(message)?;
        if received.from == self.config.id && !received.body.is_forwarded() {
            return Err(StepError::Malformed("a message from oneself"));
        }
        if received.body.is_answer() && !self.members.progress.contains_key(&received.from) {
            return Err(StepError::UnknownPeer(received.from));
        }
        // Forwarded messages belong to no term.
        if received.term.0 != 0 {
            match received.term.cmp(&self.term) {
                Ordering::Less => {
                    self.answer_the_past(&received);
                    return Ok(());
                }
                Ordering::Greater => {
                    if !self.enter_later_term(&received) {
                        return Ok(());
                    }
                }
                Ordering::Equal => {}
            }
        }
        self.dispatch(received)
    }

    /// Handles the term of a message from the future. False if the message is ignored.
    fn enter_later_term(&mut self, received: &Received) -> bool {
        let Received { from, term, body } = received;
        match body {
            Body::Vote { kind, transfer, .. } => {
                if !transfer && self.is_in_lease() {
                    self.log_ignored_vote(received);
                    return false;
                }
                // A question about the future changes nothing.
                if *kind == VoteKind::Pre {
                    return true;
                }
                self.log_later_term(received);
                self.become_follower(*term, MemberId(0));
            }
            // The term is the one that was asked about; it is entered when a quorum agrees.
            Body::VoteAnswer { kind: VoteKind::Pre, granted: true } => {}
            Body::Append(_) | Body::Heartbeat { .. } | Body::Snapshot(_) => {
                self.log_later_term(received);
                self.become_follower(*term, *from);
            }
            Body::AppendAnswer(_)
            | Body::VoteAnswer { .. }
            | Body::HeartbeatAnswer { .. }
            | Body::TransferLeader
            | Body::TimeoutNow
            | Body::ReadIndexAnswer { .. }
            | Body::Propose(_)
            | Body::ReadIndex { .. } => {
                self.log_later_term(received);
                self.become_follower(*term, MemberId(0));
            }
        }
        true
    }

    fn log_later_term(&self, received: &Received) {
        tracing::info!(target: "raft",
            "{} [term: {}] received a {} message with higher term from {} [term: {}]",
            self.config.id, self.term, received.body.name(), received.from, received.term);
    }

    /// Answers a message of an earlier term where silence would leave its sender stuck.
    fn answer_the_past(&mut self, received: &Received) {
        match &received.body {
            // A leader of an earlier term, or this member went ahead alone while it was cut off.
            // Where candidates are ignored during a lease, only an answer with the later term can
            // bring the two together.
            Body::Append(_) | Body::Heartbeat { .. }
                if self.config.check_quorum || self.config.pre_vote =>
            {
                self.send(message::to(received.from, MessageType::MsgAppResp));
            }
            Body::Vote { kind: VoteKind::Pre, .. } => self.refuse_vote(received),
            Body::Propose(_)
            | Body::Append(_)
            | Body::AppendAnswer(_)
            | Body::Vote { kind: VoteKind::Real, .. }
            | Body::VoteAnswer { .. }
            | Body::Snapshot(_)
            | Body::Heartbeat { .. }
            | Body::HeartbeatAnswer { .. }
            | Body::TransferLeader
            | Body::TimeoutNow
            | Body::ReadIndex { .. }
            | Body::ReadIndexAnswer { .. } => {
                tracing::info!(target: "raft",
                    "{} [term: {}] ignored a {} message with lower term from {} [term: {}]",
                    self.config.id, self.term, received.body.name(), received.from, received.term);
            }
        }
    }

    /// Handles a message of the current term, or of none.
    fn dispatch(&mut self, received: Received) -> Result<(), StepError> {
        let Received { from, term, body } = received;
        match body {
            Body::Vote { kind, last, .. } => self.answer_vote(from, term, kind, last),
            Body::VoteAnswer { kind, granted } => self.take_vote(from, kind, granted),
            Body::Append(append) => {
                self.follow(from)?;
                return self.take_append(from, append);
            }
            Body::Heartbeat { commit, context } => {
                self.follow(from)?;
                return self.take_heartbeat(from, commit, context);
            }
            Body::Snapshot(snapshot) => {
                self.follow(from)?;
                self.take_snapshot(from, snapshot);
            }
            Body::AppendAnswer(answer) => return self.take_append_answer(from, answer),
            Body::HeartbeatAnswer { context } => self.take_heartbeat_answer(from, &context),
            Body::Propose(entries) => {
                return self.take_proposal(entries).map_err(StepError::Proposal);
            }
            Body::TransferLeader => self.transfer_leader(from),
            Body::TimeoutNow => self.take_timeout_now(from),
            Body::ReadIndex { context } => self.take_read(ReadRequest { from, context }),
            Body::ReadIndexAnswer { index, context } => self.take_read_answer(index, context),
        }
        Ok(())
    }

    /// Proposes `payloads` as entries, in order and together. A follower forwards them, so taking
    /// them is no promise: they may be lost with their messages.
    ///
    /// # Errors
    /// [`ProposeError`] if nothing was appended or sent.
    pub fn propose(&mut self, payloads: Vec<Bytes>) -> Result<(), ProposeError> {
        if payloads.is_empty() {
            return Ok(());
        }
        let entry = |data| Entry {
            r#type: Some(EntryType::EntryNormal.into()),
            data: Some(data),
            ..Entry::default()
        };
        self.take_proposal(payloads.into_iter().map(entry).collect())
    }

    /// Proposes a change of membership. A leader takes one at a time; while another may be under
    /// way, an empty entry takes its place in the log and the proposer hears nothing.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub fn propose_conf_change(&mut self, change: &ConfChange) -> Result<(), ProposeError> {
        self.propose_encoded(EntryType::EntryConfChange, change.encode_to_vec())
    }

    /// Proposes several changes of membership together, or to leave a joint membership.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub fn propose_conf_change_v2(&mut self, change: &ConfChangeV2) -> Result<(), ProposeError> {
        self.propose_encoded(EntryType::EntryConfChangeV2, change.encode_to_vec())
    }

    fn propose_encoded(&mut self, kind: EntryType, data: Vec<u8>) -> Result<(), ProposeError> {
        self.take_proposal(vec![Entry {
            r#type: Some(kind.into()),
            data: Some(data.into()),
            ..Entry::default()
        }])
    }

    /// Asks for the index that a linearizable read must see applied. The answer comes as a
    /// [`ReadState`] with the same `context`, or never: whoever waits asks again.
    pub fn read_index(&mut self, context: Bytes) {
        self.take_read(ReadRequest { from: self.config.id, context });
    }

    /// Applies a committed change of membership; one that the state machine refused comes with
    /// node id 0 and changes nothing. To be called before the entry is reported as applied.
    ///
    /// # Errors
    /// [`ConfChangeError`]; the membership is what it was.
    pub fn apply_conf_change(&mut self, change: &ConfChange) -> Result<ConfState, ConfChangeError> {
        self.apply_conf_change_v2(&super::membership::several(change))
    }

    /// Applies several committed changes of membership together.
    ///
    /// # Errors
    /// [`ConfChangeError`]; the membership is what it was.
    pub fn apply_conf_change_v2(
        &mut self,
        change: &ConfChangeV2,
    ) -> Result<ConfState, ConfChangeError> {
        let members = self.members.changed(change, self.log.last_index())?;
        self.switch_to(members);
        Ok(self.members.conf_state())
    }

    /// Notes that messages to `id` do not get through.
    pub fn report_unreachable(&mut self, id: MemberId) {
        self.lost_contact(id);
    }

    /// Notes how sending a snapshot to `id` ended.
    pub fn report_snapshot(&mut self, id: MemberId, report: SnapshotReport) {
        self.snapshot_sent(id, report);
    }

    /// Notes a snapshot of the state machine, which members that lag can be sent from now on. Its
    /// entry was handed out and is applied, reported or not; the conf state is the one in effect
    /// there.
    pub fn snapshot_taken(&mut self, snapshot: Snapshot) {
        self.log.snapshot_taken(snapshot);
    }

    /// Forgets the entries up to `index`, which is at most the applied one. Members that lack them
    /// are sent a snapshot from then on.
    pub fn truncate_to(&mut self, index: LogIndex) {
        self.log.truncate_to(index);
    }

    pub(super) fn become_follower(&mut self, term: Term, leader: MemberId) {
        assert!(self.term <= term, "the term fell from {} to {term}", self.term);
        self.reset(term);
        self.leader = leader;
        self.role = Role::Follower;
        tracing::info!(target: "raft", "{} became follower at term {term}", self.config.id);
    }

    pub(super) fn become_pre_candidate(&mut self) {
        assert!(self.role != Role::Leader, "a leader does not stand for election");
        self.votes.clear();
        self.leader = MemberId(0);
        self.role = Role::PreCandidate;
        tracing::info!(target: "raft", "{} became pre-candidate at term {}", self.config.id,
            self.term);
    }

    pub(super) fn become_candidate(&mut self) {
        assert!(self.role != Role::Leader, "a leader does not stand for election");
        self.reset(Term(self.term.0 + 1));
        self.vote = self.config.id;
        self.role = Role::Candidate;
        tracing::info!(target: "raft", "{} became candidate at term {}", self.config.id, self.term);
    }

    pub(super) fn become_leader(&mut self) {
        assert!(self.role == Role::Candidate, "only a candidate becomes leader");
        assert!(self.vote == self.config.id, "a leader voted for itself in its term");
        self.reset(self.term);
        self.leader = self.config.id;
        self.role = Role::Leader;
        let persisted = self.log.persisted();
        let own = self.members.progress.get_mut(&self.config.id).expect("a leader is a member");
        own.matches(persisted);
        own.become_replicate();
        own.recently_active = true;
        // There may be a membership change anywhere in the log that is not applied.
        self.pending_conf_index = self.log.last_index();
        tracing::info!(target: "raft", "{} became leader at term {}", self.config.id, self.term);
        self.append_own(vec![Entry {
            r#type: Some(EntryType::EntryNormal.into()),
            ..Entry::default()
        }]);
    }

    fn reset(&mut self, term: Term) {
        if self.term != term {
            self.term = term;
            self.vote = MemberId(0);
        }
        self.leader = MemberId(0);
        self.election_elapsed = 0;
        self.heartbeat_elapsed = 0;
        self.leader_gone_ticks = None;
        self.draw_election_timeout();
        self.transferee = None;
        self.votes.clear();
        self.members.reset(self.log.last_index().next());
        self.pending_conf_index = LogIndex(0);
        self.uncommitted_bytes = 0;
        self.reads = ReadQueue::default();
        self.parked_reads.clear();
    }

    /// Queues a message for the next [`super::Ready`].
    ///
    /// What this member answers for must be durable first: its vote and the entries it
    /// acknowledges. So must its own candidacy, because a candidate that forgets its term could
    /// stand twice in it and lead it with two different logs. Everything else may overtake the
    /// disk; a leader's own entries count only when they are durable.
    pub(super) fn send(&mut self, mut message: Message) {
        assert!(message.to != Some(self.config.id.0), "a message to oneself");
        message.from.get_or_insert(self.config.id.0);
        let kind = MessageType::try_from(message.r#type.unwrap_or(0)).expect("we made it");
        match kind {
            MessageType::MsgVote
            | MessageType::MsgPreVote
            | MessageType::MsgVoteResp
            | MessageType::MsgPreVoteResp => {
                assert!(message.term.is_some(), "votes are about a certain term");
            }
            MessageType::MsgProp | MessageType::MsgReadIndex => {}
            MessageType::MsgApp
            | MessageType::MsgAppResp
            | MessageType::MsgSnap
            | MessageType::MsgHeartbeat
            | MessageType::MsgHeartbeatResp
            | MessageType::MsgTransferLeader
            | MessageType::MsgTimeoutNow
            | MessageType::MsgReadIndexResp => message.term = Some(self.term.0),
            MessageType::MsgHup
            | MessageType::MsgBeat
            | MessageType::MsgUnreachable
            | MessageType::MsgSnapStatus
            | MessageType::MsgCheckQuorum
            | MessageType::MsgStorageAppend
            | MessageType::MsgStorageAppendResp
            | MessageType::MsgStorageApply
            | MessageType::MsgStorageApplyResp
            | MessageType::MsgForgetLeader => unreachable!("{kind:?} does not travel"),
        }
        let waits = matches!(
            kind,
            MessageType::MsgVote
                | MessageType::MsgVoteResp
                | MessageType::MsgPreVoteResp
                | MessageType::MsgAppResp
        );
        if waits {
            self.outgoing.messages_after.push(message);
        } else {
            self.outgoing.messages.push(message);
        }
    }

    /// The members that are tracked, without this one, in order.
    pub(super) fn peers(&self) -> Vec<MemberId> {
        self.members.progress.keys().copied().filter(|id| *id != self.config.id).collect()
    }
}

/// The term and the vote to start with.
///
/// Entries are written before the state that goes with them, so a crash between the two leaves
/// entries of a later term. Nothing was promised in that term: no vote, and none of the entries.
fn remembered(hard_state: &HardState, log: &Log) -> (Term, MemberId) {
    let (term, vote) = (Term(hard_state.term.unwrap_or(0)), MemberId(hard_state.vote.unwrap_or(0)));
    let last = log.last();
    if term < last.term && log.first_index() <= last.index {
        (last.term, MemberId(0))
    } else {
        (term, vote)
    }
}
