//! Puts, deletions, reads and transactions of them.
//!
//! Decides everything before it writes anything: a write transaction of the store cannot be rolled
//! back, so a command is first read in full, then carried out without a way to fail.
//!
//! ```text
//!   choose   every condition, nested ones too, against the state before     -> path of branches
//!   check    every operation on that path, in order                         -> Rejection, or none
//!   execute  every operation on that path, in order, each sees the earlier  -> one revision
//! ```
//!
//! Invariants
//! - T1 A rejected command leaves the store and the leases as they were.
//! - T2 What passes `check` cannot fail in `execute`, whatever the log holds. Official members stop
//!   for good at an entry that breaks this; here `check` follows the keys that earlier operations of
//!   the same transaction write and delete, where a later one depends on them.
//!
//! Source: etcd `server/etcdserver/txn/{txn,put,delete,range}.go`.

use bytes::Bytes;
use proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op,
};

use super::compare::{KeySpace, all_hold, decode_row};
use crate::{
    lease::LeaseTable,
    model::{
        Answer, DeleteAnswer, KeyRange, LeaseId, PutAnswer, RangeAnswer, Rejection, Revision,
        TxnAnswer,
    },
    mvcc::{KeyVersion, RangeOptions, ReadError, View, WriteTxn},
};

/// Carries out one put.
pub(super) fn put(
    txn: &mut WriteTxn<'_>,
    leases: &mut LeaseTable,
    request: &PutRequest,
) -> Result<PutAnswer, ReadError> {
    check_put(txn, leases, request, None)?;
    execute_put(txn, leases, request)
}

/// Carries out one deletion.
pub(super) fn delete_range(
    txn: &mut WriteTxn<'_>,
    leases: &mut LeaseTable,
    request: &DeleteRangeRequest,
) -> Result<DeleteAnswer, ReadError> {
    let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
    let deleted = txn.delete_range(&range);
    let mut previous = Vec::new();
    for gone in &deleted {
        leases.detach(&gone.key);
        if request.prev_kv {
            previous.push(txn.row(gone.previous.modified)?);
        }
    }
    let deleted = i64::try_from(deleted.len()).expect("keys fit into memory");
    Ok(DeleteAnswer { revision: txn.revision(), deleted, previous })
}

/// Answers a read that stands in the log by itself, as old versions wrote it.
pub(super) fn range(
    keys: &impl KeySpace,
    request: &RangeRequest,
) -> Result<RangeAnswer, ReadError> {
    keys.select(&RangeOptions::from_wire(request))
}

/// Carries out a transaction.
pub(super) fn txn(
    txn: &mut WriteTxn<'_>,
    leases: &mut LeaseTable,
    request: &TxnRequest,
) -> Result<TxnAnswer, ReadError> {
    let mut path = Vec::new();
    choose(txn, request, &mut path)?;
    check(txn, leases, request, &mut path.iter().copied(), &mut Earlier::default())?;
    let mut answer = execute(txn, leases, request, &mut path.iter().copied())?;
    answer.revision = txn.revision();
    Ok(answer)
}

/// Answers a transaction whose operations, but for nested ones, are all reads. It is not in the
/// log: any member answers it from a view.
///
/// # Errors
/// - [`ReadError::Rejected`] if it reads at a revision that is compacted or in the future.
/// - [`ReadError::Outdated`] if a newer view must be asked.
/// - [`ReadError::Damaged`] if stored rows are lost or broken.
pub fn read_only_txn(view: &View, request: &TxnRequest) -> Result<TxnAnswer, ReadError> {
    let succeeded = all_hold(view, &request.compare)?;
    let mut answers = Vec::new();
    let operations = branch(request, succeeded);
    for read in operations.iter().filter_map(as_range) {
        check_range(view, read)?;
    }
    for operation in operations {
        answers.push(match as_range(operation) {
            Some(read) => Answer::Range(range(view, read)?),
            None => Answer::Done,
        });
    }
    Ok(TxnAnswer { revision: view.revision(), succeeded, answers })
}

const fn as_range(operation: &RequestOp) -> Option<&RangeRequest> {
    match &operation.request {
        Some(request_op::Request::RequestRange(read)) => Some(read),
        _ => None,
    }
}

