//! The callers that wait for an outcome.
//!
//! Decides who gets an answer: a caller registers under its request id before it proposes, and the
//! apply thread takes it out to answer it. Split into shards, so that proposing connections and
//! the apply thread seldom meet at one lock; no lock is held for longer than a map operation.
//! Owned jointly by [`super::Handle`] (inserts) and the apply thread (removes).

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    base::reply,
    model::{Outcome, RequestId, Unavailable},
};

/// A power of two, so that the low bits of a counter choose the shard.
const SHARDS: usize = 64;

/// How a caller is answered.
pub(super) type Reply = reply::Reply<Result<Outcome, Unavailable>>;

/// Every caller that has proposed and not been answered.
#[derive(Debug)]
pub(super) struct Pending {
    shards: Vec<Mutex<HashMap<RequestId, Waiter>>>,
}

#[derive(Debug)]
struct Waiter {
    reply: Reply,
    since: Duration,
}

impl Pending {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, id: RequestId) -> MutexGuard<'_, HashMap<RequestId, Waiter>> {
        let shard = usize::try_from(id.0 % SHARDS as u64).expect("SHARDS is small");
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a caller; `since` is when its request started.
    pub(super) fn insert(&self, id: RequestId, since: Duration, reply: Reply) {
        let replaced = self.shard(id).insert(id, Waiter { reply, since });
        assert!(replaced.is_none(), "request id {id} was given out twice");
    }

    /// Takes a caller out; `None` if nobody here waits for `id`.
    pub(super) fn remove(&self, id: RequestId) -> Option<Reply> {
        self.shard(id).remove(&id).map(|waiter| waiter.reply)
    }

    /// Takes out every caller whose request started at or before `started_before`, with the time
    /// at which it started.
    pub(super) fn remove_older(&self, started_before: Duration) -> Vec<(Duration, Reply)> {
        let mut expired = Vec::new();
        for shard in &self.shards {
            let mut waiters = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let old = waiters.extract_if(|_, waiter| waiter.since <= started_before);
            expired.extend(old.map(|(_, waiter)| (waiter.since, waiter.reply)));
        }
        expired
    }

    /// How many callers wait.
    pub(super) fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_callers_that_waited_long_enough_are_taken_out() {
        let pending = Pending::new();
        for id in 1..=3 {
            let (reply, _) = reply::reply();
            pending.insert(RequestId(id), Duration::from_secs(id), reply);
        }
        assert_eq!(pending.remove_older(Duration::from_secs(2)).len(), 2);
        assert!(pending.remove(RequestId(1)).is_none());
        assert!(pending.remove(RequestId(3)).is_some());
        assert_eq!(pending.len(), 0);
    }
}
