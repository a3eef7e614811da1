//! Requests at the edges of the key-value, lease and maintenance services, on both servers.
#![expect(clippy::unwrap_used, reason = "a check that cannot go on has failed")]

use bytes::Bytes;
use oxetcd_compat_tests::{
    script::{Call, run},
    server::Server,
    transcript::assert_equal,
};
use proto::etcdserverpb::{
    AlarmRequest, AuthStatusRequest, CompactionRequest, Compare, DefragmentRequest,
    DeleteRangeRequest, DowngradeRequest, HashKvRequest, HashRequest, LeaseGrantRequest,
    LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, MoveLeaderRequest, PutRequest,
    RangeRequest, RequestOp, StatusRequest, TxnRequest, compare::TargetUnion, request_op::Request,
};

/// Runs `calls` on both servers and compares every answer.
async fn compare(flags: &[&str], calls: Vec<Call>) {
    let Some((official, ours)) = Server::start_both(flags).unwrap() else { return };
    let requests: Vec<_> = calls.iter().map(|call| format!("{call:?}")).collect();
    let expected = run(&official, &calls).await.unwrap();
    let found = run(&ours, &calls).await.unwrap();
    assert_equal(&requests, &expected, &found);
}

fn put(key: &'static str, value: &'static str) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

fn get(key: &'static str, range_end: &'static str) -> RangeRequest {
    RangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() }
}

fn delete(key: &'static str, range_end: &'static str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: true }
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn put_op(key: &'static str, value: &'static str) -> RequestOp {
    op(Request::RequestPut(put(key, value)))
}

fn get_op(key: &'static str, range_end: &'static str) -> RequestOp {
    op(Request::RequestRange(get(key, range_end)))
}

fn delete_op(key: &'static str, range_end: &'static str) -> RequestOp {
    op(Request::RequestDeleteRange(delete(key, range_end)))
}

fn txn(compare: Vec<Compare>, success: Vec<RequestOp>, failure: Vec<RequestOp>) -> Call {
    Call::Txn(TxnRequest { compare, success, failure })
}

fn txn_op(compare: Vec<Compare>, success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
    op(Request::RequestTxn(TxnRequest { compare, success, failure }))
}

fn compare_with(key: &'static str, result: i32, target: i32, union: TargetUnion) -> Compare {
    Compare { key: key.into(), result, target, target_union: Some(union), range_end: Bytes::new() }
}

fn five_keys() -> Vec<Call> {
    ["a", "b", "c", "d", "e"]
        .into_iter()
        .enumerate()
        .flat_map(|(place, key)| {
            let value = ["v9", "v3", "v7", "v1", "v5"][place];
            [Call::Put(put(key, value)), Call::Put(put(key, value))]
        })
        .collect()
}

