//! The apply thread: turns committed entries into state, answers and events.
//!
//! Decides the order of what one batch makes visible: watch events and the published view first,
//! then the backend's share, then the answers, so that whoever got an answer finds what it says, in
//! a read and in a backup. Owns the [`Machine`]. Started by `boot`; fed by the replica thread.
//!
//! It also takes raft snapshots: every `snapshot_entries` applied entries it notes the position
//! and the membership, waits (without blocking) until the backend is durable up to there, and has
//! the log record it.

use std::{mem, sync::Arc, time::Duration};

use prost::Message;
use proto::raftpb::{ConfChange, ConfChangeType, Entry, EntryType, Snapshot, SnapshotMetadata};

use crate::{
    base::{
        courier::Rounds,
        memory,
        queue::{Drained, Receiver, Sender},
    },
    lease::Lessor,
    model::{
        Command, LogIndex, Outcome, Request, RequestId, Term, entry_data, entry_index, entry_kind,
        entry_term,
    },
    mvcc::{CompactionStep, HashJob, INDEX_COMPACTION_PAUSE_MILLISECONDS, View},
    state::{self, Machine},
    storage::flusher::{FlushJob, FlusherHandle},
    watch,
};

use super::{
    Input,
    shared::Shared,
    snapshot::{InstallError, Installer, position},
    snapshot_policy::SnapshotPolicy,
};

/// What the apply thread is asked to do, in order.
#[derive(Debug)]
pub(super) enum ApplyInput {
    /// Committed entries, in log order.
    Entries(Vec<Entry>),
    /// A snapshot whose state takes the place of the machine's.
    Install(Box<Snapshot>),
}

/// How often the thread looks whether the backend is durable up to a snapshot that was noted.
const SNAPSHOT_LOOK: Duration = Duration::from_millis(50);

/// How often the thread looks after background work and freed memory while no entries come: an idle
/// member wakes up rarely. Until then rows that have been flushed stay in memory.
const IDLE_LOOK: Duration = Duration::from_secs(2);

/// The pause between two pieces of background work, in which entries come first.
const BACKGROUND_PAUSE: Duration = Duration::from_millis(1);

/// The body of the apply thread.
#[derive(Debug)]
pub struct ApplyThread {
    pub(super) machine: Machine,
    pub(super) shared: Arc<Shared>,
    pub(super) inputs: Receiver<ApplyInput>,
    pub(super) replica: Sender<Input>,
    pub(super) flusher: FlusherHandle,
    pub(super) watch: watch::thread::Handle<View>,
    pub(super) lessor: Lessor,
    pub(super) hash: Sender<HashJob>,
    pub(super) snapshots: SnapshotPolicy,
    pub(super) installer: Installer,
    pub(super) election_timeout: Duration,
    pub(super) warning_duration: Duration,
}

/// Answers of one batch, sent once its state is visible.
type Answers = Vec<(RequestId, Outcome)>;

impl ApplyThread {
    /// Runs until the replica thread is gone.
    ///
    /// # Errors
    /// - [`InstallError`] if a state that counts in the log cannot be had; the member must stop.
    pub fn run(mut self) -> Result<(), InstallError> {
        let mut inputs = Vec::new();
        loop {
            let timeout = if self.machine.has_background_work() {
                BACKGROUND_PAUSE
            } else if self.snapshots.is_waiting() {
                SNAPSHOT_LOOK
            } else {
                IDLE_LOOK
            };
            if self.inputs.drain(&mut inputs, Some(timeout)) == Drained::Closed {
                break;
            }
            if inputs.is_empty() && timeout == IDLE_LOOK {
                memory::give_back();
            }
            let mut answers = Answers::new();
            for input in inputs.drain(..) {
                match input {
                    ApplyInput::Entries(entries) => self.apply(entries, &mut answers),
                    ApplyInput::Install(snapshot) => {
                        self.show(mem::take(&mut answers));
                        self.install(&snapshot)?;
                    }
                }
            }
            self.show(answers);
            self.look_after_snapshots();
        }
        // What the flusher does not get now is replayed from the log at the next start.
        Ok(())
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), InstallError> {
        self.installer.install(snapshot, &mut self.machine)?;
        self.snapshots.installed(position(snapshot));
        let applied = self.publish();
        self.shared.applied.set(applied);
        self.tell_watchers();
        drop(self.replica.send_reserved(Input::Installed));
        Ok(())
    }

