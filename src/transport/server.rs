//! Connections that peers make.
//!
//! Decides how many there may be and how long one may be silent. Each is a task on the `peer`
//! thread that speaks HTTP/1.1. Started by `service` for each listener.
//!
//! Source: etcd `server/embed/etcd.go`, `servePeers`.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tracing::{debug, warn};

use super::{
    routes::route,
    shared::Shared,
    socket::{SILENCE_MAX, Socket},
};
use crate::base::task;

/// Connections at a time, of all listeners together. A peer has two streams, a few requests and
/// a probe open; the largest clusters have tens of members.
pub(super) const CONNECTIONS_MAX: usize = 1024;

/// The headers of a request.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// What waits between a connection and its socket, in each direction.
const BUFFER_BYTES_MAX: usize = 128 << 10;

const _: () = assert!(HEAD_BYTES_MAX <= BUFFER_BYTES_MAX, "a head fits the buffer");

/// How long to wait when the system has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until it is dropped.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener, room: Arc<Semaphore>) {
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, remote)) => {
                let serving = serve(Arc::clone(&shared), stream, remote, permit);
                // It ends by itself, or with the runtime.
                drop(task::spawn(serving));
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection of a peer");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    remote: SocketAddr,
    _permit: OwnedSemaphorePermit,
) {
    let socket = match Socket::new(stream) {
        Ok(socket) => socket,
        Err(error) => return debug!(%error, %remote, "a connection of a peer ended"),
    };
    let stop = shared.stop.clone();
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(route(shared, remote, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .title_case_headers(true);
    let connection = builder.serve_connection(TokioIo::new(socket), service);
    if let Some(Err(error)) = stop.run_until_cancelled(connection).await {
        debug!(%error, %remote, "a connection of a peer ended");
    }
}
