//! Finds the key ranges that hold a key.
//!
//! Decides the structure: a treap ordered by start and end, in which every node knows the latest
//! end below it. Adding, removing and finding each take time logarithmic in the number of ranges,
//! plus the ranges found, however the ranges nest. Used by the hub's range lookup; identical
//! ranges are grouped there.
//!
//! Invariants
//! - I1 In-order, the pairs (start, end) ascend strictly.
//! - I2 `latest_end` of a node is the latest end in its subtree.

use std::cmp::Ordering;

use bytes::Bytes;

use super::slab::Slab;
use crate::base::random::Random;

/// Numbers by key range.
#[derive(Debug)]
pub(super) struct IntervalMap {
    nodes: Slab<Node>,
    root: Option<u32>,
    random: Random,
}

/// An exclusive end. The derived order puts "none" last, where it belongs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    /// Before this key.
    Before(Bytes),
    /// The range goes on for ever.
    Never,
}

#[derive(Debug)]
struct Node {
    start: Bytes,
    end: End,
    latest_end: End,
    priority: u64,
    left: Option<u32>,
    right: Option<u32>,
    value: u32,
}

impl End {
    fn is_after(&self, key: &[u8]) -> bool {
        match self {
            Self::Before(end) => key < end.as_ref(),
            Self::Never => true,
        }
    }
}

impl Node {
    fn order(&self, start: &[u8], end: &End) -> Ordering {
        self.start.as_ref().cmp(start).then_with(|| self.end.cmp(end))
    }
}

impl IntervalMap {
    /// Without ranges. The seed only shapes the tree.
    pub(super) const fn new(seed: u64) -> Self {
        Self { nodes: Slab::new(), root: None, random: Random::from_seed(seed) }
    }

    /// The number of exactly this range.
    pub(super) fn get(&self, start: &[u8], end: &End) -> Option<u32> {
        let mut at = self.root;
        while let Some(number) = at {
            let node = &self.nodes[number];
            at = match node.order(start, end) {
                Ordering::Equal => return Some(node.value),
                Ordering::Less => node.right,
                Ordering::Greater => node.left,
            };
        }
        None
    }

    /// Adds a range that is not in the map yet.
    pub(super) fn insert(&mut self, start: Bytes, end: End, value: u32) {
        let (left, right) = self.split(self.root, &start, &end);
        let node = self.nodes.insert(Node {
            start,
            latest_end: end.clone(),
            end,
            priority: self.random.next(),
            left: None,
            right: None,
            value,
        });
        let left = self.merge(left, Some(node));
        self.root = self.merge(left, right);
    }

    /// Removes a range that is in the map.
    pub(super) fn remove(&mut self, start: &[u8], end: &End) {
        self.root = self.without(self.root, start, end);
    }

    /// Calls `found` with the number of every range that holds `key`, in order.
    pub(super) fn find(&self, key: &[u8], found: &mut impl FnMut(u32)) {
        self.find_below(self.root, key, found);
    }

    fn find_below(&self, at: Option<u32>, key: &[u8], found: &mut impl FnMut(u32)) {
        let Some(number) = at else { return };
        let node = &self.nodes[number];
        if !node.latest_end.is_after(key) {
            return;
        }
        self.find_below(node.left, key, found);
        if node.start.as_ref() <= key {
            if node.end.is_after(key) {
                found(node.value);
            }
            self.find_below(node.right, key, found);
        }
    }

    /// Parts a subtree into what comes before (start, end) and the rest.
    fn split(&mut self, at: Option<u32>, start: &[u8], end: &End) -> (Option<u32>, Option<u32>) {
        let Some(number) = at else { return (None, None) };
        match self.nodes[number].order(start, end) {
            Ordering::Less => {
                let (left, right) = self.split(self.nodes[number].right, start, end);
                self.nodes[number].right = left;
                self.refresh(number);
                (at, right)
            }
            Ordering::Greater => {
                let (left, right) = self.split(self.nodes[number].left, start, end);
                self.nodes[number].left = right;
                self.refresh(number);
                (left, at)
            }
            Ordering::Equal => panic!("identical ranges are grouped before they come here"),
        }
    }

    /// Joins two subtrees, the first wholly before the second.
    fn merge(&mut self, left: Option<u32>, right: Option<u32>) -> Option<u32> {
        let (Some(l), Some(r)) = (left, right) else { return left.or(right) };
        if self.nodes[r].priority < self.nodes[l].priority {
            self.nodes[l].right = self.merge(self.nodes[l].right, right);
            self.refresh(l);
            left
        } else {
            self.nodes[r].left = self.merge(left, self.nodes[r].left);
            self.refresh(r);
            right
        }
    }

    fn without(&mut self, at: Option<u32>, start: &[u8], end: &End) -> Option<u32> {
        let number = at.expect("only ranges in the map are removed");
        match self.nodes[number].order(start, end) {
            Ordering::Equal => {
                let node = self.nodes.remove(number);
                return self.merge(node.left, node.right);
            }
            Ordering::Less => {
                self.nodes[number].right = self.without(self.nodes[number].right, start, end);
            }
            Ordering::Greater => {
                self.nodes[number].left = self.without(self.nodes[number].left, start, end);
            }
        }
        self.refresh(number);
        at
    }

    /// Restores I2 at one node whose children have it.
    fn refresh(&mut self, number: u32) {
        let node = &self.nodes[number];
        let children = [node.left, node.right].into_iter().flatten();
        let latest = children
            .map(|child| &self.nodes[child].latest_end)
            .fold(&node.end, |latest, end| latest.max(end))
            .clone();
        self.nodes[number].latest_end = latest;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::{Strategy, any, prop, prop_assert_eq, proptest};

    use super::*;

    fn key() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(0_u8..4, 0..3).prop_map(Bytes::from)
    }

    fn end() -> impl Strategy<Value = End> {
        prop::option::of(key()).prop_map(|end| end.map_or(End::Never, End::Before))
    }

    proptest! {
        #[test]
        fn finds_what_a_look_at_every_range_finds(
            seed in any::<u64>(),
            changes in prop::collection::vec((key(), end()), 1..60),
            probes in prop::collection::vec(key(), 1..10),
        ) {
            let mut map = IntervalMap::new(seed);
            let mut model = BTreeMap::new();
            for (value, (start, end)) in (0..).zip(changes) {
                // A range that comes twice goes the second time.
                if model.remove(&(start.clone(), end.clone())).is_some() {
                    map.remove(&start, &end);
                } else {
                    map.insert(start.clone(), end.clone(), value);
                    model.insert((start, end), value);
                }
            }
            for ((start, end), value) in &model {
                prop_assert_eq!(map.get(start, end), Some(*value));
            }
            for probe in probes {
                let mut found = Vec::new();
                map.find(&probe, &mut |value| found.push(value));
                let expected: Vec<u32> = model
                    .iter()
                    .filter(|((start, end), _)| *start <= probe && end.is_after(&probe))
                    .map(|(_, value)| *value)
                    .collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
