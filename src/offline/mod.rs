//! Work on files with no server running: what `oxetcdutl` does.
//!
//! Decides nothing about formats; it puts exchange, storage and bolt to use and says what came of
//! it in the words of `etcdutl`, because scripts read them. Called by the binary only.
//!
//! ```text
//!   oxetcdutl --> snapshot status   bolt check + one pass over all buckets   Status
//!                 snapshot restore  file --> db.lmdb + WAL + .snap            a data directory
//!                 hashkv            file or data directory                    HashKv
//!                 defrag, verify    data directory
//!                 export            data directory --> file of etcd
//! ```
//!
//! Invariants
//! - O1 An inspected file is only read: its trailing hash stays valid.
//! - O2 A command that fails leaves no half-made data directory.
//!
//! Deliberately absent: anything that talks to a running member; starting one.
//!
//! Source: etcd `etcdutl`.

mod error;
mod print;
mod lock;
mod progress;
mod status;
mod hash_kv;
mod export;
mod defrag;
mod members;
mod restore;
mod pages;
mod verify;
#[cfg(test)]
mod tests;

pub use defrag::defragment;
pub use error::OfflineError;
pub use export::{Ending, export_database};
pub use hash_kv::{HashKv, hash_kv};
pub use lock::LockTimeout;
pub use print::{Format, hash_kv_text, status_text};
pub use progress::Progress;
pub use restore::{RestoreOptions, restore};
pub use status::{Status, snapshot_status};
pub use verify::{Verified, verify};

/// The version of etcd that this tool stands in for.
pub const ETCD_VERSION: &str = "3.7.1";
/// The version of etcd's API that it knows.
pub const API_VERSION: &str = "3.7";
