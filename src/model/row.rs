//! One change of one key, as the store keeps it for ever.
//!
//! Decides the order of changes: by revision, then by position within it. Used by the key history,
//! storage, watch and exchange.

use bytes::Bytes;

use super::Revision;

/// The position of a change: the revision, and the place within it (0, 1, 2, ...).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RowRevision {
    /// The revision that the change belongs to.
    pub main: Revision,
    /// Its place among the changes of that revision.
    pub sub: i64,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where the change stands in history.
    pub revision: RowRevision,
    /// Whether the change deleted the key.
    pub tombstone: bool,
    /// The canonical `mvccpb.KeyValue`; of a tombstone, one with only the key.
    pub value: Bytes,
}
