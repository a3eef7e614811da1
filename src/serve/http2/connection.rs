//! One connection as a state machine: bytes in, events out; commands in, bytes out.
//!
//! Decides what each frame of a client means, and which of its mistakes end a stream or the
//! connection. What is sent is decided in `sending`; both are one object. Time comes in as a
//! parameter and bytes in a buffer, so nothing here waits. Owned by `driver`.
//!
//! Source: RFC 9113; grpc-go `internal/transport/http2_server.go` for the end of a connection.

use std::{collections::VecDeque, time::Duration};

use bytes::{Buf, Bytes, BytesMut};

use super::{
    encode::Encoder,
    fields::Fields,
    frame::{self, Code, Frame, PREFACE, Setting, StreamId, WINDOW_DEFAULT, WINDOW_MAX, Wrong},
    hpack::Decoder,
    limits::Limits,
    streams::{Key, Stream, Streams},
};

/// A block of fields that comes in several frames may be this long: a block within the limit on
/// fields is, unless it is made of nothing.
const BLOCK_BYTES_FACTOR: usize = 2;

/// Frames that one block may be cut into.
const BLOCK_FRAMES_MAX: usize = 64;

/// Answers that wait for room on all streams together. With more, new requests are refused: the
/// client asks for more than it takes.
const UNSENT_BYTES_MAX: usize = 64 << 20;

/// The ping between the first and the last goodbye. Its answer means that the client knows.
const DRAIN_PING: [u8; 8] = *b"goodbye?";

/// What a connection allows its client.
#[derive(Clone, Copy, Debug)]
pub(in crate::serve) struct Settings {
    /// Streams that may be open at once.
    pub(in crate::serve) streams_max: u32,
    /// What may be sent on one stream before it is taken, in bytes.
    pub(in crate::serve) stream_window: u32,
    /// The same of all streams together.
    pub(in crate::serve) connection_window: u32,
    /// Fields of one request, in bytes as HTTP/2 counts them.
    pub(in crate::serve) fields_bytes_max: u32,
    /// The shortest time between two pings of the client.
    pub(in crate::serve) ping_interval_min: Duration,
}

/// What a client did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::serve) enum Event {
    /// It opened a stream, whose fields are in [`Connection::fields`] until the next event.
    Request {
        /// Which.
        key: Key,
        /// Nothing follows.
        last: bool,
        /// The fields are those of the request before.
        repeated: bool,
    },
    /// It sent content, which takes room until it is [released](Connection::release).
    Data {
        /// Where.
        key: Key,
        /// It.
        data: Bytes,
        /// Nothing follows.
        last: bool,
    },
    /// It has said everything, after some content.
    End {
        /// Where.
        key: Key,
    },
    /// It took a stream back, or broke it. The key is of no use any more.
    Reset {
        /// Which.
        key: Key,
    },
    /// Everything that was given to a stream has been sent.
    Room {
        /// Where.
        key: Key,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Preface,
    FirstSettings,
    Open,
}

/// How far the end of the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drain {
    /// It goes on.
    No,
    /// The client was told to open no more streams, and does not know yet.
    Announced,
    /// Streams above this one are not served.
    After(StreamId),
}

/// A block of fields whose end has not come yet.
#[derive(Debug)]
struct PartialBlock {
    stream: StreamId,
    bytes: BytesMut,
    frames: usize,
    last: bool,
}

/// The block that the fields at hand were read from. Most clients repeat themselves: then nothing
/// has to be read.
#[derive(Debug, Default)]
struct Known {
    /// Empty if there is none.
    block: Vec<u8>,
    table_changes: u64,
}

/// One connection.
#[derive(Debug)]
pub(in crate::serve) struct Connection {
    pub(super) settings: Settings,
    phase: Phase,
    decoder: Decoder,
    fields: Fields,
    known: Known,
    block: Option<PartialBlock>,
    pub(super) streams: Streams,
    /// The highest number that the client has used.
    newest: StreamId,
    pub(super) drain: Drain,
    pub(super) limits: Limits,
    /// What the client may send on all streams together, and what of that was taken.
    window: u32,
    taken: u32,
    /// The window of a new stream of ours, and what all of ours may send together.
    peer_window: u32,
    pub(super) room: i64,
    pub(super) peer_payload_bytes_max: usize,
    pub(super) encoder: Encoder,
    /// What all streams have left to send.
    pub(super) unsent_bytes: usize,
    /// Streams that wait for room to send, oldest first.
    pub(super) waiting: VecDeque<Key>,
    pub(super) waiting_ended: usize,
    /// Streams whose content has been sent after a wait.
    pub(super) emptied: VecDeque<Key>,
    pub(super) out: Vec<u8>,
    pub(super) scratch: Vec<u8>,
}

