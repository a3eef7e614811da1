//! One client stream between its connection's thread and its hub's thread.
//!
//! Decides how both wake each other: once per batch, and only if the other side waits for
//! something. Requests go one way, responses the other, and what was taken comes back as room.
//! Shared by a [`WatchStream`], which `api` reads and writes, and the watch thread.
//!
//! ```text
//!   api thread                                  watch thread
//!     send ------> requests (bounded) ---ring---> next_request
//!     poll_frame <-wake-- frames <--------------- deliver
//!            `----> taken ---ring if hub waits--> credit
//! ```
//!
//! Invariants
//! - K1 While `rung` is set, the link is in the watch thread's list of links to look at.
//! - K2 If the hub waits for room, then the next take rings.
//!
//! The hub bounds `frames`. Whoever reads takes them all, so at most twice the bound is in memory
//! for a stream.

use std::{
    collections::VecDeque,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
};

use super::{
    frame::Frame,
    hub::{Credit, Outbox, StreamId},
    request::Request,
};
use crate::base::{
    courier::{Courier, Rounds},
    metrics::{IntCounter, IntGauge, counter, gauge},
};

/// A stream's unanswered requests. A client has to read answers before it may ask for more.
const REQUESTS_MAX: usize = 128;

/// A queue that has grown beyond this many responses is not kept once it is empty.
const FRAMES_KEPT: usize = 64;

static STREAMS: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge("etcd_debugging_mvcc_watch_stream_total", "Total number of watch streams.")
});

static PENDING_EVENTS: LazyLock<IntGauge> = LazyLock::new(|| {
    gauge("etcd_debugging_mvcc_pending_events_total", "Total number of pending events to be sent.")
});

static EVENTS: LazyLock<IntCounter> = LazyLock::new(|| {
    counter("etcd_debugging_mvcc_events_total", "Total number of events sent by this member.")
});

/// Makes the series of this file exist from the start.
pub(super) fn register_metrics() {
    LazyLock::force(&STREAMS);
    LazyLock::force(&PENDING_EVENTS);
    LazyLock::force(&EVENTS);
}

/// Why a stream ends before its client ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The member is stopping.
    Stopped,
    /// The client asked not to be served without a leader, and there is none.
    NoLeader,
    /// History cannot be read.
    Damaged,
}

/// Makes a watch thread look at a link.
pub(super) trait Ring: Send + Sync {
    /// A new link, which counts from now on.
    fn open(&self, link: Arc<Link>);

    /// Something has happened to `link`.
    fn ring(&self, link: Arc<Link>);
}

/// A client's stream of requests and responses. Dropping it ends its watchers.
pub struct WatchStream {
    link: Arc<Link>,
    courier: Option<Arc<Courier>>,
    bell: Arc<dyn Ring>,
    taken: VecDeque<Frame>,
}

/// Ends a stream from outside.
#[derive(Clone, Debug)]
pub struct Cutter(Weak<Link>);

/// What both threads share.
#[derive(Debug, Default)]
pub(super) struct Link(Mutex<State>);

/// What a watch thread finds at a link.
#[derive(Debug)]
pub(super) struct News {
    /// The number the hub gave it before.
    pub(super) stream: Option<StreamId>,
    /// What was taken since the last time.
    pub(super) credit: Credit,
    /// Whether the client is gone.
    pub(super) closed: bool,
}

#[derive(Debug, Default)]
struct State {
    stream: Option<StreamId>,
    requests: VecDeque<Request>,
    frames: VecDeque<Frame>,
    /// How much room `frames` takes.
    queued: Credit,
    queued_events: usize,
    /// How much was taken since the hub last asked.
    taken: Credit,
    hub_waits: bool,
    rung: bool,
    closed: bool,
    end: Option<End>,
    frame_waker: Option<Waker>,
    courier: Option<Arc<Courier>>,
    request_waker: Option<Waker>,
}

impl WatchStream {
    pub(super) fn open(bell: Arc<dyn Ring>) -> Self {
        let link = Arc::new(Link::default());
        link.lock().rung = true;
        STREAMS.inc();
        bell.open(Arc::clone(&link));
        Self { link, bell, courier: None, taken: VecDeque::new() }
    }

    /// Has its task woken by `courier`, which is cheaper if many streams hear of the same.
    pub fn use_courier(&mut self, courier: Arc<Courier>) {
        self.courier = Some(courier);
    }

