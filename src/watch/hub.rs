//! Decides who hears of what, and in which order.
//!
//! The synchronous core of the watch service: streams, requests, published revisions and the time
//! come in; queued responses come out. Every watcher of a stream lives in the same hub, so the
//! order within a stream is the order of these calls. Driven by the watch thread, or by a test.
//!
//! ```text
//!   publish --> Interests.search --> Bodies.select --> Ledger.offer ---> outbox of a stream
//!                                                         | no room           ^
//!                                                         v                   |
//!   catch_up <-- History.events_from <----------- lagging and parked ---------+
//! ```

use std::{collections::BTreeSet, time::Duration};

use proto::etcdserverpb::WatchResponse;
use tracing::error;

use super::{
    bodies::Bodies,
    frame::{Frame, Identity},
    history::{Chunk, History, HistoryError},
    interest::{Interests, WatcherId, Wishes},
    ledger::{Ledger, Progress, State, Stream, Watcher},
    request::{CreateWatch, DUPLICATE_ID, EMPTY_RANGE, NO_WATCH_ID, Request},
};
use crate::{
    base::random::Random,
    model::{Revision, Term},
    mvcc::{Damage, Event, EventBatch},
};

/// A client stream, unique within a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub(super) u32);

/// Room in a stream's queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// Responses.
    pub frames: usize,
    /// Their size.
    pub bytes: usize,
}

/// Responses on their way to one stream.
#[derive(Debug, Default)]
pub struct Outbox {
    /// In order.
    pub frames: Vec<Frame>,
    /// How much room they take.
    pub credit: Credit,
    /// How many events they carry.
    pub events: usize,
}

/// What a hub is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who answers.
    pub identity: Identity,
    /// A response this large is split for watchers that asked for it: `--max-request-bytes` and
    /// 512 KiB.
    pub fragment_bytes_max: usize,
    /// The time between two progress notifications, to which each stream adds up to a tenth.
    pub progress_notify_interval: Duration,
    /// A stream with this many responses waiting has no room for events.
    pub queue_frames_max: usize,
    /// A stream with this many bytes of responses waiting has no room for events.
    pub queue_bytes_max: usize,
    /// How many revisions a turn of catching up reads at most.
    pub turn_revisions_max: usize,
}

/// Every watcher of some streams.
#[derive(Debug)]
pub struct Hub {
    interests: Interests,
    ledger: Ledger,
    /// Streams by the time of their next progress notification.
    deadlines: BTreeSet<(Duration, StreamId)>,
    /// Streams that cannot go on, because history is damaged.
    broken: Vec<StreamId>,
    random: Random,
}

impl Outbox {
    pub(super) fn push(&mut self, frame: Frame, bytes: usize) {
        self.credit += Credit { frames: 1, bytes };
        self.events += frame.events_len();
        self.frames.push(frame);
    }
}

impl std::ops::AddAssign for Credit {
    fn add_assign(&mut self, more: Self) {
        self.frames += more.frames;
        self.bytes += more.bytes;
    }
}

impl Hub {
    /// A hub without streams that has seen history up to `head`.
    #[must_use]
    pub fn new(settings: Settings, head: Revision, mut random: Random) -> Self {
        assert!(!settings.progress_notify_interval.is_zero(), "progress is reported all the time");
        Self {
            interests: Interests::new(random.next()),
            ledger: Ledger::new(settings, head),
            deadlines: BTreeSet::new(),
            broken: Vec::new(),
            random,
        }
    }

    /// The term to be stated from now on.
    pub const fn set_term(&mut self, term: Term) {
        self.ledger.term = term;
    }

    /// A client opened a stream.
    pub fn open(&mut self, now: Duration) -> StreamId {
        let interval = self.ledger.settings.progress_notify_interval;
        let jitter_max = u64::try_from(interval.as_nanos() / 10).unwrap_or(u64::MAX).max(1);
        let period = interval + Duration::from_nanos(self.random.below(jitter_max));
        StreamId(self.ledger.streams.insert(Stream::new(now, period)))
    }

    /// A client, or the shell, ended a stream.
    pub fn close(&mut self, stream: StreamId) {
        self.vacate(stream);
        self.broken.retain(|broken| *broken != stream);
        self.ledger.close(stream);
    }

