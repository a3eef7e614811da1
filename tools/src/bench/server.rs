//! A server under measurement: official etcd or oxetcd, started alike.
//!
//! Decides how a server is started (default flags, fresh directory, free loopback ports), when it is
//! ready (a linearizable get answers), and how it ends: also when the bench is interrupted (`guard`). Only
//! processes started here are signalled.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{caller::Caller, guard::Guard, probe::pause, usage};

/// How long a server may take until it answers: ten million keys are read at the start.
const READY_MAX: Duration = Duration::from_secs(180);
/// How long a server may take to end.
const END_MAX: Duration = Duration::from_secs(60);
/// Between two questions whether a server is there.
const ASK_EVERY: Duration = Duration::from_millis(1);

/// One of the two that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Official etcd.
    Official,
    /// oxetcd.
    Ours,
}

impl Side {
    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Official => "etcd",
            Self::Ours => "oxetcd",
        }
    }
}

/// A server process and its data directory, which goes when this is dropped.
#[derive(Debug)]
pub struct Server {
    side: Side,
    program: PathBuf,
    /// What is put in front of the command line, such as a tracer.
    wrapper: Vec<String>,
    flags: Vec<String>,
    dir: PathBuf,
    client_port: u16,
    peer_port: u16,
    child: Option<Child>,
    /// Ends the process if this one is interrupted.
    guard: Option<Guard>,
}

/// How a server is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Put in front of the command line.
    pub wrapper: Vec<String>,
    /// Flags beside the defaults.
    pub flags: Vec<String>,
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Removes directories of runs that were cut off: their name ends with the id of a process that is
/// gone.
///
/// # Errors
/// If `work_dir` cannot be read.
pub fn remove_leftovers(work_dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(work_dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((side, pid)) = name.rsplit_once('-') else { continue };
        let ours = [Side::Official, Side::Ours].iter().any(|one| one.name() == side);
        let gone = pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists();
        if ours && gone {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

impl Server {
    /// Starts `program` on a fresh directory below `work_dir` and waits until it answers.
    ///
    /// # Errors
    /// If it does not.
    pub fn start(
        side: Side,
        program: &Path,
        work_dir: &Path,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let dir = work_dir.join(format!("{}-{}", side.name(), std::process::id()));
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        let mut server = Self {
            side,
            program: program.to_path_buf(),
            wrapper: options.wrapper.clone(),
            flags: options.flags.clone(),
            dir,
            client_port: free_port()?,
            peer_port: free_port()?,
            child: None,
            guard: None,
        };
        server.resume()?;
        Ok(server)
    }

    /// Starts the process on its present directory; returns how long it took until a linearizable
    /// get was answered.
    ///
    /// # Errors
    /// If it ends or does not answer in time; the end of its log is in the message.
    pub fn resume(&mut self) -> anyhow::Result<Duration> {
        assert!(self.child.is_none(), "the server runs already");
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let client = format!("http://127.0.0.1:{}", self.client_port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let mut words = self.wrapper.iter().map(Into::into).collect::<Vec<std::ffi::OsString>>();
        words.push(self.program.clone().into());
        let started = Instant::now();
        let child = Command::new(&words[0])
            .args(&words[1..])
            .arg("--name=m1")
            .arg(format!("--data-dir={}", self.dir.join("data").display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=m1={peer}"))
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let pid = child.id();
        self.child = Some(child);
        self.guard = Some(Guard::of(pid, &self.dir)?);
        while started.elapsed() < READY_MAX {
            let answer = Caller::connect(self.address()).and_then(|mut one| one.revision());
            if answer.is_ok() {
                return Ok(started.elapsed());
            }
            let child = self.child.as_mut().expect("it was just started");
            if let Some(status) = child.try_wait()? {
                self.child = None;
                self.guard = None;
                bail!("{} ended with {status}: {}", self.side.name(), self.log_tail());
            }
            pause(ASK_EVERY);
        }
        self.kill();
        bail!("{} did not answer within {READY_MAX:?}: {}", self.side.name(), self.log_tail())
    }

    /// Ends the process without warning, as a power cut would.
    pub fn kill(&mut self) {
        // First: later, the number may be another process's.
        self.guard = None;
        if let Some(mut child) = self.child.take() {
            // A process that is gone already needs no killing.
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Asks the process to end and waits until it has.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        self.guard = None;
        kill_process(Pid::from_child(&child), Signal::TERM)?;
        let deadline = Instant::now() + END_MAX;
        while child.try_wait()?.is_none() {
            if deadline < Instant::now() {
                drop(child.kill());
                drop(child.wait());
                bail!("{} did not end within {END_MAX:?}", self.side.name());
            }
            pause(ASK_EVERY);
        }
        Ok(())
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.client_port))
    }

    /// The process id.
    ///
    /// # Errors
    /// If the process does not run.
    pub fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.child.as_ref().context("the server does not run")?.id())
    }

    /// The memory of the process now.
    ///
    /// # Errors
    /// If it is gone.
    pub fn memory(&self) -> anyhow::Result<usage::Memory> {
        usage::memory(self.pid()?)
    }

    /// Which of the two this is.
    #[must_use]
    pub const fn side(&self) -> Side {
        self.side
    }

    /// Whether something stands in front of its command line.
    #[must_use]
    pub const fn is_wrapped(&self) -> bool {
        !self.wrapper.is_empty()
    }

    /// The directory that holds data and log.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(8).collect();
        lines.join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        // What cannot be removed is overwritten by the next run.
        drop(fs::remove_dir_all(&self.dir));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::remove_leftovers;

    #[test]
    fn only_directories_of_processes_that_are_gone_are_removed() {
        let dir = std::env::temp_dir().join(format!("leftovers-{}", std::process::id()));
        let alive = format!("oxetcd-{}", std::process::id());
        // Process ids end far below this.
        for name in [&alive, "oxetcd-4294967295", "etcd-4294967295", "other-4294967295", "etcd"] {
            fs::create_dir_all(dir.join(name).join("data")).unwrap();
        }
        remove_leftovers(&dir).unwrap();
        let mut left: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(left, ["etcd".to_owned(), "other-4294967295".to_owned(), alive]);
    }
}
