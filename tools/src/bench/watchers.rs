//! Many watchers in a thread of their own, and how many events reached them.
//!
//! Decides how watchers are spread over streams and connections, and counts what arrives without
//! decoding more than it must. The thread sleeps in `poll`; whoever waits for events is woken
//! through a channel. Called by the scenarios that watch.

use std::{
    net::SocketAddr,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use prost::Message;
use proto::etcdserverpb::{
    WatchCreateRequest, WatchRequest, WatchResponse, watch_request::RequestUnion,
};

use super::{
    http2::{Answer, Connection, Handler, Poller, StreamId},
    load::{CONNECTIONS, TellAtEnd},
    path,
};

/// How long events may take.
const EVENTS_MAX: Duration = Duration::from_secs(120);
/// How often the thread looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How watchers are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Streams.
    pub streams: usize,
    /// Watchers of each stream.
    pub per_stream: usize,
}

impl Spread {
    /// All watchers.
    #[must_use]
    pub const fn watchers(self) -> u64 {
        (self.streams * self.per_stream) as u64
    }
}

/// What a thread that only counts needs to know of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// How many there were.
    Count,
    /// The revision of each, and when it arrived.
    Arrivals,
}

/// What watchers have seen so far; shared between their thread and whoever waits.
#[derive(Debug)]
pub struct Seen {
    created: AtomicU64,
    events: AtomicU64,
    end: AtomicBool,
}

/// Events of [`Detail::Arrivals`]: revision and time.
pub type Arrivals = Vec<(i64, Instant)>;

/// Waits for watchers.
#[derive(Debug)]
pub struct Observer<'a> {
    seen: &'a Seen,
    progress: Receiver<()>,
}

/// Runs `work` while watchers as in `spread` watch what `create` says; they are in place when it
/// starts. Returns what `work` returned, and the arrivals.
///
/// # Errors
/// If a watcher is refused or ends, or the server is gone.
pub fn watching<T>(
    address: SocketAddr,
    spread: Spread,
    create: &WatchCreateRequest,
    detail: Detail,
    work: impl FnOnce(&Observer<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<(T, Arrivals)> {
    let seen =
        Seen { created: AtomicU64::new(0), events: AtomicU64::new(0), end: AtomicBool::new(false) };
    let (sender, progress) = sync_channel(1);
    let thread = Thread { seen: &seen, progress: sender, detail, arrivals: vec![], fault: None };
    std::thread::scope(|scope| {
        let watchers = scope.spawn(|| thread.run(address, spread, create));
        let observer = Observer { seen: &seen, progress };
        let outcome = {
            let _end = TellAtEnd(&seen.end);
            work(&observer)
        };
        let arrivals = watchers.join().expect("a thread of watchers reports faults as errors");
        // A watcher that failed is the reason why the work waited in vain.
        let arrivals = arrivals?;
        Ok((outcome?, arrivals))
    })
}

impl Observer<'_> {
    /// Waits until so many watchers are in place.
    ///
    /// # Errors
    /// If that takes too long.
    pub fn wait_created(&self, count: u64) -> anyhow::Result<()> {
        self.wait(&self.seen.created, count, "watchers")
    }

    /// Waits until so many events have arrived since the start.
    ///
    /// # Errors
    /// If that takes too long.
    pub fn wait_events(&self, count: u64) -> anyhow::Result<()> {
        self.wait(&self.seen.events, count, "events")
    }

    fn wait(&self, counter: &AtomicU64, count: u64, what: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + EVENTS_MAX;
        loop {
            let now = counter.load(Ordering::Acquire);
            if count <= now {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.progress.recv_timeout(left) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => bail!("{now} of {count} {what} have come"),
                Err(RecvTimeoutError::Disconnected) => bail!("the thread of watchers ended"),
            }
        }
    }
}

/// The thread that owns the streams.
struct Thread<'a> {
    seen: &'a Seen,
    progress: SyncSender<()>,
    detail: Detail,
    arrivals: Arrivals,
    fault: Option<String>,
}

