//! The replica thread: drives [`Core`] and carries its effects out.
//!
//! Decides nothing but the order of hand-overs: what the disk needs goes out before what the
//! state machine needs, so that the log thread works while the rest is handed over. While the
//! member is alone it writes the log itself, after everything else of a turn; what arrives
//! meanwhile is the next write. Owns the core; started by `boot`.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use proto::raftpb::{Message, MessageType};

use crate::{
    base::{
        queue::{Drained, Receiver, Sender, WakeFor},
        thread,
    },
    lease::Lessor,
    model::{MemberId, Unavailable},
    transport::Transport,
};

use super::{
    Core, Effect, Input,
    apply_thread::ApplyInput,
    core::Leadership,
    group_commit::{Advice, GroupCommit},
    log_thread::LogHandOver,
    log_writer::{LogError, LogInput, LogWriter},
    metrics,
    rounds::Rounds,
    shared::Shared,
    snapshot::SnapshotSender,
};

/// How many ticks after one the thread counts as awake.
///
/// Source: etcd `EtcdServer.isActive`.
const AWAKE_TICKS: u32 = 3;

/// The body of the replica thread.
#[derive(Debug)]
pub struct ReplicaThread {
    pub(super) core: Core,
    pub(super) shared: Arc<Shared>,
    pub(super) inputs: Receiver<Input>,
    pub(super) log: Log,
    pub(super) apply: Sender<ApplyInput>,
    pub(super) lessor: Lessor,
    pub(super) tick: Duration,
    pub(super) request_timeout: Duration,
    pub(super) election_timeout: Duration,
    pub(super) rounds: Rounds,
    /// Since when nobody is known to lead, if so.
    pub(super) leaderless_since: Option<Duration>,
    pub(super) transport: Transport,
    pub(super) snapshots: SnapshotSender,
    /// The other members and their peer URLs, as the transport knows them.
    pub(super) peers: BTreeMap<MemberId, Vec<String>>,
    pub(super) group_commit: GroupCommit,
}

/// Where the log is written.
#[derive(Debug)]
pub(super) struct Log {
    /// The writer, while the member is alone.
    pub(super) here: Option<Box<LogWriter>>,
    /// What it has to do at the end of the turn.
    pub(super) waiting: Vec<LogInput>,
    /// The log thread, which writes when the member is not alone any more.
    pub(super) thread: Sender<LogHandOver>,
}

impl ReplicaThread {
    /// Runs until it is told to stop, or a thread that it hands work to is gone.
    ///
    /// # Errors
    /// - [`LogError`] on the first failed write or sync; the member must stop.
    pub fn run(mut self) -> Result<(), LogError> {
        let mut inputs = Vec::new();
        let mut next_tick = self.shared.clock.now() + self.tick;
        self.follow_membership();
        self.core.campaign_if_alone();
        self.carry_out()?;
        while !self.core.stopped() {
            let now = self.shared.clock.now();
            let timeout = next_tick.saturating_sub(now);
            // Read before the queue: a change of membership is queued before its entry shows as
            // applied, so raft makes the change before it is told so.
            let applied = self.shared.applied.get();
            let wanted = if self.core.holds_proposals() { WakeFor::Urgent } else { WakeFor::Any };
            if self.inputs.drain_when(wanted, &mut inputs, Some(timeout)) == Drained::Closed {
                break;
            }
            self.gather(&mut inputs);
            for input in inputs.drain(..) {
                self.take_in(input);
            }
            self.core.note_applied(applied);
            self.core.campaign_if_alone();
            let now = self.shared.clock.now();
            if next_tick <= now {
                self.core.handle(Input::Tick);
                self.show_awake(now);
                self.expire(now);
                next_tick = following_tick(next_tick, self.tick, now);
            }
            self.start_round();
            self.carry_out()?;
        }
        self.shared.reads.fail_unconfirmed(&Unavailable::Stopped);
        for (_, reply) in self.shared.pending.remove_older(Duration::MAX) {
            reply.send_now(Err(Unavailable::Stopped));
        }
        Ok(())
    }

    /// Lets proposals wait for others to share a write with, if that is worth it. With other
    /// members, sending comes first.
    fn gather(&mut self, inputs: &mut Vec<Input>) {
        let only_proposals = inputs.iter().all(|input| matches!(input, Input::Propose(_)));
        if inputs.is_empty() || !only_proposals || self.log.here.is_none() {
            return;
        }
        let before = inputs.len();
        if let Advice::Wait(time) = self.group_commit.advise(before, self.shared.clock.now()) {
            self.show_gathering(time);
            thread::pause(time);
            self.inputs.take(inputs);
            self.group_commit.joined(inputs.len() - before);
            // What comes during the write will wait as long.
            self.show_gathering(time);
        }
    }

