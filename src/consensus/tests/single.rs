//! One voter alone: the shortest way through the whole contract.

use bytes::Bytes;
use proto::raftpb::ConfState;

use crate::{
    consensus::{Config, Raft, RaftState, Ready, Role},
    model::{LogIndex, MemberId, Term, entry_data},
};

fn single() -> Raft {
    let state = RaftState {
        conf_state: ConfState { voters: vec![1], ..ConfState::default() },
        ..RaftState::default()
    };
    Raft::new(Config::new(MemberId(1)), state, Box::new(|_| 0)).unwrap()
}

/// Takes what is ready and reports it as durable and applied.
fn finish(raft: &mut Raft) -> Vec<Ready> {
    let mut all = Vec::new();
    while let Some(ready) = raft.ready() {
        if let Some(batch) = &ready.batch {
            raft.persisted(batch.number);
        }
        if let Some(last) = ready.committed.last() {
            raft.applied(LogIndex(last.index.unwrap()));
        }
        all.push(ready);
    }
    all
}

#[test]
fn a_single_voter_elects_itself_after_an_election_timeout() {
    let mut raft = single();
    for _ in 0..9 {
        raft.tick();
    }
    finish(&mut raft);
    assert_eq!(raft.role(), Role::Follower);
    raft.tick();
    finish(&mut raft);
    assert_eq!(raft.role(), Role::Leader);
    assert_eq!(raft.term(), Term(1));
    assert_eq!(raft.committed_index(), LogIndex(1));
    assert_eq!(raft.applied_index(), LogIndex(1));
}

#[test]
fn a_single_voter_commits_only_what_is_durable() {
    let mut raft = single();
    raft.campaign();
    finish(&mut raft);
    raft.propose(vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")]).unwrap();
    let ready = raft.ready().unwrap();
    assert!(ready.committed.is_empty());
    let batch = ready.batch.unwrap();
    assert!(batch.must_sync);
    assert_eq!(batch.entries.len(), 2);
    assert!(raft.ready().is_none());

    raft.persisted(batch.number);
    let ready = raft.ready().unwrap();
    let payloads: Vec<Bytes> = ready.committed.iter().map(entry_data).collect();
    assert_eq!(payloads, ["a", "b"]);
    assert!(ready.batch.is_none(), "the commit index waits for a tick");
    raft.applied(LogIndex(3));

    raft.tick();
    let batch = raft.ready().unwrap().batch.unwrap();
    assert!(!batch.must_sync);
    assert_eq!(batch.hard_state.unwrap().commit, Some(3));
}

#[test]
fn a_single_voter_answers_a_read_only_after_its_first_commit() {
    let mut raft = single();
    raft.campaign();
    while raft.role() != Role::Leader {
        let batch = raft.ready().unwrap().batch.unwrap();
        raft.persisted(batch.number);
    }
    raft.read_index(Bytes::from_static(b"read"));
    let ready = raft.ready().unwrap();
    assert!(ready.read_states.is_empty());
    raft.persisted(ready.batch.unwrap().number);
    let states = raft.ready().unwrap().read_states;
    assert_eq!(states.len(), 1);
    assert_eq!(states[0].index, LogIndex(1));
}
