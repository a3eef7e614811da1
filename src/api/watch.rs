//! `Watch`: a conversation between a client and its hub.
//!
//! Decides how requests and responses of one stream share one body: whoever polls the body for the
//! next piece of the answer also carries over what the client asked meanwhile, so a stream needs no
//! task, no queue between tasks and no wake-up of its own. Responses that are ready together leave
//! as one piece, copied once from bytes that the hub encoded for all streams. Made by `dispatch`.
//!
//! ```text
//!   serve --poll--> Conversation --+--> client's messages --> Request --> WatchStream.send
//!                                  +--> WatchStream.poll_frame --> piece
//!                                  +--> leader lost, deadline --> end
//! ```
//!
//! The end of the client's messages is not the end of the conversation: it goes on until the
//! client resets the stream, which drops the body.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/watch.go`.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures::future;
use proto::etcdserverpb::{WatchCreateRequest, WatchRequest, watch_request::RequestUnion};
use tracing::{info, warn};

use super::{
    answer::PREFIX_BYTES,
    body::{Body, Piece},
    codec::count_sent,
    dispatch::Call,
    edge::Edge,
    member::Member,
    metadata::Metadata,
    metrics,
    rpc::Rpc,
    status::{CallError, Failure, Refusal, status},
    wire::{Messages, decode},
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

type Interruption = Pin<Box<dyn Future<Output = Refusal> + Send>>;

/// The body of a `Watch` answer.
pub struct Conversation {
    stream: WatchStream,
    /// None once the client has said that it will not ask any more.
    messages: Option<Messages>,
    /// What ends the stream from our side; none if nothing can.
    interruption: Option<Interruption>,
    call: Call,
    clock: Clock,
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
pub(super) fn begin<M: Member>(
    edge: &Arc<Edge<M>>,
    metadata: &Metadata,
    messages: Messages,
    call: Call,
) -> Body {
    let mut stream = edge.member.watch().open();
    stream.use_courier(Courier::of_this_thread());
    Body::Watch(Box::new(Conversation {
        stream,
        messages: Some(messages),
        interruption: interruption(edge, metadata),
        call,
        clock: edge.clock.clone(),
    }))
}

/// Becomes ready when the stream has to end although the client wants more.
fn interruption<M: Member>(edge: &Arc<Edge<M>>, metadata: &Metadata) -> Option<Interruption> {
    let requires_leader = metadata.requires_leader();
    let limit = metadata.timeout;
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
            let Poll::Ready(next) = messages.poll_next(context) else { return Ok(()) };
            match next? {
                None => self.messages = None,
                Some(message) => {
                    metrics::of(Rpc::Watch).receive();
                    if let Some(request) = read(decode(message)?) {
                        self.stream.send(request);
                    }
                }
            }
        }
        context.waker().wake_by_ref();
        Ok(())
    }

    /// Copies responses that are ready into one piece.
    fn poll_responses(&mut self, context: &Context<'_>) -> Poll<Result<Bytes, End>> {
        let first = match self.stream.poll_frame(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
            Poll::Ready(Ok(frame)) => frame,
        };
        let started = self.clock.now();
        let more = if self.stream.taken_len() == 0 { 0 } else { PIECE_BYTES };
        let mut piece = Responses::with_capacity(PREFIX_BYTES + first.encoded_len() + more);
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
        self.poll_responses(context).map(|piece| piece.map_err(ended))
    }
}

impl Conversation {
    /// The next piece of the answer. Not to be called after the end.
    pub(super) fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Piece> {
        self.poll(context).map(|piece| match piece {
            Ok(piece) => Piece::Data(piece),
            Err(failure) => {
                self.call.finish(failure.code);
                Piece::End(Err(failure))
            }
        })
    }
}

impl fmt::Debug for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conversation").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// gRPC messages on their way out.
struct Responses {
    bytes: BytesMut,
    messages: u64,
    events: usize,
}

impl Responses {
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
