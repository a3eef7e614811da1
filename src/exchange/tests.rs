//! Whole exchanges: our backend to a file and back, and directories taken over.

use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;
use proptest::prelude::{Strategy, any, prop, prop_assert_eq, proptest};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{
    About, Adopted, EtcdFile, ExchangeError, IMPORTED_FILE, Part, Trailer, adopt, export, import,
    receive_backup, run_backup, snapshot_file,
};
use crate::{
    base::cases::cases,
    bolt::Database,
    model::{LogIndex, Revision, Row, RowRevision, Term},
    storage::{
        Backend, BackendOptions, Table,
        backend::BACKEND_DIRECTORY,
        keys,
        tables::{CONF_STATE, CONSISTENT_INDEX, STORAGE_VERSION},
    },
};

/// What a backend holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    rows: Vec<Row>,
    tables: BTreeMap<(Table, Bytes), Bytes>,
}

impl Content {
    /// Stored entries up to `index`, and as many rows.
    fn at(index: u64) -> Self {
        let mut content = Self::default();
        for main in 0..i64::try_from(index).expect("small") {
            content.rows.push(Row {
                revision: RowRevision { main: Revision(main + 2), sub: 0 },
                tombstone: main % 5 == 4,
                value: Bytes::from(vec![7; 100]),
            });
        }
        let mut meta = |key: &'static [u8], value: Bytes| {
            content.tables.insert((Table::Meta, Bytes::from_static(key)), value);
        };
        meta(CONSISTENT_INDEX, Bytes::copy_from_slice(&keys::number(index)));
        meta(STORAGE_VERSION, Bytes::from_static(b"3.7.0"));
        content
    }

    fn store(&self, dir: &Path) -> Backend {
        let (backend, mut writer) =
            Backend::open(&BackendOptions::new(dir.to_owned())).expect("a fresh directory");
        let mut transaction = writer.begin().expect("nobody else writes");
        for row in &self.rows {
            transaction.append(row).expect("rows are in order");
        }
        for ((table, key), value) in &self.tables {
            transaction.put(*table, key, value).expect("LMDB takes it");
        }
        transaction.commit().expect("the disk has room");
        backend
    }

    fn load(dir: &Path) -> Self {
        let (backend, _writer) =
            Backend::open(&BackendOptions::new(dir.to_owned())).expect("it was stored");
        let reader = backend.reader().expect("few readers");
        let rows = reader.rows(RowRevision::default()).expect("readable");
        let mut content =
            Self { rows: rows.map(|row| row.expect("undamaged")).collect(), ..Self::default() };
        for table in Table::ALL {
            for record in reader.scan(table).expect("readable") {
                let (key, value) = record.expect("undamaged");
                let copy = Bytes::copy_from_slice;
                content.tables.insert((table, copy(key)), copy(value));
            }
        }
        content
    }

    fn file(&self) -> Bytes {
        let dir = TempDir::new().expect("a temporary directory");
        let backend = self.store(&dir.path().join("db"));
        let reader = backend.reader().expect("few readers");
        let mut planned = 0;
        let bytes = export(&reader, Vec::new(), |bytes_total, out| {
            planned = bytes_total;
            out
        });
        let bytes = Bytes::from(bytes.expect("everything fits"));
        assert_eq!(bytes.len() as u64, planned, "the length is announced");
        bytes
    }
}

fn check_round_trip(content: &Content) {
    let bytes = content.file();
    let database = Database::new(bytes).expect("a valid file");
    let findings = database.check();
    assert!(findings.is_empty(), "{findings:?}");
    let file = EtcdFile::new("memory".into(), database).expect("a valid root");
    assert_eq!(file.bucket_names().count(), 10, "all buckets exist, empty or not");
    let dir = TempDir::new().expect("a temporary directory");
    let target = dir.path().join("db");
    let imported = import(&file, &target, |_| {}).expect("a valid file");
    assert_eq!(imported.rows, content.rows.len() as u64);
    assert_eq!(Content::load(&target), *content);
}

