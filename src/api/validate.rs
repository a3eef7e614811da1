//! The checks of a request that need nothing but the request.
//!
//! Decides what is refused before it costs a proposal: empty keys, unknown orders, oversized
//! transactions, and branches that would write one key twice. Pure functions, called by `kv` and
//! `range_stream` (and through them by the JSON gateway), in etcd's order, because the first
//! failing check is the one that a client sees.
//!
//! One check is stricter than etcd's: a deletion without an upper end covers every key from its
//! start. etcd 3.7.1 overlooks it and can be stopped for good by such a transaction.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/key.go`.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    range_request::{SortOrder, SortTarget},
    request_op::Request as Operation,
};

use super::status::Refusal;
use crate::model::KeyRange;

/// Checks a read.
///
/// # Errors
/// - [`Refusal::EmptyKey`], [`Refusal::InvalidSortOption`].
pub fn range(request: &RangeRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    let known = SortOrder::try_from(request.sort_order).is_ok()
        && SortTarget::try_from(request.sort_target).is_ok();
    if known { Ok(()) } else { Err(Refusal::InvalidSortOption) }
}

/// Checks a streamed read: in key order, without filters.
///
/// # Errors
/// - those of [`range`], [`Refusal::StreamSortOrder`], [`Refusal::StreamRevisionFilter`].
pub fn range_stream(request: &RangeRequest) -> Result<(), Refusal> {
    range(request)?;
    let ordered_by_key = match request.sort_order() {
        SortOrder::None => true,
        SortOrder::Ascend => request.sort_target() == SortTarget::Key,
        SortOrder::Descend => false,
    };
    if !ordered_by_key {
        return Err(Refusal::StreamSortOrder);
    }
    let filtered = request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0;
    if filtered { Err(Refusal::StreamRevisionFilter) } else { Ok(()) }
}

/// Checks a write of one key.
///
/// # Errors
/// - [`Refusal::EmptyKey`], [`Refusal::ValueProvided`], [`Refusal::LeaseProvided`].
pub fn put(request: &PutRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        Err(Refusal::EmptyKey)
    } else if request.ignore_value && !request.value.is_empty() {
        Err(Refusal::ValueProvided)
    } else if request.ignore_lease && request.lease != 0 {
        Err(Refusal::LeaseProvided)
    } else {
        Ok(())
    }
}

/// Checks a deletion.
///
/// # Errors
/// - [`Refusal::EmptyKey`].
pub fn delete_range(request: &DeleteRangeRequest) -> Result<(), Refusal> {
    if request.key.is_empty() { Err(Refusal::EmptyKey) } else { Ok(()) }
}

/// Checks a transaction of at most `operations_max` compares and operations per branch. A nested
/// one has only what its parent left of that number.
///
/// # Errors
/// - [`Refusal::TooManyOperations`], [`Refusal::EmptyOperation`], [`Refusal::DuplicateKey`], and
///   those of the single requests inside.
pub fn txn(request: &TxnRequest, operations_max: usize) -> Result<(), Refusal> {
    txn_operations(request, operations_max)?;
    // Only now that the size is known to be bounded.
    Writes::of_branch(&request.success)?;
    Writes::of_branch(&request.failure)?;
    Ok(())
}

fn txn_operations(request: &TxnRequest, operations_max: usize) -> Result<(), Refusal> {
    let operations = request.compare.len().max(request.success.len()).max(request.failure.len());
    let Some(left) = operations_max.checked_sub(operations) else {
        return Err(Refusal::TooManyOperations);
    };
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Refusal::EmptyKey);
    }
    let mut branches = request.success.iter().chain(&request.failure);
    branches.try_for_each(|operation| match &operation.request {
        Some(Operation::RequestRange(request)) => range(request),
        Some(Operation::RequestPut(request)) => put(request),
        Some(Operation::RequestDeleteRange(request)) => delete_range(request),
        Some(Operation::RequestTxn(request)) => txn_operations(request, left),
        None => Err(Refusal::EmptyOperation),
    })
}

/// The keys that a branch writes.
#[derive(Default)]
struct Writes {
    puts: HashSet<Bytes>,
    deletes: Spans,
}

impl Writes {
    /// Collects the writes of a branch, in etcd's order: its own deletions, its nested
    /// transactions, its own puts. The order decides which overlaps are seen: a deletion in a
    /// later nested transaction does not meet a put in an earlier one.
    fn of_branch(operations: &[RequestOp]) -> Result<Self, Refusal> {
        let mut writes = Self::default();
        for operation in operations {
            if let Some(Operation::RequestDeleteRange(request)) = &operation.request {
                let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
                writes.deletes.insert(range);
            }
        }
        for operation in operations {
            if let Some(Operation::RequestTxn(request)) = &operation.request {
                writes.add_nested(request)?;
            }
        }
        for operation in operations {
            if let Some(Operation::RequestPut(request)) = &operation.request {
                writes.add_put(&request.key)?;
            }
        }
        Ok(writes)
    }

