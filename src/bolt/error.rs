//! Why a file could not be written or must not be believed.
//!
//! Decides the words: the ones for a file that is no database at all are bbolt's, because etcd's
//! tools print them. Used by the writer, the reader and the check.

use std::{error::Error, fmt, io};

use super::PageId;

/// Why a bbolt file could not be written or read.
#[derive(Debug)]
pub enum BoltError {
    /// The file system refused.
    Io(io::Error),
    /// Neither meta page starts like one: this is another kind of file.
    NotADatabase,
    /// The meta pages are of another version of the format.
    OtherVersion,
    /// Both meta pages are damaged.
    MetaChecksum,
    /// A page contradicts itself, its parent or the file's length.
    Damaged {
        /// The page that is wrong.
        page: PageId,
        /// Where it starts in the file, in bytes.
        offset: u64,
        /// What is wrong with it.
        damage: Damage,
    },
    /// Keys or bucket names were not handed over in strictly ascending order.
    OutOfOrder,
    /// A key or a value is empty where it must not be, or longer than the format can hold.
    Unfit {
        /// Length of the key in bytes.
        key_bytes: usize,
        /// Length of the value in bytes.
        value_bytes: usize,
    },
    /// The second pass was given other entries than the first.
    PlanBroken {
        /// The page at which it showed.
        page: PageId,
    },
}

/// What is wrong with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It lies past the high-water mark or the end of the file.
    OutOfBounds,
    /// It says that it is another page.
    OtherId,
    /// Its kind is unknown, or not the one expected here.
    WrongKind,
    /// An element's key or value lies outside of the page.
    ElementOutOfBounds,
    /// It has no element, or an element without a key.
    Empty,
    /// Its keys do not ascend, or not within the bounds that its parent sets.
    KeyOrder,
    /// The tree is deeper than any tree of this many pages can be.
    TooDeep,
    /// A bucket where a plain entry was expected, or the other way round.
    WrongEntry,
    /// The value of a bucket entry is not a bucket.
    BadBucket,
    /// The sizes in the meta page are impossible.
    BadMeta,
}

impl fmt::Display for BoltError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(_) => f.write_str("the database file could not be read or written"),
            Self::NotADatabase => f.write_str("invalid database"),
            Self::OtherVersion => f.write_str("version mismatch"),
            Self::MetaChecksum => f.write_str("checksum error"),
            Self::Damaged { page, offset, damage } => {
                write!(f, "page {page} (at byte {offset}): {damage}")
            }
            Self::OutOfOrder => f.write_str("keys must be written in ascending order"),
            Self::Unfit { key_bytes, value_bytes } => {
                write!(
                    f,
                    "an entry with a key of {key_bytes} and a value of {value_bytes} bytes does not fit the format"
                )
            }
            Self::PlanBroken { page } => {
                write!(f, "the entries changed between the two passes, at page {page}")
            }
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfBounds => "lies outside of the file",
            Self::OtherId => "is marked as another page",
            Self::WrongKind => "is of an unexpected kind",
            Self::ElementOutOfBounds => "an element points outside of the page",
            Self::Empty => "has no elements or an empty key",
            Self::KeyOrder => "keys are out of order",
            Self::TooDeep => "the tree is too deep",
            Self::WrongEntry => "an entry is of an unexpected kind",
            Self::BadBucket => "a bucket header is damaged",
            Self::BadMeta => "the meta page contradicts the file",
        })
    }
}

impl Error for BoltError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io(source) => Some(source),
            Self::NotADatabase
            | Self::OtherVersion
            | Self::MetaChecksum
            | Self::Damaged { .. }
            | Self::OutOfOrder
            | Self::Unfit { .. }
            | Self::PlanBroken { .. } => None,
        }
    }
}

impl From<io::Error> for BoltError {
    fn from(source: io::Error) -> Self {
        Self::Io(source)
    }
}
