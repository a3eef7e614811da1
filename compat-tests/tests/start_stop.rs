//! Requests that meet a server which is not there yet, or not for long: they are answered rightly
//! or fail, and what was acknowledged is there at the next start. So it is on a full disk.
#![expect(clippy::unwrap_used, reason = "a failed step of a test ends it")]
#![expect(clippy::disallowed_methods, reason = "servers under test run on real time")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use oxetcd_compat_tests::{
    script::Client,
    server::{Attempt, Kind, Server},
};
use proto::etcdserverpb::{PutRequest, RangeRequest};
use tokio::{sync::Barrier, task::JoinSet};
use tonic::{Code, Status};

/// Writers at work when a server is stopped.
const WRITERS: usize = 8;

type Acknowledged = BTreeMap<Vec<u8>, Vec<u8>>;

async fn put(client: &Client, key: &str, value: Vec<u8>) -> Result<(), Status> {
    let value = value.into();
    let put = PutRequest { key: key.to_owned().into(), value, ..Default::default() };
    client.kv().put(put).await.map(drop)
}

async fn read_all(client: &Client) -> Result<Acknowledged, Status> {
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let answer = client.kv().range(all).await?.into_inner();
    Ok(answer.kvs.into_iter().map(|kv| (kv.key.to_vec(), kv.value.to_vec())).collect())
}

/// Every acknowledged write is there; others may be.
async fn has(server: &Server, acknowledged: &Acknowledged) {
    let found = read_all(&Client::connect(server).await.unwrap()).await.unwrap();
    for (key, value) in acknowledged {
        let key_text = String::from_utf8_lossy(key);
        assert!(found.get(key) == Some(value), "{key_text} was acknowledged and is not there");
    }
}

#[tokio::test]
async fn client_of_a_starting_server_gets_everything_or_nothing() {
    for kind in [Kind::Official, Kind::Oxetcd] {
        let Some(mut server) = Server::start(kind, &[]).unwrap() else { return };
        let client = Client::connect(&server).await.unwrap();
        for key in 0..300 {
            put(&client, &format!("k{key}"), vec![b'x'; 1_000]).await.unwrap();
        }
        drop(client);
        // The log is all that is left of most of this.
        server.kill();
        let ready = server.launch().unwrap();
        let (mut refused, mut answered) = (0, 0);
        let deadline = Instant::now() + Duration::from_secs(30);
        while answered < 20 {
            assert!(Instant::now() < deadline, "{kind:?} refused {refused} times");
            let Ok(client) = Client::connect(&server).await else { continue };
            match read_all(&client).await {
                Ok(keys) => {
                    assert_eq!(keys.len(), 300, "{kind:?} answered before it had everything");
                    answered += 1;
                }
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{kind:?}: {status}");
                    refused += 1;
                }
            }
        }
        assert!(ready.wait(), "{kind:?} never became ready");
    }
}

