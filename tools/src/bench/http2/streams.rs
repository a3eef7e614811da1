//! Calls under way on one connection, and the messages in what they receive.
//!
//! Decides how a stream's bytes become messages: whole ones for whoever reads them, or a count for
//! answers too large to keep. Called by `connection` only; `Handler` is for everyone.

use std::collections::HashMap;

use anyhow::{Context, ensure};

/// Bytes in front of every gRPC message: a flag and the length.
pub(super) const PREFIX_BYTES: usize = 5;

/// A call on its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub(super) u32);

/// What is wanted of a call's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Every message, whole.
    Messages,
    /// Only how many bytes of messages there are; nothing is kept.
    Count,
}

/// Who hears of answers.
pub trait Handler {
    /// A whole message arrived. Never called for [`Answer::Count`].
    fn message(&mut self, stream: StreamId, message: &[u8]);

    /// So many more bytes of messages arrived. Called for [`Answer::Count`] only.
    fn counted(&mut self, stream: StreamId, bytes: u64) {
        let _unused = (stream, bytes);
    }

    /// The call is over, with its gRPC status and text.
    fn ended(&mut self, stream: StreamId, status: u32, text: &str);
}

/// One call.
#[derive(Debug)]
pub(super) struct Stream {
    answer: Answer,
    /// The part of a message that has arrived.
    partial: Vec<u8>,
    /// How many bytes we may send.
    pub(super) window: i64,
    /// Bytes received since the window was last renewed.
    pub(super) unrenewed: u32,
}

impl Stream {
    pub(super) const fn new(answer: Answer, window: i64) -> Self {
        Self { answer, partial: Vec::new(), window, unrenewed: 0 }
    }

    /// Hands on the messages that `bytes` complete.
    pub(super) fn receive(
        &mut self,
        id: StreamId,
        bytes: &[u8],
        handler: &mut impl Handler,
    ) -> anyhow::Result<()> {
        if self.answer == Answer::Count {
            handler.counted(id, bytes.len() as u64);
            return Ok(());
        }
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(bytes);
            let mut partial = std::mem::take(&mut self.partial);
            let used = whole_messages(&partial, id, handler)?;
            partial.drain(..used);
            self.partial = partial;
            return Ok(());
        }
        let used = whole_messages(bytes, id, handler)?;
        self.partial.extend_from_slice(&bytes[used..]);
        Ok(())
    }
}

/// Hands on every whole message at the beginning of `bytes`; returns how many bytes those were.
fn whole_messages(bytes: &[u8], id: StreamId, handler: &mut impl Handler) -> anyhow::Result<usize> {
    let mut used = 0;
    while let Some((prefix, rest)) = bytes[used..].split_first_chunk::<PREFIX_BYTES>() {
        let [flag, length @ ..] = *prefix;
        ensure!(flag == 0, "a compressed message was not asked for");
        let length = usize::try_from(u32::from_be_bytes(length))?;
        let Some(message) = rest.get(..length) else { break };
        handler.message(id, message);
        used += PREFIX_BYTES + length;
    }
    Ok(used)
}

/// All calls of one connection.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: HashMap<u32, Stream>,
}

impl Streams {
    pub(super) fn open(&mut self, id: StreamId, stream: Stream) {
        let before = self.open.insert(id.0, stream);
        assert!(before.is_none(), "stream {} is opened twice", id.0);
    }

    pub(super) fn get(&mut self, id: u32) -> Option<&mut Stream> {
        self.open.get_mut(&id)
    }

    pub(super) fn all(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.open.values_mut()
    }

    pub(super) fn close(&mut self, id: u32) -> Option<Stream> {
        self.open.remove(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}

/// Writes a message with its prefix.
pub(super) fn prefixed(message: &[u8], out: &mut Vec<u8>) -> anyhow::Result<()> {
    let length = u32::try_from(message.len()).context("a message of 4 GiB")?;
    out.push(0);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(message);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Answer, Handler, Stream, StreamId, prefixed};

    #[derive(Default)]
    struct Seen {
        messages: Vec<Vec<u8>>,
        counted: u64,
    }

    impl Handler for Seen {
        fn message(&mut self, _stream: StreamId, message: &[u8]) {
            self.messages.push(message.to_vec());
        }

        fn counted(&mut self, _stream: StreamId, bytes: u64) {
            self.counted += bytes;
        }

        fn ended(&mut self, _stream: StreamId, _status: u32, _text: &str) {}
    }

    #[test]
    fn messages_are_whole_however_frames_cut_them() {
        let expected: Vec<Vec<u8>> = (0..5_u8).map(|n| vec![n; usize::from(n) * 7]).collect();
        let mut bytes = Vec::new();
        for message in &expected {
            prefixed(message, &mut bytes).unwrap();
        }
        for cut in 1..bytes.len() {
            let mut stream = Stream::new(Answer::Messages, 0);
            let mut seen = Seen::default();
            for part in bytes.chunks(cut) {
                stream.receive(StreamId(1), part, &mut seen).unwrap();
            }
            assert_eq!(seen.messages, expected, "in parts of {cut} bytes");
        }
    }

    #[test]
    fn counted_answers_keep_nothing() {
        let mut stream = Stream::new(Answer::Count, 0);
        let mut seen = Seen::default();
        stream.receive(StreamId(1), &[0; 100], &mut seen).unwrap();
        assert_eq!((seen.counted, seen.messages.len()), (100, 0));
    }
}
