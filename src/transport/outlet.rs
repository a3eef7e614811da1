//! The sending end of a stream: the body of an answer that does not end.
//!
//! Decides how messages become frames: everything that waits is encoded into one buffer and written
//! at once. A sign of life goes out at a fixed pace, because the peer gives up on silence. Attached
//! by `incoming` when a peer asks for its stream; polled by the connection on the `peer` thread.
//!
//! Source: etcd `server/etcdserver/api/rafthttp/stream.go`, `streamWriter`.

use std::{
    convert::Infallible,
    future::Future as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use prost::Message as _;
use proto::raftpb::Message;
use tokio::time::{Instant, Sleep, sleep};
use tracing::{info, warn};

use super::{
    codec::Encoder,
    kind::{StreamKind, link_heartbeat},
    lanes::Ticket,
    peer::Peer,
    shared::Shared,
    socket::SILENCE_MAX,
};

/// The pace of the signs of life.
///
/// Source: etcd `rafthttp/stream.go`, a third of the read timeout.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(1667);

const _: () = assert!(
    HEARTBEAT_INTERVAL.as_millis() * 2 < SILENCE_MAX.as_millis(),
    "one lost sign of life is not silence"
);

/// Room that is made for a batch of small messages.
const BUFFER_BYTES: usize = 16 << 10;

/// The messages of one stream, on one connection.
#[derive(Debug)]
pub(super) struct Outlet {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    kind: StreamKind,
    ticket: Ticket,
    encoder: Encoder,
    buffer: BytesMut,
    batch: Vec<Message>,
    heartbeat: Pin<Box<Sleep>>,
}

impl Outlet {
    /// Gives `peer` its stream on a new connection, in place of any older one; `None` if it is not
    /// a peer any more.
    pub(super) fn attach(shared: Arc<Shared>, peer: Arc<Peer>, kind: StreamKind) -> Option<Self> {
        let (ticket, closed) = peer.lanes.attach(kind)?;
        let (local, remote) = (shared.settings.member, peer.id);
        info!(from = %local, to = %remote, "stream-type" = %kind, "set message encoder");
        if let Some(closed) = closed {
            if let Some(waker) = closed.waker {
                shared.wake(waker);
            }
            warn!(
                "stream-writer-type" = %kind,
                "local-member-id" = %local,
                "remote-peer-id" = %remote,
                "closed TCP streaming connection with remote peer"
            );
            if closed.messages_lost {
                shared.local().unreachable(remote);
            }
        }
        peer.status.activate(shared.clock.now());
        info!(
            "stream-writer-type" = %kind,
            "local-member-id" = %local,
            "remote-peer-id" = %remote,
            "established TCP streaming connection with remote peer"
        );
        Some(Self {
            shared,
            peer,
            kind,
            ticket,
            encoder: Encoder::new(kind),
            buffer: BytesMut::new(),
            batch: Vec::new(),
            heartbeat: Box::pin(sleep(HEARTBEAT_INTERVAL)),
        })
    }

    fn encode_batch(&mut self) -> Bytes {
        self.buffer.reserve(BUFFER_BYTES);
        let mut bytes = 0;
        for message in self.batch.drain(..) {
            self.encoder.encode(&message, &mut self.buffer);
            bytes += message.encoded_len() as u64;
        }
        self.peer.sent_bytes.inc_by(bytes);
        self.buffer.split().freeze()
    }
}

impl Body for Outlet {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        match this.peer.lanes.poll_stream(this.kind, this.ticket, context, &mut this.batch) {
            Poll::Ready(true) => {}
            Poll::Ready(false) => return Poll::Ready(None),
            Poll::Pending => {
                if this.heartbeat.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                this.heartbeat.as_mut().reset(Instant::now() + HEARTBEAT_INTERVAL);
                this.batch.push(link_heartbeat());
            }
        }
        Poll::Ready(Some(Ok(Frame::data(this.encode_batch()))))
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        // None if it was replaced, or the peer is not one any more: then nothing was lost here.
        if self.peer.lanes.detach(self.kind, self.ticket).is_none()
            || self.shared.stop.is_cancelled()
        {
            return;
        }
        self.peer.status.deactivate("write", self.kind, "the connection ended");
        self.peer.sent_failures.inc();
        warn!(
            "stream-writer-type" = %self.kind,
            "local-member-id" = %self.shared.settings.member,
            "remote-peer-id" = %self.peer.id,
            "lost TCP streaming connection with remote peer"
        );
        // Some of what was written may not have arrived.
        self.shared.local().unreachable(self.peer.id);
    }
}
