//! Flags and files that must not start a server: exit code, level, message and error as etcd's.
#![expect(clippy::unwrap_used, reason = "a failed step of a test ends it")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use oxetcd_compat_tests::server::oxetcd_program;
use oxetcd_tools::official;
use serde_json::Value;
use tempfile::TempDir;

/// How our refusal compares with that of etcd.
#[derive(Clone, Copy, Debug)]
enum Ours {
    /// In every word.
    Same,
    /// Up to these words; what follows is the library's or the system's.
    SameUntil(&'static str),
    /// A sentence and exit code 1 where etcd panics or speaks otherwise.
    Sentence(&'static str),
}

const FLAGS: [(&[&str], Ours); 34] = [
    (&["--no-such-flag"], Ours::Same),
    (&["stray"], Ours::Same),
    (&["--listen-client-urls=nonsense"], Ours::Same),
    (&["--listen-client-urls=http://127.0.0.1:1/path"], Ours::Same),
    (&["--listen-client-urls=http://127.0.0.1:23790"], Ours::Same),
    (
        &["--listen-client-urls=http://example.com:1", "--advertise-client-urls=http://a:1"],
        Ours::Same,
    ),
    (&["--heartbeat-interval=0"], Ours::Same),
    (&["--heartbeat-interval=x"], Ours::Same),
    (&["--election-timeout=100", "--heartbeat-interval=100"], Ours::Same),
    (&["--election-timeout=60000"], Ours::Same),
    (&["--initial-cluster-state=x"], Ours::Same),
    (&["--auto-compaction-mode=x"], Ours::Same),
    (&["--logger=capnslog"], Ours::Same),
    (&["--log-outputs=stderr,default"], Ours::Same),
    (&["--log-level=loud"], Ours::Sentence("unrecognized level: \"loud\"")),
    (&["--feature-gates=NoSuch=true"], Ours::Same),
    (&["--feature-gates=LeaseCheckpoint=x"], Ours::Same),
    (&["--feature-gates=LeaseCheckpointPersist=true"], Ours::Same),
    (&["--config-file=missing.yml"], Ours::Same),
    (&["--quota-backend-bytes=x"], Ours::Same),
    (&["--max-txn-ops=-1"], Ours::Same),
    (&["--max-wals=-1"], Ours::Same),
    (&["--snapshot-count=x"], Ours::Same),
    (&["--grpc-keepalive-interval=x"], Ours::Same),
    (&["--socket-reuse-port=x"], Ours::Same),
    (&["--enable-pprof=x"], Ours::Same),
    (&["--cors=x y"], Ours::Same),
    (&["--tls-min-version=x"], Ours::Same),
    (&["--compact-hash-check-time=0s"], Ours::Same),
    (&["--discovery-token=x"], Ours::Same),
    (&["--initial-cluster=a=http://127.0.0.1:1", "--discovery-srv=x"], Ours::Same),
    (&["--experimental-initial-corrupt-check=true"], Ours::Same),
    (&["--auto-tls"], Ours::Sentence("--auto-tls is set, but TLS is not available yet")),
    (&["--memory-mlock"], Ours::Sentence("is not available yet")),
];

/// Contradictions that show after the listeners are bound, so with ports of the system's choice.
const BOUND: [(&[&str], Ours); 5] = [
    (&["--initial-cluster=m1=http://127.0.0.1:1"], Ours::Same),
    (&["--name=m1", "--initial-cluster=m1=http://127.0.0.1:1"], Ours::SameUntil("(resolved urls")),
    (&["--auto-compaction-retention=x"], Ours::Same),
    (&["--data-dir=/proc/none"], Ours::Sentence("cannot use /proc/none: No such file")),
    (&["--wal-dir=/proc/none"], Ours::Sentence("cannot use /proc/none")),
];

const FILES: [(&str, Ours); 9] = [
    ("name: [", Ours::SameUntil("yaml: line 1")),
    ("- a\n", Ours::Same),
    ("name: 5\n", Ours::Same),
    ("heartbeat-interval: x\n", Ours::Same),
    ("no-such: 1\nheartbeat-interval: 0\n", Ours::Same),
    ("election-timeout: 60000\n", Ours::Same),
    ("log-outputs: x\n", Ours::Same),
    ("listen-client-urls: nonsense\n", Ours::Same),
    ("client-transport-security: 5\n", Ours::Same),
];

/// How a start ended: the exit code, and the last line if it is of the log, else the first that is
/// not, as before a help text.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    code: Option<i32>,
    text: String,
}

fn refusal(program: &Path, arguments: &[&str], file: Option<&str>) -> Refusal {
    let dir = TempDir::new().unwrap();
    let mut command = Command::new(program);
    command.args(arguments).current_dir(dir.path()).stdin(Stdio::null());
    if let Some(text) = file {
        fs::write(dir.path().join("c.yml"), text).unwrap();
        command.arg("--config-file=c.yml");
    }
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let parse = |line: &str| serde_json::from_str::<Value>(line).ok();
    let last = error.lines().last().and_then(parse);
    let text = match last {
        Some(last) => format!("{} {} {}", last["level"], last["msg"], last["error"]),
        None => error.lines().find(|line| parse(line).is_none()).unwrap_or_default().to_owned(),
    };
    Refusal { code: output.status.code(), text }
}

fn check(arguments: &[&str], file: Option<&str>, expected: Ours) {
    let Some(etcd) = official::program("etcd").unwrap() else { return };
    let ours = refusal(&oxetcd_program("oxetcd").unwrap(), arguments, file);
    let alike = match expected {
        Ours::Sentence(text) => {
            ours.code == Some(1) && ours.text.contains(&text.replace('"', "\\\""))
        }
        Ours::Same => ours == refusal(&etcd, arguments, file),
        Ours::SameUntil(end) => {
            let theirs = refusal(&etcd, arguments, file);
            let before =
                |refusal: &Refusal| refusal.text.split_once(end).map(|(text, _)| text.to_owned());
            ours.code == theirs.code && before(&ours).is_some() && before(&ours) == before(&theirs)
        }
    };
    let theirs = || refusal(&etcd, arguments, file);
    assert!(alike, "{arguments:?} {file:?} {expected:?}\n  ours {ours:?}\n  etcd {:?}", theirs());
}

#[test]
fn bad_flags_are_refused_alike() {
    for (arguments, expected) in FLAGS {
        check(arguments, None, expected);
    }
}

#[test]
fn contradictions_and_unusable_directories_are_refused_alike() {
    let ports =
        ["--listen-client-urls=http://127.0.0.1:0", "--listen-peer-urls=http://127.0.0.1:0"];
    for (arguments, expected) in BOUND {
        let mut words = vec!["--advertise-client-urls=http://127.0.0.1:1", ports[0], ports[1]];
        words.extend(arguments);
        check(&words, None, expected);
    }
}

#[test]
fn bad_configuration_files_are_refused_alike() {
    for (text, expected) in FILES {
        check(&[], Some(text), expected);
    }
}
