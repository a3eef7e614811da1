//! A database file of etcd, seen as rows and tables.
//!
//! Decides what a bucket's entries mean, and that absent buckets are empty. Used by imports and by
//! the offline tools.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{ExchangeError, bucket::Content};
use crate::{
    bolt::{Bucket, Database, Entry, Finding, Source},
    model::{LogIndex, Row},
    storage::{
        Table, keys,
        tables::{CONSISTENT_INDEX, STORAGE_VERSION},
    },
};

/// An open database file.
#[derive(Debug)]
pub struct EtcdFile<S = File> {
    path: PathBuf,
    database: Database<S>,
    buckets: Vec<Bucket>,
}

impl EtcdFile<File> {
    /// Opens the file at `path` for reading.
    ///
    /// # Errors
    /// - [`ExchangeError::Bolt`] if it cannot be read, or its root is damaged.
    pub fn open(path: &Path) -> Result<Self, ExchangeError> {
        let failed = |source| ExchangeError::Bolt { file: path.to_owned(), source };
        Self::new(path.to_owned(), Database::open(path).map_err(failed)?)
    }
}

impl<S: Source> EtcdFile<S> {
    /// Reads `database`, which errors call `path`.
    ///
    /// # Errors
    /// - [`ExchangeError::Bolt`] if its root is damaged.
    pub fn new(path: PathBuf, database: Database<S>) -> Result<Self, ExchangeError> {
        match database.buckets() {
            Ok(buckets) => Ok(Self { path, database, buckets }),
            Err(source) => Err(ExchangeError::Bolt { file: path, source }),
        }
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The length of its pages, in bytes.
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        self.database.bytes_total()
    }

    /// Checks every page; an empty list is good.
    #[must_use]
    pub fn check(&self) -> Vec<Finding> {
        self.database.check()
    }

    /// The names of all buckets, also of those that etcd 3.7 does not know.
    pub fn bucket_names(&self) -> impl Iterator<Item = &Bytes> {
        self.buckets.iter().map(|bucket| &bucket.name)
    }

    /// The entries of the bucket called `name`, raw; none if it is absent.
    pub fn entries(&self, name: &[u8]) -> impl Iterator<Item = Result<Entry, ExchangeError>> {
        let bucket = self.buckets.iter().find(|bucket| bucket.name == name);
        let entries = bucket.map(|bucket| self.database.entries(bucket));
        entries.into_iter().flatten().map(|entry| {
            entry.map_err(|source| ExchangeError::Bolt { file: self.path.clone(), source })
        })
    }

    /// The entries of `table`.
    pub fn records(&self, table: Table) -> impl Iterator<Item = Result<Entry, ExchangeError>> {
        self.entries(table.name().as_bytes())
    }

    /// The history of keys, in order.
    pub fn rows(&self) -> impl Iterator<Item = Result<Row, ExchangeError>> {
        self.entries(Content::Rows.name().as_bytes()).map(|entry| {
            let Entry { key, value } = entry?;
            let Some((revision, tombstone)) = keys::parse_etcd_revision(&key) else {
                let key = key.iter().map(|byte| format!("{byte:02x}")).collect();
                return Err(ExchangeError::RowKey { file: self.path.clone(), key });
            };
            Ok(Row { revision, tombstone, value })
        })
    }

    /// The value of `key` in `table`. For small tables: it looks at every key.
    ///
    /// # Errors
    /// - [`ExchangeError::Bolt`] if the table is damaged before the key.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, ExchangeError> {
        for entry in self.records(table) {
            let entry = entry?;
            if entry.key == key {
                return Ok(Some(entry.value));
            }
        }
        Ok(None)
    }

    /// The position of the last log entry that the file holds; 0 if it does not say.
    ///
    /// # Errors
    /// - [`ExchangeError::Bolt`] if the table of it is damaged.
    pub fn consistent_index(&self) -> Result<LogIndex, ExchangeError> {
        let value = self.get(Table::Meta, CONSISTENT_INDEX)?;
        Ok(LogIndex(value.and_then(|value| keys::parse_number(&value)).unwrap_or(0)))
    }

    /// The version of the storage schema, as text; `None` before etcd 3.6.
    ///
    /// # Errors
    /// - [`ExchangeError::Bolt`] if the table of it is damaged.
    pub fn storage_version(&self) -> Result<Option<String>, ExchangeError> {
        let value = self.get(Table::Meta, STORAGE_VERSION)?;
        Ok(value.and_then(|value| String::from_utf8(value.to_vec()).ok()))
    }
}
