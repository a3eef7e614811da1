//! Answers as bytes: encodes what applying or reading came to without decoding a stored row.
//!
//! Decides the layout of `RangeResponse`, `PutResponse`, `DeleteRangeResponse` and `TxnResponse`.
//! A row is stored in the wire form of `mvccpb.KeyValue`, so an answer is tag + length + row. A
//! small answer is one buffer, prefix of the gRPC message included; a large one keeps its rows as
//! they are, shared with the store, and is copied into pieces while it is sent (`body`). Called by
//! `kv` and `range_stream`.
//!
//! ```text
//!   frame  = 0x00 length(4, big endian) message
//!   message = header(1) [ row(2) ... ] more(3) count(4)            RangeResponse
//! ```
//!
//! Source: etcd `api/etcdserverpb/rpc.proto`.

use bytes::{BufMut, Bytes};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use proto::etcdserverpb::ResponseHeader;

use crate::model::{Answer, DeleteAnswer, PutAnswer, RangeAnswer, Revision, TxnAnswer};

/// The bytes before each gRPC message: a compression flag and a length.
pub const PREFIX_BYTES: usize = 5;

/// An answer up to this size is one buffer; above it, rows are not copied before they are sent.
const WHOLE_BYTES_MAX: usize = 64 << 10;

/// An encoded answer with its gRPC prefix.
#[derive(Debug)]
pub enum Payload {
    /// All of it.
    Whole(Bytes),
    /// A `RangeResponse` whose rows are still shared with the store.
    Rows(Rows),
}

impl Payload {
    /// The whole answer in one piece.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Whole(bytes) => bytes,
            Self::Rows(rows) => {
                let mut out = rows.head.to_vec();
                for row in rows.rows {
                    put_row(2, &row, &mut out);
                }
                out.extend_from_slice(&rows.tail);
                Bytes::from(out)
            }
        }
    }
}

/// An answer that is put together while it is sent.
#[derive(Debug)]
pub struct Rows {
    /// What goes out before the first row.
    pub head: Bytes,
    /// The rows, without their tags and lengths.
    pub rows: std::vec::IntoIter<Bytes>,
    /// What goes out after the last row.
    pub tail: Bytes,
}

/// An answer and what the statistics say about it.
#[derive(Debug)]
pub struct Reply {
    /// What is sent.
    pub payload: Payload,
    /// The size of the message without its prefix.
    pub message_bytes: usize,
    /// How many keys the answer speaks of; -1 where etcd counts none.
    pub count: i64,
    /// Which branch of a transaction ran.
    pub succeeded: bool,
}

impl Reply {
    /// Encodes any message.
    #[must_use]
    pub fn message(message: &impl Message) -> Self {
        Self::of(message.encoded_len(), -1, |out| {
            message.encode(out).expect("the buffer was reserved");
        })
    }

    /// A message that is encoded already.
    #[must_use]
    pub fn encoded(message: &[u8]) -> Self {
        Self::of(message.len(), -1, |out| out.extend_from_slice(message))
    }

    /// Encodes a read's answer.
    #[must_use]
    pub fn range(header: &ResponseHeader, answer: RangeAnswer) -> Self {
        let message_bytes = range_len(header, &answer);
        if message_bytes <= WHOLE_BYTES_MAX {
            let count = answer.count;
            return Self::of(message_bytes, count, |out| put_range(header, &answer, out));
        }
        let mut head = start(message_bytes, PREFIX_BYTES + 64);
        put_message(1, header, &mut head);
        Self::of_rows(message_bytes, head, answer)
    }

    /// Encodes a chunk of `RangeStream`: a `RangeResponse` in field 1, the header only on the last.
    #[must_use]
    pub fn range_chunk(header: Option<&ResponseHeader>, answer: RangeAnswer) -> Self {
        let header_len = header.map_or(0, |header| message_len(1, header.encoded_len()));
        let inner = header_len + range_body_len(&answer);
        let message_bytes = message_len(1, inner);
        let put_head = |out: &mut Vec<u8>| {
            put_len(1, inner, out);
            if let Some(header) = header {
                put_message(1, header, out);
            }
        };
        if message_bytes <= WHOLE_BYTES_MAX {
            return Self::of(message_bytes, answer.count, |out| {
                put_head(out);
                put_range_body(&answer, out);
            });
        }
        let mut head = start(message_bytes, PREFIX_BYTES + 64);
        put_head(&mut head);
        Self::of_rows(message_bytes, head, answer)
    }

