//! Clusters of several members: founding, joining, leaving, promotion; official and ours alike.
#![expect(clippy::unwrap_used, reason = "a failed step of a test ends it")]
#![expect(clippy::disallowed_methods, reason = "servers under test run on real time")]

use std::time::{Duration, Instant};

use oxetcd_compat_tests::{
    group::{Group, until},
    server::Kind,
};

const OFFICIAL: Kind = Kind::Official;
const OURS: Kind = Kind::Oxetcd;

/// Founds a group, writes through every member and compares all states.
fn found_and_write(kinds: &[Kind]) {
    let Some(mut group) = Group::start(kinds, &[]).unwrap() else { return };
    for position in 0..kinds.len() {
        group.ctl_at(position, &["put", &format!("from{position}"), "x"]).unwrap();
        let read = group.ctl_at(position, &["get", "from0"]).unwrap();
        assert_eq!(read, "from0\nx\n", "member {position} reads what was written elsewhere");
    }
    group.agree().unwrap();
    let leader = group.leader().unwrap();
    let follower = (leader + 1) % kinds.len();
    let lease = group.ctl_at(follower, &["lease", "grant", "60"]).unwrap();
    let lease = lease.split(' ').nth(1).unwrap();
    let kept = group.ctl_at(follower, &["lease", "keep-alive", "--once", lease]).unwrap();
    assert!(kept.contains("keepalived with TTL(60)"), "a follower asks the leader: {kept}");
    let time = group.ctl_at(follower, &["lease", "timetolive", lease]).unwrap();
    assert!(time.contains("granted with TTL(60s), remaining(5"), "{time}");
    group.member(leader).kill();
    assert_ne!(group.leader().unwrap(), leader, "the killed one leads no more");
    let read = group.ctl_at(follower, &["put", "after", "y"]).unwrap();
    assert_eq!(read, "OK\n", "two of three go on");
    group.resume().unwrap();
    group.agree().unwrap();
}

#[test]
fn three_official_members_are_what_the_checks_expect() {
    found_and_write(&[OFFICIAL, OFFICIAL, OFFICIAL]);
}

#[test]
fn three_members_of_ours_form_a_cluster() {
    found_and_write(&[OURS, OURS, OURS]);
}

/// What a follower logs when it knows that its leader's process has ended.
const LEADER_GONE: &str = "its process has ended";

fn logs(group: &Group, text: &str) -> usize {
    let logs = group.members().iter().map(|one| std::fs::read_to_string(one.log_path()).unwrap());
    logs.filter(|log| log.contains(text)).count()
}

#[test]
fn leader_whose_process_is_gone_is_not_waited_for() {
    let timeout = Duration::from_secs(10);
    let flag = format!("--election-timeout={}", timeout.as_millis());
    let Some(mut group) = Group::start(&[OURS; 3], &[&flag]).unwrap() else { return };
    let leader = group.leader().unwrap();
    group.ctl(&["put", "before", "x"]).unwrap();
    group.member(leader).kill();
    let killed = Instant::now();
    assert_ne!(group.leader().unwrap(), leader);
    // etcd's members wait at least for this.
    assert!(killed.elapsed() < timeout, "elected after {:?}", killed.elapsed());
    assert_eq!(logs(&group, LEADER_GONE), 2, "both followers noticed");
    assert_eq!(group.ctl(&["put", "after", "y"]).unwrap(), "OK\n");
    group.resume().unwrap();
    group.agree().unwrap();
}

#[test]
fn leader_that_stands_still_is_waited_for() {
    let Some(mut group) = Group::start(&[OURS; 3], &[]).unwrap() else { return };
    let leader = group.leader().unwrap();
    group.member(leader).sleep().unwrap();
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    let asleep = group.status(others[0]).unwrap().leader;
    until("another one leads", || Ok(![0, asleep].contains(&group.status(others[0])?.leader)))
        .unwrap();
    assert_eq!(logs(&group, LEADER_GONE), 0, "it might be alive");
    group.member(leader).wake().unwrap();
    group.agree().unwrap();
    assert_eq!(logs(&group, LEADER_GONE), 0);
}

#[test]
fn one_of_ours_among_official_members() {
    found_and_write(&[OFFICIAL, OURS, OFFICIAL]);
}

