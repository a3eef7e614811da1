//! The checkpoint of the state: rows and small tables in LMDB, read by anybody.
//!
//! Decides how readers get a consistent view and how a second process is kept out. Opened by
//! `boot` and `offline`; its [`Writer`] goes to the flusher, its clones to everybody who reads.
//!
//! Invariants
//! - B1 A value that is handed out has passed its checksum.
//! - B2 One process has the directory at a time, and in it one `Backend`, whatever its clones.
//! - B3 A [`Reader`] sees one commit, even while the environment under the backend is replaced.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use heed::{RoIter, RoTxn, WithoutTls, types::Bytes as Raw};
use rustix::fs::FlockOperation;

use super::{
    environment::{Environment, Sizes},
    error::BackendError,
    keys::{self, parse_etcd_revision},
    metrics,
    records::{self, RowRef, SealedRow},
    tables::{CONSISTENT_INDEX, FINISHED_COMPACT_REVISION, Table},
    writer::Writer,
};
use crate::{
    base::{clock::Clock, duration::Took},
    model::{LogIndex, Revision, Row, RowRevision},
};

/// The environment's directory inside of `<data-dir>/member/snap`.
pub const BACKEND_DIRECTORY: &str = "db.lmdb";

/// The file whose lock keeps a second process out. Not LMDB's own: that admits several.
const OWNER_FILE: &str = "owner.lock";
/// The address space to reserve: 1 TiB, far above etcd's advised limit of 8 GiB, and a small part
/// of what a 64-bit process has.
const MAP_BYTES: usize = 1 << 40;
/// How long a second process waits before it says so.
///
/// Source: etcd `server/storage/backend.go`.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// Where and how to open a backend.
#[derive(Clone, Debug)]
pub struct BackendOptions {
    /// The environment's directory; created if it is missing, not its parents.
    pub dir: PathBuf,
    /// Address space to reserve, in bytes: a multiple of the page size. Default: 1 TiB.
    pub map_bytes: usize,
}

impl BackendOptions {
    /// The usual options for the environment in `dir`.
    #[must_use]
    pub const fn new(dir: PathBuf) -> Self {
        Self { dir, map_bytes: MAP_BYTES }
    }
}

/// A shared, read-only handle.
#[derive(Clone, Debug)]
pub struct Backend(pub(super) Arc<Shared>);

/// What readers and the writer share. The environment closes before the lock is let go.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) current: ArcSwap<Environment>,
    pub(super) options: BackendOptions,
    total_bytes: AtomicU64,
    in_use_bytes: AtomicU64,
    _owner: File,
}

impl Shared {
    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            total: self.total_bytes.load(Ordering::Relaxed),
            in_use: self.in_use_bytes.load(Ordering::Relaxed),
        }
    }

    /// Publishes the size after a commit: the file never shrinks by one.
    pub(super) fn committed(&self, sizes: Sizes) {
        let total = sizes.total.max(self.total_bytes.load(Ordering::Relaxed));
        self.set_sizes(Sizes { total, ..sizes });
    }

    /// Publishes the size of another file.
    pub(super) fn set_sizes(&self, sizes: Sizes) {
        self.total_bytes.store(sizes.total, Ordering::Relaxed);
        self.in_use_bytes.store(sizes.in_use, Ordering::Relaxed);
        metrics::set_sizes(sizes);
    }
}

impl Backend {
    /// Opens or creates the database, waiting while another process has it.
    ///
    /// # Errors
    /// - [`BackendError::System`] or [`BackendError::Lmdb`] if the files cannot be used.
    pub fn open(options: &BackendOptions) -> Result<(Self, Writer), BackendError> {
        let clock = Clock::system();
        let dir = &options.dir;
        let failed = |source| BackendError::System { file: dir.clone(), source };
        create_directory(dir).map_err(failed)?;
        let owner = lock(dir, &clock).map_err(failed)?;
        super::defragment::remove_leftovers(dir).map_err(failed)?;
        let environment = Arc::new(Environment::open(dir, options.map_bytes)?);
        // The files that LMDB just created shall survive a power cut.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        let sizes = environment.sizes()?;
        let shared = Arc::new(Shared {
            current: ArcSwap::new(Arc::clone(&environment)),
            options: options.clone(),
            total_bytes: AtomicU64::default(),
            in_use_bytes: AtomicU64::default(),
            _owner: owner,
        });
        shared.set_sizes(sizes);
        tracing::info!(path = %dir.display(), took = %Took(clock.now()), "opened backend db");
        let writer = Writer::new(Arc::clone(&shared), environment, clock);
        Ok((Self(shared), writer))
    }

