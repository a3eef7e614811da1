//! Files of official etcd through our tools, and ours through the official tools.
//!
//! The official binaries are looked for in the directory that `OXETCD_OFFICIAL_BIN` names; without
//! it these tests say so and pass.

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use bytes::Bytes;
use proptest::prelude::{ProptestConfig, Strategy, any, prop, prop_assert_eq, proptest};
use prost::Message;
use proto::mvccpb::KeyValue;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::{
    Ending, Format, LockTimeout, OfflineError, RestoreOptions, defragment, export_database,
    hash_kv, hash_kv_text, restore, snapshot_status, status_text, verify,
    verify::{Verified, verify_backend},
};
use crate::{
    base::random::Random,
    exchange::{Adopted, EtcdFile, adopt, export},
    model::{LogIndex, Revision, Row, RowRevision},
    storage::{
        Backend, BackendOptions, Table, keys,
        tables::{FINISHED_COMPACT_REVISION, STORAGE_VERSION},
        wal::Wal,
    },
};

/// No test waits for a lock except the one about it.
const SHORT: LockTimeout = LockTimeout(std::time::Duration::from_millis(1));

/// The official binary `name`, or `None` with a word about it.
pub(super) fn official(name: &str) -> Option<PathBuf> {
    let path = env::var_os("OXETCD_OFFICIAL_BIN").map(|dir| PathBuf::from(dir).join(name));
    let found = path.filter(|path| path.exists());
    if found.is_none() {
        eprintln!("skipped: OXETCD_OFFICIAL_BIN names no directory with {name}");
    }
    found
}

/// Runs a program to its end.
pub(super) fn run(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().expect("the program starts")
}

/// Standard output of a program that must succeed.
pub(super) fn stdout(program: &Path, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} failed: {error}");
    String::from_utf8(output.stdout).expect("text")
}

/// A history of puts and deletes: each revision changes some of a few keys, once.
fn any_history() -> impl Strategy<Value = Vec<Vec<(u8, Option<usize>)>>> {
    let change = proptest::prop_oneof![
        3 => (0..3000_usize).prop_map(Some),
        1 => proptest::prelude::Just(None),
    ];
    let revision = prop::collection::btree_map(0..12_u8, change, 1..4);
    let revision = revision.prop_map(|changes| changes.into_iter().collect());
    prop::collection::vec(revision, 1..60)
}

/// The rows of a history, as a store would have written them.
fn rows(history: &[Vec<(u8, Option<usize>)>]) -> Vec<Row> {
    let mut live = std::collections::BTreeMap::new();
    let mut rows = Vec::new();
    for (main, changes) in (2..).zip(history) {
        let mut sub = 0;
        for (key, change) in changes {
            let key_bytes = Bytes::from(format!("key{key}"));
            let pair = match change {
                Some(value_bytes) => {
                    let (create, version) = live.get(key).copied().unwrap_or((main, 0));
                    live.insert(*key, (create, version + 1));
                    KeyValue {
                        key: key_bytes,
                        create_revision: create,
                        mod_revision: main,
                        version: version + 1,
                        value: Bytes::from(vec![*key; *value_bytes]),
                        lease: 0,
                    }
                }
                // Only what lives can be deleted.
                None if live.remove(key).is_some() => {
                    KeyValue { key: key_bytes, ..KeyValue::default() }
                }
                None => continue,
            };
            let revision = RowRevision { main: Revision(main), sub };
            let value = Bytes::from(pair.encode_to_vec());
            rows.push(Row { revision, tombstone: change.is_none(), value });
            sub += 1;
        }
    }
    rows
}

