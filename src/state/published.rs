//! The applied state as readers see it.
//!
//! Decides nothing: one immutable value per applied batch, made by the machine, swapped in by the
//! apply thread, held by any thread for as long as it likes.

use std::sync::Arc;

use proto::etcdserverpb::{Member, TxnRequest};

use super::{Alarms, txn};
use crate::{
    auth,
    cluster::{Membership, Version},
    model::{LogIndex, MemberId, Revision, Term, TxnAnswer},
    mvcc::{ReadError, View},
};

/// Everything that can be read without raft, as of one applied position.
#[derive(Clone, Debug)]
pub struct Published {
    /// The key space.
    pub kv: View,
    /// The members and the cluster's versions.
    pub membership: Arc<Membership>,
    /// The active alarms.
    pub alarms: Arc<Alarms>,
    /// Whether authentication is on.
    pub auth: auth::Status,
    /// The version of the storage schema; none before the first cluster version.
    pub storage_version: Option<Version>,
    /// The last applied entry.
    pub applied: LogIndex,
    /// Its term.
    pub applied_term: Term,
}

impl Published {
    /// The revision of the key space.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.kv.revision()
    }

    /// What all members have agreed to be able to.
    #[must_use]
    pub fn cluster_version(&self) -> Option<Version> {
        self.membership.version()
    }

    /// Every member, in ascending order of id.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.membership.to_wire()
    }

    /// Whether the member is a learner; `None` if there is no such member.
    #[must_use]
    pub fn is_learner(&self, member: MemberId) -> Option<bool> {
        self.membership.member(member).map(|member| member.is_learner)
    }

    /// Answers a transaction of reads.
    ///
    /// # Errors
    /// As [`super::read_only_txn`].
    pub fn read_only_txn(&self, request: &TxnRequest) -> Result<TxnAnswer, ReadError> {
        txn::read_only_txn(&self.kv, request)
    }
}
