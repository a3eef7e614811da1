//! The write-ahead log: what makes a write durable, in etcd's format.
//!
//! Decides when bytes reach the disk: one write and one sync per batch. Owned by the log thread;
//! opened by `boot`.
//!
//! ```text
//!   0000000000000000-0000000000000000.wal    64 MB of zeros, written from the front
//!     | crc | metadata | snapshot 0 | entry | state | entry | entry | state | ... | 000000
//!   0000000000000001-000000000000a3f1.wal    sequence number, first entry that may be in it
//!     | crc | metadata | state | entry | ... | snapshot | ... | 00000000000000000000000000
//!   0.tmp, 1.tmp                             the next segment, in the making
//! ```
//!
//! Invariants
//! - W1 A batch is one write at the end of the last segment, and one sync if it was asked for.
//! - W2 A later entry with the same index replaces the earlier one and all after it.
//! - W3 A segment is synced before the next one is there; so only the last can be torn.
//! - W4 After a failed write or sync the log takes nothing more.
//!
//! Deliberately absent: deciding whether a batch must be synced. Raft knows that entries, votes
//! and terms must be, and that a commit index alone need not.
//!
//! Source: etcd `server/storage/wal`.

mod error;
mod files;
mod fill;
mod frame;
mod purge;
mod recover;
mod segments;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use proto::{
    etcdserverpb::Metadata,
    raftpb::{ConfState, Entry, HardState},
    walpb,
};

use self::{
    files::first_chunk,
    fill::Fill,
    frame::{Encoder, Kind},
    recover::Collector,
    segments::SegmentName,
};
use super::metrics;
use crate::{
    base::{
        clock::Clock,
        duration::Took,
        file::{Disk, File},
    },
    failpoint,
    model::{ClusterId, LogIndex, MemberId, Term, entry_index},
};

pub use error::{WalError, WalFault};

/// The size at which a segment is closed, in bytes.
///
/// Source: etcd `wal.go`, `SegmentSizeBytes`.
pub const SEGMENT_BYTES: u64 = 64_000_000;
/// A sync that takes longer is mentioned.
///
/// Source: etcd `wal.go`, `warnSyncDuration`.
const SYNC_PATIENCE: Duration = Duration::from_secs(1);
/// What the encoder keeps of its buffer after a large batch, in bytes.
const BUFFER_BYTES_KEPT: usize = 4 << 20;

/// Where and how to keep the log.
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// The log's directory: `<data-dir>/member/wal` or `--wal-dir`.
    pub dir: PathBuf,
    /// Whether to sync at all; off by `--unsafe-no-fsync`. Default: on.
    pub fsync: bool,
    /// When to begin a new segment, in bytes. Default: [`SEGMENT_BYTES`].
    pub segment_bytes: u64,
    /// Whether segments are made and filled with zeros in the background, or only reserved when they
    /// are needed. Default: on.
    pub zero_fill: bool,
    /// The files' disk.
    pub disk: Disk,
}

impl WalOptions {
    /// The usual options for a log in `dir`.
    #[must_use]
    pub const fn new(dir: PathBuf) -> Self {
        let disk = Disk::system();
        Self { dir, fsync: true, segment_bytes: SEGMENT_BYTES, zero_fill: true, disk }
    }
}

/// A point from which the log can be replayed: the state up to there is elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalSnapshot {
    /// The last entry that the state holds; 0 for the empty state.
    pub index: LogIndex,
    /// The term of that entry.
    pub term: Term,
    /// The membership there; absent for the empty state.
    pub conf_state: Option<ConfState>,
}

/// What a log says.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovered {
    /// Whose log it is.
    pub member: MemberId,
    /// Of which cluster.
    pub cluster: ClusterId,
    /// The last hard state.
    pub hard_state: HardState,
    /// The entries after the snapshot, without gaps, the last write of each index.
    pub entries: Vec<Entry>,
    /// The snapshot that was asked for, with the membership from its record.
    pub snapshot: WalSnapshot,
}

