//! The dispatch of committed entries.
//!
//! Decides what each kind of request does and to which of the machine's parts. Owned by the apply
//! thread, which feeds it the log in order and takes out what others need: a published copy for
//! readers, events for watchers, a batch for the flusher.
//!
//! Source: etcd `server/etcdserver/apply/{uber_applier,backend}.go`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use proto::{
    etcdserverpb::{
        AlarmRequest, AlarmType, LeaseCheckpointRequest, LeaseGrantRequest, TxnRequest,
        alarm_request::AlarmAction,
    },
    membershippb::{
        ClusterMemberAttrSetRequest, ClusterVersionSetRequest, DowngradeInfoSetRequest,
    },
    raftpb::{ConfChange, ConfState},
};

use super::{
    Alarms, Quota, conf_state,
    gate::{self, cost},
    log, txn,
};
use crate::{
    auth,
    cluster::{CLUSTER_VERSION_MIN, ClusterGauges, Downgrade, Membership, Version},
    lease::{LeaseSettings, LeaseTable, Persist},
    model::{
        Answer, ClusterId, Command, KeyRange, LeaseId, LogIndex, MemberId, Outcome, Rejection,
        Request, Revision, RowRevision, Term,
    },
    mvcc::{Committed, EventBatch, ReadError, Store, WriteTxn},
    storage::{
        Backend, Table, TableWrite,
        keys::etcd_revision,
        tables::{SCHEDULED_COMPACT_REVISION, STORAGE_VERSION},
    },
};

/// Below this cluster version, checkpoints of leases are not stored.
const CHECKPOINTS_STORED_SINCE: Version = Version::new(3, 6, 0);

/// What the machine is told once, at the start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This member.
    pub member: MemberId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// How large this member's backend may become.
    pub quota: Quota,
    /// How many learners the cluster may have.
    pub learners_max: usize,
    /// How leases behave.
    pub leases: LeaseSettings,
}

/// The replicated state.
#[derive(Debug)]
pub struct Machine {
    pub(super) settings: Settings,
    pub(super) backend: Backend,
    pub(super) store: Store,
    pub(super) leases: LeaseTable,
    pub(super) membership: Arc<Membership>,
    pub(super) alarms: Arc<Alarms>,
    pub(super) auth: auth::Status,
    pub(super) storage_version: Option<Version>,
    pub(super) conf_state: ConfState,
    pub(super) conf_state_changed: bool,
    pub(super) applied: LogIndex,
    pub(super) applied_term: Term,
    /// Changes of small tables since the last flush, oldest first.
    pub(super) writes: Vec<TableWrite>,
    /// Events since they were last taken, oldest first.
    pub(super) events: Vec<EventBatch>,
    pub(super) gauges: ClusterGauges,
    pub(super) may_have_background_work: bool,
}

/// What applying one entry came to.
#[derive(Debug)]
pub struct Applied {
    /// For the caller, if one waits.
    pub outcome: Outcome,
    /// What the member has to do because of it.
    pub effects: Vec<Effect>,
}

/// What applying an entry asks of the member.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Propose this; nobody waits for the outcome.
    Propose(Request),
}

impl Machine {
    /// Applies one committed request. `now` is the reading of the member's clock, for the
    /// deadlines of leases alone.
    ///
    /// An entry that the recovered state holds already changes nothing.
    pub fn apply(
        &mut self,
        index: LogIndex,
        term: Term,
        command: &Command,
        now: Duration,
    ) -> Applied {
        if !self.advance(index, term) {
            return Applied { outcome: Ok(Answer::Done), effects: Vec::new() };
        }
        let revision_before = self.store.revision();
        let applied = match &command.request {
            Some(request) => self.apply_gated(request, now),
            None => Applied { outcome: Err(Rejection::UnknownCommand), effects: Vec::new() },
        };
        let revision = self.store.revision();
        assert!(
            revision == revision_before || revision == revision_before.next(),
            "entry {index} moved the revision from {revision_before} to {revision}"
        );
        applied
    }

    /// Passes over an entry that asks for nothing: a new leader's first, or one that cannot be read.
    pub fn apply_empty(&mut self, index: LogIndex, term: Term) {
        self.advance(index, term);
    }

    /// Applies a committed change of membership.
    ///
    /// # Errors
    /// A refused change must still be given to raft, with the node id 0.
    /// - [`Rejection`] as [`Membership::validate`] says.
    /// - [`Rejection::UnknownCommand`] if nobody would be left to vote.
    pub fn apply_conf_change(
        &mut self,
        index: LogIndex,
        term: Term,
        change: &ConfChange,
    ) -> Outcome {
        if self.advance(index, term) {
            let accepted = self.membership.validate(change, self.settings.learners_max);
            let next = conf_state::after(&self.conf_state, change);
            let accepted = accepted.and_then(|accepted| {
                let next = next.ok_or(Rejection::UnknownCommand)?;
                Ok((accepted, next))
            });
            let (accepted, next) = accepted.inspect_err(|rejection| {
                tracing::error!(?rejection, "Validation on configuration change failed");
            })?;
            self.conf_state_changed |= next != self.conf_state;
            self.conf_state = next;
            log::member_change(&self.settings, &accepted);
            Arc::make_mut(&mut self.membership).apply(&accepted, &mut self.writes);
            self.gauges.show(&self.membership);
        }
        Ok(Answer::Members(self.membership.to_wire()))
    }

