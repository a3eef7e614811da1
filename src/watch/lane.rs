//! A hub with its mail and its clients, and who works for it when.
//!
//! Decides the order of work in a round: what was published comes first, so that whoever saw a
//! revision and then asks finds it in the hub; then requests, notifications and one turn of
//! catching up. Rounds are the watch thread's. But few events for few watchers are delivered by
//! the applier itself, right after it made them visible: then events leave together with the
//! answer to the write that they tell of, and the hand-over to another thread is saved. Used by
//! `thread`.
//!
//! ```text
//!   applier: publish ---> Mailbox --- many events, or the hub is at work ---> watch thread: round
//!            deliver_few -----------> else: takes them, Hub.publish
//! ```
//!
//! Invariants
//! - A1 Mail is taken only by who has the work locked, so the hub sees publications in order.
//! - A2 The applier does not wait for the lock, a disk or a client; how much it delivers is bounded
//!   ([`OFFERS_MAX`]).

use std::{
    fmt,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, TryLockError},
    time::Duration,
};

use tracing::debug;

use super::{
    history::History,
    hub::{Hub, StreamId},
    link::{End, Link},
    mailbox::{Mail, Mailbox},
    thread::TermSource,
};
use crate::{
    base::{
        clock::Clock,
        courier::Rounds,
        metrics::{Histogram, histogram},
    },
    mvcc::EventBatch,
};

/// Events times watchers that the applier delivers itself: at most some 50 microseconds of work.
const OFFERS_MAX: usize = 256;

static PROGRESS_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "etcd_debugging_server_watch_send_loop_progress_duration_seconds",
        "The total duration in seconds of running through the progress loop control stream \
         response.",
        0.001,
        14,
    )
});

/// Makes the series of this file exist from the start.
pub(super) fn register_metrics() {
    LazyLock::force(&PROGRESS_SECONDS);
}

/// Everything of one watch thread.
pub(super) struct Lane<H> {
    pub(super) mailbox: Arc<Mailbox<H>>,
    work: Mutex<Work>,
}

/// What is done for the streams of a hub.
struct Work {
    hub: Hub,
    /// By the number of the stream.
    links: Vec<Option<Arc<Link>>>,
    clock: Clock,
    term: TermSource,
    rounds: Rounds,
}

impl<H: History + Clone + Send> Lane<H> {
    pub(super) fn new(hub: Hub, view: &H, clock: Clock, term: TermSource) -> Self {
        let work = Work { hub, links: Vec::new(), clock, term, rounds: Rounds::default() };
        Self { mailbox: Arc::new(Mailbox::new(view.clone())), work: Mutex::new(work) }
    }

    /// Serves until the mailbox says that the service stops. Waiting for mail, or for the applier
    /// to have delivered some, is all that blocks.
    pub(super) fn serve(&self) {
        let mut patience = None;
        loop {
            self.mailbox.wait(patience);
            let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
            let mail = self.mailbox.take();
            if mail.stopping {
                return work.end();
            }
            work.round(mail, &self.mailbox);
            patience = work.patience();
        }
    }

    /// Delivers what has been published if that is little, and else has the watch thread do it.
    /// Readers are woken at the latest by `rounds`.
    pub(super) fn deliver_few(&self, rounds: &mut Rounds) {
        let events = self.mailbox.events();
        if events == 0 {
            return;
        }
        let Some(mut work) = self.free_work().filter(|work| work.is_light(events)) else {
            return self.mailbox.wake();
        };
        let (batches, view) = self.mailbox.take_published();
        work.publish(&view, &batches, rounds);
        if work.hub.is_behind() {
            drop(work);
            self.mailbox.nudge();
        }
    }

    /// The work, if nobody is at it.
    fn free_work(&self) -> Option<MutexGuard<'_, Work>> {
        match self.work.try_lock() {
            Ok(work) => Some(work),
            // A panic ends the process.
            Err(TryLockError::Poisoned(work)) => Some(work.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl<H> fmt::Debug for Lane<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").finish_non_exhaustive()
    }
}

impl Work {
    /// How long to sleep at most.
    fn patience(&self) -> Option<Duration> {
        if self.hub.is_behind() {
            return Some(Duration::ZERO);
        }
        let due = self.hub.next_deadline()?;
        Some(due.saturating_sub(self.clock.now()))
    }