    /// Whether `dir` holds a database.
    #[must_use]
    pub fn exists(dir: &Path) -> bool {
        dir.join(super::environment::DATA_FILE).exists()
    }

    /// Begins a read transaction. It pins the pages of its commit, so it lives within one function.
    ///
    /// # Errors
    /// - [`BackendError::Lmdb`] if too many are open.
    pub fn reader(&self) -> Result<Reader<'_>, BackendError> {
        let environment = self.environment();
        let txn = environment.env.clone().static_read_txn();
        let txn = txn.map_err(|source| environment.failed(source))?;
        metrics::OPEN_READ_TRANSACTIONS.inc();
        Ok(Reader { txn, environment, _backend: self })
    }

    /// The environment as it is now.
    pub(super) fn environment(&self) -> Arc<Environment> {
        self.0.current.load_full()
    }

    /// The size as of the last commit.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.0.sizes()
    }
}

/// A read transaction: one commit, as long as it lives.
pub struct Reader<'b> {
    txn: RoTxn<'static, WithoutTls>,
    environment: Arc<Environment>,
    _backend: &'b Backend,
}

impl Reader<'_> {
    /// The row at `revision`, if it is stored.
    ///
    /// # Errors
    /// - [`BackendError::Damaged`] if its bytes are not what was written.
    /// - [`BackendError::Lmdb`] if the file cannot be read.
    pub fn row(&self, revision: RowRevision) -> Result<Option<Row>, BackendError> {
        Ok(self.row_ref(revision)?.map(owned))
    }

    /// The row at `revision` without a copy.
    ///
    /// # Errors
    /// As [`Reader::row`].
    pub fn row_ref(&self, revision: RowRevision) -> Result<Option<RowRef<'_>>, BackendError> {
        self.sealed_row(revision)?.map(|row| self.open(row)).transpose()
    }

    /// The row at `revision`, unchecked.
    ///
    /// # Errors
    /// - [`BackendError::Lmdb`] if the file cannot be read.
    pub fn sealed_row(&self, revision: RowRevision) -> Result<Option<SealedRow<'_>>, BackendError> {
        let key = keys::row_key(revision);
        let bytes = self.environment.rows.get(&self.txn, &key).map_err(|e| self.failed(e))?;
        Ok(bytes.map(|bytes| SealedRow::new(revision, self.environment.within(bytes))))
    }

    /// Checks and reads a row of this reader.
    ///
    /// # Errors
    /// - [`BackendError::Damaged`] if its bytes are not what was written.
    pub fn open<'t>(&self, row: SealedRow<'t>) -> Result<RowRef<'t>, BackendError> {
        row.open().map_err(|damage| self.environment.damaged(damage))
    }

    /// Every row from `from` on, in order, unchecked.
    ///
    /// # Errors
    /// - [`BackendError::Lmdb`] if the file cannot be read; each item likewise.
    /// - [`BackendError::Damaged`] of an item whose key is none of a row.
    pub fn sealed_rows(
        &self,
        from: RowRevision,
    ) -> Result<impl Iterator<Item = Result<SealedRow<'_>, BackendError>> + '_, BackendError> {
        let key = keys::row_key(from);
        let range = (Bound::Included(&key[..]), Bound::Unbounded);
        let rows = self.environment.rows.range(&self.txn, &range).map_err(|e| self.failed(e))?;
        Ok(rows.map(|row| {
            let (key, bytes) = row.map_err(|source| self.failed(source))?;
            let (key, bytes) = self.environment.lent(key, bytes);
            let revision = records::row_revision(key);
            let revision = revision.map_err(|damage| self.environment.damaged(damage))?;
            Ok(SealedRow::new(revision, bytes))
        }))
    }

    /// Every row from `from` on, in order.
    ///
    /// # Errors
    /// As [`Reader::row`]; each item likewise.
    pub fn rows(
        &self,
        from: RowRevision,
    ) -> Result<impl Iterator<Item = Result<Row, BackendError>> + '_, BackendError> {
        Ok(self.row_refs(from)?.map(|row| row.map(owned)))
    }

    /// Every row from `from` on, in order, without copies.
    ///
    /// # Errors
    /// As [`Reader::row`]; each item likewise.
    pub fn row_refs(
        &self,
        from: RowRevision,
    ) -> Result<impl Iterator<Item = Result<RowRef<'_>, BackendError>> + '_, BackendError> {
        Ok(self.sealed_rows(from)?.map(|row| self.open(row?)))
    }

    /// The last stored row's place in history.
    ///
    /// # Errors
    /// As [`Reader::row`].
    pub fn last_row(&self) -> Result<Option<RowRevision>, BackendError> {
        let last = self.environment.rows.last(&self.txn).map_err(|e| self.failed(e))?;
        let Some((key, sealed)) = last else { return Ok(None) };
        let row = self.environment.open_row(key, sealed)?;
        Ok(Some(row.revision))
    }

    /// The value of `key` in `table`.
    ///
    /// # Errors
    /// As [`Reader::row`].
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, BackendError> {
        let stored = records::record_key(key);
        let tree = self.environment.table(table);
        // The transaction, not the borrowed key, is what the value lives in.
        let sealed = tree.get(&self.txn, &stored).map_err(|e| self.failed(e))?;
        sealed.map(|sealed| self.environment.open_value(table, &stored, sealed)).transpose()
    }

    /// Every key and value of `table`, by key (keys of 511 bytes and more, cut by LMDB, after the
    /// others with the same beginning).
    ///
    /// # Errors
    /// As [`Reader::row`]; each item likewise.
    pub fn scan(&self, table: Table) -> Result<Records<'_>, BackendError> {
        let inner = self.environment.table(table).iter(&self.txn).map_err(|e| self.failed(e))?;
        Ok(Records { inner, table, reader: self })
    }

    /// A number of `table`, as etcd stores it; `None` if it is absent or no number.
    ///
    /// # Errors
    /// As [`Reader::row`].
    pub fn number(&self, table: Table, key: &[u8]) -> Result<Option<u64>, BackendError> {
        Ok(self.get(table, key)?.and_then(keys::parse_number))
    }

    /// The position of the last applied entry that this commit holds; 0 before any.
    ///
    /// # Errors
    /// As [`Reader::row`].
    pub fn consistent_index(&self) -> Result<LogIndex, BackendError> {
        Ok(LogIndex(self.number(Table::Meta, CONSISTENT_INDEX)?.unwrap_or(0)))
    }

    /// The last compaction whose rows are all gone; -1 before any.
    ///
    /// # Errors
    /// As [`Reader::row`].
    pub fn finished_compaction(&self) -> Result<Revision, BackendError> {
        let stored = self.get(Table::Meta, FINISHED_COMPACT_REVISION)?;
        let parsed = stored.and_then(parse_etcd_revision);
        Ok(parsed.map_or(Revision(-1), |(position, _tombstone)| position.main))
    }

    fn failed(&self, source: heed::Error) -> BackendError {
        self.environment.failed(source)
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        metrics::OPEN_READ_TRANSACTIONS.dec();
    }
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("transaction", &self.txn.id()).finish_non_exhaustive()
    }
}