impl Connection {
    /// A connection at its very start. Our settings are in the output.
    pub(in crate::serve) fn new(settings: Settings) -> Self {
        let mut out = Vec::new();
        let unlimited = [(4, settings.stream_window), (6, settings.fields_bytes_max)];
        let limited = [(3, settings.streams_max), unlimited[0], unlimited[1]];
        let values = if settings.streams_max == u32::MAX { &limited[1..] } else { &limited[..] };
        frame::put_settings(values, &mut out);
        let more = settings.connection_window.saturating_sub(WINDOW_DEFAULT);
        if 0 < more {
            frame::put_window_update(StreamId(0), more, &mut out);
        }
        let fields_bytes_max = usize::try_from(settings.fields_bytes_max).unwrap_or(usize::MAX);
        Self {
            settings,
            phase: Phase::Preface,
            decoder: Decoder::new(),
            fields: Fields::new(fields_bytes_max),
            known: Known::default(),
            block: None,
            streams: Streams::default(),
            newest: StreamId(0),
            drain: Drain::No,
            limits: Limits::new(settings.ping_interval_min),
            window: settings.connection_window.max(WINDOW_DEFAULT),
            taken: 0,
            peer_window: WINDOW_DEFAULT,
            room: WINDOW_DEFAULT.into(),
            peer_payload_bytes_max: frame::PAYLOAD_BYTES_MAX,
            encoder: Encoder::new(),
            unsent_bytes: 0,
            waiting: VecDeque::new(),
            waiting_ended: 0,
            emptied: VecDeque::new(),
            out,
            scratch: Vec::new(),
        }
    }

    /// The fields of the request that came last.
    pub(in crate::serve) const fn fields(&self) -> &Fields {
        &self.fields
    }

