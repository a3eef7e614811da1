//! What peers, and others, are answered. The official server was asked the same questions.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use proto::raftpb::{Entry, Message, MessageType};

use super::fake::{CLUSTER, Member, eventually};
use crate::{
    model::{ClusterId, MemberId},
    transport::PeerCall,
};

/// An answer, without its date.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    headers: Vec<String>,
    body: String,
}

impl Answer {
    fn has(&self, header: &str) -> bool {
        self.headers.iter().any(|one| one == header)
    }
}

/// The headers that a peer sends.
fn credentials(changed: &[(&str, &str)]) -> String {
    let mut headers = vec![
        ("X-Server-From", "9"),
        ("X-Server-Version", "3.7.1"),
        ("X-Min-Cluster-Version", "3.0.0"),
        ("X-Etcd-Cluster-ID", "c1"),
        ("X-Raft-To", "1"),
    ];
    for (name, value) in changed {
        headers.retain(|(other, _)| other != name);
        headers.push((name, value));
    }
    headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect()
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).expect("a connection");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    socket
}

/// Sends a request and reads the answer to its end.
fn ask(member: &Member, line: &str, headers: &str, body: &[u8]) -> Answer {
    let mut socket = connect(member.address);
    let length = body.len();
    let head =
        format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n");
    socket.write_all(format!("{head}{headers}\r\n").as_bytes()).expect("sent");
    // The answer may come before the body is read.
    socket.write_all(body).ok();
    let mut text = Vec::new();
    socket.read_to_end(&mut text).expect("an answer");
    parse(&String::from_utf8_lossy(&text))
}

fn parse(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status");
    Answer {
        status: status.parse().expect("a number"),
        headers: lines.map(str::to_lowercase).filter(|line| !line.starts_with("date:")).collect(),
        body: body.to_owned(),
    }
}

/// Begins a stream, and reads no more than the head of the answer.
fn begin_stream(address: SocketAddr, path: &str, headers: &str) -> (TcpStream, String) {
    let mut socket = connect(address);
    socket
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").as_bytes())
        .expect("sent");
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    (socket, String::from_utf8(head).expect("text"))
}

#[track_caller]
fn check(answer: &Answer, status: u16, text: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.body, format!("{text}\n"));
    assert!(answer.has("content-type: text/plain; charset=utf-8"), "{answer:?}");
    assert!(answer.has("x-content-type-options: nosniff"), "{answer:?}");
}

#[test]
fn paths_that_do_not_exist_are_not_found() {
    let one = Member::start(1);
    for path in ["/", "/nothing", "/raft/", "/raft/snapshot/", "/members/", "/leases/x"] {
        check(&ask(&one, &format!("GET {path}"), "", b""), 404, "404 page not found");
    }
}

#[test]
fn odd_paths_are_sent_to_the_right_ones() {
    let one = Member::start(1);
    let answer = ask(&one, "GET /raft//probing?x=1", "", b"");
    assert_eq!(answer.status, 307);
    assert!(answer.has("location: /raft/probing?x=1"), "{answer:?}");
    assert_eq!(answer.body, "<a href=\"/raft/probing?x=1\">Temporary Redirect</a>.\n\n");
    let answer = ask(&one, "POST /members/promote", "", b"");
    assert_eq!((answer.status, answer.body.as_str()), (307, ""));
}

#[test]
fn methods_that_are_not_allowed_are_told_which_are() {
    let one = Member::start(1);
    let cases = [
        ("GET /raft", "POST"),
        ("GET /raft/snapshot", "POST"),
        ("POST /raft/stream/msgapp/9", "GET"),
        ("PUT /members", "GET"),
        ("POST /version", "GET"),
        ("POST /members/hashkv", "GET"),
        ("POST /downgrade/enabled", "GET"),
        ("GET /members/promote/77", "POST"),
    ];
    for (line, allowed) in cases {
        let answer = ask(&one, line, "", b"");
        check(&answer, 405, "Method Not Allowed");
        assert!(answer.has(&format!("allow: {}", allowed.to_lowercase())), "{line}: {answer:?}");
        assert!(!answer.has("x-etcd-cluster-id: c1"), "{line}: {answer:?}");
    }
    let answer = ask(&one, "GET /leases", "", b"");
    check(&answer, 405, "Method Not Allowed");
    assert!(!answer.headers.iter().any(|header| header.starts_with("allow:")), "{answer:?}");
}