fn branch(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

/// Appends which branch is taken, here and then in each nested transaction of that branch.
fn choose(
    keys: &impl KeySpace,
    request: &TxnRequest,
    path: &mut Vec<bool>,
) -> Result<(), ReadError> {
    let succeeded = all_hold(keys, &request.compare)?;
    path.push(succeeded);
    for operation in branch(request, succeeded) {
        if let Some(request_op::Request::RequestTxn(nested)) = &operation.request {
            choose(keys, nested, path)?;
        }
    }
    Ok(())
}

/// What the operations before the one being checked do to keys, in order.
#[derive(Default)]
struct Earlier(Vec<Touched>);

enum Touched {
    Written(Bytes),
    Deleted(KeyRange),
}

impl Earlier {
    /// The last thing done to `key`.
    fn last(&self, key: &[u8]) -> Option<&Touched> {
        self.0.iter().rev().find(|touched| match touched {
            Touched::Written(written) => written == key,
            Touched::Deleted(range) => range.contains(key),
        })
    }
}

fn check(
    keys: &impl KeySpace,
    leases: &LeaseTable,
    request: &TxnRequest,
    path: &mut impl Iterator<Item = bool>,
    earlier: &mut Earlier,
) -> Result<(), ReadError> {
    for operation in branch(request, next_branch(path)) {
        match &operation.request {
            Some(request_op::Request::RequestRange(read)) => check_range(keys, read)?,
            Some(request_op::Request::RequestPut(put)) => {
                // Only these depend on what came before; the search is quadratic.
                let depends = put.ignore_value || put.ignore_lease;
                let before = if depends { earlier.last(&put.key) } else { None };
                check_put(keys, leases, put, before)?;
                earlier.0.push(Touched::Written(put.key.clone()));
            }
            Some(request_op::Request::RequestDeleteRange(delete)) => {
                let range = KeyRange::from_wire(delete.key.clone(), delete.range_end.clone());
                earlier.0.push(Touched::Deleted(range));
            }
            Some(request_op::Request::RequestTxn(nested)) => {
                check(keys, leases, nested, path, earlier)?;
            }
            None => {}
        }
    }
    Ok(())
}

fn next_branch(path: &mut impl Iterator<Item = bool>) -> bool {
    path.next().expect("the path has a branch for every transaction on it")
}

/// Stricter than a plain read: a revision below -1 is compacted even if nothing ever was.
fn check_range(keys: &impl KeySpace, request: &RangeRequest) -> Result<(), ReadError> {
    let requested = Revision(request.revision);
    let (current, compacted) = (keys.revision(), keys.compacted());
    if requested == Revision(0) {
        Ok(())
    } else if current < requested {
        Err(ReadError::Rejected(Rejection::FutureRevision { requested, current }))
    } else if requested < compacted {
        Err(ReadError::Rejected(Rejection::Compacted { requested, compacted }))
    } else {
        Ok(())
    }
}

fn check_put(
    keys: &impl KeySpace,
    leases: &LeaseTable,
    request: &PutRequest,
    earlier: Option<&Touched>,
) -> Result<(), ReadError> {
    let lease = LeaseId(request.lease);
    let none = LeaseId(0);
    if lease != none && !leases.contains(lease) {
        return Err(ReadError::Rejected(Rejection::LeaseNotFound { lease }));
    }
    if request.ignore_value || request.ignore_lease {
        let not_found = ReadError::Rejected(Rejection::KeyNotFound);
        let version = keys.version(&request.key).ok_or_else(|| not_found.clone())?;
        match earlier {
            Some(Touched::Deleted(_)) => return Err(not_found),
            Some(Touched::Written(_)) => {}
            None if request.ignore_lease => {
                // Stored rows can name a lease that is gone, if a backup was tampered with.
                let lease = LeaseId(decode_row(keys.row_of(&version)?).lease);
                if lease != none && !leases.contains(lease) {
                    return Err(ReadError::Rejected(Rejection::LeaseNotFound { lease }));
                }
            }
            None => {}
        }
    }
    Ok(())
}

/// The answer's revision is 0, as official members have it in nested transactions.
fn execute(
    txn: &mut WriteTxn<'_>,
    leases: &mut LeaseTable,
    request: &TxnRequest,
    path: &mut impl Iterator<Item = bool>,
) -> Result<TxnAnswer, ReadError> {
    let succeeded = next_branch(path);
    let operations = branch(request, succeeded);
    let mut answers = Vec::with_capacity(operations.len());
    for operation in operations {
        answers.push(match &operation.request {
            Some(request_op::Request::RequestRange(read)) => Answer::Range(range(txn, read)?),
            Some(request_op::Request::RequestPut(put)) => {
                Answer::Put(execute_put(txn, leases, put)?)
            }
            Some(request_op::Request::RequestDeleteRange(delete)) => {
                Answer::DeleteRange(delete_range(txn, leases, delete)?)
            }
            Some(request_op::Request::RequestTxn(nested)) => {
                Answer::Txn(execute(txn, leases, nested, path)?)
            }
            None => Answer::Done,
        });
    }
    Ok(TxnAnswer { revision: Revision(0), succeeded, answers })
}

fn execute_put(
    txn: &mut WriteTxn<'_>,
    leases: &mut LeaseTable,
    request: &PutRequest,
) -> Result<PutAnswer, ReadError> {
    let mut value = request.value.clone();
    let mut lease = LeaseId(request.lease);
    let mut previous = None;
    if request.ignore_value || request.ignore_lease || request.prev_kv {
        previous = row_before(txn, txn.get(&request.key))?;
    }
    if let Some(row) = &previous
        && (request.ignore_value || request.ignore_lease)
    {
        let before = decode_row(row.clone());
        if request.ignore_value {
            value = before.value;
        }
        if request.ignore_lease {
            lease = LeaseId(before.lease);
        }
    }
    txn.put(&request.key, value, lease);
    leases.attach(&request.key, lease).expect("the lease was found before anything was written");
    let previous = previous.filter(|_| request.prev_kv);
    Ok(PutAnswer { revision: txn.revision(), previous })
}

fn row_before(txn: &WriteTxn<'_>, version: Option<KeyVersion>) -> Result<Option<Bytes>, ReadError> {
    version.map(|version| txn.row(version.modified)).transpose()
}
