//! Who wants to hear of which keys.
//!
//! Decides how the watchers of a changed key are found: a hash map for watchers of single keys, an
//! interval map for watchers of ranges. Watchers of the same range and with the same wishes form a
//! group, so a key that changes is matched, and its events are selected and encoded, once per
//! group. Owned by the hub.
//!
//! Invariants
//! - J1 A range has an entry exactly while somebody watches it.
//! - J2 `hits` is empty outside of a search, and ascends within one.

use std::collections::HashMap;

use bytes::Bytes;

use super::{
    interval::{End, IntervalMap},
    slab::Slab,
};
use crate::{
    model::KeyRange,
    mvcc::{Event, EventKind},
};

/// A watcher, for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WatcherId(pub(super) u32);

/// What a watcher wants to be told of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Wishes {
    /// With the row before the event.
    pub(super) previous: bool,
    /// Nothing of puts.
    pub(super) no_put: bool,
    /// Nothing of deletions.
    pub(super) no_delete: bool,
}

/// Where a watcher sits among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    range: u32,
    place: u32,
}

/// Watchers that hear the same.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) wishes: Wishes,
    pub(super) watchers: Vec<WatcherId>,
}

/// Every watcher by what it watches.
#[derive(Debug)]
pub(super) struct Interests {
    singles: HashMap<Bytes, u32>,
    spans: IntervalMap,
    entries: Slab<Entry>,
    /// The entries with hits.
    touched: Vec<u32>,
}

#[derive(Debug)]
struct Entry {
    range: KeyRange,
    groups: Vec<Group>,
    hits: Vec<u32>,
}

impl Wishes {
    /// Whether an event of this kind is wanted.
    pub(super) const fn want(self, kind: EventKind) -> bool {
        match kind {
            EventKind::Put => !self.no_put,
            EventKind::Delete => !self.no_delete,
        }
    }
}

impl Seat {
    /// The number of the range, the same for all who watch it.
    pub(super) const fn range(self) -> u32 {
        self.range
    }
}

impl Interests {
    /// Nobody is interested yet. The seed only shapes the search tree.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            singles: HashMap::new(),
            spans: IntervalMap::new(seed),
            entries: Slab::new(),
            touched: Vec::new(),
        }
    }

    /// Seats `watcher`.
    pub(super) fn join(&mut self, range: &KeyRange, wishes: Wishes, watcher: WatcherId) -> Seat {
        assert!(!range.is_empty(), "a watcher of the empty range {range:?} hears nothing");
        let number = self.number(range).unwrap_or_else(|| self.enter(range));
        let groups = &mut self.entries[number].groups;
        let found = groups.iter().position(|group| group.wishes == wishes);
        let index = found.unwrap_or_else(|| {
            groups.push(Group { wishes, watchers: Vec::new() });
            groups.len() - 1
        });
        let watchers = &mut groups[index].watchers;
        watchers.push(watcher);
        let place = u32::try_from(watchers.len() - 1).expect("watchers have 32-bit numbers");
        Seat { range: number, place }
    }

    /// Takes the watcher of `seat` away. The one that is named moves to that very seat.
    pub(super) fn leave(&mut self, seat: Seat, wishes: Wishes) -> Option<WatcherId> {
        let entry = &mut self.entries[seat.range];
        let found = entry.groups.iter().position(|group| group.wishes == wishes);
        let index = found.expect("a seated watcher has a group");
        let watchers = &mut entry.groups[index].watchers;
        watchers.swap_remove(seat.place as usize);
        let moved = watchers.get(seat.place as usize).copied();
        if watchers.is_empty() {
            entry.groups.swap_remove(index);
            if entry.groups.is_empty() {
                self.forget(seat.range);
            }
        }
        moved
    }

    /// Notes for every range which of `events` lie in it, by their place among them.
    pub(super) fn search<'a, I>(&mut self, events: I)
    where
        I: IntoIterator<Item = &'a Event>,
    {
        assert!(self.touched.is_empty(), "the last search has not been cleared");
        let Self { singles, spans, entries, touched } = self;
        for (place, event) in (0_u32..).zip(events) {
            let mut hit = |number: u32| {
                let hits = &mut entries[number].hits;
                if hits.is_empty() {
                    touched.push(number);
                }
                hits.push(place);
            };
            if let Some(number) = singles.get(event.key.as_ref()) {
                hit(*number);
            }
            spans.find(&event.key, &mut hit);
        }
    }

    /// The ranges that the last search found events for.
    pub(super) fn touched(&self) -> &[u32] {
        &self.touched
    }

    /// The events of the last search in a range, by their place, ascending.
    pub(super) fn hits(&self, range: u32) -> &[u32] {
        &self.entries[range].hits
    }

    /// Those who watch a range.
    pub(super) fn groups(&self, range: u32) -> &[Group] {
        &self.entries[range].groups
    }

    /// Ends a search.
    pub(super) fn clear(&mut self) {
        for number in self.touched.drain(..) {
            self.entries[number].hits.clear();
        }
    }

    fn number(&self, range: &KeyRange) -> Option<u32> {
        match span(range) {
            Ok(key) => self.singles.get(key.as_ref()).copied(),
            Err((start, end)) => self.spans.get(start, &end),
        }
    }

    fn enter(&mut self, range: &KeyRange) -> u32 {
        let entry = Entry { range: range.clone(), groups: Vec::new(), hits: Vec::new() };
        let number = self.entries.insert(entry);
        match span(range) {
            Ok(key) => drop(self.singles.insert(key.clone(), number)),
            Err((start, end)) => self.spans.insert(start.clone(), end, number),
        }
        number
    }

    fn forget(&mut self, number: u32) {
        let entry = self.entries.remove(number);
        assert!(entry.hits.is_empty(), "{:?} was forgotten during a search", entry.range);
        match span(&entry.range) {
            Ok(key) => drop(self.singles.remove(key.as_ref())),
            Err((start, end)) => self.spans.remove(start, &end),
        }
    }
}

