//! The one place where threads start.
//!
//! Decides their names and their priority. Called by `boot`, which owns the list of threads.

use std::{cell::Cell, io, thread, time::Duration};

/// The scheduling priority of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// In the path of a request.
    Normal,
    /// Yields to everything in the path of a request.
    Background,
}

/// Added to the niceness of background threads.
const BACKGROUND_NICE: i32 = 10;

thread_local! {
    static GIVES_WAY: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on this thread and on up to `others` more, until all are done. Whatever there is to
/// do, they share it out among themselves: the system may refuse any of the others.
pub fn together(name: &'static str, others: usize, work: impl Fn() + Sync) {
    assert!(name.len() <= 15, "the kernel cuts the thread name {name:?}");
    thread::scope(|scope| {
        for _ in 0..others {
            let spawned = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, &work);
            if spawned.is_err() {
                break;
            }
        }
        work();
    });
}

/// Sleeps for `time` and, as the kernel likes to join wake-ups, some 50 us more.
#[expect(clippy::disallowed_methods, reason = "this is where threads sleep")]
pub fn pause(time: Duration) {
    thread::sleep(time);
}

/// Gives the calling thread [`Priority::Background`] for the rest of its life. Threads of a runtime
/// that only such work is given may ask for it each time.
pub fn give_way() {
    if !GIVES_WAY.replace(true) {
        // On Linux this concerns the calling thread only. Without the right to do so the thread
        // simply keeps its priority.
        rustix::process::nice(BACKGROUND_NICE).ok();
    }
}

/// Starts a thread; its name, at most 15 bytes, shows in `top -H` and in profiles.
///
/// # Errors
/// If the system refuses another thread.
#[expect(clippy::disallowed_methods, reason = "this is where threads start")]
pub fn spawn<T, F>(
    name: &'static str,
    priority: Priority,
    body: F,
) -> io::Result<thread::JoinHandle<T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    assert!(name.len() <= 15, "the kernel cuts the thread name {name:?}");
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        if priority == Priority::Background {
            give_way();
        }
        body()
    })
}
