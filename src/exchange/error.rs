//! Why an exchange failed.
//!
//! Decides what an operator is told: always the file, and the place in it where there is one. Used
//! by whoever exports, imports or inspects.

use std::{error::Error, fmt, io, path::PathBuf};

use crate::{bolt::BoltError, model::LogIndex, storage::BackendError};

/// Why an export or an import failed.
#[derive(Debug)]
pub enum ExchangeError {
    /// An etcd database file cannot be read, or is damaged.
    Bolt {
        /// The file.
        file: PathBuf,
        /// The page and what is wrong with it.
        source: BoltError,
    },
    /// A key in the history of an etcd database is not a revision.
    RowKey {
        /// The file.
        file: PathBuf,
        /// The key, in hexadecimal.
        key: String,
    },
    /// Our own backend cannot be read or written.
    Backend(BackendError),
    /// The operating system refused.
    System {
        /// The file or directory.
        file: PathBuf,
        /// Its reason.
        source: io::Error,
    },
    /// An entry could not become part of a file: its length is beyond the format.
    Export(BoltError),
    /// The receiver of an export is gone, or its disk is full.
    Receiver(io::Error),
    /// The log speaks of a snapshot, but there is no database.
    Missing {
        /// Where it should be.
        file: PathBuf,
    },
    /// The database is older than the log's snapshot, and the entries between are gone.
    Behind {
        /// The database.
        file: PathBuf,
        /// What it holds.
        index: LogIndex,
        /// What the log starts from.
        snapshot: LogIndex,
    },
}

impl fmt::Display for ExchangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bolt { file, .. } => write!(f, "cannot use the database {}", file.display()),
            Self::RowKey { file, key } => {
                write!(
                    f,
                    "{} has a key in its history that is no revision: 0x{key}",
                    file.display()
                )
            }
            Self::Backend(_) => f.write_str("the backend failed"),
            Self::System { file, .. } => write!(f, "cannot use {}", file.display()),
            Self::Export(_) => f.write_str("the database cannot be exported"),
            Self::Receiver(_) => f.write_str("the receiver of the database is gone"),
            Self::Missing { file } => {
                write!(f, "database file ({}) of the backend is missing", file.display())
            }
            Self::Behind { file, index, snapshot } => write!(
                f,
                "database file ({} index {index}) does not match with snapshot (index {snapshot})",
                file.display()
            ),
        }
    }
}

impl Error for ExchangeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Bolt { source, .. } | Self::Export(source) => Some(source),
            Self::Backend(source) => Some(source),
            Self::System { source, .. } | Self::Receiver(source) => Some(source),
            Self::RowKey { .. } | Self::Missing { .. } | Self::Behind { .. } => None,
        }
    }
}

impl From<BackendError> for ExchangeError {
    fn from(source: BackendError) -> Self {
        Self::Backend(source)
    }
}
