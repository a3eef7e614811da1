//! What the flush thread promises: order, whole batches, and nothing lost by compaction, copies
//! or a kill at any instant.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread::JoinHandle,
};

use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest},
};
use tempfile::TempDir;

use super::*;
use crate::{
    base::{
        cases::cases,
        thread::{Priority, spawn},
    },
    storage::{Backend, BackendOptions, Table, keys, tables::FINISHED_COMPACT_REVISION},
};

struct Running {
    backend: Backend,
    handle: Option<FlusherHandle>,
    thread: JoinHandle<Result<(), BackendError>>,
}

fn start(dir: &Path, options: FlusherOptions) -> Running {
    let (backend, writer) = Backend::open(&BackendOptions::new(dir.join("db.lmdb"))).unwrap();
    let (applied, revision) = {
        let reader = backend.reader().unwrap();
        let last = reader.last_row().unwrap();
        (reader.consistent_index().unwrap(), last.map_or(Revision(1), |row| row.main))
    };
    let (handle, inbox) = mailbox(applied, revision, Revision(-1));
    let thread =
        spawn("flush", Priority::Background, || run(writer, inbox, options, Clock::system()));
    Running { backend, handle: Some(handle), thread: thread.unwrap() }
}

impl Running {
    fn handle(&self) -> &FlusherHandle {
        self.handle.as_ref().unwrap()
    }

    fn submit(&self, job: FlushJob) {
        self.handle().submit(job).expect("the flush thread runs");
    }

    fn defragment(&self) -> Result<(), DefragmentError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.submit(FlushJob::Defragment(Box::new(move |outcome| sender.send(outcome).unwrap())));
        receiver.recv().expect("an answer")
    }

    /// Waits for the deletion of everything that a compaction dropped.
    fn compacted(&self, revision: i64) {
        let (sender, receiver) = mpsc::sync_channel(1);
        let reply: Reply = Box::new(move |outcome| sender.send(outcome).unwrap());
        self.handle().on_compaction_finished(Revision(revision), reply);
        receiver.recv().expect("an answer").expect("a compaction does not fail alone");
    }

    fn stop(mut self) {
        drop(self.handle.take());
        self.thread.join().unwrap().expect("a working disk");
    }
}

fn position(main: i64) -> RowRevision {
    RowRevision { main: Revision(main), sub: 0 }
}

fn row(main: i64, bytes: usize) -> Row {
    let fill = main.to_be_bytes();
    let value = fill.iter().copied().cycle().take(bytes).collect::<Vec<_>>();
    Row { revision: position(main), tombstone: main % 7 == 0, value: value.into() }
}

fn write(key: &str, value: Option<&str>) -> TableWrite {
    let value = value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
    TableWrite { table: Table::Lease, key: Bytes::copy_from_slice(key.as_bytes()), value }
}

/// The batch of entry `main`, which makes revision `main`.
fn batch(main: i64, bytes: usize) -> FlushBatch {
    FlushBatch {
        rows: vec![row(main, bytes)],
        tables: vec![write("last", Some(&main.to_string()))],
        applied: LogIndex(u64::try_from(main).unwrap()),
        term: Term(3),
        conf_state: None,
    }
}

fn rows(backend: &Backend) -> Vec<Row> {
    let reader = backend.reader().unwrap();
    reader.rows(RowRevision::default()).unwrap().map(Result::unwrap).collect()
}

