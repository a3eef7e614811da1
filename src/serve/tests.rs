//! Clients over real sockets against a fake member.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use proto::{
    etcdserverpb::{
        self as pb, kv_client::KvClient, lease_client::LeaseClient,
        maintenance_client::MaintenanceClient,
    },
    health::{HealthCheckRequest, health_client::HealthClient},
};
use sha2::{Digest, Sha256};
use tonic::{Code, Request, Status, transport::Channel};

use super::{Endpoint, Listeners, Options, Serving, Traffic, start};
use crate::{
    api::{
        Edge, Settings,
        fake::{Fake, LEASE},
    },
    base::clock::Clock,
    http::{Access, Http},
    model::{self, MemberId, Unavailable},
};

/// A served fake member and its clients' way to it.
pub(super) struct Served {
    pub(super) fake: Fake,
    pub(super) client: SocketAddr,
    metrics: SocketAddr,
    serving: Option<Serving>,
}

impl Served {
    fn start() -> Self {
        Self::start_with(Options { workers: 2, ..Options::default() })
    }

    pub(super) fn start_with(options: Options) -> Self {
        let settings = Settings {
            election_timeout: Duration::from_millis(10),
            request_bytes_max: 64 << 10,
            ..Settings::default()
        };
        let fake = Fake::default();
        let edge = Arc::new(Edge::new(fake.clone(), settings, Clock::system()));
        let endpoints = [
            Endpoint::from_url("http://127.0.0.1:0", Traffic::GrpcAndHttp).expect("a URL"),
            Endpoint::from_url("http://127.0.0.1:0", Traffic::Metrics).expect("a URL"),
        ];
        let listeners = Listeners::bind(&endpoints, &options).expect("ports are free");
        let addresses = listeners.tcp_addresses();
        let http = Http::new(Arc::clone(&edge), Access::default());
        let serving = start(listeners, edge, http, options).expect("threads start");
        Self { fake, client: addresses[0], metrics: addresses[1], serving: Some(serving) }
    }

    pub(super) async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.client)).expect("a URL");
        endpoint.connect().await.expect("the listener is open")
    }

    fn get(&self, address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).expect("the listener is open");
        let request = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the connection ends after the answer");
        answer
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.stop(Duration::ZERO);
        }
    }
}

pub(super) fn run(test: impl AsyncFnOnce(&Served)) {
    let served = Served::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(test(&served));
}

fn put(key: &'static str, value: impl Into<Bytes>) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

fn all() -> pb::RangeRequest {
    pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.expect_err("refused");
    assert_eq!((status.code(), status.message()), (code, text));
}

#[test]
fn writes_are_read_with_full_headers() {
    run(async |served| {
        let mut kv = KvClient::new(served.channel().await);
        let written = kv.put(put("k", "v")).await.expect("written").into_inner();
        let header = pb::ResponseHeader { cluster_id: 9, member_id: 7, revision: 2, raft_term: 3 };
        assert_eq!(written.header, Some(header));
        let read = kv.range(all()).await.expect("read").into_inner();
        assert_eq!(read.header, Some(header));
        assert_eq!((read.kvs.len(), read.count, read.more), (1, 1, false));
        assert_eq!((&read.kvs[0].key[..], &read.kvs[0].value[..]), (&b"k"[..], &b"v"[..]));
    });
}

#[test]
fn answer_of_many_megabytes_arrives_whole() {
    run(async |served| {
        for key in 0..120u8 {
            served.fake.with(|inner| {
                let value = vec![key; 50_000].into();
                let kv =
                    proto::mvccpb::KeyValue { key: vec![key].into(), value, ..Default::default() };
                let row = prost::Message::encode_to_vec(&kv).into();
                inner.state.rows.insert(vec![key].into(), row);
            });
        }
        let mut kv = KvClient::new(served.channel().await).max_decoding_message_size(64 << 20);
        let read = kv.range(all()).await.expect("read").into_inner();
        assert_eq!(read.count, 120);
        for (key, kv) in (0..).zip(&read.kvs) {
            assert_eq!(kv.value, vec![key; 50_000], "of key {key}");
        }
        let mut stream = kv.range_stream(all()).await.expect("streamed").into_inner();
        let mut merged = pb::RangeResponse::default();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.expect("a chunk").range_response.expect("present");
            assert!(merged.header.is_none(), "a chunk after the one with the header");
            merged.kvs.extend(chunk.kvs);
            (merged.header, merged.count) = (chunk.header, chunk.count);
        }
        assert_eq!(merged, read, "the chunks together are the answer");
    });
}

