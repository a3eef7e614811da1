//! The bytes of a row: the canonical wire form of `mvccpb.KeyValue`.
//!
//! Decides what is stored and hashed, so every member must encode alike: ascending field numbers,
//! defaults omitted. A row is encoded once, when it is written; everybody after that copies it.

use bytes::{Bytes, BytesMut};
use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use proto::mvccpb::KeyValue;

use super::{rows::Damage, version::KeyVersion};
use crate::model::{LeaseId, Revision, RowRevision};

/// The row of a put.
pub(super) fn put_row(key: Bytes, value: Bytes, lease: LeaseId, version: &KeyVersion) -> Bytes {
    encode(&KeyValue { value, lease: lease.0, ..keys_only(key, version) })
}

/// The row of a deletion: only the key.
pub(super) fn tombstone_row(key: Bytes) -> Bytes {
    encode(&KeyValue { key, ..KeyValue::default() })
}

/// What a watcher is told of a deletion: the key, and when it was deleted.
pub(super) fn delete_event(key: Bytes, main: Revision) -> Bytes {
    encode(&KeyValue { key, mod_revision: main.0, ..KeyValue::default() })
}

/// An answer without the value, and without the lease, which only the row knows.
pub(super) fn keys_only_row(key: Bytes, version: &KeyVersion) -> Bytes {
    encode(&keys_only(key, version))
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

fn keys_only(key: Bytes, version: &KeyVersion) -> KeyValue {
    KeyValue {
        key,
        create_revision: version.create.0,
        mod_revision: version.modified.main.0,
        version: version.version,
        value: Bytes::new(),
        lease: 0,
    }
}

fn encode(row: &KeyValue) -> Bytes {
    let mut bytes = BytesMut::with_capacity(row.encoded_len());
    row.encode(&mut bytes).expect("a BytesMut grows as needed");
    bytes.freeze()
}
