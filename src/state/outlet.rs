//! What others take out of the machine.
//!
//! Decides nothing about the state: it hands out copies, changes since the last time, and pieces of
//! background work. Called by the apply thread after each batch.

use std::{mem, sync::Arc};

use bytes::Bytes;
use proto::raftpb::ConfState;

use super::{Machine, Published, conf_state};
use crate::{
    cluster::v2_store_json,
    lease::Lessor,
    model::{LogIndex, Revision, Term},
    mvcc::{CompactionStep, EventBatch},
    storage::FlushBatch,
};

impl Machine {
    /// The last applied entry.
    #[must_use]
    pub const fn applied(&self) -> LogIndex {
        self.applied
    }

    /// The term of the last applied entry.
    #[must_use]
    pub const fn applied_term(&self) -> Term {
        self.applied_term
    }

    /// The raft configuration at the last applied entry.
    #[must_use]
    pub fn conf_state(&self) -> ConfState {
        self.conf_state.clone()
    }

    /// The lessor, for the threads that serve and for whoever promotes and demotes it.
    #[must_use]
    pub const fn lessor(&self) -> &Lessor {
        self.leases.lessor()
    }

    /// The membership in the form that `.snap` files hold.
    #[must_use]
    pub fn membership_for_older_versions(&self) -> Bytes {
        v2_store_json(&self.membership)
    }

    /// An immutable copy of everything that readers need, as of the last applied entry.
    #[must_use]
    pub fn publish(&self) -> Published {
        Published {
            kv: self.store.view(),
            membership: Arc::clone(&self.membership),
            alarms: Arc::clone(&self.alarms),
            auth: self.auth,
            storage_version: self.storage_version,
            applied: self.applied,
            applied_term: self.applied_term,
        }
    }

    /// The changes since the last call for watchers, one batch per revision, in order.
    pub fn take_events(&mut self) -> Vec<EventBatch> {
        mem::take(&mut self.events)
    }

    /// The changes since the last call for the backend.
    pub fn take_flush(&mut self) -> FlushBatch {
        let changed = mem::take(&mut self.conf_state_changed);
        FlushBatch {
            rows: self.store.take_rows(),
            tables: mem::take(&mut self.writes),
            applied: self.applied,
            term: self.applied_term,
            conf_state: changed.then(|| conf_state::to_json(&self.conf_state)),
        }
    }

    /// Learns that the backend holds every row up to `upto`, so that memory may be freed.
    pub fn rows_flushed(&mut self, upto: Revision) {
        self.store.rows_flushed(upto);
    }

    /// Whether [`Machine::background_step`] may have something to do.
    #[must_use]
    pub const fn has_background_work(&self) -> bool {
        self.may_have_background_work
    }

    /// Does a bounded part of the compactions under way.
    pub fn background_step(&mut self) -> CompactionStep {
        let step = self.store.compaction_step();
        self.may_have_background_work = !matches!(step, CompactionStep::Idle);
        step
    }
}
