//! What the backend promises its readers and its writer.

use std::{fs, ops::ControlFlow, path::Path};

use bytes::Bytes;
use tempfile::TempDir;

use super::{
    Backend, BackendError, BackendOptions, Fault, Place, RowRef, Table, Writer, keys,
    tables::CONSISTENT_INDEX,
};
use crate::{
    base::thread::{Priority, spawn},
    model::{LogIndex, Revision, Row, RowRevision},
};

fn open(dir: &Path) -> (Backend, Writer) {
    Backend::open(&BackendOptions::new(dir.join("db.lmdb"))).expect("an empty place")
}

fn row(main: i64, value: &'static str) -> Row {
    let revision = RowRevision { main: Revision(main), sub: 0 };
    Row { revision, tombstone: false, value: Bytes::from_static(value.as_bytes()) }
}

fn append(writer: &mut Writer, rows: &[Row]) {
    let mut txn = writer.begin().expect("one writer");
    for row in rows {
        txn.append(row).expect("rows in order");
    }
    txn.commit().expect("a working disk");
}

fn stored(backend: &Backend, from: i64) -> Vec<Row> {
    let reader = backend.reader().expect("few readers");
    let from = RowRevision { main: Revision(from), sub: 0 };
    reader.rows(from).expect("a range").map(|row| row.expect("a whole row")).collect()
}

#[test]
fn rows_come_back_in_revision_order_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let rows = [row(2, "a"), row(3, ""), row(300, "c")];
    {
        let (_backend, mut writer) = open(dir.path());
        append(&mut writer, &rows);
    }
    let (backend, _writer) = open(dir.path());
    assert_eq!(stored(&backend, 0), rows);
    assert_eq!(stored(&backend, 4), rows[2..]);
    let reader = backend.reader().unwrap();
    assert_eq!(reader.row(rows[1].revision).unwrap(), Some(rows[1].clone()));
    assert_eq!(reader.row(RowRevision { main: Revision(4), sub: 0 }).unwrap(), None);
    assert_eq!(reader.last_row().unwrap(), Some(rows[2].revision));
}

#[test]
fn what_a_crash_leaves_of_a_new_database_is_no_obstacle() {
    let made = TempDir::new().unwrap();
    drop(open(made.path()));
    let file = fs::read(made.path().join("db.lmdb/data.mdb")).unwrap();
    // LMDB first writes its two meta pages, alike but for their numbers, then commits.
    let page = &file[..4096];
    let both = [page, &1_u64.to_le_bytes(), &page[8..]].concat();
    let leftovers = [
        ("nothing but the directory", vec![]),
        ("the lock of its owner", vec![("owner.lock", Vec::new())]),
        ("a file without bytes", vec![("data.mdb", Vec::new()), ("lock.mdb", Vec::new())]),
        ("meta pages", vec![("data.mdb", both), ("lock.mdb", vec![7; 100])]),
    ];
    for (what, files) in leftovers {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("db.lmdb")).unwrap();
        for (name, bytes) in files {
            fs::write(dir.path().join("db.lmdb").join(name), bytes).unwrap();
        }
        let options = BackendOptions::new(dir.path().join("db.lmdb"));
        let (backend, mut writer) =
            Backend::open(&options).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(backend.reader().unwrap().consistent_index().unwrap(), LogIndex(0), "{what}");
        append(&mut writer, &[row(2, "a")]);
        assert_eq!(stored(&backend, 0).len(), 1, "{what}");
    }
}

#[test]
fn reader_sees_one_commit_however_long_it_lives() {
    let dir = TempDir::new().unwrap();
    let (backend, mut writer) = open(dir.path());
    append(&mut writer, &[row(2, "a")]);
    let reader = backend.reader().unwrap();
    append(&mut writer, &[row(3, "b")]);
    let seen = reader.rows(RowRevision::default()).unwrap().count();
    assert_eq!(seen, 1, "a row of a later commit shows");
    assert_eq!(stored(&backend, 0).len(), 2);
}

#[test]
fn row_that_does_not_come_last_is_refused() {
    let dir = TempDir::new().unwrap();
    let (_backend, mut writer) = open(dir.path());
    append(&mut writer, &[row(5, "a")]);
    let mut txn = writer.begin().unwrap();
    let refused = txn.append(&row(5, "b"));
    assert!(matches!(refused, Err(BackendError::OutOfOrder { .. })), "{refused:?}");
}

