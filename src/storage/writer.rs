//! The one writer of the backend.
//!
//! Decides how changes reach the environment: rows are appended in revision order, records of
//! small tables replaced or deleted, all of one transaction or none. Owned by the flush thread
//! (and by importers, before a member runs).

use std::sync::Arc;

use heed::{MdbError, PutFlags, RwTxn};

use super::{
    backend::{Backend, Shared},
    environment::{Environment, Sizes},
    error::BackendError,
    keys, metrics, records,
    tables::{Table, TableWrite},
};
use crate::{
    base::clock::Clock,
    failpoint,
    model::{Row, RowRevision},
};

/// The right to write; there is one per backend.
#[derive(Debug)]
pub struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) environment: Arc<Environment>,
    clock: Clock,
    /// Reused for every sealed value.
    sealed: Vec<u8>,
}

impl Writer {
    pub(super) const fn new(
        shared: Arc<Shared>,
        environment: Arc<Environment>,
        clock: Clock,
    ) -> Self {
        Self { shared, environment, clock, sealed: Vec::new() }
    }

    /// Begins a transaction; dropped without a commit it leaves nothing.
    ///
    /// # Errors
    /// - [`BackendError::Lmdb`] if LMDB refuses, after which the member stops.
    pub fn begin(&mut self) -> Result<Transaction<'_>, BackendError> {
        let txn = self.environment.env.write_txn();
        let txn = txn.map_err(|source| self.environment.failed(source))?;
        Ok(Transaction {
            txn,
            environment: &self.environment,
            shared: Some(&self.shared),
            clock: &self.clock,
            sealed: &mut self.sealed,
        })
    }

    /// The size as of the last commit.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.shared.sizes()
    }

    /// What it writes, for reading.
    pub(super) fn backend(&self) -> Backend {
        Backend(Arc::clone(&self.shared))
    }

    /// Goes on with another environment, for readers and writes alike.
    pub(super) fn replace(&mut self, environment: Arc<Environment>, sizes: Sizes) {
        self.shared.current.store(Arc::clone(&environment));
        self.shared.set_sizes(sizes);
        self.environment = environment;
    }

    /// Begins a transaction on another environment, which no reader knows yet.
    pub(super) fn begin_on<'w>(
        &'w mut self,
        environment: &'w Environment,
    ) -> Result<Transaction<'w>, BackendError> {
        let txn = environment.env.write_txn().map_err(|source| environment.failed(source))?;
        let Self { clock, sealed, .. } = self;
        Ok(Transaction { txn, environment, shared: None, clock, sealed })
    }
}

/// A transaction of the writer.
pub struct Transaction<'w> {
    txn: RwTxn<'w>,
    environment: &'w Environment,
    /// Whom to tell about the new size; nobody while the environment is not the current one.
    shared: Option<&'w Shared>,
    clock: &'w Clock,
    sealed: &'w mut Vec<u8>,
}

