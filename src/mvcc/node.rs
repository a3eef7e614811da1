//! The nodes of the key index's tree.
//!
//! Decides how big a node gets, how it splits and joins, and what a parent knows of a subtree
//! without entering it. Used by the tree alone, whose operations are in `index`.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    history::Entry,
    keys::{Keys, separator},
};

/// Keys of a full leaf. A put copies one leaf, so this weighs bytes copied per put against bytes
/// of node header per key.
const LEAF_KEYS_MAX: usize = 32;

/// Key bytes of a full leaf: bounds the copy where keys are long.
const LEAF_KEY_BYTES_MAX: usize = 8 * 1024;

/// Keys of a leaf that splits by bytes; below it a leaf may be as large as its keys.
const LEAF_KEYS_MIN: usize = 4;

/// Children of a full inner node. Copying one costs an atomic increment per child.
const CHILDREN_MAX: usize = 32;

/// Keys of a leaf, and children of an inner node, that are made as a whole: a restored store has
/// room for a few more before its nodes split.
pub(super) const BULK_KEYS: usize = LEAF_KEYS_MAX / 8 * 7;
pub(super) const BULK_CHILDREN: usize = CHILDREN_MAX / 8 * 7;
/// Key bytes of a leaf that is made as a whole, unless one key has more.
pub(super) const BULK_KEY_BYTES_MAX: usize = LEAF_KEY_BYTES_MAX / 8 * 7;

/// A subtree, and what is known of it from above.
#[derive(Clone, Debug)]
pub(super) struct Child {
    pub(super) node: Arc<Node>,
    pub(super) summary: Summary,
}

/// What holds for all keys of a subtree together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    /// Keys that are not deleted.
    pub(super) live: usize,
    /// No change is newer: a reader at or after this revision sees the newest state.
    pub(super) modified_max: i64,
    /// A compaction before this revision finds nothing to drop.
    pub(super) droppable_min: i64,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    Leaf(Leaf),
    Inner(Inner),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Leaf {
    pub(super) keys: Keys,
    pub(super) entries: Vec<Entry>,
}

/// Child `i` holds the keys from separator `i - 1` on and below separator `i`.
#[derive(Clone, Debug)]
pub(super) struct Inner {
    pub(super) separators: Keys,
    pub(super) children: Vec<Child>,
}

/// The right half of a node that became too large, and the first key that belongs into it.
#[derive(Debug)]
pub(super) struct Split {
    pub(super) separator: Bytes,
    pub(super) right: Child,
}

impl Summary {
    pub(super) const EMPTY: Self = Self { live: 0, modified_max: 0, droppable_min: i64::MAX };

    fn of_entry(entry: &Entry) -> Self {
        Self {
            live: usize::from(entry.newest().is_some()),
            modified_max: entry.newest_change().at.main.0,
            droppable_min: entry.droppable_from(),
        }
    }

    pub(super) fn join(self, other: Self) -> Self {
        Self {
            live: self.live + other.live,
            modified_max: self.modified_max.max(other.modified_max),
            droppable_min: self.droppable_min.min(other.droppable_min),
        }
    }
}

impl Child {
    pub(super) fn new(node: Node) -> Self {
        Self { summary: node.summary(), node: Arc::new(node) }
    }
}

impl Node {
    pub(super) fn summary(&self) -> Summary {
        match self {
            Self::Leaf(leaf) => {
                leaf.entries.iter().map(Summary::of_entry).fold(Summary::EMPTY, Summary::join)
            }
            Self::Inner(inner) => {
                inner.children.iter().map(|child| child.summary).fold(Summary::EMPTY, Summary::join)
            }
        }
    }

    /// Keys of a leaf, children of an inner node.
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::Leaf(leaf) => leaf.entries.len(),
            Self::Inner(inner) => inner.children.len(),
        }
    }

    pub(super) fn split_if_full(&mut self, inserted_at: usize) -> Option<Split> {
        match self {
            Self::Leaf(leaf) => leaf.split_if_full(inserted_at),
            Self::Inner(inner) => inner.split_if_full(inserted_at),
        }
    }
}

impl Leaf {
    pub(super) fn insert(&mut self, at: usize, key: &[u8], entry: Entry) {
        self.keys.insert(at, key);
        if self.entries.capacity() == self.entries.len() {
            self.entries.reserve_exact(4);
        }
        self.entries.insert(at, entry);
    }

    pub(super) fn remove(&mut self, at: usize) {
        self.keys.remove(at);
        self.entries.remove(at);
    }

