//! A server under measurement, one member or a group: official etcd or oxetcd, started alike.
//!
//! Decides how a server is started (default flags, fresh directory, free loopback ports), when it is
//! ready (a linearizable get answers, at every member), and how it ends: also when the bench is
//! interrupted (`guard`). Only processes started here are signalled.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{caller::Caller, guard::Guard, probe::pause, usage};
use crate::ports::free_port;

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

/// A server's processes and their data directories, which go when this is dropped.
#[derive(Debug)]
pub struct Server {
    side: Side,
    program: PathBuf,
    /// What is put in front of the command line, such as a tracer.
    wrapper: Vec<String>,
    flags: Vec<String>,
    dir: PathBuf,
    members: Vec<Member>,
}

/// One process of a server.
#[derive(Debug)]
struct Member {
    name: String,
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
    /// Members beside the first.
    pub companions: usize,
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
            members: (0..=options.companions).map(Member::new).collect::<Result<_, _>>()?,
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
        let started = Instant::now();
        for at in 0..self.members.len() {
            let mut command = self.command(at)?;
            let child = command.spawn();
            let child =
                child.with_context(|| format!("cannot start {}", self.program.display()))?;
            let member = &mut self.members[at];
            assert!(member.child.is_none(), "the server runs already");
            member.guard = Some(Guard::of(child.id(), &self.dir)?);
            member.child = Some(child);
        }
        for at in 0..self.members.len() {
            self.wait_until_ready(at, started)?;
        }
        Ok(started.elapsed())
    }

    fn wait_until_ready(&mut self, at: usize, started: Instant) -> anyhow::Result<()> {
        while started.elapsed() < READY_MAX {
            let member = &mut self.members[at];
            let answer = Caller::connect(member.address()).and_then(|mut one| one.revision());
            if answer.is_ok() {
                return Ok(());
            }
            let child = member.child.as_mut().expect("it was just started");
            if let Some(status) = child.try_wait()? {
                member.child = None;
                member.guard = None;
                bail!("{} ended with {status}: {}", self.side.name(), self.log_tail(at));
            }
            pause(ASK_EVERY);
        }
        self.kill();
        bail!("{} did not answer within {READY_MAX:?}: {}", self.side.name(), self.log_tail(at))
    }

    fn command(&self, at: usize) -> anyhow::Result<Command> {
        let log = File::options().create(true).append(true).open(self.log_path(at))?;
        let Member { name, client_port, peer_port, .. } = &self.members[at];
        let client = format!("http://127.0.0.1:{client_port}");
        let peer = format!("http://127.0.0.1:{peer_port}");
        let named = self
            .members
            .iter()
            .map(|member| format!("{}=http://127.0.0.1:{}", member.name, member.peer_port));
        let mut words = self.wrapper.iter().map(Into::into).collect::<Vec<std::ffi::OsString>>();
        words.push(self.program.clone().into());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg(format!("--name={name}"))
            .arg(format!("--data-dir={}", self.dir.join(format!("data-{name}")).display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster={}", named.collect::<Vec<_>>().join(",")))
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Ok(command)
    }

    /// Ends the processes without warning, as a power cut would.
    pub fn kill(&mut self) {
        self.members.iter_mut().for_each(Member::kill);
    }

    /// Ends the member that leads without warning; its id.
    ///
    /// # Errors
    /// If none says that it leads.
    pub fn kill_leader(&mut self) -> anyhow::Result<u64> {
        for member in &mut self.members {
            let (leader, own) = Caller::connect(member.address())?.leader()?;
            if leader == own {
                member.kill();
                return Ok(leader);
            }
        }
        bail!("no member of {} leads", self.side.name())
    }

    /// Starts the members that do not run, and waits until they are ready.
    ///
    /// # Errors
    /// As [`Server::resume`].
    pub fn resume_ended(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        for at in 0..self.members.len() {
            if self.members[at].child.is_none() {
                let child = self.command(at)?.spawn()?;
                let member = &mut self.members[at];
                member.guard = Some(Guard::of(child.id(), &self.dir)?);
                member.child = Some(child);
                self.wait_until_ready(at, started)?;
            }
        }
        Ok(())
    }

    /// Asks the processes to end and waits until they have.
    ///
    /// # Errors
    /// If one does not end in time.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        let name = self.side.name();
        self.members.iter_mut().try_for_each(|member| member.terminate(name))
    }

    /// Where clients connect; the first member of a group.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.members[0].address()
    }

    /// Where clients connect to the members that run.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let running = self.members.iter().filter(|member| member.child.is_some());
        running.map(Member::address).collect()
    }

    /// Where clients connect to one member that runs.
    ///
    /// # Errors
    /// If none does.
    pub fn address_of_running(&self) -> anyhow::Result<SocketAddr> {
        self.addresses().first().copied().context("no member runs")
    }

    /// The process id; the first member's of a group.
    ///
    /// # Errors
    /// If the process does not run.
    pub fn pid(&self) -> anyhow::Result<u32> {
        self.pids()?.first().copied().context("the server does not run")
    }

    /// The process ids of all members.
    ///
    /// # Errors
    /// If one does not run.
    pub fn pids(&self) -> anyhow::Result<Vec<u32>> {
        let pid = |member: &Member| Some(member.child.as_ref()?.id());
        self.members.iter().map(pid).collect::<Option<_>>().context("the server does not run")
    }

    /// The memory of the processes now.
    ///
    /// # Errors
    /// If one is gone.
    pub fn memory(&self) -> anyhow::Result<usage::Memory> {
        let mut sum = usage::Memory { resident: 0, anonymous: 0 };
        for pid in self.pids()? {
            let memory = usage::memory(pid)?;
            sum.resident += memory.resident;
            sum.anonymous += memory.anonymous;
        }
        Ok(sum)
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

    fn log_path(&self, at: usize) -> PathBuf {
        self.dir.join(format!("{}.log", self.members[at].name))
    }

    fn log_tail(&self, at: usize) -> String {
        let text = fs::read_to_string(self.log_path(at)).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(8).collect();
        lines.join("\n")
    }
}

impl Member {
    fn new(at: usize) -> anyhow::Result<Self> {
        let (client_port, peer_port) = (free_port()?, free_port()?);
        Ok(Self { name: format!("m{}", at + 1), client_port, peer_port, child: None, guard: None })
    }

    const fn address(&self) -> SocketAddr {
        SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), self.client_port)
    }

    fn kill(&mut self) {
        // First: later, the number may be another process's.
        self.guard = None;
        if let Some(mut child) = self.child.take() {
            // A process that is gone already needs no killing.
            drop(child.kill());
            drop(child.wait());
        }
    }

    fn terminate(&mut self, side: &str) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        self.guard = None;
        kill_process(Pid::from_child(&child), Signal::TERM)?;
        let deadline = Instant::now() + END_MAX;
        while child.try_wait()?.is_none() {
            if deadline < Instant::now() {
                drop(child.kill());
                drop(child.wait());
                bail!("{side} did not end within {END_MAX:?}");
            }
            pause(ASK_EVERY);
        }
        Ok(())
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