    /// Encodes a write's answer.
    #[must_use]
    pub fn put(header: &ResponseHeader, answer: &PutAnswer) -> Self {
        Self::of(put_answer_len(header, answer), 0, |out| put_put(header, answer, out))
    }

    /// Encodes a deletion's answer.
    #[must_use]
    pub fn delete(header: &ResponseHeader, answer: &DeleteAnswer) -> Self {
        let message_bytes = delete_len(header, answer);
        Self::of(message_bytes, answer.deleted, |out| put_delete(header, answer, out))
    }

    /// Encodes a transaction's answer.
    #[must_use]
    pub fn txn(header: &ResponseHeader, answer: &TxnAnswer) -> Self {
        let message_bytes = txn_len(header, answer);
        let reply = Self::of(message_bytes, 0, |out| put_txn(header, answer, out));
        Self { succeeded: answer.succeeded, ..reply }
    }

    fn of_rows(message_bytes: usize, head: Vec<u8>, answer: RangeAnswer) -> Self {
        let mut tail = Vec::with_capacity(16);
        put_range_tail(&answer, &mut tail);
        let (head, tail) = (Bytes::from(head), Bytes::from(tail));
        let count = answer.count;
        let rows = Rows { head, rows: answer.rows.into_iter(), tail };
        Self { message_bytes, count, succeeded: false, payload: Payload::Rows(rows) }
    }

    fn of(message_bytes: usize, count: i64, put: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut out = start(message_bytes, PREFIX_BYTES + message_bytes);
        put(&mut out);
        assert!(
            out.len() == PREFIX_BYTES + message_bytes,
            "an answer of {message_bytes} bytes became {}",
            out.len()
        );
        Self { payload: Payload::Whole(Bytes::from(out)), message_bytes, count, succeeded: false }
    }
}

fn start(message_bytes: usize, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(capacity);
    out.put_u8(0);
    // Answers stay far below: a client takes at most 2^31 - 1 bytes.
    out.put_u32(u32::try_from(message_bytes).unwrap_or(u32::MAX));
    out
}

/// The header that stands inside a transaction's answers: a revision and nothing else.
const fn nested_header(revision: Revision) -> ResponseHeader {
    ResponseHeader { cluster_id: 0, member_id: 0, revision: revision.0, raft_term: 0 }
}

/// The length of field `tag` with `length` bytes inside.
const fn message_len(tag: u32, length: usize) -> usize {
    key_len(tag) + encoded_len_varint(length as u64) + length
}

fn int_len(tag: u32, value: i64) -> usize {
    if value == 0 { 0 } else { key_len(tag) + encoded_len_varint(value.cast_unsigned()) }
}

fn rows_len(rows: &[Bytes]) -> usize {
    rows.iter().map(|row| message_len(2, row.len())).sum()
}

fn put_len(tag: u32, length: usize, out: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
}

/// Appends the tag and the length that stand before a row.
pub(super) fn put_row_head(tag: u32, row: &Bytes, out: &mut Vec<u8>) {
    put_len(tag, row.len(), out);
}

fn put_row(tag: u32, row: &Bytes, out: &mut Vec<u8>) {
    put_row_head(tag, row, out);
    out.extend_from_slice(row);
}

fn put_message(tag: u32, message: &impl Message, out: &mut Vec<u8>) {
    put_len(tag, message.encoded_len(), out);
    message.encode(out).expect("a Vec grows as needed");
}

fn put_int(tag: u32, value: i64, out: &mut Vec<u8>) {
    if value != 0 {
        encode_key(tag, WireType::Varint, out);
        encode_varint(value.cast_unsigned(), out);
    }
}

fn range_body_len(answer: &RangeAnswer) -> usize {
    rows_len(&answer.rows) + int_len(3, answer.more.into()) + int_len(4, answer.count)
}