/// Writes a backup with `rows`, and its trailing hash.
fn backup(path: &Path, rows: &[Row], finished: Option<i64>) {
    let dir = TempDir::new().expect("a temporary directory");
    let options = BackendOptions::new(dir.path().join("db"));
    let (backend, mut writer) = Backend::open(&options).expect("a fresh directory");
    let mut transaction = writer.begin().expect("nobody else writes");
    for row in rows {
        transaction.append(row).expect("rows are in order");
    }
    transaction.put(Table::Meta, STORAGE_VERSION, b"3.7.0").expect("LMDB takes it");
    if let Some(main) = finished {
        let revision = keys::etcd_revision(RowRevision { main: Revision(main), sub: 0 });
        transaction.put(Table::Meta, FINISHED_COMPACT_REVISION, &revision).expect("taken");
    }
    transaction.commit().expect("the disk has room");
    let reader = backend.reader().expect("few readers");
    let mut bytes = export(&reader, Vec::new(), |_, out| out).expect("everything fits");
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    fs::write(path, bytes).expect("the disk has room");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary names are text")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn official_tool_finds_our_backups_sound_and_says_the_same_of_them(
        history in any_history(),
        compact in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
    ) {
        let Some(etcdutl) = official("etcdutl") else { return Ok(()) };
        let rows = rows(&history);
        let Some(last) = rows.last().map(|row| row.revision.main.0) else { return Ok(()) };
        let dir = TempDir::new().expect("a temporary directory");
        let path = dir.path().join("backup.db");
        // As after a compaction of which nothing was deleted yet: what counts is for the hash.
        let compact = i64::try_from(compact.index(usize::try_from(last).expect("small"))).ok();
        let finished = compact.filter(|compact| 1 < *compact);
        backup(&path, &rows, finished);

        for (name, format) in [
            ("simple", Format::Simple),
            ("table", Format::Table),
            ("json", Format::Json),
            ("fields", Format::Fields),
        ] {
            // The official check of all pages is part of this.
            let theirs = stdout(&etcdutl, &["snapshot", "status", text(&path), "-w", name]);
            let ours = snapshot_status(&path).expect("a sound file");
            prop_assert_eq!(status_text(&ours, format).expect("supported"), theirs);
        }
        let first = finished.unwrap_or(1);
        let span = usize::try_from(last - first + 1).expect("small");
        let at = first + i64::try_from(at.index(span)).expect("small");
        for revision in [0, at] {
            let ours = hash_kv(&path, revision, SHORT).expect("in range");
            let ours = hash_kv_text(&ours, Format::Table).expect("supported");
            let copy = dir.path().join("copy.db");
            fs::copy(&path, &copy).expect("room");
            let revision = revision.to_string();
            let theirs = ["hashkv", text(&copy), "--rev", &revision, "-w", "table"];
            prop_assert_eq!(&ours, &stdout(&etcdutl, &theirs), "up to {} of {}", revision, last);
        }
    }
}

/// A running official member.
struct Member {
    process: Child,
    endpoint: String,
    etcdctl: PathBuf,
}

impl Member {
    /// Starts one on `data_dir` and waits until it answers; `None` without official binaries.
    fn start(data_dir: &Path) -> Option<Self> {
        Self::start_at(data_dir, &free_url())
    }

    /// The same, with the peer URL by which a restored directory knows its member.
    fn start_at(data_dir: &Path, peer: &str) -> Option<Self> {
        let (etcd, etcdctl) = (official("etcd")?, official("etcdctl")?);
        let client = free_url();
        let process = Command::new(etcd)
            .args(["--data-dir", text(data_dir), "--log-level", "error"])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--snapshot-count", "20"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let member = Self { process, endpoint: client, etcdctl };
        for _ in 0..100 {
            let health =
                run(&member.etcdctl, &["--endpoints", &member.endpoint, "endpoint", "health"]);
            if health.status.success() {
                return Some(member);
            }
        }
        panic!("the official member in {} never became healthy", data_dir.display());
    }

    fn ctl(&self, arguments: &[&str]) -> String {
        let mut all = vec!["--endpoints", &self.endpoint];
        all.extend_from_slice(arguments);
        stdout(&self.etcdctl, &all)
    }

    /// The hash of its history as the member itself computes it.
    fn hash_kv(&self) -> u64 {
        let answer = self.ctl(&["endpoint", "hashkv", "-w", "json"]);
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        answer[0]["HashKV"]["hash"].as_u64().expect("a hash")
    }

