//! Carries state changes from memory to the backend.

use bytes::Bytes;

use super::tables::TableWrite;
use crate::model::{LogIndex, Row, Term};

/// What changed between two applied positions: one unit of the checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlushBatch {
    /// New rows, in order, after those of every earlier batch.
    pub rows: Vec<Row>,
    /// Changes of small tables, oldest first.
    pub tables: Vec<TableWrite>,
    /// The last applied entry that the batch holds; stored as `consistent_index`.
    pub applied: LogIndex,
    /// The term of that entry; stored as `term`.
    pub term: Term,
    /// The membership as JSON, if it changed; stored as `confState`.
    pub conf_state: Option<Bytes>,
}