#[test]
fn read_whose_state_is_outdated_asks_a_newer_one() {
    run(async |served| {
        let left = served.fake.with(|inner| Arc::clone(&inner.state.outdated));
        left.store(2, Ordering::Relaxed);
        let mut kv = KvClient::new(served.channel().await);
        kv.range(all()).await.expect("answered by the third state");
        assert_eq!(left.load(Ordering::Relaxed), 0, "states that were asked in vain");
    });
}

#[test]
fn refusals_have_the_codes_and_texts_of_etcd() {
    run(async |served| {
        let mut kv = KvClient::new(served.channel().await);
        let invalid = Code::InvalidArgument;
        refused(kv.put(put("", "")).await, invalid, "etcdserver: key is not provided");
        let future = pb::RangeRequest { revision: 9, ..all() };
        refused(
            kv.range(future).await,
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        );
        let large = put("k", vec![0; (64 << 10) + (512 << 10)]);
        refused(
            kv.put(large).await,
            Code::ResourceExhausted,
            "grpc: received message larger than max (589831 vs. 589824)",
        );
        served.fake.with(|inner| inner.outcome = Some(Err(Unavailable::Timeout)));
        refused(kv.put(put("k", "")).await, Code::Unavailable, "etcdserver: request timed out");
        served.fake.with(|inner| inner.full = true);
        refused(
            kv.put(put("k", "")).await,
            Code::ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
        );
        let alarm = served.fake.with(|inner| inner.proposed.pop());
        let alarm = alarm.expect("an alarm was raised");
        let expected = pb::AlarmRequest { action: 1, member_id: 7, alarm: 1 };
        assert_eq!(alarm, model::Request::Alarm(expected));
    });
}

#[test]
fn gate_refuses_before_the_cluster_version_is_known_and_most_things_to_learners() {
    run(async |served| {
        let channel = served.channel().await;
        let mut kv = KvClient::new(channel.clone());
        served.fake.with(|inner| inner.state.cluster_version = None);
        let precondition = Code::FailedPrecondition;
        refused(kv.range(all()).await, precondition, "etcdserver: not capable");
        served.fake.with(|inner| {
            inner.state.cluster_version = Some("3.7.0".to_owned());
            inner.state.learner = true;
        });
        let text = "etcdserver: rpc not supported for learner";
        refused(kv.range(all()).await, precondition, text);
        let serializable = pb::RangeRequest { serializable: true, ..all() };
        kv.range(serializable.clone()).await.expect("learners serve serializable reads");
        refused(kv.range_stream(serializable).await, precondition, text);
        let check = HealthCheckRequest::default();
        refused(HealthClient::new(channel.clone()).check(check).await, precondition, text);
        let status = MaintenanceClient::new(channel).status(pb::StatusRequest {}).await;
        assert!(status.expect("learners tell their status").into_inner().is_learner);
    });
}

#[test]
fn callers_that_insist_on_a_leader_get_one_or_an_error() {
    run(async |served| {
        let channel = served.channel().await;
        let mut lease = LeaseClient::new(channel.clone());
        let mut questions = Request::new(futures::stream::pending());
        questions.metadata_mut().insert("hasleader", "true".parse().expect("ASCII"));
        let mut answers = lease.lease_keep_alive(questions).await.expect("open").into_inner();
        served.fake.with(|inner| inner.leader = MemberId(0));
        let ended = answers.next().await.expect("the stream ends with a status");
        refused(ended, Code::Unavailable, "etcdserver: no leader");
        let mut read = Request::new(all());
        read.metadata_mut().insert("hasleader", "true".parse().expect("ASCII"));
        let mut kv = KvClient::new(channel);
        refused(kv.range(read).await, Code::Unavailable, "etcdserver: no leader");
    });
}

#[test]
fn stop_waits_for_requests_and_hardly_for_streams() {
    let mut served = Served::start();
    let serving = served.serving.take().expect("not stopped yet");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let (stream, waiting) = runtime.block_on(async {
        let mut lease = LeaseClient::new(served.channel().await);
        let stream = lease.lease_keep_alive(futures::stream::pending()).await.expect("open");
        served.fake.with(|inner| inner.leader = MemberId(0));
        let mut kv = KvClient::new(served.channel().await);
        let waiting = crate::base::task::spawn(async move { kv.range(all()).await });
        while !served.fake.with(|inner| inner.waits) {
            tokio::task::yield_now().await;
        }
        (stream, waiting)
    });
    let clock = Clock::system();
    serving.stop(Duration::from_millis(400));
    let stopping = clock.now();
    assert!(Duration::from_millis(400) <= stopping, "a request was cut after {stopping:?}");
    let ended = runtime.block_on(waiting).expect("no panic");
    ended.expect_err("cut when its time was over");
    drop(stream);
}

