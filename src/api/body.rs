//! What goes back to a client that takes more than one piece: large reads and streams.
//!
//! Decides how such an answer is cut and how it ends. A large read is copied into bounded pieces
//! while the connection takes them; a stream hands over what its call queued. The call of a stream
//! runs whenever the connection looks for the next piece, so a stream needs no task, and a client
//! that takes nothing holds its call back. Built by `dispatch`, polled by `serve`.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::Code;

use super::{
    answer::{Payload, Reply, Rows, put_row_head},
    codec::count_sent,
    metrics::{self, Counters},
    rpc::Rpc,
    status::{Failure, Refusal},
    watch::Conversation,
};

/// A large answer leaves in pieces of about this size: one HTTP/2 window's worth at a time, so
/// that a slow client holds a piece and not the whole answer.
const PIECE_BYTES: usize = 64 << 10;

/// The most that a tag and a length take.
const ROW_HEAD_BYTES_MAX: usize = 11;

/// Messages of a stream, or pieces of them, that may wait for the connection. More only adds memory per slow client.
const STREAM_MESSAGES_MAX: usize = 4;

/// A part of an answer.
#[derive(Debug)]
pub enum Piece {
    /// Bytes of gRPC messages.
    Data(Bytes),
    /// The end, and how the call ended.
    End(Result<(), Failure>),
}

/// An answer in pieces.
#[derive(Debug)]
pub enum Body {
    /// A large read.
    Rows(Rows),
    /// Nothing more of a call that succeeded.
    Done,
    /// Messages as a call produces them.
    Stream(Stream),
    /// A conversation about events.
    Watch(Box<Conversation>),
}

type Run = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// A call that queues messages while it runs.
pub struct Stream {
    run: Option<Run>,
    result: Result<(), Failure>,
    receiver: mpsc::Receiver<Bytes>,
}

/// Where a call queues its messages.
#[derive(Clone, Debug)]
pub struct Outbox {
    sender: mpsc::Sender<Bytes>,
    counters: &'static Counters,
}

/// The client has gone, or the connection with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

impl From<Gone> for Failure {
    fn from(_: Gone) -> Self {
        Refusal::ContextCanceled.into()
    }
}

impl Body {
    /// The body that `run` fills; its messages count as answers of `rpc`.
    pub fn stream<R>(rpc: Rpc, run: impl FnOnce(Outbox) -> R) -> Self
    where
        R: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(STREAM_MESSAGES_MAX);
        let run = run(Outbox { sender, counters: metrics::of(rpc) });
        Self::Stream(Stream { run: Some(Box::pin(run)), result: Ok(()), receiver })
    }

    /// The next piece. Not to be called after the end.
    pub fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Piece> {
        match self {
            Self::Rows(rows) => {
                let (bytes, done) = next_rows(rows);
                if done {
                    *self = Self::Done;
                }
                Poll::Ready(Piece::Data(bytes))
            }
            Self::Done => Poll::Ready(Piece::End(Ok(()))),
            Self::Stream(stream) => stream.poll_piece(context),
            Self::Watch(conversation) => conversation.poll_piece(context),
        }
    }
}

impl Stream {
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Piece> {
        if let Ok(message) = self.receiver.try_recv() {
            return Poll::Ready(Piece::Data(message));
        }
        if let Some(run) = &mut self.run
            && let Poll::Ready(result) = run.as_mut().poll(context)
        {
            self.result = result;
            self.run = None;
        }
        let next = match self.receiver.poll_recv(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(next) => next,
        };
        match (next, &mut self.run) {
            (Some(message), _) => Poll::Ready(Piece::Data(message)),
            (None, None) => Poll::Ready(Piece::End(std::mem::replace(&mut self.result, Ok(())))),
            // Its outbox is gone, but it has not ended yet.
            (None, Some(_)) => Poll::Pending,
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("runs", &self.run.is_some()).finish_non_exhaustive()
    }
}

impl Outbox {
    /// Queues one message when there is room.
    ///
    /// # Errors
    /// - [`Gone`] if nobody will read it.
    pub async fn send(&self, reply: Reply) -> Result<(), Gone> {
        match self.count(reply) {
            Payload::Whole(message) => self.sender.send(message).await.map_err(|_unsent| Gone),
            Payload::Rows(mut rows) => loop {
                let (piece, done) = next_rows(&mut rows);
                self.sender.send(piece).await.map_err(|_unsent| Gone)?;
                if done {
                    return Ok(());
                }
            },
        }
    }

