//! etcd raft's own interaction scripts, read from its Go module where there is one.
//!
//! Each script drives a few cores step by step and prints what they ask for: states, entries,
//! messages. All of that must be the same here, in the same order. Log lines (`INFO ...`) are left
//! out of the comparison. A few scripts do not apply ([`NOT_APPLICABLE`]); the test notices when one
//! of them passes, and when there is a new one.
//!
//! Without the module in a Go module cache the test says so and passes.

use std::{
    fmt::Write as _,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
};

use bytes::Bytes;
use prost::Message as _;
use proto::raftpb::{
    ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
    Entry, EntryType, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
};

use super::script;
use crate::{
    consensus::{
        ApplyWhen, CommitWrites, Config, ProposeError, Raft, RaftState, Ready, Role, StepError,
    },
    model::{LogIndex, MemberId, entry_data, entry_index, entry_kind, entry_term},
};

/// Scripts that cannot print the same here, and why.
const NOT_APPLICABLE: [(&str, &str); 6] = [
    ("async_storage_writes.txt", MESSAGES_TO_STORAGE),
    ("async_storage_writes_append_aba_race.txt", MESSAGES_TO_STORAGE),
    (
        "confchange_disable_validation.txt",
        "switches off the validation of changes of members, which no setting of ours does",
    ),
    ("forget_leader.txt", FORGET_LEADER),
    ("forget_leader_prevote_checkquorum.txt", FORGET_LEADER),
    ("forget_leader_read_only_lease_based.txt", FORGET_LEADER),
];
const MESSAGES_TO_STORAGE: &str = "prints messages to storage threads, for which ours has batches with numbers; the race that \
     they are about is played by the simulator, whose disks report late";
const FORGET_LEADER: &str =
    "forgetting a leader on request is absent, as the server never asks for it";

/// More than a group needs that comes to rest at all.
const STABILIZE_ROUNDS_MAX: usize = 200;

#[derive(Debug)]
struct Node {
    raft: Raft,
    hard_state: HardState,
    /// Every state of the state machine, which appends payloads.
    history: Vec<Snapshot>,
}

#[derive(Debug, Default)]
pub(super) struct Script {
    nodes: Vec<Node>,
    network: Vec<Message>,
    quiet: bool,
}

#[test]
fn etcd_s_interaction_scripts_print_the_same() {
    let Some(folder) = script::folder("testdata") else { return };
    let names = script::names(&folder);
    let missing = NOT_APPLICABLE.iter().find(|(name, _)| !names.iter().any(|it| it == name));
    assert!(missing.is_none(), "there is no such script: {missing:?}");
    let mut failures = Vec::new();
    for name in &names {
        let text = fs::read_to_string(folder.join(name)).unwrap();
        let applies = NOT_APPLICABLE.iter().all(|(other, _)| other != name);
        // What does not apply may ask for a command that there is none of.
        let ran = catch_unwind(AssertUnwindSafe(|| run(&text)));
        match ran.unwrap_or_else(|_| Err("it panicked".to_owned())) {
            Err(failure) if applies => failures.push(format!("{name}:{failure}")),
            Ok(()) if !applies => failures.push(format!("{name} passes, and is said not to apply")),
            Ok(()) | Err(_) => {}
        }
    }
    let count = names.len();
    assert!(failures.is_empty(), "{} of {count}\n{}", failures.len(), failures.join("\n\n"));
    assert!(28 <= count, "only {count} scripts were found");
}

fn run(text: &str) -> Result<(), String> {
    let mut script = Script::default();
    for step in script::parse(text) {
        let printed = script.perform(&step.command, &step.input);
        let (printed, expected) = (comparable(&printed), comparable(&step.expected));
        if printed != expected {
            return Err(format!(
                "{}: {}\n--- expected\n{expected}\n--- printed\n{printed}",
                step.line, step.command
            ));
        }
    }
    Ok(())
}

/// Without what the libraries log, and without the difference between nothing and "ok".
pub(super) fn comparable(output: &str) -> String {
    let is_log = |line: &str| {
        let levels = ["DEBUG ", "INFO ", "WARN ", "ERROR "];
        levels.iter().any(|level| line.trim_start().starts_with(level))
    };
    let lines: Vec<&str> =
        output.lines().filter(|line| !is_log(line) && *line != "ok" && !line.is_empty()).collect();
    lines.join("\n")
}

