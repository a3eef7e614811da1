//! Reads of everything, such as hashes and lists of very many leases.
//!
//! Decides where they run: each on a thread of its own, so that no client waits behind one, and one
//! at a time, so that they leave room for the rest. Called by `member`.

use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};

use crate::{
    api::status::{CallError, Refusal},
    base::thread::{self, Priority},
};

/// How many run at once. A client that gave its call up leaves the read behind, which still counts.
const LONG_READS_MAX: usize = 1;

/// The turn of each.
#[derive(Clone, Debug)]
pub(super) struct LongReads {
    turns: Arc<Semaphore>,
    priority: Priority,
}

impl LongReads {
    /// Reads of one kind, on threads of this priority. One that holds locks which requests wait for
    /// must not be put off in the midst of it.
    pub(super) fn new(priority: Priority) -> Self {
        Self { turns: Arc::new(Semaphore::new(LONG_READS_MAX)), priority }
    }

    /// Runs `read` when its turn comes.
    ///
    /// # Errors
    /// - [`Refusal::BackendFailed`] if the system has no thread for it.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let turn = turn.expect("the semaphore is never closed");
        let (reply, answer) = oneshot::channel();
        let spawned = thread::spawn("long-read", self.priority, move || {
            // Nobody listens any more if the client went away.
            drop(reply.send(read()));
            drop(turn);
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "cannot start a thread for a long read");
            return Err(Refusal::BackendFailed.into());
        }
        Ok(answer.await.expect("the thread answers, or its panic ends the process"))
    }
}
