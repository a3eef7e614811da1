//! One open LMDB environment and its databases.
//!
//! Decides LMDB's settings. Owned by the backend; beside `survey` the only file with `unsafe` here.
//!
//! - Synced commits, no writable map. `NOSYNC` and `WRITEMAP` can corrupt the file when the power
//!   fails. `NOMETASYNC` would save one of two disk flushes per commit, but then a commit that was
//!   reported may be gone after a power cut, and everything that follows a report (truncating the
//!   log, dropping rows from memory) would have to lag one commit behind; commits are off the path
//!   of requests, so the plain setting stands.
//! - Read transactions belong to their object, not to a thread: one thread may hold several.
//! - The map is reserved once, far beyond any quota: growing one needs a moment without readers.

use std::{
    fs::OpenOptions,
    io,
    path::{Path, PathBuf},
};

use heed::{CommitOrAbort, Database, Env, EnvOpenOptions, WithoutTls, types::Bytes as Raw};

use super::{
    error::{BackendError, Fault, Place},
    reach::Reach,
    records::{self, Damage, RowRef},
    tables::{ROWS, Table},
};

/// A database inside of the environment.
pub(super) type Tree = Database<'static, Raw, Raw>;

/// The file inside of an environment's directory that holds its data.
pub(super) const DATA_FILE: &str = "data.mdb";
/// The file that coordinates readers; it holds nothing that outlives a process.
pub(super) const LOCK_FILE: &str = "lock.mdb";
/// Read transactions open at one time. Each costs 64 bytes of the lock file; far more than the
/// threads of a member, because a stream of a large range holds one now and then.
const READERS_MAX: u32 = 4096;
/// What [`Environment::open`] falls back to, halving, before it gives up: 1 GiB.
const MAP_BYTES_MIN: usize = 1 << 30;
const TREES_MAX: u32 = 16;
/// How much of its end a sound file may lack, in bytes: pages that a commit took and gave back
/// before it wrote them. Far more than one commit takes, far less than a flipped bit adds.
const UNWRITTEN_BYTES_MAX: u64 = 1 << 30;
/// Pages that are free only because commits write new ones before they release old ones: the
/// paths to a few leaves, of the last three commits. They are no data's, so they do not count
/// against the quota; etcd's suites set one as small as 13 pages.
const TURNOVER_PAGES: u64 = 16;

/// An open environment. Dropped when the last user is gone.
#[derive(Debug)]
pub(super) struct Environment {
    pub(super) env: Env<WithoutTls>,
    pub(super) rows: Tree,
    tables: [Tree; Table::ALL.len()],
    reach: Reach,
    /// The data file, for errors.
    pub(super) file: PathBuf,
    pub(super) page_bytes: u64,
}

/// How large the database is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// The pages of the file, used or free, less a few that every commit turns over: what etcd
    /// calls the size of the database. Never below `in_use`.
    pub total: u64,
    /// The pages that hold data.
    pub in_use: u64,
}

impl Environment {
    /// Opens or creates the environment in `dir`, which exists, with a map of `map_bytes`, or less
    /// where the system refuses so much address space.
    pub(super) fn open(dir: &Path, map_bytes: usize) -> Result<Self, BackendError> {
        let env = Self::reserve(dir, map_bytes)?;
        let file = dir.join(DATA_FILE);
        let failed = |source| BackendError::Lmdb { file: dir.to_owned(), source };
        let page_bytes = u64::from(env.unnamed_database_stat().page_size);
        Self::restore_length(&env, page_bytes, map_bytes, &file)?;
        let (rows, tables) = Self::trees(&env).map_err(failed)?;
        let reach = Reach::new();
        let reach = reach.map_err(|source| BackendError::System { file: file.clone(), source })?;
        Ok(Self { env, rows, tables, reach, file, page_bytes })
    }

    fn reserve(dir: &Path, map_bytes: usize) -> Result<Env<WithoutTls>, BackendError> {
        let mut map_bytes = map_bytes;
        loop {
            let mut options = EnvOpenOptions::new().read_txn_without_tls();
            options.map_size(map_bytes).max_readers(READERS_MAX).max_dbs(TREES_MAX);
            // SAFETY: the caller holds the directory's lock, so no other process and no other
            // environment of this one changes the file under the map; no unsafe flag is set.
            #[expect(unsafe_code, reason = "a memory map is only as safe as its file")]
            let opened = unsafe { options.open(dir) };
            match opened {
                Ok(env) => return Ok(env),
                Err(heed::Error::Io(error))
                    if error.kind() == io::ErrorKind::OutOfMemory && MAP_BYTES_MIN < map_bytes =>
                {
                    tracing::info!(refused_bytes = map_bytes, "reserving a smaller map");
                    map_bytes /= 2;
                }
                Err(source) => {
                    return Err(BackendError::Lmdb { file: dir.to_owned(), source });
                }
            }
        }
    }

