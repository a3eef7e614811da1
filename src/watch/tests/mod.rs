//! Tests of the hub as its clients see it.
//!
//! Decides nothing: a history held in memory, and clients that decode what the hub queued for
//! them. One file has a sentence per promise, the other compares random runs with a plain model.

mod model;
mod promises;
mod threads;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use prost::Message;
use proto::{etcdserverpb::WatchResponse, mvccpb};

use super::{
    frame::{Frame, Identity},
    history::{Chunk, History, HistoryError},
    hub::{Hub, Settings, StreamId},
    request::{CreateWatch, Request},
};
use crate::{
    base::random::Random,
    model::{ClusterId, KeyRange, MemberId, Revision, RowRevision, Term},
    mvcc::{Damage, Event, EventBatch, EventKind},
};

const TERM: Term = Term(4);
const IDENTITY: Identity = Identity { cluster: ClusterId(7), member: MemberId(8) };
const NOTIFY_INTERVAL: Duration = Duration::from_secs(10);

/// A key history that anybody can read.
#[derive(Clone, Debug)]
struct FakeHistory {
    /// The first one is revision 2, as in etcd.
    batches: Vec<EventBatch>,
    latest: BTreeMap<Bytes, mvccpb::KeyValue>,
    rows: BTreeMap<RowRevision, Bytes>,
    latest_rows: BTreeMap<Bytes, RowRevision>,
    compacted: Revision,
    damaged: bool,
}

