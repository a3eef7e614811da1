//! What holds for every log.
//!
//! One member applies a random log; another applies the same log, flushes at random positions, dies
//! without a flush, comes back from its backend and replays the rest. Both must agree on everything.

use bytes::Bytes;
use proptest::prelude::{
    Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use prost::Message;
use proto::{
    etcdserverpb::{self as pb, compare::TargetUnion, request_op},
    membershippb,
    raftpb::ConfChange,
};

use super::member::Member;
use crate::{
    base::cases::cases,
    model::{Command, LogIndex, Outcome, Rejection, Request, RequestId},
};

/// Few, so that commands meet.
fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        9 => (b'a'..b'f').prop_map(|letter| Bytes::copy_from_slice(&[letter])),
        1 => Just(Bytes::new()),
    ]
}

fn end() -> impl Strategy<Value = Bytes> {
    prop_oneof![3 => Just(Bytes::new()), 1 => Just(Bytes::from_static(b"\0")), 2 => key()]
}

fn small() -> impl Strategy<Value = i64> {
    prop_oneof![8 => -2_i64..12, 1 => any::<i64>()]
}

fn lease() -> impl Strategy<Value = i64> {
    prop_oneof![6 => Just(0_i64), 4 => 1_i64..4, 1 => any::<i64>()]
}

fn flag() -> impl Strategy<Value = bool> {
    prop_oneof![4 => Just(false), 1 => Just(true)]
}

fn number() -> impl Strategy<Value = i32> {
    prop_oneof![9 => 0_i32..6, 1 => any::<i32>()]
}

fn put() -> impl Strategy<Value = pb::PutRequest> {
    let fields = (key(), key(), lease(), flag(), flag(), flag());
    fields.prop_map(|(key, value, lease, prev_kv, ignore_value, ignore_lease)| pb::PutRequest {
        key,
        value,
        lease,
        prev_kv,
        ignore_value,
        ignore_lease,
    })
}

fn delete() -> impl Strategy<Value = pb::DeleteRangeRequest> {
    (key(), end(), flag()).prop_map(|(key, range_end, prev_kv)| pb::DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    })
}

fn range() -> impl Strategy<Value = pb::RangeRequest> {
    let fields = (key(), end(), small(), small(), (number(), number()), flag(), flag(), small());
    fields.prop_map(
        |(key, range_end, limit, revision, (order, target), keys_only, count_only, bound)| {
            pb::RangeRequest {
                key,
                range_end,
                limit,
                revision: if revision % 3 == 0 { revision } else { 0 },
                sort_order: order,
                sort_target: target,
                keys_only,
                count_only,
                min_mod_revision: if bound % 4 == 0 { bound } else { 0 },
                ..Default::default()
            }
        },
    )
}

fn compare() -> impl Strategy<Value = pb::Compare> {
    let union = prop_oneof![
        small().prop_map(|number| Some(TargetUnion::Version(number))),
        small().prop_map(|number| Some(TargetUnion::CreateRevision(number))),
        small().prop_map(|number| Some(TargetUnion::ModRevision(number))),
        key().prop_map(|value| Some(TargetUnion::Value(value))),
        lease().prop_map(|number| Some(TargetUnion::Lease(number))),
        Just(None),
    ];
    (number(), number(), key(), end(), union).prop_map(
        |(result, target, key, range_end, target_union)| pb::Compare {
            result,
            target,
            key,
            range_end,
            target_union,
        },
    )
}

fn txn() -> impl Strategy<Value = pb::TxnRequest> {
    let leaf = prop_oneof![
        4 => put().prop_map(|put| Some(request_op::Request::RequestPut(put))),
        2 => delete().prop_map(|delete| Some(request_op::Request::RequestDeleteRange(delete))),
        2 => range().prop_map(|range| Some(request_op::Request::RequestRange(range))),
        1 => Just(None),
    ];
    let leaf = leaf.prop_map(|request| pb::RequestOp { request });
    let nested = leaf.prop_recursive(3, 24, 4, |inner| {
        txn_of(inner)
            .prop_map(|txn| pb::RequestOp { request: Some(request_op::Request::RequestTxn(txn)) })
    });
    txn_of(nested)
}

fn txn_of(
    operation: impl Strategy<Value = pb::RequestOp> + Clone,
) -> impl Strategy<Value = pb::TxnRequest> {
    let branch = || prop::collection::vec(operation.clone(), 0..4);
    (prop::collection::vec(compare(), 0..2), branch(), branch())
        .prop_map(|(compare, success, failure)| pb::TxnRequest { compare, success, failure })
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just("3.6.0"), Just("3.7.0"), Just("3.8.0"), Just("x"), Just("")]
        .prop_map(str::to_owned)
}

