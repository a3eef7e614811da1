//! One write transaction: changes that become one revision.
//!
//! Decides the revision and the row of each change and what watchers are told of it. Made by the
//! store for `state`, on the apply thread; there is at most one, and it cannot be rolled back.

use std::{cell::Cell, ops::ControlFlow};

use bytes::Bytes;

use super::{
    encoding,
    event::{Event, EventKind},
    index::{Changed, Edit},
    metrics,
    range::RangeOptions,
    store::Store,
    version::KeyVersion,
    view::{ReadError, View},
};
use crate::{
    base::metrics::IntCounter,
    model::{KeyRange, LeaseId, RangeAnswer, Revision, Row, RowRevision},
};

/// A write transaction. Its changes are visible in it at once, to views after
/// [`WriteTxn::commit`].
#[derive(Debug)]
pub struct WriteTxn<'s> {
    store: &'s mut Store,
    events: Vec<Event>,
    operations: Cell<usize>,
}

/// What a put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutDone {
    /// The version before, if the key was live.
    pub previous: Option<KeyVersion>,
    /// The version that the put made.
    pub now: KeyVersion,
}

/// A key that was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// The key.
    pub key: Bytes,
    /// Its last version.
    pub previous: KeyVersion,
}

/// What a transaction came to.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The revision of its changes; if there were none, the one before.
    pub revision: Revision,
    /// Its changes in order.
    pub events: Vec<Event>,
}

impl<'s> WriteTxn<'s> {
    pub(super) const fn new(store: &'s mut Store) -> Self {
        Self { store, events: Vec::new(), operations: Cell::new(0) }
    }

    /// Whether anything has been changed.
    #[must_use]
    pub const fn changed(&self) -> bool {
        !self.events.is_empty()
    }

    /// The revision that reads in this transaction see: the next one once something changed.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        let before = self.store.revision();
        if self.changed() { before.next() } else { before }
    }

    /// Writes `value` to `key`, attached to `lease` (0 for none). The caller has made sure that
    /// the lease exists.
    pub fn put(&mut self, key: &Bytes, value: Bytes, lease: LeaseId) -> PutDone {
        self.count(&metrics::PUTS);
        metrics::PUT_BYTES.add(i64::try_from(key.len() + value.len()).unwrap_or(0));
        let at = self.next_row();
        let changed = self.store.index_mut().edit(key, Edit::Put(at));
        let now = changed.now.expect("a put leaves a live key");
        let row = self.store.row_writer().put(key.clone(), value, lease, &now);
        self.record(key, row, at, EventKind::Put, &changed);
        PutDone { previous: changed.previous, now }
    }

    /// Deletes every live key of `range`, in key order.
    pub fn delete_range(&mut self, range: &KeyRange) -> Vec<Deleted> {
        self.count(&metrics::DELETES);
        let mut deleted = Vec::new();
        self.store.index_mut().visit(range, Revision(i64::MAX), |key, previous| {
            deleted.push(Deleted { key: key.to_bytes(), previous });
            ControlFlow::Continue(())
        });
        for Deleted { key, .. } in &deleted {
            let at = self.next_row();
            let changed = self.store.index_mut().edit(key, Edit::Delete(at));
            let row = self.store.row_writer().tombstone(key.clone());
            self.record(key, row, at, EventKind::Delete, &changed);
        }
        deleted
    }

    /// The current version of `key`, if it is live.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<KeyVersion> {
        self.store.index().get(key)?.newest()
    }

    /// Answers a read that sees the changes so far.
    ///
    /// # Errors
    /// As [`View::range`]; never [`ReadError::Outdated`].
    pub fn range(&self, options: &RangeOptions) -> Result<RangeAnswer, ReadError> {
        self.operations.update(|operations| operations + 1);
        self.view().range(options)
    }

    /// The row at `at`, which a version of a key names.
    ///
    /// # Errors
    /// - [`ReadError::Damaged`] if it is lost or broken.
    pub fn row(&self, at: RowRevision) -> Result<Bytes, ReadError> {
        match self.store.ring().get(at) {
            Some(row) => Ok(row.value.clone()),
            None => self.view().rows(vec![at]).map(|mut rows| rows.remove(0)),
        }
    }

    /// The key space with the changes so far.
    #[must_use]
    pub fn view(&self) -> View {
        self.store.view_at(self.revision())
    }

    /// Ends the transaction. If it changed anything, its changes are the next revision.
    pub fn commit(mut self) -> Committed {
        if 1 < self.operations.get() {
            metrics::TXNS.inc();
        }
        let events = std::mem::take(&mut self.events);
        if !events.is_empty() {
            self.store.advance(&events);
        }
        Committed { revision: self.store.revision(), events }
    }

    fn count(&self, kind: &IntCounter) {
        kind.inc();
        self.operations.update(|operations| operations + 1);
    }

    fn next_row(&self) -> RowRevision {
        let sub = i64::try_from(self.events.len()).expect("changes fit into memory");
        RowRevision { main: self.store.revision().next(), sub }
    }

    fn record(
        &mut self,
        key: &[u8],
        row: Bytes,
        at: RowRevision,
        kind: EventKind,
        changed: &Changed,
    ) {
        let key = encoding::key_within(&row, key);
        let told = match kind {
            EventKind::Put => row.clone(),
            EventKind::Delete => encoding::delete_event(key.clone(), at.main),
        };
        let tombstone = kind == EventKind::Delete;
        self.store.ring_mut().push(Row { revision: at, tombstone, value: row });
        self.events.push(Event {
            key,
            kind,
            row: told,
            revision: at,
            created: changed.now.is_some_and(|now| now.create == at.main),
            previous: changed.previous.map(|previous| previous.modified),
        });
    }
}

impl Drop for WriteTxn<'_> {
    fn drop(&mut self) {
        // The rows are written; without the revision they would belong to nothing.
        assert!(
            self.events.is_empty() || std::thread::panicking(),
            "a transaction with {} changes was not committed",
            self.events.len()
        );
    }
}
