//! Encodes events, each at most once.
//!
//! Decides what of a list of events a group of watchers gets, and shares the bytes between all
//! groups. Lives for one revision on its way to the watchers, or for one chunk of history. Used by
//! the hub.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;

use super::{
    frame::{Body, Header, encode_event},
    history::History,
    interest::Wishes,
};
use crate::{
    model::Revision,
    mvcc::{Damage, Event},
};

/// Bodies made of the events of one search.
pub(super) struct Bodies<'a, H> {
    view: &'a H,
    header: Header,
    events: Vec<&'a Event>,
    /// Encoded events, without and with the row before them.
    encoded: [Vec<Option<Bytes>>; 2],
    /// Bodies with every event, without and with the row before them.
    whole: [Option<Arc<Body>>; 2],
    /// Bodies made before, by range, wishes and the first of the range's events in them.
    made: HashMap<(u32, Wishes, usize), Option<Arc<Body>>>,
}

impl<'a, H: History> Bodies<'a, H> {
    /// Bodies of `events`, which ascend, under `header`. The rows before them come from `view`.
    pub(super) fn new(view: &'a H, header: Header, events: Vec<&'a Event>) -> Self {
        let encoded = [vec![None; events.len()], vec![None; events.len()]];
        Self { view, header, events, encoded, whole: [None, None], made: HashMap::new() }
    }

    /// What of the events at `hits` is wanted; nothing if none is.
    pub(super) fn select(
        &mut self,
        hits: &[u32],
        wishes: Wishes,
    ) -> Result<Option<Arc<Body>>, Damage> {
        let wanted: Vec<usize> = hits
            .iter()
            .map(|place| *place as usize)
            .filter(|place| wishes.want(self.events[*place].kind))
            .collect();
        if wanted.is_empty() {
            return Ok(None);
        }
        let form = usize::from(wishes.previous);
        if wanted.len() < self.events.len() {
            return self.encode(&wanted, form).map(Some);
        }
        if self.whole[form].is_none() {
            self.whole[form] = Some(self.encode(&wanted, form)?);
        }
        Ok(self.whole[form].clone())
    }

    /// As [`Bodies::select`], for a watcher of `range` that has seen everything below `next`.
    /// Remembers the answer for its group.
    pub(super) fn select_from(
        &mut self,
        range: u32,
        hits: &[u32],
        wishes: Wishes,
        next: Revision,
    ) -> Result<Option<Arc<Body>>, Damage> {
        let seen = hits.partition_point(|at| self.events[*at as usize].revision.main < next);
        if let Some(body) = self.made.get(&(range, wishes, seen)) {
            return Ok(body.clone());
        }
        let body = self.select(&hits[seen..], wishes)?;
        self.made.insert((range, wishes, seen), body.clone());
        Ok(body)
    }

    fn encode(&mut self, places: &[usize], form: usize) -> Result<Arc<Body>, Damage> {
        let mut parts = Vec::with_capacity(places.len());
        for place in places {
            parts.push(self.encode_one(*place, form)?);
        }
        Ok(Arc::new(Body::new(self.header, parts)))
    }

    fn encode_one(&mut self, place: usize, form: usize) -> Result<Bytes, Damage> {
        if let Some(bytes) = &self.encoded[form][place] {
            return Ok(bytes.clone());
        }
        let event = self.events[place];
        let previous = if form == 1 { self.previous(event)? } else { None };
        let bytes = encode_event(event, previous.as_deref());
        self.encoded[form][place] = Some(bytes.clone());
        Ok(bytes)
    }

    /// The row before `event`, unless there was none or the state just before the event has been
    /// compacted.
    ///
    /// Source: etcd reads it as the key's state at one revision less, which fails below the
    /// compaction point even if the row itself survives.
    fn previous(&self, event: &Event) -> Result<Option<Bytes>, Damage> {
        match event.previous {
            Some(at) if self.view.compacted() < event.revision.main => self.view.row(at),
            _ => Ok(None),
        }
    }
}
