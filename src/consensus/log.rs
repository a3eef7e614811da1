//! The raft log as the core sees it: recent entries in memory and how far each of them has come.
//!
//! Decides which entries may be handed out for writing and for applying, and which the leader may
//! replace. The entries on disk belong to the log thread; those before `truncated` are gone from
//! memory and only a snapshot stands for them.
//!
//! ```text
//!   truncated    applied   applying   committed            last
//!       |           |          |          |                  |
//!   ----+-----------+----------+----------+-------+-----+----+
//!       |<------------ in memory ----------------------------|
//!                                              persisted handed
//! ```
//!
//! Invariants
//! - L1 `truncated <= applied <= applying <= committed <= last`.
//! - L2 `persisted <= handed <= last`; a batch confirms only entries that no later batch replaces.
//! - L3 Committed entries are never replaced.
//! - L4 While a snapshot is being installed, nothing is handed out for applying.

use std::collections::VecDeque;

use prost::Message as _;
use proto::raftpb::{ConfState, Entry, Snapshot, SnapshotMetadata};

use super::{
    BatchNumber, StepError,
    config::{ApplyWhen, RaftState, StartError},
    message::{Append, EntryId},
};
use crate::model::{LogIndex, Term, entry_index, entry_term};

/// A snapshot that a leader sent, on its way into the log and the state machine.
#[derive(Debug)]
struct Installing {
    snapshot: Snapshot,
    index: LogIndex,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not handed out.
    Received,
    /// Handed out in this batch.
    Handed(BatchNumber),
    /// Durable; the state machine may not have it.
    Persisted,
}

/// Entries handed out for writing in one batch.
#[derive(Clone, Copy, Debug)]
struct Writing {
    number: BatchNumber,
    /// The last of them that no later batch replaces (L2).
    upto: LogIndex,
}

/// Committed entries handed out and not yet applied.
#[derive(Clone, Copy, Debug)]
struct Applying {
    index: LogIndex,
    encoded_bytes: u64,
    payload_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Log {
    truncated: EntryId,
    entries: VecDeque<Entry>,
    committed: LogIndex,
    applying: LogIndex,
    applied: LogIndex,
    handed: LogIndex,
    persisted: LogIndex,
    writing: VecDeque<Writing>,
    installing: Option<Installing>,
    /// The newest snapshot a member that lags behind `truncated` can be sent.
    snapshot: Snapshot,
    applying_batches: VecDeque<Applying>,
    applying_bytes: u64,
    applying_bytes_max: u64,
    apply_when: ApplyWhen,
}

impl Log {
    pub(super) fn new(
        state: RaftState,
        applying_bytes_max: u64,
        apply_when: ApplyWhen,
    ) -> Result<Self, StartError> {
        let truncated = EntryId {
            term: Term(state.snapshot.term.unwrap_or(0)),
            index: LogIndex(state.snapshot.index.unwrap_or(0)),
        };
        let entries = continued(truncated, state.entries)?;
        let last = entries.back().map_or(truncated.index, entry_index);
        let applied = state.applied;
        // What is applied was committed, whether or not the log heard of it in time.
        let committed = LogIndex(state.hard_state.commit.unwrap_or(0)).max(applied);
        if last < applied || applied < truncated.index {
            let first = truncated.index.next();
            return Err(StartError::AppliedOutOfRange { applied, first, last });
        }
        if last < committed {
            let (first, commit) = (truncated.index.next(), committed);
            return Err(StartError::CommitOutOfRange { commit, first, last });
        }
        let snapshot = Snapshot { data: None, metadata: Some(state.snapshot) };
        Ok(Self {
            truncated,
            entries,
            committed,
            applying: applied,
            applied,
            handed: last,
            persisted: last,
            writing: VecDeque::new(),
            installing: None,
            snapshot,
            applying_batches: VecDeque::new(),
            applying_bytes: 0,
            applying_bytes_max,
            apply_when,
        })
    }

    pub(super) const fn committed(&self) -> LogIndex {
        self.committed
    }

    pub(super) const fn applied(&self) -> LogIndex {
        self.applied
    }

    pub(super) const fn persisted(&self) -> LogIndex {
        self.persisted
    }

    /// The snapshot to send to a member that lacks truncated entries. If none was noted that stands
    /// for all of them, it names the applied position and `conf_state`: what the sender has at
    /// least.
    pub(super) fn snapshot(&self, conf_state: impl FnOnce() -> ConfState) -> Snapshot {
        if self.truncated.index <= snapshot_id(&self.snapshot).index {
            return self.snapshot.clone();
        }
        let term = self.term(self.applied).expect("the last applied entry is not truncated");
        let metadata = SnapshotMetadata {
            conf_state: Some(conf_state()),
            index: Some(self.applied.0),
            term: Some(term.0),
        };
        Snapshot { data: None, metadata: Some(metadata) }
    }

