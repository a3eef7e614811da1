//! The first members of a new cluster.
//!
//! Decides the ids of members and cluster from a static list, and the log entries that every
//! member of that list writes for itself before the first election. Called at boot and by the
//! tool that restores a backup; the entries must be the same wherever they are made.
//!
//! Source: etcd `server/etcdserver/bootstrap.go`, raft `bootstrap.go`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use bytes::Bytes;
use prost::Message;
use proto::raftpb::{ConfChange, ConfChangeType, Entry, EntryType};

use super::{
    Member,
    ids::{MemberOrigin, cluster_id, member_id},
};
use crate::model::{ClusterId, LogIndex, MemberId, Term, new_entry};

/// The term of the synthetic entries.
pub const BOOTSTRAP_TERM: Term = Term(1);

/// A cluster as its static configuration describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// Decided here, once and for ever.
    pub cluster: ClusterId,
    /// The members in ascending order of id.
    pub members: Vec<Member>,
}

/// Why a static list makes no cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootstrapError {
    /// Nobody is on the list.
    Empty,
    /// A URL stands twice.
    DuplicateUrl(String),
    /// Two members would have the same id.
    SameId(MemberId),
}

impl fmt::Display for BootstrapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the initial cluster has no members"),
            Self::DuplicateUrl(url) => write!(f, "the initial cluster has the URL {url} twice"),
            Self::SameId(id) => write!(f, "two members of the initial cluster have the id {id}"),
        }
    }
}

impl std::error::Error for BootstrapError {}

impl Bootstrap {
    /// Derives everything from the map of names to peer URLs and the cluster's token.
    ///
    /// # Errors
    /// - [`BootstrapError`] if the list is empty or its members cannot be told apart.
    pub fn new(
        peer_urls: &BTreeMap<String, Vec<String>>,
        token: &str,
    ) -> Result<Self, BootstrapError> {
        let mut seen = BTreeSet::new();
        for url in peer_urls.values().flatten() {
            if !seen.insert(url) {
                return Err(BootstrapError::DuplicateUrl(url.clone()));
            }
        }
        let mut members = BTreeMap::new();
        for (name, urls) in peer_urls {
            let id = member_id(urls, MemberOrigin::Bootstrap { token });
            let mut peer_urls = urls.clone();
            peer_urls.sort_unstable();
            let member = Member { id, name: name.clone(), peer_urls, ..Member::default() };
            if members.insert(id, member).is_some() {
                return Err(BootstrapError::SameId(id));
            }
        }
        if members.is_empty() {
            return Err(BootstrapError::Empty);
        }
        let cluster = cluster_id(members.keys().copied());
        Ok(Self { cluster, members: members.into_values().collect() })
    }

    /// The member with this name.
    #[must_use]
    pub fn member_named(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }

    /// One entry per member that adds it, at positions 1 to N, in ascending order of id. They are
    /// committed from the start.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let numbered = (1_u64..).zip(&self.members);
        numbered.map(|(index, member)| bootstrap_entry(LogIndex(index), member)).collect()
    }
}

fn bootstrap_entry(index: LogIndex, member: &Member) -> Entry {
    let mut change = ConfChange { node_id: Some(member.id.0), ..Default::default() };
    change.r#type = Some(ConfChangeType::ConfChangeAddNode.into());
    change.context = Some(member.to_json());
    let data = Bytes::from(change.encode_to_vec());
    new_entry(EntryType::EntryConfChange, BOOTSTRAP_TERM, index, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(members: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
        let owned = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect();
        members.iter().map(|(name, urls)| ((*name).to_owned(), owned(urls))).collect()
    }

    #[test]
    fn single_member_is_the_one_that_the_official_server_makes() {
        // An official 3.7.1 member with this address printed this id.
        let urls = map(&[("default", &["http://127.0.0.1:31380"])]);
        let bootstrap = Bootstrap::new(&urls, "etcd-cluster").expect("valid");
        let member = bootstrap.member_named("default").expect("on the list");
        assert_eq!(member.id, MemberId(0x8dda_b735_34be_950c));
    }

    #[test]
    fn entries_add_the_members_in_order_of_id_at_term_one() {
        let urls = map(&[("b", &["http://y"]), ("a", &["http://z", "http://x"])]);
        let bootstrap = Bootstrap::new(&urls, "t").expect("valid");
        let ids: Vec<MemberId> = bootstrap.members.iter().map(|member| member.id).collect();
        assert!(ids.is_sorted(), "{ids:?}");
        for (position, entry) in bootstrap.entries().iter().enumerate() {
            assert_eq!((entry.index, entry.term), (Some(position as u64 + 1), Some(1)));
            let data = entry.data.clone().expect("a change");
            let change = ConfChange::decode(data).expect("own bytes");
            let member = Member::from_json(&change.context.expect("a member")).expect("own JSON");
            assert_eq!(&member, &bootstrap.members[position]);
            assert!(member.peer_urls.is_sorted(), "{member:?}");
        }
    }

    #[test]
    fn list_whose_members_cannot_be_told_apart_is_refused() {
        assert_eq!(Bootstrap::new(&map(&[]), "t"), Err(BootstrapError::Empty));
        let twice = map(&[("a", &["http://x"]), ("b", &["http://x"])]);
        let duplicate = Err(BootstrapError::DuplicateUrl("http://x".to_owned()));
        assert_eq!(Bootstrap::new(&twice, "t"), duplicate);
    }
}
