//! How a row or a table's record is sealed with its checksum.
//!
//! Decides the bytes of LMDB values. LMDB has no checksums of its own, so each value carries a
//! CRC-32C over its key and content, which every read checks: a flipped bit is an error, never an
//! answer. Used by the backend only.
//!
//! ```text
//!   row      | crc LE4 | flag 1 | mvccpb.KeyValue ... |     flag 0 live, 1 tombstone
//!   record   | crc LE4 | value ... |                        key below 511 bytes
//!   record   | crc LE4 | key length LE4 | key | value ... | LMDB key of exactly 511 bytes
//! ```
//!
//! LMDB takes keys of at most 511 bytes; a user's name may be longer. Such a key is cut, closed
//! with the SHA-256 of the whole, and stands in full in the value.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::{
    error::{Fault, Place, hexadecimal},
    keys,
    tables::Table,
};
use crate::model::RowRevision;

/// LMDB's limit on a key, in bytes.
const KEY_BYTES_MAX: usize = 511;
const HASH_BYTES: usize = 32;
const CRC_BYTES: usize = 4;
const ROW_HEADER_BYTES: usize = CRC_BYTES + 1;
const LIVE: u8 = 0;
const TOMBSTONE: u8 = 1;

/// A stored row, borrowed from the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRef<'t> {
    /// Where the change stands in history.
    pub revision: RowRevision,
    /// Whether the change deleted the key.
    pub tombstone: bool,
    /// The canonical `mvccpb.KeyValue`; of a tombstone, one with only the key.
    pub value: &'t [u8],
}

/// A stored row as it lies in the database: nothing of it is believed, or shown, before it is
/// opened, which checks it.
#[derive(Clone, Copy, Debug)]
pub struct SealedRow<'t> {
    revision: RowRevision,
    bytes: &'t [u8],
}

/// How far apart the bytes are whose reading brings a row into the processor's cache.
const CACHE_LINE_BYTES: usize = 64;

impl<'t> SealedRow<'t> {
    /// The row that lies at `revision`.
    pub(super) const fn new(revision: RowRevision, bytes: &'t [u8]) -> Self {
        Self { revision, bytes }
    }

    /// Where the change stands in history.
    #[must_use]
    pub const fn revision(&self) -> RowRevision {
        self.revision
    }

    /// Brings the row into the processor's cache. Rows that are warmed one after the other are
    /// waited for together, where opening them one after the other waits for each.
    pub fn warm(&self) {
        let lines = self.bytes.iter().step_by(CACHE_LINE_BYTES);
        std::hint::black_box(lines.fold(0, |sum, byte| sum ^ byte));
    }

    /// Checks and reads the row.
    pub(super) fn open(self) -> Result<RowRef<'t>, Damage> {
        open_row(&keys::row_key(self.revision), self.bytes)
    }
}

/// Damage without the file, which the caller knows.
pub(super) type Damage = (Place, Fault);

/// Replaces `sealed` by the stored form of a row.
pub(super) fn seal_row(sealed: &mut Vec<u8>, key: &[u8], tombstone: bool, value: &[u8]) {
    sealed.clear();
    sealed.extend_from_slice(&[0; CRC_BYTES]);
    sealed.push(if tombstone { TOMBSTONE } else { LIVE });
    sealed.extend_from_slice(value);
    close(sealed, key);
}

/// Checks and reads a stored row.
pub(super) fn open_row<'t>(key: &[u8], sealed: &'t [u8]) -> Result<RowRef<'t>, Damage> {
    let revision = row_revision(key)?;
    let damage = |fault| (Place::Row(revision), fault);
    let content = check(key, sealed).map_err(damage)?;
    let (tombstone, value) = match content.split_first() {
        Some((&LIVE, value)) => (false, value),
        Some((&TOMBSTONE, value)) => (true, value),
        _ => return Err(damage(Fault::Shape)),
    };
    Ok(RowRef { revision, tombstone, value })
}

/// Where the row with this key stands in history.
pub(super) fn row_revision(key: &[u8]) -> Result<RowRevision, Damage> {
    keys::parse_row_key(key).ok_or_else(|| (Place::RowKey(hexadecimal(key)), Fault::Shape))
}

/// The key under which LMDB has the record of `key`.
pub(super) fn record_key(key: &[u8]) -> Cow<'_, [u8]> {
    if key.len() < KEY_BYTES_MAX {
        return Cow::Borrowed(key);
    }
    let mut cut = key[..KEY_BYTES_MAX - HASH_BYTES].to_vec();
    cut.extend_from_slice(&Sha256::digest(key));
    assert!(cut.len() == KEY_BYTES_MAX, "a cut key of {} bytes", cut.len());
    Cow::Owned(cut)
}