    fn show_gathering(&self, time: Duration) {
        let until = (self.shared.clock.now() + time).as_micros();
        let until = u64::try_from(until).unwrap_or(0);
        self.shared.gathers_until_us.store(until, Ordering::Relaxed);
    }

    fn take_in(&mut self, input: Input) {
        if let Input::SaveSnapshot { snapshot, release_to } = input {
            self.write(LogInput::Snapshot { snapshot, release_to });
            return;
        }
        if matches!(input, Input::Applied | Input::Installed) {
            self.shared.reads.answer_applied(self.shared.applied.get());
        }
        let changes_members = matches!(input, Input::ConfChange { .. } | Input::Installed);
        self.core.handle(input);
        if changes_members {
            self.follow_membership();
        }
    }

    /// Asks for a round if readers wait and none is under way; whether it did.
    fn start_round(&mut self) -> bool {
        let context = self.rounds.start(self.shared.clock.now(), &self.shared.reads);
        if let Some(context) = context {
            self.core.read(context);
        }
        context.is_some()
    }

    fn show_awake(&self, now: Duration) {
        let until = (now + AWAKE_TICKS * self.tick).as_millis();
        let until = u64::try_from(until).unwrap_or(u64::MAX);
        self.shared.awake_until_ms.store(until, Ordering::Release);
    }

    /// Ends what has waited too long.
    fn expire(&mut self, now: Duration) {
        let pending = self.shared.pending.len();
        metrics::PROPOSALS_PENDING.set(i64::try_from(pending).unwrap_or(i64::MAX));
        let Some(started_before) = now.checked_sub(self.request_timeout) else { return };
        self.shared.reads.fail_older(started_before, &Unavailable::Timeout);
        for (since, reply) in self.shared.pending.remove_older(started_before) {
            metrics::PROPOSALS_FAILED.inc();
            reply.send_now(Err(self.timeout_reason(since)));
        }
    }

    /// Source: etcd `parseProposeCtxErr`: a request that started shortly before the present
    /// leader was elected probably fell victim to the loss of the one before; one that started
    /// before the leader, or a quorum, was reached, to the connection. One that nobody could have
    /// taken ends with its context there.
    fn timeout_reason(&self, since: Duration) -> Unavailable {
        if self.leaderless_since.is_some_and(|lost| lost <= since) {
            return Unavailable::NobodyLed;
        }
        let elected = Duration::from_millis(self.shared.leader_since_ms.load(Ordering::Acquire));
        let lost = elected.saturating_sub(2 * self.election_timeout);
        if lost <= since && since <= elected {
            return Unavailable::TimeoutLeaderLost;
        }
        let is_connected = match self.shared.leader() {
            MemberId(0) => true,
            leader if leader == self.shared.member => self.is_connected_to_quorum_since(since),
            leader => self.is_connected_since(leader, since),
        };
        if is_connected { Unavailable::Timeout } else { Unavailable::TimeoutConnectionLost }
    }

    fn is_connected_since(&self, member: MemberId, since: Duration) -> bool {
        self.transport.active_since(member).is_some_and(|active| active <= since)
    }

    fn is_connected_to_quorum_since(&self, since: Duration) -> bool {
        let members = self.shared.published.load().membership.members().count();
        let connected = self.peers.keys().filter(|peer| self.is_connected_since(**peer, since));
        members / 2 < connected.count() + 1
    }

    /// Carries out what the inputs of a turn came to, and what that comes to.
    fn carry_out(&mut self) -> Result<(), LogError> {
        loop {
            let effects = self.core.take_effects();
            let committed = self.core.committed().max(self.shared.committed.get());
            self.shared.committed.set(committed);
            metrics::PROPOSALS_COMMITTED.set(i64::try_from(committed.0).unwrap_or(i64::MAX));
            for effect in effects {
                self.perform(effect);
            }
            if !self.log.waiting.is_empty() {
                let writer = self.log.here.as_mut().expect("work waits only where the writer is");
                let core = &mut self.core;
                writer.carry_out(&mut self.log.waiting, |report| core.handle(report))?;
            } else if !self.start_round() {
                // Nobody else wakes this thread for readers that came during a round that has
                // just ended (R7).
                return Ok(());
            }
        }
    }