    fn add_nested(&mut self, request: &TxnRequest) -> Result<(), Refusal> {
        let then = Self::of_branch(&request.success)?;
        let otherwise = Self::of_branch(&request.failure)?;
        for key in &then.puts {
            self.add_put(key)?;
        }
        for key in &otherwise.puts {
            // Only one of the two branches runs, so they may share keys.
            if !then.puts.contains(key) {
                self.add_put(key)?;
            }
        }
        self.deletes.merge(then.deletes);
        self.deletes.merge(otherwise.deletes);
        Ok(())
    }

    fn add_put(&mut self, key: &Bytes) -> Result<(), Refusal> {
        if self.deletes.contains(key) || !self.puts.insert(key.clone()) {
            Err(Refusal::DuplicateKey)
        } else {
            Ok(())
        }
    }
}

/// A union of key ranges: disjoint, by start; an end of `None` is open.
#[derive(Default)]
struct Spans(BTreeMap<Bytes, Option<Bytes>>);

impl Spans {
    fn insert(&mut self, range: KeyRange) {
        match range {
            KeyRange::Single(key) => {
                let mut end = Vec::with_capacity(key.len() + 1);
                end.extend_from_slice(&key);
                end.push(0);
                self.insert_span(key, Some(Bytes::from(end)));
            }
            KeyRange::From(start) => self.insert_span(start, None),
            KeyRange::Between(start, end) if start < end => self.insert_span(start, Some(end)),
            KeyRange::Between(..) => {}
        }
    }

    fn insert_span(&mut self, mut start: Bytes, mut end: Option<Bytes>) {
        // Swallows, from the right, every span that begins at or before the new end and reaches
        // to the new start.
        while let Some((other_start, other_end)) = self.last_starting_by(end.as_ref()) {
            if !reaches(other_end.as_ref(), &start) {
                break;
            }
            self.0.remove(&other_start);
            start = start.min(other_start);
            end = match (end, other_end) {
                (Some(end), Some(other_end)) => Some(end.max(other_end)),
                _ => None,
            };
        }
        self.0.insert(start, end);
    }

    fn last_starting_by(&self, end: Option<&Bytes>) -> Option<(Bytes, Option<Bytes>)> {
        let span = match end {
            Some(end) => self.0.range(..=end.clone()).next_back(),
            None => self.0.iter().next_back(),
        };
        span.map(|(start, end)| (start.clone(), end.clone()))
    }

    fn merge(&mut self, other: Self) {
        for (start, end) in other.0 {
            self.insert_span(start, end);
        }
    }

    fn contains(&self, key: &Bytes) -> bool {
        let before = self.0.range::<Bytes, _>(..=key).next_back();
        before.is_some_and(|(_, end)| end.as_ref().is_none_or(|end| key < end))
    }
}

