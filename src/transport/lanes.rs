//! What waits to be sent to one peer.
//!
//! Decides which way a message goes, and what happens when there is no room: it is dropped. The
//! replica puts messages in; a stream's connection, or the pipeline, takes them out in batches. A
//! lane that nobody takes from has no messages.
//!
//! ```text
//!                  append, and its stream is there
//!   push(message) ----------------------------------> append stream --+
//!        |         the message stream is there                        |
//!        +-------------------------------------------> message stream +--> batches
//!        |         neither                                            |
//!        +-------------------------------------------> pipeline ------+
//! ```
//!
//! Invariants
//! - L1 A stream without a connection has no waiting messages.
//! - L2 A connection takes messages only as long as no newer one has come in its place.
//!
//! Source: etcd `server/etcdserver/api/rafthttp/peer.go`, `pick`.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use proto::raftpb::Message;

use super::kind::{StreamKind, is_append, weight_bytes};

/// Messages that wait for a stream.
///
/// Source: etcd `rafthttp/stream.go`, `streamBufSize`.
const STREAM_MESSAGES_MAX: usize = 4096;

/// Messages that wait for the pipeline.
///
/// Source: etcd `rafthttp/pipeline.go`, `pipelineBufSize`.
const PIPELINE_MESSAGES_MAX: usize = 64;

/// What waits for one stream may hold this much memory: what raft has on its way to one peer fits,
/// entries of half a megabyte included.
const STREAM_BYTES_MAX: usize = 256 << 20;

/// Also for the pipeline, which is slower.
const PIPELINE_BYTES_MAX: usize = 32 << 20;

/// A batch ends with the message that reaches this. It is what a connection holds at once, beyond
/// the socket.
const BATCH_BYTES: usize = 256 << 10;

/// The three ways to a peer.
#[derive(Debug)]
pub(super) struct Lanes(Mutex<State>);

#[derive(Debug)]
struct State {
    append: Stream,
    message: Stream,
    pipeline: Queue,
    /// The peer is not one any more.
    over: bool,
}

/// A stream, with or without a connection.
#[derive(Debug)]
struct Stream {
    queue: Queue,
    /// Grows with each connection.
    connection: u64,
    is_open: bool,
}

#[derive(Debug)]
struct Queue {
    messages: VecDeque<Message>,
    bytes: usize,
    messages_max: usize,
    bytes_max: usize,
    waker: Option<Waker>,
}

/// Where a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// At a stream.
    Stream(StreamKind),
    /// At the pipeline.
    Pipeline,
}

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stream(StreamKind::Append) => f.write_str("streamMsgAppV2"),
            Self::Stream(StreamKind::Message) => f.write_str("streamMsg"),
            Self::Pipeline => f.write_str("pipeline"),
        }
    }
}

/// The connection that a stream has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

impl Lanes {
    pub(super) fn new() -> Self {
        let stream = || Stream {
            queue: Queue::new(STREAM_MESSAGES_MAX, STREAM_BYTES_MAX),
            connection: 0,
            is_open: false,
        };
        Self(Mutex::new(State {
            append: stream(),
            message: stream(),
            pipeline: Queue::new(PIPELINE_MESSAGES_MAX, PIPELINE_BYTES_MAX),
            over: false,
        }))
    }

    /// Queues `message` on the best way there is, and returns whoever is to be woken for it.
    ///
    /// # Errors
    /// - [`Full`] if it was dropped.
    pub(super) fn push(&self, message: Message) -> Result<Option<Waker>, Full> {
        let mut state = self.lock();
        let (queue, full) = if state.append.is_open && is_append(&message) {
            (&mut state.append.queue, Full::Stream(StreamKind::Append))
        } else if state.message.is_open {
            (&mut state.message.queue, Full::Stream(StreamKind::Message))
        } else {
            (&mut state.pipeline, Full::Pipeline)
        };
        if queue.push(message) { Ok(queue.waker.take()) } else { Err(full) }
    }

