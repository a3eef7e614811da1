//! HTTP/2 clients over real sockets: other libraries', and some that misbehave.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use proto::etcdserverpb::{self as pb, kv_client::KvClient};
use tonic::transport::Channel;

use super::{
    Options,
    http2::PREFACE,
    tests::{Served, run},
};
use crate::model::MemberId;

/// Settings without any, and a ping.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

/// Everything that the server says to a client that says `bytes` and then listens.
fn answer_to(served: &Served, bytes: &[&[u8]]) -> Vec<u8> {
    let mut stream = TcpStream::connect(served.client).expect("the listener is open");
    stream.write_all(PREFACE).expect("sent");
    stream.write_all(SETTINGS).expect("sent");
    for bytes in bytes {
        stream.write_all(bytes).expect("sent");
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the server ends the connection");
    answer
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn all() -> pb::RangeRequest {
    pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() }
}

// As a running etcd 3.7.1 does it.
#[test]
fn client_that_pings_too_often_is_told_so_and_sent_away() {
    let served = Served::start_with(Options { workers: 1, ..Options::default() });
    let answer = answer_to(&served, &[PING, PING, PING, PING]);
    let goodbye = b"\0\0\0\x0btoo_many_pings";
    assert!(answer.ends_with(goodbye), "{}", answer.escape_ascii());
}

#[test]
fn client_that_is_silent_is_asked_and_then_cut() {
    let short = Duration::from_millis(20);
    let options = Options {
        workers: 1,
        keepalive_interval: short,
        keepalive_timeout: short,
        ..Options::default()
    };
    let served = Served::start_with(options);
    let answer = answer_to(&served, &[]);
    assert!(contains(&answer, b"\0\0\x08\x06\0\0\0\0\0alive?"), "{}", answer.escape_ascii());
}

#[test]
fn connection_that_is_broken_by_its_client_ends_with_a_reason() {
    let served = Served::start_with(Options { workers: 1, ..Options::default() });
    let answer = answer_to(&served, &[b"\0\0\x04\x05\0\0\0\0\x01abcd"]);
    assert!(answer.ends_with(b"a client pushes nothing"), "{}", answer.escape_ascii());
}

#[test]
fn plain_http_is_served_over_http2_as_well() {
    run(async |served| {
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        let get = async |path| {
            let uri = format!("http://{}{path}", served.client).parse().expect("a URL");
            let answer = client.get(uri);
            let answer: http::Response<hyper::body::Incoming> = answer.await.expect("an answer");
            let (parts, body) = answer.into_parts();
            let text = body.collect().await.expect("content").to_bytes();
            (parts.status.as_u16(), text)
        };
        let (status, text) = get("/health").await;
        assert_eq!((status, &text[..]), (200, &b"{\"health\":\"true\",\"reason\":\"\"}"[..]));
        let (status, text) = get("/nothing").await;
        assert_eq!((status, &text[..]), (404, &b"404 page not found\n"[..]));
        let _: &Client<_, Empty<Bytes>> = &client;
    });
}

#[test]
fn client_with_small_windows_gets_large_answers_whole() {
    run(async |served| {
        let large = vec![5; 300_000];
        served.fake.with(|inner| {
            for key in [b"a", b"b", b"c"] {
                let key = Bytes::from_static(key);
                let value = large.clone().into();
                let kv = proto::mvccpb::KeyValue { key: key.clone(), value, ..Default::default() };
                inner.state.rows.insert(key, prost::Message::encode_to_vec(&kv).into());
            }
        });
        let endpoint = Channel::from_shared(format!("http://{}", served.client)).expect("a URL");
        let endpoint =
            endpoint.initial_stream_window_size(1000).initial_connection_window_size(70_000);
        let kv = KvClient::new(endpoint.connect().await.expect("open"));
        let read = |mut kv: KvClient<Channel>| async move { kv.range(all()).await };
        let mut answers: FuturesUnordered<_> = (0..5).map(|_| read(kv.clone())).collect();
        while let Some(answer) = answers.next().await {
            let answer = answer.expect("read").into_inner();
            assert!(answer.kvs.iter().all(|kv| kv.value == large), "values are whole");
            assert_eq!(answer.kvs.len(), 3);
        }
    });
}

#[test]
fn calls_that_wait_hold_up_no_others_and_can_be_taken_back() {
    run(async |served| {
        served.fake.with(|inner| inner.leader = MemberId(0));
        let kv = KvClient::new(served.channel().await);
        let read = |serializable| {
            let mut kv = kv.clone();
            async move { kv.range(pb::RangeRequest { serializable, ..all() }).await }
        };
        let mut waiting: FuturesUnordered<_> = (0..500).map(|_| read(false)).collect();
        assert!(futures::poll!(waiting.next()).is_pending(), "there is no leader to ask");
        while !served.fake.with(|inner| inner.waits) {
            assert!(futures::poll!(waiting.next()).is_pending(), "there is no leader to ask");
            tokio::task::yield_now().await;
        }
        let mut answers: FuturesUnordered<_> = (0..500).map(|_| read(true)).collect();
        while let Some(answer) = answers.next().await {
            answer.expect("read");
        }
        drop(waiting);
        read(true).await.expect("the connection goes on");
    });
}

/// A frame as it is on the wire.
fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("tests are small").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), content].concat()
}

