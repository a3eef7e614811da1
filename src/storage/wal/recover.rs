//! Reads segments back and tells a torn tail from damage.
//!
//! Decides what a crash may have done. A batch is written by one call and then synced, so only
//! what follows the last sync may be missing, in any of its sectors; everything before is there or
//! damaged. Used when a log is opened.
//!
//! A record that does not read back is *torn*, and cut off with everything after it, if all holds:
//! - it stands in the last segment (a segment is synced before the next one begins);
//! - it is cut short, or one of its sectors is all zeros, or nothing of it is there;
//! - nothing that follows proves that it was synced. Entries are synced at once, and a hard state
//!   closes its batch; so an entry, a hard state and another entry, in this order, show that the
//!   first entry's batch was synced before the second was written, even if the first entry is only
//!   known by the gap that it left. So does anything after a snapshot record.
//!
//! Source: etcd `server/storage/wal/{decoder,wal,repair}.go` for all but the last condition: etcd
//! cuts there even if whole records follow.

use std::path::Path;

use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::Metadata,
    raftpb::{Entry, HardState},
    walpb,
};

use super::{
    Recovered, WalError, WalFault, WalSnapshot,
    frame::{self, Frame, Kind, LENGTH_BYTES, Record},
    segments::{self, SegmentName},
};
use crate::{
    base::file::Disk,
    model::{ClusterId, LogIndex, MemberId, Term, entry_index},
};

/// What a disk writes as a whole or not at all, in bytes.
///
/// Source: etcd `decoder.go`, `minSectorSize`.
const SECTOR_BYTES: usize = 512;

/// Where the log goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    /// The end of the last record in the last segment.
    pub(super) offset: usize,
    /// The checksum of the log up to there.
    pub(super) crc: u32,
    /// Whether something that was never synced follows.
    pub(super) torn: bool,
}

/// A record's place, for errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    path: &'a Path,
    offset: usize,
    segment: &'a Bytes,
}

impl At<'_> {
    fn damaged(self, fault: WalFault) -> WalError {
        let offset = u64::try_from(self.offset).expect("offsets fit");
        damaged(self.path, offset, fault)
    }

    /// A record's data, sharing the segment's bytes.
    fn share(self, record: &Record<'_>) -> Bytes {
        self.segment.slice_ref(record.data)
    }
}

fn damaged(file: &Path, offset: u64, fault: WalFault) -> WalError {
    WalError::Damaged { file: file.to_owned(), offset, fault }
}

/// Hands every record of `segments` to `visit`, in order.
pub(super) fn walk(
    disk: &Disk,
    dir: &Path,
    segments: &[SegmentName],
    mut visit: impl FnMut(Record<'_>, At<'_>) -> Result<(), WalError>,
) -> Result<Tail, WalError> {
    let mut tail = Tail { offset: 0, crc: 0, torn: false };
    let mut seeded = false;
    let mut last_entry = None;
    for (position, segment) in segments.iter().enumerate() {
        let path = segments::path(dir, *segment);
        let bytes = disk.read(&path);
        let bytes = bytes.map_err(|source| WalError::System { file: path.clone(), source })?;
        let bytes = Bytes::from(bytes);
        let last = position + 1 == segments.len();
        tail.offset = 0;
        let end = loop {
            let at = At { path: &path, offset: tail.offset, segment: &bytes };
            let record = match frame::read(&bytes[tail.offset..]) {
                Frame::Record(record) => record,
                Frame::End => break None,
                Frame::CutShort => break Some((at, WalFault::CutShort, &bytes[tail.offset..])),
                Frame::Malformed(_) => break Some((at, WalFault::Shape, &bytes[tail.offset..])),
            };
            let crc = match record.kind {
                // The checksum of what stood before the first segment is taken on trust.
                Kind::Crc if !seeded => record.crc,
                Kind::Crc => tail.crc,
                Kind::Metadata | Kind::Entry | Kind::State | Kind::Snapshot => {
                    crc32c::crc32c_append(tail.crc, record.data)
                }
            };
            if crc != record.crc {
                let frame = &bytes[tail.offset..tail.offset + record.bytes];
                break Some((at, WalFault::Checksum, frame));
            }
            (tail.crc, seeded) = (crc, true);
            tail.offset += record.bytes;
            if record.kind == Kind::Entry {
                last_entry = Some(at.share(&record));
            }
            visit(record, at)?;
        };
        tail.torn = match end {
            None => last && !all_zeros(&bytes[tail.offset..]),
            Some((at, fault, frame)) if last && may_be_torn(at, &fault, frame) => true,
            Some((at, fault, _)) => return Err(at.damaged(fault)),
        };
        let mut reached = || last_entry.take().and_then(index_of).unwrap_or_default();
        if tail.torn && proves_sync(&bytes[tail.offset..], reached()) {
            let at = At { path: &path, offset: tail.offset, segment: &bytes };
            return Err(at.damaged(WalFault::Hole));
        }
    }
    Ok(tail)
}

