//! The simulated world: time, members, network and clients.
//!
//! Decides the order of events: by time, and among equals by age. Whatever is left open is drawn
//! from the seed.

use std::{collections::BTreeMap, mem};

use proto::raftpb::{ConfChange, ConfChangeType, Message};

use super::{
    Bug, Micros, Plan, TICK,
    checks::Checks,
    clients::{Client, History, Pending, encode},
    history::{self, Kind},
    index_below, mix,
    network::{Network, ends},
    node::{Fate, Node, Out, Surroundings, Thread, snapshot_of},
    state::State,
};
use crate::{
    base::random::Random,
    cluster::{BOOTSTRAP_TERM, Member, MemberContext},
    consensus::SnapshotReport,
    model::{LogIndex, MemberId, RequestId, entry_index, new_entry},
    replica::Input,
};

/// Two of so many runs, next to each other, have the real state machine beside the simulated one.
const MACHINE_EVERY_SEEDS: u64 = 20;
/// Ticks after the weather in which the group must have come to rest.
const SETTLE_TICKS: u64 = 400;
/// Ticks after the weather in which clients go on.
const BUSY_TICKS: u64 = 60;

/// Something that happens at a moment.
#[derive(Debug)]
pub(super) enum Event {
    Turn(MemberId, u64),
    Log(MemberId, u64),
    LogDone(MemberId, u64),
    Apply(MemberId, u64),
    Flush(MemberId, u64),
    /// The state that this message announces is read.
    TakeState(MemberId, u64, Message),
    Deliver(Message, Option<Box<State>>),
    /// The sender hears what became of a state.
    Sent(MemberId, u64, MemberId, SnapshotReport),
    Unreachable(MemberId, u64, MemberId),
    /// A member hears that the process of another one has ended.
    Gone(MemberId, u64, MemberId),
    Client(usize),
    Start(MemberId, Vec<MemberId>),
    Restart(MemberId, u64),
    /// Cuts the power of a member for a millisecond.
    CrashBriefly(MemberId, u64),
    Stop(MemberId, u64),
    Weather,
    Heal(u64),
    Calm,
    Look,
}

/// What is scheduled for a member.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Due {
    turn: Option<Micros>,
    log: bool,
    apply: bool,
    /// Everything waits until then.
    pub(super) paused_until: Micros,
    is_stopping: bool,
}

/// Everything.
#[derive(Debug)]
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) now: Micros,
    pub(super) random: Random,
    pub(super) nodes: BTreeMap<MemberId, Node>,
    pub(super) due: BTreeMap<MemberId, Due>,
    pub(super) network: Network,
    pub(super) checks: Checks,
    pub(super) partition: u64,
    /// Changes of members with an outcome that nobody heard of.
    pub(super) changes_unknown: u64,
    pub(super) change: Option<RequestId>,
    clients: Vec<Client>,
    history: History,
    events: BTreeMap<(Micros, u64), Event>,
    sequence: u64,
    out: Vec<Out>,
    is_calm: bool,
    is_over: bool,
    /// The members at which a write has succeeded since the calm, and those that are tried.
    proven: BTreeMap<MemberId, bool>,
    trace: Vec<String>,
    is_verbose: bool,
    pub(super) digest: u64,
}