/// An open log, ready to be appended to.
#[derive(Debug)]
pub struct Wal {
    options: WalOptions,
    owner: Metadata,
    /// The last hard state; repeated at the beginning of each segment.
    state: HardState,
    encoder: Encoder,
    /// Segments that a recovery may need, locked; the last is written to.
    held: VecDeque<Segment>,
    /// Segments from before, oldest first.
    released: VecDeque<SegmentName>,
    /// The end of the last record in the last segment.
    offset: u64,
    /// The last entry or snapshot that was written.
    last: LogIndex,
    tail_fill: Option<Fill>,
    next: Option<Fill>,
    clock: Clock,
    failed: bool,
}

#[derive(Debug)]
struct Segment {
    name: SegmentName,
    file: Arc<File>,
}

impl Wal {
    /// Whether `dir` holds a log.
    #[must_use]
    pub fn exists(dir: &Path) -> bool {
        Self::exists_on(&Disk::system(), dir)
    }

    fn exists_on(disk: &Disk, dir: &Path) -> bool {
        let names = disk.list(dir).unwrap_or_default();
        names.iter().any(|name| SegmentName::parse(name).is_some())
    }

    /// Begins the log of a member, without entries.
    ///
    /// # Errors
    /// As [`Wal::create_with`].
    pub fn create(
        options: &WalOptions,
        member: MemberId,
        cluster: ClusterId,
    ) -> Result<Self, WalError> {
        Self::create_with(options, member, cluster, &HardState::default(), &[])
    }

    /// Begins the log of a member with `entries`, then `hard_state`, which fit a segment: it appears
    /// durably with all of them, or not at all.
    ///
    /// # Errors
    /// - [`WalError::Exists`] if there is one.
    /// - [`WalError::System`] if the files cannot be made.
    pub fn create_with(
        options: &WalOptions,
        member: MemberId,
        cluster: ClusterId,
        hard_state: &HardState,
        entries: &[Entry],
    ) -> Result<Self, WalError> {
        let (dir, disk) = (&options.dir, &options.disk);
        if Self::exists_on(disk, dir) {
            return Err(WalError::Exists { dir: dir.clone() });
        }
        let mut temporary = dir.clone().into_os_string();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        let failed = |source| WalError::System { file: temporary.clone(), source };
        files::empty_directory(disk, &temporary).map_err(failed)?;

        let name = SegmentName { sequence: 0, first: LogIndex(0) };
        let path = segments::path(&temporary, name);
        let file = fill::reserve(disk, &path, options.segment_bytes).map_err(failed)?;
        let owner = Metadata { node_id: Some(member.0), cluster_id: Some(cluster.0) };
        let mut encoder = Encoder::new(0);
        encoder.checksum();
        encoder.message(Kind::Metadata, &owner);
        encoder.message(Kind::Snapshot, &wire_snapshot(&WalSnapshot::default()));
        entries.iter().for_each(|entry| encoder.message(Kind::Entry, entry));
        if *hard_state != HardState::default() {
            encoder.message(Kind::State, hard_state);
        }
        if options.zero_fill {
            file.write_at(&vec![0; first_chunk(options)], 0).map_err(failed)?;
        }
        file.write_at(&encoder.buffer, 0).map_err(failed)?;
        if options.fsync {
            file.sync().map_err(failed)?;
            disk.sync_directory(&temporary).map_err(failed)?;
        }
        files::publish(disk, &temporary, dir)
            .map_err(|source| WalError::System { file: dir.clone(), source })?;

        let offset = u64::try_from(encoder.buffer.len()).expect("a few records");
        encoder.buffer.clear();
        let segment = Segment { name, file: Arc::new(file) };
        let mut wal = Self {
            options: options.clone(),
            owner,
            state: *hard_state,
            encoder,
            held: VecDeque::from([segment]),
            released: VecDeque::new(),
            offset,
            last: entries.last().map_or(LogIndex(0), entry_index),
            tail_fill: None,
            next: None,
            clock: Clock::system(),
            failed: false,
        };
        let filled = u64::try_from(first_chunk(options)).expect("a chunk is small");
        wal.fill_tail(filled)?;
        Ok(wal)
    }

