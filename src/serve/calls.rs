//! The calls of one HTTP/2 connection that have not ended, and who of them wants to go on.
//!
//! Decides how a call is woken: each has a waker of its own that notes the call's place, and wakes
//! the connection's task only if it sleeps. So a hundred answers that come together cost one poll
//! of the task and one of each call, and nobody is polled in vain. Owned by `driver`.
//!
//! ```text
//!   apply thread --wake--> place noted --first one only--> task of the connection
//!                                                               `--> polls the noted places
//! ```
//!
//! Invariants
//! - L1 A place that was woken is in the list until it is taken out to be polled.
//! - L2 Once the connection has ended, no place is in the list.
//! - L3 `Load::requests` counts the calls here whose answer has not begun, until they are dropped.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

use ::http::Response;

use super::{http2::Key, workers::Load};
use crate::{
    api::{
        answer::Payload,
        body::Body,
        metadata::Metadata,
        rpc::Rpc,
        status::Failure,
        wire::{Deframer, Inlet},
    },
    http,
};

/// What a call came to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// An answer of gRPC's.
    Grpc(Result<Payload, Failure>),
    /// Any other.
    Plain(Response<http::Body>),
}

/// A call on its way to its outcome.
pub(super) type Run = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Where a call stands.
pub(super) enum Work {
    /// Its message has not come completely.
    Gathering(Box<Gathering>),
    /// Its outcome is awaited; what the client still sends does not matter.
    Running(Run),
    /// Its answer has begun.
    Streaming(Body, Option<Inlet>),
}

/// A call with one question, before it runs.
#[derive(Debug)]
pub(super) struct Gathering {
    pub(super) rpc: Rpc,
    pub(super) metadata: Metadata,
    pub(super) deframer: Deframer,
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gathering(_) => "Gathering",
            Self::Running(_) => "Running",
            Self::Streaming(..) => "Streaming",
        })
    }
}

/// What may be woken besides calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The end of the server.
    Stop,
    /// The time to look for signs of life.
    Timer,
    /// A call.
    Call(usize),
}

/// The calls of a connection.
#[derive(Debug)]
pub(super) struct Calls {
    places: Vec<Option<(Key, Work)>>,
    wakers: Vec<Waker>,
    woken: Arc<Woken>,
    load: Arc<Load>,
}

/// Those who want to go on.
#[derive(Debug, Default)]
pub(super) struct Woken(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    places: Vec<Arc<PlaceWaker>>,
    task: Option<Waker>,
    asleep: bool,
    /// The connection has ended.
    over: bool,
}

#[derive(Debug)]
pub(super) struct PlaceWaker {
    place: Place,
    listed: AtomicBool,
    woken: Arc<Woken>,
}

impl Wake for PlaceWaker {
    fn wake(self: Arc<Self>) {
        if self.listed.swap(true, Ordering::AcqRel) {
            return;
        }
        let woken = Arc::clone(&self.woken);
        let mut list = woken.lock();
        if list.over {
            return;
        }
        list.places.push(self);
        let task = if std::mem::take(&mut list.asleep) { list.task.clone() } else { None };
        drop(list);
        if let Some(task) = task {
            task.wake();
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.listed.load(Ordering::Acquire) {
            Arc::clone(self).wake();
        }
    }
}

impl PlaceWaker {
    /// Whose.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// To be called before its owner is polled: what happens from now on wakes it again.
    pub(super) fn take(&self) {
        self.listed.store(false, Ordering::Release);
    }
}

impl Woken {
    fn lock(&self) -> MutexGuard<'_, List> {
        // Nothing panics half-way through a change, so a poisoned list is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A waker that notes `place`.
    pub(super) fn waker(self: &Arc<Self>, place: Place) -> Arc<PlaceWaker> {
        let woken = Arc::clone(self);
        Arc::new(PlaceWaker { place, listed: AtomicBool::new(false), woken })
    }

    /// The task runs, so nobody has to wake it.
    pub(super) fn awake(&self) {
        self.lock().asleep = false;
    }

    /// Has `task` woken by the next one. False if somebody was noted meanwhile.
    pub(super) fn sleep(&self, task: &Waker) -> bool {
        let mut list = self.lock();
        if !list.places.is_empty() {
            return false;
        }
        if !list.task.as_ref().is_some_and(|known| known.will_wake(task)) {
            list.task = Some(task.clone());
        }
        list.asleep = true;
        true
    }

