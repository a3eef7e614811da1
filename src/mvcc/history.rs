//! The history of one key: where its versions are and which of them are still wanted.
//!
//! Decides which version a reader at a revision sees, what compaction drops, and which rows count
//! for a hash. The newest version lies in the tree's leaf; older ones, which most keys do not
//! have, in a log that copies of the leaf share. Owned by the leaves of the tree.
//!
//! ```text
//!   leaf of the tree           Entry { newest, older_len: 3, older }   <- current
//!   leaf of an older view      Entry { newest', older_len: 2, older }     |
//!                                                             v           v
//!   Older                       [ put 4 | put 7 | deleted 9 |  free  ]
//! ```
//!
//! Invariants
//! - H1 Versions are in strictly ascending order of revision; only the owner of the newest leaf
//!   appends, always at `older_len`, so no slot that a view can see ever changes.
//! - H2 A deletion never follows a deletion; versions between two deletions count up by one.
//!
//! Source: etcd `server/storage/mvcc/key_index.go`, whose generations are the stretches between
//! deletions here.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU32, Ordering::Relaxed},
};

use super::version::KeyVersion;
use crate::model::{Revision, RowRevision};

const OLDER_SLOTS_MIN: usize = 2;

/// Where a change stands in history, and whether it deleted the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) at: RowRevision,
    pub(super) tombstone: bool,
}

/// A version as the history keeps it.
#[derive(Clone, Copy, Debug)]
struct Version {
    main: i64,
    /// The place within the revision, times two, plus one for a deletion.
    place: u32,
    version: i64,
}

/// The history of one key.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    main: i64,
    create: i64,
    version: i64,
    place: u32,
    older_len: u32,
    older: Option<Arc<Older>>,
}

#[derive(Debug)]
struct Older {
    /// When the key of the first slot was created; needed where compaction cut a stretch.
    first_create: i64,
    slots: Box<[Slot]>,
}

/// Written once, before the leaf that makes it reachable is published; relaxed accesses suffice,
/// because publishing a view orders them.
#[derive(Debug, Default)]
struct Slot {
    main: AtomicI64,
    version: AtomicI64,
    place: AtomicU32,
}

const _: () = assert!(size_of::<Entry>() == 40, "a million keys pay for every byte here");

impl Entry {
    /// The history of a key that is first seen with this change.
    pub(super) fn first(change: Change, create: Revision, version: i64) -> Self {
        Self {
            main: change.at.main.0,
            create: create.0,
            version,
            place: place(change),
            older_len: 0,
            older: None,
        }
    }

    /// The newest version, unless the key is deleted.
    pub(super) const fn newest(&self) -> Option<KeyVersion> {
        if self.newest_version().tombstone() {
            return None;
        }
        Some(self.newest_version().of_key(self.create))
    }

    /// The newest change, of either kind.
    pub(super) const fn newest_change(&self) -> Change {
        self.newest_version().change()
    }

    /// Adds a put. Returns the version that it makes.
    pub(super) fn put(&mut self, at: RowRevision) -> KeyVersion {
        let (create, version) = match self.newest() {
            Some(previous) => (previous.create.0, self.version + 1),
            None => (at.main.0, 1),
        };
        self.push(Change { at, tombstone: false }, create, version);
        KeyVersion { create: Revision(create), modified: at, version }
    }

    /// Adds a deletion of a live key.
    pub(super) fn delete(&mut self, at: RowRevision) {
        assert!(self.newest().is_some(), "deleted twice, at {:?}", at);
        self.push(Change { at, tombstone: true }, self.create, self.version + 1);
    }

    fn push(&mut self, change: Change, create: i64, version: i64) {
        let last = self.newest_change().at;
        assert!(last < change.at, "change at {:?} after one at {last:?}", change.at);
        self.retire_newest();
        self.main = change.at.main.0;
        self.place = place(change);
        self.create = create;
        self.version = version;
    }

    /// Moves the newest version behind the older ones.
    fn retire_newest(&mut self) {
        let used = self.older_len as usize;
        let newest = self.newest_version();
        match &self.older {
            Some(older) if used < older.slots.len() => {}
            Some(older) => {
                let kept = (0..used).map(|at| older.get(at));
                self.older = Some(Older::new(older.first_create, kept, used * 2));
            }
            None => {
                let none = std::iter::empty();
                self.older = Some(Older::new(self.create, none, OLDER_SLOTS_MIN));
            }
        }
        let older = self.older.as_ref().expect("made above if there was none");
        older.set(used, newest);
        self.older_len += 1;
    }

    /// The version that a reader at `at` sees; `None` if the key did not exist then.
    pub(super) fn at(&self, at: Revision) -> Option<KeyVersion> {
        if self.main <= at.0 {
            return self.newest();
        }
        let place = self.upto(at).checked_sub(1)?;
        let version = self.get(place);
        if version.tombstone() { None } else { Some(version.of_key(self.create_of(place))) }
    }

    /// The version that the change at `change` replaced; `None` if there was none, or if it is
    /// compacted away.
    pub(super) fn before(&self, change: RowRevision) -> Option<KeyVersion> {
        let after = self.partition(|version| version.change().at < change);
        let version = self.get(after.checked_sub(1)?);
        if version.tombstone() { None } else { Some(version.of_key(self.create_of(after - 1))) }
    }

