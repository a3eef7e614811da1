//! Ways, batches and the ends of connections, with a socket that takes what it is told to.

use std::{
    io,
    sync::{Arc, Mutex},
    task::{Context, Waker},
};

use bytes::{Bytes, BytesMut};
use proto::raftpb::{Entry, Message, MessageType};

use super::{
    BATCH_BYTES, DIRECT_BYTES_MAX, Flow, Full, Lanes, STREAM_BYTES_MAX, STREAM_MESSAGES_MAX,
    Ticket, Wire,
};
use crate::{
    model::MemberId,
    transport::{codec::Decoder, kind::StreamKind},
};

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";

/// Takes as many bytes as there is room for.
#[derive(Debug)]
struct Pipe(Mutex<(Vec<u8>, usize)>);

impl Pipe {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new((Vec::new(), usize::MAX))))
    }

    fn set_room(&self, bytes: usize) {
        self.0.lock().expect("no panic").1 = bytes;
    }

    /// What has come, without the head and the chunks.
    fn take(&self) -> BytesMut {
        let mut state = self.0.lock().expect("no panic");
        let mut all = std::mem::take(&mut state.0);
        if all.starts_with(HEAD) {
            all.drain(..HEAD.len());
        }
        let mut content = BytesMut::new();
        let mut rest = all.as_slice();
        while let Some(at) = rest.windows(2).position(|two| two == b"\r\n") {
            let digits = std::str::from_utf8(&rest[..at]).expect("digits");
            let length = usize::from_str_radix(digits, 16).expect("a number");
            content.extend_from_slice(&rest[at + 2..][..length]);
            assert_eq!(&rest[at + 2 + length..][..2], b"\r\n", "the end of a chunk");
            rest = &rest[at + 2 + length + 2..];
        }
        assert!(rest.is_empty(), "{rest:?}");
        content
    }

    fn messages(&self, kind: StreamKind) -> usize {
        let mut decoder = Decoder::new(kind, MemberId(1), MemberId(2));
        let mut input = self.take();
        std::iter::from_fn(|| decoder.decode(&mut input).expect("well-formed")).count()
    }
}

impl Wire for Pipe {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock().expect("no panic");
        let taken = bytes.len().min(state.1);
        if taken == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.1 -= taken;
        state.0.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }
}

