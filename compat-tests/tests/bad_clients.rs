//! Garbage on the client port: the server answers others, stays up and does not grow.
#![expect(clippy::unwrap_used, reason = "a failed step of a test ends it")]

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use oxetcd_compat_tests::{
    raw::{self, Raw, framed},
    script::{Call, Client},
    server::{Kind, Server},
};
use prost::Message;
use proto::etcdserverpb::{LeaseKeepAliveRequest, PutRequest, RangeRequest};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PUT: &str = "/etcdserverpb.KV/Put";

/// What all garbage together may cost: buffers of a few connections.
const GROWTH_BYTES_MAX: u64 = 48 << 20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Headers of a put, each as a literal without index.
fn put_headers() -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", PUT),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

fn opened(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frames.concat());
    bytes
}

/// Everything that a connection may begin with and that leads nowhere.
fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let headers = frame(1, 4, 1, &put_headers());
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let noise = std::iter::repeat_with(|| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        random.to_le_bytes()[7]
    });
    let noise = noise.take(20_000).collect::<Vec<_>>();
    vec![
        ("nothing", vec![]),
        ("noise", noise.clone()),
        ("noise behind the preface", [PREFACE, &noise].concat()),
        ("half a preface", PREFACE[..10].to_vec()),
        ("the preface alone", PREFACE.to_vec()),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("an endless header line", [b"GET /".to_vec(), vec![b'a'; 300_000]].concat()),
        ("half a frame", opened(&[headers[..20].to_vec()])),
        ("a frame of 16 MB announced", opened(&[b"\xff\xff\xff\x00\x00\x00\x00\x00\x01".to_vec()])),
        ("data on a stream that is none", opened(&[frame(0, 0, 9, b"xxxx")])),
        ("data on stream 0", opened(&[frame(0, 0, 0, b"xxxx")])),
        ("headers on an even stream", opened(&[frame(1, 4, 2, &put_headers())])),
        ("headers that are no HPACK", opened(&[frame(1, 4, 1, &[0xff; 400])])),
        (
            "headers without an end",
            opened(&[frame(1, 0, 1, &put_headers()), frame(6, 0, 0, &[0; 8])]),
        ),
        ("settings of a wrong length", opened(&[frame(4, 0, 0, &[0; 5])])),
        ("a window beyond 2^31", opened(&[frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])])),
        ("a window of 0", opened(&[headers.clone(), frame(8, 0, 1, &[0; 4])])),
        ("half a message", opened(&[headers.clone(), frame(0, 0, 1, b"\0\0\0\0\x50abc")])),
        ("4 GB announced", opened(&[headers.clone(), frame(0, 0, 1, b"\0\xff\xff\xff\xffabc")])),
        ("headers and a reset", opened(&[headers, frame(3, 0, 1, &[0, 0, 0, 8])])),
    ]
}

/// Sends `bytes`, closes, and reads what comes until the server closes or is silent.
fn throw(server: &Server, bytes: &[u8]) {
    let address = server.endpoint().replace("http://", "");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    // A server may hang up while it is still thrown at.
    drop(stream.write_all(bytes));
    drop(stream.shutdown(Shutdown::Write));
    let mut answer = [0; 4096];
    while stream.read(&mut answer).is_ok_and(|bytes| 0 < bytes) {}
}

fn resident_bytes(server: &Server) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", server.pid().unwrap())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_hurts_nobody_else() {
    let mut server = Server::start(Kind::Oxetcd, &[]).unwrap().unwrap();
    let mut client = Client::connect(&server).await.unwrap();
    let put = PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
    client.call(Call::Put(put.clone())).await;
    // Once to warm up, then with an eye on the memory.
    let mut before = 0;
    for round in 0..6 {
        tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                for (_, bytes) in garbage() {
                    let server = &server;
                    scope.spawn(move || throw(server, &bytes));
                }
            });
        });
        let answer = client.call(Call::Put(put.clone())).await;
        assert!(answer.starts_with("PutResponse"), "round {round}: {answer}");
        assert!(server.is_running(), "round {round} ended the server");
        if round == 0 {
            before = resident_bytes(&server);
        }
    }
    let after = resident_bytes(&server);
    assert!(after < before + GROWTH_BYTES_MAX, "garbage was kept: {before} to {after} bytes");
    let revision = client.call(Call::Range(RangeRequest { key: "k".into(), ..Default::default() }));
    assert!(revision.await.contains("version: 7,"), "garbage was taken for puts");
}

