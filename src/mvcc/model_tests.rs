//! The store against a naive history: the same operations on both, then every question to both.
//!
//! The naive history is a list of changes that every question walks from the start. Rows are
//! "stored" by moving them into a map, so that reads cross the border between ring and backend.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    compact::{Compaction, CompactionStep},
    encoding::{self, RowWriter},
    event::EventKind,
    hash::HashKv,
    range::{Content, RangeOptions},
    rows::{Damage, RowScan, RowSource, StoredCompactions, StoredRow, Wanted},
    store::Store,
    version::KeyVersion,
    view::{ReadError, View},
};
use crate::{
    base::cases::cases,
    model::{KeyRange, LeaseId, Rejection, Revision, Row, RowRevision},
    storage::{
        Backend, BackendOptions, Table, Writer,
        keys::etcd_revision,
        tables::{FINISHED_COMPACT_REVISION, SCHEDULED_COMPACT_REVISION},
    },
};

/// A backend in memory.
#[derive(Debug, Default)]
pub(super) struct MemorySource(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    rows: BTreeMap<RowRevision, Row>,
    compactions: StoredCompactions,
}

impl RowScan for MemorySource {
    fn scan(
        &self,
        from: RowRevision,
        show: &mut dyn FnMut(StoredRow<'_>) -> ControlFlow<()>,
    ) -> Result<(), Damage> {
        let memory = self.0.lock().expect("not poisoned");
        let range = (Bound::Included(from), Bound::Unbounded);
        let _flow = memory.rows.range(range).try_for_each(|(_, row)| show(row.into()));
        Ok(())
    }
}

impl RowSource for MemorySource {
    fn fetch(
        &self,
        wanted: &[Wanted],
        found: &mut dyn FnMut(usize, StoredRow<'_>),
    ) -> Result<(), Damage> {
        let memory = self.0.lock().expect("not poisoned");
        for wanted in wanted {
            if let Some(row) = memory.rows.get(&wanted.at()) {
                found(wanted.place(), row.into());
            }
        }
        Ok(())
    }

    fn compactions(&self) -> Result<StoredCompactions, Damage> {
        Ok(self.0.lock().expect("not poisoned").compactions)
    }

    fn survey(&self) -> Result<Box<dyn RowScan>, Damage> {
        let rows = self.0.lock().expect("not poisoned").rows.clone();
        Ok(Box::new(Self(Mutex::new(Memory { rows, ..Memory::default() }))))
    }
}

impl MemorySource {
    pub(super) fn store(&self, rows: Vec<Row>) {
        let mut memory = self.0.lock().expect("not poisoned");
        memory.rows.extend(rows.into_iter().map(|row| (row.revision, row)));
    }

    pub(super) fn schedule(&self, revision: Revision) {
        self.0.lock().expect("not poisoned").compactions.scheduled = revision;
    }

    pub(super) fn delete(&self, revision: Revision, dead: &[RowRevision], last: bool) {
        let mut memory = self.0.lock().expect("not poisoned");
        for at in dead {
            memory.rows.remove(at).expect("a dead row is deleted once");
        }
        if last {
            memory.compactions.finished = revision;
        }
    }
}

/// Where the rows go.
trait Disk {
    fn source(&self) -> Arc<dyn RowSource>;
    fn store(&mut self, rows: Vec<Row>);
    fn schedule(&mut self, compaction: Compaction);
    fn delete(&mut self, revision: Revision, dead: &[RowRevision], last: bool);
    fn stored(&self) -> Vec<RowRevision> {
        let mut stored = Vec::new();
        let show = &mut |row: StoredRow<'_>| {
            stored.push(row.revision);
            ControlFlow::Continue(())
        };
        self.source().scan(RowRevision::default(), show).expect("readable");
        stored
    }
}

impl Disk for Arc<MemorySource> {
    fn source(&self) -> Arc<dyn RowSource> {
        Self::clone(self)
    }

