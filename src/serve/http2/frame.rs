//! HTTP/2 frames as bytes.
//!
//! Decides what each kind of frame must look like on its own: lengths, padding, the streams that it
//! may name. What a frame means depends on the connection, which reads them here one by one and
//! writes its own. Nothing is copied: the payload of a frame is a slice of what was read.
//!
//! ```text
//!   length(3)  kind(1)  flags(1)  stream(4)  payload(length)
//! ```
//!
//! Source: RFC 9113, sections 4 and 6.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// What a client sends first.
pub(in crate::serve) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The bytes before each payload.
pub(super) const HEAD_BYTES: usize = 9;

/// The largest payload that is taken, and the smallest that every peer takes.
pub(super) const PAYLOAD_BYTES_MAX: usize = 16_384;

/// The largest payload that a peer may ask for.
const PAYLOAD_BYTES_LIMIT: u32 = (1 << 24) - 1;

/// The largest window.
pub(super) const WINDOW_MAX: u32 = (1 << 31) - 1;

/// The window of a connection, and of its streams, before anybody says otherwise.
pub(super) const WINDOW_DEFAULT: u32 = 65_535;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

/// The number of a stream; 0 is the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::serve) struct StreamId(pub(in crate::serve) u32);

/// Why a stream or a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::serve) struct Code(pub(in crate::serve) u32);

impl Code {
    pub(in crate::serve) const NO_ERROR: Self = Self(0);
    pub(in crate::serve) const PROTOCOL_ERROR: Self = Self(1);
    pub(in crate::serve) const FLOW_CONTROL_ERROR: Self = Self(3);
    pub(in crate::serve) const STREAM_CLOSED: Self = Self(5);
    pub(in crate::serve) const FRAME_SIZE_ERROR: Self = Self(6);
    pub(in crate::serve) const REFUSED_STREAM: Self = Self(7);
    pub(in crate::serve) const COMPRESSION_ERROR: Self = Self(9);
    pub(in crate::serve) const ENHANCE_YOUR_CALM: Self = Self(11);
}

/// What a peer did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// The connection cannot go on.
    Connection(Code, &'static str),
    /// One stream cannot go on.
    Stream(StreamId, Code),
}

impl Wrong {
    pub(super) const fn protocol(reason: &'static str) -> Self {
        Self::Connection(Code::PROTOCOL_ERROR, reason)
    }

    const fn size(reason: &'static str) -> Self {
        Self::Connection(Code::FRAME_SIZE_ERROR, reason)
    }
}

/// One setting of a peer that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// How much the peer's table of header fields may hold.
    HeaderTableBytes(u32),
    /// The window of each stream.
    InitialWindow(u32),
    /// The largest payload that the peer takes.
    PayloadBytesMax(u32),
}

/// A frame of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Content; `flow_bytes` counts its padding as well.
    Data { stream: StreamId, data: Bytes, flow_bytes: u32, last: bool },
    /// The start of a block of header fields; `complete` unless more of it follows.
    Headers { stream: StreamId, block: Bytes, last: bool, complete: bool },
    /// More of a block.
    Continuation { stream: StreamId, block: Bytes, complete: bool },
    /// The end of a stream.
    Reset { stream: StreamId },
    /// Settings, each as id and value.
    Settings(Bytes),
    /// Our settings have arrived.
    SettingsAck,
    /// To be answered with the same payload.
    Ping([u8; 8]),
    /// An answer to ours.
    PingAck([u8; 8]),
    /// The peer will open no more streams.
    GoAway,
    /// Room for more of ours.
    WindowUpdate { stream: StreamId, increment: u32 },
    /// Nothing that matters here.
    Ignored,
}

/// Takes the first frame from `input`, if all of it is there.
///
/// # Errors
/// - [`Wrong`] if the frame is none; one for a stream leaves `input` behind the frame.
pub(super) fn next(input: &mut BytesMut) -> Result<Option<Frame>, Wrong> {
    if input.len() < HEAD_BYTES {
        return Ok(None);
    }
    let word =
        |at: usize| u32::from_be_bytes([input[at], input[at + 1], input[at + 2], input[at + 3]]);
    let length = usize::try_from(word(0) >> 8).expect("24 bits fit");
    let (kind, flags) = (input[3], input[4]);
    let stream = StreamId(word(5) & WINDOW_MAX);
    if PAYLOAD_BYTES_MAX < length {
        return Err(Wrong::size("a frame is larger than allowed"));
    }
    if input.len() < HEAD_BYTES + length {
        return Ok(None);
    }
    let mut payload = input.split_to(HEAD_BYTES + length).freeze();
    payload.advance(HEAD_BYTES);
    Head { kind, flags, stream }.parse(payload).map(Some)
}