    /// Asks it to end and waits for that, so that its database is complete.
    fn stop(mut self) {
        let id = i32::try_from(self.process.id()).expect("a process id");
        let id = rustix::process::Pid::from_raw(id).expect("not 0");
        rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("it runs");
        self.process.wait().expect("it ends");
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // After `stop` there is nothing to kill, and that is no error here.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn free_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("bound"))
}

/// Puts some of everything into a fresh member.
fn fill(member: &Member) {
    for key in 0..40 {
        member.ctl(&["put", &format!("key{}", key % 13), &format!("value{key}")]);
    }
    member.ctl(&["del", "key3"]);
    member.ctl(&["compact", "20"]);
    let lease = member.ctl(&["lease", "grant", "3600", "-w", "json"]);
    let lease: serde_json::Value = serde_json::from_str(&lease).expect("JSON");
    let lease = lease["ID"].as_i64().expect("an id");
    member.ctl(&["put", "leased", "value", "--lease", &format!("{lease:x}")]);
    member.ctl(&["role", "add", "role"]);
    member.ctl(&["user", "add", "root:secret"]);
}

#[test]
fn data_directory_goes_from_etcd_to_us_and_back_without_a_change() {
    let dir = TempDir::new().expect("a temporary directory");
    let data_dir = dir.path().join("data");
    let Some(member) = Member::start(&data_dir) else { return };
    fill(&member);
    let hash = member.hash_kv();
    let keys = member.ctl(&["get", "", "--prefix", "-w", "json"]);
    let backup = dir.path().join("backup.db");
    member.ctl(&["snapshot", "save", text(&backup)]);
    member.stop();

    let snap_dir = data_dir.join("member").join("snap");
    assert_eq!(
        hash_kv(&data_dir, 0, SHORT).expect("etcd's own").hash,
        u32::try_from(hash).expect("32 bits")
    );
    assert_eq!(
        hash_kv(&backup, 0, SHORT).expect("a backup").hash,
        u32::try_from(hash).expect("32 bits")
    );
    assert_eq!(adopt(&snap_dir, LogIndex(0)).expect("a whole directory"), Adopted::Database);
    assert_eq!(
        hash_kv(&data_dir, 0, SHORT).expect("ours").hash,
        u32::try_from(hash).expect("32 bits")
    );

    export_database(&data_dir, &snap_dir.join("db"), Ending::Plain, SHORT).expect("room");
    let member = Member::start(&data_dir).expect("it was there before");
    assert_eq!(member.hash_kv(), hash);
    let body = |json: &str| json.split_once("\"kvs\"").map(|(_, body)| body.to_owned());
    assert_eq!(body(&member.ctl(&["get", "", "--prefix", "-w", "json"])), body(&keys));
    assert!(member.ctl(&["lease", "list"]).contains("found 1 leases"), "leases come along");
    assert_eq!(member.ctl(&["role", "list"]), "role\n", "roles come along");
    // It goes on from there, and we take the newer state again.
    member.ctl(&["put", "after", "value"]);
    let hash = member.hash_kv();
    member.stop();
    assert_eq!(adopt(&snap_dir, LogIndex(0)).expect("both are whole"), Adopted::Database);
    assert_eq!(
        hash_kv(&data_dir, 0, SHORT).expect("ours").hash,
        u32::try_from(hash).expect("32 bits")
    );
}

/// Options as the command line would have them for a single member.
fn restore_options(snapshot: &Path, data_dir: &Path, peer: &str) -> RestoreOptions {
    RestoreOptions {
        snapshot: snapshot.to_owned(),
        data_dir: Some(data_dir.to_owned()),
        wal_dir: None,
        name: "default".to_owned(),
        initial_cluster: format!("default={peer}"),
        initial_cluster_token: "etcd-cluster".to_owned(),
        initial_advertise_peer_urls: peer.to_owned(),
        skip_hash_check: false,
        bump_revision: 0,
        mark_compacted: false,
    }
}

/// The bucket `name` of a database file of etcd, readable.
fn bucket(path: &Path, name: &str) -> Vec<(String, String)> {
    let file = EtcdFile::open(path).expect("a database");
    let lossy = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let entries = file.entries(name.as_bytes()).map(|entry| {
        let entry = entry.expect("undamaged");
        (lossy(&entry.key), lossy(&entry.value))
    });
    entries.collect()
}

/// Restores officially and with ours, and compares what came of it.
fn check_restore(snapshot: &Path, change: impl Fn(&mut RestoreOptions)) {
    let Some(etcdutl) = official("etcdutl") else { return };
    let dir = TempDir::new().expect("a temporary directory");
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    let mut options = restore_options(snapshot, &ours, "http://127.0.0.1:2380");
    change(&mut options);
    restore(&options).expect("a whole backup");

    let bump = options.bump_revision.to_string();
    let mut arguments = vec!["snapshot", "restore", text(snapshot), "--data-dir", text(&theirs)];
    arguments.extend(["--name", &options.name, "--initial-cluster", &options.initial_cluster]);
    arguments.extend(["--initial-cluster-token", &options.initial_cluster_token]);
    arguments.extend(["--initial-advertise-peer-urls", &options.initial_advertise_peer_urls]);
    if options.mark_compacted {
        arguments.extend(["--bump-revision", &bump, "--mark-compacted"]);
    }
    stdout(&etcdutl, &arguments);

    let snap = |dir: &Path| dir.join("member").join("snap");
    let exported = dir.path().join("exported");
    export_database(&ours, &exported, Ending::Plain, SHORT).expect("room");
    let database = snap(&theirs).join("db");
    for name in ["members", "members_removed", "cluster", "lease", "key", "auth", "authUsers"] {
        assert_eq!(bucket(&exported, name), bucket(&database, name), "bucket {name}");
    }
    // Theirs keeps the membership of the old cluster there; nothing reads it.
    let meta = |path: &Path| {
        let entries = bucket(path, "meta").into_iter();
        entries.filter(|(key, _)| key != "confState").collect::<Vec<_>>()
    };
    assert_eq!(meta(&exported), meta(&database), "bucket meta");
    assert_eq!(
        hash_kv(&ours, 0, SHORT).expect("ours"),
        hash_kv(&theirs, 0, SHORT).expect("theirs")
    );

    // The logs say the same, record by record, up to the zeros behind them.
    let log = |dir: &Path| {
        let path = dir.join("member").join("wal").join("0000000000000000-0000000000000000.wal");
        let bytes = fs::read(path).expect("a log");
        let end = bytes.iter().rposition(|byte| *byte != 0).expect("not empty");
        bytes[..=end].to_vec()
    };
    assert_eq!(log(&ours), log(&theirs), "the logs differ");
    let name = |dir: &Path| {
        let names = fs::read_dir(snap(dir)).expect("made").map(|entry| entry.expect("listed"));
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.ends_with(".snap")).collect::<Vec<_>>()
    };
    assert_eq!(name(&ours), name(&theirs), "the raft snapshots differ");
    assert!(verify(&ours, None, SHORT).is_ok(), "{:?}", verify(&ours, None, SHORT));
}

