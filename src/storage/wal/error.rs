//! What can be wrong with the log, in words that say what to do.
//!
//! Decides the texts; every damage names its file and offset. Used by whoever opens or writes it.

use std::{fmt, io, path::PathBuf};

use crate::model::{ClusterId, LogIndex, MemberId, Term};

/// Why the log could not be opened or written.
#[derive(Debug)]
pub enum WalError {
    /// There is no segment in the directory.
    Missing {
        /// The log's directory.
        dir: PathBuf,
    },
    /// There is a log already.
    Exists {
        /// The log's directory.
        dir: PathBuf,
    },
    /// Another process has the log.
    Locked {
        /// The segment that it holds.
        file: PathBuf,
    },
    /// Every segment begins after the wanted position.
    Truncated {
        /// The log's directory.
        dir: PathBuf,
        /// The wanted position.
        wanted: LogIndex,
    },
    /// Segments are missing before this one.
    MissingSegment {
        /// The segment after the hole.
        file: PathBuf,
    },
    /// Synced bytes are not what was written.
    Damaged {
        /// The segment.
        file: PathBuf,
        /// The first byte of the record.
        offset: u64,
        /// What is wrong with it.
        fault: WalFault,
    },
    /// No snapshot record matches the one to start from.
    SnapshotUnknown {
        /// The log's directory.
        dir: PathBuf,
        /// The wanted position and term.
        wanted: (LogIndex, Term),
    },
    /// The operating system refused. The log takes nothing after a failed write or sync.
    System {
        /// The file or directory.
        file: PathBuf,
        /// Its reason.
        source: io::Error,
    },
}

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalFault {
    /// The checksum over the log so far does not match.
    Checksum,
    /// The bytes are no record.
    Shape,
    /// The file ends within a record, although more was written after it.
    CutShort,
    /// Nothing stands here, although records that were written later follow.
    Hole,
    /// An entry follows that does not continue the log.
    Gap {
        /// Where the log was to go on.
        expected: LogIndex,
        /// What followed.
        found: LogIndex,
    },
    /// The segment belongs to another member or cluster than the ones before.
    Foreign {
        /// Whose it is.
        member: MemberId,
        /// Of which cluster.
        cluster: ClusterId,
    },
    /// The segment does not say whose it is.
    Anonymous,
}

impl fmt::Display for WalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ADVICE: &str = "restore this member from a backup, or remove it from the cluster and \
                              add it again with an empty data directory";
        match self {
            Self::Missing { dir } => write!(f, "no write-ahead log in {}", dir.display()),
            Self::Exists { dir } => write!(f, "{} holds a write-ahead log already", dir.display()),
            Self::Locked { file } => {
                write!(f, "{} is in use by another process; stop it first", file.display())
            }
            Self::Truncated { dir, wanted } => write!(
                f,
                "the write-ahead log in {} begins after entry {wanted}, where the database \
                 stands: the two do not belong together; {ADVICE}",
                dir.display()
            ),
            Self::MissingSegment { file } => write!(
                f,
                "segments of the write-ahead log before {} are missing; put them back, or {ADVICE}",
                file.display()
            ),
            Self::Damaged { file, offset, fault } => write!(
                f,
                "the write-ahead log {} is damaged at offset {offset}: {fault}; nothing was \
                 changed; {ADVICE}",
                file.display()
            ),
            Self::SnapshotUnknown { dir, wanted: (index, term) } => write!(
                f,
                "the write-ahead log in {} knows no snapshot at entry {index} of term {term}; \
                 {ADVICE}",
                dir.display()
            ),
            Self::System { file, .. } => write!(f, "cannot use {}", file.display()),
        }
    }
}

impl fmt::Display for WalFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checksum => write!(f, "the checksum does not match"),
            Self::Shape => write!(f, "the bytes are no record"),
            Self::CutShort => write!(f, "the record is cut short"),
            Self::Hole => write!(f, "the record is gone, but synced ones follow"),
            Self::Gap { expected, found } => {
                write!(f, "entry {found} follows where entry {expected} was due")
            }
            Self::Foreign { member, cluster } => {
                write!(f, "it belongs to member {member} of cluster {cluster}")
            }
            Self::Anonymous => write!(f, "it does not say whose it is"),
        }
    }
}

impl std::error::Error for WalError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System { source, .. } => Some(source),
            Self::Missing { .. }
            | Self::Exists { .. }
            | Self::Locked { .. }
            | Self::Truncated { .. }
            | Self::MissingSegment { .. }
            | Self::Damaged { .. }
            | Self::SnapshotUnknown { .. } => None,
        }
    }
}