#[tokio::test]
async fn puts_deletes_and_reads_at_the_edges_are_answered_alike() {
    let mut calls = vec![
        Call::Range(get("", "")),
        Call::Range(get("", "\0")),
        Call::Range(get("a", "")),
        Call::Range(get("\0", "\0")),
        Call::Put(put("", "v")),
        Call::Put(put("k", "")),
        Call::Put(PutRequest { ignore_value: true, ..put("k", "v") }),
        Call::Put(PutRequest { ignore_value: true, ..put("absent", "") }),
        Call::Put(PutRequest { ignore_lease: true, lease: 3, ..put("k", "v") }),
        Call::Put(PutRequest { ignore_lease: true, ..put("absent", "v") }),
        Call::Put(PutRequest { lease: 99, ..put("k", "v") }),
        Call::Put(PutRequest { prev_kv: true, ..put("k", "v1") }),
        Call::Put(PutRequest { prev_kv: true, ignore_value: true, ..put("k", "") }),
        Call::Put(PutRequest { prev_kv: true, ..put("new", "v") }),
        Call::Delete(delete("", "")),
        Call::Delete(delete("absent", "")),
        Call::Delete(delete("b", "a")),
        Call::Delete(delete("k", "")),
        Call::Delete(delete("k", "")),
        Call::Put(put("k", "again")),
        Call::Range(get("k", "")),
        Call::Delete(delete("\0", "\0")),
        Call::Range(get("\0", "\0")),
    ];
    calls.extend(five_keys());
    for sort_order in 0..=3 {
        for sort_target in 0..=5 {
            for limit in [-1, 0, 1, 3, 5, 6] {
                calls.push(Call::Range(RangeRequest {
                    sort_order,
                    sort_target,
                    limit,
                    ..get("a", "z")
                }));
            }
        }
    }
    for revision in [-5, -1, 0, 1, 2, 3, 9, 14, 15, 16, 100] {
        for (key, end) in [("a", ""), ("a", "z"), ("c", "\0"), ("z", "a"), ("k", "")] {
            calls.push(Call::Range(RangeRequest { revision, ..get(key, end) }));
            calls.push(Call::Range(RangeRequest { revision, limit: 2, ..get(key, end) }));
            calls.push(Call::Range(RangeRequest { revision, count_only: true, ..get(key, end) }));
            calls.push(Call::Range(RangeRequest { revision, keys_only: true, ..get(key, end) }));
            calls.push(Call::RangeStream(RangeRequest { revision, ..get(key, end) }));
        }
    }
    for bound in [-3, 1, 8, 10, 30] {
        for limit in [0, 2] {
            let base = RangeRequest { limit, ..get("a", "z") };
            calls.push(Call::Range(RangeRequest { min_mod_revision: bound, ..base.clone() }));
            calls.push(Call::Range(RangeRequest { max_mod_revision: bound, ..base.clone() }));
            calls.push(Call::Range(RangeRequest { min_create_revision: bound, ..base.clone() }));
            calls.push(Call::Range(RangeRequest { max_create_revision: bound, ..base.clone() }));
            calls.push(Call::RangeStream(RangeRequest { max_mod_revision: bound, ..base }));
        }
    }
    for (sort_order, sort_target) in [(1, 0), (2, 0), (0, 3), (1, 3), (7, 0), (0, 9)] {
        calls.push(Call::RangeStream(RangeRequest { sort_order, sort_target, ..get("a", "z") }));
    }
    calls.push(Call::RangeStream(RangeRequest { count_only: true, ..get("a", "z") }));
    calls.push(Call::RangeStream(RangeRequest { limit: 3, ..get("a", "z") }));
    calls.push(Call::RangeStream(RangeRequest { keys_only: true, ..get("a", "z") }));
    calls.push(Call::RangeStream(get("", "")));
    calls.push(Call::Range(RangeRequest { keys_only: true, sort_target: 4, ..get("a", "z") }));
    compare(&[], calls).await;
}