    fn store(&mut self, rows: Vec<Row>) {
        MemorySource::store(self, rows);
    }

    fn schedule(&mut self, compaction: Compaction) {
        MemorySource::schedule(self, compaction.revision);
    }

    fn delete(&mut self, revision: Revision, dead: &[RowRevision], last: bool) {
        MemorySource::delete(self, revision, dead, last);
    }
}

/// A real backend.
struct Lmdb {
    backend: Backend,
    writer: Writer,
    _dir: tempfile::TempDir,
}

impl Lmdb {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let options = BackendOptions::new(dir.path().join("db.lmdb"));
        let (backend, writer) = Backend::open(&options).expect("a new backend");
        Self { backend, writer, _dir: dir }
    }
}

impl Disk for Lmdb {
    fn source(&self) -> Arc<dyn RowSource> {
        Arc::new(self.backend.clone())
    }

    fn store(&mut self, rows: Vec<Row>) {
        let mut txn = self.writer.begin().expect("a transaction");
        rows.iter().for_each(|row| txn.append(row).expect("in order"));
        txn.commit().expect("committed");
    }

    fn schedule(&mut self, compaction: Compaction) {
        let mut txn = self.writer.begin().expect("a transaction");
        let scheduled = etcd_revision(RowRevision { main: compaction.revision, sub: 0 });
        txn.put(Table::Meta, SCHEDULED_COMPACT_REVISION, &scheduled).expect("written");
        txn.commit().expect("committed");
    }

    fn delete(&mut self, revision: Revision, dead: &[RowRevision], last: bool) {
        let mut txn = self.writer.begin().expect("a transaction");
        for at in dead {
            assert!(txn.delete_row(*at).expect("deleted"), "{at:?} was not stored");
        }
        if last {
            let finished = etcd_revision(RowRevision { main: revision, sub: 0 });
            txn.put(Table::Meta, FINISHED_COMPACT_REVISION, &finished).expect("written");
        }
        txn.commit().expect("committed");
    }
}

/// One change, as the naive history keeps it.
#[derive(Clone, Debug)]
struct Fact {
    at: RowRevision,
    key: Vec<u8>,
    /// `None` for a deletion.
    put: Option<(KeyVersion, Bytes)>,
    row: Bytes,
}

/// All changes, for ever.
#[derive(Clone, Debug, Default)]
struct Naive {
    facts: Vec<Fact>,
}

impl Naive {
    fn live(&self, at: Revision) -> BTreeMap<Vec<u8>, (KeyVersion, Bytes)> {
        let mut live = BTreeMap::new();
        for fact in self.facts.iter().filter(|fact| fact.at.main <= at) {
            match &fact.put {
                Some(put) => live.insert(fact.key.clone(), put.clone()),
                None => live.remove(&fact.key),
            };
        }
        live
    }

    fn put(&mut self, at: RowRevision, key: &[u8], value: &[u8], lease: LeaseId) {
        let previous = self.live(Revision(i64::MAX)).get(key).map(|(version, _)| *version);
        let version = KeyVersion {
            create: previous.map_or(at.main, |previous| previous.create),
            modified: at,
            version: previous.map_or(1, |previous| previous.version + 1),
        };
        let row = RowWriter::default().put(
            Bytes::copy_from_slice(key),
            Bytes::copy_from_slice(value),
            lease,
            &version,
        );
        let put = Some((version, row.clone()));
        self.facts.push(Fact { at, key: key.to_vec(), put, row });
    }

    fn delete(&mut self, at: RowRevision, key: &[u8]) {
        let row = RowWriter::default().tombstone(Bytes::copy_from_slice(key));
        self.facts.push(Fact { at, key: key.to_vec(), put: None, row });
    }

