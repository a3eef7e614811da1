//! What can go wrong with the backend.
//!
//! Decides the split that callers act on: damage names its place and is final, everything else is
//! a failure of the system below, after which the member stops. Used by whoever opens, reads or
//! writes the backend.

use std::{fmt, io, path::PathBuf};

use crate::model::RowRevision;

/// Why the backend could not do what it was asked.
#[derive(Debug)]
pub enum BackendError {
    /// Stored bytes are not what was written. Never repaired, never served.
    Damaged {
        /// The data file.
        file: PathBuf,
        /// Which record.
        place: Place,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A row would not come after every stored one.
    OutOfOrder {
        /// The row that was to be appended.
        revision: RowRevision,
        /// The last stored one.
        last: Option<RowRevision>,
    },
    /// The operating system refused.
    System {
        /// The file or directory.
        file: PathBuf,
        /// Its reason.
        source: io::Error,
    },
    /// LMDB refused.
    Lmdb {
        /// The environment's directory.
        file: PathBuf,
        /// Its reason.
        source: heed::Error,
    },
}

/// Where damage was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The row at this revision.
    Row(RowRevision),
    /// A row whose key is itself unreadable, in hexadecimal.
    RowKey(String),
    /// A record of a small table: its name, and the key in hexadecimal.
    Record(&'static str, String),
    /// What says which pages are in use: the number of the last page.
    LastPage(u64),
    /// What says which pages are in use: the counts of a tree's pages.
    PageCounts,
}

/// What is wrong with stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The checksum does not match.
    Checksum,
    /// The bytes have no valid shape.
    Shape,
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged { file, place, fault } => {
                let fault = match fault {
                    Fault::Checksum => "its checksum does not match",
                    Fault::Shape => "its shape is unknown",
                };
                write!(
                    f,
                    "{} is damaged: {place}: {fault}; restore this member from a backup or ",
                    file.display()
                )?;
                write!(f, "remove it from the cluster and add it again")
            }
            Self::OutOfOrder { revision, last } => write!(
                f,
                "row {}_{} does not come after the last stored row {last:?}",
                revision.main, revision.sub
            ),
            Self::System { file, .. } => write!(f, "cannot use {}", file.display()),
            // LMDB says "input/output error" of a disk that took a part of a write.
            Self::Lmdb { file, source: heed::Error::Io(_) } => write!(
                f,
                "cannot use the database in {}; see that its disk is not full and has no errors",
                file.display()
            ),
            Self::Lmdb { file, .. } => write!(
                f,
                "cannot use the database in {}; if the reason that follows speaks of its pages or \
                 its kind, the file is damaged: restore this member from a backup, or remove it \
                 from the cluster and add it again",
                file.display()
            ),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(revision) => write!(f, "row of revision {}_{}", revision.main, revision.sub),
            Self::RowKey(key) => write!(f, "row with the key 0x{key}"),
            Self::Record(table, key) => write!(f, "record of table {table} with the key 0x{key}"),
            Self::LastPage(page) => write!(f, "meta page at the beginning, last page {page}"),
            Self::PageCounts => write!(f, "page that counts the pages of the trees"),
        }
    }
}

impl std::error::Error for BackendError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System { source, .. } => Some(source),
            Self::Lmdb { source, .. } => Some(source),
            Self::Damaged { .. } | Self::OutOfOrder { .. } => None,
        }
    }
}

/// `bytes` in hexadecimal, for the place of damage.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