#[tokio::test]
async fn transactions_at_the_edges_are_answered_alike() {
    let mut calls = five_keys();
    for target in 0..=5 {
        for result in 0..=4 {
            for key in ["a", "absent"] {
                for union in [
                    TargetUnion::Version(2),
                    TargetUnion::CreateRevision(0),
                    TargetUnion::ModRevision(3),
                    TargetUnion::Value("v9".into()),
                    TargetUnion::Lease(0),
                ] {
                    calls.push(txn(
                        vec![compare_with(key, result, target, union)],
                        vec![get_op("a", "")],
                        vec![],
                    ));
                }
            }
        }
    }
    let range_compare = |key: &'static str, end: &'static str, version| Compare {
        range_end: end.into(),
        ..compare_with(key, 0, 0, TargetUnion::Version(version))
    };
    calls.extend([
        txn(vec![], vec![], vec![]),
        txn(vec![range_compare("a", "z", 2)], vec![], vec![]),
        txn(vec![range_compare("a", "z", 1)], vec![], vec![]),
        txn(vec![range_compare("x", "z", 0)], vec![], vec![]),
        txn(vec![compare_with("", 0, 0, TargetUnion::Version(0))], vec![], vec![]),
        txn(vec![Compare { key: "a".into(), ..Default::default() }], vec![], vec![]),
        txn(vec![], vec![RequestOp { request: None }], vec![]),
        txn(vec![], vec![put_op("x", "1"), put_op("x", "2")], vec![]),
        txn(vec![], vec![put_op("x", "1"), delete_op("x", "")], vec![]),
        txn(vec![], vec![delete_op("a", "z"), put_op("x", "1")], vec![]),
        txn(vec![], vec![delete_op("a", "c"), delete_op("b", "d")], vec![]),
        txn(vec![], vec![put_op("", "1")], vec![]),
        txn(vec![], vec![get_op("", "")], vec![]),
        txn(vec![], vec![delete_op("", "")], vec![]),
        txn(vec![], vec![put_op("x", "1"), get_op("x", ""), put_op("y", "2")], vec![]),
        txn(vec![], vec![delete_op("x", "z"), get_op("x", "z")], vec![]),
        txn(vec![], vec![get_op("a", "z"), put_op("a", "3"), get_op("a", "z")], vec![]),
        txn(vec![], vec![delete_op("absent", "")], vec![]),
        txn(vec![], vec![txn_op(vec![], vec![put_op("n", "1")], vec![])], vec![]),
        txn(
            vec![],
            vec![
                put_op("m", "1"),
                txn_op(
                    vec![compare_with("m", 0, 0, TargetUnion::Version(0))],
                    vec![get_op("m", ""), put_op("o", "then")],
                    vec![put_op("o", "else")],
                ),
                get_op("m", "p"),
            ],
            vec![],
        ),
        txn(vec![], vec![put_op("m", "1"), txn_op(vec![], vec![put_op("m", "2")], vec![])], vec![]),
        txn(vec![], vec![txn_op(vec![], vec![put_op("q", "1")], vec![put_op("q", "2")])], vec![]),
        txn(
            vec![],
            vec![
                txn_op(vec![], vec![delete_op("a", "c")], vec![]),
                txn_op(vec![], vec![put_op("b", "1")], vec![]),
            ],
            vec![],
        ),
        txn(
            vec![],
            vec![
                op(Request::RequestRange(RangeRequest { revision: 3, ..get("a", "z") })),
                put_op("r", "1"),
            ],
            vec![],
        ),
        txn(
            vec![],
            vec![
                put_op("r", "2"),
                op(Request::RequestRange(RangeRequest { revision: 1_000, ..get("a", "z") })),
            ],
            vec![],
        ),
        txn(
            vec![],
            vec![
                put_op("r", "2"),
                op(Request::RequestRange(RangeRequest { revision: -7, ..get("a", "") })),
            ],
            vec![],
        ),
        txn(
            vec![],
            vec![
                put_op("r", "3"),
                op(Request::RequestPut(PutRequest { lease: 77, ..put("s", "1") })),
            ],
            vec![],
        ),
        txn(
            vec![],
            vec![
                put_op("r", "4"),
                op(Request::RequestPut(PutRequest { ignore_value: true, ..put("absent", "") })),
            ],
            vec![],
        ),
        txn(
            vec![],
            vec![op(Request::RequestPut(PutRequest {
                ignore_value: true,
                prev_kv: true,
                ..put("a", "")
            }))],
            vec![],
        ),
        txn(
            vec![],
            vec![op(Request::RequestPut(PutRequest { ignore_value: true, ..put("a", "x") }))],
            vec![],
        ),
        txn(vec![], (0..129).map(|_| get_op("a", "")).collect(), vec![]),
        txn(vec![], (0..128).map(|_| get_op("a", "")).collect(), vec![]),
        txn(
            vec![],
            vec![txn_op(vec![], (0..127).map(|_| get_op("a", "")).collect(), vec![])],
            vec![],
        ),
        txn(
            vec![],
            vec![txn_op(vec![], (0..128).map(|_| get_op("a", "")).collect(), vec![])],
            vec![],
        ),
        Call::Range(get("\0", "\0")),
        Call::Compact(CompactionRequest { revision: 12, physical: true }),
        txn(
            vec![],
            vec![
                put_op("r", "5"),
                op(Request::RequestRange(RangeRequest { revision: 3, ..get("a", "z") })),
            ],
            vec![],
        ),
        txn(
            vec![],
            vec![op(Request::RequestRange(RangeRequest { revision: 3, ..get("a", "z") }))],
            vec![],
        ),
        Call::Range(get("r", "")),
    ]);
    compare(&[], calls).await;
}

