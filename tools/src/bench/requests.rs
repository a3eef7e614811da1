//! What is sent: puts, gets, Kubernetes' transactions, lists, lease keepalives.
//!
//! Decides the bytes of each request and what of its answer a load has to understand. Simple
//! requests are copied together without an encoder; the keys come from a [`Ledger`], so both servers
//! get the same. Called by the scenarios.

use anyhow::{Context, ensure};
use prost::Message;
use proto::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, PutRequest,
    RangeRequest, RequestOp, TxnRequest, TxnResponse,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op,
};

use super::{
    http2::Answer,
    ledger::{KEY_BYTES, Ledger, VALUE_BYTES},
    load::{Refusals, Requests, Style},
    path,
};

/// A field number with wire type 2, for `key` of a put and a range.
const KEY_FIELD: u8 = 1 << 3 | 2;
/// The same for `value` of a put.
const VALUE_FIELD: u8 = 2 << 3 | 2;
/// `serializable = true` of a range.
const SERIALIZABLE: [u8; 2] = [7 << 3, 1];

const KEY_LENGTH: [u8; 1] = [32];
const VALUE_LENGTH: [u8; 2] = [0x80, 0x02];
const _: () = assert!(KEY_BYTES == 32, "KEY_LENGTH is its varint");
const _: () = assert!(VALUE_BYTES == 256, "VALUE_LENGTH is its varint");

/// Puts over a ledger's keys.
#[derive(Debug)]
pub struct Puts<'a> {
    /// The keys, and what must be found of them later.
    pub ledger: &'a mut Ledger,
}

/// Puts that a server may refuse, because it is busy with something large. Which of them were is not
/// noted, so their ledger cannot be checked.
#[derive(Debug)]
pub struct RefusablePuts<'a>(pub Puts<'a>);

impl Requests for RefusablePuts<'_> {
    fn path(&self) -> &'static str {
        self.0.path()
    }

    fn next(&mut self, slot: usize, message: &mut Vec<u8>) {
        self.0.next(slot, message);
    }

    fn refusals(&self) -> Refusals {
        Refusals::Counted
    }
}

impl Requests for Puts<'_> {
    fn path(&self) -> &'static str {
        path::PUT
    }

    fn next(&mut self, _slot: usize, message: &mut Vec<u8>) {
        let (key, value) = self.ledger.next_put();
        message.push(KEY_FIELD);
        message.extend_from_slice(&KEY_LENGTH);
        message.extend_from_slice(&key);
        message.push(VALUE_FIELD);
        message.extend_from_slice(&VALUE_LENGTH);
        message.extend_from_slice(&value);
    }
}

/// How a get is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// From the member's own state.
    Serializable,
    /// After every write that was acknowledged before it.
    Linearizable,
}

/// Gets of single keys of a ledger.
#[derive(Debug)]
pub struct Gets<'a> {
    keys: &'a Ledger,
    reading: Reading,
    sent: u64,
}

impl<'a> Gets<'a> {
    /// Gets of keys that are there.
    #[must_use]
    pub const fn new(keys: &'a Ledger, reading: Reading) -> Self {
        Self { keys, reading, sent: 0 }
    }
}

impl Requests for Gets<'_> {
    fn path(&self) -> &'static str {
        path::RANGE
    }

    fn next(&mut self, _slot: usize, message: &mut Vec<u8>) {
        // Far apart in key order, and not in the order of writing.
        self.sent = self.sent.wrapping_add(1);
        let key = self.keys.written_key(self.sent.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20);
        message.push(KEY_FIELD);
        message.extend_from_slice(&KEY_LENGTH);
        message.extend_from_slice(&key);
        if self.reading == Reading::Serializable {
            message.extend_from_slice(&SERIALIZABLE);
        }
    }

    fn answered(&mut self, _slot: usize, message: &[u8]) -> anyhow::Result<()> {
        ensure!(VALUE_BYTES < message.len(), "a get of a key that exists found nothing");
        Ok(())
    }
}

/// The same request again and again.
#[derive(Debug)]
pub struct Same {
    path: &'static str,
    message: Vec<u8>,
    answer: Answer,
}

impl Same {
    /// `request` to `path`; answers are counted only.
    #[must_use]
    pub fn new(path: &'static str, request: &impl Message) -> Self {
        Self { path, message: request.encode_to_vec(), answer: Answer::Count }
    }
}

impl Requests for Same {
    fn path(&self) -> &'static str {
        self.path
    }

    fn answer(&self) -> Answer {
        self.answer
    }

    fn next(&mut self, _slot: usize, message: &mut Vec<u8>) {
        message.extend_from_slice(&self.message);
    }
}

