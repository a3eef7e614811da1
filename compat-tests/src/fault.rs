//! Crashes under load: writers with a ledger, `kill -9` at random instants, restart, compare.
//!
//! Decides what happens in a cycle. Writers put and delete; beside them, at random, history is
//! compacted, the backend defragmented, a backup taken, or large values written, so that kills
//! fall into all of these and into segment cuts of the log. After the restart every event since
//! the last cycle is compared with the ledger, then the keys, then the hash. Called by the binary
//! `fault` (long) and by a test (short).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::{
        CompactionRequest, DefragmentRequest, HashKvRequest, PutRequest, RangeRequest,
        SnapshotRequest, WatchCreateRequest, WatchRequest, watch_request::RequestUnion,
    },
    mvccpb::Event,
};
use tokio::task::JoinSet;

use crate::{
    ledger::{Attempt, Ledger},
    script::Client,
    server::Server,
};

/// Keys of one writer.
const KEYS_PER_WRITER: u64 = 20;

/// Writers at work in each cycle.
const WRITERS: u64 = 8;

/// Flags that make rare things frequent.
pub const FLAGS: [&str; 2] = ["--snapshot-count=150", "--snapshot-catchup-entries=50"];

/// What a cycle does beside writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    Nothing,
    Compact,
    Defragment,
    Backup,
    LargeValues,
}

/// A run of crash cycles on one server.
#[derive(Debug)]
pub struct FaultRun {
    server: Server,
    ledger: Ledger,
    random: Random,
    values: Arc<AtomicU64>,
    compacted: i64,
}

/// Numbers that a seed makes again.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

impl FaultRun {
    /// Cycles on `server`, whose store is empty. The same seed makes the same plans; what the
    /// kernel makes of them differs.
    #[must_use]
    pub fn new(server: Server, seed: u64) -> Self {
        Self {
            server,
            ledger: Ledger::new(),
            random: Random::new(seed),
            values: Arc::default(),
            compacted: -1,
        }
    }

    /// Writes acknowledged and found, and writes found without an answer.
    #[must_use]
    pub const fn counts(&self) -> (u64, u64) {
        self.ledger.counts()
    }

    /// Load, kill, restart, compare.
    ///
    /// # Errors
    /// With a sentence, if anything acknowledged is lost or anything else is wrong.
    pub async fn cycle(&mut self) -> anyhow::Result<()> {
        let beside = match self.random.below(10) {
            0 | 1 => Beside::Compact,
            2 => Beside::Defragment,
            3 => Beside::Backup,
            4 => Beside::LargeValues,
            _ => Beside::Nothing,
        };
        let life = Duration::from_millis(10 + self.random.below(250));
        self.load(beside, life).await?;
        self.server.resume()?;
        self.compare().await.with_context(|| format!("after a kill with {beside:?} beside"))
    }

    /// Runs writers until the server is killed, and enters what they did into the ledger.
    async fn load(&mut self, beside: Beside, life: Duration) -> anyhow::Result<()> {
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let client = Client::connect(&self.server).await?;
            let values = Arc::clone(&self.values);
            let bytes = if beside == Beside::LargeValues { 900_000 } else { 0 };
            writers.spawn(write(client, writer, values, bytes));
        }
        let client = Client::connect(&self.server).await?;
        let target = self.ledger.verified();
        let other = tokio::spawn(disturb(client, beside, target));
        tokio::time::sleep(life).await;
        self.server.kill();
        while let Some(attempts) = writers.join_next().await {
            self.ledger.add(attempts?);
        }
        other.await?;
        Ok(())
    }

    async fn compare(&mut self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.server).await?;
        let (head, rows) = read_all(&mut client).await?;
        let events = read_events(&mut client, self.ledger.verified() + 1, head).await?;
        self.ledger.verify(&events, head)?;
        ensure!(rows == self.ledger.live().into_values().collect::<Vec<_>>(), "keys differ");
        self.compare_hash(&mut client, head).await
    }

    async fn compare_hash(&mut self, client: &mut Client, head: i64) -> anyhow::Result<()> {
        let request = HashKvRequest { revision: head };
        let found = client.maintenance().hash_kv(request).await?.into_inner();
        ensure!(
            self.compacted <= found.compact_revision,
            "the compaction at {} was forgotten",
            self.compacted
        );
        self.compacted = found.compact_revision;
        let expected = self.ledger.hash(found.compact_revision);
        ensure!(found.hash == expected, "hash {} where {expected} is right", found.hash);
        Ok(())
    }
}

/// Writes until the server is gone.
async fn write(client: Client, writer: u64, values: Arc<AtomicU64>, bytes: usize) -> Vec<Attempt> {
    let mut kv = client.kv();
    let mut attempts = Vec::new();
    for step in 0.. {
        let unique = values.fetch_add(1, Ordering::Relaxed);
        let key = Bytes::from(format!("w{writer}/{:02}", step % KEYS_PER_WRITER));
        let mut value = format!("{unique:012}").into_bytes();
        value.resize(value.len() + bytes, b'.');
        let value = Bytes::from(value);
        let put = PutRequest { key: key.clone(), value: value.clone(), ..Default::default() };
        let answer = kv.put(put).await;
        let acknowledged = answer
            .as_ref()
            .ok()
            .and_then(|answer| answer.get_ref().header.as_ref())
            .map(|header| header.revision);
        attempts.push(Attempt { key, value, acknowledged });
        if answer.is_err() {
            break;
        }
    }
    attempts
}

/// Does something beside the writers. Whether it succeeds before the kill does not matter.
async fn disturb(client: Client, beside: Beside, target: i64) {
    match beside {
        Beside::Nothing | Beside::LargeValues => {}
        Beside::Compact => {
            let request = CompactionRequest { revision: target, physical: true };
            drop(client.kv().compact(request).await);
        }
        Beside::Defragment => drop(client.maintenance().defragment(DefragmentRequest {}).await),
        Beside::Backup => {
            if let Ok(stream) = client.maintenance().snapshot(SnapshotRequest {}).await {
                let mut stream = stream.into_inner();
                while let Ok(Some(_)) = stream.message().await {}
            }
        }
    }
}

/// The revision of the store, and the encoded rows of all keys in key order.
pub(crate) async fn read_all(client: &mut Client) -> anyhow::Result<(i64, Vec<Bytes>)> {
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let answer = client.kv().range(all).await?.into_inner();
    let head = answer.header.context("an answer without a header")?.revision;
    Ok((head, answer.kvs.iter().map(|kv| kv.encode_to_vec().into()).collect()))
}

/// Every event from `start` to `head`.
pub(crate) async fn read_events(
    client: &mut Client,
    start: i64,
    head: i64,
) -> anyhow::Result<Vec<Event>> {
    if head < start {
        return Ok(Vec::new());
    }
    let mut stream = client.watch();
    let create = WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        start_revision: start,
        ..Default::default()
    };
    let union = Some(RequestUnion::CreateRequest(create));
    stream.send(WatchRequest { request_union: union }).await?;
    let responses = stream
        .until(|response| {
            let last = response.events.last().and_then(|event| event.kv.as_ref());
            response.canceled || last.is_some_and(|kv| head <= kv.mod_revision)
        })
        .await?;
    Ok(responses.into_iter().flat_map(|response| response.events).collect())
}
