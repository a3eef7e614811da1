//! Which watcher has seen what, and how much waits for each stream.
//!
//! Decides what becomes of a response: it is queued while the stream has room, and otherwise its
//! watcher is parked and later takes part in catching up. Owned by the hub, which decides who is
//! to get what; the only writer of positions.
//!
//! ```text
//!             no room                       room again
//!   Synced --------------> Parked <-----------------------+
//!     ^                      |  ^ no room                 |
//!     |                      v  |                         |
//!     +------ at head ---- Lagging -- below compaction --> Compacted
//! ```
//!
//! Invariants
//! - L1 A watcher is in the set `lagging` exactly while its state is Lagging, and in its stream's
//!   `parked` exactly while it is Parked.
//! - L2 `next` never moves back. Every event from the start on and below `next` was queued or
//!   filtered out; of a Synced watcher, every one up to the head.
//! - L3 `behind` of a stream counts its watchers that are not Synced.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, LazyLock},
    time::Duration,
};

use proto::etcdserverpb::WatchResponse;

use super::{
    frame::{Body, Frame},
    hub::{Credit, Outbox, Settings, StreamId},
    interest::{Seat, WatcherId, Wishes},
    slab::Slab,
};
use crate::{
    base::metrics::{IntGauge, gauge},
    model::{Revision, Term},
};

static WATCHERS: LazyLock<IntGauge> =
    LazyLock::new(|| gauge("etcd_debugging_mvcc_watcher_total", "Total number of watchers."));

static SLOW_WATCHERS: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge("etcd_debugging_mvcc_slow_watcher_total", "Total number of unsynced slow watchers.")
});

/// Makes the series of this file exist from the start.
pub(super) fn register_metrics() {
    LazyLock::force(&WATCHERS);
    LazyLock::force(&SLOW_WATCHERS);
}

/// How a watcher stands to the head of history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Hears of new events as they come.
    Synced,
    /// Reads history, as soon as it is its turn.
    Lagging,
    /// Waits for room in its stream's queue, then reads history.
    Parked,
    /// Was told that its history is gone; waits for the client to cancel it.
    Compacted,
}

/// Whether a watcher is to be told of the head from time to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It did not ask for it.
    Unwanted,
    /// It heard events since the last time.
    Elided,
    /// Next time.
    Due,
}

/// One watcher.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) stream: StreamId,
    pub(super) watch_id: i64,
    /// Its place among those who watch the same; none once it was told that its history is gone.
    pub(super) seat: Option<Seat>,
    pub(super) wishes: Wishes,
    pub(super) fragment: bool,
    pub(super) progress: Progress,
    /// The revision it asked to start at; 0 if it did not.
    pub(super) start: Revision,
    /// The first revision that it wants and that it may not have seen.
    pub(super) next: Revision,
    pub(super) state: State,
}

/// One client stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) watchers: HashMap<i64, WatcherId>,
    /// The counter of ids given by the server.
    pub(super) next_watch_id: i64,
    /// Watchers that are not synced.
    pub(super) behind: usize,
    parked: Vec<WatcherId>,
    /// At least the latest start of its watchers.
    pub(super) start_max: Revision,
    pub(super) opened: Duration,
    /// The time between two progress notifications.
    pub(super) period: Duration,
    pub(super) notified_watchers: usize,
    /// When the next notification is due; none while nobody asked for one.
    pub(super) due: Option<Duration>,
    outbox: Outbox,
    /// What has been queued and not been taken yet, the outbox included.
    waiting: Credit,
    dirty: bool,
    /// Whether it is to be ended and asks for nothing any more.
    pub(super) broken: bool,
}

