//! `KV.RangeStream`: a read in chunks.
//!
//! Decides how large the chunks are: ten keys first, then twice or half as many, so that their size
//! stays near the limit on requests. Several are read at once. The chunks together are exactly the
//! answer of a `Range`, so the header and the count stand on the last one. Every chunk is read from the same state, which
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

/// Chunks that are read at once when there is much to read. Rows are looked up in the order of the
/// file, so the more of them, the closer they lie: four chunks at once cost a sixth less processor
/// time than one by one, eight hardly less than four. They are also what a stream holds in memory.
const CHUNKS_READ: i64 = 4;

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
    let mut chunks = Chunks::new(&request, edge.settings.request_bytes_max);
    loop {
        request.limit = chunks.keys_to_read(&request);
        let answer = read(&edge.member, Arc::clone(&state), |state| state.range(&request))?;
        let mut stretch = chunks.begin(&mut request, answer);
        loop {
            let (reply, next) = chunks.next(&edge.member, &mut stretch);
            outbox.send(reply).await?;
            match next {
                Next::Chunk => {}
                Next::Read => break,
                Next::End => return Ok(()),
            }
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
    /// Keys of the next chunk.
    limit: i64,
    /// What the last chunk occupied.
    bytes: usize,
    bytes_target: usize,
}

/// What was read at once, and has not been sent yet.
#[derive(Debug)]
struct Stretch {
    rows: std::vec::IntoIter<Bytes>,
    /// Whether there are keys behind it.
    more: bool,
    /// How many keys the whole range held.
    count: i64,
}

/// What follows a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Another one, of the same stretch.
    Chunk,
    /// Another stretch.
    Read,
    /// Nothing.
    End,
}

impl Chunks {
    fn new(request: &RangeRequest, bytes_target: usize) -> Self {
        let keys_max = if request.limit <= 0 { i64::MAX } else { request.limit };
        let limit = FIRST_CHUNK_KEYS.min(keys_max);
        Self { revision: None, keys_sent: 0, keys_max, limit, bytes: 0, bytes_target }
    }

    /// Keys of the next stretch.
    fn keys_to_read(&self, request: &RangeRequest) -> i64 {
        if request.count_only {
            return request.limit;
        }
        // As long as chunks grow, nobody knows how many rows fit into memory.
        let grown = self.bytes_target / 2 <= self.bytes;
        let chunks = if grown { CHUNKS_READ } else { 1 };
        self.limit.saturating_mul(chunks).min(self.keys_max - self.keys_sent)
    }

    /// Takes in what was read, and moves the request on to what follows it.
    fn begin(&mut self, request: &mut RangeRequest, answer: RangeAnswer) -> Stretch {
        let revision = *self.revision.get_or_insert(answer.revision);
        if request.revision <= 0 {
            request.revision = revision.0;
        }
        if let Some(last) = answer.rows.last() {
            request.key = key_after(last);
        }
        let count = self.keys_sent + answer.count;
        Stretch { rows: answer.rows.into_iter(), more: answer.more, count }
    }

    /// The message for the next rows, and what follows it.
    fn next(&mut self, member: &impl Member, stretch: &mut Stretch) -> (Reply, Next) {
        let revision = self.revision.expect("a stretch was begun");
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let rows: Vec<_> = stretch.rows.by_ref().take(limit).collect();
        self.keys_sent += i64::try_from(rows.len()).expect("memory holds fewer keys");
        let exhausted = stretch.rows.as_slice().is_empty();
        let more = !exhausted || stretch.more;
        if !more || self.keys_sent == self.keys_max || rows.is_empty() {
            let answer = RangeAnswer { revision, rows, more, count: stretch.count };
            return (Reply::range_chunk(Some(&header::at(member, revision)), answer), Next::End);
        }
        let answer = RangeAnswer { revision, rows, more: false, count: 0 };
        let reply = Reply::range_chunk(None, answer);
        self.bytes = reply.message_bytes;
        let limit = next_limit(self.limit, self.bytes, self.bytes_target);
        self.limit = limit.min(self.keys_max - self.keys_sent);
        (reply, if exhausted { Next::Read } else { Next::Chunk })
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
