//! Tests of the hub as its clients see it.
//!
//! Decides nothing: a history held in memory, and clients that decode what the hub queued for
//! them. One file has a sentence per promise, the other compares random runs with a plain model.

mod model;
mod promises;
mod threads;

use std::time::Duration;

use prost::Message;
use proto::{etcdserverpb::WatchResponse, mvccpb};

use super::{
    fake::{Change, FakeHistory, IDENTITY, NOTIFY_INTERVAL, TERM, settings},
    frame::Frame,
    history::History,
    hub::{Hub, StreamId},
    request::{CreateWatch, Request},
};
use crate::{
    base::random::Random,
    model::{KeyRange, Revision},
};

/// A hub with its history.
struct Bench {
    hub: Hub,
    history: FakeHistory,
    published: usize,
    now: Duration,
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

pub(super) fn single(key: &'static str) -> CreateWatch {
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