impl Script {
    pub(super) fn perform(&mut self, command: &str, input: &str) -> String {
        let arguments = script::arguments(command);
        let (name, arguments) = arguments.split_first().unwrap();
        let plain = |(key, values): &(String, Vec<String>)| {
            if values.is_empty() { key.parse::<usize>().ok() } else { None }
        };
        let ids: Vec<usize> = arguments.iter().filter_map(plain).collect();
        let value = |key: &str| {
            let found = arguments.iter().find(|(name, _)| name == key);
            found.map(|(_, values)| values[0].clone())
        };
        let was_quiet = self.quiet;
        let printed = match name.0.as_str() {
            "add-nodes" => self.add_nodes(ids[0], arguments),
            "campaign" => self.change(ids[0], Raft::campaign),
            "compact" => self.compact(ids[0], ids[1]),
            "deliver-msgs" => self.deliver(arguments),
            "log-level" => {
                self.quiet = arguments[0].0.eq_ignore_ascii_case("none");
                return String::new();
            }
            "process-ready" => self.process_several(&ids),
            "propose" => {
                let payload = Bytes::from(arguments[1].0.clone());
                self.propose(ids[0], |raft| raft.propose(vec![payload]))
            }
            "propose-conf-change" => {
                let is_v1 = value("v1").as_deref() == Some("true");
                self.propose_conf_change(ids[0], is_v1, value("transition"), input)
            }
            "raft-log" => self.raft_log(ids[0]),
            "raft-state" => self.raft_state(),
            "report-unreachable" => {
                let about = MemberId(u64::try_from(ids[1]).unwrap());
                self.change(ids[0], |raft| raft.report_unreachable(about))
            }
            "send-snapshot" => self.send_snapshot(ids[0], ids[1]),
            "set-randomized-election-timeout" => {
                let timeout = value("timeout").unwrap().parse().unwrap();
                self.change(ids[0], |raft| raft.election_timeout = timeout)
            }
            "stabilize" => {
                if let Some(level) = value("log-level") {
                    self.quiet = level == "none";
                }
                self.stabilize(&ids)
            }
            "status" => self.status(ids[0]),
            "tick-election" => self.change(ids[0], |raft| {
                for _ in 0..raft.config.election_ticks {
                    raft.tick();
                }
            }),
            "tick-heartbeat" => self.change(ids[0], Raft::tick),
            "transfer-leadership" => {
                let to = MemberId(value("to").unwrap().parse().unwrap());
                let from = value("from").unwrap().parse().unwrap();
                self.change(from, |raft| raft.transfer_leader(to))
            }
            other => panic!("unknown command {other}"),
        };
        let is_quiet = self.quiet;
        if name.0 == "stabilize" {
            self.quiet = was_quiet;
        }
        if is_quiet && !printed.starts_with("raft proposal") { String::new() } else { printed }
    }

