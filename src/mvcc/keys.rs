//! The keys of one tree node, packed into one buffer.
//!
//! Decides how keys lie in memory: the prefix that all of them share once, then the remainders one
//! after the other. Copying a node is then two block copies, whatever the number of keys, and the
//! long common prefixes of directory-like key spaces cost nothing. Used by the nodes of the tree.
//!
//! ```text
//!   /registry/pods/ | a/1 | a/2 | b/7
//!   ^ prefix        ^     ^ ends[0]   ^ ends[2]
//! ```

use std::cmp::Ordering;

use bytes::{BufMut, Bytes, BytesMut};

/// How many keys' worth of room a full buffer grows by. Doubling would leave half of it unused in
/// a tree whose nodes are copied far more often than they grow.
const GROWTH_KEYS: usize = 4;

/// A key in two parts, as it lies in its node.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyRef<'a> {
    prefix: &'a [u8],
    suffix: &'a [u8],
}

impl KeyRef<'_> {
    /// The whole key, copied.
    pub(super) fn to_bytes(self) -> Bytes {
        let mut key = BytesMut::with_capacity(self.len());
        key.put_slice(self.prefix);
        key.put_slice(self.suffix);
        key.freeze()
    }

    /// The two parts of the key.
    pub(super) const fn parts(&self) -> [&[u8]; 2] {
        [self.prefix, self.suffix]
    }

    pub(super) const fn len(&self) -> usize {
        self.prefix.len() + self.suffix.len()
    }
}

/// Keys of one node, in the order in which they were inserted by position.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    prefix: usize,
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Keys {
    /// The keys of a node that is made as a whole, in ascending order.
    pub(super) fn from_sorted(keys: &[&[u8]]) -> Self {
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return Self::default() };
        let prefix = common_prefix(first, last);
        let suffixes = keys.iter().map(|key| key.len() - prefix).sum::<usize>();
        let mut bytes = Vec::with_capacity(prefix + suffixes);
        let mut ends = Vec::with_capacity(keys.len());
        bytes.extend_from_slice(&first[..prefix]);
        for key in keys {
            bytes.extend_from_slice(&key[prefix..]);
            ends.push(offset(bytes.len()));
        }
        Self { prefix, bytes, ends }
    }

    pub(super) const fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes that the keys occupy.
    pub(super) const fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn get(&self, at: usize) -> KeyRef<'_> {
        KeyRef {
            prefix: &self.bytes[..self.prefix],
            suffix: &self.bytes[self.start(at)..self.end(at)],
        }
    }

    /// Where `key` is (`Ok`) or would be inserted (`Err`), in sorted keys.
    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let prefix = &self.bytes[..self.prefix];
        let shared = prefix.len().min(key.len());
        match prefix[..shared].cmp(&key[..shared]) {
            Ordering::Less => return Err(self.len()),
            Ordering::Greater => return Err(0),
            Ordering::Equal if key.len() < prefix.len() => return Err(0),
            Ordering::Equal => {}
        }
        let rest = &key[prefix.len()..];
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.bytes[self.start(middle)..self.end(middle)].cmp(rest) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    /// How many keys are below `key`, in sorted keys.
    pub(super) fn below(&self, key: &[u8]) -> usize {
        self.search(key).unwrap_or_else(|place| place)
    }

    /// How many keys are at or below `key`, in sorted keys.
    pub(super) fn at_or_below(&self, key: &[u8]) -> usize {
        self.search(key).map_or_else(|place| place, |place| place + 1)
    }

    pub(super) fn insert(&mut self, at: usize, key: &[u8]) {
        if self.ends.is_empty() {
            self.prefix = key.len();
            self.bytes.clear();
            self.bytes.extend_from_slice(key);
            self.ends.push(offset(key.len()));
            return;
        }
        let shared = common_prefix(&self.bytes[..self.prefix], key);
        if shared < self.prefix {
            self.shorten_prefix(shared);
        }
        let (suffix, start) = (&key[shared..], self.start(at));
        if self.bytes.capacity() - self.bytes.len() < suffix.len() {
            self.bytes.reserve_exact(suffix.len() * GROWTH_KEYS);
        }
        if self.ends.capacity() == self.ends.len() {
            self.ends.reserve_exact(GROWTH_KEYS);
        }
        let moved = self.bytes.len();
        self.bytes.extend_from_slice(suffix);
        self.bytes[start..].rotate_right(suffix.len());
        debug_assert!(self.bytes.len() == moved + suffix.len(), "the buffer grew by the key");
        self.ends.insert(at, offset(start));
        for end in &mut self.ends[at..] {
            *end += offset(suffix.len());
        }
    }

    pub(super) fn remove(&mut self, at: usize) {
        let (start, end) = (self.start(at), self.end(at));
        self.bytes.drain(start..end);
        self.ends.remove(at);
        for later in &mut self.ends[at..] {
            *later -= offset(end - start);
        }
    }

    /// Cuts off the keys from `at` on and returns them, each part with its own longest prefix.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        let right = self.copy(at, self.len());
        *self = self.copy(0, at);
        right
    }

    /// Adds the keys of `other` behind the present ones.
    pub(super) fn append(&mut self, other: &Self) {
        for at in 0..other.len() {
            self.insert(self.len(), &other.get(at).to_bytes());
        }
    }

    fn copy(&self, from: usize, to: usize) -> Self {
        if from == to {
            return Self::default();
        }
        // The keys are sorted, so what the first and the last share, all share.
        let (first, last) = (self.get(from).suffix, self.get(to - 1).suffix);
        let more = common_prefix(first, last);
        let prefix = self.prefix + more;
        let start = self.start(from);
        let length = self.end(to - 1) - start - (to - from) * more;
        let mut copy = Self {
            prefix,
            bytes: Vec::with_capacity(prefix + length),
            ends: Vec::with_capacity(to - from),
        };
        copy.bytes.extend_from_slice(&self.bytes[..self.prefix]);
        copy.bytes.extend_from_slice(&first[..more]);
        for at in from..to {
            copy.bytes.extend_from_slice(&self.get(at).suffix[more..]);
            copy.ends.push(offset(copy.bytes.len()));
        }
        copy
    }

    fn shorten_prefix(&mut self, to: usize) {
        let old = std::mem::take(self);
        let moved = &old.bytes[to..old.prefix];
        self.prefix = to;
        self.bytes.reserve_exact(old.bytes.len() + moved.len() * old.len());
        self.bytes.extend_from_slice(&old.bytes[..to]);
        for at in 0..old.len() {
            self.bytes.extend_from_slice(moved);
            self.bytes.extend_from_slice(old.get(at).suffix);
            self.ends.push(offset(self.bytes.len()));
        }
    }

    fn start(&self, at: usize) -> usize {
        match at {
            0 => self.prefix,
            _ => self.end(at - 1),
        }
    }

    fn end(&self, at: usize) -> usize {
        self.ends[at] as usize
    }
}

