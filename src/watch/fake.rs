//! A key history in memory, for tests of whoever watches it.
//!
//! Decides nothing that the real one decides: revisions count from 2, and compacting is a number
//! that a test sets.

use std::{collections::BTreeMap, sync::Arc, thread::JoinHandle, time::Duration};

use bytes::Bytes;
use prost::Message;
use proto::mvccpb;

use super::{
    frame::Identity,
    history::{Chunk, History, HistoryError},
    hub::Settings,
    thread::{Handle, WatchThread, start},
};
use crate::{
    base::{clock::Clock, courier::Rounds, random::Random, thread, thread::Priority},
    model::{ClusterId, MemberId, Revision, RowRevision, Term},
    mvcc::{Damage, Event, EventBatch, EventKind},
};

pub(crate) const TERM: Term = Term(4);
pub(crate) const IDENTITY: Identity = Identity { cluster: ClusterId(7), member: MemberId(8) };
pub(crate) const NOTIFY_INTERVAL: Duration = Duration::from_secs(10);

/// Settings with little room, so that every bound is met.
pub(crate) fn settings(queue_frames_max: usize) -> Settings {
    Settings {
        identity: IDENTITY,
        fragment_bytes_max: 200,
        progress_notify_interval: NOTIFY_INTERVAL,
        queue_frames_max,
        queue_bytes_max: 1 << 20,
        turn_revisions_max: 2,
    }
}

/// A key history that anybody can read.
#[derive(Clone, Debug)]
pub(crate) struct FakeHistory {
    /// The first one is revision 2, as in etcd.
    pub(crate) batches: Vec<EventBatch>,
    latest: BTreeMap<Bytes, mvccpb::KeyValue>,
    rows: BTreeMap<RowRevision, Bytes>,
    latest_rows: BTreeMap<Bytes, RowRevision>,
    pub(crate) compacted: Revision,
    /// Whether no row can be read any more.
    pub(crate) damaged: bool,
}

/// One change of a transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Put(&'static str),
    Delete(&'static str),
}

impl FakeHistory {
    pub(crate) fn new() -> Self {
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
    pub(crate) fn write(&mut self, changes: &[Change]) {
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

/// A service that runs, with the history it serves.
pub(crate) struct Service {
    pub(crate) handle: Handle<FakeHistory>,
    pub(crate) history: FakeHistory,
    threads: Vec<JoinHandle<()>>,
}

impl Service {
    pub(crate) fn start(lanes: usize, queue_frames_max: usize) -> Self {
        let history = FakeHistory::new();
        let (handle, threads) = start(
            &settings(queue_frames_max),
            &history,
            lanes,
            &Clock::system(),
            &(Arc::new(|| TERM) as _),
            &mut Random::from_seed(1),
        );
        let run = |body: WatchThread<FakeHistory>| {
            thread::spawn("watch-test", Priority::Normal, move || body.run())
                .expect("another thread can be had")
        };
        Self { handle, history, threads: threads.into_iter().map(run).collect() }
    }

    /// Puts a key and tells the hubs.
    pub(crate) fn write(&mut self, key: &'static str) {
        self.history.write(&[Change::Put(key)]);
        let last = self.history.batches.last().cloned();
        self.handle.publish(last.as_slice(), &self.history);
        let mut rounds = Rounds::default();
        self.handle.deliver(&mut rounds);
        rounds.go();
    }

    pub(crate) fn stop(self) {
        self.handle.stop();
        for thread in self.threads {
            thread.join().expect("watch threads do not panic");
        }
    }
}
