//! One member in motion: from a proposal to its answer.
//!
//! Decides in what order things happen to the log and to the state: what is persisted, sent,
//! applied, answered, and when the log may be cut. The decisions are made by [`core`], which is
//! synchronous and has no clock, thread or socket; three threads carry them out. `api` and `http`
//! reach all of it through [`Handle`]; `boot` starts the threads.
//!
//! ```text
//!            propose            Persist               one pwrite + fdatasync
//!   Handle ----------> replica ---------> log writer ------------------------> WAL
//!     ^                 |   ^                 |    on the replica thread while the member is
//!     |                 |   +---- Persisted --+    alone, else on the log thread
//!     |  answers        | Apply
//!     +------------- apply thread ---> published view, watch, flusher
//!                        (state::Machine)
//! ```
//!
//! Invariants
//! - R1 An answer is sent after its entry is durable on a quorum, applied here, and visible in the
//!   published view.
//! - R2 Entries are applied in log order, each once, across restarts too.
//! - R3 Every waiting caller gets exactly one answer: its outcome, or why there is none.
//! - R4 The log is cut only below a position that the backend has made durable.
//!
//! Deliberately absent: encodings of clients, and the question who may do what (`api`).

mod apply_thread;
mod assemble;
mod core;
mod corruption;
mod duties;
mod group_commit;
mod handle;
mod leases;
mod log_thread;
mod log_writer;
mod members;
mod metrics;
mod pending;
mod reads;
pub mod remote;
mod replica_thread;
pub mod restart;
mod rounds;
mod shared;
#[cfg(test)]
mod sim;
mod snapshot;
mod snapshot_policy;
#[cfg(test)]
mod snapshot_tests;

pub use apply_thread::ApplyThread;
pub use assemble::{Assembled, Ingredients, Settings, assemble};
pub use core::{Core, Effect, Input, KnownProgress, Leadership, ProgressReply};
pub use corruption::{CheckTimes, CorruptionChecks, Hasher, check_before_start};
pub use duties::{Compaction, Duties, DutySettings};
pub use handle::{Handle, Identity, Limits, Status};
pub use leases::LeaseCalls;
pub use log_thread::LogThread;
pub use log_writer::LogError;
pub use members::{ChangeError, MemberCalls, QuorumChecks};
pub use metrics::register_metrics;
pub use replica_thread::ReplicaThread;
pub use snapshot::{InstallError, open_received};
