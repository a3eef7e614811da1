//! The same log in an official member.
//!
//! A random log is written as a write-ahead log, an official member boots from it and replays it,
//! and both must hold the same history, leases and alarms. Runs where `OXETCD_OFFICIAL_BIN` names the
//! directory of the official binaries; `OXETCD_OFFICIAL_CASES` says how many logs (default 2).
//! Entries at which the official member would stop for good are left out.

#![expect(clippy::disallowed_methods, reason = "the official member runs on real time")]

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command as Process, Stdio},
    time::{Duration, Instant},
};

use proptest::{
    prelude::{ProptestConfig, Strategy, prop},
    test_runner::{TestCaseError, TestRunner},
};
use proto::{
    etcdserverpb::{self as pb, alarm_request::AlarmAction, request_op},
    raftpb::{EntryType, HardState},
};
use serde_json::Value;
use tempfile::TempDir;

use super::{member::Member, property::request};
use crate::{
    cluster::{BOOTSTRAP_TERM, Bootstrap},
    lease::{LeaseKeys, TimeToLive},
    model::{Command, LogIndex, Request, RequestId, Term, new_entry},
    storage::wal::{Wal, WalOptions},
};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn official_member_reaches_the_same_state_from_the_same_log() {
    let Some(binaries) = std::env::var_os("OXETCD_OFFICIAL_BIN").map(PathBuf::from) else { return };
    let cases = std::env::var("OXETCD_OFFICIAL_CASES").ok().and_then(|text| text.parse().ok());
    let config = ProptestConfig {
        cases: cases.unwrap_or(2),
        max_shrink_iters: 10,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let log = prop::collection::vec(request().prop_filter_map("stops etcd", bearable), 50..250);
    let checked = TestRunner::new(config).run(&log, |log| compare(&binaries, &log));
    checked.unwrap_or_else(|failure| panic!("{failure}"));
}

/// The request, unless an official member would stop at it or its outcome depends on time.
#[expect(clippy::wildcard_enum_match_arm, reason = "what is not named is fine")]
fn bearable(mut request: Request) -> Option<Request> {
    match &mut request {
        Request::LeaseGrant(grant) if grant.ttl < 1_000_000 => grant.ttl = 1_000_000,
        Request::LeaseCheckpoint(checkpoint) => {
            checkpoint.checkpoints.iter_mut().for_each(|each| each.remaining_ttl = 1_000_000);
        }
        Request::Txn(txn) => drop_empty_operations(txn),
        Request::Alarm(alarm) => {
            AlarmAction::try_from(alarm.action).ok()?;
        }
        // A lower version makes it search the log, where an unknown number makes it panic.
        Request::ClusterVersionSet(_)
        | Request::ClusterMemberAttrSet(_)
        | Request::DowngradeInfoSet(_)
        | Request::Range(_) => return None,
        _ => {}
    }
    Some(request)
}

fn drop_empty_operations(txn: &mut pb::TxnRequest) {
    for branch in [&mut txn.success, &mut txn.failure] {
        branch.retain(|operation| operation.request.is_some());
        for operation in branch {
            if let Some(request_op::Request::RequestTxn(nested)) = &mut operation.request {
                drop_empty_operations(nested);
            }
        }
    }
}

/// Ends every alarm that forbids writes, and writes: so that the newest revision is not a compacted
/// one, whose hash depends on when compactions ended.
fn ending() -> Vec<Request> {
    let mut requests = Vec::new();
    for alarm in 1..=2 {
        for member_id in 0..3 {
            let action = AlarmAction::Deactivate.into();
            requests.push(Request::Alarm(pb::AlarmRequest { action, member_id, alarm }));
        }
    }
    let put = pb::PutRequest { key: "end".into(), ..Default::default() };
    requests.push(Request::Put(put));
    requests
}

fn compare(binaries: &Path, log: &[Request]) -> Result<(), TestCaseError> {
    let mut ours = Member::new();
    let official = Official::new(binaries);
    let mut entries = official.bootstrap.entries();
    for entry in &entries {
        let data = entry.data.clone().expect("a change");
        let change = prost::Message::decode(data).expect("own bytes");
        drop(ours.change_members(&change));
    }
    for request in log.iter().chain(&ending()) {
        if would_stop_etcd(&mut ours, request) {
            continue;
        }
        let index = LogIndex(entries.len() as u64 + 1);
        let command = Command::new(RequestId(index.0), request.clone());
        entries.push(new_entry(EntryType::EntryNormal, Term(2), index, command.encode()));
    }
    ours.finish_compactions();
    let official = official.boot(&entries);
    let expected = facts(&ours);
    let started = Instant::now();
    loop {
        let found = official.facts();
        if found.as_ref() == Some(&expected) {
            return Ok(());
        }
        if PATIENCE < started.elapsed() {
            let found = found.unwrap_or_else(|| official.last_words());
            return Err(TestCaseError::fail(format!("ours:\n{expected}\ntheirs:\n{found}")));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Applies `request` unless it is one that we refuse where official members panic.
fn would_stop_etcd(ours: &mut Member, request: &Request) -> bool {
    use crate::model::Rejection::{KeyNotFound, UnknownCommand};
    let is_txn = matches!(request, Request::Txn(_));
    match ours.apply(request.clone()) {
        Err(UnknownCommand) => true,
        // Cannot be told from a harmless refusal here, and neither changes anything.
        Err(KeyNotFound) => is_txn,
        Ok(_) | Err(_) => false,
    }
}

/// History, leases with their keys, and alarms, as text.
fn facts(member: &Member) -> String {
    let published = member.machine.publish();
    let compacted = published.kv.compacted();
    let mut facts =
        format!("rev={} compacted={compacted} hash={}\n", published.revision(), member.hash());
    let lessor = member.machine.lessor();
    lessor.promote(Duration::ZERO, Duration::ZERO);
    let mut leases = lessor.leases();
    leases.sort_unstable();
    for lease in leases {
        let TimeToLive::Live { granted_seconds, keys, .. } =
            lessor.time_to_live(lease, LeaseKeys::Listed, Duration::ZERO)
        else {
            panic!("lease {lease} is listed and not live");
        };
        let keys: Vec<_> = keys.iter().map(|key| String::from_utf8_lossy(key)).collect();
        facts.push_str(&format!("lease {} ttl={granted_seconds} {keys:?}\n", lease.0));
    }
    for alarm in published.alarms.of(pb::AlarmType::None) {
        facts.push_str(&format!("alarm {} {}\n", alarm.member_id, alarm.alarm));
    }
    facts
}

struct Official {
    binaries: PathBuf,
    dir: TempDir,
    client: String,
    peer: String,
    bootstrap: Bootstrap,
    process: Option<Child>,
}

impl Official {
    fn new(binaries: &Path) -> Self {
        let [client, peer] = free_addresses();
        let urls = [("default".to_owned(), vec![peer.clone()])].into();
        Self {
            binaries: binaries.to_owned(),
            dir: TempDir::new().expect("a temporary directory"),
            client,
            peer,
            bootstrap: Bootstrap::new(&urls, "t").expect("one member"),
            process: None,
        }
    }

    fn boot(mut self, entries: &[proto::raftpb::Entry]) -> Self {
        let member = self.bootstrap.members[0].id;
        let wal = self.dir.path().join("member/wal");
        std::fs::create_dir_all(self.dir.path().join("member/snap")).expect("created");
        let options = WalOptions::new(wal);
        let mut wal = Wal::create(&options, member, self.bootstrap.cluster).expect("a log");
        assert!(BOOTSTRAP_TERM < Term(2), "the log goes on in a later term");
        let hard_state =
            HardState { term: Some(2), vote: Some(member.0), commit: Some(entries.len() as u64) };
        wal.append(Some(&hard_state), entries, true).expect("written");
        drop(wal);
        let process = Process::new(self.binaries.join("etcd"))
            .arg("--data-dir")
            .arg(self.dir.path())
            .args(["--listen-client-urls", &self.client, "--advertise-client-urls", &self.client])
            .args(["--listen-peer-urls", &self.peer, "--quota-backend-bytes=-1"])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(self.dir.path().join("log")).expect("created"))
            .spawn();
        self.process = Some(process.expect("official etcd starts"));
        self
    }

    /// Why it stopped: the first lines that are not of an ordinary level, and what follows.
    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let ordinary =
            |line: &&str| line.starts_with(r#"{"level":"info""#) || line.contains("warn");
        log.lines().skip_while(ordinary).take(30).collect::<Vec<_>>().join("\n")
    }

    fn ask(&self, arguments: &[&str]) -> Option<Value> {
        let output = Process::new(self.binaries.join("etcdctl"))
            .args(["--endpoints", &self.client, "-w", "json"])
            .args(arguments)
            .output()
            .expect("official etcdctl starts");
        serde_json::from_slice(&output.stdout).ok()
    }

    fn facts(&self) -> Option<String> {
        let answer = self.ask(&["endpoint", "hashkv"])?;
        let hashed = answer.get(0)?.get("HashKV")?;
        let revision = hashed.get("header")?.get("revision")?;
        let compacted = hashed.get("compact_revision")?;
        let hash = hashed.get("hash")?;
        let mut facts = format!("rev={revision} compacted={compacted} hash={hash}\n");
        let listed = self.ask(&["lease", "list"])?;
        let mut leases: Vec<i64> = list(&listed, "leases")
            .iter()
            .filter_map(|lease| lease.get("ID").or_else(|| lease.get("id"))?.as_i64())
            .collect();
        leases.sort_unstable();
        for lease in leases {
            let sign = if lease < 0 { "-" } else { "" };
            let hexadecimal = format!("{sign}{:x}", lease.unsigned_abs());
            let told = self.ask(&["lease", "timetolive", "--keys", "--", &hexadecimal])?;
            let granted = told.get("granted-ttl").or_else(|| told.get("grantedTTL"))?;
            let mut keys: Vec<String> =
                list(&told, "keys").iter().filter_map(|key| unbase64(key.as_str()?)).collect();
            keys.sort_unstable();
            facts.push_str(&format!("lease {lease} ttl={granted} {keys:?}\n"));
        }
        let listed = self.ask(&["alarm", "list"])?;
        let mut alarms: Vec<(i64, u64)> = list(&listed, "alarms")
            .iter()
            .map(|alarm| {
                let number = |name| alarm.get(name).and_then(Value::as_i64).unwrap_or(0);
                (number("alarm"), number("memberID").cast_unsigned())
            })
            .collect();
        alarms.sort_unstable();
        for (alarm, member) in alarms {
            facts.push_str(&format!("alarm {member} {alarm}\n"));
        }
        Some(facts)
    }
}

impl Drop for Official {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.kill());
            drop(process.wait());
        }
    }
}

fn list<'a>(answer: &'a Value, name: &str) -> &'a [Value] {
    answer.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Only letters are keys here, so only whole groups of one to three bytes occur.
fn unbase64(text: &str) -> Option<String> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    for group in text.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        let mut digits = 0;
        for letter in group.iter().filter(|letter| **letter != b'=') {
            let digit = ALPHABET.iter().position(|each| each == letter)?;
            bits = bits << 6 | u32::try_from(digit).ok()?;
            digits += 1;
        }
        bits <<= 6 * (4 - digits);
        bytes.extend_from_slice(&bits.to_be_bytes()[1..digits]);
    }
    String::from_utf8(bytes).ok()
}

fn free_addresses() -> [String; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|listener| format!("http://{}", listener.local_addr().expect("bound")))
}
