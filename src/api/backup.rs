//! `Maintenance.Snapshot`: a copy of the database as a stream.
//!
//! Decides how the file is cut: pieces of 32 KiB, each telling what is left, and at the end a
//! message with the SHA-256 of everything before, by which clients tell a whole copy from a torn
//! one. Reading the backend may block, and hashing it takes long, so both happen on a thread that
//! may, and that others go before; the stream's bound keeps it at the client's pace. Called by
//! `dispatch`.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/maintenance.go`, `Snapshot`.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use proto::etcdserverpb::SnapshotResponse;
use sha2::{Digest, Sha256};
use tracing::{error, info};

use super::{
    answer::Reply,
    body::{Gone, Outbox},
    edge::Edge,
    member::{Backup, Member, State},
    status::{Failure, Refusal},
};
use crate::base::thread;

/// The size of a piece.
const PIECE_BYTES: usize = 32 << 10;

/// Sends a copy of the database.
pub(super) async fn run<M: Member>(edge: Arc<Edge<M>>, outbox: Outbox) -> Result<(), Failure> {
    let version = edge.member.published().storage_version().unwrap_or_default();
    let backup = edge.member.backup().await?;
    let total_bytes = backup.total_bytes;
    info!(
        "total-bytes" = total_bytes,
        "storage-version" = version,
        "sending database snapshot to client"
    );
    let started = edge.clock.now();
    #[expect(
        clippy::disallowed_methods,
        reason = "the backend blocks for as long as the client takes, and there are as many such \
                  threads as backups"
    )]
    let sent = tokio::task::spawn_blocking({
        let version = version.clone();
        move || {
            thread::give_way();
            send(backup, &version, &outbox)
        }
    });
    sent.await.map_err(|_panicked| Failure::from(Refusal::BackendFailed))??;
    let took = edge.clock.now().saturating_sub(started);
    info!(
        "total-bytes" = total_bytes,
        took = ?took,
        "storage-version" = version,
        "successfully sent database snapshot to client"
    );
    Ok(())
}

fn send(backup: Backup, version: &str, outbox: &Outbox) -> Result<(), Failure> {
    let mut sender = Sender { version, outbox, left: backup.total_bytes, hash: Sha256::new() };
    let mut gathered = BytesMut::with_capacity(PIECE_BYTES);
    for piece in backup.pieces {
        let mut piece = piece.map_err(|error| {
            error!(%error, "failed to read the database for a snapshot");
            Failure::from(Refusal::BackendFailed)
        })?;
        while !piece.is_empty() {
            let missing = PIECE_BYTES - gathered.len();
            gathered.extend_from_slice(&piece.split_to(missing.min(piece.len())));
            if gathered.len() == PIECE_BYTES {
                sender.send(gathered.split().freeze())?;
                gathered.reserve(PIECE_BYTES);
            }
        }
    }
    if !gathered.is_empty() {
        sender.send(gathered.freeze())?;
    }
    Ok(sender.finish()?)
}

struct Sender<'a> {
    version: &'a str,
    outbox: &'a Outbox,
    left: u64,
    hash: Sha256,
}

impl Sender<'_> {
    fn send(&mut self, blob: Bytes) -> Result<(), Gone> {
        self.hash.update(&blob);
        let sent = blob.len() as u64;
        assert!(sent <= self.left, "a copy of {} bytes more than announced", sent - self.left);
        self.left -= sent;
        self.message(blob)
    }

    fn finish(mut self) -> Result<(), Gone> {
        assert!(self.left == 0, "a copy of {} bytes less than announced", self.left);
        let digest = std::mem::take(&mut self.hash).finalize();
        self.message(Bytes::copy_from_slice(&digest))
    }

    fn message(&self, blob: Bytes) -> Result<(), Gone> {
        self.outbox.send_blocking(Reply::message(&SnapshotResponse {
            header: None,
            remaining_bytes: self.left,
            blob,
            version: self.version.to_owned(),
        }))
    }
}
