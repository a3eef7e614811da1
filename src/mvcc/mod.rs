//! The key history: which keys exist at which revision, and the rows that say so.
//!
//! Decides revisions, visibility, and what a compaction drops. The store is the only writer, on
//! the apply thread; all reading goes through views, which any thread may hold and which never
//! wait for the writer.
//!
//! ```text
//!                 state (apply thread)                        api, watch, replica (any thread)
//!                    |                                            |
//!                    v                                            v
//!   WriteTxn --> Store ------------- view() --------------------> View
//!                 |  |                                            |  |
//!      KeyIndex <-+  +-> Ring    (copy-on-write root, chunk list) |  |
//!      key -> revisions  rows since the last flush  <-------------+  |
//!                        |                                           v
//!                        +-> take_rows() -> flusher -> backend <- RowSource
//! ```
//!
//! A read finds versions in the index and rows first in the ring, then in the backend. Rows are
//! encoded once, as `mvccpb.KeyValue`; answers are copies of their bytes.
//!
//! Invariants
//! - K1 A view answers the same question always alike, or not at all once it is outdated.
//! - K2 Every version in the index has its row in the ring or in the backend.
//! - K3 The revision grows by one for each transaction that changed something, and by nothing else.
//! - K4 A compaction deletes no row that a reader at or after its revision can see.
//!
//! Deliberately absent: leases (a row carries the number, `state` keeps the table), clocks,
//! threads, and the meaning of requests beyond `Range`.
//!
//! Source: etcd `server/storage/mvcc`.

mod build;
mod compact;
mod encoding;
mod event;
mod gather;
mod hash;
mod history;
mod index;
mod keys;
mod metrics;
mod node;
mod range;
mod recover;
mod rows;
mod source;
mod store;
mod version;
mod view;
mod write;
#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod model_tests;

pub use compact::{Compaction, CompactionStep};
pub use event::{Event, EventBatch, EventKind, OldEvents};
pub use hash::{HashJob, HashKv};
pub use metrics::{
    HASH_REV_SECONDS, HASH_SECONDS, INDEX_COMPACTION_PAUSE_MILLISECONDS, register_metrics,
};
pub use range::{Content, Filters, Order, RangeOptions, SortBy};
pub use recover::{Recovery, StoreError};
pub use rows::Damage;
pub use store::Store;
pub use version::KeyVersion;
pub use view::{ReadError, View};
pub use write::{Committed, Deleted, PutDone, WriteTxn};
