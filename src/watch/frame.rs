//! The bytes of a watch response.
//!
//! Decides what is shared: an event is encoded once for each of its forms (with and without the
//! row before it), a list of events once for everybody who is to hear exactly these, and a
//! watcher adds nothing but its id. Made by the hub, written to the wire by `api`.
//!
//! ```text
//!   WatchResponse   0a len header | 10 watch_id | 38 01 (fragment) | 5a len event | 5a len event
//!                   `--- Body ---'                                   `-------- Body ----------'
//! ```
//!
//! Source: etcd `api/etcdserverpb/rpc.proto`, `WatchResponse`; fragments after `sendFragments` in
//! `server/etcdserver/api/v3rpc/watch.go`.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::{
    Message,
    encoding::{encode_varint, encoded_len_varint},
};
use proto::etcdserverpb::{ResponseHeader, WatchResponse};

use crate::{
    model::{ClusterId, MemberId, Revision, Term},
    mvcc::{Event, EventKind},
};

const TAG_HEADER: u8 = 0x0a;
const TAG_WATCH_ID: u8 = 0x10;
const TAG_FRAGMENT: u8 = 0x38;
const TAG_EVENT: u8 = 0x5a;
const TAG_EVENT_TYPE: u8 = 0x08;
const TAG_EVENT_KV: u8 = 0x12;
const TAG_EVENT_PREVIOUS: u8 = 0x1a;

/// The value of `Event.EventType.DELETE`; that of `PUT` is zero and not written.
const TYPE_DELETE: u8 = 1;

/// Four 64-bit fields with a tag each, a tag and a length.
const HEADER_BYTES_MAX: usize = 2 + 4 * 11;

/// One response, ready to be sent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Frame(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// Events for one watcher.
    Events { watch_id: i64, body: Arc<Body> },
    /// Anything without events, whole.
    Control(Bytes),
}

/// Everything in a response with events but the id of the watcher.
#[derive(Debug)]
pub(super) struct Body {
    header: Header,
    fragment: Fragment,
    events: Vec<Bytes>,
    events_bytes: usize,
}

/// Whether more of the same revision follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fragment {
    Last,
    MoreFollows,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The answering member.
    pub member: MemberId,
}

/// The header field of a response, encoded with tag and length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    bytes: [u8; HEADER_BYTES_MAX],
    len: usize,
}

impl Identity {
    fn message(self, term: Term, revision: Revision) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster.0,
            member_id: self.member.0,
            revision: revision.0,
            raft_term: term.0,
        }
    }

    /// A header that states `revision`.
    pub(super) fn header(self, term: Term, revision: Revision) -> Header {
        let message = self.message(term, revision);
        let mut bytes = [0; HEADER_BYTES_MAX];
        let mut free = &mut bytes[..];
        free.put_u8(TAG_HEADER);
        message.encode_length_delimited(&mut free).expect("the bound covers the largest header");
        let len = HEADER_BYTES_MAX - free.len();
        Header { bytes, len }
    }
}

impl Frame {
    /// `body` for one watcher.
    pub(super) const fn events(watch_id: i64, body: Arc<Body>) -> Self {
        Self(Kind::Events { watch_id, body })
    }

    /// `response` under the header of `identity`, which states `revision`.
    pub(super) fn control(
        identity: Identity,
        term: Term,
        revision: Revision,
        response: WatchResponse,
    ) -> Self {
        assert!(response.events.is_empty(), "events are encoded once, in bodies");
        let header = Some(identity.message(term, revision));
        Self(Kind::Control(WatchResponse { header, ..response }.encode_to_vec().into()))
    }

