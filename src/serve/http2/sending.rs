//! What a connection sends: answers, in the order and in the pieces that the client has room for.
//!
//! Decides what leaves now and what waits. Content beyond the windows of the client, or beyond what
//! the output may hold, stays with its stream; streams that wait take turns. The other half of
//! [`Connection`].
//!
//! ```text
//!   answer, send --> rest of the stream --room in both windows, output not full--> output
//!                         ^                                                          |
//!                         `--- queue of those that wait <--- window update, resume --+
//! ```
//!
//! Invariants
//! - S1 Whoever has something left to send and room in its own window stands in the queue.
//! - S2 Content leaves only into an output of less than [`OUTPUT_BYTES_MAX`].

use bytes::Bytes;

use super::{
    connection::Connection,
    frame::{self, Code, Last},
    streams::{End, Key},
};

/// Content stops when so much waits to be written: what a socket takes at once.
pub(in crate::serve) const OUTPUT_BYTES_MAX: usize = 256 << 10;

/// What a stream sends before the next one has its turn.
const TURN_BYTES: usize = 64 << 10;

/// Places in the queue of those that wait whose streams have ended.
const WAITING_ENDED_MAX: usize = 1000;

/// What came of an attempt to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// Everything.
    All,
    /// The stream's own window is full.
    StreamFull,
    /// Nobody may send.
    Full,
    /// It is another stream's turn.
    Turn,
}

impl Connection {
    /// What is to be written; whoever writes takes it from here.
    pub(in crate::serve) const fn output(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Answers a gRPC call with one message and ends it.
    pub(in crate::serve) fn answer(&mut self, key: Key, message: Bytes) {
        self.send(key, message);
        self.finish(key, End::Ok);
    }

    /// Begins the answer of a gRPC call.
    pub(in crate::serve) fn begin(&mut self, key: Key) {
        let Some(stream) = self.streams.get(key) else { return };
        if !std::mem::replace(&mut stream.answered, true) {
            self.scratch.clear();
            self.encoder.grpc_head(&mut self.scratch);
            self.put_block(key, Last::No);
        }
    }

    /// Refuses what would be a gRPC call if it were not wrong from the start.
    pub(in crate::serve) fn refuse(&mut self, key: Key, status: &str, code: &str, text: &str) {
        let Some(stream) = self.streams.get(key) else { return };
        let heard_all = stream.heard_all;
        self.scratch.clear();
        self.encoder.status(status, &mut self.scratch);
        self.encoder.field(b"content-type", b"application/grpc", &mut self.scratch);
        self.encoder.grpc_failure(code, text, &mut self.scratch);
        self.put_block(key, Last::Yes);
        self.close(key, heard_all);
    }

    /// Answers a plain request, but for its content.
    pub(in crate::serve) fn begin_plain<'a>(
        &mut self,
        key: Key,
        status: &str,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) {
        let Some(stream) = self.streams.get(key) else { return };
        stream.answered = true;
        self.scratch.clear();
        self.encoder.status(status, &mut self.scratch);
        for (name, value) in fields {
            self.encoder.field(name, value, &mut self.scratch);
        }
        self.put_block(key, Last::No);
    }

    /// Whether a stream may be given more to send. If not, [`super::Event::Room`] follows.
    pub(in crate::serve) fn has_room(&mut self, key: Key) -> bool {
        let full = OUTPUT_BYTES_MAX <= self.out.len();
        let Some(stream) = self.streams.get(key) else { return false };
        if stream.rest.is_empty() && full && !std::mem::replace(&mut stream.queued, true) {
            self.waiting.push_back(key);
        }
        stream.rest.is_empty() && !full
    }

    /// Sends content, after the start of a gRPC answer if nothing was sent yet.
    ///
    /// # Panics
    /// If there is content of the stream that waits already.
    pub(in crate::serve) fn send(&mut self, key: Key, data: Bytes) {
        self.begin(key);
        let Some(stream) = self.streams.get(key) else { return };
        assert!(stream.rest.is_empty(), "{} bytes of {key:?} wait", stream.rest.len());
        self.unsent_bytes += data.len();
        stream.rest = data;
        if !self.waiting.is_empty() {
            // Others came first.
            if !std::mem::replace(&mut stream.queued, true) {
                self.waiting.push_back(key);
            }
            return self.resume();
        }
        match self.put_rest(key, usize::MAX) {
            Sent::All | Sent::StreamFull => {}
            Sent::Full | Sent::Turn => self.wait(key),
        }
    }

    /// Ends the answer, once all of it has been sent.
    pub(in crate::serve) fn finish(&mut self, key: Key, end: End) {
        let Some(stream) = self.streams.get(key) else { return };
        assert!(stream.end.is_none(), "{key:?} ends twice");
        let waits = !stream.rest.is_empty();
        stream.end = Some(end);
        if !waits {
            self.put_end(key);
        }
    }

