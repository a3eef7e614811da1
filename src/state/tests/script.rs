//! Golden scripts: what goes in, what comes out.
//!
//! A file under `scripts/` is a sequence of blocks: command lines, `---`, the expected lines, an
//! empty line. Lines that start with `#` are comments. With `UPDATE_SCRIPTS` set, the expected lines
//! are written instead of compared.
//!
//! ```text
//! put k=v [lease=7] [prev] [ignore_value] [ignore_lease]
//! get k | k..m | k.. [rev=3] [limit=2] [count] [keys] [desc] [sort=value|mod|..]
//! delete k | k..m | k.. [prev]
//! txn [value(k)=v & mod(k..m)>3] { op; op } { op }      op: any of these
//! read <txn>                                  the same, answered from a view
//! compact 5 | finish
//! grant 7 ttl=60 | revoke 7 | checkpoint 7=30 | ttl 7 | renew 7 | promote | demote | tick 5
//! alarm get|on|off|<number> none|nospace|corrupt [member=1]
//! version 3.7.0 | attributes 1 name url | downgrade on 3.6.0 | downgrade off
//! member add|learner|update 1 url | member promote|remove 1
//! flush | restart | keys | hash | leases | members | events | table meta
//! ```

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::{self as pb, compare, request_op},
    membershippb, mvccpb,
    raftpb::{ConfChange, ConfChangeType},
};

use super::member::Member;
use crate::{
    cluster::{Member as ClusterMember, MemberContext},
    lease::{LeaseKeys, Renewal, TimeToLive},
    model::{Answer, LeaseId, MemberId, Outcome, RangeAnswer, Request},
    mvcc::{Event, EventKind, RangeOptions, ReadError},
    state::read_only_txn,
    storage::Table,
};

#[test]
fn scripts_hold() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/state/scripts");
    let update = std::env::var_os("UPDATE_SCRIPTS").is_some();
    let mut count = 0;
    for file in fs::read_dir(dir).expect("the folder of scripts") {
        let path = file.expect("a file").path();
        let script = fs::read_to_string(&path).expect("text");
        let actual = run(&script);
        if update {
            fs::write(&path, &actual).expect("written");
        } else {
            assert!(script == actual, "{}: this is what happens:\n{actual}", path.display());
        }
        count += 1;
    }
    assert!(5 < count, "only {count} scripts were found");
}

/// The script with the lines that its commands really give.
fn run(script: &str) -> String {
    let mut runner = Runner { member: Some(Member::new()) };
    let mut out = String::new();
    let mut results = String::new();
    let mut expected = false;
    for line in script.lines() {
        if line == "---" {
            expected = true;
            writeln!(out, "---\n{}", results.trim_end()).expect("memory");
            results.clear();
        } else if line.is_empty() {
            expected = false;
            out.push('\n');
        } else if !expected {
            writeln!(out, "{line}").expect("memory");
            if !line.starts_with('#') {
                writeln!(results, "{}", runner.line(line)).expect("memory");
            }
        }
    }
    out
}

struct Runner {
    member: Option<Member>,
}

impl Runner {
    fn member(&mut self) -> &mut Member {
        self.member.as_mut().expect("the member runs")
    }

