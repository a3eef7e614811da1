//! gRPC's framing of requests, with grpc-go's limits and texts.
//!
//! Decides what a request's bytes have to look like: a flag, a length, a message. A message that
//! arrives within one HTTP/2 frame is a slice of it and is never copied; prost then shares its
//! keys and values out of the same buffer. `serve` cuts unary requests itself; a stream of requests
//! is shared between the connection, which puts in what comes, and the call, which takes messages
//! out; what was taken is what the client may send again.
//!
//! A compressed message is unpacked when it is whole; its bound holds for both of its sizes.
//!
//! Source: grpc-go `rpc_util.go`.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use tonic::Code;

use super::{
    answer::PREFIX_BYTES,
    codec::count_received,
    gzip::{self, unpacked},
    metadata::{Metadata, unknown_encoding},
    status::Failure,
};

/// The flag of a message that stands there as it is.
const PLAIN: u8 = 0;

/// The flag of a message that is compressed.
const PACKED: u8 = 1;

/// Cuts the content of one request into messages.
#[derive(Debug)]
pub struct Deframer {
    /// What has come and was not cut yet, in order.
    first: Bytes,
    more: VecDeque<Bytes>,
    prefix: [u8; PREFIX_BYTES],
    prefix_len: usize,
    /// A message that came in several pieces, and how long it will be.
    partial: Option<(usize, BytesMut)>,
    ended: bool,
    /// How much was cut since somebody last asked.
    taken_bytes: usize,
    message_bytes_max: usize,
    encoding: Option<Bytes>,
}

impl Deframer {
    /// The messages of a call, of at most `message_bytes_max` each.
    #[must_use]
    pub fn new(metadata: &Metadata, message_bytes_max: usize) -> Self {
        Self {
            first: Bytes::new(),
            more: VecDeque::new(),
            prefix: [0; PREFIX_BYTES],
            prefix_len: 0,
            partial: None,
            ended: false,
            taken_bytes: 0,
            message_bytes_max,
            encoding: metadata.encoding.clone(),
        }
    }

    /// Content has come.
    pub fn push(&mut self, data: Bytes) {
        if self.first.is_empty() && self.more.is_empty() {
            self.first = data;
        } else if !data.is_empty() {
            self.more.push_back(data);
        }
    }

    /// No more content comes.
    pub const fn end(&mut self) {
        self.ended = true;
    }

    /// How many bytes were cut since the last time.
    pub const fn take_taken(&mut self) -> usize {
        std::mem::replace(&mut self.taken_bytes, 0)
    }

    /// The next message, if all of it has come; `None` after the last.
    ///
    /// # Errors
    /// If the framing is wrong, or the message too large or packed in a way nobody here can undo.
    pub fn next_message(&mut self) -> Poll<Result<Option<Bytes>, Failure>> {
        if self.partial.is_none() {
            while self.prefix_len < PREFIX_BYTES {
                let piece = self.cut(PREFIX_BYTES - self.prefix_len);
                if piece.is_empty() {
                    return self.starved(self.prefix_len == 0);
                }
                self.prefix[self.prefix_len..][..piece.len()].copy_from_slice(&piece);
                self.prefix_len += piece.len();
            }
            let length = self.check_prefix()?;
            self.refill();
            if length <= self.first.len() || length == 0 {
                let message = self.cut(length);
                return Poll::Ready(self.whole(message).map(Some));
            }
            self.partial = Some((length, BytesMut::new()));
        }
        self.gather()
    }

    /// Copies what came of a message in pieces.
    fn gather(&mut self) -> Poll<Result<Option<Bytes>, Failure>> {
        let (length, mut message) = self.partial.take().expect("a message has begun");
        while message.len() < length {
            let piece = self.cut(length - message.len());
            if piece.is_empty() {
                self.partial = Some((length, message));
                return self.starved(false);
            }
            message.extend_from_slice(&piece);
        }
        Poll::Ready(self.whole(message.freeze()).map(Some))
    }

    /// A message that has come completely, as its sender meant it.
    fn whole(&mut self, message: Bytes) -> Result<Bytes, Failure> {
        let [flag, ..] = self.prefix;
        self.prefix_len = 0;
        let message =
            if flag == PLAIN { message } else { unpacked(&message, self.message_bytes_max)? };
        count_received(message.len());
        Ok(message)
    }

    /// Up to `length` of the bytes that came; none if there are none.
    fn cut(&mut self, length: usize) -> Bytes {
        self.refill();
        let piece = self.first.split_to(length.min(self.first.len()));
        self.taken_bytes += piece.len();
        piece
    }

    fn refill(&mut self) {
        if self.first.is_empty()
            && let Some(next) = self.more.pop_front()
        {
            self.first = next;
        }
    }

