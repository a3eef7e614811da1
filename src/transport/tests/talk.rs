//! Messages and snapshots between members.

use std::io;

use bytes::Bytes;
use proto::raftpb::{Entry, Message, MessageType, Snapshot, SnapshotMetadata};
use tokio::sync::mpsc;

use super::fake::{CLUSTER, Member, eventually, group};
use crate::{
    consensus::SnapshotReport,
    model::MemberId,
    transport::{SnapshotBody, SnapshotReceiver, metrics},
};

/// Waits until `one` can send to `other` over both streams.
#[track_caller]
fn wait_for_streams(one: &Member, other: &Member) {
    eventually("a connection", || one.transport.active_since(other.id).is_some());
    assert!(one.transport.active_since(other.id).is_some());
}

#[test]
fn three_members_exchange_messages() {
    let members = group::<3>();
    let mut number = 0;
    for round in 0..3 {
        for one in &members {
            for other in members.iter().filter(|other| other.id != one.id) {
                for kind in [MessageType::MsgApp, MessageType::MsgHeartbeat] {
                    number += 1;
                    one.send(other.id, kind, number);
                    let message = other.expect(number);
                    assert_eq!(message.r#type(), kind, "in round {round}");
                    assert_eq!(message.from(), one.id.0);
                }
                wait_for_streams(one, other);
            }
        }
    }
}

#[test]
fn end_of_a_peer_is_noticed_once() {
    let [one, mut two] = group::<2>();
    for member in [&one, &two] {
        wait_for_streams(member, if member.id == one.id { &two } else { &one });
    }
    // Over the stream: while it is missing, messages go another way.
    two.send(one.id, MessageType::MsgHeartbeat, 1);
    one.expect(1);
    assert!(one.ears.until("its ears", |heard| Some(heard.gone.clone())).is_empty());
    two.stop();
    one.ears.until("the end", |heard| (heard.gone == [two.id]).then_some(()));
    let back = Member::start_at(2, two.address, CLUSTER);
    back.know(&one);
    back.send(one.id, MessageType::MsgHeartbeat, 2);
    one.expect(2);
    assert_eq!(one.ears.until("its ears", |heard| Some(heard.gone.clone())), [two.id]);
}

#[test]
fn appends_that_go_on_arrive_whole_and_in_order() {
    let [one, two] = group::<2>();
    wait_for_streams(&one, &two);
    one.send(two.id, MessageType::MsgHeartbeat, 1_000_000);
    two.expect(1_000_000);
    let mut batch = Vec::new();
    for index in 0..5_000 {
        let entry = Entry {
            term: Some(1),
            index: Some(index + 1),
            r#type: Some(0),
            data: Some(Bytes::from(vec![7; usize::try_from(index % 500).expect("small")])),
        };
        let append = one.message(two.id, MessageType::MsgApp, index);
        batch.push(Message {
            log_term: Some(1),
            commit: Some(index),
            entries: vec![entry],
            ..append
        });
        if batch.len() == 50 {
            one.transport.send(std::mem::take(&mut batch));
            two.expect(index);
        }
    }
    two.ears.until("all appends", |heard| {
        let appends: Vec<_> = heard.messages.iter().filter(|one| !one.entries.is_empty()).collect();
        (appends.len() == 5_000).then(|| {
            for (index, append) in appends.iter().enumerate() {
                assert_eq!(append.index(), index as u64);
                assert_eq!(append.entries[0].index(), index as u64 + 1);
                assert_eq!(append.entries[0].data.as_ref().map_or(0, Bytes::len), index % 500);
            }
        })
    });
}

fn snapshot(from: &Member, to: MemberId, index: u64) -> Message {
    let metadata =
        SnapshotMetadata { index: Some(index), term: Some(1), ..SnapshotMetadata::default() };
    Message {
        snapshot: Some(Snapshot { metadata: Some(metadata), data: None }),
        ..from.message(to, MessageType::MsgSnap, index)
    }
}

fn parts(parts: Vec<io::Result<Bytes>>) -> SnapshotReceiver {
    let (sender, receiver) = mpsc::channel(parts.len());
    for part in parts {
        sender.try_send(part).expect("there is room");
    }
    receiver
}

fn report(from: &Member) -> SnapshotReport {
    from.ears.until("a report", |heard| heard.snapshots.pop()).1
}

fn files(of: &Member) -> Vec<String> {
    let names = std::fs::read_dir(of.ears.directory.path()).expect("a directory");
    names.map(|entry| entry.expect("a file").file_name().into_string().expect("a name")).collect()
}

#[test]
fn a_snapshot_arrives_whole_before_its_message() {
    let [one, two] = group::<2>();
    let measured = || {
        [&metrics::SNAP_DB_SAVE_SECONDS, &metrics::SNAP_DB_FSYNC_SECONDS]
            .map(|it| it.get_sample_count())
    };
    let before = measured();
    let database: Vec<Bytes> =
        (0..100_u8).map(|number| Bytes::from(vec![number; 50_000])).collect();
    let body = SnapshotBody {
        bytes_total: 5_000_000,
        parts: parts(database.iter().cloned().map(Ok).collect()),
    };
    one.transport.send_snapshot(snapshot(&one, two.id, 77), body);
    let message = two.expect(77);
    assert_eq!(message.r#type(), MessageType::MsgSnap);
    let file = two.ears.directory.path().join("000000000000004d.snap.db");
    let saved = std::fs::read(file).expect("a file");
    assert_eq!(saved, database.concat(), "the file differs");
    let after = measured();
    assert!(before[0] < after[0] && before[1] < after[1], "{before:?}, then {after:?}");
    assert_eq!(report(&one), SnapshotReport::Sent);
    assert_eq!(files(&two).len(), 1);
}

#[test]
fn a_broken_snapshot_leaves_nothing_behind() {
    let [one, two] = group::<2>();
    let broken = [
        (2_000, parts(vec![Ok(Bytes::from(vec![1; 1_000])), Err(io::Error::other("disk"))])),
        (2_000, parts(vec![Ok(Bytes::from(vec![1; 1_000]))])),
        (500, parts(vec![Ok(Bytes::from(vec![1; 1_000]))])),
    ];
    for (bytes_total, parts) in broken {
        let body = SnapshotBody { bytes_total, parts };
        one.transport.send_snapshot(snapshot(&one, two.id, 5), body);
        assert_eq!(report(&one), SnapshotReport::Failed);
        eventually("an empty directory", || files(&two).is_empty());
    }
    assert!(two.ears.until("a look", |heard| Some(heard.messages.is_empty())));
}

#[test]
fn a_snapshot_to_nobody_fails() {
    let one = Member::start(1);
    eventually("the service", || {
        let body = SnapshotBody { bytes_total: 0, parts: parts(vec![Ok(Bytes::new())]) };
        one.transport.send_snapshot(snapshot(&one, MemberId(9), 5), body);
        one.ears.until("a look", |heard| Some(heard.snapshots.pop())).is_some()
    });
}

#[test]
fn a_member_that_comes_back_is_reached_again() {
    let [one, mut two] = group::<2>();
    one.send(two.id, MessageType::MsgHeartbeat, 1);
    two.expect(1);
    wait_for_streams(&one, &two);
    two.stop();
    eventually("a lost connection", || one.transport.active_since(two.id).is_none());
    one.send(two.id, MessageType::MsgHeartbeat, 2);
    one.ears.until("a report", |heard| heard.unreachable.take(&two.id));
    let again = Member::start_at(2, two.address, CLUSTER);
    again.know(&one);
    eventually("a new connection", || one.transport.active_since(two.id).is_some());
    one.send(two.id, MessageType::MsgHeartbeat, 3);
    again.expect(3);
}
