//! A bounded queue between threads that is drained, not popped.
//!
//! Decides how batches form: whatever arrived while the consumer was busy is its next batch. The
//! consumer sleeps only on an empty queue, and a producer wakes it only when the queue stops being
//! empty, so a hand-over costs one wake-up per batch. A consumer that could not act on some items yet
//! lets those of patient producers lie, and is woken by the others only.
//!
//! Invariants
//! - Q1 Items leave in the order in which they came.
//! - Q2 At most `items_max` items wait, and those of reserved producers.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The producers' end. Cloning shares it.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

/// The consumer's end.
#[derive(Debug)]
pub struct Receiver<T>(Arc<Shared<T>>);

/// Why an item was not taken; it is handed back.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused<T> {
    /// The queue is at its bound.
    Full(T),
    /// The consumer is gone.
    Closed(T),
}

/// What a wait came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// At least one item was taken.
    Items,
    /// The time was up.
    TimedOut,
    /// The queue is empty and every producer is gone.
    Closed,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    not_empty: Condvar,
    not_full: Condvar,
    items_max: usize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    /// Whether an item waits whose producer was not patient.
    urgent: bool,
    senders: usize,
    receiver_gone: bool,
    /// What the consumer sleeps for, if it does.
    sleep: Option<WakeFor>,
}

/// What ends the sleep of a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeFor {
    /// Any item.
    Any,
    /// Items of producers that are not patient.
    Urgent,
}

impl<T> State<T> {
    fn has(&self, wanted: WakeFor) -> bool {
        match wanted {
            WakeFor::Any => !self.items.is_empty(),
            WakeFor::Urgent => self.urgent,
        }
    }
}

