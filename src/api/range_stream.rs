//! `KV.RangeStream`: a read in chunks.
//!
//! Decides how large the chunks are: ten keys first, then twice or half as many, so that their size
//! stays near the limit on requests. The chunks together are exactly the answer of a `Range`, so
//! the header and the count stand on the last one. Every chunk is read from the same state, which
//! writes do not change; a compaction meanwhile ends the stream. Called by `dispatch`.
//!
//! Source: etcd `server/etcdserver/v3_server.go`, `rangeStream`.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::decode_varint;
use proto::etcdserverpb::RangeRequest;

use super::{
    answer::Reply,
    body::Outbox,
    edge::Edge,
    header,
    member::{Member, State, read},
    status::{CallError, Failure},
};
use crate::model::{RangeAnswer, Revision};

/// Keys in the first chunk.
const FIRST_CHUNK_KEYS: i64 = 10;

/// Reads `request`, which has been validated, and sends what it finds.
pub(super) async fn run<M: Member>(
    edge: Arc<Edge<M>>,
    mut request: RangeRequest,
    outbox: Outbox,
) -> Result<(), Failure> {
    let state = if request.serializable {
        edge.member.published()
    } else {
        edge.member.linearizable().await.map_err(CallError::from)?
    };
    let mut chunks = Chunks::new(&mut request, edge.settings.request_bytes_max);
    loop {
        let answer = read(&edge.member, Arc::clone(&state), |state| state.range(&request))?;
        let (reply, done) = chunks.next(&edge.member, &mut request, answer);
        outbox.send(reply).await?;
        if done {
            return Ok(());
        }
    }
}

/// Where the stream stands.
#[derive(Debug)]
struct Chunks {
    /// The newest revision at the start; known after the first chunk.
    revision: Option<Revision>,
    keys_sent: i64,
    keys_max: i64,
    bytes_target: usize,
}

impl Chunks {
    fn new(request: &mut RangeRequest, bytes_target: usize) -> Self {
        let keys_max = if request.limit <= 0 { i64::MAX } else { request.limit };
        if !request.count_only {
            request.limit = FIRST_CHUNK_KEYS.min(keys_max);
        }
        Self { revision: None, keys_sent: 0, keys_max, bytes_target }
    }

    /// The message for what was read, and whether it is the last. Moves the request on to what is
    /// to be read next.
    fn next(
        &mut self,
        member: &impl Member,
        request: &mut RangeRequest,
        answer: RangeAnswer,
    ) -> (Reply, bool) {
        let revision = *self.revision.get_or_insert(answer.revision);
        if request.revision <= 0 {
            request.revision = revision.0;
        }
        let keys = i64::try_from(answer.rows.len()).expect("memory holds fewer keys");
        let sent_before = self.keys_sent;
        self.keys_sent += keys;
        let last_row = answer.rows.last().cloned();
        let done = !answer.more || self.keys_sent == self.keys_max || last_row.is_none();
        if done {
            // The count of this chunk is what the range held from its start on.
            let count = sent_before + answer.count;
            let answer = RangeAnswer { count, ..answer };
            return (Reply::range_chunk(Some(&header::at(member, revision)), &answer), true);
        }
        let reply = Reply::range_chunk(None, &RangeAnswer { more: false, count: 0, ..answer });
        request.key = last_row.as_ref().map_or_else(Bytes::new, key_after);
        let limit = next_limit(request.limit, reply.message_bytes, self.bytes_target);
        request.limit = limit.min(self.keys_max - self.keys_sent);
        (reply, false)
    }
}

const fn next_limit(limit: i64, bytes: usize, bytes_target: usize) -> i64 {
    let next = if bytes < bytes_target / 2 {
        limit.saturating_mul(2)
    } else if bytes_target.saturating_mul(2) < bytes {
        limit / 2
    } else {
        limit
    };
    if next < 1 { 1 } else { next }
}

/// The smallest key after the one in `row`: the first field of a stored row is its key.
fn key_after(row: &Bytes) -> Bytes {
    let mut rest = row.clone();
    let mut next = BytesMut::new();
    if rest.has_remaining() && rest.get_u8() == 0x0a {
        let length = decode_varint(&mut rest).ok().and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|length| *length <= rest.len()).unwrap_or(0);
        next.reserve(length + 1);
        next.put_slice(&rest[..length]);
    }
    next.put_u8(0);
    next.freeze()
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::mvccpb::KeyValue;

    use super::*;

    #[test]
    fn next_chunk_starts_right_after_the_last_key() {
        let kv = KeyValue { key: "k1".into(), value: "v".into(), ..Default::default() };
        assert_eq!(key_after(&kv.encode_to_vec().into()), Bytes::from_static(b"k1\0"));
    }

    #[test]
    fn chunks_grow_and_shrink_towards_the_target() {
        assert_eq!(next_limit(10, 49, 100), 20);
        assert_eq!(next_limit(10, 50, 100), 10);
        assert_eq!(next_limit(10, 200, 100), 10);
        assert_eq!(next_limit(10, 201, 100), 5);
        assert_eq!(next_limit(1, 201, 100), 1);
    }
}