    pub(super) const fn first_index(&self) -> LogIndex {
        self.truncated.index.next()
    }

    pub(super) fn last_index(&self) -> LogIndex {
        self.last().index
    }

    pub(super) fn last(&self) -> EntryId {
        self.entries.back().map_or(self.truncated, EntryId::of)
    }

    /// The term of the entry at `index`, if the log still or already knows it.
    pub(super) fn term(&self, index: LogIndex) -> Option<Term> {
        if index == self.truncated.index {
            return Some(self.truncated.term);
        }
        self.entry(index).map(entry_term)
    }

    pub(super) fn holds(&self, id: EntryId) -> bool {
        self.term(id.index) == Some(id.term)
    }

    /// Whether a log that ends with `theirs` has everything this one may have committed.
    pub(super) fn is_up_to_date(&self, theirs: EntryId) -> bool {
        let ours = self.last();
        (ours.term, ours.index) <= (theirs.term, theirs.index)
    }

    fn position(&self, index: LogIndex) -> Option<usize> {
        let offset = index.0.checked_sub(self.truncated.index.0 + 1)?;
        usize::try_from(offset).ok()
    }

    fn entry(&self, index: LogIndex) -> Option<&Entry> {
        self.entries.get(self.position(index)?)
    }

    /// The entries from `from` to `to`, as many as fit in `bytes_max` encoded bytes, at least one.
    fn slice(&self, from: LogIndex, to: LogIndex, bytes_max: u64) -> Vec<Entry> {
        let start = self.position(from).expect("the first entry asked for is in memory");
        let end = self.position(to.next()).expect("it is not before the first");
        let range = self.entries.range(start..end);
        // Measuring every entry costs as much as copying it.
        if bytes_max == u64::MAX {
            return range.cloned().collect();
        }
        let mut bytes = 0u64;
        range
            .take_while(|entry| {
                let is_first = bytes == 0;
                bytes += encoded_bytes(entry);
                is_first || bytes <= bytes_max
            })
            .cloned()
            .collect()
    }

    /// What to send a member that has everything before `from`.
    pub(super) fn entries_from(&self, from: LogIndex, bytes_max: u64) -> Vec<Entry> {
        if self.last_index() < from {
            return Vec::new();
        }
        self.slice(from, self.last_index(), bytes_max)
    }

    /// The largest index up to `index` at which a log could agree with one that has `term` at its
    /// own counterpart, together with our term there: terms only rise along a log, so entries of a
    /// later term cannot be shared. The term is 0 where it is unknown.
    pub(super) fn agreement(&self, index: LogIndex, term: Term) -> EntryId {
        let mut guess = index;
        while 0 < guess.0 {
            match self.term(guess) {
                None => return EntryId { term: Term(0), index: guess },
                Some(ours) if ours <= term => return EntryId { term: ours, index: guess },
                Some(_) => guess = LogIndex(guess.0 - 1),
            }
        }
        EntryId::default()
    }

    /// Appends what this member proposes as a leader.
    pub(super) fn append(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            let last = self.last();
            assert!(entry_index(&entry) == last.index.next(), "a gap after {}", last.index);
            assert!(last.term <= entry_term(&entry), "terms fall after {}", last.index);
            self.entries.push_back(entry);
        }
    }

    /// Takes a leader's entries; the index up to which the logs then agree, or `None` if they do
    /// not agree before the first of them.
    ///
    /// # Errors
    /// [`StepError::CommittedConflict`] (L3).
    pub(super) fn follow(&mut self, append: Append) -> Result<Option<LogIndex>, StepError> {
        if !self.holds(append.previous) {
            return Ok(None);
        }
        let count = u64::try_from(append.entries.len()).expect("a length fits 64 bits");
        let agreed = LogIndex(append.previous.index.0 + count);
        let mut entries = append.entries;
        let new = entries.iter().position(|entry| !self.holds(EntryId::of(entry)));
        if let Some(new) = new {
            let index = entry_index(&entries[new]);
            if index <= self.committed {
                return Err(StepError::CommittedConflict { index, committed: self.committed });
            }
            self.replace_from(index);
            self.append(entries.drain(new..));
        }
        self.commit(append.commit.min(agreed))?;
        Ok(Some(agreed))
    }

