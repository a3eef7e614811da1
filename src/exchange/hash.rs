//! The hash of a whole database.
//!
//! Decides what counts: every bucket by name, with its keys and values, but not what a member
//! writes for itself alone. Two members that applied the same entries have the same hash. Called
//! by the Maintenance service.
//!
//! Source: etcd `server/storage/backend/backend.go`, `Hash`, and
//! `server/storage/schema/bucket.go`, `DefaultIgnores`.

use super::{
    ExchangeError,
    bucket::{BUCKETS, Content},
    export::visit,
};
use crate::storage::{
    Reader, Table,
    tables::{CONSISTENT_INDEX, STORAGE_VERSION, TERM},
};

/// Records of the `meta` bucket that depend on when a member wrote them.
const UNCOUNTED: [&[u8]; 3] = [CONSISTENT_INDEX, TERM, STORAGE_VERSION];

/// CRC-32C over everything that `reader` sees, as an etcd database file would have it. Reads every
/// page once.
///
/// # Errors
/// - [`ExchangeError::Backend`] if a row or record is damaged.
pub fn hash_backend(reader: &Reader<'_>) -> Result<u32, ExchangeError> {
    let mut hash = 0;
    for content in BUCKETS {
        hash = crc32c::crc32c_append(hash, content.name().as_bytes());
        visit(reader, content, |key, value| {
            if content != Content::Records(Table::Meta) || !UNCOUNTED.contains(&key) {
                hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, key), value);
            }
            Ok(())
        })?;
    }
    Ok(hash)
}
