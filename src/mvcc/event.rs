//! What watchers are told: the changes of the key space, by revision.
//!
//! Decides what a change looks like from outside, for those that just happened and for old ones
//! that are read back. Made by write transactions, read by `watch`.

use std::{ops::ControlFlow, sync::Arc};

use bytes::Bytes;

use super::{
    encoding::{self, RowFields},
    rows::{Damage, StoredRow},
    view::{ReadError, View},
};
use crate::model::{Rejection, Revision, RowRevision};

/// Event bytes after which a read of old events ends, at the next revision.
const READ_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: Bytes,
    /// What happened to it.
    pub kind: EventKind,
    /// What is told of it, a `mvccpb.KeyValue` in wire form: of a put the whole row, of a deletion
    /// the key and the revision.
    pub row: Bytes,
    /// Where the change stands in history.
    pub revision: RowRevision,
    /// Whether the put created the key.
    pub created: bool,
    /// The row before, unless there was none or it is compacted away.
    pub previous: Option<RowRevision>,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was written.
    Put,
    /// It was deleted.
    Delete,
}

/// The changes of one revision, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventBatch {
    /// The revision.
    pub revision: Revision,
    /// Its changes; at least one.
    pub events: Arc<[Event]>,
}

/// Old changes, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldEvents {
    /// By revision, in order. Revisions without changes are left out.
    pub batches: Vec<EventBatch>,
    /// Where to go on: everything before has been read.
    pub next: Revision,
}

impl View {
    /// The changes from revision `from` to revision `to`, both included, at most
    /// `revisions_max` revisions and a few MiB at once, but at least one revision.
    ///
    /// # Errors
    /// - [`ReadError::Rejected`] if `from` is compacted.
    /// - [`ReadError::Outdated`] if a newer view must be asked.
    /// - [`ReadError::Damaged`] if rows are lost or broken.
    pub fn events_between(
        &self,
        from: Revision,
        to: Revision,
        revisions_max: usize,
    ) -> Result<OldEvents, ReadError> {
        let (to, compacted) = (to.min(self.revision), self.compacted);
        if from < compacted {
            let rejection = Rejection::Compacted { requested: from, compacted };
            return Err(ReadError::Rejected(rejection));
        }
        let mut reading = Reading { batches: Vec::new(), current: Vec::new(), bytes: 0 };
        let (mut next, mut failed) = (to.next().max(from), None);
        let start = RowRevision { main: from, sub: 0 };
        let stored = self.scan(start, &mut |row| {
            let main = row.revision.main;
            if to < main {
                return ControlFlow::Break(());
            }
            if reading.is_full(main, revisions_max) {
                next = main;
                return ControlFlow::Break(());
            }
            match self.old_event(row) {
                Ok(event) => reading.add(event),
                Err(error) => {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        if stored {
            self.check_outdated()?;
        }
        reading.end_revision();
        failed.map_or(Ok(OldEvents { batches: reading.batches, next }), Err)
    }

    fn old_event(&self, row: StoredRow<'_>) -> Result<Event, ReadError> {
        let (at, bytes) = (row.revision, row.to_bytes());
        let fields = RowFields::parse(&bytes).ok_or(Damage::Malformed(at))?;
        let key = bytes.slice_ref(fields.key);
        let history = self.index.get(fields.key);
        let previous = history.and_then(|history| history.before(at));
        let kind = if row.tombstone { EventKind::Delete } else { EventKind::Put };
        Ok(Event {
            row: match kind {
                EventKind::Put => bytes.clone(),
                EventKind::Delete => encoding::delete_event(key.clone(), at.main),
            },
            key,
            kind,
            revision: at,
            created: kind == EventKind::Put && fields.create_revision == at.main.0,
            previous: previous.map(|version| version.modified),
        })
    }
}

struct Reading {
    batches: Vec<EventBatch>,
    current: Vec<Event>,
    bytes: usize,
}

impl Reading {
    /// Whether the revision `main` would be one too many.
    fn is_full(&self, main: Revision, revisions_max: usize) -> bool {
        let Some(last) = self.current.last() else { return false };
        last.revision.main != main
            && (READ_BYTES_MAX <= self.bytes || revisions_max <= self.batches.len() + 1)
    }

    fn add(&mut self, event: Event) {
        if self.current.last().is_some_and(|last| last.revision.main != event.revision.main) {
            self.end_revision();
        }
        self.bytes += event.row.len();
        self.current.push(event);
    }

    fn end_revision(&mut self) {
        if let Some(last) = self.current.last() {
            let revision = last.revision.main;
            self.batches.push(EventBatch { revision, events: self.current.drain(..).collect() });
        }
    }
}
