//! What goes back to a client: the body of every answer of the client port.
//!
//! Decides how an answer becomes HTTP frames. A unary answer is a data frame and trailers; a failed
//! one has no body at all (its status stands in the headers, as grpc-go sends it); a large read is
//! copied into bounded frames while the connection takes them; a stream hands over what its task
//! queued. No variant but the one for tonic's own streams allocates per frame. Built by `dispatch`
//! and `http`, polled by hyper.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;
use tonic::Code;

use super::{
    answer::{Payload, Reply, Rows, put_row_head},
    codec::count_sent,
    metrics::{self, Counters},
    rpc::Rpc,
    status::{Failure, Refusal},
};

/// A large answer leaves in frames of about this size: one HTTP/2 window's worth at a time, so
/// that a slow client holds a frame and not the whole answer.
const FRAME_BYTES: usize = 64 << 10;

/// Messages of a stream that may wait for the connection. More only adds memory per slow client.
const STREAM_MESSAGES_MAX: usize = 4;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// Nothing.
    Empty,
    /// Plain HTTP content.
    Content(Bytes),
    /// A gRPC message and the trailers after it.
    Message(Payload),
    /// The trailers of a successful gRPC call.
    Trailers,
    /// gRPC messages as a task produces them, and the trailers that it ends with.
    Stream(mpsc::Receiver<Result<Bytes, Failure>>),
    /// A stream of tonic's.
    Tonic(tonic::body::Body),
}

/// The producing end of [`Body::Stream`].
#[derive(Clone, Debug)]
pub struct Outbox {
    sender: mpsc::Sender<Result<Bytes, Failure>>,
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

/// A stream's body and the end to fill it from; its messages count as answers of `rpc`.
#[must_use]
pub fn stream(rpc: Rpc) -> (Outbox, Body) {
    let (sender, receiver) = mpsc::channel(STREAM_MESSAGES_MAX);
    (Outbox { sender, counters: metrics::of(rpc) }, Body::Stream(receiver))
}

impl Outbox {
    /// Queues one message when there is room.
    ///
    /// # Errors
    /// - [`Gone`] if nobody will read it.
    pub async fn send(&self, reply: Reply) -> Result<(), Gone> {
        let message = self.count(reply);
        self.sender.send(Ok(message)).await.map_err(|_unsent| Gone)
    }

    /// As [`Outbox::send`], from a thread that may block.
    ///
    /// # Errors
    /// - [`Gone`] if nobody will read it.
    pub fn send_blocking(&self, reply: Reply) -> Result<(), Gone> {
        let message = self.count(reply);
        self.sender.blocking_send(Ok(message)).map_err(|_unsent| Gone)
    }

    fn count(&self, reply: Reply) -> Bytes {
        self.counters.send();
        count_sent(reply.message_bytes);
        reply.into_bytes()
    }

    /// Ends the stream with a failure. Without it, dropping the outbox ends it well.
    pub async fn fail(&self, failure: Failure) {
        // A client that has gone needs no status.
        drop(self.sender.send(Err(failure)).await);
    }

