//! Reads of everything, such as hashes.
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
pub(super) struct LongReads(Arc<Semaphore>);

impl Default for LongReads {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LONG_READS_MAX)))
    }
}

impl LongReads {
    /// Runs `read` when its turn comes.
    ///
    /// # Errors
    /// - [`Refusal::BackendFailed`] if the system has no thread for it.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let turn = Arc::clone(&self.0).acquire_owned().await;
        let turn = turn.expect("the semaphore is never closed");
        let (reply, answer) = oneshot::channel();
        let spawned = thread::spawn("long-read", Priority::Background, move || {
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
