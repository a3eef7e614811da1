//! The hash of the key history that members compare: `hashkv`, on files.
//!
//! Decides which rows count, from the rows alone: the first pass follows every key through its
//! lives, the second hashes. Called by the binary.
//!
//! Source: etcd `server/storage/mvcc/{hash,key_index}.go`, `etcdutl/etcdutl/hashkv_command.go`.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use prost::Message;
use proto::mvccpb::KeyValue;
use serde::Serialize;

use super::{LockTimeout, OfflineError, Progress, lock, status::stat};
use crate::{
    exchange::EtcdFile,
    model::{Revision, Row, RowRevision},
    storage::{
        Backend, Table,
        backend::BACKEND_DIRECTORY,
        keys,
        tables::{FINISHED_COMPACT_REVISION, ROWS, SCHEDULED_COMPACT_REVISION},
    },
};

/// The hash of a key history. The field names of its JSON are etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HashKv {
    /// CRC-32C over the rows that count.
    pub hash: u32,
    /// The revision up to which they count.
    pub hash_revision: i64,
    /// The last compaction; -1 if there was none.
    pub compact_revision: i64,
}

/// Hashes the history in the database file or data directory at `path`, up to `revision`; 0 is the
/// last one. Nothing is changed, and an unfinished compaction counts as finished.
/// Of a data directory this is its checkpoint: what a member that did not stop in order has only in
/// its log is not in it.
///
/// # Errors
/// - [`OfflineError::Path`] without such a file, [`OfflineError::Database`] if it is damaged.
/// - [`OfflineError::Compacted`], [`OfflineError::FutureRevision`] for revisions out of range.
pub fn hash_kv(path: &Path, revision: i64, timeout: LockTimeout) -> Result<HashKv, OfflineError> {
    let metadata = stat(path)?;
    if !metadata.is_dir() {
        return hash_file(path, revision);
    }
    let snap = path.join("member").join("snap");
    let own = own_directory(path, &snap);
    if let Some(own) = own {
        return hash_backend(own, revision, timeout);
    }
    let database = snap.join("db");
    stat(&database)?;
    hash_file(&database, revision)
}

/// Our backend in a data directory, or in `path` itself.
fn own_directory(path: &Path, snap: &Path) -> Option<PathBuf> {
    [snap.join(BACKEND_DIRECTORY), path.to_owned()].into_iter().find(|dir| Backend::exists(dir))
}

fn hash_file(path: &Path, revision: i64) -> Result<HashKv, OfflineError> {
    let file = EtcdFile::open(path)?;
    let compacted = Compacted {
        scheduled: file.get(Table::Meta, SCHEDULED_COMPACT_REVISION)?.as_deref().and_then(parse),
        finished: file.get(Table::Meta, FINISHED_COMPACT_REVISION)?.as_deref().and_then(parse),
    };
    let progress = Progress::new("hashing", 2 * file.bytes_total());
    let rows = |row: &mut RowVisitor<'_>| {
        for item in file.rows() {
            let item: Row = item?;
            progress.add(item.value.len() as u64);
            row(item.revision, item.tombstone, &item.value)?;
        }
        Ok(())
    };
    hash_rows(&rows, compacted, revision)
}

fn hash_backend(dir: PathBuf, revision: i64, timeout: LockTimeout) -> Result<HashKv, OfflineError> {
    let (backend, _writer) = lock::open(dir, timeout)?;
    let reader = backend.reader()?;
    let compacted = Compacted {
        scheduled: reader.get(Table::Meta, SCHEDULED_COMPACT_REVISION)?.and_then(parse),
        finished: reader.get(Table::Meta, FINISHED_COMPACT_REVISION)?.and_then(parse),
    };
    let progress = Progress::new("hashing", 2 * backend.sizes().in_use);
    let rows = |row: &mut RowVisitor<'_>| {
        for item in reader.row_refs(RowRevision::default())? {
            let item = item?;
            progress.add(item.value.len() as u64);
            row(item.revision, item.tombstone, item.value)?;
        }
        Ok(())
    };
    hash_rows(&rows, compacted, revision)
}

fn parse(value: &[u8]) -> Option<Revision> {
    keys::parse_etcd_revision(value).map(|(revision, _)| revision.main)
}