#[test]
fn restored_directory_is_the_one_that_the_official_tool_makes() {
    let dir = TempDir::new().expect("a temporary directory");
    let Some(member) = Member::start(&dir.path().join("data")) else { return };
    fill(&member);
    let snapshot = dir.path().join("backup.db");
    member.ctl(&["snapshot", "save", text(&snapshot)]);
    member.stop();
    check_restore(&snapshot, |_| {});
    check_restore(&snapshot, |options| {
        options.bump_revision = 1000;
        options.mark_compacted = true;
    });
    check_restore(&snapshot, |options| {
        options.name = "b".to_owned();
        options.initial_cluster_token = "other".to_owned();
        options.initial_advertise_peer_urls = "http://127.0.0.1:2,http://127.0.0.1:1".to_owned();
        options.initial_cluster = concat!(
            "a=http://127.0.0.1:3,b=http://127.0.0.1:1,",
            "b=http://127.0.0.1:2,c=http://127.0.0.1:4"
        )
        .to_owned();
    });
}

#[test]
fn official_member_starts_from_a_directory_that_we_restored() {
    let dir = TempDir::new().expect("a temporary directory");
    let Some(member) = Member::start(&dir.path().join("data")) else { return };
    fill(&member);
    let hash = member.hash_kv();
    let snapshot = dir.path().join("backup.db");
    member.ctl(&["snapshot", "save", text(&snapshot)]);
    member.stop();

    let restored = dir.path().join("restored");
    let peer = free_url();
    restore(&restore_options(&snapshot, &restored, &peer)).expect("a whole backup");
    let database = restored.join("member").join("snap").join("db");
    export_database(&restored, &database, Ending::Plain, SHORT).expect("room");
    let member = Member::start_at(&restored, &peer).expect("it was there before");
    assert_eq!(member.hash_kv(), hash);
    member.ctl(&["put", "after", "restore"]);
    member.stop();
}