#[test]
fn uncommitted_changes_leave_nothing() {
    let dir = TempDir::new().unwrap();
    let (backend, mut writer) = open(dir.path());
    let mut txn = writer.begin().unwrap();
    txn.append(&row(2, "a")).unwrap();
    txn.put(Table::Lease, b"k", b"v").unwrap();
    drop(txn);
    assert_eq!(stored(&backend, 0), []);
    assert_eq!(backend.reader().unwrap().get(Table::Lease, b"k").unwrap(), None);
}

#[test]
fn tables_keep_records_apart_and_take_names_of_any_length() {
    let dir = TempDir::new().unwrap();
    let (backend, mut writer) = open(dir.path());
    let long = vec![b'u'; 4000];
    let longer = vec![b'u'; 4001];
    let mut txn = writer.begin().unwrap();
    txn.put(Table::AuthUsers, &long, b"1").unwrap();
    txn.put(Table::AuthUsers, &longer, b"2").unwrap();
    txn.put(Table::AuthUsers, b"root", b"").unwrap();
    txn.put(Table::AuthRoles, b"root", b"role").unwrap();
    assert_eq!(txn.get(Table::AuthUsers, &long).unwrap(), Some(&b"1"[..]));
    txn.commit().unwrap();

    let reader = backend.reader().unwrap();
    assert_eq!(reader.get(Table::AuthUsers, &longer).unwrap(), Some(&b"2"[..]));
    assert_eq!(reader.get(Table::AuthRoles, b"root").unwrap(), Some(&b"role"[..]));
    let mut users: Vec<_> = reader.scan(Table::AuthUsers).unwrap().map(Result::unwrap).collect();
    users.sort_unstable();
    let expected = [(&b"root"[..], &b""[..]), (&long, b"1"), (&longer, b"2")];
    assert_eq!(users, expected);
    drop(reader);

    let mut txn = writer.begin().unwrap();
    assert!(txn.delete(Table::AuthUsers, &long).unwrap());
    assert!(!txn.delete(Table::AuthUsers, &long).unwrap(), "a record deleted twice");
    txn.commit().unwrap();
    assert_eq!(backend.reader().unwrap().get(Table::AuthUsers, &long).unwrap(), None);
}

#[test]
fn damaged_row_is_an_error_that_names_file_and_revision() {
    let dir = TempDir::new().unwrap();
    let value = "a value that stands in the file once";
    {
        let (_backend, mut writer) = open(dir.path());
        append(&mut writer, &[row(2, "whole"), row(7, value)]);
    }
    let file = dir.path().join("db.lmdb/data.mdb");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(value.len()).position(|window| window == value.as_bytes()).unwrap();
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();

    let (backend, _writer) = open(dir.path());
    let reader = backend.reader().unwrap();
    let error = reader.row(row(7, "").revision).unwrap_err();
    let BackendError::Damaged { file: named, place, fault } = &error else { panic!("{error}") };
    assert_eq!((place, *fault), (&Place::Row(row(7, "").revision), Fault::Checksum));
    assert_eq!(named, &file);
    assert!(error.to_string().contains("row of revision 7_0"), "{error}");
    let scanned: Vec<_> = reader.row_refs(RowRevision::default()).unwrap().collect();
    assert!(scanned[0].is_ok() && scanned[1].is_err(), "{scanned:?}");
}

#[test]
fn flipped_bit_in_a_meta_page_ends_in_an_answer() {
    let dir = TempDir::new().unwrap();
    {
        let (_backend, mut writer) = open(dir.path());
        append(&mut writer, &[row(2, "two"), row(7, "seven")]);
    }
    let file = dir.path().join("db.lmdb/data.mdb");
    let whole = fs::read(&file).unwrap();
    let (mut refused, mut places) = (0, Vec::new());
    for at in (16..152).chain(4096 + 16..4096 + 152) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        fs::write(&file, bytes).unwrap();
        // Some bits are of no consequence, or choose the commit before the last.
        let options = BackendOptions::new(dir.path().join("db.lmdb"));
        let opened = Backend::open(&options).and_then(|(backend, _writer)| {
            backend.reader()?.row_refs(RowRevision::default())?.try_for_each(|row| row.map(drop))
        });
        if let Err(error) = opened {
            refused += 1;
            if let BackendError::Damaged { place, .. } = error {
                places.push(place);
            }
        }
    }
    assert!(20 < refused, "only {refused} flips were noticed");
    assert!(places.contains(&Place::PageCounts), "{places:?}");
    assert!(places.iter().any(|place| matches!(place, Place::LastPage(_))), "{places:?}");
}