    /// Waits until a request may be sent.
    pub fn poll_ready(&mut self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.link.lock();
        if state.requests.len() < REQUESTS_MAX {
            return Poll::Ready(());
        }
        state.request_waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// Sends a request.
    ///
    /// # Panics
    /// Unless [`WatchStream::poll_ready`] was waited for.
    pub fn send(&mut self, request: Request) {
        let mut state = self.link.lock();
        assert!(state.requests.len() < REQUESTS_MAX, "the request queue is full");
        state.requests.push_back(request);
        let ring = !std::mem::replace(&mut state.rung, true);
        drop(state);
        if ring {
            self.bell.ring(Arc::clone(&self.link));
        }
    }

    /// The next response, or why there are no more.
    pub fn poll_frame(&mut self, context: &Context<'_>) -> Poll<Result<Frame, End>> {
        if let Some(frame) = self.taken.pop_front() {
            return Poll::Ready(Ok(frame));
        }
        if FRAMES_KEPT < self.taken.capacity() {
            self.taken = VecDeque::new();
        }
        let mut state = self.link.lock();
        if state.frames.is_empty() {
            if let Some(end) = state.end {
                return Poll::Ready(Err(end));
            }
            if state.frame_waker.as_ref().is_none_or(|waker| !waker.will_wake(context.waker())) {
                state.frame_waker = Some(context.waker().clone());
                state.courier.clone_from(&self.courier);
            }
            return Poll::Pending;
        }
        let ring = state.take(&mut self.taken);
        drop(state);
        if ring {
            self.bell.ring(Arc::clone(&self.link));
        }
        let frame = self.taken.pop_front().expect("frames were taken");
        Poll::Ready(Ok(frame))
    }

    /// How many responses are at hand without another look at the queue.
    #[must_use]
    pub fn taken_len(&self) -> usize {
        self.taken.len()
    }

    /// Lets somebody else end this stream.
    #[must_use]
    pub fn cutter(&self) -> Cutter {
        Cutter(Arc::downgrade(&self.link))
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        let mut state = self.link.lock();
        state.closed = true;
        state.discard();
        let ring = !std::mem::replace(&mut state.rung, true);
        drop(state);
        STREAMS.dec();
        if ring {
            self.bell.ring(Arc::clone(&self.link));
        }
    }
}

impl std::fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchStream").field("link", &self.link).finish_non_exhaustive()
    }
}

impl Cutter {
    /// Ends the stream, if it still exists; responses that wait are lost.
    pub fn cut(&self, end: End) {
        if let Some(link) = self.0.upgrade() {
            link.end(end);
        }
    }
}

impl Link {
    /// A look by the watch thread.
    pub(super) fn look(&self) -> News {
        let mut state = self.lock();
        state.rung = false;
        News {
            stream: state.stream,
            credit: std::mem::take(&mut state.taken),
            closed: state.closed,
        }
    }

    /// Keeps the number that the hub gave it.
    pub(super) fn name(&self, stream: StreamId) {
        let before = self.lock().stream.replace(stream);
        assert!(before.is_none(), "{before:?} was named {stream:?}");
    }

    /// The oldest unanswered request.
    pub(super) fn next_request(&self) -> Option<Request> {
        let mut state = self.lock();
        let request = state.requests.pop_front()?;
        let waker = state.request_waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Some(request)
    }

    /// Lets the next take ring if requests wait for room. Room that came meanwhile is returned.
    pub(super) fn await_room(&self) -> Credit {
        let mut state = self.lock();
        state.hub_waits |= !state.requests.is_empty();
        std::mem::take(&mut state.taken)
    }

    /// Hands responses over, and says what was taken since the last time. If watchers wait for
    /// room, the next take rings. Whoever reads is woken, at the latest by `rounds`.
    pub(super) fn deliver(
        &self,
        outbox: &mut Outbox,
        watchers_wait: bool,
        rounds: &mut Rounds,
    ) -> Credit {
        let mut state = self.lock();
        state.hub_waits |= watchers_wait;
        let credit = std::mem::take(&mut state.taken);
        if outbox.frames.is_empty() {
            return credit;
        }
        let (queued, events) = (outbox.credit, outbox.events);
        (outbox.credit, outbox.events) = (Credit::default(), 0);
        if state.closed || state.end.is_some() {
            outbox.frames.clear();
            return credit;
        }
        state.frames.extend(outbox.frames.drain(..));
        state.queued += queued;
        state.queued_events += events;
        PENDING_EVENTS.add(i64::try_from(events).unwrap_or(i64::MAX));
        let (waker, courier) = (state.frame_waker.take(), state.courier.take());
        drop(state);
        match (waker, courier) {
            (Some(waker), Some(courier)) => rounds.add(waker, courier),
            (Some(waker), None) => waker.wake(),
            (None, _) => {}
        }
        credit
    }

    /// Ends the stream; responses that wait are lost.
    pub(super) fn end(&self, end: End) {
        let mut state = self.lock();
        state.end.get_or_insert(end);
        state.discard();
        let waker = state.frame_waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change, so a poisoned state is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Moves all responses to `into`, which is empty, and says whether the hub wants to know.
    fn take(&mut self, into: &mut VecDeque<Frame>) -> bool {
        assert!(into.is_empty(), "{} responses have not been sent yet", into.len());
        std::mem::swap(&mut self.frames, into);
        self.account();
        std::mem::take(&mut self.hub_waits) && !std::mem::replace(&mut self.rung, true)
    }

    fn discard(&mut self) {
        self.frames = VecDeque::new();
        self.account();
    }

    /// What was queued is not any more.
    fn account(&mut self) {
        self.taken += std::mem::take(&mut self.queued);
        let events = std::mem::take(&mut self.queued_events);
        PENDING_EVENTS.sub(i64::try_from(events).unwrap_or(i64::MAX));
        EVENTS.inc_by(events as u64);
    }
}
