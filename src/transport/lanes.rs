//! What waits to be sent to one peer, and the streams that it leaves by.
//!
//! Decides which way a message goes, and what happens when there is no room: it is dropped. The
//! replica puts messages in and, if they are few, writes them to the stream's socket itself: a
//! hand-over to the `peer` thread costs more than the write. What the socket does not take at once,
//! and what is much, the stream's task (`outlet`) writes.
//!
//! ```text
//!                  append, and its stream is there
//!   push(message) ----------------------------------> append stream --+
//!        |         the message stream is there                        |   flush
//!        +-------------------------------------------> message stream +---------> socket
//!        |         neither
//!        +-------------------------------------------> pipeline
//! ```
//!
//! Invariants
//! - L1 A stream without a connection has no waiting messages.
//! - L2 Whatever is written is written in the order in which it was pushed, whoever writes it.
//! - L3 While a socket takes nothing, or has failed, its task knows, and only the task tries again.
//!
//! Source: etcd `server/etcdserver/api/rafthttp/peer.go`, `pick`.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{BufMut as _, BytesMut};
use prost::Message as _;
use proto::raftpb::Message;
use tokio::{net::TcpStream, sync::Notify};

use super::{
    codec::Encoder,
    kind::{StreamKind, is_append, link_heartbeat, weight_bytes},
};

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

/// A batch ends with the message that reaches this. It is what a stream holds at once, beyond its
/// socket.
const BATCH_BYTES: usize = 256 << 10;

/// Up to so much is written by whoever pushes it: less than what a socket takes at once.
const DIRECT_BYTES_MAX: usize = 64 << 10;

/// A buffer that has grown beyond this is not kept.
const BUFFER_BYTES_KEPT: usize = 2 * BATCH_BYTES;

/// The start of a chunk: its length in hexadecimal digits, filled in afterwards, and a line break.
const CHUNK_HEAD: &[u8; 10] = b"00000000\r\n";
const CHUNK_END: &[u8] = b"\r\n";

/// The end of an answer that comes in chunks.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Where a stream's bytes go.
pub(super) trait Wire: fmt::Debug + Send + Sync {
    /// Writes what can be written without waiting.
    ///
    /// # Errors
    /// Those of the system; [`io::ErrorKind::WouldBlock`] if that is nothing.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
}

impl Wire for TcpStream {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        Self::try_write(self, bytes)
    }
}

/// The three ways to a peer.
#[derive(Debug)]
pub(super) struct Lanes(Mutex<State>);

#[derive(Debug)]
struct State {
    append: Stream,
    message: Stream,
    pipeline: Queue,
    pipeline_waker: Option<Waker>,
    /// The peer is not one any more.
    over: bool,
}

/// A stream, with or without a connection.
#[derive(Debug)]
struct Stream {
    queue: Queue,
    line: Option<Line>,
    /// Grows with each connection.
    connections: u64,
}

/// A stream's connection.
#[derive(Debug)]
struct Line {
    wire: Arc<dyn Wire>,
    encoder: Encoder,
    /// What is on its way to the socket.
    buffer: BytesMut,
    /// How much of it the socket has taken.
    written: usize,
    /// The task is in charge: the socket is full or has failed, or there is much to write.
    handed_over: bool,
    /// Wakes the task.
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Queue {
    messages: VecDeque<Message>,
    bytes: usize,
    messages_max: usize,
    bytes_max: usize,
}

/// Where a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// At a stream.
    Stream(StreamKind),
    /// At the pipeline.
    Pipeline,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(StreamKind::Append) => f.write_str("streamMsgAppV2"),
            Self::Stream(StreamKind::Message) => f.write_str("streamMsg"),
            Self::Pipeline => f.write_str("pipeline"),
        }
    }
}

/// The connection that a stream has now.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    number: u64,
    /// Notified when there is something for the connection's task to do.
    pub(super) changed: Arc<Notify>,
}

