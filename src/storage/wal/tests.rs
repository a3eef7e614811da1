//! What the log promises: everything synced comes back, and damage is never mistaken for a crash.
//!
//! `testdata/etcd-3.7.1.wal.hex` is what official etcd 3.7.1 wrote for: start as a single member,
//! put a, put b, delete a, grant a lease, kill -9 (without the zeros behind it).

use std::{fs, path::Path};

use bytes::Bytes;
use proptest::{
    collection::vec,
    prelude::{Just, any, prop_assert, prop_oneof, proptest},
};
use proto::raftpb::EntryType;
use tempfile::TempDir;

use super::*;
use crate::{base::random::Random, model::new_entry};

const MEMBER: MemberId = MemberId(0xa1);
const CLUSTER: ClusterId = ClusterId(0xc1);

fn options(dir: &TempDir) -> WalOptions {
    let usual = WalOptions::new(dir.path().join("wal"));
    WalOptions { zero_fill: false, segment_bytes: 1 << 16, ..usual }
}

fn create(options: &WalOptions) -> Wal {
    Wal::create(options, MEMBER, CLUSTER).expect("an empty place")
}

fn entry(index: u64, bytes: usize) -> Entry {
    let fill = u8::try_from(index % 251).unwrap() + 1;
    let data = Bytes::from(vec![fill; bytes]);
    new_entry(EntryType::EntryNormal, Term(2), LogIndex(index), data)
}

fn state(commit: u64) -> HardState {
    HardState { term: Some(2), vote: Some(MEMBER.0), commit: Some(commit) }
}

/// Appends entries `from..=to`, each as a synced batch with the commit index before it.
fn append(wal: &mut Wal, from: u64, to: u64) {
    for index in from..=to {
        wal.append(Some(&state(index - 1)), &[entry(index, 100)], true).expect("a working disk");
    }
}

fn indexes(recovered: &Recovered) -> Vec<u64> {
    recovered.entries.iter().map(|entry| entry_index(entry).0).collect()
}

fn first_segment(options: &WalOptions) -> PathBuf {
    options.dir.join("0000000000000000-0000000000000000.wal")
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn damage(options: &WalOptions) -> (PathBuf, u64, WalFault) {
    match Wal::open(options, &WalSnapshot::default()) {
        Err(WalError::Damaged { file, offset, fault }) => (file, offset, fault),
        Err(other) => panic!("{other}"),
        Ok((_, recovered)) => panic!("opened, with entries {:?}", indexes(&recovered)),
    }
}

fn official() -> Vec<u8> {
    let hex: Vec<u8> =
        include_str!("testdata/etcd-3.7.1.wal.hex").bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).unwrap()).unwrap();
    hex.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

#[test]
fn log_of_official_etcd_reads_as_it_was_written() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    fs::create_dir(&options.dir).unwrap();
    fs::write(first_segment(&options), official()).unwrap();
    let (mut wal, recovered) = Wal::open(&options, &WalSnapshot::default()).unwrap();
    assert_eq!(indexes(&recovered), (1..=8).collect::<Vec<_>>());
    assert_eq!(recovered.entries[0].r#type, Some(1), "the first entry adds the member");
    assert!(recovered.member.0 != 0 && recovered.cluster.0 != 0, "{recovered:?}");
    // A single member has committed what it synced, but for the batch it was killed in.
    assert!(7 <= recovered.hard_state.commit.unwrap(), "{:?}", recovered.hard_state);
    append(&mut wal, 9, 12);
    drop(wal);
    let (_wal, recovered) = Wal::open(&options, &WalSnapshot::default()).unwrap();
    assert_eq!(indexes(&recovered), (1..=12).collect::<Vec<_>>());
}

#[test]
fn records_are_encoded_bit_for_bit_as_official_etcd_does() {
    use prost::Message;
    let official = official();
    let mut encoder = Encoder::new(0);
    let mut at = 0;
    while let frame::Frame::Record(record) = frame::read(&official[at..]) {
        at += record.bytes;
        let data = record.data;
        match record.kind {
            Kind::Crc => encoder.checksum(),
            Kind::Metadata => {
                encoder.message(record.kind, &Metadata::decode(data).unwrap());
            }
            Kind::Entry => encoder.message(record.kind, &Entry::decode(data).unwrap()),
            Kind::State => encoder.message(record.kind, &HardState::decode(data).unwrap()),
            Kind::Snapshot => {
                encoder.message(record.kind, &walpb::Snapshot::decode(data).unwrap());
            }
        }
    }
    assert_eq!(encoder.buffer, official);
}

