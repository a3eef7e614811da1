//! `Watch`: a conversation between a client and its hub.
//!
//! Decides how requests and responses of one stream share one body: whoever polls the body for the
//! next piece of the answer also carries over what the client asked meanwhile, so a stream needs no
//! task, no queue between tasks and no wake-up of its own. Responses that are ready together leave
//! as one piece, copied once from bytes that the hub encoded for all streams. Made by `dispatch`.
//!
//! ```text
//!   hyper --poll--> Conversation --+--> client's messages --> Request --> WatchStream.send
//!                                  +--> WatchStream.poll_frame --> data frame
//!                                  +--> leader lost, deadline --> trailers
//! ```
//!
//! The end of the client's messages is not the end of the conversation: it goes on until the
//! client resets the stream, which drops the body.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/watch.go`.

use std::{
    fmt::Display,
    future::Future,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures::{StreamExt, future, stream};
use http::HeaderMap;
use http_body::Frame;
use proto::etcdserverpb::{WatchCreateRequest, WatchRequest, watch_request::RequestUnion};
use tonic::Code;
use tracing::{debug, info, warn};

use super::{
    answer::PREFIX_BYTES,
    body::{Body, ok_trailers, put_status},
    caller,
    codec::count_sent,
    dispatch::Call,
    edge::Edge,
    member::Member,
    metrics,
    rpc::Rpc,
    status::{CallError, Failure, Refusal, status},
    wire::{Messages, decode, timeout},
};
use crate::{
    base::{
        clock::Clock,
        courier::Courier,
        metrics::{Histogram, histogram},
    },
    model::{Rejection, Revision, Unavailable},
    watch::{
        frame,
        link::{End, WatchStream},
        request::Request,
    },
};

/// Responses that are ready together leave in pieces of about this size: large enough to pay for
/// the way through HTTP/2, small against what a connection may have in flight.
const PIECE_BYTES: usize = 32 << 10;

/// Requests that are carried over in one go, before responses have their turn.
const REQUESTS_PER_TURN: usize = 64;

type ClientMessages = Pin<Box<dyn futures::Stream<Item = Result<Bytes, Failure>> + Send>>;

type Interruption = Pin<Box<dyn Future<Output = Refusal> + Send>>;

/// The body of a `Watch` answer.
struct Conversation {
    stream: WatchStream,
    /// None once the client has said that it will not ask any more.
    messages: Option<ClientMessages>,
    /// What ends the stream from our side; none if nothing can.
    interruption: Option<Interruption>,
    state: State,
    call: Call,
    clock: Clock,
}

enum State {
    Open,
    Failed(Failure),
    Over,
}

static EVENTS_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    send_loop(
        "etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds",
        "The total duration in seconds of running through the send loop watch stream response all \
         events.",
    )
});

static EVENT_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    send_loop(
        "etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds",
        "The average duration in seconds of running through the send loop watch stream response, \
         per event.",
    )
});

static CONTROL_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    send_loop(
        "etcd_debugging_server_watch_send_loop_control_stream_duration_seconds",
        "The total duration in seconds of running through the send loop control stream response.",
    )
});

/// Makes the series of this file exist from the start.
pub(super) fn register_metrics() {
    for histogram in [&EVENTS_SECONDS, &EVENT_SECONDS, &CONTROL_SECONDS] {
        LazyLock::force(histogram);
    }
}

/// Begins a conversation.
pub(super) fn begin<M, B>(
    edge: &Arc<Edge<M>>,
    headers: &HeaderMap,
    messages: Messages<B>,
    call: Call,
) -> Body
where
    M: Member,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Display,
{
    let mut stream = edge.member.watch().open();
    stream.use_courier(Courier::of_this_thread());
    let conversation = Conversation {
        stream,
        messages: Some(client_messages(messages)),
        interruption: interruption(edge, headers),
        state: State::Open,
        call,
        clock: edge.clock.clone(),
    };
    Body::Tonic(tonic::body::Body::new(conversation))
}

/// The client's messages until it stops asking or one of them is broken.
fn client_messages<B>(messages: Messages<B>) -> ClientMessages
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Display,
{
    stream::unfold(messages, async |mut messages| {
        let next = messages.next().await.transpose()?;
        Some((next, messages))
    })
    .boxed()
}

/// Becomes ready when the stream has to end although the client wants more.
fn interruption<M: Member>(edge: &Arc<Edge<M>>, headers: &HeaderMap) -> Option<Interruption> {
    let requires_leader = caller::requires_leader(headers);
    let limit = timeout(headers);
    if !requires_leader && limit.is_none() {
        return None;
    }
    let edge = Arc::clone(edge);
    Some(Box::pin(async move {
        let late = async {
            match limit {
                None => future::pending().await,
                Some(limit) => tokio::time::sleep(limit).await,
            }
        };
        tokio::select! {
            () = edge.leader_losses.next(requires_leader) => Refusal::NoLeader,
            () = late => Refusal::DeadlineExceeded,
        }
    }))
}