/// How far writing has come.
#[derive(Debug)]
pub(super) enum Flow {
    /// Nothing is left.
    Done,
    /// There is more.
    More,
    /// The socket takes no more for now.
    Full,
    /// The connection has been replaced, or the peer is not one any more.
    Over,
    /// The socket failed.
    Failed(io::Error),
}

impl Lanes {
    pub(super) fn new() -> Self {
        let stream = || Stream {
            queue: Queue::new(STREAM_MESSAGES_MAX, STREAM_BYTES_MAX),
            line: None,
            connections: 0,
        };
        Self(Mutex::new(State {
            append: stream(),
            message: stream(),
            pipeline: Queue::new(PIPELINE_MESSAGES_MAX, PIPELINE_BYTES_MAX),
            pipeline_waker: None,
            over: false,
        }))
    }

    /// Queues `message` on the best way there is. It leaves with [`Lanes::flush_now`].
    ///
    /// # Errors
    /// - [`Full`] if it was dropped.
    pub(super) fn push(&self, message: Message) -> Result<(), Full> {
        let mut state = self.lock();
        let (queue, full) = if state.append.line.is_some() && is_append(&message) {
            (&mut state.append.queue, Full::Stream(StreamKind::Append))
        } else if state.message.line.is_some() {
            (&mut state.message.queue, Full::Stream(StreamKind::Message))
        } else {
            (&mut state.pipeline, Full::Pipeline)
        };
        if queue.push(message) { Ok(()) } else { Err(full) }
    }

    /// Writes what is little, and wakes the tasks for the rest. Returns the bytes of the messages
    /// that left.
    pub(super) fn flush_now(&self) -> u64 {
        let mut state = self.lock();
        let mut bytes = 0;
        for kind in StreamKind::ALL {
            bytes += state.stream(kind).flush_now();
        }
        let waker =
            if state.pipeline.messages.is_empty() { None } else { state.pipeline_waker.take() };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        bytes
    }

    /// Writes a batch to the stream's connection. Returns also the bytes of its messages.
    pub(super) fn flush(&self, kind: StreamKind, ticket: &Ticket) -> (Flow, u64) {
        let mut state = self.lock();
        match state.stream(kind).of(ticket) {
            Some((line, queue)) => line.write(queue),
            None => (Flow::Over, 0),
        }
    }

    /// Queues a sign of life, unless messages are waiting, which are signs enough.
    pub(super) fn push_heartbeat(&self, kind: StreamKind, ticket: &Ticket) {
        let mut state = self.lock();
        if let Some((line, queue)) = state.stream(kind).of(ticket)
            && queue.messages.is_empty()
            && line.buffer.is_empty()
        {
            queue.push(link_heartbeat());
        }
    }

    /// Gives the stream a new connection, on which `head` is written first. Returns also whether
    /// messages were lost with an older connection, if that closes one; `None` if the peer is not
    /// one any more.
    pub(super) fn attach(
        &self,
        kind: StreamKind,
        wire: Arc<dyn Wire>,
        head: &[u8],
    ) -> Option<(Ticket, Option<Closed>)> {
        let mut state = self.lock();
        if state.over {
            return None;
        }
        let stream = state.stream(kind);
        let closed = stream.close();
        let changed = Arc::new(Notify::new());
        stream.line = Some(Line {
            wire,
            encoder: Encoder::new(kind),
            buffer: BytesMut::from(head),
            written: 0,
            // Until the head is written.
            handed_over: true,
            changed: Arc::clone(&changed),
        });
        stream.connections += 1;
        Some((Ticket { number: stream.connections, changed }, closed))
    }

