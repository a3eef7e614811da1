//! Sends requests in one of two shapes and measures what comes back.
//!
//! Decides when a request is sent: in a closed loop as soon as the one before it in its slot is
//! answered, in an open loop at its due time whatever the server does. Latency counts from the due
//! time, so a server that stalls is charged for every request that was due meanwhile (no
//! coordinated omission). Owns the connections; what the requests are is a [`Requests`]'s matter.
//!
//! ```text
//!   Requests --next--> Generator --call--> Connection x 8
//!       ^                  ^                    |
//!       +---- answered ----+------ ended -------+--> Tally (HDR histogram, counts)
//! ```
//!
//! It sleeps between events and never spins: a spinning generator takes the processor from the
//! server and shows up as the server's latency.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;

use super::http2::{Answer, Connection, Handler, Poller, StreamId};

/// How many connections a load uses, if it has at least as many requests in flight.
pub const CONNECTIONS: usize = 8;

/// A server that answers nothing for so long has failed.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// The longest latency that is told apart.
const LATENCY_MICROS_MAX: u64 = 600_000_000;

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// So many are always in flight.
    Closed {
        /// How many.
        in_flight: usize,
    },
    /// So many are due each second.
    Open {
        /// How many.
        per_second: f64,
    },
}

/// When sending ends. What is in flight then is awaited.
#[derive(Clone, Copy, Debug)]
pub enum Until<'a> {
    /// After this time.
    Elapsed(Duration),
    /// After so many requests.
    Sent(u64),
    /// When this becomes true.
    Told(&'a AtomicBool),
}

/// Sets a flag when it goes, however that happens: whoever waits for the flag must not wait for a
/// thread that panicked.
#[derive(Debug)]
pub struct TellAtEnd<'a>(pub &'a AtomicBool);

impl Drop for TellAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// How often a load looks whether it is told to end.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How a request goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Each is a call of its own.
    Unary,
    /// Each slot keeps one stream open; an answer is one message on it.
    Stream,
}

/// What a refusal (a call that ends with an error) means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusals {
    /// The run has failed.
    Fatal,
    /// It is counted, as an answer of [`REFUSAL_MICROS`]: it must not look better than a slow one.
    Counted,
}

/// The latency that a refusal counts as, in microseconds: ten seconds.
const REFUSAL_MICROS: u64 = 10_000_000;

/// What is sent.
pub trait Requests {
    /// The method called, such as `/etcdserverpb.KV/Put`.
    fn path(&self) -> &'static str;

    /// Whether every request is a call of its own.
    fn style(&self) -> Style {
        Style::Unary
    }

    /// What is wanted of the answers.
    fn answer(&self) -> Answer {
        Answer::Messages
    }

    /// Writes the next request for `slot` into `message`, which is empty.
    fn next(&mut self, slot: usize, message: &mut Vec<u8>);

    /// What a refusal means. By default, that the run has failed.
    fn refusals(&self) -> Refusals {
        Refusals::Fatal
    }

    /// An answer for `slot` arrived.
    ///
    /// # Errors
    /// If it is not what a correct server answers.
    fn answered(&mut self, slot: usize, message: &[u8]) -> anyhow::Result<()> {
        let _unused = (slot, message);
        Ok(())
    }
}

/// What a load measured.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Answers received, with refusals.
    pub operations: u64,
    /// Refusals among them.
    pub refused: u64,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// Microseconds from the due time to the answer.
    pub latency: Histogram<u64>,
    /// Bytes of answers that were only counted.
    pub bytes: u64,
}

impl Tally {
    fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3);
        let latency = latency.expect("three digits from a microsecond to ten minutes fit");
        Self { operations: 0, refused: 0, elapsed: Duration::ZERO, latency, bytes: 0 }
    }

    /// Answers per second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a count of operations is far below 2^52")]
    pub fn per_second(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency below which `percent` of all answers stay, in milliseconds.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a latency is far below 2^52 microseconds")]
    pub fn latency_ms(&self, percent: f64) -> f64 {
        self.latency.value_at_percentile(percent) as f64 / 1000.0
    }
}

/// Sends requests over its connections. Owned by the thread that runs it.
#[derive(Debug)]
pub struct Generator {
    connections: Vec<Connection>,
    poller: Poller,
}

/// One request in flight, or a place for one.
#[derive(Clone, Copy, Debug)]
struct Slot {
    connection: usize,
    stream: Option<StreamId>,
    due: Instant,
}

/// The state of one run.
struct Run<'a> {
    requests: &'a mut dyn Requests,
    tally: Tally,
    slots: Vec<Slot>,
    /// Slots without a request.
    idle: VecDeque<usize>,
    /// Which slot a stream belongs to.
    owners: Vec<HashMap<StreamId, usize>>,
    started: Instant,
    sent: u64,
    in_flight: usize,
    message: Vec<u8>,
}

