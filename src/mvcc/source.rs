//! Rows that are stored in the backend.
//!
//! Decides how the backend is walked: rows that lie close together with one cursor, others by
//! their keys. Used by views through [`RowSource`]; each call is one read transaction.
//!
//! Rows are found in the order of the file and read in the order of the answer. Where the file is
//! far larger than the processor's cache, almost all of the time is waiting for memory:
//!
//! ```text
//!   wanted, by revision --find--> where each row lies --sort--> by place --read--> found
//!                         each page of the file once            several rows are waited for together
//! ```

use std::{ops::ControlFlow, sync::Arc};

use super::rows::{Damage, RowScan, RowSource, StoredCompactions, StoredRow, Wanted};
use crate::{
    model::{Revision, RowRevision},
    storage::{
        Backend, BackendError, Reader, RowRef, SealedRow, Survey,
        keys::parse_etcd_revision,
        tables::{FINISHED_COMPACT_REVISION, SCHEDULED_COMPACT_REVISION, Table},
    },
};

/// Revisions between two wanted rows up to which the cursor walks on: a step, which checks nothing,
/// costs a small part of a lookup. Between 8 and 24 no difference could be measured.
const WALK_REVISIONS_MAX: i64 = 16;

/// Rows that are found before the first of them is read. More than a page or a stretch of a stream
/// has, which are then read in the order of the answer. What an answer of a million rows occupies
/// beside its rows is bounded by it, at 40 bytes each.
const BATCH_ROWS: usize = if cfg!(test) { 5 } else { 1 << 16 };

/// Rows that are waited for together: enough to keep memory busy, few enough for the first to be in
/// the innermost caches still. A full list one row at a time costs a quarter more processor time.
const WARM_ROWS: usize = if cfg!(test) { 2 } else { 32 };

