//! What alarms and the quota forbid.
//!
//! Decides which committed commands are refused before they run: under a CORRUPT alarm everything
//! that reads or writes keys or leases, under a NOSPACE alarm everything that takes space. A command
//! that takes this member over its quota while no alarm is active still runs, as other members may
//! have room; its caller is told, and an alarm is raised.
//!
//! Source: etcd `server/etcdserver/apply/{corrupt,capped,quota}.go`, `server/storage/quota.go`.

use proto::etcdserverpb::{
    AlarmType, LeaseGrantRequest, PutRequest, RequestOp, TxnRequest, request_op,
};

use super::Alarms;
use crate::model::{Rejection, Request};

/// The quota while the flag is 0, in bytes.
pub const QUOTA_BYTES_DEFAULT: u64 = 2 * 1024 * 1024 * 1024;
/// What a key costs beside its bytes.
const KEY_BYTES: u64 = 256;
/// What a lease costs.
const LEASE_BYTES: u64 = 64;

/// How large the backend may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    limit_bytes: Option<u64>,
}

impl Quota {
    /// The quota that the flag asks for: 0 stands for [`QUOTA_BYTES_DEFAULT`], a negative number
    /// for none.
    #[must_use]
    pub fn from_flag(bytes: i64) -> Self {
        let limit_bytes = match u64::try_from(bytes) {
            Err(_) => None,
            Ok(0) => Some(QUOTA_BYTES_DEFAULT),
            Ok(bytes) => Some(bytes),
        };
        Self { limit_bytes }
    }

    /// Whether a request of this cost fits beside what is there. One that takes nothing always
    /// fits.
    #[must_use]
    pub fn admits(self, cost_bytes: u64, backend_bytes: u64) -> bool {
        let Some(limit) = self.limit_bytes else { return true };
        cost_bytes == 0 || backend_bytes.saturating_add(cost_bytes) < limit
    }
}

/// What `request` may add to the backend, in bytes.
#[must_use]
pub fn cost(request: &Request) -> u64 {
    if let Request::Put(put) = request {
        put_cost(put)
    } else if let Request::Txn(txn) = request {
        txn_cost(txn)
    } else if let Request::LeaseGrant(LeaseGrantRequest { .. }) = request {
        LEASE_BYTES
    } else {
        0
    }
}

/// What a put may add, in bytes.
#[must_use]
pub const fn put_cost(put: &PutRequest) -> u64 {
    KEY_BYTES + (put.key.len() + put.value.len()) as u64
}

/// What a transaction may add, in bytes: its more expensive branch.
#[must_use]
pub fn txn_cost(txn: &TxnRequest) -> u64 {
    let branch = |ops: &[RequestOp]| ops.iter().map(op_cost).sum::<u64>();
    branch(&txn.success).max(branch(&txn.failure))
}

fn op_cost(op: &RequestOp) -> u64 {
    match &op.request {
        Some(request_op::Request::RequestPut(put)) => put_cost(put),
        Some(request_op::Request::RequestTxn(txn)) => txn_cost(txn),
        Some(request_op::Request::RequestRange(_) | request_op::Request::RequestDeleteRange(_))
        | None => 0,
    }
}

/// Why the active alarms forbid `request`, if they do.
pub(super) fn forbidden(request: &Request, alarms: &Alarms) -> Option<Rejection> {
    if alarms.is_active(AlarmType::Corrupt) && touches_data(request) {
        return Some(Rejection::Corrupt);
    }
    if alarms.is_active(AlarmType::Nospace) && 0 < cost(request) {
        return Some(Rejection::NoSpace);
    }
    None
}

const fn touches_data(request: &Request) -> bool {
    matches!(
        request,
        Request::Range(_)
            | Request::Put(_)
            | Request::DeleteRange(_)
            | Request::Txn(_)
            | Request::Compaction(_)
            | Request::LeaseGrant(_)
            | Request::LeaseRevoke(_)
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn put(bytes: usize) -> PutRequest {
        PutRequest { value: Bytes::from(vec![0; bytes]), ..Default::default() }
    }

    fn op(request: request_op::Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    #[test]
    fn transaction_costs_its_dearer_branch_with_nested_ones() {
        let inner = TxnRequest {
            failure: vec![op(request_op::Request::RequestPut(put(1000)))],
            ..Default::default()
        };
        let outer = TxnRequest {
            success: vec![op(request_op::Request::RequestPut(put(10)))],
            failure: vec![
                op(request_op::Request::RequestTxn(inner)),
                op(request_op::Request::RequestPut(put(1))),
                RequestOp { request: None },
            ],
            ..Default::default()
        };
        assert_eq!(txn_cost(&outer), 256 + 1000 + 256 + 1);
    }

    #[test]
    fn quota_admits_below_its_limit_and_whatever_is_free() {
        let quota = Quota::from_flag(1000);
        assert!(quota.admits(100, 899) && quota.admits(0, 5000));
        assert!(!quota.admits(100, 900));
        assert!(Quota::from_flag(-1).admits(u64::MAX, u64::MAX));
        assert!(!Quota::from_flag(0).admits(1, QUOTA_BYTES_DEFAULT));
    }
}