/// The single key, or the start and end of more than one.
fn span(range: &KeyRange) -> Result<&Bytes, (&Bytes, End)> {
    match range {
        KeyRange::Single(key) => Ok(key),
        KeyRange::From(start) => Err((start, End::Never)),
        KeyRange::Between(start, end) => Err((start, End::Before(end.clone()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Revision, RowRevision};

    fn event(key: &'static str) -> Event {
        Event {
            key: Bytes::from(key),
            kind: EventKind::Put,
            row: Bytes::new(),
            revision: RowRevision { main: Revision(2), sub: 0 },
            created: true,
            previous: None,
        }
    }

    #[test]
    fn single_keys_and_ranges_both_find_their_watchers() {
        let mut interests = Interests::new(1);
        let range = KeyRange::Between("a".into(), "c".into());
        let one = interests.join(&KeyRange::Single("b".into()), Wishes::default(), WatcherId(1));
        let two = interests.join(&range, Wishes::default(), WatcherId(2));
        let three = interests.join(&KeyRange::From("b".into()), Wishes::default(), WatcherId(3));
        interests.search(&[event("a"), event("b"), event("d")]);
        assert_eq!(interests.hits(one.range()), [1]);
        assert_eq!(interests.hits(two.range()), [0, 1]);
        assert_eq!(interests.hits(three.range()), [1, 2]);
        interests.clear();
        assert_eq!(interests.hits(two.range()), [0; 0]);
    }

    #[test]
    fn last_watcher_takes_its_range_along() {
        let mut interests = Interests::new(1);
        let range = KeyRange::Single("k".into());
        let first = interests.join(&range, Wishes::default(), WatcherId(1));
        let second = interests.join(&range, Wishes::default(), WatcherId(2));
        assert_eq!(first.range(), second.range());
        assert_eq!(interests.leave(first, Wishes::default()), Some(WatcherId(2)));
        assert_eq!(interests.leave(first, Wishes::default()), None);
        assert_eq!(interests.entries.len(), 0);
        interests.search(&[event("k")]);
        assert!(interests.touched().is_empty());
    }
}