    /// Every member and what it is.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (usize, Role)> {
        (1..).zip(&self.nodes).map(|(id, node)| (id, node.raft.role()))
    }

    /// Whether somebody leads who is the only voter.
    pub(super) fn has_sole_voter(&self) -> bool {
        let alone = |raft: &Raft| raft.role() == Role::Leader && raft.is_sole_voter();
        self.nodes.iter().any(|node| alone(&node.raft))
    }

    /// Whether somebody leads a joint membership that it is to leave by itself.
    pub(super) fn is_leaving(&self) -> bool {
        let leaves =
            |raft: &Raft| raft.role() == Role::Leader && raft.members.membership.auto_leave;
        self.nodes.iter().any(|node| leaves(&node.raft))
    }

    /// The first entry that a member has, and the last that it has applied.
    pub(super) fn applied(&self, id: usize) -> (u64, u64) {
        let raft = &self.nodes[id - 1].raft;
        (raft.first_index().0, raft.applied_index().0)
    }

    fn change(&mut self, id: usize, change: impl FnOnce(&mut Raft)) -> String {
        change(&mut self.nodes[id - 1].raft);
        String::new()
    }

    fn add_nodes(&mut self, count: usize, arguments: &[(String, Vec<String>)]) -> String {
        let mut metadata = SnapshotMetadata::default();
        let mut conf_state = ConfState::default();
        let mut config = Config {
            election_ticks: 3,
            pre_vote: false,
            check_quorum: false,
            step_down_on_removal: false,
            append_bytes_max: u64::MAX,
            appends_in_flight_max: usize::MAX,
            applying_bytes_max: u64::MAX,
            apply_when: ApplyWhen::Committed,
            commit_writes: CommitWrites::AtOnce,
            ..Config::new(MemberId(1))
        };
        for (key, values) in &arguments[1..] {
            let numbers = || values.iter().map(|value| value.parse::<u64>().unwrap()).collect();
            let is_true = || values[0] == "true";
            match key.as_str() {
                "voters" => conf_state.voters = numbers(),
                "learners" => conf_state.learners = numbers(),
                "index" => metadata.index = Some(values[0].parse().unwrap()),
                "inflight" => config.appends_in_flight_max = values[0].parse().unwrap(),
                "prevote" => config.pre_vote = is_true(),
                "checkquorum" => config.check_quorum = is_true(),
                "step-down-on-removal" => config.step_down_on_removal = is_true(),
                "content" => {}
                other => panic!("unknown argument {other}"),
            }
        }
        if metadata.index.is_some() {
            metadata.term = Some(1);
        }
        metadata.conf_state = Some(conf_state.clone());
        for _ in 0..count {
            config.id = MemberId(u64::try_from(self.nodes.len()).unwrap() + 1);
            let state = RaftState {
                conf_state: conf_state.clone(),
                snapshot: metadata.clone(),
                applied: LogIndex(metadata.index.unwrap_or(0)),
                ..RaftState::default()
            };
            let raft = Raft::new(config.clone(), state, Box::new(|_| 0)).unwrap();
            let hard_state = raft.hard_state();
            let history = vec![Snapshot { data: None, metadata: Some(metadata.clone()) }];
            self.nodes.push(Node { raft, hard_state, history });
        }
        String::new()
    }

    fn propose(
        &mut self,
        id: usize,
        propose: impl FnOnce(&mut Raft) -> Result<(), ProposeError>,
    ) -> String {
        match propose(&mut self.nodes[id - 1].raft) {
            Ok(()) => String::new(),
            Err(_) => "raft proposal dropped".to_owned(),
        }
    }

    fn propose_conf_change(
        &mut self,
        id: usize,
        is_v1: bool,
        transition: Option<String>,
        input: &str,
    ) -> String {
        let changes: Vec<ConfChangeSingle> = input.split_whitespace().map(script::change).collect();
        if is_v1 {
            let change = ConfChange {
                r#type: changes[0].r#type,
                node_id: changes[0].node_id,
                ..ConfChange::default()
            };
            return self.propose(id, |raft| raft.propose_conf_change(&change));
        }
        let transition = match transition.as_deref() {
            None | Some("auto") => ConfChangeTransition::Auto,
            Some("implicit") => ConfChangeTransition::JointImplicit,
            Some("explicit") => ConfChangeTransition::JointExplicit,
            Some(other) => panic!("unknown transition {other}"),
        };
        let change = ConfChangeV2 { transition: Some(transition.into()), changes, context: None };
        self.propose(id, |raft| raft.propose_conf_change_v2(&change))
    }

    fn compact(&mut self, id: usize, index: usize) -> String {
        let index = LogIndex(u64::try_from(index).unwrap());
        self.nodes[id - 1].raft.truncate_to(index);
        self.raft_log(id)
    }

    fn raft_log(&self, id: usize) -> String {
        let raft = &self.nodes[id - 1].raft;
        let (first, last) = (raft.first_index(), raft.log.persisted());
        if last < first {
            return format!("log is empty: first index={first}, last index={last}");
        }
        let mut entries = raft.log.entries_from(first, u64::MAX);
        entries.retain(|entry| entry_index(entry) <= last);
        describe_entries(&entries)
    }

    fn raft_state(&self) -> String {
        let mut printed = String::new();
        for Node { raft, .. } in &self.nodes {
            let is_voter = raft.members.membership.voters.contains(raft.id());
            let voter = if is_voter { "Voter" } else { "Non-Voter" };
            let (id, role, term, leader) = (raft.id(), raft.role(), raft.term(), raft.leader());
            writeln!(printed, "{id}: State{role:?} ({voter}) Term:{term} Lead:{leader}").unwrap();
        }
        printed
    }

    fn status(&self, id: usize) -> String {
        let lines = self.nodes[id - 1].raft.progress();
        lines.map(|(id, progress)| format!("{id}: {progress}\n")).collect()
    }

    fn send_snapshot(&mut self, from: usize, to: usize) -> String {
        let node = &self.nodes[from - 1];
        let message = Message {
            r#type: Some(MessageType::MsgSnap.into()),
            from: Some(u64::try_from(from).unwrap()),
            to: Some(u64::try_from(to).unwrap()),
            term: Some(node.raft.term().0),
            snapshot: node.history.last().cloned(),
            ..Message::default()
        };
        let printed = describe_message(&message);
        self.network.push(message);
        printed
    }

    fn process_several(&mut self, ids: &[usize]) -> String {
        if let [id] = ids {
            return self.process_ready(*id);
        }
        let mut printed = String::new();
        for id in ids {
            writeln!(printed, "> {id} handling Ready").unwrap();
            printed += &indented(&self.process_ready(*id));
        }
        printed
    }

    fn process_ready(&mut self, id: usize) -> String {
        let node = &mut self.nodes[id - 1];
        let Some(ready) = node.raft.ready() else { return "<empty Ready>".to_owned() };
        let printed = describe_ready(&ready, &node.hard_state);
        for entry in &ready.committed {
            node.apply(entry);
        }
        self.network.extend(messages_of(&ready));
        let installed = ready.batch.as_ref().and_then(|batch| batch.snapshot.as_ref());
        let installed = installed.map(|it| it.metadata.as_ref().unwrap().index.unwrap());
        if let Some(batch) = ready.batch {
            node.hard_state = batch.hard_state.unwrap_or(node.hard_state);
            node.raft.persisted(batch.number);
        }
        let applied = ready.committed.last().map(entry_index);
        if let Some(applied) = applied.or(installed.map(LogIndex)) {
            node.raft.applied(applied);
        }
        printed
    }

    fn deliver(&mut self, arguments: &[(String, Vec<String>)]) -> String {
        let mut recipients = Vec::new();
        let mut kind = None;
        for (key, values) in arguments {
            match key.as_str() {
                "drop" => recipients.extend(values.iter().map(|id| (id.parse().unwrap(), true))),
                "type" => kind = MessageType::from_str_name(&values[0]),
                id => recipients.push((id.parse().unwrap(), false)),
            }
        }
        let mut printed = String::new();
        for (id, drops) in recipients {
            printed += &self.deliver_to(id, kind, drops);
        }
        if printed.is_empty() { "no messages".to_owned() } else { printed }
    }

    fn deliver_to(&mut self, id: u64, kind: Option<MessageType>, drops: bool) -> String {
        let mut printed = String::new();
        let (chosen, rest) = std::mem::take(&mut self.network).into_iter().partition(|message| {
            message.to == Some(id)
                && kind.is_none_or(|kind| message.r#type == Some(i32::from(kind)))
        });
        self.network = rest;
        let chosen: Vec<Message> = chosen;
        for message in chosen {
            if drops {
                printed += "dropped: ";
            }
            writeln!(printed, "{}", describe_message(&message)).unwrap();
            if drops {
                continue;
            }
            let raft = &mut self.nodes[usize::try_from(id).unwrap() - 1].raft;
            match raft.step(message) {
                Ok(()) => {}
                Err(StepError::UnknownPeer(_)) => {
                    printed += "raft: cannot step as peer not found\n";
                }
                Err(StepError::Proposal(_)) => printed += "raft proposal dropped\n",
                Err(error) => writeln!(printed, "{error}").unwrap(),
            }
        }
        printed
    }

    fn stabilize(&mut self, ids: &[usize]) -> String {
        let all: Vec<usize> = (1..=self.nodes.len()).collect();
        let ids = if ids.is_empty() { &all } else { ids };
        let mut printed = String::new();
        for _ in 0..STABILIZE_ROUNDS_MAX {
            let before = printed.len();
            for id in ids {
                if self.nodes[*id - 1].raft.has_ready() {
                    writeln!(printed, "> {id} handling Ready").unwrap();
                    printed += &indented(&self.process_ready(*id));
                }
            }
            for id in ids {
                let delivered = self.deliver_to(u64::try_from(*id).unwrap(), None, false);
                if !delivered.is_empty() {
                    writeln!(printed, "> {id} receiving messages").unwrap();
                    printed += &indented(&delivered);
                }
            }
            if before == printed.len() {
                return printed;
            }
        }
        panic!("no rest after {STABILIZE_ROUNDS_MAX} rounds:\n{}", self.raft_state());
    }
}