    /// Has the log written: at the end of the turn, or at once by the log thread.
    fn write(&mut self, input: LogInput) {
        if self.core.is_alone() && self.log.here.is_some() {
            self.log.waiting.push(input);
            return;
        }
        let mut work = Vec::new();
        if let Some(writer) = self.log.here.take() {
            work.push(LogHandOver::TakeOver(writer));
            work.extend(self.log.waiting.drain(..).map(|input| LogHandOver::Work(Box::new(input))));
        }
        work.push(LogHandOver::Work(Box::new(input)));
        for work in work {
            if self.log.thread.send(work).is_err() {
                // The log thread ends only on a failed disk, and reports it itself.
                self.core.handle(Input::Stop);
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Persist(batch) => self.write(LogInput::Append(batch)),
            Effect::Apply(entries) => {
                if self.apply.send(ApplyInput::Entries(entries)).is_err() {
                    self.core.handle(Input::Stop);
                }
            }
            Effect::Install(snapshot) => {
                if self.apply.send(ApplyInput::Install(snapshot)).is_err() {
                    self.core.handle(Input::Stop);
                }
            }
            Effect::Send(messages) => self.send(messages),
            Effect::ConfirmRead { context, index } => {
                let shared = &self.shared;
                self.rounds.confirm(context, index, shared.applied.get(), &shared.reads);
            }
            Effect::Answer { id, outcome } => {
                if let Some(reply) = self.shared.pending.remove(id) {
                    reply.send_now(Ok(outcome));
                }
            }
            Effect::Leadership(leadership) => self.show(leadership),
        }
    }

    /// A snapshot is a wish for the whole state, which goes its own way.
    fn send(&self, mut messages: Vec<Message>) {
        let is_snapshot =
            |message: &mut Message| message.r#type == Some(MessageType::MsgSnap.into());
        for message in messages.extract_if(.., is_snapshot) {
            self.snapshots.send(message);
        }
        if !messages.is_empty() {
            self.transport.send(messages);
        }
    }

    /// Has the transport reach the members that there are now. Peers that only the transport was
    /// told of at the start stay until the membership has had them, too.
    fn follow_membership(&mut self) {
        let membership = Arc::clone(&self.shared.published.load().membership);
        let others = membership.members().filter(|member| member.id != self.shared.member);
        let now: BTreeMap<_, _> =
            others.map(|member| (member.id, member.peer_urls.clone())).collect();
        for gone in self.peers.keys().filter(|peer| !now.contains_key(peer)) {
            self.transport.remove_peer(*gone);
        }
        for (member, urls) in &now {
            if self.peers.get(member) != Some(urls) {
                self.transport.set_peer(*member, urls.clone());
            }
        }
        self.peers = now;
    }

    fn show(&mut self, leadership: Leadership) {
        let shared = &self.shared;
        let Leadership { term, leader, reads_without_round } = leadership;
        shared.reads_without_round.store(reads_without_round, Ordering::Release);
        shared.term.store(term.0, Ordering::Release);
        let before = MemberId(shared.leader.swap(leader.0, Ordering::AcqRel));
        if before == leader {
            return;
        }
        self.leaderless_since = (leader == MemberId(0)).then(|| shared.clock.now());
        metrics::HAS_LEADER.set(i64::from(leader != MemberId(0)));
        metrics::IS_LEADER.set(i64::from(leader == shared.member));
        if leader != MemberId(0) {
            let now = u64::try_from(shared.clock.now().as_millis()).unwrap_or(u64::MAX);
            shared.leader_since_ms.store(now, Ordering::Release);
            metrics::LEADER_CHANGES.inc();
        }
        if before == shared.member {
            self.lessor.demote();
        }
        // Without a leader readers wait for the next one, and learn of it, as in etcd.
        if leader != MemberId(0) {
            shared.reads.fail_unconfirmed(&Unavailable::LeaderChanged);
        }
        tracing::info!(
            "local-member-id" = %shared.member, term = term.0,
            "previous-leader" = %before, "current-leader" = %leader,
            "raft.node: leader changed"
        );
    }
}

/// When the tick after one that was due at `due` is due. What one tick is late does not add up over an
/// election timeout; but a thread that was held up owes no more than one: raft's time may stretch,
/// while a burst of ticks would start elections that nobody needs.
///
/// Source: Go's ticker, which drives etcd's raft, keeps its beat and drops what was missed.
fn following_tick(due: Duration, tick: Duration, now: Duration) -> Duration {
    assert!(due <= now, "the tick due at {due:?} came at {now:?}");
    let following = due + tick;
    if now < following { following } else { now + tick }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_tick_does_not_put_off_the_ones_after_it() {
        let ms = Duration::from_millis;
        assert_eq!(following_tick(ms(100), ms(100), ms(100)), ms(200));
        assert_eq!(following_tick(ms(100), ms(100), ms(199)), ms(200));
        assert_eq!(following_tick(ms(100), ms(100), ms(200)), ms(300), "one was missed");
        assert_eq!(following_tick(ms(100), ms(100), ms(1_040)), ms(1_140), "and nine");
    }
}