impl Conversation {
    /// Carries over what the client asked, as far as the hub takes it.
    fn poll_requests(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(messages) = &mut self.messages else { return Ok(()) };
            if self.stream.poll_ready(context).is_pending() {
                return Ok(());
            }
            match messages.as_mut().poll_next(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => self.messages = None,
                Poll::Ready(Some(message)) => {
                    metrics::of(Rpc::Watch).receive();
                    if let Some(request) = read(decode(message?)?) {
                        self.stream.send(request);
                    }
                }
            }
        }
        context.waker().wake_by_ref();
        Ok(())
    }

    /// Copies responses that are ready into one piece.
    fn poll_piece(&mut self, context: &Context<'_>) -> Poll<Result<Bytes, End>> {
        let first = match self.stream.poll_frame(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
            Poll::Ready(Ok(frame)) => frame,
        };
        let started = self.clock.now();
        let more = if self.stream.taken_len() == 0 { 0 } else { PIECE_BYTES };
        let mut piece = Piece::with_capacity(PREFIX_BYTES + first.encoded_len() + more);
        piece.put(&first);
        while piece.bytes.len() < PIECE_BYTES
            && let Poll::Ready(Ok(frame)) = self.stream.poll_frame(context)
        {
            piece.put(&frame);
        }
        piece.count(self.clock.now().saturating_sub(started));
        Poll::Ready(Ok(piece.bytes.freeze()))
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Bytes, Failure>> {
        if let Some(interruption) = &mut self.interruption
            && let Poll::Ready(refusal) = interruption.as_mut().poll(context)
        {
            return Poll::Ready(Err(refusal.into()));
        }
        if let Err(failure) = self.poll_requests(context) {
            return Poll::Ready(Err(broken_off(failure)));
        }
        self.poll_piece(context).map(|piece| piece.map_err(ended))
    }
}

impl http_body::Body for Conversation {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        if let State::Open = self.state {
            match self.poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(piece)) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                Poll::Ready(Err(failure)) => self.state = State::Failed(failure),
            }
        }
        let State::Failed(failure) = std::mem::replace(&mut self.state, State::Over) else {
            return Poll::Ready(None);
        };
        self.call.finish(failure.code);
        let mut trailers = ok_trailers();
        put_status(&failure, &mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Over)
    }
}

/// gRPC messages on their way out.
struct Piece {
    bytes: BytesMut,
    messages: u64,
    events: usize,
}

impl Piece {
    fn with_capacity(bytes: usize) -> Self {
        Self { bytes: BytesMut::with_capacity(bytes), messages: 0, events: 0 }
    }

    fn put(&mut self, frame: &frame::Frame) {
        let length = frame.encoded_len();
        self.bytes.reserve(PREFIX_BYTES + length);
        self.bytes.put_u8(0);
        self.bytes
            .put_u32(u32::try_from(length).expect("histories are read in pieces of some MiB"));
        frame.write(&mut self.bytes);
        self.messages += 1;
        self.events += frame.events_len();
    }

    /// One observation per piece, where etcd has one per response: what is measured is the copy,
    /// and looking at the clock for each response would take longer.
    fn count(&self, took: Duration) {
        metrics::of(Rpc::Watch).send_many(self.messages);
        let prefixes = PREFIX_BYTES * usize::try_from(self.messages).unwrap_or(usize::MAX);
        count_sent(self.bytes.len() - prefixes);
        let seconds = took.as_secs_f64();
        if self.events == 0 {
            return CONTROL_SECONDS.observe(seconds);
        }
        EVENTS_SECONDS.observe(seconds);
        EVENT_SECONDS.observe(took.div_f64(self.events as f64).as_secs_f64());
    }
}

/// What a client asks; nothing if this version does not know it.
fn read(request: WatchRequest) -> Option<Request> {
    if let Some(RequestUnion::CreateRequest(create)) = &request.request_union
        && let Err(reason) = may_watch(create)
    {
        return Some(Request::Refuse { reason });
    }
    let request = Request::from_wire(request);
    if request.is_none() {
        info!("invalid watch request type <nil> received in gRPC stream");
    }
    request
}

/// Why a watcher is refused before a hub sees it. The caller's permission, which depends on the
/// key and the range end as they came, is to be checked here.
fn may_watch(create: &WatchCreateRequest) -> Result<(), String> {
    if create.start_revision < 0 {
        let requested = Revision(create.start_revision);
        let rejection = Rejection::Compacted { requested, compacted: Revision(-1) };
        return Err(status(&rejection.into()).1.to_owned());
    }
    Ok(())
}

/// What becomes of a stream whose requests cannot be read.
fn broken_off(failure: Failure) -> Failure {
    if failure.code == Code::Cancelled {
        debug!(error = %failure.text, "failed to receive watch request from gRPC stream");
        return Refusal::WatchCanceled.into();
    }
    warn!(error = %failure.text, "failed to receive watch request from gRPC stream");
    metrics::count_stream_failure("receive", "watch");
    failure
}

fn ended(end: End) -> Failure {
    let error: CallError = match end {
        End::Stopped => Unavailable::Stopped.into(),
        End::NoLeader => Refusal::NoLeader.into(),
        End::Damaged => Refusal::Damaged.into(),
    };
    error.into()
}

fn send_loop(name: &str, help: &str) -> Histogram {
    histogram(name, help, 0.001, 14)
}
