//! Random interaction scripts, printed by official raft and by ours.
//!
//! Each command is drawn from a seed with a look at our cores, so that most of them make sense. All
//! that official raft prints must be the same here: states, entries and messages, in their order.
//! Official raft runs in `raftscript` (`compat-tests/go/raftscript`), which `tools/run-tests` builds
//! into the directory `OXETCD_OFFICIAL_BIN`; without it the test says so and passes.
//!
//! Thousands of seeds agree (`SEEDS=3000`), but for one in some thousand in which a request for votes
//! leaves in another place among messages to other members.
//!
//! Elections by time-out draw from each implementation's own dice, so the time-out of a member is
//! set before each of its ticks.

use std::{
    fmt::Write as _,
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::{Command, Stdio},
};

use super::{
    cluster::Seeded,
    interaction::{Script, comparable},
};
use crate::consensus::Role;

const SEEDS: u64 = 150;
const COMMANDS: usize = 60;

/// One command and what we print for it.
struct Step {
    command: String,
    input: String,
    printed: String,
    /// From here on messages may differ in number: a lone voter of ours counts its own entries by
    /// batches and tells learners of each batch, official raft of each entry; and ours tries again
    /// at a tick to leave a joint membership, official raft when it applies something.
    may_differ: bool,
}

struct Generator {
    random: Seeded,
    script: Script,
    steps: Vec<Step>,
    /// The runner refused a step, as when the last voter goes; official raft stops there, too.
    is_over: bool,
    may_differ: bool,
}

impl Generator {
    fn run(seed: u64) -> Vec<Step> {
        let mut generator = Self {
            random: Seeded(seed),
            script: Script::default(),
            steps: Vec::new(),
            is_over: false,
            may_differ: false,
        };
        generator.begin();
        for _ in 0..COMMANDS {
            generator.next();
        }
        generator.perform("stabilize", "");
        generator.perform("raft-state", "");
        generator.steps
    }

    fn perform(&mut self, command: &str, input: &str) {
        if self.is_over {
            return;
        }
        let perform = || self.script.perform(command, input);
        let printed = catch_unwind(AssertUnwindSafe(perform));
        self.is_over = printed.is_err();
        let printed = printed.unwrap_or_else(|_| "a panic".to_owned());
        // Official raft would talk for ever, too, and can only be asked about what came before.
        if self.is_over && command.starts_with("stabilize") {
            return;
        }
        let (command, input) = (command.to_owned(), input.to_owned());
        let is_tick = command.starts_with("tick");
        self.may_differ |= self.script.has_sole_voter() || (is_tick && self.script.is_leaving());
        let may_differ = self.may_differ;
        self.steps.push(Step { command, input, printed, may_differ });
    }

    fn begin(&mut self) {
        let voters = 1 + self.random.below(4);
        let ids: Vec<String> = (1..=voters).map(|id| id.to_string()).collect();
        let mut settings = String::new();
        for setting in ["prevote", "checkquorum", "step-down-on-removal"] {
            if self.random.one_in(2) {
                write!(settings, " {setting}=true").unwrap();
            }
        }
        if self.random.one_in(3) {
            write!(settings, " inflight={}", 1 + self.random.below(3)).unwrap();
        }
        let known = format!("voters=({}) index=10{settings}", ids.join(","));
        self.perform(&format!("add-nodes {voters} {known}"), "");
        // Some that the others may add.
        let more = self.random.below(3);
        if 0 < more {
            self.perform(&format!("add-nodes {more}{settings}"), "");
        }
    }

    fn node(&mut self) -> usize {
        let nodes = self.script.nodes().count();
        1 + self.random.index(nodes)
    }

    /// A leader, mostly, if there is one.
    fn leader(&mut self) -> usize {
        let leads = |(_, role): &(usize, Role)| *role == Role::Leader;
        let leader = self.script.nodes().find(leads).map(|(id, _)| id);
        leader.filter(|_| !self.random.one_in(8)).unwrap_or_else(|| self.node())
    }

    fn leads(&self, node: usize) -> bool {
        self.script.nodes().any(|it| it == (node, Role::Leader))
    }

    fn next(&mut self) {
        let node = self.node();
        match self.random.below(40) {
            0..3 => self.perform(&format!("campaign {node}"), ""),
            3..8 => {
                let (leader, number) = (self.leader(), self.steps.len());
                self.perform(&format!("propose {leader} data{number}"), "");
            }
            8..11 => self.change_members(),
            11..19 => self.perform(&format!("process-ready {node}"), ""),
            19..26 => self.perform(&format!("deliver-msgs {node}"), ""),
            26 => self.perform(&format!("deliver-msgs drop=({node})"), ""),
            27..30 => {
                let ticks = if self.random.one_in(2) { "tick-heartbeat" } else { "tick-election" };
                let timeout = 3 + self.random.below(3);
                let set = format!("set-randomized-election-timeout {node} timeout={timeout}");
                self.perform(&set, "");
                self.perform(&format!("{ticks} {node}"), "");
            }
            30 => {
                let (leader, to) = (self.leader(), self.node());
                self.perform(&format!("transfer-leadership from={leader} to={to}"), "");
            }
            31 => {
                let leader = self.leader();
                // Nobody says that of oneself.
                if leader != node {
                    self.perform(&format!("report-unreachable {leader} {node}"), "");
                }
            }
            32 => {
                let leader = self.leader();
                // Nobody else sends snapshots.
                if leader != node && self.leads(leader) {
                    self.perform(&format!("send-snapshot {leader} {node}"), "");
                }
            }
            33 => self.compact(node),
            // Official raft shows this of leaders only.
            34 if self.leads(node) => {
                self.perform(&format!("status {node}"), "");
            }
            35 => self.perform(&format!("raft-log {node}"), ""),
            36 => {
                let other = self.node();
                if other != node {
                    self.perform(&format!("stabilize {node} {other}"), "");
                }
            }
            _ => self.perform("stabilize", ""),
        }
    }

