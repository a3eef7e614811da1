//! Versions of the cluster and of its members, and what may follow what.
//!
//! Decides the cluster version that a leader proposes, whether a downgrade may start, and which
//! versions can serve. Pure functions of what members report; who asks them and who proposes is the
//! replica's business. Used by the membership, the replica's duties and the maintenance service.
//!
//! Source: etcd `server/etcdserver/version/{monitor,manager,downgrade}.go` and
//! `server/etcdserver/api/capability.go`.

use std::{fmt, str::FromStr};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::membership::Downgrade;

/// The etcd version that this server stands in for.
pub const SERVER_VERSION: Version = Version::new(3, 7, 1);

/// The cluster version of a group in which not every member's version is known yet, and the oldest
/// one that can be served.
pub const CLUSTER_VERSION_MIN: Version = Version::new(3, 0, 0);

/// A version of three numbers. A pre-release or build suffix is read and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The first number.
    pub major: u64,
    /// The second number: the one that decides about compatibility.
    pub minor: u64,
    /// The third number.
    pub patch: u64,
}

/// What a member answers to the question for its versions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The release that it runs.
    #[serde(rename = "etcdserver", default)]
    pub server: String,
    /// What its cluster has agreed on; `not_decided` before that.
    #[serde(rename = "etcdcluster", default)]
    pub cluster: String,
    /// The version of its stored schema, or `unknown`.
    #[serde(default)]
    pub storage: String,
}

impl Versions {
    /// What this server answers.
    #[must_use]
    pub fn of_this_server(cluster: Option<Version>, storage: Option<Version>) -> Self {
        let text = |version: Option<Version>, none: &str| {
            version.map_or_else(|| none.to_owned(), |version| version.to_string())
        };
        Self {
            server: SERVER_VERSION.to_string(),
            cluster: text(cluster, "not_decided"),
            storage: text(storage, "unknown"),
        }
    }

    /// The body of an answer.
    #[must_use]
    pub fn to_json(&self) -> Bytes {
        Bytes::from(serde_json::to_vec(self).expect("a struct of strings has a JSON form"))
    }

    /// Reads the body of an answer.
    ///
    /// # Errors
    /// - if it is something else.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }
}

/// Why a text is not a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionError(String);

impl Version {
    /// The version `major.minor.patch`.
    #[must_use]
    pub const fn new(major: u64, minor: u64, patch: u64) -> Self {
        Self { major, minor, patch }
    }

    /// The same without a patch: what clusters and storage formats have.
    #[must_use]
    pub const fn without_patch(self) -> Self {
        Self::new(self.major, self.minor, 0)
    }

    /// `major.minor`, as logs, metrics and answers spell a cluster version.
    #[must_use]
    pub fn cluster_text(self) -> String {
        format!("{}.{}", self.major, self.minor)
    }

    /// Whether a cluster of this version may be brought to `target`.
    #[must_use]
    pub fn allows_downgrade_to(self, target: Self) -> bool {
        self.minor.checked_sub(1).is_some_and(|minor| target == Self::new(self.major, minor, 0))
    }

    /// Whether this server can be a member of a cluster of this version.
    #[must_use]
    pub fn is_supported_cluster(self) -> bool {
        self.without_patch() <= SERVER_VERSION.without_patch()
    }

    fn may_become(self, next: Self) -> bool {
        let (from, to) = (self.without_patch(), next.without_patch());
        from.allows_downgrade_to(to) || (from.major == to.major && from < to)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl fmt::Display for VersionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a version of three numbers", self.0)
    }
}

impl std::error::Error for VersionError {}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let error = || VersionError(text.to_owned());
        let core = text.split(['-', '+']).next().unwrap_or_default();
        let mut numbers = core.split('.').map(str::parse::<u64>);
        let mut next = || numbers.next().and_then(Result::ok).ok_or_else(error);
        let version = Self::new(next()?, next()?, next()?);
        if core.split('.').count() == 3 { Ok(version) } else { Err(error()) }
    }
}

