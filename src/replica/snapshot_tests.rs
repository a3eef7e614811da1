//! A member that takes over the state of another one, from file to answers.

use std::{fs::File, path::Path, thread::JoinHandle, time::Duration};

use bytes::Bytes;
use proto::{
    etcdserverpb::{CompactionRequest, LeaseGrantRequest, PutRequest},
    raftpb::{Snapshot, SnapshotMetadata},
};
use tempfile::TempDir;

use super::snapshot::{InstallError, Installer};
use crate::{
    base::{
        clock::Clock,
        thread::{Priority, spawn},
    },
    exchange::{export, snapshot_file},
    lease::{LeaseKeys, LeaseSettings, TimeToLive},
    model::{
        ClusterId, Command, KeyRange, LeaseId, LogIndex, MemberId, Request, RequestId, Revision,
        Term,
    },
    mvcc::CompactionStep,
    state::{Machine, Quota, Settings as StateSettings},
    storage::{
        Backend, BackendError, BackendOptions, FlushJob, FlusherHandle,
        backend::BACKEND_DIRECTORY,
        flusher::{self, FlusherOptions, mailbox},
    },
};

/// A state machine with its backend and flusher, without raft.
struct Side {
    dir: TempDir,
    backend: Backend,
    flusher: FlusherHandle,
    machine: Machine,
    thread: JoinHandle<Result<(), BackendError>>,
}

fn settings() -> StateSettings {
    StateSettings {
        member: MemberId(1),
        cluster: ClusterId(2),
        quota: Quota::from_flag(-1),
        learners_max: 1,
        leases: LeaseSettings {
            ttl_seconds_min: 2,
            checkpoints: false,
            checkpoints_persist: false,
            revoke_retry: Duration::from_secs(3),
        },
    }
}

impl Side {
    fn new() -> Self {
        Self::at(TempDir::new().expect("a temporary directory"))
    }

    fn at(dir: TempDir) -> Self {
        let options = BackendOptions::new(dir.path().join(BACKEND_DIRECTORY));
        let (backend, writer) = Backend::open(&options).expect("the directory is ours");
        let (machine, at) = Machine::recover(&backend, settings()).expect("a sound state");
        let (flusher, inbox) = mailbox(at.applied, machine.publish().revision(), Revision(-1));
        let options = FlusherOptions::default();
        let run = move || flusher::run(writer, inbox, options, Clock::system());
        let thread = spawn("flush", Priority::Background, run).expect("a thread");
        Self { dir, backend, flusher, machine, thread }
    }

    fn apply(&mut self, request: Request) {
        let index = self.machine.applied().next();
        let command = Command::new(RequestId(1), request);
        let applied = self.machine.apply(index, Term(1), &command, Duration::ZERO);
        assert!(applied.outcome.is_ok(), "{applied:?}");
    }

    fn put(&mut self, key: &str, lease: i64) {
        let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::from_static(b"v"));
        self.apply(Request::Put(PutRequest { key, value, lease, ..PutRequest::default() }));
    }

    fn flush(&mut self) {
        self.flusher.submit(FlushJob::Batch(self.machine.take_flush())).expect("it runs");
        self.flusher.sync().expect("it runs");
    }

    /// This side's state as a leader would send it, in `snap_dir`.
    fn send(&mut self, snap_dir: &Path) -> Snapshot {
        self.flush();
        let index = self.machine.applied();
        let file = File::create(snap_dir.join(snapshot_file(index))).expect("a file");
        let reader = self.backend.reader().expect("a reader");
        export(&reader, file, |_bytes, file| file).expect("an export");
        snapshot_at(index)
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), InstallError> {
        let snap_dir = self.dir.path().to_owned();
        let installer = Installer { snap_dir, flusher: self.flusher.clone() };
        installer.install(snapshot, &mut self.machine)
    }

    fn hash(&self) -> u32 {
        self.machine.publish().kv.hash_kv(Revision(0)).expect("a hash").hash
    }

    /// Ends without a flush, and begins again from the directory.
    fn restart(self) -> Self {
        let Self { dir, backend, flusher, machine, thread } = self;
        drop((flusher, machine, backend));
        thread.join().expect("no panic").expect("no failed commit");
        Self::at(dir)
    }
}

