//! A database on its way to a peer.
//!
//! Decides what a snapshot looks like on the wire (the message, then the database until the body
//! ends), and when it has failed. One task for each, on the `peer` thread.
//!
//! Source: etcd `server/etcdserver/api/rafthttp/snapshot_sender.go`.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body::{Body, Frame, SizeHint};
use proto::raftpb::Message;
use tokio::time::timeout;
use tracing::{info, warn};

use super::{
    SnapshotBody,
    codec::encode_whole,
    dial::{self, PeerError, check_posted},
    metrics,
    peer::Peer,
    shared::Shared,
};
use crate::consensus::SnapshotReport;

/// A snapshot that has not been taken by then has failed: raft waits for nothing else meanwhile.
const TRANSFER_TIMEOUT: Duration = Duration::from_hours(1);

/// How long the receiver's disk may keep it from taking the next bytes. To begin anew costs more than
/// to wait.
const DISK_PATIENCE: Duration = Duration::from_mins(1);

/// The message and the database, as one body.
#[derive(Debug)]
struct Parts {
    head: Option<Bytes>,
    database: SnapshotBody,
    /// Bytes that have not been handed out.
    bytes_left: u64,
}

/// Sends a snapshot to `peer` and reports what became of it.
pub(super) async fn send(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    message: Box<Message>,
    database: SnapshotBody,
) {
    let started = shared.clock.now();
    let to = peer.id.to_string();
    let index = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
    let index = index.map_or(0, |metadata| metadata.index());
    let bytes = database.bytes_total;
    info!(
        "snapshot-index" = index,
        "remote-peer-id" = to,
        bytes,
        size = %humane(bytes),
        "sending database snapshot"
    );
    let in_flight = metrics::SNAPSHOT_SEND_INFLIGHTS.with_label_values(&[&to]);
    in_flight.inc();
    let posted = timeout(TRANSFER_TIMEOUT, post(&shared, &peer, &message, database)).await;
    in_flight.dec();
    match posted.unwrap_or(Err(PeerError::TimedOut)) {
        Ok(()) => {
            peer.status.activate(shared.clock.now());
            shared.local().snapshot_sent(peer.id, SnapshotReport::Sent);
            info!(
                "snapshot-index" = index,
                "remote-peer-id" = to,
                bytes,
                size = %humane(bytes),
                "sent database snapshot"
            );
            peer.sent_bytes.inc_by(bytes);
            metrics::SNAPSHOT_SEND.with_label_values(&[&to]).inc();
            let took = shared.clock.now().saturating_sub(started);
            metrics::SNAPSHOT_SEND_SECONDS.with_label_values(&[&to]).observe(took.as_secs_f64());
        }
        Err(error) => {
            warn!(
                "snapshot-index" = index,
                "remote-peer-id" = to,
                bytes,
                size = %humane(bytes),
                %error,
                "failed to send database snapshot"
            );
            peer.status.deactivate("post", "sendMsgSnap", error);
            shared.local().unreachable(peer.id);
            shared.local().snapshot_sent(peer.id, SnapshotReport::Failed);
            peer.count_failure();
            metrics::SNAPSHOT_SEND_FAILURES.with_label_values(&[&to]).inc();
        }
    }
}

async fn post(
    shared: &Shared,
    peer: &Peer,
    message: &Message,
    database: SnapshotBody,
) -> Result<(), PeerError> {
    let url = peer.picker.pick();
    let posted = post_at(&url, shared, peer, message, database).await;
    if posted.is_err() {
        peer.picker.unreachable(&url);
    }
    posted
}

async fn post_at(
    url: &str,
    shared: &Shared,
    peer: &Peer,
    message: &Message,
    database: SnapshotBody,
) -> Result<(), PeerError> {
    let request = dial::request(shared, Method::POST, url, "/raft/snapshot")
        .header("Content-Type", "application/octet-stream")
        .body(Parts::new(message, database))
        .map_err(|_invalid| PeerError::Url(url.to_owned()))?;
    let mut connection = dial::connect(url, DISK_PATIENCE).await?;
    let answer = connection.requests.send_request(request).await?;
    check_posted(shared, peer, answer).await
}

impl Parts {
    fn new(message: &Message, database: SnapshotBody) -> Self {
        let mut head = BytesMut::new();
        encode_whole(message, &mut head);
        let bytes_left = head.len() as u64 + database.bytes_total;
        Self { head: Some(head.freeze()), database, bytes_left }
    }

    fn hand_out(&mut self, part: Bytes) -> Result<Frame<Bytes>, io::Error> {
        let left = self.bytes_left.checked_sub(part.len() as u64);
        self.bytes_left = left.ok_or_else(|| wrong_length("more"))?;
        Ok(Frame::data(part))
    }
}

impl Body for Parts {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(head) = self.head.take() {
            return Poll::Ready(Some(self.hand_out(head)));
        }
        self.database.parts.poll_recv(context).map(|part| match part {
            Some(Ok(part)) => Some(self.hand_out(part)),
            Some(Err(error)) => Some(Err(error)),
            None if self.bytes_left == 0 => None,
            None => Some(Err(wrong_length("less"))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.bytes_left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes_left)
    }
}

fn wrong_length(which: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a snapshot has {which} than its length"))
}

/// A number of bytes as etcd logs it: `1.2 MB`.
pub(super) fn humane(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut divisor = 1000_u64;
    while divisor <= bytes / 1000 && unit + 1 < UNITS.len() {
        divisor *= 1000;
        unit += 1;
    }
    let tenths = (u128::from(bytes) * 10 + u128::from(divisor) / 2) / u128::from(divisor);
    if tenths < 100 {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    } else {
        format!("{} {}", (tenths + 5) / 10, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_etcd_writes_them() {
        assert_eq!(humane(7), "7 B");
        assert_eq!(humane(1200), "1.2 kB");
        assert_eq!(humane(25_000), "25 kB");
        assert_eq!(humane(2_100_000_000), "2.1 GB");
    }
}
