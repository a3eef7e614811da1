//! Rows that are stored in the backend.
//!
//! Decides how the backend is walked: rows that lie close together with one cursor, others by
//! their keys. Used by views through [`RowSource`]; each call is one read transaction.

use std::{ops::ControlFlow, sync::Arc};

use super::rows::{Damage, RowScan, RowSource, StoredCompactions, StoredRow, Wanted};
use crate::{
    model::{Revision, RowRevision},
    storage::{
        Backend, BackendError, Reader, RowRef, Survey,
        keys::parse_etcd_revision,
        tables::{FINISHED_COMPACT_REVISION, SCHEDULED_COMPACT_REVISION, Table},
    },
};

/// Revisions between two wanted rows up to which the cursor walks on: a step costs about a tenth
/// of a lookup.
const WALK_REVISIONS_MAX: i64 = 8;

impl RowScan for Backend {
    fn scan(
        &self,
        from: RowRevision,
        show: &mut dyn FnMut(StoredRow<'_>) -> ControlFlow<()>,
    ) -> Result<(), Damage> {
        let reader = self.reader()?;
        for row in reader.row_refs(from)? {
            if show(row?.into()).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl RowScan for Survey {
    fn scan(
        &self,
        from: RowRevision,
        show: &mut dyn FnMut(StoredRow<'_>) -> ControlFlow<()>,
    ) -> Result<(), Damage> {
        Ok(self.rows(from, &mut |row| show(row.into()))?)
    }
}

impl RowSource for Backend {
    fn fetch(
        &self,
        wanted: &[Wanted],
        found: &mut dyn FnMut(usize, StoredRow<'_>),
    ) -> Result<(), Damage> {
        let reader = self.reader()?;
        let mut rest = wanted;
        while let Some(first) = rest.first() {
            let (run, after) = rest.split_at(run_length(rest));
            if run.len() == 1 {
                if let Some(row) = reader.row_ref(first.at())? {
                    found(first.place(), row.into());
                }
            } else {
                walk(&reader, run, found)?;
            }
            rest = after;
        }
        Ok(())
    }

    fn survey(&self) -> Result<Box<dyn RowScan>, Damage> {
        Ok(Box::new(Self::survey(self)?))
    }

    fn compactions(&self) -> Result<StoredCompactions, Damage> {
        let reader = self.reader()?;
        let revision = |name| -> Result<Option<Revision>, Damage> {
            let stored = reader.get(Table::Meta, name)?.and_then(parse_etcd_revision);
            Ok(stored.map(|(revision, _)| revision.main))
        };
        let never = StoredCompactions::NEVER;
        Ok(StoredCompactions {
            scheduled: revision(SCHEDULED_COMPACT_REVISION)?.unwrap_or(never.scheduled),
            finished: revision(FINISHED_COMPACT_REVISION)?.unwrap_or(never.finished),
        })
    }
}

/// How many of the first rows lie so close together that walking is cheaper than looking up.
fn run_length(wanted: &[Wanted]) -> usize {
    let main = |wanted: Wanted| wanted.at().main.0;
    let close = |pair: &&[Wanted]| main(pair[1]) - main(pair[0]) <= WALK_REVISIONS_MAX;
    1 + wanted.windows(2).take_while(close).count()
}

fn walk(
    reader: &Reader<'_>,
    wanted: &[Wanted],
    found: &mut dyn FnMut(usize, StoredRow<'_>),
) -> Result<(), Damage> {
    let mut wanted = wanted.iter().copied().peekable();
    let Some(first) = wanted.peek() else { return Ok(()) };
    for row in reader.row_refs(first.at())? {
        let row = row?;
        while wanted.next_if(|wanted| wanted.at() < row.revision).is_some() {}
        match wanted.next_if(|wanted| wanted.at() == row.revision) {
            Some(wanted) => found(wanted.place(), row.into()),
            None if wanted.peek().is_none() => break,
            None => {}
        }
    }
    Ok(())
}

impl<'a> From<RowRef<'a>> for StoredRow<'a> {
    fn from(row: RowRef<'a>) -> Self {
        Self { revision: row.revision, tombstone: row.tombstone, value: row.value, shared: None }
    }
}

impl From<BackendError> for Damage {
    fn from(error: BackendError) -> Self {
        Self::Unreadable(Arc::new(error))
    }
}
