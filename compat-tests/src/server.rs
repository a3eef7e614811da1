//! A server process under test: official etcd or oxetcd, started alike.
//!
//! Decides how a server is started, awaited, stopped and killed, and what it means that one refuses
//! to start. Each has free loopback ports and a temporary directory of its own; only processes
//! started here are ever signalled.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use oxetcd_tools::{official, ports::free_port};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The line that says that a server answers clients.
const READY: &str = "ready to serve client requests";

/// How long a server may take to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The one that answers every question about behaviour.
    Official,
    /// Ours.
    Oxetcd,
}

/// A server, running or not, with its data directory.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    program: PathBuf,
    wrapper: Vec<String>,
    dir: Arc<TempDir>,
    data_dir: PathBuf,
    log_path: PathBuf,
    host: String,
    client_port: u16,
    peer_port: u16,
    extra: Vec<String>,
    name: String,
    /// The members to found or join a cluster with; `None` is this one alone, empty is whoever is
    /// found.
    initial_cluster: Option<String>,
    child: Option<Child>,
}

/// How a start went.
#[derive(Debug)]
pub enum Attempt {
    /// The server answers clients.
    Ready,
    /// The process ended, or was killed because it took too long.
    Ended(Ended),
}

/// What a process left that ended before it was ready.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code or the signal that ended it.
    pub status: ExitStatus,
    /// What it wrote to standard error in this start.
    pub log: String,
}

/// Our binary: `OXETCD_BIN`, or what cargo built beside this test.
///
/// # Errors
/// If there is none.
pub fn oxetcd_program(name: &str) -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("OXETCD_BIN_DIR") {
        return Ok(PathBuf::from(dir).join(name));
    }
    let mut dir = std::env::current_exe()?;
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    let program = dir.join(name);
    if !program.exists() {
        bail!("{} is missing: run `cargo build` first", program.display());
    }
    Ok(program)
}

/// The server of a kind; `None` where official etcd cannot be had.
fn program(kind: Kind) -> anyhow::Result<Option<PathBuf>> {
    match kind {
        Kind::Official => official::program("etcd"),
        Kind::Oxetcd => oxetcd_program("oxetcd").map(Some),
    }
}

