//! The cluster as its members know it: who they are, and what they have agreed to be able to.
//!
//! Decides which configuration changes and version changes are valid, how identifiers are made,
//! and the bytes in which members are stored and sent. Knows nothing of raft's own quorum (that is
//! consensus) and nothing of connections (that is the transport): where those matter, they come in
//! as counts.
//!
//! ```text
//!   static list --> Bootstrap --> entries of a new log
//!                                        |
//!   cluster service --> may_add.. --> ConfChange --(raft)--> Membership::validate
//!                                                              |           |
//!                                                          MemberChange  Rejection: raft gets
//!                                                              |         the change with id 0
//!   versions of members --> next_cluster_version            apply --> TableWrite
//!                                |                             |
//!                                +--(raft)--> set_version      +--> Published --> MemberList
//! ```
//!
//! Invariants
//! - C1 An id is never both a member and removed, and a removed id never returns.
//! - C2 No peer URL belongs to two members, unless a log written elsewhere made it so.
//! - C3 What is accepted depends on replicated state only.
//!
//! Deliberately absent: threads, clocks and sockets. The membership belongs to the apply thread;
//! everybody else reads immutable copies.

mod bootstrap;
mod ids;
mod member;
mod membership;
mod metrics;
mod reconfigure;
mod v2_store;
mod version;

pub use bootstrap::{BOOTSTRAP_TERM, Bootstrap, BootstrapError};
pub use ids::{MemberOrigin, RequestIds, cluster_id, member_id};
pub use member::{Member, MemberContext, MemberError};
pub use membership::{Downgrade, MemberChange, Membership, MembershipError};
pub use metrics::{ClusterGauges, register_metrics};
pub use reconfigure::{
    CONNECTED_MIN, Leaving, NewMember, ReconfigureError, Voters, may_add, may_promote, may_remove,
};
pub use v2_store::v2_store_json;
pub use version::{
    CLUSTER_VERSION_MIN, SERVER_VERSION, Version, VersionError, Versions, downgrade_is_finished,
    next_cluster_version,
};
