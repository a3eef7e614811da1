//! What other members say when they are asked on their peer URLs.
//!
//! Decides whom to ask and which answer counts; the requests themselves are the transport's. Asked
//! by `boot` before a member joins, by the duties of the leader, and for calls that only the leader
//! can answer.
//!
//! Source: etcd `server/etcdserver/cluster_util.go`.

mod cluster;
mod hashes;
mod leader;

pub use cluster::{
    Failures, RemoteCluster, RemoteClusterError, cluster_at, downgrade_is_enabled, versions_of,
};
pub use hashes::{RemoteHash, RemoteHashError, hash_of};
pub(super) use leader::shown;
pub use leader::{Asking, LeaderCall, Turn};