fn lease(backend: &Backend, key: &str) -> Option<String> {
    let reader = backend.reader().unwrap();
    let value = reader.get(Table::Lease, key.as_bytes()).unwrap();
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

#[test]
fn batches_are_stored_whole_with_their_position() {
    let dir = TempDir::new().unwrap();
    let running = start(dir.path(), FlusherOptions::default());
    for main in 2..=50 {
        running.submit(FlushJob::Batch(batch(main, 30)));
    }
    let mut last = batch(51, 10);
    last.tables =
        vec![write("a", Some("1")), write("a", None), write("b", None), write("b", Some("2"))];
    last.conf_state = Some(Bytes::from_static(b"{}"));
    running.submit(FlushJob::Batch(last));
    running.handle().sync().unwrap();
    assert_eq!(running.handle().flushed(), (LogIndex(51), Revision(51)));
    let reader = running.backend.reader().unwrap();
    assert_eq!(reader.consistent_index().unwrap(), LogIndex(51));
    assert_eq!(reader.number(Table::Meta, b"term").unwrap(), Some(3));
    assert_eq!(reader.get(Table::Meta, b"confState").unwrap(), Some(&b"{}"[..]));
    drop(reader);
    assert_eq!(lease(&running.backend, "a"), None, "the last write of a record wins");
    assert_eq!(lease(&running.backend, "b").as_deref(), Some("2"));
    assert_eq!(rows(&running.backend).len(), 50);
    running.stop();
}

#[test]
fn what_is_submitted_is_stored_without_being_asked() {
    let dir = TempDir::new().unwrap();
    let running = start(dir.path(), FlusherOptions::default());
    running.submit(FlushJob::Batch(batch(2, 10)));
    while running.handle().flushed().0 < LogIndex(2) {
        std::thread::yield_now();
    }
    assert_eq!(rows(&running.backend), [row(2, 10)]);
    running.submit(FlushJob::Batch(batch(3, 10)));
    running.stop();
    let running = start(dir.path(), FlusherOptions::default());
    assert_eq!(running.handle().flushed().0, LogIndex(3), "a stop loses nothing");
    running.stop();
}

#[test]
fn compaction_deletes_in_steps_and_then_says_so() {
    let dir = TempDir::new().unwrap();
    let options = FlusherOptions {
        compaction_rows: 7,
        compaction_pause: Duration::ZERO,
        ..FlusherOptions::default()
    };
    let running = start(dir.path(), options);
    for main in 2..=100 {
        running.submit(FlushJob::Batch(batch(main, 30)));
    }
    let dead = |from, to| (from..=to).rev().map(position).collect();
    let revision = Revision(90);
    running.submit(FlushJob::Compact { revision, dead: dead(41, 80), last: false });
    running.submit(FlushJob::Batch(batch(101, 30)));
    for _ in 0..3 {
        running.handle().sync().unwrap();
    }
    assert_eq!(running.handle().finished_compaction(), Revision(-1));
    assert_eq!(rows(&running.backend).len(), 100, "older rows are to come, and go first");
    running.submit(FlushJob::Compact { revision, dead: dead(2, 40), last: true });
    running.compacted(85);
    assert_eq!(running.handle().finished_compaction(), revision);
    running.handle().sync().unwrap();
    let expected: Vec<_> = (81..=101).map(|main| row(main, 30)).collect();
    assert_eq!(rows(&running.backend), expected);
    let reader = running.backend.reader().unwrap();
    let finished = reader.get(Table::Meta, FINISHED_COMPACT_REVISION).unwrap().unwrap();
    assert_eq!(keys::parse_etcd_revision(finished), Some((position(90), false)));
    drop(reader);
    running.stop();
}

#[test]
fn defragmentation_shrinks_the_file_while_writes_and_readers_go_on() {
    let dir = TempDir::new().unwrap();
    let running = start(dir.path(), FlusherOptions::default());
    for main in 2..=2000 {
        running.submit(FlushJob::Batch(batch(main, 4000)));
    }
    let dead = (2..=1900).map(position).collect();
    running.submit(FlushJob::Compact { revision: Revision(1950), dead, last: true });
    running.compacted(1950);
    let before = running.backend.sizes();
    let old = running.backend.reader().unwrap();

    let (sender, receiver) = mpsc::sync_channel(1);
    running.submit(FlushJob::Defragment(Box::new(move |outcome| sender.send(outcome).unwrap())));
    let mut main = 2000;
    let outcome = loop {
        main += 1;
        running.submit(FlushJob::Batch(batch(main, 100)));
        if let Ok(outcome) = receiver.try_recv() {
            break outcome;
        }
        // A commit between any two steps of the copy.
        running.handle().sync().unwrap();
    };
    outcome.unwrap();
    running.handle().sync().unwrap();
    let after = running.backend.sizes();
    assert!(after.total < before.total / 2, "{before:?} then {after:?}");
    assert!(0 < after.in_use && after.in_use <= after.total, "{after:?}");
    let seen = old.rows(RowRevision::default()).unwrap().map(Result::unwrap).count();
    assert_eq!(seen, 100, "a reader of the old file lost its view");
    drop(old);

    let check = |running: &Running| {
        let expected: Vec<_> =
            (1901..=main).map(|main| row(main, if main <= 2000 { 4000 } else { 100 })).collect();
        assert!(rows(&running.backend) == expected, "rows were lost or changed");
        assert_eq!(lease(&running.backend, "last"), Some(main.to_string()));
    };
    check(&running);
    running.defragment().expect("a second copy");
    check(&running);
    running.stop();
    let running = start(dir.path(), FlusherOptions::default());
    check(&running);
    let names: Vec<_> = std::fs::read_dir(dir.path().join("db.lmdb")).unwrap().collect();
    assert_eq!(names.len(), 3, "data, lock and owner: {names:?}");
    running.stop();
}

#[test]
fn damage_stops_a_copy_and_leaves_the_database() {
    let dir = TempDir::new().unwrap();
    let value = [0xab; 3000];
    let running = start(dir.path(), FlusherOptions::default());
    let mut first = batch(2, 0);
    first.rows[0].value = Bytes::copy_from_slice(&value);
    first.rows.push(row(3, 10));
    running.submit(FlushJob::Batch(first));
    running.handle().sync().unwrap();
    running.stop();
    let file = dir.path().join("db.lmdb/data.mdb");
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(value.len()).position(|window| window == value).unwrap();
    bytes[at] = 0;
    std::fs::write(&file, bytes).unwrap();

    let running = start(dir.path(), FlusherOptions::default());
    let error = running.defragment().expect_err("damage is not copied");
    assert!(error.0.contains("revision 2_0"), "{error}");
    running.submit(FlushJob::Batch(batch(4, 10)));
    running.handle().sync().expect("the member goes on");
    running.stop();
}

#[test]
fn full_disk_ends_the_thread_with_its_reason() {
    let dir = TempDir::new().unwrap();
    // A map of 1 MiB is a disk of 1 MiB.
    let options = BackendOptions { dir: dir.path().join("db.lmdb"), map_bytes: 1 << 20 };
    let (backend, writer) = Backend::open(&options).unwrap();
    let (handle, inbox) = mailbox(LogIndex(0), Revision(1), Revision(-1));
    let thread = spawn("flush", Priority::Background, || {
        run(writer, inbox, FlusherOptions::default(), Clock::system())
    });
    let mut main = 1;
    let stopped = loop {
        main += 1;
        if let Err(stopped) = handle.submit(FlushJob::Batch(batch(main, 10_000))) {
            break stopped;
        }
        if handle.sync().is_err() {
            break Stopped;
        }
    };
    assert_eq!(stopped, Stopped);
    let error = thread.unwrap().join().unwrap().unwrap_err();
    assert!(matches!(error, BackendError::Lmdb { .. }), "{error}");
    let (applied, _) = handle.flushed();
    let stored = backend.reader().unwrap().consistent_index().unwrap();
    assert!(LogIndex(10) < applied && applied == stored, "{applied} reported, {stored} stored");
}

#[test]
fn producers_wait_when_too_much_is_not_yet_committed() {
    let (handle, inbox) = mailbox(LogIndex(0), Revision(1), Revision(-1));
    let producer = handle.clone();
    let (sender, receiver) = mpsc::sync_channel(0);
    let thread = spawn("producer", Priority::Normal, move || {
        for main in 2.. {
            if producer.submit(FlushJob::Batch(batch(main, 16 << 20))).is_err() {
                return main;
            }
            sender.send(main).unwrap();
        }
        unreachable!("the consumer goes away");
    });
    // Four batches of 16 MiB reach the bound.
    for main in 2..=5 {
        assert_eq!(receiver.recv(), Ok(main));
    }
    let taken = inbox.take(None, 1).expect("there is work");
    assert_eq!(taken.len(), 4);
    assert!(receiver.try_recv().is_err(), "what is taken is not yet committed");
    let bytes = taken.iter().map(mailbox::weight).sum();
    inbox.flushed(Flushed { applied: LogIndex(5), revision: Some(Revision(5)), bytes });
    assert_eq!(receiver.recv(), Ok(6));
    drop(inbox);
    receiver.recv().ok();
    drop(handle);
    assert!(6 < thread.unwrap().join().unwrap());
}

/// One thing that is asked of the flush thread.
#[derive(Clone, Debug)]
enum Step {
    Batch { rows: usize, key: u8, delete: bool },
    Compact { modulus: i64 },
    Defragment,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..4usize, any::<u8>(), any::<bool>())
            .prop_map(|(rows, key, delete)| Step::Batch { rows, key: key % 8, delete }),
        2 => (2..5i64).prop_map(|modulus| Step::Compact { modulus }),
        2 => Just(Step::Defragment),
        1 => Just(Step::Restart),
    ];
    vec(step, 1..40)
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn backend_holds_what_was_asked_whatever_the_mixture(steps in steps()) {
        let dir = TempDir::new().unwrap();
        let options = FlusherOptions {
            compaction_rows: 3,
            compaction_pause: Duration::ZERO,
            interval: Duration::from_millis(1),
            ..FlusherOptions::default()
        };
        let mut running = start(dir.path(), options.clone());
        let mut live = BTreeMap::new();
        let mut table = BTreeMap::new();
        let (mut main, mut applied) = (1, 0);
        for step in steps {
            match step {
                Step::Batch { rows, key, delete } => {
                    main += 1;
                    applied += 1;
                    let made: Vec<_> = (0..).take(rows).map(|sub| {
                        let revision = RowRevision { main: Revision(main), sub };
                        Row { revision, ..row(main, 600) }
                    }).collect();
                    live.extend(made.iter().map(|row| (row.revision, row.clone())));
                    let name = format!("key{key}");
                    let value = (!delete).then(|| applied.to_string());
                    let tables = vec![write(&name, value.as_deref())];
                    match value {
                        Some(value) => table.insert(name, value),
                        None => table.remove(&name),
                    };
                    let batch = FlushBatch {
                        rows: made, tables, applied: LogIndex(applied), term: Term(1), conf_state: None,
                    };
                    running.submit(FlushJob::Batch(batch));
                }
                Step::Compact { modulus } => {
                    main += 1;
                    let dead: Vec<_> =
                        live.keys().copied().filter(|row| row.main.0 % modulus == 0).collect();
                    live.retain(|row, _| row.main.0 % modulus != 0);
                    running.submit(FlushJob::Compact { revision: Revision(main), dead, last: true });
                    running.compacted(main);
                }
                Step::Defragment => running.defragment().unwrap(),
                Step::Restart => {
                    running.stop();
                    running = start(dir.path(), options.clone());
                }
            }
        }
        running.handle().sync().unwrap();
        prop_assert_eq!(running.handle().flushed().0, LogIndex(applied));
        prop_assert_eq!(rows(&running.backend), live.into_values().collect::<Vec<_>>());
        for key in 0..8 {
            let name = format!("key{key}");
            prop_assert_eq!(lease(&running.backend, &name), table.get(&name).cloned());
        }
        running.stop();
    }
}

