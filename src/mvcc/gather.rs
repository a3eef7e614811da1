//! Reads all rows, in order of revision, and brings what they say into the order of keys.
//!
//! Decides how the work is shared among threads. Rows are cut into slices of revisions, which
//! whoever is free takes next; each is sorted by key at once, into a run. Runs are put together
//! by stretches of keys, so that again each stretch is one thread's. Used by `recover`.
//!
//! ```text
//!   rows      | slice | slice | slice | slice |          by revision
//!                 |       |       |       |
//!   runs       [a..z]  [a..z]  [a..z]  [a..z]            each by key
//!                 \  \____|_______|__/___/ |
//!   stretches     [a..f]   [g..m]     [n..z]             each by key, then by revision
//! ```
//!
//! A window of rows is gathered at a time, which bounds the memory that this takes.

use std::{
    ops::{ControlFlow, Range},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    encoding::RowFields,
    history::Change,
    keys::common_prefix,
    rows::{Damage, RowScan, StoredRow},
};
use crate::{
    base::thread,
    model::{Revision, RowRevision},
};

/// Rows that a slice is to have: few enough that they are sorted within a processor's cache. Tests
/// have small stores, and are to come by every border.
const SLICE_ROWS: usize = if cfg!(test) { 16 } else { 32 * 1024 };
/// Rows of a window: some 200 MB with their keys, while they are gathered.
const WINDOW_ROWS: usize = if cfg!(test) { 100 } else { 2 << 20 };
/// Key bytes after which a window ends.
const WINDOW_KEY_BYTES: usize = 256 << 20;
/// What a thread reserves for rows, and for bytes of keys. Blocks as large as this come from the
/// system and go back to it as a whole, however small those around them are.
const RESERVED_ROWS: usize = 1 << 20;
const RESERVED_KEY_BYTES: usize = 48 << 20;
/// Threads that read at one time: more would wait for memory.
const THREADS_MAX: usize = 4;
/// Stretches of keys, so many that threads end at about the same time.
const STRETCHES: usize = 64;
/// Keys of each run that are looked at to find where stretches begin.
const SAMPLES: usize = 64;

/// What a row says about its key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// Eight bytes of the key, which mostly tell it from others of its run.
    head: u64,
    /// Where the key begins in the bytes of its reader.
    key_start: usize,
    key_bytes: u32,
    /// The place within the revision, times two, plus one for a deletion.
    place: u32,
    main: i64,
    pub(super) create: i64,
    pub(super) version: i64,
    pub(super) lease: i64,
}

/// A row in its place among others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed<'w> {
    head: u64,
    pub(super) key: &'w [u8],
    pub(super) found: &'w Found,
}

/// The rows of some revisions, in runs.
#[derive(Debug)]
pub(super) struct Window {
    readers: Vec<Reader>,
    /// Where stretches end: the keys at which the next ones begin.
    ends: Vec<Vec<u8>>,
    /// The newest row.
    pub(super) last: Option<Revision>,
    /// Where the next window begins; `None` if this is the last.
    pub(super) next: Option<RowRevision>,
}

/// What one thread has read.
#[derive(Debug, Default)]
struct Reader {
    keys: Vec<u8>,
    rows: Vec<Found>,
    runs: Vec<Range<usize>>,
    last: Option<RowRevision>,
}

/// Shares out slices.
struct Cutter {
    next: Option<RowRevision>,
    /// Revisions of a slice.
    width: i64,
    rows: usize,
    key_bytes: usize,
    readers: Vec<Reader>,
    damage: Option<(RowRevision, Damage)>,
}

/// How many threads there are beside this one.
pub(super) fn other_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX) - 1
}

impl Found {
    pub(super) fn change(&self) -> Change {
        let at = RowRevision { main: Revision(self.main), sub: i64::from(self.place >> 1) };
        Change { at, tombstone: self.place & 1 == 1 }
    }

    /// The order of changes of one key.
    const fn at(&self) -> (i64, u32) {
        (self.main, self.place)
    }
}