impl RowScan for Backend {
    fn scan(
        &self,
        from: RowRevision,
        show: &mut dyn FnMut(StoredRow<'_>) -> ControlFlow<()>,
    ) -> Result<(), Damage> {
        let reader = self.reader()?;
        for row in reader.row_refs(from)? {
            if show(row?.into()).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl RowScan for Survey {
    fn scan(
        &self,
        from: RowRevision,
        show: &mut dyn FnMut(StoredRow<'_>) -> ControlFlow<()>,
    ) -> Result<(), Damage> {
        Ok(self.rows(from, &mut |row| show(row.into()))?)
    }
}

impl RowSource for Backend {
    fn fetch(
        &self,
        wanted: &[Wanted],
        found: &mut dyn FnMut(usize, StoredRow<'_>),
    ) -> Result<(), Damage> {
        let reader = self.reader()?;
        if let [only] = wanted {
            if let Some(row) = reader.row_ref(only.at())? {
                found(only.place(), row.into());
            }
            return Ok(());
        }
        let mut batch = Batch::default();
        for wanted in wanted.chunks(BATCH_ROWS) {
            batch.gather(&reader, wanted)?;
            batch.show(&reader, found)?;
        }
        Ok(())
    }

    fn survey(&self) -> Result<Box<dyn RowScan>, Damage> {
        Ok(Box::new(Self::survey(self)?))
    }

    fn compactions(&self) -> Result<StoredCompactions, Damage> {
        let reader = self.reader()?;
        let revision = |name| -> Result<Option<Revision>, Damage> {
            let stored = reader.get(Table::Meta, name)?.and_then(parse_etcd_revision);
            Ok(stored.map(|(revision, _)| revision.main))
        };
        let never = StoredCompactions::NEVER;
        Ok(StoredCompactions {
            scheduled: revision(SCHEDULED_COMPACT_REVISION)?.unwrap_or(never.scheduled),
            finished: revision(FINISHED_COMPACT_REVISION)?.unwrap_or(never.finished),
        })
    }
}

/// How many of the first rows lie so close together that walking is cheaper than looking up.
fn run_length(wanted: &[Wanted]) -> usize {
    let main = |wanted: Wanted| wanted.at().main.0;
    let close = |pair: &&[Wanted]| main(pair[1]) - main(pair[0]) <= WALK_REVISIONS_MAX;
    1 + wanted.windows(2).take_while(close).count()
}

/// Rows that were found and not read yet.
#[derive(Default)]
struct Batch<'r> {
    /// In the order of the file.
    rows: Vec<SealedRow<'r>>,
    /// In the order of the answer: each row's place there, and where it is in `rows`.
    order: Vec<(u32, u32)>,
}

impl<'r> Batch<'r> {
    /// Finds `wanted`, which ascend, and forgets what was found before.
    fn gather(&mut self, reader: &'r Reader<'_>, wanted: &[Wanted]) -> Result<(), Damage> {
        self.rows.clear();
        self.order.clear();
        self.rows.reserve_exact(wanted.len());
        self.order.reserve_exact(wanted.len());
        let mut rest = wanted;
        while let Some(first) = rest.first() {
            let (run, after) = rest.split_at(run_length(rest));
            if run.len() == 1 {
                if let Some(row) = reader.sealed_row(first.at())? {
                    self.add(*first, row);
                }
            } else {
                self.walk(reader, run)?;
            }
            rest = after;
        }
        Ok(())
    }

    fn walk(&mut self, reader: &'r Reader<'_>, wanted: &[Wanted]) -> Result<(), Damage> {
        let mut wanted = wanted.iter().copied().peekable();
        let Some(first) = wanted.peek() else { return Ok(()) };
        for row in reader.sealed_rows(first.at())? {
            let row = row?;
            while wanted.next_if(|wanted| wanted.at() < row.revision()).is_some() {}
            if let Some(found) = wanted.next_if(|wanted| wanted.at() == row.revision()) {
                self.add(found, row);
            }
            if wanted.peek().is_none() {
                break;
            }
        }
        Ok(())
    }

    fn add(&mut self, wanted: Wanted, row: SealedRow<'r>) {
        let at = u32::try_from(self.rows.len()).expect("a batch has few rows");
        self.order.push((wanted.small_place(), at));
        self.rows.push(row);
    }

    /// Checks and shows the rows in the order of the answer.
    fn show(
        &mut self,
        reader: &Reader<'_>,
        found: &mut dyn FnMut(usize, StoredRow<'_>),
    ) -> Result<(), Damage> {
        self.order.sort_unstable();
        for order in self.order.chunks(WARM_ROWS) {
            let rows = order.iter().map(|&(place, at)| (place as usize, self.rows[at as usize]));
            rows.clone().for_each(|(_, row)| row.warm());
            for (place, row) in rows {
                found(place, reader.open(row)?.into());
            }
        }
        Ok(())
    }
}

impl<'a> From<RowRef<'a>> for StoredRow<'a> {
    fn from(row: RowRef<'a>) -> Self {
        Self { revision: row.revision, tombstone: row.tombstone, value: row.value, shared: None }
    }
}

impl From<BackendError> for Damage {
    fn from(error: BackendError) -> Self {
        Self::Unreadable(Arc::new(error))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use bytes::Bytes;
    use proptest::{collection::btree_set, prelude::*};

    use super::*;
    use crate::{
        base::cases::cases,
        model::{KeyRange, LeaseId, Rejection, Row},
        mvcc::{CompactionStep, RangeOptions, ReadError, Store, View},
        storage::{BackendOptions, Writer, keys::etcd_revision},
    };

    struct Stored {
        backend: Backend,
        writer: Writer,
        options: BackendOptions,
        _dir: tempfile::TempDir,
    }

    fn at(main: i64) -> RowRevision {
        RowRevision { main: Revision(main), sub: 0 }
    }

    /// Longer than a few cache lines, and in the file once.
    fn value(main: i64) -> Vec<u8> {
        format!("<the value of revision {main}>").repeat(12).into_bytes()
    }

    fn store(mains: impl IntoIterator<Item = i64>) -> Stored {
        let dir = tempfile::tempdir().expect("a directory");
        let options = BackendOptions::new(dir.path().join("db.lmdb"));
        let (backend, mut writer) = Backend::open(&options).expect("a new backend");
        let mut txn = writer.begin().expect("one writer");
        for main in mains {
            let row = Row { revision: at(main), tombstone: false, value: value(main).into() };
            txn.append(&row).expect("in order");
        }
        txn.commit().expect("a working disk");
        Stored { backend, writer, options, _dir: dir }
    }

    /// The same file with one bit of one row flipped.
    fn damage(stored: Stored, main: i64) -> Stored {
        let Stored { backend, writer, options, _dir } = stored;
        drop((backend, writer));
        let file = options.dir.join("data.mdb");
        let mut bytes = fs::read(&file).expect("a file");
        let value = value(main);
        let found = bytes.windows(value.len()).position(|window| window == value);
        bytes[found.expect("the value stands in the file") + 7] ^= 0x10;
        fs::write(&file, bytes).expect("a writable file");
        let (backend, writer) = Backend::open(&options).expect("LMDB checks no rows");
        Stored { backend, writer, options, _dir }
    }

    /// What is found of the rows at `mains`, asked for in that order, by place.
    fn fetched(backend: &Backend, mains: &[i64]) -> Result<Vec<Option<Vec<u8>>>, Damage> {
        let wanted = mains.iter().enumerate().map(|(place, &main)| Wanted::new(at(main), place));
        let mut wanted: Vec<_> = wanted.collect();
        wanted.sort_unstable();
        let mut rows = vec![None; mains.len()];
        backend.fetch(&wanted, &mut |place, row| {
            assert_eq!(row.revision, at(mains[place]), "the row of place {place}");
            assert_eq!(rows[place], None, "place {place} is told of once");
            rows[place] = Some(row.value.to_vec());
        })?;
        Ok(rows)
    }

    proptest! {
        #![proptest_config(cases(24))]

        #[test]
        fn rows_are_found_at_their_places_however_many_batches_they_fill(
            stored in btree_set(1..400i64, 1..60),
            wanted in btree_set(1..400i64, 0..4 * BATCH_ROWS + 2).prop_map(Vec::from_iter)
                .prop_shuffle(),
        ) {
            let store = store(stored.iter().copied());
            let expected: Vec<_> =
                wanted.iter().map(|main| stored.contains(main).then(|| value(*main))).collect();
            prop_assert_eq!(fetched(&store.backend, &wanted).expect("sound"), expected);
        }
    }

    #[test]
    fn a_damaged_row_ends_the_read_wherever_in_a_batch_it_lies() {
        let rows = i64::try_from(2 * BATCH_ROWS + 1).expect("few");
        // Close together the rows are walked, far apart each is looked up.
        for distance in [1, 2 * WALK_REVISIONS_MAX] {
            let all: Vec<_> = (1..=rows).map(|place| place * distance).collect();
            for &bad in &all {
                let store = damage(store(all.iter().copied()), bad);
                let error = fetched(&store.backend, &all).expect_err("a flipped bit");
                let Damage::Unreadable(source) = &error else { panic!("{error}") };
                let text = format!("row of revision {bad}_0");
                assert!(source.to_string().contains(&text), "{source} does not say {text}");
                let sound: Vec<_> = all.iter().copied().filter(|main| *main != bad).collect();
                let read = fetched(&store.backend, &sound).expect("the others are sound");
                assert_eq!(read, sound.iter().map(|main| Some(value(*main))).collect::<Vec<_>>());
            }
        }
    }

    /// A store on a backend, whose rows leave memory when it starts anew.
    struct Lists {
        stored: Stored,
        store: Store,
    }

    const KEYS: i64 = 40;

    impl Lists {
        fn new() -> Self {
            let stored = store([]);
            Self { store: recovered(&stored.backend), stored }
        }

        /// Writes some of the keys, one after the other and not in their order.
        fn put(&mut self, places: std::ops::Range<i64>, value: &str) {
            for place in places {
                let key = Bytes::from(format!("k{:02}", place * 7 % KEYS));
                let mut txn = self.store.write();
                txn.put(&key, Bytes::from(format!("{value} of {place}")), LeaseId(0));
                txn.commit();
            }
        }

        fn flush(&mut self) {
            let mut txn = self.stored.writer.begin().expect("one writer");
            self.store.take_rows().iter().for_each(|row| txn.append(row).expect("in order"));
            txn.commit().expect("a working disk");
            self.store.rows_flushed(self.store.revision());
        }

        fn restart(&mut self) {
            self.flush();
            self.store = recovered(&self.stored.backend);
        }

        fn compact(&mut self) {
            let scheduled = self.store.compact(self.store.revision()).expect("the newest").revision;
            let scheduled = etcd_revision(RowRevision { main: scheduled, sub: 0 });
            let mut txn = self.stored.writer.begin().expect("one writer");
            txn.put(Table::Meta, SCHEDULED_COMPACT_REVISION, &scheduled).expect("written");
            txn.commit().expect("a working disk");
            loop {
                match self.store.compaction_step() {
                    CompactionStep::Idle => return,
                    CompactionStep::Working | CompactionStep::Hash(_) => {}
                    CompactionStep::Delete { dead, .. } => {
                        let mut txn = self.stored.writer.begin().expect("one writer");
                        for at in dead {
                            txn.delete_row(at).expect("deleted");
                        }
                        txn.commit().expect("a working disk");
                    }
                }
            }
        }
    }

    fn recovered(backend: &Backend) -> Store {
        Store::recover_from(Arc::new(backend.clone())).expect("whole rows").0
    }

    /// The next 13 rows at `revision`, from the `from`th key on.
    fn stretch(view: &View, from: usize, revision: Revision) -> Result<Vec<Bytes>, ReadError> {
        let range = KeyRange::From(Bytes::from(format!("k{from:02}")));
        let options = RangeOptions { revision, limit: 13, ..RangeOptions::of(range) };
        Ok(view.range(&options)?.rows)
    }

    #[test]
    fn a_list_in_stretches_sees_one_revision_until_a_compaction_ends_it() {
        let mut lists = Lists::new();
        lists.put(0..KEYS / 2, "stored");
        lists.restart();
        lists.put(KEYS / 2..KEYS, "in memory");
        let first = lists.store.view();
        let at = first.revision();
        let all = first.range(&RangeOptions::of(KeyRange::From(Bytes::new()))).expect("all").rows;
        let count = |rows: &[Bytes], text: &[u8]| {
            rows.iter().filter(|row| row.windows(text.len()).any(|part| part == text)).count()
        };
        assert_eq!((count(&all, b"stored"), count(&all, b"in memory")), (20, 20));

        assert_eq!(stretch(&first, 0, at).expect("readable"), all[..13]);
        lists.put(0..KEYS, "later");
        assert_eq!(stretch(&lists.store.view(), 13, at).expect("overwritten"), all[13..26]);
        lists.restart();
        assert_eq!(stretch(&lists.store.view(), 26, at).expect("all is stored"), all[26..39]);
        let before = lists.store.view();
        lists.compact();
        let refused = stretch(&lists.store.view(), 39, at);
        assert!(
            matches!(refused, Err(ReadError::Rejected(Rejection::Compacted { .. }))),
            "a compacted revision answers {refused:?}"
        );
        let outdated = stretch(&before, 26, at);
        assert!(
            matches!(outdated, Err(ReadError::Outdated)),
            "rows that are gone answer {outdated:?}"
        );
    }

    #[test]
    fn nothing_is_found_of_nothing() {
        let store = store([1, 2]);
        assert_eq!(fetched(&store.backend, &[]).expect("sound"), []);
        assert_eq!(fetched(&store.backend, &[9]).expect("sound"), [None]);
        assert_eq!(fetched(&store.backend, &[2]).expect("sound"), [Some(value(2))]);
    }
}
