//! Who belongs to the cluster, and what the cluster has agreed about versions.
//!
//! Decides which committed configuration change is accepted, and mirrors every change into the
//! tables `members`, `members_removed` and `cluster`. Owned by `state::Machine`; readers get an
//! immutable copy with each published state.
//!
//! Invariants
//! - C1 An id is never both a member and removed, and a removed id never returns.
//! - C2 No peer URL belongs to two members, unless a log written elsewhere made it so.
//! - C3 Accepting depends on replicated state only, so every member accepts the same changes.
//!
//! Source: etcd `server/etcdserver/api/membership/cluster.go` and `storage/schema/membership.go`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use bytes::Bytes;
use proto::{
    etcdserverpb as pb,
    raftpb::{ConfChange, ConfChangeType},
};
use serde::{Deserialize, Serialize};

use super::{Member, MemberContext, MemberError, Version, member::go_json};
use crate::{
    model::{MemberId, Rejection},
    storage::{Table, TableWrite},
};

/// The key of the cluster version in the table `cluster`.
const CLUSTER_VERSION: &[u8] = b"clusterVersion";
/// The key of the downgrade in the table `cluster`.
const DOWNGRADE: &[u8] = b"downgrade";
/// What a removed member's id maps to.
const REMOVED: &[u8] = b"removed";

/// A downgrade of the cluster that an operator asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Downgrade {
    /// The version to go to, `X.Y.0`; empty if there is none.
    #[serde(rename = "target-version", default)]
    pub target_version: String,
    /// Whether it is under way.
    #[serde(default)]
    pub enabled: bool,
}

impl Downgrade {
    /// Where an enabled downgrade goes.
    #[must_use]
    pub fn target(&self) -> Option<Version> {
        if self.enabled { self.target_version.parse().ok() } else { None }
    }
}

/// The members, past and present, and the cluster's versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    members: BTreeMap<MemberId, Member>,
    removed: BTreeSet<MemberId>,
    version: Option<Version>,
    downgrade: Option<Downgrade>,
}

/// A configuration change that was found valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A new member.
    Add(Member),
    /// A learner becomes a voter.
    Promote(MemberId),
    /// A member goes; its id never returns.
    Remove(MemberId),
    /// A member has other peer URLs.
    Update {
        /// Which one.
        member: MemberId,
        /// All of its new URLs.
        peer_urls: Vec<String>,
    },
}

impl MemberChange {
    /// The member that it is about.
    #[must_use]
    pub const fn member(&self) -> MemberId {
        match self {
            Self::Add(member) => member.id,
            Self::Promote(member) | Self::Remove(member) | Self::Update { member, .. } => *member,
        }
    }
}

/// Why the stored membership cannot be read. The data directory is damaged or foreign.
#[derive(Debug)]
pub enum MembershipError {
    /// A key of the tables is not a member id.
    Id(Bytes),
    /// A stored member is not its JSON.
    Member {
        /// Which one.
        member: MemberId,
        /// What is wrong with it.
        source: MemberError,
    },
    /// The cluster version is not a version.
    Version(Bytes),
    /// The downgrade is not its JSON.
    Downgrade(Bytes),
}

impl fmt::Display for MembershipError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(key) => write!(f, "{key:?} is not a member id"),
            Self::Member { member, .. } => write!(f, "the stored member {member} is unreadable"),
            Self::Version(text) => write!(f, "{text:?} is not a cluster version"),
            Self::Downgrade(text) => write!(f, "{text:?} is not a downgrade"),
        }
    }
}

impl std::error::Error for MembershipError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Member { source, .. } => Some(source),
            Self::Id(_) | Self::Version(_) | Self::Downgrade(_) => None,
        }
    }
}

impl Membership {
    /// Takes in one stored record; records of other tables are not ours and are skipped.
    ///
    /// # Errors
    /// - [`MembershipError`] if the record is unreadable.
    pub fn restore(
        &mut self,
        table: Table,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), MembershipError> {
        match table {
            Table::Members => {
                let id = parse_member_key(key)?;
                let mut member = Member::from_json(value)
                    .map_err(|source| MembershipError::Member { member: id, source })?;
                member.id = id;
                self.members.insert(id, member);
            }
            Table::MembersRemoved => {
                self.removed.insert(parse_member_key(key)?);
            }
            Table::Cluster if key == CLUSTER_VERSION => {
                let version = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                let unreadable = || MembershipError::Version(Bytes::copy_from_slice(value));
                self.version = Some(version.ok_or_else(unreadable)?);
            }
            Table::Cluster if key == DOWNGRADE => {
                let unreadable = |_| MembershipError::Downgrade(Bytes::copy_from_slice(value));
                self.downgrade = Some(serde_json::from_slice(value).map_err(unreadable)?);
            }
            Table::Cluster
            | Table::Meta
            | Table::Lease
            | Table::Alarm
            | Table::Auth
            | Table::AuthUsers
            | Table::AuthRoles => {}
        }
        Ok(())
    }

