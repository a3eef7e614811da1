//! One answer from another thread to one waiting task.
//!
//! Decides how answers that leave together travel together: whoever sends many adds the wake-ups
//! to [`Rounds`], so that each receiving thread is woken once, whatever the number of tasks. Used
//! where a thread answers the callers of a whole batch.

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use super::courier::{Courier, Rounds};

/// The end that answers. Dropped without an answer, it ends the waiting with [`Unanswered`].
#[derive(Debug)]
pub struct Reply<T>(Option<Arc<Slot<T>>>);

/// The end that waits: a future, on a runtime with one thread.
#[derive(Debug)]
pub struct Answer<T>(Arc<Slot<T>>);

/// Nobody will answer any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered;

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody will answer any more")
    }
}

impl Error for Unanswered {}

#[derive(Debug)]
struct Slot<T>(Mutex<State<T>>);

#[derive(Debug)]
enum State<T> {
    Unasked,
    Awaited(Waker, Arc<Courier>),
    Answered(T),
    Over,
}

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing panics half-way through a change, so a poisoned state is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `state` in place, and returns whom to wake.
    fn settle(&self, state: State<T>) -> Option<(Waker, Arc<Courier>)> {
        match std::mem::replace(&mut *self.lock(), state) {
            State::Awaited(waker, courier) => Some((waker, courier)),
            State::Unasked | State::Answered(_) | State::Over => None,
        }
    }
}

/// Two ends of one answer.
#[must_use]
pub fn reply<T>() -> (Reply<T>, Answer<T>) {
    let slot = Arc::new(Slot(Mutex::new(State::Unasked)));
    (Reply(Some(Arc::clone(&slot))), Answer(slot))
}

impl<T> Reply<T> {
    /// Answers; the waiting task learns of it when `rounds` go.
    pub fn send(mut self, value: T, rounds: &mut Rounds) {
        let slot = self.0.take().expect("only this and the drop take it");
        if let Some((waker, courier)) = slot.settle(State::Answered(value)) {
            rounds.add(waker, courier);
        }
    }

    /// Answers at once.
    pub fn send_now(self, value: T) {
        let mut rounds = Rounds::default();
        self.send(value, &mut rounds);
        rounds.go();
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        let Some(slot) = self.0.take() else { return };
        if let Some((waker, _)) = slot.settle(State::Over) {
            waker.wake();
        }
    }
}

impl<T> Future for Answer<T> {
    type Output = Result<T, Unanswered>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::Over) {
            State::Answered(value) => Poll::Ready(Ok(value)),
            State::Over => Poll::Ready(Err(Unanswered)),
            State::Unasked => {
                let waker = context.waker().clone();
                *state = State::Awaited(waker, Courier::of_this_thread());
                Poll::Pending
            }
            State::Awaited(mut waker, courier) => {
                waker.clone_from(context.waker());
                *state = State::Awaited(waker, courier);
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(work)
    }

    #[test]
    fn answer_arrives_before_and_after_somebody_waits_for_it() {
        let (early, answer) = reply();
        early.send_now(1);
        assert_eq!(on_a_runtime(answer), Ok(1));
        let (late, answer) = reply();
        let other = std::thread::scope(|scope| {
            let answering = scope.spawn(move || {
                let mut rounds = Rounds::default();
                // Waits, as a reply to nobody yet needs no rounds.
                while matches!(*late.0.as_ref().expect("unsent").lock(), State::Unasked) {
                    std::thread::yield_now();
                }
                late.send(2, &mut rounds);
                rounds.go();
            });
            let answer = on_a_runtime(answer);
            answering.join().expect("no panic");
            answer
        });
        assert_eq!(other, Ok(2));
    }

    #[test]
    fn waiting_ends_when_nobody_can_answer() {
        let (gone, answer) = reply::<()>();
        drop(gone);
        assert_eq!(on_a_runtime(answer), Err(Unanswered));
    }
}
