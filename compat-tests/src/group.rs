//! A group of servers that form one cluster, official and ours in any mixture.
//!
//! Decides how a group is founded, how members are added, and how one waits for what a group does
//! in its own time: a leader, a member that has caught up. Members are asked and told with official
//! etcdctl, as operators do. Every wait has a limit and looks at a condition.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use oxetcd_tools::official;
use serde_json::Value;

use crate::server::{Attempt, Kind, Server};

/// How long a group may take for anything but a start.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// Pause between two looks at a condition.
const LOOK: Duration = Duration::from_millis(50);

/// A cluster of servers, running or not.
#[derive(Debug)]
pub struct Group {
    members: Vec<Server>,
    extra: Vec<String>,
    next_name: usize,
}

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its id.
    pub member: u64,
    /// Its leader; 0 is none.
    pub leader: u64,
    /// Its term.
    pub term: u64,
    /// The last entry applied.
    pub applied: u64,
    /// The newest revision of its keys.
    pub revision: i64,
    /// Whether it is a learner.
    pub is_learner: bool,
    /// The version of the server.
    pub version: String,
    /// The version of its storage.
    pub storage_version: String,
}

/// An answer on a peer URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The type of the body, in lower case as all headers here.
    pub content_type: String,
    /// The cluster's id, if it was told.
    pub cluster: String,
    /// The allowed methods, if they were told.
    pub allow: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Group {
    /// Founds a cluster of one member per entry of `kinds`, and waits until all are ready; `None`
    /// where official etcd cannot be had.
    ///
    /// # Errors
    /// If one does not become ready.
    pub fn start(kinds: &[Kind], extra: &[&str]) -> anyhow::Result<Option<Self>> {
        let Some(mut group) = Self::prepare(kinds, extra)? else { return Ok(None) };
        group.resume()?;
        Ok(Some(group))
    }

    /// A group whose members have not been started.
    ///
    /// # Errors
    /// If there is no such program, port or directory.
    pub fn prepare(kinds: &[Kind], extra: &[&str]) -> anyhow::Result<Option<Self>> {
        if official::program("etcdctl")?.is_none() {
            return Ok(None);
        }
        let mut members = Vec::new();
        for kind in kinds {
            let Some(server) = Server::prepare(*kind, extra)? else { return Ok(None) };
            members.push(server);
        }
        Ok(Some(Self::found(members, extra)))
    }

    /// A group of servers that have not been started, with the flags of members that are added.
    #[must_use]
    pub fn found(mut members: Vec<Server>, extra: &[&str]) -> Self {
        let named = (1..).zip(&members);
        let pairs: Vec<_> =
            named.map(|(number, server)| format!("m{number}={}", server.peer_url())).collect();
        for (number, server) in (1..).zip(&mut members) {
            server.set_group(&format!("m{number}"), pairs.join(","));
        }
        let extra = extra.iter().map(|flag| (*flag).to_owned()).collect();
        Self { next_name: members.len() + 1, members, extra }
    }

    /// Starts every member that does not run, all at once, and waits until all are ready.
    ///
    /// # Errors
    /// If one does not become ready.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        let mut started = Vec::new();
        for server in &mut self.members {
            if !server.is_running() {
                server.kill();
                started.push((server.name().to_owned(), server.log_path(), server.launch()?));
            }
        }
        for (name, log, readiness) in started {
            if !readiness.wait() {
                let log = fs::read_to_string(log)?;
                let tail = log.lines().rev().take(12).collect::<Vec<_>>().join("\n");
                bail!("{name} did not become ready; its log ends (newest first):\n{tail}");
            }
        }
        Ok(())
    }

    /// The member at a position, in the order of their addition.
    pub fn member(&mut self, position: usize) -> &mut Server {
        &mut self.members[position]
    }

    /// All members.
    #[must_use]
    pub fn members(&self) -> &[Server] {
        &self.members
    }

    /// Where clients reach the members, separated by commas.
    #[must_use]
    pub fn endpoints(&self) -> String {
        self.members.iter().map(Server::endpoint).collect::<Vec<_>>().join(",")
    }

    /// Runs etcdctl against all members.
    ///
    /// # Errors
    /// If it cannot be run, or fails.
    pub fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        succeeded(arguments, &ctl(&self.endpoints(), arguments)?)
    }

    /// Runs etcdctl against the member at `position`.
    ///
    /// # Errors
    /// If it cannot be run, or fails.
    pub fn ctl_at(&self, position: usize, arguments: &[&str]) -> anyhow::Result<String> {
        succeeded(arguments, &self.try_ctl_at(position, arguments)?)
    }

    /// Runs etcdctl against the member at `position`, whatever comes of it.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn try_ctl_at(&self, position: usize, arguments: &[&str]) -> anyhow::Result<Output> {
        ctl(&self.members[position].endpoint(), arguments)
    }

    /// Sends one HTTP request to a member's peer URL.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn ask_peer(
        &self,
        position: usize,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> anyhow::Result<PeerAnswer> {
        let url = self.members[position].peer_url();
        let address = url.strip_prefix("http://").context("peers are reached over TCP")?;
        let mut stream = TcpStream::connect(address)?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n"
        )?;
        stream.write_all(body)?;
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(0 < stream.read_line(&mut head)?, "no answer");
        }
        let head = head.to_ascii_lowercase();
        let status = head.split(' ').nth(1).context("an answer has a status")?.parse()?;
        let field = |name: &str| {
            let mut lines = head.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            value.unwrap_or_default().to_owned()
        };
        // Not until the end: official etcd keeps some connections open for 5 s.
        let mut body = vec![0; field("content-length").parse()?];
        stream.read_exact(&mut body)?;
        Ok(PeerAnswer {
            status,
            content_type: field("content-type"),
            cluster: field("x-etcd-cluster-id"),
            allow: field("allow"),
            body,
        })
    }

    /// What the member at `position` says of itself.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn status(&self, position: usize) -> anyhow::Result<Status> {
        let json = self.ctl_at(position, &["endpoint", "status", "-w", "json"])?;
        let json: Value = serde_json::from_str(&json)?;
        let status = &json[0]["Status"];
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Status {
            member: number(&status["header"]["member_id"]),
            leader: number(&status["leader"]),
            term: number(&status["raftTerm"]),
            applied: number(&status["raftAppliedIndex"]),
            revision: status["header"]["revision"].as_i64().unwrap_or(0),
            is_learner: status["isLearner"].as_bool().unwrap_or(false),
            version: text(&status["version"]),
            storage_version: text(&status["storageVersion"]),
        })
    }

    /// Waits until one running member says that it leads; its position.
    ///
    /// # Errors
    /// If there is none in time.
    pub fn leader(&mut self) -> anyhow::Result<usize> {
        let running: Vec<_> =
            (0..self.members.len()).filter(|at| self.members[*at].is_running()).collect();
        let mut found = None;
        until("a member leads", || {
            found = running.iter().copied().find(|at| {
                self.status(*at)
                    .is_ok_and(|status| status.leader == status.member && status.leader != 0)
            });
            Ok(found.is_some())
        })?;
        found.context("it was just found")
    }

    /// Waits until all running members have the same revision and answer with the same hash.
    ///
    /// # Errors
    /// If they do not agree in time.
    pub fn agree(&mut self) -> anyhow::Result<()> {
        let running: Vec<_> =
            (0..self.members.len()).filter(|at| self.members[*at].is_running()).collect();
        let mut hashes = Vec::new();
        until("members have the same hash", || {
            hashes.clear();
            for position in &running {
                // Learners hash for peers only.
                let answer = self.ask_peer(*position, "GET", "/members/hashkv", b"{}")?;
                let json: Value = serde_json::from_slice(&answer.body)?;
                hashes.push((json["hash"].clone(), json["hash_revision"].clone()));
            }
            Ok(hashes.windows(2).all(|pair| pair[0] == pair[1]))
        })
        .with_context(|| format!("hashes: {hashes:?}"))
    }

    /// Announces a member to the cluster; it is started with [`Server::resume`] or
    /// [`Group::resume`]. Tries again while the cluster calls itself unhealthy.
    ///
    /// # Errors
    /// If the cluster refuses it.
    pub fn add(&mut self, kind: Kind, flags: &[&str]) -> anyhow::Result<usize> {
        let name = format!("m{}", self.next_name);
        let extra: Vec<_> = self.extra.iter().map(String::as_str).collect();
        let joining = [&extra[..], &["--initial-cluster-state=existing"]].concat();
        let mut server =
            Server::prepare(kind, &joining)?.context("official etcd was there before")?;
        let peer_urls = format!("--peer-urls={}", server.peer_url());
        let arguments = [&["member", "add", &name, &peer_urls], flags].concat();
        let mut printed = String::new();
        until("a member is added", || {
            let output = ctl(&self.endpoints(), &arguments)?;
            let errors = String::from_utf8_lossy(&output.stderr);
            if errors.contains("unhealthy cluster") || errors.contains("not enough started") {
                return Ok(false);
            }
            printed = succeeded(&arguments, &output)?;
            Ok(true)
        })?;
        let list = printed.lines().find_map(|line| line.strip_prefix("ETCD_INITIAL_CLUSTER="));
        let list = list.context("etcdctl printed no member list")?.trim_matches('"').to_owned();
        server.set_group(&name, list);
        self.next_name += 1;
        self.members.push(server);
        Ok(self.members.len() - 1)
    }

    /// Takes a member out of the group's care, which ends its process; the cluster is not told.
    pub fn forget(&mut self, position: usize) -> Server {
        self.members.remove(position)
    }

    /// Takes a server in as a member, which the cluster is not told either.
    pub fn adopt(&mut self, server: Server) {
        self.members.push(server);
    }

    /// Leaves it to the members to find one another.
    pub fn discover(&mut self) {
        for (number, server) in (1..).zip(&mut self.members) {
            server.set_group(&format!("m{number}"), String::new());
        }
    }

    /// Starts a member and expects that it ends by itself.
    ///
    /// # Errors
    /// If it becomes ready.
    pub fn refused(&mut self, position: usize) -> anyhow::Result<String> {
        match self.members[position].attempt()? {
            Attempt::Ended(ended) => Ok(ended.log),
            Attempt::Ready => bail!("{} started", self.members[position].name()),
        }
    }
}

/// Waits until `holds`; what fails on the way counts as not yet.
///
/// # Errors
/// With the last failure, if it takes too long.
pub fn until(what: &str, holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    until_within(WAIT_MAX, what, holds)
}

/// As [`until`], with a limit of its own.
///
/// # Errors
/// As [`until`].
pub fn until_within(
    limit: Duration,
    what: &str,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let last = holds();
        match last {
            Ok(true) => return Ok(()),
            Ok(false) if deadline < Instant::now() => bail!("not in time: {what}"),
            Err(error) if deadline < Instant::now() => {
                return Err(error.context(format!("not in time: {what}")));
            }
            Ok(false) | Err(_) => thread::sleep(LOOK),
        }
    }
}

/// Runs etcdctl against `endpoints`.
///
/// # Errors
/// If it cannot be run.
pub fn ctl(endpoints: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    let program = official::program("etcdctl")?.context("official etcd was there before")?;
    Ok(Command::new(program).arg("--endpoints").arg(endpoints).args(arguments).output()?)
}

fn succeeded(arguments: &[&str], output: &Output) -> anyhow::Result<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "etcdctl {arguments:?}: {errors}");
    Ok(String::from_utf8(output.stdout.clone())?)
}
