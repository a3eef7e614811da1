//! Members without a replica: they keep what they hear.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use proto::raftpb::{Message, MessageType};
use tempfile::TempDir;

use crate::{
    base::{
        clock::Clock,
        thread::{self, Priority},
    },
    consensus::SnapshotReport,
    model::{ClusterId, LogIndex, MemberId},
    transport::{Local, PeerAnswer, PeerCall, Settings, Transport, transport},
};

/// Longer than anything takes that is expected to happen.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) const CLUSTER: ClusterId = ClusterId(0xc1);

/// What a member heard.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) messages: Vec<Message>,
    pub(super) unreachable: BTreeSet<MemberId>,
    pub(super) gone: Vec<MemberId>,
    pub(super) snapshots: Vec<(MemberId, SnapshotReport)>,
    pub(super) calls: Vec<PeerCall>,
    pub(super) removed: bool,
}

/// The member behind a transport.
#[derive(Debug)]
pub(super) struct Ears {
    heard: Mutex<Heard>,
    changed: Condvar,
    pub(super) banned: Mutex<BTreeSet<MemberId>>,
    pub(super) directory: TempDir,
}

impl Ears {
    /// Waits until `wanted` gives something.
    #[track_caller]
    pub(super) fn until<T>(
        &self,
        what: &str,
        mut wanted: impl FnMut(&mut Heard) -> Option<T>,
    ) -> T {
        let deadline = now() + PATIENCE;
        let mut heard = self.heard.lock().expect("no panic");
        loop {
            if let Some(found) = wanted(&mut heard) {
                return found;
            }
            let left = deadline.saturating_duration_since(now());
            assert!(!left.is_zero(), "{what} did not happen; heard {heard:?}");
            heard = self.changed.wait_timeout(heard, left).expect("no panic").0;
        }
    }

    fn hear(&self, change: impl FnOnce(&mut Heard)) {
        change(&mut self.heard.lock().expect("no panic"));
        self.changed.notify_all();
    }
}

#[expect(clippy::disallowed_methods, reason = "tests of sockets wait in real time")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Waits until `wanted` is true of something that nobody tells about.
#[track_caller]
pub(super) fn eventually(what: &str, mut wanted: impl FnMut() -> bool) {
    let deadline = now() + PATIENCE;
    while !wanted() {
        assert!(now() < deadline, "{what} did not happen");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

impl Local for Ears {
    fn step(&self, message: Message) {
        self.hear(|heard| heard.messages.push(message));
    }

    fn unreachable(&self, member: MemberId) {
        self.hear(|heard| heard.unreachable.extend([member]));
    }

    fn gone(&self, member: MemberId) {
        self.hear(|heard| heard.gone.push(member));
    }

    fn snapshot_sent(&self, member: MemberId, report: SnapshotReport) {
        self.hear(|heard| heard.snapshots.push((member, report)));
    }

    fn is_removed(&self, member: MemberId) -> bool {
        self.banned.lock().expect("no panic").contains(&member)
    }

    fn snapshot_path(&self, index: LogIndex) -> PathBuf {
        self.directory.path().join(format!("{:016x}.snap.db", index.0))
    }

    fn removed(&self) {
        self.hear(|heard| heard.removed = true);
    }

    fn call(&self, call: PeerCall) -> Pin<Box<dyn Future<Output = PeerAnswer> + Send>> {
        let body = Bytes::from(format!("{call:?}"));
        self.hear(|heard| heard.calls.push(call));
        Box::pin(async move { PeerAnswer { status: 200, content_type: "application/json", body } })
    }
}

/// A member that runs.
pub(super) struct Member {
    pub(super) id: MemberId,
    pub(super) address: SocketAddr,
    pub(super) transport: Transport,
    pub(super) ears: Arc<Ears>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Member {
    pub(super) fn start(id: u64) -> Self {
        Self::start_at(id, "127.0.0.1:0".parse().expect("an address"), CLUSTER)
    }

    pub(super) fn start_at(id: u64, address: SocketAddr, cluster: ClusterId) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let settings = Settings {
            member: MemberId(id),
            cluster,
            peer_urls: vec![format!("http://{address}")],
            server_version: "3.7.1",
        };
        let ears = Arc::new(Ears {
            heard: Mutex::default(),
            changed: Condvar::new(),
            banned: Mutex::default(),
            directory: TempDir::new().expect("a directory"),
        });
        let (transport, service) = transport(settings, Clock::system());
        let local = Arc::clone(&ears);
        let thread =
            thread::spawn("peer", Priority::Normal, move || service.run(vec![listener], local))
                .expect("a thread");
        Self { id: MemberId(id), address, transport, ears, thread: Some(thread) }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn know(&self, other: &Self) {
        self.transport.set_peer(other.id, vec![other.url()]);
    }

    /// Sends a message that `index` marks.
    pub(super) fn send(&self, to: MemberId, kind: MessageType, index: u64) {
        self.transport.send(vec![self.message(to, kind, index)]);
    }

    pub(super) fn message(&self, to: MemberId, kind: MessageType, index: u64) -> Message {
        Message {
            r#type: Some(kind.into()),
            from: Some(self.id.0),
            to: Some(to.0),
            term: Some(1),
            index: Some(index),
            ..Message::default()
        }
    }

    /// Waits for the message that `index` marks.
    #[track_caller]
    pub(super) fn expect(&self, index: u64) -> Message {
        self.ears.until(&format!("message {index}"), |heard| {
            heard.messages.iter().find(|message| message.index() == index).cloned()
        })
    }

    pub(super) fn stop(&mut self) {
        self.transport.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic").expect("the system gave what it needs");
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Members that know each other.
pub(super) fn group<const N: usize>() -> [Member; N] {
    let members = std::array::from_fn(|number| Member::start(number as u64 + 1));
    for one in &members {
        for other in &members {
            one.know(other);
        }
    }
    members
}