    /// A client asked for something on an open stream.
    pub fn handle(&mut self, stream: StreamId, request: Request, now: Duration) {
        match request {
            Request::Create(create) => self.create(stream, &create, now),
            Request::Refuse { reason } => self.refuse(stream, reason),
            Request::Cancel { watch_id } => self.cancel(stream, watch_id),
            Request::Progress => self.report_progress(stream),
        }
    }

    /// History has grown to `view`; `batches` are the newest revisions of it, in order. If they
    /// do not reach back to the last call, watchers read what is missing from `view`.
    pub fn publish(&mut self, view: &impl History, batches: &[EventBatch]) {
        for batch in batches {
            if self.ledger.head.next() < batch.revision {
                break;
            }
            if self.ledger.head < batch.revision {
                self.deliver(view, batch);
                self.ledger.head = batch.revision;
            }
        }
        if self.ledger.head < view.revision() {
            self.ledger.skip_to(view.revision());
        }
    }

    /// Lets some watchers read a piece of history: those at one position, and all whose position
    /// lies in the piece read.
    pub fn catch_up(&mut self, view: &impl History) {
        let Some(from) = self.ledger.next_position() else { return };
        if from < view.compacted() {
            return self.cancel_below(view.compacted());
        }
        match view.events_from(from, self.ledger.settings.turn_revisions_max) {
            Ok(chunk) => self.feed(view, from, &chunk),
            Err(HistoryError::Compacted { compacted }) => {
                assert!(from < compacted, "{from} is not below {compacted}");
                self.cancel_below(compacted);
            }
            // The next view has been published, or is about to be.
            Err(HistoryError::Outdated) => {}
            Err(HistoryError::Damaged(damage)) => {
                let waiting = self.ledger.lagging_at(from);
                self.break_off(waiting.into_iter().map(|id| (id, damage.clone())).collect());
            }
        }
    }

