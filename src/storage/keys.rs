//! The keys of stored rows and small numbers: ours, and etcd's own.
//!
//! Decides the byte order of everything that is ordered on disk: big-endian, so that LMDB's (and
//! bbolt's) byte order is the order of revisions. Used by the backend, the flusher and exchange;
//! nobody else makes key bytes.
//!
//! ```text
//!   our row key    | main BE8 | sub BE8 |             16 bytes
//!   etcd's row key | main BE8 | '_' | sub BE8 | 't'?  17 bytes, 18 for a tombstone
//! ```

use crate::model::{Revision, RowRevision};

/// The bytes of a row's key in the backend.
pub const ROW_KEY_BYTES: usize = 16;
/// The bytes of a revision as etcd stores it.
pub const ETCD_REVISION_BYTES: usize = 17;

const ETCD_SEPARATOR: u8 = b'_';
const ETCD_TOMBSTONE: u8 = b't';

/// The key of the row at `revision`. Revisions are never negative, so byte order is their order.
#[must_use]
pub fn row_key(revision: RowRevision) -> [u8; ROW_KEY_BYTES] {
    let mut key = [0; ROW_KEY_BYTES];
    key[..8].copy_from_slice(&revision.main.0.to_be_bytes());
    key[8..].copy_from_slice(&revision.sub.to_be_bytes());
    key
}

/// Reads what [`row_key`] wrote; `None` for anything else.
#[must_use]
pub fn parse_row_key(key: &[u8]) -> Option<RowRevision> {
    let key: &[u8; ROW_KEY_BYTES] = key.try_into().ok()?;
    let (main, sub) = key.split_at(8);
    revision_of(main, sub)
}

/// A revision in etcd's stored form, as in `scheduledCompactRev` and in its bucket `key`.
#[must_use]
pub fn etcd_revision(revision: RowRevision) -> [u8; ETCD_REVISION_BYTES] {
    let mut key = [ETCD_SEPARATOR; ETCD_REVISION_BYTES];
    key[..8].copy_from_slice(&revision.main.0.to_be_bytes());
    key[9..].copy_from_slice(&revision.sub.to_be_bytes());
    key
}

/// Appends the key that etcd's bucket `key` has for a row: [`etcd_revision`], and the mark of a
/// tombstone.
pub fn push_etcd_row_key(key: &mut Vec<u8>, revision: RowRevision, tombstone: bool) {
    key.extend_from_slice(&etcd_revision(revision));
    if tombstone {
        key.push(ETCD_TOMBSTONE);
    }
}

/// Reads a revision in etcd's stored form, and whether it carries the mark of a tombstone; `None`
/// for anything else.
#[must_use]
pub fn parse_etcd_revision(key: &[u8]) -> Option<(RowRevision, bool)> {
    let (revision, tombstone) = match key.split_at_checked(ETCD_REVISION_BYTES)? {
        (revision, []) => (revision, false),
        (revision, [ETCD_TOMBSTONE]) => (revision, true),
        _ => return None,
    };
    if revision[8] != ETCD_SEPARATOR {
        return None;
    }
    Some((revision_of(&revision[..8], &revision[9..])?, tombstone))
}

/// A number as etcd stores the consistent index, terms and lease ids.
#[must_use]
pub const fn number(value: u64) -> [u8; 8] {
    value.to_be_bytes()
}

/// Reads what [`number`] wrote; `None` for anything else.
#[must_use]
pub fn parse_number(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}

fn revision_of(main: &[u8], sub: &[u8]) -> Option<RowRevision> {
    let main = i64::from_be_bytes(main.try_into().ok()?);
    let sub = i64::from_be_bytes(sub.try_into().ok()?);
    (0 <= main && 0 <= sub).then_some(RowRevision { main: Revision(main), sub })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    fn revision(main: i64, sub: i64) -> RowRevision {
        RowRevision { main: Revision(main), sub }
    }

    #[test]
    fn etcd_revision_has_the_bytes_that_etcd_stores() {
        // `scheduledCompactRev` of a member of etcd 3.7.1 that compacted at revision 5.
        assert_eq!(&etcd_revision(revision(5, 0)), b"\0\0\0\0\0\0\0\x05_\0\0\0\0\0\0\0\0");
        let mut key = Vec::new();
        push_etcd_row_key(&mut key, revision(2, 1), true);
        assert_eq!(key, b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\x01t");
    }

    #[test]
    fn foreign_keys_are_refused() {
        for key in [&b""[..], b"12345678", &[0xff; 16], &[b'_'; 18], &[0; 19]] {
            assert_eq!(parse_row_key(key), None, "{key:?}");
            assert_eq!(parse_etcd_revision(key), None, "{key:?}");
        }
    }

    proptest! {
        #[test]
        fn keys_sort_as_their_revisions_and_read_back(
            a in (0..=i64::MAX, 0..=i64::MAX), b in (0..=i64::MAX, 0..=i64::MAX),
            tombstone in any::<bool>(),
        ) {
            let (a, b) = (revision(a.0, a.1), revision(b.0, b.1));
            prop_assert_eq!(row_key(a).cmp(&row_key(b)), a.cmp(&b));
            prop_assert_eq!(etcd_revision(a).cmp(&etcd_revision(b)), a.cmp(&b));
            prop_assert_eq!(parse_row_key(&row_key(a)), Some(a));
            let mut key = Vec::new();
            push_etcd_row_key(&mut key, a, tombstone);
            prop_assert!(parse_etcd_revision(&key) == Some((a, tombstone)));
        }
    }
}
