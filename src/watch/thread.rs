//! The watch service and its threads.
//!
//! Decides which thread serves a stream. Started by `boot`, one thread per lane.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    history::History,
    hub::{Hub, Settings},
    lane::Lane,
    link::{Ring, WatchStream},
};
use crate::{
    base::{clock::Clock, courier::Rounds, random::Random},
    model::Term,
    mvcc::EventBatch,
};

/// The watch service. Cloning shares it.
#[derive(Debug)]
pub struct Handle<H> {
    lanes: Arc<[Arc<Lane<H>>]>,
    streams: Streams,
}

/// Opens client streams. Cloning shares it.
#[derive(Clone)]
pub struct Streams {
    bells: Arc<[Arc<dyn Ring>]>,
    next: Arc<AtomicUsize>,
}

/// The body of a watch thread.
#[derive(Debug)]
pub struct WatchThread<H>(Arc<Lane<H>>);

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
) -> (Handle<H>, Vec<WatchThread<H>>)
where
    H: History + Clone + Send + 'static,
{
    assert!(0 < lanes, "somebody has to serve the streams");
    let new_lane = |_| {
        let seed = Random::from_seed(random.next());
        let hub = Hub::new(settings.clone(), view.revision(), seed);
        Arc::new(Lane::new(hub, view, clock.clone(), Arc::clone(term)))
    };
    let lanes: Arc<[Arc<Lane<H>>]> = (0..lanes).map(new_lane).collect();
    let bells = lanes.iter().map(|lane| Arc::clone(&lane.mailbox) as Arc<dyn Ring>).collect();
    let streams = Streams { bells, next: Arc::default() };
    let threads = lanes.iter().cloned().map(WatchThread).collect();
    (Handle { lanes, streams }, threads)
}

impl<H: History + Clone + Send> Handle<H> {
    /// History has grown to `view`; `batches` are the revisions since the last call, in order.
    /// Never waits.
    ///
    /// Must be called for every view, and before anybody can see it or learns that a write in it
    /// has succeeded: a watcher created after that hears of later revisions only.
    pub fn publish(&self, batches: &[EventBatch], view: &H) {
        for lane in &*self.lanes {
            lane.mailbox.publish(batches, view);
        }
    }

    /// Has watchers hear of what was published, once everybody can see it: whoever hears of a
    /// revision finds it. Never waits. Some streams' tasks are woken only by `rounds`.
    pub fn deliver(&self, rounds: &mut Rounds) {
        for lane in &*self.lanes {
            lane.deliver_few(rounds);
        }
    }

    /// Where client streams are opened.
    #[must_use]
    pub const fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Ends all streams, then the threads.
    pub fn stop(&self) {
        for lane in &*self.lanes {
            lane.mailbox.stop();
        }
    }
}

impl<H> Clone for Handle<H> {
    fn clone(&self) -> Self {
        Self { lanes: Arc::clone(&self.lanes), streams: self.streams.clone() }
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

impl<H: History + Clone + Send> WatchThread<H> {
    /// Serves until [`Handle::stop`].
    pub fn run(self) {
        self.0.serve();
    }
}
