//! What flags and the data directory decide about the transport.

use crate::model::{ClusterId, MemberId};

/// Settings of the transport.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This member.
    pub member: MemberId,
    /// Its cluster; requests of members of another one are refused.
    pub cluster: ClusterId,
    /// Where peers reach this member, for peers that do not know it yet.
    pub peer_urls: Vec<String>,
    /// The version that this server claims, such as `3.7.1`.
    pub server_version: &'static str,
}