#[test]
fn peers_of_other_versions_and_clusters_are_refused() {
    let one = Member::start(1);
    let cases = [
        (credentials(&[("X-Server-Version", "2.3.1")]), "incompatible version"),
        (credentials(&[("X-Min-Cluster-Version", "3.8.0")]), "incompatible version"),
        (String::new(), "incompatible version"),
        (credentials(&[("X-Etcd-Cluster-ID", "c2")]), "cluster ID mismatch"),
    ];
    for (headers, text) in cases {
        for line in ["GET /raft/stream/msgapp/9", "POST /raft", "POST /raft/snapshot"] {
            let answer = ask(&one, line, &headers, b"");
            check(&answer, 412, text);
            assert!(answer.has("x-etcd-cluster-id: c1"), "{line}: {answer:?}");
        }
    }
}

#[test]
fn streams_are_for_peers_alone() {
    let one = Member::start(1);
    one.transport.set_peer(MemberId(9), vec!["http://127.0.0.1:1".to_owned()]);
    one.ears.banned.lock().expect("no panic").insert(MemberId(8));
    let cases = [
        ("/raft/stream/", credentials(&[]), 404, "invalid path"),
        ("/raft/stream/foo/9", credentials(&[]), 404, "invalid path"),
        ("/raft/stream/msgapp", credentials(&[]), 404, "invalid path"),
        ("/raft/stream/msgapp/9/x", credentials(&[]), 404, "invalid path"),
        ("/raft/stream/msgapp/", credentials(&[]), 404, "invalid from"),
        ("/raft/stream/msgapp/zz", credentials(&[]), 404, "invalid from"),
        ("/raft/stream/msgapp/77", credentials(&[]), 404, "error sender not found"),
        ("/raft/stream/message/8", credentials(&[]), 410, "removed member"),
        ("/raft/stream/message/9", credentials(&[("X-Raft-To", "2")]), 412, "to field mismatch"),
    ];
    for (path, headers, status, text) in cases {
        let answer = ask(&one, &format!("GET {path}"), &headers, b"");
        check(&answer, status, text);
        assert!(answer.has("x-etcd-cluster-id: c1"), "{path}: {answer:?}");
        assert!(answer.has("x-server-version: 3.7.1"), "{path}: {answer:?}");
    }
}

#[test]
fn a_stream_begins_at_once_and_shows_signs_of_life() {
    let one = Member::start(1);
    one.transport.set_peer(MemberId(9), vec!["http://127.0.0.1:1".to_owned()]);
    let (mut socket, head) = begin_stream(one.address, "/raft/stream/message/9", &credentials(&[]));
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("\r\nX-Etcd-Cluster-Id: c1\r\n"), "{head}");
    assert!(head.to_lowercase().contains("\r\ntransfer-encoding: chunked\r\n"), "{head}");
    // A chunk of ten bytes: the length of a message, and one without sender and receiver.
    let mut chunk = [0; 22];
    socket.read_exact(&mut chunk).expect("a heartbeat");
    assert_eq!(&chunk, b"0000000a\r\n\0\0\0\0\0\0\0\x02\x08\x08\r\n");
    one.send(MemberId(9), MessageType::MsgHeartbeat, 4);
    socket.read_exact(&mut chunk).expect("a message");
}

#[test]
fn a_peer_that_does_not_read_is_reported() {
    let one = Member::start(1);
    let nine = MemberId(9);
    one.transport.set_peer(nine, vec!["http://127.0.0.1:1".to_owned()]);
    let (_socket, _) = begin_stream(one.address, "/raft/stream/message/9", &credentials(&[]));
    // Until here it was unreachable for other reasons.
    one.ears.until("a look", |heard| Some(std::mem::take(&mut heard.unreachable)));
    let entry = Entry { data: Some(vec![7; 50_000].into()), ..Entry::default() };
    let append = Message { entries: vec![entry], ..one.message(nine, MessageType::MsgApp, 1) };
    // The socket takes some megabytes of them, and the queue some thousands.
    for _ in 0..100 {
        one.transport.send(vec![append.clone(); 100]);
    }
    one.ears.until("a report", |heard| heard.unreachable.take(&nine));
}

#[test]
fn a_former_peer_s_streams_end() {
    let one = Member::start(1);
    one.transport.set_peer(MemberId(9), vec!["http://127.0.0.1:1".to_owned()]);
    let (mut socket, _) = begin_stream(one.address, "/raft/stream/msgapp/9", &credentials(&[]));
    one.transport.remove_peer(MemberId(9));
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).expect("an end");
    assert!(rest.ends_with(b"0\r\n\r\n"), "{rest:?}");
    let answer = ask(&one, "GET /raft/stream/msgapp/9", &credentials(&[]), b"");
    check(&answer, 404, "error sender not found");
}