#[test]
fn truncated_file_is_an_error_and_not_the_end_of_the_process() {
    let dir = TempDir::new().unwrap();
    {
        let (_backend, mut writer) = open(dir.path());
        for main in 2..200 {
            append(&mut writer, &[row(main, "some value or other")]);
        }
    }
    let file = dir.path().join("db.lmdb/data.mdb");
    let data = fs::OpenOptions::new().write(true).open(&file).unwrap();
    data.set_len(3 * 4096).unwrap();
    let outcome = Backend::open(&BackendOptions::new(dir.path().join("db.lmdb"))).and_then(
        |(backend, _writer)| {
            let reader = backend.reader()?;
            let rows = reader.rows(RowRevision::default())?;
            rows.collect::<Result<Vec<_>, _>>()
        },
    );
    assert!(outcome.is_err(), "rows of lost pages: {outcome:?}");
}

fn dots(main: i64, count: usize) -> Row {
    let revision = RowRevision { main: Revision(main), sub: 0 };
    Row { revision, tombstone: false, value: vec![b'.'; count].into() }
}

/// What is found wrong if the last row's header in a database has another bit. The row comes after
/// two others and has the revision 0x10203.
fn damage_of_header(dir: &Path, whole: &[u8], byte: usize, bit: u8) -> Vec<BackendError> {
    // LMDB's header of a record, which its key follows: length LE4, flags LE2, length of the key.
    const HEADER_BYTES: usize = 8;
    let last = RowRevision { main: Revision(0x10203), sub: 0 };
    let key = keys::row_key(last);
    let at = whole.windows(key.len()).rposition(|window| window == key).unwrap();
    let mut bytes = whole.to_vec();
    bytes[at - HEADER_BYTES + byte] ^= 1 << bit;
    fs::write(dir.join("db.lmdb/data.mdb"), bytes).unwrap();

    let (backend, _writer) = open(dir);
    let survey = backend.survey().unwrap();
    let reader = backend.reader().unwrap();
    let mut rows = reader.row_refs(RowRevision::default()).unwrap();
    let whole = rows.by_ref().take_while(Result::is_ok).count();
    assert_eq!(whole, 2, "rows before bit {bit} of byte {byte}");
    let (mut surveyed, mut found) = (0, Vec::new());
    let mut show = |_: RowRef<'_>| {
        surveyed += 1;
        ControlFlow::Continue(())
    };
    found.extend(survey.rows(RowRevision::default(), &mut show).err());
    assert_eq!(surveyed, 2, "surveyed rows before bit {bit} of byte {byte}");
    let mut rows = reader.row_refs(dots(3, 0).revision).unwrap();
    found.extend(rows.find_map(Result::err));
    found.extend(reader.last_row().err());
    // Whoever warms rows up reads them before they are checked.
    reader.sealed_rows(dots(3, 0).revision).unwrap().flatten().for_each(|row| row.warm());
    // Under a key of another length the row is not found.
    found.extend(reader.row(last).err());
    found
}

