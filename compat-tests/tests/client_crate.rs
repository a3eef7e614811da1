//! The `etcd-client` crate against both servers: what its users do, end to end.
#![expect(clippy::unwrap_used, reason = "a check that cannot go on has failed")]
#![expect(clippy::disallowed_methods, reason = "servers under test run on real time")]

use std::time::{Duration, Instant};

use etcd_client::{
    AlarmAction, AlarmType, Client, Compare, CompareOp, DeleteOptions, EventType, GetOptions,
    LeaseTimeToLiveOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp, WatchOptions,
};
use oxetcd_compat_tests::{
    group::Group,
    server::{Kind, Server},
};
use tokio::task::JoinSet;

/// Runs `scenario` against both servers, or only ours where official etcd cannot be had.
async fn on_both(scenario: impl AsyncFn(Client)) {
    for kind in [Kind::Official, Kind::Oxetcd] {
        let Some(server) = Server::start(kind, &[]).unwrap() else { continue };
        scenario(Client::connect([server.endpoint()], None).await.unwrap()).await;
    }
}

#[tokio::test]
async fn keys_are_put_read_and_deleted() {
    on_both(async |mut client| {
        for (key, value) in [("a", "1"), ("b", "3"), ("c", "2")] {
            client.put(key, value, None).await.unwrap();
        }
        let replaced = client.put("a", "9", Some(PutOptions::new().with_prev_key())).await;
        assert_eq!(replaced.unwrap().prev_key().unwrap().value(), b"1");
        let by_value = GetOptions::new()
            .with_all_keys()
            .with_sort(SortTarget::Value, SortOrder::Descend)
            .with_limit(2);
        let found = client.get("", Some(by_value)).await.unwrap();
        let keys: Vec<_> = found.kvs().iter().map(|kv| kv.key_str().unwrap()).collect();
        assert_eq!((keys, found.count(), found.more()), (vec!["a", "b"], 3, true));
        let old = client.get("a", Some(GetOptions::new().with_revision(2))).await.unwrap();
        assert_eq!(old.kvs()[0].value(), b"1");
        let options = DeleteOptions::new().with_prefix().with_prev_key();
        let deleted = client.delete("b", Some(options)).await.unwrap();
        assert_eq!((deleted.deleted(), deleted.prev_kvs()[0].value()), (1, &b"3"[..]));
        let missing = client.get("b", Some(GetOptions::new().with_count_only())).await.unwrap();
        assert_eq!(missing.count(), 0);
    })
    .await;
}

#[tokio::test]
async fn transactions_compare_and_branch() {
    on_both(async |mut client| {
        let create = Txn::new()
            .when([Compare::mod_revision("k", CompareOp::Equal, 0)])
            .and_then([TxnOp::put("k", "created", None)])
            .or_else([TxnOp::get("k", None)]);
        assert!(client.txn(create.clone()).await.unwrap().succeeded());
        let second = client.txn(create).await.unwrap();
        assert!(!second.succeeded());
        let answers = second.op_responses();
        let etcd_client::TxnOpResponse::Get(found) = &answers[0] else {
            panic!("{answers:?} is no get")
        };
        assert_eq!(found.kvs()[0].value(), b"created");
    })
    .await;
}

#[tokio::test]
async fn leases_are_kept_alive_listed_and_revoked() {
    on_both(async |mut client| {
        let granted = client.lease_grant(60, None).await.unwrap();
        let lease = granted.id();
        assert_eq!(granted.ttl(), 60);
        client.put("leased", "v", Some(PutOptions::new().with_lease(lease))).await.unwrap();
        let (mut keeper, mut answers) = client.lease_keep_alive(lease).await.unwrap();
        keeper.keep_alive().await.unwrap();
        assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 60);
        let options = LeaseTimeToLiveOptions::new().with_keys();
        let left = client.lease_time_to_live(lease, Some(options)).await.unwrap();
        assert_eq!((left.granted_ttl(), left.keys()), (60, &[b"leased".to_vec()][..]));
        assert_eq!(client.leases().await.unwrap().leases().len(), 1);
        client.lease_revoke(lease).await.unwrap();
        assert_eq!(client.get("leased", None).await.unwrap().count(), 0);
        let gone = client.lease_time_to_live(lease, None).await.unwrap();
        assert_eq!(gone.ttl(), -1);
    })
    .await;
}

