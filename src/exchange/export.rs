//! Our state as an etcd database file.
//!
//! Decides the order of work: both passes run over one read transaction, so that what the second
//! writes is what the first planned (X1). Called by backups and by the offline tools.

use std::io::Write;

use super::{
    ExchangeError,
    bucket::{BUCKETS, Content},
};
use crate::{
    bolt::{BoltError, Plan, Planner, Writer},
    model::RowRevision,
    storage::{Reader, Table, keys},
};

/// Writes everything that `reader` sees as an etcd database file. `begin` is told its exact length
/// before the first byte.
///
/// # Errors
/// - [`ExchangeError::Backend`] if a row or record is damaged.
/// - [`ExchangeError::Receiver`] if `out` refuses.
/// - [`ExchangeError::Export`] if an entry is longer than the format can hold.
pub fn export<W: Write>(
    reader: &Reader<'_>,
    out: W,
    begin: impl FnOnce(u64, W) -> W,
) -> Result<W, ExchangeError> {
    let plan = plan(reader)?;
    let out = begin(plan.bytes_total(), out);
    let mut writer = Writer::new(plan, out).map_err(write_failed)?;
    for content in BUCKETS {
        writer.bucket(content.name().as_bytes()).map_err(write_failed)?;
        visit(reader, content, |key, value| writer.entry(key, value).map_err(write_failed))?;
    }
    writer.finish().map_err(write_failed)
}

fn plan(reader: &Reader<'_>) -> Result<Plan, ExchangeError> {
    let mut planner = Planner::new();
    for content in BUCKETS {
        planner.bucket(content.name().as_bytes()).map_err(ExchangeError::Export)?;
        visit(reader, content, |key, value| {
            planner.entry(key, value.len()).map_err(ExchangeError::Export)
        })?;
    }
    planner.finish().map_err(ExchangeError::Export)
}

/// Shows `entry` every key and value of a bucket, in order.
pub(super) fn visit(
    reader: &Reader<'_>,
    content: Content,
    mut entry: impl FnMut(&[u8], &[u8]) -> Result<(), ExchangeError>,
) -> Result<(), ExchangeError> {
    match content {
        Content::Rows => {
            let mut key = Vec::with_capacity(keys::ETCD_REVISION_BYTES + 1);
            for row in reader.row_refs(RowRevision::default())? {
                let row = row?;
                key.clear();
                keys::push_etcd_row_key(&mut key, row.revision, row.tombstone);
                entry(&key, row.value)?;
            }
        }
        // There may be millions of leases, and their keys are short: no need to sort.
        Content::Records(table @ Table::Lease) => {
            for record in reader.scan(table)? {
                let (key, value) = record?;
                entry(key, value)?;
            }
        }
        Content::Records(table) => {
            // LMDB orders long names by a part of them only.
            let mut records = reader.scan(table)?.collect::<Result<Vec<_>, _>>()?;
            records.sort_unstable();
            for (key, value) in records {
                entry(key, value)?;
            }
        }
    }
    Ok(())
}

fn write_failed(error: BoltError) -> ExchangeError {
    match error {
        BoltError::Io(source) => ExchangeError::Receiver(source),
        error @ (BoltError::NotADatabase
        | BoltError::OtherVersion
        | BoltError::MetaChecksum
        | BoltError::Damaged { .. }
        | BoltError::OutOfOrder
        | BoltError::Unfit { .. }
        | BoltError::PlanBroken { .. }) => ExchangeError::Export(error),
    }
}
