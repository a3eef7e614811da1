//! The names of segments, and which of them a recovery needs.
//!
//! Decides the order of files: by sequence number, which never skips; the second number is the
//! first entry that may stand in the file. Used by the rest of this folder.

use std::path::{Path, PathBuf};

use super::WalError;
use crate::{base::file::Disk, model::LogIndex};

/// A segment's place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentName {
    pub(super) sequence: u64,
    pub(super) first: LogIndex,
}

impl SegmentName {
    pub(super) fn file_name(self) -> String {
        format!("{:016x}-{:016x}.wal", self.sequence, self.first.0)
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        let (sequence, first) = name.strip_suffix(".wal")?.split_once('-')?;
        if sequence.len() != 16 || first.len() != 16 {
            return None;
        }
        Some(Self {
            sequence: u64::from_str_radix(sequence, 16).ok()?,
            first: LogIndex(u64::from_str_radix(first, 16).ok()?),
        })
    }
}

/// Every segment in `dir`, in order; other files are mentioned and left alone.
pub(super) fn list(disk: &Disk, dir: &Path) -> Result<Vec<SegmentName>, WalError> {
    let names =
        disk.list(dir).map_err(|source| WalError::System { file: dir.to_owned(), source })?;
    let mut segments = Vec::with_capacity(names.len());
    for name in names {
        match SegmentName::parse(&name) {
            Some(segment) => segments.push(segment),
            None if name.ends_with(".tmp") || name.ends_with(".broken") => {}
            None => tracing::warn!(path = name, "ignored file in WAL directory"),
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

/// The segments from the one that holds what follows entry `from`, and the number of those before.
pub(super) fn select(
    dir: &Path,
    segments: &[SegmentName],
    from: LogIndex,
) -> Result<usize, WalError> {
    if segments.is_empty() {
        return Err(WalError::Missing { dir: dir.to_owned() });
    }
    let skipped = segments
        .iter()
        .rposition(|segment| segment.first <= from)
        .ok_or_else(|| WalError::Truncated { dir: dir.to_owned(), wanted: from })?;
    continuous(dir, &segments[skipped..])?;
    Ok(skipped)
}

/// Refuses segments with a hole between them.
pub(super) fn continuous(dir: &Path, segments: &[SegmentName]) -> Result<(), WalError> {
    let hole = segments.windows(2).find(|pair| pair[0].sequence + 1 != pair[1].sequence);
    match hole {
        None => Ok(()),
        Some(pair) => Err(WalError::MissingSegment { file: path(dir, pair[1]) }),
    }
}

pub(super) fn path(dir: &Path, segment: SegmentName) -> PathBuf {
    dir.join(segment.file_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(sequence: u64, first: u64) -> SegmentName {
        SegmentName { sequence, first: LogIndex(first) }
    }

    #[test]
    fn names_are_those_of_etcd() {
        let segment = name(0x1a, 0x2710);
        assert_eq!(segment.file_name(), "000000000000001a-0000000000002710.wal");
        assert_eq!(SegmentName::parse(&segment.file_name()), Some(segment));
        for foreign in ["0.tmp", "1-2.wal", "000000000000001a-0000000000002710.wal.broken"] {
            assert_eq!(SegmentName::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn selection_starts_at_the_last_segment_that_begins_early_enough() {
        let dir = Path::new("wal");
        let segments = [name(0, 0), name(1, 10), name(2, 20)];
        for (from, skipped) in [(0, 0), (9, 0), (10, 1), (19, 1), (20, 2), (99, 2)] {
            assert_eq!(select(dir, &segments, LogIndex(from)).unwrap(), skipped, "from {from}");
        }
        let late = select(dir, &segments[1..], LogIndex(9));
        assert!(matches!(late, Err(WalError::Truncated { .. })), "{late:?}");
        let none = select(dir, &[], LogIndex(0));
        assert!(matches!(none, Err(WalError::Missing { .. })), "{none:?}");
    }

    #[test]
    fn missing_segment_is_named_by_the_one_after_it() {
        let error = select(Path::new("wal"), &[name(3, 5), name(5, 9)], LogIndex(7)).unwrap_err();
        // Entry 7 stands before the hole, in segment 3.
        assert!(error.to_string().contains("before wal/0000000000000005-"), "{error}");
    }
}
