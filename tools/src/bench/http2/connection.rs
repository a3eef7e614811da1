//! One connection: frames out, frames in, windows.
//!
//! Owned by the thread that drives it. Nothing blocks but [`Poller::wait`]; what the socket or the
//! peer's windows do not take waits here, in order.
//!
//! Invariants
//! - C1 Bytes of DATA on the wire never exceed what the peer's windows granted.
//! - C2 Messages of one stream leave in the order they were sent.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    frame::{self, Head, Kind},
    hpack::{Decoder, Encoder},
    streams::{Answer, Handler, PREFIX_BYTES, Stream, StreamId, Streams, prefixed},
};

/// Room for what one read returns. Large, so that an answer of many megabytes costs few calls.
const READ_BYTES: usize = 512 * 1024;

/// A window is renewed when this much of it is used: far from empty, and seldom.
const RENEW_BYTES: u32 = 1 << 29;

/// A message that the peer's windows had no room for.
#[derive(Debug)]
struct Waiting {
    stream: StreamId,
    payload: Vec<u8>,
    end: bool,
}

/// A header block whose end has not arrived.
#[derive(Debug)]
struct OpenBlock {
    stream: u32,
    ends_stream: bool,
    bytes: Vec<u8>,
}

/// One HTTP/2 connection to a server.
#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    encoder: Encoder,
    decoder: Decoder,
    /// Bytes for the socket, of which `written` are gone.
    outgoing: Vec<u8>,
    written: usize,
    /// Bytes from the socket: those up to `filled` are not understood yet.
    incoming: Vec<u8>,
    filled: usize,
    streams: Streams,
    next_stream: u32,
    /// How many bytes of DATA the peer takes on the whole connection.
    window: i64,
    /// How many it takes on a new stream.
    stream_window: i64,
    waiting: VecDeque<Waiting>,
    unrenewed: u32,
    block: Option<OpenBlock>,
    read_bytes: u64,
}

