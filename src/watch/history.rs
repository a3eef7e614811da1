//! What the hub asks of the key history.
//!
//! Decides nothing: it names the four questions, so that the hub can be run against a history
//! held in a test's hands. The key history's view answers them in production.

use bytes::Bytes;

use crate::{
    model::{Rejection, Revision, RowRevision},
    mvcc::{Damage, EventBatch, ReadError, View},
};

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
    /// - if the row cannot be read back.
    fn row(&self, at: RowRevision) -> Result<Option<Bytes>, Damage>;

    /// The events from `from` on, oldest first, in whole revisions: of at most `revisions_max`
    /// of them or some MiB, but of one at least.
    ///
    /// # Errors
    /// - [`HistoryError::Compacted`] if `from` is below the compaction point.
    /// - [`HistoryError::Outdated`] if only a newer view can tell.
    /// - [`HistoryError::Damaged`] if a row cannot be read back.
    fn events_from(&self, from: Revision, revisions_max: usize) -> Result<Chunk, HistoryError>;
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
#[derive(Clone, Debug)]
pub enum HistoryError {
    /// It is below the compaction point.
    Compacted {
        /// The compaction point.
        compacted: Revision,
    },
    /// A compaction that this view does not know has taken rows away.
    Outdated,
    /// The stored bytes are not what was written.
    Damaged(Damage),
}

impl History for View {
    fn revision(&self) -> Revision {
        self.revision()
    }

    fn compacted(&self) -> Revision {
        self.compacted()
    }

    fn row(&self, at: RowRevision) -> Result<Option<Bytes>, Damage> {
        match self.row(at) {
            Ok(row) => Ok(row),
            // A compaction took it, whether the view knows or not.
            Err(ReadError::Rejected(_) | ReadError::Outdated) => Ok(None),
            Err(ReadError::Damaged(damage)) => Err(damage),
        }
    }

    fn events_from(&self, from: Revision, revisions_max: usize) -> Result<Chunk, HistoryError> {
        match self.events_between(from, self.revision(), revisions_max) {
            Ok(old) => Ok(Chunk { batches: old.batches, through: Revision(old.next.0 - 1) }),
            Err(ReadError::Rejected(Rejection::Compacted { compacted, .. })) => {
                Err(HistoryError::Compacted { compacted })
            }
            // No other refusal is possible for a revision that the view has.
            Err(ReadError::Rejected(_) | ReadError::Outdated) => Err(HistoryError::Outdated),
            Err(ReadError::Damaged(damage)) => Err(HistoryError::Damaged(damage)),
        }
    }
}