struct Head {
    kind: u8,
    flags: u8,
    stream: StreamId,
}

impl Head {
    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn parse(&self, payload: Bytes) -> Result<Frame, Wrong> {
        match self.kind {
            DATA => self.data(payload),
            HEADERS => self.headers(payload),
            PRIORITY => self.priority(&payload),
            RST_STREAM => self.reset(&payload),
            SETTINGS => self.settings(payload),
            PUSH_PROMISE => Err(Wrong::protocol("a client pushes nothing")),
            PING => self.ping(&payload),
            GOAWAY => self.go_away(&payload),
            WINDOW_UPDATE => self.window_update(&payload),
            CONTINUATION => {
                self.on_stream()?;
                let complete = self.has(END_HEADERS);
                Ok(Frame::Continuation { stream: self.stream, block: payload, complete })
            }
            _ => Ok(Frame::Ignored),
        }
    }

    const fn on_stream(&self) -> Result<(), Wrong> {
        if self.stream.0 == 0 {
            return Err(Wrong::protocol("a frame of a stream names the connection"));
        }
        Ok(())
    }

    const fn on_connection(&self) -> Result<(), Wrong> {
        if self.stream.0 != 0 {
            return Err(Wrong::protocol("a frame of the connection names a stream"));
        }
        Ok(())
    }

    fn data(&self, mut payload: Bytes) -> Result<Frame, Wrong> {
        self.on_stream()?;
        let flow_bytes = u32::try_from(payload.len()).expect("frames are small");
        self.unpad(&mut payload)?;
        let last = self.has(END_STREAM);
        Ok(Frame::Data { stream: self.stream, data: payload, flow_bytes, last })
    }

    fn headers(&self, mut payload: Bytes) -> Result<Frame, Wrong> {
        self.on_stream()?;
        self.unpad(&mut payload)?;
        if self.has(WITH_PRIORITY) {
            if payload.len() < 5 {
                return Err(Wrong::size("a priority is cut short"));
            }
            payload.advance(5);
        }
        let (last, complete) = (self.has(END_STREAM), self.has(END_HEADERS));
        Ok(Frame::Headers { stream: self.stream, block: payload, last, complete })
    }

    fn unpad(&self, payload: &mut Bytes) -> Result<(), Wrong> {
        if !self.has(PADDED) {
            return Ok(());
        }
        if payload.is_empty() {
            return Err(Wrong::size("a padded frame has no length of its padding"));
        }
        let padding = usize::from(payload.get_u8());
        let left = payload.len().checked_sub(padding);
        payload.truncate(left.ok_or(Wrong::protocol("a frame has more padding than bytes"))?);
        Ok(())
    }

    fn priority(&self, payload: &Bytes) -> Result<Frame, Wrong> {
        self.on_stream()?;
        if payload.len() != 5 {
            return Err(Wrong::Stream(self.stream, Code::FRAME_SIZE_ERROR));
        }
        Ok(Frame::Ignored)
    }

    fn reset(&self, payload: &Bytes) -> Result<Frame, Wrong> {
        self.on_stream()?;
        if payload.len() != 4 {
            return Err(Wrong::size("a reset has another size than 4"));
        }
        Ok(Frame::Reset { stream: self.stream })
    }

    fn settings(&self, payload: Bytes) -> Result<Frame, Wrong> {
        self.on_connection()?;
        if self.has(ACK) {
            if !payload.is_empty() {
                return Err(Wrong::size("an acknowledgement of settings has a payload"));
            }
            return Ok(Frame::SettingsAck);
        }
        if !payload.len().is_multiple_of(6) {
            return Err(Wrong::size("settings are cut short"));
        }
        Ok(Frame::Settings(payload))
    }

    fn ping(&self, payload: &Bytes) -> Result<Frame, Wrong> {
        self.on_connection()?;
        let payload = <[u8; 8]>::try_from(&payload[..])
            .map_err(|_other| Wrong::size("a ping has another size than 8"))?;
        Ok(if self.has(ACK) { Frame::PingAck(payload) } else { Frame::Ping(payload) })
    }

    fn go_away(&self, payload: &Bytes) -> Result<Frame, Wrong> {
        self.on_connection()?;
        if payload.len() < 8 {
            return Err(Wrong::size("a goodbye is cut short"));
        }
        Ok(Frame::GoAway)
    }

    fn window_update(&self, payload: &Bytes) -> Result<Frame, Wrong> {
        let word = <[u8; 4]>::try_from(&payload[..])
            .map_err(|_other| Wrong::size("a window update has another size than 4"))?;
        let increment = u32::from_be_bytes(word) & WINDOW_MAX;
        match (increment, self.stream) {
            (0, StreamId(0)) => Err(Wrong::protocol("a window grows by nothing")),
            (0, stream) => Err(Wrong::Stream(stream, Code::PROTOCOL_ERROR)),
            (increment, stream) => Ok(Frame::WindowUpdate { stream, increment }),
        }
    }
}

