//! Deletes the rows that compactions dropped.
//!
//! Decides how many at a time, and in which order: by revision, as they lie in the file. The index
//! finds them in the order of keys, where a thousand rows are on a thousand pages; so they are
//! gathered first. Owned by the flusher, which does one step between commits.
//!
//! Source: etcd `server/storage/mvcc/kvstore_compaction.go`.

use std::{collections::VecDeque, time::Duration};

use super::FlusherOptions;
use crate::{
    base::{clock::Clock, duration::Took},
    failpoint,
    model::{Revision, RowRevision},
    storage::{
        error::BackendError,
        keys, metrics,
        tables::{FINISHED_COMPACT_REVISION, Table},
        writer::Writer,
    },
};

/// Rows that are gathered before the first of them goes: 32 MB of memory.
const GATHERED_ROWS_MAX: usize = 2 << 20;

/// What waits to be deleted, in the order in which it came.
#[derive(Debug, Default)]
pub(super) struct Compactions {
    waiting: VecDeque<Dead>,
    /// Of the compaction under way: when its first rows came, and how many were deleted.
    since: Option<Duration>,
    deleted: usize,
}

#[derive(Debug)]
struct Dead {
    revision: Revision,
    rows: Rows,
    /// Whether the compaction has no more than these.
    last: bool,
}

#[derive(Debug)]
enum Rows {
    /// More may come.
    Gathering(Vec<RowRevision>),
    /// Ascending (F3); also the order of the pages that they are on.
    Sorted(VecDeque<RowRevision>),
}

impl Compactions {
    pub(super) fn add(
        &mut self,
        revision: Revision,
        dead: Vec<RowRevision>,
        last: bool,
        now: Duration,
    ) {
        let newest = dead.iter().max();
        assert!(
            newest.is_none_or(|row| row.main <= revision),
            "compaction at {revision} deletes {newest:?}"
        );
        self.since.get_or_insert(now);
        let gathering = match self.waiting.back_mut() {
            Some(Dead { revision: same, rows: Rows::Gathering(rows), last: same_last })
                if *same == revision =>
            {
                rows.extend(dead);
                *same_last = last;
                return self.sort_if_complete();
            }
            Some(_) | None => Rows::Gathering(dead),
        };
        self.waiting.push_back(Dead { revision, rows: gathering, last });
        self.sort_if_complete();
    }

    /// Puts the newest rows in order if nothing is to be waited for.
    fn sort_if_complete(&mut self) {
        let Some(dead) = self.waiting.back_mut() else { return };
        if let Rows::Gathering(rows) = &mut dead.rows
            && (dead.last || GATHERED_ROWS_MAX <= rows.len())
        {
            rows.sort_unstable();
            dead.rows = Rows::Sorted(std::mem::take(rows).into());
        }
    }

    /// Whether there is nothing to delete now.
    pub(super) fn is_idle(&self) -> bool {
        !matches!(self.waiting.front(), Some(Dead { rows: Rows::Sorted(_), .. }))
    }

    /// Deletes some rows in one transaction; the revision of the compaction, if that finished it.
    pub(super) fn step(
        &mut self,
        writer: &mut Writer,
        options: &FlusherOptions,
        clock: &Clock,
    ) -> Result<Option<Revision>, BackendError> {
        let Some(Dead { revision, rows: Rows::Sorted(rows), last }) = self.waiting.front_mut()
        else {
            return Ok(None);
        };
        let start = clock.now();
        let count = rows.len().min(options.compaction_rows.max(1));
        let finished = (*last && count == rows.len()).then_some(*revision);

        let mut txn = writer.begin()?;
        failpoint!("compactAfterAcquiredBatchTxLock");
        for row in rows.drain(..count) {
            txn.delete_row(row)?;
        }
        if let Some(revision) = finished {
            failpoint!("compactBeforeSetFinishedCompact");
            let value = keys::etcd_revision(RowRevision { main: revision, sub: 0 });
            txn.put(Table::Meta, FINISHED_COMPACT_REVISION, &value)?;
        }
        failpoint!("compactBeforeCommitBatch");
        txn.commit()?;
        failpoint!("compactAfterCommitBatch");

        if rows.is_empty() {
            self.waiting.pop_front();
        }
        self.deleted += count;
        metrics::COMPACTION_PAUSE_MILLIS.observe(millis(clock.now() - start));
        if let Some(revision) = finished {
            failpoint!("compactAfterSetFinishedCompact");
            self.report(revision, writer, clock);
        }
        Ok(finished)
    }

    fn report(&mut self, revision: Revision, writer: &Writer, clock: &Clock) {
        let took = clock.now() - self.since.take().unwrap_or_default();
        let deleted = std::mem::take(&mut self.deleted);
        if !self.waiting.is_empty() {
            self.since = Some(clock.now());
        }
        metrics::COMPACTION_TOTAL_MILLIS.observe(millis(took));
        metrics::COMPACTION_LAST.set(i64::try_from(clock.unix().as_secs()).unwrap_or(i64::MAX));
        let sizes = writer.sizes();
        tracing::info!(
            "compact-revision" = revision.0,
            took = %Took(took),
            "number-of-keys-compacted" = deleted,
            "current-db-size-bytes" = sizes.total,
            "current-db-size" = metrics::human_bytes(sizes.total),
            "current-db-size-in-use-bytes" = sizes.in_use,
            "current-db-size-in-use" = metrics::human_bytes(sizes.in_use),
            "finished scheduled compaction"
        );
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