    /// As [`Outbox::send`], from a thread that may block.
    ///
    /// # Errors
    /// - [`Gone`] if nobody will read it.
    pub fn send_blocking(&self, reply: Reply) -> Result<(), Gone> {
        let message = self.count(reply).into_bytes();
        self.sender.blocking_send(message).map_err(|_unsent| Gone)
    }

    fn count(&self, reply: Reply) -> Payload {
        self.counters.send();
        count_sent(reply.message_bytes);
        reply.payload
    }

    /// Waits until the client has gone.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }
}

/// The next piece of a large read, and whether it was the last.
fn next_rows(rows: &mut Rows) -> (Bytes, bool) {
    let mut out = Vec::with_capacity(PIECE_BYTES);
    out.extend_from_slice(&std::mem::take(&mut rows.head));
    while let Some(row) = rows.rows.as_slice().first() {
        // A buffer that grows would be copied once more.
        if !out.is_empty() && PIECE_BYTES < out.len() + ROW_HEAD_BYTES_MAX + row.len() {
            return (out.into(), false);
        }
        put_row_head(2, row, &mut out);
        out.extend_from_slice(row);
        drop(rows.rows.next());
    }
    out.extend_from_slice(&rows.tail);
    (out.into(), true)
}

/// The number of a code, in digits.
#[must_use]
pub const fn code_digits(code: Code) -> &'static str {
    match code {
        Code::Ok => "0",
        Code::Cancelled => "1",
        Code::Unknown => "2",
        Code::InvalidArgument => "3",
        Code::DeadlineExceeded => "4",
        Code::NotFound => "5",
        Code::AlreadyExists => "6",
        Code::PermissionDenied => "7",
        Code::ResourceExhausted => "8",
        Code::FailedPrecondition => "9",
        Code::Aborted => "10",
        Code::OutOfRange => "11",
        Code::Unimplemented => "12",
        Code::Internal => "13",
        Code::Unavailable => "14",
        Code::DataLoss => "15",
        Code::Unauthenticated => "16",
    }
}

/// gRPC's encoding of a text: printable ASCII as it is, the rest and `%` as `%XX`.
#[must_use]
pub fn percent_encoded(text: &str) -> std::borrow::Cow<'_, str> {
    let plain = |byte: &u8| matches!(byte, b' '..=b'~') && *byte != b'%';
    if text.as_bytes().iter().all(plain) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        if plain(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for digit in [byte >> 4, byte & 0xf] {
                let digit = char::from_digit(digit.into(), 16).expect("four bits are a digit");
                out.push(digit.to_ascii_uppercase());
            }
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn pieces(mut body: Body) -> (Vec<Bytes>, Result<(), Failure>) {
        let mut context = Context::from_waker(Waker::noop());
        let mut data = Vec::new();
        loop {
            match body.poll_piece(&mut context) {
                Poll::Ready(Piece::Data(bytes)) => data.push(bytes),
                Poll::Ready(Piece::End(result)) => return (data, result),
                Poll::Pending => panic!("the body waits"),
            }
        }
    }

    #[test]
    fn large_read_leaves_in_bounded_pieces_and_whole() {
        let row = Bytes::from(vec![7; 1000]);
        let rows = Rows {
            head: Bytes::from_static(b"head"),
            rows: vec![row.clone(); 300].into_iter(),
            tail: Bytes::from_static(b"tail"),
        };
        let (data, result) = pieces(Body::Rows(rows));
        assert_eq!(result, Ok(()));
        assert!(data.iter().all(|bytes| bytes.len() < PIECE_BYTES + 2000), "too large a piece");
        assert_eq!(data.concat().len(), 4 + 300 * (3 + row.len()) + 4);
        assert!(data.concat().ends_with(b"tail"));
    }

    #[test]
    fn stream_ends_with_the_result_of_its_call_after_all_messages() {
        let body = Body::stream(Rpc::Observe, async |outbox| {
            for _ in 0..10 {
                outbox.send(Reply::encoded(b"m")).await?;
            }
            Err(Refusal::NoLeader.into())
        });
        let (data, result) = pieces(body);
        assert_eq!(data, [&b"\0\0\0\0\x01m"[..]; 10], "more than the queue holds");
        assert_eq!(result, Err(Refusal::NoLeader.into()));
    }

    #[test]
    fn text_is_encoded_where_grpc_asks_for_it() {
        assert_eq!(percent_encoded("plain: \"x\""), "plain: \"x\"");
        assert_eq!(percent_encoded("50%\u{a0}"), "50%25%C2%A0");
    }
}
