//! First starts in a cluster that go wrong, or come in an odd order; official and ours alike.
#![expect(clippy::unwrap_used, reason = "a failed step of a test ends it")]
#![expect(clippy::disallowed_methods, reason = "servers under test run on real time")]

use std::{fs, thread, time::Duration};

use oxetcd_compat_tests::{
    group::{Group, until},
    server::{Attempt, Kind},
};

const OURS: Kind = Kind::Oxetcd;

/// The reason that a server gives for its end, with everything that differs from run to run taken
/// out; `ids` are those of the members.
fn reason(log: &str, group: &Group, ids: &[u64]) -> String {
    let lines = log.lines().rev().filter_map(|line| serde_json::from_str(line).ok());
    let fatal = lines.filter(|line: &serde_json::Value| line["level"] == "fatal");
    let error = fatal.map(|line| line["error"].as_str().unwrap_or_default().to_owned()).next();
    let mut error = error.unwrap_or_else(|| "no fatal line".to_owned());
    for (number, server) in (1..).zip(group.members()) {
        error = error.replace(&server.peer_url(), &format!("PEER{number}"));
        error = error.replace(&server.endpoint(), &format!("CLIENT{number}"));
    }
    // Which of the others it was compared with last depends on ids, and so on ports.
    error.truncate(error.find(", last resolver error").unwrap_or(error.len()));
    let members = error.find("{ClusterID").map_or(error.len(), |at| at);
    let end = error.rfind("}:").map_or(error.len(), |at| at + 1);
    if members < end {
        error.replace_range(members..end, "CLUSTER");
    }
    let words = error.split(' ').map(|word| {
        let digits = word.trim_matches(|mark: char| !mark.is_ascii_alphanumeric());
        let number = u64::from_str_radix(digits, 16);
        let is_id = number.is_ok_and(|number| ids.contains(&number));
        if is_id { word.replace(digits, "ID") } else { word.to_owned() }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// What a server of this kind says when it must not become a member.
fn refused_starts(kind: Kind) -> Option<Vec<String>> {
    let mut group = Group::start(&[Kind::Official, Kind::Official, kind], &[]).unwrap()?;
    let all: Vec<_> = group.members().iter().map(|server| server.peer_url()).collect();
    let ids = [0, 1, 2].map(|at| group.status(at).unwrap().member);
    let mut seen = Vec::new();
    group.member(2).kill();
    fs::remove_dir_all(group.members()[2].data_dir()).unwrap();
    let own = format!("m3={}", all[2]);
    let whole = format!("m1={},m2={},{own}", all[0], all[1]);
    for (flags, cluster) in [
        // Its data is gone, and the cluster has seen it run.
        (["--initial-cluster-state=new"].as_slice(), whole),
        (&["--initial-cluster-state=existing"], format!("m1={},{own}", all[0])),
        (
            &["--initial-cluster-state=existing"],
            format!("m1={},m2=http://127.0.0.1:1,{own}", all[0]),
        ),
        (&["--initial-cluster-state=existing"], format!("m1=http://127.0.0.1:1,{own}")),
        (&["--initial-cluster-state=existing"], own),
        (&["--initial-cluster-state=existing"], format!("m1={}", all[0])),
    ] {
        group.member(2).set_flags(flags);
        group.member(2).set_group("m3", cluster);
        let Attempt::Ended(ended) = group.member(2).attempt().unwrap() else {
            panic!("{flags:?} started a member");
        };
        seen.push(format!("{:?}: {}", ended.status.code(), reason(&ended.log, &group, &ids)));
        assert!(!group.members()[2].data_dir().join("member/wal").exists(), "nothing is left");
    }
    Some(seen)
}

#[test]
fn starts_that_must_not_make_a_member_are_refused_in_etcd_s_words() {
    let Some(official) = refused_starts(Kind::Official) else { return };
    let ours = refused_starts(OURS).unwrap();
    for (ours, official) in ours.iter().zip(&official) {
        assert_eq!(ours, official, "ours on the left");
    }
}

#[test]
fn a_founder_may_come_late() {
    let Some(mut group) = Group::prepare(&[OURS; 3], &[]).unwrap() else { return };
    let first = group.member(0).launch().unwrap();
    let second = group.member(1).launch().unwrap();
    assert!(first.wait() && second.wait(), "two of three are a quorum");
    group.ctl_at(0, &["put", "a", "1"]).unwrap();
    let version = |group: &Group| group.ask_peer(0, "GET", "/version", b"").unwrap().body;
    let undecided = String::from_utf8(version(&group)).unwrap();
    assert!(undecided.contains(r#""etcdcluster":"3.0.0""#), "one is not known: {undecided}");
    group.resume().unwrap();
    until("all agree on what they can", || {
        Ok(String::from_utf8(version(&group))?.contains(r#""etcdcluster":"3.7.0""#))
    })
    .unwrap();
    assert_eq!(group.ctl_at(2, &["get", "a"]).unwrap(), "a\n1\n");
    group.agree().unwrap();
}

#[test]
fn a_member_that_crashes_while_it_joins_joins_later() {
    let Some(mut group) = Group::start(&[OURS], &["--snapshot-count=50"]).unwrap() else { return };
    for number in 0..200 {
        group.ctl(&["put", &format!("k{number}"), "x"]).unwrap();
    }
    let joining = group.add(OURS, &[]).unwrap();
    for pause in [0, 10, 20, 40, 80, 160, 320] {
        let readiness = group.member(joining).launch().unwrap();
        thread::sleep(Duration::from_millis(pause));
        drop(readiness);
        group.member(joining).kill();
    }
    group.resume().unwrap();
    group.agree().unwrap();
}

/// Forgets all records of a log but those of its making: checksum, ids and an empty snapshot.
fn blank(log: &mut [u8]) {
    let mut at = 0;
    for _ in 0..3 {
        let length = i64::from_le_bytes(log[at..at + 8].try_into().unwrap());
        let padding = if length < 0 { (length >> 56) & 7 } else { 0 };
        at += 8 + usize::try_from((length & ((1 << 56) - 1)) + padding).unwrap();
    }
    log[at..].fill(0);
}

/// Leaves of a founder what official etcd leaves that crashed before its first entries.
fn empty_log(group: &Group) {
    let member = group.members()[0].data_dir().join("member");
    fs::remove_dir_all(member.join("snap/db.lmdb")).unwrap();
    let segment = member.join("wal/0000000000000000-0000000000000000.wal");
    let mut log = fs::read(&segment).unwrap();
    blank(&mut log);
    fs::write(&segment, log).unwrap();
}

#[test]
fn a_founder_that_crashed_before_its_first_entries_founds_again() {
    let Some(mut group) = Group::start(&[OURS], &[]).unwrap() else { return };
    let before = group.status(0).unwrap().member;
    group.member(0).kill();
    empty_log(&group);
    group.resume().unwrap();
    assert_eq!(group.status(0).unwrap().member, before);
    group.ctl(&["put", "a", "1"]).unwrap();
}

#[test]
fn an_empty_log_is_finished_with_the_flags_of_its_first_start_only() {
    let Some(mut group) = Group::prepare(&[OURS], &[]).unwrap() else { return };
    group.resume().unwrap();
    group.member(0).kill();
    empty_log(&group);
    group.member(0).set_flags(&["--initial-cluster-token=other"]);
    let log = group.refused(0).unwrap();
    assert!(log.contains("because the first start of this member ended early"), "{log}");
    group.member(0).set_flags(&["--initial-cluster-state=existing"]);
    let readiness = group.member(0).launch().unwrap();
    until("it waits for a leader", || {
        Ok(fs::read_to_string(group.members()[0].log_path())?.contains("restarting local member"))
    })
    .unwrap();
    assert!(!readiness.is_ready_now(), "whoever joins is told by the leader what to do");
    group.member(0).kill();
    group.member(0).set_flags(&[]);
    group.resume().unwrap();
    group.ctl(&["put", "a", "1"]).unwrap();
}

#[test]
fn founders_that_are_killed_at_any_time_of_their_first_start_found_one_cluster() {
    for members in [1, 3] {
        for pause in [0, 10, 20, 40, 80] {
            let Some(mut group) = Group::prepare(&vec![OURS; members], &[]).unwrap() else {
                return;
            };
            let started: Vec<_> =
                (0..members).map(|member| group.member(member).launch().unwrap()).collect();
            thread::sleep(Duration::from_millis(pause));
            (0..members).for_each(|member| group.member(member).kill());
            drop(started);
            group.resume().unwrap_or_else(|error| panic!("killed after {pause} ms: {error:#}"));
            group.ctl(&["put", "a", "1"]).unwrap();
            group.agree().unwrap();
        }
    }
}

/// A member that waits for others to register is told to end; whether it does.
fn end_while_waiting(kind: Kind) -> Option<()> {
    let flags = ["--discovery-endpoints=127.0.0.1:1", "--discovery-token=t"];
    let mut group = Group::prepare(&[kind], &flags).unwrap()?;
    group.discover();
    drop(group.member(0).launch().unwrap());
    until("it asks for others", || {
        Ok(fs::read_to_string(group.members()[0].log_path())?.contains("discovery service"))
    })
    .unwrap();
    group.member(0).terminate().unwrap();
    Some(())
}

#[test]
fn a_member_that_waits_for_others_ends_when_it_is_told_to() {
    if end_while_waiting(Kind::Official).is_some() {
        end_while_waiting(OURS).unwrap();
    }
}

/// What a server says when it is restarted with fewer learners allowed than there are.
fn restart_with_too_many_learners(kind: Kind) -> Option<String> {
    let mut group = Group::start(&[kind], &[]).unwrap()?;
    let learner = ["member", "add", "l", "--learner", "--peer-urls=http://127.0.0.1:1"];
    group.ctl(&learner).unwrap();
    // The store of either kind is written a moment after the log.
    group.member(0).terminate().unwrap();
    group.member(0).set_flags(&["--max-learners=0"]);
    let log = group.refused(0).unwrap();
    Some(reason(&log, &group, &[]))
}

#[test]
fn a_restart_with_too_many_learners_is_refused_in_etcd_s_words() {
    let Some(official) = restart_with_too_many_learners(Kind::Official) else { return };
    assert_eq!(restart_with_too_many_learners(OURS).unwrap(), official, "ours on the left");
}