    /// The size of what [`Frame::write`] writes, in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        match &self.0 {
            Kind::Events { watch_id, body } => {
                watch_id_len(*watch_id) + body.fragment.encoded_len() + body.encoded_len()
            }
            Kind::Control(bytes) => bytes.len(),
        }
    }

    /// How many events it carries.
    #[must_use]
    pub fn events_len(&self) -> usize {
        match &self.0 {
            Kind::Events { body, .. } => body.events.len(),
            Kind::Control(_) => 0,
        }
    }

    /// Writes the `WatchResponse`.
    pub fn write(&self, buffer: &mut impl BufMut) {
        match &self.0 {
            Kind::Events { watch_id, body } => body.write(*watch_id, buffer),
            Kind::Control(bytes) => buffer.put_slice(bytes),
        }
    }
}

impl Body {
    /// The events, each encoded by [`encode_event`], under `header`.
    pub(super) fn new(header: Header, events: Vec<Bytes>) -> Self {
        assert!(!events.is_empty(), "a response without events is a control response");
        let events_bytes = events.iter().map(Bytes::len).sum();
        Self { header, fragment: Fragment::Last, events, events_bytes }
    }

    /// The same events in parts that stay below `part_bytes_max` each, as far as whole events
    /// allow, for a watcher that asked for it. Nothing if there is no need or no way to split.
    pub(super) fn fragments(&self, watch_id: i64, part_bytes_max: usize) -> Option<Vec<Arc<Self>>> {
        let frame_bytes = self.encoded_len() + watch_id_len(watch_id);
        if frame_bytes < part_bytes_max || self.events.len() < 2 {
            return None;
        }
        let rest_bytes =
            self.header.len + watch_id_len(watch_id) + Fragment::MoreFollows.encoded_len();
        let mut parts: Vec<Self> = Vec::new();
        for event in &self.events {
            match parts.last_mut() {
                Some(part) if rest_bytes + part.events_bytes + event.len() < part_bytes_max => {
                    part.events_bytes += event.len();
                    part.events.push(event.clone());
                }
                _ => parts.push(Self {
                    header: self.header,
                    fragment: Fragment::MoreFollows,
                    events: vec![event.clone()],
                    events_bytes: event.len(),
                }),
            }
        }
        parts.last_mut().expect("there are events").fragment = Fragment::Last;
        Some(parts.into_iter().map(Arc::new).collect())
    }

    fn encoded_len(&self) -> usize {
        self.header.len + self.events_bytes
    }

    fn write(&self, watch_id: i64, buffer: &mut impl BufMut) {
        buffer.put_slice(&self.header.bytes[..self.header.len]);
        if watch_id != 0 {
            buffer.put_u8(TAG_WATCH_ID);
            encode_varint(watch_id.cast_unsigned(), buffer);
        }
        if self.fragment == Fragment::MoreFollows {
            buffer.put_slice(&[TAG_FRAGMENT, 1]);
        }
        for event in &self.events {
            buffer.put_slice(event);
        }
    }
}

impl Fragment {
    const fn encoded_len(self) -> usize {
        match self {
            Self::Last => 0,
            Self::MoreFollows => 2,
        }
    }
}

/// One element of `WatchResponse.events`, with tag and length.
pub(super) fn encode_event(event: &Event, previous: Option<&[u8]>) -> Bytes {
    let kind_len = match event.kind {
        EventKind::Put => 0,
        EventKind::Delete => 2,
    };
    let len = kind_len + field_len(&event.row) + previous.map_or(0, field_len);
    let total = 1 + encoded_len_varint(len as u64) + len;
    let mut buffer = BytesMut::with_capacity(total);
    buffer.put_u8(TAG_EVENT);
    encode_varint(len as u64, &mut buffer);
    if event.kind == EventKind::Delete {
        buffer.put_slice(&[TAG_EVENT_TYPE, TYPE_DELETE]);
    }
    put_field(TAG_EVENT_KV, &event.row, &mut buffer);
    if let Some(previous) = previous {
        put_field(TAG_EVENT_PREVIOUS, previous, &mut buffer);
    }
    assert!(buffer.len() == total, "an event of {} bytes was announced with {total}", buffer.len());
    buffer.freeze()
}

fn watch_id_len(watch_id: i64) -> usize {
    if watch_id == 0 { 0 } else { 1 + encoded_len_varint(watch_id.cast_unsigned()) }
}

