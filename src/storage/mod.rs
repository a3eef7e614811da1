//! Everything that survives a restart: the log, the checkpoint, and snapshots' metadata.
//!
//! Decides bytes on disk and when they are durable. The write-ahead log makes a write durable; the
//! backend is a checkpoint of the state that the log leads to, always some milliseconds behind.
//!
//! ```text
//!   replica::log_thread --> wal      member/wal/*.wal          durability: before the answer
//!   apply --> FlushJob --> flusher --> writer --+
//!                                               v
//!   mvcc, state, api <-- backend::Reader <-- member/snap/db.lmdb   checkpoint: some ms later
//!   replica --> snap                 member/snap/*.snap        what etcd 3.6 needs to go back
//! ```
//!
//! Invariants
//! - S1 Nothing acknowledged is dropped. Only a torn tail of the log, never synced, is cut off.
//! - S2 Bytes whose checksum does not match are an error that names the place, never an answer.
//! - S3 Rows, tables and the consistent index of a batch become durable together or not at all.
//! - S4 A failed write or sync is reported once and never retried; the member stops.

mod defragment;
mod environment;
mod error;
mod install;
mod metrics;
mod reach;
mod records;
mod remains;
mod survey;
mod writer;
pub mod backend;
pub mod flusher;
pub mod keys;
pub mod quota;
pub mod scrub;
pub mod snap;
pub mod tables;
pub mod wal;
#[cfg(test)]
mod backend_tests;
#[cfg(test)]
mod official_tests;

pub use backend::{Backend, BackendOptions, Reader};
pub use environment::Sizes;
pub use error::{BackendError, Fault, Place};
pub use flusher::{FlushBatch, FlushJob, FlusherHandle};
pub use install::received_dir;
pub use metrics::{backup_took, register_metrics};
pub use records::{RowRef, SealedRow};
pub use survey::Survey;
pub use tables::{Table, TableWrite};
pub use writer::{Transaction, Writer};