    /// Every member, in ascending order of id.
    pub fn members(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.members.values()
    }

    /// The members with a vote, in ascending order of id.
    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| !member.is_learner)
    }

    /// The member with this id.
    #[must_use]
    pub fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// Whether this id was a member's once.
    #[must_use]
    pub fn is_removed(&self, id: MemberId) -> bool {
        self.removed.contains(&id)
    }

    /// The ids of former members, ascending.
    pub fn removed(&self) -> impl Iterator<Item = MemberId> {
        self.removed.iter().copied()
    }

    /// Every member as the cluster service lists them.
    #[must_use]
    pub fn to_wire(&self) -> Vec<pb::Member> {
        self.members().map(Member::to_wire).collect()
    }

    /// What all members have agreed to be able to; none before the first agreement.
    #[must_use]
    pub const fn version(&self) -> Option<Version> {
        self.version
    }

    /// The last downgrade that was begun or ended, if there ever was one.
    #[must_use]
    pub const fn downgrade(&self) -> Option<&Downgrade> {
        self.downgrade.as_ref()
    }

    /// Reads a committed configuration change and says whether it is one to carry out.
    ///
    /// # Errors
    /// - [`Rejection::MemberNotFound`] for an id that is removed or unknown.
    /// - [`Rejection::MemberIdExists`], [`Rejection::PeerUrlExists`],
    ///   [`Rejection::TooManyLearners`], [`Rejection::MemberNotLearner`] as named.
    /// - [`Rejection::UnknownCommand`] for a kind or a context that cannot be understood. An
    ///   official member stops for good at such an entry; every member of ours refuses it.
    pub fn validate(
        &self,
        change: &ConfChange,
        learners_max: usize,
    ) -> Result<MemberChange, Rejection> {
        let id = MemberId(change.node_id.unwrap_or(0));
        if self.is_removed(id) {
            return Err(Rejection::MemberNotFound { member: id });
        }
        let kind = ConfChangeType::try_from(change.r#type.unwrap_or(0));
        match kind.or(Err(Rejection::UnknownCommand))? {
            kind @ (ConfChangeType::ConfChangeAddNode
            | ConfChangeType::ConfChangeAddLearnerNode) => {
                let context = read_context(change, id)?;
                if context.is_promote {
                    return self.validate_promotion(id);
                }
                let as_learner = kind == ConfChangeType::ConfChangeAddLearnerNode;
                self.validate_addition(context.member, as_learner, learners_max)
            }
            ConfChangeType::ConfChangeRemoveNode => {
                self.known(id)?;
                Ok(MemberChange::Remove(id))
            }
            ConfChangeType::ConfChangeUpdateNode => {
                self.known(id)?;
                let peer_urls = read_context(change, id)?.member.peer_urls;
                self.validate_urls(id, &peer_urls)?;
                Ok(MemberChange::Update { member: id, peer_urls })
            }
        }
    }

    fn validate_promotion(&self, id: MemberId) -> Result<MemberChange, Rejection> {
        if !self.known(id)?.is_learner {
            return Err(Rejection::MemberNotLearner { member: id });
        }
        Ok(MemberChange::Promote(id))
    }

    fn validate_addition(
        &self,
        member: Member,
        as_learner: bool,
        learners_max: usize,
    ) -> Result<MemberChange, Rejection> {
        if self.members.contains_key(&member.id) {
            return Err(Rejection::MemberIdExists { member: member.id });
        }
        self.validate_urls(member.id, &member.peer_urls)?;
        let learners = self.members().filter(|other| other.is_learner).count();
        if member.is_learner && as_learner && learners_max < learners + 1 {
            return Err(Rejection::TooManyLearners);
        }
        Ok(MemberChange::Add(member))
    }

    fn validate_urls(&self, owner: MemberId, urls: &[String]) -> Result<(), Rejection> {
        let taken = |url: &&String| {
            self.members().any(|other| other.id != owner && other.peer_urls.contains(url))
        };
        match urls.iter().find(taken) {
            Some(url) => Err(Rejection::PeerUrlExists { url: url.clone() }),
            None => Ok(()),
        }
    }

    fn known(&self, id: MemberId) -> Result<&Member, Rejection> {
        self.member(id).ok_or(Rejection::MemberNotFound { member: id })
    }

    /// Carries out a change that [`Membership::validate`] returned for the same state.
    pub fn apply(&mut self, change: &MemberChange, writes: &mut Vec<TableWrite>) {
        match change {
            MemberChange::Add(member) => {
                assert!(!self.is_removed(member.id), "the removed id {} returned", member.id);
                self.members.insert(member.id, member.clone());
            }
            MemberChange::Promote(id) => {
                if let Some(member) = self.members.get_mut(id) {
                    member.is_learner = false;
                }
            }
            MemberChange::Update { member, peer_urls } => {
                if let Some(member) = self.members.get_mut(member) {
                    member.peer_urls.clone_from(peer_urls);
                }
            }
            MemberChange::Remove(id) => {
                self.members.remove(id);
                self.removed.insert(*id);
                let removed = Some(Bytes::from_static(REMOVED));
                writes.push(write(Table::MembersRemoved, member_key(*id), removed));
            }
        }
        self.save(change.member(), writes);
    }

    /// Records the name and client URLs that a member published. Those of a removed member are
    /// dropped without an error, as its last words may come late.
    ///
    /// # Errors
    /// - [`Rejection::MemberNotFound`] if the id was never a member's. Official members stop there.
    pub fn set_attributes(
        &mut self,
        id: MemberId,
        name: String,
        client_urls: Vec<String>,
        writes: &mut Vec<TableWrite>,
    ) -> Result<(), Rejection> {
        if self.is_removed(id) {
            return Ok(());
        }
        let member = self.members.get_mut(&id).ok_or(Rejection::MemberNotFound { member: id })?;
        member.name = name;
        member.client_urls = client_urls;
        self.save(id, writes);
        Ok(())
    }

    /// Records the cluster version.
    pub fn set_version(&mut self, version: Version, writes: &mut Vec<TableWrite>) {
        self.version = Some(version);
        let text = Bytes::from(version.to_string());
        writes.push(write(Table::Cluster, Bytes::from_static(CLUSTER_VERSION), Some(text)));
    }

    /// Records the start (`target_version` is where to) or the end of a downgrade.
    pub fn set_downgrade(&mut self, downgrade: Downgrade, writes: &mut Vec<TableWrite>) {
        let json = go_json(&downgrade);
        writes.push(write(Table::Cluster, Bytes::from_static(DOWNGRADE), Some(json)));
        self.downgrade = Some(downgrade);
    }

    fn save(&self, id: MemberId, writes: &mut Vec<TableWrite>) {
        let value = self.member(id).map(Member::to_json);
        writes.push(write(Table::Members, member_key(id), value));
    }
}