#[test]
fn flipped_byte_is_refused_by_the_hash_in_the_official_words() {
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("backup.db");
    backup(&path, &rows(&[vec![(1, Some(10))], vec![(2, Some(2000))]]), None);
    let mut bytes = fs::read(&path).expect("it was written");
    // Past everything that is used, so that only the hash can tell.
    let last = bytes.len() - 40;
    bytes[last] ^= 1;
    fs::write(&path, bytes).expect("room");
    let ours = dir.path().join("ours");
    let mut options = restore_options(&path, &ours, "http://127.0.0.1:2380");
    let refused = restore(&options).expect_err("the hash differs");
    assert!(matches!(refused, OfflineError::WrongTrailer { .. }), "{refused}");
    assert!(!ours.exists(), "a refused backup leaves nothing");
    if let Some(etcdutl) = official("etcdutl") {
        let theirs = dir.path().join("theirs");
        let said =
            run(&etcdutl, &["snapshot", "restore", text(&path), "--data-dir", text(&theirs)]);
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.lines().last(), Some(format!("Error: {refused}").as_str()));
    }
    options.skip_hash_check = true;
    restore(&options).expect("the hash was not asked for");
    let again = restore(&options).expect_err("there is something");
    assert!(again.to_string().ends_with("not empty or could not be read"), "{again}");
}

#[test]
fn damaged_backup_leaves_no_directory_behind() {
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("backup.db");
    backup(&path, &rows(&[vec![(1, Some(10))], vec![(2, Some(2000))]]), None);
    let mut bytes = fs::read(&path).expect("it was written");
    // The header of the first page after the free list.
    bytes[3 * 4096 + 8] ^= 0xff;
    fs::write(&path, bytes).expect("room");
    let data_dir = dir.path().join("data");
    let wal_dir = dir.path().join("wal");
    let options = RestoreOptions {
        skip_hash_check: true,
        wal_dir: Some(wal_dir.clone()),
        ..restore_options(&path, &data_dir, "http://127.0.0.1:2380")
    };
    let damaged = restore(&options).expect_err("a page is damaged");
    assert!(matches!(damaged, OfflineError::Database(_)), "{damaged}");
    assert!(!data_dir.exists(), "half a directory was left");
    assert!(!wal_dir.exists(), "half a log was left");
}

#[test]
fn flags_that_contradict_each_other_get_the_official_words() {
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("backup.db");
    backup(&path, &rows(&[vec![(1, Some(10))]]), None);
    let data_dir = dir.path().join("data");
    let usual = restore_options(&path, &data_dir, "http://127.0.0.1:2380");
    let cases = [
        RestoreOptions { name: "other".to_owned(), ..usual.clone() },
        RestoreOptions {
            initial_cluster: "default=http://127.0.0.1:1".to_owned(),
            ..usual.clone()
        },
        RestoreOptions { initial_cluster: "default=127.0.0.1:1".to_owned(), ..usual.clone() },
        RestoreOptions { initial_cluster: "default=http://a/b".to_owned(), ..usual.clone() },
        RestoreOptions {
            initial_cluster: "default=http://127.0.0.1:2380,b=http://127.0.0.1:2380".to_owned(),
            ..usual.clone()
        },
        RestoreOptions {
            initial_advertise_peer_urls: "http://127.0.0.1:2380,http://127.0.0.1:1".to_owned(),
            ..usual.clone()
        },
    ];
    for options in cases {
        let refused = restore(&options).expect_err("no such cluster");
        let Some(etcdutl) = official("etcdutl") else { continue };
        let theirs = dir.path().join("theirs");
        let mut arguments = vec!["snapshot", "restore", text(&path), "--data-dir", text(&theirs)];
        arguments.extend(["--name", &options.name, "--initial-cluster", &options.initial_cluster]);
        arguments.extend(["--initial-advertise-peer-urls", &options.initial_advertise_peer_urls]);
        let said = run(&etcdutl, &arguments);
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        // What Go says of lengths and resolvers in brackets is its own.
        let until = |text: &str| text.split(" (").next().map(str::to_owned);
        let expected = format!("Error: {refused}");
        assert_eq!(said.lines().last().and_then(until), until(&expected));
    }
    let bump = restore(&RestoreOptions { bump_revision: 1, ..usual });
    assert!(matches!(bump, Err(OfflineError::Usage(_))), "{bump:?}");
}

