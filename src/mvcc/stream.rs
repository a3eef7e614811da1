//! Answers of `RangeStream`: one read, given out in chunks.
//!
//! Decides how large chunks are and what the last one says. Driven by the edge, which passes the
//! newest view for each chunk, so that a slow client holds neither memory nor an old view.
//!
//! Source: etcd `server/etcdserver/v3_server.go`, `rangeStream`.

use bytes::Bytes;
use prost::length_delimiter_len;

use super::{
    encoding::RowFields,
    index::successor,
    metrics,
    range::{Content, RangeOptions},
    rows::Damage,
    view::{ReadError, View},
};
use crate::model::{KeyRange, Revision, RowRevision};

/// Keys of the first chunk.
const FIRST_CHUNK_KEYS: i64 = 10;

/// A read that is given out in chunks. Ordering and filters are refused by the edge.
#[derive(Clone, Debug)]
pub struct RangeStream {
    options: RangeOptions,
    /// The newest revision when the stream began; not known before the first chunk.
    began_at: Option<Revision>,
    keys_left: i64,
    keys_sent: i64,
    chunk_bytes: usize,
    ended: bool,
}

/// A part of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamChunk {
    /// The next rows.
    pub rows: Vec<Bytes>,
    /// What the last chunk says about the whole; `None` in all others.
    pub end: Option<StreamEnd>,
}

/// What is said about a whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamEnd {
    /// The newest revision when the stream began.
    pub revision: Revision,
    /// Whether the limit cut the answer.
    pub more: bool,
    /// How many keys the range held.
    pub count: i64,
}

impl RangeStream {
    /// A stream of `options` in chunks of about `chunk_bytes`, which is the server's limit for
    /// requests.
    #[must_use]
    pub fn new(options: RangeOptions, chunk_bytes: usize) -> Self {
        let keys_left = if options.limit == 0 { i64::MAX } else { options.limit };
        let first = if keys_left < FIRST_CHUNK_KEYS { keys_left } else { FIRST_CHUNK_KEYS };
        Self {
            options: RangeOptions { limit: first, ..options },
            began_at: None,
            keys_left,
            keys_sent: 0,
            chunk_bytes,
            ended: false,
        }
    }

    /// The next chunk, read from `view`, which is at least as new as the one before. `None` after
    /// the last one.
    ///
    /// # Errors
    /// As [`View::range`]; after [`ReadError::Outdated`] the call can be repeated.
    pub fn next(&mut self, view: &View) -> Result<Option<StreamChunk>, ReadError> {
        if self.ended {
            return Ok(None);
        }
        metrics::RANGES.inc();
        let at = view.readable(self.options.revision)?;
        let began_at = *self.began_at.get_or_insert(view.revision());
        if self.options.content == Content::Count {
            self.ended = true;
            let end = StreamEnd { revision: began_at, more: false, count: self.rest(view, at) };
            return Ok(Some(StreamChunk { rows: Vec::new(), end: Some(end) }));
        }
        let page = view.page(&self.options, at)?;
        self.options.revision = at;
        self.keys_sent += i64::try_from(page.rows.len()).expect("rows fit into memory");
        if let Some(last) = page.rows.last() {
            self.continue_after(last)?;
        }
        self.ended = !page.more || self.keys_sent == self.keys_left;
        let end = self.ended.then(|| StreamEnd {
            revision: began_at,
            more: page.more,
            count: self.keys_sent + if page.more { self.rest(view, at) } else { 0 },
        });
        self.resize(page.rows.iter().map(encoded_bytes).sum());
        Ok(Some(StreamChunk { rows: page.rows, end }))
    }

    fn continue_after(&mut self, row: &Bytes) -> Result<(), ReadError> {
        let fields = RowFields::parse(row).ok_or(Damage::Malformed(RowRevision::default()))?;
        let next = successor(fields.key);
        self.options.range = match &self.options.range {
            // A single key has nothing behind it; the stream ends with this chunk.
            KeyRange::Single(key) => KeyRange::Single(key.clone()),
            KeyRange::From(_) => KeyRange::From(next),
            KeyRange::Between(_, end) => KeyRange::Between(next, end.clone()),
        };
        Ok(())
    }

    /// How many keys of the range lie behind those that were sent.
    fn rest(&self, view: &View, at: Revision) -> i64 {
        let rest = view.index.count(&self.options.range, at);
        i64::try_from(rest).expect("fewer keys than bytes of memory")
    }

    /// Doubles or halves the next chunk if the last one, of `bytes`, was far from the target.
    fn resize(&mut self, bytes: usize) {
        let keys = self.options.limit;
        let resized = if bytes < self.chunk_bytes / 2 {
            keys.saturating_mul(2)
        } else if self.chunk_bytes.saturating_mul(2) < bytes {
            keys / 2
        } else {
            keys
        };
        self.options.limit = resized.max(1).min(self.keys_left.saturating_sub(self.keys_sent));
    }
}

/// What a row occupies in the answer: its tag, its length, itself.
fn encoded_bytes(row: &Bytes) -> usize {
    1 + length_delimiter_len(row.len()) + row.len()
}