fn gzip(message: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(message).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn compressed_requests_are_understood_and_answered() {
    let Some((official, ours)) = Server::start_both(&[]).unwrap() else { return };
    for server in [&official, &ours] {
        let packed = |path, message: &[u8]| {
            Raw::call(path, framed(1, &gzip(message))).with("grpc-encoding", "gzip")
        };
        let value = "x".repeat(100_000);
        let put = PutRequest { key: "k".into(), value: value.clone().into(), ..Default::default() };
        let put = packed(PUT, &put.encode_to_vec());
        assert!(put.body.len() < 1000, "it is packed");
        assert_eq!(answer(server, put).await, "http 200 application/grpc, status 0: ");
        let mut client = Client::connect(server).await.unwrap();
        let range = RangeRequest { key: "k".into(), ..Default::default() };
        let found = client.call(Call::Range(range)).await;
        assert!(found.contains(&value), "{:?}: {found}", server.kind());
        let keep = LeaseKeepAliveRequest { id: 7 }.encode_to_vec();
        let mut stream = packed("/etcdserverpb.Lease/LeaseKeepAlive", &keep);
        stream.body.extend(framed(0, &keep));
        let kept = answer(server, stream).await;
        assert_eq!(kept, "http 200 application/grpc, status 0: ", "a stream of requests");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_cost_no_more_than_plain_messages() {
    let mut server = Server::start(Kind::Oxetcd, &[]).unwrap().unwrap();
    let bomb = framed(1, &gzip(&vec![0; 256 << 20]));
    assert!(bomb.len() < 300_000, "a bomb is small");
    let answer = answer(&server, Raw::call(PUT, bomb.clone()).with("grpc-encoding", "gzip")).await;
    assert!(
        answer.ends_with("received message after decompression larger than max 2097152"),
        "{answer}"
    );
    let before = resident_bytes(&server);
    let mut channel = raw::connect(server.endpoint()).await.unwrap();
    for _ in 0..50 {
        let request = Raw::call(PUT, bomb.clone()).with("grpc-encoding", "gzip");
        raw::send(&mut channel, request).await.unwrap();
    }
    let after = resident_bytes(&server);
    assert!(server.is_running() && after < before + (16 << 20), "{before} to {after} bytes");
}

/// How our answer to wrong content compares with that of etcd.
#[derive(Clone, Copy, Debug)]
enum Ours {
    /// In every word.
    Same,
    /// Up to the words of the decoder, which is another.
    SameBefore(&'static str),
    /// Not yet: this, until it is the same.
    Still(&'static str),
}

/// Whole HTTP/2 requests whose content is wrong.
fn wrong_content() -> Vec<(Raw, Ours)> {
    const FINE: &str = "http 200 application/grpc, status 0: ";
    const DECODER: &str = "error unmarshalling request: proto:";
    let put = PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
    let put = put.encode_to_vec();
    let whole = || Raw::call(PUT, framed(0, &put));
    let body = |body: &[u8]| Raw::call(PUT, body.to_vec());
    let packed = |message: &[u8]| body(&framed(1, &gzip(message))).with("grpc-encoding", "gzip");
    vec![
        (whole(), Ours::Same),
        (body(b""), Ours::Same),
        (body(b"\0\0\0\0"), Ours::Same),
        (body(&framed(0, &put)[..7]), Ours::Same),
        (body(b"\0\xff\xff\xff\xffabc"), Ours::Same),
        (body(&framed(1, &put)), Ours::Same),
        (body(&framed(7, &put)), Ours::Same),
        (packed(&put), Ours::Same),
        (whole().with("grpc-encoding", "gzip"), Ours::Same),
        (body(&framed(1, &put)).with("grpc-encoding", "gzip"), Ours::Same),
        (body(&framed(1, b"")).with("grpc-encoding", "gzip"), Ours::Same),
        (body(&framed(1, &gzip(&put)[..9])).with("grpc-encoding", "gzip"), Ours::Same),
        (body(&framed(1, &gzip(&put)[..20])).with("grpc-encoding", "gzip"), Ours::Same),
        (body(&framed(1, &[0; 99])).with("grpc-encoding", "gzip"), Ours::Same),
        (
            body(&framed(1, &[&gzip(&put)[..10], &[0xff; 30]].concat()))
                .with("grpc-encoding", "gzip"),
            Ours::SameBefore("read decompressed data: "),
        ),
        (packed(b"\x0a\x50no fifty bytes"), Ours::SameBefore(DECODER)),
        (packed(&vec![0; 3 << 20]), Ours::Same),
        (packed(&put).with("grpc-encoding", "identity"), Ours::Same),
        (whole().with("grpc-encoding", "none-such"), Ours::Same),
        (body(&framed(1, &put)).with("grpc-encoding", "none-such"), Ours::Same),
        (body(&framed(0, b"\x0a\x50no fifty bytes")), Ours::SameBefore(DECODER)),
        (body(&framed(0, &[0xff; 30])), Ours::SameBefore(DECODER)),
        (whole().with("content-type", "application/grpc+proto"), Ours::Still(FINE)),
        (whole().with("content-type", "application/grpc;x=y"), Ours::Still(FINE)),
        (whole().with("content-type", "application/grpcx"), Ours::Same),
        (whole().with("grpc-timeout", "nonsense"), Ours::Same),
        (whole().method("GET"), Ours::Same),
        (whole().method("PUT"), Ours::Same),
    ]
}

async fn answer(server: &Server, request: Raw) -> String {
    // Each on a connection of its own: one may end its connection.
    let mut channel = raw::connect(server.endpoint()).await.unwrap();
    let answer = raw::send(&mut channel, request);
    let answer = tokio::time::timeout(Duration::from_secs(10), answer).await;
    let answer = answer.expect("every request has an answer");
    let answer = answer.unwrap_or_else(|_| "the connection failed".to_owned());
    // Ids in the header make the sizes differ.
    answer.rsplit_once(", ").map_or_else(String::new, |(text, _bytes)| text.to_owned())
}

#[tokio::test]
async fn wrong_content_is_refused_alike() {
    let Some((official, ours)) = Server::start_both(&[]).unwrap() else { return };
    for (request, expected) in wrong_content() {
        let what = format!("{request:?}");
        let theirs = answer(&official, request.clone()).await;
        let found = answer(&ours, request).await;
        let alike = match expected {
            Ours::Same => theirs == found,
            Ours::SameBefore(end) => {
                found.contains(end) && found.split(end).next() == theirs.split(end).next()
            }
            Ours::Still(text) => theirs == found || found == text,
        };
        assert!(alike, "{what}\n  official: {theirs}\n  oxetcd:   {found}\n  {expected:?}");
    }
}
