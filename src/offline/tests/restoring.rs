//! Restored directories against those of the official tool.
//!
//! One check, [`check_restore`], compares them byte for byte where both have the same files.

use super::*;

/// Restores officially and with ours, and compares what came of it.
fn check_restore(snapshot: &Path, change: impl Fn(&mut RestoreOptions)) {
    let Some(etcdutl) = official("etcdutl") else { return };
    let dir = TempDir::new().expect("a temporary directory");
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    let mut options = restore_options(snapshot, &ours, "http://127.0.0.1:2380");
    change(&mut options);
    restore(&options).expect("a whole backup");

    let bump = options.bump_revision.to_string();
    let mut arguments = vec!["snapshot", "restore", text(snapshot), "--data-dir", text(&theirs)];
    arguments.extend(["--name", &options.name, "--initial-cluster", &options.initial_cluster]);
    arguments.extend(["--initial-cluster-token", &options.initial_cluster_token]);
    arguments.extend(["--initial-advertise-peer-urls", &options.initial_advertise_peer_urls]);
    if options.mark_compacted {
        arguments.extend(["--bump-revision", &bump, "--mark-compacted"]);
    }
    stdout(&etcdutl, &arguments);

    let snap = |dir: &Path| dir.join("member").join("snap");
    let exported = dir.path().join("exported");
    export_database(&ours, &exported, Ending::Plain, SHORT).expect("room");
    let database = snap(&theirs).join("db");
    for name in ["members", "members_removed", "cluster", "lease", "key", "auth", "authUsers"] {
        assert_eq!(bucket(&exported, name), bucket(&database, name), "bucket {name}");
    }
    // Theirs keeps the membership of the old cluster there; nothing reads it.
    let meta = |path: &Path| {
        let entries = bucket(path, "meta").into_iter();
        entries.filter(|(key, _)| key != "confState").collect::<Vec<_>>()
    };
    assert_eq!(meta(&exported), meta(&database), "bucket meta");
    assert_eq!(
        hash_kv(&ours, 0, SHORT).expect("ours"),
        hash_kv(&theirs, 0, SHORT).expect("theirs")
    );

    // The logs say the same, record by record, up to the zeros behind them.
    let log = |dir: &Path| {
        let path = dir.join("member").join("wal").join("0000000000000000-0000000000000000.wal");
        let bytes = fs::read(path).expect("a log");
        let end = bytes.iter().rposition(|byte| *byte != 0).expect("not empty");
        bytes[..=end].to_vec()
    };
    assert_eq!(log(&ours), log(&theirs), "the logs differ");
    let name = |dir: &Path| {
        let names = fs::read_dir(snap(dir)).expect("made").map(|entry| entry.expect("listed"));
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.ends_with(".snap")).collect::<Vec<_>>()
    };
    assert_eq!(name(&ours), name(&theirs), "the raft snapshots differ");
    assert!(verify(&ours, None, SHORT).is_ok(), "{:?}", verify(&ours, None, SHORT));
}

#[test]
fn restored_directory_is_the_one_that_the_official_tool_makes() {
    let dir = TempDir::new().expect("a temporary directory");
    let Some(member) = Member::start(&dir.path().join("data")) else { return };
    fill(&member);
    let snapshot = dir.path().join("backup.db");
    member.ctl(&["snapshot", "save", text(&snapshot)]);
    member.stop();
    check_restore(&snapshot, |_| {});
    check_restore(&snapshot, |options| {
        options.bump_revision = 1000;
        options.mark_compacted = true;
    });
    check_restore(&snapshot, |options| {
        options.name = "b".to_owned();
        options.initial_cluster_token = "other".to_owned();
        options.initial_advertise_peer_urls = "http://127.0.0.1:2,http://127.0.0.1:1".to_owned();
        options.initial_cluster = concat!(
            "a=http://127.0.0.1:3,b=http://127.0.0.1:1,",
            "b=http://127.0.0.1:2,c=http://127.0.0.1:4"
        )
        .to_owned();
    });
}

#[test]
fn official_member_starts_from_a_directory_that_we_restored() {
    let dir = TempDir::new().expect("a temporary directory");
    let Some(member) = Member::start(&dir.path().join("data")) else { return };
    fill(&member);
    let hash = member.hash_kv();
    let snapshot = dir.path().join("backup.db");
    member.ctl(&["snapshot", "save", text(&snapshot)]);
    member.stop();

    let restored = dir.path().join("restored");
    let peer = free_url();
    restore(&restore_options(&snapshot, &restored, &peer)).expect("a whole backup");
    let database = restored.join("member").join("snap").join("db");
    export_database(&restored, &database, Ending::Plain, SHORT).expect("room");
    let member = Member::start_at(&restored, &peer).expect("it was there before");
    assert_eq!(member.hash_kv(), hash);
    member.ctl(&["put", "after", "restore"]);
    member.stop();
}

#[test]
fn flipped_byte_is_refused_by_the_hash_in_the_official_words() {
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("backup.db");
    backup(&path, &rows(&[vec![(1, Some(10))], vec![(2, Some(2000))]]), None);
    let mut bytes = fs::read(&path).expect("it was written");
    // Past everything that is used, so that only the hash can tell.
    let last = bytes.len() - 40;
    bytes[last] ^= 1;
    fs::write(&path, bytes).expect("room");
    let ours = dir.path().join("ours");
    let mut options = restore_options(&path, &ours, "http://127.0.0.1:2380");
    let refused = restore(&options).expect_err("the hash differs");
    assert!(matches!(refused, OfflineError::WrongTrailer { .. }), "{refused}");
    assert!(!ours.exists(), "a refused backup leaves nothing");
    if let Some(etcdutl) = official("etcdutl") {
        let theirs = dir.path().join("theirs");
        let said =
            run(&etcdutl, &["snapshot", "restore", text(&path), "--data-dir", text(&theirs)]);
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.lines().last(), Some(format!("Error: {refused}").as_str()));
    }
    options.skip_hash_check = true;
    restore(&options).expect("the hash was not asked for");
    let again = restore(&options).expect_err("there is something");
    assert!(again.to_string().ends_with("not empty or could not be read"), "{again}");
}

