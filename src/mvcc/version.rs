//! What the key index knows about one key at one revision.
//!
//! Plain data: made by the index, read by everyone who answers questions about keys.

use crate::model::{Revision, RowRevision};

/// One version of a live key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyVersion {
    /// The revision that created the key, after its last deletion.
    pub create: Revision,
    /// The change that made this version.
    pub modified: RowRevision,
    /// How many times the key was written since it was created, from 1 on.
    pub version: i64,
}
