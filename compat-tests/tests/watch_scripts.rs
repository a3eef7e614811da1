//! Watch streams on both servers: every response equal, in order.
//!
//! Where etcd leaves the grouping of events into responses open (catching up), only the events
//! and their order are compared.
#![expect(clippy::unwrap_used, reason = "a check that cannot go on has failed")]

use oxetcd_compat_tests::{
    script::{Call, Client, WatchStream},
    server::Server,
};
use proto::{
    etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
        RequestOp, TxnRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest,
        WatchRequest, WatchResponse, request_op::Request, watch_request::RequestUnion,
    },
    mvccpb::Event,
};

fn create(key: &'static str, range_end: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.into(), range_end: range_end.into(), ..Default::default() }
}

fn request(union: RequestUnion) -> WatchRequest {
    WatchRequest { request_union: Some(union) }
}

async fn send_create(stream: &WatchStream, create: WatchCreateRequest) {
    stream.send(request(RequestUnion::CreateRequest(create))).await.unwrap();
}

async fn send_cancel(stream: &WatchStream, watch_id: i64) {
    let cancel = WatchCancelRequest { watch_id };
    stream.send(request(RequestUnion::CancelRequest(cancel))).await.unwrap();
}

async fn send_progress(stream: &WatchStream) {
    stream.send(request(RequestUnion::ProgressRequest(WatchProgressRequest {}))).await.unwrap();
}

async fn put(client: &mut Client, key: &'static str, value: &'static str) {
    let put = PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    let answer = client.call(Call::Put(put)).await;
    assert!(answer.starts_with("PutResponse"), "{answer}");
}

async fn delete(client: &mut Client, key: &'static str, range_end: &'static str) {
    let delete =
        DeleteRangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() };
    let answer = client.call(Call::Delete(delete)).await;
    assert!(answer.starts_with("DeleteRangeResponse"), "{answer}");
}

/// Runs `scenario` on both servers and compares what it returns.
async fn compare<T, F>(flags: &[&str], scenario: F)
where
    T: std::fmt::Debug + PartialEq,
    F: AsyncFn(Client) -> T,
{
    let Some((official, ours)) = Server::start_both(flags).unwrap() else { return };
    let expected = scenario(Client::connect(&official).await.unwrap()).await;
    let found = scenario(Client::connect(&ours).await.unwrap()).await;
    assert_eq!(expected, found, "left: official, right: oxetcd");
}

fn events_of(responses: Vec<WatchResponse>) -> Vec<(i64, Event)> {
    responses
        .into_iter()
        .flat_map(|response| {
            let id = response.watch_id;
            response.events.into_iter().map(move |event| (id, event))
        })
        .collect()
}

