//! The drill: what is written, when members are killed, and what must be true afterwards.
//!
//! Decides the order of steps. A member is killed only while writes are under way, and comes back only
//! when all of them are acknowledged, so that the group works with two members in between. Every wait
//! is for a condition and has a limit.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::{
    runtime::Runtime,
    task::{AbortHandle, JoinSet},
};

use super::{
    client::{Answer, Caller, Endpoint, Request, version},
    picture::{Shared, name, objects},
    process::{ApiServer, EVENT_TTL_SECONDS},
};
use crate::{
    group::{Group, WAIT_MAX, until, until_within},
    server::Kind,
};

const NAMESPACES: usize = 10;
const CONFIG_MAPS: usize = 1_000;
const PEBBLES: usize = 50;
const EVENTS: usize = 20;
const WORKERS: usize = 4;
const MEMBERS: usize = 3;

/// A member is killed when one of so many writes of a round is acknowledged.
const KILL_AFTER: usize = 5;

/// How long an API server may take to start.
const READY_MAX: Duration = Duration::from_secs(120);

/// Revisions that the store is ahead by when the API server comes back.
const AHEAD: usize = 5;

/// How long events may live: a new leader gives every lease its whole time again, and the last member
/// is killed shortly before.
const EVENTS_GONE_MAX: Duration = Duration::from_secs(4 * EVENT_TTL_SECONDS);

const MAPS: &str = "/api/v1/configmaps";
const ALL_PEBBLES: &str = "/apis/drill.example.com/v1/pebbles";
const ALL_EVENTS: &str = "/api/v1/events";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// One thing that was checked.
#[derive(Clone, Debug)]
pub struct Step {
    /// What.
    pub name: String,
    /// Figures of it, or why it failed.
    pub outcome: Result<String, String>,
}

/// Runs the drill with `program` on three members of a kind; `None` where official programs cannot be
/// had. It ends with the first step that fails.
///
/// # Errors
/// If it could not begin.
pub fn drill(kind: Kind, program: &Path) -> anyhow::Result<Option<Vec<Step>>> {
    let Some(group) = Group::start(&[kind; MEMBERS], &[])? else { return Ok(None) };
    let server = ApiServer::start(program, &group.endpoints())?;
    let mut steps = Vec::new();
    // Comes before the drill itself, which needs the server's certificate.
    let mut drill = match Drill::begin(group, server) {
        Ok(drill) => drill,
        Err(error) => {
            let outcome = Err(format!("{error:#}"));
            return Ok(Some(vec![Step { name: "the API server starts".to_owned(), outcome }]));
        }
    };
    drill.run(&mut |name, outcome| {
        let failed = outcome.is_err();
        let outcome = outcome.map_err(|error| format!("{error:#}"));
        steps.push(Step { name: name.to_owned(), outcome });
        !failed
    });
    if let Some(Step { outcome: Err(reason), .. }) = steps.last_mut() {
        let log = drill.server.log_tail();
        reason.push_str(&format!("\nthe API server's log, newest first:\n{log}"));
    }
    Ok(Some(steps))
}

/// Takes the name and the outcome of a step; whether to go on.
type Note<'a> = &'a mut dyn FnMut(&str, anyhow::Result<String>) -> bool;

struct Drill {
    runtime: Runtime,
    group: Group,
    server: ApiServer,
    endpoint: Endpoint,
    caller: Caller,
    ledger: Ledger,
    picture: Shared,
    watch: AbortHandle,
    events_made: Option<Instant>,
}

/// What is written in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    Create,
    Change(u64),
}

/// What was acknowledged last, by the object's path.
#[derive(Clone, Debug, Default)]
struct Ledger(Arc<Mutex<BTreeMap<String, Acknowledged>>>);

#[derive(Clone, Debug)]
struct Acknowledged {
    /// Namespace and name.
    name: String,
    version: u64,
    round: u64,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Acknowledged>> {
        // Nothing panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drill {
    fn begin(group: Group, mut server: ApiServer) -> anyhow::Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let endpoint = until_ready(&runtime, &mut server)?;
        let caller = Caller::new(endpoint.clone());
        let picture = Shared::default();
        let watch = runtime.spawn(picture.clone().keep(endpoint.clone(), MAPS)).abort_handle();
        let ledger = Ledger::default();
        let events_made = None;
        Ok(Self { runtime, group, server, endpoint, caller, ledger, picture, watch, events_made })
    }

