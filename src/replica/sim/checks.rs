//! What must hold at any moment of a run, whatever breaks.
//!
//! Decides nothing about the run; it is told what members do and keeps the first violation. Owned
//! by the world.
//!
//! Invariants, in raft's words
//! - K1 At most one leader in a term.
//! - K2 Log matching: two entries of the same index and term hold the same and follow the same.
//! - K3 Leader completeness: what was committed in an earlier term is in a leader's log.
//! - K4 State machine safety: at one index everybody applies the same and comes to the same state.
//! - K5 A request is applied once, and one that was acknowledged is applied for good.
//! - K6 Raft and the state machine agree about the members at every index.

use std::collections::{BTreeMap, HashMap};

use proto::raftpb::Entry;

use crate::{
    consensus::{Raft, Role},
    model::{LogIndex, MemberId, RequestId, Term, entry_data, entry_index, entry_term},
};

use super::mix;

/// Committed entries that a new leader's log is compared with.
const COMPLETENESS_ENTRIES: usize = 64;

/// What happened in a run, to see that runs are worth something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) elections: u64,
    pub(super) crashes: u64,
    pub(super) restarts: u64,
    pub(super) partitions: u64,
    pub(super) writes: u64,
    pub(super) reads: u64,
    pub(super) unknown: u64,
    pub(super) installed: u64,
    pub(super) members_changed: u64,
    pub(super) transfers: u64,
    /// Members that were said to be gone and were not.
    pub(super) obituaries: u64,
    pub(super) committed: u64,
    /// Comparisons of the real state machine with the simulated one.
    pub(super) compared: u64,
}

/// An entry that somebody applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Committed {
    term: Term,
    hash: u64,
    /// It was committed in this term at the latest.
    known_in: Term,
}

/// What is known of the group as a whole.
#[derive(Debug, Default)]
pub(super) struct Checks {
    leaders: BTreeMap<Term, MemberId>,
    /// By index and term: the content, and the term of the entry before.
    entries: HashMap<(LogIndex, Term), (u64, Option<Term>)>,
    committed: BTreeMap<LogIndex, Committed>,
    digests: HashMap<LogIndex, u64>,
    /// Hashes of the real state, in runs that have it.
    hashes: HashMap<LogIndex, u32>,
    requests: HashMap<RequestId, LogIndex>,
    acknowledged: Vec<RequestId>,
    violation: Option<String>,
    pub(super) counts: Counts,
}

impl Checks {
    /// Keeps the first violation.
    pub(super) fn violated(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    pub(super) const fn violation(&self) -> Option<&String> {
        self.violation.as_ref()
    }

    /// Notes that a member's log takes these entries in (K2).
    pub(super) fn appended(&mut self, raft: &Raft, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let mut before = raft.term_of(LogIndex(entry_index(first).0 - 1));
        for entry in entries {
            let (index, term) = (entry_index(entry), entry_term(entry));
            let hash = hash_of(entry);
            let known = *self.entries.entry((index, term)).or_insert((hash, before));
            let same_before = known.1.is_none() || before.is_none() || known.1 == before;
            if known.0 != hash || !same_before {
                self.violated(|| format!("K2: entry {index} of term {term} exists twice"));
            }
            before = Some(term);
        }
    }

    /// Notes who leads a term (K1), with which log (K3).
    pub(super) fn led(&mut self, raft: &Raft) {
        if raft.role() != Role::Leader {
            return;
        }
        let term = raft.term();
        let leader = *self.leaders.entry(term).or_insert_with(|| {
            self.counts.elections += 1;
            raft.id()
        });
        if leader != raft.id() {
            self.violated(|| format!("K1: {} and {leader} lead term {term}", raft.id()));
        }
        let lost = self.committed.iter().rev().take(COMPLETENESS_ENTRIES).find(|(index, entry)| {
            entry.known_in < term
                && raft.first_index() <= **index
                && raft.term_of(**index) != Some(entry.term)
        });
        if let Some((index, entry)) = lost {
            let (index, of) = (*index, entry.term);
            self.violated(|| format!("K3: the leader of term {term} lacks entry {index} of {of}"));
        }
    }

    /// Notes that a member in term `now` applies an entry (K4).
    pub(super) fn applied(&mut self, entry: &Entry, now: Term, request: Option<RequestId>) {
        let (index, term, hash) = (entry_index(entry), entry_term(entry), hash_of(entry));
        let new = Committed { term, hash, known_in: now };
        let known = *self.committed.entry(index).or_insert_with(|| {
            self.counts.committed += 1;
            new
        });
        if (known.term, known.hash) != (term, hash) {
            self.violated(|| {
                format!("K4: entry {index} is applied with term {term} and term {}", known.term)
            });
        }
        let Some(request) = request else { return };
        let first = *self.requests.entry(request).or_insert(index);
        if first != index {
            self.violated(|| format!("K5: request {request} is in entries {first} and {index}"));
        }
    }

    /// Notes the state of a member at an index (K4).
    pub(super) fn state(&mut self, index: LogIndex, digest: u64) {
        let known = *self.digests.entry(index).or_insert(digest);
        if known != digest {
            self.violated(|| format!("K4: two states at {index}"));
        }
    }

    /// Notes the hash of a member's real history at an index (K4).
    pub(super) fn real_state(&mut self, index: LogIndex, hash: u32) {
        self.counts.compared += 1;
        let known = *self.hashes.entry(index).or_insert(hash);
        if known != hash {
            self.violated(|| format!("K4: two histories of keys at {index}"));
        }
    }

    /// Notes that a client was told that its request is done (K5).
    pub(super) fn acknowledge(&mut self, request: RequestId) {
        self.acknowledged.push(request);
    }

    /// Looks whether everything that was acknowledged is in the log, once all is quiet (K5).
    pub(super) fn finish(&mut self) {
        let lost = self.acknowledged.iter().find(|request| !self.requests.contains_key(request));
        if let Some(request) = lost.copied() {
            self.violated(|| format!("K5: request {request} was acknowledged and is lost"));
        }
    }
}

fn hash_of(entry: &Entry) -> u64 {
    let mut hash = mix(u64::from(entry.r#type.unwrap_or(0).unsigned_abs()), 7);
    for chunk in entry_data(entry).chunks(8) {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        hash = mix(hash, u64::from_le_bytes(bytes));
    }
    hash
}
