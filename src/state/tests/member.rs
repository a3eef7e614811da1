//! A member without raft: entries come from the test, the flusher is a method call.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use proto::raftpb::ConfChange;
use tempfile::TempDir;

use crate::{
    lease::LeaseSettings,
    model::{
        ClusterId, Command, LogIndex, MemberId, Outcome, Request, RequestId, Revision, RowRevision,
        Term,
    },
    mvcc::{CompactionStep, EventBatch},
    state::{Applied, Machine, Quota, RecoverError, Settings},
    storage::{
        Backend, BackendOptions, FlushBatch, Table, TableWrite, Writer,
        keys::etcd_revision,
        tables::{CONF_STATE, CONSISTENT_INDEX, FINISHED_COMPACT_REVISION, TERM},
    },
};

pub(super) const LOCAL: MemberId = MemberId(1);
const THE_TERM: Term = Term(2);

pub(super) struct Member {
    dir: TempDir,
    writer: Option<Writer>,
    pub(super) machine: Machine,
    pub(super) now: Duration,
    /// Everything told to watchers since the start.
    pub(super) events: Vec<EventBatch>,
    quota: Quota,
}

fn settings(quota: Quota) -> Settings {
    Settings {
        member: LOCAL,
        cluster: ClusterId(99),
        quota,
        learners_max: 1,
        leases: LeaseSettings {
            ttl_seconds_min: 2,
            checkpoints: false,
            checkpoints_persist: false,
            revoke_retry: Duration::from_secs(3),
        },
    }
}

fn open(dir: &TempDir, quota: Quota) -> (Writer, Result<Machine, RecoverError>) {
    let mut options = BackendOptions::new(dir.path().join("db.lmdb"));
    options.map_bytes = 1 << 26;
    let (backend, writer) = Backend::open(&options).expect("the directory is ours");
    (writer, Machine::recover(&backend, settings(quota)).map(|(machine, _)| machine))
}

impl Member {
    pub(super) fn new() -> Self {
        Self::with_quota(Quota::from_flag(-1))
    }

    pub(super) fn with_quota(quota: Quota) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let (writer, machine) = open(&dir, quota);
        let machine = machine.expect("an empty backend is sound");
        let (now, events) = (Duration::ZERO, Vec::new());
        Self { dir, writer: Some(writer), machine, now, events, quota }
    }

    pub(super) fn apply(&mut self, request: Request) -> Outcome {
        self.apply_command(&Command::new(RequestId(1), request)).outcome
    }

    pub(super) fn apply_command(&mut self, command: &Command) -> Applied {
        let index = self.machine.applied().next();
        self.apply_at(index, command)
    }

    pub(super) fn apply_at(&mut self, index: LogIndex, command: &Command) -> Applied {
        let applied = self.machine.apply(index, THE_TERM, command, self.now);
        self.events.extend(self.machine.take_events());
        applied
    }

    pub(super) fn change_members(&mut self, change: &ConfChange) -> Outcome {
        let index = self.machine.applied().next();
        self.machine.apply_conf_change(index, THE_TERM, change)
    }

    /// Carries the machine's changes to the backend.
    pub(super) fn flush(&mut self) {
        let batch = self.machine.take_flush();
        let upto = batch.rows.last().map(|row| row.revision.main);
        store(self.writer.as_mut().expect("open"), &batch);
        if let Some(upto) = upto {
            self.machine.rows_flushed(upto);
        }
    }

    /// Finishes the compactions under way; what they delete was flushed before.
    pub(super) fn finish_compactions(&mut self) {
        self.flush();
        loop {
            match self.machine.background_step() {
                CompactionStep::Idle => break,
                CompactionStep::Working => {}
                CompactionStep::Hash(job) => drop(job.run()),
                CompactionStep::Delete { revision, dead, last } => {
                    self.delete(revision, &dead, last);
                }
            }
        }
    }

    fn delete(&mut self, revision: Revision, dead: &[RowRevision], last: bool) {
        let mut txn = self.writer.as_mut().expect("open").begin().expect("a transaction");
        for row in dead {
            txn.delete_row(*row).expect("deleted");
        }
        if last {
            let finished = etcd_revision(RowRevision { main: revision, sub: 0 });
            txn.put(Table::Meta, FINISHED_COMPACT_REVISION, &finished).expect("written");
        }
        txn.commit().expect("committed");
    }

    /// Stops without a flush and comes back from the backend: at an older position, perhaps.
    pub(super) fn restart(self) -> Self {
        self.try_restart().map_err(|error| error.to_string()).expect("a sound state")
    }

    pub(super) fn try_restart(self) -> Result<Self, RecoverError> {
        let Self { dir, writer, machine, now, events, quota } = self;
        drop((writer, machine));
        let (writer, machine) = open(&dir, quota);
        Ok(Self { dir, writer: Some(writer), machine: machine?, now, events, quota })
    }

    /// Writes to a table behind the machine's back.
    pub(super) fn tamper(&mut self, table: Table, key: &[u8], value: &[u8]) {
        let mut txn = self.writer.as_mut().expect("open").begin().expect("a transaction");
        txn.put(table, key, value).expect("written");
        txn.commit().expect("committed");
    }

    /// Every small table as the backend holds it.
    pub(super) fn tables(&mut self) -> BTreeMap<(Table, Bytes), Bytes> {
        self.flush();
        let mut tables = BTreeMap::new();
        let backend = self.machine.backend.clone();
        let reader = backend.reader().expect("a reader");
        for table in Table::ALL {
            for record in reader.scan(table).expect("a table") {
                let (key, value) = record.expect("a record");
                let key = Bytes::copy_from_slice(key);
                tables.insert((table, key), Bytes::copy_from_slice(value));
            }
        }
        tables
    }

    /// The hash as of now. The hash that a compaction left behind may be another one; 0 stands for
    /// now, unless there was a compaction at 0.
    pub(super) fn hash(&self) -> u32 {
        let view = self.machine.publish().kv;
        let now = if view.compacted() == Revision(0) { view.revision() } else { Revision(0) };
        view.hash_kv(now).expect("the newest revision can be hashed").hash
    }

    /// Everything that a refused command must not change.
    pub(super) fn fingerprint(&self) -> (Revision, u32, Vec<String>) {
        let published = self.machine.publish();
        let lessor = self.machine.lessor();
        let mut leases = lessor.leases();
        leases.sort_unstable();
        let mut facts: Vec<String> =
            leases.into_iter().map(|id| format!("{id} {:?}", lessor.keys(id))).collect();
        facts.push(format!("{:?}", (&published.membership, &published.alarms)));
        (published.revision(), self.hash(), facts)
    }
}

/// What a commit of the flusher stores.
pub(crate) fn store(writer: &mut Writer, batch: &FlushBatch) {
    let mut txn = writer.begin().expect("a transaction");
    for row in &batch.rows {
        txn.append(row).expect("rows are in order");
    }
    for write in &batch.tables {
        txn.write(write).expect("written");
    }
    let meta = |key: &'static [u8], value: Bytes| TableWrite {
        table: Table::Meta,
        key: Bytes::from_static(key),
        value: Some(value),
    };
    let number = |number: u64| Bytes::copy_from_slice(&number.to_be_bytes());
    txn.write(&meta(CONSISTENT_INDEX, number(batch.applied.0))).expect("written");
    txn.write(&meta(TERM, number(batch.term.0))).expect("written");
    if let Some(conf_state) = &batch.conf_state {
        txn.write(&meta(CONF_STATE, conf_state.clone())).expect("written");
    }
    txn.commit().expect("committed");
}
