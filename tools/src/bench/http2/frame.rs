//! Frames of HTTP/2 (RFC 9113): the nine bytes in front, and the few payloads we write.
//!
//! Called by `connection` only.

/// Bytes in front of every frame.
pub(super) const HEAD_BYTES: usize = 9;

/// The largest payload a peer takes unless it says otherwise. We never send more, and announce
/// nothing else, so we never receive more.
pub(super) const PAYLOAD_BYTES_MAX: usize = 16_384;

/// The first bytes of every connection.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The window both sides start with.
pub(super) const WINDOW_BYTES_DEFAULT: i64 = 65_535;

/// The largest window there is.
pub(super) const WINDOW_BYTES_MAX: u32 = (1 << 31) - 1;

/// The last frame of a stream's direction (DATA, HEADERS), or an answer (SETTINGS, PING).
pub(super) const END_STREAM: u8 = 0x1;
/// An answer to SETTINGS or PING.
pub(super) const ACK: u8 = 0x1;
/// The header block is complete.
pub(super) const END_HEADERS: u8 = 0x4;
/// Padding follows (DATA, HEADERS).
pub(super) const PADDED: u8 = 0x8;
/// A priority follows (HEADERS).
pub(super) const PRIORITY: u8 = 0x20;

/// SETTINGS_ENABLE_PUSH.
pub(super) const SETTING_PUSH: u16 = 2;
/// SETTINGS_INITIAL_WINDOW_SIZE.
pub(super) const SETTING_WINDOW: u16 = 4;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Headers,
    ResetStream,
    Settings,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    /// PRIORITY, PUSH_PROMISE and whatever is unknown: skipped.
    Other,
}

impl Kind {
    const ALL: [(Self, u8); 8] = [
        (Self::Data, 0),
        (Self::Headers, 1),
        (Self::ResetStream, 3),
        (Self::Settings, 4),
        (Self::Ping, 6),
        (Self::GoAway, 7),
        (Self::WindowUpdate, 8),
        (Self::Continuation, 9),
    ];

    fn from_byte(byte: u8) -> Self {
        Self::ALL.iter().find(|(_, number)| *number == byte).map_or(Self::Other, |one| one.0)
    }

    fn byte(self) -> u8 {
        let found = Self::ALL.iter().find(|(kind, _)| *kind == self);
        found.expect("only kinds with a number are written").1
    }
}

/// What stands in front of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) length: usize,
    pub(super) kind: Kind,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Head {
    /// Reads a head; `None` while bytes are missing.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEAD_BYTES] = bytes.first_chunk()?;
        let [a, b, c, kind, flags, s1, s2, s3, s4] = *bytes;
        Some(Self {
            length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            kind: Kind::from_byte(kind),
            flags,
            stream: u32::from_be_bytes([s1, s2, s3, s4]) & 0x7fff_ffff,
        })
    }

    /// Appends this head to `out`.
    pub(super) fn write(self, out: &mut Vec<u8>) {
        assert!(self.length <= PAYLOAD_BYTES_MAX, "a frame of {} bytes", self.length);
        let length = u32::try_from(self.length).expect("at most PAYLOAD_BYTES_MAX").to_be_bytes();
        out.extend_from_slice(&length[1..]);
        out.push(self.kind.byte());
        out.push(self.flags);
        out.extend_from_slice(&self.stream.to_be_bytes());
    }

    pub(super) const fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Appends a whole frame.
pub(super) fn frame(kind: Kind, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    Head { length: payload.len(), kind, flags, stream }.write(out);
    out.extend_from_slice(payload);
}

/// Appends what opens a connection: preface, our settings, and the largest window.
pub(super) fn opening(out: &mut Vec<u8>) {
    out.extend_from_slice(PREFACE);
    let mut settings = Vec::new();
    for (name, value) in [(SETTING_PUSH, 0), (SETTING_WINDOW, WINDOW_BYTES_MAX)] {
        settings.extend_from_slice(&name.to_be_bytes());
        settings.extend_from_slice(&value.to_be_bytes());
    }
    frame(Kind::Settings, 0, 0, &settings, out);
    let more = WINDOW_BYTES_MAX - u32::try_from(WINDOW_BYTES_DEFAULT).expect("below 2^16");
    frame(Kind::WindowUpdate, 0, 0, &more.to_be_bytes(), out);
}

/// The settings in a payload.
pub(super) fn settings(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> {
    let (settings, _) = payload.as_chunks::<6>();
    settings
        .iter()
        .map(|&[a, b, c, d, e, f]| (u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f])))
}

/// The number that a payload begins with, without its reserved bit.
pub(super) fn number(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) & 0x7fff_ffff)
}

/// The payload without padding and priority; `None` if it is shorter than it says.
pub(super) fn content(head: Head, mut payload: &[u8]) -> Option<&[u8]> {
    if head.has(PADDED) {
        let (&padding, rest) = payload.split_first()?;
        payload = rest.get(..rest.len().checked_sub(usize::from(padding))?)?;
    }
    if head.kind == Kind::Headers && head.has(PRIORITY) {
        payload = payload.get(5..)?;
    }
    Some(payload)
}

#[cfg(test)]
mod tests {
    use super::{
        END_STREAM, HEAD_BYTES, Head, Kind, PADDED, PREFACE, PRIORITY, content, frame, opening,
        settings,
    };

    #[test]
    fn head_is_read_as_written() {
        let mut out = Vec::new();
        frame(Kind::Data, END_STREAM, 0x0102_0305, b"hello", &mut out);
        assert_eq!(out[..HEAD_BYTES], [0, 0, 5, 0, 1, 1, 2, 3, 5]);
        let head = Head::read(&out).unwrap();
        assert_eq!(head, Head { length: 5, kind: Kind::Data, flags: 1, stream: 0x0102_0305 });
        assert_eq!(Head::read(&out[..8]), None, "eight bytes are no head");
    }

    #[test]
    fn connection_opens_with_preface_settings_and_window() {
        let mut out = Vec::new();
        opening(&mut out);
        let rest = out.strip_prefix(PREFACE).unwrap();
        let head = Head::read(rest).unwrap();
        assert_eq!((head.kind, head.length, head.stream), (Kind::Settings, 12, 0));
        let ours: Vec<_> = settings(&rest[HEAD_BYTES..HEAD_BYTES + 12]).collect();
        assert_eq!(ours, [(2, 0), (4, 0x7fff_ffff)]);
        let head = Head::read(&rest[HEAD_BYTES + 12..]).unwrap();
        assert_eq!((head.kind, head.length), (Kind::WindowUpdate, 4));
    }

    #[test]
    fn padding_and_priority_are_left_out() {
        let head = Head { length: 10, kind: Kind::Headers, flags: PADDED | PRIORITY, stream: 1 };
        assert_eq!(content(head, &[2, 9, 9, 9, 9, 9, b'a', b'b', 0, 0]), Some(&b"ab"[..]));
        assert_eq!(content(head, &[9, 1, 2]), None, "more padding than payload");
    }
}
