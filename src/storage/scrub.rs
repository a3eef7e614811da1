//! Looks for damage before somebody needs what it hit.
//!
//! Decides the pace: a slice at a time, each in a read transaction of its own, so that no old pages
//! are held. Driven by `boot`, which sets the pace; a round through a database of 2 GiB takes some
//! seconds of reading, spread as the caller likes.

use super::{
    backend::{Backend, Reader},
    error::BackendError,
    metrics::DAMAGED,
    tables::Table,
};
use crate::model::{Revision, RowRevision};

/// Stored bytes that a slice checks, about.
const SLICE_BYTES: usize = 4 << 20;

/// A walk through everything stored, again and again.
#[derive(Debug, Default)]
pub struct Scrub {
    /// The next row to check; `None` at the beginning of a round.
    next: Option<RowRevision>,
    checked: u64,
}

/// How far a walk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubProgress {
    /// There is more to check in this round.
    Slice,
    /// Everything was checked: so many rows and records. The next slice begins a new round.
    Round {
        /// Rows and records of tables.
        checked: u64,
    },
}

impl Scrub {
    /// Checks the next slice.
    ///
    /// # Errors
    /// - [`BackendError::Damaged`] for the first damage in it; the walk goes on behind it.
    /// - [`BackendError::Lmdb`] if the file cannot be read.
    pub fn step(&mut self, backend: &Backend) -> Result<ScrubProgress, BackendError> {
        let reader = backend.reader()?;
        let Some(from) = self.next else {
            self.next = Some(RowRevision::default());
            self.checked = 0;
            return self.tables(&reader);
        };
        let mut bytes = 0;
        for row in reader.row_refs(from)? {
            match row {
                Ok(row) => {
                    self.checked += 1;
                    self.next = Some(after(row.revision));
                    bytes += row.value.len();
                }
                Err(error) => {
                    self.pass(&error);
                    DAMAGED.inc();
                    return Err(error);
                }
            }
            if SLICE_BYTES <= bytes {
                return Ok(ScrubProgress::Slice);
            }
        }
        self.next = None;
        Ok(ScrubProgress::Round { checked: self.checked })
    }

    /// The small tables are one slice.
    fn tables(&mut self, reader: &Reader<'_>) -> Result<ScrubProgress, BackendError> {
        for table in Table::ALL {
            for record in reader.scan(table)? {
                record.inspect_err(|_damage| DAMAGED.inc())?;
                self.checked += 1;
            }
        }
        Ok(ScrubProgress::Slice)
    }

    /// Steps over a damaged row; without its revision, to a new round.
    fn pass(&mut self, error: &BackendError) {
        self.next = match error {
            BackendError::Damaged { place: super::Place::Row(revision), .. } => {
                Some(after(*revision))
            }
            BackendError::Damaged { .. }
            | BackendError::OutOfOrder { .. }
            | BackendError::System { .. }
            | BackendError::Lmdb { .. } => None,
        };
    }
}

const fn after(revision: RowRevision) -> RowRevision {
    match revision.sub.checked_add(1) {
        Some(sub) => RowRevision { main: revision.main, sub },
        None => RowRevision { main: Revision(revision.main.0 + 1), sub: 0 },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{model::Row, storage::BackendOptions};

    #[test]
    fn round_checks_everything_and_finds_each_damage_once() {
        let dir = tempfile::TempDir::new().unwrap();
        let options = BackendOptions::new(dir.path().join("db.lmdb"));
        let value = |main: i64| format!("the value of revision {main};").repeat(20_000);
        {
            let (_backend, mut writer) = Backend::open(&options).unwrap();
            let mut txn = writer.begin().unwrap();
            for main in 100..120 {
                let revision = RowRevision { main: Revision(main), sub: 0 };
                let row = Row { revision, tombstone: false, value: value(main).into() };
                txn.append(&row).unwrap();
            }
            txn.put(Table::Lease, b"l", b"v").unwrap();
            txn.commit().unwrap();
        }
        let file = options.dir.join("data.mdb");
        let mut bytes = fs::read(&file).unwrap();
        for main in [103, 117] {
            let pattern = value(main);
            let at = bytes.windows(64).position(|w| w == &pattern.as_bytes()[..64]).unwrap();
            bytes[at] ^= 0x80;
        }
        fs::write(&file, bytes).unwrap();

        let (backend, _writer) = Backend::open(&options).unwrap();
        let mut scrub = Scrub::default();
        for round in 0..2 {
            let mut damaged = Vec::new();
            let mut slices = 0;
            let checked = loop {
                match scrub.step(&backend) {
                    Ok(ScrubProgress::Slice) => slices += 1,
                    Ok(ScrubProgress::Round { checked }) => break checked,
                    Err(BackendError::Damaged {
                        place: crate::storage::Place::Row(row), ..
                    }) => {
                        damaged.push(row.main.0);
                    }
                    Err(error) => panic!("{error}"),
                }
            };
            assert_eq!((checked, damaged), (19, vec![103, 117]), "round {round}");
            assert!(2 <= slices, "{slices} slices for 10 MB");
        }
    }
}