#[test]
fn a_stream_may_follow_other_requests_on_its_connection() {
    let one = Member::start(1);
    one.transport.set_peer(MemberId(9), vec!["http://127.0.0.1:1".to_owned()]);
    let mut socket = connect(one.address);
    let probe = "GET /raft/probing HTTP/1.1\r\nHost: x\r\n\r\n";
    let stream = "GET /raft/stream/msgapp/9 HTTP/1.1\r\nHost: x\r\n";
    for (request, end) in
        [(probe.to_owned(), "\"}\n"), (format!("{stream}{}\r\n", credentials(&[])), "\r\n\r\n")]
    {
        socket.write_all(request.as_bytes()).expect("sent");
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(end.as_bytes()) {
            socket.read_exact(&mut byte).expect("an answer");
            answer.push(byte[0]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&answer));
    }
    let mut heartbeat = [0; 13];
    socket.read_exact(&mut heartbeat).expect("a heartbeat");
    assert_eq!(&heartbeat, b"00000001\r\n\0\r\n");
}

#[test]
fn messages_that_are_none_or_for_others_are_refused() {
    let one = Member::start(1);
    let answer = ask(&one, "POST /raft", &credentials(&[]), b"zzzz");
    check(&answer, 400, "error unmarshalling raft message");
    // A heartbeat to member 5, and nothing, which is to nobody.
    for body in [b"\x08\x08\x10\x05\x18\x07".as_slice(), b""] {
        let answer = ask(&one, "POST /raft", &credentials(&[]), body);
        check(&answer, 500, "error processing raft message");
    }
    one.ears.banned.lock().expect("no panic").insert(MemberId(7));
    let answer = ask(&one, "POST /raft", &credentials(&[]), b"\x08\x08\x10\x01\x18\x07");
    check(&answer, 500, "error processing raft message");
    // From here on it is well-formed. The last is MsgStorageAppend.
    for (body, heard) in [(b"\x08\x08\x10\x01\x18\x06", 1), (b"\x08\x13\x10\x01\x18\x06", 1)] {
        let answer = ask(&one, "POST /raft", &credentials(&[]), body);
        assert_eq!((answer.status, answer.body.as_str()), (204, ""));
        assert_eq!(one.ears.until("a look", |ears| Some(ears.messages.len())), heard);
    }
}

#[test]
fn snapshots_that_are_none_are_refused() {
    let one = Member::start(1);
    let cases: [(&[u8], u16, &str); 6] = [
        (b"", 400, "failed to decode raft message (EOF)"),
        (b"abc", 400, "failed to decode raft message (unexpected EOF)"),
        (b"\0\0\0\0\0\0\0\x06\x08\x08\x10\x05\x18\x07", 400, "wrong raft message type"),
        (
            b"\0\0\0\0\x10\0\0\x06\x08\x08\x10\x05\x18\x07",
            400,
            "failed to decode raft message (rafthttp: error limit exceeded)",
        ),
        (b"\0\0\0\0\0\0\0\x06\x08\x07\x10\x01\x18\x07", 400, "wrong raft message type"),
        (
            b"\0\0\0\0\0\0\0\x0c\x08\x07\x10\x05\x18\x07\x4a\x04\x12\x02\x10\x05abc",
            500,
            "failed to process raft message (cannot process message to mismatch member)",
        ),
    ];
    for (body, status, text) in cases {
        check(&ask(&one, "POST /raft/snapshot", &credentials(&[]), body), status, text);
    }
    let left = std::fs::read_dir(one.ears.directory.path()).expect("a directory").count();
    assert_eq!(left, 0);
}

#[test]
fn a_cut_snapshot_leaves_nothing_behind() {
    let one = Member::start(1);
    let mut socket = connect(one.address);
    let head = format!(
        "POST /raft/snapshot HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n{}\r\n",
        credentials(&[])
    );
    socket.write_all(head.as_bytes()).expect("sent");
    socket
        .write_all(b"\0\0\0\0\0\0\0\x0c\x08\x07\x10\x01\x18\x07\x4a\x04\x12\x02\x10\x05abc")
        .expect("sent");
    let files = || std::fs::read_dir(one.ears.directory.path()).expect("a directory").count();
    eventually("the file", || files() == 1);
    socket.shutdown(Shutdown::Both).expect("open until now");
    eventually("the end of the file", || files() == 0);
    assert!(one.ears.until("a look", |heard| Some(heard.messages.is_empty())));
}