    /// The rows that a compaction at `compacted` leaves.
    fn rows_after(&self, compacted: Revision) -> Vec<&Fact> {
        let kept = |fact: &&Fact| {
            let replaced = self.facts.iter().any(|later| {
                later.key == fact.key && fact.at < later.at && later.at.main <= compacted
            });
            let gone = fact.put.is_none() && fact.at.main < compacted;
            compacted < fact.at.main || (!replaced && !gone)
        };
        self.facts.iter().filter(kept).collect()
    }

    /// etcd's hash by its definition, over all rows that ever were.
    fn hash(&self, at: Revision, compacted: Revision) -> u32 {
        let live = self.live(at);
        let kept = |fact: &Fact| live.get(&fact.key).is_some_and(|(v, _)| v.modified == fact.at);
        let none_kept = live.is_empty();
        let mut bytes = b"key".to_vec();
        for fact in self.facts.iter().filter(|fact| fact.at.main <= at) {
            let old = fact.at.main <= compacted;
            let deleted = fact.put.is_none();
            if (old && !none_kept && !kept(fact)) || (deleted && fact.at.main == compacted) {
                continue;
            }
            bytes.extend(fact.at.main.0.to_be_bytes());
            bytes.push(b'_');
            bytes.extend(fact.at.sub.to_be_bytes());
            if deleted {
                bytes.push(b't');
            }
            bytes.extend(&fact.row);
        }
        crc32c::crc32c(&bytes)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Txn(Vec<Change>),
    Compact(prop::sample::Index),
    CompactionSteps(usize),
    Store,
    KeepView,
    Restart,
}

#[derive(Clone, Debug)]
enum Change {
    Put(u16, Vec<u8>, i64),
    Delete(u16),
    DeleteRange(u16, u16),
}

fn key(number: u16) -> Vec<u8> {
    format!("/r/{:03}/{}", number / 4, "x".repeat(usize::from(number % 4))).into_bytes()
}

fn change(keys: u16) -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => (0..keys, prop::collection::vec(any::<u8>(), 0..6), -1..3i64)
            .prop_map(|(key, value, lease)| Change::Put(key, value, lease)),
        3 => (0..keys).prop_map(Change::Delete),
        1 => (0..keys, 0..keys).prop_map(|(from, to)| Change::DeleteRange(from, to)),
    ]
}

fn step(keys: u16) -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => prop::collection::vec(change(keys), 0..5).prop_map(Step::Txn),
        2 => any::<prop::sample::Index>().prop_map(Step::Compact),
        3 => (1..4usize).prop_map(Step::CompactionSteps),
        2 => Just(Step::Store),
        2 => Just(Step::KeepView),
        1 => Just(Step::Restart),
    ]
}

/// The store and the naive history, side by side.
struct Pair {
    disk: Box<dyn Disk>,
    store: Store,
    naive: Naive,
    /// Older views, which must show what they always did.
    kept: Vec<View>,
}

impl Pair {
    fn new(disk: impl Disk + 'static) -> Self {
        let (mut store, _) = Store::recover_from(disk.source()).expect("an empty source");
        store.set_cache_bytes_max(0);
        Self { disk: Box::new(disk), store, naive: Naive::default(), kept: Vec::new() }
    }