#[test]
fn stop_with_nothing_but_streams_is_quick() {
    let mut served = Served::start();
    let serving = served.serving.take().expect("not stopped yet");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut stream = runtime.block_on(async {
        let mut lease = LeaseClient::new(served.channel().await);
        let stream = lease.lease_keep_alive(futures::stream::pending()).await.expect("open");
        stream.into_inner()
    });
    // Far longer than the test may take: it would hang if streams were waited for.
    serving.stop(Duration::from_hours(1));
    runtime.block_on(stream.next()).expect("an end").expect_err("cut");
}

#[test]
fn leases_are_renewed_in_order_and_unknown_ones_have_no_time_left() {
    run(async |served| {
        let mut lease = LeaseClient::new(served.channel().await);
        let questions = [LEASE.0, 5].map(|id| pb::LeaseKeepAliveRequest { id });
        let answers = lease.lease_keep_alive(futures::stream::iter(questions)).await;
        let answers: Vec<_> = answers.expect("open").into_inner().collect().await;
        let times = answers.into_iter().map(|answer| {
            let answer = answer.expect("an answer");
            (answer.id, answer.ttl)
        });
        assert_eq!(times.collect::<Vec<_>>(), [(LEASE.0, 60), (5, 0)]);
        let request = pb::LeaseTimeToLiveRequest { id: 5, keys: true };
        let time = lease.lease_time_to_live(request).await.expect("answered").into_inner();
        assert_eq!((time.id, time.ttl, time.granted_ttl), (5, -1, 0));
        let request = pb::LeaseGrantRequest { ttl: 1, id: 0 };
        let grant = lease.lease_grant(request).await.expect("granted").into_inner();
        assert_eq!((grant.id, grant.ttl), (i64::MAX, 2), "a positive id of the server's choice");
    });
}

#[test]
fn backup_is_cut_in_pieces_and_ends_with_its_digest() {
    run(async |served| {
        let file = Bytes::from(vec![3; 70 * 1024]);
        served.fake.with(|inner| inner.backup = file.clone());
        let mut maintenance = MaintenanceClient::new(served.channel().await);
        let pieces = maintenance.snapshot(pb::SnapshotRequest {}).await.expect("open");
        let pieces: Vec<_> =
            pieces.into_inner().map(|piece| piece.expect("a piece")).collect().await;
        let sizes: Vec<_> =
            pieces.iter().map(|piece| (piece.blob.len(), piece.remaining_bytes)).collect();
        assert_eq!(sizes, [(32768, 38912), (32768, 6144), (6144, 0), (32, 0)]);
        assert!(pieces.iter().all(|piece| piece.version == "3.7.0" && piece.header.is_none()));
        assert_eq!(pieces[3].blob, Sha256::digest(&file).to_vec());
    });
}

#[test]
fn health_service_knows_the_empty_name_only() {
    run(async |served| {
        let mut health = HealthClient::new(served.channel().await);
        let check = health.check(HealthCheckRequest::default()).await.expect("healthy");
        assert_eq!(check.into_inner().status, 1);
        let other = HealthCheckRequest { service: "x".to_owned() };
        refused(health.check(other.clone()).await, Code::NotFound, "unknown service");
        let mut watch = health.watch(other).await.expect("open").into_inner();
        assert_eq!(watch.next().await.expect("a status").expect("no error").status, 3);
    });
}

#[test]
fn status_tells_where_the_member_stands() {
    run(async |served| {
        served.fake.with(|inner| {
            inner.state.alarms = vec![pb::AlarmMember { member_id: 7, alarm: 1 }];
        });
        let mut maintenance = MaintenanceClient::new(served.channel().await);
        let status = maintenance.status(pb::StatusRequest {}).await.expect("answered").into_inner();
        assert_eq!((status.version.as_str(), status.storage_version.as_str()), ("3.7.1", "3.7.0"));
        assert_eq!((status.raft_index, status.raft_applied_index), (12, 11));
        assert_eq!(
            (status.db_size, status.db_size_in_use, status.db_size_quota),
            (20, 10, 2 << 30)
        );
        assert_eq!(status.errors, ["memberID:7 alarm:NOSPACE"]);
        assert!(status.downgrade_info.is_some(), "always present");
    });
}