impl World {
    pub(super) fn new(seed: u64, bug: Option<Bug>, is_verbose: bool) -> Self {
        let mut random = Random::from_seed(mix(seed, 0x5eed));
        let mut plan = Plan::draw(&mut random, bug);
        plan.has_machine = bug.is_none() && seed % MACHINE_EVERY_SEEDS < 2;
        let mut world = Self {
            clients: vec![Client::default(); plan.clients],
            plan,
            now: TICK,
            random,
            nodes: BTreeMap::new(),
            due: BTreeMap::new(),
            network: Network::default(),
            checks: Checks::default(),
            partition: 0,
            changes_unknown: 0,
            change: None,
            history: History::default(),
            events: BTreeMap::new(),
            sequence: 0,
            out: Vec::new(),
            is_calm: false,
            is_over: false,
            proven: BTreeMap::new(),
            trace: Vec::new(),
            is_verbose,
            digest: 0,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let founders: Vec<MemberId> = (1..=self.plan.founders).map(MemberId).collect();
        let entries: Vec<_> = founders.iter().map(|id| founding_entry(*id)).collect();
        for id in &founders {
            self.add_node(*id);
            self.step(*id, |node, around| node.found(entries.clone(), &founders, around));
            self.started(*id);
        }
        for client in 0..self.clients.len() {
            let at = self.now + self.random.below(20 * TICK);
            self.schedule(at, Event::Client(client));
        }
        self.schedule(self.now + 10 * TICK, Event::Weather);
        self.schedule(self.plan.calm_from, Event::Calm);
    }

    /// Runs to the end, or to the first violation.
    pub(super) fn run(&mut self) {
        while !self.is_over && self.checks.violation().is_none() {
            let ((at, _), event) = self.events.pop_first().expect("time goes on for ever");
            assert!(self.now <= at, "time moved back");
            self.now = at;
            self.happen(event);
        }
        if self.checks.violation().is_none() {
            self.checks.finish();
            if let Err(error) = history::check(&self.history.judged()) {
                self.checks.violated(|| format!("not linearizable: {error}"));
            }
        }
    }

    pub(super) fn schedule(&mut self, at: Micros, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    /// Adds to the digest of the run, and to its trace.
    pub(super) fn note(&mut self, code: u64, what: impl FnOnce() -> String) {
        self.digest = mix(mix(self.digest, self.now), code);
        if self.is_verbose {
            self.trace.push(format!("{:>9} {}", self.now, what()));
        }
    }

    /// The notes of a verbose run.
    pub(super) fn trace(&self) -> &[String] {
        &self.trace
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Turn(id, life) => self.turn(id, life),
            Event::Log(id, life) => self.log(id, life),
            Event::LogDone(id, life) => self.log_done(id, life),
            Event::Apply(id, life) => self.apply(id, life),
            Event::Flush(id, life) => self.flush(id, life),
            Event::TakeState(id, life, message) => self.take_state(id, life, message),
            Event::Deliver(message, state) => self.deliver(message, state),
            Event::Sent(id, life, to, report) => {
                self.tell(id, life, Input::SnapshotSent(to, report));
            }
            Event::Unreachable(id, life, to) => self.tell(id, life, Input::Unreachable(to)),
            Event::Gone(id, life, gone) => self.tell(id, life, Input::LeaderGone(gone)),
            Event::Client(client) => self.client(client),
            Event::Start(id, peers) => self.start(id, &peers),
            Event::Restart(id, life) => self.restart(id, life),
            Event::CrashBriefly(id, life) => {
                if self.nodes[&id].life == life {
                    self.crash_for(id, 1_000);
                }
            }
            Event::Stop(id, life) => self.stop(id, life),
            Event::Weather => self.weather(),
            Event::Heal(partition) => {
                if partition == self.partition {
                    self.note(1, || "the network is whole again".to_owned());
                    self.network.heal();
                }
            }
            Event::Calm => self.calm(),
            Event::Look => self.look(),
        }
    }

    /// Whether this life of the member goes on; if it is paused, the event comes again later.
    fn is_live(&mut self, id: MemberId, life: u64, again: Event) -> bool {
        let node = &self.nodes[&id];
        if node.running.is_none() || node.life != life {
            return false;
        }
        let paused_until = self.due[&id].paused_until;
        if self.now < paused_until {
            self.schedule(paused_until, again);
            return false;
        }
        true
    }

    fn due(&mut self, id: MemberId) -> &mut Due {
        self.due.get_mut(&id).expect("every member has its schedule")
    }

    fn turn(&mut self, id: MemberId, life: u64) {
        // An earlier turn has taken its place.
        if self.nodes[&id].life != life || self.due[&id].turn.is_none_or(|at| self.now < at) {
            return;
        }
        if !self.is_live(id, life, Event::Turn(id, life)) {
            return;
        }
        self.due(id).turn = None;
        self.step(id, |node, around| {
            let tick = node.tick;
            let Some(running) = &mut node.running else { return };
            running.turn(tick, around);
            running.check_members(around.checks);
        });
        self.note_position(id);
        self.crash_voter(id);
        self.part_rivals(id);
        if let Some(running) = &self.nodes[&id].running {
            let at = running.next_tick;
            self.wake_replica(id, at);
        }
    }

    fn note_position(&mut self, id: MemberId) {
        let Some(running) = &self.nodes[&id].running else { return };
        let raft = running.core.raft();
        let position =
            [raft.term().0, raft.last_index().0, raft.committed_index().0, raft.leader().0];
        let code = position.iter().fold(mix(2, id.0), |code, value| mix(code, *value));
        let (role, applied) = (raft.role(), running.state.applied);
        self.note(code, || {
            let [term, last, commit, leader] = position;
            format!(
                "{id} turn: {role:?} term {term} leader {leader:x} last {last} commit {commit} \
                 applied {applied}"
            )
        });
    }

    fn wake_replica(&mut self, id: MemberId, at: Micros) {
        let life = self.nodes[&id].life;
        let due = self.due(id);
        if due.turn.is_none_or(|other| at < other) {
            due.turn = Some(at);
            self.schedule(at, Event::Turn(id, life));
        }
    }

    fn log(&mut self, id: MemberId, life: u64) {
        if !self.is_live(id, life, Event::Log(id, life)) {
            return;
        }
        self.step(id, |node, around| {
            if let Some(running) = &mut node.running {
                running.log_step(around);
            }
        });
        let is_slow = !self.is_calm && self.plan.weather.slow_disk && self.random.below(5) == 0;
        let took = 50 + self.random.below(if is_slow { 12 * TICK } else { 400 });
        self.schedule(self.now + took, Event::LogDone(id, life));
    }

    fn log_done(&mut self, id: MemberId, life: u64) {
        if !self.is_live(id, life, Event::LogDone(id, life)) {
            return;
        }
        let node = self.nodes.get_mut(&id).expect("it is live");
        let has_more = node.running.as_mut().expect("it is live").log_done();
        self.wake_replica(id, self.now + 5);
        if has_more {
            self.schedule(self.now + 10, Event::Log(id, life));
        } else {
            self.due(id).log = false;
        }
    }

    fn apply(&mut self, id: MemberId, life: u64) {
        if !self.is_live(id, life, Event::Apply(id, life)) {
            return;
        }
        self.due(id).apply = false;
        self.step(id, Node::apply_step);
        self.note_state(id);
        self.follow_members(id);
    }

    fn note_state(&mut self, id: MemberId) {
        let Some(running) = &self.nodes[&id].running else { return };
        let State { applied, digest, .. } = running.state;
        self.note(mix(mix(3, id.0), digest), || format!("{id} applied up to {applied}"));
    }

    /// Starts members that are known now, and stops this one if it was removed.
    fn follow_members(&mut self, id: MemberId) {
        let node = &self.nodes[&id];
        let Some(running) = &node.running else { return };
        let (life, state) = (node.life, &running.state);
        if state.membership.is_removed(id) && !self.due[&id].is_stopping {
            let at = self.now + 10 * TICK;
            self.due(id).is_stopping = true;
            self.schedule(at, Event::Stop(id, life));
            return;
        }
        let peers: Vec<MemberId> = state.membership.members().map(|member| member.id).collect();
        let new = |other: &&MemberId| {
            self.nodes[*other].fate == Fate::Waiting && !self.due[*other].is_stopping
        };
        let new: Vec<MemberId> = peers.iter().filter(new).copied().collect();
        for other in new {
            // Marks that its start is under way.
            self.due(other).is_stopping = true;
            let at = self.now + self.random.below(10 * TICK);
            self.schedule(at, Event::Start(other, peers.clone()));
        }
    }

    fn flush(&mut self, id: MemberId, life: u64) {
        if !self.is_live(id, life, Event::Flush(id, life)) {
            return;
        }
        self.nodes.get_mut(&id).expect("it is live").flush();
        self.wake_replica(id, self.now + 5);
        self.schedule_flush(id);
    }

    fn schedule_flush(&mut self, id: MemberId) {
        let life = self.nodes[&id].life;
        let at = self.now + 1 + self.random.below(12 * TICK);
        self.schedule(at, Event::Flush(id, life));
    }

    fn take_state(&mut self, id: MemberId, life: u64, mut message: Message) {
        if self.nodes[&id].life != life || self.nodes[&id].running.is_none() {
            return;
        }
        // The backend is synced first.
        let node = self.nodes.get_mut(&id).expect("it is live");
        let state = Box::new(node.export());
        message.snapshot = Some(snapshot_of(&state));
        self.wake_replica(id, self.now + 5);
        self.send(id, message, Some(state));
    }

    fn send(&mut self, id: MemberId, message: Message, state: Option<Box<State>>) {
        let (_, to) = ends(&message);
        let node = &self.nodes[&id];
        let (life, running) = (node.life, node.running.as_ref());
        if !running.is_some_and(|running| running.reaches(to)) {
            return;
        }
        let weather = self.plan.weather;
        let arrivals = self.network.carry(&message, self.now, weather, &mut self.random);
        if arrivals.is_empty() {
            let at = self.now + self.random.below(TICK);
            if state.is_some() {
                self.schedule(at, Event::Sent(id, life, to, SnapshotReport::Failed));
            } else if self.random.below(3) == 0 {
                self.schedule(at, Event::Unreachable(id, life, to));
            }
        }
        for at in arrivals {
            self.schedule(at, Event::Deliver(message.clone(), state.clone()));
        }
    }

    fn deliver(&mut self, message: Message, state: Option<Box<State>>) {
        let (from, to) = ends(&message);
        let sender_life = self.nodes[&from].life;
        let is_cut = self.network.is_cut(from, to);
        let node = self.nodes.get_mut(&to).expect("messages go to members");
        let Some(running) = node.running.as_ref().filter(|_| !is_cut) else {
            if state.is_some() {
                self.schedule(
                    self.now + TICK,
                    Event::Sent(from, sender_life, to, SnapshotReport::Failed),
                );
            }
            return;
        };
        // The transport turns former members away.
        if running.state.membership.is_removed(from) {
            return;
        }
        let is_state = state.is_some();
        if let Some(state) = state {
            node.receive(*state);
        }
        let running = node.running.as_mut().expect("it was seen running");
        running.meet(from);
        running.push(Input::Peer(Box::new(message)));
        if is_state {
            let at = self.now + 100;
            self.schedule(at, Event::Sent(from, sender_life, to, SnapshotReport::Sent));
        }
        let at = self.now + self.random.below(50);
        self.wake_replica(to, at);
    }

    fn tell(&mut self, id: MemberId, life: u64, input: Input) {
        let node = self.nodes.get_mut(&id).expect("every member is known");
        if let Some(running) = node.running.as_mut().filter(|_| node.life == life) {
            running.push(input);
            self.wake_replica(id, self.now + 5);
        }
    }

    /// Takes a step of a member, and does what that asks for.
    fn step(&mut self, id: MemberId, take: impl FnOnce(&mut Node, &mut Surroundings<'_>)) {
        let mut out = mem::take(&mut self.out);
        let node = self.nodes.get_mut(&id).expect("every member is known");
        let Self { now, plan, checks, random, .. } = self;
        take(node, &mut Surroundings { now: *now, plan, checks, random, out: &mut out });
        for each in out.drain(..) {
            self.perform(id, each);
        }
        self.out = out;
    }

    fn perform(&mut self, id: MemberId, out: Out) {
        let life = self.nodes[&id].life;
        match out {
            Out::Send(message) => self.send(id, message, None),
            Out::SendState(message) => {
                let at = self.now + 100 + self.random.below(TICK);
                self.schedule(at, Event::TakeState(id, life, message));
            }
            Out::Proposed(request, outcome) => self.proposed(id, request, outcome),
            Out::Read(client, outcome) => self.read(id, client, outcome),
            Out::Wake(Thread::Replica) => self.wake_replica(id, self.now + 5),
            Out::Wake(Thread::Log) => {
                if !mem::replace(&mut self.due(id).log, true) {
                    let at = self.now + self.random.below(100);
                    self.schedule(at, Event::Log(id, life));
                }
            }
            Out::Wake(Thread::Apply) => {
                if !mem::replace(&mut self.due(id).apply, true) {
                    let is_slow =
                        !self.is_calm && self.plan.weather.slow_apply && self.random.below(8) == 0;
                    let at =
                        self.now + 10 + self.random.below(if is_slow { 15 * TICK } else { 200 });
                    self.schedule(at, Event::Apply(id, life));
                }
            }
            Out::Crash => self.crash(id),
        }
    }

    // Members come and go.

    pub(super) fn add_node(&mut self, id: MemberId) {
        let mut node = Node::new(id);
        node.tick =
            if self.plan.weather.skew { TICK * (6 + self.random.below(10)) / 10 } else { TICK };
        self.nodes.insert(id, node);
        self.due.insert(id, Due::default());
    }

    fn started(&mut self, id: MemberId) {
        if let Some(running) = &self.nodes[&id].running {
            let at = running.next_tick;
            self.wake_replica(id, at);
            self.schedule_flush(id);
        }
    }

    fn start(&mut self, id: MemberId, peers: &[MemberId]) {
        self.note(mix(4, id.0), || format!("{id} starts for the first time"));
        *self.due(id) = Due::default();
        self.step(id, |node, around| node.found(Vec::new(), peers, around));
        self.started(id);
    }

    /// Cuts the power of a member; it comes back later.
    pub(super) fn crash(&mut self, id: MemberId) {
        let is_short = self.random.below(2) == 0;
        let away = if is_short { self.random.below(TICK) } else { self.random.below(60 * TICK) };
        self.crash_for(id, 1_000 + away);
    }

    fn crash_for(&mut self, id: MemberId, away: Micros) {
        if self.nodes[&id].running.is_none() {
            return;
        }
        self.note(mix(5, id.0), || format!("{id} crashes"));
        self.checks.counts.crashes += 1;
        self.take_down(id);
        self.announce_end(id);
        let life = self.nodes[&id].life;
        self.schedule(self.now + away, Event::Restart(id, life));
    }

    fn take_down(&mut self, id: MemberId) {
        let Self { nodes, random, .. } = self;
        nodes.get_mut(&id).expect("every member is known").crash(random);
        for client in 0..self.clients.len() {
            if self.clients[client].pending.is_some_and(|pending| pending.member == id) {
                self.give_up(client);
            }
        }
        if self.change.take().is_some() {
            self.changes_unknown += 1;
        }
    }

    fn restart(&mut self, id: MemberId, life: u64) {
        let node = &self.nodes[&id];
        if node.life != life || node.running.is_some() || node.fate != Fate::Alive {
            return;
        }
        self.note(mix(6, id.0), || format!("{id} starts again"));
        self.checks.counts.restarts += 1;
        *self.due(id) = Due::default();
        self.step(id, |node, around| {
            if let Err(error) = node.restart(around) {
                around.checks.violated(|| format!("{} cannot start again: {error}", node.id));
            }
        });
        self.started(id);
    }

    fn stop(&mut self, id: MemberId, life: u64) {
        if self.nodes[&id].life != life || self.nodes[&id].running.is_none() {
            return;
        }
        self.note(mix(7, id.0), || format!("{id} was removed and stops"));
        self.take_down(id);
        self.nodes.get_mut(&id).expect("it is live").fate = Fate::Gone;
    }

    // Clients.

    fn client(&mut self, client: usize) {
        if self.is_calm && self.plan.calm_from + BUSY_TICKS * TICK < self.now {
            return;
        }
        let id = match self.clients[client].member.filter(|id| self.is_up(*id)) {
            Some(id) if self.random.below(8) != 0 => id,
            _ => match self.any_up() {
                Some(id) => id,
                None => return self.schedule(self.now + TICK, Event::Client(client)),
            },
        };
        self.clients[client].member = Some(id);
        let kind = if self.random.below(2) == 0 { Kind::Write } else { Kind::Read };
        self.operate(client, id, kind);
    }

    fn operate(&mut self, client: usize, id: MemberId, kind: Kind) {
        let (operation, content) = self.history.begin(kind, &mut self.random);
        let reader = u64::try_from(client).expect("there are few clients");
        let Self { nodes, now, plan, .. } = self;
        let node = nodes.get_mut(&id).expect("every member is known");
        let life = node.life;
        let running = node.running.as_mut().expect("only members that are up are asked");
        let mut request = None;
        let mut is_done = false;
        match kind {
            Kind::Write => {
                let make = |id| Input::Propose(encode(content, id));
                request = Some(running.propose(*now, make));
            }
            Kind::Read => is_done = running.read(reader, *now, plan),
        }
        self.clients[client].pending = Some(Pending { operation, member: id, life, request });
        if is_done {
            self.read(id, reader, Ok(()));
        } else {
            let at = self.now + self.random.below(50);
            self.wake_replica(id, at);
        }
    }

    pub(super) fn is_up(&self, id: MemberId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.running.is_some())
    }

    /// A running member by chance.
    pub(super) fn any_up(&mut self) -> Option<MemberId> {
        let up: Vec<MemberId> = self.nodes.keys().copied().filter(|id| self.is_up(*id)).collect();
        if up.is_empty() { None } else { Some(up[index_below(&mut self.random, up.len())]) }
    }

    fn proposed(&mut self, id: MemberId, request: RequestId, outcome: Result<(), ()>) {
        if self.change == Some(request) {
            self.change = None;
            if outcome.is_err() {
                self.changes_unknown += 1;
            }
            return;
        }
        let waits = |client: &Client| client.pending.is_some_and(|it| it.request == Some(request));
        let Some(client) = self.clients.iter().position(waits) else { return };
        if outcome.is_err() {
            return self.give_up(client);
        }
        let pending = self.clients[client].pending.expect("it waits");
        let operation = self.history.operation(pending.operation);
        self.history.end(pending.operation, operation.value);
        self.checks.counts.writes += 1;
        if self.is_calm {
            self.proven.insert(id, true);
        }
        self.note(mix(mix(8, id.0), operation.value), || format!("{id} wrote {operation:?}"));
        self.think(client);
    }

    fn read(&mut self, id: MemberId, client: u64, outcome: Result<(), ()>) {
        let client = usize::try_from(client).expect("there are few clients");
        let Some(pending) = self.clients[client].pending.filter(|pending| pending.member == id)
        else {
            return;
        };
        if outcome.is_err() {
            return self.give_up(client);
        }
        let Some(running) = &self.nodes[&id].running else { return };
        let operation = self.history.operation(pending.operation);
        let value = running.state.read(operation.key);
        self.history.end(pending.operation, value);
        self.checks.counts.reads += 1;
        self.note(mix(mix(9, id.0), value), || format!("{id} read {value} of {operation:?}"));
        self.think(client);
    }

    fn give_up(&mut self, client: usize) {
        let Some(pending) = self.clients[client].pending else { return };
        self.history.give_up(pending.operation);
        self.checks.counts.unknown += 1;
        self.clients[client].member = None;
        self.think(client);
    }

    fn think(&mut self, client: usize) {
        self.clients[client].pending = None;
        let at = self.now + self.random.below(3 * TICK);
        self.schedule(at, Event::Client(client));
    }

    // The end.

    fn calm(&mut self) {
        self.note(10, || "the weather is over".to_owned());
        self.is_calm = true;
        self.network.calm_down();
        let best = self.best();
        let ids: Vec<MemberId> = self.nodes.keys().copied().collect();
        for id in ids {
            self.due(id).paused_until = 0;
            // Without pre-votes a member behind the others, with a clock twice as fast, keeps them from
            // electing anybody, in any raft.
            self.nodes.get_mut(&id).expect("every member is known").tick = TICK;
            let node = &self.nodes[&id];
            let life = node.life;
            if best.membership.is_removed(id) {
                self.stop(id, life);
            } else if node.fate == Fate::Alive && node.running.is_none() {
                self.restart(id, life);
            }
        }
        self.schedule(self.now + BUSY_TICKS * TICK, Event::Look);
    }

    /// The state that is farthest ahead.
    fn best(&self) -> State {
        let states = self.nodes.values().map(|node| match &node.running {
            Some(running) => &running.state,
            None => &node.stored,
        });
        states.max_by_key(|state| state.applied).cloned().unwrap_or_default()
    }

    /// Looks whether the group has come to rest, and writes at members that are not proven.
    fn look(&mut self) {
        let best = self.best();
        let members: Vec<MemberId> = best.membership.members().map(|member| member.id).collect();
        let unproven = |id: &&MemberId| self.proven.get(id) != Some(&true);
        let rest: Vec<MemberId> = members.iter().filter(unproven).copied().collect();
        let is_idle = self.clients.iter().all(|client| client.pending.is_none());
        if rest.is_empty() && is_idle && self.is_settled(&members) {
            self.is_over = true;
            return;
        }
        let ticks = (self.now - self.plan.calm_from) / TICK;
        if SETTLE_TICKS < ticks {
            let text = self.describe();
            self.checks.violated(|| format!("no rest after {ticks} ticks of calm:\n{text}"));
            return;
        }
        for id in rest {
            let idle = self.clients.iter().position(|client| client.pending.is_none());
            if let Some(client) = idle.filter(|_| self.is_up(id)) {
                self.operate(client, id, Kind::Write);
            }
        }
        self.schedule(self.now + 5 * TICK, Event::Look);
    }

    /// Everybody stands where the leader's log ends.
    fn is_settled(&self, members: &[MemberId]) -> bool {
        let up = |id: &MemberId| self.nodes.get(id).and_then(|node| node.running.as_deref());
        let Some(leader) = members.iter().filter_map(up).find(|it| it.is_leader()) else {
            return false;
        };
        let last = leader.core.raft().last_index();
        members.iter().all(|id| {
            up(id).is_some_and(|it| {
                it.state.applied == last && it.core.raft().leader() == leader.core.raft().id()
            })
        })
    }

    pub(super) fn describe(&self) -> String {
        let lines = self.nodes.values().map(|node| {
            let Node { id, fate, .. } = node;
            let Some(running) = &node.running else {
                return format!("{id} {fate:?}, down, checkpoint at {}", node.stored.applied);
            };
            let raft = running.core.raft();
            let progress: Vec<String> =
                raft.progress().map(|(id, progress)| format!("{id}: {progress}")).collect();
            format!(
                "{id} {:?} term {} leader {} first {} last {} commit {} noted {} applied {} members {:?} {} [{}]",
                raft.role(),
                raft.term(),
                raft.leader(),
                raft.first_index(),
                raft.last_index(),
                raft.committed_index(),
                raft.applied_index(),
                running.state.applied,
                raft.conf_state().voters,
                running.describe_queues(),
                progress.join(", ")
            )
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

fn founding_entry(id: MemberId) -> proto::raftpb::Entry {
    let mut change = change(ConfChangeType::ConfChangeAddNode, id, false);
    change.id = None;
    let data = bytes::Bytes::from(prost::Message::encode_to_vec(&change));
    let kind = proto::raftpb::EntryType::EntryConfChange;
    let entry = new_entry(kind, BOOTSTRAP_TERM, LogIndex(id.0), data);
    assert!(entry_index(&entry).0 == id.0, "founders are numbered from 1");
    entry
}

/// A change of members, as the cluster service proposes it.
pub(super) fn change(kind: ConfChangeType, id: MemberId, is_promote: bool) -> ConfChange {
    let member = Member {
        id,
        peer_urls: vec![format!("http://{id}")],
        is_learner: kind == ConfChangeType::ConfChangeAddLearnerNode,
        ..Member::default()
    };
    let mut change = ConfChange { node_id: Some(id.0), ..ConfChange::default() };
    change.r#type = Some(kind.into());
    change.context = Some(MemberContext { member, is_promote }.to_json());
    change
}