impl Generator {
    /// Connects `connections` times, to the addresses in turn.
    ///
    /// # Errors
    /// If nobody listens.
    pub fn connect(addresses: &[SocketAddr], connections: usize) -> anyhow::Result<Self> {
        let in_turn = addresses.iter().cycle().take(connections);
        let connections: anyhow::Result<Vec<_>> =
            in_turn.map(|address| Connection::open(*address)).collect();
        Ok(Self { connections: connections?, poller: Poller::default() })
    }

    /// Runs a load to its end; every request sent is answered when it returns.
    ///
    /// # Errors
    /// If an answer is an error, or the server falls silent.
    pub fn run(
        &mut self,
        shape: Shape,
        until: Until<'_>,
        requests: &mut dyn Requests,
    ) -> anyhow::Result<Tally> {
        let mut run = Run::new(shape, self.connections.len(), requests);
        let mut heard = run.started;
        loop {
            let now = run.now();
            let wanted = run.due_now(shape, until, now);
            for _ in 0..wanted {
                run.send(shape, &mut self.connections, now)?;
            }
            for connection in &mut self.connections {
                connection.flush()?;
            }
            if run.in_flight == 0 && run.is_over(until, now) {
                break;
            }
            let wait = run.until_next(shape, until, now);
            let ready = self.poller.wait(&mut self.connections, wait)?.to_vec();
            for (at, _) in ready.iter().enumerate().filter(|(_, ready)| **ready) {
                let answers = run.receive(at, &mut self.connections[at])?;
                if 0 < answers {
                    heard = run.now();
                }
                if let Shape::Closed { .. } = shape {
                    let now = heard;
                    for _ in 0..run.due_now(shape, until, now) {
                        run.send(shape, &mut self.connections, now)?;
                    }
                    self.connections[at].flush()?;
                }
            }
            let silent = run.now().saturating_duration_since(heard);
            if 0 < run.in_flight && SILENCE_MAX < silent {
                bail!("{} requests were not answered within {SILENCE_MAX:?}", run.in_flight);
            }
        }
        run.tally.elapsed = run.now().saturating_duration_since(run.started);
        Ok(run.tally)
    }
}

impl<'a> Run<'a> {
    fn new(shape: Shape, connections: usize, requests: &'a mut dyn Requests) -> Self {
        let started = Instant::now();
        let slots: Vec<_> = match shape {
            Shape::Closed { in_flight } => (0..in_flight)
                .map(|at| Slot { connection: at % connections, stream: None, due: started })
                .collect(),
            Shape::Open { .. } => Vec::new(),
        };
        Self {
            requests,
            tally: Tally::new(),
            idle: (0..slots.len()).collect(),
            slots,
            owners: vec![HashMap::new(); connections],
            started,
            sent: 0,
            in_flight: 0,
            message: Vec::with_capacity(1024),
        }
    }

    /// A load runs on real time.
    fn now(&self) -> Instant {
        Instant::now().max(self.started)
    }

    fn is_over(&self, until: Until<'_>, now: Instant) -> bool {
        match until {
            Until::Elapsed(time) => time <= now.saturating_duration_since(self.started),
            Until::Sent(count) => count <= self.sent,
            Until::Told(end) => end.load(Ordering::Acquire),
        }
    }

    /// How many requests are to be sent now.
    fn due_now(&self, shape: Shape, until: Until<'_>, now: Instant) -> u64 {
        let left = match until {
            Until::Sent(count) => count.saturating_sub(self.sent),
            Until::Elapsed(_) | Until::Told(_) if self.is_over(until, now) => 0,
            Until::Elapsed(_) | Until::Told(_) => u64::MAX,
        };
        let due = match shape {
            Shape::Closed { .. } => self.idle.len() as u64,
            Shape::Open { per_second } => {
                let elapsed = now.saturating_duration_since(self.started).as_secs_f64();
                (whole(elapsed * per_second) + 1).saturating_sub(self.sent)
            }
        };
        due.min(left)
    }

    /// When request number `number` of an open loop is due.
    #[expect(clippy::cast_precision_loss, reason = "a count of requests is far below 2^52")]
    fn due(&self, per_second: f64, number: u64) -> Instant {
        self.started + Duration::from_secs_f64(number as f64 / per_second)
    }