    /// Takes the connection away from the stream, unless it has a newer one; `None` if so.
    pub(super) fn detach(&self, kind: StreamKind, ticket: &Ticket) -> Option<Closed> {
        let mut state = self.lock();
        let stream = state.stream(kind);
        if stream.connections == ticket.number { stream.close() } else { None }
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
                state.pipeline_waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Ends everything, and returns which streams had connections.
    pub(super) fn end(&self) -> Vec<StreamKind> {
        let mut state = self.lock();
        state.over = true;
        let mut closed = StreamKind::ALL.to_vec();
        closed.retain(|kind| state.stream(*kind).close().is_some());
        state.pipeline.clear();
        let waker = state.pipeline_waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        closed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change, so a poisoned state is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a stream's lost connection leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closed {
    /// Messages waited for it; they are dropped.
    pub(super) messages_lost: bool,
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
    /// The connection and what waits for it, if it is still the one of `ticket`.
    const fn of(&mut self, ticket: &Ticket) -> Option<(&mut Line, &mut Queue)> {
        match &mut self.line {
            Some(line) if self.connections == ticket.number => Some((line, &mut self.queue)),
            _ => None,
        }
    }

    fn flush_now(&mut self) -> u64 {
        let Some(line) = self.line.as_mut().filter(|line| !line.handed_over) else { return 0 };
        if self.queue.messages.is_empty() {
            return 0;
        }
        let (flow, bytes) = if self.queue.bytes <= DIRECT_BYTES_MAX {
            line.write(&mut self.queue)
        } else {
            (Flow::More, 0)
        };
        if !matches!(flow, Flow::Done) {
            line.handed_over = true;
            line.changed.notify_one();
        }
        bytes
    }

    fn close(&mut self) -> Option<Closed> {
        let line = self.line.take()?;
        if line.written == line.buffer.len() {
            // The peer sees an end instead of a break. If it cannot, that is not worth waiting for.
            line.wire.try_write(LAST_CHUNK).ok();
        }
        line.changed.notify_one();
        Some(Closed { messages_lost: self.queue.clear() })
    }
}

impl Line {
    /// Writes what is in the buffer, or else the next batch. Returns also the bytes of its
    /// messages.
    fn write(&mut self, queue: &mut Queue) -> (Flow, u64) {
        let mut bytes = 0;
        if self.buffer.is_empty() {
            bytes = self.encode(queue);
        }
        while self.written < self.buffer.len() {
            match self.wire.try_write(&self.buffer[self.written..]) {
                Ok(0) => return (self.fail(io::ErrorKind::WriteZero.into()), bytes),
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.handed_over = true;
                    return (Flow::Full, bytes);
                }
                Err(error) => return (self.fail(error), bytes),
            }
        }
        self.written = 0;
        self.buffer.clear();
        if BUFFER_BYTES_KEPT < self.buffer.capacity() {
            self.buffer = BytesMut::new();
        }
        self.handed_over = !queue.messages.is_empty();
        (if self.handed_over { Flow::More } else { Flow::Done }, bytes)
    }

    const fn fail(&mut self, error: io::Error) -> Flow {
        self.handed_over = true;
        Flow::Failed(error)
    }

    /// Moves a batch from the queue to the buffer, as one chunk.
    fn encode(&mut self, queue: &mut Queue) -> u64 {
        assert!(self.buffer.is_empty(), "a batch would be mixed with another");
        let before = queue.bytes;
        let mut bytes = 0;
        self.buffer.put_slice(CHUNK_HEAD);
        while before - queue.bytes < BATCH_BYTES
            && let Some(message) = queue.pop()
        {
            self.encoder.encode(&message, &mut self.buffer);
            bytes += message.encoded_len() as u64;
        }
        let length = self.buffer.len() - CHUNK_HEAD.len();
        if length == 0 {
            // An empty chunk would be the last one.
            self.buffer.clear();
            return 0;
        }
        let digits = format!("{length:08x}");
        self.buffer[..digits.len()].copy_from_slice(digits.as_bytes());
        self.buffer.put_slice(CHUNK_END);
        bytes
    }
}

const _: () = assert!(BATCH_BYTES < u32::MAX as usize, "the length of a chunk has eight digits");

impl Queue {
    const fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self { messages: VecDeque::new(), bytes: 0, messages_max, bytes_max }
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
mod tests;
