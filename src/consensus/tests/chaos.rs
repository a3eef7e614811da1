//! Seeded runs of a group under crashes, partitions, lost, doubled and reordered messages, and
//! changes of membership; then a quiet time in which it must get going again.
//!
//! `OXETCD_SEED` runs one seed, `OXETCD_SEEDS` that many.

use proto::raftpb::{
    ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2,
};

use super::{cluster::Cluster, run_seeds};
use crate::{
    consensus::{ApplyWhen, CommitWrites, Config, SnapshotReport},
    model::MemberId,
};

const ACTIONS: usize = 6_000;
const SEEDS: u64 = 24;

/// What happens to the group in a run.
#[derive(Clone, Copy, Debug)]
struct Weather {
    crashes: bool,
    partitions: bool,
    membership: bool,
}

fn run(name: &str, config: fn(MemberId) -> Config, weather: Weather) {
    let seen = run_seeds(name, SEEDS, |seed| {
        let cluster = run_seed(seed, config, weather);
        (cluster.reads_answered, cluster.snapshots_installed)
    });
    let reads: usize = seen.iter().map(|(reads, _)| reads).sum();
    let snapshots: usize = seen.iter().map(|(_, snapshots)| snapshots).sum();
    let is_vacuous = reads == 0 || snapshots == 0;
    assert!(seen.len() < 10 || !is_vacuous, "{name}: {reads} reads, {snapshots} snapshots");
}

fn run_seed(seed: u64, config: fn(MemberId) -> Config, weather: Weather) -> Cluster {
    let mut cluster = Cluster::new(seed, 3, if weather.membership { 5 } else { 3 }, config);
    let mut cut: Option<u64> = None;
    for step in 0..ACTIONS {
        let ids: Vec<u64> = cluster.members.keys().copied().collect();
        let id = ids[cluster.random.index(ids.len())];
        match cluster.random.below(1000) {
            0..60 => cluster.tick(id),
            60..350 => cluster.deliver(|from, to| (Some(from) == cut) != (Some(to) == cut)),
            350..600 => cluster.take_ready(id),
            600..750 => cluster.sync(id),
            750..880 => cluster.apply(id),
            880..920 => {
                cluster.propose(id);
            }
            920..940 => cluster.read(id),
            940..950 => cluster.checkpoint(id),
            950..960 => cluster.snapshot(id),
            960..965 => hand_over(&mut cluster, id),
            965..970 if weather.partitions => {
                cut = if cut.is_some() { None } else { Some(id) };
            }
            970..978 if weather.crashes => cluster.crash(id),
            978..990 => cluster.start(id),
            990..996 if weather.membership => change_membership(&mut cluster, id),
            996..1000 => report(&mut cluster, id),
            _ => {}
        }
        if step % 50 == 0 {
            cluster.check_logs();
        }
    }
    settle(&mut cluster);
    cluster
}

fn hand_over(cluster: &mut Cluster, to: u64) {
    let Some(leader) = cluster.leader() else { return };
    let member = cluster.members.get_mut(&leader).unwrap();
    member.raft.as_mut().unwrap().transfer_leader(MemberId(to));
}

fn report(cluster: &mut Cluster, about: u64) {
    let Some(leader) = cluster.leader() else { return };
    match cluster.random.below(3) {
        0 => report_snapshot(cluster, leader, about, SnapshotReport::Failed),
        1 => report_snapshot(cluster, leader, about, SnapshotReport::Sent),
        _ => {
            let raft = cluster.members.get_mut(&leader).unwrap().raft.as_mut().unwrap();
            raft.report_unreachable(MemberId(about));
        }
    }
}

fn report_snapshot(cluster: &mut Cluster, id: u64, about: u64, report: SnapshotReport) {
    if let Some(raft) = cluster.members.get_mut(&id).unwrap().raft.as_mut() {
        raft.report_snapshot(MemberId(about), report);
    }
}

