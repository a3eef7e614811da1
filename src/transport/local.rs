//! What the transport asks of the member behind it.
//!
//! Decides nothing: this is the seam. `boot` implements it, because the transport must not know the
//! replica. All of it is called on the `peer` thread, so nothing here may block.

use std::{fmt, io, path::PathBuf, pin::Pin};

use bytes::Bytes;
use proto::raftpb::Message;
use tokio::sync::mpsc;

use crate::{
    consensus::SnapshotReport,
    model::{LogIndex, MemberId},
};

/// The member behind the transport.
pub trait Local: fmt::Debug + Send + Sync + 'static {
    /// Takes a peer's raft message. One that finds no room is dropped, as if it had been lost.
    fn step(&self, message: Message);

    /// A message to `member` was dropped, or its connections are gone.
    fn unreachable(&self, member: MemberId);

    /// The process of `member` has ended: what this member received from it ended, and nobody
    /// listens where it did. Told once, until it is received from again.
    fn gone(&self, member: MemberId);

    /// What became of a snapshot that was sent to `member`.
    fn snapshot_sent(&self, member: MemberId, report: SnapshotReport);

    /// Whether `member` was once in the cluster and is not any more.
    fn is_removed(&self, member: MemberId) -> bool;

    /// Where a received database goes, to be there in full before its message is stepped.
    fn snapshot_path(&self, index: LogIndex) -> PathBuf;

    /// A peer knows that this member was removed from the cluster for good. It should stop: it can
    /// do nothing any more. May be told many times.
    fn removed(&self) {}

    /// Answers a request that is not raft's.
    fn call(&self, call: PeerCall) -> Pin<Box<dyn Future<Output = PeerAnswer> + Send>>;
}

/// A request of a peer, or of an operator, on a peer URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerCall {
    /// `GET /members`: the members, as JSON.
    Members,
    /// `GET /version`: versions of server and cluster, as JSON.
    Version,
    /// `POST /members/promote/<id>`.
    Promote(MemberId),
    /// `GET /members/hashkv` with a JSON body.
    HashKv(Bytes),
    /// `GET /downgrade/enabled`.
    DowngradeEnabled,
    /// `POST /leases`: keep a lease alive; protobuf.
    Lease(Bytes),
    /// `POST /leases/internal`: how long a lease lives; protobuf.
    LeaseTime(Bytes),
}

/// The answer to a [`PeerCall`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The type of `body`.
    pub content_type: &'static str,
    /// What is answered. Go ends a sentence with a line break.
    pub body: Bytes,
}

/// The parts of a database on their way to a peer. An error ends it, and so does dropping the
/// receiver.
pub type SnapshotReceiver = mpsc::Receiver<io::Result<Bytes>>;

/// A database to be sent.
#[derive(Debug)]
pub struct SnapshotBody {
    /// How many bytes will come.
    pub bytes_total: u64,
    /// The bytes.
    pub parts: SnapshotReceiver,
}
