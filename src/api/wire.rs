//! gRPC's framing of requests, with grpc-go's limits and texts.
//!
//! Decides what a request's bytes have to look like: a flag, a length, a message. A message that
//! arrives within one HTTP/2 frame is a slice of it and is never copied; prost then shares its
//! keys and values out of the same buffer. Called by `dispatch` for unary requests and by the
//! stream handlers for each message of theirs.
//!
//! Deliberately absent: compression. A compressed message is refused with grpc-go's text.
//!
//! Source: grpc-go `rpc_util.go`.

use std::{fmt::Display, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt;
use prost::Message;
use tonic::Code;

use super::{answer::PREFIX_BYTES, codec::count_received, status::Failure};

/// The messages of one request, in order.
#[derive(Debug)]
pub struct Messages<B> {
    body: B,
    /// What the last HTTP/2 frame held beyond the last message.
    rest: Bytes,
    message_bytes_max: usize,
    encoding: Option<HeaderValue>,
}

impl<B> Messages<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    /// The messages in `body`, of at most `message_bytes_max` each.
    pub fn new(headers: &HeaderMap, body: B, message_bytes_max: usize) -> Self {
        let encoding = headers.get("grpc-encoding").cloned();
        Self { body, rest: Bytes::new(), message_bytes_max, encoding }
    }

    /// The only message of a unary request.
    ///
    /// # Errors
    /// Those of [`Messages::next`], and a missing message.
    pub async fn only(&mut self) -> Result<Bytes, Failure> {
        self.next().await?.ok_or_else(|| Failure::new(Code::Unknown, "EOF"))
    }

    /// The next message; `None` after the last.
    ///
    /// # Errors
    /// If the framing is wrong, the message too large or compressed, or the client has gone.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(mut prefix) = self.take(PREFIX_BYTES).await? else { return Ok(None) };
        let flag = prefix.get_u8();
        let length = prefix.get_u32();
        self.check_flag(flag)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if self.message_bytes_max < length {
            return Err(Failure::new(
                Code::ResourceExhausted,
                format!(
                    "grpc: received message larger than max ({length} vs. {})",
                    self.message_bytes_max
                ),
            ));
        }
        let message = self.take(length).await?.ok_or_else(cut_short)?;
        count_received(message.len());
        Ok(Some(message))
    }

    fn check_flag(&self, flag: u8) -> Result<(), Failure> {
        match flag {
            0 => Ok(()),
            1 => Err(match self.encoding.as_ref().map(HeaderValue::as_bytes) {
                None | Some(b"" | b"identity") => Failure::new(
                    Code::Internal,
                    "grpc: compressed flag set with identity or empty encoding",
                ),
                Some(encoding) => Failure::new(
                    Code::Unimplemented,
                    format!(
                        "grpc: Decompressor is not installed for grpc-encoding {:?}",
                        String::from_utf8_lossy(encoding)
                    ),
                ),
            }),
            _ => Err(Failure::new(
                Code::Internal,
                format!("grpc: received unexpected payload format {flag}"),
            )),
        }
    }

    /// The next `length` bytes; `None` if the body ends before the first of them.
    async fn take(&mut self, length: usize) -> Result<Option<Bytes>, Failure> {
        if length == 0 {
            return Ok(Some(Bytes::new()));
        }
        while self.rest.is_empty() {
            match self.frame().await? {
                Some(data) => self.rest = data,
                None => return Ok(None),
            }
        }
        if length <= self.rest.len() {
            return Ok(Some(self.rest.split_to(length)));
        }
        // Spread over several HTTP/2 frames: only now it is copied.
        let mut out = BytesMut::with_capacity(length);
        out.extend_from_slice(&self.rest);
        while out.len() < length {
            let mut data = self.frame().await?.ok_or_else(cut_short)?;
            let missing = length - out.len();
            out.extend_from_slice(&data.split_to(missing.min(data.len())));
            self.rest = data;
        }
        Ok(Some(out.freeze()))
    }

    /// The next data frame; `None` at the end.
    async fn frame(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                // The client reset the stream or its connection is lost; nobody reads this.
                Some(Err(_)) => return Err(super::status::Refusal::ContextCanceled.into()),
            }
        }
    }
}

