//! One HTTP/2 connection at work.
//!
//! Decides the order of a turn: read what has come, handle every whole frame of it, poll the calls
//! that were woken, and write everything that came of it with one system call. Calls run here, in
//! the connection's own task. Time, wake-ups and the socket meet the protocol in this file only.
//! Started by `connection`.
//!
//! ```text
//!   socket --read--> input --Event--> start, feed or drop a call --+
//!      ^                                                           +--> poll --> answer
//!      |                               calls that were woken ------+               |
//!      +---------------------write--------- output <-------------------------------+
//! ```
//!
//! Invariants
//! - D1 A connection that waits keeps no buffers but for what is in them.
//! - D2 Nothing is read while more waits to be written than a socket takes at once.
//! - D3 After a turn, each call that can go on is in the list of those woken, or its stream waits
//!   for room.

use std::{
    cell::RefCell,
    future::{Future, pending, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use ::http::Response;
use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
};
use tracing::debug;

use super::{
    calls::{Calls, Gathering, Outcome, Place, PlaceWaker, Run, Woken, Work},
    connection::{Client, Service, show_authority, stopped},
    http2::{Code, Connection, End, Event, Key, OUTPUT_BYTES_MAX, Settings},
    life::{Life, Verdict},
    options::Traffic,
    requests::{Asked, Reader, Speaks},
    rest,
};
use crate::{
    api::{
        self,
        answer::Payload,
        body::{Body, Piece, code_digits, percent_encoded},
        member::Member,
        metadata::Metadata,
        rpc::{Kind, Rpc},
        status::Failure,
        wire::{Deframer, Inlet, messages, no_message, only_message},
    },
    base::clock::Clock,
    http,
};

/// What a client may send on one stream before we have taken it: the usual request fits.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// What a client may send on all streams of a connection together.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// Fields of one request.
const FIELDS_BYTES_MAX: u32 = 64 << 10;

/// Room for one read. Messages are slices of it, so it is also what a small one may keep alive.
const READ_BYTES: usize = 32 << 10;

/// With less room than this, a new buffer is cheaper than another read.
const READ_BYTES_MIN: usize = 4 << 10;

/// Turns before other connections of the thread have theirs.
const TURNS_MAX: usize = 8;

/// An output that has grown beyond this is not kept.
const OUTPUT_BYTES_KEPT: usize = 1 << 20;

/// How long a client that was told the reason has to read it.
const GOODBYE: Duration = Duration::from_secs(1);

/// What is sent to see whether a client lives.
const LIFE_PING: [u8; 8] = *b"alive? \n";

thread_local! {
    /// What is read, what was read before, and what is to be written, of whichever connection has
    /// its turn.
    static BUFFERS: RefCell<(BytesMut, BytesMut, Vec<u8>)> = RefCell::default();
}

/// How a connection ended.
#[derive(Debug)]
enum Over {
    /// Either side was done.
    Done,
    /// The client broke the protocol, or a limit.
    Broken(&'static str),
    /// It gave no sign of life.
    Dead,
    /// The system said so.
    Failed(io::Error),
}

/// A connection.
struct Driver<IO, M> {
    io: IO,
    input: BytesMut,
    spare: BytesMut,
    /// How much of the output has been written.
    written: usize,
    /// Whether the output has been held back for once.
    held: bool,
    core: Connection,
    calls: Calls,
    /// The call with one question that came last, until it is known whether that comes in one piece.
    fresh: Option<Fresh>,
    woken: Arc<Woken>,
    /// Taken from `woken`, on their way to be polled.
    taken: Vec<Arc<PlaceWaker>>,
    reader: Reader,
    /// The call that was asked for last, if the last request was one.
    asked: Option<(Rpc, Metadata)>,
    service: Arc<Service<M>>,
    remote: Option<SocketAddr>,
    traffic: Traffic,
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
    life: Option<Life>,
    clock: Clock,
}

/// A call with one question, of which only the fields have come.
struct Fresh {
    key: Key,
    rpc: Rpc,
    metadata: Metadata,
}

/// Serves a connection whose first bytes are in `input`, until it ends or, after the stop, until
/// its last call is answered.
pub(super) async fn drive<IO, M>(
    service: Arc<Service<M>>,
    io: IO,
    input: BytesMut,
    client: Client,
    stop: watch::Receiver<bool>,
) where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    M: Member,
{
    let remote = client.remote;
    let mut driver = Driver::new(service, io, input, client, stop);
    // Turns are limited here; tokio's own limit would keep calls from being polled.
    let turns = poll_fn(|context| driver.poll(context));
    let over = tokio::task::coop::unconstrained(turns).await;
    match &over {
        Over::Done => {}
        Over::Dead => debug!(?remote, "a client gave no sign of life"),
        Over::Broken(reason) => debug!(reason, ?remote, "a client was sent away"),
        Over::Failed(error) => debug!(%error, ?remote, "a connection ended"),
    }
    // Calls end before the client reads why.
    let Driver { mut io, mut core, written, calls, .. } = driver;
    drop(calls);
    if !matches!(over, Over::Broken(_)) {
        return;
    }
    let goodbye = async {
        io.write_all(&core.output()[written..]).await?;
        io.shutdown().await?;
        // What is left unread would make the system drop what the client has not read yet.
        let mut ignored = [0; 1024];
        while io.read(&mut ignored).await? != 0 {}
        Ok::<_, io::Error>(())
    };
    // There is nobody to tell about a failure.
    drop(tokio::time::timeout(GOODBYE, goodbye).await);
}

impl<IO, M> Driver<IO, M>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    M: Member,
{
    fn new(
        service: Arc<Service<M>>,
        io: IO,
        input: BytesMut,
        client: Client,
        mut stop: watch::Receiver<bool>,
    ) -> Self {
        let Client { remote, traffic, load } = client;
        let options = &service.options;
        let core = Connection::new(Settings {
            streams_max: options.concurrent_streams_max,
            stream_window: STREAM_WINDOW_BYTES,
            connection_window: CONNECTION_WINDOW_BYTES,
            fields_bytes_max: FIELDS_BYTES_MAX,
            ping_interval_min: options.ping_interval_min,
        });
        let clock = service.edge.clock.clone();
        let woken = Arc::<Woken>::default();
        let life = Life::new(options.keepalive_interval, options.keepalive_timeout, clock.now());
        for place in [Place::Stop, Place::Timer] {
            Waker::from(woken.waker(place)).wake();
        }
        Self {
            io,
            input,
            spare: BytesMut::new(),
            written: 0,
            held: false,
            core,
            calls: Calls::new(Arc::clone(&woken), load),
            fresh: None,
            woken,
            taken: Vec::new(),
            reader: Reader::default(),
            asked: None,
            remote,
            traffic,
            stop: Box::pin(async move { stopped(&mut stop).await }),
            life,
            clock,
            service,
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Over> {
        self.borrow_buffers();
        let over = self.poll_turns(context);
        self.return_buffers();
        over
    }

    fn borrow_buffers(&mut self) {
        BUFFERS.with_borrow_mut(|(input, spare, output)| {
            if self.input.is_empty() {
                self.input = std::mem::take(input);
            }
            self.spare = std::mem::take(spare);
            if self.core.output().is_empty() {
                *self.core.output() = std::mem::take(output);
            }
        });
    }

    fn return_buffers(&mut self) {
        BUFFERS.with_borrow_mut(|(input, spare, output)| {
            if self.input.is_empty() {
                *input = std::mem::take(&mut self.input);
            }
            *spare = std::mem::take(&mut self.spare);
            if self.core.output().is_empty() {
                *output = std::mem::take(self.core.output());
            }
        });
    }

    fn poll_turns(&mut self, context: &mut Context<'_>) -> Poll<Over> {
        self.woken.awake();
        for _ in 0..TURNS_MAX {
            match self.turn(context) {
                Ok(Turn::Again) => {}
                Ok(Turn::Later) => break,
                Ok(Turn::Idle) => {
                    if self.woken.sleep(context.waker()) {
                        return Poll::Pending;
                    }
                }
                Err(over) => return Poll::Ready(over),
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Everything that can be done without waiting. Before the output is written, the other
    /// connections of the thread have their turn: what comes meanwhile leaves with it.
    fn turn(&mut self, context: &mut Context<'_>) -> Result<Turn, Over> {
        let mut turn = Turn::Idle;
        if self.poll_read(context)?.is_ready() {
            turn = Turn::Again;
        }
        self.handle_input()?;
        for _ in 0..TURNS_MAX {
            if !self.poll_woken()? {
                break;
            }
            turn = Turn::Again;
        }
        let more = self.core.output().len() < OUTPUT_BYTES_MAX && self.written == 0;
        if !self.core.output().is_empty() && more && !std::mem::replace(&mut self.held, true) {
            return Ok(Turn::Later);
        }
        self.held = false;
        let unread = OUTPUT_BYTES_MAX <= self.core.output().len();
        if self.poll_write(context)?.is_ready() {
            // A client that takes a large answer as fast as it is made has its say in between.
            if unread && self.poll_read(context)?.is_ready() {
                self.handle_input()?;
                turn = Turn::Again;
            }
            self.core.resume();
            if self.core.has_news() {
                // A piece of a large answer is as much as another connection waits for.
                turn = if unread { Turn::Later } else { Turn::Again };
            } else if self.core.is_drained() {
                return Err(Over::Done);
            }
        }
        Ok(turn)
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Result<Poll<()>, Over> {
        if OUTPUT_BYTES_MAX <= self.core.output().len() {
            // D2. The write that empties it wakes us.
            return Ok(Poll::Pending);
        }
        if self.input.capacity() - self.input.len() < READ_BYTES_MIN {
            self.change_buffers();
        }
        let read = pin!(self.io.read_buf(&mut self.input));
        match read.poll(context) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(Ok(0)) => return Err(Over::Done),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Err(Over::Failed(error)),
        }
        if let Some(life) = &mut self.life {
            life.hear(self.clock.now());
        }
        Ok(Poll::Ready(()))
    }

    /// Goes on with the other buffer. Calls that are under way keep parts of this one, and have
    /// mostly ended when it is needed again.
    fn change_buffers(&mut self) {
        let mut next = std::mem::take(&mut self.spare);
        next.clear();
        if !next.try_reclaim(READ_BYTES) {
            next = BytesMut::with_capacity(READ_BYTES);
        }
        next.extend_from_slice(&self.input);
        self.spare = std::mem::replace(&mut self.input, next);
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Result<Poll<()>, Over> {
        let output = self.core.output();
        while self.written < output.len() {
            let write = Pin::new(&mut self.io).poll_write(context, &output[self.written..]);
            match write {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Ok(0)) => return Err(Over::Done),
                Poll::Ready(Ok(bytes)) => self.written += bytes,
                Poll::Ready(Err(error)) => return Err(Over::Failed(error)),
            }
        }
        self.written = 0;
        output.clear();
        if OUTPUT_BYTES_KEPT < output.capacity() {
            *output = Vec::new();
        }
        Ok(Poll::Ready(()))
    }

    fn handle_input(&mut self) -> Result<(), Over> {
        let now = self.clock.now();
        loop {
            match self.core.next(&mut self.input, now) {
                Ok(None) => {
                    self.gather();
                    return Ok(());
                }
                Ok(Some(event)) => self.handle(event),
                Err(reason) => return Err(Over::Broken(reason)),
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let Some(event) = self.start_fresh(event) else { return };
        match event {
            Event::Request { key, last, repeated } => self.request(key, last, repeated),
            Event::Data { key, data, last } => self.data(key, data, last),
            Event::End { key } => self.data(key, Bytes::new(), true),
            Event::Room { key } => self.poll_call(key),
            Event::Reset { key } => drop(self.calls.take(key)),
        }
    }

    fn request(&mut self, key: Key, last: bool, repeated: bool) {
        if self.service.options.show_authority {
            show_authority(self.core.fields().pseudo().authority.unwrap_or_default());
        }
        if repeated && let Some((rpc, metadata)) = self.asked.clone() {
            return self.call(key, rpc, metadata, last);
        }
        self.asked = None;
        let speaks = if self.traffic == Traffic::Grpc { Speaks::Grpc } else { Speaks::Both };
        match self.reader.read(self.core.fields(), speaks) {
            Asked::Rpc(rpc, metadata) if self.traffic.has_grpc() => {
                self.asked = Some((rpc, metadata.clone()));
                self.call(key, rpc, metadata, last);
            }
            Asked::Refused(status, failure) if self.traffic.has_grpc() => {
                let text = percent_encoded(&failure.text);
                self.core.refuse(key, status, code_digits(failure.code), &text);
            }
            Asked::Plain(request) => {
                let service = Arc::clone(&self.service);
                let traffic = self.traffic;
                let run =
                    async move { Outcome::Plain(service.answer_plain(traffic, *request).await) };
                self.run(key, Box::pin(run));
            }
            Asked::Rpc(..) | Asked::Refused(..) | Asked::Malformed => {
                self.core.reset(key, Code::PROTOCOL_ERROR);
            }
        }
    }

    fn call(&mut self, key: Key, rpc: Rpc, metadata: Metadata, last: bool) {
        let bytes_max = self.service.edge.message_bytes_max();
        if rpc.kind() == Kind::Unary {
            self.fresh = Some(Fresh { key, rpc, metadata });
            if last {
                self.gather();
            }
        } else {
            let (inlet, messages) = messages(&metadata, bytes_max);
            match api::streaming(&self.service.edge, rpc, &metadata, messages) {
                Err(failure) => return self.fail(key, &failure),
                Ok(body) => self.calls.put(key, Work::Streaming(body, Some(inlet))),
            }
            if rpc.kind() == Kind::Bidirectional {
                // The client may wait for it before it says what it wants.
                self.core.begin(key);
            }
            self.calls.waker(key).wake_by_ref();
        }
        if last {
            self.data(key, Bytes::new(), true);
        }
    }

    /// Starts the newest call if its question has come in one piece. The event, if it is not that.
    fn start_fresh(&mut self, mut event: Event) -> Option<Event> {
        let Some(Fresh { key, rpc, metadata }) = self.fresh.take() else { return Some(event) };
        if let Event::Data { key: of, data, last: true } = &mut event
            && *of == key
        {
            let bytes = u32::try_from(data.len()).expect("frames are small");
            match only_message(std::mem::take(data), self.service.edge.message_bytes_max()) {
                Ok(message) => {
                    self.core.release(key, bytes);
                    self.start(key, rpc, metadata, message);
                    return None;
                }
                Err(unread) => *data = unread,
            }
        }
        self.fresh = Some(Fresh { key, rpc, metadata });
        self.gather();
        Some(event)
    }

    /// Puts the newest call aside until its question has come.
    fn gather(&mut self) {
        let Some(Fresh { key, rpc, metadata }) = self.fresh.take() else { return };
        let deframer = Deframer::new(&metadata, self.service.edge.message_bytes_max());
        let gathering = Gathering { rpc, metadata, deframer };
        self.calls.put(key, Work::Gathering(Box::new(gathering)));
    }

    fn data(&mut self, key: Key, data: Bytes, last: bool) {
        let bytes = u32::try_from(data.len()).expect("frames are small");
        match self.calls.get(key) {
            Some(Work::Gathering(gathering)) => {
                gathering.deframer.push(data);
                if last {
                    gathering.deframer.end();
                }
                let next = gathering.deframer.next_message();
                self.core.release(key, bytes);
                if let Poll::Ready(message) = next {
                    self.start_gathered(key, message);
                }
            }
            Some(Work::Streaming(_, Some(inlet))) => {
                rest::call_goes_on();
                inlet.push(data);
                if last {
                    inlet.end();
                }
            }
            Some(Work::Streaming(_, None) | Work::Running(_)) | None => {
                self.core.release(key, bytes);
            }
        }
    }

    /// Starts a call whose question has come, or cannot be read.
    fn start_gathered(&mut self, key: Key, message: Result<Option<Bytes>, Failure>) {
        let Some(Work::Gathering(gathering)) = self.calls.take(key) else { return };
        let Gathering { rpc, metadata, .. } = *gathering;
        match message.and_then(|message| message.ok_or_else(no_message)) {
            Ok(message) => self.start(key, rpc, metadata, message),
            Err(failure) => self.fail(key, &failure),
        }
    }

    fn start(&mut self, key: Key, rpc: Rpc, metadata: Metadata, message: Bytes) {
        let (edge, remote) = (Arc::clone(&self.service.edge), self.remote);
        // The call comes to be inside of the box, so only its arguments are moved there.
        let run =
            async move { Outcome::Grpc(api::unary(edge, rpc, remote, metadata, message).await) };
        self.run(key, Box::pin(run));
        // A long answer that has begun is among the calls, too.
        if matches!(self.calls.get(key), Some(Work::Running(_))) {
            rest::call_waits();
        } else {
            rest::call_goes_on();
        }
    }

    fn poll_woken(&mut self) -> Result<bool, Over> {
        let mut taken = std::mem::take(&mut self.taken);
        self.woken.swap(&mut taken);
        let some = !taken.is_empty();
        for waker in taken.drain(..) {
            waker.take();
            match waker.place() {
                Place::Call(place) => {
                    if let Some(key) = self.calls.key_at(place) {
                        self.poll_call(key);
                    }
                }
                Place::Stop => {
                    let waker = Waker::from(waker);
                    if self.stop.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                        self.stop = Box::pin(pending());
                        self.core.drain();
                    }
                }
                Place::Timer => self.poll_life(&Waker::from(waker))?,
            }
        }
        self.taken = taken;
        Ok(some)
    }

    fn poll_call(&mut self, key: Key) {
        match self.calls.take(key) {
            Some(Work::Running(run)) => self.run(key, run),
            Some(Work::Streaming(body, inlet)) => self.stream(key, body, inlet),
            Some(gathering @ Work::Gathering(_)) => self.calls.put(key, gathering),
            None => {}
        }
    }

    fn run(&mut self, key: Key, mut run: Run) {
        let waker = self.calls.waker(key);
        let Poll::Ready(outcome) = run.as_mut().poll(&mut Context::from_waker(waker)) else {
            return self.calls.put(key, Work::Running(run));
        };
        match outcome {
            Outcome::Grpc(Ok(Payload::Whole(message))) => self.core.answer(key, message),
            Outcome::Grpc(Ok(Payload::Rows(rows))) => self.stream(key, Body::Rows(rows), None),
            Outcome::Grpc(Err(failure)) => self.fail(key, &failure),
            Outcome::Plain(response) => self.answer_plain(key, response),
        }
    }

    /// Sends what a stream has, as far as there is room.
    fn stream(&mut self, key: Key, mut body: Body, inlet: Option<Inlet>) {
        let waker = self.calls.waker(key);
        let mut context = Context::from_waker(waker);
        while self.core.has_room(key) {
            match body.poll_piece(&mut context) {
                Poll::Pending => break,
                Poll::Ready(Piece::Data(data)) => self.core.send(key, data),
                Poll::Ready(Piece::End(Ok(()))) => return self.core.finish(key, End::Ok),
                Poll::Ready(Piece::End(Err(failure))) => return self.fail(key, &failure),
            }
        }
        if let Some(inlet) = &inlet {
            let taken = u32::try_from(inlet.take_taken()).expect("windows have 31 bits");
            self.core.release(key, taken);
        }
        self.calls.put(key, Work::Streaming(body, inlet));
    }

    fn fail(&mut self, key: Key, failure: &Failure) {
        let text = percent_encoded(&failure.text).into_owned();
        self.core.finish(key, End::Failure { code: code_digits(failure.code), text });
    }

    fn answer_plain(&mut self, key: Key, response: Response<http::Body>) {
        let (parts, body) = response.into_parts();
        let content = match body {
            http::Body::Empty => Bytes::new(),
            http::Body::Content(content) => content,
        };
        let length = content.len().to_string();
        let fields = parts.headers.iter().map(|(name, value)| (name.as_ref(), value.as_bytes()));
        let fields = fields.chain([(&b"content-length"[..], length.as_bytes())]);
        self.core.begin_plain(key, parts.status.as_str(), fields);
        if !content.is_empty() {
            self.core.send(key, content);
        }
        self.core.finish(key, End::Content);
    }

    fn poll_life(&mut self, waker: &Waker) -> Result<(), Over> {
        let mut context = Context::from_waker(waker);
        while let Some(life) = &mut self.life
            && let Poll::Ready(verdict) = life.poll(&mut context, self.clock.now())
        {
            match verdict {
                Verdict::Fine => {}
                Verdict::Ask => self.core.put_ping(LIFE_PING),
                Verdict::Dead => return Err(Over::Dead),
            }
        }
        Ok(())
    }
}

/// What comes after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Another one: there may be more to do.
    Again,
    /// Another one, after the other connections have had theirs.
    Later,
    /// Sleep.
    Idle,
}