    /// Waits until the client has gone.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let frame = match &mut *self {
            Self::Empty => None,
            Self::Content(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Some(Frame::data(bytes))
            }
            Self::Message(payload) => {
                let (bytes, done) = next_bytes(payload);
                if done {
                    *self = Self::Trailers;
                }
                Some(Frame::data(bytes))
            }
            Self::Trailers => {
                *self = Self::Empty;
                Some(Frame::trailers(ok_trailers()))
            }
            Self::Stream(receiver) => {
                let next = match receiver.poll_recv(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(next) => next,
                };
                Some(match next {
                    Some(Ok(message)) => Frame::data(message),
                    Some(Err(failure)) => {
                        *self = Self::Empty;
                        let mut trailers = HeaderMap::with_capacity(2);
                        put_status(&failure, &mut trailers);
                        Frame::trailers(trailers)
                    }
                    None => {
                        *self = Self::Empty;
                        Frame::trailers(ok_trailers())
                    }
                })
            }
            Self::Tonic(body) => return Pin::new(body).poll_frame(context),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Tonic(body) => body.is_end_stream(),
            Self::Content(_) | Self::Message(_) | Self::Trailers | Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Content(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Tonic(body) => body.size_hint(),
            Self::Message(_) | Self::Trailers | Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// The next piece of a message, and whether it was the last.
fn next_bytes(payload: &mut Payload) -> (Bytes, bool) {
    match payload {
        Payload::Whole(bytes) => (std::mem::take(bytes), true),
        Payload::Rows(rows) => next_rows(rows),
    }
}

fn next_rows(rows: &mut Rows) -> (Bytes, bool) {
    let mut out = BytesMut::with_capacity(FRAME_BYTES);
    out.extend_from_slice(&std::mem::take(&mut rows.head));
    while out.len() < FRAME_BYTES {
        let Some(row) = rows.rows.next() else {
            out.extend_from_slice(&rows.tail);
            return (out.freeze(), true);
        };
        put_row_head(2, &row, &mut out);
        out.extend_from_slice(&row);
    }
    (out.freeze(), false)
}

/// The trailers of a call that succeeded.
pub(super) fn ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

/// Writes the code and the text of `failure` as gRPC has them.
pub(super) fn put_status(failure: &Failure, headers: &mut HeaderMap) {
    headers.insert(GRPC_STATUS, code_value(failure.code));
    if let Ok(text) = HeaderValue::from_str(&percent_encoded(&failure.text)) {
        headers.insert(GRPC_MESSAGE, text);
    }
}

const fn code_value(code: Code) -> HeaderValue {
    HeaderValue::from_static(match code {
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
    })
}

/// gRPC's encoding of a text: printable ASCII as it is, the rest and `%` as `%XX`.
fn percent_encoded(text: &str) -> std::borrow::Cow<'_, str> {
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

    use http_body::Body as _;

    use super::*;

    fn frames(mut body: Body) -> Vec<Frame<Bytes>> {
        let mut context = Context::from_waker(Waker::noop());
        let mut frames = Vec::new();
        loop {
            match Pin::new(&mut body).poll_frame(&mut context) {
                Poll::Ready(Some(frame)) => frames.push(frame.expect("these bodies do not fail")),
                Poll::Ready(None) => return frames,
                Poll::Pending => panic!("the body waits"),
            }
        }
    }

    #[test]
    fn large_read_leaves_in_bounded_frames_and_whole() {
        let row = Bytes::from(vec![7; 1000]);
        let rows = Rows {
            head: Bytes::from_static(b"head"),
            rows: vec![row.clone(); 300].into_iter(),
            tail: Bytes::from_static(b"tail"),
        };
        let frames = frames(Body::Message(Payload::Rows(rows)));
        let data: Vec<Bytes> =
            frames.into_iter().filter_map(|frame| frame.into_data().ok()).collect();
        assert!(data.iter().all(|bytes| bytes.len() < FRAME_BYTES + 2000), "too large a frame");
        assert_eq!(data.concat().len(), 4 + 300 * (3 + row.len()) + 4);
        assert!(data.concat().ends_with(b"tail"));
    }

    #[test]
    fn stream_ends_with_the_status_it_was_given() {
        let (outbox, body) = stream(Rpc::Observe);
        outbox.sender.try_send(Ok(Bytes::from_static(b"m"))).expect("there is room");
        outbox.sender.try_send(Err(Refusal::NoLeader.into())).expect("there is room");
        let frames = frames(body);
        assert_eq!(frames.len(), 2, "a message and trailers");
        let trailers = frames[1].trailers_ref().expect("the last frame");
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["grpc-message"], "etcdserver: no leader");
    }

    #[test]
    fn text_is_encoded_where_grpc_asks_for_it() {
        assert_eq!(percent_encoded("plain: \"x\""), "plain: \"x\"");
        assert_eq!(percent_encoded("50%\u{a0}"), "50%25%C2%A0");
    }
}