    fn split_if_full(&mut self, inserted_at: usize) -> Option<Split> {
        let keys = self.entries.len();
        let long = LEAF_KEY_BYTES_MAX < self.keys.byte_len() && LEAF_KEYS_MIN <= keys;
        if keys <= LEAF_KEYS_MAX && !long {
            return None;
        }
        let at = split_point(keys, inserted_at);
        let separator = separator(self.keys.get(at - 1), self.keys.get(at));
        let mut entries = Vec::with_capacity(keys - at);
        entries.extend(self.entries.drain(at..));
        let right = Self { keys: self.keys.split_off(at), entries };
        Some(Split { separator, right: Child::new(Node::Leaf(right)) })
    }

    fn append(&mut self, right: &Self) {
        self.keys.append(&right.keys);
        self.entries.extend(right.entries.iter().cloned());
    }
}

impl Inner {
    /// Which child holds `key`, if any does.
    pub(super) fn child_of(&self, key: &[u8]) -> usize {
        self.separators.at_or_below(key)
    }

    pub(super) fn insert_right_of(&mut self, at: usize, split: Split) {
        self.separators.insert(at, &split.separator);
        if self.children.capacity() == self.children.len() {
            self.children.reserve_exact(4);
        }
        self.children.insert(at + 1, split.right);
    }

    fn split_if_full(&mut self, inserted_at: usize) -> Option<Split> {
        let children = self.children.len();
        if children <= CHILDREN_MAX {
            return None;
        }
        let at = split_point(children, inserted_at);
        let mut right_children = Vec::with_capacity(children - at);
        right_children.extend(self.children.drain(at..));
        // The separator between the halves moves up.
        let right_separators = self.separators.split_off(at);
        let separator = self.separators.get(at - 1).to_bytes();
        self.separators.remove(at - 1);
        let right = Self { separators: right_separators, children: right_children };
        assert!(
            self.separators.len() + 1 == self.children.len(),
            "{} separators for {} children",
            self.separators.len(),
            self.children.len()
        );
        Some(Split { separator, right: Child::new(Node::Inner(right)) })
    }

    /// Removes the child at `at` or joins it with a neighbour if it has become small. Returns
    /// whether it did: then another child, or more than before, is at `at` now.
    pub(super) fn tidy(&mut self, at: usize) -> bool {
        let len = self.children[at].node.len();
        if len == 0 {
            self.remove(at);
            return true;
        }
        for left in [at.checked_sub(1), Some(at)].into_iter().flatten() {
            if left + 1 < self.children.len() && self.join_with_next(left) {
                return true;
            }
        }
        false
    }

    fn remove(&mut self, at: usize) {
        self.children.remove(at);
        match at.checked_sub(1) {
            Some(separator) => self.separators.remove(separator),
            // The new first child takes over the range of the removed one.
            None if 0 < self.separators.len() => self.separators.remove(0),
            None => {}
        }
    }

    /// Joins two leaves, or two inner nodes, that together fill no more than three quarters.
    fn join_with_next(&mut self, at: usize) -> bool {
        let Child { node: right, summary: right_summary } = self.children[at + 1].clone();
        let left = &mut self.children[at];
        let joined = match (&*left.node, &*right) {
            (Node::Leaf(a), Node::Leaf(b)) => {
                let keys = a.entries.len() + b.entries.len();
                let bytes = a.keys.byte_len() + b.keys.byte_len();
                keys <= LEAF_KEYS_MAX / 4 * 3 && bytes <= LEAF_KEY_BYTES_MAX / 2
            }
            (Node::Inner(a), Node::Inner(b)) => {
                a.children.len() + b.children.len() <= CHILDREN_MAX / 4 * 3
            }
            (Node::Leaf(_), Node::Inner(_)) | (Node::Inner(_), Node::Leaf(_)) => {
                unreachable!("all leaves have the same depth")
            }
        };
        if !joined {
            return false;
        }
        let separator = self.separators.get(at).to_bytes();
        match (Arc::make_mut(&mut left.node), &*right) {
            (Node::Leaf(left), Node::Leaf(right)) => left.append(right),
            (Node::Inner(left), Node::Inner(right)) => {
                left.separators.insert(left.separators.len(), &separator);
                left.separators.append(&right.separators);
                left.children.extend(right.children.iter().cloned());
            }
            (Node::Leaf(_), Node::Inner(_)) | (Node::Inner(_), Node::Leaf(_)) => {
                unreachable!("checked above")
            }
        }
        left.summary = left.summary.join(right_summary);
        self.children.remove(at + 1);
        self.separators.remove(at);
        true
    }
}

/// Where to cut a full node. Keys that arrive in ascending order leave full nodes behind.
const fn split_point(len: usize, inserted_at: usize) -> usize {
    if inserted_at + 1 == len { len - 1 } else { len / 2 }
}
