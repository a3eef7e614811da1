//! One connection, from its first byte to its last.
//!
//! Decides which protocol it speaks, and serves HTTP/1 with hyper; HTTP/2 is `driver`'s. A listener
//! for gRPC alone speaks nothing but HTTP/2. Runs on the thread that the connection was given to.
//! Called by `workers`.

use std::{convert::Infallible, io::Write, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use bytes::BytesMut;
use http::{Request, Response};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};
use tracing::debug;

use super::{
    driver::drive,
    options::{Options, Traffic},
    sniff::{Protocol, Sniffed, sniff},
    workers::Load,
};
use crate::{
    api::{Edge, member::Member},
    http::{Body, Http, Surface},
};

/// A client that sends no header for so long is cut off.
///
/// Source: etcd `server/embed/serve.go`, `ReadHeaderTimeout`.
const HEADER_READ_TIMEOUT: Duration = Duration::from_mins(5);

/// Serves one member's requests.
#[derive(Debug)]
pub(super) struct Service<M> {
    pub(super) edge: Arc<Edge<M>>,
    pub(super) http: Http<M>,
    pub(super) options: Options,
}

/// Who is at the other end of a connection.
#[derive(Debug)]
pub(super) struct Client {
    /// The address; a Unix socket has none.
    pub(super) remote: Option<SocketAddr>,
    /// What the listener serves.
    pub(super) traffic: Traffic,
    /// Where the connection's requests count.
    pub(super) load: Arc<Load>,
}

impl<M: Member> Service<M> {
    /// Serves a connection until it ends, or until `stop` is set and its last request is answered.
    pub(super) async fn serve<IO>(
        self: Arc<Self>,
        mut io: IO,
        client: Client,
        mut stop: watch::Receiver<bool>,
    ) where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        if client.traffic == Traffic::Grpc {
            return drive(self, io, BytesMut::new(), client, stop).await;
        }
        let sniffed = tokio::select! {
            sniffed = tokio::time::timeout(HEADER_READ_TIMEOUT, sniff(&mut io)) => sniffed,
            () = stopped(&mut stop) => return,
        };
        match sniffed {
            Ok(Ok((Protocol::Http2, first))) => drive(self, io, first, client, stop).await,
            Ok(Ok((Protocol::Http1, first))) => {
                self.serve_http1(Sniffed { first, io }, client, stop).await;
            }
            Ok(Err(error)) => debug!(%error, remote = ?client.remote, "a connection ended"),
            Err(_) => debug!(remote = ?client.remote, "a connection was silent from the start"),
        }
    }

    async fn serve_http1<IO>(
        self: Arc<Self>,
        io: IO,
        client: Client,
        mut stop: watch::Receiver<bool>,
    ) where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Client { remote, traffic, load } = client;
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT);
        let service = service_fn(move |request| {
            let (this, load) = (Arc::clone(&self), Arc::clone(&load));
            async move {
                let _counted = load.request();
                Ok::<_, Infallible>(this.answer_plain(traffic, request).await)
            }
        });
        let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopped(&mut stop) => {
                connection.as_mut().graceful_shutdown();
                connection.as_mut().await
            }
        };
        if let Err(error) = ended {
            debug!(error = &error as &dyn std::error::Error, ?remote, "a connection ended");
        }
    }

    /// Answers a request that is not gRPC.
    pub(super) async fn answer_plain<B>(
        &self,
        traffic: Traffic,
        request: Request<B>,
    ) -> Response<Body> {
        let surface = match traffic {
            Traffic::Metrics => Surface::Metrics,
            // A listener for gRPC alone has no plain requests.
            Traffic::GrpcAndHttp | Traffic::Http | Traffic::Grpc => Surface::Client,
        };
        self.http.call(surface, request).await
    }
}

/// Waits for the stop.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that whoever could stop us is gone, which is a stop as well.
    drop(stop.wait_for(|stop| *stop).await);
}

/// Prints whom the client believes to talk to, in the words of Go's HTTP/2 library, whose debug
/// output tools look through. A line of its own, not one of the log.
pub(super) fn show_authority(authority: &[u8]) {
    let authority = String::from_utf8_lossy(authority);
    let line = format!("http2: decoded hpack field header field \":authority\" = {authority:?}\n");
    // Without a standard error there is nobody to tell.
    drop(std::io::stderr().write_all(line.as_bytes()));
}