fn cut_short() -> Failure {
    Failure::new(Code::Unknown, "unexpected EOF")
}

/// Decodes a message, sharing its bytes.
///
/// # Errors
/// If the bytes are not such a message.
pub fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, Failure> {
    M::decode(bytes).map_err(|error| {
        Failure::new(Code::Internal, format!("grpc: error unmarshalling request: proto: {error}"))
    })
}

/// How long the caller wants to wait, from the metadata `grpc-timeout`; `None` for ever.
#[must_use]
pub fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count.saturating_mul(3600)),
        "M" => Duration::from_secs(count.saturating_mul(60)),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, executor::block_on};
    use http_body_util::{Full, StreamBody};
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::*;

    fn only(bytes: &'static [u8]) -> Result<Bytes, Failure> {
        only_with(&HeaderMap::new(), bytes)
    }

    fn only_with(headers: &HeaderMap, bytes: &'static [u8]) -> Result<Bytes, Failure> {
        let body = Full::new(Bytes::from_static(bytes));
        Messages::new(headers, body, 8).only().now_or_never().expect("nothing to wait for")
    }

    #[track_caller]
    fn refused(result: Result<Bytes, Failure>, code: Code, text: &str) {
        let failure = result.expect_err("refused");
        assert_eq!((failure.code, failure.text.as_ref()), (code, text));
    }

    // The expectations were read off a running etcd 3.7.1.
    #[test]
    fn malformed_requests_are_refused_with_the_texts_of_grpc_go() {
        assert_eq!(only(b"\0\0\0\0\x02ab"), Ok(Bytes::from_static(b"ab")));
        assert_eq!(only(b"\0\0\0\0\0"), Ok(Bytes::new()));
        refused(only(b""), Code::Unknown, "EOF");
        refused(only(b"\0\0\0\0\x08a"), Code::Unknown, "unexpected EOF");
        refused(only(b"\0\0\0"), Code::Unknown, "unexpected EOF");
        refused(
            only(b"\0\x7f\0\0\0"),
            Code::ResourceExhausted,
            "grpc: received message larger than max (2130706432 vs. 8)",
        );
        refused(
            only(b"\x01\0\0\0\x01a"),
            Code::Internal,
            "grpc: compressed flag set with identity or empty encoding",
        );
        refused(
            only(b"\x02\0\0\0\x01a"),
            Code::Internal,
            "grpc: received unexpected payload format 2",
        );
        let mut headers = HeaderMap::new();
        headers.insert("grpc-encoding", HeaderValue::from_static("snappy"));
        refused(
            only_with(&headers, b"\x01\0\0\0\x01a"),
            Code::Unimplemented,
            "grpc: Decompressor is not installed for grpc-encoding \"snappy\"",
        );
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        let read = |text| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_static(text));
            timeout(&headers)
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("5000000u"), Some(Duration::from_secs(5)));
        assert_eq!(read("S"), None);
        assert_eq!(read("5x"), None);
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    proptest! {
        #[test]
        fn messages_survive_any_cut_into_frames(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..5),
            cuts in prop::collection::vec(1usize..9, 1..8),
        ) {
            let mut stream = Vec::new();
            for message in &messages {
                stream.push(0);
                stream.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
                stream.extend_from_slice(message);
            }
            let mut frames = Vec::new();
            let mut rest = Bytes::from(stream);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let data = rest.split_to((*cut).min(rest.len()));
                frames.push(Ok::<_, std::convert::Infallible>(http_body::Frame::data(data)));
            }
            let body = StreamBody::new(futures::stream::iter(frames));
            let mut read = Messages::new(&HeaderMap::new(), body, 64);
            for message in messages {
                let next = block_on(read.next()).expect("well formed");
                prop_assert_eq!(next, Some(Bytes::from(message)));
            }
            prop_assert_eq!(block_on(read.next()), Ok(None));
        }
    }
}