    /// Whether to deliver so many events takes a moment only (A2). Who wants to know what was
    /// there before may make it read that from the disk.
    fn is_light(&self, events: usize) -> bool {
        events.saturating_mul(self.hub.watchers_len()) <= OFFERS_MAX && !self.hub.reads_previous()
    }

    fn publish(&mut self, view: &impl History, batches: &[EventBatch], rounds: &mut Rounds) {
        self.hub.set_term((self.term)());
        self.hub.publish(view, batches);
        self.hand_over(rounds);
    }

    fn round<H: History + Clone + Send>(&mut self, mail: Mail<H>, mailbox: &Mailbox<H>) {
        let now = self.clock.now();
        self.hub.set_term((self.term)());
        self.hub.publish(&mail.view, &mail.batches);
        for link in mail.rung {
            self.serve(link, now, mailbox);
        }
        if self.hub.next_deadline().is_some_and(|due| due <= now) {
            self.hub.tick(now);
            PROGRESS_SECONDS.observe(self.clock.now().saturating_sub(now).as_secs_f64());
        }
        // Fresh events do not wait for those who read history; answers do, because most of those
        // who have just begun to watch read history too, and are woken once then.
        if !mail.batches.is_empty() {
            self.flush();
        }
        if self.hub.is_behind() {
            self.hub.catch_up(&mail.view);
        }
        self.flush();
    }

    /// Looks at a link that rang.
    fn serve<H: Clone>(&mut self, link: Arc<Link>, now: Duration, mailbox: &Mailbox<H>) {
        let news = link.look();
        if news.closed {
            mailbox.forget_link();
            return self.forget(news.stream);
        }
        let stream = news.stream.unwrap_or_else(|| self.admit(&link, now));
        self.hub.give_room(stream, news.credit);
        loop {
            while self.hub.accepts(stream)
                && let Some(request) = link.next_request()
            {
                self.hub.handle(stream, request, now);
            }
            // Either nothing is left to ask, or the next take of responses rings.
            let credit = link.await_room();
            if credit.frames == 0 {
                return;
            }
            self.hub.give_room(stream, credit);
        }
    }

    fn admit(&mut self, link: &Arc<Link>, now: Duration) -> StreamId {
        let stream = self.hub.open(now);
        link.name(stream);
        let place = stream.0 as usize;
        if self.links.len() <= place {
            self.links.resize(place + 1, None);
        }
        let before = self.links[place].replace(Arc::clone(link));
        assert!(before.is_none(), "{stream:?} has a link already");
        stream
    }

    /// A client is gone. It may never have been looked at, or its stream was broken off before.
    fn forget(&mut self, stream: Option<StreamId>) {
        let Some(stream) = stream else { return };
        self.links[stream.0 as usize] = None;
        self.hub.close(stream);
    }

    fn flush(&mut self) {
        let mut rounds = std::mem::take(&mut self.rounds);
        self.hand_over(&mut rounds);
        rounds.go();
        self.rounds = rounds;
    }

    /// Hands over what the hub has queued.
    fn hand_over(&mut self, rounds: &mut Rounds) {
        for stream in self.hub.take_broken() {
            // The number stays in use until the client has gone.
            let link = self.links[stream.0 as usize].as_ref().expect("the stream is open");
            link.end(End::Damaged);
        }
        while let Some(stream) = self.hub.take_dirty() {
            let link = self.links[stream.0 as usize].as_ref().expect("the stream is open");
            let (outbox, watchers_wait) = self.hub.outbox(stream);
            let credit = link.deliver(outbox, watchers_wait, rounds);
            self.hub.give_room(stream, credit);
        }
    }

