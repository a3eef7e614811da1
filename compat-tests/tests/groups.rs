//! Clusters of several members: founding, joining, leaving, promotion; official and ours alike.
#![expect(clippy::unwrap_used, reason = "a failed step of a test ends it")]

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
