//! The gRPC edge: what a client sees of a member.
//!
//! Decides how a call becomes a read of the published state or a proposal, and how what comes of it
//! looks on the wire: one file per service of etcd, and around them the parts that every call
//! passes through.
//!
//! ```text
//!   serve --> wire (framing) --> dispatch --> gate (may it run?) --> service --+--> State (reads)
//!     ^      metadata                                                          |
//!     |                                                                        +--> Member::propose
//!     +--- body (pieces) <--- answer (bytes) <--- header <---------------------+
//!                       \---- status (code and text) <--- CallError
//! ```
//!
//! Invariants
//! - A1 A read runs to its end on the thread of the connection that asked; nothing is handed over.
//! - A2 No stored row is decoded on its way out.
//! - A3 Every text that a client sees for a failure stands in `status`, or is grpc-go's own and
//!   stands in `wire`, `gzip` or `rpc`.
//! - A4 What a client can make us keep is bounded: a message by the request limit, a stream by its
//!   queue, an answer by one piece at a time.
//!
//! Deliberately absent: the JSON gateway, authentication, elections and locks; compressed answers.

pub mod answer;
mod auth;
mod backup;
pub mod body;
pub mod caller;
mod cluster;
pub mod codec;
pub mod dispatch;
pub mod edge;
pub mod gate;
mod gzip;
#[cfg(test)]
pub(crate) mod fake;
mod header;
mod health;
mod kv;
mod lease;
mod maintenance;
pub mod member;
pub mod metadata;
pub mod metrics;
mod range_stream;
pub mod rpc;
mod stats;
pub mod status;
pub mod validate;
mod watch;
pub mod wire;

pub use dispatch::{streaming, unary};
pub use edge::{Edge, Settings};
pub use maintenance::ETCD_VERSION;