/// What a pass does with each row.
pub(super) type RowVisitor<'a> =
    dyn FnMut(RowRevision, bool, &[u8]) -> Result<(), OfflineError> + 'a;
/// A pass over all rows, in order.
pub(super) type Pass<'a> = dyn Fn(&mut RowVisitor<'_>) -> Result<(), OfflineError> + 'a;

/// Where compactions stand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Compacted {
    pub(super) scheduled: Option<Revision>,
    pub(super) finished: Option<Revision>,
}

/// Hashes the rows that `pass` shows, twice.
pub(super) fn hash_rows(
    pass: &Pass<'_>,
    compacted: Compacted,
    revision: i64,
) -> Result<HashKv, OfflineError> {
    let compact = compacted.scheduled.max(compacted.finished).unwrap_or(Revision(-1));
    let current = last_revision(pass)?.max(compact).max(Revision(1));
    let at = match Revision(revision) {
        Revision(0) => current,
        asked if Revision(0) < asked && asked < compact => return Err(OfflineError::Compacted),
        asked if current < asked => return Err(OfflineError::FutureRevision),
        asked => asked,
    };
    let keep = kept(pass, at)?;
    let mut hash = crc32c::crc32c(ROWS.as_bytes());
    let mut key = Vec::with_capacity(keys::ETCD_REVISION_BYTES + 1);
    pass(&mut |revision, tombstone, value| {
        let compacted_away =
            revision.main <= compact && !keep.is_empty() && !keep.contains(&revision);
        // Older versions delete this row; newer ones keep it until the next compaction.
        let closing = revision.main == compact && tombstone;
        if revision.main <= at && !compacted_away && !closing {
            key.clear();
            keys::push_etcd_row_key(&mut key, revision, tombstone);
            hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, &key), value);
        }
        Ok(())
    })?;
    Ok(HashKv { hash, hash_revision: at.0, compact_revision: compact.0 })
}

fn last_revision(pass: &Pass<'_>) -> Result<Revision, OfflineError> {
    let mut last = Revision(0);
    pass(&mut |revision, _, _| {
        last = revision.main;
        Ok(())
    })?;
    Ok(last)
}

/// One key on its way through history.
#[derive(Debug)]
enum Life {
    /// In the life that may be the one to keep: its newest change up to the revision asked for.
    Open { newest: Option<RowRevision> },
    /// Deleted before the revision asked for, and not created again so far.
    Ended,
    /// The life that holds the revision is known; so is what is kept of it.
    Decided { newest: Option<RowRevision> },
}

/// The rows that a compaction at `at` would keep, less those that only say that a key was deleted.
fn kept(pass: &Pass<'_>, at: Revision) -> Result<HashSet<RowRevision>, OfflineError> {
    let mut lives: HashMap<Box<[u8]>, Life> = HashMap::new();
    pass(&mut |revision, tombstone, value| {
        let pair = KeyValue::decode(value).map_err(|error| {
            OfflineError::History(format!(
                "cannot unmarshal value, revision {}: {error}",
                revision.main
            ))
        })?;
        match lives.get_mut(&pair.key[..]) {
            Some(life) => life.step(revision, tombstone, at),
            None => {
                // Of a key that is deleted first, the creation was compacted.
                let mut life = Life::Open { newest: None };
                life.step(revision, tombstone, at);
                lives.insert(Box::from(&pair.key[..]), life);
            }
        }
        Ok(())
    })?;
    let newest = |life: &Life| match life {
        Life::Open { newest } | Life::Decided { newest } => *newest,
        Life::Ended => None,
    };
    Ok(lives.values().filter_map(newest).collect())
}

impl Life {
    fn step(&mut self, revision: RowRevision, tombstone: bool, at: Revision) {
        let newest = match self {
            Self::Decided { .. } => return,
            // A deletion of nothing, which etcd ignores.
            Self::Ended if tombstone => return,
            Self::Ended => None,
            Self::Open { newest } => *newest,
        };
        let newest = if revision.main <= at { Some(revision) } else { newest };
        *self = match (tombstone, revision.main < at) {
            (false, _) => Self::Open { newest },
            (true, true) => Self::Ended,
            (true, false) => Self::Decided { newest: newest.filter(|newest| *newest != revision) },
        };
    }
}
