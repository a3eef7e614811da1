//! Wakes many tasks of another thread's runtime with one wake-up of that thread.
//!
//! Decides how wake-ups cross threads: a task that is woken from outside of its runtime costs a
//! system call, each time. A thread that has something for a hundred tasks hands their wakers to
//! the courier of their thread instead, a task that is woken once and then wakes the others from
//! within. Used where one thread answers many waiting tasks at once.
//!
//! ```text
//!   other thread: Rounds.add(waker, courier) x 100, Rounds.go
//!                                                      | one system call
//!   thread of the runtime:  courier's task <-----------+
//!                              `--> wakes 100 tasks, no system call
//! ```
//!
//! A thread may also sleep beside its runtime, which then hears of nothing but what is handed over.
//!
//! Invariants
//! - C1 A waker that was handed over is woken, even if the runtime stops meanwhile.
//! - C2 What is handed over ends the sleep of its thread, or keeps it from sleeping.

use std::{
    cell::RefCell,
    future::poll_fn,
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use super::task;

/// The way into one thread's runtime.
#[derive(Debug, Default)]
pub struct Courier {
    state: Mutex<State>,
    handed_over: Condvar,
}

/// Wakers on their way, by courier.
#[derive(Debug, Default)]
pub struct Rounds(Vec<(Arc<Courier>, Vec<Waker>)>);

#[derive(Debug, Default)]
struct State {
    wakers: Vec<Waker>,
    task: Option<Waker>,
    asleep: bool,
    /// The runtime has stopped, and the courier's task with it.
    gone: bool,
}

thread_local! {
    static OF_THIS_THREAD: RefCell<Option<Arc<Courier>>> = const { RefCell::new(None) };
}

impl Courier {
    /// The courier of the calling thread, whose runtime has one thread only. Starts it on first
    /// use.
    ///
    /// # Panics
    /// Outside of a runtime.
    #[must_use]
    pub fn of_this_thread() -> Arc<Self> {
        OF_THIS_THREAD.with_borrow_mut(|courier| match courier {
            Some(courier) if !courier.lock().gone => Arc::clone(courier),
            _ => Arc::clone(courier.insert(Self::start())),
        })
    }

    fn start() -> Arc<Self> {
        let courier = Arc::<Self>::default();
        let duty = Duty(Arc::clone(&courier));
        // The task ends with the runtime.
        drop(task::spawn(poll_fn(move |context| duty.poll(context))));
        courier
    }

    /// Makes the calling thread sleep for `time`, but no longer than until its courier gets
    /// something. Meanwhile nothing else that happens to its runtime is noticed.
    pub fn sleep_on_this_thread(time: Duration) {
        if let Some(courier) = OF_THIS_THREAD.with_borrow(Option::clone) {
            courier.sleep(time);
        }
    }

    fn sleep(&self, time: Duration) {
        let mut state = self.lock();
        state.asleep = true;
        let waited = self.handed_over.wait_timeout_while(state, time, |state| {
            // C2. Without a task nobody would notice what is handed over.
            state.wakers.is_empty() && state.task.is_some()
        });
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.asleep = false;
        let task = if state.wakers.is_empty() { None } else { state.task.take() };
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
    }

    fn hand_over(&self, wakers: Vec<Waker>) {
        let mut state = self.lock();
        if state.gone {
            drop(state);
            return wakers.into_iter().for_each(Waker::wake);
        }
        state.wakers.extend(wakers);
        if state.asleep {
            // It wakes the task itself, which costs no system call there.
            drop(state);
            return self.handed_over.notify_one();
        }
        let task = state.task.take();
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rounds {
    /// Takes a waker along.
    pub fn add(&mut self, waker: Waker, courier: Arc<Courier>) {
        match self.0.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &courier)) {
            Some((_, wakers)) => wakers.push(waker),
            None => self.0.push((courier, vec![waker])),
        }
    }

    /// Wakes everybody.
    pub fn go(&mut self) {
        for (courier, wakers) in self.0.drain(..) {
            courier.hand_over(wakers);
        }
    }
}

/// The courier's task, as long as its runtime keeps it.
struct Duty(Arc<Courier>);

impl Duty {
    fn poll(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        let wakers = mem::take(&mut state.wakers);
        state.task = Some(context.waker().clone());
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        Poll::Pending
    }
}

impl Drop for Duty {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.gone = true;
        let wakers = mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
    };

    use super::*;
    use crate::base::thread::{self, Priority};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn send(count: &Arc<Count>, courier: &Arc<Courier>, times: usize) {
        let mut rounds = Rounds::default();
        for _ in 0..times {
            rounds.add(Arc::clone(count).into(), Arc::clone(courier));
        }
        rounds.go();
    }

    #[test]
    fn every_waker_handed_over_is_woken_even_after_the_runtime() {
        let count = Arc::<Count>::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let courier = runtime.block_on(async {
            let courier = Courier::of_this_thread();
            assert!(Arc::ptr_eq(&courier, &Courier::of_this_thread()), "one per thread");
            for round in 1..=3 {
                send(&count, &courier, 5);
                while count.0.load(Ordering::Relaxed) < 5 * round {
                    tokio::task::yield_now().await;
                }
            }
            courier
        });
        send(&count, &courier, 1);
        drop(runtime);
        assert_eq!(count.0.load(Ordering::Relaxed), 16, "the stopping runtime lost a waker");
        send(&count, &courier, 1);
        assert_eq!(count.0.load(Ordering::Relaxed), 17, "a stopped runtime has no courier");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let next = runtime.block_on(async { Courier::of_this_thread() });
        assert!(!Arc::ptr_eq(&courier, &next), "a new runtime needs a new courier");
    }

    #[test]
    fn sleeping_thread_is_roused_by_what_is_handed_over() {
        const LONG: Duration = Duration::from_secs(600);
        let count = Arc::<Count>::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let courier = Courier::of_this_thread();
            Courier::sleep_on_this_thread(LONG);
            assert!(!courier.lock().asleep, "nobody would have noticed: its task has not begun");
            while courier.lock().task.is_none() {
                tokio::task::yield_now().await;
            }

            let (sent, other) = (Arc::clone(&count), Arc::clone(&courier));
            let helper = thread::spawn("helper", Priority::Normal, move || {
                while !other.lock().asleep {
                    std::thread::yield_now();
                }
                send(&sent, &other, 1);
            })
            .expect("another thread can be had");
            Courier::sleep_on_this_thread(LONG);
            helper.join().expect("it does not panic");
            Courier::sleep_on_this_thread(LONG);
            assert_eq!(count.0.load(Ordering::Relaxed), 0, "C2: it waits for the task");
            while count.0.load(Ordering::Relaxed) < 1 {
                tokio::task::yield_now().await;
            }
        });
    }
}