    fn apply(&mut self, entries: Vec<Entry>, answers: &mut Answers) {
        for entry in entries {
            let index = entry_index(&entry);
            let term = entry_term(&entry);
            match entry_kind(&entry) {
                Some(EntryType::EntryNormal) => self.apply_normal(index, term, &entry, answers),
                Some(EntryType::EntryConfChange) => self.apply_conf_change(index, term, &entry),
                // Written by nobody that this version can share a group with; skipped by all.
                Some(EntryType::EntryConfChangeV2) | None => {
                    tracing::warn!(index = index.0, "skipped a log entry of an unknown kind");
                    self.machine.apply_empty(index, term);
                }
            }
        }
    }

    fn apply_normal(&mut self, index: LogIndex, term: Term, entry: &Entry, answers: &mut Answers) {
        let data = entry_data(entry);
        if data.is_empty() {
            self.machine.apply_empty(index, term);
            self.promote_lessor(term);
            return;
        }
        let started = self.shared.clock.now();
        let command = match Command::decode(data) {
            Ok(command) => command,
            Err(error) => {
                tracing::warn!(index = index.0, %error, "skipped a log entry that holds no request");
                self.machine.apply_empty(index, term);
                return;
            }
        };
        let applied = self.machine.apply(index, term, &command, started);
        self.note_duration(&command, &applied.outcome, started);
        for effect in applied.effects {
            self.perform(effect);
        }
        if command.id != RequestId(0) {
            answers.push((command.id, applied.outcome));
        }
    }

    fn apply_conf_change(&mut self, index: LogIndex, term: Term, entry: &Entry) {
        let Ok(mut change) = ConfChange::decode(entry_data(entry)) else {
            tracing::warn!(index = index.0, "skipped a change of membership that is not one");
            self.machine.apply_empty(index, term);
            return;
        };
        let id = RequestId(change.id.unwrap_or(0));
        let outcome = self.machine.apply_conf_change(index, term, &change);
        if change.r#type() == ConfChangeType::ConfChangeRemoveNode
            && change.node_id == Some(self.shared.member.0)
            && outcome.is_ok()
        {
            self.shared.removed.notify_one();
        }
        if outcome.is_err() {
            // Raft must still count the entry, but it changes nobody.
            change.node_id = Some(0);
        }
        // The caller is answered by the replica thread, so the state must be visible before; and
        // raft must make the change before it hears that the entry is applied.
        let applied = self.publish();
        let input = Input::ConfChange { index, change: Box::new(change), id, outcome };
        drop(self.replica.send_reserved(input));
        self.shared.applied.set(applied);
        self.tell_watchers();
    }

    fn promote_lessor(&self, term: Term) {
        if self.shared.leader() == self.shared.member && self.shared.term() == term {
            self.lessor.promote(self.shared.clock.now(), self.election_timeout);
        }
    }

    fn perform(&self, effect: state::Effect) {
        match effect {
            state::Effect::Propose(request) => self.propose(request),
        }
    }

    /// Proposes on behalf of the member itself; nobody waits for the outcome.
    fn propose(&self, request: Request) {
        let data = Command::new(RequestId(0), request).encode();
        drop(self.replica.send_reserved(Input::Propose(data)));
    }