impl Transaction<'_> {
    /// Stores `row` after every other.
    ///
    /// # Errors
    /// - [`BackendError::OutOfOrder`] if it does not come last.
    /// - [`BackendError::Lmdb`] if LMDB refuses.
    pub fn append(&mut self, row: &Row) -> Result<(), BackendError> {
        let key = keys::row_key(row.revision);
        records::seal_row(self.sealed, &key, row.tombstone, &row.value);
        self.append_sealed(&key, None)
    }

    /// Stores a row as another environment had it, checksum included.
    pub(super) fn append_copy(&mut self, key: &[u8], sealed: &[u8]) -> Result<(), BackendError> {
        self.append_sealed(key, Some(sealed))
    }

    fn append_sealed(&mut self, key: &[u8], copy: Option<&[u8]>) -> Result<(), BackendError> {
        let sealed = copy.unwrap_or(self.sealed);
        let put =
            self.environment.rows.put_with_flags(&mut self.txn, PutFlags::APPEND, key, sealed);
        match put {
            Ok(()) => Ok(()),
            Err(heed::Error::Mdb(MdbError::KeyExist)) => Err(BackendError::OutOfOrder {
                revision: keys::parse_row_key(key).unwrap_or_default(),
                last: self.last_row()?,
            }),
            Err(source) => Err(self.environment.failed(source)),
        }
    }

    /// Deletes the row at `revision`; whether there was one.
    ///
    /// # Errors
    /// - [`BackendError::Lmdb`] if LMDB refuses.
    pub fn delete_row(&mut self, revision: RowRevision) -> Result<bool, BackendError> {
        let deleted = self.environment.rows.delete(&mut self.txn, &keys::row_key(revision));
        deleted.map_err(|source| self.environment.failed(source))
    }

    /// The last stored row's place in history.
    ///
    /// # Errors
    /// - [`BackendError::Lmdb`] if LMDB refuses, [`BackendError::Damaged`] for a foreign key.
    pub fn last_row(&self) -> Result<Option<RowRevision>, BackendError> {
        let last = self.environment.rows.last(&self.txn);
        let last = last.map_err(|source| self.environment.failed(source))?;
        let Some((key, sealed)) = last else { return Ok(None) };
        let row =
            records::open_row(key, sealed).map_err(|damage| self.environment.damaged(damage))?;
        Ok(Some(row.revision))
    }

    /// Carries out a change of a small table.
    ///
    /// # Errors
    /// - [`BackendError::Lmdb`] if LMDB refuses.
    pub fn write(&mut self, write: &TableWrite) -> Result<(), BackendError> {
        match &write.value {
            Some(value) => self.put(write.table, &write.key, value),
            None => self.delete(write.table, &write.key).map(drop),
        }
    }

    /// Stores `value` under `key`, which is not empty.
    ///
    /// # Errors
    /// - [`BackendError::Lmdb`] if LMDB refuses.
    pub fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), BackendError> {
        records::seal_record(self.sealed, key, value);
        let tree = self.environment.table(table);
        let put = tree.put(&mut self.txn, &records::record_key(key), self.sealed);
        put.map_err(|source| self.environment.failed(source))
    }

    /// Stores a record as another environment had it, checksum included.
    pub(super) fn put_copy(
        &mut self,
        table: Table,
        stored_key: &[u8],
        sealed: &[u8],
    ) -> Result<(), BackendError> {
        let put = self.environment.table(table).put(&mut self.txn, stored_key, sealed);
        put.map_err(|source| self.environment.failed(source))
    }

    /// Deletes `key`; whether there was one.
    ///
    /// # Errors
    /// - [`BackendError::Lmdb`] if LMDB refuses.
    pub fn delete(&mut self, table: Table, key: &[u8]) -> Result<bool, BackendError> {
        let tree = self.environment.table(table);
        let deleted = tree.delete(&mut self.txn, &records::record_key(key));
        deleted.map_err(|source| self.environment.failed(source))
    }

    /// The value of `key` in `table`, with this transaction's changes.
    ///
    /// # Errors
    /// - [`BackendError::Damaged`] if its bytes are not what was written.
    /// - [`BackendError::Lmdb`] if LMDB refuses.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, BackendError> {
        let stored = records::record_key(key);
        let sealed = self.environment.table(table).get(&self.txn, &stored);
        let Some(sealed) = sealed.map_err(|source| self.environment.failed(source))? else {
            return Ok(None);
        };
        let value = records::open_value(table, &stored, sealed);
        value.map(Some).map_err(|damage| self.environment.damaged(damage))
    }

    /// Makes everything durable and visible.
    ///
    /// # Errors
    /// - [`BackendError::Lmdb`] if a write or a sync failed. It is not retried: the member stops.
    pub fn commit(self) -> Result<(), BackendError> {
        let Self { txn, environment, shared, clock, .. } = self;
        let start = clock.now();
        failpoint!("beforeCommit");
        txn.commit().map_err(|source| environment.failed(source))?;
        failpoint!("afterCommit");
        let took = (clock.now() - start).as_secs_f64();
        metrics::COMMIT_SECONDS.observe(took);
        metrics::COMMIT_WRITE_SECONDS.observe(took);
        if let Some(shared) = shared {
            shared.committed(environment.sizes()?);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}
