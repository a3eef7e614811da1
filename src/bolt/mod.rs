//! The bbolt file format: a streaming writer and a validating reader. It knows nothing of etcd.
//!
//! Decides how ordered buckets of byte strings lie in pages, and whether a file may be believed.
//! The live store is another one; bbolt is what backups, snapshots between members and data
//! directories of etcd are made of. Called by `exchange` and by the offline tools.
//!
//! ```text
//!   page   0     1     2        3 ..                                   .. high water
//!        +-----+-----+------+--------+--------+-   -+--------+-   -+-----------+
//!        |meta |meta | free | leaves | branch |     | leaves |     | root leaf |
//!        |  0  |  1  | list | of bucket "a"   | ... | of "z" | ... | a b .. z  |
//!        +-----+-----+------+--------+--------+-   -+--------+-   -+-----------+
//!
//!   leaf   | header 16 | element 16 | element 16 | .. | key value | key value | .. | zeros |
//!                        pos: from the element's own first byte to its key
//! ```
//!
//! Writing takes two passes over the same entries. A [`Planner`] sees keys and lengths only and
//! fixes the place of every page; the [`Writer`] then emits the file from front to back. Memory is
//! the plan (the first key of each leaf and six bytes) and one run of pages; the total length is
//! known before the first byte.
//!
//! Invariants
//! - B1 Both passes pack entries by the same rule ([`pack`]), so equal entries give equal pages.
//! - B2 The writer emits exactly [`Plan::bytes_total`] bytes, or an error.
//! - B3 Every page below the high-water mark is reachable; the free list is empty.
//! - B4 The reader follows no offset, length or page number that it has not checked, and never
//!   allocates more than the file holds.
//! - B5 Keys that a reader hands out ascend strictly, so a loop in a damaged tree ends in an error.
//!
//! Deliberately absent: changing a file in place, buckets within buckets, locks, memory maps.
//!
//! Source: bbolt `internal/common/{page,meta,inode,bucket}.go`, `node.go`, `tx_check.go`.

mod page;
mod pack;
mod plan;
mod writer;
mod reader;
mod check;
mod error;
#[cfg(test)]
mod tests;

pub use check::Finding;
pub use error::{BoltError, Damage};
pub use page::{KEY_BYTES_MAX, PAGE_BYTES, PageId, VALUE_BYTES_MAX};
pub use plan::{Plan, Planner};
pub use reader::{Bucket, Database, Entries, Entry, Source};
pub use writer::Writer;