impl Thread<'_> {
    fn run(
        mut self,
        address: SocketAddr,
        spread: Spread,
        create: &WatchCreateRequest,
    ) -> anyhow::Result<Arrivals> {
        let connections = spread.streams.min(CONNECTIONS);
        let mut connections: Vec<_> =
            (0..connections).map(|_| Connection::open(address)).collect::<Result<_, _>>()?;
        let create = RequestUnion::CreateRequest(create.clone());
        let request = WatchRequest { request_union: Some(create) }.encode_to_vec();
        for stream in 0..spread.streams {
            let at = stream % connections.len();
            let id = connections[at].open_stream(path::WATCH, Answer::Messages);
            for _ in 0..spread.per_stream {
                connections[at].message(id, &request)?;
            }
        }
        let mut poller = Poller::default();
        while !self.seen.end.load(Ordering::Acquire) {
            for connection in &mut connections {
                connection.flush()?;
            }
            let ready = poller.wait(&mut connections, LOOK_EVERY)?.to_vec();
            for (at, _) in ready.iter().enumerate().filter(|(_, ready)| **ready) {
                connections[at].read(&mut self)?;
            }
            if let Some(fault) = self.fault.take() {
                bail!("watching failed: {fault}");
            }
            if ready.contains(&true) {
                // Full means that whoever waits is about to look anyway.
                let _full = self.progress.try_send(());
            }
        }
        Ok(self.arrivals)
    }

    fn note(&mut self, message: &[u8]) -> anyhow::Result<()> {
        if self.detail == Detail::Arrivals {
            let now = Instant::now();
            let answer = WatchResponse::decode(message)?;
            let kvs = answer.events.iter().filter_map(|event| event.kv.as_ref());
            self.arrivals.extend(kvs.map(|kv| (kv.mod_revision, now)));
        }
        let summary = Summary::read(message)?;
        ensure!(!summary.canceled, "a watcher was canceled");
        self.seen.created.fetch_add(u64::from(summary.created), Ordering::AcqRel);
        self.seen.events.fetch_add(summary.events, Ordering::AcqRel);
        Ok(())
    }
}

impl Handler for Thread<'_> {
    fn message(&mut self, _stream: StreamId, message: &[u8]) {
        if let Err(error) = self.note(message) {
            self.fault.get_or_insert(format!("{error:#}"));
        }
    }

    fn ended(&mut self, _stream: StreamId, status: u32, text: &str) {
        self.fault.get_or_insert(format!("a stream ended with {status}: {text}"));
    }
}

/// What a watch answer says, without its events' contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Summary {
    created: bool,
    canceled: bool,
    events: u64,
}

/// Wire types of protobuf.
const VARINT: u64 = 0;
const BYTES: u64 = 2;
/// Field numbers of a `WatchResponse`.
const CREATED: u64 = 3;
const CANCELED: u64 = 4;
const EVENTS: u64 = 11;

impl Summary {
    fn read(mut message: &[u8]) -> anyhow::Result<Self> {
        let mut summary = Self::default();
        while !message.is_empty() {
            let tag = varint(&mut message)?;
            let value = varint(&mut message)?;
            match (tag >> 3, tag & 7) {
                (CREATED, VARINT) => summary.created = value != 0,
                (CANCELED, VARINT) => summary.canceled = value != 0,
                (_, VARINT) => {}
                (field, BYTES) => {
                    let length = usize::try_from(value)?;
                    message = message.get(length..).context("a field ends early")?;
                    summary.events += u64::from(field == EVENTS);
                }
                (field, kind) => bail!("field {field} has wire type {kind}"),
            }
        }
        Ok(summary)
    }
}

fn varint(bytes: &mut &[u8]) -> anyhow::Result<u64> {
    prost::encoding::decode_varint(bytes).context("a number ends early")
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::{
        etcdserverpb::{ResponseHeader, WatchResponse},
        mvccpb::Event,
    };

    use super::Summary;

    #[test]
    fn summary_counts_events_and_sees_flags() {
        let header = ResponseHeader { revision: 300, ..Default::default() };
        let mut answer = WatchResponse { header: Some(header), ..Default::default() };
        answer.events = vec![Event::default(); 3];
        let summary = Summary::read(&answer.encode_to_vec()).unwrap();
        assert_eq!(summary, Summary { created: false, canceled: false, events: 3 });
        answer.events.clear();
        (answer.created, answer.canceled, answer.watch_id) = (true, true, 1 << 40);
        let summary = Summary::read(&answer.encode_to_vec()).unwrap();
        assert_eq!(summary, Summary { created: true, canceled: true, events: 0 });
        assert!(Summary::read(&[0x5a, 9, 1]).is_err(), "an event that ends early");
    }
}
