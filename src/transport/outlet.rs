//! The sending end of a stream: an answer that does not end.
//!
//! Decides when a stream is lost: when its socket takes nothing for too long, fails, or is closed by
//! the peer. A sign of life goes out at a fixed pace, because the peer gives up on silence. Most
//! messages are written by the replica (`lanes`); this task, one for each stream on the `peer`
//! thread, writes the rest. Started by `server` when a peer asks for its stream.
//!
//! Source: etcd `server/etcdserver/api/rafthttp/stream.go`, `streamWriter`.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    kind::StreamKind,
    lanes::{Flow, Ticket, Wire},
    peer::Peer,
    shared::Shared,
    socket::SILENCE_MAX,
};
use crate::base::log;

/// The pace of the signs of life.
///
/// Source: etcd `rafthttp/stream.go`, a third of the read timeout.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(1667);

const _: () = assert!(
    HEARTBEAT_INTERVAL.as_millis() * 2 < SILENCE_MAX.as_millis(),
    "one lost sign of life is not silence"
);

/// A request for a stream that is granted.
#[derive(Debug)]
pub(super) struct Granted {
    /// Who asked.
    pub(super) peer: Arc<Peer>,
    /// For what.
    pub(super) kind: StreamKind,
}

/// One stream, on one connection.
#[derive(Debug)]
struct Outlet {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    kind: StreamKind,
    ticket: Ticket,
    socket: Arc<TcpStream>,
}

/// Serves a stream on `socket`, in place of any older connection of it, until it ends.
pub(super) async fn serve(shared: Arc<Shared>, granted: Granted, socket: TcpStream) {
    let Granted { peer, kind } = granted;
    let socket = Arc::new(socket);
    let wire: Arc<dyn Wire> = Arc::<TcpStream>::clone(&socket);
    let head = head(&shared);
    // Without, it has ceased to be a peer meanwhile.
    let Some((ticket, closed)) = peer.lanes.attach(kind, wire, head.as_bytes()) else { return };
    let (local, remote) = (shared.settings.member, peer.id);
    info!(from = %local, to = %remote, "stream-type" = %kind, "set message encoder");
    if let Some(closed) = closed {
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
    let outlet = Outlet { shared, peer, kind, ticket, socket };
    let ended = outlet.run().await;
    outlet.end(ended);
}

/// The start of the answer.
fn head(shared: &Shared) -> String {
    format!(
        "HTTP/1.1 200 OK\r\n\
         X-Etcd-Cluster-Id: {}\r\n\
         X-Server-Version: {}\r\n\
         Date: {}\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
        shared.settings.cluster,
        shared.settings.server_version,
        log::http_date(shared.clock.unix()),
    )
}

impl Outlet {
    /// Writes until the stream is over, or lost with an error.
    async fn run(&self) -> io::Result<()> {
        let mut heartbeat = std::pin::pin!(sleep(HEARTBEAT_INTERVAL));
        loop {
            if !self.write().await? {
                return Ok(());
            }
            tokio::select! {
                () = self.ticket.changed.notified() => {}
                () = heartbeat.as_mut() => {
                    heartbeat.as_mut().reset(Instant::now() + HEARTBEAT_INTERVAL);
                    self.peer.lanes.push_heartbeat(self.kind, &self.ticket);
                }
                readable = self.socket.readable() => {
                    readable?;
                    self.read()?;
                }
            }
        }
    }

    /// Writes all there is; false at the end of the stream.
    async fn write(&self) -> io::Result<bool> {
        loop {
            let (flow, bytes) = self.peer.lanes.flush(self.kind, &self.ticket);
            self.peer.sent_bytes.inc_by(bytes);
            match flow {
                Flow::Done => return Ok(true),
                Flow::Over => return Ok(false),
                Flow::Failed(error) => return Err(error),
                // The replica may want to push meanwhile, and other streams to write.
                Flow::More => tokio::task::yield_now().await,
                Flow::Full => match timeout(SILENCE_MAX, self.socket.writable()).await {
                    Ok(writable) => writable?,
                    Err(_) => return Err(io::ErrorKind::TimedOut.into()),
                },
            }
        }
    }

    /// A peer has nothing to say on a stream: whatever comes is its end.
    fn read(&self) -> io::Result<()> {
        match self.socket.try_read(&mut [0; 64]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(error) => Err(error),
        }
    }

    fn end(&self, ended: io::Result<()>) {
        // None if it was replaced, or the peer is not one any more: then nothing was lost here.
        let Err(error) = ended else { return };
        if self.peer.lanes.detach(self.kind, &self.ticket).is_none() {
            return;
        }
        self.peer.status.deactivate("write", self.kind, error);
        self.peer.count_failure();
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
