//! The batches that wait for their common commit.
//!
//! Decides what of them is written: every row, the last write of each record of the small tables,
//! and the last position. Owned by the flusher.

use std::{collections::BTreeMap, mem, time::Duration};

use bytes::Bytes;

use super::{
    FlushBatch,
    mailbox::{Flushed, batch_weight},
};
use crate::{
    model::{LogIndex, Row, Term},
    storage::{
        error::BackendError,
        keys,
        tables::{CONF_STATE, CONSISTENT_INDEX, TERM, Table},
        writer::Transaction,
    },
};

/// A row's weight beside its value: its key, its place in memory.
const ROW_BYTES: usize = 64;

/// Batches in one.
#[derive(Debug, Default)]
pub(super) struct Pending {
    rows: Vec<Vec<Row>>,
    tables: BTreeMap<(Table, Bytes), Option<Bytes>>,
    applied: LogIndex,
    term: Term,
    /// When the first one came; `None` if there is none.
    since: Option<Duration>,
    bytes: usize,
}

impl Pending {
    pub(super) fn add(&mut self, batch: FlushBatch, now: Duration) {
        assert!(self.applied <= batch.applied, "applied {} then {}", self.applied, batch.applied);
        self.bytes += batch_weight(&batch);
        let FlushBatch { rows, tables, applied, term, conf_state } = batch;
        if !rows.is_empty() {
            self.rows.push(rows);
        }
        for write in tables {
            self.tables.insert((write.table, write.key), write.value);
        }
        if let Some(conf_state) = conf_state {
            let key = (Table::Meta, Bytes::from_static(CONF_STATE));
            self.tables.insert(key, Some(conf_state));
        }
        (self.applied, self.term) = (applied, term);
        self.since.get_or_insert(now);
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.since.is_none()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the commit is due.
    pub(super) fn due(&self, interval: Duration) -> Option<Duration> {
        self.since.map(|since| since + interval)
    }

    pub(super) fn write(&self, txn: &mut Transaction<'_>) -> Result<(), BackendError> {
        for row in self.rows.iter().flatten() {
            txn.append(row)?;
        }
        for ((table, key), value) in &self.tables {
            match value {
                Some(value) => txn.put(*table, key, value)?,
                None => drop(txn.delete(*table, key)?),
            }
        }
        txn.put(Table::Meta, CONSISTENT_INDEX, &keys::number(self.applied.0))?;
        txn.put(Table::Meta, TERM, &keys::number(self.term.0))
    }

    /// The records that were written.
    pub(super) fn touched(&self) -> impl Iterator<Item = (Table, Bytes)> + '_ {
        let position = [CONSISTENT_INDEX, TERM].map(|key| (Table::Meta, Bytes::from_static(key)));
        self.tables.keys().cloned().chain(position)
    }

    /// Forgets everything, which is committed.
    pub(super) fn clear(&mut self) -> Flushed {
        let cleared = mem::take(self);
        self.applied = cleared.applied;
        self.term = cleared.term;
        let last = cleared.rows.last().and_then(|rows| rows.last());
        Flushed {
            applied: cleared.applied,
            revision: last.map(|row| row.revision.main),
            bytes: cleared.bytes,
        }
    }
}

/// What a batch weighs, in bytes, about.
pub(super) fn weight(batch: &FlushBatch) -> usize {
    let rows: usize = batch.rows.iter().map(|row| row.value.len() + ROW_BYTES).sum();
    let tables = batch
        .tables
        .iter()
        .map(|write| write.key.len() + write.value.as_ref().map_or(0, Bytes::len) + ROW_BYTES);
    rows + tables.sum::<usize>() + batch.conf_state.as_ref().map_or(0, Bytes::len)
}
