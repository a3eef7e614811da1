//! What keeps a data directory sound: verification, defragmentation, locks.

use super::*;

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