fn field_len(message: &(impl AsRef<[u8]> + ?Sized)) -> usize {
    let len = message.as_ref().len();
    1 + encoded_len_varint(len as u64) + len
}

fn put_field(tag: u8, message: &[u8], buffer: &mut BytesMut) {
    buffer.put_u8(tag);
    encode_varint(message.len() as u64, buffer);
    buffer.put_slice(message);
}

#[cfg(test)]
mod tests {
    use proto::mvccpb;

    use super::*;
    use crate::model::RowRevision;

    const IDENTITY: Identity =
        Identity { cluster: ClusterId(u64::MAX), member: MemberId(u64::MAX) };

    fn key_value(key: &str, value_bytes: usize) -> mvccpb::KeyValue {
        mvccpb::KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: vec![7; value_bytes].into(),
            create_revision: 3,
            mod_revision: 9,
            version: 2,
            lease: -1,
        }
    }

    fn event(kind: EventKind, row: &mvccpb::KeyValue) -> Event {
        Event {
            key: row.key.clone(),
            kind,
            row: row.encode_to_vec().into(),
            revision: RowRevision { main: Revision(9), sub: 0 },
            created: false,
            previous: None,
        }
    }

    fn written(frame: &Frame) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        assert_eq!(bytes.len(), frame.encoded_len(), "announced size of {frame:?}");
        bytes
    }

    #[test]
    fn frame_with_events_is_what_prost_encodes() {
        let (row, before) = (key_value("k", 200), key_value("k", 1));
        for (kind, previous) in
            [(EventKind::Put, None), (EventKind::Put, Some(&before)), (EventKind::Delete, None)]
        {
            let encoded =
                encode_event(&event(kind, &row), previous.map(Message::encode_to_vec).as_deref());
            let header = IDENTITY.header(Term(u64::MAX), Revision(i64::MAX));
            let body = Arc::new(Body::new(header, vec![encoded.clone(), encoded]));
            for watch_id in [0, 1, -1, i64::MAX] {
                let expected_event = mvccpb::Event {
                    r#type: i32::from(kind == EventKind::Delete),
                    kv: Some(row.clone()),
                    prev_kv: previous.cloned(),
                };
                let expected = WatchResponse {
                    header: Some(IDENTITY.message(Term(u64::MAX), Revision(i64::MAX))),
                    watch_id,
                    events: vec![expected_event.clone(), expected_event],
                    ..Default::default()
                };
                let frame = Frame::events(watch_id, Arc::clone(&body));
                assert_eq!(written(&frame), expected.encode_to_vec(), "{kind:?} for {watch_id}");
            }
        }
    }

    #[test]
    fn fragments_stay_below_the_limit_and_all_but_the_last_say_so() {
        let row = key_value("k", 100);
        let one = encode_event(&event(EventKind::Put, &row), None);
        let header = IDENTITY.header(Term(2), Revision(9));
        let body = Body::new(header, vec![one.clone(); 5]);
        let limit = header.len + 2 + 2 + 2 * one.len() + 1;
        let parts = body.fragments(1, limit).expect("five events do not fit");
        let parts: Vec<WatchResponse> = parts
            .into_iter()
            .map(|part| {
                let bytes = written(&Frame::events(1, part));
                assert!(bytes.len() < limit, "{} bytes against {limit}", bytes.len());
                WatchResponse::decode(&bytes[..]).expect("it is a response")
            })
            .collect();
        let shape: Vec<_> = parts.iter().map(|part| (part.events.len(), part.fragment)).collect();
        assert_eq!(shape, [(2, true), (2, true), (1, false)]);
        assert!(parts.iter().all(|part| part.watch_id == 1 && part.header == parts[0].header));
    }

    #[test]
    fn single_event_is_never_split() {
        let row = key_value("k", 100);
        let one = encode_event(&event(EventKind::Put, &row), None);
        let header = IDENTITY.header(Term(2), Revision(9));
        assert!(Body::new(header, vec![one]).fragments(0, 10).is_none());
    }
}
