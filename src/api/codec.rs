//! The gRPC codec of the hot services: prost messages in, bytes that exist already out.
//!
//! Decides how an answer gets into tonic's send buffer: by a copy of slices that were encoded
//! earlier and perhaps for many receivers (stored rows, shared event bodies), never by building a
//! tree of messages first. Counts message bytes as etcd's codec does: without gRPC and HTTP/2
//! framing. Used by every service of `api` that answers with rows or events.

use std::{marker::PhantomData, sync::LazyLock};

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::base::metrics::{IntCounter, counter};

/// An answer that can write itself as one protobuf message.
pub trait Encode: Send + 'static {
    /// The exact size of what [`Encode::encode`] writes, in bytes.
    fn encoded_len(&self) -> usize;

    /// Writes the message, without a length in front.
    fn encode(self, buffer: &mut impl BufMut);
}

/// A message that is encoded already, as slices to be sent one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded(Vec<Bytes>);

/// An answer that prost encodes when it is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plain<M>(pub M);

/// A codec that answers with `E` and is asked with the message `D`.
#[derive(Debug)]
pub struct Codec<E, D>(PhantomData<fn() -> (E, D)>);

/// The sending half of [`Codec`].
#[derive(Debug)]
pub struct AnswerEncoder<E>(PhantomData<fn(E)>);

/// The receiving half of [`Codec`].
#[derive(Debug)]
pub struct RequestDecoder<D>(PhantomData<fn() -> D>);

/// Both buffers start small: most messages are, and there is a pair for every open stream.
const BUFFER_BYTES: usize = 1024;

/// Messages of a stream that are ready together leave as one piece of about this size.
const BATCH_BYTES: usize = 32 * 1024;

static SENT_BYTES: LazyLock<IntCounter> = LazyLock::new(|| {
    counter(
        "etcd_network_client_grpc_sent_bytes_total",
        "The total number of bytes sent to grpc clients.",
    )
});

static RECEIVED_BYTES: LazyLock<IntCounter> = LazyLock::new(|| {
    counter(
        "etcd_network_client_grpc_received_bytes_total",
        "The total number of bytes received from grpc clients.",
    )
});

/// Makes the series of this file exist from the start.
pub fn register_metrics() {
    LazyLock::force(&SENT_BYTES);
    LazyLock::force(&RECEIVED_BYTES);
}

/// Counts `bytes` of messages that left for a client by another way than this codec.
pub fn count_sent(bytes: usize) {
    SENT_BYTES.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
}

/// Counts `bytes` of messages that came from a client by another way than this codec.
pub fn count_received(bytes: usize) {
    RECEIVED_BYTES.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
}

impl Encoded {
    /// A message whose bytes are `parts`, in this order.
    #[must_use]
    pub const fn from_parts(parts: Vec<Bytes>) -> Self {
        Self(parts)
    }

    /// Encodes `message` now.
    #[must_use]
    pub fn from_message(message: &impl Message) -> Self {
        Self(vec![message.encode_to_vec().into()])
    }

    /// The slices, in order.
    #[must_use]
    pub fn parts(&self) -> &[Bytes] {
        &self.0
    }
}

impl From<Bytes> for Encoded {
    fn from(bytes: Bytes) -> Self {
        Self(vec![bytes])
    }
}

impl Encode for Encoded {
    fn encoded_len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    fn encode(self, buffer: &mut impl BufMut) {
        for part in self.0 {
            buffer.put_slice(&part);
        }
    }
}

impl Encode for Bytes {
    fn encoded_len(&self) -> usize {
        self.len()
    }

    fn encode(self, buffer: &mut impl BufMut) {
        buffer.put_slice(&self);
    }
}

impl<M: Message + 'static> Encode for Plain<M> {
    fn encoded_len(&self) -> usize {
        self.0.encoded_len()
    }

    fn encode(self, buffer: &mut impl BufMut) {
        self.0.encode(buffer).expect("a growing buffer has room");
    }
}

impl<E, D> Default for Codec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E: Encode, D: Message + Default + 'static> tonic::codec::Codec for Codec<E, D> {
    type Encode = E;
    type Decode = D;
    type Encoder = AnswerEncoder<E>;
    type Decoder = RequestDecoder<D>;

    fn encoder(&mut self) -> Self::Encoder {
        AnswerEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        RequestDecoder(PhantomData)
    }
}

impl<E: Encode> Encoder for AnswerEncoder<E> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, item: E, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let bytes = item.encoded_len();
        buffer.reserve(bytes);
        item.encode(buffer);
        count_sent(bytes);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, BATCH_BYTES)
    }
}

impl<D: Message + Default> Decoder for RequestDecoder<D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        count_received(buffer.remaining());
        // Source: the text of grpc-go's `recv`.
        D::decode(buffer).map(Some).map_err(|error| {
            Status::internal(format!("grpc: failed to unmarshal the received message: {error}"))
        })
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, BATCH_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use proto::etcdserverpb::{ResponseHeader, WatchResponse};

    use super::*;

    #[test]
    fn parts_are_sent_in_order_and_their_size_is_known() {
        let parts = vec![Bytes::from_static(b"ab"), Bytes::new(), Bytes::from_static(b"c")];
        let encoded = Encoded::from_parts(parts);
        assert_eq!(encoded.encoded_len(), 3);
        let mut buffer = Vec::new();
        encoded.encode(&mut buffer);
        assert_eq!(buffer, b"abc");
    }

    #[test]
    fn message_encoded_early_equals_one_encoded_late() {
        let message = WatchResponse {
            header: Some(ResponseHeader { revision: 7, ..Default::default() }),
            watch_id: -1,
            ..Default::default()
        };
        let (mut early, mut late) = (Vec::new(), Vec::new());
        Encoded::from_message(&message).encode(&mut early);
        Plain(message).encode(&mut late);
        assert_eq!(early, late);
    }
}
