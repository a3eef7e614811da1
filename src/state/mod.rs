//! The replicated state machine: keys, leases, members and alarms as one.
//!
//! Decides what a committed entry does. Every member applies the same entries in the same order and
//! reaches the same state and the same outcomes; what spans key history, leases and members is
//! composed here and nowhere below.
//!
//! ```text
//!                  committed entries, in order
//!                              |
//!                              v
//!   gate (alarms, quota) --> Machine::apply --> Outcome, Effects
//!                              |  \
//!           txn --> mvcc::Store   lease::LeaseTable   cluster::Membership   Alarms   auth
//!                              |
//!        publish() ------------+------------ take_events() ------ take_flush()
//!           |                                   |                     |
//!        Published --> readers               watchers        rows, TableWrites, position
//! ```
//!
//! Invariants
//! - T1 A rejected command leaves the state as it was.
//! - T2 No entry makes the machine panic, whatever it holds: it may come from an old or a foreign
//!   log. Only damage of this member's own storage stops it.
//! - T3 State and outcomes are a function of the log. The clock sets deadlines of leases alone; the
//!   size of the backend turns an outcome into [`crate::model::Rejection::NoSpace`] after its
//!   effects, and never the effects.
//! - T4 Everything that [`Machine::take_flush`] hands out belongs to the position beside it: stored
//!   together, it is the state after that entry.
//! - T5 An entry at or below the recovered position changes nothing.
//!
//! Deliberately absent: threads, queues and waiting callers, which the apply thread has; and the
//! rules of authentication, whose requests are refused.
//!
//! Source: etcd `server/etcdserver/apply` and `server/etcdserver/txn`.

mod alarms;
mod compare;
mod conf_state;
mod gate;
mod log;
mod machine;
mod outlet;
mod published;
mod recover;
mod txn;
#[cfg(test)]
pub(crate) mod tests;

pub use alarms::Alarms;
#[cfg(test)]
pub(crate) use conf_state::after as conf_state_after;
pub use conf_state::from_json as parse_conf_state;
pub use gate::{QUOTA_BYTES_DEFAULT, Quota, cost, put_cost, txn_cost};
pub use machine::{Applied, Effect, Machine, Settings};
pub use published::Published;
pub use recover::{RecoverError, RecoveredAt, check_log};
pub use txn::read_only_txn;

/// Makes every series exist from the start.
pub fn register_metrics() {
    alarms::register_metrics();
}
