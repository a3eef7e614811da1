//! The small tables beside the rows, and the names of what stands in `Meta`.
//!
//! Decides their names: each mirrors the bucket of etcd's database with that name, with the same
//! key and value bytes, so that an export copies and an import copies back. Used by everybody who
//! stores or recovers state.

use bytes::Bytes;

/// A table of the backend. The rows of keys are not one: see `Reader::rows`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// What the member knows of itself: see the constants of this file.
    Meta,
    /// Lease id (BE8) to `leasepb.Lease`.
    Lease,
    /// Marshalled `AlarmMember` to nothing.
    Alarm,
    /// Cluster version and downgrade.
    Cluster,
    /// Member id in hexadecimal to the member's JSON.
    Members,
    /// Member id in hexadecimal to `removed`.
    MembersRemoved,
    /// Whether authentication is on, and its revision.
    Auth,
    /// User name to `authpb.User`.
    AuthUsers,
    /// Role name to `authpb.Role`.
    AuthRoles,
}

impl Table {
    /// Every table, in the order of their declaration.
    pub const ALL: [Self; 9] = [
        Self::Meta,
        Self::Lease,
        Self::Alarm,
        Self::Cluster,
        Self::Members,
        Self::MembersRemoved,
        Self::Auth,
        Self::AuthUsers,
        Self::AuthRoles,
    ];

    /// The name of the table, and of etcd's bucket.
    ///
    /// Source: etcd `server/storage/schema/bucket.go`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Lease => "lease",
            Self::Alarm => "alarm",
            Self::Cluster => "cluster",
            Self::Members => "members",
            Self::MembersRemoved => "members_removed",
            Self::Auth => "auth",
            Self::AuthUsers => "authUsers",
            Self::AuthRoles => "authRoles",
        }
    }

    /// The place of the table in [`Table::ALL`].
    #[must_use]
    pub(super) const fn position(self) -> usize {
        self as usize
    }
}

/// The name of etcd's bucket of rows.
pub const ROWS: &str = "key";

/// In `Meta`: the position of the last applied entry in this state, BE8.
pub const CONSISTENT_INDEX: &[u8] = b"consistent_index";
/// In `Meta`: the term of that entry, BE8.
pub const TERM: &[u8] = b"term";
/// In `Meta`: the membership at that entry, as JSON.
pub const CONF_STATE: &[u8] = b"confState";
/// In `Meta`: the version of the storage schema, as text.
pub const STORAGE_VERSION: &[u8] = b"storageVersion";
/// In `Meta`: the revision of the last compaction that was begun, in etcd's stored form.
pub const SCHEDULED_COMPACT_REVISION: &[u8] = b"scheduledCompactRev";
/// In `Meta`: the revision of the last compaction that was completed, in etcd's stored form.
pub const FINISHED_COMPACT_REVISION: &[u8] = b"finishedCompactRev";

/// One change of a small table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableWrite {
    /// Where.
    pub table: Table,
    /// The key; never empty.
    pub key: Bytes,
    /// The new value; `None` deletes.
    pub value: Option<Bytes>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_stands_at_its_position() {
        for (position, table) in Table::ALL.into_iter().enumerate() {
            assert_eq!(table.position(), position, "{table:?}");
        }
    }
}
