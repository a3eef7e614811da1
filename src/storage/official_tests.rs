//! Files of official etcd through our readers, and our log through the official one.
//!
//! The official binaries are looked for in the directory that `OXETCD_OFFICIAL_BIN` names; without
//! it these tests say so and pass.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::InternalRaftRequest,
    raftpb::{Entry, EntryType, SnapshotMetadata},
};
use tempfile::TempDir;

use super::{
    snap,
    wal::{Wal, WalOptions, WalSnapshot},
};
use crate::{
    base::{
        file::Disk,
        thread::{Priority, spawn},
    },
    model::{LogIndex, Term, entry_data, entry_index, entry_kind, entry_term, new_entry},
};

/// The official binary `name`, or `None` with a word about it.
fn official(name: &str) -> Option<PathBuf> {
    let path = env::var_os("OXETCD_OFFICIAL_BIN").map(|dir| PathBuf::from(dir).join(name));
    let found = path.filter(|path| path.exists());
    if found.is_none() {
        eprintln!("skipped: OXETCD_OFFICIAL_BIN names no directory with {name}");
    }
    found
}

struct Member {
    process: Child,
    endpoint: String,
}

impl Member {
    /// Starts official etcd on `dir` and waits until it serves.
    fn start(program: &Path, dir: &Path, flags: &[&str]) -> Self {
        let ports = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [client, peer] = ports.map(|port| format!("http://{}", port.local_addr().unwrap()));
        let mut process = Command::new(program)
            .args(["--name", "m", "--data-dir"])
            .arg(dir)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("m={peer}")])
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let ready = log.by_ref().map(Result::unwrap).find(|line| {
            line.contains("ready to serve client requests") || line.contains("\"fatal\"")
        });
        assert!(ready.as_ref().is_some_and(|line| !line.contains("\"fatal\"")), "{ready:?}");
        // Its log must go somewhere for as long as it runs.
        spawn("log", Priority::Normal, move || {
            log.map(Result::unwrap).for_each(drop);
        })
        .unwrap();
        Self { process, endpoint: client }
    }

    fn ctl(&self, ctl: &Path, arguments: &[&str]) -> String {
        let output =
            Command::new(ctl).args(["--endpoints", &self.endpoint]).args(arguments).output();
        let output = output.unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// The entry that puts `key`, as official etcd made it.
fn put_of<'e>(entries: &'e [Entry], key: &str) -> &'e Entry {
    let puts = |entry: &&Entry| {
        entry_kind(entry) == Some(EntryType::EntryNormal)
            && InternalRaftRequest::decode(entry_data(entry))
                .is_ok_and(|request| request.put.is_some_and(|put| put.key == key.as_bytes()))
    };
    entries.iter().find(puts).expect("the put is in the log")
}

#[test]
fn official_etcd_serves_from_a_log_that_we_wrote() {
    let (Some(etcd), Some(ctl)) = (official("etcd"), official("etcdctl")) else { return };
    let dir = TempDir::new().unwrap();
    let member = Member::start(&etcd, dir.path(), &[]);
    for key in ["a", "b"] {
        member.ctl(&ctl, &["put", key, "theirs"]);
    }
    member.kill();

    // Small segments: the rest of the log crosses several files of ours.
    let options =
        WalOptions { segment_bytes: 4000, ..WalOptions::new(dir.path().join("member/wal")) };
    let (mut wal, recovered) = Wal::open(&options, &WalSnapshot::default()).unwrap();
    let last = recovered.entries.last().expect("a member that served has entries");
    let (mut index, term) = (entry_index(last), entry_term(last));
    let put = InternalRaftRequest::decode(entry_data(put_of(&recovered.entries, "a"))).unwrap();
    let mut state = recovered.hard_state;
    for number in 0..100 {
        index = index.next();
        let mut request = put.clone();
        if let Some(put) = &mut request.put {
            put.key = Bytes::from(format!("key{number:03}"));
            put.value = Bytes::from("ours".repeat(number % 40));
        }
        let data = Bytes::from(request.encode_to_vec());
        // A later entry with the same index is the one that counts.
        let draft = new_entry(EntryType::EntryNormal, term, index, Bytes::from_static(b"\x01"));
        let entry = new_entry(EntryType::EntryNormal, term, index, data);
        state.commit = Some(index.0);
        wal.append(Some(&state), &[draft, entry], true).unwrap();
    }
    drop(wal);
    let names = Disk::system().list(&options.dir).unwrap();
    let files = names.iter().filter(|name| name.ends_with(".wal")).count();
    assert!(4 < files, "only {files} segments");

    let member = Member::start(&etcd, dir.path(), &[]);
    let count = member.ctl(&ctl, &["get", "key", "--prefix", "--count-only", "--write-out=fields"]);
    assert!(count.contains("\"Count\" : 100"), "{count}");
    assert_eq!(member.ctl(&ctl, &["get", "key003", "--print-value-only"]).trim(), "oursoursours");
    member.ctl(&ctl, &["put", "c", "theirs again"]);
    member.kill();

    let recovered = Wal::read(&options.dir, &WalSnapshot::default()).unwrap();
    put_of(&recovered.entries, "c");
    put_of(&recovered.entries, "key099");
}

#[test]
fn snapshot_files_of_official_etcd_read_and_write_back_bit_for_bit() {
    let (Some(etcd), Some(ctl)) = (official("etcd"), official("etcdctl")) else { return };
    let dir = TempDir::new().unwrap();
    let member = Member::start(&etcd, dir.path(), &["--snapshot-count", "5"]);
    for number in 0..20 {
        member.ctl(&ctl, &["put", &format!("key{number}"), "value"]);
    }
    member.kill();
    // It writes the file first, then the record in its log; it may have ended between the two.
    let snapshots = Wal::snapshots(&dir.path().join("member/wal")).unwrap();
    let known = |metadata: &SnapshotMetadata| {
        let index = metadata.index.map(LogIndex);
        snapshots.iter().find(|known| Some(known.index) == index)
    };
    let snap_dir = dir.path().join("member/snap");
    let newest = snap::load(&Disk::system(), &snap_dir, |metadata| known(metadata).is_some());
    let newest = newest.unwrap().expect("there is one");
    let metadata = newest.metadata.clone().expect("it says where it stands");
    let (term, index) = (metadata.term.unwrap(), metadata.index.unwrap());
    let path = snap_dir.join(format!("{term:016x}-{index:016x}.snap"));
    assert!(fs::read(path).unwrap() == snap::encode(&newest), "another encoding");

    // The log knows the same places, with the membership.
    let known = known(&metadata).expect("it was chosen by it");
    assert_eq!((known.term, &known.conf_state), (Term(term), &metadata.conf_state));
    let wanted = WalSnapshot { conf_state: None, ..known.clone() };
    let recovered = Wal::read(&dir.path().join("member/wal"), &wanted).unwrap();
    let first = recovered.entries.first().map(entry_index);
    assert!(first.is_none_or(|first| first == LogIndex(index + 1)), "{first:?}");
}
