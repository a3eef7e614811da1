//! Effects that nobody else may reach for: clock, randomness, threads, tasks, queues, files,
//! failpoints, metrics and freed memory.
//!
//! Decides how the process touches the world outside of its own memory, so that a test or the
//! simulator can stand in for it, and so that every queue is bounded. Used by all other modules;
//! uses none of them.

#[cfg(test)]
pub mod cases;
pub mod clock;
pub mod courier;
pub mod duration;
pub mod error;
pub mod failpoint;
pub mod file;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod queue;
pub mod random;
pub mod ready;
pub mod reply;
pub mod task;
pub mod thread;
