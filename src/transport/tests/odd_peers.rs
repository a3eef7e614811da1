//! Peers that answer requests for streams in odd ways.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::BytesMut;
use proto::raftpb::MessageType;

use super::fake::{Member, eventually};
use crate::{
    base::thread::{self, Priority},
    model::MemberId,
    transport::{codec::encode_whole, kind::link_heartbeat},
};

const PEER: MemberId = MemberId(2);

/// Answers every request with the same bytes, and then leaves the connection open until the other
/// side ends it.
struct OddPeer {
    url: String,
    /// Requests for streams of messages so far.
    asked: Arc<AtomicUsize>,
}

impl OddPeer {
    fn start(answer: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let asked = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&asked);
        // Lives as long as the tests: nobody waits for it.
        let accept = move || {
            for socket in listener.incoming() {
                let (answer, count) = (answer.clone(), Arc::clone(&count));
                let serve = move || serve(socket.expect("a connection"), &answer, &count);
                thread::spawn("odd-stream", Priority::Normal, serve).expect("a thread");
            }
        };
        thread::spawn("odd-peer", Priority::Normal, accept).expect("a thread");
        Self { url, asked }
    }

    #[track_caller]
    fn wait_until_asked(&self, times: usize) {
        eventually("another request", || times <= self.asked.load(Ordering::Relaxed));
    }
}

fn serve(mut socket: TcpStream, answer: &[u8], asked: &AtomicUsize) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match socket.read(&mut byte) {
            Ok(1..) => head.push(byte[0]),
            Ok(0) | Err(_) => return,
        }
    }
    if head.starts_with(b"GET /raft/stream/message/") {
        asked.fetch_add(1, Ordering::Relaxed);
    }
    socket.write_all(answer).ok();
    // Whatever comes, the end comes some time.
    socket.read_to_end(&mut Vec::new()).ok();
}

/// A member that has the peer for its only one.
fn member_with(peer: &OddPeer) -> Member {
    let one = Member::start(1);
    one.transport.set_peer(PEER, vec![peer.url.clone()]);
    one
}

fn granted(rest: &[u8]) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\nX-Server-Version: 3.7.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    [head.as_bytes(), rest].concat()
}

fn refused(status: &str, text: &str) -> Vec<u8> {
    let length = text.len();
    let head = format!("HTTP/1.1 {status}\r\nX-Server-Version: 3.7.1\r\nContent-Length: {length}");
    format!("{head}\r\n\r\n{text}").into_bytes()
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

#[test]
fn a_stream_of_garbage_is_given_up_and_asked_for_again() {
    for garbage in [
        // A length beyond every limit, on either stream; a chunk that is none.
        granted(&chunk(&[0xff; 16])),
        granted(b"zzzz\r\n"),
        b"\0\x01\x02\x03\r\n\r\n".to_vec(),
        // The end of the answer.
        granted(b"0\r\n\r\n"),
    ] {
        let peer = OddPeer::start(garbage);
        let one = member_with(&peer);
        peer.wait_until_asked(3);
        assert!(one.ears.until("a look", |heard| Some(heard.messages.is_empty())));
    }
}

#[test]
fn refusals_make_a_peer_inactive_and_are_asked_about_again() {
    for refusal in [
        refused("404 Not Found", "error sender not found\n"),
        refused("412 Precondition Failed", "cluster ID mismatch\n"),
        refused("412 Precondition Failed", "incompatible version\n"),
        refused("412 Precondition Failed", "to field mismatch\n"),
        refused("500 Internal Server Error", ""),
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(),
    ] {
        let peer = OddPeer::start(refusal);
        let one = member_with(&peer);
        peer.wait_until_asked(3);
        assert_eq!(one.transport.active_since(PEER), None);
        assert!(!one.ears.until("a look", |heard| Some(heard.removed)));
    }
}

#[test]
fn only_a_removed_member_hears_that_it_was_removed() {
    let peer = OddPeer::start(refused("410 Gone", "removed member\n"));
    let one = member_with(&peer);
    one.ears.until("the news", |heard| heard.removed.then_some(()));
}

#[test]
fn messages_arrive_however_the_answer_is_cut() {
    let template = Member::start(1);
    let mut bytes = BytesMut::new();
    for index in 1..=20 {
        let mut message = template.message(MemberId(1), MessageType::MsgHeartbeat, index);
        message.from = Some(PEER.0);
        encode_whole(&message, &mut bytes);
        encode_whole(&link_heartbeat(), &mut bytes);
    }
    for length in [1, 7, 64, 10_000] {
        let chunks: Vec<u8> = bytes.chunks(length).flat_map(chunk).collect();
        // Extensions of a chunk's head, and leading zeros, mean nothing.
        let odd_chunk = [b"0000002;a=b\r\n".as_slice(), &[0, 0], b"\r\n"].concat();
        let peer = OddPeer::start(granted(&[chunks, odd_chunk].concat()));
        let one = member_with(&peer);
        one.ears.until("all messages", |heard| {
            let found = heard.messages.iter().filter(|message| message.from() == PEER.0);
            let indexes: Vec<_> = found.map(|message| message.index()).collect();
            (indexes.len() == 20).then(|| assert!(indexes.is_sorted(), "{indexes:?}"))
        });
    }
}
