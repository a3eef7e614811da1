//! Peers: raft messages and snapshots over etcd's own protocol between members (rafthttp).
//!
//! Decides how messages travel: which connection carries which, what is dropped when a peer is
//! slow, when a peer counts as gone. Knows neither what the messages mean nor what the member
//! does with them. The replica thread sends through [`Transport`]; what arrives goes to the
//! [`Local`] member; `boot` runs the [`Service`] on the thread `peer`.
//!
//! ```text
//!   replica --send--> Transport --one bounded queue per peer and kind--> peer thread --HTTP/1.1--> peer
//!                                                                            |
//!   replica <--step, unreachable, snapshot_sent-- Local <--------------------+---- requests of peers
//! ```
//!
//! Invariants
//! - T1 Sending never waits. What finds no room is dropped, and the member is told so.
//! - T2 No size that a peer names is believed before its bytes are there.
//!
//! Deliberately absent: TLS, retries (raft retries), and any order between two peers.
//!
//! Source: etcd `server/etcdserver/api/rafthttp`.

mod local;
mod requests;
mod service;
mod settings;

pub use local::{Local, PeerAnswer, PeerCall, SnapshotBody, SnapshotReceiver};
pub use requests::{ANSWER_BYTES_MAX, CLUSTER_ID_HEADER, PeerReply, PeerRequest, RequestError};
pub use service::{Service, Transport, transport};
pub use settings::Settings;