fn any_content() -> impl Strategy<Value = Content> {
    let value = prop::collection::vec(any::<u8>(), 0..2000).prop_map(Bytes::from);
    let rows = prop::collection::btree_map((1..500_i64, 0..4_i64), (any::<bool>(), value), 0..200);
    let key = prop::collection::vec(any::<u8>(), 1..20).prop_map(Bytes::from);
    let long = prop::collection::vec(any::<u8>(), 500..600).prop_map(Bytes::from);
    let key = proptest::prop_oneof![5 => key, 1 => long];
    let value = prop::collection::vec(any::<u8>(), 0..100).prop_map(Bytes::from);
    let table = prop::sample::select(Table::ALL.to_vec());
    let short_lease = |(table, key): (Table, Bytes)| {
        let key = if table == Table::Lease { key.slice(..key.len().min(8)) } else { key };
        (table, key)
    };
    let tables = prop::collection::btree_map((table, key).prop_map(short_lease), value, 0..60);
    (rows, tables).prop_map(|(rows, tables)| Content {
        rows: rows
            .into_iter()
            .map(|((main, sub), (tombstone, value))| {
                let revision = RowRevision { main: Revision(main), sub };
                Row { revision, tombstone, value }
            })
            .collect(),
        tables,
    })
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn whatever_is_exported_comes_back_the_same(content in any_content()) {
        check_round_trip(&content);
    }

    #[test]
    fn import_of_a_damaged_file_is_an_error_or_complete(
        content in any_content(),
        place in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let mut bytes = content.file().to_vec();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        let Ok(database) = Database::new(Bytes::from(bytes)) else { return Ok(()) };
        let Ok(file) = EtcdFile::new("memory".into(), database) else { return Ok(()) };
        let dir = TempDir::new().expect("a temporary directory");
        let target = dir.path().join("db");
        let imported = import(&file, &target, |_| {});
        prop_assert_eq!(imported.is_ok(), target.exists(), "half an import has no name");
    }
}

#[test]
fn empty_backend_has_all_buckets() {
    check_round_trip(&Content::default());
}

#[test]
fn backup_arrives_in_pieces_of_the_announced_length() {
    let dir = TempDir::new().expect("a temporary directory");
    let content = Content::at(20_000);
    let backend = content.store(&dir.path().join("db"));
    let (sender, receiver) = mpsc::channel(2);
    let bytes = std::thread::scope(|scope| {
        scope.spawn(|| {
            run_backup(&backend, &sender);
            drop(sender);
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (about, pieces) = runtime.block_on(receive_backup(receiver)).expect("it begins");
        let bytes = pieces.collect::<Result<Vec<Bytes>, _>>().expect("it ends").concat();
        let expected = About {
            bytes_total: bytes.len() as u64,
            index: LogIndex(20_000),
            term: Term(0),
            conf_state: Bytes::new(),
            storage_version: "3.7.0".to_owned(),
        };
        assert_eq!(about, expected);
        bytes
    });
    assert_eq!(bytes.len() % 512, 0, "the hash must be findable behind the database");
    assert_eq!(Bytes::from(bytes), content.file());
}

#[test]
fn backup_with_its_hash_is_told_from_a_damaged_one() {
    let mut bytes = Content::at(100).file().to_vec();
    let check =
        |bytes: &[u8]| Trailer::check(&mut &*bytes, bytes.len() as u64, |_| {}).expect("in memory");
    assert_eq!(check(&bytes), Trailer::Absent);
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    assert_eq!(check(&bytes), Trailer::Matches);
    bytes[5000] ^= 1;
    assert!(matches!(check(&bytes), Trailer::Differs { .. }));
}

#[test]
fn receiver_that_leaves_ends_the_backup() {
    let dir = TempDir::new().expect("a temporary directory");
    let backend = Content::at(20_000).store(&dir.path().join("db"));
    let (sender, mut receiver) = mpsc::channel(1);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| run_backup(&backend, &sender));
        assert!(matches!(receiver.blocking_recv(), Some(Part::Begin(_))));
        drop(receiver);
        thread.join().expect("it returns");
    });
}

/// A `member/snap` with any of the three kinds of database, by their consistent index.
struct SnapDir {
    dir: TempDir,
}

