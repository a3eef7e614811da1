//! Snapshots and data directories of etcd, in and out.
//!
//! Decides how our tables and rows become the ten buckets of an etcd database file and back. Names,
//! keys and values are the same on both sides, so an exchange is a copy with another key for rows.
//! Called by the Maintenance service and by snapshots between members (out), by `boot` (in), and
//! by the offline tools (both).
//!
//! ```text
//!     out: one read transaction, twice              in: once, at the first boot
//!
//!   storage::Reader --+-- lengths --> Planner     member/snap/db, <index>.snap.db
//!                     |                 |           | EtcdFile (every page checked)
//!                     |                 v           v
//!                     +-- bytes --> Writer        db.lmdb.importing  (storage::Writer)
//!                                       |           |
//!               Part: Begin, Data.., End v           | rename, when complete and durable
//!                        bounded channel            v
//!                                                 db.lmdb
//! ```
//!
//! Invariants
//! - X1 An export shows one commit: its rows, tables and consistent index belong together.
//! - X2 An export writes nothing to the disk and holds its transaction in one function.
//! - X3 An import is complete and durable under the name `db.lmdb`, or it did not happen.
//! - X4 Of two databases in one directory, the one with the higher consistent index is right: both
//!   were made from the same log.
//!
//! Deliberately absent: the write-ahead log, which has etcd's own format and needs no exchange;
//! merging; going below the schema of etcd 3.5.
//!
//! Source: etcd `server/storage/schema/bucket.go`, `etcdutl/snapshot/v3_snapshot.go`.

mod backup;
mod bucket;
mod conf_state;
mod digest;
mod error;
mod etcd_file;
mod export;
mod hash;
mod import;
mod adopt;
#[cfg(test)]
mod tests;

pub use adopt::{Adopted, IMPORTED_FILE, adopt, snapshot_file};
pub use backup::{About, Gone, Part, Pieces, give_backup, receive_backup, run_backup};
pub use conf_state::conf_state_json;
pub use digest::{DIGEST_BYTES, Digest, Trailer, has_trailer};
pub use error::ExchangeError;
pub use etcd_file::EtcdFile;
pub use export::export;
pub use hash::hash_backend;
pub use import::{Imported, import, import_into};
