//! What writers were promised, and what a server must hold because of it.
//!
//! Decides when a history is wrong: an acknowledged write is missing or changed, a write appears
//! twice, revisions have gaps, or the server's hash of its history is not the one of the events it
//! delivered. The hash is computed here anew from events, so it shares nothing with a server.

use std::collections::{BTreeMap, HashMap};

use anyhow::{bail, ensure};
use bytes::Bytes;
use prost::Message;
use proto::mvccpb::{Event, KeyValue, event::EventType};

/// One attempt to write: `key` gets `value`, which no other attempt uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The key; only one writer writes it.
    pub key: Bytes,
    /// The value; empty for a deletion.
    pub value: Bytes,
    /// The revision that the server answered with; `None` if no answer came.
    pub acknowledged: Option<i64>,
}

/// Everything that was attempted, and everything that was found.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Attempts that history has not been compared with yet.
    open: Vec<Attempt>,
    /// Rows in order: revision, place within it, and the stored bytes with their deletion mark.
    rows: BTreeMap<(i64, i64), Row>,
    /// Live keys, with the position of their newest row.
    live: HashMap<Bytes, (i64, i64)>,
    /// Values seen, to find one that appears twice.
    seen: HashMap<Bytes, i64>,
    /// The newest revision that was compared.
    verified: i64,
    acknowledged: u64,
    recovered: u64,
    /// Whether an unanswered write may be found at a later comparison.
    may_be_late: bool,
}

#[derive(Clone, Debug)]
struct Row {
    key: Bytes,
    value: Bytes,
    tombstone: bool,
}

impl Ledger {
    /// An empty ledger for an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self { verified: 1, ..Self::default() }
    }

    /// The same for a group that goes on: a write that nobody answered may still be on its way.
    #[must_use]
    pub fn of_group() -> Self {
        Self { may_be_late: true, ..Self::new() }
    }

    /// The newest revision that was found right.
    #[must_use]
    pub const fn verified(&self) -> i64 {
        self.verified
    }

    /// How many writes were acknowledged, and how many more were found although no answer came.
    #[must_use]
    pub const fn counts(&self) -> (u64, u64) {
        (self.acknowledged, self.recovered)
    }

    /// Adds what a writer did, in its order.
    pub fn add(&mut self, attempts: Vec<Attempt>) {
        self.open.extend(attempts);
    }

    /// Compares everything after [`Ledger::verified`] up to `head` with what was attempted.
    ///
    /// # Errors
    /// With a sentence, if anything is missing, doubled, out of order or unknown.
    pub fn verify(&mut self, events: &[Event], head: i64) -> anyhow::Result<()> {
        let mut attempts: HashMap<Bytes, Attempt> = HashMap::new();
        for attempt in self.open.drain(..) {
            attempts.insert(attempt.value.clone(), attempt);
        }
        let mut last = self.verified;
        for event in events {
            let Some(kv) = &event.kv else { bail!("an event without a key: {event:?}") };
            ensure!(
                kv.mod_revision == last || kv.mod_revision == last + 1,
                "revision {} follows {last}",
                kv.mod_revision
            );
            let sub = if kv.mod_revision == last { self.next_sub(last) } else { 0 };
            last = kv.mod_revision;
            self.check_event(event, kv, &mut attempts)?;
            self.record(event, kv, sub);
        }
        ensure!(last == head, "the server is at revision {head}, its events end at {last}");
        for attempt in attempts.into_values() {
            if let Some(revision) = attempt.acknowledged {
                bail!("the write of {:?} acknowledged at {revision} is lost", attempt.key);
            }
            if self.may_be_late {
                self.open.push(attempt);
            }
        }
        self.verified = head;
        Ok(())
    }

    fn next_sub(&self, main: i64) -> i64 {
        let last = self.rows.range((main, 0)..=(main, i64::MAX)).next_back();
        last.map_or(0, |((_, sub), _)| sub + 1)
    }

    fn check_event(
        &mut self,
        event: &Event,
        kv: &KeyValue,
        attempts: &mut HashMap<Bytes, Attempt>,
    ) -> anyhow::Result<()> {
        if event.r#type() == EventType::Delete {
            ensure!(self.live.contains_key(&kv.key), "{:?} was deleted while absent", kv.key);
            return Ok(());
        }
        if let Some(before) = self.seen.insert(kv.value.clone(), kv.mod_revision) {
            bail!("a write appears at revisions {before} and {}", kv.mod_revision);
        }
        let Some(attempt) = attempts.remove(&kv.value) else {
            bail!("revision {} holds a value that nobody wrote", kv.mod_revision);
        };
        ensure!(attempt.key == kv.key, "{:?} holds the value of {:?}", kv.key, attempt.key);
        match attempt.acknowledged {
            Some(revision) => {
                ensure!(
                    revision == kv.mod_revision,
                    "acknowledged at {revision}, found at {}",
                    kv.mod_revision
                );
                self.acknowledged += 1;
            }
            None => self.recovered += 1,
        }
        Ok(())
    }

    fn record(&mut self, event: &Event, kv: &KeyValue, sub: i64) {
        let at = (kv.mod_revision, sub);
        let tombstone = event.r#type() == EventType::Delete;
        let stored = if tombstone {
            KeyValue { key: kv.key.clone(), ..KeyValue::default() }
        } else {
            kv.clone()
        };
        if tombstone {
            self.live.remove(&kv.key);
        } else {
            self.live.insert(kv.key.clone(), at);
        }
        let value = stored.encode_to_vec().into();
        self.rows.insert(at, Row { key: kv.key.clone(), value, tombstone });
    }

    /// The hash of the history up to [`Ledger::verified`], if it was compacted at `compacted`
    /// (-1: never).
    ///
    /// Source: etcd `HashKV`, see its description of which rows count.
    #[must_use]
    pub fn hash(&self, compacted: i64) -> u32 {
        let keep: std::collections::HashSet<_> = self.live.values().copied().collect();
        let mut hash = Crc32c::new();
        hash.update(b"key");
        for (at, row) in &self.rows {
            let (main, sub) = *at;
            if main <= compacted && !keep.is_empty() && !keep.contains(at) {
                continue;
            }
            if main == compacted && row.tombstone {
                continue;
            }
            hash.update(&main.to_be_bytes());
            hash.update(b"_");
            hash.update(&sub.to_be_bytes());
            if row.tombstone {
                hash.update(b"t");
            }
            hash.update(&row.value);
        }
        hash.finish()
    }

    /// The keys that must be there, with the encoded rows of each, in key order.
    #[must_use]
    pub fn live(&self) -> BTreeMap<Bytes, Bytes> {
        let rows = self.live.values().map(|at| &self.rows[at]);
        rows.map(|row| (row.key.clone(), row.value.clone())).collect()
    }
}