#[tokio::test]
async fn compactions_and_hashes_are_answered_alike() {
    let mut calls = vec![
        Call::Compact(CompactionRequest { revision: -1, physical: false }),
        // Waits for its end, because a hash is only remembered if the compaction before had ended.
        Call::Compact(CompactionRequest { revision: 0, physical: true }),
        Call::Compact(CompactionRequest { revision: 1, physical: true }),
        Call::Compact(CompactionRequest { revision: 1, physical: true }),
        Call::Compact(CompactionRequest { revision: 2, physical: true }),
    ];
    calls.extend(five_keys());
    calls.push(Call::Delete(delete("b", "")));
    calls.push(Call::Delete(delete("d", "z")));
    calls.push(Call::Put(put("b", "again")));
    for compacted in [5, 12, 13, 14] {
        for revision in -1..17 {
            calls.push(Call::HashKv(HashKvRequest { revision }));
        }
        calls.push(Call::Compact(CompactionRequest { revision: compacted, physical: true }));
        for revision in -1..17 {
            calls.push(Call::HashKv(HashKvRequest { revision }));
            calls.push(Call::Range(RangeRequest { revision, ..get("a", "z") }));
        }
    }
    calls.push(Call::Compact(CompactionRequest { revision: 14, physical: true }));
    calls.push(Call::Compact(CompactionRequest { revision: 400, physical: true }));
    calls.push(Call::Compact(CompactionRequest { revision: 0, physical: false }));
    compare(&[], calls).await;
}

#[tokio::test]
async fn leases_are_answered_alike() {
    let grant = |id, ttl| Call::Grant(LeaseGrantRequest { id, ttl });
    let revoke = |id| Call::Revoke(LeaseRevokeRequest { id });
    let attach = |key: &'static str, lease| Call::Put(PutRequest { lease, ..put(key, "v") });
    let unknown = |keys| Call::TimeToLive(LeaseTimeToLiveRequest { id: 404, keys });
    compare(
        &[],
        vec![
            Call::Leases(LeaseLeasesRequest {}),
            grant(1, 0),
            grant(2, -5),
            grant(3, 1),
            grant(4, 9_000_000_000),
            grant(5, 9_000_000_001),
            grant(4, 100),
            grant(-6, 1_000),
            grant(7, 2_000),
            unknown(false),
            unknown(true),
            revoke(404),
            revoke(0),
            attach("a", 7),
            attach("c", 7),
            attach("b", 7),
            attach("a", -6),
            Call::Put(PutRequest { ignore_lease: true, ..put("b", "w") }),
            Call::Put(put("c", "detached")),
            revoke(7),
            Call::Range(get("\0", "\0")),
            revoke(7),
            attach("x", 7),
            revoke(-6),
            Call::Range(get("\0", "\0")),
            revoke(4),
            Call::Range(RangeRequest { keys_only: true, ..get("\0", "\0") }),
        ],
    )
    .await;
}

