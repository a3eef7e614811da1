//! What falls due when, on the leader.
//!
//! Decides nothing about a lease: it remembers a time at which to look at it. A renewal moves the
//! lease's own deadline and leaves its place here alone; when the place comes up, the lease is put
//! back to where its deadline is by then. So a renewal costs no lock, whatever the number of leases.
//! Owned by the lessor, under its lock.

use std::{cmp::Ordering, collections::BinaryHeap, sync::Arc};

use super::entry::Lease;

/// Ended leases that a queue may hold beyond as many as there are live ones, before it is swept.
const ENDED_SLACK: usize = 1024;

/// A queue of leases in order of time. Each lease stands in it once at most.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    heap: BinaryHeap<Due>,
}

#[derive(Debug)]
struct Due {
    at: u64,
    lease: Arc<Lease>,
}

impl Schedule {
    /// Looks at `lease` when the clock reaches `at`.
    pub(super) fn push(&mut self, at: u64, lease: Arc<Lease>) {
        self.heap.push(Due { at, lease });
    }

    /// The next lease whose time has come. Ended ones are dropped on the way.
    pub(super) fn pop_due(&mut self, now: u64) -> Option<Arc<Lease>> {
        while self.heap.peek().is_some_and(|due| due.at <= now) {
            let due = self.heap.pop()?;
            if !due.lease.has_ended() {
                return Some(due.lease);
            }
        }
        None
    }

    /// When to look next.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|due| due.at)
    }

    pub(super) fn clear(&mut self) {
        self.heap.clear();
    }

    /// Drops ended leases if they are more than `live` and the slack: leases that were revoked
    /// early would otherwise stay until the time at which they would have expired.
    pub(super) fn sweep(&mut self, live: usize) {
        if 2 * live + ENDED_SLACK < self.heap.len() {
            self.heap.retain(|due| !due.lease.has_ended());
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }
}

/// The earliest is the greatest, as the heap pops the greatest; among equals, the smallest id.
impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.lease.id).cmp(&(self.at, self.lease.id))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}
