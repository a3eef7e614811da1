//! Measures oxetcd and official etcd side by side.
//!
//! Decides how the two are compared so that the figures mean something on a small, noisy machine:
//! pairs of runs in alternating order, processor time of the server as the primary figure, disk
//! probes around every window, disturbed pairs discarded and counted, medians of paired ratios with
//! intervals, and a check after each run that nothing acknowledged is lost. Called by the
//! `oxetcd-bench` program.
//!
//! ```text
//!   oxetcd-bench --> campaign --> server (A B, B A, ..) --> scenario --> load --> http2 --> server
//!                       |                                      |
//!                       |                                 probe, usage (before, after)
//!                       v                                      v
//!                    report <------------- row, statistics <-- figures
//! ```
//!
//! Invariants
//! - B1 Both servers get the same requests in the same order, default flags, and a fresh directory.
//! - B2 The generator sleeps whenever it has nothing to send.
//! - B3 A row that is missed, unclear, too noisy or not run is shown as such.
#![expect(clippy::disallowed_methods, reason = "loads and servers run on real time")]

pub mod campaign;
pub mod row;
pub mod rows;
pub mod scenario;
pub mod load;
pub mod requests;
pub mod watchers;
pub mod ledger;
pub mod caller;
pub mod path;
pub mod http2;
pub mod server;
mod guard;
pub mod usage;
pub mod probe;
pub mod statistics;
pub mod machine;
pub mod report;
pub mod go_tool;
