//! The conditions of a transaction.
//!
//! Decides whether a condition holds in the state before the transaction. A condition on a range
//! holds if it holds for every key of it. Called by `txn`.
//!
//! Source: etcd `server/etcdserver/txn/txn.go`, `applyCompare`.

use std::cmp::Ordering;

use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::{
        Compare,
        compare::{CompareResult, CompareTarget, TargetUnion},
    },
    mvccpb::KeyValue,
};

use crate::{
    model::{KeyRange, RangeAnswer, Revision},
    mvcc::{KeyVersion, RangeOptions, ReadError, View, WriteTxn},
};

/// What conditions and checks read: the state before a transaction, on the apply thread or, for a
/// transaction that only reads, in a view.
pub(super) trait KeySpace {
    fn revision(&self) -> Revision;
    fn compacted(&self) -> Revision;
    fn version(&self, key: &[u8]) -> Option<KeyVersion>;
    fn row_of(&self, version: &KeyVersion) -> Result<Bytes, ReadError>;
    fn select(&self, options: &RangeOptions) -> Result<RangeAnswer, ReadError>;
}

impl KeySpace for WriteTxn<'_> {
    fn revision(&self) -> Revision {
        self.revision()
    }

    fn compacted(&self) -> Revision {
        self.view().compacted()
    }

    fn version(&self, key: &[u8]) -> Option<KeyVersion> {
        self.get(key)
    }

    fn row_of(&self, version: &KeyVersion) -> Result<Bytes, ReadError> {
        self.row(version.modified)
    }

    fn select(&self, options: &RangeOptions) -> Result<RangeAnswer, ReadError> {
        self.range(options)
    }
}

impl KeySpace for View {
    fn revision(&self) -> Revision {
        self.revision()
    }

    fn compacted(&self) -> Revision {
        self.compacted()
    }

    fn version(&self, key: &[u8]) -> Option<KeyVersion> {
        self.get(key)
    }

    fn row_of(&self, version: &KeyVersion) -> Result<Bytes, ReadError> {
        // What the index knows can only be gone if a compaction newer than the view took it.
        self.row(version.modified)?.ok_or(ReadError::Outdated)
    }

    fn select(&self, options: &RangeOptions) -> Result<RangeAnswer, ReadError> {
        self.range(options)
    }
}

/// Whether every condition holds.
pub(super) fn all_hold(keys: &impl KeySpace, compares: &[Compare]) -> Result<bool, ReadError> {
    for compare in compares {
        if !holds(keys, compare)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn holds(keys: &impl KeySpace, compare: &Compare) -> Result<bool, ReadError> {
    let found = match KeyRange::from_wire(compare.key.clone(), compare.range_end.clone()) {
        KeyRange::Single(key) => find(keys, &key, compare)?.into_iter().collect(),
        range @ (KeyRange::From(_) | KeyRange::Between(..)) => find_all(keys, range)?,
    };
    if found.is_empty() {
        // A value that is not there cannot be told from an empty one, so nothing is said of it.
        let says_something = target(compare) != Some(CompareTarget::Value);
        return Ok(says_something && holds_for(compare, &KeyValue::default()));
    }
    Ok(found.iter().all(|key_value| holds_for(compare, key_value)))
}

/// What `compare` needs to know of `key`: its row is only read for a value or a lease.
fn find(
    keys: &impl KeySpace,
    key: &[u8],
    compare: &Compare,
) -> Result<Option<KeyValue>, ReadError> {
    let Some(version) = keys.version(key) else { return Ok(None) };
    Ok(Some(match target(compare) {
        Some(CompareTarget::Value | CompareTarget::Lease) => decode_row(keys.row_of(&version)?),
        Some(CompareTarget::Version | CompareTarget::Create | CompareTarget::Mod) | None => {
            KeyValue {
                create_revision: version.create.0,
                mod_revision: version.modified.main.0,
                version: version.version,
                ..KeyValue::default()
            }
        }
    }))
}

fn find_all(keys: &impl KeySpace, range: KeyRange) -> Result<Vec<KeyValue>, ReadError> {
    let answer = keys.select(&RangeOptions::of(range))?;
    Ok(answer.rows.into_iter().map(decode_row).collect())
}

/// A row as the store gave it out: it was encoded here, or checked when it was read.
pub(super) fn decode_row(row: Bytes) -> KeyValue {
    KeyValue::decode(row).expect("rows are checked when they are read")
}

fn target(compare: &Compare) -> Option<CompareTarget> {
    CompareTarget::try_from(compare.target).ok()
}

fn holds_for(compare: &Compare, key_value: &KeyValue) -> bool {
    let ordering = order(compare, key_value);
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering == Ordering::Equal,
        Ok(CompareResult::NotEqual) => ordering != Ordering::Equal,
        Ok(CompareResult::Greater) => ordering == Ordering::Greater,
        Ok(CompareResult::Less) => ordering == Ordering::Less,
        Err(_) => true,
    }
}

/// How the key stands to what the condition names. What is left out, or is of another kind than
/// the target, counts as 0 or empty; an unknown target as equal.
fn order(compare: &Compare, key_value: &KeyValue) -> Ordering {
    let given = compare.target_union.as_ref();
    let number = |number: Option<i64>| number.unwrap_or(0);
    match target(compare) {
        Some(CompareTarget::Value) => {
            let value = match given {
                Some(TargetUnion::Value(value)) => value.as_ref(),
                _ => &[],
            };
            key_value.value.as_ref().cmp(value)
        }
        Some(CompareTarget::Version) => key_value.version.cmp(&number(match given {
            Some(TargetUnion::Version(version)) => Some(*version),
            _ => None,
        })),
        Some(CompareTarget::Create) => key_value.create_revision.cmp(&number(match given {
            Some(TargetUnion::CreateRevision(revision)) => Some(*revision),
            _ => None,
        })),
        Some(CompareTarget::Mod) => key_value.mod_revision.cmp(&number(match given {
            Some(TargetUnion::ModRevision(revision)) => Some(*revision),
            _ => None,
        })),
        Some(CompareTarget::Lease) => key_value.lease.cmp(&number(match given {
            Some(TargetUnion::Lease(lease)) => Some(*lease),
            _ => None,
        })),
        None => Ordering::Equal,
    }
}
