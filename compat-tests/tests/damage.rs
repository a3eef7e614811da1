//! A server refuses a directory that it cannot trust, says where and what to do, and leaves it as
//! it was: with the damage undone, everything acknowledged is there.
#![expect(clippy::unwrap_used, reason = "a failed step of a test ends it")]
#![expect(clippy::disallowed_methods, reason = "servers under test run on real time")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use oxetcd_compat_tests::{
    files,
    script::{Call, Client},
    server::{Attempt, Ended, Kind, Server},
};
use oxetcd_tools::official;
use proto::etcdserverpb::{PutRequest, RangeRequest};

/// Few entries per snapshot, so that the log begins behind the first of them.
const FLAGS: [&str; 2] = ["--snapshot-count=10", "--snapshot-catchup-entries=5"];

fn value(key: usize, bytes: usize) -> Vec<u8> {
    let mut value = format!("the value of key {key:03};").into_bytes();
    value.resize(value.len().max(bytes), b'.');
    value
}

async fn write(server: &Server, keys: std::ops::Range<usize>, bytes: usize) {
    let client = Client::connect(server).await.unwrap();
    for key in keys {
        let value = value(key, bytes).into();
        let put = PutRequest { key: format!("k{key:03}").into(), value, ..Default::default() };
        client.kv().put(put).await.unwrap();
    }
}

/// Every value, in key order.
async fn read(server: &Server) -> Vec<Vec<u8>> {
    let client = Client::connect(server).await.unwrap();
    let all = RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    let answer = client.kv().range(all).await.unwrap().into_inner();
    answer.kvs.into_iter().map(|kv| kv.value.to_vec()).collect()
}

/// A stopped server whose directory holds `keys` keys.
async fn filled(kind: Kind, keys: usize, bytes: usize) -> Option<Server> {
    let mut server = Server::start(kind, &FLAGS).unwrap()?;
    write(&server, 0..keys, bytes).await;
    server.terminate().unwrap();
    Some(server)
}

/// A start that must fail with exit code 1, never by a panic or a signal, and with all of `says`
/// in its last line.
fn refusal(server: &mut Server, what: &str, says: &[&str]) -> String {
    let ended = ended(server, what);
    assert_eq!(ended.status.code(), Some(1), "{what}: {}", ended.log);
    let last = ended.log.lines().last().unwrap_or_default().to_owned();
    assert!(last.contains("\"fatal\""), "{what}: the last line is no reason: {}", ended.log);
    for text in says {
        assert!(last.contains(text), "{what}: {last} lacks {text}");
    }
    last
}

fn ended(server: &mut Server, what: &str) -> Ended {
    match server.attempt().unwrap() {
        Attempt::Ended(ended) => ended,
        Attempt::Ready => panic!("{what}: the server started"),
    }
}

async fn has_everything(server: &mut Server, keys: usize, bytes: usize) {
    server.resume().unwrap();
    let expected = (0..keys).map(|key| value(key, bytes)).collect::<Vec<_>>();
    assert!(read(server).await == expected, "a refused start changed the directory");
    server.terminate().unwrap();
}

#[tokio::test]
async fn damaged_log_is_refused_with_file_and_offset_and_left_alone() {
    let mut server = filled(Kind::Oxetcd, 25, 0).await.unwrap();
    let segment = files::segments(&server.data_dir()).unwrap().remove(0);
    let name = segment.file_name().unwrap().to_str().unwrap().to_owned();
    // The first entries are in the database already, and still no log to go on from.
    for key in [1, 12, 23] {
        let at = files::find(&segment, &value(key, 0)).unwrap()[0];
        files::flip(&segment, at, 0x10).unwrap();
        let what = format!("a bit of key {key}");
        let last = refusal(&mut server, &what, &[&name, "checksum", "offset", "restore"]);
        let offset = last.split("at offset ").nth(1).unwrap().split(':').next().unwrap();
        let offset = offset.parse::<u64>().unwrap();
        assert!(offset < at && at < offset + 200, "{what} at {at}: {last}");
        files::flip(&segment, at, 0x10).unwrap();
    }
    files::flip(&segment, 7, 0x01).unwrap();
    refusal(&mut server, "the first length", &[&name, "offset 0", "restore"]);
    files::flip(&segment, 7, 0x01).unwrap();

    let whole = fs::read(&segment).unwrap();
    for bytes in [0, 100, 1_500] {
        fs::write(&segment, &whole[..bytes]).unwrap();
        refusal(&mut server, &format!("{bytes} bytes of the log"), &["restore"]);
    }
    fs::write(&segment, &whole).unwrap();
    has_everything(&mut server, 25, 0).await;
}