    fn line(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "flush" => {
                self.member().flush();
                "flushed".to_owned()
            }
            "finish" => {
                self.member().finish_compactions();
                "finished".to_owned()
            }
            "restart" => self.restart(),
            "get" => self.get(line),
            "read" => self.read(&line["read ".len()..]),
            "promote" | "demote" | "tick" | "ttl" | "renew" => self.lessor(&words),
            "keys" => self.get("get \0.."),
            "hash" => format!("hash={:08x}", self.member().hash()),
            "leases" => self.leases(),
            "events" => self.events(),
            "members" => format!("{:?}", self.member().machine.publish().membership),
            "table" => self.table(words[1]),
            "member" => {
                let change = conf_change(&words[1..]);
                outcome(&self.member().change_members(&change))
            }
            _ => {
                let request = request(line);
                outcome(&self.member().apply(request))
            }
        }
    }

    fn restart(&mut self) -> String {
        let member = self.member.take().expect("the member runs").restart();
        let position = format!("applied={}", member.machine.applied());
        self.member = Some(member);
        position
    }

    fn get(&mut self, line: &str) -> String {
        let options = RangeOptions::from_wire(&range(line));
        read(self.member().machine.publish().kv.range(&options).map(Answer::Range))
    }

    fn read(&mut self, line: &str) -> String {
        let Request::Txn(txn) = request(line) else { panic!("only transactions are read") };
        read(read_only_txn(&self.member().machine.publish().kv, &txn).map(Answer::Txn))
    }

    fn lessor(&mut self, words: &[&str]) -> String {
        let number = words.get(1).and_then(|word| word.parse::<i64>().ok()).unwrap_or(0);
        let now = self.member().now;
        let lessor = self.member().machine.lessor().clone();
        match words[0] {
            "promote" => lessor.promote(now, Duration::from_secs(1)),
            "demote" => lessor.demote(),
            "tick" => {
                let by = Duration::from_secs(u64::try_from(number).expect("time goes on"));
                self.member().now += by;
                return format!("expired={:?}", lessor.expired(now + by, 10));
            }
            "ttl" => {
                return match lessor.time_to_live(LeaseId(number), LeaseKeys::Listed, now) {
                    TimeToLive::Live { remaining_seconds, granted_seconds, keys } => {
                        let keys: Vec<_> = keys.iter().map(|key| text(key)).collect();
                        format!("left={remaining_seconds} of={granted_seconds} keys={keys:?}")
                    }
                    other @ (TimeToLive::NotFound | TimeToLive::NotPrimary) => format!("{other:?}"),
                };
            }
            _ => {
                return match lessor.renew(LeaseId(number), now) {
                    Renewal::Expired(_) => "expired".to_owned(),
                    other @ (Renewal::Renewed { .. }
                    | Renewal::NotFound
                    | Renewal::NotPrimary
                    | Renewal::CheckpointFirst) => format!("{other:?}"),
                };
            }
        }
        words[0].to_owned()
    }

    fn leases(&mut self) -> String {
        let lessor = self.member().machine.lessor().clone();
        let mut leases = lessor.leases();
        leases.sort_unstable();
        let describe = |lease: LeaseId| {
            let keys: Vec<_> = lessor.keys(lease).iter().map(|key| text(key)).collect();
            format!("{}:{keys:?}", lease.0)
        };
        format!("leases {}", leases.into_iter().map(describe).collect::<Vec<_>>().join(" "))
    }

    fn events(&mut self) -> String {
        let batches = std::mem::take(&mut self.member().events);
        let describe = |event: &Event| {
            let kind = if event.kind == EventKind::Put { "put" } else { "delete" };
            let created = if event.created { "+" } else { "" };
            format!("{kind}{created} {}", row(&event.row))
        };
        let lines: Vec<String> = batches
            .iter()
            .map(|batch| {
                let events: Vec<_> = batch.events.iter().map(describe).collect();
                format!("events {}: {}", batch.revision, events.join(", "))
            })
            .collect();
        if lines.is_empty() { "no events".to_owned() } else { lines.join("\n") }
    }

    fn table(&mut self, name: &str) -> String {
        let tables = self.member().tables();
        let wanted = tables.iter().filter(|((table, _), _)| table.name() == name);
        let lines: Vec<String> = wanted
            .map(|((table, key), value)| {
                let key = if matches!(table, Table::Lease | Table::Alarm) {
                    format!("{key:02x?}")
                } else {
                    text(key)
                };
                format!("{key} -> {value:?}")
            })
            .collect();
        if lines.is_empty() { "empty".to_owned() } else { lines.join("\n") }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn row(bytes: &Bytes) -> String {
    let row = mvccpb::KeyValue::decode(bytes.clone()).expect("a row");
    let lease = if row.lease == 0 { String::new() } else { format!(" lease={}", row.lease) };
    let (key, value) = (text(&row.key), text(&row.value));
    format!("{key}={value}@{}/{}#{}{lease}", row.create_revision, row.mod_revision, row.version)
}

fn rows(rows: &[Bytes]) -> String {
    rows.iter().map(row).collect::<Vec<_>>().join(", ")
}

fn read(answer: Result<Answer, ReadError>) -> String {
    match answer {
        Ok(answer) => outcome(&Ok(answer)),
        Err(ReadError::Rejected(rejection)) => outcome(&Err(rejection)),
        Err(error) => panic!("a sound backend gave {error}"),
    }
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Err(rejection) => format!("refused {rejection:?}"),
        Ok(Answer::Range(RangeAnswer { revision, rows: found, more, count })) => {
            let more = if *more { " more" } else { "" };
            format!("rev={revision} count={count}{more} [{}]", rows(found))
        }
        Ok(Answer::Put(put)) => {
            let previous = put.previous.as_ref();
            let previous = previous.map_or_else(String::new, |prev| format!(" was {}", row(prev)));
            format!("rev={}{previous}", put.revision)
        }
        Ok(Answer::DeleteRange(delete)) => {
            let previous = if delete.previous.is_empty() {
                String::new()
            } else {
                format!(" were [{}]", rows(&delete.previous))
            };
            format!("rev={} deleted={}{previous}", delete.revision, delete.deleted)
        }
        Ok(Answer::Txn(txn)) => {
            let branch = if txn.succeeded { "then" } else { "else" };
            let answers: Vec<_> =
                txn.answers.iter().map(|answer| self::outcome(&Ok(answer.clone()))).collect();
            format!("rev={} {branch} {{ {} }}", txn.revision, answers.join("; "))
        }
        Ok(other) => format!("{other:?}"),
    }
}