    /// Notes the position of an entry; `false` if it was applied before.
    fn advance(&mut self, index: LogIndex, term: Term) -> bool {
        if index <= self.applied {
            return false;
        }
        assert!(index == self.applied.next(), "entry {index} after entry {}", self.applied);
        assert!(self.applied_term <= term, "term {term} after term {}", self.applied_term);
        self.applied = index;
        self.applied_term = term;
        true
    }

    fn apply_gated(&mut self, request: &Request, now: Duration) -> Applied {
        if let Some(rejection) = gate::forbidden(request, &self.alarms) {
            return Applied { outcome: Err(rejection), effects: Vec::new() };
        }
        let fits = self.settings.quota.admits(cost(request), self.backend.sizes().total);
        let outcome = self.dispatch(request, now);
        if fits || outcome.is_err() {
            return Applied { outcome, effects: Vec::new() };
        }
        tracing::warn!("message exceeded backend quota; raising alarm");
        let alarm = Request::Alarm(AlarmRequest {
            action: AlarmAction::Activate.into(),
            member_id: self.settings.member.0,
            alarm: AlarmType::Nospace.into(),
        });
        Applied { outcome: Err(Rejection::NoSpace), effects: vec![Effect::Propose(alarm)] }
    }

    fn dispatch(&mut self, request: &Request, now: Duration) -> Outcome {
        match request {
            Request::Range(range) => {
                let answer = txn::range(&self.store.view(), range);
                answer.map(Answer::Range).or_else(refused)
            }
            Request::Put(put) => {
                self.write(|txn, leases| txn::put(txn, leases, put).map(Answer::Put))
            }
            Request::DeleteRange(delete) => self.write(|txn, leases| {
                txn::delete_range(txn, leases, delete).map(Answer::DeleteRange)
            }),
            Request::Txn(request) => self.apply_txn(request),
            Request::Compaction(compaction) => self.compact(Revision(compaction.revision)),
            Request::LeaseGrant(grant) => self.grant(grant, now),
            Request::LeaseRevoke(revoke) => self.revoke(LeaseId(revoke.id)),
            Request::LeaseCheckpoint(checkpoint) => Ok(self.checkpoint(checkpoint, now)),
            Request::Alarm(alarm) => {
                let alarms = Arc::make_mut(&mut self.alarms);
                Ok(Answer::Alarms(alarms.apply(alarm, &mut self.writes)))
            }
            Request::ClusterVersionSet(set) => self.set_cluster_version(set),
            Request::ClusterMemberAttrSet(set) => self.set_member_attributes(set),
            Request::DowngradeInfoSet(set) => Ok(self.set_downgrade(set)),
            Request::DowngradeVersionTest(_) | Request::AuthStatus(_) | Request::AuthDisable(_) => {
                Ok(Answer::Done)
            }
            Request::Authenticate(_) => Err(Rejection::AuthNotEnabled),
            Request::AuthEnable(_)
            | Request::AuthUserAdd(_)
            | Request::AuthUserDelete(_)
            | Request::AuthUserGet(_)
            | Request::AuthUserChangePassword(_)
            | Request::AuthUserGrantRole(_)
            | Request::AuthUserRevokeRole(_)
            | Request::AuthUserList(_)
            | Request::AuthRoleList(_)
            | Request::AuthRoleAdd(_)
            | Request::AuthRoleDelete(_)
            | Request::AuthRoleGet(_)
            | Request::AuthRoleGrantPermission(_)
            | Request::AuthRoleRevokePermission(_) => Err(Rejection::UnknownCommand),
        }
    }