/// Keys and values of a table: see [`Reader::scan`].
pub struct Records<'r> {
    inner: RoIter<'r, Raw, Raw>,
    table: Table,
    reader: &'r Reader<'r>,
}

impl<'r> Iterator for Records<'r> {
    type Item = Result<(&'r [u8], &'r [u8]), BackendError>;

    fn next(&mut self) -> Option<Self::Item> {
        let environment = &self.reader.environment;
        Some(match self.inner.next()? {
            Ok((key, sealed)) => {
                let (key, sealed) = environment.lent(key, sealed);
                records::open_record(self.table, key, sealed)
                    .map_err(|damage| environment.damaged(damage))
            }
            Err(source) => Err(self.reader.failed(source)),
        })
    }
}

impl std::fmt::Debug for Records<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").field("table", &self.table).finish_non_exhaustive()
    }
}

fn owned(row: RowRef<'_>) -> Row {
    Row {
        revision: row.revision,
        tombstone: row.tombstone,
        value: Bytes::copy_from_slice(row.value),
    }
}

/// Creates `dir` for its owner only, so that its name survives a power cut.
fn create_directory(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error),
    }
    match dir.parent() {
        Some(parent) if parent != Path::new("") => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

/// Takes the directory for this process (B2).
fn lock(dir: &Path, clock: &Clock) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let owner = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(dir.join(OWNER_FILE))?;
    let start = clock.now();
    let mut said = false;
    loop {
        match rustix::fs::flock(&owner, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(owner),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let took = clock.now() - start;
        if LOCK_PATIENCE <= took && !said {
            said = true;
            tracing::info!(
                path = %dir.display(),
                took = %Took(took),
                "db file is flocked by another process, or taking too long"
            );
        }
        // Nobody says when the lock is free.
        std::thread::park_timeout(LOCK_RETRY);
    }
}