    /// Sends what there is room for. To be called when output has been written.
    pub(in crate::serve) fn resume(&mut self) {
        while let Some(key) = self.waiting.pop_front() {
            let Some(stream) = self.streams.get(key) else { continue };
            let idle = stream.rest.is_empty();
            stream.queued = false;
            let sent = if idle && OUTPUT_BYTES_MAX <= self.out.len() {
                Sent::Full
            } else {
                self.put_rest(key, TURN_BYTES)
            };
            match sent {
                Sent::All => self.emptied(key),
                Sent::StreamFull => {}
                Sent::Turn => self.wait(key),
                Sent::Full => {
                    self.requeue(key);
                    return;
                }
            }
        }
    }

    /// Everything of a stream has been sent after a wait.
    fn emptied(&mut self, key: Key) {
        match self.streams.get(key) {
            Some(stream) if stream.end.is_some() => self.put_end(key),
            Some(_) => self.emptied.push_back(key),
            None => {}
        }
    }

    /// A stream that waits has ended. Its place in the queue goes when many such places have
    /// gathered.
    pub(super) fn forget_waiting(&mut self) {
        self.waiting_ended += 1;
        if WAITING_ENDED_MAX < self.waiting_ended {
            self.waiting_ended = 0;
            self.waiting.retain(|key| self.streams.get(*key).is_some());
        }
    }

    fn wait(&mut self, key: Key) {
        let stream = self.streams.get(key).expect("who sends is open");
        if !std::mem::replace(&mut stream.queued, true) {
            self.waiting.push_back(key);
        }
    }

    /// As [`Connection::wait`], but at the head of the queue: it was its turn.
    fn requeue(&mut self, key: Key) {
        let stream = self.streams.get(key).expect("who sends is open");
        stream.queued = true;
        self.waiting.push_front(key);
    }

    /// Sends what a stream has left, but about `bytes_max` at most.
    fn put_rest(&mut self, key: Key, bytes_max: usize) -> Sent {
        let Some(stream) = self.streams.get(key) else { return Sent::All };
        let mut left = bytes_max;
        loop {
            if stream.rest.is_empty() {
                return Sent::All;
            }
            if stream.room <= 0 {
                return Sent::StreamFull;
            }
            if self.room <= 0 || OUTPUT_BYTES_MAX <= self.out.len() {
                return Sent::Full;
            }
            if left == 0 {
                return Sent::Turn;
            }
            let room = usize::try_from(stream.room.min(self.room)).unwrap_or(usize::MAX);
            let bytes =
                stream.rest.len().min(room).min(self.peer_payload_bytes_max).min(TURN_BYTES);
            let data = stream.rest.split_to(bytes);
            frame::put_data(key.id, &data, Last::No, &mut self.out);
            let sent = i64::try_from(bytes).expect("frames are small");
            stream.room -= sent;
            self.room -= sent;
            self.unsent_bytes -= bytes;
            self.limits.forgive();
            left = left.saturating_sub(bytes);
        }
    }

    /// Writes how a stream ends, and forgets it.
    fn put_end(&mut self, key: Key) {
        let stream = self.streams.get(key).expect("who ends is open");
        let end = stream.end.take().expect("an end was given");
        let (answered, heard_all) = (stream.answered, stream.heard_all);
        self.scratch.clear();
        match end {
            End::Content => frame::put_data(key.id, &[], Last::Yes, &mut self.out),
            End::Ok => {
                self.begin(key);
                self.scratch.clear();
                self.encoder.grpc_ok(&mut self.scratch);
                self.put_block(key, Last::Yes);
            }
            End::Failure { code, text } => {
                if !answered {
                    self.encoder.grpc_head(&mut self.scratch);
                }
                self.encoder.grpc_failure(code, &text, &mut self.scratch);
                self.put_block(key, Last::Yes);
            }
        }
        self.close(key, heard_all);
    }

    /// Forgets a stream on which everything has been sent.
    fn close(&mut self, key: Key, heard_all: bool) {
        if !heard_all {
            // The client need not send what nobody reads.
            frame::put_reset(key.id, Code::NO_ERROR, &mut self.out);
        }
        self.forget(key);
    }

    fn put_block(&mut self, key: Key, last: Last) {
        frame::put_headers(key.id, &self.scratch, last, &mut self.out);
        self.limits.forgive();
    }

    /// Ends a stream without an answer.
    pub(in crate::serve) fn reset(&mut self, key: Key, code: Code) {
        if self.streams.get(key).is_some() {
            frame::put_reset(key.id, code, &mut self.out);
            self.forget(key);
        }
    }

    /// Asks for a sign of life.
    pub(in crate::serve) fn put_ping(&mut self, payload: [u8; 8]) {
        frame::put_ping(payload, &mut self.out);
    }
}