#[tokio::test]
async fn expired_lease_takes_its_keys_along() {
    on_both(async |mut client| {
        let lease = client.lease_grant(1, None).await.unwrap().id();
        client.put("short", "v", Some(PutOptions::new().with_lease(lease))).await.unwrap();
        let mut stream = client.watch("short", None).await.unwrap();
        assert!(stream.message().await.unwrap().unwrap().created());
        let ended = stream.message().await.unwrap().unwrap();
        assert_eq!(ended.events()[0].event_type(), EventType::Delete);
    })
    .await;
}

#[tokio::test]
async fn watches_deliver_history_and_news() {
    on_both(async |mut client| {
        client.put("w/a", "1", None).await.unwrap();
        let options = WatchOptions::new().with_prefix().with_start_revision(2).with_prev_key();
        let mut stream = client.watch("w/", Some(options)).await.unwrap();
        let created = stream.message().await.unwrap().unwrap();
        assert!(created.created());
        client.put("w/a", "2", None).await.unwrap();
        let mut values = Vec::new();
        while values.len() < 2 {
            let response = stream.message().await.unwrap().unwrap();
            for event in response.events() {
                let kv = event.kv().unwrap();
                let before = event.prev_kv().map(|kv| kv.value().to_vec());
                values.push((kv.value().to_vec(), before));
            }
        }
        let expected = [(b"1".to_vec(), None), (b"2".to_vec(), Some(b"1".to_vec()))];
        assert_eq!(values, expected);
        stream.request_progress().await.unwrap();
        assert_eq!(stream.message().await.unwrap().unwrap().header().unwrap().revision(), 3);
        stream.cancel(created.watch_id()).await.unwrap();
        assert!(stream.message().await.unwrap().unwrap().canceled());
    })
    .await;
}

#[tokio::test]
async fn maintenance_calls_answer() {
    on_both(async |mut client| {
        client.put("k", "v", None).await.unwrap();
        let status = client.status().await.unwrap();
        assert_eq!(status.version(), "3.7.1");
        assert_eq!(status.leader(), client.member_list().await.unwrap().members()[0].id());
        let hash = client.hash_kv(0).await.unwrap();
        assert_eq!((hash.compact_version(), hash.header().unwrap().revision()), (-1, 2));
        client.hash().await.unwrap();
        client.defragment().await.unwrap();
        let alarms = client.alarm(AlarmAction::Get, AlarmType::None, None).await.unwrap();
        assert!(alarms.alarms().is_empty());
        client.compact(2, None).await.unwrap();
        let mut bytes = 0;
        let mut backup = client.snapshot().await.unwrap();
        while let Some(part) = backup.message().await.unwrap() {
            bytes += part.blob().len();
        }
        assert_eq!(bytes % 512, 32, "a file of whole sectors and a SHA-256");
    })
    .await;
}

/// How long a read waits at most, of several clients that read from one follower as fast as they
/// are answered. A read that comes during the round of others must not wait for a tick, of which
/// there are few here.
#[tokio::test]
async fn reads_that_come_during_a_round_do_not_wait_for_a_heartbeat() {
    const HEARTBEAT: Duration = Duration::from_secs(1);
    let flags = ["--heartbeat-interval=1000", "--election-timeout=5000"];
    let Some(mut group) = Group::start(&[Kind::Oxetcd; 3], &flags).unwrap() else { return };
    let follower = (group.leader().unwrap() + 1) % 3;
    let mut readers = JoinSet::new();
    for _ in 0..16 {
        let mut client =
            Client::connect([group.members()[follower].endpoint()], None).await.unwrap();
        readers.spawn(async move {
            let mut waited = Vec::new();
            for _ in 0..200 {
                let asked = Instant::now();
                client.get("k", None).await.unwrap();
                waited.push(asked.elapsed());
            }
            waited
        });
    }
    let waited = readers.join_all().await.concat();
    let late = waited.iter().filter(|time| HEARTBEAT / 2 < **time).count();
    assert!(late < 5, "{late} of {} reads took {:?} at most", waited.len(), waited.iter().max());
}
