//! What reaches a watch thread: publications and links that rang.
//!
//! Decides that the newest view and the batches that lead to it are seen together or not at all:
//! a view that ran ahead of its batches would look like lost batches. That, and dropping batches
//! instead of holding up the applier, is why this is not a plain queue. Shared by the applier,
//! which never waits here, the connections' threads and one watch thread, which sleeps here.
//!
//! Invariants
//! - B1 The batches that wait end at `view`, or some before them were dropped.
//! - B2 A watch thread sees every publication that happened before a link rang no later than it
//!   sees the ring, because both are taken at once.

use std::{
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::link::{Link, Ring};
use crate::mvcc::EventBatch;

/// Events that may wait for a watch thread. Beyond it they are dropped, and watchers read them
/// from history, which takes no more memory. About 10 MiB without their rows.
const EVENTS_MAX: usize = 65_536;

/// The inputs of one watch thread.
#[derive(Debug)]
pub(super) struct Mailbox<H> {
    state: Mutex<State<H>>,
    not_empty: Condvar,
}

/// What waited in a mailbox.
#[derive(Debug)]
pub(super) struct Mail<H> {
    pub(super) batches: Vec<EventBatch>,
    pub(super) view: H,
    pub(super) rung: Vec<Arc<Link>>,
    pub(super) stopping: bool,
}

#[derive(Debug)]
struct State<H> {
    batches: Vec<EventBatch>,
    events: usize,
    view: H,
    rung: Vec<Arc<Link>>,
    /// Links that were opened and not closed yet. Without any, nobody needs batches.
    links: usize,
    sleeping: bool,
    /// There is work that is not mail.
    nudged: bool,
    stopping: bool,
}

impl<H: Clone> Mailbox<H> {
    pub(super) const fn new(view: H) -> Self {
        let state = State {
            batches: Vec::new(),
            events: 0,
            view,
            rung: Vec::new(),
            links: 0,
            sleeping: false,
            nudged: false,
            stopping: false,
        };
        Self { state: Mutex::new(state), not_empty: Condvar::new() }
    }

    /// History has grown to `view` by `batches`, or was compacted. Wakes nobody.
    pub(super) fn publish(&self, batches: &[EventBatch], view: &H) {
        let mut state = self.lock();
        // The old view is dropped after the lock: it may be the last one to hold much memory.
        let old_view = mem::replace(&mut state.view, view.clone());
        if 0 < state.links {
            state.events += batches.iter().map(|batch| batch.events.len()).sum::<usize>();
            if state.events <= EVENTS_MAX {
                state.batches.extend_from_slice(batches);
            }
        }
        drop(state);
        drop(old_view);
    }

    /// How many published events wait, those that were dropped included.
    pub(super) fn events(&self) -> usize {
        self.lock().events
    }

    /// Takes what was published, and nothing else.
    pub(super) fn take_published(&self) -> (Vec<EventBatch>, H) {
        let mut state = self.lock();
        state.events = 0;
        (mem::take(&mut state.batches), state.view.clone())
    }

    /// Whether nothing waits.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.lock().is_idle()
    }

    /// Sleeps until something waits, for at most `timeout`.
    pub(super) fn wait(&self, timeout: Option<Duration>) {
        let mut state = self.lock();
        while state.is_idle() && timeout != Some(Duration::ZERO) {
            state.sleeping = true;
            match timeout {
                None => {
                    state = self.not_empty.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Some(timeout) => {
                    let waited = self.not_empty.wait_timeout(state, timeout);
                    let (again, result) = waited.unwrap_or_else(PoisonError::into_inner);
                    state = again;
                    if result.timed_out() {
                        break;
                    }
                }
            }
        }
        state.sleeping = false;
    }

    /// Takes everything that waits.
    pub(super) fn take(&self) -> Mail<H> {
        let mut state = self.lock();
        state.events = 0;
        state.nudged = false;
        Mail {
            batches: mem::take(&mut state.batches),
            view: state.view.clone(),
            rung: mem::take(&mut state.rung),
            stopping: state.stopping,
        }
    }

    /// A link has been closed for good.
    pub(super) fn forget_link(&self) {
        self.lock().links -= 1;
    }

    /// Ends the watch thread.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        self.rouse(state);
    }

    /// Has the watch thread take what was published.
    pub(super) fn wake(&self) {
        self.rouse(self.lock());
    }

    /// Has the watch thread look at its hub, whether there is mail or not.
    pub(super) fn nudge(&self) {
        let mut state = self.lock();
        state.nudged = true;
        self.rouse(state);
    }

    fn rouse(&self, mut state: MutexGuard<'_, State<H>>) {
        let wake = mem::take(&mut state.sleeping);
        drop(state);
        if wake {
            self.not_empty.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<H>> {
        // Nothing panics half-way through a change, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<H: Clone + Send> Ring for Mailbox<H> {
    fn open(&self, link: Arc<Link>) {
        let mut state = self.lock();
        state.links += 1;
        state.rung.push(link);
        self.rouse(state);
    }

    fn ring(&self, link: Arc<Link>) {
        let mut state = self.lock();
        state.rung.push(link);
        self.rouse(state);
    }
}

impl<H> State<H> {
    fn is_idle(&self) -> bool {
        // Batches beyond the bound count: the view tells what they would have told.
        self.events == 0 && self.rung.is_empty() && !self.nudged && !self.stopping
    }
}