impl Window {
    /// Reads the rows from `from` on, as many as a window takes.
    pub(super) fn gather(rows: &dyn RowScan, from: RowRevision) -> Result<Self, Damage> {
        let first_width = i64::try_from(SLICE_ROWS / 4).expect("a constant");
        let cutter = Mutex::new(Cutter {
            next: Some(from),
            width: first_width,
            rows: 0,
            key_bytes: 0,
            readers: Vec::new(),
            damage: None,
        });
        // Small stores are done with this, and never start a thread.
        let mut first = Reader::default();
        first.take_slice(rows, &cutter);
        lock(&cutter).readers.push(first);
        if lock(&cutter).wants_more() {
            thread::together("recover", other_threads(), || {
                let mut reader = Reader::reserved();
                while reader.take_slice(rows, &cutter) {}
                lock(&cutter).readers.push(reader);
            });
        }
        let cutter = cutter.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, damage)) = cutter.damage {
            return Err(damage);
        }
        let ends = ends(&cutter.readers, cutter.rows);
        let last = cutter.readers.iter().filter_map(|reader| reader.last).max();
        Ok(Self {
            readers: cutter.readers,
            ends,
            last: last.map(|row| row.main),
            next: cutter.next,
        })
    }

    /// How many stretches of keys there are.
    pub(super) const fn stretches(&self) -> usize {
        self.ends.len() + 1
    }

    /// The rows of a stretch, by key, then by revision. No key is in two stretches.
    pub(super) fn stretch(&self, number: usize) -> Vec<Placed<'_>> {
        let start = number.checked_sub(1).map(|before| self.ends[before].as_slice());
        let end = self.ends.get(number).map(Vec::as_slice);
        let parts: Vec<_> = self
            .readers
            .iter()
            .flat_map(|reader| {
                reader.runs.iter().map(move |run| (reader, &reader.rows[run.clone()]))
            })
            .map(|(reader, run)| {
                let below = |key: &[u8]| run.partition_point(|found| reader.key(found) < key);
                (reader, &run[start.map_or(0, below)..end.map_or(run.len(), below)])
            })
            .collect();
        let mut placed = Vec::with_capacity(parts.iter().map(|(_, part)| part.len()).sum());
        for (reader, part) in parts {
            placed.extend(part.iter().map(|found| Placed {
                head: 0,
                key: reader.key(found),
                found,
            }));
        }
        sort_stretch(&mut placed);
        placed
    }
}

impl Reader {
    fn reserved() -> Self {
        Self {
            keys: Vec::with_capacity(RESERVED_KEY_BYTES),
            rows: Vec::with_capacity(RESERVED_ROWS),
            ..Self::default()
        }
    }

    fn key(&self, found: &Found) -> &[u8] {
        &self.keys[found.key_start..][..found.key_bytes as usize]
    }

    /// Reads the next slice, if there is one.
    fn take_slice(&mut self, rows: &dyn RowScan, cutter: &Mutex<Cutter>) -> bool {
        let Some((from, to)) = lock(cutter).cut() else { return false };
        let (first_row, first_key_byte) = (self.rows.len(), self.keys.len());
        let mut damage = None;
        let mut behind = None;
        let scanned = rows.scan(from, &mut |row| {
            if to <= row.revision {
                behind = Some(row.revision);
                return ControlFlow::Break(());
            }
            match self.push(row) {
                Ok(()) => ControlFlow::Continue(()),
                Err(malformed) => {
                    damage = Some(malformed);
                    ControlFlow::Break(())
                }
            }
        });
        let damage = damage.or_else(|| scanned.err());
        let run = first_row..self.rows.len();
        if !run.is_empty() {
            self.sort_run(run.clone());
            self.runs.push(run.clone());
        }
        let mut cutter = lock(cutter);
        if let Some(damage) = damage {
            cutter.fail(from, damage);
            return false;
        }
        cutter.learn(run.len(), self.keys.len() - first_key_byte, behind);
        true
    }