fn reaches(end: Option<&Bytes>, start: &Bytes) -> bool {
    end.is_none_or(|end| start <= end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, prop, prop_assert_eq, proptest};
    use proto::etcdserverpb::Compare;

    use super::*;

    fn op(operation: Operation) -> RequestOp {
        RequestOp { request: Some(operation) }
    }

    fn put_op(key: &'static str) -> RequestOp {
        op(Operation::RequestPut(PutRequest { key: key.into(), ..Default::default() }))
    }

    fn delete_op(key: &'static str, range_end: &'static str) -> RequestOp {
        let (key, range_end) = (key.into(), range_end.into());
        op(Operation::RequestDeleteRange(DeleteRangeRequest { key, range_end, prev_kv: false }))
    }

    fn txn_op(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        op(Operation::RequestTxn(TxnRequest { compare: Vec::new(), success, failure }))
    }

    #[track_caller]
    fn check(success: Vec<RequestOp>, expected: Result<(), Refusal>) {
        let request = TxnRequest { success: success.clone(), ..Default::default() };
        assert_eq!(txn(&request, 128), expected, "as the success branch");
        let request = TxnRequest { failure: success, ..Default::default() };
        assert_eq!(txn(&request, 128), expected, "as the failure branch");
    }

    const DUPLICATE: Result<(), Refusal> = Err(Refusal::DuplicateKey);

    #[test]
    fn two_puts_of_one_key_are_refused() {
        check(vec![put_op("a"), put_op("b")], Ok(()));
        check(vec![put_op("a"), put_op("a")], DUPLICATE);
    }

    #[test]
    fn put_inside_a_deletion_is_refused_in_any_order() {
        check(vec![delete_op("a", "c"), put_op("b")], DUPLICATE);
        check(vec![put_op("b"), delete_op("a", "c")], DUPLICATE);
        check(vec![put_op("c"), delete_op("a", "c")], Ok(()));
        check(vec![put_op("b"), delete_op("b", "")], DUPLICATE);
        check(vec![delete_op("a", "c"), delete_op("b", "d")], Ok(()));
    }

    #[test]
    fn put_inside_an_open_ended_deletion_is_refused_though_etcd_overlooks_it() {
        check(vec![delete_op("a", "\0"), put_op("h")], DUPLICATE);
        check(vec![delete_op("i", "\0"), put_op("h")], Ok(()));
    }

    #[test]
    fn branches_of_one_nested_transaction_may_share_keys() {
        check(vec![txn_op(vec![put_op("a")], vec![put_op("a")])], Ok(()));
        check(vec![put_op("a"), txn_op(vec![put_op("a")], vec![])], DUPLICATE);
        check(
            vec![txn_op(vec![put_op("a")], vec![]), txn_op(vec![], vec![put_op("a")])],
            DUPLICATE,
        );
    }

    #[test]
    fn deletion_in_a_nested_transaction_is_seen_by_later_ones_only() {
        let delete = || txn_op(vec![delete_op("a", "c")], vec![]);
        let put = || txn_op(vec![put_op("b")], vec![]);
        check(vec![delete(), put()], DUPLICATE);
        check(vec![put(), delete()], Ok(()));
    }

    #[test]
    fn nesting_uses_up_the_number_of_operations() {
        let nested = txn_op((0..3).map(|_| delete_op("a", "")).collect(), vec![]);
        let request = TxnRequest { success: vec![nested], ..Default::default() };
        assert_eq!(txn(&request, 4), Ok(()));
        assert_eq!(txn(&request, 3), Err(Refusal::TooManyOperations));
    }

    #[test]
    fn first_failing_check_is_the_one_that_is_reported() {
        let mut request = TxnRequest {
            compare: vec![Compare::default()],
            success: vec![RequestOp::default()],
            ..Default::default()
        };
        assert_eq!(txn(&request, 0), Err(Refusal::TooManyOperations));
        assert_eq!(txn(&request, 1), Err(Refusal::EmptyKey));
        request.compare.clear();
        assert_eq!(txn(&request, 1), Err(Refusal::EmptyOperation));
    }

    #[test]
    fn put_that_keeps_what_it_brings_is_refused() {
        let key = Bytes::from_static(b"k");
        let request =
            PutRequest { key, ignore_value: true, ignore_lease: true, ..Default::default() };
        assert_eq!(put(&request), Ok(()));
        let with_value = PutRequest { value: "v".into(), lease: 1, ..request.clone() };
        assert_eq!(put(&with_value), Err(Refusal::ValueProvided));
        assert_eq!(put(&PutRequest { lease: 1, ..request }), Err(Refusal::LeaseProvided));
    }

    #[test]
    fn unknown_orders_are_refused() {
        let known =
            RangeRequest { key: "k".into(), sort_order: 2, sort_target: 4, ..Default::default() };
        assert_eq!(range(&known), Ok(()));
        assert_eq!(
            range(&RangeRequest { sort_order: 3, ..known.clone() }),
            Err(Refusal::InvalidSortOption)
        );
        assert_eq!(
            range(&RangeRequest { sort_target: -1, ..known }),
            Err(Refusal::InvalidSortOption)
        );
    }

    #[test]
    fn stream_takes_any_target_without_an_order_but_no_descent_and_no_filter() {
        let plain = RangeRequest { key: "k".into(), sort_target: 3, ..Default::default() };
        assert_eq!(range_stream(&plain), Ok(()));
        assert_eq!(
            range_stream(&RangeRequest { sort_order: 1, ..plain.clone() }),
            Err(Refusal::StreamSortOrder)
        );
        let filtered = RangeRequest { max_mod_revision: -1, ..plain };
        assert_eq!(range_stream(&filtered), Err(Refusal::StreamRevisionFilter));
    }

    fn key_range() -> impl Strategy<Value = KeyRange> {
        let key = || prop::collection::vec(0u8..4, 1..3).prop_map(Bytes::from);
        (key(), prop::option::of(key()))
            .prop_map(|(start, end)| KeyRange::from_wire(start, end.unwrap_or_default()))
    }

    proptest! {
        #[test]
        fn spans_contain_what_any_of_their_ranges_contains(
            ranges in prop::collection::vec(key_range(), 0..8),
            key in prop::collection::vec(0u8..4, 1..3),
        ) {
            let mut spans = Spans::default();
            for range in ranges.clone() {
                spans.insert(range);
            }
            let expected = ranges.iter().any(|range| range.contains(&key));
            prop_assert_eq!(spans.contains(&Bytes::from(key)), expected);
        }
    }
}