#[test]
fn entries_and_state_survive_a_restart() {
    let dir = TempDir::new().unwrap();
    let options = WalOptions { zero_fill: true, ..options(&dir) };
    let mut wal = create(&options);
    append(&mut wal, 1, 5);
    drop(wal);
    let (mut wal, recovered) = Wal::open(&options, &WalSnapshot::default()).unwrap();
    assert_eq!((recovered.member, recovered.cluster), (MEMBER, CLUSTER));
    assert_eq!(recovered.hard_state, state(4));
    assert_eq!(recovered.entries[4], entry(5, 100));
    append(&mut wal, 6, 7);
    drop(wal);
    let recovered = Wal::read(&options.dir, &WalSnapshot::default()).unwrap();
    assert_eq!(indexes(&recovered), (1..=7).collect::<Vec<_>>());
    assert!(Wal::exists(&options.dir) && !Wal::exists(dir.path()));
    let again = Wal::create(&options, MEMBER, CLUSTER);
    assert!(matches!(again, Err(WalError::Exists { .. })), "{again:?}");
}

#[test]
fn later_entry_replaces_the_earlier_one_and_what_followed_it() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    let mut wal = create(&options);
    append(&mut wal, 1, 5);
    wal.append(None, &[entry(3, 7)], true).unwrap();
    drop(wal);
    let recovered = Wal::read(&options.dir, &WalSnapshot::default()).unwrap();
    assert_eq!(indexes(&recovered), [1, 2, 3]);
    assert_eq!(recovered.entries[2], entry(3, 7));
}

#[test]
fn full_segments_are_closed_and_released_after_a_snapshot() {
    let dir = TempDir::new().unwrap();
    let options = WalOptions { segment_bytes: 2000, zero_fill: true, ..options(&dir) };
    let mut wal = create(&options);
    append(&mut wal, 1, 60);
    let conf_state = Some(ConfState { voters: vec![MEMBER.0], ..ConfState::default() });
    let snapshot = WalSnapshot { index: LogIndex(50), term: Term(2), conf_state };
    wal.append_snapshot(&snapshot).unwrap();
    append(&mut wal, 61, 62);
    let count = || segments::list(&Disk::system(), &options.dir).unwrap().len();
    let all = count();
    assert!(4 < all, "{all} segments");
    wal.release_to(LogIndex(50), 0).unwrap();
    assert_eq!(count(), all, "zero keeps every file");
    wal.release_to(LogIndex(50), 1).unwrap();
    assert!(count() < all, "nothing was removed");
    drop(wal);

    assert_eq!(Wal::snapshots(&options.dir).unwrap(), std::slice::from_ref(&snapshot));
    let bare = WalSnapshot { conf_state: None, ..snapshot.clone() };
    let (mut wal, recovered) = Wal::open(&options, &bare).unwrap();
    assert_eq!(indexes(&recovered), (51..=62).collect::<Vec<_>>());
    assert_eq!(recovered.snapshot, snapshot, "the membership comes from the record");
    append(&mut wal, 63, 80);
    drop(wal);
    let recovered = Wal::read(&options.dir, &snapshot).unwrap();
    assert_eq!(indexes(&recovered), (51..=80).collect::<Vec<_>>());
    let start = Wal::open(&options, &WalSnapshot::default());
    assert!(matches!(start, Err(WalError::Truncated { .. })), "{start:?}");
    let unknown = WalSnapshot { term: Term(9), ..snapshot };
    let unknown = Wal::open(&options, &unknown);
    assert!(matches!(unknown, Err(WalError::SnapshotUnknown { .. })), "{unknown:?}");
}