#[test]
fn requests_that_are_not_raft_s_reach_the_member() {
    let one = Member::start(1);
    let cases = [
        ("GET /members", "", PeerCall::Members, true),
        ("GET /version", "", PeerCall::Version, false),
        ("GET /downgrade/enabled", "", PeerCall::DowngradeEnabled, true),
        ("POST /members/promote/77", "", PeerCall::Promote(MemberId(77)), true),
        ("GET /members/hashkv", "{}", PeerCall::HashKv("{}".into()), true),
        ("POST /leases", "abc", PeerCall::Lease("abc".into()), false),
        ("POST /leases/internal", "abc", PeerCall::LeaseTime("abc".into()), false),
    ];
    for (line, body, call, names_cluster) in cases {
        let answer = ask(&one, line, "", body.as_bytes());
        assert_eq!(answer.status, 200, "{line}");
        assert_eq!(answer.body, format!("{call:?}"), "{line}");
        assert_eq!(answer.has("x-etcd-cluster-id: c1"), names_cluster, "{line}: {answer:?}");
    }
}

#[test]
fn calls_that_are_malformed_do_not_reach_the_member() {
    let one = Member::start(1);
    for id in ["abc", "", "+77", "-1", "18446744073709551616"] {
        let answer = ask(&one, &format!("POST /members/promote/{id}"), "", b"");
        check(&answer, 404, &format!("member {id} not found in cluster"));
    }
    let answer = ask(&one, "POST /leases", "", &vec![0; 70_000]);
    check(&answer, 413, "request body too large");
    let other = "X-Etcd-Cluster-ID: c2\r\n";
    check(&ask(&one, "GET /members/hashkv", other, b"{}"), 412, "cluster ID mismatch");
    assert!(one.ears.until("a look", |heard| Some(heard.calls.is_empty())));
}

#[test]
fn a_probe_is_told_the_time() {
    let one = Member::start(1);
    for line in ["GET /raft/probing", "POST /raft/probing"] {
        let answer = ask(&one, line, "", b"");
        assert_eq!(answer.status, 200);
        assert!(answer.body.starts_with("{\"OK\":true,\"Now\":\"2"), "{answer:?}");
        assert!(answer.body.ends_with("Z\"}\n"), "{answer:?}");
    }
}

#[test]
fn garbage_ends_its_own_connection_only() {
    let one = Member::start(1);
    for garbage in [b"\0\x01\x02\x03\r\n\r\n".as_slice(), &[b'x'; 200_000], b"GET\r\n\r\n"] {
        let mut socket = connect(one.address);
        // It may be cut off meanwhile.
        socket.write_all(garbage).ok();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).ok();
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(ask(&one, "GET /version", "", b"").status, 200);
}

#[test]
fn a_member_of_another_cluster_hears_nothing() {
    let (one, other) =
        (Member::start(1), Member::start_at(2, "127.0.0.1:0".parse().expect("it"), ClusterId(7)));
    one.know(&other);
    other.know(&one);
    one.send(other.id, MessageType::MsgHeartbeat, 1);
    one.ears.until("a report", |heard| heard.unreachable.take(&other.id));
    assert!(other.ears.until("a look", |heard| Some(heard.messages.is_empty())));
    assert_eq!(one.transport.active_since(other.id), None);
    assert_ne!(CLUSTER, ClusterId(7));
}

#[test]
fn a_removed_member_is_told_so() {
    let (one, two) = (Member::start(1), Member::start(2));
    one.ears.banned.lock().expect("no panic").insert(two.id);
    two.know(&one);
    two.ears.until("the news", |heard| heard.removed.then_some(()));
}

#[test]
fn a_member_that_is_not_known_yet_is_answered_through_the_pipeline() {
    let (one, two) = (Member::start(1), Member::start(2));
    // Two dials one, which learns from it where two is.
    two.know(&one);
    eventually("an answer", || {
        one.send(two.id, MessageType::MsgAppResp, 5);
        two.ears.until("a look", |heard| Some(heard.messages.pop())).is_some()
    });
    assert_eq!(one.transport.active_since(two.id), None, "it is no member for one");
    one.know(&two);
    one.send(two.id, MessageType::MsgHeartbeat, 6);
    eventually("a connection", || one.transport.active_since(two.id).is_some());
}