    fn note_duration(&self, command: &Command, outcome: &Outcome, started: Duration) {
        let took = self.shared.clock.now().saturating_sub(started);
        let name = command.request.as_ref().map_or("Unknown", Request::name);
        super::metrics::apply_duration(name, outcome.is_ok(), took);
        if self.warning_duration < took {
            super::metrics::SLOW_APPLIES.inc();
            tracing::warn!(
                took = ?took,
                "expected-duration" = ?self.warning_duration,
                request = name,
                "apply request took too long"
            );
        }
    }

    /// Makes the present state visible and hands it to the backend. Returns its position, which is
    /// to be shown after it.
    fn publish(&mut self) -> LogIndex {
        let published = Arc::new(self.machine.publish());
        let applied = published.applied;
        // Watchers first: one that is created by a client who has seen this state must hear of
        // later revisions only.
        self.watch.publish(&self.machine.take_events(), &published.kv);
        self.shared.published.store(published);
        // Before the answers: whoever has one may ask for a backup, which must hold it.
        let batch = self.machine.take_flush();
        self.flush(FlushJob::Batch(batch));
        applied
    }

    /// Has watchers hear of what is visible, if no answers go out with it.
    fn tell_watchers(&self) {
        let mut rounds = Rounds::default();
        self.watch.deliver(&mut rounds);
        rounds.go();
    }

    /// Makes the batch visible, then tells whoever waits for it (R1).
    fn show(&mut self, answers: Answers) {
        if self.shared.applied.get() < self.machine.applied() {
            let applied = self.publish();
            self.shared.applied.set(applied);
            let shown = i64::try_from(applied.0).unwrap_or(i64::MAX);
            super::metrics::PROPOSALS_APPLIED.set(shown);
            let mut rounds = Rounds::default();
            self.watch.deliver(&mut rounds);
            for (id, outcome) in answers {
                if let Some(reply) = self.shared.pending.remove(id) {
                    reply.send(Ok(outcome), &mut rounds);
                }
            }
            rounds.go();
            if self.shared.reads.waits_for_apply() {
                drop(self.replica.send_reserved(Input::Applied));
            }
        }
        self.machine.rows_flushed(self.flusher.flushed().1);
        if self.machine.has_background_work() {
            self.background_step();
        }
    }

    fn background_step(&mut self) {
        let started = self.shared.clock.now();
        let step = self.machine.background_step();
        let took = self.shared.clock.now().saturating_sub(started);
        if !matches!(step, CompactionStep::Idle) {
            INDEX_COMPACTION_PAUSE_MILLISECONDS.observe(took.as_secs_f64() * 1e3);
        }
        match step {
            CompactionStep::Idle | CompactionStep::Working => {}
            // A hash that nobody computes counts as done: it is only kept for comparison.
            CompactionStep::Hash(job) => drop(self.hash.try_send(job)),
            CompactionStep::Delete { revision, dead, last } => {
                self.flush(FlushJob::Compact { revision, dead, last });
            }
        }
    }

    fn flush(&self, job: FlushJob) {
        // A flusher that is gone has failed, and stops the member by itself.
        self.flusher.submit(job).ok();
    }

    fn look_after_snapshots(&mut self) {
        let applied = self.machine.applied();
        if self.snapshots.is_due(applied) {
            self.note_snapshot(applied);
        }
        let durable = self.flusher.flushed().0;
        while let Some(input) = self.snapshots.take_durable(durable) {
            drop(self.replica.send_reserved(input));
        }
    }

    fn note_snapshot(&mut self, applied: LogIndex) {
        tracing::info!(
            "local-member-id" = %self.shared.member,
            "local-member-applied-index" = applied.0,
            "local-member-snapshot-index" = self.snapshots.last().0,
            "local-member-snapshot-count" = self.snapshots.entries(),
            "triggering snapshot"
        );
        self.snapshots.note(Snapshot {
            data: Some(self.machine.membership_for_older_versions()),
            metadata: Some(SnapshotMetadata {
                conf_state: Some(self.machine.conf_state()),
                index: Some(applied.0),
                term: Some(self.machine.applied_term().0),
            }),
        });
    }
}