/// Streams, watchers and their positions.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) settings: Settings,
    pub(super) term: Term,
    pub(super) head: Revision,
    pub(super) watchers: Slab<Watcher>,
    pub(super) streams: Slab<Stream>,
    /// Watchers that want to know what was there before a change.
    pub(super) want_previous: usize,
    lagging: BTreeSet<(Revision, WatcherId)>,
    /// Where catching up goes on.
    cursor: Revision,
    /// Streams with something for the shell to look at.
    dirty: Vec<StreamId>,
}

impl Stream {
    pub(super) fn new(opened: Duration, period: Duration) -> Self {
        Self {
            watchers: HashMap::new(),
            next_watch_id: 0,
            behind: 0,
            parked: Vec::new(),
            start_max: Revision(0),
            opened,
            period,
            notified_watchers: 0,
            due: None,
            outbox: Outbox::default(),
            waiting: Credit::default(),
            dirty: false,
            broken: false,
        }
    }

    pub(super) const fn has_room(&self, settings: &Settings) -> bool {
        self.waiting.frames < settings.queue_frames_max
            && self.waiting.bytes < settings.queue_bytes_max
    }
}

impl Ledger {
    pub(super) fn new(settings: Settings, head: Revision) -> Self {
        Self {
            settings,
            term: Term(0),
            head,
            watchers: Slab::new(),
            streams: Slab::new(),
            want_previous: 0,
            lagging: BTreeSet::new(),
            cursor: Revision(0),
            dirty: Vec::new(),
        }
    }

    /// Adds a watcher; where it starts decides whether it has to catch up.
    pub(super) fn admit(&mut self, watcher: Watcher) -> WatcherId {
        let (stream, watch_id) = (watcher.stream, watcher.watch_id);
        let behind = watcher.next <= self.head;
        let notified = watcher.progress != Progress::Unwanted;
        let start = watcher.start;
        self.want_previous += usize::from(watcher.wishes.previous);
        assert!(watcher.state == State::Synced, "a new watcher was {:?}", watcher.state);
        let id = WatcherId(self.watchers.insert(watcher));
        let stream = &mut self.streams[stream.0];
        let taken = stream.watchers.insert(watch_id, id);
        assert!(taken.is_none(), "watch id {watch_id} was taken");
        stream.notified_watchers += usize::from(notified);
        stream.start_max = stream.start_max.max(start);
        WATCHERS.inc();
        if behind {
            self.fall_behind(id, State::Lagging);
        }
        id
    }

    /// Removes a watcher from everything but its stream's table of ids.
    pub(super) fn dismiss(&mut self, id: WatcherId) -> Watcher {
        match self.watchers[id.0].state {
            State::Synced => {}
            State::Lagging => {
                self.unlist(id);
                SLOW_WATCHERS.dec();
            }
            State::Parked => SLOW_WATCHERS.dec(),
            State::Compacted => {}
        }
        WATCHERS.dec();
        let watcher = self.watchers.remove(id.0);
        self.want_previous -= usize::from(watcher.wishes.previous);
        let stream = &mut self.streams[watcher.stream.0];
        if watcher.state == State::Parked {
            stream.parked.retain(|parked| *parked != id);
        }
        stream.behind -= usize::from(watcher.state != State::Synced);
        stream.notified_watchers -= usize::from(watcher.progress != Progress::Unwanted);
        watcher
    }

    /// Queues the events of `revision` for a synced watcher, or parks it before them.
    pub(super) fn offer(&mut self, id: WatcherId, revision: Revision, body: &Arc<Body>) {
        let watcher = &mut self.watchers[id.0];
        if watcher.state != State::Synced || revision < watcher.next {
            return;
        }
        if self.queue_events(id, body) {
            self.watchers[id.0].next = revision.next();
        } else {
            self.watchers[id.0].next = revision;
            self.fall_behind(id, State::Parked);
        }
    }