impl SnapDir {
    fn new(own: Option<u64>, etcd: Option<u64>, received: Option<u64>) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        if let Some(index) = own {
            drop(Content::at(index).store(&dir.path().join(BACKEND_DIRECTORY)));
        }
        let write = |name: &str, index: u64| {
            std::fs::write(dir.path().join(name), Content::at(index).file()).expect("room");
        };
        if let Some(index) = etcd {
            write("db", index);
        }
        if let Some(index) = received {
            write(&snapshot_file(LogIndex(index)), index);
        }
        Self { dir }
    }

    fn adopt(&self, newest: u64) -> Result<Adopted, ExchangeError> {
        let adopted = adopt(self.dir.path(), LogIndex(newest));
        let database = self.dir.path().join("db");
        let kept = self.dir.path().join(IMPORTED_FILE);
        if adopted.is_ok() {
            assert!(!database.exists(), "an etcd would start from the old file");
        } else {
            assert!(!kept.exists(), "a refused file was set aside");
        }
        adopted
    }

    fn content(&self) -> Content {
        Content::load(&self.dir.path().join(BACKEND_DIRECTORY))
    }
}

#[test]
fn newest_database_of_a_directory_becomes_ours() {
    // Own index, etcd's index, received snapshot; newest in the log; what is taken, and its index.
    let cases = [
        (None, Some(5), None, 0, Adopted::Database, 5),
        (None, Some(5), None, 5, Adopted::Database, 5),
        (Some(7), Some(5), None, 5, Adopted::Own, 7),
        (Some(5), Some(7), None, 5, Adopted::Database, 7),
        (Some(5), None, None, 5, Adopted::Own, 5),
        (Some(5), None, Some(9), 9, Adopted::Snapshot, 9),
        (None, Some(5), Some(9), 9, Adopted::Snapshot, 9),
        (None, None, Some(9), 9, Adopted::Snapshot, 9),
        // The log has not reached the received one: it does not count.
        (None, Some(5), Some(9), 5, Adopted::Database, 5),
    ];
    for (own, etcd, received, newest, expected, index) in cases {
        let case = SnapDir::new(own, etcd, received);
        let adopted = case.adopt(newest).expect("there is a newest one");
        assert_eq!(adopted, expected, "own {own:?}, etcd {etcd:?}, received {received:?}");
        assert_eq!(case.content(), Content::at(index));
        let again = case.adopt(newest).expect("nothing is left to do");
        assert_eq!(again, Adopted::Own, "a second boot takes nothing over");
    }
}

#[test]
fn directory_that_cannot_complete_the_log_is_refused() {
    let missing = SnapDir::new(None, None, None).adopt(5);
    assert!(matches!(missing, Err(ExchangeError::Missing { .. })), "{missing:?}");
    for case in [SnapDir::new(Some(3), None, None), SnapDir::new(None, Some(3), None)] {
        let behind = case.adopt(5);
        assert!(matches!(behind, Err(ExchangeError::Behind { .. })), "{behind:?}");
    }
    assert!(matches!(SnapDir::new(None, None, None).adopt(0), Ok(Adopted::Nothing)));
}

#[test]
fn import_that_was_cut_short_starts_again() {
    let case = SnapDir::new(None, Some(5), None);
    let unfinished = case.dir.path().join(format!("{BACKEND_DIRECTORY}.importing"));
    drop(Content::at(3).store(&unfinished));
    assert_eq!(case.adopt(0).expect("it starts again"), Adopted::Database);
    assert_eq!(case.content(), Content::at(5));
    assert!(!unfinished.exists(), "leftovers are removed");
}

#[test]
fn membership_that_a_restore_of_etcd_left_behind_is_replaced() {
    let mut content = Content::at(5);
    let mut put = |table, key: &'static [u8], value: &'static [u8]| {
        content.tables.insert((table, Bytes::from_static(key)), Bytes::from_static(value));
    };
    put(Table::Members, b"5", br#"{"id":5,"peerURLs":["http://a:1"],"name":"a"}"#);
    put(Table::Meta, CONF_STATE, br#"{"voters":[9],"auto_leave":false}"#);
    let dir = TempDir::new().expect("a temporary directory");
    std::fs::write(dir.path().join("db"), content.file()).expect("room");
    assert_eq!(adopt(dir.path(), LogIndex(5)).expect("whole"), Adopted::Database);
    let taken = Content::load(&dir.path().join(BACKEND_DIRECTORY));
    let stored = &taken.tables[&(Table::Meta, Bytes::from_static(CONF_STATE))];
    assert_eq!(stored, br#"{"voters":[5],"auto_leave":false}"#.as_slice());
}