    fn compact(&mut self, node: usize) {
        let (first, applied) = self.script.applied(node);
        if first < applied {
            let index = first + self.random.below(applied - first + 1);
            if first <= index {
                self.perform(&format!("compact {node} {index}"), "");
            }
        }
    }

    fn change_members(&mut self) {
        let leader = self.leader();
        let count = 1 + self.random.below(3);
        let mut changes = Vec::new();
        for _ in 0..count {
            let letter = ["v", "v", "l", "r"][self.random.index(4)];
            changes.push(format!("{letter}{}", self.node()));
        }
        let command = match self.random.below(4) {
            0 => return self.perform(&format!("propose-conf-change {leader}"), ""),
            1 => format!("propose-conf-change {leader} transition=explicit"),
            2 => format!("propose-conf-change {leader} transition=implicit"),
            _ => {
                changes.truncate(1);
                format!("propose-conf-change {leader} v1=true")
            }
        };
        self.perform(&command, &changes.join(" "));
    }
}

fn program() -> Option<PathBuf> {
    let program = std::env::var_os("OXETCD_OFFICIAL_BIN").map(PathBuf::from)?.join("raftscript");
    program.is_file().then_some(program)
}

/// What official raft prints for the steps of each script.
fn official(program: PathBuf, scripts: &[Vec<Step>]) -> Vec<Vec<String>> {
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let mut text = String::new();
    for script in scripts {
        for Step { command, input, .. } in script {
            let gap = if input.is_empty() { "" } else { "\n" };
            write!(text, "{command}\n{input}{gap}\n").unwrap();
        }
        text += "===\n";
    }
    let mut stdin = child.stdin.take().expect("it was asked for");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(text.as_bytes()).expect("it reads everything"));
        child.wait_with_output().expect("it ends")
    });
    let output = String::from_utf8(output.stdout).expect("scripts print text");
    let scripts = output
        .split("===\n")
        .map(|script| script.split("---\n").map(str::to_owned).collect::<Vec<String>>());
    scripts.collect()
}

/// How the prints of a script compare.
enum Verdict {
    Same,
    /// They differ where they may.
    Excused,
    Differs(String),
}

fn compare(seed: u64, steps: &[Step], expected: &[String]) -> Verdict {
    let mut commands = String::new();
    for (step, expected) in steps.iter().zip(expected) {
        let Step { command, input, printed, may_differ } = step;
        writeln!(commands, "{command} {input}").unwrap();
        // What stops official raft says nothing about ours.
        if expected.starts_with("PANIC") {
            return Verdict::Same;
        }
        let (printed, expected) = (normal(printed), normal(expected));
        if printed == expected {
            continue;
        }
        if *may_differ {
            return Verdict::Excused;
        }
        return Verdict::Differs(format!(
            "seed {seed}\n{commands}--- official\n{expected}\n--- ours\n{printed}"
        ));
    }
    Verdict::Same
}

/// Without the sender of forwarded proposals: official raft leaves the first one, ours puts the
/// last one, and nobody looks.
fn normal(output: &str) -> String {
    let mut text = String::new();
    for line in comparable(output).lines() {
        match line.split_once("->") {
            Some((_, rest)) if rest.contains(" MsgProp ") => writeln!(text, "->{rest}").unwrap(),
            _ => writeln!(text, "{line}").unwrap(),
        }
    }
    text
}

#[test]
fn random_scripts_print_what_official_raft_prints() {
    let Some(program) = program() else {
        eprintln!("skipped: OXETCD_OFFICIAL_BIN has no raftscript");
        return;
    };
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    let scripts: Vec<Vec<Step>> = (0..seeds).map(Generator::run).collect();
    let expected = official(program, &scripts);
    let mut failures = Vec::new();
    let mut excused = 0;
    for (seed, (steps, expected)) in (0..).zip(scripts.iter().zip(&expected)) {
        match compare(seed, steps, expected) {
            Verdict::Same => {}
            Verdict::Excused => excused += 1,
            Verdict::Differs(text) => failures.push(text),
        }
    }
    let count = failures.len();
    assert!(failures.is_empty(), "{count} of {seeds} scripts differ\n{}", failures[0]);
    assert!(excused * 20 < seeds, "{excused} of {seeds} scripts differ where they may");
}