    /// Notes nobody from now on. Whoever is noted keeps this alive, so that has to end once.
    pub(super) fn end(&self) {
        let ended = List { over: true, ..List::default() };
        // What is dropped here may wake others, so not while the list is locked.
        let before = std::mem::replace(&mut *self.lock(), ended);
        drop(before);
    }

    /// Exchanges those noted for an empty list.
    pub(super) fn swap(&self, empty: &mut Vec<Arc<PlaceWaker>>) {
        assert!(empty.is_empty(), "{} places have not been polled", empty.len());
        std::mem::swap(&mut self.lock().places, empty);
    }
}

impl Calls {
    /// No calls; they will count in `load`.
    pub(super) const fn new(woken: Arc<Woken>, load: Arc<Load>) -> Self {
        Self { places: Vec::new(), wakers: Vec::new(), woken, load }
    }

    /// Keeps a call at its stream's place.
    pub(super) fn put(&mut self, key: Key, work: Work) {
        while self.places.len() <= key.place() {
            self.places.push(None);
        }
        if counts(&work) {
            self.load.add_request();
        }
        let before = self.places[key.place()].replace((key, work));
        assert!(before.is_none(), "{key:?} takes the place of {before:?}");
    }

    /// The call of a stream.
    pub(super) fn get(&mut self, key: Key) -> Option<&mut Work> {
        let (owner, work) = self.places.get_mut(key.place())?.as_mut()?;
        (*owner == key).then_some(work)
    }

    /// Takes the call of a stream out.
    pub(super) fn take(&mut self, key: Key) -> Option<Work> {
        let found = self.places.get_mut(key.place())?;
        let (_, work) = found.take_if(|(owner, _)| *owner == key)?;
        if counts(&work) {
            self.load.remove_request();
        }
        Some(work)
    }

    /// Who has a call at a place.
    pub(super) fn key_at(&self, place: usize) -> Option<Key> {
        self.places.get(place)?.as_ref().map(|(key, _)| *key)
    }

    /// What wakes the call of a stream.
    pub(super) fn waker(&mut self, key: Key) -> &Waker {
        while self.wakers.len() <= key.place() {
            let place = Place::Call(self.wakers.len());
            self.wakers.push(self.woken.waker(place).into());
        }
        &self.wakers[key.place()]
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.woken.end();
        for (_, work) in self.places.drain(..).flatten() {
            if counts(&work) {
                self.load.remove_request();
            }
        }
    }
}

const fn counts(work: &Work) -> bool {
    match work {
        Work::Gathering(_) | Work::Running(_) => true,
        Work::Streaming(..) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::serve::http2::tests::first_request;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn places(woken: &Woken) -> Vec<Place> {
        let mut taken = Vec::new();
        woken.swap(&mut taken);
        taken.iter().for_each(|waker| waker.take());
        taken.iter().map(|waker| waker.place()).collect()
    }

    #[test]
    fn sleeping_task_is_woken_once_for_all_places() {
        let woken = Arc::<Woken>::default();
        let count = Arc::<Count>::default();
        let task = Waker::from(Arc::clone(&count));
        let wakers = [0, 1, 2].map(|place| Waker::from(woken.waker(Place::Call(place))));
        assert!(woken.sleep(&task), "nobody was woken");
        for waker in [&wakers[2], &wakers[0], &wakers[2]] {
            waker.wake_by_ref();
        }
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "the first one woke the task");
        assert!(!woken.sleep(&task), "there is something to do");
        assert_eq!(places(&woken), [Place::Call(2), Place::Call(0)], "each once");
        wakers[0].wake_by_ref();
        assert_eq!(places(&woken), [Place::Call(0)], "again, after it was taken");
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "the task was awake");
    }

    #[test]
    fn ended_connection_is_not_kept_by_those_who_would_wake_it() {
        let woken = Arc::<Woken>::default();
        let count = Arc::<Count>::default();
        let load = Arc::<Load>::default();
        let mut calls = Calls::new(Arc::clone(&woken), Arc::clone(&load));
        let key = first_request();
        let left = calls.waker(key).clone();
        calls.put(key, Work::Running(Box::pin(std::future::pending())));
        assert_eq!(load.requests(), 1, "L3");
        assert!(woken.sleep(&Arc::clone(&count).into()), "nobody was woken");
        drop(calls);
        left.wake_by_ref();
        assert_eq!((load.requests(), places(&woken)), (0, vec![]), "L2 and L3");
        drop(left);
        assert_eq!((Arc::strong_count(&woken), Arc::strong_count(&count)), (1, 1), "kept");
    }
}