fn change_membership(cluster: &mut Cluster, about: u64) {
    let Some(leader) = cluster.leader() else { return };
    let kind = match cluster.random.below(4) {
        0 | 1 => ConfChangeType::ConfChangeAddNode,
        2 => ConfChangeType::ConfChangeAddLearnerNode,
        _ => ConfChangeType::ConfChangeRemoveNode,
    };
    let other = 1 + cluster.random.below(5);
    let style = cluster.random.below(4);
    let raft = cluster.members.get_mut(&leader).unwrap().raft.as_mut().unwrap();
    // Of two voters, the one that stays may need the vote of the one that went, if that was the
    // leader and has the longer log. Nobody can mend that but the operator.
    let voters = raft.conf_state().voters.len();
    if voters <= 2 && kind != ConfChangeType::ConfChangeAddNode {
        return;
    }
    let single = |kind: ConfChangeType, id| ConfChangeSingle {
        r#type: Some(kind.into()),
        node_id: Some(id),
    };
    // A refused proposal is part of the weather.
    let taken = match style {
        0 => raft.propose_conf_change_v2(&ConfChangeV2 {
            transition: Some(ConfChangeTransition::JointImplicit.into()),
            changes: vec![single(kind, about), single(ConfChangeType::ConfChangeAddNode, other)],
            context: None,
        }),
        _ => raft.propose_conf_change(&ConfChange {
            r#type: Some(kind.into()),
            node_id: Some(about),
            ..ConfChange::default()
        }),
    };
    taken.ok();
}

/// Without further trouble the group elects a leader, commits, and everybody catches up.
fn settle(cluster: &mut Cluster) {
    let ids: Vec<u64> = cluster.members.keys().copied().collect();
    for id in &ids {
        cluster.start(*id);
        // Whoever carries a snapshot says what became of it, in the end.
        for about in &ids {
            report_snapshot(cluster, *id, *about, SnapshotReport::Failed);
        }
    }
    let mut proposed_at = None;
    for round in 0..2_000u64 {
        for id in &ids {
            if cluster.members[id].raft.is_some() {
                cluster.tick(*id);
                work(cluster, *id);
            }
        }
        for message in std::mem::take(&mut cluster.network) {
            let sent = message.snapshot.is_some().then_some((message.from, message.to));
            cluster.receive(message);
            if let Some((from, to)) = sent {
                report_snapshot(cluster, from.unwrap(), to.unwrap(), SnapshotReport::Sent);
            }
        }
        cluster.check_logs();
        // The server of a removed leader stops it, after a while.
        if let Some(leader) = cluster.leader()
            && 50 <= round
            && cluster.members[&leader].raft.as_ref().unwrap().is_removed()
        {
            cluster.crash(leader);
        }
        if proposed_at.is_none() && 100 <= round && is_settled(cluster) {
            let leader = cluster.leader().unwrap();
            if cluster.propose(leader).is_some() {
                cluster.read(leader);
                proposed_at = Some(cluster.members[&leader].machine.applied);
            }
        }
        if let Some(before) = proposed_at
            && let Some(leader) = cluster.leader()
            && before < cluster.members[&leader].machine.applied
            && is_settled(cluster)
        {
            return;
        }
    }
    panic!("the group did not settle:\n{}", cluster.describe());
}

fn work(cluster: &mut Cluster, id: u64) {
    while cluster.members[&id].raft.as_ref().unwrap().has_ready() {
        cluster.take_ready(id);
        cluster.sync(id);
        cluster.apply(id);
    }
    for _ in 0..10 {
        cluster.sync(id);
        cluster.apply(id);
    }
}

/// There is a leader, and every member it knows has applied the same.
fn is_settled(cluster: &Cluster) -> bool {
    let Some(leader) = cluster.leader() else { return false };
    let machine = &cluster.members[&leader].machine;
    let raft = cluster.members[&leader].raft.as_ref().unwrap();
    let followers = raft.progress().map(|(id, _)| &cluster.members[&id.0].machine);
    raft.last_index() == machine.applied
        && machine.conf_state.voters_outgoing.is_empty()
        && followers.into_iter().all(|other| other == machine)
}

fn etcd_like(id: MemberId) -> Config {
    Config { append_bytes_max: 200, appends_in_flight_max: 4, ..Config::new(id) }
}

fn plain(id: MemberId) -> Config {
    Config {
        pre_vote: false,
        check_quorum: false,
        apply_when: ApplyWhen::Committed,
        commit_writes: CommitWrites::AtOnce,
        applying_bytes_max: 100,
        ..etcd_like(id)
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let weather = Weather { crashes: true, partitions: true, membership: true };
    let run = || run_seed(7, etcd_like, weather).trace;
    assert_eq!(run(), run());
}

#[test]
fn a_group_survives_crashes_and_partitions() {
    let weather = Weather { crashes: true, partitions: true, membership: false };
    run("etcd's settings", etcd_like, weather);
}

#[test]
fn a_group_without_pre_vote_and_quorum_checks_survives_crashes_and_partitions() {
    let weather = Weather { crashes: true, partitions: true, membership: false };
    run("plain settings", plain, weather);
}

#[test]
fn a_group_changes_its_members_under_crashes_and_partitions() {
    let weather = Weather { crashes: true, partitions: true, membership: true };
    run("etcd's settings with changes of membership", etcd_like, weather);
}