#[test]
fn length_beyond_the_end_of_the_file_is_an_error_and_not_the_end_of_the_process() {
    // A long value stands in pages of its own, whose number LMDB looks for behind the key.
    let flips = [(20, &[0, 1, 2, 3, 6, 7][..]), (10_000, &[0, 1, 2, 3])];
    for (value_bytes, bytes) in flips {
        let dir = TempDir::new().unwrap();
        {
            let (_backend, mut writer) = open(dir.path());
            append(&mut writer, &[2, 3, 0x10203].map(|main| dots(main, value_bytes)));
        }
        let whole = fs::read(dir.path().join("db.lmdb/data.mdb")).unwrap();
        for (byte, bit) in bytes.iter().flat_map(|byte| (0..8).map(move |bit| (*byte, bit))) {
            let found = damage_of_header(dir.path(), &whole, byte, bit);
            let is_of_key = 4 <= byte;
            let what = format!("bit {bit} of byte {byte}, {value_bytes} bytes: {found:?}");
            assert_eq!(found.len(), if is_of_key { 3 } else { 4 }, "{what}");
            let is_told = |error: &BackendError| match error {
                BackendError::Damaged { place: Place::Row(_), .. } => !is_of_key,
                BackendError::Damaged { place: Place::RowKey(_), .. } => is_of_key,
                BackendError::Damaged { .. }
                | BackendError::OutOfOrder { .. }
                | BackendError::System { .. }
                | BackendError::Lmdb { .. } => false,
            };
            assert!(found.iter().all(is_told), "{what}");
        }
    }
}

#[test]
fn consistent_index_is_zero_before_any_and_a_number_after() {
    let dir = TempDir::new().unwrap();
    let (backend, mut writer) = open(dir.path());
    assert_eq!(backend.reader().unwrap().consistent_index().unwrap(), LogIndex(0));
    let mut txn = writer.begin().unwrap();
    txn.put(Table::Meta, CONSISTENT_INDEX, &keys::number(9)).unwrap();
    txn.commit().unwrap();
    assert_eq!(backend.reader().unwrap().consistent_index().unwrap(), LogIndex(9));
}

#[test]
fn size_in_use_falls_when_rows_go_and_never_exceeds_the_total() {
    let dir = TempDir::new().unwrap();
    let (backend, mut writer) = open(dir.path());
    let empty = backend.sizes();
    assert!(0 < empty.in_use && empty.in_use <= empty.total, "{empty:?}");
    let rows: Vec<_> = (2..2000).map(|main| row(main, "a value of some length")).collect();
    append(&mut writer, &rows);
    let full = backend.sizes();
    assert!(empty.in_use < full.in_use && full.in_use <= full.total, "{full:?}");
    let mut txn = writer.begin().unwrap();
    for row in &rows {
        assert!(txn.delete_row(row.revision).unwrap(), "{:?}", row.revision);
    }
    txn.commit().unwrap();
    let after = backend.sizes();
    assert!(after.in_use < full.in_use && full.total <= after.total, "{after:?} after {full:?}");
}

#[test]
fn second_owner_waits_for_the_first() {
    let dir = TempDir::new().unwrap();
    let (backend, writer) = open(dir.path());
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let path = dir.path().to_owned();
    let second = spawn("second", Priority::Normal, move || {
        let opened = open(&path);
        sender.send(()).unwrap();
        drop(opened);
    });
    let second = second.unwrap();
    assert!(receiver.try_recv().is_err(), "two owners at one time");
    drop(writer);
    drop(backend);
    receiver.recv().expect("the second owner comes in");
    second.join().unwrap();
}

#[test]
fn address_space_that_is_refused_is_asked_for_in_smaller_amounts() {
    let dir = TempDir::new().unwrap();
    // Twice what a process can have on x86-64 and AArch64.
    let options = BackendOptions { dir: dir.path().join("db.lmdb"), map_bytes: 1 << 48 };
    let (backend, mut writer) = Backend::open(&options).expect("a smaller map");
    append(&mut writer, &[row(2, "a")]);
    assert_eq!(stored(&backend, 0).len(), 1);
}

#[test]
fn new_member_is_far_below_the_smallest_quota_in_use() {
    let dir = TempDir::new().unwrap();
    let (backend, mut writer) = open(dir.path());
    for main in 2..40 {
        let mut txn = writer.begin().unwrap();
        txn.append(&row(main, "some value")).unwrap();
        txn.put(Table::Meta, CONSISTENT_INDEX, &keys::number(9)).unwrap();
        txn.put(Table::Members, b"8e9e05c52164694d", &[7; 200]).unwrap();
        txn.put(Table::Cluster, b"clusterVersion", b"3.7.0").unwrap();
        txn.commit().unwrap();
    }
    // etcd's `TestAlarm` gives a member 13 pages and expects a put to fit.
    let sizes = backend.sizes();
    assert!(sizes.total <= 9 * 4096, "{sizes:?}");
}