    /// The snapshots that a recovery can start from, oldest first: those up to the commit index.
    ///
    /// # Errors
    /// - [`WalError::Missing`] without a log, [`WalError::Damaged`] or
    ///   [`WalError::MissingSegment`] if it is not whole.
    pub fn snapshots(dir: &Path) -> Result<Vec<WalSnapshot>, WalError> {
        recover::snapshots(&Disk::system(), dir)
    }

    /// The newest of them that is not after `upto`; `None` if there is none. Reads no more of the
    /// log than it takes to find it.
    ///
    /// # Errors
    /// As [`Wal::snapshots`], for what was read.
    pub fn newest_snapshot(
        options: &WalOptions,
        upto: LogIndex,
    ) -> Result<Option<WalSnapshot>, WalError> {
        recover::newest_snapshot(&options.disk, &options.dir, upto)
    }

    /// Reads the log after `from` and changes nothing; a torn tail is passed over.
    ///
    /// # Errors
    /// As [`Wal::open`], but for the lock.
    pub fn read(dir: &Path, from: &WalSnapshot) -> Result<Recovered, WalError> {
        let disk = Disk::system();
        let all = segments::list(&disk, dir)?;
        let skipped = segments::select(dir, &all, from.index)?;
        let mut collector = Collector::new(from);
        recover::walk(&disk, dir, &all[skipped..], |record, at| collector.add(record, at))?;
        collector.finish(dir, &segments::path(dir, all[all.len() - 1]))
    }

    /// Opens the log to go on after `from`. A torn tail, which was never acknowledged, is cut off;
    /// the segment as it was stays beside it with the suffix `.broken`.
    ///
    /// # Errors
    /// - [`WalError::Missing`], [`WalError::Truncated`], [`WalError::MissingSegment`] if there is
    ///   not enough of it.
    /// - [`WalError::Locked`] if another process has it.
    /// - [`WalError::Damaged`] if synced bytes are not what was written.
    /// - [`WalError::SnapshotUnknown`] if it does not know `from`.
    /// - [`WalError::System`] if the files cannot be used.
    pub fn open(options: &WalOptions, from: &WalSnapshot) -> Result<(Self, Recovered), WalError> {
        let (dir, disk) = (&options.dir, &options.disk);
        let all = segments::list(disk, dir)?;
        let skipped = segments::select(dir, &all, from.index)?;
        let needed = &all[skipped..];
        let held = needed.iter().map(|name| files::hold(disk, dir, *name));
        let held = held.collect::<Result<VecDeque<_>, _>>()?;

        let mut collector = Collector::new(from);
        let tail = recover::walk(disk, dir, needed, |record, at| collector.add(record, at))?;
        let last = collector.last;
        let segment = held.back().expect("a selection is never empty");
        let path = segments::path(dir, segment.name);
        let recovered = collector.finish(dir, &path)?;
        let offset = u64::try_from(tail.offset).expect("offsets fit");
        let prepared = files::prepare_tail(options, &segment.file, &path, offset, tail.torn);
        let filled = prepared.map_err(|source| WalError::System { file: path, source })?;

        let mut wal = Self {
            options: options.clone(),
            owner: Metadata {
                node_id: Some(recovered.member.0),
                cluster_id: Some(recovered.cluster.0),
            },
            state: recovered.hard_state,
            encoder: Encoder::new(tail.crc),
            held,
            released: all[..skipped].iter().copied().collect(),
            offset,
            last,
            tail_fill: None,
            next: None,
            clock: Clock::system(),
            failed: false,
        };
        wal.fill_tail(filled)?;
        Ok((wal, recovered))
    }

