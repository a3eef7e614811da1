//! Whole files: written, read back, checked, damaged.
//!
//! One runner, [`file`], writes whatever a test describes.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::{Strategy, any, prop, prop_assert_eq, proptest};

use super::{BoltError, Database, PAGE_BYTES, Planner, Writer};
use crate::base::cases::cases;

type Buckets = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

/// Writes `buckets` in the two passes.
fn file(buckets: &Buckets) -> Bytes {
    let mut planner = Planner::new();
    for (name, entries) in buckets {
        planner.bucket(name).expect("names ascend");
        for (key, value) in entries {
            planner.entry(key, value.len()).expect("keys ascend");
        }
    }
    let plan = planner.finish().expect("the buckets fit");
    let bytes_total = plan.bytes_total();
    let mut writer = Writer::new(plan, Vec::new()).expect("memory takes everything");
    for (name, entries) in buckets {
        writer.bucket(name).expect("as planned");
        for (key, value) in entries {
            writer.entry(key, value).expect("as planned");
        }
    }
    let bytes = writer.finish().expect("as planned");
    assert_eq!(bytes.len() as u64, bytes_total, "the length is known before the first byte");
    Bytes::from(bytes)
}

fn read(bytes: &Bytes) -> Result<Buckets, BoltError> {
    let database = Database::new(bytes.clone())?;
    let mut buckets = Buckets::new();
    for bucket in database.buckets()? {
        let mut entries = BTreeMap::new();
        for entry in database.entries(&bucket) {
            let entry = entry?;
            entries.insert(entry.key.to_vec(), entry.value.to_vec());
        }
        buckets.insert(bucket.name.to_vec(), entries);
    }
    Ok(buckets)
}

fn check(buckets: &Buckets) {
    let bytes = file(buckets);
    assert_eq!(bytes.len() % PAGE_BYTES, 0, "a file is whole pages");
    let findings = Database::new(bytes.clone()).expect("a valid file").check();
    assert!(findings.is_empty(), "the check found {findings:?}");
    assert_eq!(read(&bytes).expect("a valid file"), *buckets);
}

/// A bucket of `count` keys with values of `value_bytes`.
fn many(count: u32, value_bytes: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
    (0..count).map(|key| (key.to_be_bytes().to_vec(), vec![7; value_bytes])).collect()
}

#[test]
fn file_without_buckets_is_valid() {
    check(&Buckets::new());
}

#[test]
fn buckets_of_every_size_come_back() {
    let buckets = [
        (b"a".to_vec(), BTreeMap::new()),
        (b"b".to_vec(), many(3, 10)),
        (b"c".to_vec(), many(100, 20)),
        // Three branch levels: about 80 leaves of one entry per level-one branch with long keys.
        (
            b"d".to_vec(),
            (0..3000_u32)
                .map(|n| {
                    let mut key = n.to_be_bytes().to_vec();
                    key.resize(400, b'k');
                    (key, vec![1; 3000])
                })
                .collect(),
        ),
        (b"e".to_vec(), many(3, 1_600_000)),
    ];
    check(&buckets.into_iter().collect());
}

#[test]
fn keys_longer_than_a_page_still_come_together_at_one_root() {
    let long = (0..40_u8).map(|n| (vec![n + 1; 32_768], vec![n])).collect();
    check(&[(b"long".to_vec(), long)].into_iter().collect());
}

#[test]
fn many_buckets_spill_over_the_root_leaf() {
    check(&(0..2000_u32).map(|n| (n.to_be_bytes().to_vec(), many(n % 7, 30))).collect());
}

#[test]
fn unordered_keys_are_refused() {
    let mut planner = Planner::new();
    planner.bucket(b"b").expect("the first");
    planner.entry(b"k", 1).expect("the first");
    assert!(matches!(planner.entry(b"k", 1), Err(BoltError::OutOfOrder)));
    assert!(matches!(planner.entry(b"", 1), Err(BoltError::Unfit { .. })));
    assert!(matches!(planner.bucket(b"a"), Err(BoltError::OutOfOrder)));
}

#[test]
fn second_pass_that_differs_is_an_error() {
    let plan = || {
        let mut planner = Planner::new();
        planner.bucket(b"b").expect("the first");
        for key in 0..200_u8 {
            planner.entry(&[key], 100).expect("keys ascend");
        }
        planner.finish().expect("fits")
    };
    let write = |skip: u8, value_bytes: usize| {
        let mut writer = Writer::new(plan(), Vec::new())?;
        writer.bucket(b"b")?;
        for key in (0..200_u8).filter(|key| *key != skip) {
            writer.entry(&[key], &vec![0; value_bytes])?;
        }
        writer.finish().map(drop)
    };
    assert!(write(255, 100).is_ok(), "the planned entries fit");
    assert!(matches!(write(3, 100), Err(BoltError::PlanBroken { .. })), "one is missing");
    assert!(matches!(write(255, 150), Err(BoltError::PlanBroken { .. })), "values grew");
}

#[test]
fn file_cut_short_is_refused() {
    let bytes = file(&[(b"a".to_vec(), many(1000, 50))].into_iter().collect());
    let cut = bytes.slice(..bytes.len() - PAGE_BYTES);
    assert!(matches!(Database::new(cut), Err(BoltError::Damaged { .. })));
    assert!(matches!(Database::new(Bytes::new()), Err(BoltError::NotADatabase)));
}

