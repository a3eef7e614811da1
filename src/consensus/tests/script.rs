//! The format of etcd raft's scripts: a command, perhaps some input, `----`, and what it prints.
//!
//! The scripts are read from the Go module cache. Without the module there, a test says so and
//! passes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use proto::raftpb::{ConfChangeSingle, ConfChangeType};

const MODULE: &str = "go.etcd.io/raft/v3@v3.7.0";

/// One command of a script and what it must print.
pub(super) struct Step {
    pub(super) line: usize,
    pub(super) command: String,
    pub(super) input: String,
    pub(super) expected: String,
}

/// Where the module keeps the scripts of one kind, if it is there.
pub(super) fn folder(kind: &str) -> Option<PathBuf> {
    let Some(module) = module() else {
        eprintln!("skipped: no Go module cache has {MODULE}");
        return None;
    };
    Some(module.join(kind))
}

fn module() -> Option<PathBuf> {
    let home = || Some(PathBuf::from(std::env::var("HOME").ok()?).join("go/pkg/mod"));
    let caches = [
        std::env::var("GOMODCACHE").ok().map(PathBuf::from),
        std::env::var("GOPATH").ok().map(|path| PathBuf::from(path).join("pkg/mod")),
        home(),
    ];
    let folders = caches.into_iter().flatten().map(|cache| cache.join(MODULE));
    folders.into_iter().find(|folder| folder.is_dir())
}

pub(super) fn names(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub(super) fn parse(text: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = (1..).zip(text.lines()).peekable();
    while let Some((line, command)) = lines.next() {
        if command.is_empty() || command.starts_with('#') {
            continue;
        }
        let mut step = Step {
            line,
            command: command.to_owned(),
            input: String::new(),
            expected: String::new(),
        };
        for (_, line) in lines.by_ref().take_while(|(_, line)| *line != "----") {
            step.input += line;
        }
        while let Some((_, line)) = lines.next_if(|(_, line)| !line.is_empty()) {
            step.expected += &format!("{line}\n");
        }
        steps.push(step);
    }
    steps
}

/// The arguments `key=value`, `key=(value,value)` and plain ones, in order.
pub(super) fn arguments(command: &str) -> Vec<(String, Vec<String>)> {
    let mut arguments = Vec::new();
    let mut rest = command.trim();
    while !rest.is_empty() {
        let mut depth = 0;
        let end = rest.find(|one: char| {
            depth += i32::from(one == '(') - i32::from(one == ')');
            one == ' ' && depth == 0
        });
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        let (key, values) = word.split_once('=').unwrap_or((word, ""));
        let values = values.trim_matches(['(', ')']);
        let values = values.split([',', ' ']).filter(|value| !value.is_empty());
        arguments.push((key.to_owned(), values.map(str::to_owned).collect()));
        rest = after.trim_start();
    }
    arguments
}

/// A change of membership such as `v1`, `l2`, `r3`, `u4`.
pub(super) fn change(text: &str) -> ConfChangeSingle {
    let (kind, id) = text.split_at(1);
    let kind = match kind {
        "v" => ConfChangeType::ConfChangeAddNode,
        "l" => ConfChangeType::ConfChangeAddLearnerNode,
        "r" => ConfChangeType::ConfChangeRemoveNode,
        "u" => ConfChangeType::ConfChangeUpdateNode,
        other => panic!("unknown change {other}"),
    };
    ConfChangeSingle { r#type: Some(kind.into()), node_id: Some(id.parse().unwrap()) }
}
