//! Peers: raft messages and snapshots over etcd's own protocol between members (rafthttp).
//!
//! Decides how messages travel: which connection carries which, what is dropped when a peer is
//! slow, when a peer counts as gone. Knows neither what the messages mean nor what the member
//! does with them. The replica thread sends through [`Transport`]; what arrives goes to the
//! [`Local`] member; `boot` runs the [`Service`] on the thread `peer`.
//!
//! ```text
//!   replica --send--> Transport --> lanes (bounded, per peer) --+--few--> socket ---------> peer
//!                                                               +--many--> peer thread ---^
//!   replica <--step, unreachable, snapshot_sent-- Local <-- peer thread <-- requests, streams of peers
//! ```
//!
//! A peer dials this member for what it wants to receive; this member dials the peer. So each
//! direction has two streams, `append` and `message`, whose receiver is the client. While a stream
//! is missing, messages go one by one through the `pipeline`.
//!
//! ```text
//!   lanes --> outlet (server side) ==== stream ====> reader --> shared.receive --> Local::step
//!         --> pipeline             ==== POST ======> incoming ------^
//!   snapshot_sender                ==== POST ======> snapshot_receiver --> spool --> file
//! ```
//!
//! Invariants
//! - T1 Sending never waits. What finds no room is dropped, and the member is told so.
//! - T2 No size that a peer names is believed before its bytes are there.
//! - T3 A message reaches the member only if it is addressed to it, and of a kind that peers send.
//! - T4 The message of a snapshot reaches the member only after its database is whole and durable.
//!
//! Deliberately absent: TLS, retries (raft retries), and any order between two peers.
//!
//! Source: etcd `server/etcdserver/api/rafthttp`.

mod local;
mod service;
mod settings;

mod shared;

mod kind;
mod lanes;
mod peer;
mod picker;
mod presence;
mod status;

mod codec;
mod outlet;
mod reader;

mod dial;
mod pipeline;
mod probe;
mod requests;
mod snapshot_sender;
mod socket;

mod body;
mod incoming;
mod replies;
mod routes;
mod server;
mod snapshot_receiver;
mod spool;
mod version;

mod metrics;

#[cfg(test)]
mod tests;

pub use local::{Local, PeerAnswer, PeerCall, SnapshotBody, SnapshotReceiver};
pub use metrics::register_metrics;
pub use requests::{
    ANSWER_BYTES_MAX, CLUSTER_ID_HEADER, PeerConnections, PeerReply, PeerRequest, RequestError,
};
pub use service::{Service, Transport, transport};
pub use settings::Settings;