fn of(kind: MessageType) -> Message {
    Message { r#type: Some(kind.into()), from: Some(7), ..Message::default() }
}

fn large(bytes: usize) -> Message {
    let entry = Entry { data: Some(Bytes::from(vec![0; bytes])), ..Entry::default() };
    Message { entries: vec![entry], ..of(MessageType::MsgApp) }
}

/// A stream whose head is written.
fn open(lanes: &Lanes, kind: StreamKind) -> (Ticket, Arc<Pipe>) {
    let pipe = Pipe::new();
    let (ticket, _) = lanes.attach(kind, Arc::<Pipe>::clone(&pipe), HEAD).expect("a peer");
    assert!(matches!(lanes.flush(kind, &ticket), (Flow::Done | Flow::More, 0)));
    assert!(pipe.take().is_empty());
    (ticket, pipe)
}

fn send(lanes: &Lanes, message: Message) {
    lanes.push(message).expect("there is room");
    lanes.flush_now();
}

#[test]
fn messages_take_the_pipeline_until_there_are_streams() {
    let lanes = Lanes::new();
    let context = Context::from_waker(Waker::noop());
    send(&lanes, of(MessageType::MsgApp));
    assert!(lanes.poll_pipeline(&context).is_ready(), "an append without streams");
    let (_, message) = open(&lanes, StreamKind::Message);
    send(&lanes, of(MessageType::MsgApp));
    assert_eq!(message.messages(StreamKind::Message), 1);
    let (_, append) = open(&lanes, StreamKind::Append);
    for kind in [MessageType::MsgApp, MessageType::MsgHeartbeat, MessageType::MsgApp] {
        send(&lanes, of(kind));
    }
    assert_eq!(append.messages(StreamKind::Append), 2);
    assert_eq!(message.messages(StreamKind::Message), 1);
    assert!(lanes.poll_pipeline(&context).is_pending());
}

#[test]
fn messages_wait_until_the_head_is_written() {
    let lanes = Lanes::new();
    let pipe = Pipe::new();
    pipe.set_room(5);
    let (ticket, _) =
        lanes.attach(StreamKind::Message, Arc::<Pipe>::clone(&pipe), HEAD).expect("a peer");
    assert!(matches!(lanes.flush(StreamKind::Message, &ticket), (Flow::Full, 0)));
    send(&lanes, of(MessageType::MsgHeartbeat));
    pipe.set_room(usize::MAX);
    send(&lanes, of(MessageType::MsgHeartbeat));
    assert_eq!(pipe.0.lock().expect("no panic").0.len(), 5, "only the task goes on");
    assert!(matches!(lanes.flush(StreamKind::Message, &ticket), (Flow::More, 0)));
    assert!(matches!(lanes.flush(StreamKind::Message, &ticket), (Flow::Done, 1..)));
    assert_eq!(pipe.messages(StreamKind::Message), 2);
}

#[test]
fn a_full_socket_is_left_to_the_task() {
    let lanes = Lanes::new();
    let (ticket, pipe) = open(&lanes, StreamKind::Append);
    pipe.set_room(100);
    send(&lanes, large(1000));
    send(&lanes, large(1000));
    assert!(matches!(lanes.flush(StreamKind::Append, &ticket), (Flow::Full, 0)));
    pipe.set_room(usize::MAX);
    assert!(matches!(lanes.flush(StreamKind::Append, &ticket), (Flow::More, 0)));
    assert!(matches!(lanes.flush(StreamKind::Append, &ticket), (Flow::Done, 1000..)));
    send(&lanes, large(1000));
    assert_eq!(pipe.messages(StreamKind::Append), 3);
}

#[test]
fn much_is_left_to_the_task_in_batches() {
    let lanes = Lanes::new();
    let (ticket, pipe) = open(&lanes, StreamKind::Append);
    for _ in 0..4 {
        lanes.push(large(BATCH_BYTES / 2 + 1)).expect("room");
    }
    assert_eq!(lanes.flush_now(), 0, "more than {DIRECT_BYTES_MAX} bytes");
    assert!(matches!(lanes.flush(StreamKind::Append, &ticket), (Flow::More, _)));
    assert_eq!(pipe.messages(StreamKind::Append), 2);
    assert!(matches!(lanes.flush(StreamKind::Append, &ticket), (Flow::Done, _)));
    assert_eq!(pipe.messages(StreamKind::Append), 2);
}

#[test]
fn a_newer_connection_ends_the_older_one_and_what_waited_for_it() {
    let lanes = Lanes::new();
    let (first, pipe) = open(&lanes, StreamKind::Message);
    lanes.push(of(MessageType::MsgVote)).expect("room");
    let (second, closed) = lanes.attach(StreamKind::Message, Pipe::new(), HEAD).expect("a peer");
    assert!(closed.expect("the first").messages_lost);
    assert_eq!(pipe.0.lock().expect("no panic").0, b"0\r\n\r\n");
    assert!(matches!(lanes.flush(StreamKind::Message, &first), (Flow::Over, 0)));
    assert!(lanes.detach(StreamKind::Message, &first).is_none(), "it is not the first's");
    assert!(matches!(lanes.flush(StreamKind::Message, &second), (Flow::Done, 0)));
    assert!(!lanes.detach(StreamKind::Message, &second).expect("its own").messages_lost);
}

#[test]
fn a_full_stream_drops_and_says_so() {
    let lanes = Lanes::new();
    let (ticket, pipe) = open(&lanes, StreamKind::Append);
    for _ in 0..STREAM_MESSAGES_MAX {
        lanes.push(of(MessageType::MsgApp)).expect("room");
    }
    let dropped = lanes.push(of(MessageType::MsgApp)).expect_err("full");
    assert_eq!(dropped, Full::Stream(StreamKind::Append));
    while !matches!(lanes.flush(StreamKind::Append, &ticket).0, Flow::Done) {}
    assert_eq!(pipe.messages(StreamKind::Append), STREAM_MESSAGES_MAX);
    lanes.push(large(STREAM_BYTES_MAX + 1)).expect("one always has room");
    lanes.push(of(MessageType::MsgApp)).expect_err("full of bytes");
}

#[test]
fn an_idle_stream_shows_signs_of_life() {
    let lanes = Lanes::new();
    let (ticket, pipe) = open(&lanes, StreamKind::Append);
    for _ in 0..2 {
        lanes.push_heartbeat(StreamKind::Append, &ticket);
    }
    assert!(matches!(lanes.flush(StreamKind::Append, &ticket), (Flow::Done, 2)));
    assert_eq!(&pipe.take()[..], [0]);
}

#[test]
fn a_former_peer_takes_no_connections() {
    let lanes = Lanes::new();
    let (ticket, _) = open(&lanes, StreamKind::Append);
    assert_eq!(lanes.end(), [StreamKind::Append]);
    assert!(matches!(lanes.flush(StreamKind::Append, &ticket), (Flow::Over, 0)));
    assert!(lanes.attach(StreamKind::Append, Pipe::new(), HEAD).is_none());
}
