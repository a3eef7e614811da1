//! Rebuilds the store from the backend, at boot.
//!
//! Decides what the stored rows say about the newest state: each is read once, and its checksum
//! verified. Called by `state` before the log is replayed, while nobody writes to the backend.
//!
//! Source: etcd `server/storage/mvcc/kvstore.go`, `restore`.

use std::{collections::HashMap, fmt, sync::Arc};

use bytes::Bytes;

use super::{
    build::{Built, build, by_key, lease_of},
    gather::{Placed, Window},
    index::{Edit, KeyIndex},
    rows::{Damage, RowSource, StoredCompactions},
    store::{FIRST_REVISION, Store},
};
use crate::{
    model::{LeaseId, Revision, RowRevision},
    storage::Backend,
};

/// Why the store could not be rebuilt.
#[derive(Clone, Debug)]
pub enum StoreError {
    /// Stored rows are lost or broken.
    Damaged(Damage),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(_) => f.write_str("the key history cannot be rebuilt"),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Damaged(damage) => Some(damage),
        }
    }
}

impl From<Damage> for StoreError {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}

/// What else the stored rows tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The live keys with a lease, in key order.
    pub attachments: Vec<(Bytes, LeaseId)>,
    /// The compaction that was interrupted; it is scheduled again.
    pub unfinished: Option<Revision>,
}

impl Store {
    /// Rebuilds the store from `backend`.
    ///
    /// # Errors
    /// - [`StoreError::Damaged`] if a row is broken; the member must not start.
    pub fn recover(backend: &Backend) -> Result<(Self, Recovery), StoreError> {
        Self::recover_from(Arc::new(backend.clone()))
    }

    /// Rebuilds the store from any source of rows.
    pub(super) fn recover_from(source: Arc<dyn RowSource>) -> Result<(Self, Recovery), StoreError> {
        let stored = source.compactions()?;
        let rows = source.survey()?;
        let mut restored = Restored::default();
        let mut from = Some(RowRevision::default());
        while let Some(start) = from {
            let window = Window::gather(&*rows, start)?;
            restored.add(&window);
            from = window.next;
        }
        drop(rows);
        let Restored { index, last, attachments } = restored;
        let (store, unfinished) = resume(source, index.unwrap_or_default(), last, stored);
        let mut attachments: Vec<_> = attachments.into_iter().collect();
        attachments.sort_unstable();
        Ok((store, Recovery { attachments, unfinished }))
    }
}

fn resume(
    source: Arc<dyn RowSource>,
    index: KeyIndex,
    last: Revision,
    stored: StoredCompactions,
) -> (Store, Option<Revision>) {
    if StoredCompactions::NEVER.finished < stored.finished {
        tracing::info!(
            "meta-bucket-name-key" = "finishedCompactRev",
            "restored-compact-revision" = stored.finished.0,
            "restored last compact revision"
        );
    }
    // The rows of the newest revisions may all be deletions that a compaction has removed.
    let revision = last.max(stored.finished).max(stored.scheduled);
    let mut store = Store::new(source, index, revision, stored.finished);
    tracing::info!("current-rev" = revision.0, "kvstore restored");
    let unfinished = Some(stored.scheduled).filter(|scheduled| stored.finished < *scheduled);
    if let Some(scheduled) = unfinished {
        store.compact(scheduled).expect("after the finished one and not after the last revision");
        tracing::info!("scheduled-compact-revision" = scheduled.0, "resume scheduled compaction");
    }
    (store, unfinished)
}

/// What the rows have told so far.
struct Restored {
    /// `None` before the first window.
    index: Option<KeyIndex>,
    last: Revision,
    attachments: HashMap<Bytes, LeaseId>,
}

impl Default for Restored {
    fn default() -> Self {
        Self { index: None, last: FIRST_REVISION, attachments: HashMap::new() }
    }
}