#[test]
fn plain_http_answers_on_the_same_port() {
    let served = Served::start();
    let client = served.client;
    let health = served.get(client, "GET /health");
    assert!(health.starts_with("HTTP/1.1 200 OK\r\n"), "{health}");
    assert!(health.ends_with("\r\n\r\n{\"health\":\"true\",\"reason\":\"\"}"), "{health}");
    let ready = served.get(client, "GET /readyz?verbose&exclude=data_corruption");
    let checks = "[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n";
    assert!(ready.ends_with(checks), "{ready}");
    assert!(served.get(client, "GET /livez").ends_with("\r\n\r\nok\n"));
    let version = served.get(client, "GET /version");
    let versions = r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
    assert!(version.ends_with(versions), "{version}");
    let refused = served.get(client, "POST /version");
    assert!(refused.starts_with("HTTP/1.1 405") && refused.contains("allow: GET"), "{refused}");
    let missing = served.get(client, "GET /v3/kv/range");
    assert!(missing.ends_with("404 page not found\n"), "{missing}");
    assert!(served.get(client, "GET /debug/vars").contains("\"raftState\":\"StateLeader\""));
}

#[test]
fn unix_socket_serves_and_takes_the_place_of_a_dead_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("client:2379");
    drop(UnixListener::bind(&path).expect("the socket of a process that died"));
    let fake = Fake::default();
    let edge = Arc::new(Edge::new(fake, Settings::default(), Clock::system()));
    let options = Options { workers: 1, ..Options::default() };
    let url = format!("unix://{}", path.display());
    let endpoint = Endpoint::from_url(&url, Traffic::GrpcAndHttp).expect("a URL");
    let listeners = Listeners::bind(&[endpoint], &options).expect("the socket is free");
    let http = Http::new(Arc::clone(&edge), Access::default());
    let serving = start(listeners, edge, http, options).expect("threads start");
    let mut stream = UnixStream::connect(&path).expect("the listener is open");
    let request = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the connection ends after the answer");
    assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
    serving.stop(Duration::ZERO);
    assert!(!path.exists(), "the socket is removed at the end");
}

#[test]
fn listener_for_grpc_alone_serves_no_plain_http() {
    let edge = Arc::new(Edge::new(Fake::default(), Settings::default(), Clock::system()));
    let options = Options { workers: 1, ..Options::default() };
    let endpoint = Endpoint::from_url("http://127.0.0.1:0", Traffic::Grpc).expect("a URL");
    let listeners = Listeners::bind(&[endpoint], &options).expect("a port is free");
    let client = listeners.tcp_addresses()[0];
    let http = Http::new(Arc::clone(&edge), Access::default());
    let serving = start(listeners, edge, http, options).expect("threads start");
    let served = Served { fake: Fake::default(), client, metrics: client, serving: None };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut kv = KvClient::new(served.channel().await);
        kv.range(all()).await.expect("gRPC is served");
    });
    let mut stream = TcpStream::connect(client).expect("the listener is open");
    // The server may have hung up before everything is sent.
    drop(stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", answer.escape_ascii());
    serving.stop(Duration::ZERO);
}

#[test]
fn sick_member_says_why() {
    let served = Served::start();
    served.fake.with(|inner| {
        inner.state.alarms = vec![pb::AlarmMember { member_id: 7, alarm: 2 }];
        inner.state.learner = true;
    });
    let health = served.get(served.client, "GET /health");
    assert!(health.starts_with("HTTP/1.1 503"), "{health}");
    assert!(health.ends_with("{\"health\":\"false\",\"reason\":\"ALARM CORRUPT\"}\n"), "{health}");
    let health = served.get(served.client, "GET /health?exclude=CORRUPT");
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    let ready = served.get(served.client, "GET /readyz");
    assert!(ready.contains("[-]data_corruption failed: alarm activated: CORRUPT\n"), "{ready}");
    assert!(ready.ends_with("[-]non_learner failed: not supported for learner\n\n"), "{ready}");
}

#[test]
fn metrics_port_has_metrics_and_health_only() {
    crate::api::metrics::register_metrics(false);
    let served = Served::start();
    let metrics = served.get(served.metrics, "GET /metrics");
    let started = "grpc_server_handled_total{grpc_code=\"Canceled\",grpc_method=\"Watch\",\
                   grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"} 0";
    assert!(metrics.contains(started), "{metrics}");
    assert!(metrics.contains("process_resident_memory_bytes "), "{metrics}");
    assert!(served.get(served.metrics, "GET /health").starts_with("HTTP/1.1 200"));
    assert!(served.get(served.metrics, "GET /version").starts_with("HTTP/1.1 404"));
}