    /// From which compaction revision on there is something to drop; `i64::MAX` if never.
    pub(super) fn droppable_from(&self) -> i64 {
        match self.len() {
            1 if self.newest_version().tombstone() => self.main.saturating_add(1),
            1 => i64::MAX,
            _ => {
                let first = self.get(0);
                let replaced = self.get(1).main;
                // A deletion goes one revision after its own, replaced or not.
                if first.tombstone() { replaced.min(first.main + 1) } else { replaced }
            }
        }
    }

    /// Drops what no reader at or after `compacted` can see, adding its rows to `dead`. Returns
    /// false if nothing is left of the key.
    ///
    /// The newest change at or before `compacted` stays; a deletion stays only exactly at it, so
    /// that a watcher from there still learns of it.
    pub(super) fn compact(&mut self, compacted: Revision, dead: &mut Vec<RowRevision>) -> bool {
        let Some(newest_seen) = self.upto(compacted).checked_sub(1) else { return true };
        let seen = self.get(newest_seen);
        let gone = seen.tombstone() && seen.main < compacted.0;
        let first_kept = newest_seen + usize::from(gone);
        dead.extend((0..first_kept).map(|at| self.get(at).change().at));
        if first_kept == self.len() {
            return false;
        }
        if 0 < first_kept {
            self.drop_older(first_kept);
        }
        true
    }

    fn drop_older(&mut self, first_kept: usize) {
        let create = self.create_of(first_kept);
        let kept = self.older_len as usize - first_kept;
        self.older = (0 < kept).then(|| {
            let versions = (first_kept..self.older_len as usize).map(|at| self.get(at));
            Older::new(create, versions, kept)
        });
        self.older_len = u32::try_from(kept).expect("fewer than before");
    }

    /// The row that a hash at `at` counts for this key although it may be old; `None` if none.
    ///
    /// Source: etcd `key_index.go`, `keep`: the newest change at or before `at` within the
    /// stretch that `at` falls into, unless it is the deletion that ends the stretch.
    pub(super) fn kept_for_hash(&self, at: Revision) -> Option<RowRevision> {
        self.newest_in_stretch(at).filter(|change| !change.tombstone).map(|change| change.at)
    }

    /// The row that a compaction at `at` keeps although it may be old; `None` if none.
    ///
    /// Source: etcd `key_index.go`, `compact`.
    pub(super) fn kept_by_compaction(&self, at: Revision) -> Option<RowRevision> {
        self.newest_in_stretch(at).map(|change| change.at)
    }

    fn newest_in_stretch(&self, at: Revision) -> Option<Change> {
        // The stretch ends at the first deletion at or after `at`, or is the newest one.
        let upto = self.upto(at);
        let first_at = self.partition(|version| version.main < at.0);
        let end = (first_at..upto).find(|&place| self.get(place).tombstone());
        let newest = end.or_else(|| upto.checked_sub(1))?;
        let change = self.get(newest).change();
        // A deletion before `at` ended an earlier stretch; `at` falls behind it.
        (!change.tombstone || change.at.main == at).then_some(change)
    }

    fn len(&self) -> usize {
        self.older_len as usize + 1
    }

    fn get(&self, at: usize) -> Version {
        match &self.older {
            Some(older) if at < self.older_len as usize => older.get(at),
            _ => self.newest_version(),
        }
    }

    /// How many changes are at or before `at`.
    fn upto(&self, at: Revision) -> usize {
        if self.main <= at.0 {
            return self.len();
        }
        self.partition(|version| version.main <= at.0)
    }

    fn partition(&self, before: impl Fn(Version) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if before(self.get(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// When the key of the version at `place` was created.
    fn create_of(&self, place: usize) -> i64 {
        if place == self.older_len as usize {
            return self.create;
        }
        let version = self.get(place).version;
        let first = usize::try_from(version - 1).ok().and_then(|back| place.checked_sub(back));
        match (first, &self.older) {
            (Some(first), _) => self.get(first).main,
            (None, Some(older)) => older.first_create,
            (None, None) => self.create,
        }
    }

    const fn newest_version(&self) -> Version {
        Version { main: self.main, place: self.place, version: self.version }
    }
}

impl Version {
    const fn tombstone(self) -> bool {
        self.place & 1 == 1
    }

    const fn change(self) -> Change {
        let sub = (self.place >> 1) as i64;
        Change { at: RowRevision { main: Revision(self.main), sub }, tombstone: self.tombstone() }
    }

    const fn of_key(self, create: i64) -> KeyVersion {
        KeyVersion { create: Revision(create), modified: self.change().at, version: self.version }
    }
}

impl Older {
    fn new(first_create: i64, kept: impl Iterator<Item = Version>, slots: usize) -> Arc<Self> {
        let slots = std::iter::repeat_with(Slot::default).take(slots).collect();
        let older = Self { first_create, slots };
        kept.enumerate().for_each(|(at, version)| older.set(at, version));
        Arc::new(older)
    }

    fn get(&self, at: usize) -> Version {
        let slot = &self.slots[at];
        Version {
            main: slot.main.load(Relaxed),
            place: slot.place.load(Relaxed),
            version: slot.version.load(Relaxed),
        }
    }

    fn set(&self, at: usize, version: Version) {
        let slot = &self.slots[at];
        slot.main.store(version.main, Relaxed);
        slot.place.store(version.place, Relaxed);
        slot.version.store(version.version, Relaxed);
    }
}

fn place(change: Change) -> u32 {
    let sub = u32::try_from(change.at.sub).ok().filter(|sub| *sub < u32::MAX / 2);
    let sub = sub.expect("a revision holds fewer changes than memory holds keys");
    sub * 2 + u32::from(change.tombstone)
}
