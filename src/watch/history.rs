//! What the hub asks of the key history.
//!
//! Decides nothing: it names the four questions, so that the hub can be run against a history
//! held in a test's hands. The key history's view answers them in production.

use bytes::Bytes;

use crate::model::{Revision, RowRevision};

/// An immutable key history up to a revision.
pub trait History {
    /// The newest revision in it.
    fn revision(&self) -> Revision;

    /// The compaction point; -1 before the first compaction. Events of this revision itself are
    /// still there.
    fn compacted(&self) -> Revision;

    /// The stored row of one change, the wire form of `mvccpb.KeyValue`; nothing if it was
    /// compacted.
    ///
    /// # Errors
    /// - [`HistoryError::Damaged`] if the row cannot be read back.
    fn row(&self, at: RowRevision) -> Result<Option<Bytes>, HistoryError>;

    /// The events from `from` on, oldest first, in whole revisions: at most `limit.revisions` of
    /// them, and none after the one that reaches `limit.bytes`.
    ///
    /// # Errors
    /// - [`HistoryError::Compacted`] if `from` is below the compaction point.
    /// - [`HistoryError::Damaged`] if a row cannot be read back.
    fn events_from(&self, from: Revision, limit: ChunkLimit) -> Result<Chunk, HistoryError>;
}

/// How much history to read at once. At least one revision is read, whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkLimit {
    /// Revisions.
    pub revisions: usize,
    /// Bytes of rows.
    pub bytes: usize,
}

/// A piece of history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// One per revision that changed a key, in order.
    pub batches: Vec<EventBatch>,
    /// Everything up to this revision was read.
    pub through: Revision,
}

/// Why a piece of history cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HistoryError {
    /// It is below the compaction point.
    Compacted {
        /// The compaction point.
        compacted: Revision,
    },
    /// The stored bytes are not what was written.
    Damaged {
        /// What is wrong, for the log.
        reason: String,
    },
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was created or changed.
    Put,
    /// It was deleted.
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: Bytes,
    /// What happened.
    pub kind: EventKind,
    /// The wire form of `mvccpb.KeyValue` for the event: of a deletion, only the key and the
    /// revision.
    pub row: Bytes,
    /// Where the change stands in history.
    pub revision: RowRevision,
    /// Whether the key did not exist before.
    pub created: bool,
    /// The change of the same key before this one, unless `created`.
    pub previous: Option<RowRevision>,
}

/// Every change of one revision, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventBatch {
    /// The revision.
    pub revision: Revision,
    /// Its changes; never empty.
    pub events: std::sync::Arc<[Event]>,
}