fn snapshot_at(index: LogIndex) -> Snapshot {
    let metadata = SnapshotMetadata { index: Some(index.0), term: Some(1), conf_state: None };
    Snapshot { data: None, metadata: Some(metadata) }
}

fn grant(id: i64) -> Request {
    Request::LeaseGrant(LeaseGrantRequest { ttl: 60, id })
}

/// A leader with leases, 3000 revisions and a finished compaction.
fn leader() -> Side {
    let mut leader = Side::new();
    leader.apply(grant(7));
    for number in 0..3_000 {
        leader.put(&format!("key{:03}", number % 700), if number % 2 == 0 { 7 } else { 0 });
    }
    leader.apply(Request::Compaction(CompactionRequest { revision: 2_000, physical: false }));
    leader.flush();
    loop {
        match leader.machine.background_step() {
            CompactionStep::Idle => return leader,
            CompactionStep::Working => {}
            CompactionStep::Hash(job) => drop(job.run()),
            CompactionStep::Delete { revision, dead, last } => {
                let job = FlushJob::Compact { revision, dead, last };
                leader.flusher.submit(job).expect("it runs");
            }
        }
    }
}

#[test]
fn received_state_takes_the_place_of_an_older_one_and_survives_a_restart() {
    let mut leader = leader();
    let mut follower = Side::new();
    follower.apply(grant(9));
    for number in 0..50 {
        follower.put(&format!("old{number}"), 9);
    }
    let lessor = follower.machine.lessor().clone();
    let old = follower.machine.publish();
    let snapshot = leader.send(follower.dir.path());
    let received = follower.dir.path().join(snapshot_file(leader.machine.applied()));

    follower.install(&snapshot).expect("a sound state");

    assert_eq!(follower.machine.applied(), leader.machine.applied());
    assert_eq!(follower.machine.publish().revision(), leader.machine.publish().revision());
    assert_eq!(follower.hash(), leader.hash());
    assert!(!received.exists(), "the file has served its purpose");
    assert_eq!(lessor.leases(), [LeaseId(7)], "whoever has the lessor sees the new leases");
    lessor.promote(Duration::ZERO, Duration::ZERO);
    let kept = lessor.time_to_live(LeaseId(7), LeaseKeys::Listed, Duration::ZERO);
    let TimeToLive::Live { keys, .. } = kept else { panic!("{kept:?}") };
    assert_eq!(keys, leader.machine.lessor().keys(LeaseId(7)));
    let everything = KeyRange::from_wire(Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
    assert_eq!(old.kv.count(&everything), 50, "a view does not change");
    drop(old);

    leader.put("between", 7);
    let again = leader.send(follower.dir.path());
    follower.install(&again).expect("a second state, while the first one's database is open");
    assert_eq!(follower.hash(), leader.hash());

    follower.put("later", 7);
    leader.put("later", 7);
    follower.flush();
    let (hash, applied) = (follower.hash(), follower.machine.applied());
    let follower = follower.restart();
    assert_eq!((follower.hash(), follower.machine.applied()), (hash, applied));
    assert_eq!(hash, leader.hash());
}

#[test]
fn state_that_does_not_reach_its_position_is_refused_and_changes_nothing() {
    let mut leader = leader();
    let mut follower = Side::new();
    follower.put("own", 0);
    follower.flush();
    let hash = follower.hash();
    leader.send(follower.dir.path());
    let (sent, claimed) = (leader.machine.applied(), leader.machine.applied().next());
    let name = |index| follower.dir.path().join(snapshot_file(index));
    std::fs::rename(name(sent), name(claimed)).expect("renamed");
    let refused = follower.install(&snapshot_at(claimed)).unwrap_err();
    assert!(matches!(refused, InstallError::Behind { .. }), "{refused:?}");
    let missing = follower.install(&snapshot_at(LogIndex(1))).unwrap_err();
    assert!(matches!(missing, InstallError::Exchange(_)), "{missing:?}");
    assert_eq!(follower.hash(), hash);
    assert_eq!(follower.restart().hash(), hash);
}