    fn in_memory() -> Self {
        Self::new(Arc::new(MemorySource::default()))
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Txn(changes) => self.txn(changes),
            Step::Compact(which) => self.compact(*which),
            Step::CompactionSteps(steps) => (0..*steps).for_each(|_| {
                self.compaction_step();
            }),
            Step::Store => self.flush(),
            Step::KeepView => self.kept.push(self.store.view()),
            Step::Restart => self.restart(),
        }
    }

    fn txn(&mut self, changes: &[Change]) {
        let main = self.store.revision().next();
        let mut txn = self.store.write();
        let mut touched = std::collections::BTreeSet::new();
        let mut sub = 0;
        for change in changes {
            let at = RowRevision { main, sub };
            match change {
                Change::Put(number, value, lease) => {
                    let key = key(*number);
                    // etcd refuses to write a key twice in one transaction.
                    if !touched.insert(key.clone()) {
                        continue;
                    }
                    let value = Bytes::copy_from_slice(value);
                    txn.put(&Bytes::from(key.clone()), value.clone(), LeaseId(*lease));
                    self.naive.put(at, &key, &value, LeaseId(*lease));
                    sub += 1;
                }
                Change::Delete(number) => {
                    let key = Bytes::from(key(*number));
                    if touched.contains(&key[..]) {
                        continue;
                    }
                    for deleted in txn.delete_range(&KeyRange::Single(key)) {
                        touched.insert(deleted.key.to_vec());
                        self.naive.delete(at, &deleted.key);
                        sub += 1;
                    }
                }
                Change::DeleteRange(from, to) => {
                    let (from, to) = (Bytes::from(key(*from)), Bytes::from(key(*to)));
                    let range = KeyRange::Between(from, to);
                    if touched.iter().any(|key| range.contains(key)) {
                        continue;
                    }
                    let live = self.naive.live(Revision(i64::MAX));
                    let expected: Vec<_> =
                        live.keys().filter(|key| range.contains(key)).cloned().collect();
                    let deleted = txn.delete_range(&range);
                    assert_eq!(
                        deleted.iter().map(|deleted| deleted.key.to_vec()).collect::<Vec<_>>(),
                        expected,
                        "deleted keys of {range:?}"
                    );
                    for key in expected {
                        self.naive.delete(RowRevision { main, sub }, &key);
                        touched.insert(key);
                        sub += 1;
                    }
                }
            }
            if 8 < changes.len() {
                continue;
            }
            let all = KeyRange::From(Bytes::new());
            let seen = txn.range(&RangeOptions::of(all)).expect("nothing is stored away");
            let live = self.naive.live(Revision(i64::MAX));
            let expected: Vec<_> = live.into_values().map(|(_, row)| row).collect();
            assert_eq!(seen.rows, expected, "a transaction sees its own changes");
        }
        let committed = txn.commit();
        assert_eq!(committed.events.len(), usize::try_from(sub).expect("small"));
        let expected = if sub == 0 { Revision(main.0 - 1) } else { main };
        assert_eq!(committed.revision, expected);
    }

    fn compact(&mut self, which: prop::sample::Index) {
        let current = usize::try_from(self.store.revision().0).expect("positive");
        let revision = Revision(i64::try_from(which.index(current) + 1).expect("small"));
        let before = self.store.compacted();
        match self.store.compact(revision) {
            Ok(compaction) => {
                assert!(before < revision && compaction.previous == before);
                self.flush();
                self.disk.schedule(compaction);
            }
            Err(rejection) => {
                let expected = Rejection::Compacted { requested: revision, compacted: before };
                assert_eq!(rejection, expected);
            }
        }
    }

    fn compaction_step(&mut self) -> bool {
        match self.store.compaction_step() {
            CompactionStep::Idle => return false,
            CompactionStep::Working => {}
            CompactionStep::Hash(job) => {
                let (at, previous) = (self.store.view().compacted(), Revision(0));
                let hash = job.run().expect("rows are readable");
                assert!(hash.hash_revision <= at && previous != hash.compact_revision);
                if !self.naive.live(hash.hash_revision).is_empty() {
                    let expected = self.naive.hash(hash.hash_revision, hash.compact_revision);
                    assert_eq!(hash.hash, expected, "compaction hash {hash:?}");
                }
            }
            CompactionStep::Delete { revision, dead, last } => {
                self.disk.delete(revision, &dead, last);
            }
        }
        true
    }

    fn finish_compactions(&mut self) {
        while self.compaction_step() {}
    }

    fn flush(&mut self) {
        self.disk.store(self.store.take_rows());
        self.store.rows_flushed(self.store.revision());
    }

    fn restart(&mut self) {
        self.flush();
        let (revision, compacted) = (self.store.revision(), self.store.compacted());
        let (store, recovery) = Store::recover_from(self.disk.source()).expect("rows are whole");
        assert_eq!(store.revision(), revision, "revision after a restart");
        assert_eq!(store.compacted(), compacted, "compacted after a restart");
        let live = self.naive.live(revision);
        let leased: Vec<_> = live
            .iter()
            .filter_map(|(key, (version, row))| {
                let row = encoding::decode(version.modified, row.clone()).expect("well formed");
                (row.lease != 0).then(|| (Bytes::from(key.clone()), LeaseId(row.lease)))
            })
            .collect();
        assert_eq!(recovery.attachments, leased);
        self.store = store;
        self.store.set_cache_bytes_max(0);
    }

    /// Asks everything that can be asked.
    fn check(&self) {
        let view = self.store.view();
        self.check_view(&view);
        for view in &self.kept {
            self.check_view(view);
        }
        self.check_events(&view);
    }

    fn check_view(&self, view: &View) {
        let first = view.compacted().max(Revision(1));
        for main in first.0..=view.revision().0 {
            let at = Revision(main);
            let all =
                RangeOptions { revision: at, ..RangeOptions::of(KeyRange::From(Bytes::new())) };
            match view.range(&all) {
                // Answers of the index alone would be right; the caller starts over anyway.
                Err(ReadError::Outdated) if view.compacted() < self.store.compacted() => {}
                other => {
                    other.expect("readable");
                    self.check_at(view, at);
                }
            }
        }
        let too_old = RangeOptions {
            revision: Revision(first.0 - 1),
            ..RangeOptions::of(KeyRange::From(Bytes::new()))
        };
        let refused = view.range(&too_old);
        if Revision(1) < first {
            assert!(
                matches!(refused, Err(ReadError::Rejected(Rejection::Compacted { .. }))),
                "compacted reads are refused, not {refused:?}"
            );
        }
    }

    fn check_at(&self, view: &View, at: Revision) {
        let live = self.naive.live(at);
        let ranges = [
            KeyRange::From(Bytes::new()),
            KeyRange::From(key(9).into()),
            KeyRange::Between(key(3).into(), key(50).into()),
            KeyRange::Between(key(50).into(), key(3).into()),
            KeyRange::Single(key(7).into()),
        ];
        for range in ranges {
            let expected: Vec<_> =
                live.iter().filter(|(key, _)| range.contains(key)).map(|(_, put)| put).collect();
            let options = RangeOptions { revision: at, ..RangeOptions::of(range.clone()) };
            let answer = view.range(&options).expect("readable");
            let rows: Vec<_> = expected.iter().map(|(_, row)| row.clone()).collect();
            assert_eq!(answer.rows, rows, "{range:?} at {at}");
            assert_eq!(answer.count, i64::try_from(rows.len()).expect("small"));
            let count = RangeOptions { content: Content::Count, ..options.clone() };
            assert_eq!(view.range(&count).expect("readable").count, answer.count);
            for limit in [1, 2, 5] {
                let page =
                    view.range(&RangeOptions { limit, ..options.clone() }).expect("readable");
                let shown = rows.len().min(usize::try_from(limit).expect("small"));
                assert_eq!(page.rows, rows[..shown], "{range:?} at {at} limit {limit}");
                assert_eq!(page.count, answer.count, "{range:?} at {at} limit {limit}");
                assert_eq!(page.more, shown < rows.len());
            }
        }
    }

    /// Old events are what happened; those that a compaction dropped may be missing.
    fn check_events(&self, view: &View) {
        let mut from = view.compacted().max(Revision(1));
        let first = from;
        let mut seen = Vec::new();
        while from <= view.revision() {
            let old = view.events_between(from, view.revision(), 3).expect("readable");
            assert!(old.batches.len() <= 3 && from < old.next);
            from = old.next;
            for batch in old.batches {
                assert!(batch.events.iter().all(|event| event.revision.main == batch.revision));
                seen.extend(batch.events.iter().cloned());
            }
        }
        let expected: Vec<_> =
            self.naive.facts.iter().filter(|fact| first <= fact.at.main).collect();
        assert_eq!(
            seen.iter().map(|event| event.revision).collect::<Vec<_>>(),
            expected.iter().map(|fact| fact.at).collect::<Vec<_>>(),
            "events from {first} on"
        );
        for (event, fact) in seen.iter().zip(expected) {
            let before = self
                .naive
                .facts
                .iter()
                .rfind(|other| other.key == fact.key && other.at < fact.at)
                .filter(|other| other.put.is_some())
                .map(|other| other.at);
            assert_eq!(event.key, fact.key);
            assert_eq!(event.kind == EventKind::Delete, fact.put.is_none());
            if let Some(previous) = event.previous {
                assert_eq!(Some(previous), before, "previous of {event:?}");
            } else if let Some(before) = before {
                let kept = self.naive.rows_after(view.compacted());
                assert!(kept.iter().all(|kept| kept.at != before), "lost previous of {event:?}");
            }
            assert_eq!(
                event.created,
                fact.put.as_ref().is_some_and(|(v, _)| v.create == v.modified.main)
            );
        }
    }

    fn check_hashes(&self, view: &View) {
        let remembered = view.compaction_hashes();
        for main in view.compacted().0.max(1)..=view.revision().0 {
            let at = Revision(main);
            let hash = view.hash_kv(at).expect("readable");
            let compacted = remembered
                .iter()
                .find(|hash| hash.hash_revision == at)
                .map_or(view.compacted(), |hash| hash.compact_revision);
            if self.naive.live(at).is_empty() {
                // With nothing to keep, every row that is not deleted yet counts: etcd's choice,
                // and a matter of time.
                continue;
            }
            let expected = HashKv {
                hash: self.naive.hash(at, compacted),
                compact_revision: compacted,
                hash_revision: at,
            };
            assert_eq!(hash, expected);
        }
    }

    fn check_rows(&self) {
        let stored = self.disk.stored();
        let expected: Vec<_> =
            self.naive.rows_after(self.store.compacted()).iter().map(|fact| fact.at).collect();
        assert_eq!(stored, expected, "rows after all compactions");
    }
}