/// Whether a crash can have left the frame at the beginning of `bytes` like this.
fn may_be_torn(at: At<'_>, fault: &WalFault, bytes: &[u8]) -> bool {
    let frame = match (fault, frame::read(bytes)) {
        (WalFault::CutShort, _) => return true,
        (_, Frame::Malformed(frame_bytes)) => &bytes[LENGTH_BYTES..frame_bytes],
        _ => &bytes[LENGTH_BYTES..],
    };
    let first = at.offset + LENGTH_BYTES;
    let mut start = 0;
    while start < frame.len() {
        let room = SECTOR_BYTES - (first + start) % SECTOR_BYTES;
        let end = frame.len().min(start + room);
        if all_zeros(&frame[start..end]) {
            return true;
        }
        start = end;
    }
    false
}

fn all_zeros(bytes: &[u8]) -> bool {
    // By blocks, which the compiler turns into wide instructions.
    bytes.chunks(256).all(|block| block.iter().fold(0, |sum, byte| sum | byte) == 0)
}

/// Whether records in `bytes` show that everything before them was synced; `reached` is the last
/// entry before them.
fn proves_sync(bytes: &[u8], reached: LogIndex) -> bool {
    let mut proof = Proof { reached, ..Proof::default() };
    let mut at = 0;
    while at + LENGTH_BYTES < bytes.len() {
        let Some(mut record) = record_at(bytes, at) else {
            at += 8;
            continue;
        };
        proof.closed_before = false;
        // A record is believed when the next one continues its checksum.
        let mut believed = false;
        loop {
            let next = at + record.bytes;
            let following = record_at(bytes, next).filter(|following| {
                crc32c::crc32c_append(record.crc, following.data) == following.crc
            });
            believed |= following.is_some();
            if believed && proof.add(record) {
                return true;
            }
            at = if believed { next } else { at + 8 };
            match following {
                Some(following) => record = following,
                None => break,
            }
        }
    }
    false
}

fn record_at(bytes: &[u8], at: usize) -> Option<Record<'_>> {
    match frame::read(bytes.get(at..)?) {
        Frame::Record(record) => Some(record),
        Frame::End | Frame::CutShort | Frame::Malformed(_) => None,
    }
}

fn index_of(data: impl bytes::Buf) -> Option<LogIndex> {
    Entry::decode(data).ok().map(|entry| entry_index(&entry))
}

/// What the records behind a fault have shown.
#[derive(Debug, Default)]
struct Proof {
    /// The last entry that was read back.
    reached: LogIndex,
    seen: Seen,
    /// A hard state, and no hole since: an entry missing before the next one was before it.
    closed_before: bool,
    snapshot: bool,
}

/// How much of "entry, hard state, entry" was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Seen {
    #[default]
    Nothing,
    Entry,
    HardState,
}

impl Proof {
    fn add(&mut self, record: Record<'_>) -> bool {
        if self.snapshot {
            return true;
        }
        match record.kind {
            Kind::Entry => {
                let index = index_of(record.data).unwrap_or_default();
                let lost = self.seen == Seen::Nothing && self.reached.next() < index;
                if self.seen == Seen::HardState || (self.closed_before && lost) {
                    return true;
                }
                self.seen = Seen::Entry;
            }
            Kind::State => {
                if self.seen == Seen::Entry {
                    self.seen = Seen::HardState;
                }
                self.closed_before = true;
            }
            Kind::Snapshot => self.snapshot = true,
            Kind::Metadata | Kind::Crc => {}
        }
        false
    }
}

/// Gathers what a recovery from one snapshot needs.
#[derive(Debug, Default)]
pub(super) struct Collector {
    from: WalSnapshot,
    owner: Option<Metadata>,
    hard_state: HardState,
    entries: Vec<Entry>,
    /// The last entry or snapshot that was written, which names the next segment.
    pub(super) last: LogIndex,
    matched: bool,
}

impl Collector {
    pub(super) fn new(from: &WalSnapshot) -> Self {
        Self { from: from.clone(), ..Self::default() }
    }

    pub(super) fn add(&mut self, record: Record<'_>, at: At<'_>) -> Result<(), WalError> {
        let malformed = |_| at.damaged(WalFault::Shape);
        match record.kind {
            Kind::Crc => {}
            Kind::Metadata => {
                let owner = Metadata::decode(record.data).map_err(malformed)?;
                self.add_owner(owner, at)?;
            }
            Kind::Entry => {
                self.add_entry(Entry::decode(at.share(&record)).map_err(malformed)?, at)?;
            }
            Kind::State => self.hard_state = HardState::decode(record.data).map_err(malformed)?,
            Kind::Snapshot => {
                let snapshot = snapshot_of(&record).map_err(malformed)?;
                self.add_snapshot(&snapshot);
            }
        }
        Ok(())
    }