/// Everything after `name` in one of `words`, as `lease=7`.
fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn number(words: &[&str], name: &str) -> i64 {
    option(words, name).map_or(0, |word| word.parse().expect("a number"))
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// `k`, `k..m`, or `k..` for everything from k on.
fn key_and_end(word: &str) -> (Bytes, Bytes) {
    match word.split_once("..") {
        None => (bytes(word), Bytes::new()),
        Some((key, "")) => (bytes(key), bytes("\0")),
        Some((key, end)) => (bytes(key), bytes(end)),
    }
}

fn range(line: &str) -> pb::RangeRequest {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (key, range_end) = key_and_end(words.get(1).copied().unwrap_or(""));
    let sort_target = match option(&words, "sort") {
        Some("version") => 1,
        Some("create") => 2,
        Some("mod") => 3,
        Some("value") => 4,
        _ => 0,
    };
    pb::RangeRequest {
        key,
        range_end,
        revision: number(&words, "rev"),
        limit: number(&words, "limit"),
        count_only: words.contains(&"count"),
        keys_only: words.contains(&"keys"),
        sort_order: if words.contains(&"desc") { 2 } else { 0 },
        sort_target,
        ..Default::default()
    }
}

fn put(line: &str) -> pb::PutRequest {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (key, value) = words[1].split_once('=').unwrap_or((words[1], ""));
    pb::PutRequest {
        key: bytes(key),
        value: bytes(value),
        lease: number(&words[2..], "lease"),
        prev_kv: words.contains(&"prev"),
        ignore_value: words.contains(&"ignore_value"),
        ignore_lease: words.contains(&"ignore_lease"),
    }
}

fn delete(line: &str) -> pb::DeleteRangeRequest {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (key, range_end) = key_and_end(words[1]);
    pb::DeleteRangeRequest { key, range_end, prev_kv: words.contains(&"prev") }
}

fn request(line: &str) -> Request {
    let words: Vec<&str> = line.split_whitespace().collect();
    let id = |place: usize| words[place].parse::<i64>().expect("an id");
    match words[0] {
        "range" => Request::Range(range(line)),
        "put" => Request::Put(put(line)),
        "delete" => Request::DeleteRange(delete(line)),
        "txn" => Request::Txn(txn(&mut Text(line))),
        "compact" => {
            Request::Compaction(pb::CompactionRequest { revision: id(1), physical: false })
        }
        "grant" => {
            Request::LeaseGrant(pb::LeaseGrantRequest { id: id(1), ttl: number(&words, "ttl") })
        }
        "revoke" => Request::LeaseRevoke(pb::LeaseRevokeRequest { id: id(1) }),
        "checkpoint" => {
            let (lease, left) = words[1].split_once('=').expect("lease=seconds");
            let (id, remaining_ttl) = (lease.parse().expect("an id"), left.parse().expect("time"));
            let checkpoints = vec![pb::LeaseCheckpoint { id, remaining_ttl }];
            Request::LeaseCheckpoint(pb::LeaseCheckpointRequest { checkpoints })
        }
        "alarm" => alarm(&words),
        "version" => {
            let ver = words[1].to_owned();
            Request::ClusterVersionSet(membershippb::ClusterVersionSetRequest { ver })
        }
        "attributes" => {
            let attributes = membershippb::Attributes {
                name: words[2].to_owned(),
                client_urls: vec![words[3].to_owned()],
            };
            Request::ClusterMemberAttrSet(membershippb::ClusterMemberAttrSetRequest {
                member_id: words[1].parse().expect("an id"),
                member_attributes: Some(attributes),
            })
        }
        "downgrade" => {
            let ver = words.get(2).copied().unwrap_or_default().to_owned();
            let enabled = words[1] == "on";
            Request::DowngradeInfoSet(membershippb::DowngradeInfoSetRequest { enabled, ver })
        }
        unknown => panic!("no such command: {unknown}"),
    }
}

fn alarm(words: &[&str]) -> Request {
    let named = |word: &str, names: &[&str]| {
        let place = names.iter().position(|name| *name == word);
        place.map_or_else(|| word.parse().expect("a number"), |at| i32::try_from(at).expect("few"))
    };
    Request::Alarm(pb::AlarmRequest {
        action: named(words[1], &["get", "on", "off"]),
        alarm: named(words[2], &["none", "nospace", "corrupt"]),
        member_id: u64::try_from(number(words, "member")).expect("an id"),
    })
}

fn conf_change(words: &[&str]) -> ConfChange {
    let id = words[1].parse().expect("an id");
    let peer_urls = words.get(2).map(|url| (*url).to_owned()).into_iter().collect();
    let is_learner = words[0] == "learner";
    let member =
        ClusterMember { id: MemberId(id), peer_urls, is_learner, ..ClusterMember::default() };
    let add = |is_promote| MemberContext { member: member.clone(), is_promote }.to_json();
    let (kind, context) = match words[0] {
        "add" => (ConfChangeType::ConfChangeAddNode, add(false)),
        "learner" => (ConfChangeType::ConfChangeAddLearnerNode, add(false)),
        "promote" => (ConfChangeType::ConfChangeAddNode, add(true)),
        "update" => (ConfChangeType::ConfChangeUpdateNode, member.to_json()),
        _ => (ConfChangeType::ConfChangeRemoveNode, Bytes::new()),
    };
    let mut change = ConfChange { node_id: Some(id), ..Default::default() };
    change.r#type = Some(kind.into());
    change.context = Some(context);
    change
}

/// The rest of a line.
struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    fn eat(&mut self, token: &str) -> bool {
        self.0 = self.0.trim_start();
        let rest = self.0.strip_prefix(token);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn until(&mut self, ends: &[char]) -> &'a str {
        let end = self.0.find(ends).unwrap_or(self.0.len());
        let (before, rest) = self.0.split_at(end);
        self.0 = rest;
        before.trim()
    }
}

