//! One connection, from its first byte to its last.
//!
//! Decides the settings of HTTP/1 and HTTP/2, and whether a request is gRPC or not. Runs on the
//! thread that the connection was given to. Called by `workers`.

use std::{
    convert::Infallible, future::Future, io::Write, net::SocketAddr, pin::pin, sync::Arc,
    time::Duration,
};

use http::{HeaderMap, Request, Response, Version, header::CONTENT_TYPE};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};
use tracing::debug;

use super::{
    options::{Options, Traffic},
    workers::Load,
};
use crate::{
    api::{self, Edge, body::Body, member::Member},
    base::task,
    http::{Http, Surface},
};

/// A client that sends no header for so long is cut off.
///
/// Source: etcd `server/embed/serve.go`, `ReadHeaderTimeout`.
const HEADER_READ_TIMEOUT: Duration = Duration::from_mins(5);

/// What a client may send on one stream before we have taken it: the usual request fits.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// What a client may send on all streams of a connection together.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// Metadata of one request.
const HEADER_BYTES_MAX: u32 = 64 << 10;

/// Streams that a client has reset and that were not taken off the wire yet. hyper's default of 20
/// would end the connections of clients that cancel many watches at once.
const RESET_STREAMS_MAX: usize = 4096;

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

/// Where the tasks of a connection's requests run: on the connection's own thread.
#[derive(Clone, Copy, Debug)]
struct Tasks;

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        // The task ends with its request; nobody waits for it.
        drop(task::spawn(future));
    }
}

impl<M: Member> Service<M> {
    fn builder(&self, traffic: Traffic) -> Builder<Tasks> {
        let mut builder = Builder::new(Tasks);
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.options.concurrent_streams_max)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_BYTES_MAX)
            .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
            .auto_date_header(false);
        let (interval, timeout) = (self.options.keepalive_interval, self.options.keepalive_timeout);
        if !interval.is_zero() && !timeout.is_zero() {
            builder.http2().keep_alive_interval(interval).keep_alive_timeout(timeout);
        }
        if traffic == Traffic::Grpc { builder.http2_only() } else { builder }
    }

    /// Serves a connection until it ends, or until `stop` is set and its last request is answered.
    pub(super) async fn serve<IO>(
        self: Arc<Self>,
        io: IO,
        client: Client,
        mut stop: watch::Receiver<bool>,
    ) where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Client { remote, traffic, load } = client;
        let builder = self.builder(traffic);
        let service = service_fn(move |request: Request<Incoming>| {
            let (this, load) = (Arc::clone(&self), Arc::clone(&load));
            async move {
                let _counted = load.request();
                Ok::<_, Infallible>(this.route(request, remote, traffic).await)
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
            debug!(error, ?remote, "a connection ended");
        }
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        remote: Option<SocketAddr>,
        traffic: Traffic,
    ) -> Response<Body> {
        if self.options.show_authority && request.version() == Version::HTTP_2 {
            show_authority(&request);
        }
        let grpc = matches!(traffic, Traffic::GrpcAndHttp | Traffic::Grpc);
        if grpc && request.version() == Version::HTTP_2 && is_grpc(request.headers()) {
            return api::call(Arc::clone(&self.edge), remote, request).await;
        }
        let surface = match traffic {
            Traffic::Metrics => Surface::Metrics,
            Traffic::GrpcAndHttp | Traffic::Http => Surface::Client,
            Traffic::Grpc => {
                let mut response = Response::new(Body::Empty);
                *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
                return response;
            }
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
fn show_authority<B>(request: &Request<B>) {
    let authority = request.uri().authority().map_or("", |authority| authority.as_str());
    let line = format!("http2: decoded hpack field header field \":authority\" = {authority:?}\n");
    // Without a standard error there is nobody to tell.
    drop(std::io::stderr().write_all(line.as_bytes()));
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}
