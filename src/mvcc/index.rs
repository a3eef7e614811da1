//! The ordered key map: a copy-on-write B+tree that knows how many keys each subtree holds.
//!
//! Decides which keys exist at a revision and where their rows are. Owned by the store, which is
//! the only one to change it; every view holds a copy, which is one reference to the root.
//!
//! ```text
//!   newest root --+          view's root --+
//!                 v                        v
//!        [ live 70 | live 41' ]    [ live 70 | live 40 ]      Inner: counts of subtrees
//!             |         |              |          |
//!             |    [ c d' ... ]        |     [ c d ... ]      Leaf: keys and histories
//!             +-------- shared --------+
//! ```
//!
//! Invariants
//! - I1 A node that a view can reach never changes: a change copies the nodes on the path to it
//!   that are shared and edits the others in place.
//! - I2 The summary of a subtree counts its live keys exactly; its bounds are at least as wide as
//!   the truth.
//! - I3 All leaves have the same depth; a leaf is empty only if it is the root.
//!
//! The newest revision in a subtree makes old revisions cheap: a subtree that has not changed
//! since is as it is now, so a count at an old revision enters only what has changed meanwhile.
//!
//! Measured with a million keys of 32 bytes on a busy 2-core machine, optimised: 82 bytes of
//! memory per key, the key included, if they came in random order, 63 in ascending order; a whole
//! put 3 us and 0.7 us; a count 0.4 us, a page of 500 keys with its count 50 us; a count at an
//! older revision 7 ms after 10,000 changes all over the tree, less if they lie together.
//!
//! Deliberately absent: rows, and any knowledge of transactions.

use std::{ops::ControlFlow, sync::Arc};

use bytes::Bytes;

use super::{
    history::{Change, Entry},
    keys::KeyRef,
    node::{Child, Leaf, Node, Split, Summary},
    version::KeyVersion,
};
use crate::model::{KeyRange, Revision, RowRevision};

/// Leaves that one step of a compaction may rewrite: a few tens of microseconds.
const COMPACTION_STEP_LEAVES: usize = 32;

/// All keys with their histories.
#[derive(Clone, Debug)]
pub(super) struct KeyIndex {
    root: Child,
}

/// What a change did to the key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changed {
    /// The version before, if the key was live.
    pub(super) previous: Option<KeyVersion>,
    /// The version now; `None` after a deletion.
    pub(super) now: Option<KeyVersion>,
    /// Whether the key was unknown before.
    pub(super) first: bool,
}

/// A change to be made to a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Edit {
    /// Write it.
    Put(RowRevision),
    /// Delete it, if it is live.
    Delete(RowRevision),
    /// Record a stored row, with the creation and version that the row carries.
    Restore { change: Change, create: Revision, version: i64 },
}

impl Default for KeyIndex {
    fn default() -> Self {
        Self { root: Child::new(Node::Leaf(Leaf::default())) }
    }
}

impl KeyIndex {
    /// The index that `root` holds.
    pub(super) const fn from_root(root: Child) -> Self {
        Self { root }
    }

    /// How many keys are live.
    pub(super) const fn live(&self) -> usize {
        self.root.summary.live
    }

    /// The history of `key`, unless it is unknown.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Entry> {
        let mut node = &self.root.node;
        loop {
            match &**node {
                Node::Inner(inner) => node = &inner.children[inner.child_of(key)].node,
                Node::Leaf(leaf) => {
                    return leaf.keys.search(key).ok().map(|at| &leaf.entries[at]);
                }
            }
        }
    }

    /// Changes the history of `key`. Deleting needs a live key.
    pub(super) fn edit(&mut self, key: &[u8], edit: Edit) -> Changed {
        let (changed, split) = self.root.edit(key, edit);
        if let Some(split) = split {
            self.root = join_under_new_root(&self.root, split);
        }
        changed
    }

    /// How many keys of `range` exist at `at`.
    ///
    /// Costs a path at both ends of the range, and every leaf that has changed since `at`.
    pub(super) fn count(&self, range: &KeyRange, at: Revision) -> usize {
        if let KeyRange::Single(key) = range {
            return usize::from(self.get(key).and_then(|entry| entry.at(at)).is_some());
        }
        Bounds::of(range).map_or(0, |bounds| count(&self.root, bounds, at))
    }

    /// Shows every key of `range` that exists at `at`, in key order, until told to stop.
    pub(super) fn visit(
        &self,
        range: &KeyRange,
        at: Revision,
        mut show: impl FnMut(KeyRef<'_>, KeyVersion) -> ControlFlow<()>,
    ) {
        let Some(mut bounds) = Bounds::of(range) else { return };
        let after_single;
        if let KeyRange::Single(key) = range {
            after_single = successor(key);
            bounds.end = Some(&after_single);
        }
        let live = |summary: &Summary| 0 < summary.live || at.0 < summary.modified_max;
        let mut show_entry = |key: KeyRef<'_>, entry: &Entry| match entry.at(at) {
            Some(version) => show(key, version),
            None => ControlFlow::Continue(()),
        };
        let _whole_or_stopped = visit(&self.root, bounds, &live, &mut show_entry);
    }

    /// Shows the history of every key, deleted ones included, in key order.
    pub(super) fn visit_histories(&self, mut show: impl FnMut(KeyRef<'_>, &Entry)) {
        let mut show = |key: KeyRef<'_>, entry: &Entry| {
            show(key, entry);
            ControlFlow::Continue(())
        };
        let _never_stops = visit(&self.root, Bounds::ALL, &|_| true, &mut show);
    }

    /// Drops what a compaction at `compacted` leaves unreachable, in some leaves at or after
    /// `from`; the rows are added to `dead`, those of one key in ascending order. Returns where to
    /// go on, or `None` at the end.
    pub(super) fn compact(
        &mut self,
        compacted: Revision,
        from: &[u8],
        dead: &mut Vec<RowRevision>,
    ) -> Option<Bytes> {
        let mut sweep = Sweep { compacted, leaves_left: COMPACTION_STEP_LEAVES, dead };
        let next = sweep.child(&mut self.root, from);
        while let Node::Inner(inner) = &*self.root.node
            && inner.children.len() <= 1
        {
            self.root = match inner.children.first() {
                Some(only) => only.clone(),
                None => Self::default().root,
            };
        }
        match next {
            Sweeped::All => None,
            Sweeped::Upto(key) => Some(key),
        }
    }
}