    fn run(&mut self, note: Note<'_>) {
        let found = self.found();
        // Each step only if the one before it passed.
        let _all_passed = note("namespaces and a resource of our own are made", found)
            && self.note_round(note, "objects are made while the leader is killed", Round::Create)
            && note("the API server starts again, and a watch lists again", self.starts_again())
            && (1..).zip(0..MEMBERS).all(|(round, at)| {
                let name = format!("objects are changed while member {} is killed", at + 1);
                self.note_round(note, &name, Round::Change(round))
            })
            && note("events live their time, and are gone after it", self.events_end())
            && note("no object is lost, each is as it was acknowledged", self.nothing_lost())
            && note("a watch kept from the beginning shows what a list does", self.watch_agrees())
            && note("all members hold the same", self.members_agree());
    }

    fn ask(&mut self, request: &Request) -> anyhow::Result<Answer> {
        self.runtime.block_on(self.caller.insist(request))
    }

    fn must(&mut self, request: &Request) -> anyhow::Result<Answer> {
        self.runtime.block_on(self.caller.must(request))
    }

    fn list(&mut self, path: &str) -> anyhow::Result<Vec<Value>> {
        Ok(self.runtime.block_on(self.caller.list(path))?.0)
    }

    /// Namespaces, the definition of a resource, and events.
    fn found(&mut self) -> anyhow::Result<String> {
        for number in 0..NAMESPACES {
            let object = json!({"metadata": {"name": namespace(number)}});
            self.must(&Request::post("/api/v1/namespaces", object))?;
        }
        self.must(&Request::post(DEFINITIONS, definition()))?;
        until("the resource is served", || {
            let of = format!("{DEFINITIONS}/pebbles.drill.example.com");
            let definition = self.must(&Request::get(of))?.body;
            let conditions = definition["status"]["conditions"].as_array();
            let is_established = conditions.is_some_and(|conditions| {
                conditions.iter().any(|one| one["type"] == "Established" && one["status"] == "True")
            });
            // Its path appears a moment later.
            Ok(is_established && self.ask(&Request::get(ALL_PEBBLES))?.status == StatusCode::OK)
        })?;
        self.events_made = Some(Instant::now());
        for number in 0..EVENTS {
            let at = namespace(number % NAMESPACES);
            let event = json!({
                "metadata": {"name": format!("event-{number}"), "namespace": at},
                "involvedObject": {"kind": "Pebble", "namespace": at, "name": "pebble-0"},
                "reason": "Drill",
                "type": "Normal",
            });
            self.must(&Request::post(format!("/api/v1/namespaces/{at}/events"), event))?;
        }
        self.events_present()?;
        Ok(format!("{NAMESPACES} namespaces, {EVENTS} events"))
    }

    fn note_round(&mut self, note: Note<'_>, name: &str, round: Round) -> bool {
        let outcome = self.round(round);
        note(name, outcome)
    }

    /// Writes every object; when some are acknowledged a member is killed, and when all are it comes
    /// back.
    fn round(&mut self, round: Round) -> anyhow::Result<String> {
        let victim = match round {
            Round::Create => self.group.leader()?,
            Round::Change(number) => usize::try_from(number - 1)?,
        };
        let led = self.group.leader()? == victim;
        let started = Instant::now();
        let done = Arc::new(AtomicUsize::new(0));
        let mut workers = JoinSet::new();
        for worker in 0..WORKERS {
            let (done, ledger) = (Arc::clone(&done), self.ledger.clone());
            let mut caller = Caller::new(self.endpoint.clone());
            let work = async move {
                for number in (worker..CONFIG_MAPS + PEBBLES).step_by(WORKERS) {
                    write(&mut caller, &ledger, number, round).await?;
                    done.fetch_add(1, Ordering::Release);
                }
                Ok::<_, anyhow::Error>(())
            };
            workers.spawn_on(work, self.runtime.handle());
        }
        let total = CONFIG_MAPS + PEBBLES;
        until("some writes are acknowledged", || {
            Ok(total / KILL_AFTER <= done.load(Ordering::Acquire))
        })?;
        self.group.member(victim).kill();
        let before = done.load(Ordering::Acquire);
        ensure!(before < total, "every write was acknowledged before the member was killed");
        self.runtime.block_on(async {
            while let Some(ended) = workers.join_next().await {
                ended??;
            }
            Ok::<_, anyhow::Error>(())
        })?;
        let took = started.elapsed().as_secs_f64();
        self.group.resume()?;
        self.caught_up(victim)?;
        if self.events_made.is_some_and(|made| made.elapsed().as_secs() + 1 < EVENT_TTL_SECONDS) {
            self.events_present()?;
        }
        let role = if led { "leader" } else { "follower" };
        Ok(format!("{total} writes in {took:.1} s, the {role} was killed after {before}"))
    }