#[test]
fn snapshots_above_the_commit_index_do_not_count() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    let mut wal = create(&options);
    append(&mut wal, 1, 3);
    let conf_state = Some(ConfState::default());
    wal.append_snapshot(&WalSnapshot { index: LogIndex(3), term: Term(2), conf_state }).unwrap();
    // The commit index is 2.
    assert_eq!(Wal::snapshots(&options.dir).unwrap(), [WalSnapshot::default()]);
}

#[test]
fn newest_snapshot_is_found_from_the_end_of_the_log() {
    let dir = TempDir::new().unwrap();
    let options = WalOptions { segment_bytes: 2000, ..options(&dir) };
    let mut wal = create(&options);
    for index in [20, 30, 60] {
        let next = wal.last.0 + 1;
        append(&mut wal, next, index + 5);
        let conf_state = Some(ConfState::default());
        let snapshot = WalSnapshot { index: LogIndex(index), term: Term(2), conf_state };
        wal.append_snapshot(&snapshot).unwrap();
    }
    append(&mut wal, 66, 100);
    drop(wal);
    let newest = |upto: u64| {
        let found = Wal::newest_snapshot(&options, LogIndex(upto)).unwrap();
        found.map(|snapshot| snapshot.index.0)
    };
    let all: Vec<_> = Wal::snapshots(&options.dir).unwrap();
    for upto in 0..110 {
        let expected = all.iter().rev().map(|snapshot| snapshot.index.0).find(|at| *at <= upto);
        assert_eq!(newest(upto), expected, "up to {upto}");
    }

    // What stands in a segment before the needed ones is not asked for.
    change(&first_segment(&options), |bytes| bytes[300] ^= 1);
    assert_eq!(newest(u64::MAX), Some(60));
    assert!(Wal::newest_snapshot(&options, LogIndex(3)).is_err(), "the damage is needed");
    assert!(Wal::snapshots(&options.dir).is_err(), "whoever reads everything finds it");
    let from = all.last().expect("there are four");
    let recovered = Wal::read(&options.dir, from).unwrap();
    assert_eq!(indexes(&recovered), (61..=100).collect::<Vec<_>>());
}

#[test]
fn file_cut_short_anywhere_loses_only_the_records_behind_the_cut() {
    let dir = TempDir::new().unwrap();
    let original = options(&dir);
    let mut wal = create(&original);
    append(&mut wal, 1, 3);
    let before = wal.offset;
    wal.append(Some(&state(3)), &[entry(4, 50), entry(5, 600)], true).unwrap();
    let end = wal.offset;
    drop(wal);
    let bytes = fs::read(first_segment(&original)).unwrap();
    for cut in before..end {
        let dir = TempDir::new().unwrap();
        let options = options(&dir);
        fs::create_dir(&options.dir).unwrap();
        let kept = &bytes[..usize::try_from(cut).unwrap()];
        fs::write(first_segment(&options), kept).unwrap();
        let (mut wal, recovered) = Wal::open(&options, &WalSnapshot::default()).unwrap();
        assert!(recovered.entries.len() < 6 && 3 <= recovered.entries.len(), "cut at {cut}");
        let next = u64::try_from(recovered.entries.len()).unwrap() + 1;
        let broken = first_segment(&options).with_extension("wal.broken");
        let torn = cut != wal.offset;
        assert_eq!(torn, broken.exists(), "cut at {cut}");
        assert!(!torn || fs::read(broken).unwrap() == kept, "cut at {cut}: another file was kept");
        append(&mut wal, next, next);
        drop(wal);
        let recovered = Wal::read(&options.dir, &WalSnapshot::default()).unwrap();
        assert_eq!(indexes(&recovered), (1..=next).collect::<Vec<_>>(), "cut at {cut}");
    }
}

