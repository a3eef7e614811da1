//! Hashes of the key history, equal to etcd's bit for bit: members compare them to find damage.
//!
//! Decides which rows count. Computed by the edge on request, and by a job for every compaction.
//!
//! ```text
//!   CRC-32C over  "key" | row key | row | row key | row ...
//!   row key = main BE8 '_' sub BE8 ['t' of a deletion]
//! ```
//!
//! Of the history before the compaction only what the compaction keeps counts, so that it does not
//! matter how much of the rest is deleted already.
//!
//! Source: etcd `server/storage/mvcc/hash.go` and `kvstore_compaction.go`.

use std::{
    fmt,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;

use super::{
    history::Entry,
    rows::StoredRow,
    view::{ReadError, View},
};
use crate::{
    model::{Revision, RowRevision},
    storage::keys::etcd_revision,
};

/// The name of etcd's bucket of rows, which starts every hash.
const BUCKET: &[u8] = b"key";

/// What follows the revision in the key of a deletion.
const TOMBSTONE_MARK: &[u8] = b"t";

/// How many compactions' hashes are remembered.
///
/// Source: etcd `hash.go`, `hashStorageMaxSize`.
const REMEMBERED_MAX: usize = 10;

/// A hash of the key history, and what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    /// The hash.
    pub hash: u32,
    /// The compaction before which only kept rows count; -1 if there was none. Only hashes with
    /// equal ones can be compared.
    pub compact_revision: Revision,
    /// The newest revision that counts.
    pub hash_revision: Revision,
}

/// The hashes of the newest compactions.
#[derive(Debug, Default)]
pub(super) struct Hashes(ArcSwap<Vec<HashKv>>);

impl Hashes {
    fn get(&self, revision: Revision) -> Option<HashKv> {
        self.0.load().iter().find(|hash| hash.hash_revision == revision).copied()
    }

    fn remember(&self, hash: HashKv) {
        tracing::info!(
            hash = hash.hash,
            revision = hash.hash_revision.0,
            "compact-revision" = hash.compact_revision.0,
            "storing new hash"
        );
        self.0.rcu(|hashes| {
            let mut hashes = Vec::clone(hashes);
            hashes.push(hash);
            hashes.sort_by_key(|hash| hash.hash_revision);
            let surplus = hashes.len().saturating_sub(REMEMBERED_MAX);
            hashes.drain(..surplus);
            hashes
        });
    }
}

impl View {
    /// Hashes the key history up to `revision`; 0 stands for the newest. Below 0 lies no history,
    /// so the hash is that of the bucket's name.
    ///
    /// At the revision of a compaction the answer is the one that was computed then, with the
    /// compaction before it, until the member restarts.
    ///
    /// # Errors
    /// - [`ReadError::Rejected`] if `revision` is compacted or in the future.
    /// - [`ReadError::Outdated`] if a newer view must be asked.
    /// - [`ReadError::Damaged`] if rows are lost or broken.
    pub fn hash_kv(&self, revision: Revision) -> Result<HashKv, ReadError> {
        if let Some(hash) = self.hashes.get(revision) {
            return Ok(hash);
        }
        if revision < Revision(0) {
            let (hash, compact_revision) = (crc32c::crc32c(BUCKET), self.compacted);
            return Ok(HashKv { hash, compact_revision, hash_revision: revision });
        }
        let at = self.readable(revision)?;
        let hash = self.hash(at, self.compacted, Entry::kept_for_hash)?;
        self.check_outdated()?;
        Ok(hash)
    }

    /// The hashes of the newest compactions, by revision.
    #[must_use]
    pub fn compaction_hashes(&self) -> Vec<HashKv> {
        self.hashes.0.load().to_vec()
    }

    fn hash(
        &self,
        at: Revision,
        compacted: Revision,
        kept: fn(&Entry, Revision) -> Option<RowRevision>,
    ) -> Result<HashKv, ReadError> {
        let kept = Kept::new(self, at, compacted, kept);
        let mut hash = crc32c::crc32c(BUCKET);
        self.scan(RowRevision::default(), &mut |row| {
            if at < row.revision.main {
                return ControlFlow::Break(());
            }
            let dropped = row.tombstone && row.revision.main == compacted;
            if !dropped && kept.counts(row.revision) {
                hash = append(hash, row);
            }
            ControlFlow::Continue(())
        })?;
        Ok(HashKv { hash, compact_revision: compacted, hash_revision: at })
    }
}

/// Which rows at or before a compaction count.
struct Kept {
    compacted: Revision,
    /// Those at or before the compaction, in ascending order.
    old: Vec<RowRevision>,
}

impl Kept {
    fn new(
        view: &View,
        at: Revision,
        compacted: Revision,
        kept: fn(&Entry, Revision) -> Option<RowRevision>,
    ) -> Self {
        let mut old = Vec::new();
        if Revision(0) < compacted {
            let mut none = true;
            view.index.visit_histories(|_, entry| {
                let row = kept(entry, at);
                none &= row.is_none();
                old.extend(row.filter(|row| row.main <= compacted));
            });
            if none {
                // If no row is kept at all, then, for a reason that is etcd's, every row counts
                // that the compaction leaves. It is asked for by name, as memory may still have
                // rows that are gone from the backend.
                view.index.visit_histories(|_, entry| {
                    old.extend(entry.kept_by_compaction(compacted));
                });
            }
            old.sort_unstable();
        }
        Self { compacted, old }
    }

    fn counts(&self, row: RowRevision) -> bool {
        self.compacted < row.main || self.old.binary_search(&row).is_ok()
    }
}

fn append(hash: u32, row: StoredRow<'_>) -> u32 {
    let hash = crc32c::crc32c_append(hash, &etcd_revision(row.revision));
    let mark: &[u8] = if row.tombstone { TOMBSTONE_MARK } else { b"" };
    crc32c::crc32c_append(crc32c::crc32c_append(hash, mark), row.value)
}

/// The hash that a compaction leaves behind, to be computed before its rows are deleted.
pub struct HashJob {
    /// As of the compaction.
    view: View,
    previous: Revision,
    ended: Arc<AtomicBool>,
}

impl HashJob {
    pub(super) fn new(view: View, previous: Revision) -> Self {
        Self { view, previous, ended: Arc::default() }
    }

    /// Becomes true when the job has run or is dropped.
    pub(super) fn ended(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.ended)
    }

    /// Computes and remembers the hash: reads every row up to the compaction once.
    ///
    /// # Errors
    /// - [`ReadError::Damaged`] if rows are lost or broken.
    pub fn run(self) -> Result<HashKv, ReadError> {
        let at = self.view.compacted;
        let hash = self.view.hash(at, self.previous, Entry::kept_by_compaction)?;
        self.view.hashes.remember(hash);
        Ok(hash)
    }
}

impl Drop for HashJob {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}

impl fmt::Debug for HashJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashJob")
            .field("revision", &self.view.compacted)
            .field("previous", &self.previous)
            .finish_non_exhaustive()
    }
}