/// What an API server of Kubernetes sends: create if absent, and update if unchanged, in turn.
#[derive(Debug)]
pub struct Txns<'a> {
    /// Keys that do not exist yet.
    created: &'a mut Ledger,
    /// Keys that exist, written again and again.
    updated: &'a mut Ledger,
    /// The revision at which each updated key was last written, by its place.
    revisions: Vec<i64>,
    /// The place that a slot's update writes; `None` for a create.
    under_way: Vec<Option<usize>>,
    sent: u64,
}

impl<'a> Txns<'a> {
    /// Creates over `created`; updates over `updated`, whose keys were written at `revisions`.
    #[must_use]
    pub const fn new(
        created: &'a mut Ledger,
        updated: &'a mut Ledger,
        revisions: Vec<i64>,
    ) -> Self {
        Self { created, updated, revisions, under_way: Vec::new(), sent: 0 }
    }

    /// The revisions of the updated keys, for another round.
    #[must_use]
    pub fn into_revisions(self) -> Vec<i64> {
        self.revisions
    }
}

impl Requests for Txns<'_> {
    fn path(&self) -> &'static str {
        path::TXN
    }

    fn next(&mut self, slot: usize, message: &mut Vec<u8>) {
        if self.under_way.len() <= slot {
            self.under_way.resize(slot + 1, None);
        }
        self.sent += 1;
        let update = self.sent.is_multiple_of(2);
        let ((key, value), revision) = if update {
            let place = self.updated.next_place();
            self.under_way[slot] = Some(place);
            (self.updated.next_put(), self.revisions[place])
        } else {
            self.under_way[slot] = None;
            (self.created.next_put(), 0)
        };
        kubernetes_txn(&key, &value, revision).encode(message).expect("a vector grows as needed");
    }

    fn answered(&mut self, slot: usize, message: &[u8]) -> anyhow::Result<()> {
        let answer = TxnResponse::decode(message)?;
        ensure!(answer.succeeded, "a transaction whose condition holds was refused");
        if let Some(place) = self.under_way[slot] {
            self.revisions[place] = answer.header.context("an answer has a header")?.revision;
        }
        Ok(())
    }
}

/// Writes `key` if it was last written at `mod_revision` (0: if it does not exist), else reads it.
#[must_use]
pub fn kubernetes_txn(key: &[u8], value: &[u8], mod_revision: i64) -> TxnRequest {
    let key = key.to_vec();
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.clone().into(),
        target_union: Some(TargetUnion::ModRevision(mod_revision)),
        ..Default::default()
    };
    let put =
        PutRequest { key: key.clone().into(), value: value.to_vec().into(), ..Default::default() };
    let get = RangeRequest { key: key.into(), ..Default::default() };
    TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request: Some(request_op::Request::RequestPut(put)) }],
        failure: vec![RequestOp { request: Some(request_op::Request::RequestRange(get)) }],
    }
}

/// Keepalives: each slot has a stream and a lease, and sends the next when the last is answered.
#[derive(Debug)]
pub struct KeepAlives {
    leases: Vec<i64>,
}

impl KeepAlives {
    /// One slot per lease.
    #[must_use]
    pub const fn new(leases: Vec<i64>) -> Self {
        Self { leases }
    }
}

impl Requests for KeepAlives {
    fn path(&self) -> &'static str {
        path::LEASE_KEEP_ALIVE
    }

    fn style(&self) -> Style {
        Style::Stream
    }

    fn next(&mut self, slot: usize, message: &mut Vec<u8>) {
        let request = LeaseKeepAliveRequest { id: self.leases[slot] };
        request.encode(message).expect("a vector grows as needed");
    }

    fn answered(&mut self, _slot: usize, message: &[u8]) -> anyhow::Result<()> {
        let answer = LeaseKeepAliveResponse::decode(message)?;
        ensure!(0 < answer.ttl, "lease {} is gone", answer.id);
        Ok(())
    }
}

/// Grants of leases, with ids that count up.
#[derive(Debug)]
pub struct Grants {
    /// Every lease's time to live.
    pub ttl_seconds: i64,
    /// The id of the next lease.
    pub next_id: i64,
}

impl Requests for Grants {
    fn path(&self) -> &'static str {
        path::LEASE_GRANT
    }

    fn next(&mut self, _slot: usize, message: &mut Vec<u8>) {
        let request = LeaseGrantRequest { ttl: self.ttl_seconds, id: self.next_id };
        self.next_id += 1;
        request.encode(message).expect("a vector grows as needed");
    }
}