/// CRC-32C bit by bit over a table made here, so that no library is shared with a server.
#[derive(Debug)]
struct Crc32c {
    table: [u32; 256],
    state: u32,
}

impl Crc32c {
    fn new() -> Self {
        let mut table = [0_u32; 256];
        for (slot, byte) in table.iter_mut().zip(0_u32..) {
            *slot =
                (0..8).fold(
                    byte,
                    |crc, _| {
                        if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 }
                    },
                );
        }
        Self { table, state: u32::MAX }
    }

    fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let low = self.state.to_le_bytes()[0];
            self.state = (self.state >> 8) ^ self.table[usize::from(low ^ byte)];
        }
    }

    const fn finish(&self) -> u32 {
        !self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str, value: &'static str, revision: i64) -> Event {
        let kv = KeyValue {
            key: key.into(),
            value: value.into(),
            mod_revision: revision,
            create_revision: revision,
            version: 1,
            lease: 0,
        };
        Event { kv: Some(kv), ..Event::default() }
    }

    fn attempt(key: &'static str, value: &'static str, acknowledged: Option<i64>) -> Attempt {
        Attempt { key: key.into(), value: value.into(), acknowledged }
    }

    #[test]
    fn lost_acknowledged_write_is_found() {
        let mut ledger = Ledger::new();
        ledger.add(vec![attempt("a", "1", Some(2)), attempt("b", "2", Some(3))]);
        assert!(ledger.verify(&[put("a", "1", 2)], 2).is_err());
    }

    #[test]
    fn unanswered_write_may_be_there_or_not_but_not_twice() {
        let mut ledger = Ledger::new();
        ledger.add(vec![attempt("a", "1", None), attempt("a", "2", None)]);
        ledger.verify(&[put("a", "1", 2)], 2).expect("one of two unanswered writes is there");
        ledger.add(vec![attempt("a", "1", None)]);
        assert!(ledger.verify(&[put("a", "1", 3)], 3).is_err());
    }

    #[test]
    fn checksum_is_the_castagnoli_one() {
        let mut crc = Crc32c::new();
        crc.update(b"123456789");
        assert_eq!(crc.finish(), 0xe306_9283);
    }
}