    /// Gives the stream a new connection. Returns whether that closes another one, and whether
    /// messages were lost with it; `None` if the peer is not one any more.
    pub(super) fn attach(&self, kind: StreamKind) -> Option<(Ticket, Option<Closed>)> {
        let mut state = self.lock();
        if state.over {
            return None;
        }
        let stream = state.stream(kind);
        let closed = stream.close();
        stream.is_open = true;
        stream.connection += 1;
        Some((Ticket(stream.connection), closed))
    }

    /// Takes the connection away from the stream, unless it has a newer one; `None` if so.
    pub(super) fn detach(&self, kind: StreamKind, ticket: Ticket) -> Option<Closed> {
        let mut state = self.lock();
        let stream = state.stream(kind);
        if stream.connection == ticket.0 { stream.close() } else { None }
    }

    /// Takes a batch for the stream's connection; false when it has been replaced or ended.
    pub(super) fn poll_stream(
        &self,
        kind: StreamKind,
        ticket: Ticket,
        context: &Context<'_>,
        batch: &mut Vec<Message>,
    ) -> Poll<bool> {
        let mut state = self.lock();
        let stream = state.stream(kind);
        if !stream.is_open || stream.connection != ticket.0 {
            return Poll::Ready(false);
        }
        stream.queue.take_batch(batch);
        if batch.is_empty() {
            stream.queue.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(true)
    }

    /// Takes the next message of the pipeline; `None` at the end.
    pub(super) fn poll_pipeline(&self, context: &Context<'_>) -> Poll<Option<Message>> {
        let mut state = self.lock();
        if state.over {
            return Poll::Ready(None);
        }
        match state.pipeline.pop() {
            Some(message) => Poll::Ready(Some(message)),
            None => {
                state.pipeline.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Ends everything, and returns whoever is to be woken for it.
    pub(super) fn end(&self) -> Vec<Waker> {
        let mut state = self.lock();
        state.over = true;
        let State { append, message, pipeline, .. } = &mut *state;
        append.close();
        message.close();
        pipeline.clear();
        [&mut append.queue, &mut message.queue, pipeline]
            .into_iter()
            .filter_map(|queue| queue.waker.take())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change, so a poisoned state is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a stream's lost connection leaves behind.
#[derive(Debug)]
pub(super) struct Closed {
    /// Messages waited for it; they are dropped.
    pub(super) messages_lost: bool,
    /// Whoever serves it is to be woken.
    pub(super) waker: Option<Waker>,
}

impl State {
    const fn stream(&mut self, kind: StreamKind) -> &mut Stream {
        match kind {
            StreamKind::Append => &mut self.append,
            StreamKind::Message => &mut self.message,
        }
    }
}

impl Stream {
    fn close(&mut self) -> Option<Closed> {
        if !std::mem::take(&mut self.is_open) {
            return None;
        }
        let messages_lost = self.queue.clear();
        Some(Closed { messages_lost, waker: self.queue.waker.take() })
    }
}

impl Queue {
    const fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self { messages: VecDeque::new(), bytes: 0, messages_max, bytes_max, waker: None }
    }

    /// Whether there was room. One message always has, however large it is.
    fn push(&mut self, message: Message) -> bool {
        let bytes = self.bytes + weight_bytes(&message);
        let full = self.messages_max <= self.messages.len() || self.bytes_max < bytes;
        if full && !self.messages.is_empty() {
            return false;
        }
        self.bytes = bytes;
        self.messages.push_back(message);
        true
    }

    fn pop(&mut self) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.bytes -= weight_bytes(&message);
        Some(message)
    }

    fn take_batch(&mut self, batch: &mut Vec<Message>) {
        let before = self.bytes;
        while before - self.bytes < BATCH_BYTES
            && let Some(message) = self.pop()
        {
            batch.push(message);
        }
    }

    /// Whether messages waited.
    fn clear(&mut self) -> bool {
        self.bytes = 0;
        let waited = !self.messages.is_empty();
        // Also gives back the room.
        self.messages = VecDeque::new();
        waited
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proto::raftpb::{Entry, MessageType};

    use super::*;

    fn of(kind: MessageType) -> Message {
        Message { r#type: Some(kind.into()), ..Message::default() }
    }

    fn large(bytes: usize) -> Message {
        let entry = Entry { data: Some(Bytes::from(vec![0; bytes])), ..Entry::default() };
        Message { entries: vec![entry], ..of(MessageType::MsgApp) }
    }

    fn take(lanes: &Lanes, kind: StreamKind, ticket: Ticket) -> Option<usize> {
        let mut batch = Vec::new();
        let context = Context::from_waker(Waker::noop());
        match lanes.poll_stream(kind, ticket, &context, &mut batch) {
            Poll::Ready(true) => Some(batch.len()),
            Poll::Ready(false) => None,
            Poll::Pending => Some(0),
        }
    }

    #[test]
    fn messages_take_the_pipeline_until_there_are_streams() {
        let lanes = Lanes::new();
        let context = Context::from_waker(Waker::noop());
        lanes.push(of(MessageType::MsgApp)).expect("room");
        assert!(lanes.poll_pipeline(&context).is_ready(), "an append without streams");
        let (message, _) = lanes.attach(StreamKind::Message).expect("a peer");
        lanes.push(of(MessageType::MsgApp)).expect("room");
        assert_eq!(take(&lanes, StreamKind::Message, message), Some(1));
        let (append, _) = lanes.attach(StreamKind::Append).expect("a peer");
        lanes.push(of(MessageType::MsgApp)).expect("room");
        lanes.push(of(MessageType::MsgHeartbeat)).expect("room");
        lanes.push(of(MessageType::MsgApp)).expect("room");
        assert_eq!(take(&lanes, StreamKind::Append, append), Some(2));
        assert_eq!(take(&lanes, StreamKind::Message, message), Some(1));
        assert!(lanes.poll_pipeline(&context).is_pending());
    }

    #[test]
    fn a_newer_connection_ends_the_older_one_and_what_waited_for_it() {
        let lanes = Lanes::new();
        let (first, closed) = lanes.attach(StreamKind::Message).expect("a peer");
        assert!(closed.is_none(), "there was no connection");
        lanes.push(of(MessageType::MsgVote)).expect("room");
        let (second, closed) = lanes.attach(StreamKind::Message).expect("a peer");
        assert!(closed.expect("the first").messages_lost);
        assert_eq!(take(&lanes, StreamKind::Message, first), None);
        assert!(lanes.detach(StreamKind::Message, first).is_none(), "it is not the first's");
        assert_eq!(take(&lanes, StreamKind::Message, second), Some(0));
        assert!(!lanes.detach(StreamKind::Message, second).expect("its own").messages_lost);
    }

    #[test]
    fn a_full_stream_drops_and_says_so() {
        let lanes = Lanes::new();
        let (ticket, _) = lanes.attach(StreamKind::Append).expect("a peer");
        for _ in 0..STREAM_MESSAGES_MAX {
            lanes.push(of(MessageType::MsgApp)).expect("room");
        }
        let dropped = lanes.push(of(MessageType::MsgApp)).expect_err("full");
        assert_eq!(dropped, Full::Stream(StreamKind::Append));
        let mut taken = 0;
        while let Some(batch @ 1..) = take(&lanes, StreamKind::Append, ticket) {
            taken += batch;
        }
        assert_eq!(taken, STREAM_MESSAGES_MAX);
        lanes.push(large(STREAM_BYTES_MAX + 1)).expect("one always has room");
        lanes.push(of(MessageType::MsgApp)).expect_err("full of bytes");
    }

    #[test]
    fn a_batch_ends_before_it_is_too_large() {
        let lanes = Lanes::new();
        let (ticket, _) = lanes.attach(StreamKind::Append).expect("a peer");
        for _ in 0..4 {
            lanes.push(large(BATCH_BYTES / 2 + 1)).expect("room");
        }
        assert_eq!(take(&lanes, StreamKind::Append, ticket), Some(2));
    }

    #[test]
    fn a_former_peer_takes_no_connections() {
        let lanes = Lanes::new();
        let (ticket, _) = lanes.attach(StreamKind::Append).expect("a peer");
        lanes.end();
        assert_eq!(take(&lanes, StreamKind::Append, ticket), None);
        assert!(lanes.attach(StreamKind::Append).is_none());
    }
}