impl Connection {
    /// Connects; the first call is sent without waiting for the peer's settings.
    ///
    /// # Errors
    /// If nobody listens.
    pub fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let socket =
            TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let mut outgoing = Vec::new();
        frame::opening(&mut outgoing);
        Ok(Self {
            socket,
            encoder: Encoder::new(address.to_string()),
            decoder: Decoder::default(),
            outgoing,
            written: 0,
            incoming: vec![0; READ_BYTES],
            filled: 0,
            streams: Streams::default(),
            next_stream: 1,
            window: frame::WINDOW_BYTES_DEFAULT,
            stream_window: frame::WINDOW_BYTES_DEFAULT,
            waiting: VecDeque::new(),
            unrenewed: 0,
            block: None,
            read_bytes: 0,
        })
    }

    /// Starts a call of `path` with its only message.
    ///
    /// # Errors
    /// If the message is larger than a frame.
    pub fn call(
        &mut self,
        path: &'static str,
        message: &[u8],
        answer: Answer,
    ) -> anyhow::Result<StreamId> {
        let stream = self.open_stream(path, answer);
        self.send(stream, message, true)?;
        Ok(stream)
    }

    /// Starts a call of `path` whose messages follow with [`Connection::message`].
    pub fn open_stream(&mut self, path: &'static str, answer: Answer) -> StreamId {
        let id = StreamId(self.next_stream);
        self.next_stream += 2;
        let mut block = Vec::with_capacity(128);
        self.encoder.request(path, &mut block);
        frame::frame(Kind::Headers, frame::END_HEADERS, id.0, &block, &mut self.outgoing);
        self.streams.open(id, Stream::new(answer, self.stream_window));
        id
    }

    /// Sends one more message on an open stream.
    ///
    /// # Errors
    /// If the message is larger than a frame.
    pub fn message(&mut self, stream: StreamId, message: &[u8]) -> anyhow::Result<()> {
        self.send(stream, message, false)
    }

    fn send(&mut self, stream: StreamId, message: &[u8], end: bool) -> anyhow::Result<()> {
        let length = PREFIX_BYTES + message.len();
        ensure!(length <= frame::PAYLOAD_BYTES_MAX, "a request of {length} bytes");
        if self.waiting.is_empty() && self.take_window(stream, length) {
            let flags = if end { frame::END_STREAM } else { 0 };
            let head = Head { length, kind: Kind::Data, flags, stream: stream.0 };
            head.write(&mut self.outgoing);
            return prefixed(message, &mut self.outgoing);
        }
        let mut payload = Vec::with_capacity(length);
        prefixed(message, &mut payload)?;
        self.waiting.push_back(Waiting { stream, payload, end });
        Ok(())
    }

    /// Takes `length` from both windows if both have it.
    fn take_window(&mut self, id: StreamId, length: usize) -> bool {
        let length = i64::try_from(length).expect("at most one frame");
        // A stream that has ended meanwhile takes nothing any more.
        let Some(stream) = self.streams.get(id.0) else { return false };
        if self.window < length || stream.window < length {
            return false;
        }
        self.window -= length;
        stream.window -= length;
        true
    }

    /// Sends what waited for a window, as far as it goes.
    fn release_waiting(&mut self) {
        while let Some(first) = self.waiting.pop_front() {
            if self.streams.get(first.stream.0).is_none() {
                continue;
            }
            if !self.take_window(first.stream, first.payload.len()) {
                self.waiting.push_front(first);
                return;
            }
            let flags = if first.end { frame::END_STREAM } else { 0 };
            frame::frame(Kind::Data, flags, first.stream.0, &first.payload, &mut self.outgoing);
        }
    }

    /// Gives the socket what it takes now.
    ///
    /// # Errors
    /// If the connection broke.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        while self.written < self.outgoing.len() {
            match self.socket.write(&self.outgoing[self.written..]) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("the connection broke while writing"),
            }
        }
        self.outgoing.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads what has arrived and tells `handler`.
    ///
    /// # Errors
    /// If the connection broke or the peer broke the protocol.
    pub fn read(&mut self, handler: &mut impl Handler) -> anyhow::Result<()> {
        loop {
            let free = self.incoming.len() - self.filled;
            match self.socket.read(&mut self.incoming[self.filled..]) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(bytes) => {
                    self.filled += bytes;
                    self.read_bytes += bytes as u64;
                    self.parse(handler)?;
                    if bytes < free {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("the connection broke while reading"),
            }
        }
        self.flush()
    }

    fn parse(&mut self, handler: &mut impl Handler) -> anyhow::Result<()> {
        let incoming = std::mem::take(&mut self.incoming);
        let mut at = 0;
        let outcome = loop {
            let bytes = &incoming[at..self.filled];
            let Some(head) = Head::read(bytes) else { break Ok(()) };
            if frame::PAYLOAD_BYTES_MAX < head.length {
                break Err(anyhow::anyhow!("a frame of {} bytes", head.length));
            }
            let end = frame::HEAD_BYTES + head.length;
            let Some(payload) = bytes.get(frame::HEAD_BYTES..end) else { break Ok(()) };
            if let Err(error) = self.understand(head, payload, handler) {
                break Err(error);
            }
            at += end;
        };
        self.incoming = incoming;
        self.incoming.copy_within(at..self.filled, 0);
        self.filled -= at;
        outcome
    }

    fn understand(
        &mut self,
        head: Head,
        payload: &[u8],
        handler: &mut impl Handler,
    ) -> anyhow::Result<()> {
        match head.kind {
            Kind::Data => self.data(head, payload, handler)?,
            Kind::Headers => {
                let bytes = frame::content(head, payload).context("bad padding")?;
                let ends_stream = head.has(frame::END_STREAM);
                self.block = Some(OpenBlock { stream: head.stream, ends_stream, bytes: vec![] });
                self.header_block(head, bytes, handler)?;
            }
            Kind::Continuation => self.header_block(head, payload, handler)?,
            Kind::ResetStream => {
                let code = frame::number(payload).unwrap_or_default();
                if self.streams.close(head.stream).is_some() {
                    let text = format!("the stream was reset with code {code}");
                    handler.ended(StreamId(head.stream), STATUS_UNAVAILABLE, &text);
                }
            }
            Kind::Settings if !head.has(frame::ACK) => {
                for (name, value) in frame::settings(payload) {
                    if name == frame::SETTING_WINDOW {
                        self.resize_windows(i64::from(value));
                    }
                }
                frame::frame(Kind::Settings, frame::ACK, 0, &[], &mut self.outgoing);
                self.release_waiting();
            }
            Kind::Ping if !head.has(frame::ACK) => {
                frame::frame(Kind::Ping, frame::ACK, 0, payload, &mut self.outgoing);
            }
            Kind::GoAway => bail!("the server asked us to go away"),
            Kind::WindowUpdate => {
                let more = i64::from(frame::number(payload).context("a window of no size")?);
                if head.stream == 0 {
                    self.window += more;
                } else if let Some(stream) = self.streams.get(head.stream) {
                    stream.window += more;
                }
                self.release_waiting();
            }
            Kind::Settings | Kind::Ping | Kind::Other => {}
        }
        Ok(())
    }

    fn resize_windows(&mut self, window: i64) {
        let more = window - self.stream_window;
        self.stream_window = window;
        for stream in self.streams.all() {
            stream.window += more;
        }
    }

    fn data(
        &mut self,
        head: Head,
        payload: &[u8],
        handler: &mut impl Handler,
    ) -> anyhow::Result<()> {
        let length = u32::try_from(payload.len()).expect("at most one frame");
        renew(&mut self.unrenewed, length, 0, &mut self.outgoing);
        let Some(stream) = self.streams.get(head.stream) else { return Ok(()) };
        renew(&mut stream.unrenewed, length, head.stream, &mut self.outgoing);
        let bytes = frame::content(head, payload).context("bad padding")?;
        stream.receive(StreamId(head.stream), bytes, handler)?;
        if head.has(frame::END_STREAM) {
            self.streams.close(head.stream);
            handler.ended(StreamId(head.stream), STATUS_UNKNOWN, "the answer has no trailers");
        }
        Ok(())
    }

    fn header_block(
        &mut self,
        head: Head,
        bytes: &[u8],
        handler: &mut impl Handler,
    ) -> anyhow::Result<()> {
        let mut block = self.block.take().context("a continuation of nothing")?;
        block.bytes.extend_from_slice(bytes);
        if !head.has(frame::END_HEADERS) {
            self.block = Some(block);
            return Ok(());
        }
        let verdict = self.decoder.block(&block.bytes)?;
        if !block.ends_stream || self.streams.close(block.stream).is_none() {
            return Ok(());
        }
        let status = verdict.grpc_status.unwrap_or(STATUS_UNKNOWN);
        handler.ended(StreamId(block.stream), status, &verdict.grpc_message);
        Ok(())
    }

    /// Whether bytes wait for the socket.
    #[must_use]
    pub fn wants_to_write(&self) -> bool {
        self.written < self.outgoing.len()
    }

    /// How many calls are under way.
    #[must_use]
    pub fn calls_open(&self) -> usize {
        self.streams.len()
    }

    /// All bytes received so far, with frames and headers.
    #[must_use]
    pub const fn bytes_read(&self) -> u64 {
        self.read_bytes
    }
}

