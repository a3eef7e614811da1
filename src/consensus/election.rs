//! Elections: when to stand, whom to vote for, and the checks that keep a working leader.
//!
//! Decides the change of terms. A member stands when it has not heard from a leader for a random
//! time, first asking (pre-vote) and then for real. Part of [`Raft`].

use proto::raftpb::{Message, MessageType};

use super::{
    Raft, Role,
    message::{self, EntryId, Received, TRANSFER_CONTEXT, VoteKind},
    quorum::VoteResult,
    ready::OwnVote,
};
use crate::model::{MemberId, Term};

/// How a member stands for election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Campaign {
    /// Asks first.
    Pre,
    /// Asks for votes.
    Real,
    /// Was told to by the leader, which must not be protected from it.
    Transfer,
}

impl Raft {
    pub(super) fn tick_election(&mut self) {
        self.election_elapsed = self.election_elapsed.saturating_add(1);
        let stands_early = self.tick_without_leader();
        if !self.is_promotable() {
            return;
        }
        if self.election_timeout <= self.election_elapsed {
            self.election_elapsed = 0;
            self.campaign();
        } else if stands_early {
            // The timeout runs on: nobody is later because it asked early.
            self.campaign();
        }
    }

    /// Notes that the process of `member` is known to have ended. A follower whose leader that was
    /// waits only the random part of its timeout before it asks for votes, and listens at once to
    /// others who ask. Forgotten as soon as a leader is heard; of no effect without pre-votes, where
    /// asking for nothing costs a working leader its term.
    ///
    /// It may be wrong: a quorum must agree before anything changes, and nothing but the time of an
    /// election hangs on it, because reads are confirmed by a quorum and never by a lease.
    ///
    /// Source: etcd waits the whole timeout.
    pub fn report_gone(&mut self, member: MemberId) {
        assert!(member.0 != 0, "nobody cannot be gone");
        let leads = self.role == Role::Follower && self.leader == member;
        if leads && self.config.pre_vote && self.leader_gone_ticks.is_none() {
            self.leader_gone_ticks = Some(0);
            tracing::info!(target: "raft", "{} lost its leader {member} at term {}: its process \
                has ended", self.config.id, self.term);
        }
    }

    /// Whether this is the tick at which a follower whose leader is gone stands for election.
    fn tick_without_leader(&mut self) -> bool {
        let random_ticks = self.election_timeout.saturating_sub(self.config.election_ticks);
        let Some(ticks) = &mut self.leader_gone_ticks else { return false };
        *ticks = ticks.saturating_add(1);
        self.role == Role::Follower && *ticks == random_ticks + 1
    }

    pub(super) fn draw_election_timeout(&mut self) {
        let ticks = self.config.election_ticks;
        let extra = (self.dice)(u64::from(ticks));
        let extra = u32::try_from(extra).expect("the dice stay below their bound");
        assert!(extra < ticks, "the dice gave {extra} of {ticks}");
        self.election_timeout = ticks + extra;
    }

    /// Whether this member could lead. A removed member, a learner, and one whose state machine is
    /// being replaced could not.
    pub(super) fn is_promotable(&self) -> bool {
        let own = self.members.progress.get(&self.config.id);
        own.is_some_and(|own| !own.is_learner) && !self.log.is_installing()
    }

    /// Whether a leader was heard from so recently that other candidates are not listened to.
    pub(super) fn is_in_lease(&self) -> bool {
        self.config.check_quorum
            && self.leader.0 != 0
            && self.leader_gone_ticks.is_none()
            && self.election_elapsed < self.config.election_ticks
    }

    pub(super) fn start_election(&mut self, campaign: Campaign) {
        let id = self.config.id;
        if self.role == Role::Leader {
            tracing::debug!(target: "raft", "{id} ignoring MsgHup because already leader");
            return;
        }
        if !self.is_promotable() {
            tracing::warn!(target: "raft", "{id} is unpromotable and can not campaign");
            return;
        }
        // It might be a member no more, or need other votes than it thinks.
        if self.log.has_unapplied_conf_change() {
            tracing::warn!(target: "raft", "{id} cannot campaign at term {} since there are still \
                pending configuration changes to apply", self.term);
            return;
        }
        tracing::info!(target: "raft", "{id} is starting a new election at term {}", self.term);
        self.stand(campaign);
    }