#[test]
fn flipped_bit_is_damage_wherever_it_stands() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    let mut wal = create(&options);
    append(&mut wal, 1, 3);
    let end = usize::try_from(wal.offset).unwrap();
    drop(wal);
    let path = first_segment(&options);
    let whole = fs::read(&path).unwrap();
    for at in (16..end).step_by(5) {
        change(&path, |bytes| bytes[at] ^= 0x10);
        let opened = Wal::open(&options, &WalSnapshot::default());
        if let Ok((_, recovered)) = opened {
            // The padding behind a record holds nothing, and the tail may always be torn.
            let indexes = indexes(&recovered);
            assert!([1, 2].iter().all(|index| indexes.contains(index)), "byte {at}: {indexes:?}");
        } else {
            let (file, offset, _) = damage(&options);
            assert_eq!(file, path);
            assert!(offset <= u64::try_from(at).unwrap(), "byte {at} found at {offset}");
        }
        fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn hole_in_synced_records_is_damage_and_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    let mut wal = create(&options);
    append(&mut wal, 1, 2);
    let hole = usize::try_from(wal.offset).unwrap();
    append(&mut wal, 3, 6);
    drop(wal);
    // etcd takes the zero length for the end of the log and forgets entries 3 to 6.
    change(&first_segment(&options), |bytes| bytes[hole..hole + 16].fill(0));
    let before = fs::read(first_segment(&options)).unwrap();
    let (_, offset, fault) = damage(&options);
    assert_eq!((usize::try_from(offset).unwrap(), fault), (hole, WalFault::Hole));
    assert!(fs::read(first_segment(&options)).unwrap() == before, "the segment was changed");
}

#[test]
fn hole_in_the_last_batch_is_a_crash() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    let mut wal = create(&options);
    append(&mut wal, 1, 2);
    let hole = usize::try_from(wal.offset).unwrap();
    wal.append(Some(&state(2)), &[entry(3, 700), entry(4, 700), entry(5, 9)], true).unwrap();
    drop(wal);
    change(&first_segment(&options), |bytes| bytes[hole..hole + 512].fill(0));
    let (_wal, recovered) = Wal::open(&options, &WalSnapshot::default()).unwrap();
    assert_eq!(indexes(&recovered), [1, 2]);
}

#[test]
fn lost_and_foreign_segments_are_named() {
    let dir = TempDir::new().unwrap();
    let options = WalOptions { segment_bytes: 1000, ..options(&dir) };
    let mut wal = create(&options);
    append(&mut wal, 1, 30);
    drop(wal);
    let segments = segments::list(&Disk::system(), &options.dir).unwrap();
    let lost = segments::path(&options.dir, segments[2]);
    let bytes = fs::read(&lost).unwrap();
    fs::remove_file(&lost).unwrap();
    let error = Wal::open(&options, &WalSnapshot::default()).unwrap_err();
    assert!(matches!(error, WalError::MissingSegment { .. }), "{error}");

    let mut foreign = Encoder::new(0);
    foreign.checksum();
    let owner = Metadata { node_id: Some(1), cluster_id: Some(2) };
    foreign.message(Kind::Metadata, &owner);
    fs::write(&lost, foreign.buffer).unwrap();
    let (file, offset, fault) = damage(&options);
    assert_eq!((file, offset, fault), (lost.clone(), 0, WalFault::Checksum));

    // A closed segment is never torn.
    fs::write(&lost, &bytes[..bytes.len() - 4]).unwrap();
    let (file, _, fault) = damage(&options);
    assert_eq!((file, fault), (lost, WalFault::CutShort));
}

#[test]
fn segment_of_another_member_is_refused() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    let mut wal = create(&options);
    append(&mut wal, 1, 2);
    let owner = Metadata { node_id: Some(0xb2), cluster_id: Some(CLUSTER.0) };
    wal.encoder.message(Kind::Metadata, &owner);
    wal.write().unwrap();
    drop(wal);
    let (_, _, fault) = damage(&options);
    assert_eq!(fault, WalFault::Foreign { member: MemberId(0xb2), cluster: CLUSTER });
}

#[test]
fn gap_between_entries_is_damage() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    let mut wal = create(&options);
    append(&mut wal, 1, 2);
    wal.append(None, &[entry(4, 10)], true).unwrap();
    drop(wal);
    let (_, _, fault) = damage(&options);
    assert_eq!(fault, WalFault::Gap { expected: LogIndex(3), found: LogIndex(4) });
}

#[test]
fn log_has_one_owner_at_a_time() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    let wal = create(&options);
    let second = Wal::open(&options, &WalSnapshot::default());
    assert!(matches!(second, Err(WalError::Locked { .. })), "{second:?}");
    drop(wal);
    Wal::open(&options, &WalSnapshot::default()).expect("nobody has it");
}