#[tokio::test]
async fn maintenance_and_auth_status_are_answered_alike() {
    let alarm = |action, member_id, alarm| Call::Alarm(AlarmRequest { action, member_id, alarm });
    let downgrade = |action, version: &str| {
        Call::Downgrade(DowngradeRequest { action, version: version.to_owned() })
    };
    compare(
        &[],
        vec![
            Call::Status(StatusRequest {}),
            Call::AuthStatus(AuthStatusRequest {}),
            alarm(0, 0, 0),
            alarm(1, 0, 0),
            alarm(2, 0, 1),
            alarm(1, 5, 1),
            alarm(1, 5, 1),
            alarm(0, 0, 0),
            alarm(0, 0, 2),
            Call::Put(put("k", "v")),
            Call::Grant(LeaseGrantRequest { id: 1, ttl: 100 }),
            Call::Delete(delete("k", "")),
            txn(vec![], vec![put_op("k", "v")], vec![]),
            txn(vec![], vec![delete_op("k", "")], vec![]),
            txn(vec![], vec![get_op("k", "")], vec![]),
            Call::Compact(CompactionRequest { revision: 1, physical: false }),
            alarm(2, 4, 1),
            alarm(2, 5, 1),
            Call::Put(put("k", "v")),
            alarm(1, 9, 2),
            Call::Put(put("k", "v")),
            Call::Delete(delete("k", "")),
            txn(vec![], vec![delete_op("k", "")], vec![]),
            Call::Range(get("k", "")),
            Call::Grant(LeaseGrantRequest { id: 1, ttl: 100 }),
            Call::Revoke(LeaseRevokeRequest { id: 1 }),
            Call::Compact(CompactionRequest { revision: 2, physical: false }),
            alarm(2, 9, 2),
            Call::Put(put("k", "v")),
            Call::Defragment(DefragmentRequest {}),
            Call::MoveLeader(MoveLeaderRequest { target_id: 12 }),
            downgrade(0, "3.6"),
            downgrade(0, "3.6.0"),
            downgrade(0, "3.5"),
            downgrade(0, "3.7"),
            downgrade(0, "x"),
            downgrade(0, ""),
            downgrade(2, ""),
            downgrade(7, "3.6"),
            Call::Put(put("after", "v")),
        ],
    )
    .await;
}

#[tokio::test]
async fn oversized_requests_are_answered_alike() {
    let big = |bytes| PutRequest {
        key: "k".into(),
        value: vec![b'x'; bytes].into(),
        ..Default::default()
    };
    compare(
        &["--max-request-bytes=100000"],
        vec![
            Call::Put(big(90_000)),
            Call::Put(big(99_960)),
            Call::Put(big(99_970)),
            Call::Put(big(99_980)),
            Call::Put(big(100_000)),
            Call::Put(big(400_000)),
            Call::Put(big(700_000)),
            Call::Range(RangeRequest { keys_only: true, ..get("k", "") }),
        ],
    )
    .await;
}

#[tokio::test]
async fn txn_limit_flag_is_honoured_alike() {
    compare(
        &["--max-txn-ops=3"],
        vec![
            txn(vec![], vec![get_op("a", ""), get_op("b", ""), get_op("c", "")], vec![]),
            txn(vec![], vec![], (0..4).map(|_| get_op("a", "")).collect()),
            txn(
                (0..4).map(|_| compare_with("a", 0, 0, TargetUnion::Version(0))).collect(),
                vec![],
                vec![],
            ),
        ],
    )
    .await;
}

/// Both servers as the same member, whose id is part of what is hashed.
#[tokio::test]
async fn whole_backends_hash_alike() {
    let hash = || Call::Hash(HashRequest {});
    let mut calls = vec![hash()];
    for (key, value) in [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")] {
        calls.push(Call::Put(put(key, value)));
    }
    calls.push(hash());
    calls.push(Call::Grant(LeaseGrantRequest { id: 7, ttl: 1_000 }));
    calls.push(Call::Delete(delete("a", "c")));
    calls.push(hash());
    calls.push(Call::Compact(CompactionRequest { revision: 4, physical: true }));
    calls.push(hash());
    calls.push(Call::Defragment(DefragmentRequest {}));
    calls.push(hash());
    let flags = [
        "--initial-advertise-peer-urls=http://127.0.0.1:1",
        "--initial-cluster=m1=http://127.0.0.1:1",
        "--advertise-client-urls=http://127.0.0.1:2",
    ];
    compare(&flags, calls).await;
}
