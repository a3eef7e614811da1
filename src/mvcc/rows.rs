//! The newest rows, in memory, and where older ones are found.
//!
//! Decides how long a row stays in memory: until it is stored, and then as long as the cache's
//! budget allows. Owned by the store, which appends; views share the chunks and read them without
//! a lock, because a row is written once and never changes.
//!
//! ```text
//!            chunk              chunk              chunk
//!   [ 5 6 6' 7 ... 90 ]  [ 91 92 ... 170 ]  [ 171 172 |  free ]
//!     ^ dropped first, if stored                      ^ a view ends here
//! ```
//!
//! Invariants
//! - R1 Rows are in strictly ascending order of revision, without a gap in what was written.
//! - R2 Every row before the first chunk is in the backend, unless compaction deleted it.

use std::{
    error::Error,
    fmt,
    ops::ControlFlow,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

use crate::model::{Revision, Row, RowRevision};

/// Rows of a chunk.
const CHUNK_ROWS: usize = 512;

/// Row bytes after which a chunk is closed before it is full, so that dropping one frees about as
/// much as needed.
const CHUNK_BYTES_MAX: usize = 512 * 1024;

/// What a row costs beside its value: its slot and the header of its allocation.
const ROW_OVERHEAD_BYTES: usize = 96;

/// What stored rows may occupy as a cache, in bytes. It serves watchers that catch up and reads of
/// what was written last; everything else is one lookup in a memory map away.
pub(super) const CACHE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Why stored rows could not be read.
#[derive(Clone, Debug)]
pub enum Damage {
    /// A row that the key index knows is not stored.
    Missing(RowRevision),
    /// A stored row is not a `mvccpb.KeyValue`.
    Malformed(RowRevision),
    /// The store refused, or a checksum does not match.
    Unreadable(Arc<dyn Error + Send + Sync>),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(at) => write!(f, "row {}.{} is missing", at.main, at.sub),
            Self::Malformed(at) => write!(f, "row {}.{} is not a key-value", at.main, at.sub),
            Self::Unreadable(_) => f.write_str("stored rows cannot be read"),
        }
    }
}

impl Error for Damage {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Missing(_) | Self::Malformed(_) => None,
            Self::Unreadable(source) => Some(&**source),
        }
    }
}

/// How far compactions have come, as stored; -1 if there was none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoredCompactions {
    pub(super) scheduled: Revision,
    pub(super) finished: Revision,
}

impl StoredCompactions {
    /// Before the first compaction.
    pub(super) const NEVER: Self = Self { scheduled: Revision(-1), finished: Revision(-1) };
}

impl Default for StoredCompactions {
    fn default() -> Self {
        Self::NEVER
    }
}

/// A row, borrowed from where it is stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoredRow<'a> {
    pub(super) revision: RowRevision,
    pub(super) tombstone: bool,
    pub(super) value: &'a [u8],
    /// The same bytes, if they can be shared.
    pub(super) shared: Option<&'a Bytes>,
}

impl StoredRow<'_> {
    /// The row's bytes, shared or copied.
    pub(super) fn to_bytes(self) -> Bytes {
        self.shared.cloned().unwrap_or_else(|| Bytes::copy_from_slice(self.value))
    }
}

impl<'a> From<&'a Row> for StoredRow<'a> {
    fn from(row: &'a Row) -> Self {
        Self {
            revision: row.revision,
            tombstone: row.tombstone,
            value: &row.value,
            shared: Some(&row.value),
        }
    }
}

/// Rows that can be read in order.
pub(super) trait RowScan: fmt::Debug + Send + Sync {
    /// Shows the rows from `from` on in ascending order, in one read transaction, until told to
    /// stop.
    fn scan(
        &self,
        from: RowRevision,
        show: &mut dyn FnMut(StoredRow<'_>) -> ControlFlow<()>,
    ) -> Result<(), Damage>;
}

/// A row to be read, and its place among those that a reader asked for. Small, because a reader
/// may ask for millions; ordered by revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wanted {
    main: i64,
    sub: u32,
    place: u32,
}