    /// Runs one write transaction and keeps what it tells watchers.
    fn write(
        &mut self,
        body: impl FnOnce(&mut WriteTxn<'_>, &mut LeaseTable) -> Result<Answer, ReadError>,
    ) -> Outcome {
        let mut txn = self.store.write();
        let answer = body(&mut txn, &mut self.leases);
        assert!(answer.is_ok() || !txn.changed(), "a refused command wrote: {answer:?}");
        let committed = txn.commit();
        self.keep_events(committed);
        answer.or_else(refused)
    }

    fn keep_events(&mut self, committed: Committed) {
        if !committed.events.is_empty() {
            let events = Arc::from(committed.events);
            self.events.push(EventBatch { revision: committed.revision, events });
        }
    }

    fn apply_txn(&mut self, request: &TxnRequest) -> Outcome {
        self.write(|txn, leases| txn::txn(txn, leases, request).map(Answer::Txn))
    }

    fn compact(&mut self, revision: Revision) -> Outcome {
        self.store.compact(revision)?;
        self.may_have_background_work = true;
        // Stored with the position of this entry: a restart must know of it, as it will not see
        // the entry again.
        let scheduled = etcd_revision(RowRevision { main: revision, sub: 0 });
        self.writes.push(TableWrite {
            table: Table::Meta,
            key: Bytes::from_static(SCHEDULED_COMPACT_REVISION),
            value: Some(Bytes::copy_from_slice(&scheduled)),
        });
        Ok(Answer::Compaction { revision: self.store.revision() })
    }

    fn grant(&mut self, grant: &LeaseGrantRequest, now: Duration) -> Outcome {
        let lease = LeaseId(grant.id);
        let ttl_seconds = self.leases.grant(lease, grant.ttl, now, &mut self.writes)?;
        Ok(Answer::LeaseGrant { lease, ttl_seconds })
    }

    /// Ends a lease and deletes its keys, in ascending order, as one revision.
    fn revoke(&mut self, lease: LeaseId) -> Outcome {
        let keys = self.leases.revoke(lease, &mut self.writes)?;
        let mut txn = self.store.write();
        for key in keys {
            txn.delete_range(&KeyRange::Single(Bytes::copy_from_slice(&key)));
        }
        let committed = txn.commit();
        let revision = committed.revision;
        self.keep_events(committed);
        Ok(Answer::LeaseRevoke { revision })
    }

    fn checkpoint(&mut self, request: &LeaseCheckpointRequest, now: Duration) -> Answer {
        let version = self.membership.version();
        let persist = if version.is_some_and(|version| CHECKPOINTS_STORED_SINCE <= version) {
            Persist::Yes
        } else {
            Persist::No
        };
        for each in &request.checkpoints {
            let (lease, remaining) = (LeaseId(each.id), each.remaining_ttl);
            self.leases.checkpoint(lease, remaining, now, persist, &mut self.writes);
        }
        Answer::Done
    }

    fn set_cluster_version(&mut self, set: &ClusterVersionSetRequest) -> Outcome {
        let version = set.ver.parse::<Version>();
        let version = version.map_err(|_malformed| Rejection::UnknownCommand)?;
        if !version.is_supported_cluster() {
            tracing::error!(
                "determined-cluster-version" = %version.cluster_text(),
                "invalid downgrade; server version is lower than determined cluster version"
            );
            return Err(Rejection::UnknownCommand);
        }
        log::cluster_version(&self.settings, self.membership.version(), version);
        Arc::make_mut(&mut self.membership).set_version(version, &mut self.writes);
        self.gauges.show(&self.membership);
        if version != CLUSTER_VERSION_MIN && self.storage_version != Some(version.without_patch()) {
            self.set_storage_version(version.without_patch());
            log::ready_to_downgrade(&self.membership);
        }
        Ok(Answer::Done)
    }

    /// Records the version of the storage schema, which follows the cluster version: up, and down as
    /// well, because no entry of this release's log needs a newer release than the one before.
    fn set_storage_version(&mut self, version: Version) {
        tracing::info!("new-storage-version" = %version, "updated storage version");
        self.storage_version = Some(version);
        self.writes.push(TableWrite {
            table: Table::Meta,
            key: Bytes::from_static(STORAGE_VERSION),
            value: Some(Bytes::from(version.to_string())),
        });
    }

    fn set_member_attributes(&mut self, set: &ClusterMemberAttrSetRequest) -> Outcome {
        let attributes = set.member_attributes.as_ref().ok_or(Rejection::UnknownCommand)?;
        Arc::make_mut(&mut self.membership).set_attributes(
            MemberId(set.member_id),
            attributes.name.clone(),
            attributes.client_urls.clone(),
            &mut self.writes,
        )?;
        Ok(Answer::Done)
    }

    fn set_downgrade(&mut self, set: &DowngradeInfoSetRequest) -> Answer {
        let target_version = if set.enabled { set.ver.clone() } else { String::new() };
        let downgrade = Downgrade { target_version, enabled: set.enabled };
        Arc::make_mut(&mut self.membership).set_downgrade(downgrade, &mut self.writes);
        Answer::Done
    }
}

/// Splits a refusal, which every member reaches alike, from damage, after which this member must
/// not go on: its state would differ from the others'.
fn refused<T>(error: ReadError) -> Result<T, Rejection> {
    match error {
        ReadError::Rejected(rejection) => Err(rejection),
        ReadError::Outdated => unreachable!("the newest view is not older than a compaction"),
        ReadError::Damaged(damage) => panic!("stored history is damaged: {damage}"),
    }
}