const CHILD_DIR: &str = "OXETCD_TEST_FLUSHER_DIR";

/// Not a test: what `kill_at_any_instant_keeps_what_was_flushed` starts and kills. Writes, compacts
/// and copies for ever, and reports what is flushed.
#[test]
#[ignore = "started by another test"]
fn child_that_is_killed() {
    let dir = env::var(CHILD_DIR).expect("only another test starts this");
    let options =
        FlusherOptions { interval: Duration::from_millis(1), ..FlusherOptions::default() };
    let running = start(Path::new(&dir), options);
    let mut main = i64::try_from(running.handle().flushed().0.0).unwrap().max(1);
    let mut compacted = 1;
    loop {
        main += 1;
        running.submit(FlushJob::Batch(batch(main, 500)));
        if main % 64 == 0 {
            let dead = (compacted + 1..main - 32).map(position).collect();
            compacted = main - 33;
            running.submit(FlushJob::Compact { revision: Revision(main), dead, last: true });
            running.submit(FlushJob::Defragment(Box::new(drop)));
        }
        println!("flushed {}", running.handle().flushed().0);
    }
}

#[test]
fn kill_at_any_instant_keeps_what_was_flushed() {
    let dir = TempDir::new().unwrap();
    let mut flushed = 0;
    for round in 0..12 {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "storage::flusher::tests::child_that_is_killed"])
            .args(["--ignored", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let number = |line: String| line.rsplit(' ').next()?.parse::<i64>().ok();
        // Rounds end at different moments of flushes, compactions and copies.
        let enough = flushed + 70 + 37 * round;
        while flushed < enough {
            let line = lines.next().expect("the child runs until it is killed");
            flushed = number(line).unwrap_or(flushed);
        }
        child.kill().unwrap();
        // The last line may be cut short, and then be a smaller number.
        flushed = lines.filter_map(number).fold(flushed, i64::max);
        child.wait().unwrap();

        let running = start(dir.path(), FlusherOptions::default());
        let applied = i64::try_from(running.handle().flushed().0.0).unwrap();
        assert!(
            0 < flushed && flushed <= applied,
            "round {round}: {flushed} flushed, {applied} stored"
        );
        let stored = rows(&running.backend);
        assert_eq!(stored.last(), Some(&row(applied, 500)), "round {round}");
        assert_eq!(lease(&running.backend, "last"), Some(applied.to_string()), "round {round}");
        // What was not compacted is there without a gap.
        for pair in stored.windows(2) {
            let (older, newer) = (pair[0].revision.main.0, pair[1].revision.main.0);
            assert_eq!(older + 1, newer, "round {round}");
        }
        assert!(32 <= stored.len() || applied < 34, "round {round}: {} rows", stored.len());
        running.stop();
    }
}
