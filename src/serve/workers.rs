//! The threads that serve connections.
//!
//! Decides which thread takes a connection, and the order of the end: no new connections, then no
//! new requests, then the time for open ones runs out. The accepting thread hands a connection over
//! as a plain socket; the runtime that serves it registers it. Started by `boot`.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    runtime::{Builder, Runtime},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
};
use tracing::{debug, info, warn};

use super::{
    connection::{Client, Service, stopped},
    listener::{Accepted, Listener, Listeners, Socket, prepare},
    options::{Options, Traffic},
    rest,
};
use crate::{
    api::{Edge, member::Member},
    base::{
        courier::Courier,
        task,
        thread::{self, Priority},
    },
    http::Http,
};

/// Connections that wait for a thread to take them; taking one is a matter of microseconds.
const HANDED_OVER_MAX: usize = 256;

/// Between two looks at what is left after the stop.
const DRAIN_LOOK: Duration = Duration::from_millis(5);

/// After a failed accept, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// After the stop, how long streams keep a connection open whose requests have been answered.
const STREAM_LINGER: Duration = Duration::from_millis(100);

/// A connection on its way to its thread.
struct Job {
    accepted: Accepted,
    traffic: Traffic,
    permit: OwnedSemaphorePermit,
}

/// A thread that takes connections.
#[derive(Clone)]
struct Worker {
    jobs: mpsc::Sender<Job>,
    load: Arc<Load>,
}

/// What a thread has to do.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Connections that were given to it and have not ended.
    connections: AtomicUsize,
    /// Requests whose answer has not begun. A stream's answer begins at once.
    requests: AtomicUsize,
}

/// Counts something for as long as it lives.
pub(super) struct Counted<'a>(&'a AtomicUsize);

impl Load {
    /// A request has come.
    pub(super) fn add_request(&self) {
        self.requests.fetch_add(1, Ordering::AcqRel);
    }

    #[cfg(test)]
    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::Acquire)
    }

    /// A request's answer has begun, or its client has gone.
    pub(super) fn remove_request(&self) {
        self.requests.fetch_sub(1, Ordering::AcqRel);
    }

    /// Counts a request until the result is dropped.
    pub(super) fn request(&self) -> Counted<'_> {
        self.requests.fetch_add(1, Ordering::AcqRel);
        Counted(&self.requests)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The running edge. Dropping it without [`Serving::stop`] cuts every connection.
#[derive(Debug)]
pub struct Serving {
    stop: watch::Sender<bool>,
    /// How long open requests have after the stop.
    grace: watch::Sender<Duration>,
    threads: Vec<JoinHandle<()>>,
}

/// Serves `edge` and `http` on `listeners`, from now on.
///
/// # Errors
/// If the system refuses a thread or a runtime.
pub fn start<M: Member>(
    listeners: Listeners,
    edge: Arc<Edge<M>>,
    http: Http<M>,
    options: Options,
) -> io::Result<Serving> {
    let (stop, stopped) = watch::channel(false);
    let (grace, graced) = watch::channel(Duration::ZERO);
    let service = Arc::new(Service { edge: Arc::clone(&edge), http, options });
    let mut threads = Vec::new();
    let mut workers = Vec::new();
    for number in 0..service.options.workers.max(1) {
        let (jobs, receiver) = mpsc::channel(HANDED_OVER_MAX);
        let load = Arc::new(Load::default());
        workers.push(Worker { jobs, load: Arc::clone(&load) });
        let body = Body {
            service: Arc::clone(&service),
            load,
            stop: stopped.clone(),
            grace: graced.clone(),
        };
        let runtime = resting_runtime(Arc::clone(&edge))?;
        // Threads live as long as the process, and so may their names.
        let name = format!("api-{number}").leak();
        threads.push(thread::spawn(name, Priority::Normal, move || {
            body.run_worker(runtime, receiver);
        })?);
    }
    let load = Arc::new(Load::default());
    let body = Body { service, load, stop: stopped, grace: graced };
    let runtime = runtime()?;
    threads.push(thread::spawn("accept", Priority::Normal, move || {
        body.run_acceptor(runtime, listeners, workers);
    })?);
    Ok(Serving { stop, grace, threads })
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// A runtime whose thread rests before it waits for its sockets, where that is advised.
fn resting_runtime<M: Member>(edge: Arc<Edge<M>>) -> io::Result<Runtime> {
    let rest = move || {
        if let Some(time) = rest::advise(|| edge.member.gathers_until(), || edge.clock.now()) {
            Courier::sleep_on_this_thread(time);
        }
    };
    Builder::new_current_thread().enable_all().on_thread_park(rest).build()
}

impl Serving {
    /// Takes no more connections, lets open requests end for at most `grace`, and then returns.
    pub fn stop(mut self, grace: Duration) {
        self.grace.send_replace(grace);
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                warn!("a thread that served clients ended badly");
            }
        }
    }
}

/// What a thread needs.
struct Body<M> {
    service: Arc<Service<M>>,
    load: Arc<Load>,
    stop: watch::Receiver<bool>,
    grace: watch::Receiver<Duration>,
}

impl<M: Member> Body<M> {
    fn run_worker(self, runtime: Runtime, mut jobs: mpsc::Receiver<Job>) {
        runtime.block_on(async {
            // Ends when the acceptor has dropped its end.
            while let Some(job) = jobs.recv().await {
                self.serve(job);
            }
            self.drain().await;
        });
        // Cuts what is left.
        runtime.shutdown_background();
    }

