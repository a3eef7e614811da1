//! A range of keys, as requests spell it.
//!
//! Decides what `key` and `range_end` select. Used by reads, deletes, watchers and permissions.

use bytes::Bytes;

/// A set of keys that is contiguous in byte order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRange {
    /// Exactly one key.
    Single(Bytes),
    /// Every key at or after this one.
    From(Bytes),
    /// Every key at or after the first and before the second; empty unless first < second.
    Between(Bytes, Bytes),
}

impl KeyRange {
    /// Reads the two fields of a request: no end selects one key, an end of a single zero byte
    /// every key from `key` on, any other end is exclusive.
    ///
    /// Source: etcd `RangeRequest` in `api/etcdserverpb/rpc.proto`.
    #[must_use]
    pub fn from_wire(key: Bytes, range_end: Bytes) -> Self {
        if range_end.is_empty() {
            Self::Single(key)
        } else if range_end.as_ref() == [0] {
            Self::From(key)
        } else {
            Self::Between(key, range_end)
        }
    }

    /// The smallest key that can be in the range.
    #[must_use]
    pub const fn start(&self) -> &Bytes {
        match self {
            Self::Single(key) | Self::From(key) | Self::Between(key, _) => key,
        }
    }

    /// Whether `key` is in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Single(only) => only == key,
            Self::From(start) => start.as_ref() <= key,
            Self::Between(start, end) => start.as_ref() <= key && key < end.as_ref(),
        }
    }

    /// Whether no key at all can be in the range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Between(start, end) if end <= start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_byte_end_selects_every_key_from_the_start() {
        let range = KeyRange::from_wire(Bytes::from_static(b"b"), Bytes::from_static(b"\0"));
        assert!(range.contains(b"b") && range.contains(b"\xff\xff"));
        assert!(!range.contains(b"a"));
    }

    #[test]
    fn end_at_or_before_the_start_selects_nothing() {
        let range = KeyRange::from_wire(Bytes::from_static(b"b"), Bytes::from_static(b"b"));
        assert!(range.is_empty() && !range.contains(b"b"));
    }
}