    fn stand(&mut self, campaign: Campaign) {
        let (kind, term) = match campaign {
            Campaign::Pre => {
                self.become_pre_candidate();
                (VoteKind::Pre, Term(self.term.0 + 1))
            }
            Campaign::Real | Campaign::Transfer => {
                self.become_candidate();
                (VoteKind::Real, self.term)
            }
        };
        for id in self.members.membership.voters.ids() {
            if id == self.config.id {
                self.outgoing.own_votes.push(OwnVote { kind, term });
            } else {
                self.ask_for_vote(id, kind, term, campaign);
            }
        }
    }

    fn ask_for_vote(&mut self, id: MemberId, kind: VoteKind, term: Term, campaign: Campaign) {
        let last = self.log.last();
        tracing::info!(target: "raft", "{} [logterm: {}, index: {}] sent {} request to {id} at \
            term {}", self.config.id, last.term, last.index, kind.request().as_str_name(),
            self.term);
        let context = match campaign {
            Campaign::Transfer => Some(TRANSFER_CONTEXT.into()),
            Campaign::Pre | Campaign::Real => None,
        };
        self.send(Message {
            term: Some(term.0),
            index: Some(last.index.0),
            log_term: Some(last.term.0),
            context,
            ..message::to(id, kind.request())
        });
    }

    /// Answers a candidate whose term is the current one, or later if it only asks.
    ///
    /// Learners vote, too: one that was promoted may be the last to hear of it, and its vote may be
    /// the one that is needed.
    pub(super) fn answer_vote(
        &mut self,
        from: MemberId,
        term: Term,
        kind: VoteKind,
        last: EntryId,
    ) {
        let is_repeated = self.vote == from;
        let is_free = self.vote.0 == 0 && self.leader.0 == 0;
        let is_about_future = kind == VoteKind::Pre && self.term < term;
        let may_vote = is_repeated || is_free || is_about_future;
        let grants = may_vote && self.log.is_up_to_date(last);
        self.log_vote(from, kind, last, if grants { "cast" } else { "rejected" });
        if !grants {
            self.send_refusal(from, kind);
            return;
        }
        // With the term that was asked about: an answer with ours would look late.
        self.send(Message { term: Some(term.0), ..message::to(from, kind.response()) });
        match kind {
            VoteKind::Pre => {}
            VoteKind::Real => {
                self.election_elapsed = 0;
                self.vote = from;
            }
        }
    }

    fn log_vote(&self, from: MemberId, kind: VoteKind, theirs: EntryId, verdict: &str) {
        let ours = self.log.last();
        let preposition = if verdict == "cast" { "for" } else { "from" };
        tracing::info!(target: "raft",
            "{} [logterm: {}, index: {}, vote: {}] {verdict} {} {preposition} {from} [logterm: {}, \
             index: {}] at term {}", self.config.id, ours.term, ours.index, self.vote,
            kind.request().as_str_name(), theirs.term, theirs.index, self.term);
    }

    pub(super) fn log_ignored_vote(&self, received: &Received) {
        let ours = self.log.last();
        let remaining = self.config.election_ticks.saturating_sub(self.election_elapsed);
        let theirs = received.body.candidate().map_or(EntryId::default(), |(_, last)| last);
        tracing::info!(target: "raft",
            "{} [logterm: {}, index: {}, vote: {}] ignored {} from {} [logterm: {}, index: {}] at \
             term {}: lease is not expired (remaining ticks: {remaining})", self.config.id,
            ours.term, ours.index, self.vote, received.body.name(), received.from, theirs.term,
            theirs.index, self.term);
    }

    /// Refuses a candidate that asks about an earlier term, so that it learns of the later one.
    pub(super) fn refuse_vote(&mut self, received: &Received) {
        if let Some((kind, last)) = received.body.candidate() {
            self.log_vote(received.from, kind, last, "rejected");
            self.send_refusal(received.from, kind);
        }
    }

    fn send_refusal(&mut self, to: MemberId, kind: VoteKind) {
        self.send(Message {
            term: Some(self.term.0),
            reject: Some(true),
            ..message::to(to, kind.response())
        });
    }

    /// Counts an answer to this member's candidacy; answers to an earlier one are ignored.
    pub(super) fn take_vote(&mut self, from: MemberId, kind: VoteKind, granted: bool) {
        let awaited = match self.role {
            Role::PreCandidate => VoteKind::Pre,
            Role::Candidate => VoteKind::Real,
            Role::Follower | Role::Leader => return,
        };
        if kind != awaited {
            return;
        }
        let name = kind.response().as_str_name();
        let verdict = if granted { "" } else { " rejection" };
        tracing::info!(target: "raft", "{} received {name}{verdict} from {from} at term {}",
            self.config.id, self.term);
        self.votes.entry(from).or_insert(granted);
        self.count_votes(kind);
    }

