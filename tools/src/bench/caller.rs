//! One call after the other: what a run asks a server beside its load.
//!
//! Decides nothing about measuring. Used to fill a store, to verify one, and for calls that are
//! measured one at a time (lists, snapshots, maintenance). Owned by the thread that calls.

use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use prost::Message;
use proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DefragmentRequest, DefragmentResponse,
    LeaseGrantRequest, LeaseGrantResponse, RangeRequest, RangeResponse, StatusRequest,
    StatusResponse,
};

use super::{
    http2::{Answer, Connection, Handler, Poller, StreamId},
    ledger::{self, Found, Ledger},
    path,
};

/// How long one call may take: a defragmentation of a large store is the slowest.
const CALL_MAX: Duration = Duration::from_secs(300);

/// How many values a verification compares.
const SAMPLE: u64 = 1000;

/// A connection for one call at a time.
#[derive(Debug)]
pub struct Caller {
    connection: [Connection; 1],
    poller: Poller,
}

/// What one call received.
#[derive(Default)]
struct Received {
    messages: Vec<Vec<u8>>,
    bytes: u64,
    status: Option<(u32, String)>,
}

impl Handler for Received {
    fn message(&mut self, _stream: StreamId, message: &[u8]) {
        self.messages.push(message.to_vec());
    }

    fn counted(&mut self, _stream: StreamId, bytes: u64) {
        self.bytes += bytes;
    }

    fn ended(&mut self, _stream: StreamId, status: u32, text: &str) {
        self.status = Some((status, text.to_owned()));
    }
}

impl Caller {
    /// Connects.
    ///
    /// # Errors
    /// If nobody listens.
    pub fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { connection: [Connection::open(address)?], poller: Poller::default() })
    }

    /// Calls `path` and returns its one answer.
    ///
    /// # Errors
    /// If the answer is an error, or none comes in time.
    pub fn call<A: Message + Default>(
        &mut self,
        path: &'static str,
        request: &impl Message,
    ) -> anyhow::Result<A> {
        let received = self.exchange(path, request, Answer::Messages)?;
        let message = received.messages.first().with_context(|| format!("{path}: no answer"))?;
        A::decode(&message[..]).with_context(|| format!("{path}: the answer is not readable"))
    }

    /// Calls `path` and counts the bytes of its answers.
    ///
    /// # Errors
    /// As [`Caller::call`].
    pub fn count(&mut self, path: &'static str, request: &impl Message) -> anyhow::Result<u64> {
        Ok(self.exchange(path, request, Answer::Count)?.bytes)
    }

    fn exchange(
        &mut self,
        path: &'static str,
        request: &impl Message,
        answer: Answer,
    ) -> anyhow::Result<Received> {
        let [connection] = &mut self.connection;
        connection.call(path, &request.encode_to_vec(), answer)?;
        connection.flush()?;
        let mut received = Received::default();
        let deadline = Instant::now() + CALL_MAX;
        while received.status.is_none() {
            ensure!(Instant::now() < deadline, "{path} was not answered within {CALL_MAX:?}");
            let ready = self.poller.wait(&mut self.connection, Duration::from_secs(1))?;
            if ready.contains(&true) {
                self.connection[0].read(&mut received)?;
            }
        }
        match &received.status {
            Some((0, _)) => Ok(received),
            Some((code, text)) => bail!("{path} answered {code}: {text}"),
            None => bail!("{path} has no status"),
        }
    }

    /// The keys in a range, as `request` asks.
    ///
    /// # Errors
    /// As [`Caller::call`].
    pub fn range(&mut self, request: &RangeRequest) -> anyhow::Result<RangeResponse> {
        self.call(path::RANGE, request)
    }

    /// The present revision.
    ///
    /// # Errors
    /// As [`Caller::call`].
    pub fn revision(&mut self) -> anyhow::Result<i64> {
        let request = RangeRequest { key: "\0".into(), count_only: true, ..Default::default() };
        let answer = self.range(&request)?;
        Ok(answer.header.context("an answer has a header")?.revision)
    }

    /// Who leads as this member knows, 0 if nobody, and who it is itself.
    ///
    /// # Errors
    /// As [`Caller::call`].
    pub fn leader(&mut self) -> anyhow::Result<(u64, u64)> {
        let answer: StatusResponse = self.call(path::STATUS, &StatusRequest {})?;
        Ok((answer.leader, answer.header.context("an answer has a header")?.member_id))
    }

    /// Drops history below `revision`; returns when it is gone.
    ///
    /// # Errors
    /// As [`Caller::call`].
    pub fn compact(&mut self, revision: i64) -> anyhow::Result<()> {
        let request = CompactionRequest { revision, physical: true };
        let _answer: CompactionResponse = self.call(path::COMPACT, &request)?;
        Ok(())
    }

    /// Defragments.
    ///
    /// # Errors
    /// As [`Caller::call`].
    pub fn defragment(&mut self) -> anyhow::Result<()> {
        let _answer: DefragmentResponse = self.call(path::DEFRAGMENT, &DefragmentRequest {})?;
        Ok(())
    }

    /// Grants a lease with an id that the server chooses.
    ///
    /// # Errors
    /// As [`Caller::call`].
    pub fn grant(&mut self, ttl_seconds: i64) -> anyhow::Result<i64> {
        let request = LeaseGrantRequest { ttl: ttl_seconds, id: 0 };
        let answer: LeaseGrantResponse = self.call(path::LEASE_GRANT, &request)?;
        Ok(answer.id)
    }

    /// Compares the server with a ledger; `revisions` are those that the writes can have led to.
    ///
    /// # Errors
    /// If an acknowledged write is missing.
    pub fn verify(
        &mut self,
        ledger: &Ledger,
        revisions: &RangeInclusive<i64>,
    ) -> anyhow::Result<()> {
        let all = RangeRequest {
            key: ledger.prefix().into(),
            range_end: ledger.range_end().into(),
            count_only: true,
            ..Default::default()
        };
        let answer = self.range(&all)?;
        let revision = answer.header.context("an answer has a header")?.revision;
        let sample = ledger.sample(SAMPLE);
        let mut values = Vec::with_capacity(sample.len());
        for (_, key) in &sample {
            let request = RangeRequest { key: key.to_vec().into(), ..Default::default() };
            let answer = self.range(&request)?;
            values.push(answer.kvs.into_iter().next().map(|kv| kv.value.to_vec()));
        }
        let found = Found { revision, count: answer.count, values };
        ledger::check(ledger, &sample, revisions, &found)
    }
}