/// How many bytes both begin with.
pub(super) fn common_prefix(left: &[u8], right: &[u8]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

/// The shortest key that is above `left` and at or below `right`.
pub(super) fn separator(left: KeyRef<'_>, right: KeyRef<'_>) -> Bytes {
    let (left, right) = (left.to_bytes(), right.to_bytes());
    assert!(left < right, "keys around a split are out of order: {left:?}, {right:?}");
    right.slice(..=common_prefix(&left, &right))
}

fn offset(length: usize) -> u32 {
    u32::try_from(length).expect("a node holds a few keys, each below a request's size limit")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys_of(keys: &Keys) -> Vec<Vec<u8>> {
        (0..keys.len()).map(|at| keys.get(at).to_bytes().to_vec()).collect()
    }

    proptest! {
        #[test]
        fn packed_keys_behave_like_a_sorted_vector(
            inserted in prop::collection::vec("/r(a|b){0,4}", 1..40),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            cut in any::<prop::sample::Index>(),
            probe in "/?r?(a|b){0,4}",
        ) {
            let (mut keys, mut model) = (Keys::default(), Vec::<Vec<u8>>::new());
            for key in inserted {
                let key = key.into_bytes();
                prop_assert_eq!(keys.search(&key), model.binary_search(&key));
                if let Err(place) = model.binary_search(&key) {
                    keys.insert(place, &key);
                    model.insert(place, key);
                }
            }
            for which in removed {
                if model.len() > 1 {
                    let place = which.index(model.len());
                    keys.remove(place);
                    model.remove(place);
                }
            }
            let probe = probe.into_bytes();
            prop_assert_eq!(keys.search(&probe), model.binary_search(&probe));
            let sorted = Keys::from_sorted(&model.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert_eq!(sorted.search(&probe), model.binary_search(&probe));
            prop_assert_eq!(keys_of(&sorted), model.clone());
            prop_assert_eq!(keys_of(&keys), model.clone());

            let at = cut.index(model.len() + 1);
            let right = keys.split_off(at);
            let model_right = model.split_off(at);
            prop_assert_eq!(keys_of(&keys), model.clone());
            prop_assert_eq!(&keys_of(&right), &model_right);
            if let (Some(left), Some(right)) = (model.last(), model_right.first()) {
                let between = separator(
                    KeyRef { prefix: left, suffix: b"" },
                    KeyRef { prefix: b"", suffix: right },
                );
                prop_assert!(left.as_slice() < between.as_ref(), "{between:?}");
                prop_assert!(between.as_ref() <= right.as_slice(), "{between:?}");
            }
            keys.append(&right);
            model.extend(model_right);
            prop_assert_eq!(keys_of(&keys), model);
        }
    }
}
