//! Raft messages as bytes of a stream.
//!
//! Decides the two forms that etcd's streams have, without a socket: messages go into a buffer, and
//! bytes come out of one. Used by `outlet` and `reader`, and by the snapshot's two ends.
//!
//! ```text
//!   message stream    | length 8 | raftpb.Message |                                   whole
//!
//!   append stream     | 0 |                                                          append
//!                     | 1 | count 8 | (length 8 | raftpb.Entry) x count | commit 8 |
//!                     | 2 | length 8 | raftpb.Message |
//! ```
//!
//! All numbers are big-endian. The second form of the append stream leaves out what both ends can
//! tell from the message before: it is for appends that go on where the last one ended.
//!
//! Invariants
//! - C1 A decoder holds at most the bytes that have come, and less than a frame may have. A length
//!   that a peer names reserves nothing.
//! - C2 After an error a decoder is not asked again: the connection ends.
//!
//! Source: etcd `server/etcdserver/api/rafthttp/{msgappv2_codec,msg_codec}.go`.

use std::{error::Error, fmt};

use bytes::{Buf, Bytes, BytesMut};
use proto::raftpb::Message;

use super::kind::StreamKind;
use crate::model::MemberId;

mod append;
mod whole;

use append::{AppendDecoder, AppendEncoder};

/// The largest frame.
///
/// Source: etcd `rafthttp/msg_codec.go`, `readBytesLimit`.
pub(super) const FRAME_BYTES_MAX: u64 = 512 << 20;

pub(super) use whole::{decode_whole, encode_whole};

/// Why bytes are not messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DecodeError {
    /// A frame claims to be larger than frames may be.
    TooLarge {
        /// What it claims.
        bytes: u64,
    },
    /// A frame of the append stream has no known type.
    Unknown {
        /// Its first byte.
        kind: u8,
    },
    /// A frame does not hold what it should.
    Malformed(prost::DecodeError),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { .. } => f.write_str("rafthttp: error limit exceeded"),
            Self::Unknown { kind } => {
                write!(f, "failed to parse type {kind} in msgappv2 stream")
            }
            Self::Malformed(error) => write!(f, "proto: {error}"),
        }
    }
}

impl Error for DecodeError {}

/// The sending end of a stream.
#[derive(Debug)]
pub(super) enum Encoder {
    /// Of appends.
    Append(AppendEncoder),
    /// Of anything.
    Whole,
}

impl Encoder {
    /// That of a connection on which nothing was sent yet.
    pub(super) fn new(kind: StreamKind) -> Self {
        match kind {
            StreamKind::Append => Self::Append(AppendEncoder::default()),
            StreamKind::Message => Self::Whole,
        }
    }

    /// Appends `message` to `output`.
    pub(super) fn encode(&mut self, message: &Message, output: &mut BytesMut) {
        match self {
            Self::Append(encoder) => encoder.encode(message, output),
            Self::Whole => encode_whole(message, output),
        }
    }
}

/// The receiving end of a stream.
#[derive(Debug)]
pub(super) enum Decoder {
    /// Of appends.
    Append(Box<AppendDecoder>),
    /// Of anything.
    Whole,
}

impl Decoder {
    /// That of a connection on which nothing was received yet.
    pub(super) fn new(kind: StreamKind, local: MemberId, remote: MemberId) -> Self {
        match kind {
            StreamKind::Append => Self::Append(Box::new(AppendDecoder::new(local, remote))),
            StreamKind::Message => Self::Whole,
        }
    }

    /// Takes the next message from the front of `input`; `None` if more bytes must come first.
    ///
    /// # Errors
    /// - [`DecodeError`] if these are no messages.
    pub(super) fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Message>, DecodeError> {
        match self {
            Self::Append(decoder) => decoder.decode(input),
            Self::Whole => decode_whole(input, FRAME_BYTES_MAX),
        }
    }
}

/// Takes a number from the front of `input`, if it is there in full.
fn take_number(input: &mut BytesMut) -> Option<u64> {
    (size_of::<u64>() <= input.len()).then(|| input.get_u64())
}

/// Takes `length` bytes from the front of `input`, if they are there.
fn take_bytes(input: &mut BytesMut, length: usize) -> Option<Bytes> {
    (length <= input.len()).then(|| input.split_to(length).freeze())
}

/// A length that a peer named, if it is at most `max`.
fn checked_length(bytes: u64, max: u64) -> Result<usize, DecodeError> {
    match usize::try_from(bytes) {
        Ok(length) if bytes <= max => Ok(length),
        _ => Err(DecodeError::TooLarge { bytes }),
    }
}

#[cfg(test)]
mod tests;