fn range_len(header: &ResponseHeader, answer: &RangeAnswer) -> usize {
    message_len(1, header.encoded_len()) + range_body_len(answer)
}

fn put_range_tail(answer: &RangeAnswer, out: &mut Vec<u8>) {
    put_int(3, answer.more.into(), out);
    put_int(4, answer.count, out);
}

fn put_range_body(answer: &RangeAnswer, out: &mut Vec<u8>) {
    for row in &answer.rows {
        put_row(2, row, out);
    }
    put_range_tail(answer, out);
}

fn put_range(header: &ResponseHeader, answer: &RangeAnswer, out: &mut Vec<u8>) {
    put_message(1, header, out);
    put_range_body(answer, out);
}

fn put_answer_len(header: &ResponseHeader, answer: &PutAnswer) -> usize {
    let previous = answer.previous.as_ref().map_or(0, |row| message_len(2, row.len()));
    message_len(1, header.encoded_len()) + previous
}

fn put_put(header: &ResponseHeader, answer: &PutAnswer, out: &mut Vec<u8>) {
    put_message(1, header, out);
    if let Some(row) = &answer.previous {
        put_row(2, row, out);
    }
}

fn delete_len(header: &ResponseHeader, answer: &DeleteAnswer) -> usize {
    let rows = answer.previous.iter().map(|row| message_len(3, row.len())).sum::<usize>();
    message_len(1, header.encoded_len()) + int_len(2, answer.deleted) + rows
}

fn put_delete(header: &ResponseHeader, answer: &DeleteAnswer, out: &mut Vec<u8>) {
    put_message(1, header, out);
    put_int(2, answer.deleted, out);
    for row in &answer.previous {
        put_row(3, row, out);
    }
}

fn txn_len(header: &ResponseHeader, answer: &TxnAnswer) -> usize {
    let responses = answer.answers.iter().map(|answer| message_len(3, response_len(answer)));
    message_len(1, header.encoded_len())
        + int_len(2, answer.succeeded.into())
        + responses.sum::<usize>()
}

fn put_txn(header: &ResponseHeader, answer: &TxnAnswer, out: &mut Vec<u8>) {
    put_message(1, header, out);
    put_int(2, answer.succeeded.into(), out);
    for answer in &answer.answers {
        put_len(3, response_len(answer), out);
        put_response(answer, out);
    }
}

/// The length of a `ResponseOp`.
fn response_len(answer: &Answer) -> usize {
    inner_len(answer).map_or(0, |(tag, length)| message_len(tag, length))
}

/// The tag within a `ResponseOp` and the length of the answer there. Kinds that no transaction can
/// contain have none.
fn inner_len(answer: &Answer) -> Option<(u32, usize)> {
    match answer {
        Answer::Range(answer) => Some((1, range_len(&nested_header(answer.revision), answer))),
        Answer::Put(answer) => Some((2, put_answer_len(&nested_header(answer.revision), answer))),
        Answer::DeleteRange(answer) => {
            Some((3, delete_len(&nested_header(answer.revision), answer)))
        }
        // etcd leaves the header of a nested transaction empty.
        Answer::Txn(answer) => Some((4, txn_len(&nested_header(Revision(0)), answer))),
        Answer::Compaction { .. }
        | Answer::LeaseGrant { .. }
        | Answer::LeaseRevoke { .. }
        | Answer::Alarms(_)
        | Answer::Members(_)
        | Answer::Done => None,
    }
}

fn put_response(answer: &Answer, out: &mut Vec<u8>) {
    let Some((tag, length)) = inner_len(answer) else { return };
    put_len(tag, length, out);
    match answer {
        Answer::Range(answer) => put_range(&nested_header(answer.revision), answer, out),
        Answer::Put(answer) => put_put(&nested_header(answer.revision), answer, out),
        Answer::DeleteRange(answer) => put_delete(&nested_header(answer.revision), answer, out),
        Answer::Txn(answer) => put_txn(&nested_header(Revision(0)), answer, out),
        Answer::Compaction { .. }
        | Answer::LeaseGrant { .. }
        | Answer::LeaseRevoke { .. }
        | Answer::Alarms(_)
        | Answer::Members(_)
        | Answer::Done => {}
    }
}