/// A queue for at most `items_max` items.
#[must_use]
pub fn bounded<T>(items_max: usize) -> (Sender<T>, Receiver<T>) {
    assert!(0 < items_max, "a queue needs room");
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            items: VecDeque::new(),
            urgent: false,
            senders: 1,
            receiver_gone: false,
            sleep: None,
        }),
        not_empty: Condvar::new(),
        not_full: Condvar::new(),
        items_max,
    });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing panics while it holds the lock, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Sender<T> {
    /// Queues `item` without waiting.
    ///
    /// # Errors
    /// - [`Refused::Full`] at the bound, [`Refused::Closed`] without a consumer.
    pub fn try_send(&self, item: T) -> Result<(), Refused<T>> {
        self.queue(item, WakeFor::Urgent)
    }

    /// As [`Sender::try_send`], for an item that may lie until something urgent comes.
    ///
    /// # Errors
    /// As there.
    pub fn try_send_patient(&self, item: T) -> Result<(), Refused<T>> {
        self.queue(item, WakeFor::Any)
    }

    fn queue(&self, item: T, wakes: WakeFor) -> Result<(), Refused<T>> {
        let state = self.0.lock();
        if state.receiver_gone {
            return Err(Refused::Closed(item));
        }
        if self.0.items_max <= state.items.len() {
            return Err(Refused::Full(item));
        }
        self.push(state, item, wakes);
        Ok(())
    }

    /// Queues `item`, waiting for room. Not for asynchronous tasks.
    ///
    /// # Errors
    /// - [`Refused::Closed`] without a consumer.
    pub fn send(&self, item: T) -> Result<(), Refused<T>> {
        let mut state = self.0.lock();
        while self.0.items_max <= state.items.len() && !state.receiver_gone {
            state = self.0.not_full.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.receiver_gone {
            return Err(Refused::Closed(item));
        }
        self.push(state, item, WakeFor::Urgent);
        Ok(())
    }

    /// Queues `item` even beyond the bound. For a producer whose own waiting items are bounded
    /// elsewhere, and who must never wait for this consumer because the consumer may wait for it.
    ///
    /// # Errors
    /// - [`Refused::Closed`] without a consumer.
    pub fn send_reserved(&self, item: T) -> Result<(), Refused<T>> {
        let state = self.0.lock();
        if state.receiver_gone {
            return Err(Refused::Closed(item));
        }
        self.push(state, item, WakeFor::Urgent);
        Ok(())
    }

    /// `wakes` is what a consumer must sleep for at least that the item wakes it.
    fn push(&self, mut state: MutexGuard<'_, State<T>>, item: T, wakes: WakeFor) {
        state.items.push_back(item);
        state.urgent |= wakes == WakeFor::Urgent;
        let wake = state.sleep.is_some_and(|wanted| state.has(wanted));
        if wake {
            state.sleep = None;
        }
        drop(state);
        if wake {
            self.0.not_empty.notify_one();
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.senders -= 1;
        if state.senders == 0 {
            drop(state);
            self.0.not_empty.notify_one();
        }
    }
}

impl<T> Receiver<T> {
    /// Moves everything that waits to the end of `batch`, sleeping while there is nothing; for at
    /// most `timeout`, if one is given.
    pub fn drain(&mut self, batch: &mut Vec<T>, timeout: Option<Duration>) -> Drained {
        self.drain_when(WakeFor::Any, batch, timeout)
    }

    /// As [`Receiver::drain`], but sleeps on until something of the wanted kind has come.
    pub fn drain_when(
        &mut self,
        wanted: WakeFor,
        batch: &mut Vec<T>,
        timeout: Option<Duration>,
    ) -> Drained {
        let mut state = self.0.lock();
        while !state.has(wanted) {
            if state.senders == 0 {
                if state.items.is_empty() {
                    return Drained::Closed;
                }
                break;
            }
            state.sleep = Some(wanted);
            match timeout {
                None => {
                    state = self.0.not_empty.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Some(timeout) => {
                    let (again, result) = self
                        .0
                        .not_empty
                        .wait_timeout(state, timeout)
                        .unwrap_or_else(PoisonError::into_inner);
                    state = again;
                    if result.timed_out() && !state.has(wanted) {
                        break;
                    }
                }
            }
        }
        state.sleep = None;
        if state.items.is_empty() {
            return Drained::TimedOut;
        }
        self.move_all(state, batch);
        Drained::Items
    }

    /// As [`Receiver::drain`], without sleeping.
    pub fn take(&mut self, batch: &mut Vec<T>) {
        self.move_all(self.0.lock(), batch);
    }

    fn move_all(&self, mut state: MutexGuard<'_, State<T>>, batch: &mut Vec<T>) {
        let was_full = self.0.items_max <= state.items.len();
        batch.extend(state.items.drain(..));
        state.urgent = false;
        drop(state);
        if was_full {
            self.0.not_full.notify_all();
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.receiver_gone = true;
        let orphans = std::mem::take(&mut state.items);
        drop(state);
        drop(orphans);
        self.0.not_full.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_waits_leaves_as_one_batch() {
        let (sender, mut receiver) = bounded(4);
        for item in 0..3 {
            sender.try_send(item).expect("there is room");
        }
        let mut batch = Vec::new();
        assert_eq!(receiver.drain(&mut batch, None), Drained::Items);
        assert_eq!(batch, [0, 1, 2]);
    }

    #[test]
    fn full_queue_hands_the_item_back() {
        let (sender, _receiver) = bounded(1);
        sender.try_send(1).expect("there is room");
        assert_eq!(sender.try_send(2), Err(Refused::Full(2)));
    }

    #[test]
    fn patient_items_lie_until_an_urgent_one_comes_or_the_time_is_up() {
        let (sender, mut receiver) = bounded(4);
        sender.try_send_patient(1).expect("there is room");
        let mut batch = Vec::new();
        let short = Some(Duration::from_millis(1));
        assert_eq!(receiver.drain_when(WakeFor::Urgent, &mut batch, short), Drained::Items);
        assert_eq!(batch, [1], "nothing is left behind when the time is up");
        let urgent = sender.clone();
        sender.try_send_patient(2).expect("there is room");
        let thread = crate::base::thread::spawn(
            "urgent",
            crate::base::thread::Priority::Normal,
            move || {
                urgent.try_send(3).expect("there is room");
            },
        );
        assert_eq!(receiver.drain_when(WakeFor::Urgent, &mut batch, None), Drained::Items);
        assert_eq!(batch, [1, 2, 3]);
        thread.expect("a thread").join().expect("no panic");
        sender.try_send_patient(4).expect("there is room");
        assert_eq!(receiver.drain(&mut batch, None), Drained::Items, "any item ends this sleep");
        sender.try_send_patient(5).expect("there is room");
        drop(sender);
        assert_eq!(receiver.drain_when(WakeFor::Urgent, &mut batch, None), Drained::Items);
        assert_eq!(receiver.drain_when(WakeFor::Urgent, &mut batch, None), Drained::Closed);
    }

    #[test]
    fn consumer_learns_that_the_last_producer_left() {
        let (sender, mut receiver) = bounded::<u8>(1);
        drop(sender.clone());
        assert_eq!(receiver.drain(&mut Vec::new(), Some(Duration::ZERO)), Drained::TimedOut);
        drop(sender);
        assert_eq!(receiver.drain(&mut Vec::new(), None), Drained::Closed);
    }
}