#[tokio::test]
async fn missing_segments_are_refused_and_left_alone() {
    const BYTES: usize = 1_400_000;
    let flags = ["--snapshot-count=1000000"];
    let mut server = Server::start(Kind::Oxetcd, &flags).unwrap().unwrap();
    write(&server, 0..100, BYTES).await;
    server.terminate().unwrap();
    let segments = files::segments(&server.data_dir()).unwrap();
    assert_eq!(segments.len(), 3, "{segments:?}");
    for (position, segment) in segments.iter().enumerate() {
        let aside = segment.with_extension("aside");
        fs::rename(segment, &aside).unwrap();
        let says = if position == 1 { "put them back" } else { "restore" };
        refusal(&mut server, &format!("segment {position} is missing"), &["log", says]);
        fs::rename(&aside, segment).unwrap();
    }
    has_everything(&mut server, 100, BYTES).await;
}

#[tokio::test]
async fn damaged_database_is_refused_and_left_alone() {
    // Without snapshots: some of these start, and the log must still fit the database of before.
    let mut server = Server::start(Kind::Oxetcd, &[]).unwrap().unwrap();
    write(&server, 0..25, 0).await;
    server.terminate().unwrap();
    let dir = server.data_dir().join("member/snap/db.lmdb");
    let file = dir.join("data.mdb");
    let path = file.to_str().unwrap().to_owned();
    let whole = fs::read(&file).unwrap();

    for at in files::find(&file, &value(3, 0)).unwrap() {
        files::flip(&file, at, 0x10).unwrap();
    }
    refusal(&mut server, "a bit of a row", &[&path, "checksum", "row of revision 5_0", "restore"]);
    fs::write(&file, &whole).unwrap();

    // The length of the row: 256 MiB, far beyond the end of the file.
    let header = [[0, 0, 16, 0].as_slice(), &5_u64.to_be_bytes(), &0_u64.to_be_bytes()].concat();
    for at in files::find(&file, &header).unwrap() {
        files::flip(&file, at - 1, 0x10).unwrap();
    }
    refusal(&mut server, "a length", &[&path, "shape", "row of revision 5_0", "restore"]);
    fs::write(&file, &whole).unwrap();

    for bytes in [100, 4_096, 8_192, 20_000] {
        fs::write(&file, &whole[..bytes]).unwrap();
        refusal(&mut server, &format!("{bytes} bytes of the database"), &["db.lmdb", "restore"]);
    }
    fs::write(&file, &whole).unwrap();
    // The number of the last page, the counts of pages and the root, in the first meta page; LMDB
    // has no checksum over it. A start is refused, or goes on from the other page and the log.
    for at in [102, 110, 118, 128, 134, 140, 142] {
        files::flip(&file, at, 0x40).unwrap();
        match server.attempt().unwrap() {
            Attempt::Ended(ended) => {
                assert_eq!(ended.status.code(), Some(1), "byte {at}: {}", ended.log);
                assert!(ended.log.contains("db.lmdb"), "byte {at}: {}", ended.log);
            }
            Attempt::Ready => {
                assert_eq!(read(&server).await.len(), 25, "byte {at} lost keys");
                server.terminate().unwrap();
            }
        }
        fs::write(&file, &whole).unwrap();
    }
    has_everything(&mut server, 25, 0).await;
}