#[test]
fn second_meta_page_stands_in_for_the_first() {
    let buckets = [(b"a".to_vec(), many(1000, 50))].into_iter().collect();
    let mut bytes = file(&buckets).to_vec();
    bytes[16..80].fill(0);
    assert_eq!(read(&Bytes::from(bytes)).expect("page 1 is whole"), buckets);
}

/// Whether the official `etcdutl` finds the file sound and reads the same bytes from it. It is
/// looked for in the directory that `OXETCD_OFFICIAL_BIN` names; without it nothing is checked.
fn check_officially(buckets: &Buckets) {
    let path = std::env::var_os("OXETCD_OFFICIAL_BIN")
        .map(|dir| std::path::PathBuf::from(dir).join("etcdutl"))
        .filter(|path| path.exists());
    let Some(etcdutl) = path else {
        eprintln!("skipped: OXETCD_OFFICIAL_BIN names no directory with etcdutl");
        return;
    };
    // The official tool looks for a version in this one, and reads the keys of the other.
    let mut buckets = buckets.clone();
    buckets.entry(b"meta".to_vec()).or_default();
    buckets.remove(&b"key"[..]);
    let mut hash = 0;
    for (name, entries) in &buckets {
        hash = crc32c::crc32c_append(hash, name);
        for (key, value) in entries {
            hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, key), value);
        }
    }
    let path = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(path.path(), file(&buckets)).expect("room");
    let status = std::process::Command::new(etcdutl)
        .args(["snapshot", "status"])
        .arg(path.path())
        .output()
        .expect("the program starts");
    let text = String::from_utf8_lossy(&status.stdout);
    let error = String::from_utf8_lossy(&status.stderr);
    assert!(text.starts_with(&format!("{hash:x}, ")), "expected {hash:x}, got {text}{error}");
}

#[test]
fn official_check_passes_on_trees_of_every_shape() {
    let long_keys = |count: u32, key_bytes: usize, value_bytes: usize| {
        let entry = |n: u32| {
            let mut key = n.to_be_bytes().to_vec();
            key.resize(key_bytes, b'k');
            (key, vec![1; value_bytes])
        };
        (0..count).map(entry).collect::<BTreeMap<_, _>>()
    };
    let shapes = [
        Buckets::new(),
        Buckets::from([(b"empty".to_vec(), BTreeMap::new())]),
        // Four levels of branches.
        Buckets::from([(b"deep".to_vec(), long_keys(5000, 1000, 3000))]),
        Buckets::from([(b"wide".to_vec(), many(100_000, 8)), (b"x".to_vec(), many(2, 1))]),
        Buckets::from([(b"huge".to_vec(), many(5, 3_000_000)), (b"x".to_vec(), many(300, 5000))]),
        Buckets::from([(b"long".to_vec(), long_keys(50, 32_768, 0))]),
        (0..2000_u32).map(|n| (n.to_be_bytes().to_vec(), many(n % 7, 30))).collect(),
    ];
    for shape in shapes {
        check(&shape);
        check_officially(&shape);
    }
}

fn any_buckets() -> impl Strategy<Value = Buckets> {
    let value = prop::collection::vec(any::<u8>(), 0..300);
    let long = (0..20_000_usize, any::<u8>()).prop_map(|(bytes, byte)| vec![byte; bytes]);
    let value = proptest::prop_oneof![9 => value, 1 => long];
    let key = prop::collection::vec(any::<u8>(), 1..40);
    let entries = prop::collection::btree_map(key, value, 0..200);
    let name = prop::collection::vec(any::<u8>(), 1..12);
    prop::collection::btree_map(name, entries, 0..8)
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn whatever_is_written_is_read_back(buckets in any_buckets()) {
        check(&buckets);
    }

    #[test]
    fn official_check_passes_on_whatever_is_written(buckets in any_buckets()) {
        check_officially(&buckets);
    }

    #[test]
    fn damaged_file_is_an_error_or_the_truth_but_never_a_panic(
        buckets in any_buckets(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u32), 1..6),
    ) {
        let mut bytes = file(&buckets).to_vec();
        for (place, bit) in flips {
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
        }
        let bytes = Bytes::from(bytes);
        drop(read(&bytes));
        if let Ok(database) = Database::new(bytes) {
            drop(database.check());
        }
    }

    #[test]
    fn random_headers_never_make_the_reader_panic(
        buckets in any_buckets(),
        scribbles in prop::collection::vec((any::<prop::sample::Index>(), any::<[u8; 48]>()), 1..4),
    ) {
        let mut bytes = file(&buckets).to_vec();
        // Page headers and element tables are where numbers are believed.
        for (page, scribble) in scribbles {
            let at = (2 + page.index(bytes.len() / PAGE_BYTES - 2)) * PAGE_BYTES;
            bytes[at + 8..at + 56].copy_from_slice(&scribble);
        }
        let bytes = Bytes::from(bytes);
        drop(read(&bytes));
        let database = Database::new(bytes).expect("the meta pages are whole");
        drop(database.check());
        prop_assert_eq!(database.bytes_total() % PAGE_BYTES as u64, 0);
    }
}