    /// What a watch would go on from is forgotten by an API server that starts when the store is ahead
    /// of it: it is told 410.
    fn starts_again(&mut self) -> anyhow::Result<String> {
        self.server.kill();
        for number in 0..AHEAD {
            self.group.ctl(&["put", "drill/ahead", &number.to_string()])?;
        }
        let started = Instant::now();
        self.server.resume()?;
        until_ready(&self.runtime, &mut self.server)?;
        let took = started.elapsed().as_secs_f64();
        until("the watch is told that its version is gone", || Ok(0 < self.picture.lock().gone))?;
        self.until_pictured()?;
        let lists = self.picture.lock().lists;
        Ok(format!("ready after {took:.1} s, {lists} lists"))
    }

    /// Waits until a member that came back has applied what the others had.
    fn caught_up(&mut self, back: usize) -> anyhow::Result<()> {
        let leader = self.group.leader()?;
        let wanted = self.group.status(leader)?.applied;
        until("the member has caught up", || Ok(wanted <= self.group.status(back)?.applied))
    }

    fn events(&mut self) -> anyhow::Result<usize> {
        let events = self.list(ALL_EVENTS)?;
        Ok(events.iter().filter(|event| event["reason"] == "Drill").count())
    }

    fn events_present(&mut self) -> anyhow::Result<()> {
        let count = self.events()?;
        ensure!(count == EVENTS, "{count} of {EVENTS} events are left before their time");
        Ok(())
    }

    /// U3.
    fn events_end(&mut self) -> anyhow::Result<String> {
        let made = self.events_made.context("events were made")?;
        until_within(EVENTS_GONE_MAX, "events are gone", || Ok(self.events()? == 0))?;
        let age = made.elapsed().as_secs();
        Ok(format!("they live {EVENT_TTL_SECONDS} s, none was left after {age} s"))
    }

    /// U1.
    fn nothing_lost(&mut self) -> anyhow::Result<String> {
        let mut found = BTreeMap::new();
        for (path, collection) in [(MAPS, "configmaps"), (ALL_PEBBLES, "pebbles")] {
            for object in self.list(path)? {
                found.insert(format!("{collection}/{}", name(&object)), object);
            }
        }
        let ledger = self.ledger.lock();
        ensure!(ledger.len() == CONFIG_MAPS + PEBBLES, "{} were acknowledged", ledger.len());
        let mut later = 0;
        for (path, acknowledged) in ledger.iter() {
            let collection = if path.contains("/configmaps/") { "configmaps" } else { "pebbles" };
            let object = found.get(&format!("{collection}/{}", acknowledged.name));
            let object = object.with_context(|| format!("{path} is lost"))?;
            let (present, least) = (version(object)?, acknowledged.version);
            ensure!(least <= present, "{path} is back at {present}, {least} was acknowledged");
            later += usize::from(least < present);
            let round = round_of(object)?;
            let wanted = acknowledged.round;
            ensure!(round == wanted, "{path} is of round {round}, {wanted} was acknowledged");
        }
        Ok(format!("{} objects, {later} of them later than acknowledged", ledger.len()))
    }

    fn until_pictured(&mut self) -> anyhow::Result<()> {
        let mut last = String::new();
        until("the picture equals a list", || {
            let listed = objects(&self.list(MAPS)?)?;
            let shown = self.picture.lock().objects.clone();
            let other = listed.iter().find(|(name, version)| shown.get(*name) != Some(*version));
            let more = shown.keys().find(|name| !listed.contains_key(*name));
            last = format!("listed and shown differently: {other:?}; shown only: {more:?}");
            Ok(listed == shown)
        })
        .context(last)
    }