/// The cluster version that the leader should propose now, if any.
///
/// `members` are the server versions of all members, `None` for one that did not answer. A new
/// cluster gets the smallest of them, or [`CLUSTER_VERSION_MIN`] while one is unknown; after that
/// the version rises when all members are higher, and falls only under an enabled downgrade.
#[must_use]
pub fn next_cluster_version(
    cluster: Option<Version>,
    members: &[Option<Version>],
    downgrade: Option<&Downgrade>,
) -> Option<Version> {
    let known: Option<Vec<Version>> = members.iter().copied().collect();
    let smallest =
        known.and_then(|versions| versions.into_iter().min()).map(Version::without_patch);
    let Some(cluster) = cluster else {
        return Some(smallest.unwrap_or(CLUSTER_VERSION_MIN));
    };
    let smallest = smallest?;
    if let Some(target) = downgrade.and_then(Downgrade::target) {
        let valid = cluster.allows_downgrade_to(target) && smallest.allows_downgrade_to(target);
        return (target != cluster && valid).then_some(target);
    }
    (cluster < smallest && cluster.may_become(smallest)).then_some(smallest)
}

/// Whether every member runs the target, so that the downgrade is over.
#[must_use]
pub fn downgrade_is_finished(target: Version, members: &[Option<Version>]) -> bool {
    members.iter().all(|version| version.map(Version::without_patch) == Some(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V36: Version = Version::new(3, 6, 0);
    const V37: Version = Version::new(3, 7, 0);

    #[test]
    fn answer_is_that_of_an_official_member() {
        let versions = Versions::of_this_server(Some(V37), Some(V37));
        let expected = r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
        assert_eq!(versions.to_json(), expected);
        assert_eq!(Versions::from_json(expected.as_bytes()).expect("own JSON"), versions);
        let fresh = Versions::of_this_server(None, None);
        assert_eq!((fresh.cluster.as_str(), fresh.storage.as_str()), ("not_decided", "unknown"));
        let old = Versions::from_json(br#"{"etcdserver":"3.5.0","etcdcluster":"3.5.0"}"#);
        assert_eq!(old.expect("etcd 3.5 has no storage version").storage, "");
    }

    fn downgrade(target: &str) -> Downgrade {
        Downgrade { target_version: target.to_owned(), enabled: true }
    }

    #[test]
    fn three_numbers_with_any_suffix_are_a_version() {
        assert_eq!("3.7.0-alpha.0".parse(), Ok(V37));
        for bad in ["", "3", "3.7", "3.7.0.1", "3.x.0", "v3.7.0", "3..0"] {
            assert!(bad.parse::<Version>().is_err(), "{bad:?} was read as a version");
        }
    }

    #[test]
    fn new_cluster_starts_at_the_smallest_member_or_at_the_minimum() {
        let (new, old) = (Some(SERVER_VERSION), Some(Version::new(3, 6, 5)));
        assert_eq!(next_cluster_version(None, &[new, old], None), Some(V36));
        assert_eq!(next_cluster_version(None, &[new, None], None), Some(CLUSTER_VERSION_MIN));
    }

    #[test]
    fn cluster_version_rises_with_all_members_and_falls_only_under_a_downgrade() {
        let new = Some(SERVER_VERSION);
        assert_eq!(next_cluster_version(Some(V36), &[new, new], None), Some(V37));
        assert_eq!(next_cluster_version(Some(V36), &[new, None], None), None);
        assert_eq!(next_cluster_version(Some(V37), &[Some(V36)], None), None);
        let to_36 = downgrade("3.6.0");
        assert_eq!(next_cluster_version(Some(V37), &[new], Some(&to_36)), Some(V36));
        assert_eq!(next_cluster_version(Some(V36), &[new], Some(&to_36)), None);
        assert_eq!(next_cluster_version(Some(V37), &[new], Some(&downgrade("3.5.0"))), None);
        assert!(downgrade_is_finished(V36, &[Some(Version::new(3, 6, 9))]));
        assert!(!downgrade_is_finished(V36, &[Some(V36), None]));
    }
}