    /// Starts the task of a connection on the current runtime.
    fn serve(&self, job: Job) {
        let service = Arc::clone(&self.service);
        let stop = self.stop.clone();
        let load = Arc::clone(&self.load);
        task::spawn(async move {
            // Counted when it was given to this thread.
            let _counted = Counted(&load.connections);
            let Job { accepted, traffic, permit: _permit } = job;
            let served = match accepted {
                Accepted::Tcp(stream, remote) => match TcpStream::from_std(stream) {
                    Ok(stream) => {
                        let client =
                            Client { remote: Some(remote), traffic, load: Arc::clone(&load) };
                        service.serve(stream, client, stop).await;
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                Accepted::Unix(stream) => match UnixStream::from_std(stream) {
                    Ok(stream) => {
                        let client = Client { remote: None, traffic, load: Arc::clone(&load) };
                        service.serve(stream, client, stop).await;
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = served {
                warn!(%error, "failed to register a connection");
            }
        });
    }

    /// Waits until every connection has ended; for at most the time given, and for streams hardly
    /// at all, which would stay open for ever.
    async fn drain(&self) {
        let grace = *self.grace.borrow();
        let load = &self.load;
        let none = |count: &AtomicUsize| count.load(Ordering::Acquire) == 0;
        let lingering = tokio::time::sleep(STREAM_LINGER.min(grace));
        let ended = async {
            let mut lingering = std::pin::pin!(lingering);
            loop {
                let answered = lingering.is_elapsed() && none(&load.requests);
                if answered || none(&load.connections) {
                    return;
                }
                tokio::select! {
                    () = lingering.as_mut(), if !lingering.is_elapsed() => {}
                    () = tokio::time::sleep(DRAIN_LOOK) => {}
                }
            }
        };
        if tokio::time::timeout(grace, ended).await.is_err() {
            debug!(grace = ?grace, "cut connections whose requests did not end in time");
        }
    }

    fn run_acceptor(self, runtime: Runtime, listeners: Listeners, workers: Vec<Worker>) {
        let workers: Arc<[Worker]> = workers.into();
        runtime.block_on(async {
            let edge = Arc::clone(&self.service.edge);
            task::spawn(async move { edge.leader_losses.watch(&edge).await });
            let this = Arc::new(self);
            let limit = listeners.connections_max;
            let accepting: Vec<_> = listeners
                .listeners
                .into_iter()
                .map(|listener| {
                    let accepting =
                        accept(Arc::clone(&this), Arc::clone(&workers), listener, limit);
                    task::spawn(accepting)
                })
                .collect();
            // Only the accepting tasks keep the workers fed.
            drop(workers);
            for task in accepting {
                if task.await.is_err() {
                    warn!("a listener ended badly");
                }
            }
            this.drain().await;
        });
        runtime.shutdown_background();
    }
}

enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Acceptor {
    fn new(socket: &Socket) -> io::Result<Self> {
        Ok(match socket {
            Socket::Tcp(socket) => Self::Tcp(TcpListener::from_std(socket.try_clone()?)?),
            Socket::Unix(socket, _) => Self::Unix(UnixListener::from_std(socket.try_clone()?)?),
        })
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, remote) = listener.accept().await?;
                let stream = stream.into_std()?;
                prepare(&stream)?;
                Ok(Accepted::Tcp(stream, remote))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted::Unix(stream.into_std()?))
            }
        }
    }
}

/// Accepts connections of one listener until the stop.
async fn accept<M: Member>(
    body: Arc<Body<M>>,
    workers: Arc<[Worker]>,
    listener: Listener,
    connections_max: usize,
) {
    let traffic = listener.traffic;
    let acceptor = match Acceptor::new(&listener.socket) {
        Ok(acceptor) => acceptor,
        Err(error) => {
            warn!(%error, address = listener.address, "failed to serve a listener");
            return;
        }
    };
    announce(&listener);
    let permits = Arc::new(Semaphore::new(connections_max));
    let mut stop = body.stop.clone();
    loop {
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            let permit = permit.expect("the semaphore is never closed");
            (acceptor.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            next = next => next,
            () = stopped(&mut stop) => return,
        };
        match accepted {
            Ok(accepted) => hand_over(&body, &workers, Job { accepted, traffic, permit }).await,
            Err(error) => {
                warn!(%error, address = listener.address, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn announce(listener: &Listener) {
    let address = listener.address.as_str();
    if listener.traffic == Traffic::Metrics {
        info!(address, "serving metrics");
        return;
    }
    info!("ready to serve client requests");
    info!(
        traffic = listener.traffic.name(),
        address, "serving client traffic insecurely; this is strongly discouraged!"
    );
}

async fn hand_over<M: Member>(body: &Body<M>, workers: &[Worker], job: Job) {
    if job.traffic == Traffic::Metrics {
        // Served by the accepting thread, which has time when the others have none.
        body.load.connections.fetch_add(1, Ordering::AcqRel);
        body.serve(job);
        return;
    }
    let least = workers.iter().min_by_key(|worker| worker.load.connections.load(Ordering::Relaxed));
    let worker = least.expect("there is at least one worker");
    worker.load.connections.fetch_add(1, Ordering::AcqRel);
    if worker.jobs.send(job).await.is_err() {
        worker.load.connections.fetch_sub(1, Ordering::AcqRel);
    }
}