#[tokio::test]
async fn emptied_directories_are_refused_and_left_alone() {
    let mut server = filled(Kind::Oxetcd, 25, 0).await.unwrap();
    let member = server.data_dir().join("member");
    for (name, says) in [("wal", "bring back the log"), ("snap", "of the backend is missing")] {
        let aside = member.with_file_name("aside");
        fs::rename(member.join(name), &aside).unwrap();
        refusal(&mut server, &format!("{name} is gone"), &[name, says]);
        if !member.join(name).exists() {
            fs::create_dir(member.join(name)).unwrap();
        }
        refusal(&mut server, &format!("{name} is empty"), &[name, says]);
        fs::remove_dir_all(member.join(name)).unwrap();
        fs::rename(&aside, member.join(name)).unwrap();
    }
    has_everything(&mut server, 25, 0).await;
}

#[tokio::test]
async fn halves_of_two_members_are_refused() {
    let mut ours = filled(Kind::Oxetcd, 25, 0).await.unwrap();
    let mut other = filled(Kind::Oxetcd, 45, 0).await.unwrap();
    let swap = |name: &str| {
        let (a, b) = (ours.data_dir().join("member"), other.data_dir().join("member"));
        let aside = a.join("aside");
        fs::rename(a.join(name), &aside).unwrap();
        fs::rename(b.join(name), a.join(name)).unwrap();
        fs::rename(&aside, b.join(name)).unwrap();
    };
    swap("wal");
    let (mut first, mut second) = (ours.second().unwrap(), other.second().unwrap());
    refusal(&mut first, "a longer log of another member", &["member"]);
    refusal(&mut second, "a shorter log of another member", &["member"]);
    swap("wal");
    has_everything(&mut ours, 25, 0).await;
    has_everything(&mut other, 45, 0).await;
}

