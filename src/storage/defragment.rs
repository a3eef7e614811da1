//! Reclaims the space of deleted rows by copying what lives into a new environment.
//!
//! Decides how a copy of a database in use becomes the database. Driven by the flusher, one
//! bounded step between two commits, so nobody waits: rows are appended in revision order, hence
//! new ones always stand behind what was copied; of the small tables, every record that changed
//! since the last step is copied again; deletions of compactions rest meanwhile.
//!
//! ```text
//!   db.lmdb/data.mdb           the database         <-- rename ---+
//!   db.lmdb/copy-1/data.mdb    its copy, in the making, synced ---+
//! ```
//!
//! Invariants
//! - D1 `data.mdb` is at every instant a whole database with everything that was ever flushed.
//! - D2 The step that completes a copy reads the last commit, and no commit follows before the
//!   rename is durable.
//! - D3 A directory `copy-*` that is found at the start is unfinished, and removed.
//!
//! The swap itself is `install`'s.

use std::{
    collections::BTreeSet,
    fs, io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;

use super::{
    environment::{Environment, Sizes},
    error::BackendError,
    flusher::{DefragmentError, Reply},
    install, keys, metrics, records,
    remains::Remains,
    tables::Table,
    writer::{Transaction, Writer},
};
use crate::{base::duration::Took, failpoint};

/// The beginning of the names of copies.
pub(super) const COPY_PREFIX: &str = "copy-";
/// Stored bytes that a step copies, about. A sync of the log may have to wait until they are synced,
/// which takes 0.4 ms for 256 KiB and 0.9 ms for 1 MiB.
const STEP_BYTES: usize = 128 << 10;

/// Tells the copies of this process apart.
static COPIES: AtomicU64 = AtomicU64::new(1);

/// Removes what a copy that was cut short left behind in `dir` (D3).
pub(super) fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(COPY_PREFIX) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// A copy under way.
pub(super) struct Copy {
    /// The database's directory.
    dir: PathBuf,
    copy_dir: PathBuf,
    target: Arc<Environment>,
    place: Place,
    /// Records that changed since the last step.
    touched: BTreeSet<(Table, Bytes)>,
    replies: Vec<Reply>,
    since: Duration,
    before: Sizes,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyStep {
    /// There is more to copy.
    More,
    /// The copy equals the last commit.
    Complete,
}

/// What was copied: everything before this.
#[derive(Debug)]
enum Place {
    Tables { table: Table, after: Option<Vec<u8>> },
    Rows { after: Option<[u8; keys::ROW_KEY_BYTES]> },
}

impl Copy {
    pub(super) fn begin(writer: &Writer, now: Duration) -> Result<Self, BackendError> {
        let dir = writer.shared.options.dir.clone();
        let number = COPIES.fetch_add(1, Ordering::Relaxed);
        let copy_dir = dir.join(format!("{COPY_PREFIX}{number}"));
        let before = writer.sizes();
        tracing::info!(
            path = %dir.display(),
            "current-db-size-bytes" = before.total,
            "current-db-size" = metrics::human_bytes(before.total),
            "current-db-size-in-use-bytes" = before.in_use,
            "current-db-size-in-use" = metrics::human_bytes(before.in_use),
            "defragmenting"
        );
        let system = |source| BackendError::System { file: copy_dir.clone(), source };
        fs::create_dir(&copy_dir).map_err(system)?;
        let target = Environment::open(&copy_dir, writer.shared.options.map_bytes)?;
        metrics::DEFRAGMENTING.set(1);
        failpoint!("defragBeforeCopy");
        Ok(Self {
            dir,
            copy_dir,
            target: Arc::new(target),
            place: Place::Tables { table: Table::ALL[0], after: None },
            touched: BTreeSet::new(),
            replies: Vec::new(),
            since: now,
            before,
        })
    }

    /// Lets somebody else wait for the end.
    pub(super) fn join(&mut self, reply: Reply) {
        self.replies.push(reply);
    }

    /// Learns which records a commit wrote.
    pub(super) fn touched(&mut self, records: impl Iterator<Item = (Table, Bytes)>) {
        self.touched.extend(records);
    }

    /// Copies the next piece, and again what changed in the pieces before.
    pub(super) fn step(&mut self, writer: &mut Writer) -> Result<CopyStep, BackendError> {
        let source = Arc::clone(&writer.environment);
        let target = Arc::clone(&self.target);
        let reader = source.env.read_txn().map_err(|error| source.failed(error))?;
        let mut txn = writer.begin_on(&target)?;
        let mut room = STEP_BYTES;
        let complete = loop {
            let (next, copied) = match &self.place {
                Place::Tables { table, after } => {
                    copy_table(&source, &reader, &mut txn, *table, after.as_deref(), room)?
                }
                Place::Rows { after } => {
                    copy_rows(&source, &reader, &mut txn, after.as_ref(), room)?
                }
            };
            room = room.saturating_sub(copied);
            match next {
                Some(place) => self.place = place,
                None => break true,
            }
            if room == 0 {
                break false;
            }
        };
        for (table, key) in std::mem::take(&mut self.touched) {
            let stored = records::record_key(&key);
            match source.table(table).get(&reader, &stored).map_err(|e| source.failed(e))? {
                Some(sealed) => txn.put_copy(table, &stored, sealed)?,
                None => drop(txn.delete(table, &key)?),
            }
        }
        txn.commit()?;
        Ok(if complete { CopyStep::Complete } else { CopyStep::More })
    }

    /// Puts the complete copy in the database's place (D2). Returns what remains of that.
    pub(super) fn publish(
        self,
        writer: &mut Writer,
        now: Duration,
    ) -> Result<Remains, BackendError> {
        let sizes = self.target.sizes()?;
        let remains = install::take_over(writer, Arc::clone(&self.target), &self.copy_dir)?;
        self.report(sizes, now);
        metrics::DEFRAGMENTING.set(0);
        for reply in self.replies {
            reply(Ok(()));
        }
        Ok(remains)
    }

    /// Drops the copy; the database is as it was.
    pub(super) fn give_up(self, error: &DefragmentError) {
        tracing::error!(%error, "defragmentation failed");
        let Self { copy_dir, target, replies, .. } = self;
        drop(target);
        if let Err(error) = fs::remove_dir_all(&copy_dir) {
            tracing::warn!(path = %copy_dir.display(), %error, "could not remove a directory");
        }
        metrics::DEFRAGMENTING.set(0);
        for reply in replies {
            reply(Err(error.clone()));
        }
    }

    fn report(&self, after: Sizes, now: Duration) {
        let took = now - self.since;
        metrics::DEFRAGMENT_SECONDS.observe(took.as_secs_f64());
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let diff = |after: u64, before: u64| signed(after) - signed(before);
        tracing::info!(
            path = %self.dir.display(),
            "current-db-size-bytes-diff" = diff(after.total, self.before.total),
            "current-db-size-bytes" = after.total,
            "current-db-size" = metrics::human_bytes(after.total),
            "current-db-size-in-use-bytes-diff" = diff(after.in_use, self.before.in_use),
            "current-db-size-in-use-bytes" = after.in_use,
            "current-db-size-in-use" = metrics::human_bytes(after.in_use),
            took = %Took(took),
            "finished defragmenting directory"
        );
    }
}

type Reading<'t> = heed::RoTxn<'t, heed::WithoutTls>;
/// Where to go on, if there is more, and the bytes that were copied.
type Piece = (Option<Place>, usize);

fn copy_table(
    source: &Environment,
    reader: &Reading<'_>,
    txn: &mut Transaction<'_>,
    table: Table,
    after: Option<&[u8]>,
    room: usize,
) -> Result<Piece, BackendError> {
    let range = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
    let mut copied = 0;
    let records = source.table(table).range(reader, &range).map_err(|e| source.failed(e))?;
    for record in records {
        let (key, sealed) = record.map_err(|error| source.failed(error))?;
        let (key, sealed) = source.lent(key, sealed);
        records::open_value(table, key, sealed).map_err(|damage| source.damaged(damage))?;
        txn.put_copy(table, key, sealed)?;
        copied += key.len() + sealed.len();
        if room <= copied {
            return Ok((Some(Place::Tables { table, after: Some(key.to_vec()) }), copied));
        }
    }
    let next = match Table::ALL.get(table.position() + 1) {
        Some(&table) => Place::Tables { table, after: None },
        None => Place::Rows { after: None },
    };
    Ok((Some(next), copied))
}

fn copy_rows(
    source: &Environment,
    reader: &Reading<'_>,
    txn: &mut Transaction<'_>,
    after: Option<&[u8; keys::ROW_KEY_BYTES]>,
    room: usize,
) -> Result<Piece, BackendError> {
    let range = (after.map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..])), Bound::Unbounded);
    let mut copied = 0;
    let rows = source.rows.range(reader, &range).map_err(|error| source.failed(error))?;
    for row in rows {
        let (key, sealed) = row.map_err(|error| source.failed(error))?;
        let row = source.open_row(key, sealed)?;
        txn.append_copy(key, sealed)?;
        copied += key.len() + sealed.len();
        if room <= copied {
            return Ok((Some(Place::Rows { after: Some(keys::row_key(row.revision)) }), copied));
        }
    }
    Ok((None, copied))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{
        Backend, BackendOptions,
        environment::{DATA_FILE, LOCK_FILE},
        tables::CONSISTENT_INDEX,
    };

    /// A database whose consistent index is `applied`.
    fn database(dir: &Path, applied: u64) {
        let (_backend, mut writer) = Backend::open(&BackendOptions::new(dir.to_owned())).unwrap();
        let mut txn = writer.begin().unwrap();
        txn.put(Table::Meta, CONSISTENT_INDEX, &keys::number(applied)).unwrap();
        txn.commit().unwrap();
    }

    fn applied(dir: &Path) -> u64 {
        let (backend, _writer) = Backend::open(&BackendOptions::new(dir.to_owned())).unwrap();
        backend.reader().unwrap().consistent_index().unwrap().0
    }

    #[test]
    fn crash_at_any_step_of_the_swap_leaves_one_whole_database() {
        // The steps of `install`, and of what is before and behind it.
        for steps in 0..4 {
            let place = tempfile::TempDir::new().unwrap();
            let dir = place.path().join("db.lmdb");
            database(&dir, 1);
            let copy_dir = dir.join("copy-1");
            database(&place.path().join("new"), 2);
            fs::rename(place.path().join("new"), &copy_dir).unwrap();
            for step in 0..steps {
                match step {
                    0 => fs::rename(copy_dir.join(DATA_FILE), dir.join(DATA_FILE)).unwrap(),
                    1 => fs::rename(copy_dir.join(LOCK_FILE), dir.join(LOCK_FILE)).unwrap(),
                    _ => fs::remove_dir_all(&copy_dir).unwrap(),
                }
            }
            assert_eq!(applied(&dir), if steps == 0 { 1 } else { 2 }, "after {steps} steps");
            assert!(!copy_dir.exists(), "after {steps} steps");
        }
    }
}