    /// Makes the file as long as its meta page says. A file that lost its end would otherwise kill
    /// the process with SIGBUS; zeros are refused by LMDB or by the records' checksums. (LMDB
    /// itself may leave the file short by free pages.) LMDB has no checksum over its meta pages, so
    /// a length that cannot be is damage.
    fn restore_length(
        env: &Env<WithoutTls>,
        page_bytes: u64,
        map_bytes: usize,
        file: &Path,
    ) -> Result<(), BackendError> {
        let failed = |source| BackendError::System { file: file.to_owned(), source };
        let data = OpenOptions::new().write(true).open(file).map_err(failed)?;
        let found = data.metadata().map_err(failed)?.len();
        let last = last_page(env);
        let bytes = last.checked_add(1).and_then(|pages| pages.checked_mul(page_bytes));
        let most = found.saturating_add(UNWRITTEN_BYTES_MAX);
        let most = most.min(u64::try_from(map_bytes).unwrap_or(u64::MAX));
        match bytes {
            Some(bytes) if bytes <= found => Ok(()),
            Some(bytes) if bytes <= most => data.set_len(bytes).map_err(failed),
            Some(_) | None => {
                let place = Place::LastPage(last);
                Err(BackendError::Damaged { file: file.to_owned(), place, fault: Fault::Shape })
            }
        }
    }

    fn trees(env: &Env<WithoutTls>) -> heed::Result<(Tree, [Tree; Table::ALL.len()])> {
        let txn = env.write_txn()?;
        let created = env.create_databases_and_commit(txn, |opener, txn| {
            let rows = opener.create_database::<Raw, Raw>(txn, Some(ROWS))?;
            let mut tables = [rows; Table::ALL.len()];
            for table in Table::ALL {
                tables[table.position()] =
                    opener.create_database::<Raw, Raw>(txn, Some(table.name()))?;
            }
            Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit((rows, tables)))
        })?;
        Ok(created.unwrap_commit())
    }

    pub(super) fn table(&self, table: Table) -> Tree {
        self.tables[table.position()]
    }

    /// The size as of the last commit.
    pub(super) fn sizes(&self) -> Result<Sizes, BackendError> {
        let txn = self.env.read_txn().map_err(|source| self.failed(source))?;
        // Two meta pages, and the pages of the tree of trees.
        let mut pages = pages_of(&self.env.unnamed_database_stat()).and_then(|n| n.checked_add(2));
        for tree in std::iter::once(&self.rows).chain(&self.tables) {
            let stat = tree.stat(&txn).map_err(|source| self.failed(source))?;
            pages = pages.zip(pages_of(&stat)).and_then(|(sum, more)| sum.checked_add(more));
        }
        // Every page is in one tree at most, so a larger sum was not written by LMDB.
        let map_pages =
            u64::try_from(self.env.info().map_size).unwrap_or(u64::MAX) / self.page_bytes;
        let pages = pages.and_then(|pages| u64::try_from(pages).ok());
        let pages = pages.filter(|pages| *pages <= map_pages);
        let pages = pages.ok_or_else(|| self.damaged((Place::PageCounts, Fault::Shape)))?;
        let in_use = pages * self.page_bytes;
        let taken = (last_page(&self.env) + 1).saturating_sub(TURNOVER_PAGES) * self.page_bytes;
        Ok(Sizes { total: taken.max(in_use), in_use })
    }

    /// What a read transaction lent, or nothing for what goes beyond the end of the file.
    pub(super) fn lent<'t>(&self, key: &'t [u8], sealed: &'t [u8]) -> (&'t [u8], &'t [u8]) {
        self.reach.record(key, sealed)
    }

    /// What a read transaction lent under a known key, or nothing if the file ends before it does.
    pub(super) fn within<'t>(&self, lent: &'t [u8]) -> &'t [u8] {
        self.reach.within(lent)
    }

    /// Checks and reads a row that a read transaction lent.
    pub(super) fn open_row<'t>(
        &self,
        key: &'t [u8],
        sealed: &'t [u8],
    ) -> Result<RowRef<'t>, BackendError> {
        let (key, sealed) = self.lent(key, sealed);
        records::open_row(key, sealed).map_err(|damage| self.damaged(damage))
    }

    /// Checks a record that a read transaction lent under a known key, and reads its value.
    pub(super) fn open_value<'t>(
        &self,
        table: Table,
        stored_key: &[u8],
        sealed: &'t [u8],
    ) -> Result<&'t [u8], BackendError> {
        let value = records::open_value(table, stored_key, self.within(sealed));
        value.map_err(|damage| self.damaged(damage))
    }

    pub(super) fn failed(&self, source: heed::Error) -> BackendError {
        BackendError::Lmdb { file: self.file.clone(), source }
    }

    pub(super) fn damaged(&self, (place, fault): Damage) -> BackendError {
        BackendError::Damaged { file: self.file.clone(), place, fault }
    }
}

/// The pages of a tree; `None` if their number is none that can be.
fn pages_of(stat: &heed::DatabaseStat) -> Option<usize> {
    stat.branch_pages.checked_add(stat.leaf_pages)?.checked_add(stat.overflow_pages)
}

fn last_page(env: &Env<WithoutTls>) -> u64 {
    u64::try_from(env.info().last_page_number).expect("page numbers fit")
}
