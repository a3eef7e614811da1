//! The replicated state of a simulated member: registers and members.
//!
//! Decides what an entry comes to. The rules of membership are the real ones; the rest of the state
//! machine is a register per key and a digest of everything that was applied, so that thousands of
//! members fit a second. A copy is a checkpoint.
//!
//! Deliberately absent: rows, leases, the backend. Some runs have the real state machine beside it
//! (`machine`).

use std::{collections::BTreeMap, sync::Arc};

use proto::raftpb::{ConfChange, ConfState};

use crate::{
    cluster::Membership,
    model::{Command, LogIndex, Request, RequestId, Term},
    state::conf_state_after,
};

use super::{history::UNWRITTEN, machine::Database, mix};

/// How many learners the group may have.
pub(super) const LEARNERS_MAX: usize = 2;

/// The state after one entry.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) applied: LogIndex,
    pub(super) term: Term,
    pub(super) conf_state: ConfState,
    pub(super) membership: Arc<Membership>,
    /// Of everything that was applied, in order.
    pub(super) digest: u64,
    /// The value of each key, and how often it was written.
    registers: BTreeMap<u8, (u64, i64)>,
    /// The real state, where a leader has sent it with this one.
    pub(super) database: Option<Database>,
}

impl State {
    pub(super) fn read(&self, key: u8) -> u64 {
        self.registers.get(&key).map_or(UNWRITTEN, |(value, _)| *value)
    }

    /// How often each key was written.
    pub(super) fn versions(&self) -> impl Iterator<Item = (u8, i64)> {
        self.registers.iter().map(|(key, (_, version))| (*key, *version))
    }

    fn advance(&mut self, index: LogIndex, term: Term) {
        assert!(index == self.applied.next(), "entry {index} after entry {}", self.applied);
        assert!(self.term <= term, "term {term} after term {}", self.term);
        self.applied = index;
        self.term = term;
        self.digest = mix(mix(self.digest, index.0), term.0);
    }

    /// Applies an entry that is no change of members; whose request it was.
    pub(super) fn apply(&mut self, index: LogIndex, term: Term, data: &[u8]) -> Option<RequestId> {
        self.advance(index, term);
        if data.is_empty() {
            return None;
        }
        let command = Command::decode(bytes::Bytes::copy_from_slice(data));
        let command = command.expect("only whole commands are proposed");
        let Some(Request::Put(put)) = command.request else { panic!("only puts are proposed") };
        let key = put.key[0];
        let value: [u8; 8] = put.value.as_ref().try_into().expect("eight bytes are written");
        let value = u64::from_be_bytes(value);
        let register = self.registers.entry(key).or_default();
        *register = (value, register.1 + 1);
        self.digest = mix(mix(self.digest, u64::from(key)), value);
        Some(command.id)
    }

    /// Applies a change of members; whether it was accepted.
    pub(super) fn apply_conf_change(
        &mut self,
        index: LogIndex,
        term: Term,
        change: &ConfChange,
    ) -> bool {
        self.advance(index, term);
        let accepted = self.membership.validate(change, LEARNERS_MAX).ok();
        let next = conf_state_after(&self.conf_state, change);
        let (Some(accepted), Some(next)) = (accepted, next) else { return false };
        Arc::make_mut(&mut self.membership).apply(&accepted, &mut Vec::new());
        for id in next.voters.iter().chain(&[0]).chain(&next.learners) {
            self.digest = mix(self.digest, *id);
        }
        self.conf_state = next;
        true
    }
}
