//! Raft entries read through typed accessors.
//!
//! Decides what an absent field means: zero, as every encoder of the format agrees. Used by
//! consensus, the log, the replica and exchange.

use bytes::Bytes;
use proto::raftpb::{Entry, EntryType};

use super::{LogIndex, Term};

/// The position of `entry`.
#[must_use]
pub fn entry_index(entry: &Entry) -> LogIndex {
    LogIndex(entry.index.unwrap_or(0))
}

/// The term of `entry`.
#[must_use]
pub fn entry_term(entry: &Entry) -> Term {
    Term(entry.term.unwrap_or(0))
}

/// How the data of `entry` is to be read; `None` for a kind that nobody knows.
#[must_use]
pub fn entry_kind(entry: &Entry) -> Option<EntryType> {
    EntryType::try_from(entry.r#type.unwrap_or(0)).ok()
}

/// The payload of `entry`.
#[must_use]
pub fn entry_data(entry: &Entry) -> Bytes {
    entry.data.clone().unwrap_or_default()
}

/// An entry with every field present, as etcd writes it.
#[must_use]
pub fn new_entry(kind: EntryType, term: Term, index: LogIndex, data: Bytes) -> Entry {
    Entry {
        r#type: Some(kind.into()),
        term: Some(term.0),
        index: Some(index.0),
        data: if data.is_empty() { None } else { Some(data) },
    }
}