/// The settings in the payload of a frame, checked one by one.
pub(super) fn settings(mut payload: Bytes) -> impl Iterator<Item = Result<Setting, Wrong>> {
    std::iter::from_fn(move || {
        while 6 <= payload.len() {
            let (id, value) = (payload.get_u16(), payload.get_u32());
            if let Some(setting) = setting(id, value).transpose() {
                return Some(setting);
            }
        }
        None
    })
}

fn setting(id: u16, value: u32) -> Result<Option<Setting>, Wrong> {
    match id {
        1 => Ok(Some(Setting::HeaderTableBytes(value))),
        2 if 1 < value => Err(Wrong::protocol("a switch is neither on nor off")),
        4 if WINDOW_MAX < value => {
            Err(Wrong::Connection(Code::FLOW_CONTROL_ERROR, "a window is too large"))
        }
        4 => Ok(Some(Setting::InitialWindow(value))),
        5 if !(PAYLOAD_BYTES_MAX as u64..=PAYLOAD_BYTES_LIMIT.into()).contains(&value.into()) => {
            Err(Wrong::protocol("a frame size is out of bounds"))
        }
        5 => Ok(Some(Setting::PayloadBytesMax(value))),
        _ => Ok(None),
    }
}

fn put_head(length: usize, kind: u8, flags: u8, stream: StreamId, out: &mut Vec<u8>) {
    let length = u32::try_from(length).expect("payloads have at most 24 bits of length");
    assert!(length <= PAYLOAD_BYTES_LIMIT, "a payload of {length} bytes");
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&(length << 8 | u32::from(kind)).to_be_bytes());
    head[4] = flags;
    head[5..].copy_from_slice(&stream.0.to_be_bytes());
    out.put_slice(&head);
}

/// Our settings: id and value of each.
pub(super) fn put_settings(values: &[(u16, u32)], out: &mut Vec<u8>) {
    put_head(values.len() * 6, SETTINGS, 0, StreamId(0), out);
    for (id, value) in values {
        out.put_u16(*id);
        out.put_u32(*value);
    }
}

pub(super) fn put_settings_ack(out: &mut Vec<u8>) {
    put_head(0, SETTINGS, ACK, StreamId(0), out);
}

pub(super) fn put_ping(payload: [u8; 8], out: &mut Vec<u8>) {
    put_head(8, PING, 0, StreamId(0), out);
    out.put_slice(&payload);
}

pub(super) fn put_ping_ack(payload: [u8; 8], out: &mut Vec<u8>) {
    put_head(8, PING, ACK, StreamId(0), out);
    out.put_slice(&payload);
}

/// Streams above `last` were not and will not be served.
pub(super) fn put_go_away(last: StreamId, code: Code, text: &str, out: &mut Vec<u8>) {
    put_head(8 + text.len(), GOAWAY, 0, StreamId(0), out);
    out.put_u32(last.0);
    out.put_u32(code.0);
    out.put_slice(text.as_bytes());
}

pub(super) fn put_reset(stream: StreamId, code: Code, out: &mut Vec<u8>) {
    put_head(4, RST_STREAM, 0, stream, out);
    out.put_u32(code.0);
}

pub(super) fn put_window_update(stream: StreamId, increment: u32, out: &mut Vec<u8>) {
    put_head(4, WINDOW_UPDATE, 0, stream, out);
    out.put_u32(increment);
}

/// One data frame; the last of its stream if `last`.
pub(super) fn put_data(stream: StreamId, data: &[u8], last: Last, out: &mut Vec<u8>) {
    out.reserve(HEAD_BYTES + data.len());
    put_head(data.len(), DATA, last.flag(), stream, out);
    out.put_slice(data);
}

/// A block of header fields, in as many frames as it takes.
pub(super) fn put_headers(stream: StreamId, block: &[u8], last: Last, out: &mut Vec<u8>) {
    let mut rest = block;
    let mut kind = HEADERS;
    loop {
        let (now, later) = rest.split_at(rest.len().min(PAYLOAD_BYTES_MAX));
        let end = if later.is_empty() { END_HEADERS } else { 0 };
        let first = if kind == HEADERS { last.flag() } else { 0 };
        put_head(now.len(), kind, end | first, stream, out);
        out.put_slice(now);
        if later.is_empty() {
            return;
        }
        (rest, kind) = (later, CONTINUATION);
    }
}

/// Whether a frame is the last one of ours on its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    Yes,
    No,
}

impl Last {
    const fn flag(self) -> u8 {
        match self {
            Self::Yes => END_STREAM,
            Self::No => 0,
        }
    }
}