impl Node {
    fn apply(&mut self, entry: &Entry) {
        let data = entry_data(entry);
        let changed = match entry_kind(entry).unwrap() {
            EntryType::EntryNormal => None,
            EntryType::EntryConfChange => {
                let change = ConfChange::decode(data).unwrap();
                Some(self.raft.apply_conf_change(&change).unwrap())
            }
            EntryType::EntryConfChangeV2 => {
                let change = ConfChangeV2::decode(data).unwrap();
                Some(self.raft.apply_conf_change_v2(&change).unwrap())
            }
        };
        let last = self.history.last().unwrap().metadata.clone().unwrap();
        let metadata = SnapshotMetadata {
            conf_state: changed.or(last.conf_state),
            index: Some(entry_index(entry).0),
            term: Some(entry_term(entry).0),
        };
        let snapshot = Snapshot { data: None, metadata: Some(metadata) };
        self.raft.snapshot_taken(snapshot.clone());
        self.history.push(snapshot);
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// All messages, in the order of official raft, which lets requests for votes go before the term is
/// durable: before questions about a later term, after everything else that goes at once.
fn messages_of(ready: &Ready) -> Vec<Message> {
    let is = |message: &Message, kind: MessageType| message.r#type == Some(kind.into());
    let after = ready.batch.as_ref().map_or(&[][..], |batch| &batch.messages);
    let (requests, answers): (Vec<_>, Vec<_>) =
        after.iter().cloned().partition(|message| is(message, MessageType::MsgVote));
    let mut messages = ready.messages.clone();
    for request in requests {
        let later =
            |message: &Message| is(message, MessageType::MsgPreVote) && request.term < message.term;
        let position = messages.iter().position(later).unwrap_or(messages.len());
        messages.insert(position, request);
    }
    messages.extend(answers);
    messages
}

fn describe_ready(ready: &Ready, before: &HardState) -> String {
    let mut text = String::new();
    if let Some(soft) = ready.soft_state {
        writeln!(text, "Lead:{} State:State{:?}", soft.leader, soft.role).unwrap();
    }
    let batch = ready.batch.as_ref();
    let mut must_sync = false;
    if let Some(state) = batch.and_then(|batch| batch.hard_state) {
        must_sync |= state.term != before.term || state.vote != before.vote;
        write!(text, "HardState Term:{}", state.term.unwrap()).unwrap();
        if state.vote != Some(0) {
            write!(text, " Vote:{}", state.vote.unwrap()).unwrap();
        }
        writeln!(text, " Commit:{}", state.commit.unwrap()).unwrap();
    }
    if let Some(batch) = batch {
        if !batch.entries.is_empty() {
            must_sync = true;
            writeln!(text, "Entries:\n{}", describe_entries(&batch.entries).trim_end()).unwrap();
        }
        if let Some(snapshot) = &batch.snapshot {
            writeln!(text, "Snapshot {}", describe_snapshot(snapshot)).unwrap();
        }
        // Ours asks to sync a snapshot, too.
        assert_eq!(batch.must_sync, must_sync || batch.snapshot.is_some());
    }
    if !ready.committed.is_empty() {
        let entries = describe_entries(&ready.committed);
        writeln!(text, "CommittedEntries:\n{}", entries.trim_end()).unwrap();
    }
    let messages = messages_of(ready);
    if !messages.is_empty() {
        text += "Messages:\n";
        for message in &messages {
            writeln!(text, "{}", describe_message(message)).unwrap();
        }
    }
    if text.is_empty() {
        return "<empty Ready>".to_owned();
    }
    format!("Ready MustSync={must_sync}:\n{text}")
}

fn describe_entries(entries: &[Entry]) -> String {
    entries.iter().map(|entry| format!("{}\n", describe_entry(entry))).collect()
}

fn describe_entry(entry: &Entry) -> String {
    let kind = entry_kind(entry).unwrap();
    let data = entry_data(entry);
    let payload = match kind {
        EntryType::EntryNormal => format!("{:?}", String::from_utf8_lossy(&data)),
        EntryType::EntryConfChange => {
            let change = ConfChange::decode(data).unwrap();
            describe_change(change.r#type, change.node_id)
        }
        EntryType::EntryConfChangeV2 => {
            let changes = ConfChangeV2::decode(data).unwrap().changes;
            let changes: Vec<String> = changes
                .iter()
                .map(|change| describe_change(change.r#type, change.node_id))
                .collect();
            changes.join(" ")
        }
    };
    let gap = if payload.is_empty() { "" } else { " " };
    let (term, index) = (entry_term(entry), entry_index(entry));
    format!("{term}/{index} {}{gap}{payload}", kind.as_str_name())
}

fn describe_change(kind: Option<i32>, id: Option<u64>) -> String {
    let letter = match ConfChangeType::try_from(kind.unwrap_or(0)).unwrap() {
        ConfChangeType::ConfChangeAddNode => 'v',
        ConfChangeType::ConfChangeAddLearnerNode => 'l',
        ConfChangeType::ConfChangeRemoveNode => 'r',
        ConfChangeType::ConfChangeUpdateNode => 'u',
    };
    format!("{letter}{}", id.unwrap_or(0))
}

fn describe_snapshot(snapshot: &Snapshot) -> String {
    let metadata = snapshot.metadata.clone().unwrap_or_default();
    let state = metadata.conf_state.unwrap_or_default();
    let ids = |ids: &[u64]| {
        let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
        format!("[{}]", ids.join(" "))
    };
    format!(
        "Index:{} Term:{} ConfState:Voters:{} VotersOutgoing:{} Learners:{} LearnersNext:{} \
         AutoLeave:{}",
        metadata.index.unwrap_or(0),
        metadata.term.unwrap_or(0),
        ids(&state.voters),
        ids(&state.voters_outgoing),
        ids(&state.learners),
        ids(&state.learners_next),
        state.auto_leave.unwrap_or(false)
    )
}

fn describe_message(message: &Message) -> String {
    let kind = MessageType::try_from(message.r#type.unwrap()).unwrap();
    let mut text = format!(
        "{:x}->{:x} {} Term:{} Log:{}/{}",
        message.from.unwrap(),
        message.to.unwrap(),
        kind.as_str_name(),
        message.term.unwrap_or(0),
        message.log_term.unwrap_or(0),
        message.index.unwrap_or(0)
    );
    if message.reject.unwrap_or(false) {
        write!(text, " Rejected (Hint: {})", message.reject_hint.unwrap_or(0)).unwrap();
    }
    if let Some(commit @ 1..) = message.commit {
        write!(text, " Commit:{commit}").unwrap();
    }
    match message.entries.as_slice() {
        [] => {}
        [entry] => write!(text, " Entries:[{}]", describe_entry(entry)).unwrap(),
        entries => {
            let entries: Vec<String> = entries.iter().map(describe_entry).collect();
            write!(text, " Entries:[\n  {}\n]", entries.join("\n  ")).unwrap();
        }
    }
    if let Some(snapshot) = &message.snapshot {
        write!(text, "\n  Snapshot: {}", describe_snapshot(snapshot)).unwrap();
    }
    text
}