    /// Queues what a lagging watcher gets of history up to `through`, or parks it where it is.
    pub(super) fn advance(&mut self, id: WatcherId, through: Revision, body: Option<&Arc<Body>>) {
        let fits = body.is_none_or(|body| self.queue_events(id, body));
        self.unlist(id);
        let watcher = &mut self.watchers[id.0];
        if !fits {
            watcher.state = State::Parked;
            let stream = watcher.stream;
            self.streams[stream.0].parked.push(id);
            self.mark_dirty(stream);
            return;
        }
        assert!(watcher.next <= through, "{} is past {through}", watcher.next);
        watcher.next = through.next();
        if self.head < watcher.next {
            watcher.state = State::Synced;
            let stream = watcher.stream;
            self.streams[stream.0].behind -= 1;
            SLOW_WATCHERS.dec();
        } else {
            self.lagging.insert((watcher.next, id));
        }
    }

    /// Moves the head on without events: whoever wanted some has to read history.
    pub(super) fn skip_to(&mut self, head: Revision) {
        let unseen = self.head.next();
        self.head = head;
        let missed: Vec<u32> = self
            .watchers
            .iter_mut()
            .filter(|(_, watcher)| watcher.state == State::Synced && watcher.next <= head)
            .map(|(number, watcher)| {
                watcher.next = watcher.next.max(unseen);
                number
            })
            .collect();
        for number in missed {
            self.fall_behind(WatcherId(number), State::Lagging);
        }
    }

    /// Tells every lagging watcher that wants something below `compacted` that it is gone, and
    /// names them, so that they leave their seats.
    pub(super) fn cancel_below(&mut self, compacted: Revision) -> Vec<WatcherId> {
        let gone: Vec<_> = self.lagging.range(..(compacted, WatcherId(0))).copied().collect();
        let mut names = Vec::with_capacity(gone.len());
        for (_, id) in gone {
            self.unlist(id);
            let watcher = &mut self.watchers[id.0];
            watcher.state = State::Compacted;
            SLOW_WATCHERS.dec();
            let response = WatchResponse {
                watch_id: watcher.watch_id,
                canceled: true,
                compact_revision: compacted.0,
                ..Default::default()
            };
            let stream = watcher.stream;
            // Source: etcd leaves the revision of this header at zero.
            self.queue_control(stream, Revision(0), response);
            names.push(id);
        }
        names
    }

    /// Where to read history next, if anybody lags. Positions take turns, whichever is lowest.
    pub(super) fn next_position(&self) -> Option<Revision> {
        let from_cursor = self.lagging.range((self.cursor, WatcherId(0))..).next();
        from_cursor.or_else(|| self.lagging.first()).map(|(position, _)| *position)
    }

    /// The lagging watchers whose position lies between `from` and `through`. The next turn is
    /// that of a position after these.
    pub(super) fn take_turn(&mut self, from: Revision, through: Revision) -> Vec<WatcherId> {
        let bounds = (from, WatcherId(0))..=(through, WatcherId(u32::MAX));
        // The watchers of this turn come out at the revision after it: it is not their turn again.
        self.cursor = through.next().next();
        self.lagging.range(bounds).map(|(_, id)| *id).collect()
    }

    /// Queues a response without events. These are not subject to the queue's bound: requests
    /// and watchers are what they answer, and both are bounded.
    pub(super) fn queue_control(
        &mut self,
        stream: StreamId,
        revision: Revision,
        response: WatchResponse,
    ) {
        let frame = Frame::control(self.settings.identity, self.term, revision, response);
        self.push(stream, frame);
    }

    /// What was taken from the queue of a stream makes room for parked watchers.
    pub(super) fn give_room(&mut self, id: StreamId, credit: Credit) {
        let stream = &mut self.streams[id.0];
        assert!(credit.frames <= stream.waiting.frames, "more was taken than was queued");
        stream.waiting.frames -= credit.frames;
        stream.waiting.bytes -= credit.bytes;
        if stream.has_room(&self.settings) {
            self.unpark_all(id);
        }
    }

