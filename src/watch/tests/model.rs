//! Random runs of the hub against a plain model of what each watcher is to hear.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};

use super::{
    Bench, Change, CreateWatch, FakeHistory, KeyRange, Request, Revision, StreamId, WatchResponse,
    mvccpb,
};
use crate::{
    mvcc::{Event, EventKind},
    watch::request::NO_WATCH_ID,
};

const KEYS: [&str; 5] = ["a", "b", "ba", "bb", "c"];
const STREAMS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Write { changes: Vec<(usize, bool)> },
    Publish,
    LosePublication,
    Create { stream: usize, create: CreateWatch, back: i64 },
    Cancel { stream: usize, watch_id: i64 },
    Progress { stream: usize },
    Drain { stream: usize },
    CatchUp,
    Compact { back: i64 },
    Tick,
}

/// What a client saw of one watcher.
#[derive(Debug)]
struct Record {
    create: CreateWatch,
    /// The first revision that it is to hear of.
    first: i64,
    heard: Vec<mvccpb::Event>,
    /// Everything up to here was promised to have been heard.
    progress: i64,
    fragment_open: bool,
    canceled_at: Option<i64>,
    compacted_at: Option<i64>,
}

/// One client.
#[derive(Debug, Default)]
struct Client {
    /// What was asked for and not yet confirmed, in order.
    asked: Vec<CreateWatch>,
    records: BTreeMap<i64, Record>,
    ended: Vec<Record>,
}

fn range() -> impl Strategy<Value = KeyRange> {
    let key = prop::sample::select(&KEYS[..]).prop_map(Bytes::from);
    prop_oneof![
        key.clone().prop_map(KeyRange::Single),
        key.clone().prop_map(KeyRange::From),
        Just(KeyRange::Between("b".into(), "c".into())),
        Just(KeyRange::Between("a".into(), "bb".into())),
    ]
}