/// The smallest key above `key`.
pub(super) fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

fn join_under_new_root(left: &Child, split: Split) -> Child {
    let mut separators = super::keys::Keys::default();
    separators.insert(0, &split.separator);
    let children = vec![left.clone(), split.right];
    Child::new(Node::Inner(super::node::Inner { separators, children }))
}

impl Child {
    fn edit(&mut self, key: &[u8], edit: Edit) -> (Changed, Option<Split>) {
        let node = Arc::make_mut(&mut self.node);
        let (changed, place) = match node {
            Node::Leaf(leaf) => leaf.edit(key, edit),
            Node::Inner(inner) => {
                let at = inner.child_of(key);
                let (changed, split) = inner.children[at].edit(key, edit);
                let place = split.map(|split| {
                    inner.insert_right_of(at, split);
                    at + 1
                });
                (changed, place)
            }
        };
        let split = place.and_then(|place| node.split_if_full(place));
        if split.is_some() {
            self.summary = node.summary();
        } else {
            self.summary.note(&changed, edit);
        }
        (changed, split)
    }
}

impl Summary {
    fn note(&mut self, changed: &Changed, edit: Edit) {
        self.live += usize::from(changed.now.is_some());
        self.live -= usize::from(changed.previous.is_some());
        let main = match edit {
            Edit::Put(at) | Edit::Delete(at) => at.main.0,
            Edit::Restore { change, .. } => change.at.main.0,
        };
        self.modified_max = self.modified_max.max(main);
        if !changed.first || changed.now.is_none() {
            self.droppable_min = self.droppable_min.min(main);
        }
    }
}

impl Leaf {
    /// Makes the change. Returns also where a new key was inserted.
    fn edit(&mut self, key: &[u8], edit: Edit) -> (Changed, Option<usize>) {
        match self.keys.search(key) {
            Ok(at) => {
                let entry = &mut self.entries[at];
                let previous = entry.newest();
                let now = match edit {
                    Edit::Put(revision) => Some(entry.put(revision)),
                    Edit::Delete(revision) => {
                        entry.delete(revision);
                        None
                    }
                    Edit::Restore { change, .. } => restore(entry, change),
                };
                (Changed { previous, now, first: false }, None)
            }
            Err(at) => {
                let entry = match edit {
                    Edit::Put(revision) => {
                        let change = Change { at: revision, tombstone: false };
                        Entry::first(change, revision.main, 1)
                    }
                    Edit::Delete(revision) => panic!("an unknown key deleted at {revision:?}"),
                    Edit::Restore { change, create, version } => {
                        Entry::first(change, create, version)
                    }
                };
                let changed = Changed { previous: None, now: entry.newest(), first: true };
                self.insert(at, key, entry);
                (changed, Some(at))
            }
        }
    }
}

/// Adds a stored change to a known key. A second deletion in a row is passed over.
///
/// Source: etcd `kvstore.go`, `restoreIntoIndex`: only the first row of a key is asked for its
/// creation and version; later ones count on from it.
pub(super) fn restore(entry: &mut Entry, change: Change) -> Option<KeyVersion> {
    if !change.tombstone {
        return Some(entry.put(change.at));
    }
    if entry.newest().is_some() {
        entry.delete(change.at);
    }
    None
}

/// The part of a subtree that a range covers; `None` stands for no bound.
#[derive(Clone, Copy)]
struct Bounds<'a> {
    start: Option<&'a [u8]>,
    end: Option<&'a [u8]>,
}