    /// A stream with something to deliver, or whose queue is to report when it has room.
    pub(super) fn take_dirty(&mut self) -> Option<StreamId> {
        let id = self.dirty.pop()?;
        self.streams[id.0].dirty = false;
        Some(id)
    }

    /// What is to be delivered to a stream, and whether anybody waits for room in its queue.
    pub(super) fn outbox(&mut self, stream: StreamId) -> (&mut Outbox, bool) {
        let stream = &mut self.streams[stream.0];
        (&mut stream.outbox, !stream.parked.is_empty())
    }

    pub(super) fn has_lagging(&self) -> bool {
        !self.lagging.is_empty()
    }

    /// The lagging watchers that want `revision` next.
    pub(super) fn lagging_at(&self, revision: Revision) -> Vec<WatcherId> {
        let bounds = (revision, WatcherId(0))..=(revision, WatcherId(u32::MAX));
        self.lagging.range(bounds).map(|(_, id)| *id).collect()
    }

    /// Removes a stream without watchers.
    pub(super) fn close(&mut self, id: StreamId) {
        let stream = self.streams.remove(id.0);
        assert!(stream.watchers.is_empty(), "{id:?} was closed with watchers");
        if stream.dirty {
            self.dirty.retain(|dirty| *dirty != id);
        }
    }

    /// Lets every parked watcher of a stream try again.
    pub(super) fn unpark_all(&mut self, stream: StreamId) {
        for watcher in std::mem::take(&mut self.streams[stream.0].parked) {
            let entry = &mut self.watchers[watcher.0];
            entry.state = State::Lagging;
            self.lagging.insert((entry.next, watcher));
        }
    }

    /// Queues events if the stream has room for another response, however large it is.
    fn queue_events(&mut self, id: WatcherId, body: &Arc<Body>) -> bool {
        let watcher = &mut self.watchers[id.0];
        if !self.streams[watcher.stream.0].has_room(&self.settings) {
            return false;
        }
        if watcher.progress == Progress::Due {
            watcher.progress = Progress::Elided;
        }
        let (stream, watch_id) = (watcher.stream, watcher.watch_id);
        let parts = if watcher.fragment {
            body.fragments(watch_id, self.settings.fragment_bytes_max)
        } else {
            None
        };
        match parts {
            None => self.push(stream, Frame::events(watch_id, Arc::clone(body))),
            Some(parts) => {
                for part in parts {
                    self.push(stream, Frame::events(watch_id, part));
                }
            }
        }
        true
    }

    fn push(&mut self, stream: StreamId, frame: Frame) {
        let entry = &mut self.streams[stream.0];
        let bytes = frame.encoded_len();
        entry.waiting.frames += 1;
        entry.waiting.bytes += bytes;
        entry.outbox.push(frame, bytes);
        self.mark_dirty(stream);
    }

    fn mark_dirty(&mut self, stream: StreamId) {
        let entry = &mut self.streams[stream.0];
        if !entry.dirty {
            entry.dirty = true;
            self.dirty.push(stream);
        }
    }

    fn fall_behind(&mut self, id: WatcherId, state: State) {
        let watcher = &mut self.watchers[id.0];
        assert!(watcher.state == State::Synced, "fell behind while {:?}", watcher.state);
        watcher.state = state;
        let (stream, next) = (watcher.stream, watcher.next);
        let entry = &mut self.streams[stream.0];
        entry.behind += 1;
        SLOW_WATCHERS.inc();
        match state {
            State::Lagging => {
                self.lagging.insert((next, id));
            }
            State::Parked => {
                entry.parked.push(id);
                self.mark_dirty(stream);
            }
            State::Synced | State::Compacted => panic!("{state:?} is not behind"),
        }
    }

    fn unlist(&mut self, id: WatcherId) {
        let listed = self.lagging.remove(&(self.watchers[id.0].next, id));
        assert!(listed, "a lagging watcher at {} was not listed", self.watchers[id.0].next);
    }
}
