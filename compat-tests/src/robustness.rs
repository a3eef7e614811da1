//! What etcd's robustness suite needs to run against a server without etcd's failpoints and without
//! TLS between members.
//!
//! Decides two things. The suite asks every member's failpoint listener whether there is one; a
//! listener that names no failpoint leaves it those that work from outside: kill, replacing a
//! member. And its groups of three talk through a proxy that needs TLS between members, so its copy
//! is built without both; what the proxy would do, the partition runs of this crate do with network
//! namespaces. Called by the binary `compat`.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, ensure};
use oxetcd_tools::official;

/// Where the suite looks for failpoints of its first three members.
const FAILPOINT_PORTS: [u16; 3] = [12_381, 22_381, 32_381];

/// What the groups of three are given and this version cannot serve.
const LEFT_OUT: [&str; 2] = ["e2e.WithIsPeerTLS(true)", "e2e.WithPeerProxy(true)"];

/// Builds the suite from the copy of its module in `tests`.
///
/// # Errors
/// If the module is not as it was, or does not build.
pub fn build(tests: &Path) -> anyhow::Result<PathBuf> {
    let scenarios = tests.join("robustness/scenarios/scenarios.go");
    let text = fs::read_to_string(&scenarios)?;
    let (body, regression) =
        text.split_once("func Regression(").context("the suite has other scenarios")?;
    let kept = body.lines().filter(|line| !LEFT_OUT.iter().any(|option| line.contains(option)));
    let kept: Vec<_> = kept.collect();
    ensure!(
        body.lines().count() == kept.len() + LEFT_OUT.len(),
        "the suite's groups of three have other options"
    );
    fs::write(&scenarios, format!("{}\nfunc Regression({regression}", kept.join("\n")))?;

    let go = official::go_module_dir();
    let work = tests.parent().context("the copy lies in a directory")?;
    let modfile = work.join("robustness.mod");
    let replaced = format!("replace go.etcd.io/etcd/tests/v3 => {}\n", tests.display());
    fs::write(&modfile, fs::read_to_string(go.join("go.mod"))? + &replaced)?;
    fs::copy(go.join("go.sum"), work.join("robustness.sum"))?;
    let program = work.join("robustness.test");
    let status = Command::new("go")
        .arg("test")
        .arg(format!("-modfile={}", modfile.display()))
        .args(["-c", "-o"])
        .arg(&program)
        .arg("go.etcd.io/etcd/tests/v3/robustness")
        .current_dir(&go)
        .status()
        .context("cannot run go")?;
    ensure!(status.success(), "the robustness suite does not build");
    Ok(program)
}

/// Says on every failpoint port that there are no failpoints, until the process ends.
///
/// # Errors
/// If a port cannot be had.
pub fn serve_failpoints() -> anyhow::Result<()> {
    let listeners: Vec<_> = FAILPOINT_PORTS
        .iter()
        .map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)))
        .collect::<Result<_, _>>()?;
    thread::scope(|scope| {
        for listener in &listeners {
            scope.spawn(|| listener.incoming().flatten().for_each(answer));
        }
    });
    Ok(())
}

/// One request at a time, without looking at it; whoever asks wants to know that somebody is there.
fn answer(mut stream: TcpStream) {
    let mut request = [0; 4096];
    if stream.read(&mut request).is_ok() {
        let empty = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        // Who does not wait for the answer needs none.
        stream.write_all(empty).ok();
    }
}