#[test]
fn verify_names_the_damaged_file() {
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("backup.db");
    let history = rows(&[vec![(1, Some(10))], vec![(2, Some(900))]]);
    backup(&path, &history, None);
    let data_dir = dir.path().join("data");
    restore(&restore_options(&path, &data_dir, "http://127.0.0.1:2380")).expect("whole");
    let sound = verify(&data_dir, None, SHORT).expect("whole");
    assert_eq!((sound.rows, sound.snapshots), (2, 1));

    let member = data_dir.join("member");
    let snapshot = member.join("snap").join("0000000000000001-0000000000000001.snap");
    let log = member.join("wal").join("0000000000000000-0000000000000000.wal");
    let flip = |path: &Path, at: u64| {
        let mut bytes = fs::read(path).expect("it is there");
        bytes[usize::try_from(at).expect("small")] ^= 1;
        fs::write(path, bytes).expect("room");
    };
    let data = member.join("snap").join("db.lmdb").join("data.mdb");
    let bytes = fs::read(&data).expect("it is there");
    let needle = [2_u8; 64];
    let row = bytes.windows(64).position(|part| part == needle).expect("the second value");
    for (path, at) in [(&snapshot, 40), (&log, 40), (&data, row as u64)] {
        flip(path, at);
        let damaged = verify(&data_dir, None, SHORT).expect_err("a bit was flipped").to_string();
        assert!(damaged.contains(text(path)), "{} is not named: {damaged}", path.display());
        flip(path, at);
    }
    assert_eq!(verify(&data_dir, None, SHORT).expect("whole again"), sound);
}

#[test]
fn defragmented_backend_is_smaller_and_holds_the_same() {
    let dir = TempDir::new().expect("a temporary directory");
    let data_dir = dir.path().join("data");
    let missing = defragment(&data_dir, SHORT).expect_err("there is nothing").to_string();
    let expected = format!(
        "Failed to defragment etcd data[{0}] (stat {0}/member/snap/db.lmdb: no such file or directory)",
        data_dir.display()
    );
    assert_eq!(missing, expected);

    let path = dir.path().join("backup.db");
    let history: Vec<_> = (0..500_u32).map(|n| vec![(u8::from(9 < n), Some(2000))]).collect();
    let history = rows(&history);
    backup(&path, &history, None);
    restore(&restore_options(&path, &data_dir, "http://127.0.0.1:2380")).expect("whole");
    let backend_dir = data_dir.join("member").join("snap").join("db.lmdb");
    let options = BackendOptions::new(backend_dir.clone());
    let (backend, mut writer) = Backend::open(&options).expect("it is there");
    let mut transaction = writer.begin().expect("nobody else writes");
    for row in history.iter().take(400) {
        assert!(transaction.delete_row(row.revision).expect("LMDB takes it"), "it was there");
    }
    transaction.commit().expect("room");
    let before = backend.sizes();
    drop((backend, writer));
    let hash = hash_kv(&data_dir, 0, SHORT).expect("whole");

    defragment(&data_dir, SHORT).expect("room");
    let (backend, _writer) = Backend::open(&options).expect("it is there");
    let after = backend.sizes();
    assert!(after.total < before.total / 2, "{before:?} became {after:?}");
    drop((backend, _writer));
    assert_eq!(hash_kv(&data_dir, 0, SHORT).expect("whole"), hash);
    assert!(verify(&data_dir, None, SHORT).is_ok(), "{:?}", verify(&data_dir, None, SHORT));
    assert!(!backend_dir.with_extension("lmdb.defragmenting").exists(), "leftovers are removed");
}

#[test]
fn directory_in_use_is_left_alone_after_the_timeout() {
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("backup.db");
    backup(&path, &rows(&[vec![(1, Some(10))]]), None);
    let data_dir = dir.path().join("data");
    restore(&restore_options(&path, &data_dir, "http://127.0.0.1:2380")).expect("whole");
    let options = BackendOptions::new(data_dir.join("member").join("snap").join("db.lmdb"));
    let server = Backend::open(&options).expect("it is there");
    for error in [
        hash_kv(&data_dir, 0, SHORT).expect_err("in use"),
        verify(&data_dir, None, SHORT).expect_err("in use"),
    ] {
        assert_eq!(error.to_string(), "timeout");
    }
    assert!(matches!(defragment(&data_dir, SHORT), Err(OfflineError::Defragment { .. })));
    drop(server);
    assert!(hash_kv(&data_dir, 0, SHORT).is_ok(), "nobody has it any more");
}