fn create() -> impl Strategy<Value = CreateWatch> {
    (range(), any::<[bool; 5]>()).prop_map(
        |(range, [previous, no_put, no_delete, progress_notify, fragment])| CreateWatch {
            range,
            start: Revision(0),
            watch_id: 0,
            previous,
            no_put: no_put && !no_delete,
            no_delete,
            progress_notify,
            fragment,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let stream = 0..STREAMS;
    let changes = prop::collection::vec((0..KEYS.len(), any::<bool>()), 1..5);
    prop_oneof![
        6 => changes.prop_map(|changes| Step::Write { changes }),
        6 => Just(Step::Publish),
        1 => Just(Step::LosePublication),
        4 => (stream.clone(), create(), -3_i64..12)
            .prop_map(|(stream, create, back)| Step::Create { stream, create, back }),
        1 => (stream.clone(), 0_i64..6)
            .prop_map(|(stream, watch_id)| Step::Cancel { stream, watch_id }),
        2 => stream.clone().prop_map(|stream| Step::Progress { stream }),
        3 => stream.prop_map(|stream| Step::Drain { stream }),
        3 => Just(Step::CatchUp),
        1 => (0_i64..20).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Tick),
    ]
}

impl Client {
    fn hear(&mut self, response: WatchResponse) {
        let revision = super::revision(&response);
        if response.created {
            let mut create = self.asked.remove(0);
            create.watch_id = response.watch_id;
            let first = if create.start.0 == 0 { revision + 1 } else { create.start.0 };
            let record = Record {
                create,
                first,
                heard: Vec::new(),
                progress: 0,
                fragment_open: false,
                canceled_at: None,
                compacted_at: None,
            };
            assert!(self.records.insert(response.watch_id, record).is_none(), "{response:?}");
        } else if response.watch_id == NO_WATCH_ID {
            assert!(response.events.is_empty() && !self.records.is_empty(), "{response:?}");
            for record in self.records.values_mut() {
                assert!(record.create.start.0 <= revision, "progress before {record:?}");
                record.progress = record.progress.max(revision);
            }
        } else if response.canceled && response.compact_revision == 0 {
            let mut record = self.records.remove(&response.watch_id).expect("it was created");
            record.canceled_at = Some(revision);
            self.ended.push(record);
        } else {
            let record = self.records.get_mut(&response.watch_id).expect("creation comes first");
            record.hear(response, revision);
        }
    }
}

impl Record {
    fn hear(&mut self, response: WatchResponse, revision: i64) {
        assert!(self.compacted_at.is_none(), "{response:?} after {self:?}");
        if response.canceled {
            assert_eq!(revision, 0, "{response:?}");
            self.compacted_at = Some(response.compact_revision);
            return;
        }
        if response.events.is_empty() {
            assert!(self.create.progress_notify && self.create.start.0 <= revision);
            self.progress = self.progress.max(revision);
            return;
        }
        assert!(self.create.fragment || !response.fragment, "{response:?} was not asked for");
        let oldest = response.events[0].kv.as_ref().expect("there is a row").mod_revision;
        let newest_heard = self.heard.last().and_then(|event| event.kv.as_ref());
        if !self.fragment_open {
            let newest = newest_heard.map_or(0, |row| row.mod_revision);
            assert!(newest < oldest, "revision {oldest} was split or repeated");
        }
        assert!(self.progress < oldest, "progress {} overtook {oldest}", self.progress);
        for event in &response.events {
            let at = event.kv.as_ref().expect("there is a row").mod_revision;
            assert!(at <= revision, "event of {at} under a header of {revision}");
        }
        self.fragment_open = response.fragment;
        self.heard.extend(response.events);
    }

    /// Compares what was heard with what a look at all of history gives.
    fn check(&self, history: &FakeHistory) {
        let create = &self.create;
        let wanted = |event: &&Event| {
            self.first <= event.revision.main.0
                && create.range.contains(&event.key)
                && !(create.no_put && event.kind == EventKind::Put)
                && !(create.no_delete && event.kind == EventKind::Delete)
        };
        let all: Vec<&Event> =
            history.batches.iter().flat_map(|batch| &*batch.events).filter(wanted).collect();
        let whole = self.canceled_at.is_none() && self.compacted_at.is_none();
        assert!(self.heard.len() <= all.len(), "{self:?} heard too much");
        if whole {
            assert_eq!(self.heard.len(), all.len(), "{self:?} heard too little of {all:?}");
        }
        if let Some(next) = all.get(self.heard.len()) {
            let heard = self.heard.last().and_then(|event| event.kv.as_ref());
            let last = heard.map_or(0, |row| row.mod_revision);
            assert!(last < next.revision.main.0, "revision {last} is incomplete in {self:?}");
            assert!(self.progress < next.revision.main.0, "{self:?} was promised {next:?}");
            if let Some(compacted) = self.compacted_at {
                assert!(self.first < compacted, "{self:?} was canceled for no reason");
            }
        }
        for (heard, event) in self.heard.iter().zip(&all) {
            let row = heard.kv.as_ref().expect("there is a row");
            assert_eq!((&row.key, row.mod_revision), (&event.key, event.revision.main.0));
            assert_eq!(heard.r#type == 1, event.kind == EventKind::Delete);
            let before = heard.prev_kv.as_ref().map(|row| row.mod_revision);
            let expected = event.previous.map(|at| at.main.0);
            assert!(
                before == expected
                    || before.is_none() && (!create.previous || self.lost_rows(event, history)),
                "{before:?} instead of {expected:?} before {event:?}"
            );
        }
    }

    /// Whether a compaction may have taken the state before `event`.
    fn lost_rows(&self, event: &Event, history: &FakeHistory) -> bool {
        event.revision.main <= history.compacted
    }
}

fn write(bench: &mut Bench, changes: &[(usize, bool)]) {
    let mut once = BTreeMap::new();
    for (key, put) in changes {
        once.insert(*key, *put);
    }
    let changes: Vec<Change> = once
        .into_iter()
        .map(|(key, put)| if put { Change::Put(KEYS[key]) } else { Change::Delete(KEYS[key]) })
        .collect();
    bench.history.write(&changes);
}

fn take(bench: &mut Bench, streams: &[StreamId], clients: &mut [Client], stream: usize) {
    for response in bench.drain(streams[stream]) {
        clients[stream].hear(response);
    }
}

fn run(steps: Vec<Step>, queue_frames_max: usize) {
    let mut bench = Bench::with_queue(queue_frames_max);
    let streams: Vec<StreamId> = (0..STREAMS).map(|_| bench.open()).collect();
    let mut clients: Vec<Client> = (0..STREAMS).map(|_| Client::default()).collect();
    for step in steps {
        match step {
            Step::Write { changes } => write(&mut bench, &changes),
            Step::Publish => bench.publish(),
            Step::LosePublication => bench.publish_without_batches(),
            Step::Create { stream, mut create, back } => {
                if bench.hub.accepts(streams[stream]) {
                    let start = super::History::revision(&bench.history).0 - back;
                    create.start = Revision(if back == 0 { 0 } else { start.max(0) });
                    clients[stream].asked.push(create.clone());
                    bench.create(streams[stream], create);
                }
            }
            Step::Cancel { stream, watch_id } => {
                if bench.hub.accepts(streams[stream]) {
                    bench.ask(streams[stream], Request::Cancel { watch_id });
                }
            }
            Step::Progress { stream } => {
                if bench.hub.accepts(streams[stream]) {
                    bench.ask(streams[stream], Request::Progress);
                }
            }
            Step::Drain { stream } => take(&mut bench, &streams, &mut clients, stream),
            Step::CatchUp => {
                bench.publish();
                let history = bench.history.clone();
                bench.hub.catch_up(&history);
            }
            Step::Compact { back } => {
                bench.publish();
                let revision = super::History::revision(&bench.history).0 - back;
                bench.history.compacted = bench.history.compacted.max(Revision(revision));
            }
            Step::Tick => {
                bench.now += super::NOTIFY_INTERVAL;
                bench.hub.tick(bench.now);
            }
        }
    }
    bench.publish();
    for _ in 0..10_000 {
        bench.catch_up();
        for stream in 0..STREAMS {
            take(&mut bench, &streams, &mut clients, stream);
        }
        if !bench.hub.is_behind() {
            break;
        }
    }
    assert!(!bench.hub.is_behind(), "catching up never ends");
    for client in &clients {
        for record in client.records.values().chain(&client.ended) {
            record.check(&bench.history);
        }
    }
}

proptest! {
    #[test]
    fn every_watcher_hears_its_events_once_and_in_order(
        steps in prop::collection::vec(step(), 1..120),
        queue_frames_max in 1_usize..8,
    ) {
        run(steps, queue_frames_max);
    }
}