/// Responses of one watcher until it has delivered `count` events.
async fn until_events(stream: &mut WatchStream, count: usize) -> Vec<WatchResponse> {
    let mut seen = 0;
    stream
        .until(|response| {
            seen += response.events.len();
            count <= seen
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn live_events_arrive_alike() {
    compare(&[], async |mut client| {
        let mut stream = client.watch();
        send_create(&stream, WatchCreateRequest { prev_kv: true, ..create("a", "c") }).await;
        let mut log = vec![stream.next().await.unwrap()];
        put(&mut client, "a", "1").await;
        put(&mut client, "b", "1").await;
        put(&mut client, "a", "2").await;
        put(&mut client, "outside", "2").await;
        delete(&mut client, "a", "z").await;
        log.extend(until_events(&mut stream, 5).await);
        log
    })
    .await;
}

#[tokio::test]
async fn refused_and_duplicate_watchers_are_answered_alike() {
    compare(&[], async |client| {
        let mut stream = client.watch();
        let mut log = Vec::new();
        for create in [
            create("b", "a"),
            create("b", "b"),
            WatchCreateRequest { start_revision: -1, ..create("a", "") },
            WatchCreateRequest { watch_id: 5, ..create("a", "") },
            WatchCreateRequest { watch_id: 5, ..create("a", "") },
            WatchCreateRequest { watch_id: -9, ..create("a", "") },
            create("a", ""),
            WatchCreateRequest { watch_id: 1, ..create("a", "") },
            create("a", ""),
            create("", ""),
            create("", "\0"),
        ] {
            send_create(&stream, create).await;
            log.push(stream.next().await.unwrap());
        }
        // Ignored: an unknown id, and a request without any content.
        send_cancel(&stream, 77).await;
        stream.send(WatchRequest { request_union: None }).await.unwrap();
        send_cancel(&stream, 5).await;
        log.push(stream.next().await.unwrap());
        log
    })
    .await;
}

#[tokio::test]
async fn history_is_replayed_alike() {
    compare(&[], async |mut client| {
        for value in ["1", "2", "3"] {
            put(&mut client, "a", value).await;
            put(&mut client, "b", value).await;
        }
        delete(&mut client, "a", "").await;
        put(&mut client, "a", "again").await;
        let mut stream = client.watch();
        let mut log = Vec::new();
        for (start_revision, filters, prev_kv, count) in [
            (1, vec![], true, 8),
            (4, vec![], true, 6),
            (2, vec![0], false, 1),
            (2, vec![1], true, 7),
        ] {
            let create =
                WatchCreateRequest { start_revision, filters, prev_kv, ..create("a", "z") };
            send_create(&stream, create).await;
            let responses = until_events(&mut stream, count).await;
            log.push(events_of(responses));
        }
        log
    })
    .await;
}

#[tokio::test]
async fn future_start_suppresses_earlier_events_alike() {
    compare(&[], async |mut client| {
        let mut stream = client.watch();
        send_create(&stream, WatchCreateRequest { start_revision: 4, ..create("a", "") }).await;
        let mut log = vec![stream.next().await.unwrap()];
        for value in ["1", "2", "3", "4"] {
            put(&mut client, "a", value).await;
        }
        log.extend(until_events(&mut stream, 2).await);
        log
    })
    .await;
}

#[tokio::test]
async fn compacted_start_is_cancelled_alike() {
    compare(&[], async |mut client| {
        for value in ["1", "2", "3", "4"] {
            put(&mut client, "a", value).await;
        }
        let compact = CompactionRequest { revision: 4, physical: true };
        client.call(Call::Compact(compact)).await;
        let mut stream = client.watch();
        let mut log = Vec::new();
        for start_revision in [1, 3] {
            let create = WatchCreateRequest { start_revision, ..create("a", "") };
            send_create(&stream, create).await;
            log.push(stream.next().await.unwrap());
            log.push(stream.next().await.unwrap());
        }
        let kept = WatchCreateRequest { start_revision: 4, prev_kv: true, ..create("a", "") };
        send_create(&stream, kept).await;
        let tail = events_of(until_events(&mut stream, 2).await);
        (log, tail)
    })
    .await;
}

#[tokio::test]
async fn manual_progress_follows_the_events_alike() {
    compare(&[], async |mut client| {
        let mut stream = client.watch();
        send_create(&stream, create("a", "")).await;
        let mut log = vec![stream.next().await.unwrap()];
        put(&mut client, "a", "1").await;
        put(&mut client, "unwatched", "1").await;
        log.extend(until_events(&mut stream, 1).await);
        send_progress(&stream).await;
        log.push(stream.next().await.unwrap());
        log
    })
    .await;
}

#[tokio::test]
async fn periodic_progress_is_reported_alike() {
    compare(&["--watch-progress-notify-interval=200ms"], async |client| {
        let mut stream = client.watch();
        send_create(&stream, WatchCreateRequest { progress_notify: true, ..create("a", "") }).await;
        vec![
            stream.next().await.unwrap(),
            stream.next().await.unwrap(),
            stream.next().await.unwrap(),
        ]
    })
    .await;
}

#[tokio::test]
async fn events_of_one_transaction_come_together_alike() {
    compare(&[], async |mut client| {
        let mut stream = client.watch();
        send_create(&stream, WatchCreateRequest { prev_kv: true, ..create("\0", "\0") }).await;
        let mut log = vec![stream.next().await.unwrap()];
        let op = |key: &'static str, value: &'static str| RequestOp {
            request: Some(Request::RequestPut(PutRequest {
                key: key.into(),
                value: value.into(),
                ..Default::default()
            })),
        };
        let gone = RequestOp {
            request: Some(Request::RequestDeleteRange(DeleteRangeRequest {
                key: "x".into(),
                range_end: "z".into(),
                ..Default::default()
            })),
        };
        let first = vec![op("b", "1"), op("a", "1"), op("x", "1"), op("y", "1")];
        let second = vec![gone, op("a", "2"), op("c", "1")];
        for success in [first, second] {
            client.call(Call::Txn(TxnRequest { success, ..Default::default() })).await;
        }
        log.extend(until_events(&mut stream, 8).await);
        log
    })
    .await;
}

#[tokio::test]
async fn revoked_lease_deletes_its_keys_in_one_response_alike() {
    compare(&[], async |mut client| {
        client.call(Call::Grant(LeaseGrantRequest { ttl: 600, id: 7 })).await;
        let mut stream = client.watch();
        send_create(&stream, WatchCreateRequest { filters: vec![0], ..create("\0", "\0") }).await;
        let mut log = vec![stream.next().await.unwrap()];
        for key in ["c", "a", "b"] {
            let put =
                PutRequest { key: key.into(), value: "v".into(), lease: 7, ..Default::default() };
            client.call(Call::Put(put)).await;
        }
        client.call(Call::Revoke(LeaseRevokeRequest { id: 7 })).await;
        log.extend(until_events(&mut stream, 3).await);
        log
    })
    .await;
}

#[tokio::test]
async fn large_responses_are_split_alike_when_asked_for() {
    compare(&["--max-request-bytes=100000"], async |mut client| {
        let value: &'static str = Box::leak("x".repeat(90_000).into_boxed_str());
        for key in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"] {
            put(&mut client, key, value).await;
        }
        let mut sizes = Vec::new();
        for fragment in [true, false] {
            let mut stream = client.watch();
            let create = WatchCreateRequest { start_revision: 1, fragment, ..create("a", "z") };
            send_create(&stream, create).await;
            let responses = until_events(&mut stream, 12).await;
            let shape: Vec<_> = responses
                .iter()
                .map(|response| (response.fragment, response.events.len()))
                .collect();
            sizes.push(shape);
        }
        sizes
    })
    .await;
}
