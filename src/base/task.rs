//! The one place where asynchronous tasks start.
//!
//! Decides nothing but the spelling, so that a search for callers finds every task of the process.

use std::future::Future;

use tokio::task::JoinHandle;

/// Starts `future` on the current runtime.
#[expect(clippy::disallowed_methods, reason = "this is where tasks start")]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future)
}
