//! The key space at one moment: what every read is answered from.
//!
//! Decides nothing about visibility beyond what it was made with. A view never changes, may be
//! used by any number of threads at once, and costs a few references; the store makes one for
//! each batch that it applied.
//!
//! A row is looked up in the view's own part of the ring first, then in the backend. One that is
//! in neither was dropped by a compaction that the view does not know yet, which makes the view
//! outdated; or it is lost, which is damage.

use std::{fmt, ops::ControlFlow, sync::Arc};

use bytes::Bytes;

use super::{
    encoding::Block,
    hash::Hashes,
    index::KeyIndex,
    rows::{Damage, RingView, RowSource, StoredRow, Wanted},
    version::KeyVersion,
};
use crate::model::{KeyRange, Rejection, Revision, RowRevision};

/// Why a read was not answered.
#[derive(Clone, Debug)]
pub enum ReadError {
    /// The revision is compacted or in the future.
    Rejected(Rejection),
    /// A compaction that is newer than the view has deleted rows that it needs. The same question
    /// to a newer view has an answer.
    Outdated,
    /// Stored rows are lost or broken. Never served, and a reason to stop the member.
    Damaged(Damage),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(rejection) => write!(f, "the read was refused: {rejection:?}"),
            Self::Outdated => f.write_str("the view is older than the newest compaction"),
            Self::Damaged(_) => f.write_str("stored history is damaged"),
        }
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Rejected(_) | Self::Outdated => None,
            Self::Damaged(damage) => Some(damage),
        }
    }
}

impl From<Damage> for ReadError {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}

/// The key space at one moment.
#[derive(Clone, Debug)]
pub struct View {
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
    pub(super) index: KeyIndex,
    pub(super) ring: RingView,
    pub(super) source: Arc<dyn RowSource>,
    pub(super) hashes: Arc<Hashes>,
}

impl View {
    /// The newest revision; 1 if nothing was ever written.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// The oldest revision that can be read; -1 if nothing was ever compacted.
    #[must_use]
    pub const fn compacted(&self) -> Revision {
        self.compacted
    }

    /// How many keys are live.
    #[must_use]
    pub const fn keys(&self) -> usize {
        self.index.live()
    }

    /// The newest version of `key`, if it is live.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<KeyVersion> {
        self.index.get(key)?.newest()
    }

    /// How many keys of `range` are live at the newest revision.
    #[must_use]
    pub fn count(&self, range: &KeyRange) -> usize {
        self.index.count(range, self.revision)
    }

    /// The row at `at`: a `mvccpb.KeyValue` in wire form. `None` if there is none: never was, or
    /// compacted away.
    ///
    /// # Errors
    /// - [`ReadError::Damaged`] if it cannot be read.
    pub fn row(&self, at: RowRevision) -> Result<Option<Bytes>, ReadError> {
        let mut rows = [None];
        let stored = self.take_from_memory(&[at], &mut rows);
        self.fetch(stored, &mut rows)?;
        let [row] = rows;
        Ok(row)
    }

    /// The rows at `wanted`, all of which the view's index knows, in the same order.
    pub(super) fn rows(&self, wanted: Vec<RowRevision>) -> Result<Vec<Bytes>, ReadError> {
        let mut rows = vec![None; wanted.len()];
        let stored = self.take_from_memory(&wanted, &mut rows);
        // The answer may be large, and what was asked is known from the rest.
        drop(wanted);
        let stored = self.fetch(stored, &mut rows)?;
        if let Some(missing) = stored.into_iter().find(|wanted| rows[wanted.place()].is_none()) {
            self.check_outdated()?;
            return Err(Damage::Missing(missing.at()).into());
        }
        Ok(rows.into_iter().map(|row| row.expect("none is missing")).collect())
    }

    /// Fails if a newer compaction than the view knows may have deleted rows by now.
    pub(super) fn check_outdated(&self) -> Result<(), ReadError> {
        let scheduled = self.source.compactions()?.scheduled;
        if self.compacted < scheduled { Err(ReadError::Outdated) } else { Ok(()) }
    }

    /// The revision that a reader who asks for `asked` reads: 0 and below stand for the newest.
    pub(super) fn readable(&self, asked: Revision) -> Result<Revision, ReadError> {
        let (current, compacted) = (self.revision, self.compacted);
        let at = if asked <= Revision(0) { current } else { asked };
        if current < at {
            let rejection = Rejection::FutureRevision { requested: asked, current };
            return Err(ReadError::Rejected(rejection));
        }
        if at < compacted {
            let rejection = Rejection::Compacted { requested: asked, compacted };
            return Err(ReadError::Rejected(rejection));
        }
        Ok(at)
    }

    /// Shows every row from `from` on in ascending order, those of the backend and then those of
    /// the ring, until told to stop. Returns whether the backend was asked, where a compaction
    /// may have been.
    pub(super) fn scan(
        &self,
        from: RowRevision,
        show: &mut dyn FnMut(StoredRow<'_>) -> ControlFlow<()>,
    ) -> Result<bool, ReadError> {
        let in_memory = self.ring.first().map(|row| row.revision);
        let mut stopped = false;
        let stored = in_memory.is_none_or(|first| from < first);
        if stored {
            self.source.scan(from, &mut |row| {
                if in_memory.is_some_and(|first| first <= row.revision)
                    || self.revision < row.revision.main
                {
                    return ControlFlow::Break(());
                }
                let flow = show(row);
                stopped = flow.is_break();
                flow
            })?;
        }
        if !stopped {
            let _all_or_stopped = self.ring.from(from).try_for_each(|row| show(row.into()));
        }
        Ok(stored)
    }

    /// Takes what of `wanted` is in memory. Returns what is not.
    fn take_from_memory(&self, wanted: &[RowRevision], rows: &mut [Option<Bytes>]) -> Vec<Wanted> {
        let first = self.ring.first().map(|row| row.revision);
        let in_memory = |at: RowRevision| {
            if first.is_some_and(|first| first <= at) { self.ring.get(at) } else { None }
        };
        let mut stored = Vec::new();
        for (place, &at) in wanted.iter().enumerate() {
            match in_memory(at) {
                Some(row) => rows[place] = Some(row.value.clone()),
                None => {
                    if stored.is_empty() {
                        stored.reserve_exact(wanted.len() - place);
                    }
                    stored.push(Wanted::new(at, place));
                }
            }
        }
        stored
    }

    /// Reads what is in the backend.
    fn fetch(
        &self,
        mut stored: Vec<Wanted>,
        rows: &mut [Option<Bytes>],
    ) -> Result<Vec<Wanted>, ReadError> {
        if !stored.is_empty() {
            // The order of the backend, so that its pages are visited once.
            stored.sort_unstable();
            let mut block = Block::new(stored.len());
            self.source.fetch(&stored, &mut |place, row| {
                let copy = block.row(row.value.len(), |out| out.extend_from_slice(row.value));
                rows[place] = Some(copy);
            })?;
        }
        Ok(stored)
    }
}
