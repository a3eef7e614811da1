//! A message behind its length.
//!
//! Decides the form in which the message stream and the start of a snapshot have messages.

use bytes::{Buf, BufMut, BytesMut};
use prost::Message as _;
use proto::raftpb::Message;

use super::{DecodeError, checked_length, take_bytes};

/// Bytes of the length.
const LENGTH_BYTES: usize = size_of::<u64>();

/// Appends the length of `message` and the message to `output`.
pub(crate) fn encode_whole(message: &Message, output: &mut BytesMut) {
    let length = message.encoded_len();
    output.reserve(LENGTH_BYTES + length);
    output.put_u64(length as u64);
    message.encode_raw(output);
}

/// Takes a message of at most `bytes_max` bytes from the front of `input`; `None` if it has not come
/// in full.
///
/// # Errors
/// - [`DecodeError`] if it is too large, or no message.
pub(crate) fn decode_whole(
    input: &mut BytesMut,
    bytes_max: u64,
) -> Result<Option<Message>, DecodeError> {
    let Some(mut head) = input.get(..LENGTH_BYTES) else { return Ok(None) };
    let length = checked_length(head.get_u64(), bytes_max)?;
    if input.len() - LENGTH_BYTES < length {
        return Ok(None);
    }
    input.advance(LENGTH_BYTES);
    let bytes = take_bytes(input, length).expect("its length was just looked at");
    Message::decode(bytes).map(Some).map_err(DecodeError::Malformed)
}