    /// U2.
    fn watch_agrees(&mut self) -> anyhow::Result<String> {
        self.until_pictured()?;
        self.watch.abort();
        let picture = self.picture.lock();
        Ok(format!(
            "{} objects, {} events, {} ends of streams, {} times 410, {} lists",
            picture.objects.len(),
            picture.events,
            picture.ends,
            picture.gone,
            picture.lists
        ))
    }

    /// U4.
    fn members_agree(&mut self) -> anyhow::Result<String> {
        // It writes now and then as long as it runs.
        self.server.kill();
        self.group.agree()?;
        let leader = self.group.leader()?;
        Ok(format!("at revision {}", self.group.status(leader)?.revision))
    }
}

/// Waits until an API server answers as one that is ready; the way to it.
fn until_ready(runtime: &Runtime, server: &mut ApiServer) -> anyhow::Result<Endpoint> {
    let mut found = None;
    until_within(READY_MAX, "the API server is ready", || {
        ensure!(server.is_running(), "it ended");
        let endpoint = Endpoint::new(server.port, &server.certificate())?;
        let mut caller = Caller::new(endpoint.clone());
        let answer = runtime.block_on(caller.ask(&Request::get("/readyz")))?;
        found = Some(endpoint);
        Ok(answer.status == StatusCode::OK)
    })
    .with_context(|| format!("its log, newest first:\n{}", server.log_tail()))?;
    found.context("it was just found")
}

/// Writes one object until it is acknowledged, and notes that.
async fn write(
    caller: &mut Caller,
    ledger: &Ledger,
    number: usize,
    round: Round,
) -> anyhow::Result<()> {
    let at = namespace(number % NAMESPACES);
    let (collection, own, object) = if number < CONFIG_MAPS {
        let own = format!("map-{number}");
        (format!("/api/v1/namespaces/{at}/configmaps"), own.clone(), config_map(&own, round))
    } else {
        let own = format!("pebble-{number}");
        let collection = format!("/apis/drill.example.com/v1/namespaces/{at}/pebbles");
        (collection, own.clone(), pebble(&own, round))
    };
    let path = format!("{collection}/{own}");
    let request = match round {
        Round::Create => Request::post(&collection, object),
        Round::Change(_) if number < CONFIG_MAPS => Request::apply(&path, object),
        Round::Change(_) => Request::merge(&path, object),
    };
    let mut answer = caller.insist(&request).await?;
    if round == Round::Create && answer.status == StatusCode::CONFLICT {
        // A try before, whose answer did not come, has made it.
        answer = caller.must(&Request::get(&path)).await?;
    }
    if !answer.status.is_success() {
        bail!("{path}: {} {}", answer.status, answer.body);
    }
    let noted = Acknowledged {
        name: format!("{at}/{own}"),
        version: answer.version()?,
        round: round.number(),
    };
    ledger.lock().insert(path, noted);
    Ok(())
}

impl Round {
    const fn number(self) -> u64 {
        match self {
            Self::Create => 0,
            Self::Change(number) => number,
        }
    }
}

fn namespace(number: usize) -> String {
    format!("drill-{number}")
}

fn config_map(name: &str, round: Round) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"round": round.number().to_string()},
    })
}

fn pebble(name: &str, round: Round) -> Value {
    json!({
        "apiVersion": "drill.example.com/v1",
        "kind": "Pebble",
        "metadata": {"name": name},
        "spec": {"round": round.number().to_string()},
    })
}

/// The round in which an object was written last.
fn round_of(object: &Value) -> anyhow::Result<u64> {
    let text = object["data"]["round"].as_str().or_else(|| object["spec"]["round"].as_str());
    text.context("an object has its round")?.parse().context("a round is a number")
}

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "pebbles.drill.example.com"},
        "spec": {
            "group": "drill.example.com",
            "names": {"kind": "Pebble", "plural": "pebbles"},
            "scope": "Namespaced",
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": true,
                }},
            }],
        },
    })
}

const _: () = assert!(WAIT_MAX.as_secs() < EVENTS_GONE_MAX.as_secs(), "events live long");