#[cfg(test)]
mod tests {
    use proto::{
        etcdserverpb::{self as pb, response_op::Response},
        mvccpb::KeyValue,
    };

    use super::*;

    fn row(key: &'static str, bytes: usize) -> (KeyValue, Bytes) {
        let value = vec![b'v'; bytes].into();
        let kv = KeyValue { key: key.into(), mod_revision: 7, value, ..Default::default() };
        let row = kv.encode_to_vec().into();
        (kv, row)
    }

    const HEADER: ResponseHeader =
        ResponseHeader { cluster_id: u64::MAX, member_id: 2, revision: 300, raft_term: 4 };

    fn bytes(reply: Reply) -> Bytes {
        let message_bytes = reply.message_bytes;
        let whole = reply.payload.into_bytes();
        assert_eq!(whole.len(), PREFIX_BYTES + message_bytes, "the length in the prefix");
        whole.slice(PREFIX_BYTES..)
    }

    #[test]
    fn range_answer_decodes_to_the_generated_message_at_any_size() {
        for value_bytes in [0, 10, WHOLE_BYTES_MAX] {
            let (kv, stored) = row("k", value_bytes);
            let answer = RangeAnswer {
                revision: Revision(300),
                rows: vec![stored.clone(), stored],
                more: true,
                count: 3,
            };
            let decoded = pb::RangeResponse::decode(bytes(Reply::range(&HEADER, answer)));
            let expected = pb::RangeResponse {
                header: Some(HEADER),
                kvs: vec![kv.clone(), kv],
                more: true,
                count: 3,
            };
            assert_eq!(decoded.expect("valid"), expected, "with values of {value_bytes} bytes");
        }
    }

    #[test]
    fn answers_inside_a_transaction_have_only_a_revision_in_their_header() {
        let (kv, stored) = row("k", 3);
        let revision = Revision(9);
        let nested = TxnAnswer { revision, succeeded: false, answers: Vec::new() };
        let answer = TxnAnswer {
            revision,
            succeeded: true,
            answers: vec![
                Answer::Range(RangeAnswer {
                    revision,
                    rows: vec![stored.clone()],
                    more: false,
                    count: 1,
                }),
                Answer::Put(PutAnswer { revision, previous: Some(stored.clone()) }),
                Answer::DeleteRange(DeleteAnswer { revision, deleted: 1, previous: vec![stored] }),
                Answer::Txn(nested),
            ],
        };
        let decoded = pb::TxnResponse::decode(bytes(Reply::txn(&HEADER, &answer))).expect("valid");
        let header = Some(ResponseHeader { revision: 9, ..Default::default() });
        let expected = [
            Response::ResponseRange(pb::RangeResponse {
                header,
                kvs: vec![kv.clone()],
                more: false,
                count: 1,
            }),
            Response::ResponsePut(pb::PutResponse { header, prev_kv: Some(kv.clone()) }),
            Response::ResponseDeleteRange(pb::DeleteRangeResponse {
                header,
                deleted: 1,
                prev_kvs: vec![kv],
            }),
            Response::ResponseTxn(pb::TxnResponse {
                header: Some(ResponseHeader::default()),
                ..Default::default()
            }),
        ];
        assert!(decoded.succeeded && decoded.header == Some(HEADER), "{decoded:?}");
        let responses = decoded.responses.into_iter().map(|op| op.response);
        assert_eq!(responses.collect::<Vec<_>>(), expected.map(Some));
    }

    #[test]
    fn chunk_has_its_header_only_if_it_is_the_last() {
        for (header, value_bytes) in [(None, 1), (Some(&HEADER), 1), (None, WHOLE_BYTES_MAX)] {
            let (kv, stored) = row("k", value_bytes);
            let answer =
                RangeAnswer { revision: Revision(9), rows: vec![stored], ..Default::default() };
            let reply = Reply::range_chunk(header, answer);
            let decoded = pb::RangeStreamResponse::decode(bytes(reply)).expect("valid");
            let response = decoded.range_response.expect("present");
            assert_eq!((response.header.as_ref(), &response.kvs[..]), (header, &[kv][..]));
        }
    }
}