pub(super) fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        8 => put().prop_map(Request::Put),
        4 => delete().prop_map(Request::DeleteRange),
        8 => txn().prop_map(Request::Txn),
        1 => range().prop_map(Request::Range),
        // A compaction at 0 makes official members, and us, take its hash for that of "now".
        2 => small().prop_filter("0 stands for now", |revision| *revision != 0).prop_map(
            |revision| Request::Compaction(pb::CompactionRequest { revision, physical: false })
        ),
        3 => (lease(), small()).prop_map(|(id, ttl)| {
            Request::LeaseGrant(pb::LeaseGrantRequest { id, ttl })
        }),
        2 => lease().prop_map(|id| Request::LeaseRevoke(pb::LeaseRevokeRequest { id })),
        1 => (lease(), small()).prop_map(|(id, remaining_ttl)| {
            let checkpoints = vec![pb::LeaseCheckpoint { id, remaining_ttl }];
            Request::LeaseCheckpoint(pb::LeaseCheckpointRequest { checkpoints })
        }),
        1 => (number(), 0_u64..3, number()).prop_map(|(action, member_id, alarm)| {
            Request::Alarm(pb::AlarmRequest { action, member_id, alarm })
        }),
        1 => text().prop_map(|ver| {
            Request::ClusterVersionSet(membershippb::ClusterVersionSetRequest { ver })
        }),
        1 => (flag(), text()).prop_map(|(enabled, ver)| {
            Request::DowngradeInfoSet(membershippb::DowngradeInfoSetRequest { enabled, ver })
        }),
        1 => (0_u64..3, text()).prop_map(|(member_id, name)| {
            let attributes = membershippb::Attributes { name, client_urls: vec![] };
            Request::ClusterMemberAttrSet(membershippb::ClusterMemberAttrSetRequest {
                member_id,
                member_attributes: Some(attributes),
            })
        }),
    ]
}

fn command(request: &Request) -> Command {
    Command::new(RequestId(1), request.clone())
}

/// Applies `log` and returns the outcomes, making sure that refusals change nothing.
fn apply_all(member: &mut Member, log: &[Request]) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for request in log {
        let before = member.fingerprint();
        let outcome = member.apply(request.clone());
        if outcome.is_err() {
            assert_eq!(member.fingerprint(), before, "a refused {request:?} left traces");
        }
        outcomes.push(outcome);
    }
    outcomes
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn restarted_member_reaches_the_state_of_one_that_ran_through(
        log in prop::collection::vec(request(), 1..60),
        flush_every in 1_usize..20,
        crash_at in 0_usize..60,
        finish in any::<bool>(),
    ) {
        let mut steady = Member::new();
        let outcomes = apply_all(&mut steady, &log);

        let mut shaky = Member::new();
        let crash_at = crash_at.min(log.len());
        for (position, request) in log[..crash_at].iter().enumerate() {
            drop(shaky.apply(request.clone()));
            if position % flush_every == 0 {
                shaky.flush();
            }
            if finish && position % 7 == 0 {
                shaky.finish_compactions();
            }
        }
        let mut shaky = shaky.restart();
        let from = usize::try_from(shaky.machine.applied().0).expect("small");
        prop_assert!(from <= crash_at, "the backend is ahead of the log");
        for (request, expected) in log[from..].iter().zip(&outcomes[from..]) {
            let outcome = shaky.apply(request.clone());
            prop_assert_eq!(&outcome, expected, "{:?}", request);
        }
        prop_assert_eq!(shaky.fingerprint(), steady.fingerprint());
        shaky.finish_compactions();
        steady.finish_compactions();
        prop_assert_eq!(shaky.tables(), steady.tables());
        prop_assert_eq!(shaky.hash(), steady.hash());
        let (shaky, steady) = (shaky.restart(), steady.restart());
        prop_assert_eq!(shaky.fingerprint(), steady.fingerprint());
    }

    #[test]
    fn entries_that_the_state_holds_change_nothing(log in prop::collection::vec(request(), 1..20)) {
        let mut member = Member::new();
        apply_all(&mut member, &log);
        let before = member.fingerprint();
        for (index, request) in (1_u64..).zip(&log) {
            member.apply_at(LogIndex(index), &command(request));
        }
        prop_assert_eq!(member.fingerprint(), before);
        prop_assert_eq!(member.machine.applied(), LogIndex(log.len() as u64));
    }

    #[test]
    fn no_bytes_make_the_machine_panic(
        log in prop::collection::vec((request(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)), 1..20),
        noise in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let mut member = Member::new();
        for (request, damage) in log {
            let mut bytes = command(&request).encode().to_vec();
            for (place, byte) in damage {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            if let Ok(damaged) = Command::decode(Bytes::from(bytes)) {
                member.apply_command(&damaged);
            }
            if let Ok(change) = ConfChange::decode(&noise[..]) {
                drop(member.change_members(&change));
            }
        }
        member.finish_compactions();
        let before = member.fingerprint();
        prop_assert_eq!(member.restart().fingerprint(), before);
    }
}

#[test]
fn entry_without_a_request_is_refused() {
    let applied = Member::new().apply_command(&Command::default());
    assert_eq!(applied.outcome, Err(Rejection::UnknownCommand));
}