#[test]
fn log_takes_nothing_after_a_failed_sync() {
    let dir = TempDir::new().unwrap();
    let disk = Disk::faulty();
    let options = WalOptions { disk: disk.clone(), ..options(&dir) };
    let mut wal = create(&options);
    append(&mut wal, 1, 1);
    disk.fail_sync_after(0);
    let failed = wal.append(None, &[entry(2, 1)], true);
    assert!(matches!(failed, Err(WalError::System { .. })), "{failed:?}");
    // Even if the disk had recovered.
    wal.held.back_mut().unwrap().file =
        Arc::new(Disk::system().open(&first_segment(&options)).unwrap());
    let before = fs::read(first_segment(&options)).unwrap();
    let failed = wal.append(None, &[entry(3, 1)], true);
    assert!(matches!(failed, Err(WalError::System { .. })), "{failed:?}");
    assert!(fs::read(first_segment(&options)).unwrap() == before, "something was written");
}

#[test]
fn unfinished_creation_leaves_no_log() {
    let dir = TempDir::new().unwrap();
    let disk = Disk::faulty();
    let broken = WalOptions { disk: disk.clone(), ..options(&dir) };
    disk.fail_write_after(0, 20);
    assert!(Wal::create(&broken, MEMBER, CLUSTER).is_err());
    assert!(!Wal::exists(&broken.dir));
    create(&options(&dir));
}

/// One call of `append`.
#[derive(Clone, Debug)]
struct Batch {
    entries: Vec<usize>,
    state: bool,
}

proptest! {
    #[test]
    fn whatever_was_synced_survives_a_power_cut(
        batches in vec(
            (vec(prop_oneof![0..40usize, Just(511), Just(512), 600..3000usize], 0..4), any::<bool>()),
            1..12,
        ),
        segment_bytes in prop_oneof![Just(1500u64), Just(1 << 16)],
        seed in any::<u64>(),
    ) {
        let dir = TempDir::new().unwrap();
        let disk = Disk::faulty();
        let faulty = WalOptions { segment_bytes, disk: disk.clone(), ..options(&dir) };
        let mut wal = create(&faulty);
        let batches = batches.into_iter().map(|(entries, state)| Batch { entries, state });
        let (mut written, mut synced) = (0, 0);
        let mut failed = false;
        let mut random = Random::from_seed(seed);
        // The last batch may be cut off by a write or a sync that fails.
        let last = batches.len() - 1;
        for (position, batch) in batches.enumerate() {
            if position == last {
                match random.below(3) {
                    0 => disk.fail_write_after(0, usize::try_from(random.below(4000)).unwrap()),
                    1 => disk.fail_sync_after(0),
                    _ => {}
                }
            }
            let first = written + 1;
            let entries: Vec<_> =
                (first..).zip(&batch.entries).map(|(index, bytes)| entry(index, *bytes)).collect();
            written += u64::try_from(entries.len()).unwrap();
            let state = batch.state.then(|| state(synced));
            // As raft has it: entries are synced, a commit index alone is not.
            failed = wal.append(state.as_ref(), &entries, !entries.is_empty()).is_err();
            if !failed && !entries.is_empty() {
                synced = written;
            }
        }
        disk.crash(&mut random).unwrap();
        drop(wal);
        let options = options(&dir);
        let options = WalOptions { segment_bytes, ..options };
        for _ in 0..2 {
            let (mut wal, recovered) = Wal::open(&options, &WalSnapshot::default())
                .unwrap_or_else(|error| panic!("{error} (failed: {failed})"));
            let count = u64::try_from(recovered.entries.len()).unwrap();
            prop_assert!(synced <= count && count <= written, "{count} of {synced} to {written}");
            for (index, found) in (1..).zip(&recovered.entries) {
                prop_assert!(entry_index(found).0 == index, "{index}");
                let bytes = found.data.as_ref().map_or(0, Bytes::len);
                prop_assert!(*found == entry(index, bytes), "entry {index} changed");
            }
            written = count + 1;
            wal.append(None, &[entry(written, 5)], true).unwrap();
            synced = written;
        }
    }
}
