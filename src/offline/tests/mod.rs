//! Files of official etcd through our tools, and ours through the official tools.
//!
//! The official binaries are looked for in the directory that `OXETCD_OFFICIAL_BIN` names; without
//! it these tests say so and pass.

mod restoring;
mod upkeep;

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use bytes::Bytes;
use proptest::prelude::{Strategy, any, prop, prop_assert_eq, proptest};
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
    base::{cases::cases, random::Random},
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
    #![proptest_config(cases(16))]

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