/// One change of a transaction.
#[derive(Clone, Copy, Debug)]
enum Change {
    Put(&'static str),
    Delete(&'static str),
}

/// A hub with its history.
struct Bench {
    hub: Hub,
    history: FakeHistory,
    published: usize,
    now: Duration,
}

impl FakeHistory {
    fn new() -> Self {
        Self {
            batches: Vec::new(),
            latest: BTreeMap::new(),
            rows: BTreeMap::new(),
            latest_rows: BTreeMap::new(),
            compacted: Revision(-1),
            damaged: false,
        }
    }

    /// One revision with these changes of different keys; deletions of missing keys do nothing.
    fn write(&mut self, changes: &[Change]) {
        let revision = self.revision().next();
        let mut events = Vec::new();
        for change in changes {
            let at = RowRevision { main: revision, sub: i64::try_from(events.len()).expect("few") };
            events.extend(self.change(*change, at));
        }
        if !events.is_empty() {
            self.batches.push(EventBatch { revision, events: events.into() });
        }
    }

    fn change(&mut self, change: Change, at: RowRevision) -> Option<Event> {
        let (Change::Put(name) | Change::Delete(name)) = change;
        let key = Bytes::from(name);
        let before = self.latest.get(&key).cloned();
        let (kind, row) = match change {
            Change::Put(_) => {
                let row = mvccpb::KeyValue {
                    key: key.clone(),
                    value: format!("v{}", at.main).into(),
                    create_revision: before.as_ref().map_or(at.main.0, |row| row.create_revision),
                    mod_revision: at.main.0,
                    version: before.as_ref().map_or(1, |row| row.version + 1),
                    lease: 0,
                };
                self.latest.insert(key.clone(), row.clone());
                (EventKind::Put, row)
            }
            Change::Delete(_) => {
                self.latest.remove(&key)?;
                let row = mvccpb::KeyValue {
                    key: key.clone(),
                    mod_revision: at.main.0,
                    ..Default::default()
                };
                (EventKind::Delete, row)
            }
        };
        let row = Bytes::from(row.encode_to_vec());
        self.rows.insert(at, row.clone());
        let previous = self.latest_rows.insert(key.clone(), at);
        let previous = before.is_some().then_some(previous).flatten();
        Some(Event { key, kind, row, revision: at, created: before.is_none(), previous })
    }
}

impl History for FakeHistory {
    fn revision(&self) -> Revision {
        self.batches.last().map_or(Revision(1), |batch| batch.revision)
    }

    fn compacted(&self) -> Revision {
        self.compacted
    }

    fn row(&self, at: RowRevision) -> Result<Option<Bytes>, Damage> {
        if self.damaged {
            return Err(Damage::Missing(at));
        }
        Ok(self.rows.get(&at).cloned())
    }

    fn events_from(&self, from: Revision, revisions_max: usize) -> Result<Chunk, HistoryError> {
        if self.damaged {
            let at = RowRevision { main: from, sub: 0 };
            return Err(HistoryError::Damaged(Damage::Missing(at)));
        }
        assert!(self.compacted <= from, "{from} is below {}", self.compacted);
        let start = self.batches.partition_point(|batch| batch.revision < from);
        let batches: Vec<_> = self.batches[start..].iter().take(revisions_max).cloned().collect();
        let through = batches.last().map_or(self.revision(), |batch| batch.revision);
        Ok(Chunk { batches, through })
    }
}

impl Bench {
    fn new() -> Self {
        Self::with_queue(100)
    }

    fn with_queue(queue_frames_max: usize) -> Self {
        let history = FakeHistory::new();
        let settings = settings(queue_frames_max);
        let mut hub = Hub::new(settings, history.revision(), Random::from_seed(1));
        hub.set_term(TERM);
        Self { hub, history, published: 0, now: Duration::ZERO }
    }

    /// Writes one revision and tells the hub.
    fn write(&mut self, changes: &[Change]) {
        self.history.write(changes);
        self.publish();
    }

    /// Tells the hub of everything written since the last time.
    fn publish(&mut self) {
        let batches = &self.history.batches[self.published..];
        self.hub.publish(&self.history, batches);
        self.published = self.history.batches.len();
    }

    /// Tells the hub only that history has grown.
    fn publish_without_batches(&mut self) {
        self.published = self.history.batches.len();
        self.publish();
    }

    fn open(&mut self) -> StreamId {
        self.hub.open(self.now)
    }

    fn ask(&mut self, stream: StreamId, request: Request) {
        self.hub.handle(stream, request, self.now);
    }

    fn create(&mut self, stream: StreamId, create: CreateWatch) {
        self.ask(stream, Request::Create(create));
    }

    fn catch_up(&mut self) {
        while self.hub.is_behind() {
            self.hub.catch_up(&self.history);
        }
    }

    /// What waits for a stream, without making room for more.
    fn peek(&mut self, stream: StreamId) -> Vec<WatchResponse> {
        let (outbox, _) = self.hub.outbox(stream);
        outbox.frames.iter().map(decode).collect()
    }

    /// Takes everything that waits for a stream.
    fn drain(&mut self, stream: StreamId) -> Vec<WatchResponse> {
        let responses = self.peek(stream);
        let (outbox, _) = self.hub.outbox(stream);
        let credit = std::mem::take(outbox).credit;
        self.hub.give_room(stream, credit);
        responses
    }
}

fn settings(queue_frames_max: usize) -> Settings {
    Settings {
        identity: IDENTITY,
        fragment_bytes_max: 200,
        progress_notify_interval: NOTIFY_INTERVAL,
        queue_frames_max,
        queue_bytes_max: 1 << 20,
        turn_revisions_max: 2,
    }
}

fn decode(frame: &Frame) -> WatchResponse {
    let mut bytes = Vec::new();
    frame.write(&mut bytes);
    assert_eq!(bytes.len(), frame.encoded_len(), "announced size of {frame:?}");
    let response = WatchResponse::decode(&bytes[..]).expect("frames are responses");
    let header = response.header.as_ref().expect("every response has a header");
    assert_eq!(header.cluster_id, IDENTITY.cluster.0);
    assert_eq!(header.member_id, IDENTITY.member.0);
    assert_eq!(header.raft_term, TERM.0);
    response
}

fn single(key: &'static str) -> CreateWatch {
    watch(KeyRange::Single(key.into()))
}

fn watch(range: KeyRange) -> CreateWatch {
    CreateWatch {
        range,
        start: Revision(0),
        watch_id: 0,
        previous: false,
        no_put: false,
        no_delete: false,
        progress_notify: false,
        fragment: false,
    }
}

/// (key, revision) of every event.
fn events(response: &WatchResponse) -> Vec<(String, i64)> {
    let describe = |event: &mvccpb::Event| {
        let row = event.kv.as_ref().expect("every event has a row");
        (String::from_utf8_lossy(&row.key).into_owned(), row.mod_revision)
    };
    response.events.iter().map(describe).collect()
}

fn revision(response: &WatchResponse) -> i64 {
    response.header.as_ref().expect("every response has a header").revision
}