    /// Whether [`Hub::catch_up`] has something to do.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.ledger.has_lagging()
    }

    /// Sends the progress notifications that are due.
    pub fn tick(&mut self, now: Duration) {
        while let Some((due, stream)) = self.deadlines.first().copied() {
            if now < due {
                return;
            }
            self.deadlines.pop_first();
            self.notify_progress(stream);
            self.schedule(stream, now);
        }
    }

    /// When [`Hub::tick`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(due, _)| *due)
    }

    /// Responses left the queue of a stream.
    pub fn give_room(&mut self, stream: StreamId, credit: Credit) {
        self.ledger.give_room(stream, credit);
    }

    /// Whether a stream may ask for more: while its queue is full it waits, so that answers do
    /// not pile up.
    #[must_use]
    pub fn accepts(&self, stream: StreamId) -> bool {
        let entry = &self.ledger.streams[stream.0];
        !entry.broken && entry.has_room(&self.ledger.settings)
    }

    /// A stream with something to deliver.
    pub fn take_dirty(&mut self) -> Option<StreamId> {
        self.ledger.take_dirty()
    }

    /// What is to be delivered to a stream, to be emptied by the caller, and whether a watcher
    /// waits for room in its queue.
    pub fn outbox(&mut self, stream: StreamId) -> (&mut Outbox, bool) {
        self.ledger.outbox(stream)
    }

    /// Streams that must be ended because history cannot be read, and then closed.
    pub fn take_broken(&mut self) -> Vec<StreamId> {
        std::mem::take(&mut self.broken)
    }

    /// How many watchers there are.
    #[must_use]
    pub const fn watchers_len(&self) -> usize {
        self.ledger.watchers.len()
    }

    /// Whether a watcher wants to know what was there before a change, which is read then.
    #[must_use]
    pub const fn reads_previous(&self) -> bool {
        0 < self.ledger.want_previous
    }

    /// How many streams are open.
    #[must_use]
    pub const fn streams_len(&self) -> usize {
        self.ledger.streams.len()
    }

    fn create(&mut self, stream: StreamId, create: &CreateWatch, now: Duration) {
        if create.range.is_empty() {
            return self.refuse(stream, EMPTY_RANGE.to_owned());
        }
        let Some(watch_id) = self.choose_id(stream, create.watch_id) else {
            return self.refuse(stream, DUPLICATE_ID.to_owned());
        };
        let head = self.ledger.head;
        let next = if create.start == Revision(0) { head.next() } else { create.start };
        let wishes = Wishes {
            previous: create.previous,
            no_put: create.no_put,
            no_delete: create.no_delete,
        };
        let created = WatchResponse { watch_id, created: true, ..Default::default() };
        self.ledger.queue_control(stream, head, created);

        let watcher = self.ledger.admit(Watcher {
            stream,
            watch_id,
            seat: None,
            wishes,
            fragment: create.fragment,
            progress: if create.progress_notify { Progress::Due } else { Progress::Unwanted },
            start: create.start,
            next,
            state: State::Synced,
        });
        let seat = self.interests.join(&create.range, wishes, watcher);
        self.ledger.watchers[watcher.0].seat = Some(seat);
        if create.progress_notify && self.ledger.streams[stream.0].due.is_none() {
            self.schedule(stream, now);
        }
    }

    /// The id for a new watcher: the one asked for, or for 0 the next free one. Nothing if it is
    /// taken.
    fn choose_id(&mut self, stream: StreamId, asked: i64) -> Option<i64> {
        let stream = &mut self.ledger.streams[stream.0];
        if asked != 0 {
            return (!stream.watchers.contains_key(&asked)).then_some(asked);
        }
        while stream.watchers.contains_key(&stream.next_watch_id) {
            stream.next_watch_id += 1;
        }
        stream.next_watch_id += 1;
        Some(stream.next_watch_id - 1)
    }

    fn refuse(&mut self, stream: StreamId, reason: String) {
        let response = WatchResponse {
            watch_id: NO_WATCH_ID,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..Default::default()
        };
        self.ledger.queue_control(stream, self.ledger.head, response);
    }

    fn cancel(&mut self, stream: StreamId, watch_id: i64) {
        let Some(watcher) = self.ledger.streams[stream.0].watchers.remove(&watch_id) else {
            return;
        };
        self.dismiss(watcher);
        let entry = &mut self.ledger.streams[stream.0];
        if entry.notified_watchers == 0
            && let Some(due) = entry.due.take()
        {
            self.deadlines.remove(&(due, stream));
        }
        let response = WatchResponse { watch_id, canceled: true, ..Default::default() };
        self.ledger.queue_control(stream, self.ledger.head, response);
    }

    fn dismiss(&mut self, id: WatcherId) {
        self.unseat(id);
        self.ledger.dismiss(id);
    }

    fn unseat(&mut self, id: WatcherId) {
        let watcher = &mut self.ledger.watchers[id.0];
        let Some(seat) = watcher.seat.take() else { return };
        if let Some(moved) = self.interests.leave(seat, watcher.wishes) {
            self.ledger.watchers[moved.0].seat = Some(seat);
        }
    }

    /// Answers a manual progress request: once for the whole stream, and only if every watcher
    /// of it has seen everything up to the head.
    fn report_progress(&mut self, stream: StreamId) {
        let head = self.ledger.head;
        let entry = &mut self.ledger.streams[stream.0];
        if entry.watchers.is_empty() || 0 < entry.behind {
            return;
        }
        if head < entry.start_max && self.waits_for_future(stream) {
            return;
        }
        let response = WatchResponse { watch_id: NO_WATCH_ID, ..Default::default() };
        self.ledger.queue_control(stream, head, response);
    }

    /// Whether a watcher of `stream` starts above the head.
    fn waits_for_future(&mut self, stream: StreamId) -> bool {
        let Ledger { streams, watchers, head, .. } = &mut self.ledger;
        let entry = &mut streams[stream.0];
        let starts = entry.watchers.values().map(|id| watchers[id.0].start);
        entry.start_max = starts.max().unwrap_or(Revision(0));
        *head < entry.start_max
    }

    fn notify_progress(&mut self, stream: StreamId) {
        let head = self.ledger.head;
        let entry = &mut self.ledger.streams[stream.0];
        entry.due = None;
        let watchers: Vec<WatcherId> = entry.watchers.values().copied().collect();
        for id in watchers {
            let watcher = &mut self.ledger.watchers[id.0];
            let due = match watcher.progress {
                Progress::Unwanted => continue,
                Progress::Elided => false,
                Progress::Due => true,
            };
            watcher.progress = Progress::Due;
            let (watch_id, state, start) = (watcher.watch_id, watcher.state, watcher.start);
            if due && state == State::Synced && start <= head && self.accepts(stream) {
                let response = WatchResponse { watch_id, ..Default::default() };
                self.ledger.queue_control(stream, head, response);
            }
        }
    }

    /// Sets the time of the next notifications: a whole number of periods after the stream was
    /// opened.
    fn schedule(&mut self, stream: StreamId, now: Duration) {
        let entry = &mut self.ledger.streams[stream.0];
        let periods = now.saturating_sub(entry.opened).as_nanos() / entry.period.as_nanos() + 1;
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        let due = entry.opened + entry.period * periods;
        assert!(now < due, "the next notification at {due:?} is not after {now:?}");
        entry.due = Some(due);
        self.deadlines.insert((due, stream));
    }

    fn deliver(&mut self, view: &impl History, batch: &EventBatch) {
        self.interests.search(batch.events.iter());
        if self.interests.touched().is_empty() {
            return;
        }
        let header = self.ledger.settings.identity.header(self.ledger.term, batch.revision);
        let mut bodies = Bodies::new(view, header, batch.events.iter().collect());
        let mut failed = Vec::new();
        for range in self.interests.touched() {
            let hits = self.interests.hits(*range);
            for group in self.interests.groups(*range) {
                match bodies.select(hits, group.wishes) {
                    Ok(None) => {}
                    Ok(Some(body)) => {
                        for watcher in &group.watchers {
                            self.ledger.offer(*watcher, batch.revision, &body);
                        }
                    }
                    Err(error) => {
                        failed.extend(group.watchers.iter().map(|id| (*id, error.clone())))
                    }
                }
            }
        }
        self.interests.clear();
        self.break_off(failed);
    }

    fn feed(&mut self, view: &impl History, from: Revision, chunk: &Chunk) {
        let (through, head) = (chunk.through, self.ledger.head);
        assert!(from <= through, "asked from {from}, history was read through {through}");
        assert!(through <= head, "history was read through {through}, the head is {head}");
        let events: Vec<&Event> = chunk.batches.iter().flat_map(|batch| &*batch.events).collect();
        self.interests.search(events.iter().copied());
        let header = self.ledger.settings.identity.header(self.ledger.term, head);
        let mut bodies = Bodies::new(view, header, events);
        let mut failed = Vec::new();
        for id in self.ledger.take_turn(from, through) {
            let watcher = &self.ledger.watchers[id.0];
            let range = watcher.seat.expect("a lagging watcher is seated").range();
            let hits = self.interests.hits(range);
            match bodies.select_from(range, hits, watcher.wishes, watcher.next) {
                Ok(body) => self.ledger.advance(id, through, body.as_ref()),
                Err(damage) => failed.push((id, damage)),
            }
        }
        self.interests.clear();
        self.break_off(failed);
    }

    fn cancel_below(&mut self, compacted: Revision) {
        for watcher in self.ledger.cancel_below(compacted) {
            self.unseat(watcher);
        }
    }

    /// Ends the streams of watchers for whom history could not be read: silence would look like
    /// "nothing happened". All watchers of these streams leave, so nobody asks for the damaged
    /// rows again.
    fn break_off(&mut self, failed: Vec<(WatcherId, Damage)>) {
        let mut streams: Vec<_> = failed
            .into_iter()
            .map(|(id, damage)| (self.ledger.watchers[id.0].stream, damage))
            .collect();
        streams.sort_by_key(|(stream, _)| *stream);
        streams.dedup_by_key(|(stream, _)| *stream);
        for (stream, damage) in streams {
            error!(error = ?damage, "failed to read history for a watch stream");
            self.vacate(stream);
            self.ledger.streams[stream.0].broken = true;
            self.broken.push(stream);
        }
    }

    /// Removes every watcher of a stream.
    fn vacate(&mut self, stream: StreamId) {
        self.ledger.unpark_all(stream);
        let entry = &mut self.ledger.streams[stream.0];
        if let Some(due) = entry.due.take() {
            self.deadlines.remove(&(due, stream));
        }
        for (_, watcher) in std::mem::take(&mut entry.watchers) {
            self.dismiss(watcher);
        }
    }
}
