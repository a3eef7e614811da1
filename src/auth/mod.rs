//! What this member knows of authentication: whether it is on.
//!
//! Decides that data which was protected is never served without its protection. Users, roles and
//! permissions that an imported data directory holds stay in the tables `auth`, `auth_users` and
//! `auth_roles` as they are; nothing here writes to them, and an export copies them back.
//!
//! ```text
//!   tables auth, auth_users, auth_roles --> Auth::recover --> Status --> Published
//!                                               |
//!                                               +--> authEnabled set: recovery refuses to start
//! ```
//!
//! Invariants
//! - A1 A member whose data says that authentication is on does not start.
//! - A2 The stored tables are changed by nothing but the first write of `authRevision`.
//!
//! Deliberately absent, and refused when a log holds it: every change of users, roles and
//! permissions, and switching authentication on. `state` gives the refusal.
//!
//! Source: etcd `server/auth/store.go` and `server/storage/schema/auth.go`.

use bytes::Bytes;

use crate::storage::{Table, TableWrite};

const ENABLED_KEY: &[u8] = b"authEnabled";
const REVISION_KEY: &[u8] = b"authRevision";
/// What a new store of users starts with.
const FIRST_REVISION: u64 = 1;

/// What clients may know of authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Whether callers must prove who they are.
    pub enabled: bool,
    /// Counts changes of users, roles and permissions; 1 before the first.
    pub revision: u64,
}

impl Status {
    /// Reads the two values of the table `auth`, each absent in data that never had it.
    #[must_use]
    pub fn recover(enabled: Option<&[u8]>, revision: Option<&[u8]>) -> Self {
        let stored = revision.and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
        let revision = stored.filter(|revision| *revision != 0).unwrap_or(FIRST_REVISION);
        Self { enabled: enabled == Some(&[1]), revision }
    }

    /// The keys of the two values.
    #[must_use]
    pub const fn keys() -> (&'static [u8], &'static [u8]) {
        (ENABLED_KEY, REVISION_KEY)
    }

    /// The write that a data directory without a revision needs, as official members make it at
    /// their first start.
    #[must_use]
    pub fn first_write(self) -> TableWrite {
        let value = Some(Bytes::copy_from_slice(&self.revision.to_be_bytes()));
        TableWrite { table: Table::Auth, key: Bytes::from_static(REVISION_KEY), value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_never_had_users_is_open_at_revision_one() {
        assert_eq!(Status::recover(None, None), Status { enabled: false, revision: 1 });
        assert_eq!(Status::recover(Some(&[0]), Some(&[0; 8])).revision, 1);
    }

    #[test]
    fn enabled_authentication_is_seen() {
        let revision = 9_u64.to_be_bytes();
        let status = Status::recover(Some(&[1]), Some(&revision));
        assert_eq!(status, Status { enabled: true, revision: 9 });
    }
}