    /// The next thing that the client did, as far as `input` goes. Takes from it what was read.
    ///
    /// # Errors
    /// With the reason, if the client breaks the protocol or the limits. It is told in the output;
    /// nothing more is to be read.
    pub(in crate::serve) fn next(
        &mut self,
        input: &mut BytesMut,
        now: Duration,
    ) -> Result<Option<Event>, &'static str> {
        if let Some(key) = self.emptied.pop_front() {
            return Ok(Some(Event::Room { key }));
        }
        loop {
            match self.step(input, now) {
                Ok(Step::Event(event)) => return Ok(Some(event)),
                Ok(Step::Nothing) => {}
                Ok(Step::Starved) => {
                    return Ok(self.emptied.pop_front().map(|key| Event::Room { key }));
                }
                Err(Wrong::Stream(stream, code)) => {
                    if let Some(key) = self.break_stream(stream, code) {
                        return Ok(Some(Event::Reset { key }));
                    }
                }
                Err(Wrong::Connection(code, reason)) => return Err(self.go_away(code, reason)),
            }
        }
    }

    fn step(&mut self, input: &mut BytesMut, now: Duration) -> Result<Step, Wrong> {
        if self.phase == Phase::Preface {
            if input.len() < PREFACE.len() && PREFACE.starts_with(input) {
                return Ok(Step::Starved);
            }
            if !input.starts_with(PREFACE) {
                return Err(Wrong::protocol("the client does not speak HTTP/2"));
            }
            input.advance(PREFACE.len());
            self.phase = Phase::FirstSettings;
        }
        let Some(frame) = frame::next(input)? else { return Ok(Step::Starved) };
        if self.phase == Phase::FirstSettings {
            if !matches!(frame, Frame::Settings(_)) {
                return Err(Wrong::protocol("the first frame is not settings"));
            }
            self.phase = Phase::Open;
        }
        if self.block.is_some() && !matches!(frame, Frame::Continuation { .. }) {
            return Err(Wrong::protocol("a block of fields is interrupted"));
        }
        self.handle(frame, now).map(|event| event.map_or(Step::Nothing, Step::Event))
    }

    fn handle(&mut self, frame: Frame, now: Duration) -> Result<Option<Event>, Wrong> {
        match frame {
            Frame::Data { stream, data, flow_bytes, last } => {
                self.data(stream, data, flow_bytes, last, now)
            }
            Frame::Headers { stream, block, last, complete } => {
                if complete {
                    return self.request(stream, &block, last);
                }
                let bytes = BytesMut::from(block);
                self.block = Some(PartialBlock { stream, bytes, frames: 1, last });
                Ok(None)
            }
            Frame::Continuation { stream, block, complete } => {
                self.continuation(stream, &block, complete)
            }
            Frame::Reset { stream } => self.reset_by_client(stream, now),
            Frame::Settings(payload) => self.peer_settings(payload, now),
            Frame::Ping(payload) => self.ping(payload, now),
            Frame::PingAck(DRAIN_PING) if self.drain == Drain::Announced => {
                self.drain = Drain::After(self.newest);
                frame::put_go_away(self.newest, Code::NO_ERROR, "", &mut self.out);
                Ok(None)
            }
            Frame::WindowUpdate { stream, increment } => self.window_update(stream, increment),
            Frame::PingAck(_) | Frame::SettingsAck | Frame::GoAway | Frame::Ignored => Ok(None),
        }
    }

    fn data(
        &mut self,
        stream: StreamId,
        data: Bytes,
        flow_bytes: u32,
        last: bool,
        now: Duration,
    ) -> Result<Option<Event>, Wrong> {
        self.window = self.window.checked_sub(flow_bytes).ok_or(Wrong::Connection(
            Code::FLOW_CONTROL_ERROR,
            "the client sends more than there is room for",
        ))?;
        if data.is_empty() && !last {
            self.count_control(now)?;
        }
        let Some(key) = self.streams.find(stream) else {
            self.check_known(stream)?;
            self.take(flow_bytes);
            return Ok(None);
        };
        let found = self.streams.get(key).expect("it was found");
        let (heard_all, window) = (found.heard_all, found.window);
        if heard_all || window < flow_bytes {
            self.take(flow_bytes);
            let code = if heard_all { Code::STREAM_CLOSED } else { Code::FLOW_CONTROL_ERROR };
            return Err(Wrong::Stream(stream, code));
        }
        found.window -= flow_bytes;
        found.held += flow_bytes;
        found.heard_all = last;
        let padding = flow_bytes - u32::try_from(data.len()).expect("frames are small");
        self.release(key, padding);
        Ok((!data.is_empty() || last).then_some(Event::Data { key, data, last }))
    }

    fn continuation(
        &mut self,
        stream: StreamId,
        block: &Bytes,
        complete: bool,
    ) -> Result<Option<Event>, Wrong> {
        let bytes_max = BLOCK_BYTES_FACTOR * self.settings.fields_bytes_max as usize;
        let Some(partial) = self.block.as_mut().filter(|partial| partial.stream == stream) else {
            return Err(Wrong::protocol("a block of fields continues that has not begun"));
        };
        partial.bytes.extend_from_slice(block);
        partial.frames += 1;
        if bytes_max < partial.bytes.len() || BLOCK_FRAMES_MAX < partial.frames {
            return Err(Wrong::Connection(Code::ENHANCE_YOUR_CALM, "a block of fields is endless"));
        }
        if !complete {
            return Ok(None);
        }
        let partial = self.block.take().expect("it was there");
        self.request(stream, &partial.bytes, partial.last)
    }

    /// A whole block of fields: a request, or what comes after its content.
    fn request(&mut self, id: StreamId, block: &[u8], last: bool) -> Result<Option<Event>, Wrong> {
        let repeated = self.read_fields(block)?;
        if let Some(key) = self.streams.find(id) {
            return self.trailers(key, last);
        }
        if id.0.is_multiple_of(2) {
            return Err(Wrong::protocol("a client opens a stream with an even number"));
        }
        if id <= self.newest {
            // What comes after the content of a stream that we have ended.
            return Ok(None);
        }
        self.newest = id;
        if let Drain::After(served) = self.drain
            && served < id
        {
            return Ok(None);
        }
        let too_many = self.settings.streams_max as usize <= self.streams.len();
        if too_many || UNSENT_BYTES_MAX < self.unsent_bytes {
            return Err(Wrong::Stream(id, Code::REFUSED_STREAM));
        }
        if !repeated {
            self.check_fields(id, block)?;
        }
        let stream = Stream::new(id, last, self.peer_window, self.settings.stream_window);
        let key = self.streams.insert(stream);
        Ok(Some(Event::Request { key, last, repeated }))
    }

    /// Reads a block, and says whether it is the same request as before.
    fn read_fields(&mut self, block: &[u8]) -> Result<bool, Wrong> {
        let changes = self.decoder.changes();
        if !block.is_empty() && self.known.block == block && self.known.table_changes == changes {
            return Ok(true);
        }
        self.known.block.clear();
        self.fields.clear();
        let read = self.decoder.decode(block, &mut self.fields);
        read.map_err(|_malformed| {
            Wrong::Connection(Code::COMPRESSION_ERROR, "a block of fields cannot be read")
        })?;
        // A block that changes the table means something else the next time.
        self.known.table_changes =
            if self.decoder.changes() == changes { changes } else { u64::MAX };
        Ok(false)
    }

    /// Refuses fields that are not those of a request; those of one are remembered.
    fn check_fields(&mut self, id: StreamId, block: &[u8]) -> Result<(), Wrong> {
        if self.fields.overflowed() {
            return Err(Wrong::Stream(id, Code::FRAME_SIZE_ERROR));
        }
        if self.fields.check().is_err() {
            return Err(Wrong::Stream(id, Code::PROTOCOL_ERROR));
        }
        self.known.block.extend_from_slice(block);
        Ok(())
    }

    fn trailers(&mut self, key: Key, last: bool) -> Result<Option<Event>, Wrong> {
        let stream = self.streams.get(key).expect("it was found");
        if stream.heard_all {
            return Err(Wrong::Stream(key.id, Code::STREAM_CLOSED));
        }
        if !last {
            return Err(Wrong::Stream(key.id, Code::PROTOCOL_ERROR));
        }
        stream.heard_all = true;
        Ok(Some(Event::End { key }))
    }

    fn reset_by_client(&mut self, id: StreamId, now: Duration) -> Result<Option<Event>, Wrong> {
        let Some(key) = self.streams.find(id) else {
            self.check_known(id)?;
            return Ok(None);
        };
        self.forget(key);
        if !self.limits.reset(now) {
            return Err(calm_down("too many requests are taken back"));
        }
        Ok(Some(Event::Reset { key }))
    }

    fn peer_settings(&mut self, payload: Bytes, now: Duration) -> Result<Option<Event>, Wrong> {
        self.count_control(now)?;
        for setting in frame::settings(payload) {
            match setting? {
                Setting::HeaderTableBytes(bytes_max) => self.encoder.resize(bytes_max),
                Setting::PayloadBytesMax(bytes) => {
                    self.peer_payload_bytes_max = usize::try_from(bytes).unwrap_or(usize::MAX);
                }
                Setting::InitialWindow(window) => self.resize_streams(window)?,
            }
        }
        frame::put_settings_ack(&mut self.out);
        self.resume();
        Ok(None)
    }

    /// The windows of all streams change by as much as that of new ones.
    fn resize_streams(&mut self, window: u32) -> Result<(), Wrong> {
        let by = i64::from(window) - i64::from(self.peer_window);
        self.peer_window = window;
        for (key, stream) in self.streams.iter_mut() {
            if !stream.grow(by) {
                return Err(window_overflow());
            }
            if !stream.rest.is_empty() && !std::mem::replace(&mut stream.queued, true) {
                self.waiting.push_back(key);
            }
        }
        Ok(())
    }

    fn ping(&mut self, payload: [u8; 8], now: Duration) -> Result<Option<Event>, Wrong> {
        frame::put_ping_ack(payload, &mut self.out);
        if self.limits.ping(now, self.streams.len()) {
            return Ok(None);
        }
        Err(Wrong::Connection(Code::ENHANCE_YOUR_CALM, "too_many_pings"))
    }

    fn window_update(&mut self, id: StreamId, increment: u32) -> Result<Option<Event>, Wrong> {
        if id == StreamId(0) {
            self.room += i64::from(increment);
            if i64::from(WINDOW_MAX) < self.room {
                return Err(window_overflow());
            }
        } else if let Some(key) = self.streams.find(id) {
            let stream = self.streams.get(key).expect("it was found");
            if !stream.grow(increment.into()) {
                return Err(Wrong::Stream(id, Code::FLOW_CONTROL_ERROR));
            }
            if !stream.rest.is_empty() && !std::mem::replace(&mut stream.queued, true) {
                self.waiting.push_back(key);
            }
        } else {
            self.check_known(id)?;
            return Ok(None);
        }
        self.resume();
        Ok(self.emptied.pop_front().map(|key| Event::Room { key }))
    }

    /// A frame of a stream that is not open is fine if it was.
    const fn check_known(&self, id: StreamId) -> Result<(), Wrong> {
        if self.newest.0 < id.0 || id.0.is_multiple_of(2) {
            return Err(Wrong::protocol("a frame names a stream that was never opened"));
        }
        Ok(())
    }

    fn count_control(&mut self, now: Duration) -> Result<(), Wrong> {
        if self.limits.control(now) { Ok(()) } else { Err(calm_down("too much to be answered")) }
    }

    /// Content of `bytes` has been taken, so the client may send as much again.
    pub(in crate::serve) fn release(&mut self, key: Key, bytes: u32) {
        let Some(stream) = self.streams.get(key) else { return };
        assert!(bytes <= stream.held, "{bytes} of {} bytes are released", stream.held);
        stream.held -= bytes;
        stream.taken += bytes;
        if !stream.heard_all && self.settings.stream_window / 2 <= stream.taken {
            stream.window += stream.taken;
            frame::put_window_update(key.id, std::mem::take(&mut stream.taken), &mut self.out);
        }
        self.take(bytes);
    }

    /// The same for the connection as a whole.
    fn take(&mut self, bytes: u32) {
        self.taken += bytes;
        if self.settings.connection_window / 2 <= self.taken {
            self.window += self.taken;
            let taken = std::mem::take(&mut self.taken);
            frame::put_window_update(StreamId(0), taken, &mut self.out);
        }
    }

    /// Removes a stream. What it held of the connection's window is given back.
    pub(super) fn forget(&mut self, key: Key) {
        if let Some(stream) = self.streams.remove(key) {
            self.unsent_bytes -= stream.rest.len();
            if stream.queued {
                self.forget_waiting();
            }
            self.take(stream.held);
        }
    }

    /// Ends a stream that its client has broken; `None` if it was not open.
    fn break_stream(&mut self, id: StreamId, code: Code) -> Option<Key> {
        frame::put_reset(id, code, &mut self.out);
        let key = self.streams.find(id)?;
        self.forget(key);
        Some(key)
    }

    fn go_away(&mut self, code: Code, reason: &'static str) -> &'static str {
        frame::put_go_away(self.newest, code, reason, &mut self.out);
        reason
    }

    /// Asks the client to open no more streams.
    pub(in crate::serve) fn drain(&mut self) {
        if self.drain == Drain::No {
            self.drain = Drain::Announced;
            frame::put_go_away(StreamId(WINDOW_MAX), Code::NO_ERROR, "", &mut self.out);
            frame::put_ping(DRAIN_PING, &mut self.out);
        }
    }

    /// Whether there is something to write, or an event that needs no input.
    pub(in crate::serve) fn has_news(&self) -> bool {
        !self.out.is_empty() || !self.emptied.is_empty()
    }

    /// Whether the client knows that the connection ends, and nothing is left to be answered.
    pub(in crate::serve) fn is_drained(&self) -> bool {
        matches!(self.drain, Drain::After(_)) && self.streams.len() == 0
    }
}

enum Step {
    Event(Event),
    Nothing,
    /// The input has no whole frame.
    Starved,
}

const fn calm_down(reason: &'static str) -> Wrong {
    Wrong::Connection(Code::ENHANCE_YOUR_CALM, reason)
}

const fn window_overflow() -> Wrong {
    Wrong::Connection(Code::FLOW_CONTROL_ERROR, "a window is larger than it can be")
}