impl<'a> Bounds<'a> {
    const ALL: Self = Self { start: None, end: None };

    /// The bounds of `range`; `None` if it is empty. Those of a single key lack the end, which
    /// would have to be built.
    fn of(range: &'a KeyRange) -> Option<Self> {
        match range {
            range if range.is_empty() => None,
            KeyRange::Single(key) | KeyRange::From(key) => {
                Some(Self { start: Some(key), end: None })
            }
            KeyRange::Between(start, end) => Some(Self { start: Some(start), end: Some(end) }),
        }
    }

    /// What is left of the bounds inside child `at` of `children`.
    fn inside(self, at: usize, first: usize, last: usize) -> Self {
        Self { start: self.start.filter(|_| at == first), end: self.end.filter(|_| at == last) }
    }

    const fn cover_all(self) -> bool {
        self.start.is_none() && self.end.is_none()
    }
}

impl super::node::Inner {
    /// The first and the last child that the bounds touch.
    fn touched(&self, bounds: Bounds<'_>) -> (usize, usize) {
        let first = bounds.start.map_or(0, |start| self.separators.at_or_below(start));
        let last = bounds.end.map_or(self.children.len() - 1, |end| self.separators.below(end));
        (first, last)
    }
}

impl Leaf {
    fn touched(&self, bounds: Bounds<'_>) -> std::ops::Range<usize> {
        let first = bounds.start.map_or(0, |start| self.keys.below(start));
        let end = bounds.end.map_or(self.entries.len(), |end| self.keys.below(end));
        first..end.max(first)
    }
}

fn count(child: &Child, bounds: Bounds<'_>, at: Revision) -> usize {
    if bounds.cover_all() && child.summary.modified_max <= at.0 {
        return child.summary.live;
    }
    match &*child.node {
        Node::Leaf(leaf) => {
            leaf.entries[leaf.touched(bounds)].iter().filter(|entry| entry.at(at).is_some()).count()
        }
        Node::Inner(inner) => {
            let (first, last) = inner.touched(bounds);
            (first..=last)
                .map(|at_child| {
                    let bounds = bounds.inside(at_child, first, last);
                    count(&inner.children[at_child], bounds, at)
                })
                .sum()
        }
    }
}

fn visit(
    child: &Child,
    bounds: Bounds<'_>,
    wanted: &impl Fn(&Summary) -> bool,
    show: &mut impl FnMut(KeyRef<'_>, &Entry) -> ControlFlow<()>,
) -> ControlFlow<()> {
    if !wanted(&child.summary) {
        return ControlFlow::Continue(());
    }
    match &*child.node {
        Node::Leaf(leaf) => {
            for at in leaf.touched(bounds) {
                show(leaf.keys.get(at), &leaf.entries[at])?;
            }
        }
        Node::Inner(inner) => {
            let (first, last) = inner.touched(bounds);
            for at in first..=last {
                visit(&inner.children[at], bounds.inside(at, first, last), wanted, show)?;
            }
        }
    }
    ControlFlow::Continue(())
}

/// One step of a compaction on its way through the tree.
struct Sweep<'a> {
    compacted: Revision,
    leaves_left: usize,
    dead: &'a mut Vec<RowRevision>,
}

enum Sweeped {
    /// Nothing is left to do in this subtree.
    All,
    /// The step is over; the next one starts at this key.
    Upto(Bytes),
}

impl Sweep<'_> {
    fn child(&mut self, child: &mut Child, from: &[u8]) -> Sweeped {
        if self.compacted.0 < child.summary.droppable_min {
            return Sweeped::All;
        }
        let node = Arc::make_mut(&mut child.node);
        let sweeped = match node {
            Node::Leaf(leaf) => self.leaf(leaf),
            Node::Inner(inner) => self.inner(inner, from),
        };
        child.summary = node.summary();
        sweeped
    }

    fn leaf(&mut self, leaf: &mut Leaf) -> Sweeped {
        self.leaves_left -= 1;
        for at in (0..leaf.entries.len()).rev() {
            if !leaf.entries[at].compact(self.compacted, self.dead) {
                leaf.remove(at);
            }
        }
        Sweeped::All
    }

    fn inner(&mut self, inner: &mut super::node::Inner, from: &[u8]) -> Sweeped {
        let mut at = inner.child_of(from);
        while at < inner.children.len() {
            if self.compacted.0 < inner.children[at].summary.droppable_min {
                at += 1;
                continue;
            }
            if let Sweeped::Upto(key) = self.child(&mut inner.children[at], from) {
                return Sweeped::Upto(key);
            }
            let behind = (at < inner.separators.len()).then(|| inner.separators.get(at).to_bytes());
            at += usize::from(!inner.tidy(at));
            if self.leaves_left == 0 {
                return behind.map_or(Sweeped::All, Sweeped::Upto);
            }
        }
        Sweeped::All
    }
}