    /// How long nothing is to be sent.
    fn until_next(&self, shape: Shape, until: Until<'_>, now: Instant) -> Duration {
        let next = match shape {
            Shape::Open { per_second } if !self.is_over(until, now) => {
                self.due(per_second, self.sent).saturating_duration_since(now)
            }
            Shape::Open { .. } | Shape::Closed { .. } => Duration::from_secs(1),
        };
        next.min(if let Until::Told(_) = until { LOOK_EVERY } else { Duration::from_secs(1) })
    }

    fn send(
        &mut self,
        shape: Shape,
        connections: &mut [Connection],
        now: Instant,
    ) -> anyhow::Result<()> {
        let at = match self.idle.pop_front() {
            Some(at) => at,
            None => {
                let connection = self.slots.len() % connections.len();
                self.slots.push(Slot { connection, stream: None, due: now });
                self.slots.len() - 1
            }
        };
        let due = match shape {
            Shape::Closed { .. } => now,
            Shape::Open { per_second } => self.due(per_second, self.sent),
        };
        self.message.clear();
        self.requests.next(at, &mut self.message);
        let slot = &mut self.slots[at];
        slot.due = due;
        let connection = &mut connections[slot.connection];
        let (path, answer) = (self.requests.path(), self.requests.answer());
        match (self.requests.style(), slot.stream) {
            (Style::Unary, _) => {
                let stream = connection.call(path, &self.message, answer)?;
                self.owners[slot.connection].insert(stream, at);
            }
            (Style::Stream, Some(stream)) => connection.message(stream, &self.message)?,
            (Style::Stream, None) => {
                let stream = connection.open_stream(path, answer);
                slot.stream = Some(stream);
                self.owners[slot.connection].insert(stream, at);
                connection.message(stream, &self.message)?;
            }
        }
        self.sent += 1;
        self.in_flight += 1;
        Ok(())
    }

    /// Reads one connection; returns how many requests were answered.
    fn receive(&mut self, at: usize, connection: &mut Connection) -> anyhow::Result<u64> {
        let before = self.tally.operations;
        let mut receiver = Receiver { run: self, connection: at, now: Instant::now(), fault: None };
        connection.read(&mut receiver)?;
        if let Some(fault) = receiver.fault {
            return Err(fault);
        }
        Ok(self.tally.operations - before)
    }

    fn answered(&mut self, at: usize, now: Instant) -> anyhow::Result<()> {
        let latency = now.saturating_duration_since(self.slots[at].due);
        self.finished(at, u64::try_from(latency.as_micros())?)
    }

    fn refused(&mut self, at: usize) -> anyhow::Result<()> {
        self.tally.refused += 1;
        self.finished(at, REFUSAL_MICROS)
    }

    fn finished(&mut self, at: usize, micros: u64) -> anyhow::Result<()> {
        let micros = micros.clamp(1, LATENCY_MICROS_MAX);
        self.tally.latency.record(micros).context("a latency within the bounds")?;
        self.tally.operations += 1;
        ensure!(0 < self.in_flight, "more answers than requests");
        self.in_flight -= 1;
        self.idle.push_back(at);
        Ok(())
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a product of an elapsed time and a rate is small and not negative"
)]
const fn whole(value: f64) -> u64 {
    value as u64
}

/// Hears one connection on behalf of a run.
struct Receiver<'a, 'b> {
    run: &'a mut Run<'b>,
    connection: usize,
    now: Instant,
    fault: Option<anyhow::Error>,
}

impl Receiver<'_, '_> {
    fn note(&mut self, outcome: anyhow::Result<()>) {
        if let Err(error) = outcome {
            self.fault.get_or_insert(error);
        }
    }
}

impl Handler for Receiver<'_, '_> {
    fn message(&mut self, stream: StreamId, message: &[u8]) {
        let Some(&slot) = self.run.owners[self.connection].get(&stream) else { return };
        let outcome = self.run.requests.answered(slot, message);
        self.note(outcome);
        if self.run.requests.style() == Style::Stream {
            let outcome = self.run.answered(slot, self.now);
            self.note(outcome);
        }
    }

    fn counted(&mut self, _stream: StreamId, bytes: u64) {
        self.run.tally.bytes += bytes;
    }

    fn ended(&mut self, stream: StreamId, status: u32, text: &str) {
        let Some(slot) = self.run.owners[self.connection].remove(&stream) else { return };
        let counted = self.run.requests.refusals() == Refusals::Counted;
        let outcome = if status != 0 && counted {
            self.run.refused(slot)
        } else if status != 0 {
            Err(anyhow::anyhow!("{} answered {status}: {text}", self.run.requests.path()))
        } else if self.run.requests.style() == Style::Stream {
            Err(anyhow::anyhow!("{} ended", self.run.requests.path()))
        } else {
            self.run.answered(slot, self.now)
        };
        self.note(outcome);
    }
}
