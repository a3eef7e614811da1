//! What a backup holds: `snapshot status`.
//!
//! Decides the order of the hash: bucket by bucket, name, then keys and values. Called by the
//! binary.
//!
//! Source: etcd `etcdutl/snapshot/v3_snapshot.go`, `Status`.

use std::{collections::HashSet, fs, path::Path};

use prost::Message;
use proto::mvccpb::KeyValue;
use serde::Serialize;

use super::{OfflineError, Progress};
use crate::{
    exchange::EtcdFile,
    storage::{keys, tables::ROWS},
};

/// What `snapshot status` tells of a file. The field names of its JSON are etcd's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// CRC-32C over all buckets.
    pub hash: u32,
    /// The last revision in the history.
    pub revision: i64,
    /// Keys that live at that revision.
    pub total_key: usize,
    /// The length of the pages, in bytes.
    pub total_size: u64,
    /// The version of the storage schema; empty before etcd 3.6.
    pub version: String,
}

/// Checks and summarizes the database file at `path`.
///
/// # Errors
/// - [`OfflineError::Path`] without such a file, [`OfflineError::Database`] if it is none.
/// - [`OfflineError::Integrity`], [`OfflineError::History`] if it is damaged.
pub fn snapshot_status(path: &Path) -> Result<Status, OfflineError> {
    stat(path)?;
    let file = EtcdFile::open(path)?;
    let findings = file.check();
    if !findings.is_empty() {
        return Err(OfflineError::Integrity(findings));
    }
    let mut status = Status {
        total_size: file.bytes_total(),
        version: file.storage_version()?.unwrap_or_default(),
        ..Status::default()
    };
    let progress = Progress::new("hashing", status.total_size);
    let mut live = HashSet::new();
    for name in file.bucket_names() {
        status.hash = crc32c::crc32c_append(status.hash, name);
        for entry in file.entries(name) {
            let entry = entry?;
            status.hash = crc32c::crc32c_append(status.hash, &entry.key);
            status.hash = crc32c::crc32c_append(status.hash, &entry.value);
            progress.add((entry.key.len() + entry.value.len()) as u64);
            if name == ROWS.as_bytes() {
                status.revision = count(&mut live, &entry.key, &entry.value)?;
            }
        }
    }
    status.total_key = live.len();
    Ok(status)
}

/// Refuses a path that leads nowhere, as Go says it.
pub(super) fn stat(path: &Path) -> Result<fs::Metadata, OfflineError> {
    fs::metadata(path).map_err(|source| OfflineError::Path {
        operation: "stat",
        path: path.to_owned(),
        source,
    })
}

/// Adds one change to the set of live keys; gives its revision.
fn count(live: &mut HashSet<Box<[u8]>>, row_key: &[u8], value: &[u8]) -> Result<i64, OfflineError> {
    let Some((revision, tombstone)) = keys::parse_etcd_revision(row_key) else {
        return Err(OfflineError::History(format!("cannot parse revision key: {row_key:?}")));
    };
    let pair = KeyValue::decode(value).map_err(|error| {
        OfflineError::History(format!(
            "cannot unmarshal value, revision {}: {error}",
            revision.main
        ))
    })?;
    if tombstone {
        live.remove(&pair.key[..]);
    } else {
        // A copy: the decoded key would keep its whole page in memory.
        live.insert(Box::from(&pair.key[..]));
    }
    Ok(revision.main.0)
}