    /// Writes a batch: `entries`, then `hard_state`. With `sync` both are durable afterwards;
    /// without, they are durable after the next batch with it.
    ///
    /// # Errors
    /// - [`WalError::System`] if a write or a sync failed; the member stops.
    pub fn append(
        &mut self,
        hard_state: Option<&HardState>,
        entries: &[Entry],
        sync: bool,
    ) -> Result<(), WalError> {
        let hard_state = hard_state.filter(|state| **state != HardState::default());
        if hard_state.is_none() && entries.is_empty() {
            return Ok(());
        }
        self.usable()?;
        for entry in entries {
            self.encoder.message(Kind::Entry, entry);
            self.last = entry_index(entry);
        }
        if let Some(state) = hard_state {
            self.encoder.message(Kind::State, state);
            self.state = *state;
        }
        self.write()?;
        if self.options.segment_bytes <= self.offset {
            return self.cut();
        }
        if sync {
            failpoint!("walBeforeSync");
            self.sync()?;
            failpoint!("walAfterSync");
        }
        self.prepare_next()
    }

    /// Notes, durably, that the state up to `snapshot` is elsewhere.
    ///
    /// # Errors
    /// - [`WalError::System`] if a write or a sync failed; the member stops.
    pub fn append_snapshot(&mut self, snapshot: &WalSnapshot) -> Result<(), WalError> {
        assert!(
            snapshot.index == LogIndex(0) || snapshot.conf_state.is_some(),
            "snapshot at {} without its membership",
            snapshot.index
        );
        self.usable()?;
        self.encoder.message(Kind::Snapshot, &wire_snapshot(snapshot));
        self.last = self.last.max(snapshot.index);
        self.write()?;
        self.sync()
    }

    /// Lets go of the segments that only hold what a recovery from `index` does not need, and
    /// removes the oldest of those that were let go until `keep_files_max` segments are left in
    /// all (0: removes none).
    ///
    /// # Errors
    /// - [`WalError::System`] if a file cannot be removed.
    pub fn release_to(&mut self, index: LogIndex, keep_files_max: usize) -> Result<(), WalError> {
        // The segment before the first one at or after `index` holds what leads there.
        let later = self.held.iter().position(|segment| index <= segment.name.first);
        let needless = later.unwrap_or(self.held.len()).saturating_sub(1);
        self.released.extend(self.held.drain(..needless).map(|segment| segment.name));
        while 0 < keep_files_max && keep_files_max < self.held.len() + self.released.len() {
            let Some(oldest) = self.released.front() else { break };
            let path = segments::path(&self.options.dir, *oldest);
            let disk = &self.options.disk;
            // A log that is not filled in the background starts no other threads either.
            let removed =
                if self.options.zero_fill { purge::purge(disk, &path) } else { disk.remove(&path) };
            removed.map_err(|source| WalError::System { file: path.clone(), source })?;
            tracing::info!(path = %path.display(), "purged");
            self.released.pop_front();
        }
        Ok(())
    }

    /// Writes what the encoder holds (W1).
    fn write(&mut self) -> Result<(), WalError> {
        let bytes = u64::try_from(self.encoder.buffer.len()).expect("lengths fit");
        if let Some(fill) = &mut self.tail_fill {
            fill.make_way(self.offset + bytes);
        }
        let start = self.clock.now();
        let written = self.tail().write_at(&self.encoder.buffer, self.offset);
        self.check(written)?;
        metrics::WAL_WRITE_SECONDS.observe((self.clock.now() - start).as_secs_f64());
        metrics::WAL_WRITE_BYTES.add(i64::try_from(bytes).expect("lengths fit"));
        self.offset += bytes;
        self.encoder.buffer.clear();
        self.encoder.buffer.shrink_to(BUFFER_BYTES_KEPT);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), WalError> {
        if !self.options.fsync {
            return Ok(());
        }
        let start = self.clock.now();
        let synced = self.tail().sync();
        self.check(synced)?;
        let took = self.clock.now() - start;
        metrics::WAL_FSYNC_SECONDS.observe(took.as_secs_f64());
        if SYNC_PATIENCE < took {
            let expected = Took(SYNC_PATIENCE);
            tracing::warn!(took = %Took(took), "expected-duration" = %expected, "slow fdatasync");
        }
        Ok(())
    }