fn read_context(change: &ConfChange, id: MemberId) -> Result<MemberContext, Rejection> {
    let context = MemberContext::from_json(change.context.as_deref().unwrap_or_default());
    match context {
        Ok(context) if context.member.id == id => Ok(context),
        Ok(_) | Err(_) => Err(Rejection::UnknownCommand),
    }
}

const fn write(table: Table, key: Bytes, value: Option<Bytes>) -> TableWrite {
    TableWrite { table, key, value }
}

fn member_key(id: MemberId) -> Bytes {
    Bytes::from(id.to_string())
}

fn parse_member_key(key: &[u8]) -> Result<MemberId, MembershipError> {
    std::str::from_utf8(key)
        .ok()
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .map(MemberId)
        .ok_or_else(|| MembershipError::Id(Bytes::copy_from_slice(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEARNERS_MAX: usize = 1;

    fn member(id: u64, url: &str) -> Member {
        Member { id: MemberId(id), peer_urls: vec![url.to_owned()], ..Member::default() }
    }

    fn learner(id: u64, url: &str) -> Member {
        Member { is_learner: true, ..member(id, url) }
    }

    fn change(kind: ConfChangeType, id: u64, context: Bytes) -> ConfChange {
        let mut change = ConfChange { node_id: Some(id), ..Default::default() };
        change.r#type = Some(kind.into());
        change.context = Some(context);
        change
    }

    fn add(member: Member) -> ConfChange {
        let kind = if member.is_learner {
            ConfChangeType::ConfChangeAddLearnerNode
        } else {
            ConfChangeType::ConfChangeAddNode
        };
        let id = member.id.0;
        change(kind, id, MemberContext { member, is_promote: false }.to_json())
    }

    fn promote(id: u64) -> ConfChange {
        let member = Member { id: MemberId(id), ..Member::default() };
        let context = MemberContext { member, is_promote: true }.to_json();
        change(ConfChangeType::ConfChangeAddNode, id, context)
    }

    fn remove(id: u64) -> ConfChange {
        change(ConfChangeType::ConfChangeRemoveNode, id, Bytes::new())
    }

    fn update(member: &Member) -> ConfChange {
        change(ConfChangeType::ConfChangeUpdateNode, member.id.0, member.to_json())
    }

    fn run(membership: &mut Membership, change: &ConfChange) -> Result<Vec<TableWrite>, Rejection> {
        let change = membership.validate(change, LEARNERS_MAX)?;
        let mut writes = Vec::new();
        membership.apply(&change, &mut writes);
        Ok(writes)
    }

    fn group() -> Membership {
        let mut membership = Membership::default();
        for each in [member(1, "http://a"), member(2, "http://b"), learner(3, "http://c")] {
            run(&mut membership, &add(each)).expect("valid");
        }
        membership
    }

    #[test]
    fn changes_are_refused_for_the_reasons_that_etcd_gives() {
        let mut group = group();
        run(&mut group, &remove(2)).expect("valid");
        let not_found = |id| Rejection::MemberNotFound { member: MemberId(id) };
        let taken = Rejection::PeerUrlExists { url: "http://a".to_owned() };
        let cases = [
            (add(member(2, "http://d")), not_found(2)),
            (add(member(1, "http://d")), Rejection::MemberIdExists { member: MemberId(1) }),
            (add(member(4, "http://a")), taken.clone()),
            (add(learner(4, "http://d")), Rejection::TooManyLearners),
            (promote(1), Rejection::MemberNotLearner { member: MemberId(1) }),
            (promote(9), not_found(9)),
            (remove(2), not_found(2)),
            (remove(9), not_found(9)),
            (update(&member(9, "http://d")), not_found(9)),
            (update(&member(3, "http://a")), taken),
        ];
        for (change, rejection) in cases {
            assert_eq!(run(&mut group, &change), Err(rejection), "{change:?}");
        }
    }

    #[test]
    fn entries_that_stop_an_official_member_are_refused() {
        let mut other_id = add(member(4, "http://d"));
        other_id.node_id = Some(5);
        let mut unknown_kind = remove(1);
        unknown_kind.r#type = Some(77);
        let garbage = change(ConfChangeType::ConfChangeAddNode, 4, Bytes::from_static(b"{"));
        for bad in [other_id, unknown_kind, garbage] {
            assert_eq!(group().validate(&bad, LEARNERS_MAX), Err(Rejection::UnknownCommand));
        }
    }

    #[test]
    fn updating_a_learner_keeps_it_a_learner_and_promoting_keeps_its_urls() {
        let mut group = group();
        run(&mut group, &update(&member(3, "http://d"))).expect("valid");
        assert_eq!(group.member(MemberId(3)), Some(&learner(3, "http://d")));
        run(&mut group, &promote(3)).expect("valid");
        assert_eq!(group.member(MemberId(3)), Some(&member(3, "http://d")));
    }

    #[test]
    fn membership_comes_back_from_its_table_writes() {
        let mut group = Membership::default();
        let mut writes = Vec::new();
        let changes = [add(member(1, "http://a")), add(learner(0xab, "http://b")), remove(1)];
        for change in &changes {
            writes.extend(run(&mut group, change).expect("valid"));
        }
        let urls = vec!["http://x".to_owned()];
        let named = group.set_attributes(MemberId(0xab), "n".to_owned(), urls, &mut writes);
        assert_eq!(named, Ok(()));
        group.set_version(Version::new(3, 7, 0), &mut writes);
        let target_version = "3.6.0".to_owned();
        group.set_downgrade(Downgrade { target_version, enabled: true }, &mut writes);

        let mut tables = BTreeMap::new();
        for write in writes {
            tables.insert((write.table, write.key), write.value);
        }
        let mut back = Membership::default();
        for ((table, key), value) in &tables {
            if let Some(value) = value {
                back.restore(*table, key, value).expect("own record");
            }
        }
        assert_eq!(back, group);
        let downgrade = &tables[&(Table::Cluster, Bytes::from_static(DOWNGRADE))];
        let expected = Some(Bytes::from_static(br#"{"target-version":"3.6.0","enabled":true}"#));
        assert_eq!(*downgrade, expected);
        assert!(tables.contains_key(&(Table::Members, Bytes::from_static(b"ab"))));
    }

    #[test]
    fn attributes_of_a_removed_member_are_dropped_and_of_an_unknown_one_refused() {
        let mut group = group();
        run(&mut group, &remove(2)).expect("valid");
        let mut writes = Vec::new();
        let mut publish = |id| group.set_attributes(MemberId(id), "n".into(), vec![], &mut writes);
        assert_eq!(publish(2), Ok(()));
        assert_eq!(publish(9), Err(Rejection::MemberNotFound { member: MemberId(9) }));
        assert_eq!(writes, []);
    }
}