/// gRPC's UNKNOWN.
const STATUS_UNKNOWN: u32 = 2;
/// gRPC's UNAVAILABLE.
const STATUS_UNAVAILABLE: u32 = 14;

/// Counts received bytes and renews the window they came out of.
fn renew(unrenewed: &mut u32, length: u32, stream: u32, out: &mut Vec<u8>) {
    *unrenewed += length;
    if RENEW_BYTES <= *unrenewed {
        frame::frame(Kind::WindowUpdate, 0, stream, &unrenewed.to_be_bytes(), out);
        *unrenewed = 0;
    }
}

/// Waits for sockets.
#[derive(Debug, Default)]
pub struct Poller {
    ready: Vec<bool>,
}

impl Poller {
    /// Sleeps until a connection can be read (or written, where bytes wait) or `timeout` passed.
    /// The answer has one flag per connection: whether it has something to read.
    ///
    /// # Errors
    /// If the system refuses to wait.
    pub fn wait(
        &mut self,
        connections: &mut [Connection],
        timeout: Duration,
    ) -> anyhow::Result<&[bool]> {
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs())?,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        self.ready.clear();
        let mut waits: Vec<_> = connections
            .iter()
            .map(|one| {
                let write = if one.wants_to_write() { PollFlags::OUT } else { PollFlags::empty() };
                PollFd::from_borrowed_fd(one.socket.as_fd(), PollFlags::IN | write)
            })
            .collect();
        match poll(&mut waits, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for sockets"),
        }
        let found: Vec<_> = waits.iter().map(PollFd::revents).collect();
        drop(waits);
        for (connection, found) in connections.iter_mut().zip(found) {
            if found.contains(PollFlags::OUT) {
                connection.flush()?;
            }
            self.ready.push(found.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR));
        }
        Ok(&self.ready)
    }
}