    /// Closes the last segment and begins the next (W3).
    fn cut(&mut self) -> Result<(), WalError> {
        // A filler writes zeros above the end, which would bring back the length.
        self.tail_fill = None;
        let cut = self.tail().set_len(self.offset);
        self.check(cut)?;
        self.sync()?;

        let sequence = self.held.back().expect("one segment is open").name.sequence + 1;
        let name = SegmentName { sequence, first: self.last.next() };
        let temporary = self.next_path(sequence);
        let made = self.take_next(&temporary);
        let file = self.check(made)?;
        self.encoder.checksum();
        let Self { encoder, owner, state, .. } = self;
        encoder.message(Kind::Metadata, owner);
        if *state != HardState::default() {
            encoder.message(Kind::State, state);
        }
        self.held.push_back(Segment { name, file });
        self.offset = 0;
        self.write()?;
        self.sync()?;
        let path = segments::path(&self.options.dir, name);
        let renamed = self.options.disk.rename(&temporary, &path);
        self.check(renamed)?;
        let named = self.options.disk.sync_directory(&self.options.dir);
        self.check(named)?;
        tracing::info!(path = %path.display(), "created a new WAL segment");
        Ok(())
    }

    /// The prepared segment, or one that is made now.
    fn take_next(&mut self, temporary: &Path) -> io::Result<Arc<File>> {
        if let Some(fill) = self.next.take() {
            match fill.take() {
                Ok(file) => return Ok(file),
                Err(error) => {
                    tracing::warn!(%error, "could not prepare a WAL segment ahead of time");
                }
            }
        }
        let Self { options, .. } = self;
        fill::reserve(&options.disk, temporary, options.segment_bytes).map(Arc::new)
    }

    /// Begins to make the next segment once a quarter of this one is full: a member that writes
    /// little never pays for it, one that writes much has it whole before this one is full.
    fn prepare_next(&mut self) -> Result<(), WalError> {
        let quarter = self.options.segment_bytes / 4;
        if let Some(next) = &self.next {
            next.keep_ahead_of(2 * self.offset.saturating_sub(quarter));
            return Ok(());
        }
        if !self.options.zero_fill || self.offset < quarter {
            return Ok(());
        }
        let sequence = self.held.back().expect("one segment is open").name.sequence + 1;
        let path = self.next_path(sequence);
        let Self { options, .. } = self;
        let next = Fill::create(options.disk.clone(), path, options.segment_bytes);
        self.next = Some(self.check(next)?);
        Ok(())
    }

    fn fill_tail(&mut self, from: u64) -> Result<(), WalError> {
        let to = self.options.segment_bytes;
        if self.options.zero_fill && from < to {
            let fill = Fill::start(Arc::clone(self.tail()), from, to);
            self.tail_fill = Some(self.check(fill)?);
        }
        Ok(())
    }

    /// Two names in turn, so that the next one is never the one that was just renamed.
    fn next_path(&self, sequence: u64) -> PathBuf {
        self.options.dir.join(format!("{}.tmp", sequence % 2))
    }

    fn tail(&self) -> &Arc<File> {
        &self.held.back().expect("one segment is open").file
    }

    /// Refuses everything after a failure (W4).
    fn usable(&self) -> Result<(), WalError> {
        if self.failed { Err(self.failure(io::Error::other("it failed before"))) } else { Ok(()) }
    }

    /// Closes the log for good after a failure (W4).
    fn check<T>(&mut self, result: io::Result<T>) -> Result<T, WalError> {
        result.map_err(|source| {
            self.failed = true;
            self.failure(source)
        })
    }

    fn failure(&self, source: io::Error) -> WalError {
        let name = self.held.back().expect("one segment is open").name;
        WalError::System { file: segments::path(&self.options.dir, name), source }
    }
}

fn wire_snapshot(snapshot: &WalSnapshot) -> walpb::Snapshot {
    walpb::Snapshot {
        index: Some(snapshot.index.0),
        term: Some(snapshot.term.0),
        conf_state: snapshot.conf_state.clone(),
    }
}
