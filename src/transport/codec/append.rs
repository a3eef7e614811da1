//! The stream of appends, where what both ends know is left out.
//!
//! Decides when an append may be sent in short, and puts such a one together again. Both ends
//! remember where the last append ended, so each connection has its own pair.

use std::mem;

use bytes::{Buf, BufMut, BytesMut};
use prost::Message as _;
use proto::raftpb::{Entry, Message, MessageType};

use super::{DecodeError, FRAME_BYTES_MAX, checked_length, take_bytes, take_number};
use crate::{
    model::MemberId,
    transport::kind::{is_link_heartbeat, link_heartbeat},
};

const LINK_HEARTBEAT: u8 = 0;
const ENTRIES: u8 = 1;
const MESSAGE: u8 = 2;

/// Where the appends of a connection stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    term: u64,
    /// Of the last entry.
    index: u64,
}

impl Position {
    fn after(message: &Message) -> Self {
        let index = message.entries.last().map_or(message.index(), Entry::index);
        Self { term: message.term(), index }
    }
}

/// The sending end.
#[derive(Debug, Default)]
pub(crate) struct AppendEncoder {
    position: Position,
}

impl AppendEncoder {
    pub(super) fn encode(&mut self, message: &Message, output: &mut BytesMut) {
        if is_link_heartbeat(message) {
            output.put_u8(LINK_HEARTBEAT);
        } else if self.goes_on(message) {
            output.put_u8(ENTRIES);
            output.put_u64(message.entries.len() as u64);
            for entry in &message.entries {
                let length = entry.encoded_len();
                output.reserve(size_of::<u64>() + length);
                output.put_u64(length as u64);
                entry.encode_raw(output);
            }
            output.put_u64(message.commit());
            self.position.index += message.entries.len() as u64;
        } else {
            output.put_u8(MESSAGE);
            super::encode_whole(message, output);
            self.position = Position::after(message);
        }
    }

    /// Whether the receiver can tell where `message` begins.
    fn goes_on(&self, message: &Message) -> bool {
        let begins = Position { term: message.log_term(), index: message.index() };
        self.position == begins && message.log_term() == message.term()
    }
}

/// The receiving end.
#[derive(Debug)]
pub(crate) struct AppendDecoder {
    local: MemberId,
    remote: MemberId,
    position: Position,
    step: Step,
    /// The append of which parts have come.
    message: Message,
    /// What the frame may still take, counting what an entry takes in memory.
    bytes_left: u64,
}

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Kind,
    Count,
    /// The length of an entry, of which `left` are missing.
    EntryLength {
        left: u64,
    },
    /// An entry, the first of `left`.
    Entry {
        left: u64,
        length: usize,
    },
    Commit,
    MessageLength,
    Message {
        length: usize,
    },
}

impl AppendDecoder {
    pub(super) fn new(local: MemberId, remote: MemberId) -> Self {
        Self {
            local,
            remote,
            position: Position::default(),
            step: Step::Kind,
            message: Message::default(),
            bytes_left: 0,
        }
    }

    pub(super) fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Message>, DecodeError> {
        loop {
            let next = match self.step {
                Step::Kind => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    self.bytes_left = FRAME_BYTES_MAX;
                    match input.get_u8() {
                        LINK_HEARTBEAT => return Ok(Some(link_heartbeat())),
                        ENTRIES => Step::Count,
                        MESSAGE => Step::MessageLength,
                        kind => return Err(DecodeError::Unknown { kind }),
                    }
                }
                Step::Count => {
                    let Some(left) = take_number(input) else { return Ok(None) };
                    self.message = self.begin();
                    entry_or_commit(left)
                }
                Step::EntryLength { left } => {
                    let Some(bytes) = take_number(input) else { return Ok(None) };
                    Step::Entry { left, length: self.claim(bytes)? }
                }
                Step::Entry { left, length } => {
                    let Some(bytes) = take_bytes(input, length) else { return Ok(None) };
                    let entry = Entry::decode(bytes).map_err(DecodeError::Malformed)?;
                    self.message.entries.push(entry);
                    self.position.index = self.position.index.wrapping_add(1);
                    entry_or_commit(left - 1)
                }
                Step::Commit => {
                    let Some(commit) = take_number(input) else { return Ok(None) };
                    self.step = Step::Kind;
                    self.message.commit = Some(commit);
                    return Ok(Some(mem::take(&mut self.message)));
                }
                Step::MessageLength => {
                    let Some(bytes) = take_number(input) else { return Ok(None) };
                    Step::Message { length: checked_length(bytes, FRAME_BYTES_MAX)? }
                }
                Step::Message { length } => {
                    let Some(bytes) = take_bytes(input, length) else { return Ok(None) };
                    self.step = Step::Kind;
                    let message = Message::decode(bytes).map_err(DecodeError::Malformed)?;
                    self.position = Position::after(&message);
                    return Ok(Some(message));
                }
            };
            self.step = next;
        }
    }

    /// An append that goes on where the last one ended, without its entries.
    fn begin(&self) -> Message {
        Message {
            r#type: Some(MessageType::MsgApp.into()),
            from: Some(self.remote.0),
            to: Some(self.local.0),
            term: Some(self.position.term),
            log_term: Some(self.position.term),
            index: Some(self.position.index),
            ..Message::default()
        }
    }

    /// Counts an entry of `bytes` bytes against the limit of the frame. Even an empty one takes
    /// memory, so there are not too many of these either.
    fn claim(&mut self, bytes: u64) -> Result<usize, DecodeError> {
        let length = checked_length(bytes, FRAME_BYTES_MAX)?;
        let taken = bytes + size_of::<Entry>() as u64;
        self.bytes_left =
            self.bytes_left.checked_sub(taken).ok_or(DecodeError::TooLarge { bytes })?;
        Ok(length)
    }
}

const fn entry_or_commit(left: u64) -> Step {
    if left == 0 { Step::Commit } else { Step::EntryLength { left } }
}