impl Restored {
    fn add(&mut self, window: &Window) {
        self.last = self.last.max(window.last.unwrap_or(FIRST_REVISION));
        let Some(index) = &mut self.index else {
            let Built { index, attached } = build(window);
            self.index = Some(index);
            self.attachments.extend(attached);
            return;
        };
        for stretch in 0..window.stretches() {
            for rows in by_key(&window.stretch(stretch)) {
                for Placed { key, found, .. } in rows {
                    let (create, version) = (Revision(found.create), found.version);
                    index.edit(key, Edit::Restore { change: found.change(), create, version });
                }
                match lease_of(rows) {
                    Some(lease) => {
                        self.attachments.insert(Bytes::copy_from_slice(rows[0].key), lease);
                    }
                    None if self.attachments.is_empty() => {}
                    None => drop(self.attachments.remove(rows[0].key)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{KeyRange, Row},
        mvcc::{CompactionStep, encoding::RowWriter, model_tests::MemorySource},
    };

    fn row(main: i64, value: Bytes) -> Row {
        let revision = RowRevision { main: Revision(main), sub: 0 };
        Row { revision, tombstone: false, value }
    }

    fn put(main: i64, key: &'static str, lease: i64) -> Row {
        let version = crate::mvcc::KeyVersion {
            create: Revision(main),
            modified: RowRevision { main: Revision(main), sub: 0 },
            version: 1,
        };
        let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::from_static(b"v"));
        row(main, RowWriter::default().put(key, value, LeaseId(lease), &version))
    }

    fn recover(source: &Arc<MemorySource>) -> Result<(Store, Recovery), StoreError> {
        Store::recover_from(Arc::clone(source) as Arc<dyn RowSource>)
    }

    #[test]
    fn the_empty_row_of_a_bumped_snapshot_moves_the_revision_and_harms_nothing() {
        let source = Arc::new(MemorySource::default());
        source.store(vec![put(2, "a", 7), row(1_000_002, Bytes::new())]);
        let (mut store, recovery) = recover(&source).expect("an empty row is no damage");
        assert_eq!(store.revision(), Revision(1_000_002));
        assert_eq!(recovery.attachments, [(Bytes::from_static(b"a"), LeaseId(7))]);
        let all = KeyRange::from_wire(Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
        assert_eq!(store.view().count(&all), 1, "no client sees the empty key");

        store.compact(store.revision()).expect("not compacted yet");
        while !matches!(store.compaction_step(), CompactionStep::Idle) {}
        let mut txn = store.write();
        txn.put(&Bytes::from_static(b"b"), Bytes::new(), LeaseId(0));
        assert_eq!(txn.commit().revision, Revision(1_000_003));
        let old = store.view().events_between(Revision(1_000_002), Revision(1_000_003), 9);
        assert_eq!(old.expect("readable").batches.len(), 2);
    }

    #[test]
    fn a_row_that_is_no_key_value_keeps_the_member_from_starting() {
        let source = Arc::new(MemorySource::default());
        source.store(vec![put(2, "a", 0), row(3, Bytes::from_static(b"\x0a\xff"))]);
        let StoreError::Damaged(damage) = recover(&source).expect_err("a broken row");
        assert_eq!(damage.to_string(), "row 3.0 is not a key-value");
    }

    #[test]
    fn an_interrupted_compaction_goes_on_and_keeps_the_revision() {
        let source = Arc::new(MemorySource::default());
        source.store(vec![put(2, "a", 0), put(3, "a", 0)]);
        source.schedule(Revision(9));
        let (mut store, recovery) = recover(&source).expect("whole");
        assert_eq!(recovery.unfinished, Some(Revision(9)));
        assert_eq!((store.revision(), store.compacted()), (Revision(9), Revision(9)));
        let mut deleted = Vec::new();
        loop {
            match store.compaction_step() {
                CompactionStep::Idle => break,
                CompactionStep::Working => {}
                CompactionStep::Hash(job) => panic!("an interrupted compaction hashes: {job:?}"),
                CompactionStep::Delete { dead, last, .. } => {
                    deleted.extend(dead.iter().map(|at| at.main));
                    assert!(last);
                }
            }
        }
        assert_eq!(deleted, [Revision(2)]);
        assert!(matches!(
            store.compact(Revision(9)),
            Err(crate::model::Rejection::Compacted { .. })
        ));
    }
}
