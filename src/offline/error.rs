//! Why a command failed, in the words of etcd's own tool.
//!
//! Decides texts and exit codes. Used by every command; printed once, by the binary.
//!
//! Source: etcd `etcdutl/`, `pkg/cobrautl/error.go`.

use std::{error::Error, fmt, io, path::PathBuf};

use crate::{
    bolt::{BoltError, Finding},
    exchange::{Digest, ExchangeError},
    storage::BackendError,
};

/// Why a command failed.
#[derive(Debug)]
pub enum OfflineError {
    /// The command line makes no sense; the text says why.
    Usage(String),
    /// The output format is unknown, or not one for this command; the text says which.
    Format(String),
    /// A file cannot be reached; in the form of Go: operation, path, reason.
    Path {
        /// What was tried: `stat`, `open`.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Reading or writing failed later on.
    Io(io::Error),
    /// The file is no database, or a damaged one.
    Database(BoltError),
    /// The pages of a file contradict each other.
    Integrity(Vec<Finding>),
    /// A key in the history is no revision, or a value no key-value pair.
    History(String),
    /// The flags of a restore contradict each other or what they point at; the text says how.
    Refused(String),
    /// The file does not end in a hash, and its absence was not allowed.
    NoTrailer,
    /// The file's bytes are not those that were hashed.
    WrongTrailer {
        /// What the file says.
        expected: Digest,
        /// What its bytes have.
        actual: Digest,
    },
    /// The revision to hash was compacted.
    Compacted,
    /// The revision to hash has not been reached.
    FutureRevision,
    /// Defragmentation failed.
    Defragment {
        /// The data directory.
        data_dir: PathBuf,
        /// Why.
        source: Box<Self>,
    },
    /// The backend refused.
    Backend(BackendError),
    /// An exchange refused.
    Exchange(ExchangeError),
    /// Damage was found by `verify`; one sentence for each place.
    Damaged(Vec<String>),
}

impl OfflineError {
    /// What the process exits with.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 128,
            Self::Format(_) => 4,
            Self::Path { .. }
            | Self::Io(_)
            | Self::Database(_)
            | Self::Integrity(_)
            | Self::History(_)
            | Self::Refused(_)
            | Self::NoTrailer
            | Self::WrongTrailer { .. }
            | Self::Compacted
            | Self::FutureRevision
            | Self::Defragment { .. }
            | Self::Backend(_)
            | Self::Exchange(_)
            | Self::Damaged(_) => 1,
        }
    }
}

impl fmt::Display for OfflineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Format(text) | Self::History(text) | Self::Refused(text) => {
                f.write_str(text)
            }
            // Go prints the reason with the path, and scripts look for the whole.
            Self::Path { operation, path, source } => {
                write!(f, "{operation} {}: {}", path.display(), go_reason(source))
            }
            Self::Io(_) => f.write_str("the file cannot be read or written"),
            Self::Database(error) => error.fmt(f),
            Self::Integrity(findings) => {
                let count = findings.len();
                write!(f, "snapshot file integrity check failed. {count} errors found.")?;
                findings.iter().try_for_each(|finding| write!(f, "\n{finding}"))
            }
            Self::NoTrailer => f.write_str("snapshot missing hash but --skip-hash-check=false"),
            Self::WrongTrailer { expected, actual } => {
                write!(f, "expected sha256 {}, got {}", go_bytes(expected), go_bytes(actual))
            }
            Self::Compacted => f.write_str("mvcc: required revision has been compacted"),
            Self::FutureRevision => f.write_str("mvcc: required revision is a future revision"),
            Self::Defragment { data_dir, source } => {
                write!(f, "Failed to defragment etcd data[{}] ({source})", data_dir.display())
            }
            Self::Backend(_) => f.write_str("the backend cannot be used"),
            Self::Exchange(_) => f.write_str("the database cannot be copied"),
            Self::Damaged(places) => {
                write!(f, "{} damaged places found", places.len())?;
                places.iter().try_for_each(|place| write!(f, "\n{place}"))
            }
        }
    }
}

impl Error for OfflineError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io(source) => Some(source),
            Self::Backend(source) => Some(source),
            Self::Exchange(source) => Some(source),
            // The rest of the chain: the text of the first link is already part of ours.
            Self::Database(error) => error.source(),
            Self::Defragment { source, .. } => source.source(),
            Self::Usage(_)
            | Self::Format(_)
            | Self::Path { .. }
            | Self::Integrity(_)
            | Self::History(_)
            | Self::Refused(_)
            | Self::NoTrailer
            | Self::WrongTrailer { .. }
            | Self::Compacted
            | Self::FutureRevision
            | Self::Damaged(_) => None,
        }
    }
}

impl From<BackendError> for OfflineError {
    fn from(source: BackendError) -> Self {
        Self::Backend(source)
    }
}

impl From<ExchangeError> for OfflineError {
    fn from(source: ExchangeError) -> Self {
        match source {
            ExchangeError::Bolt { source, .. } => Self::Database(source),
            ExchangeError::Backend(source) => Self::Backend(source),
            source @ (ExchangeError::RowKey { .. }
            | ExchangeError::System { .. }
            | ExchangeError::Export(_)
            | ExchangeError::Receiver(_)
            | ExchangeError::Missing { .. }
            | ExchangeError::Behind { .. }) => Self::Exchange(source),
        }
    }
}

/// The system's reason as Go spells it: lower case, without the number.
fn go_reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// Bytes as Go's `%v` prints them.
fn go_bytes(bytes: &[u8]) -> String {
    let numbers: Vec<String> = bytes.iter().map(ToString::to_string).collect();
    format!("[{}]", numbers.join(" "))
}
