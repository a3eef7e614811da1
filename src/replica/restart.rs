//! Where a member goes on after a restart: the log and the state that it left.
//!
//! Decides which part of the log completes the state, and what raft is told of both. Called by
//! `boot` while nothing runs.
//!
//! Invariants
//! - O1 The state's position lies within the log: not before its start, not after its end.

use std::{error::Error, fmt};

use crate::{
    consensus::RaftState,
    model::{LogIndex, entry_index},
    state::RecoveredAt,
    storage::wal::{Recovered, Wal, WalError, WalOptions, WalSnapshot},
};

/// The state is outside of the log (O1): one of the two is not this member's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutsideLog {
    /// The last entry that the state holds.
    pub state: LogIndex,
    /// The position from which the log was read.
    pub first: LogIndex,
    /// The last entry in it.
    pub last: LogIndex,
}

impl fmt::Display for OutsideLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { state, first, last } = self;
        write!(
            f,
            "the database holds entries up to {state}, but the log holds entries {first} to {last}: \
             one of the two directories is not this member's, or was emptied; bring back the \
             directory that belongs to it, or restore the member from a backup"
        )
    }
}

impl Error for OutsideLog {}

/// Opens the log of a member that has run before, from the newest snapshot that the state at
/// `position` holds: of the whole log's `newest`, or an older one.
///
/// # Errors
/// As [`Wal::newest_snapshot`] and [`Wal::open`].
pub fn open_log(
    options: &WalOptions,
    newest: WalSnapshot,
    position: LogIndex,
) -> Result<(Wal, Recovered), WalError> {
    let from = if newest.index <= position {
        newest
    } else {
        Wal::newest_snapshot(options, position)?.unwrap_or_default()
    };
    Wal::open(options, &from)
}

/// What raft goes on from: the log, and the state as it stands `at` its position.
///
/// # Errors
/// - [`OutsideLog`] if they do not belong together.
pub fn raft_state(recovered: Recovered, at: &RecoveredAt) -> Result<RaftState, OutsideLog> {
    let Recovered { mut hard_state, entries, snapshot, .. } = recovered;
    let (first, state) = (snapshot.index, at.applied);
    let last = entries.last().map_or(first, entry_index);
    if state < first || last < state {
        return Err(OutsideLog { state, first, last });
    }
    // What was applied was committed, even if the last word on it did not reach the disk.
    hard_state.commit = hard_state.commit.max(Some(at.applied.0));
    Ok(RaftState {
        hard_state,
        conf_state: at.conf_state.clone().unwrap_or_default(),
        snapshot: proto::raftpb::SnapshotMetadata {
            conf_state: snapshot.conf_state,
            index: Some(snapshot.index.0),
            term: Some(snapshot.term.0),
        },
        entries,
        applied: at.applied,
    })
}
