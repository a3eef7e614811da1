//! The store against answers of official etcd, recorded in `goldens/official.txt`.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use proto::{etcdserverpb::RangeRequest, mvccpb::KeyValue};

use super::{
    compact::CompactionStep, model_tests::MemorySource, range::RangeOptions, rows::RowSource,
    store::Store,
};
use crate::model::{KeyRange, LeaseId, Revision};

const OFFICIAL: &str = include_str!("goldens/official.txt");

struct Player {
    source: Arc<MemorySource>,
    store: Store,
}

impl Player {
    fn new() -> Self {
        let source = Arc::new(MemorySource::default());
        let store = recover(&source);
        Self { source, store }
    }

    fn play(&mut self, line: &str) {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        match command {
            "txn" => self.txn(rest),
            "compact" => self.compact(revision(rest)),
            "restart" => {
                self.flush();
                self.store = recover(&self.source);
            }
            "hash" => {
                let (asked, expected) = rest.split_once(" = ").expect("an answer");
                let hash = self.store.view().hash_kv(revision(asked)).expect("readable");
                let told = format!(
                    "{} compact={} at={}",
                    hash.hash, hash.compact_revision, hash.hash_revision
                );
                assert_eq!(told, expected, "{line}");
            }
            "range" => {
                let (asked, expected) = rest.split_once(" = ").expect("an answer");
                assert_eq!(self.range(asked), expected, "{line}");
            }
            other => panic!("unknown line {other}"),
        }
    }

    fn txn(&mut self, line: &str) {
        let (expected, operations) = line.split_once(' ').expect("operations");
        let mut txn = self.store.write();
        for operation in operations.split(" ; ") {
            let words: Vec<&str> = operation.split(' ').collect();
            match words[..] {
                ["put", key, value, lease] => {
                    let lease = LeaseId(lease.parse().expect("a number"));
                    txn.put(&text(key), text(value), lease);
                }
                ["delete", key] => {
                    txn.delete_range(&KeyRange::Single(text(key)));
                }
                ["delete", key, end] => {
                    txn.delete_range(&KeyRange::from_wire(text(key), text(end)));
                }
                _ => panic!("unknown operation {operation}"),
            }
        }
        assert_eq!(txn.commit().revision, revision(expected), "{line}");
    }

    fn compact(&mut self, at: Revision) {
        self.store.compact(at).expect("a later revision");
        self.flush();
        self.source.schedule(at);
        loop {
            match self.store.compaction_step() {
                CompactionStep::Idle => break,
                CompactionStep::Working => {}
                CompactionStep::Hash(job) => {
                    job.run().expect("readable");
                }
                CompactionStep::Delete { revision, dead, last } => {
                    self.source.delete(revision, &dead, last);
                }
            }
        }
    }

    fn flush(&mut self) {
        self.source.store(self.store.take_rows());
        self.store.rows_flushed(self.store.revision());
    }

    fn range(&self, asked: &str) -> String {
        let options = RangeOptions::from_wire(&request(asked));
        let answer = self.store.view().range(&options).expect("readable");
        let rows = answer.rows.iter().map(|row| {
            let row = KeyValue::decode(row.clone()).expect("a row");
            format!(
                " {}:{}:{}:{}:{}:{}",
                row.key.escape_ascii(),
                row.create_revision,
                row.mod_revision,
                row.version,
                row.lease,
                row.value.escape_ascii()
            )
        });
        let (count, more) = (answer.count, u8::from(answer.more));
        let head = format!("rev:{} count:{count} more:{more}", answer.revision);
        std::iter::once(head).chain(rows).collect()
    }
}

fn recover(source: &Arc<MemorySource>) -> Store {
    let (mut store, _) =
        Store::recover_from(Arc::clone(source) as Arc<dyn RowSource>).expect("rows are whole");
    store.set_cache_bytes_max(0);
    store
}

fn request(asked: &str) -> RangeRequest {
    let mut words = asked.split(' ');
    let mut next = || words.next().expect("a key and an end");
    let (key, range_end) = (text(next()), text(next()));
    let mut request = RangeRequest { key, range_end, ..RangeRequest::default() };
    for word in words {
        let (name, value) = word.split_once('=').expect("name=value");
        let number = || value.parse::<i64>().expect("a number");
        let position = |names: &[&str]| {
            let at = names.iter().position(|name| *name == value).expect("a known name");
            i32::try_from(at).expect("few names")
        };
        match name {
            "rev" => request.revision = number(),
            "limit" => request.limit = number(),
            "order" => request.sort_order = position(&["NONE", "ASCEND", "DESCEND"]),
            "by" => {
                request.sort_target = position(&["KEY", "VERSION", "CREATE", "MOD", "VALUE"]);
            }
            "keys_only" => request.keys_only = value == "1",
            "count_only" => request.count_only = value == "1",
            "min_mod_revision" => request.min_mod_revision = number(),
            "max_mod_revision" => request.max_mod_revision = number(),
            "min_create_revision" => request.min_create_revision = number(),
            "max_create_revision" => request.max_create_revision = number(),
            other => panic!("unknown option {other}"),
        }
    }
    request
}

fn revision(word: &str) -> Revision {
    Revision(word.parse().expect("a revision"))
}

fn text(word: &str) -> Bytes {
    match word {
        "-" => Bytes::new(),
        "0" => Bytes::from_static(b"\0"),
        other => Bytes::copy_from_slice(other.as_bytes()),
    }
}

#[test]
fn answers_and_hashes_equal_those_of_official_etcd() {
    let mut player = Player::new();
    let lines = OFFICIAL.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.for_each(|line| player.play(line));
}
