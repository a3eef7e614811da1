//! The real state machine beside the simulated one, on a real backend.
//!
//! Decides nothing: it applies what its member applies, is flushed when its member takes a
//! checkpoint, loses the rest at a crash, and travels as a database of etcd when a leader sends its
//! state. After each step it must hold what the simulated state holds. Some of the runs have it;
//! files cost time.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc, time::Duration};

use prost::Message as _;
use proto::raftpb::{ConfChange, Entry, EntryType};
use tempfile::TempDir;

use super::{checks::Checks, state::State};
use crate::{
    exchange::{adopt, export, snapshot_file},
    lease::LeaseSettings,
    model::{
        ClusterId, Command, LogIndex, MemberId, Revision, entry_data, entry_index, entry_kind,
        entry_term,
    },
    state::{self, Machine, Quota},
    storage::{Backend, BackendOptions, Writer, backend::BACKEND_DIRECTORY},
};

/// A database of etcd, as bytes.
pub(super) type Database = Arc<Vec<u8>>;

/// A member's real state, in memory and on disk.
#[derive(Debug)]
pub(super) struct RealState {
    member: MemberId,
    dir: TempDir,
    /// The databases that leaders have sent; on disk, too, but no file before it is wanted.
    received: BTreeMap<LogIndex, Database>,
    /// Nothing while the member is down.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    backend: Backend,
    writer: Writer,
    machine: Machine,
}

impl RealState {
    pub(super) fn new(member: MemberId) -> Self {
        // In memory, where there is such a place: syncs are not what is tested here.
        let fast = PathBuf::from("/dev/shm");
        let dir = if fast.is_dir() { TempDir::new_in(fast) } else { TempDir::new() };
        Self {
            member,
            dir: dir.expect("a temporary directory"),
            received: BTreeMap::new(),
            open: None,
        }
    }

    fn settings(&self) -> state::Settings {
        state::Settings {
            member: self.member,
            cluster: ClusterId(99),
            quota: Quota::from_flag(-1),
            learners_max: super::state::LEARNERS_MAX,
            leases: LeaseSettings {
                ttl_seconds_min: 2,
                checkpoints: false,
                checkpoints_persist: false,
                revoke_retry: Duration::from_secs(3),
            },
        }
    }

    /// Opens what is on disk after a restart; `newest` is the newest snapshot in the log.
    pub(super) fn restart(&mut self, newest: LogIndex) {
        self.install(newest);
        self.received.clear();
    }

    /// Goes on from the state that came with the snapshot at `newest`, if there is one.
    pub(super) fn install(&mut self, newest: LogIndex) {
        self.open = None;
        if let Some(database) = self.received.remove(&newest) {
            let path = self.dir.path().join(snapshot_file(newest));
            fs::write(path, database.as_slice()).expect("the directory is ours");
        }
        adopt(self.dir.path(), newest).expect("the directory is sound");
        let mut options = BackendOptions::new(self.dir.path().join(BACKEND_DIRECTORY));
        options.map_bytes = 1 << 26;
        let (backend, writer) = Backend::open(&options).expect("the directory is ours");
        let (machine, _) = Machine::recover(&backend, self.settings()).expect("a sound state");
        self.open = Some(Open { backend, writer, machine });
    }

    /// Loses what was not flushed.
    pub(super) fn crash(&mut self) {
        self.open = None;
    }

    pub(super) fn apply(&mut self, entry: &Entry) {
        let machine = &mut self.open.as_mut().expect("the member runs").machine;
        let (index, term) = (entry_index(entry), entry_term(entry));
        match entry_kind(entry) {
            Some(EntryType::EntryNormal) if entry_data(entry).is_empty() => {
                machine.apply_empty(index, term);
            }
            Some(EntryType::EntryNormal) => {
                let command = Command::decode(entry_data(entry)).expect("a whole command");
                let applied = machine.apply(index, term, &command, Duration::ZERO);
                assert!(applied.outcome.is_ok(), "a put was refused: {applied:?}");
            }
            Some(EntryType::EntryConfChange) => {
                let change = ConfChange::decode(entry_data(entry)).expect("a whole change");
                // Refused or not, the comparison of memberships tells.
                drop(machine.apply_conf_change(index, term, &change));
            }
            Some(EntryType::EntryConfChangeV2) | None => panic!("nobody proposes {entry:?}"),
        }
    }

    pub(super) fn flush(&mut self) {
        let Some(Open { writer, machine, .. }) = &mut self.open else { return };
        drop(machine.take_events());
        let batch = machine.take_flush();
        let upto = batch.rows.last().map(|row| row.revision.main);
        state::tests::member::store(writer, &batch);
        if let Some(upto) = upto {
            machine.rows_flushed(upto);
        }
    }

    /// The backend as a leader sends it.
    pub(super) fn export(&self) -> Database {
        let open = self.open.as_ref().expect("the member runs");
        let reader = open.backend.reader().expect("a reader");
        Arc::new(export(&reader, Vec::new(), |_bytes, out| out).expect("a sound state"))
    }

    /// Keeps a database that a leader has sent.
    pub(super) fn receive(&mut self, index: LogIndex, database: Database) {
        self.received.insert(index, database);
    }

    /// Compares it with the simulated state, and with what others have at the same position.
    pub(super) fn check(&self, state: &State, checks: &mut Checks) {
        let Some(Open { machine, .. }) = &self.open else { return };
        let (member, at) = (self.member, state.applied);
        if machine.applied() != at {
            let applied = machine.applied();
            return checks.violated(|| format!("K4: {member} stands at {applied}, not at {at}"));
        }
        let (theirs, ours) = (machine.conf_state(), &state.conf_state);
        if theirs.voters != ours.voters || theirs.learners != ours.learners {
            return checks.violated(|| format!("K6: {member} at {at} has members {theirs:?}"));
        }
        let published = machine.publish();
        if *published.membership != *state.membership {
            checks.violated(|| format!("K6: {member} at {at} has {:?}", published.membership));
        }
        for (key, version) in state.versions() {
            let found = published.kv.get(&[key]).map_or(0, |found| found.version);
            if found != version {
                checks.violated(|| format!("K4: {member} at {at}: key {key} in version {found}"));
            }
        }
        let hash = published.kv.hash_kv(Revision(0)).expect("a sound history").hash;
        checks.real_state(at, hash);
    }
}
