//! Partitions under load: writers with a ledger, cuts between members, heal, compare.
//!
//! Decides what is cut in a run and for how long, and when a group has failed: an acknowledged write
//! is lost, two writes have one revision (two members led at once), members differ after the network
//! is whole again, or they do not come together. Called by the binary `partition`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use proto::etcdserverpb::PutRequest;
use tokio::task::JoinSet;

use crate::{
    fault::{Random, read_all, read_events},
    group::Group,
    ledger::{Attempt, Ledger},
    network::{Network, address},
    script::Client,
    server::{Kind, Server},
};

/// Members of the group.
const MEMBERS: usize = 3;

/// Writers at work in each run.
const WRITERS: u64 = 6;

/// Keys of one writer.
const KEYS_PER_WRITER: u64 = 20;

/// Writes through one member before the next one's turn.
const WRITES_PER_CONNECTION: usize = 100;

/// Writes of all writers before a network is cut.
const WRITES_OF_LOAD: u64 = 50 * WRITERS;

/// How long a writer waits for an answer before it tries another member.
const PATIENCE: Duration = Duration::from_secs(1);

/// Flags that let a member that was cut off come back by a snapshot now and then.
const FLAGS: [&str; 2] = ["--snapshot-count=300", "--snapshot-catchup-entries=100"];

/// What is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The leader from the two others.
    LeaderIsolated,
    /// A follower from the two others.
    FollowerIsolated,
    /// What the leader sends to the others.
    LeaderMute,
    /// What the others send to the leader.
    LeaderDeaf,
    /// What one follower sends to the leader.
    OneWay,
    /// The leader from the others, for moments.
    Flapping,
}

/// Every kind, in the order in which runs take turns.
pub const CUTS: [Cut; 6] = [
    Cut::LeaderIsolated,
    Cut::FollowerIsolated,
    Cut::LeaderMute,
    Cut::LeaderDeaf,
    Cut::OneWay,
    Cut::Flapping,
];

/// A group under partitions.
#[derive(Debug)]
pub struct PartitionRun {
    group: Group,
    network: Network,
    ledger: Ledger,
    random: Random,
    values: Arc<AtomicU64>,
}

impl PartitionRun {
    /// Founds a group of `kind`; to be called in a network of the process's own.
    ///
    /// # Errors
    /// If the network or the group cannot be had.
    pub fn start(kind: Kind, seed: u64) -> anyhow::Result<Self> {
        let network = Network::new(MEMBERS)?;
        let mut servers = Vec::new();
        for member in 0..MEMBERS {
            let server = Server::prepare(kind, &FLAGS)?;
            let mut server = server.context("the server is not installed")?;
            server.set_host(&address(member));
            server.set_wrapper(Network::wrapper(member));
            servers.push(server);
        }
        let mut group = Group::found(servers, &FLAGS);
        group.resume()?;
        let (ledger, values) = (Ledger::of_group(), Arc::default());
        Ok(Self { group, network, ledger, random: Random::new(seed), values })
    }

    /// Writes acknowledged and found, and writes found without an answer.
    #[must_use]
    pub const fn counts(&self) -> (u64, u64) {
        self.ledger.counts()
    }

    /// Load, cut, heal, compare.
    ///
    /// # Errors
    /// With a sentence, if anything acknowledged is lost or anything else is wrong.
    pub async fn run(&mut self, cut: Cut) -> anyhow::Result<()> {
        let leader = self.group.leader()?;
        let follower = (leader + 1 + self.below(2)) % MEMBERS;
        let lasting = Duration::from_millis(1_500 + self.random.below(3_000));
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        let endpoints: Vec<String> = self.group.members().iter().map(Server::endpoint).collect();
        for writer in 0..WRITERS {
            let (endpoints, values) = (endpoints.clone(), Arc::clone(&self.values));
            writers.spawn(write(endpoints, writer, values, Arc::clone(&stop)));
        }
        self.wait_for_load().await?;
        self.hold(cut, leader, follower, lasting).await?;
        self.network.heal()?;
        self.wait_for_a_write(&endpoints).await?;
        stop.store(true, Ordering::Release);
        while let Some(attempts) = writers.join_next().await {
            self.ledger.add(attempts?);
        }
        self.compare(&endpoints).await.with_context(|| format!("after {cut:?} for {lasting:?}"))
    }

    fn below(&mut self, bound: u64) -> usize {
        usize::try_from(self.random.below(bound)).expect("the bound is small")
    }

