//! What it takes to make entries durable.
//!
//! Decides what one write to the log covers: everything that has arrived since the last one. So
//! the batch grows with the load and no timer or fixed limit is needed. Owns the WAL and the
//! directory of `.snap` files. Lives on the replica thread while the member is alone, and on the
//! log thread from the moment when there is somebody to send to while the disk works.
//!
//! A failed write or sync is final, and ends the member: what the disk holds is then unknown, and
//! a second fsync would report success for pages that are lost.

use std::{error::Error, fmt, mem, path::PathBuf};

use proto::raftpb::{Entry, HardState, Snapshot, SnapshotMetadata};

use crate::{
    base::file::Disk,
    consensus::{Batch, BatchNumber},
    model::{LogIndex, Term},
    storage::{
        snap::{self, SnapError},
        wal::{Wal, WalError, WalSnapshot},
    },
};

use super::Input;

/// What is to be made durable, in order.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every one is a batch")]
pub(super) enum LogInput {
    /// Make this durable, then report [`Input::Persisted`].
    Append(Batch),
    /// The backend is durable up to here: record it, and drop files that nobody needs.
    Snapshot {
        /// The position, with the membership and what older versions read at start.
        snapshot: Box<Snapshot>,
        /// No entry below this is needed again.
        release_to: LogIndex,
    },
}

/// Why nothing can be made durable any more.
#[derive(Debug)]
pub enum LogError {
    /// The write-ahead log could not be written or synced.
    Wal(WalError),
    /// A `.snap` file could not be written.
    Snap(SnapError),
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wal(_) => f.write_str("the write-ahead log cannot be written"),
            Self::Snap(_) => f.write_str("a snapshot file cannot be written"),
        }
    }
}

impl Error for LogError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Wal(error) => Some(error),
            Self::Snap(error) => Some(error),
        }
    }
}

/// Writes to the log.
#[derive(Debug)]
pub(super) struct LogWriter {
    /// The log itself.
    pub(super) wal: Wal,
    /// The disk of the directory of `.snap` files.
    pub(super) disk: Disk,
    /// Where `.snap` files go.
    pub(super) snap_dir: PathBuf,
    /// How many log files to keep, 0 for all.
    pub(super) files_max: usize,
    /// How many `.snap` files to keep, 0 for all.
    pub(super) snaps_max: usize,
}

/// Consecutive batches, as one write.
#[derive(Debug, Default)]
struct Write {
    entries: Vec<Entry>,
    hard_state: Option<HardState>,
    must_sync: bool,
    /// The newest batch inside.
    number: Option<BatchNumber>,
}

impl Write {
    fn add(&mut self, batch: Batch) {
        let Batch { number, hard_state, entries, snapshot: _, must_sync, messages } = batch;
        assert!(messages.is_empty(), "the replica keeps the messages of batch {number:?}");
        self.entries.extend(entries);
        self.hard_state = hard_state.or(self.hard_state.take());
        self.must_sync |= must_sync;
        self.number = Some(number);
    }
}

impl LogWriter {
    /// Makes `inputs` durable, and passes on what there is to tell the core.
    ///
    /// # Errors
    /// - [`LogError`] on the first failed write or sync; the member must stop.
    pub(super) fn carry_out(
        &mut self,
        inputs: &mut Vec<LogInput>,
        mut report: impl FnMut(Input),
    ) -> Result<(), LogError> {
        let mut write = Write::default();
        for input in inputs.drain(..) {
            match input {
                LogInput::Append(batch) => {
                    if let Some(snapshot) = &batch.snapshot {
                        // Entries and the commit index of the batch belong behind the record.
                        self.append(mem::take(&mut write), &mut report)?;
                        self.record_snapshot(snapshot)?;
                    }
                    write.add(batch);
                }
                LogInput::Snapshot { snapshot, release_to } => {
                    self.append(mem::take(&mut write), &mut report)?;
                    self.save_snapshot(&snapshot, release_to, &mut report)?;
                }
            }
        }
        self.append(write, &mut report)
    }

    fn append(&mut self, write: Write, report: &mut impl FnMut(Input)) -> Result<(), LogError> {
        let Some(number) = write.number else { return Ok(()) };
        self.wal
            .append(write.hard_state.as_ref(), &write.entries, write.must_sync)
            .map_err(LogError::Wal)?;
        report(Input::Persisted(number));
        Ok(())
    }

    fn save_snapshot(
        &mut self,
        snapshot: &Snapshot,
        release_to: LogIndex,
        report: &mut impl FnMut(Input),
    ) -> Result<(), LogError> {
        let metadata = self.record_snapshot(snapshot)?;
        self.wal.release_to(release_to, self.files_max).map_err(LogError::Wal)?;
        snap::purge(&self.disk, &self.snap_dir, self.snaps_max).map_err(LogError::Snap)?;
        report(Input::SnapshotSaved(Box::new(metadata)));
        Ok(())
    }

    /// Notes, durably, that the state at the position of `snapshot` is in a database: the member's
    /// own, or one that a leader sent.
    fn record_snapshot(&mut self, snapshot: &Snapshot) -> Result<SnapshotMetadata, LogError> {
        let metadata = snapshot.metadata.clone().expect("a snapshot has its position");
        let position = WalSnapshot {
            index: LogIndex(metadata.index.unwrap_or(0)),
            term: Term(metadata.term.unwrap_or(0)),
            conf_state: metadata.conf_state.clone(),
        };
        // The file first: a record without its file would point at nothing.
        snap::save(&self.disk, &self.snap_dir, snapshot).map_err(LogError::Snap)?;
        self.wal.append_snapshot(&position).map_err(LogError::Wal)?;
        tracing::info!("snapshot-index" = position.index.0, "saved snapshot to disk");
        Ok(metadata)
    }
}