    fn count_votes(&mut self, kind: VoteKind) {
        let result = self.members.membership.voters.result(|id| self.votes.get(&id).copied());
        let is_voter = |id: &MemberId| {
            self.members.progress.get(id).is_some_and(|progress| !progress.is_learner)
        };
        let of = |granted| {
            self.votes.iter().filter(|(id, vote)| **vote == granted && is_voter(id)).count()
        };
        tracing::info!(target: "raft", "{} has received {} {} votes and {} vote rejections",
            self.config.id, of(true), kind.response().as_str_name(), of(false));
        match (result, kind) {
            (VoteResult::Pending, _) => {}
            (VoteResult::Lost, _) => self.become_follower(self.term, MemberId(0)),
            (VoteResult::Won, VoteKind::Pre) => self.stand(Campaign::Real),
            (VoteResult::Won, VoteKind::Real) => {
                self.become_leader();
                self.broadcast_appends();
            }
        }
    }

    /// The leader hands over: stand at once, without asking first. Nobody is cut off.
    pub(super) fn take_timeout_now(&mut self, from: MemberId) {
        match self.role {
            Role::Follower => {
                tracing::info!(target: "raft", "{} [term {}] received MsgTimeoutNow from {from} \
                    and starts an election to get leadership.", self.config.id, self.term);
                self.start_election(Campaign::Transfer);
            }
            Role::PreCandidate | Role::Candidate | Role::Leader => {
                tracing::debug!(target: "raft", "{} [term {} state {:?}] ignored MsgTimeoutNow \
                    from {from}", self.config.id, self.term, self.role);
            }
        }
    }

    /// Hands leadership to `to`, within an election timeout or not at all. A follower asks its
    /// leader to.
    pub fn transfer_leader(&mut self, to: MemberId) {
        match self.role {
            Role::Leader => self.hand_over(to),
            Role::Follower if self.leader.0 != 0 => self.send(Message {
                from: Some(to.0),
                ..message::to(self.leader, MessageType::MsgTransferLeader)
            }),
            Role::Follower | Role::PreCandidate | Role::Candidate => {
                tracing::info!(target: "raft", "{} no leader at term {}; dropping leader transfer \
                    msg", self.config.id, self.term);
            }
        }
    }

    fn hand_over(&mut self, to: MemberId) {
        let (id, term) = (self.config.id, self.term);
        let Some(progress) = self.members.progress.get(&to) else {
            tracing::debug!(target: "raft", "{id} no progress available for {to}");
            return;
        };
        if progress.is_learner {
            tracing::debug!(target: "raft", "{id} is learner. Ignored transferring leadership");
            return;
        }
        let is_ready = progress.matched == self.log.last_index();
        if self.transferee == Some(to) {
            tracing::info!(target: "raft", "{id} [term {term}] transfer leadership to {to} is in \
                progress, ignores request to same node {to}");
            return;
        }
        if let Some(before) = self.transferee.take() {
            tracing::info!(target: "raft", "{id} [term {term}] abort previous transferring \
                leadership to {before}");
        }
        if to == id {
            tracing::debug!(target: "raft", "{id} is already leader. Ignored transferring \
                leadership to self");
            return;
        }
        tracing::info!(target: "raft", "{id} [term {term}] starts to transfer leadership to {to}");
        self.election_elapsed = 0;
        self.transferee = Some(to);
        if is_ready {
            self.send(message::to(to, MessageType::MsgTimeoutNow));
            tracing::info!(target: "raft", "{id} sends MsgTimeoutNow to {to} immediately as {to} \
                already has up-to-date log");
        } else {
            self.send_append(to);
        }
    }

    /// Steps down if no quorum has answered since the last check.
    pub(super) fn check_quorum(&mut self) {
        assert!(self.role == Role::Leader, "only a leader has a quorum to check");
        let active = |id| {
            let progress = self.members.progress.get(&id);
            Some(progress.is_some_and(|progress| progress.recently_active))
        };
        let result = self.members.membership.voters.result(active);
        for (id, progress) in &mut self.members.progress {
            progress.recently_active = *id == self.config.id;
        }
        match result {
            VoteResult::Won => {}
            VoteResult::Pending | VoteResult::Lost => {
                tracing::warn!(target: "raft", "{} stepped down to follower since quorum is not \
                    active", self.config.id);
                self.become_follower(self.term, MemberId(0));
            }
        }
    }
}