#[test]
fn one_official_member_among_ours() {
    found_and_write(&[OURS, OFFICIAL, OURS]);
}

/// Grows a cluster of one by a voter and a learner, promotes it, and shrinks the cluster again.
fn grow_and_shrink(first: Kind, joining: Kind) {
    let Some(mut group) = Group::start(&[first], &[]).unwrap() else { return };
    group.ctl(&["put", "a", "1"]).unwrap();
    let second = group.add(joining, &[]).unwrap();
    group.resume().unwrap();
    let third = group.add(joining, &["--learner"]).unwrap();
    group.resume().unwrap();
    until("the learner says so", || Ok(group.status(third)?.is_learner)).unwrap();
    let id = format!("{:x}", group.status(third).unwrap().member);
    until("the learner is promoted by a follower's word", || {
        group.ctl_at(second, &["member", "promote", &id]).map(|_| true)
    })
    .unwrap();
    let twice = group.try_ctl_at(second, &["member", "promote", &id]).unwrap();
    let twice = String::from_utf8(twice.stderr).unwrap();
    assert!(twice.contains("etcdserver: can only promote a learner member"), "{twice}");
    group.ctl_at(third, &["put", "b", "2"]).unwrap();
    group.agree().unwrap();

    until("the member is removed", || group.ctl_at(0, &["member", "remove", &id]).map(|_| true))
        .unwrap();
    until("it ends by itself", || Ok(!group.member(third).is_running())).unwrap();
    group.member(third).kill();
    let log = group.refused(third).unwrap();
    assert!(log.contains("the member has been permanently removed from the cluster"), "{log}");
}

#[test]
fn members_of_ours_join_official_etcd_and_leave() {
    grow_and_shrink(OFFICIAL, OURS);
}

#[test]
fn official_members_join_ours_and_leave() {
    grow_and_shrink(OURS, OFFICIAL);
}

#[test]
fn members_of_ours_join_ours_and_leave() {
    grow_and_shrink(OURS, OURS);
}

#[test]
fn official_members_join_official_etcd_and_leave() {
    grow_and_shrink(OFFICIAL, OFFICIAL);
}

/// What etcdctl says about a refusal, without the names of endpoints and ids.
fn refusal(group: &Group, position: usize, arguments: &[&str]) -> String {
    let output = group.try_ctl_at(position, arguments).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    let error = errors.lines().find(|line| line.starts_with("Error: ")).unwrap_or("no error");
    format!("{arguments:?}: {error}")
}