    /// Drops the entries from `index` on.
    fn replace_from(&mut self, index: LogIndex) {
        assert!(self.committed < index, "L3: entry {index} is committed");
        if self.last_index() < index {
            return;
        }
        tracing::info!(target: "raft", "found conflict at index {index}, replacing the log from there");
        let keep = self.position(index).expect("entries that are not committed are in memory");
        self.entries.truncate(keep);
        let last = LogIndex(index.0 - 1);
        self.handed = self.handed.min(last);
        self.forget_writes_after(last);
    }

    /// L2: what is on its way to disk will be replaced there, too.
    fn forget_writes_after(&mut self, last: LogIndex) {
        self.persisted = self.persisted.min(last);
        for writing in &mut self.writing {
            writing.upto = writing.upto.min(last);
        }
    }

    /// Moves the commit index forward, never back.
    ///
    /// # Errors
    /// [`StepError::CommitBeyondLog`].
    pub(super) fn commit(&mut self, commit: LogIndex) -> Result<(), StepError> {
        let last = self.last_index();
        if last < commit {
            return Err(StepError::CommitBeyondLog { commit, last });
        }
        self.committed = self.committed.max(commit);
        Ok(())
    }

    /// Commits up to `index` if that entry has `term`: a leader counts only what it wrote in its
    /// own term. True if the commit index moved.
    pub(super) fn commit_in_term(&mut self, index: LogIndex, term: Term) -> bool {
        assert!(0 < term.0, "no leader has term 0");
        if index <= self.committed || !self.holds(EntryId { term, index }) {
            return false;
        }
        self.committed = index;
        true
    }

    /// Replaces the whole log by a snapshot.
    pub(super) fn restore(&mut self, snapshot: Snapshot) {
        let id = snapshot_id(&snapshot);
        assert!(self.committed < id.index, "snapshot {} is behind {}", id.index, self.committed);
        self.truncated = id;
        self.entries.clear();
        self.committed = id.index;
        self.handed = id.index;
        self.persisted = id.index;
        self.forget_writes_after(id.index);
        self.snapshot = snapshot.clone();
        self.installing = Some(Installing { snapshot, index: id.index, stage: Stage::Received });
    }

    pub(super) const fn is_installing(&self) -> bool {
        self.installing.is_some()
    }

    /// Notes a snapshot of the state machine, to be sent to members that lag.
    pub(super) fn snapshot_taken(&mut self, snapshot: Snapshot) {
        let id = snapshot_id(&snapshot);
        assert!(id.index <= self.applying, "snapshot {} is ahead of {}", id.index, self.applying);
        if snapshot_id(&self.snapshot).index < id.index {
            self.snapshot = snapshot;
        }
    }

    /// Forgets the entries up to `index`.
    pub(super) fn truncate_to(&mut self, index: LogIndex) {
        assert!(index <= self.applied, "entry {index} is not applied");
        if index <= self.truncated.index {
            return;
        }
        let term = self.term(index).expect("an applied entry after the truncated ones is known");
        let gone = self.position(index.next()).expect("it is after the truncated ones");
        self.entries.drain(..gone);
        self.truncated = EntryId { term, index };
    }

    pub(super) fn has_unhanded(&self) -> bool {
        self.handed < self.last_index()
            || self.installing.as_ref().is_some_and(|it| it.stage == Stage::Received)
    }

    /// Hands out what has not been written: entries, and a snapshot that replaces those before.
    pub(super) fn hand_out(&mut self, number: BatchNumber) -> (Vec<Entry>, Option<Snapshot>) {
        let entries = self.entries_from(self.handed.next(), u64::MAX);
        self.handed = self.last_index();
        if !entries.is_empty() {
            self.writing.push_back(Writing { number, upto: self.handed });
        }
        let snapshot = self.installing.as_mut().and_then(|installing| match installing.stage {
            Stage::Received => {
                installing.stage = Stage::Handed(number);
                Some(installing.snapshot.clone())
            }
            Stage::Handed(_) | Stage::Persisted => None,
        });
        (entries, snapshot)
    }

    /// Notes that all batches up to `number` are durable.
    pub(super) fn written(&mut self, number: BatchNumber) {
        while let Some(writing) = self.writing.front().copied()
            && writing.number <= number
        {
            self.writing.pop_front();
            self.persisted = self.persisted.max(writing.upto);
        }
        assert!(self.persisted <= self.handed, "L2: {} of {}", self.persisted, self.handed);
        if let Some(installing) = &mut self.installing
            && let Stage::Handed(handed) = installing.stage
            && handed <= number
        {
            installing.stage = Stage::Persisted;
        }
        self.finish_installing();
    }