/// Replaces `sealed` by the stored form of the record of `key`.
pub(super) fn seal_record(sealed: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    sealed.clear();
    sealed.extend_from_slice(&[0; CRC_BYTES]);
    if KEY_BYTES_MAX <= key.len() {
        let length = u32::try_from(key.len()).expect("a name came in one request");
        sealed.extend_from_slice(&length.to_le_bytes());
        sealed.extend_from_slice(key);
    }
    sealed.extend_from_slice(value);
    close(sealed, &record_key(key));
}

/// Checks and reads a record: its whole key, and its value.
pub(super) fn open_record<'t>(
    table: Table,
    stored_key: &'t [u8],
    sealed: &'t [u8],
) -> Result<(&'t [u8], &'t [u8]), Damage> {
    let damage = |fault| (Place::Record(table.name(), hexadecimal(stored_key)), fault);
    let content = check(stored_key, sealed).map_err(damage)?;
    if stored_key.len() < KEY_BYTES_MAX {
        return Ok((stored_key, content));
    }
    split_key(content).ok_or_else(|| damage(Fault::Shape))
}

/// Checks a record and reads its value, which lives as long as `sealed`, not as its key.
pub(super) fn open_value<'t>(
    table: Table,
    stored_key: &[u8],
    sealed: &'t [u8],
) -> Result<&'t [u8], Damage> {
    let damage = |fault| (Place::Record(table.name(), hexadecimal(stored_key)), fault);
    let content = check(stored_key, sealed).map_err(damage)?;
    if stored_key.len() < KEY_BYTES_MAX {
        return Ok(content);
    }
    split_key(content).map(|(_, value)| value).ok_or_else(|| damage(Fault::Shape))
}

/// The whole key and the value of a record whose LMDB key was cut.
fn split_key(content: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = content.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
}

/// Writes the checksum over `key` and the content of `sealed` into its first bytes.
fn close(sealed: &mut [u8], key: &[u8]) {
    let crc = checksum(key, &sealed[CRC_BYTES..]);
    sealed[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
}

fn check<'t>(key: &[u8], sealed: &'t [u8]) -> Result<&'t [u8], Fault> {
    let (crc, content) = sealed.split_first_chunk::<CRC_BYTES>().ok_or(Fault::Shape)?;
    if u32::from_le_bytes(*crc) == checksum(key, content) {
        Ok(content)
    } else {
        Err(Fault::Checksum)
    }
}

fn checksum(key: &[u8], content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), content)
}

const _: () = assert!(
    HASH_BYTES < KEY_BYTES_MAX && ROW_HEADER_BYTES == 5,
    "a cut key keeps some of its own bytes"
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Revision;
    use proptest::{
        collection::vec,
        prelude::{any, prop_assert, prop_assert_eq, proptest},
    };

    proptest! {
        #[test]
        fn sealed_rows_read_back_and_notice_every_flipped_bit(
            main in 0..=i64::MAX, sub in 0..1000i64, tombstone in any::<bool>(),
            value in vec(any::<u8>(), 0..64), bit in any::<usize>(),
        ) {
            let revision = RowRevision { main: Revision(main), sub };
            let key = keys::row_key(revision);
            let mut sealed = Vec::new();
            seal_row(&mut sealed, &key, tombstone, &value);
            prop_assert_eq!(open_row(&key, &sealed), Ok(RowRef { revision, tombstone, value: &value }));
            let bit = bit % (sealed.len() * 8);
            sealed[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(open_row(&key, &sealed).is_err());
            seal_row(&mut sealed, &key, tombstone, &value);
            let other = keys::row_key(RowRevision { main: Revision(main ^ 1), sub });
            prop_assert!(open_row(&other, &sealed).is_err());
        }

        #[test]
        fn records_read_back_whatever_the_length_of_their_key(
            length in 1..2000usize, value in vec(any::<u8>(), 0..64), fill in any::<u8>(),
        ) {
            let key = vec![fill; length];
            let stored = record_key(&key);
            prop_assert!(stored.len() <= KEY_BYTES_MAX);
            let mut sealed = Vec::new();
            seal_record(&mut sealed, &key, &value);
            prop_assert_eq!(
                open_record(Table::AuthUsers, &stored, &sealed),
                Ok((key.as_slice(), value.as_slice()))
            );
        }
    }
}
