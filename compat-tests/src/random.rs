//! Random requests over a small key space.
//!
//! Decides what a random history looks like: mostly writes, with deletes of ranges, nested
//! transactions, leases, compactions and reads of old revisions. The same seed gives the same
//! requests.

use bytes::Bytes;
use proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest,
    LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};

use crate::script::Call;

/// A generator of requests.
#[derive(Debug)]
pub struct Generator {
    state: u64,
    keys: u64,
    /// About the revision that the history has reached.
    revision: i64,
    leases: Vec<i64>,
    next_lease: i64,
}

impl Generator {
    /// Requests over `keys` keys.
    #[must_use]
    pub const fn new(seed: u64, keys: u64) -> Self {
        Self { state: seed, keys, revision: 1, leases: Vec::new(), next_lease: 1 }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn key(&mut self) -> Bytes {
        let key = self.below(self.keys);
        format!("key/{key:05}").into()
    }

    fn range(&mut self) -> (Bytes, Bytes) {
        let start = self.key();
        let end = match self.below(6) {
            0 => Bytes::new(),
            1 => Bytes::from_static(b"\0"),
            _ => self.key(),
        };
        (start, end)
    }

    fn value(&mut self) -> Bytes {
        let length = self.below(40);
        let letter = b'a' + u8::try_from(self.below(26)).expect("below 26");
        vec![letter; usize::try_from(length).expect("below 40")].into()
    }

    fn old_revision(&mut self) -> i64 {
        let back = i64::try_from(self.below(60)).expect("below 60");
        if self.below(3) == 0 { 0 } else { (self.revision - back).max(1) }
    }

    fn lease(&mut self) -> i64 {
        if self.leases.is_empty() || self.below(4) != 0 {
            return 0;
        }
        let count = u64::try_from(self.leases.len()).expect("a count");
        let place = usize::try_from(self.below(count)).expect("below a length");
        self.leases[place]
    }

    fn put(&mut self) -> PutRequest {
        let ignore = self.below(20);
        PutRequest {
            key: self.key(),
            value: if ignore == 0 { Bytes::new() } else { self.value() },
            lease: if ignore == 1 { 0 } else { self.lease() },
            prev_kv: self.below(3) == 0,
            ignore_value: ignore == 0,
            ignore_lease: ignore == 1,
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let key = self.key();
        let range_end = match self.below(3) {
            0 => {
                let mut end = key.to_vec();
                *end.last_mut().expect("keys are not empty") += 1;
                end.into()
            }
            1 => self.key(),
            _ => Bytes::new(),
        };
        DeleteRangeRequest { key, range_end, prev_kv: self.below(2) == 0 }
    }

    fn get(&mut self) -> RangeRequest {
        let (key, range_end) = self.range();
        RangeRequest {
            key,
            range_end,
            limit: i64::try_from(self.below(8)).expect("below 8") - 1,
            revision: self.old_revision(),
            sort_order: i32::try_from(self.below(3)).expect("below 3"),
            // By key only: the order among equal values is nobody's promise.
            sort_target: 0,
            serializable: self.below(2) == 0,
            keys_only: self.below(6) == 0,
            count_only: self.below(8) == 0,
            min_mod_revision: if self.below(8) == 0 { self.old_revision() } else { 0 },
            max_mod_revision: if self.below(8) == 0 { self.old_revision() } else { 0 },
            min_create_revision: if self.below(8) == 0 { self.old_revision() } else { 0 },
            max_create_revision: if self.below(8) == 0 { self.old_revision() } else { 0 },
        }
    }

    fn compare(&mut self) -> Compare {
        let target = self.below(5);
        let number = self.old_revision();
        let union = match target {
            0 => TargetUnion::Version(i64::try_from(self.below(4)).expect("below 4")),
            1 => TargetUnion::CreateRevision(number),
            2 => TargetUnion::ModRevision(number),
            3 => TargetUnion::Value(self.value()),
            _ => TargetUnion::Lease(self.lease()),
        };
        let (key, range_end) = self.range();
        Compare {
            result: i32::try_from(self.below(4)).unwrap_or(CompareResult::Equal.into()),
            target: i32::try_from(target).unwrap_or(CompareTarget::Version.into()),
            key,
            range_end: if self.below(3) == 0 { range_end } else { Bytes::new() },
            target_union: Some(union),
        }
    }

    fn branch(&mut self, depth: u32) -> Vec<RequestOp> {
        (0..self.below(4))
            .map(|_| {
                let request = match self.below(if depth == 0 { 9 } else { 10 }) {
                    0..=4 => Request::RequestPut(self.put()),
                    5 | 6 => Request::RequestDeleteRange(self.delete()),
                    7 | 8 => Request::RequestRange(self.get()),
                    _ => Request::RequestTxn(self.txn(depth - 1)),
                };
                RequestOp { request: Some(request) }
            })
            .collect()
    }

    fn txn(&mut self, depth: u32) -> TxnRequest {
        TxnRequest {
            compare: (0..self.below(3)).map(|_| self.compare()).collect(),
            success: self.branch(depth),
            failure: self.branch(depth),
        }
    }

    /// Tells the generator what revision an answer has shown, so that it asks for real ones.
    pub const fn seen(&mut self, revision: i64) {
        if self.revision < revision {
            self.revision = revision;
        }
    }

    /// The next request. Revisions in it are near the last one [`Generator::seen`].
    pub fn call(&mut self) -> Call {
        match self.below(100) {
            0..=44 => Call::Put(self.put()),
            45..=54 => Call::Delete(self.delete()),
            55..=74 => Call::Txn(self.txn(2)),
            75..=89 => Call::Range(self.get()),
            90..=92 => self.grant(),
            93 => self.revoke(),
            94 if self.below(4) == 0 => {
                let revision = self.old_revision();
                Call::Compact(CompactionRequest { revision, physical: true })
            }
            // Official etcd sends everything at once for a negative limit; only the sum counts.
            94..=96 => Call::RangeStream(RangeRequest {
                limit: 0,
                sort_order: 0,
                min_mod_revision: 0,
                max_mod_revision: 0,
                min_create_revision: 0,
                max_create_revision: 0,
                ..self.get()
            }),
            _ => Call::HashKv(HashKvRequest { revision: self.old_revision() }),
        }
    }

    fn grant(&mut self) -> Call {
        let id = self.next_lease;
        self.next_lease += 1;
        self.leases.push(id);
        Call::Grant(LeaseGrantRequest { ttl: 3_600, id })
    }

    fn revoke(&mut self) -> Call {
        let id = self.lease();
        self.leases.retain(|lease| *lease != id);
        Call::Revoke(LeaseRevokeRequest { id })
    }
}
