//! Reading all rows once without keeping their pages.
//!
//! Decides what becomes of the memory that a full scan touches: it is given back. A page of a
//! memory map counts as the process's from its first touch on, until the map goes. A scan through
//! a map of its own leaves nothing behind, where the backend's map would seem to hold the whole
//! file for ever. Used when the store is rebuilt at the start.
//!
//! Invariants
//! - U1 What is read is one commit: the one that the backend's reader pins as long as this lives.

use std::{
    fs,
    ops::{Bound, ControlFlow},
    sync::{Arc, Mutex},
};

use heed::{Env, EnvFlags, EnvOpenOptions, RoTxn, WithoutTls, types::Bytes as Raw};

use super::{
    backend::Backend,
    environment::{DATA_FILE, Environment, Tree},
    error::BackendError,
    keys,
    reach::Reach,
    records::{self, RowRef},
    tables::ROWS,
};
use crate::model::RowRevision;

/// The rows of one commit, in a map of their own. Several threads may read it.
pub struct Survey {
    env: Env<WithoutTls>,
    rows: Tree,
    environment: Arc<Environment>,
    commit: usize,
    reach: Reach,
    /// Keeps the writer from reusing the commit's pages (U1). Several threads may not share one.
    _pin: Mutex<RoTxn<'static, WithoutTls>>,
}

impl Backend {
    /// Maps the database once more, for reading all of it. Not while the writer is at work, whose
    /// commits would be told from the pinned one only by their number.
    ///
    /// # Errors
    /// - [`BackendError::Lmdb`] or [`BackendError::System`] if the file cannot be mapped.
    pub fn survey(&self) -> Result<Survey, BackendError> {
        let environment = self.environment();
        let pin = environment.env.clone().static_read_txn();
        let pin = pin.map_err(|source| environment.failed(source))?;
        // An environment that was installed has another name than when it was opened.
        let file = &self.0.options.dir.join(DATA_FILE);
        let length = fs::metadata(file)
            .map_err(|source| BackendError::System { file: file.clone(), source })?
            .len();
        let page = environment.page_bytes.max(1 << 16);
        // A page more than the file, so that what goes beyond it stays in this map.
        let bytes = length.next_multiple_of(page) + page;
        let bytes = usize::try_from(bytes).expect("a file that is mapped");
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(bytes).max_dbs(1);
        let flags = EnvFlags::READ_ONLY | EnvFlags::NO_LOCK | EnvFlags::NO_SUB_DIR;
        // SAFETY: the flags forbid writing, and take no part in LMDB's locks, whose one purpose
        // here, to keep the writer off the pages that are read, `pin` serves; `rows` makes sure
        // that it reads the commit that is pinned. The directory's lock keeps other processes out.
        #[expect(unsafe_code, reason = "a memory map is only as safe as its file")]
        let opened = unsafe { options.flags(flags).open(file) };
        let env = opened.map_err(|source| environment.failed(source))?;
        let rows = open_rows(&env).map_err(|source| environment.failed(source))?;
        let reach = Reach::new();
        let reach = reach.map_err(|source| BackendError::System { file: file.clone(), source })?;
        Ok(Survey { env, rows, environment, commit: pin.id(), reach, _pin: Mutex::new(pin) })
    }
}

fn open_rows(env: &Env<WithoutTls>) -> heed::Result<Tree> {
    let txn = env.read_txn()?;
    let opened = env.open_databases_and_commit(txn, |opener, txn| {
        let rows = opener.open_database::<Raw, Raw>(txn, Some(ROWS))?;
        Ok::<_, heed::Error>(heed::CommitOrAbort::<_, ()>::Commit(rows))
    })?;
    Ok(opened.unwrap_commit().expect("opening the backend created it"))
}

impl Survey {
    /// Shows the rows from `from` on, in order, until told to stop.
    ///
    /// # Errors
    /// - [`BackendError::Damaged`] if a row's bytes are not what was written.
    /// - [`BackendError::Lmdb`] if the file cannot be read.
    pub fn rows(
        &self,
        from: RowRevision,
        show: &mut dyn FnMut(RowRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), BackendError> {
        let failed = |source| self.environment.failed(source);
        let txn = self.env.read_txn().map_err(failed)?;
        assert!(
            txn.id() == self.commit,
            "commit {} came after {} while all rows were read",
            txn.id(),
            self.commit
        );
        let key = keys::row_key(from);
        let range = (Bound::Included(&key[..]), Bound::Unbounded);
        for row in self.rows.range(&txn, &range).map_err(failed)? {
            let (key, sealed) = row.map_err(failed)?;
            let (key, sealed) = self.reach.record(key, sealed);
            let row = records::open_row(key, sealed);
            if show(row.map_err(|damage| self.environment.damaged(damage))?).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Survey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Survey").field("commit", &self.commit).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        model::{Revision, Row},
        storage::{BackendOptions, Table},
    };

    fn seen(survey: &Survey, from: i64) -> Result<Vec<(i64, Vec<u8>)>, BackendError> {
        let mut seen = Vec::new();
        survey.rows(RowRevision { main: Revision(from), sub: 0 }, &mut |row| {
            seen.push((row.revision.main.0, row.value.to_vec()));
            if seen.len() < 50 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(seen)
    }

    #[test]
    fn survey_shows_the_rows_of_the_last_commit_and_every_damage() {
        let dir = tempfile::TempDir::new().unwrap();
        let options = BackendOptions::new(dir.path().join("db.lmdb"));
        let value = |main: i64| format!("the value of revision {main};").repeat(100);
        {
            let (backend, mut writer) = Backend::open(&options).unwrap();
            assert_eq!(seen(&backend.survey().unwrap(), 0).unwrap(), [], "nothing is stored yet");
            let mut txn = writer.begin().unwrap();
            for main in 100..200 {
                let revision = RowRevision { main: Revision(main), sub: 0 };
                txn.append(&Row { revision, tombstone: false, value: value(main).into() }).unwrap();
            }
            txn.put(Table::Lease, b"l", b"v").unwrap();
            txn.commit().unwrap();
            let survey = backend.survey().unwrap();
            let expected: Vec<_> =
                (120..170).map(|main| (main, value(main).into_bytes())).collect();
            assert_eq!(seen(&survey, 120).unwrap(), expected);
            assert_eq!(seen(&survey, 500).unwrap(), []);
            // The backend goes on beside it, and after it.
            assert!(backend.reader().unwrap().last_row().unwrap().is_some());
            drop(survey);
            assert_eq!(seen(&backend.survey().unwrap(), 199).unwrap().len(), 1);
        }
        let file = options.dir.join("data.mdb");
        let mut bytes = fs::read(&file).unwrap();
        let pattern = value(130);
        let at = bytes.windows(64).position(|w| w == &pattern.as_bytes()[..64]).unwrap();
        bytes[at] ^= 0x01;
        fs::write(&file, bytes).unwrap();
        let (backend, _writer) = Backend::open(&options).unwrap();
        let error = seen(&backend.survey().unwrap(), 120).unwrap_err();
        assert!(matches!(error, BackendError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("130"), "{error}");
    }
}