impl Server {
    /// Starts a server on a fresh directory; `None` where official etcd cannot be had.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start(kind: Kind, extra: &[&str]) -> anyhow::Result<Option<Self>> {
        let Some(mut server) = Self::prepare(kind, extra)? else { return Ok(None) };
        server.resume()?;
        Ok(Some(server))
    }

    /// A server that was not started yet; `None` where official etcd cannot be had.
    ///
    /// # Errors
    /// If there is no such program, port or directory.
    pub fn prepare(kind: Kind, extra: &[&str]) -> anyhow::Result<Option<Self>> {
        let Some(program) = program(kind)? else { return Ok(None) };
        let dir = Arc::new(TempDir::new()?);
        Ok(Some(Self {
            kind,
            program,
            wrapper: Vec::new(),
            data_dir: dir.path().join("data"),
            log_path: dir.path().join("server.log"),
            dir,
            host: "127.0.0.1".to_owned(),
            client_port: free_port()?,
            peer_port: free_port()?,
            extra: extra.iter().map(|flag| (*flag).to_owned()).collect(),
            name: "m1".to_owned(),
            initial_cluster: None,
            child: None,
        }))
    }

    /// A second server of the same kind and flags for the same data directory, with ports and a
    /// log of its own.
    ///
    /// # Errors
    /// If there is no free port.
    pub fn second(&self) -> anyhow::Result<Self> {
        Ok(Self {
            kind: self.kind,
            program: self.program.clone(),
            wrapper: self.wrapper.clone(),
            dir: Arc::clone(&self.dir),
            data_dir: self.data_dir.clone(),
            log_path: self.dir.path().join("second.log"),
            host: self.host.clone(),
            client_port: free_port()?,
            peer_port: free_port()?,
            extra: self.extra.clone(),
            name: self.name.clone(),
            initial_cluster: self.initial_cluster.clone(),
            child: None,
        })
    }

    /// Both servers, official first; `None` where official etcd cannot be had.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_both(extra: &[&str]) -> anyhow::Result<Option<(Self, Self)>> {
        let Some(official) = Self::start(Kind::Official, extra)? else { return Ok(None) };
        let ours = Self::start(Kind::Oxetcd, extra)?.context("ours always starts")?;
        Ok(Some((official, ours)))
    }

    /// Starts the process on its present directory and waits until it is ready.
    ///
    /// # Errors
    /// If it exits or does not become ready in time; the end of its log is in the message.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        match self.attempt()? {
            Attempt::Ready => Ok(()),
            Attempt::Ended(ended) => {
                let tail = ended.log.lines().rev().take(12).collect::<Vec<_>>();
                bail!(
                    "{:?} did not become ready; its log ends (newest first):\n{}",
                    self.kind,
                    tail.join("\n")
                )
            }
        }
    }

    /// Starts the process on its present directory, and reports whether it became ready or ended.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub fn attempt(&mut self) -> anyhow::Result<Attempt> {
        let ready = self.launch()?;
        let outcome = ready.wait();
        if outcome {
            return Ok(Attempt::Ready);
        }
        let mut child = self.child.take().context("it was just started")?;
        // A process that is gone already needs no killing.
        drop(child.kill());
        let status = child.wait()?;
        let log = std::fs::read_to_string(&self.log_path)?;
        Ok(Attempt::Ended(Ended {
            status,
            log: log.get(ready.log_from..).unwrap_or("").to_owned(),
        }))
    }

    /// Starts the process and does not wait.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub fn launch(&mut self) -> anyhow::Result<Readiness> {
        assert!(self.child.is_none(), "the server runs already");
        let mut command = self.command();
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        let stderr = child.stderr.take().context("standard error is piped")?;
        let (ready, is_ready) = mpsc::sync_channel(1);
        let mut log_file = File::options().create(true).append(true).open(&self.log_path)?;
        let log_from = usize::try_from(log_file.metadata()?.len())?;
        thread::spawn(move || {
            use std::io::Write;
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                drop(writeln!(log_file, "{line}"));
                if line.contains(READY) {
                    let _full_when_seen_before = ready.try_send(());
                }
            }
        });
        self.child = Some(child);
        Ok(Readiness { is_ready, log_from })
    }

    fn command(&self) -> Command {
        let client = self.endpoint();
        let peer = self.peer_url();
        let alone = format!("{}={peer}", self.name);
        let initial_cluster = self.initial_cluster.as_ref().unwrap_or(&alone);
        let mut words = self.wrapper.iter().map(PathBuf::from).collect::<Vec<_>>();
        words.push(self.program.clone());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg(format!("--name={}", self.name))
            .arg(format!("--data-dir={}", self.data_dir.display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"));
        if !initial_cluster.is_empty() {
            command.arg(format!("--initial-cluster={initial_cluster}"));
        }
        // Of a flag given twice the last one counts, and a test's own are to.
        command
            .args(&self.extra)
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// Ends the process without warning, as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A process that is gone already needs no killing.
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Stops the process where it is, until [`Server::wake`].
    ///
    /// # Errors
    /// If it does not run.
    pub fn sleep(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets the process go on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn wake(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let child = self.child.as_ref().context("the server does not run")?;
        Ok(kill_process(Pid::from_child(child), signal)?)
    }

    /// Asks the process to end, and waits until it has.
    ///
    /// # Errors
    /// If it takes longer than 20 s.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::TERM)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while child.try_wait()?.is_none() {
            if deadline < Instant::now() {
                drop(child.kill());
                bail!("{:?} did not end within 20 s of SIGTERM", self.kind);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Which server this is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Where clients connect, such as `http://127.0.0.1:40000`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}:{}", self.host, self.client_port)
    }

    /// Where peers would connect.
    #[must_use]
    pub fn peer_url(&self) -> String {
        format!("http://{}:{}", self.host, self.peer_port)
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.data_dir.clone()
    }

    /// Moves the data directory of the next start.
    pub fn set_data_dir(&mut self, dir: PathBuf) {
        self.data_dir = dir;
    }

    /// The address of the next start.
    pub fn set_host(&mut self, host: &str) {
        host.clone_into(&mut self.host);
    }

    /// A command with arguments that runs the program of the next start as its own arguments.
    pub fn set_wrapper(&mut self, wrapper: Vec<String>) {
        self.wrapper = wrapper;
    }

    /// The member's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes it a member of a group in the next start: its name, and `name=url` of all members.
    pub fn set_group(&mut self, name: &str, initial_cluster: String) {
        name.clone_into(&mut self.name);
        self.initial_cluster = Some(initial_cluster);
    }

    /// Runs another program from the next start on, on the same data.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn set_kind(&mut self, kind: Kind) -> anyhow::Result<()> {
        self.program = program(kind)?.context("official etcd was there before")?;
        self.kind = kind;
        Ok(())
    }

    /// The directory that holds the data directory and the log; gone with the server.
    #[must_use]
    pub fn work_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the process writes its log.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.log_path.clone()
    }

    /// Changes the flags of the next start.
    pub fn set_flags(&mut self, extra: &[&str]) {
        self.extra = extra.iter().map(|flag| (*flag).to_owned()).collect();
    }
}

/// Tells when a process that was launched answers clients.
#[derive(Debug)]
pub struct Readiness {
    is_ready: mpsc::Receiver<()>,
    log_from: usize,
}

impl Readiness {
    /// Waits; `false` if the process ended, or takes longer than it may.
    #[must_use]
    pub fn wait(&self) -> bool {
        self.is_ready.recv_timeout(READY_TIMEOUT).is_ok()
    }

    /// Whether the process is known to be ready now.
    #[must_use]
    pub fn is_ready_now(&self) -> bool {
        self.is_ready.try_recv().is_ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let text = std::fs::read_to_string(self.log_path()).unwrap_or_default();
            let tail = text.lines().rev().take(20).collect::<Vec<_>>();
            #[expect(clippy::print_stderr, reason = "helps to read a failed test")]
            {
                eprintln!("--- {:?}, newest log lines first\n{}", self.kind, tail.join("\n"));
            }
        }
    }
}