#[tokio::test]
async fn second_process_waits_and_the_first_goes_on() {
    let server = Server::start(Kind::Oxetcd, &FLAGS).unwrap().unwrap();
    write(&server, 0..5, 0).await;
    let mut second = server.second().unwrap();
    let ready = second.launch().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    // It says so after etcd's ten seconds, and waits on.
    while !fs::read_to_string(second.log_path()).unwrap().contains("by another process") {
        assert!(Instant::now() < deadline, "the second process does not say why it waits");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(second.is_running() && !ready.is_ready_now(), "two processes serve one directory");
    second.kill();
    write(&server, 5..10, 0).await;
    assert_eq!(read(&server).await.len(), 10, "the first process is hurt");
}

#[tokio::test]
async fn changed_name_and_cluster_flags_of_an_old_member_are_taken_alike() {
    for kind in [Kind::Official, Kind::Oxetcd] {
        let Some(mut server) = filled(kind, 5, 0).await else { return };
        let peer = server.peer_url();
        let renamed = format!("--initial-cluster=other={peer}");
        for flags in [
            ["--name=other", &renamed],
            ["--initial-cluster-token=other", "--snapshot-count=10"],
            ["--initial-cluster-state=new", "--snapshot-count=10"],
        ] {
            server.set_flags(&flags);
            server.resume().unwrap();
            assert_eq!(read(&server).await.len(), 5, "{kind:?} with {flags:?}");
            server.terminate().unwrap();
        }
    }
}

#[tokio::test]
async fn unusable_data_directory_is_refused_alike() {
    for kind in [Kind::Official, Kind::Oxetcd] {
        let Some(mut server) = Server::prepare(kind, &[]).unwrap() else { return };
        fs::write(server.data_dir(), "a file").unwrap();
        let last = refusal(&mut server, "a file instead of a directory", &["data"]);
        assert!(last.to_lowercase().contains("not a directory"), "{kind:?}: {last}");
        fs::remove_file(server.data_dir()).unwrap();
    }
}

/// Runs `etcdctl`; the text of its answer.
fn etcdctl(server: &Server, words: &[&str]) -> String {
    let program = official::program("etcdctl").unwrap().unwrap();
    let mut command = Command::new(program);
    command.arg(format!("--endpoints={}", server.endpoint())).args(words).stdin(Stdio::null());
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "etcdctl {words:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn add_root(server: &Server) {
    etcdctl(server, &["user", "add", "root:secret"]);
    etcdctl(server, &["user", "grant-role", "root", "root"]);
}

/// Starts ours on a copy of `data_dir`.
fn start_ours_on(data_dir: &Path) -> (Server, Attempt) {
    let mut ours = Server::prepare(Kind::Oxetcd, &[]).unwrap().unwrap();
    files::replace(data_dir, &ours.data_dir()).unwrap();
    let attempt = ours.attempt().unwrap();
    (ours, attempt)
}

fn refused_for_auth(data_dir: &Path, what: &str) -> String {
    let (_ours, attempt) = start_ours_on(data_dir);
    let Attempt::Ended(ended) = attempt else { panic!("{what}: served without protection") };
    assert_eq!(ended.status.code(), Some(1), "{what}: {}", ended.log);
    let last = ended.log.lines().last().unwrap_or_default().to_owned();
    assert!(last.contains("etcdctl auth disable"), "{what}: {last}");
    last
}

#[tokio::test]
async fn protected_data_is_not_served_without_its_protection() {
    let Some(mut official) = Server::start(Kind::Official, &[]).unwrap() else { return };
    write(&official, 0..5, 0).await;
    let before = official.work_dir().join("before");
    files::copy(&official.data_dir().join("member/snap"), &before).unwrap();
    add_root(&official);
    etcdctl(&official, &["auth", "enable"]);
    official.terminate().unwrap();
    let data_dir = official.data_dir();
    let last = refused_for_auth(&data_dir, "authentication in the database");
    assert!(last.contains("has authentication enabled"), "{last}");

    // The database of before, and all of it in the log only.
    let snap = data_dir.join("member/snap");
    let after = official.work_dir().join("after");
    fs::rename(&snap, &after).unwrap();
    fs::rename(&before, &snap).unwrap();
    let last = refused_for_auth(&data_dir, "authentication in the log");
    assert!(last.contains("of the log is AuthUserAdd"), "{last}");

    // What the sentence says helps.
    fs::remove_dir_all(&snap).unwrap();
    fs::rename(&after, &snap).unwrap();
    official.resume().unwrap();
    etcdctl(&official, &["--user=root:secret", "auth", "disable"]);
    official.terminate().unwrap();
    let (ours, attempt) = start_ours_on(&data_dir);
    assert!(matches!(attempt, Attempt::Ready), "{attempt:?}");
    assert_eq!(read(&ours).await.len(), 5, "keys are lost");
}

#[tokio::test]
async fn row_that_is_damaged_under_a_running_server_is_not_served() {
    // A damaged row that is met only after the start: the read fails, and nothing wrong is served.
    let mut server = filled(Kind::Oxetcd, 25, 0).await.unwrap();
    server.resume().unwrap();
    let file = server.data_dir().join("member/snap/db.lmdb/data.mdb");
    for at in files::find(&file, &value(3, 0)).unwrap() {
        files::flip(&file, at, 0x10).unwrap();
    }
    let mut client = Client::connect(&server).await.unwrap();
    let get = |key: &'static str| RangeRequest { key: key.into(), ..Default::default() };
    let damaged = client.call(Call::Range(get("k003"))).await;
    assert!(damaged.contains("corrupt cluster"), "{damaged}");
    let whole = client.call(Call::Range(get("k004"))).await;
    assert!(whole.contains("the value of key 004"), "{whole}");
}