    fn end(&mut self) {
        debug!(streams = self.hub.streams_len(), "stopped watch thread");
        for link in self.links.drain(..).flatten() {
            link.end(End::Stopped);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Poll};

    use futures::executor::block_on;

    use super::*;
    use crate::{
        base::random::Random,
        watch::{
            fake::{Change, FakeHistory, TERM, settings},
            link::{Ring, WatchStream},
            request::{CreateWatch, Request},
            tests::single,
        },
    };

    /// A lane whose thread works when it is told to.
    struct Bench {
        lane: Lane<FakeHistory>,
        history: FakeHistory,
        stream: WatchStream,
    }

    impl Bench {
        fn with_watchers(watchers: usize, create: &CreateWatch) -> Self {
            let history = FakeHistory::new();
            let hub = Hub::new(settings(3), history.revision(), Random::from_seed(1));
            let term: TermSource = Arc::new(|| TERM);
            let lane = Lane::new(hub, &history, Clock::system(), term);
            let stream = WatchStream::open(Arc::clone(&lane.mailbox) as Arc<dyn Ring>);
            let mut bench = Self { lane, history, stream };
            for _ in 0..watchers {
                bench.stream.send(Request::Create(create.clone()));
                bench.work();
                assert_eq!(bench.heard(), 0, "only that it was created");
            }
            bench.work();
            bench
        }

        /// A round of the watch thread, if it would not sleep.
        fn work(&mut self) -> bool {
            if self.lane.mailbox.is_idle() {
                return false;
            }
            let mail = self.lane.mailbox.take();
            self.lane.free_work().expect("nobody is at it").round(mail, &self.lane.mailbox);
            true
        }

        /// Writes `times`, makes that visible and delivers it as the applier does.
        fn write(&mut self, times: usize) {
            let before = self.history.batches.len();
            (0..times).for_each(|_| self.history.write(&[Change::Put("a")]));
            self.lane.mailbox.publish(&self.history.batches[before..], &self.history);
            let mut rounds = Rounds::default();
            self.lane.deliver_few(&mut rounds);
            rounds.go();
        }

        /// How many events the responses at hand carry.
        fn heard(&mut self) -> usize {
            let next = |stream: &mut WatchStream| {
                block_on(poll_fn(|context| Poll::Ready(stream.poll_frame(context))))
            };
            let mut events = 0;
            while let Poll::Ready(frame) = next(&mut self.stream) {
                events += frame.expect("the service runs").events_len();
            }
            events
        }
    }

    #[test]
    fn few_events_are_delivered_without_the_watch_thread() {
        let mut bench = Bench::with_watchers(2, &single("a"));
        bench.write(1);
        assert_eq!(bench.heard(), 2);
        assert!(!bench.work(), "nothing is left to the watch thread");
    }

    #[test]
    fn many_events_and_those_that_need_old_rows_are_left_to_the_watch_thread() {
        let mut many = Bench::with_watchers(1, &single("a"));
        many.write(OFFERS_MAX + 1);
        let mut previous = Bench::with_watchers(1, &CreateWatch { previous: true, ..single("a") });
        previous.write(1);
        for bench in [&mut many, &mut previous] {
            assert_eq!(bench.heard(), 0, "A2");
            assert!(bench.work(), "the watch thread is called");
            assert!(0 < bench.heard(), "and delivers");
        }
    }

    #[test]
    fn hub_at_work_is_not_waited_for() {
        let mut bench = Bench::with_watchers(1, &single("a"));
        let work = bench.lane.work.lock().expect("no test panics");
        bench.history.write(&[Change::Put("a")]);
        bench.lane.mailbox.publish(&bench.history.batches, &bench.history);
        bench.lane.deliver_few(&mut Rounds::default());
        drop(work);
        assert!(bench.work(), "the watch thread is called");
        assert_eq!(bench.heard(), 1);
    }

    #[test]
    fn stream_that_had_no_room_goes_on_with_the_watch_thread() {
        let mut bench = Bench::with_watchers(1, &single("a"));
        for _ in 0..5 {
            bench.write(1);
        }
        let mut heard = bench.heard();
        assert_eq!(heard, 3, "its room");
        while bench.work() {
            heard += bench.heard();
        }
        assert_eq!(heard, 5, "each event once");
        bench.write(1);
        assert_eq!(bench.heard(), 1);
    }
}