impl Wanted {
    pub(super) fn new(at: RowRevision, place: usize) -> Self {
        let small =
            "an answer has fewer rows, and a transaction fewer changes, than fit into memory";
        Self {
            main: at.main.0,
            sub: u32::try_from(at.sub).expect(small),
            place: u32::try_from(place).expect(small),
        }
    }

    /// The row.
    pub(super) fn at(self) -> RowRevision {
        RowRevision { main: Revision(self.main), sub: self.sub.into() }
    }

    pub(super) fn place(self) -> usize {
        usize::try_from(self.place).expect("it was one")
    }

    /// The same, as small as it is kept.
    pub(super) const fn small_place(self) -> u32 {
        self.place
    }
}

/// Stored rows. The backend in production, memory in tests.
pub(super) trait RowSource: RowScan {
    /// Reads the rows at `wanted`, which ascend, in one read transaction; `found` learns the place
    /// of each that is there, in any order.
    fn fetch(
        &self,
        wanted: &[Wanted],
        found: &mut dyn FnMut(usize, StoredRow<'_>),
    ) -> Result<(), Damage>;

    /// The same rows, for somebody who reads all of them once, while nobody writes.
    fn survey(&self) -> Result<Box<dyn RowScan>, Damage>;

    /// How far compactions have come by now. It is stored before the first row is deleted, so
    /// whoever asks after reading learns of every deletion that may have been in the way.
    fn compactions(&self) -> Result<StoredCompactions, Damage>;
}

/// The newest rows.
#[derive(Debug)]
pub(super) struct Ring {
    view: RingView,
    chunks: Vec<ChunkState>,
    bytes: usize,
    bytes_max: usize,
    stored: Revision,
    /// Rows of the last chunks that `take` has not given out yet.
    untaken: usize,
}

/// The rows that were there when it was made.
#[derive(Clone, Debug, Default)]
pub(super) struct RingView {
    chunks: Arc<Vec<Link>>,
    /// Rows of the last chunk; the others are as long as they are.
    end: usize,
}

/// A chunk and what finding a row asks of it, so that it is asked of no other memory.
#[derive(Clone, Debug)]
struct Link {
    first: RowRevision,
    chunk: Arc<Chunk>,
}

#[derive(Debug)]
struct Chunk {
    rows: Box<[OnceLock<Row>]>,
}

#[derive(Debug)]
struct ChunkState {
    last: Revision,
    bytes: usize,
}

impl Ring {
    /// An empty ring that keeps `bytes_max` of stored rows; everything up to `stored` is stored.
    pub(super) fn new(bytes_max: usize, stored: Revision) -> Self {
        Self {
            view: RingView::default(),
            chunks: Vec::new(),
            bytes: 0,
            bytes_max,
            stored,
            untaken: 0,
        }
    }

    pub(super) fn view(&self) -> RingView {
        self.view.clone()
    }

    pub(super) const fn rows(&self) -> &RingView {
        &self.view
    }

    #[cfg(test)]
    pub(super) const fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    pub(super) fn push(&mut self, row: Row) {
        let last = self.view.last().map(|row| row.revision);
        assert!(last < Some(row.revision), "row {:?} after {last:?}", row.revision);
        let full = self.view.end == CHUNK_ROWS
            || self.chunks.last().is_none_or(|chunk| CHUNK_BYTES_MAX <= chunk.bytes);
        if full {
            self.add_chunk(row.revision);
        }
        let state = self.chunks.last_mut().expect("added above if there was none");
        let bytes = row.value.len() + ROW_OVERHEAD_BYTES;
        state.last = row.revision.main;
        state.bytes += bytes;
        self.bytes += bytes;
        self.untaken += 1;
        let link = self.view.chunks.last().expect("as many as states");
        let written = link.chunk.rows[self.view.end].set(row);
        assert!(written.is_ok(), "slot {} was written before", self.view.end);
        self.view.end += 1;
    }

