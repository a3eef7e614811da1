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

use super::{Input, snapshot::position};

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
    /// The newest snapshot in the log.
    pub(super) recorded: LogIndex,
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
        // A leader's snapshot may have overtaken it. The last record in the log must be the newest,
        // as entries between the two are not there.
        if position(snapshot) <= self.recorded {
            return Ok(());
        }
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
        let recorded = WalSnapshot {
            index: LogIndex(metadata.index.unwrap_or(0)),
            term: Term(metadata.term.unwrap_or(0)),
            conf_state: metadata.conf_state.clone(),
        };
        // The file first: a record without its file would point at nothing.
        snap::save(&self.disk, &self.snap_dir, snapshot).map_err(LogError::Snap)?;
        self.wal.append_snapshot(&recorded).map_err(LogError::Wal)?;
        self.recorded = recorded.index;
        tracing::info!("snapshot-index" = recorded.index.0, "saved snapshot to disk");
        Ok(metadata)
    }
}

#[cfg(test)]
mod tests {
    use proto::raftpb::SnapshotMetadata;

    use super::*;
    use crate::{
        model::{ClusterId, MemberId, new_entry},
        storage::wal::WalOptions,
    };

    fn snapshot(index: u64) -> Snapshot {
        let conf_state = proto::raftpb::ConfState { voters: vec![1], ..Default::default() };
        let metadata =
            SnapshotMetadata { conf_state: Some(conf_state), index: Some(index), term: Some(1) };
        Snapshot { data: None, metadata: Some(metadata) }
    }

    fn batch(number: u64, commit: u64, index: u64, snapshot: Option<Snapshot>) -> LogInput {
        let kind = proto::raftpb::EntryType::EntryNormal;
        let entry = new_entry(kind, Term(1), LogIndex(index), "x".into());
        let is_snapshot = snapshot.is_some();
        LogInput::Append(Batch {
            number: BatchNumber(number),
            hard_state: Some(HardState { term: Some(1), vote: Some(1), commit: Some(commit) }),
            entries: if is_snapshot { Vec::new() } else { vec![entry] },
            snapshot,
            must_sync: true,
            messages: Vec::new(),
        })
    }

    #[test]
    fn own_snapshot_that_a_received_one_has_overtaken_is_not_recorded() {
        let disk = Disk::memory();
        let snap_dir = PathBuf::from("/snap");
        disk.create_directory(&snap_dir).unwrap();
        let options = WalOptions {
            disk: disk.clone(),
            zero_fill: false,
            segment_bytes: 1 << 16,
            ..WalOptions::new(PathBuf::from("/wal"))
        };
        let wal = Wal::create(&options, MemberId(1), ClusterId(2)).unwrap();
        let recorded = LogIndex(0);
        let mut writer = LogWriter { wal, disk, snap_dir, files_max: 0, snaps_max: 0, recorded };
        let own = LogInput::Snapshot { snapshot: Box::new(snapshot(2)), release_to: LogIndex(0) };
        let mut work = vec![
            batch(1, 1, 1, None),
            batch(2, 1, 2, None),
            batch(3, 20, 0, Some(snapshot(20))),
            own,
            batch(4, 20, 21, None),
        ];
        let mut reports = Vec::new();
        writer.carry_out(&mut work, |report| reports.push(report)).unwrap();
        assert!(matches!(reports.last(), Some(Input::Persisted(BatchNumber(4)))), "{reports:?}");
        drop(writer);
        let newest = Wal::newest_snapshot(&options, LogIndex(u64::MAX)).unwrap().unwrap();
        assert_eq!(newest.index, LogIndex(20));
        let (_, recovered) = Wal::open(&options, &newest).unwrap();
        assert_eq!(recovered.entries.len(), 1, "{recovered:?}");
    }
}
