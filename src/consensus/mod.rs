//! The Raft core: which entries are committed, by whom, and in what order.
//!
//! One [`Raft`] is one member's part. It is a value without a thread, a clock, a disk or a socket:
//! inputs go in, a [`Ready`] comes out, and reports of what was done go back in. The same inputs
//! and dice give the same outputs, bit for bit. `replica::core` owns it.
//!
//! ```text
//!   step(message)     tick()      propose(payloads)    read_index    campaign    transfer_leader
//!        |              |              |                  |             |              |
//!        +--------------+--------------+--------+---------+-------------+--------------+
//!                                               v
//!                                +----------- Raft -----------+
//!                                |  raft         the state    |
//!                                |  election     follower     |
//!                                |  replication  reads        |
//!                                |  log  members  progress    |
//!                                +-------------+--------------+
//!                                              | ready()
//!           +-----------------+----------------+------------------+---------------+
//!           v                 v                v                  v               v
//!     Ready::messages    Ready::batch    Ready::committed    read_states     soft_state
//!     to peers, now      to the log      to the state
//!                        thread, then    machine, then
//!                        its messages    applied(index)
//!                        to peers, then
//!                        persisted(number)
//! ```
//!
//! The order that the caller keeps
//! - Batches are written in the order of their numbers. A batch's messages leave when it is durable,
//!   together with all before it; then `persisted(number)`. Reporting only the last of several is
//!   enough.
//! - `Ready::messages` may leave at once. Messages to one peer keep their order if possible; the
//!   core survives any loss, doubling and reordering.
//! - `committed` goes to the state machine in the order it was handed out: `apply_conf_change` for
//!   each membership change among it, then `applied(index)`. A batch's snapshot goes there once the
//!   batch is durable, then `applied` with its index; until then nothing else is handed out.
//! - A leader's [`proto::raftpb::MessageType::MsgSnap`] names the snapshot that was last reported
//!   with `snapshot_taken`, or the applied position if entries after that were truncated. The sender
//!   puts a complete snapshot in its place, of that index or a later one.
//!
//! Invariants
//! - R1 At most one leader in a term.
//! - R2 Two logs that agree in the term at an index agree up to it.
//! - R3 A committed entry is in the log of every later leader.
//! - R4 No member applies an entry that another member does not apply at the same index.
//! - R5 Nothing counts before it is durable: no vote, not even for oneself, and no entry, not even
//!   the leader's own.
//! - R6 A message from a peer is input: it can be refused, it cannot stop this member.
//! - R7 Term and commit index never fall.
//!
//! Deliberately absent: storage of the log (the caller's), retries of lost proposals and reads (the
//! caller's), lease-based reads, and forgetting a leader on request.
//!
//! Source: etcd raft 3.7. Differences, none of which a peer can tell: a candidate's requests wait
//! for its term to be durable; reads of a single voter wait for the term's first commit, too; the
//! commit index alone is written at the next tick; a single voter commits, and tells learners of, a
//! batch at a time; leaving a joint membership is tried again at ticks; a forwarded proposal names
//! the last forwarder. `tests/random_scripts.rs` finds no others.

mod config;
mod election;
mod follower;
mod log;
mod membership;
mod message;
mod progress;
mod quorum;
mod raft;
mod read_index;
mod reads;
mod ready;
mod replication;
mod status;

#[cfg(test)]
mod tests;

pub use config::{
    APPEND_BYTES_MAX, APPENDS_IN_FLIGHT_MAX, APPLYING_BYTES_MAX, ApplyWhen, CommitWrites, Config,
    READS_WAITING_MAX, RaftState, StartError,
};
pub use membership::ConfChangeError;
pub use message::StepError;
pub use progress::{Progress, ProgressState};
pub use raft::{Dice, ProposeError, Raft, Role, SnapshotReport};
pub use read_index::ReadState;
pub use ready::{Batch, BatchNumber, Ready, SoftState};