#[test]
fn damaged_backup_leaves_no_directory_behind() {
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("backup.db");
    backup(&path, &rows(&[vec![(1, Some(10))], vec![(2, Some(2000))]]), None);
    let mut bytes = fs::read(&path).expect("it was written");
    // The header of the first page after the free list.
    bytes[3 * 4096 + 8] ^= 0xff;
    fs::write(&path, bytes).expect("room");
    let data_dir = dir.path().join("data");
    let wal_dir = dir.path().join("wal");
    let options = RestoreOptions {
        skip_hash_check: true,
        wal_dir: Some(wal_dir.clone()),
        ..restore_options(&path, &data_dir, "http://127.0.0.1:2380")
    };
    let damaged = restore(&options).expect_err("a page is damaged");
    assert!(matches!(damaged, OfflineError::Database(_)), "{damaged}");
    assert!(!data_dir.exists(), "half a directory was left");
    assert!(!wal_dir.exists(), "half a log was left");
}

#[test]
fn flags_that_contradict_each_other_get_the_official_words() {
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("backup.db");
    backup(&path, &rows(&[vec![(1, Some(10))]]), None);
    let data_dir = dir.path().join("data");
    let usual = restore_options(&path, &data_dir, "http://127.0.0.1:2380");
    let cases = [
        RestoreOptions { name: "other".to_owned(), ..usual.clone() },
        RestoreOptions {
            initial_cluster: "default=http://127.0.0.1:1".to_owned(),
            ..usual.clone()
        },
        RestoreOptions { initial_cluster: "default=127.0.0.1:1".to_owned(), ..usual.clone() },
        RestoreOptions { initial_cluster: "default=http://a/b".to_owned(), ..usual.clone() },
        RestoreOptions {
            initial_cluster: "default=http://127.0.0.1:2380,b=http://127.0.0.1:2380".to_owned(),
            ..usual.clone()
        },
        RestoreOptions {
            initial_advertise_peer_urls: "http://127.0.0.1:2380,http://127.0.0.1:1".to_owned(),
            ..usual.clone()
        },
    ];
    for options in cases {
        let refused = restore(&options).expect_err("no such cluster");
        let Some(etcdutl) = official("etcdutl") else { continue };
        let theirs = dir.path().join("theirs");
        let mut arguments = vec!["snapshot", "restore", text(&path), "--data-dir", text(&theirs)];
        arguments.extend(["--name", &options.name, "--initial-cluster", &options.initial_cluster]);
        arguments.extend(["--initial-advertise-peer-urls", &options.initial_advertise_peer_urls]);
        let said = run(&etcdutl, &arguments);
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        // What Go says of lengths and resolvers in brackets is its own.
        let until = |text: &str| text.split(" (").next().map(str::to_owned);
        let expected = format!("Error: {refused}");
        assert_eq!(said.lines().last().and_then(until), until(&expected));
    }
    let bump = restore(&RestoreOptions { bump_revision: 1, ..usual });
    assert!(matches!(bump, Err(OfflineError::Usage(_))), "{bump:?}");
}

#[test]
fn directory_that_the_official_tool_restored_becomes_ours() {
    let Some(etcdutl) = official("etcdutl") else { return };
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("backup.db");
    backup(&path, &rows(&[vec![(1, Some(10))], vec![(2, Some(2000))], vec![(1, None)]]), None);
    let data_dir = dir.path().join("data");
    let cluster = "default=http://127.0.0.1:1,b=http://127.0.0.1:2,c=http://127.0.0.1:3";
    let mut arguments = vec!["snapshot", "restore", text(&path), "--data-dir", text(&data_dir)];
    arguments.extend(["--initial-cluster", cluster]);
    arguments.extend(["--initial-advertise-peer-urls", "http://127.0.0.1:1"]);
    arguments.extend(["--bump-revision", "100", "--mark-compacted"]);
    stdout(&etcdutl, &arguments);
    let database = data_dir.join("member").join("snap").join("db");
    let theirs = hash_kv(&database, 0, SHORT).expect("a database");

    let wal_dir = data_dir.join("member").join("wal");
    let newest = Wal::snapshots(&wal_dir).expect("a log").pop().expect("one was written");
    let snap_dir = data_dir.join("member").join("snap");
    assert_eq!(adopt(&snap_dir, newest.index).expect("whole"), Adopted::Database);
    assert_eq!(newest.index, LogIndex(3), "one entry for each member");
    assert_eq!(hash_kv(&data_dir, 0, SHORT).expect("ours"), theirs);
    assert_eq!(theirs.compact_revision, theirs.hash_revision, "everything counts as compacted");
    assert!(verify(&data_dir, None, SHORT).is_ok(), "{:?}", verify(&data_dir, None, SHORT));

    // Raft's membership is that of the new cluster: the one in the log.
    let exported = dir.path().join("exported");
    export_database(&data_dir, &exported, Ending::Plain, SHORT).expect("room");
    let voters = newest.conf_state.expect("a membership").voters;
    let meta = bucket(&exported, "meta");
    let stored = &meta.iter().find(|(key, _)| key == "confState").expect("stored").1;
    let stored: serde_json::Value = serde_json::from_str(stored).expect("JSON");
    assert_eq!(stored["voters"], serde_json::json!(voters));
}
