//! The bytes of a row: the canonical wire form of `mvccpb.KeyValue`.
//!
//! Decides what is stored and hashed, so every member must encode alike: ascending field numbers,
//! defaults omitted. A row is encoded once, when it is written; everybody after that copies it.

use bytes::{Bytes, BytesMut};
use prost::{
    Message,
    encoding::{
        DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint,
        encoded_len_varint, skip_field,
    },
};
use proto::mvccpb::KeyValue;

use super::{keys::KeyRef, rows::Damage, version::KeyVersion};
use crate::model::{LeaseId, Revision, RowRevision};

/// Rows of an answer are copied into blocks of this many bytes, not into an allocation each.
const BLOCK_BYTES: usize = 64 * 1024;

/// New rows are written into blocks of this many bytes. A block lives as long as any of its rows,
/// so it is small enough that a slow watcher does not hold much more than what it waits for.
const WRITE_BLOCK_BYTES: usize = 8 * 1024;

/// Rows of more bytes than this have an allocation of their own.
const SHARED_ROW_BYTES_MAX: usize = WRITE_BLOCK_BYTES / 4;

/// Room for the rows of an answer.
#[derive(Debug)]
pub(super) struct Block {
    buffer: BytesMut,
    rows_left: usize,
}

impl Block {
    /// Room for about `rows` rows, which are assumed to be of similar length.
    pub(super) fn new(rows: usize) -> Self {
        Self { buffer: BytesMut::new(), rows_left: rows }
    }

    /// A row of `bytes` bytes, written by `write`.
    pub(super) fn row(&mut self, bytes: usize, write: impl FnOnce(&mut BytesMut)) -> Bytes {
        if self.buffer.capacity() < bytes {
            let all_left = bytes.saturating_mul(self.rows_left.max(1));
            self.buffer = BytesMut::with_capacity(all_left.min(BLOCK_BYTES).max(bytes));
        }
        self.rows_left = self.rows_left.saturating_sub(1);
        write(&mut self.buffer);
        assert!(self.buffer.len() == bytes, "{} bytes written, not {bytes}", self.buffer.len());
        self.buffer.split().freeze()
    }
}

/// Encodes new rows, several into one allocation.
#[derive(Debug, Default)]
pub(super) struct RowWriter(BytesMut);

impl RowWriter {
    /// The row of a put.
    pub(super) fn put(
        &mut self,
        key: Bytes,
        value: Bytes,
        lease: LeaseId,
        version: &KeyVersion,
    ) -> Bytes {
        self.write(&KeyValue {
            key,
            create_revision: version.create.0,
            mod_revision: version.modified.main.0,
            version: version.version,
            value,
            lease: lease.0,
        })
    }

    /// The row of a deletion: only the key.
    pub(super) fn tombstone(&mut self, key: Bytes) -> Bytes {
        self.write(&KeyValue { key, ..KeyValue::default() })
    }

    fn write(&mut self, row: &KeyValue) -> Bytes {
        let bytes = row.encoded_len();
        if SHARED_ROW_BYTES_MAX < bytes {
            return encode(row);
        }
        if self.0.capacity() < bytes {
            self.0 = BytesMut::with_capacity(WRITE_BLOCK_BYTES);
        }
        row.encode(&mut self.0).expect("a BytesMut grows as needed");
        self.0.split().freeze()
    }
}

/// What a watcher is told of a deletion: the key, and when it was deleted.
pub(super) fn delete_event(key: Bytes, main: Revision) -> Bytes {
    encode(&KeyValue { key, mod_revision: main.0, ..KeyValue::default() })
}

/// The bytes of an answer without the value, and without the lease, which only the row knows.
pub(super) fn keys_only_len(key: KeyRef<'_>, version: &KeyVersion) -> usize {
    let numbers = numbers(version).map(|(_, number)| 1 + encoded_len_varint(number));
    1 + encoded_len_varint(key.len() as u64) + key.len() + numbers.iter().sum::<usize>()
}

/// Writes an answer without the value, and without the lease, which only the row knows.
pub(super) fn put_keys_only(out: &mut BytesMut, key: KeyRef<'_>, version: &KeyVersion) {
    encode_key(1, WireType::LengthDelimited, out);
    encode_varint(key.len() as u64, out);
    key.parts().into_iter().for_each(|part| out.extend_from_slice(part));
    for (tag, number) in numbers(version) {
        encode_key(tag, WireType::Varint, out);
        encode_varint(number, out);
    }
}

/// The numbers of a version by field. None is zero: a live key was created, modified, written.
const fn numbers(version: &KeyVersion) -> [(u32, u64); 3] {
    [
        (2, version.create.0.cast_unsigned()),
        (3, version.modified.main.0.cast_unsigned()),
        (4, version.version.cast_unsigned()),
    ]
}

/// An answer without the value but with the lease.
pub(super) fn without_value(row: KeyValue) -> Bytes {
    encode(&KeyValue { value: Bytes::new(), ..row })
}

/// Reads a row, sharing its bytes.
///
/// # Errors
/// - [`Damage::Malformed`] if it is not a `mvccpb.KeyValue`.
pub(super) fn decode(at: RowRevision, row: Bytes) -> Result<KeyValue, Damage> {
    KeyValue::decode(row).map_err(|_reason| Damage::Malformed(at))
}

/// The small fields of a row, without copying anything.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RowFields<'a> {
    pub(super) key: &'a [u8],
    pub(super) create_revision: i64,
    pub(super) version: i64,
    pub(super) lease: i64,
}

impl<'a> RowFields<'a> {
    /// Reads a row; `None` if it is not a `mvccpb.KeyValue`.
    pub(super) fn parse(mut row: &'a [u8]) -> Option<Self> {
        let mut fields = Self::default();
        while !row.is_empty() {
            match decode_key(&mut row).ok()? {
                (1, WireType::LengthDelimited) => fields.key = take_delimited(&mut row)?,
                (2, WireType::Varint) => fields.create_revision = take_number(&mut row)?,
                (4, WireType::Varint) => fields.version = take_number(&mut row)?,
                (6, WireType::Varint) => fields.lease = take_number(&mut row)?,
                (_, WireType::LengthDelimited) => {
                    take_delimited(&mut row)?;
                }
                (_, WireType::Varint) => {
                    take_number(&mut row)?;
                }
                (tag, other) => {
                    skip_field(other, tag, &mut row, DecodeContext::default()).ok()?;
                }
            }
        }
        Some(fields)
    }
}

fn take_number(row: &mut &[u8]) -> Option<i64> {
    // Negative numbers are ten bytes of two's complement on the wire.
    decode_varint(row).ok().map(u64::cast_signed)
}

fn take_delimited<'a>(row: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_varint(row).ok()?).ok()?;
    let (field, rest) = row.split_at_checked(length)?;
    *row = rest;
    Some(field)
}

/// Where the key lies in a row that this module made: right behind its tag and length. An empty
/// one, which no client can name but a foreign log may hold, is left out like every default.
pub(super) fn key_within(row: &Bytes, key: &[u8]) -> Bytes {
    if key.is_empty() {
        return Bytes::new();
    }
    let start = 1 + prost::length_delimiter_len(key.len());
    let found = row.slice(start..start + key.len());
    debug_assert!(found == key, "the key is the first field");
    found
}

fn encode(row: &KeyValue) -> Bytes {
    let mut bytes = BytesMut::with_capacity(row.encoded_len());
    row.encode(&mut bytes).expect("a BytesMut grows as needed");
    bytes.freeze()
}