    fn add_chunk(&mut self, first: RowRevision) {
        let chunks = Arc::make_mut(&mut self.view.chunks);
        chunks.push(Link { first, chunk: Arc::new(Chunk::new()) });
        self.view.end = 0;
        self.chunks.push(ChunkState { last: Revision(0), bytes: 0 });
    }

    /// The rows that were added since the last call, in order.
    pub(super) fn take(&mut self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.view.newest_first().take(self.untaken).cloned().collect();
        rows.reverse();
        self.untaken = 0;
        rows
    }

    /// Learns that every row up to `upto` can be read from the backend.
    pub(super) fn set_stored(&mut self, upto: Revision) {
        self.stored = self.stored.max(upto);
        let mut dropped = 0;
        // The last chunk stays: it is being written.
        while self.bytes_max < self.bytes && dropped + 1 < self.chunks.len() {
            let oldest = &self.chunks[dropped];
            if self.stored < oldest.last {
                break;
            }
            self.bytes -= oldest.bytes;
            dropped += 1;
        }
        if 0 < dropped {
            self.chunks.drain(..dropped);
            Arc::make_mut(&mut self.view.chunks).drain(..dropped);
        }
    }
}

impl RingView {
    /// The row at `at`, if it is here.
    pub(super) fn get(&self, at: RowRevision) -> Option<&Row> {
        let chunk = self.chunks.partition_point(|link| link.first <= at).checked_sub(1)?;
        // Mostly every revision has one row, which tells its place.
        let distance = at.main.0 - self.chunks[chunk].first.main.0;
        let guess = usize::try_from(distance).ok().and_then(|place| self.slot(chunk, place));
        if let Some(row) = guess.filter(|row| row.revision == at) {
            return Some(row);
        }
        let rows = self.rows_of(chunk);
        let place = rows.partition_point(|row| revision(row) < Some(at));
        rows.get(place)?.get().filter(|row| row.revision == at)
    }

    /// The oldest row.
    pub(super) fn first(&self) -> Option<&Row> {
        self.slot(0, 0)
    }

    /// The row at a place of a chunk, if there are so many.
    fn slot(&self, chunk: usize, place: usize) -> Option<&Row> {
        let rows = &self.chunks.get(chunk)?.chunk.rows;
        let written = chunk + 1 < self.chunks.len() || place < self.end;
        rows.get(place).filter(|_| written)?.get()
    }

    fn last(&self) -> Option<&Row> {
        self.newest_first().next()
    }

    /// The rows at and after `from`, in ascending order.
    pub(super) fn from(&self, from: RowRevision) -> impl Iterator<Item = &Row> {
        let before = self.chunks.partition_point(|link| link.first <= from);
        let first = before.saturating_sub(1);
        (first..self.chunks.len())
            .flat_map(|chunk| self.rows_of(chunk).iter().filter_map(OnceLock::get))
            .skip_while(move |row| row.revision < from)
    }

    fn newest_first(&self) -> impl Iterator<Item = &Row> {
        (0..self.chunks.len())
            .rev()
            .flat_map(|chunk| self.rows_of(chunk).iter().rev().filter_map(OnceLock::get))
    }

    fn rows_of(&self, chunk: usize) -> &[OnceLock<Row>] {
        let rows = &self.chunks[chunk].chunk.rows;
        if chunk + 1 < self.chunks.len() {
            // A chunk that was closed early has free slots behind its rows.
            let used = rows.partition_point(|row| row.get().is_some());
            &rows[..used]
        } else {
            &rows[..self.end]
        }
    }
}

impl Chunk {
    fn new() -> Self {
        Self { rows: std::iter::repeat_with(OnceLock::new).take(CHUNK_ROWS).collect() }
    }
}

fn revision(row: &OnceLock<Row>) -> Option<RowRevision> {
    row.get().map(|row| row.revision)
}
