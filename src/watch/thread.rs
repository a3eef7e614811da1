//! The watch threads: hubs with mail and clients.
//!
//! Decides the order of work in a round: what was published comes first, so that whoever saw a
//! revision and then asks finds it in the hub; then requests, notifications and one turn of
//! catching up. Started by `boot`, one lane per thread.

use std::{
    fmt,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tracing::debug;

use super::{
    history::History,
    hub::{Hub, Settings, StreamId},
    link::{End, Link, Ring, WatchStream},
    mailbox::{Mail, Mailbox},
};
use crate::{
    base::{
        clock::Clock,
        courier::Rounds,
        metrics::{Histogram, histogram},
        random::Random,
    },
    model::Term,
    mvcc::EventBatch,
};

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

/// The watch service. Cloning shares it.
#[derive(Debug)]
pub struct Handle<H> {
    mailboxes: Arc<[Arc<Mailbox<H>>]>,
    streams: Streams,
}

/// Opens client streams. Cloning shares it.
#[derive(Clone)]
pub struct Streams {
    bells: Arc<[Arc<dyn Ring>]>,
    next: Arc<AtomicUsize>,
}

/// One watch thread's work.
pub struct Lane<H> {
    mailbox: Arc<Mailbox<H>>,
    hub: Hub,
    /// By the number of the stream.
    links: Vec<Option<Arc<Link>>>,
    clock: Clock,
    term: TermSource,
    rounds: Rounds,
}

/// Tells the term that responses state.
pub type TermSource = Arc<dyn Fn() -> Term + Send + Sync>;

/// A watch service of `lanes` threads, which have seen history up to `view`. Each lane is to be
/// run by a thread of its own.
///
/// # Panics
/// Without lanes.
#[must_use]
pub fn start<H>(
    settings: &Settings,
    view: &H,
    lanes: usize,
    clock: &Clock,
    term: &TermSource,
    random: &mut Random,
) -> (Handle<H>, Vec<Lane<H>>)
where
    H: History + Clone + Send + 'static,
{
    assert!(0 < lanes, "somebody has to serve the streams");
    let new_lane = |_| Lane {
        mailbox: Arc::new(Mailbox::new(view.clone())),
        hub: Hub::new(settings.clone(), view.revision(), Random::from_seed(random.next())),
        links: Vec::new(),
        clock: clock.clone(),
        term: Arc::clone(term),
        rounds: Rounds::default(),
    };
    let lanes: Vec<Lane<H>> = (0..lanes).map(new_lane).collect();
    let mailboxes: Arc<[_]> = lanes.iter().map(|lane| Arc::clone(&lane.mailbox)).collect();
    let bells = mailboxes.iter().map(|mailbox| Arc::clone(mailbox) as Arc<dyn Ring>).collect();
    let streams = Streams { bells, next: Arc::default() };
    (Handle { mailboxes, streams }, lanes)
}

impl<H: Clone> Handle<H> {
    /// History has grown to `view`; `batches` are the revisions since the last call, in order.
    /// Never waits.
    ///
    /// Must be called for every view, and before anybody can see it or learns that a write in it
    /// has succeeded: a watcher created after that hears of later revisions only.
    pub fn publish(&self, batches: &[EventBatch], view: &H) {
        for mailbox in &*self.mailboxes {
            mailbox.publish(batches, view);
        }
    }

    /// Where client streams are opened.
    #[must_use]
    pub const fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Ends all streams, then the threads.
    pub fn stop(&self) {
        for mailbox in &*self.mailboxes {
            mailbox.stop();
        }
    }
}

impl<H> Clone for Handle<H> {
    fn clone(&self) -> Self {
        Self { mailboxes: Arc::clone(&self.mailboxes), streams: self.streams.clone() }
    }
}

impl Streams {
    /// Opens a client stream at the next thread in turn.
    #[must_use]
    pub fn open(&self) -> WatchStream {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.bells.len();
        WatchStream::open(Arc::clone(&self.bells[turn]))
    }
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").field("threads", &self.bells.len()).finish_non_exhaustive()
    }
}

impl<H: History + Clone + Send> Lane<H> {
    /// Serves until [`Handle::stop`]. Waiting for mail is the only blocking call.
    pub fn run(mut self) {
        loop {
            let mail = self.mailbox.take(self.patience());
            if mail.stopping {
                break;
            }
            self.round(mail);
        }
        debug!(streams = self.hub.streams_len(), "stopped watch thread");
        for link in self.links.into_iter().flatten() {
            link.end(End::Stopped);
        }
    }

    /// How long to sleep at most.
    fn patience(&self) -> Option<Duration> {
        if self.hub.is_behind() {
            return Some(Duration::ZERO);
        }
        let due = self.hub.next_deadline()?;
        Some(due.saturating_sub(self.clock.now()))
    }

    fn round(&mut self, mail: Mail<H>) {
        let now = self.clock.now();
        self.hub.set_term((self.term)());
        self.hub.publish(&mail.view, &mail.batches);
        for link in mail.rung {
            self.serve(link, now);
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
    fn serve(&mut self, link: Arc<Link>, now: Duration) {
        let news = link.look();
        if news.closed {
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
        self.mailbox.forget_link();
        let Some(stream) = stream else { return };
        self.links[stream.0 as usize] = None;
        self.hub.close(stream);
    }

    /// Hands over what the hub has queued.
    fn flush(&mut self) {
        for stream in self.hub.take_broken() {
            // The number stays in use until the client has gone.
            let link = self.links[stream.0 as usize].as_ref().expect("the stream is open");
            link.end(End::Damaged);
        }
        while let Some(stream) = self.hub.take_dirty() {
            let link = self.links[stream.0 as usize].as_ref().expect("the stream is open");
            let (outbox, watchers_wait) = self.hub.outbox(stream);
            let credit = link.deliver(outbox, watchers_wait, &mut self.rounds);
            self.hub.give_room(stream, credit);
        }
        self.rounds.go();
    }
}

impl<H> fmt::Debug for Lane<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("hub", &self.hub).finish_non_exhaustive()
    }
}