    fn starved(&self, between_messages: bool) -> Poll<Result<Option<Bytes>, Failure>> {
        match (self.ended, between_messages) {
            (false, _) => Poll::Pending,
            (true, true) => Poll::Ready(Ok(None)),
            (true, false) if self.prefix_len < PREFIX_BYTES => Poll::Ready(Err(no_message())),
            (true, false) => Poll::Ready(Err(Failure::new(Code::Unknown, "unexpected EOF"))),
        }
    }

    fn check_prefix(&self) -> Result<usize, Failure> {
        let mut prefix = &self.prefix[..];
        self.check_flag(prefix.get_u8())?;
        let length = usize::try_from(prefix.get_u32()).unwrap_or(usize::MAX);
        let bytes_max = self.message_bytes_max;
        if bytes_max < length {
            return Err(Failure::new(
                Code::ResourceExhausted,
                format!("grpc: received message larger than max ({length} vs. {bytes_max})"),
            ));
        }
        Ok(length)
    }

    fn check_flag(&self, flag: u8) -> Result<(), Failure> {
        match flag {
            PLAIN => Ok(()),
            PACKED => match self.encoding.as_deref() {
                None | Some(b"" | b"identity") => Err(Failure::new(
                    Code::Internal,
                    "grpc: compressed flag set with identity or empty encoding",
                )),
                Some(gzip::ENCODING) => Ok(()),
                Some(encoding) => Err(unknown_encoding(encoding)),
            },
            _ => Err(Failure::new(
                Code::Internal,
                format!("grpc: received unexpected payload format {flag}"),
            )),
        }
    }
}

/// The message in `data`, if that is one whole message and nothing else, not compressed and of at
/// most `message_bytes_max`: what nearly every call is. Otherwise it is a [`Deframer`]'s.
///
/// # Errors
/// - `data`, unchanged.
pub fn only_message(mut data: Bytes, message_bytes_max: usize) -> Result<Bytes, Bytes> {
    let Some((prefix, message)) = data.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(data);
    };
    let [flag, length @ ..] = *prefix;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if flag != PLAIN || length != message.len() || message_bytes_max < length {
        return Err(data);
    }
    data.advance(PREFIX_BYTES);
    count_received(length);
    Ok(data)
}

/// What a call with one question learns that gets none.
#[must_use]
pub fn no_message() -> Failure {
    Failure::new(Code::Unknown, "EOF")
}

/// The messages of a stream of requests, for the call.
#[derive(Debug)]
pub struct Messages(Arc<Mutex<Queue>>);

/// The other end, for the connection.
#[derive(Debug)]
pub struct Inlet(Arc<Mutex<Queue>>);

#[derive(Debug)]
struct Queue {
    deframer: Deframer,
    waker: Option<Waker>,
}