/// Writes until the first failure: what was acknowledged, and the failure. Passes `begun` with the
/// first answer.
async fn write(client: Client, writer: usize, begun: Arc<Barrier>) -> (Acknowledged, Status) {
    let mut acknowledged = Acknowledged::new();
    for step in 0.. {
        let (key, value) = (format!("w{writer}/{step}"), format!("v{step}").into_bytes());
        let answer = put(&client, &key, value.clone()).await;
        if step == 0 {
            begun.wait().await;
        }
        if let Err(status) = answer {
            return (acknowledged, status);
        }
        acknowledged.insert(key.into_bytes(), value);
    }
    unreachable!("writers end with the server")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_during_a_stop_are_kept_or_fail() {
    let mut server = Server::start(Kind::Oxetcd, &[]).unwrap().unwrap();
    let mut acknowledged = Acknowledged::new();
    for round in 0..5 {
        let mut writers = JoinSet::new();
        let begun = Arc::new(Barrier::new(WRITERS + 1));
        for writer in 0..WRITERS {
            let client = Client::connect(&server).await.unwrap();
            writers.spawn(write(client, round * WRITERS + writer, Arc::clone(&begun)));
        }
        begun.wait().await;
        tokio::task::block_in_place(|| server.terminate()).unwrap();
        while let Some(end) = writers.join_next().await {
            let (written, status) = end.unwrap();
            assert!(!written.is_empty(), "a writer was never answered: {status}");
            // All but the first are tonic's words for a connection that ended under a call, or was
            // announced to end before one.
            let codes = [Code::Unavailable, Code::Cancelled, Code::Unknown];
            let goes_away = status.code() == Code::Internal
                && status.message().starts_with("h2 protocol error");
            assert!(goes_away || codes.contains(&status.code()), "round {round}: {status}");
            acknowledged.extend(written);
        }
        server.resume().unwrap();
        has(&server, &acknowledged).await;
    }
}

/// A file system of its own size, which only processes inside of its namespace see. Gone with this.
struct SmallDisk {
    keeper: Child,
    dir: PathBuf,
}

impl SmallDisk {
    /// `None`, after a sentence, where a process may not have a namespace.
    fn mount(dir: &Path, size: &str) -> Option<Self> {
        let script = format!("mount -t tmpfs -o size={size} none \"$0\" && echo mounted && read x");
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).arg(dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut keeper = command.spawn().ok()?;
        let mut line = String::new();
        BufReader::new(keeper.stdout.take()?).read_line(&mut line).ok()?;
        let disk = Self { keeper, dir: dir.to_owned() };
        if line.trim() == "mounted" {
            return Some(disk);
        }
        #[expect(clippy::print_stderr, reason = "a reader must see what is skipped")]
        {
            eprintln!("SKIPPED: needs a namespace with a file system of its own (unshare)");
        }
        None
    }

    /// The words that run a program inside.
    fn enter(&self) -> Vec<String> {
        let pid = self.keeper.id().to_string();
        ["nsenter", "--preserve-credentials", "--user", "--mount", "--target", &pid]
            .map(str::to_owned)
            .to_vec()
    }

    fn grow(&self, size: &str) {
        let words = self.enter();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["mount", "-o", &format!("remount,size={size}")]);
        assert!(command.arg(&self.dir).status().unwrap().success(), "cannot grow the disk");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.keeper.kill());
        drop(self.keeper.wait());
    }
}

fn says_why(log: &str) -> bool {
    log.contains("No space left") || log.contains("see that its disk is not full")
}

#[tokio::test]
async fn full_disk_loses_nothing_that_was_acknowledged() {
    let mut server = Server::prepare(Kind::Oxetcd, &[]).unwrap().unwrap();
    let dir = server.work_dir().join("disk");
    std::fs::create_dir(&dir).unwrap();
    // One segment of the log, and not a second one beside the database.
    let Some(disk) = SmallDisk::mount(&dir, "96m") else { return };
    server.set_data_dir(dir.join("data"));
    server.set_wrapper(disk.enter());
    server.resume().unwrap();

    let client = Client::connect(&server).await.unwrap();
    let mut acknowledged = Acknowledged::new();
    for step in 0..200_u8 {
        let (key, value) = (format!("k{step:03}"), vec![step; 1 << 20]);
        if put(&client, &key, value.clone()).await.is_err() {
            break;
        }
        acknowledged.insert(key.into_bytes(), value);
    }
    assert!((10..200).contains(&acknowledged.len()), "{} writes", acknowledged.len());
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.is_running() {
        assert!(Instant::now() < deadline, "the server goes on although it cannot write");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.kill();
    let log = std::fs::read_to_string(server.log_path()).unwrap();
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains("\"fatal\"") && says_why(last), "not loud: {last}");

    // Still full: it refuses, or starts with everything.
    match server.attempt().unwrap() {
        Attempt::Ready => server.kill(),
        Attempt::Ended(ended) => {
            assert!(says_why(&ended.log), "not said why: {}", ended.log);
        }
    }
    disk.grow("400m");
    server.resume().unwrap();
    has(&server, &acknowledged).await;
    let client = Client::connect(&server).await.unwrap();
    put(&client, "after", vec![1; 1 << 20]).await.unwrap();
    server.kill();
}
