//! The hash that ends a backup.
//!
//! Decides whether a file has one: by its length, as etcd does. Used by backups as they are made,
//! and by a restore before it believes one.
//!
//! Source: etcd `etcdutl/snapshot/v3_snapshot.go`, `hasChecksum`.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

/// The length of the trailing hash.
pub const DIGEST_BYTES: usize = 32;
/// Every part of a database is a multiple of this, whatever its page size.
const SECTOR_BYTES: u64 = 512;
/// How much of a file is hashed at a time.
const READ_BYTES: usize = 256 << 10;

/// A SHA-256.
pub type Digest = [u8; DIGEST_BYTES];

/// What the end of a backup file says about the rest of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trailer {
    /// The file has no trailing hash: it was copied from a data directory.
    Absent,
    /// The hash is that of the bytes before it.
    Matches,
    /// The hash is another one: the file is damaged.
    Differs {
        /// What the file says.
        expected: Digest,
        /// What its bytes have.
        actual: Digest,
    },
}

/// Whether a file of this length ends in a hash.
#[must_use]
pub const fn has_trailer(file_bytes: u64) -> bool {
    file_bytes % SECTOR_BYTES == DIGEST_BYTES as u64
}

impl Trailer {
    /// Reads `file`, of `file_bytes`, from its start and compares; `progress` is told how many
    /// bytes were read each time.
    ///
    /// # Errors
    /// If the file cannot be read to its end.
    pub fn check(
        file: &mut impl Read,
        file_bytes: u64,
        mut progress: impl FnMut(u64),
    ) -> io::Result<Self> {
        if !has_trailer(file_bytes) {
            return Ok(Self::Absent);
        }
        let mut hash = Sha256::new();
        let mut rest = file_bytes - DIGEST_BYTES as u64;
        let mut buffer = vec![0; READ_BYTES];
        while 0 < rest {
            let part = usize::try_from(rest).map_or(READ_BYTES, |rest| rest.min(READ_BYTES));
            file.read_exact(&mut buffer[..part])?;
            hash.update(&buffer[..part]);
            rest -= part as u64;
            progress(part as u64);
        }
        let mut expected = [0; DIGEST_BYTES];
        file.read_exact(&mut expected)?;
        let actual: Digest = hash.finalize().into();
        Ok(if expected == actual { Self::Matches } else { Self::Differs { expected, actual } })
    }
}