/// Every refusal of the cluster service that needs a cluster.
fn refusals(kinds: [Kind; 3]) -> Option<Vec<String>> {
    let mut group = Group::start(&kinds, &[]).unwrap()?;
    let mut seen = Vec::new();
    let leader = group.leader().unwrap();
    let (follower, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let taken = format!("--peer-urls={}", group.members()[follower].peer_url());
    let id = |group: &Group, position| format!("{:x}", group.status(position).unwrap().member);
    let (leader_id, follower_id, other_id) =
        (id(&group, leader), id(&group, follower), id(&group, other));
    until("the group counts as healthy", || {
        Ok(!refusal(&group, follower, &["member", "add", "x", &taken]).contains("unhealthy"))
    })
    .unwrap();
    let mut ask = |group: &Group, position: usize, arguments: &[&str]| {
        let told = refusal(group, position, arguments);
        let told = told.replace(&leader_id, "LEADER").replace(&follower_id, "FOLLOWER");
        seen.push(told.replace(&other_id, "OTHER").replace(&taken, "TAKEN"));
    };
    ask(&group, follower, &["member", "add", "x", &taken]);
    ask(&group, follower, &["member", "add", "x", "--peer-urls=http://a:1/path"]);
    ask(&group, leader, &["member", "remove", "1234"]);
    ask(&group, follower, &["member", "promote", "1234"]);
    ask(&group, leader, &["member", "promote", "1234"]);
    ask(&group, follower, &["member", "promote", &leader_id]);
    ask(&group, leader, &["member", "promote", &leader_id]);
    ask(&group, leader, &["member", "update", "1234", "--peer-urls=http://127.0.0.1:1"]);
    ask(&group, leader, &["member", "update", &other_id, &taken]);
    ask(&group, follower, &["downgrade", "enable", "3.5"]);
    ask(&group, leader, &["downgrade", "validate", "x"]);
    // A learner that never started.
    group
        .ctl_at(follower, &["member", "add", "l", "--learner", "--peer-urls=http://127.0.0.1:1"])
        .unwrap();
    let two = ["member", "add", "k", "--learner", "--peer-urls=http://127.0.0.1:2"];
    ask(&group, leader, &two);
    let members: serde_json::Value =
        serde_json::from_str(&group.ctl(&["member", "list", "-w", "json"]).unwrap()).unwrap();
    let learner = members["members"].as_array().unwrap().iter();
    let learner = learner.clone().find(|member| member["isLearner"] == true).unwrap();
    let learner = format!("{:x}", learner["ID"].as_u64().unwrap());
    for (position, arguments) in [
        (leader, ["member", "promote", &learner].as_slice()),
        (follower, &["member", "promote", &learner]),
        (leader, &["move-leader", &learner]),
        (leader, &["move-leader", "1234"]),
    ] {
        seen.push(refusal(&group, position, arguments).replace(&learner, "LEARNER"));
    }
    group.ctl_at(leader, &["member", "remove", &learner]).unwrap();
    // With one of three down, nobody else may go, and no voter may come.
    group.member(other).kill();
    let voter = ["member", "add", "v", "--peer-urls=http://127.0.0.1:3"];
    until("the loss is noticed", || {
        Ok(refusal(&group, leader, &["member", "remove", &follower_id]).contains("unhealthy"))
    })
    .unwrap();
    seen.push(refusal(&group, leader, &voter));
    seen.push(
        refusal(&group, leader, &["member", "remove", &other_id]).replace(&other_id, "OTHER"),
    );
    group.member(follower).kill();
    seen.push(refusal(&group, leader, &["get", "a"]));
    seen.push(refusal(&group, leader, &["member", "list"]));
    Some(seen)
}

#[test]
fn refusals_of_the_cluster_service_are_etcd_s() {
    let Some(official) = refusals([OFFICIAL; 3]) else { return };
    let ours = refusals([OURS; 3]).unwrap();
    assert_eq!(ours, official, "ours on the left");
    assert_eq!(refusals([OURS, OFFICIAL, OURS]).unwrap(), official, "mixed on the left");
}

/// Loses all members but one, and goes on with that one alone.
fn force_new(position: usize, learner: bool) {
    let Some(mut group) = Group::start(&[OURS; 3], &[]).unwrap() else { return };
    let position = if learner {
        let added = group.add(OURS, &["--learner"]).unwrap();
        group.resume().unwrap();
        added
    } else {
        position
    };
    group.ctl_at(0, &["put", "a", "1"]).unwrap();
    // With the next entry every log says that the first one is committed.
    group.ctl_at(0, &["put", "b", "2"]).unwrap();
    group.agree().unwrap();
    let before = group.status(position).unwrap().member;
    for lost in 0..group.members().len() {
        group.member(lost).kill();
    }
    for flags in [["--force-new-cluster"].as_slice(), &[]] {
        group.member(position).set_flags(flags);
        group.member(position).resume().unwrap();
        let list = group.ctl_at(position, &["member", "list"]).unwrap();
        assert_eq!(list.lines().count(), 1, "{list}");
        let status = group.status(position).unwrap();
        assert_eq!((status.member, status.is_learner), (before, false), "it keeps its id");
        assert_eq!(group.ctl_at(position, &["get", "a"]).unwrap(), "a\n1\n");
        group.ctl_at(position, &["put", "b", "2"]).unwrap();
        group.member(position).kill();
    }
}

#[test]
fn a_voter_goes_on_alone() {
    force_new(1, false);
}

#[test]
fn a_learner_goes_on_alone() {
    force_new(0, true);
}

/// The answers of one member to everything but raft's messages, with its own id and times taken
/// out.
fn peer_answers(kind: Kind) -> Option<Vec<String>> {
    let group = Group::start(&[kind], &[]).unwrap()?;
    for key in ["a", "b", "c", "d"] {
        group.ctl(&["put", key, "x"]).unwrap();
    }
    group.ctl(&["compact", "--physical", "3"]).unwrap();
    let lease = group.ctl(&["lease", "grant", "100"]).unwrap();
    let lease = u64::from_str_radix(lease.split(' ').nth(1).unwrap(), 16).unwrap();
    group.ctl(&["put", &format!("--lease={lease:x}"), "leased", "x"]).unwrap();
    let mut keep_alive = vec![0x08];
    prost::encoding::encode_varint(lease, &mut keep_alive);
    let time_to_live = [&[0x0a, u8::try_from(keep_alive.len()).unwrap()], &keep_alive[..]].concat();
    let mut with_keys = [&keep_alive[..], &[0x10, 0x01]].concat();
    with_keys.splice(0..0, [0x0a, u8::try_from(with_keys.len()).unwrap()]);
    let member = group.status(0).unwrap().member;
    let promote = format!("/members/promote/{member}");
    let requests: [(&str, &str, &[u8]); 28] = [
        ("GET", "/members", b""),
        ("POST", "/members", b""),
        ("GET", "/members/", b""),
        ("GET", "/version", b""),
        ("POST", "/version", b""),
        ("GET", "/downgrade/enabled", b""),
        ("POST", "/downgrade/enabled", b""),
        ("POST", "/members/promote/abc", b""),
        ("POST", "/members/promote/12", b""),
        ("GET", "/members/promote/12", b""),
        ("POST", &promote, b""),
        ("GET", "/members/hashkv", br#"{"revision":5}"#),
        ("GET", "/members/hashkv", br#"{"revision":4}"#),
        ("GET", "/members/hashkv", br#"{"revision":3}"#),
        ("GET", "/members/hashkv", br#"{"revision":2}"#),
        ("GET", "/members/hashkv", br#"{"revision":99}"#),
        ("GET", "/members/hashkv", b"x"),
        ("POST", "/members/hashkv", b"{}"),
        ("POST", "/leases", &keep_alive),
        ("POST", "/leases", b"\x08\x05"),
        ("POST", "/leases", b"\xff\xff"),
        ("GET", "/leases", b""),
        ("POST", "/leases/internal", &time_to_live),
        ("POST", "/leases/internal", &with_keys),
        ("POST", "/leases/internal", b"\x0a\x02\x08\x05"),
        ("POST", "/leases/internal", b"\xff\xff"),
        ("GET", "/health", b""),
        ("GET", "/", b""),
    ];
    let mut seen = Vec::new();
    for (method, path, body) in requests {
        let mut answer = group.ask_peer(0, method, path, body).unwrap();
        if answer.content_type == "application/protobuf" {
            // Times and ids differ, even in length; unit tests know the bytes.
            answer.body.truncate(1);
        }
        let body = String::from_utf8_lossy(&answer.body);
        let body = body.replace(&member.to_string(), "MEMBER");
        let body = body.replace(&group.members()[0].peer_url(), "PEER");
        let body = body.replace(&group.members()[0].endpoint(), "CLIENT");
        let path = path.replace(&member.to_string(), "MEMBER");
        seen.push(format!(
            "{method} {path}: {} {} {} cluster {}: {body}",
            answer.status,
            answer.content_type,
            answer.allow,
            !answer.cluster.is_empty(),
        ));
    }
    Some(seen)
}

#[test]
fn answers_on_peer_urls_are_etcd_s() {
    let Some(official) = peer_answers(OFFICIAL) else { return };
    let ours = peer_answers(OURS).unwrap();
    for (ours, official) in ours.iter().zip(&official) {
        assert_eq!(ours, official, "ours on the left");
    }
}

/// Members compare hashes: a restart passes, and so do the checks of the leader.
#[test]
fn sound_members_pass_the_checks_for_corruption() {
    let flags = [
        "--feature-gates=InitialCorruptCheck=true,CompactHashCheck=true",
        "--corrupt-check-time=1s",
        "--compact-hash-check-time=1s",
    ];
    let Some(mut group) = Group::start(&[OURS, OFFICIAL, OURS], &flags).unwrap() else { return };
    for value in ["1", "2", "3"] {
        group.ctl(&["put", "a", value]).unwrap();
    }
    group.ctl(&["compact", "3"]).unwrap();
    group.agree().unwrap();
    group.member(0).kill();
    group.member(0).resume().unwrap();
    let log = std::fs::read_to_string(group.members()[0].log_path()).unwrap();
    assert!(log.contains("initial corruption checking passed; no corruption"), "{log}");
    // Every member has its turn as the leader that compares.
    for position in 0..3 {
        let member = format!("{:x}", group.status(position).unwrap().member);
        let leader = group.leader().unwrap();
        if leader != position {
            group.ctl_at(leader, &["move-leader", &member]).unwrap();
        }
        // Restarts have forgotten the hashes of compactions.
        group.ctl(&["put", "a", "again"]).unwrap();
        let revision = group.status(position).unwrap().revision;
        group.ctl(&["compact", &revision.to_string()]).unwrap();
        let path = group.members()[position].log_path();
        for line in ["finished peer corruption check", "successfully checked hash on whole cluster"]
        {
            until(line, || Ok(std::fs::read_to_string(&path)?.contains(line))).unwrap();
        }
    }
    assert_eq!(group.ctl(&["alarm", "list"]).unwrap(), "", "nobody is suspected");
}

/// A leader that is told to end leaves its lead to another, in the very next term.
#[test]
fn a_leader_hands_over_before_it_ends() {
    for kinds in [[OURS; 3], [OURS, OFFICIAL, OURS]] {
        let Some(mut group) = Group::start(&kinds, &[]).unwrap() else { return };
        let mut leader = group.leader().unwrap();
        if leader == 1 && kinds[1] == OFFICIAL {
            let next = format!("{:x}", group.status(0).unwrap().member);
            group.ctl_at(leader, &["move-leader", &next]).unwrap();
            leader = 0;
        }
        let term = group.status(leader).unwrap().term;
        group.member(leader).terminate().unwrap();
        let status = group.status((leader + 1) % 3).unwrap();
        assert_eq!(status.term, term + 1, "one election, and nobody waited for a timeout");
        assert_ne!(status.leader, 0);
        let log = std::fs::read_to_string(group.members()[leader].log_path()).unwrap();
        assert!(log.contains("leadership transfer finished"), "{log}");
    }
}

/// The members of a new cluster find one another through a running one; who comes late is sent
/// away.
#[test]
fn members_find_one_another_in_a_registry() {
    let Some(registry) = Group::start(&[OFFICIAL], &[]).unwrap() else { return };
    registry.ctl(&["put", "/_etcd/registry/token/_config/size", "3"]).unwrap();
    let endpoint = format!("--discovery-endpoints={}", registry.endpoints());
    let flags = [endpoint.as_str(), "--discovery-token=token"];
    let mut group = Group::prepare(&[OURS, OFFICIAL, OURS, OURS], &flags).unwrap().unwrap();
    group.discover();
    let late = group.forget(3);
    group.resume().unwrap();
    group.ctl_at(0, &["put", "a", "1"]).unwrap();
    group.agree().unwrap();
    let list = group.ctl(&["member", "list"]).unwrap();
    assert_eq!(list.lines().count(), 3, "{list}");
    group.adopt(late);
    let log = group.refused(3).unwrap();
    for line in ["discovery token was already used", "discovery: cluster is full"] {
        assert!(log.contains(line), "{log}");
    }
}

/// A running cluster changes over, member by member, each on its own directory.
#[test]
fn official_members_are_replaced_in_place() {
    let Some(mut group) = Group::start(&[OFFICIAL; 3], &[]).unwrap() else { return };
    for round in 0..20 {
        group.ctl(&["put", &format!("k{round}"), "x"]).unwrap();
    }
    group.ctl(&["compact", "10"]).unwrap();
    let lease = group.ctl(&["lease", "grant", "600"]).unwrap();
    let lease = lease.split(' ').nth(1).unwrap().to_owned();
    group.ctl(&["put", "leased", "x", &format!("--lease={lease}")]).unwrap();
    let before: Vec<_> = (0..3).map(|at| group.status(at).unwrap().member).collect();
    for (position, id) in before.into_iter().enumerate() {
        // Once by a stop, once by a crash.
        if position == 1 {
            group.member(position).kill();
        } else {
            group.member(position).terminate().unwrap();
        }
        let others = (position + 1) % 3;
        until("the others go on", || group.ctl_at(others, &["put", "while", "away"]).map(|_| true))
            .unwrap();
        group.member(position).set_kind(OURS).unwrap();
        group.member(position).resume().unwrap();
        assert_eq!(group.status(position).unwrap().member, id, "the id stays");
        group.ctl_at(position, &["put", "back", &position.to_string()]).unwrap();
        group.agree().unwrap();
    }
    let time = group.ctl(&["lease", "timetolive", &lease, "--keys"]).unwrap();
    assert!(time.contains("granted with TTL(600s)") && time.contains("leased"), "{time}");
}

/// A leader that slept while another one renewed a lease must not end it (etcd issue 15247).
#[test]
fn a_leader_that_slept_ends_no_lease() {
    let Some(mut group) = Group::start(&[OURS; 3], &[]).unwrap() else { return };
    let sleeper = group.leader().unwrap();
    let awake = [(sleeper + 1) % 3, (sleeper + 2) % 3];
    let lease = group.ctl_at(awake[0], &["lease", "grant", "4"]).unwrap();
    let lease = lease.split(' ').nth(1).unwrap().to_owned();
    group.ctl_at(awake[0], &["put", "leased", "x", &format!("--lease={lease}")]).unwrap();
    group.member(sleeper).sleep().unwrap();
    let slept = Instant::now();
    until("the others have a leader", || {
        Ok(awake
            .iter()
            .any(|at| group.status(*at).is_ok_and(|status| status.leader == status.member)))
    })
    .unwrap();
    until("the lease would have ended without renewals", || {
        let kept = group.ctl_at(awake[0], &["lease", "keep-alive", "--once", &lease])?;
        assert!(kept.contains("keepalived"), "{kept}");
        Ok(Duration::from_secs(8) < slept.elapsed())
    })
    .unwrap();
    group.member(sleeper).wake().unwrap();
    let woken = Instant::now();
    until("the sleeper had its chance", || {
        // Asked of the sleeper, too, which must not renew what it does not count any more.
        let kept = group.ctl_at(sleeper, &["lease", "keep-alive", "--once", &lease])?;
        assert!(kept.contains("keepalived"), "{kept}");
        Ok(Duration::from_secs(3) < woken.elapsed())
    })
    .unwrap();
    assert_eq!(group.ctl_at(awake[0], &["get", "leased"]).unwrap(), "leased\nx\n");
    group.agree().unwrap();
}

/// Changes what a stopped official member has stored, as a bad disk would.
fn damage(group: &Group, position: usize, from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let path = group.members()[position].data_dir().join("member/snap/db");
    let mut file = std::fs::read(&path).unwrap();
    let mut count = 0;
    for at in 0..file.len() - from.len() {
        if &file[at..at + from.len()] == from {
            file[at..at + from.len()].copy_from_slice(to);
            count += 1;
        }
    }
    assert!(0 < count, "the value is in the file");
    std::fs::write(&path, file).unwrap();
}

#[test]
fn a_member_with_other_data_is_found_out() {
    let flags = ["--corrupt-check-time=1s", "--feature-gates=InitialCorruptCheck=true"];
    let Some(mut group) = Group::start(&[OURS, OURS, OFFICIAL], &flags[..1]).unwrap() else {
        return;
    };
    group.ctl(&["put", "a", "sound-sound-sound"]).unwrap();
    group.agree().unwrap();
    let suspect = format!("{}", group.status(2).unwrap().member);
    group.member(2).terminate().unwrap();
    damage(&group, 2, b"sound-sound-sound", b"sound-found-sound");
    if group.leader().unwrap() == 2 {
        panic!("a stopped member leads");
    }
    group.member(2).resume().unwrap();
    until("the alarm is raised", || Ok(group.ctl_at(0, &["alarm", "list"])?.contains(&suspect)))
        .unwrap();
    let told = refusal(&group, 0, &["put", "b", "x"]);
    assert!(told.contains("etcdserver: corrupt cluster"), "{told}");
    // A member that compares before it starts finds the difference as well, and cannot know whose
    // data are right.
    group.member(0).terminate().unwrap();
    group.member(0).set_flags(&flags);
    let log = group.refused(0).unwrap();
    assert!(log.contains("found data inconsistency with peers"), "{log}");
}

/// Brings a cluster down by a version, as far as that goes without other servers, and back up.
fn down_and_up(kinds: [Kind; 3]) {
    let Some(mut group) = Group::start(&kinds, &["--downgrade-check-time=1s"]).unwrap() else {
        return;
    };
    let versions = |group: &Group, cluster: &str| {
        let wanted =
            format!(r#"{{"etcdserver":"3.7.1","etcdcluster":"{cluster}","storage":"{cluster}"}}"#);
        until("all members have the version", || {
            for position in 0..3 {
                let told = group.ask_peer(position, "GET", "/version", b"")?.body;
                if told != wanted.as_bytes() {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .unwrap_or_else(|error| panic!("{cluster}: {error:#}"));
    };
    versions(&group, "3.7.0");
    group.ctl(&["downgrade", "enable", "3.6"]).unwrap();
    let enabled = group.ask_peer(2, "GET", "/downgrade/enabled", b"").unwrap();
    assert_eq!(enabled.body, b"true");
    versions(&group, "3.6.0");
    let log = std::fs::read_to_string(group.members()[1].log_path()).unwrap();
    assert!(log.contains("The server is ready to downgrade"), "{log}");
    group.ctl(&["put", "while", "down"]).unwrap();
    // A restart keeps what was agreed on.
    group.member(0).terminate().unwrap();
    group.member(0).resume().unwrap();
    versions(&group, "3.6.0");
    group.ctl(&["downgrade", "cancel"]).unwrap();
    versions(&group, "3.7.0");
    group.agree().unwrap();
}

#[test]
fn ours_go_down_a_version_and_up_again() {
    down_and_up([OURS; 3]);
}

#[test]
fn official_members_go_down_a_version_and_up_again() {
    down_and_up([OFFICIAL; 3]);
}

#[test]
fn both_kinds_go_down_a_version_and_up_again() {
    down_and_up([OURS, OFFICIAL, OURS]);
}

/// What the last of three members says while the two others are gone, and what it does when one is
/// back.
fn without_a_quorum(kind: Kind) -> Option<Vec<String>> {
    let mut group = Group::start(&[kind; 3], &[]).unwrap()?;
    group.ctl_at(0, &["put", "before", "x"]).unwrap();
    group.agree().unwrap();
    let leader = group.leader().unwrap();
    group.member((leader + 1) % 3).kill();
    group.member((leader + 2) % 3).kill();
    until("nobody leads", || Ok(group.status(leader)?.leader == 0)).unwrap();
    let mut answers = Vec::new();
    for request in [
        &["put", "during", "y"][..],
        &["get", "before"],
        &["lease", "grant", "60"],
        &["member", "add", "new", "--peer-urls=http://127.0.0.1:1"],
    ] {
        let patient = [&["--command-timeout=9s"], request].concat();
        let output = group.try_ctl_at(leader, &patient).unwrap();
        assert!(!output.status.success(), "{request:?} was answered without a quorum");
        let errors = String::from_utf8_lossy(&output.stderr);
        // The client tries again until its own time is up; what it prints then tells nothing.
        let first = errors.split("\"attempt\":0,\"error\":\"").nth(1).unwrap();
        answers.push(first.split('"').next().unwrap().to_owned());
    }
    let read = group.ctl_at(leader, &["get", "--consistency=s", "before"]).unwrap();
    assert_eq!(read, "before\nx\n", "reads of its own state go on");
    group.member((leader + 1) % 3).resume().unwrap();
    group.leader().unwrap();
    group.ctl_at(leader, &["put", "after", "z"]).unwrap();
    assert_eq!(group.ctl_at(leader, &["get", "before"]).unwrap(), "before\nx\n");
    group.member((leader + 2) % 3).resume().unwrap();
    group.agree().unwrap();
    Some(answers)
}

#[test]
fn without_a_quorum_nothing_is_written_and_etcd_s_errors_say_so() {
    let Some(official) = without_a_quorum(OFFICIAL) else { return };
    assert_eq!(without_a_quorum(OURS), Some(official));
}