    fn push(&mut self, row: StoredRow<'_>) -> Result<(), Damage> {
        let at = row.revision;
        // An empty row marks a revision that a restore has skipped to; as etcd has it, it belongs
        // to the empty key, which no client can name.
        let fields = RowFields::parse(row.value).ok_or(Damage::Malformed(at))?;
        let sub = u32::try_from(at.sub).ok().filter(|sub| *sub < u32::MAX / 2);
        let sub = sub.ok_or(Damage::Malformed(at))?;
        let key_bytes = u32::try_from(fields.key.len()).map_err(|_longer| Damage::Malformed(at))?;
        let key_start = self.keys.len();
        self.keys.extend_from_slice(fields.key);
        self.rows.push(Found {
            head: 0,
            key_start,
            key_bytes,
            place: sub * 2 + u32::from(row.tombstone),
            main: at.main.0,
            create: fields.create_revision,
            version: fields.version,
            lease: fields.lease,
        });
        self.last = self.last.max(Some(at));
        Ok(())
    }

    fn sort_run(&mut self, run: Range<usize>) {
        let (keys, rows) = (&self.keys, &mut self.rows[run]);
        let key = |found: &Found| &keys[found.key_start..][..found.key_bytes as usize];
        let Some(first) = rows.first().copied() else { return };
        let mut shared = key(&first);
        for found in rows.iter() {
            shared = &shared[..common_prefix(shared, key(found))];
        }
        let skip = shared.len();
        for found in rows.iter_mut() {
            found.head = head(&key(found)[skip..]);
        }
        rows.sort_unstable_by(|left, right| {
            left.head
                .cmp(&right.head)
                .then_with(|| key(left)[skip..].cmp(&key(right)[skip..]))
                .then_with(|| left.at().cmp(&right.at()))
        });
    }
}

impl Cutter {
    fn wants_more(&self) -> bool {
        let room = self.rows < WINDOW_ROWS && self.key_bytes < WINDOW_KEY_BYTES;
        room && self.next.is_some() && self.damage.is_none()
    }

    /// The next slice: rows from the first of these on, and before the second. What was cut off is
    /// read to its end, so a window has all rows before `next`.
    fn cut(&mut self) -> Option<(RowRevision, RowRevision)> {
        let from = self.next.filter(|_| self.wants_more())?;
        let to = match from.main.0.checked_add(self.width) {
            Some(main) => RowRevision { main: Revision(main), sub: 0 },
            None => RowRevision { main: Revision(i64::MAX), sub: i64::MAX },
        };
        self.next = Some(to);
        Some((from, to))
    }

    /// Learns what was in a slice, and which row is the next one `behind` it.
    fn learn(&mut self, rows: usize, key_bytes: usize, behind: Option<RowRevision>) {
        self.rows += rows;
        self.key_bytes += key_bytes;
        if rows < SLICE_ROWS / 2 {
            self.width = self.width.saturating_mul(2);
        } else if SLICE_ROWS * 2 < rows {
            self.width = (self.width / 2).max(1);
        }
        // Nothing is behind the last row, and nothing in a gap.
        self.next = match behind {
            Some(behind) => self.next.max(Some(behind)).filter(|_| self.next.is_some()),
            None => None,
        };
    }

    /// Keeps the damage that stands first, whoever came upon it.
    fn fail(&mut self, at: RowRevision, damage: Damage) {
        if self.damage.as_ref().is_none_or(|(before, _)| at < *before) {
            self.damage = Some((at, damage));
        }
    }
}

/// Picks keys that cut the rows into stretches of about the same length.
fn ends(readers: &[Reader], rows: usize) -> Vec<Vec<u8>> {
    if rows <= SLICE_ROWS {
        return Vec::new();
    }
    let mut samples: Vec<&[u8]> = Vec::new();
    for reader in readers {
        for run in &reader.runs {
            let step = (run.len() / SAMPLES).max(1);
            samples.extend(reader.rows[run.clone()].iter().step_by(step).map(|f| reader.key(f)));
        }
    }
    samples.sort_unstable();
    let mut ends: Vec<_> =
        (1..STRETCHES).map(|number| samples[samples.len() * number / STRETCHES].to_vec()).collect();
    ends.dedup();
    ends
}