    fn add_owner(&mut self, owner: Metadata, at: At<'_>) -> Result<(), WalError> {
        match &self.owner {
            Some(known) if *known != owner => Err(at.damaged(WalFault::Foreign {
                member: MemberId(owner.node_id.unwrap_or(0)),
                cluster: ClusterId(owner.cluster_id.unwrap_or(0)),
            })),
            _ => {
                self.owner = Some(owner);
                Ok(())
            }
        }
    }

    /// An entry replaces those at and after its index: they were never committed.
    fn add_entry(&mut self, mut entry: Entry, at: At<'_>) -> Result<(), WalError> {
        let index = entry_index(&entry);
        self.last = index;
        let Some(offset) = index.0.checked_sub(self.from.index.0 + 1) else { return Ok(()) };
        let expected = self.from.index.0 + 1 + u64::try_from(self.entries.len()).expect("fits");
        if expected < index.0 {
            return Err(at.damaged(WalFault::Gap { expected: LogIndex(expected), found: index }));
        }
        self.entries.truncate(usize::try_from(offset).expect("below the number of entries"));
        // What stays must not keep the whole segment in memory.
        entry.data = entry.data.as_deref().map(Bytes::copy_from_slice);
        self.entries.push(entry);
        Ok(())
    }

    fn add_snapshot(&mut self, snapshot: &WalSnapshot) {
        self.last = self.last.max(snapshot.index);
        if (snapshot.index, snapshot.term) == (self.from.index, self.from.term) {
            self.matched = true;
            self.from.conf_state.clone_from(&snapshot.conf_state);
        }
    }

    /// The whole, once everything was read from `dir`.
    pub(super) fn finish(self, dir: &Path, last_file: &Path) -> Result<Recovered, WalError> {
        let Some(owner) = self.owner else {
            return Err(damaged(last_file, 0, WalFault::Anonymous));
        };
        if !self.matched {
            let wanted = (self.from.index, self.from.term);
            return Err(WalError::SnapshotUnknown { dir: dir.to_owned(), wanted });
        }
        Ok(Recovered {
            member: MemberId(owner.node_id.unwrap_or(0)),
            cluster: ClusterId(owner.cluster_id.unwrap_or(0)),
            hard_state: self.hard_state,
            entries: self.entries,
            snapshot: self.from,
        })
    }
}

fn snapshot_of(record: &Record<'_>) -> Result<WalSnapshot, prost::DecodeError> {
    let snapshot = walpb::Snapshot::decode(record.data)?;
    Ok(WalSnapshot {
        index: LogIndex(snapshot.index.unwrap_or(0)),
        term: Term(snapshot.term.unwrap_or(0)),
        conf_state: snapshot.conf_state,
    })
}

/// The snapshots up to the commit index, from everything that there is.
pub(super) fn snapshots(disk: &Disk, dir: &Path) -> Result<Vec<WalSnapshot>, WalError> {
    committed_snapshots(disk, dir, &whole(disk, dir)?)
}

/// The newest snapshot up to the commit index and up to `upto`; `None` if there is none. Reads
/// segments from the last one backwards, as few as needed: snapshots are in ascending order.
pub(super) fn newest_snapshot(
    disk: &Disk,
    dir: &Path,
    upto: LogIndex,
) -> Result<Option<WalSnapshot>, WalError> {
    let segments = whole(disk, dir)?;
    let mut read = 1;
    loop {
        let skipped = segments.len().saturating_sub(read);
        let mut found = committed_snapshots(disk, dir, &segments[skipped..])?;
        found.retain(|snapshot| snapshot.index <= upto);
        if !found.is_empty() || skipped == 0 {
            return Ok(found.pop());
        }
        read *= 2;
    }
}

/// Every segment, none missing in between.
fn whole(disk: &Disk, dir: &Path) -> Result<Vec<SegmentName>, WalError> {
    let segments = segments::list(disk, dir)?;
    if segments.is_empty() {
        return Err(WalError::Missing { dir: dir.to_owned() });
    }
    segments::continuous(dir, &segments)?;
    Ok(segments)
}

/// The snapshots in `segments` up to the commit index: later ones may not have happened.
fn committed_snapshots(
    disk: &Disk,
    dir: &Path,
    segments: &[SegmentName],
) -> Result<Vec<WalSnapshot>, WalError> {
    let mut found = Vec::new();
    let mut committed = 0;
    walk(disk, dir, segments, |record, at| {
        let malformed = |_| at.damaged(WalFault::Shape);
        match record.kind {
            Kind::Snapshot => found.push(snapshot_of(&record).map_err(malformed)?),
            Kind::State => {
                let state = HardState::decode(record.data).map_err(malformed)?;
                committed = state.commit.unwrap_or(0);
            }
            Kind::Metadata | Kind::Entry | Kind::Crc => {}
        }
        Ok(())
    })?;
    found.retain(|snapshot| snapshot.index.0 <= committed);
    Ok(found)
}
