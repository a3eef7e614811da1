//! The ten buckets of an etcd database, in the order in which a file has them.
//!
//! Decides nothing; etcd's schema does. Used by export and import.
//!
//! Source: etcd `server/storage/schema/bucket.go`.

use crate::storage::{Table, tables::ROWS};

/// What a bucket holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// The history of keys.
    Rows,
    /// A small table, byte for byte.
    Records(Table),
}

/// Every bucket of a 3.7 database, by name; they exist even when they are empty.
pub(super) const BUCKETS: [Content; 10] = [
    Content::Records(Table::Alarm),
    Content::Records(Table::Auth),
    Content::Records(Table::AuthRoles),
    Content::Records(Table::AuthUsers),
    Content::Records(Table::Cluster),
    Content::Rows,
    Content::Records(Table::Lease),
    Content::Records(Table::Members),
    Content::Records(Table::MembersRemoved),
    Content::Records(Table::Meta),
];

impl Content {
    /// The name of the bucket.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rows => ROWS,
            Self::Records(table) => table.name(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_stand_in_the_order_of_their_names_and_none_is_missing() {
        let names: Vec<&str> = BUCKETS.into_iter().map(Content::name).collect();
        assert!(names.is_sorted(), "a file has its buckets by name, not {names:?}");
        for table in Table::ALL {
            assert!(names.contains(&table.name()), "{table:?} is not exchanged");
        }
        assert_eq!(names.len(), Table::ALL.len() + 1);
    }
}