/// The frames of a call of `Range` on stream 1, without compression.
fn range_call(request: &pb::RangeRequest) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/etcdserverpb.KV/Range"),
        (":authority", "test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let length = |text: &str| u8::try_from(text.len()).expect("short");
    let mut block = Vec::new();
    for (name, value) in fields {
        block.extend([0, length(name)]);
        block.extend(name.bytes());
        block.push(length(value));
        block.extend(value.bytes());
    }
    let message = prost::Message::encode_to_vec(request);
    let mut content = vec![0, 0, 0, 0, u8::try_from(message.len()).expect("short")];
    content.extend(message);
    [frame(1, 4, 1, &block), frame(0, 1, 1, &content)].concat()
}

#[test]
fn ping_is_answered_while_a_large_answer_is_taken_as_fast_as_it_comes() {
    const ROWS: u8 = 200;
    const ROW_BYTES: usize = 300_000;
    let served = Served::start_with(Options { workers: 1, ..Options::default() });
    served.fake.with(|inner| {
        let value = Bytes::from(vec![5; ROW_BYTES]);
        for key in 0..ROWS {
            let key = Bytes::from(vec![key]);
            let kv = proto::mvccpb::KeyValue {
                key: key.clone(),
                value: value.clone(),
                ..Default::default()
            };
            inner.state.rows.insert(key, prost::Message::encode_to_vec(&kv).into());
        }
    });
    let stream = TcpStream::connect(served.client).expect("the listener is open");
    let mut wide = vec![0, 4];
    wide.extend(0x7fff_ffff_u32.to_be_bytes());
    let room = (1_u32 << 30).to_be_bytes();
    (&stream).write_all(PREFACE).expect("sent");
    (&stream).write_all(&frame(4, 0, 0, &wide)).expect("sent");
    (&stream).write_all(&frame(8, 0, 0, &room)).expect("sent");
    (&stream).write_all(&range_call(&all())).expect("sent");
    let mut reader = std::io::BufReader::with_capacity(1 << 20, &stream);
    let (mut data, mut data_at_answer) = (0, None);
    loop {
        let mut head = [0; 9];
        reader.read_exact(&mut head).expect("a frame");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut content = vec![0; usize::try_from(length).expect("small")];
        reader.read_exact(&mut content).expect("its content");
        match (head[3], head[4]) {
            (0, _) => {
                if data == 0 {
                    (&stream).write_all(PING).expect("sent");
                }
                data += content.len();
            }
            (6, 1) => data_at_answer = Some(data),
            (1, flags) if flags & 1 == 1 => break,
            _ => {}
        }
    }
    let data_at_answer = data_at_answer.expect("the ping was answered at all");
    assert!(
        data_at_answer < data - 20_000_000,
        "the answer to the ping came after {data_at_answer} of {data} bytes"
    );
}