fn sort_stretch(placed: &mut [Placed<'_>]) {
    let Some(mut shared) = placed.first().map(|placed| placed.key) else { return };
    for placed in placed.iter() {
        shared = &shared[..common_prefix(shared, placed.key)];
    }
    let skip = shared.len();
    for placed in placed.iter_mut() {
        placed.head = head(&placed.key[skip..]);
    }
    // Stable, because that kind of sorting makes use of the runs.
    placed.sort_by(|left, right| {
        left.head
            .cmp(&right.head)
            .then_with(|| left.key[skip..].cmp(&right.key[skip..]))
            .then_with(|| left.found.at().cmp(&right.found.at()))
    });
}

/// The first bytes of a key as a number that is in the same order as far as it goes.
fn head(key: &[u8]) -> u64 {
    match key.first_chunk() {
        Some(bytes) => u64::from_be_bytes(*bytes),
        None => {
            let mut bytes = [0; 8];
            bytes[..key.len()].copy_from_slice(key);
            u64::from_be_bytes(bytes)
        }
    }
}

fn lock(cutter: &Mutex<Cutter>) -> MutexGuard<'_, Cutter> {
    // A panic ends the process.
    cutter.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        model::{LeaseId, Row},
        mvcc::{KeyVersion, encoding::RowWriter, model_tests::MemorySource, rows::RowSource},
    };

    fn row(at: RowRevision, key: &str) -> Row {
        let version = KeyVersion { create: Revision(2), modified: at, version: 1 };
        let key = Bytes::copy_from_slice(key.as_bytes());
        let value = RowWriter::default().put(key, Bytes::new(), LeaseId(0), &version);
        Row { revision: at, tombstone: false, value }
    }

    proptest! {
        #[test]
        fn every_row_is_gathered_once_in_the_order_of_keys_whatever_the_gaps(
            steps in prop::collection::vec(
                (prop_oneof![8 => 1..4i64, 1 => 50..100i64, 1 => 1..i64::MAX / 1000], 1..20i64),
                0..60,
            ),
            keys in prop::collection::vec("(/registry/)?[ab]{0,10}", 1..30),
        ) {
            let (mut main, mut rows) = (0, Vec::new());
            for (step, subs) in steps {
                main += step;
                for sub in 0..subs {
                    let key = &keys[rows.len() * 7 % keys.len()];
                    rows.push((key.clone(), RowRevision { main: Revision(main), sub }));
                }
            }
            let source = MemorySource::default();
            source.store(rows.iter().map(|(key, at)| row(*at, key)).collect());
            let survey = source.survey().expect("readable");

            let mut gathered = Vec::new();
            let mut from = Some(RowRevision::default());
            while let Some(start) = from {
                let window = Window::gather(&*survey, start).expect("sound");
                let mut placed = Vec::new();
                let mut seen = BTreeSet::new();
                for number in 0..window.stretches() {
                    let stretch = window.stretch(number);
                    let keys: BTreeSet<_> = stretch.iter().map(|p| p.key.to_vec()).collect();
                    prop_assert!(seen.is_disjoint(&keys), "a key in two stretches");
                    seen.extend(keys);
                    for p in stretch {
                        let key = String::from_utf8(p.key.to_vec()).expect("as it was given");
                        placed.push((key, p.found.change().at));
                    }
                }
                prop_assert!(placed.is_sorted(), "{placed:?}");
                let newest = placed.iter().map(|(_, at)| at.main).max();
                prop_assert_eq!(newest, window.last);
                prop_assert!(placed.iter().all(|(_, at)| start <= *at));
                prop_assert!(window.next.is_none_or(|next| placed.iter().all(|(_, at)| *at < next)));
                gathered.extend(placed);
                from = window.next;
            }
            gathered.sort_unstable();
            rows.sort_unstable();
            prop_assert_eq!(gathered, rows);
        }
    }
}
