//! Connections that peers make.
//!
//! Decides how many there may be and how long one may be silent. Each is a task on the `peer`
//! thread that speaks HTTP/1.1. Started by `service` for each listener.
//!
//! Source: etcd `server/embed/etcd.go`, `servePeers`.

use std::{
    convert::Infallible,
    future::{Future as _, pending, poll_fn},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tracing::{debug, warn};

use super::{
    outlet::{self, Granted},
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
    let socket = match Socket::new(stream, SILENCE_MAX) {
        Ok(socket) => socket,
        Err(error) => return debug!(%error, %remote, "a connection of a peer ended"),
    };
    let stop = shared.stop.clone();
    stop.run_until_cancelled(talk(shared, socket, remote)).await;
}

/// Answers requests, until the connection ends or becomes a stream.
async fn talk(shared: Arc<Shared>, socket: Socket, remote: SocketAddr) {
    let granted = Arc::<Mutex<Option<Granted>>>::default();
    let service = service_fn(|request| {
        let (shared, granted) = (Arc::clone(&shared), Arc::clone(&granted));
        async move {
            match route(&shared, remote, request).await {
                Ok(reply) => Ok::<_, Infallible>(reply),
                Err(stream) => {
                    *lock(&granted) = Some(stream);
                    // The connection is taken over before this is polled again.
                    pending().await
                }
            }
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .title_case_headers(true);
    let mut connection = builder.serve_connection(TokioIo::new(socket), service);
    let stream = poll_fn(|context| {
        let ended = Pin::new(&mut connection).poll(context);
        match lock(&granted).take() {
            Some(stream) => Poll::Ready(Ok(Some(stream))),
            None => ended.map_ok(|()| None),
        }
    });
    match stream.await {
        Ok(Some(stream)) => {
            let socket = connection.into_parts().io.into_inner().into_inner();
            outlet::serve(shared, stream, socket).await;
        }
        Ok(None) => {}
        Err(error) => debug!(%error, %remote, "a connection of a peer ended"),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds the lock, so a poisoned value is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
