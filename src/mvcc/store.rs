//! The key history in motion: the newest state, and the only place where it changes.
//!
//! Decides what the current revision is. Owned by the apply thread, inside of `state::Machine`;
//! everybody else reads views.

use std::sync::Arc;

use super::{
    compact::{Compaction, CompactionStep, Compactions},
    encoding::RowWriter,
    event::Event,
    hash::{HashJob, Hashes},
    index::KeyIndex,
    metrics,
    rows::{CACHE_BYTES_MAX, Ring, RingView, RowSource, StoredCompactions},
    view::View,
    write::WriteTxn,
};
use crate::model::{Rejection, Revision, Row};

/// The revision of an empty store.
///
/// Source: etcd `server/storage/mvcc/kvstore.go`.
pub(super) const FIRST_REVISION: Revision = Revision(1);

/// What [`Store::compacted`] is before any compaction.
pub(super) const NEVER_COMPACTED: Revision = Revision(-1);

/// The key history. Its rows become durable when the flusher has stored what
/// [`Store::take_rows`] gave out.
#[derive(Debug)]
pub struct Store {
    revision: Revision,
    compacted: Revision,
    index: KeyIndex,
    ring: Ring,
    row_writer: RowWriter,
    source: Arc<dyn RowSource>,
    hashes: Arc<Hashes>,
    compactions: Compactions,
}

impl Store {
    /// A store whose rows up to `revision` are all in `source`.
    pub(super) fn new(
        source: Arc<dyn RowSource>,
        index: KeyIndex,
        revision: Revision,
        compacted: Revision,
    ) -> Self {
        assert!(compacted <= revision, "compacted at {compacted}, after revision {revision}");
        let store = Self {
            revision,
            compacted,
            index,
            ring: Ring::new(CACHE_BYTES_MAX, revision),
            row_writer: RowWriter::default(),
            source,
            hashes: Arc::default(),
            compactions: Compactions::default(),
        };
        store.report();
        store
    }

    /// The newest revision; 1 if nothing was ever written.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// The revision of the newest compaction; -1 if there was none.
    #[must_use]
    pub const fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Begins a write transaction.
    pub const fn write(&mut self) -> WriteTxn<'_> {
        WriteTxn::new(self)
    }

    /// The key space as it is now.
    #[must_use]
    pub fn view(&self) -> View {
        self.view_at(self.revision)
    }

    /// The rows written since the last call, in order, for the flusher.
    pub fn take_rows(&mut self) -> Vec<Row> {
        self.ring.take()
    }

    /// Learns that every row up to `upto` can be read from the backend, so that memory may be
    /// freed.
    pub fn rows_flushed(&mut self, upto: Revision) {
        self.ring.set_stored(upto);
    }

    /// Makes everything before `revision` unreadable, except for the state at it. Memory and
    /// disk are freed by [`Store::compaction_step`].
    ///
    /// # Errors
    /// - [`Rejection::Compacted`] if `revision` is not after the newest compaction.
    /// - [`Rejection::FutureRevision`] if it is after the newest revision.
    pub fn compact(&mut self, revision: Revision) -> Result<Compaction, Rejection> {
        let (current, previous) = (self.revision, self.compacted);
        if revision <= previous {
            return Err(Rejection::Compacted { requested: revision, compacted: previous });
        }
        if current < revision {
            return Err(Rejection::FutureRevision { requested: revision, current });
        }
        let complete = self.compactions.is_idle() && self.stored_compaction() == Some(previous);
        self.compacted = revision;
        let hash = complete.then(|| HashJob::new(self.view(), previous));
        if hash.is_none() {
            tracing::info!(
                "previous compaction was interrupted, skip storing compaction hash value"
            );
        }
        self.compactions.schedule(revision, hash);
        self.report();
        Ok(Compaction { revision, previous })
    }

    /// Does a bounded part of the compactions that are under way, oldest first.
    pub fn compaction_step(&mut self) -> CompactionStep {
        self.compactions.step(&mut self.index)
    }

    /// How far stored compactions have come, if they have ended.
    fn stored_compaction(&self) -> Option<Revision> {
        let stored = self.source.compactions().unwrap_or_else(|damage| {
            tracing::warn!(%damage, "cannot read how far compactions have come");
            StoredCompactions { scheduled: Revision(i64::MAX), finished: NEVER_COMPACTED }
        });
        (stored.scheduled == stored.finished).then_some(stored.finished)
    }

    pub(super) fn view_at(&self, revision: Revision) -> View {
        View {
            revision,
            compacted: self.compacted,
            index: self.index.clone(),
            ring: self.ring.view(),
            source: Arc::clone(&self.source),
            hashes: Arc::clone(&self.hashes),
        }
    }

    /// Ends a transaction that made `events`.
    pub(super) fn advance(&mut self, events: &[Event]) {
        let next = self.revision.next();
        assert!(
            events.iter().all(|event| event.revision.main == next),
            "events of another revision than {next}"
        );
        self.revision = next;
        self.report();
    }

    fn report(&self) {
        metrics::KEYS.set(i64::try_from(self.index.live()).unwrap_or(i64::MAX));
        metrics::REVISION.set(self.revision.0);
        metrics::COMPACT_REVISION.set(self.compacted.0);
    }

    pub(super) const fn index(&self) -> &KeyIndex {
        &self.index
    }

    pub(super) const fn index_mut(&mut self) -> &mut KeyIndex {
        &mut self.index
    }

    pub(super) const fn ring(&self) -> &RingView {
        self.ring.rows()
    }

    pub(super) const fn ring_mut(&mut self) -> &mut Ring {
        &mut self.ring
    }

    pub(super) const fn row_writer(&mut self) -> &mut RowWriter {
        &mut self.row_writer
    }

    #[cfg(test)]
    pub(super) fn set_cache_bytes_max(&mut self, bytes_max: usize) {
        self.ring.set_bytes_max(bytes_max);
    }
}
