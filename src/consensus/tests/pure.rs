//! etcd raft's scripts for changes of membership and for quorums, read from its Go module.
//!
//! The membership and every progress must come out the same; a refusal must be one, whatever its
//! words. Of the quorum scripts only the result is compared, not the drawing.

use std::{collections::BTreeMap, fs};

use proto::raftpb::ConfChangeSingle;

use super::script::{self, Step};
use crate::{
    consensus::{
        membership::Members,
        quorum::{VoteResult, Voters},
    },
    model::{LogIndex, MemberId},
};

fn each(kind: &str, mut run: impl FnMut(&str, Vec<Step>)) {
    let Some(folder) = script::folder(kind) else { return };
    let names = script::names(&folder);
    assert!(!names.is_empty(), "{kind} has no scripts");
    for name in names {
        let text = fs::read_to_string(folder.join(&name)).unwrap();
        run(&name, script::parse(&text));
    }
}

#[test]
fn memberships_change_as_in_etcd() {
    each("confchange/testdata", |name, steps| {
        let mut members = Members::new(10);
        for (last, step) in (0..).zip(steps) {
            let changes: Vec<ConfChangeSingle> =
                step.input.split_whitespace().map(script::change).collect();
            let auto_leave = step.command.ends_with("autoleave=true");
            let last = LogIndex(last);
            let changed = match step.command.split(' ').next().unwrap() {
                "simple" => members.simple(&changes, last),
                "enter-joint" => members.enter_joint(auto_leave, &changes, last),
                "leave-joint" => members.leave_joint(),
                other => panic!("unknown command {other}"),
            };
            let is_refused = !step.expected.starts_with("voters=");
            let Ok(changed) = changed else {
                assert!(is_refused, "{name}:{} was refused: {}", step.line, step.expected);
                continue;
            };
            let progress = changed.progress.iter().map(|(id, it)| format!("{}: {it}\n", id.0));
            let printed = format!("{}\n{}", changed.membership, progress.collect::<String>());
            assert_eq!(printed, step.expected, "{name}:{}", step.line);
            members = changed;
        }
    });
}

#[test]
fn quorums_decide_as_in_etcd() {
    each("quorum/testdata", |name, steps| {
        for step in steps {
            if step.expected.starts_with("error") {
                continue;
            }
            let result = decide(&step.command);
            let expected = step.expected.lines().last().unwrap();
            let expected = expected.trim_start_matches("<empty majority quorum>");
            assert_eq!(result, expected, "{name}:{}: {}", step.line, step.command);
        }
    });
}

fn decide(command: &str) -> String {
    let arguments = script::arguments(command);
    let of = |key: &str| {
        let found = arguments.iter().find(|(name, _)| name == key);
        found.map(|(_, values)| values.clone()).unwrap_or_default()
    };
    let ids = |key: &str| -> Vec<MemberId> {
        of(key).iter().filter_map(|id| id.parse().ok()).map(MemberId).collect()
    };
    let voters = Voters {
        incoming: ids("cfg").into_iter().collect(),
        outgoing: ids("cfgj").into_iter().collect(),
    };
    // Values are given for each voter once, in the order in which it first comes.
    let mut values = [of("idx"), of("votes")].concat().into_iter();
    let mut given = BTreeMap::new();
    for id in ids("cfg").into_iter().chain(ids("cfgj")) {
        given.entry(id).or_insert_with(|| values.next().unwrap());
    }
    if command.starts_with("vote") {
        let vote = |id| match given[&id].as_str() {
            "y" => Some(true),
            "n" => Some(false),
            _ => None,
        };
        return match voters.result(vote) {
            VoteResult::Pending => "VotePending",
            VoteResult::Lost => "VoteLost",
            VoteResult::Won => "VoteWon",
        }
        .to_owned();
    }
    match voters.reached(|id| given[&id].parse().ok()) {
        u64::MAX => "\u{221e}".to_owned(),
        index => index.to_string(),
    }
}