    fn finish_installing(&mut self) {
        if let Some(installing) = &self.installing
            && installing.stage == Stage::Persisted
            && installing.index <= self.applied
        {
            self.installing = None;
        }
    }

    /// The last entry that may be handed out for applying.
    fn appliable(&self) -> LogIndex {
        match self.apply_when {
            ApplyWhen::Committed => self.committed,
            ApplyWhen::Persisted => self.committed.min(self.persisted),
        }
    }

    pub(super) fn has_appliable(&self) -> bool {
        self.applying < self.appliable()
            && !self.is_installing()
            && self.applying_bytes < self.applying_bytes_max
    }

    /// Hands out committed entries, each once, in order, as far as the byte limit allows.
    pub(super) fn take_appliable(&mut self) -> Vec<Entry> {
        if !self.has_appliable() {
            return Vec::new();
        }
        let room = self.applying_bytes_max - self.applying_bytes;
        let entries = self.slice(self.applying.next(), self.appliable(), room);
        let index = entries.last().map(entry_index).expect("a slice has an entry at least");
        let batch = Applying {
            index,
            encoded_bytes: entries.iter().map(encoded_bytes).sum(),
            payload_bytes: entries.iter().map(payload_bytes).sum(),
        };
        self.applying = index;
        self.applying_bytes += batch.encoded_bytes;
        self.applying_batches.push_back(batch);
        entries
    }

    /// Notes that the state machine holds everything up to `index`; the payload bytes of the
    /// batches that are done with.
    pub(super) fn applied_to(&mut self, index: LogIndex) -> u64 {
        assert!(index <= self.committed, "L1: applied {index} of {}", self.committed);
        // A later snapshot may have come while the one that is reported was being installed.
        let may_jump = self.installing.as_ref().is_some_and(|it| index <= it.index);
        assert!(may_jump || index <= self.applying, "L1: applied {index} of {}", self.applying);
        // A report from before a snapshot arrives late; the state machine is replaced anyway.
        if self.applied < index {
            self.applied = index;
            self.applying = self.applying.max(index);
        }
        let mut payload = 0;
        while let Some(batch) = self.applying_batches.front().copied()
            && batch.index <= index
        {
            self.applying_batches.pop_front();
            self.applying_bytes -= batch.encoded_bytes;
            payload += batch.payload_bytes;
        }
        self.finish_installing();
        payload
    }

    /// Whether a committed entry that is not applied changes the membership.
    pub(super) fn has_unapplied_conf_change(&self) -> bool {
        (self.applied.0 + 1..=self.committed.0).any(|index| {
            self.entry(LogIndex(index)).is_some_and(|entry| entry.r#type.unwrap_or(0) != 0)
        })
    }
}

/// The entries that continue `snapshot` without a gap.
///
/// A member that installed a snapshot may have older entries with higher indexes left in its log
/// file. Their terms are below the snapshot's; taking them up again would make the log look older
/// than it is, so they end the log.
fn continued(snapshot: EntryId, entries: Vec<Entry>) -> Result<VecDeque<Entry>, StartError> {
    let mut continued = VecDeque::with_capacity(entries.len());
    let mut last = snapshot;
    for entry in entries {
        let next = EntryId::of(&entry);
        if next.index != last.index.next() {
            return Err(StartError::Gap { after: last.index, found: next.index });
        }
        if next.term < last.term {
            tracing::warn!(target: "raft", "dropping the raft log from index {} on, its term {} is \
                below the snapshot's", next.index, next.term);
            break;
        }
        last = next;
        continued.push_back(entry);
    }
    Ok(continued)
}

/// The position that `snapshot` stands for.
pub(super) fn snapshot_id(snapshot: &Snapshot) -> EntryId {
    snapshot.metadata.as_ref().map_or_else(EntryId::default, |metadata| EntryId {
        term: Term(metadata.term.unwrap_or(0)),
        index: LogIndex(metadata.index.unwrap_or(0)),
    })
}

fn encoded_bytes(entry: &Entry) -> u64 {
    u64::try_from(entry.encoded_len()).expect("a length fits 64 bits")
}

/// The bytes of what was proposed, without raft's own fields.
pub(super) fn payload_bytes(entry: &Entry) -> u64 {
    let bytes = entry.data.as_ref().map_or(0, bytes::Bytes::len);
    u64::try_from(bytes).expect("a length fits 64 bits")
}