    async fn hold(
        &mut self,
        cut: Cut,
        leader: usize,
        follower: usize,
        lasting: Duration,
    ) -> anyhow::Result<()> {
        let others = |of: usize| (0..MEMBERS).filter(move |other| *other != of);
        let end = Instant::now() + lasting;
        loop {
            match cut {
                Cut::LeaderIsolated | Cut::Flapping => {
                    others(leader).try_for_each(|other| self.separate(leader, other))?;
                }
                Cut::FollowerIsolated => {
                    others(follower).try_for_each(|other| self.separate(follower, other))?;
                }
                Cut::LeaderMute => {
                    others(leader).try_for_each(|other| self.network.cut(leader, other))?;
                }
                Cut::LeaderDeaf => {
                    others(leader).try_for_each(|other| self.network.cut(other, leader))?;
                }
                Cut::OneWay => self.network.cut(follower, leader)?,
            }
            if cut != Cut::Flapping {
                tokio::time::sleep(lasting).await;
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100 + self.random.below(500))).await;
            self.network.heal()?;
            tokio::time::sleep(Duration::from_millis(50 + self.random.below(300))).await;
            if end < Instant::now() {
                return Ok(());
            }
        }
    }

    fn separate(&self, one: usize, other: usize) -> anyhow::Result<()> {
        self.network.cut(one, other)?;
        self.network.cut(other, one)
    }

    /// Waits until the writers are at work.
    async fn wait_for_load(&self) -> anyhow::Result<()> {
        let begun = self.values.load(Ordering::Relaxed);
        let end = Instant::now() + Duration::from_secs(30);
        while self.values.load(Ordering::Relaxed) < begun + WRITES_OF_LOAD {
            ensure!(Instant::now() < end, "the writers have not begun after 30 s");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Waits until a write gets through every member again.
    async fn wait_for_a_write(&mut self, endpoints: &[String]) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        for endpoint in endpoints {
            loop {
                ensure!(Instant::now() < end, "no write gets through {endpoint} after 30 s");
                let Some(client) = connect(endpoint).await else { continue };
                let attempt = put(&client, "healed", &self.values).await;
                let answered = attempt.acknowledged.is_some();
                self.ledger.add(vec![attempt]);
                if answered {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn compare(&mut self, endpoints: &[String]) -> anyhow::Result<()> {
        self.group.agree()?;
        for endpoint in endpoints {
            let mut client = Client::connect_to(endpoint.clone()).await?;
            let (head, rows) = read_all(&mut client).await?;
            if self.ledger.verified() < head {
                let events = read_events(&mut client, self.ledger.verified() + 1, head).await?;
                self.ledger.verify(&events, head)?;
            }
            ensure!(head == self.ledger.verified(), "{endpoint} is at revision {head}");
            let expected = self.ledger.live().into_values().collect::<Vec<_>>();
            ensure!(rows == expected, "{endpoint} has other keys");
        }
        Ok(())
    }
}

/// Writes through one member after the other until it is told to stop.
async fn write(
    endpoints: Vec<String>,
    writer: u64,
    values: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let mut step = 0_u64;
    for endpoint in endpoints.iter().cycle().skip(usize::try_from(writer).expect("few")) {
        let Some(client) = connect(endpoint).await else { continue };
        for _ in 0..WRITES_PER_CONNECTION {
            if stop.load(Ordering::Acquire) {
                return attempts;
            }
            let key = format!("w{writer}/{:02}", step % KEYS_PER_WRITER);
            step += 1;
            let attempt = put(&client, &key, &values).await;
            let answered = attempt.acknowledged.is_some();
            attempts.push(attempt);
            if !answered {
                break;
            }
        }
    }
    attempts
}

async fn connect(endpoint: &str) -> Option<Client> {
    let connected = tokio::time::timeout(PATIENCE, Client::connect_to(endpoint.to_owned())).await;
    connected.ok()?.ok()
}

/// One write, whatever comes of it.
async fn put(client: &Client, key: &str, values: &AtomicU64) -> Attempt {
    let unique = values.fetch_add(1, Ordering::Relaxed);
    let (key, value) = (Bytes::from(key.to_owned()), Bytes::from(format!("{unique:012}")));
    let request = PutRequest { key: key.clone(), value: value.clone(), ..Default::default() };
    let mut kv = client.kv();
    let answer = tokio::time::timeout(PATIENCE, kv.put(request)).await;
    let header = answer.ok().and_then(Result::ok).and_then(|answer| answer.into_inner().header);
    Attempt { key, value, acknowledged: header.map(|header| header.revision) }
}