proptest! {
    #![proptest_config(cases(6))]

    #[test]
    fn a_tree_of_several_levels_answers_like_a_list_of_all_changes(
        steps in prop::collection::vec(
            prop::collection::vec(change(3000), 100..200).prop_map(Step::Txn), 1..10),
        compact in any::<prop::sample::Index>(),
    ) {
        let mut pair = Pair::in_memory();
        for step in &steps {
            pair.step(step);
            pair.step(&Step::Store);
        }
        pair.step(&Step::Compact(compact));
        pair.finish_compactions();
        pair.check_rows();
        pair.check_at(&pair.store.view(), pair.store.revision());
        pair.check_at(&pair.store.view(), pair.store.compacted());
    }

    #[test]
    fn a_store_on_a_real_backend_survives_restarts(
        steps in prop::collection::vec(step(24), 1..60),
    ) {
        let mut pair = Pair::new(Lmdb::new());
        steps.iter().for_each(|step| pair.step(step));
        pair.check();
        pair.restart();
        pair.check();
        pair.check_hashes(&pair.store.view());
        pair.finish_compactions();
        pair.check_rows();
        pair.restart();
        pair.check();
        pair.check_hashes(&pair.store.view());
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn the_store_answers_like_a_list_of_all_changes(
        steps in prop::collection::vec(step(24), 1..60),
    ) {
        let mut pair = Pair::in_memory();
        for step in &steps {
            pair.step(step);
        }
        pair.check();
        pair.check_hashes(&pair.store.view());
        pair.finish_compactions();
        pair.flush();
        pair.finish_compactions();
        pair.check();
        pair.check_hashes(&pair.store.view());
        pair.check_rows();
        pair.restart();
        pair.check();
        pair.check_hashes(&pair.store.view());
    }
}