#[test]
fn directory_that_the_official_tool_restored_becomes_ours() {
    let Some(etcdutl) = official("etcdutl") else { return };
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("backup.db");
    backup(&path, &rows(&[vec![(1, Some(10))], vec![(2, Some(2000))], vec![(1, None)]]), None);
    let data_dir = dir.path().join("data");
    let cluster = "default=http://127.0.0.1:1,b=http://127.0.0.1:2,c=http://127.0.0.1:3";
    let mut arguments = vec!["snapshot", "restore", text(&path), "--data-dir", text(&data_dir)];
    arguments.extend(["--initial-cluster", cluster]);
    arguments.extend(["--initial-advertise-peer-urls", "http://127.0.0.1:1"]);
    arguments.extend(["--bump-revision", "100", "--mark-compacted"]);
    stdout(&etcdutl, &arguments);
    let database = data_dir.join("member").join("snap").join("db");
    let theirs = hash_kv(&database, 0, SHORT).expect("a database");

    let wal_dir = data_dir.join("member").join("wal");
    let newest = Wal::snapshots(&wal_dir).expect("a log").pop().expect("one was written");
    let snap_dir = data_dir.join("member").join("snap");
    assert_eq!(adopt(&snap_dir, newest.index).expect("whole"), Adopted::Database);
    assert_eq!(newest.index, LogIndex(3), "one entry for each member");
    assert_eq!(hash_kv(&data_dir, 0, SHORT).expect("ours"), theirs);
    assert_eq!(theirs.compact_revision, theirs.hash_revision, "everything counts as compacted");
    assert!(verify(&data_dir, None, SHORT).is_ok(), "{:?}", verify(&data_dir, None, SHORT));

    // Raft's membership is that of the new cluster: the one in the log.
    let exported = dir.path().join("exported");
    export_database(&data_dir, &exported, Ending::Plain, SHORT).expect("room");
    let voters = newest.conf_state.expect("a membership").voters;
    let meta = bucket(&exported, "meta");
    let stored = &meta.iter().find(|(key, _)| key == "confState").expect("stored").1;
    let stored: serde_json::Value = serde_json::from_str(stored).expect("JSON");
    assert_eq!(stored["voters"], serde_json::json!(voters));
}

#[test]
fn verify_survives_any_flipped_bit_of_the_backend() {
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("backup.db");
    // Enough for branches and for values in pages of their own.
    let history: Vec<_> = (0..600_usize)
        .map(|n| {
            vec![(u8::try_from(n % 12).expect("small"), Some(if n % 50 == 0 { 9000 } else { 10 }))]
        })
        .collect();
    backup(&path, &rows(&history), None);
    let data_dir = dir.path().join("data");
    restore(&restore_options(&path, &data_dir, "http://127.0.0.1:2380")).expect("whole");
    let data = data_dir.join("member").join("snap").join("db.lmdb").join("data.mdb");
    let whole = fs::read(&data).expect("it is there");
    let check = || {
        let (mut found, mut damage) = (Verified::default(), Vec::new());
        let checked = verify_backend(&data_dir, SHORT, &mut found, &mut damage);
        checked.expect("damage is no error here");
        (found, damage)
    };
    let (sound, damage) = check();
    assert_eq!((sound.rows, damage), (600, Vec::new()));
    let mut random = Random::from_seed(7);
    for _ in 0..300 {
        let mut bytes = whole.clone();
        // Headers and places of nodes are where a wrong bit leads astray.
        let page = usize::try_from(random.below((bytes.len() / 4096) as u64)).expect("small");
        let at = page * 4096 + usize::try_from(random.below(64)).expect("small");
        let bit = random.below(8);
        bytes[at] ^= 1 << bit;
        fs::write(&data, &bytes).expect("room");
        let (found, damage) = check();
        if damage.is_empty() {
            // What was hit is not in use, or says nothing about the content.
            assert_eq!(found, sound, "byte {at}, bit {bit}");
        } else {
            assert!(damage[0].contains("data.mdb"), "byte {at}, bit {bit}: {damage:?}");
        }
    }
}
