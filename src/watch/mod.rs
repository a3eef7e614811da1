//! Delivers applied changes to watchers.
//!
//! The applier publishes its view of the key history and the revisions that led to it. A hub owns
//! every watcher of the streams assigned to it and is the only writer of their positions, so "has
//! this watcher seen revision r?" has a single answer.
//!
//! ```text
//!   applier ---publish---> Mailbox ---+                       +--> Link ---> WatchStream --> api
//!      `------------------deliver---+ v                       |
//!   api --> WatchStream --> Link ---ring---> Lane: Hub -------+    responses, bounded
//!             requests, bounded               |  ^
//!                                     room    v  | history in chunks
//!                                     gone: lagging, parked
//! ```
//!
//! Invariants
//! - W1 A watcher is in exactly one state: synced, lagging, parked or compacted.
//! - W2 Its position never moves back; every event below it was queued or filtered out.
//! - W3 The events of one revision are queued together or not at all, in one response unless the
//!   client asked for fragments.
//! - W4 Responses of a stream leave in the order in which the hub queued them: a creation before
//!   the watcher's events, events before the progress that covers them.
//! - W5 A slow client costs a bounded queue and nothing else: neither the applier nor another
//!   stream waits for it.
//!
//! Deliberately absent: sockets, gRPC and JSON (`api`), permissions (checked at the edge, at
//! creation only), and writes. The hub reads no clock.
//!
//! Source: etcd `server/storage/mvcc/watchable_store.go` and
//! `server/etcdserver/api/v3rpc/watch.go`. Etcd's `victims`, responses that found a full queue,
//! are not kept here: a full queue and an old start need the same cure, which is to read history.

pub mod hub;
mod ledger;
mod interest;
mod interval;
mod slab;
mod bodies;
pub mod frame;
pub mod request;
pub mod history;
pub mod link;
mod mailbox;
mod lane;
pub mod thread;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

/// Makes the metrics of this folder exist from the start.
pub fn register_metrics() {
    ledger::register_metrics();
    link::register_metrics();
    lane::register_metrics();
}