fn txn(text: &mut Text<'_>) -> pb::TxnRequest {
    assert!(text.eat("txn") && text.eat("["), "txn [conditions] {{ then }} {{ else }}: {}", text.0);
    let conditions = text.until(&[']']);
    text.eat("]");
    let compare = conditions.split('&').map(str::trim).filter(|word| !word.is_empty());
    pb::TxnRequest {
        compare: compare.map(condition).collect(),
        success: operations(text),
        failure: operations(text),
    }
}

fn operations(text: &mut Text<'_>) -> Vec<pb::RequestOp> {
    let mut operations = Vec::new();
    assert!(text.eat("{"), "a branch is in braces: {}", text.0);
    while !text.eat("}") {
        text.0 = text.0.trim_start();
        let request = if text.0.starts_with("txn") {
            Some(request_op::Request::RequestTxn(txn(text)))
        } else {
            operation(text.until(&[';', '}']))
        };
        operations.push(pb::RequestOp { request });
        text.eat(";");
    }
    operations
}

fn operation(line: &str) -> Option<request_op::Request> {
    match line.split_whitespace().next().expect("an operation") {
        "get" => Some(request_op::Request::RequestRange(range(line))),
        "put" => Some(request_op::Request::RequestPut(put(line))),
        "delete" => Some(request_op::Request::RequestDeleteRange(delete(line))),
        "nothing" => None,
        unknown => panic!("no such operation: {unknown}"),
    }
}

fn condition(word: &str) -> pb::Compare {
    let (target, rest) = word.split_once('(').expect("target(key)");
    let (key, rest) = rest.split_once(')').expect("target(key)");
    let (result, given) = match rest.split_at(1) {
        ("=", given) => (0, given),
        (">", given) => (1, given),
        ("<", given) => (2, given),
        ("!", given) => (3, given),
        _ => (99, ""),
    };
    let number = || given.parse().unwrap_or(0);
    let (target, union) = match target {
        "version" => (0, compare::TargetUnion::Version(number())),
        "create" => (1, compare::TargetUnion::CreateRevision(number())),
        "mod" => (2, compare::TargetUnion::ModRevision(number())),
        "value" => (3, compare::TargetUnion::Value(bytes(given))),
        "lease" => (4, compare::TargetUnion::Lease(number())),
        _ => (99, compare::TargetUnion::Version(number())),
    };
    let (key, range_end) = key_and_end(key);
    pb::Compare { result, target, key, range_end, target_union: Some(union) }
}
