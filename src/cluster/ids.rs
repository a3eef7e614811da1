//! How members, clusters and requests get their identifiers.
//!
//! Decides the three derivations that every member, and every tool that prepares a data directory,
//! must make alike. Owns nothing but the counter of [`RequestIds`]. Called by bootstrap, by the
//! cluster service for a member to be added, and by whoever proposes.
//!
//! Source: etcd `server/etcdserver/api/membership/{member,cluster}.go`, `pkg/idutil/id.go`.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use sha1::{Digest, Sha1};

use crate::model::{ClusterId, LeaseId, MemberId, RequestId};

/// What, beside its peer URLs, makes a member's id unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberOrigin<'a> {
    /// Named in the static configuration of a new cluster with this token.
    Bootstrap {
        /// `--initial-cluster-token`, or the discovery token.
        token: &'a str,
    },
    /// Added to a running cluster at this moment.
    Added {
        /// Time since the Unix epoch; only whole seconds count.
        unix: Duration,
    },
}

/// The id of a member: the start of a SHA-1 over its sorted peer URLs and its origin.
#[must_use]
pub fn member_id(peer_urls: &[String], origin: MemberOrigin<'_>) -> MemberId {
    let mut sorted: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let mut digest = Sha1::new();
    for url in sorted {
        digest.update(url);
    }
    match origin {
        MemberOrigin::Bootstrap { token } => digest.update(token),
        MemberOrigin::Added { unix } => digest.update(unix.as_secs().to_string()),
    }
    MemberId(first_u64(&digest.finalize()))
}

/// The id of a new cluster: the start of a SHA-1 over the ids of its first members, ascending.
#[must_use]
pub fn cluster_id(members: impl IntoIterator<Item = MemberId>) -> ClusterId {
    let mut sorted: Vec<MemberId> = members.into_iter().collect();
    sorted.sort_unstable();
    let mut digest = Sha1::new();
    for member in sorted {
        digest.update(member.0.to_be_bytes());
    }
    ClusterId(first_u64(&digest.finalize()))
}

fn first_u64(digest: &[u8]) -> u64 {
    let first: [u8; 8] = digest[..8].try_into().expect("a SHA-1 has 20 bytes");
    u64::from_be_bytes(first)
}

/// Low bits of the member's id at the top, then milliseconds, then a counter: unique among
/// members, and among restarts that are at least a millisecond apart.
#[derive(Debug)]
pub struct RequestIds {
    prefix: u64,
    suffix: AtomicU64,
}

const SUFFIX_BITS: u32 = 48;
const COUNTER_BITS: u32 = 8;
const SUFFIX_MASK: u64 = (1 << SUFFIX_BITS) - 1;

impl RequestIds {
    /// Ids for `member`, starting from the time since the Unix epoch.
    #[must_use]
    pub fn new(member: MemberId, unix: Duration) -> Self {
        // Only the low 40 bits of the milliseconds are kept, so the loss of the rest is intended.
        let millis = unix.as_secs() * 1000 + u64::from(unix.subsec_millis());
        let suffix = (millis << COUNTER_BITS) & SUFFIX_MASK;
        Self { prefix: member.0 << SUFFIX_BITS, suffix: AtomicU64::new(suffix) }
    }

    /// The next id.
    pub fn next(&self) -> RequestId {
        let suffix = self.suffix.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        RequestId(self.prefix | (suffix & SUFFIX_MASK))
    }

    /// An id for a lease whose client left the choice to the server: positive.
    pub fn next_lease(&self) -> LeaseId {
        loop {
            let id = self.next().0 & (u64::MAX >> 1);
            if let Ok(id) = i64::try_from(id)
                && id != 0
            {
                return LeaseId(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(urls: &[&str]) -> Vec<String> {
        urls.iter().map(|url| (*url).to_owned()).collect()
    }

    #[test]
    fn ids_are_those_of_the_official_server() {
        // Read from `etcdctl member list` of an official member started with all defaults.
        let origin = MemberOrigin::Bootstrap { token: "etcd-cluster" };
        let member = member_id(&urls(&["http://localhost:2380"]), origin);
        assert_eq!(member, MemberId(0x8e9e_05c5_2164_694d));
        assert_eq!(cluster_id([member]), ClusterId(0xcdf8_1819_4e3a_8c32));
    }

    #[test]
    fn order_of_urls_and_members_does_not_matter() {
        let origin = MemberOrigin::Added { unix: Duration::from_millis(1_700_000_000_999) };
        let one = member_id(&urls(&["http://b:1", "http://a:1"]), origin);
        assert_eq!(one, member_id(&urls(&["http://a:1", "http://b:1"]), origin));
        let (a, b) = (MemberId(3), MemberId(4));
        assert_eq!(cluster_id([a, b]), cluster_id([b, a]));
    }

    #[test]
    fn request_ids_carry_the_member_and_never_repeat() {
        let ids = RequestIds::new(MemberId(0xabcd_0000_0000_1234), Duration::from_millis(5));
        let (first, second) = (ids.next(), ids.next());
        assert_eq!(first, RequestId(0x1234_0000_0000_0501), "prefix, milliseconds, counter");
        assert_eq!(second.0, first.0 + 1);
        assert!(0 < RequestIds::new(MemberId(0xffff), Duration::ZERO).next_lease().0);
    }
}
