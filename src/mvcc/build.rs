//! Makes the key index of all rows at once, from below.
//!
//! Decides how full the nodes of a restored tree are. Leaves are made in ascending order of keys,
//! each as large as its keys, by several threads; then one level after the other above them. This
//! takes a fraction of the time and less memory than a million changes. Used by `recover`.

use std::sync::{
    OnceLock,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;

use super::{
    gather::{Placed, Window, other_threads},
    history::Entry,
    index::{KeyIndex, restore},
    keys::{Keys, separator},
    node::{BULK_CHILDREN, BULK_KEY_BYTES_MAX, BULK_KEYS, Child, Inner, Leaf, Node},
};
use crate::{
    base::thread,
    model::{LeaseId, Revision},
};

/// What the rows of a window make.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) index: KeyIndex,
    /// The keys with a lease, in key order.
    pub(super) attached: Vec<(Bytes, LeaseId)>,
}

/// What the rows of a stretch make.
#[derive(Debug, Default)]
struct Part {
    leaves: Vec<Child>,
    attached: Vec<(Bytes, LeaseId)>,
}

/// The index of the keys of `window`, whose rows are the first that there are.
pub(super) fn build(window: &Window) -> Built {
    let parts: Vec<OnceLock<Part>> = (0..window.stretches()).map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let others = if parts.len() == 1 { 0 } else { other_threads() };
    thread::together("recover", others, || {
        loop {
            let number = next.fetch_add(1, Relaxed);
            let Some(part) = parts.get(number) else { break };
            part.set(Part::of(&window.stretch(number))).expect("each is taken once");
        }
    });
    let (mut leaves, mut attached) = (Vec::new(), Vec::new());
    for part in parts {
        let part = part.into_inner().expect("all were taken");
        leaves.extend(part.leaves);
        attached.extend(part.attached);
    }
    Built { index: KeyIndex::from_root(root(leaves)), attached }
}

/// The rows of one key after the other.
pub(super) fn by_key<'p, 'w>(placed: &'p [Placed<'w>]) -> impl Iterator<Item = &'p [Placed<'w>]> {
    placed.chunk_by(|left, right| left.key == right.key)
}

/// The lease that the newest row of a key attaches it to.
pub(super) fn lease_of(rows: &[Placed<'_>]) -> Option<LeaseId> {
    let newest = rows.last()?.found;
    (newest.lease != 0 && !newest.change().tombstone).then_some(LeaseId(newest.lease))
}

impl Part {
    fn of(placed: &[Placed<'_>]) -> Self {
        let mut part = Self::default();
        let (mut keys, mut bytes, mut entries) = (Vec::new(), 0, Vec::new());
        for rows in by_key(placed) {
            let key = rows[0].key;
            if keys.len() == BULK_KEYS || (BULK_KEY_BYTES_MAX < bytes + key.len() && 0 < bytes) {
                part.close(&mut keys, &mut entries);
                bytes = 0;
            }
            keys.push(key);
            bytes += key.len();
            entries.push(entry(rows));
            if let Some(lease) = lease_of(rows) {
                part.attached.push((Bytes::copy_from_slice(key), lease));
            }
        }
        if !keys.is_empty() {
            part.close(&mut keys, &mut entries);
        }
        part
    }

    fn close(&mut self, keys: &mut Vec<&[u8]>, entries: &mut Vec<Entry>) {
        let mut exact = Vec::with_capacity(entries.len());
        exact.append(entries);
        let leaf = Leaf { keys: Keys::from_sorted(keys), entries: exact };
        keys.clear();
        self.leaves.push(Child::new(Node::Leaf(leaf)));
    }
}

fn entry(rows: &[Placed<'_>]) -> Entry {
    let first = rows[0].found;
    let mut entry = Entry::first(first.change(), Revision(first.create), first.version);
    for row in &rows[1..] {
        restore(&mut entry, row.found.change());
    }
    entry
}

/// Puts levels above `leaves`, until one node holds all.
fn root(leaves: Vec<Child>) -> Child {
    let between = |pair: &[Child]| match (&*pair[0].node, &*pair[1].node) {
        (Node::Leaf(left), Node::Leaf(right)) => {
            separator(left.keys.get(left.keys.len() - 1), right.keys.get(0))
        }
        (Node::Leaf(_) | Node::Inner(_), _) => unreachable!("these are leaves"),
    };
    let mut separators: Vec<Bytes> = leaves.windows(2).map(between).collect();
    let mut level = leaves;
    while 1 < level.len() {
        (level, separators) = parents(level, &separators);
    }
    level.pop().unwrap_or_else(|| Child::new(Node::Leaf(Leaf::default())))
}

/// The level above `children`, and what stands between its nodes.
fn parents(children: Vec<Child>, separators: &[Bytes]) -> (Vec<Child>, Vec<Bytes>) {
    let count = children.len();
    let nodes = count.div_ceil(BULK_CHILDREN);
    let (mut level, mut between) = (Vec::with_capacity(nodes), Vec::with_capacity(nodes - 1));
    let mut children = children.into_iter();
    for number in 0..nodes {
        // Evenly, so that none is left with a single child.
        let (start, end) = (count * number / nodes, count * (number + 1) / nodes);
        let inside: Vec<&[u8]> = separators[start..end - 1].iter().map(|key| &key[..]).collect();
        let mut held = Vec::with_capacity(end - start);
        held.extend(children.by_ref().take(end - start));
        let inner = Inner { separators: Keys::from_sorted(&inside), children: held };
        level.push(Child::new(Node::Inner(inner)));
        between.extend(separators.get(end - 1).cloned());
    }
    (level, between)
}