/// Both ends of a stream of requests.
#[must_use]
pub fn messages(metadata: &Metadata, message_bytes_max: usize) -> (Inlet, Messages) {
    let deframer = Deframer::new(metadata, message_bytes_max);
    let queue = Arc::new(Mutex::new(Queue { deframer, waker: None }));
    (Inlet(Arc::clone(&queue)), Messages(queue))
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    // Nothing panics half-way through a change, so a poisoned queue is still whole.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inlet {
    /// Content has come.
    pub fn push(&self, data: Bytes) {
        self.change(|deframer| deframer.push(data));
    }

    /// No more content comes.
    pub fn end(&self) {
        self.change(Deframer::end);
    }

    fn change(&self, change: impl FnOnce(&mut Deframer)) {
        let mut queue = lock(&self.0);
        change(&mut queue.deframer);
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// How many bytes the call has taken since the last time.
    #[must_use]
    pub fn take_taken(&self) -> usize {
        lock(&self.0).deframer.take_taken()
    }
}

impl Messages {
    /// The next message; `None` after the last.
    ///
    /// # Errors
    /// Those of [`Deframer::next_message`].
    pub fn poll_next(&mut self, context: &Context<'_>) -> Poll<Result<Option<Bytes>, Failure>> {
        let mut queue = lock(&self.0);
        let next = queue.deframer.next_message();
        if next.is_pending() {
            queue.waker = Some(context.waker().clone());
        }
        next
    }

    /// As [`Messages::poll_next`], to be awaited.
    ///
    /// # Errors
    /// Those of [`Deframer::next_message`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The only message of a call with one question.
    ///
    /// # Errors
    /// Those of [`Deframer::next_message`], and a missing message.
    pub async fn only(&mut self) -> Result<Bytes, Failure> {
        self.next().await?.ok_or_else(no_message)
    }
}

/// Decodes a message, sharing its bytes.
///
/// # Errors
/// If the bytes are not such a message.
pub fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, Failure> {
    M::decode(bytes).map_err(|error| {
        Failure::new(Code::Internal, format!("grpc: error unmarshalling request: proto: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::*;

    fn only(bytes: &'static [u8]) -> Result<Bytes, Failure> {
        only_with(&Metadata::default(), bytes)
    }

    fn only_with(metadata: &Metadata, bytes: &'static [u8]) -> Result<Bytes, Failure> {
        let (inlet, mut messages) = messages(metadata, 8);
        inlet.push(Bytes::from_static(bytes));
        inlet.end();
        messages.only().now_or_never().expect("nothing to wait for")
    }

    #[track_caller]
    fn refused(result: Result<Bytes, Failure>, code: Code, text: &str) {
        let failure = result.expect_err("refused");
        assert_eq!((failure.code, failure.text.as_ref()), (code, text));
    }

    // The expectations were read off a running etcd 3.7.1.
    #[test]
    fn malformed_requests_are_refused_with_the_texts_of_grpc_go() {
        assert_eq!(only(b"\0\0\0\0\x02ab"), Ok(Bytes::from_static(b"ab")));
        assert_eq!(only(b"\0\0\0\0\0"), Ok(Bytes::new()));
        refused(only(b""), Code::Unknown, "EOF");
        refused(only(b"\0\0\0\0\x08a"), Code::Unknown, "unexpected EOF");
        refused(only(b"\0\0\0"), Code::Unknown, "EOF");
        refused(
            only(b"\0\x7f\0\0\0"),
            Code::ResourceExhausted,
            "grpc: received message larger than max (2130706432 vs. 8)",
        );
        refused(
            only(b"\x01\0\0\0\x01a"),
            Code::Internal,
            "grpc: compressed flag set with identity or empty encoding",
        );
        refused(
            only(b"\x02\0\0\0\x01a"),
            Code::Internal,
            "grpc: received unexpected payload format 2",
        );
        let snappy = Metadata::default().with("grpc-encoding", b"snappy");
        refused(
            only_with(&snappy, b"\x01\0\0\0\x01a"),
            Code::Unimplemented,
            "grpc: Decompressor is not installed for grpc-encoding \"snappy\"",
        );
    }

    #[test]
    fn compressed_messages_stand_between_others_and_in_any_number_of_pieces() {
        // `printf ab | gzip -n`
        const PACKED_AB: &[u8] =
            b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x4b\x4c\x02\0\x6d\x48\x83\x9e\x02\0\0\0";
        let stream =
            [b"\x01\0\0\0\x16", PACKED_AB, b"\0\0\0\0\x01c\x01\0\0\0\x16", PACKED_AB].concat();
        let gzip = Metadata::default().with("grpc-encoding", b"gzip");
        for piece in [1, 7, 1000] {
            let (inlet, mut messages) = messages(&gzip, 30);
            stream.chunks(piece).for_each(|piece| inlet.push(Bytes::copy_from_slice(piece)));
            inlet.end();
            let mut read = Vec::new();
            while let Some(message) = messages.next().now_or_never().expect("all is there").unwrap()
            {
                read.push(message);
            }
            assert_eq!(read, [&b"ab"[..], b"c", b"ab"], "in pieces of {piece}");
            assert_eq!(inlet.take_taken(), stream.len(), "the client may send as much again");
        }
        let large = only_with(&gzip, b"\x01\0\0\0\x09123456789");
        refused(large, Code::ResourceExhausted, "grpc: received message larger than max (9 vs. 8)");
    }

    proptest! {
        #[test]
        fn messages_survive_any_cut_into_frames(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..5),
            cuts in prop::collection::vec(1usize..9, 1..8),
        ) {
            let mut stream = Vec::new();
            for message in &messages {
                stream.push(0);
                stream.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
                stream.extend_from_slice(message);
            }
            let mut deframer = Deframer::new(&Metadata::default(), 64);
            let (total, mut read) = (stream.len(), Vec::new());
            let all = Bytes::from(stream);
            let mut rest = all.clone();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                deframer.push(rest.split_to((*cut).min(rest.len())));
                while let Poll::Ready(next) = deframer.next_message() {
                    read.push(next.expect("well formed").expect("not ended"));
                }
            }
            prop_assert_eq!(deframer.take_taken(), total, "bytes that were cut");
            let alone = if messages.len() == 1 { Ok(Bytes::from(messages[0].clone())) } else { Err(all.clone()) };
            prop_assert_eq!(only_message(all, 64), alone);
            deframer.end();
            prop_assert_eq!(deframer.next_message(), Poll::Ready(Ok(None)));
            prop_assert_eq!(read, messages);
        }
    }
}
