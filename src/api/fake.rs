//! A member made of a few fields, for tests of the edge.
//!
//! Decides nothing that a real member decides: it keeps rows in a map, answers what it is told to
//! answer, and remembers what was proposed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::{self as pb, AlarmMember, RangeRequest, TxnRequest},
    mvccpb::KeyValue,
};

use super::{
    caller::Caller,
    member::{
        Backup, DatabaseBytes, HashedBackend, HashedHistory, LeaseTime, Member, Position, State,
        StateError,
    },
    status::CallError,
};
use crate::{
    model::{
        Answer, ClusterId, KeyRange, LeaseId, LogIndex, MemberId, Outcome, PutAnswer, RangeAnswer,
        Rejection, Request, RequestId, Revision, Term, TxnAnswer, Unavailable,
    },
    watch::thread::Streams,
};

/// What the fake has applied.
#[derive(Clone, Debug)]
pub(crate) struct FakeState {
    pub(crate) revision: Revision,
    pub(crate) rows: BTreeMap<Bytes, Bytes>,
    pub(crate) cluster_version: Option<String>,
    pub(crate) learner: bool,
    /// How many reads find that their state is outdated.
    pub(crate) outdated: Arc<AtomicU32>,
    pub(crate) alarms: Vec<AlarmMember>,
}

/// The fake's inside.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) state: FakeState,
    pub(crate) proposed: Vec<Request>,
    pub(crate) leader: MemberId,
    pub(crate) full: bool,
    /// Whether somebody waits for a leader.
    pub(crate) waits: bool,
    /// What the next proposal comes to, instead of being applied.
    pub(crate) outcome: Option<Result<Outcome, Unavailable>>,
    pub(crate) backup: Bytes,
    /// What it lists as its leases.
    pub(crate) leases: Vec<LeaseId>,
    /// Where watch streams go; none is there to serve them by default.
    pub(crate) watch: Option<Streams>,
}

/// A member for tests.
#[derive(Clone, Debug)]
pub(crate) struct Fake(Arc<Mutex<Inner>>);

/// The fake's own id.
pub(crate) const MEMBER: MemberId = MemberId(7);

/// A lease that the fake has, with a granted time of 60 s and 40 s left.
pub(crate) const LEASE: LeaseId = LeaseId(0x77);

impl Default for Fake {
    fn default() -> Self {
        let state = FakeState {
            revision: Revision(1),
            rows: BTreeMap::new(),
            cluster_version: Some("3.7.0".to_owned()),
            learner: false,
            outdated: Arc::default(),
            alarms: Vec::new(),
        };
        Self(Arc::new(Mutex::new(Inner {
            state,
            proposed: Vec::new(),
            leader: MEMBER,
            full: false,
            waits: false,
            outcome: None,
            backup: Bytes::new(),
            leases: vec![LEASE],
            watch: None,
        })))
    }
}

impl Fake {
    /// Changes or reads the inside.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.0.lock().expect("no test panics in here"))
    }
}

impl Inner {
    fn apply(&mut self, request: &Request) -> Outcome {
        #[expect(clippy::wildcard_enum_match_arm, reason = "it can do little")]
        match request {
            Request::Put(put) => {
                self.state.revision = self.state.revision.next();
                let kv = KeyValue {
                    key: put.key.clone(),
                    value: put.value.clone(),
                    mod_revision: self.state.revision.0,
                    ..KeyValue::default()
                };
                let previous = self.state.rows.insert(put.key.clone(), kv.encode_to_vec().into());
                Ok(Answer::Put(PutAnswer {
                    revision: self.state.revision,
                    previous: previous.filter(|_| put.prev_kv),
                }))
            }
            Request::LeaseGrant(grant) => {
                Ok(Answer::LeaseGrant { lease: LeaseId(grant.id), ttl_seconds: grant.ttl.max(2) })
            }
            Request::Compaction(_) => Ok(Answer::Compaction { revision: self.state.revision }),
            Request::Alarm(_) => Ok(Answer::Alarms(self.state.alarms.clone())),
            _ => Err(Rejection::UnknownCommand),
        }
    }
}

impl State for FakeState {
    fn revision(&self) -> Revision {
        self.revision
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeAnswer, StateError> {
        if 0 < self.outdated.load(Ordering::Relaxed) {
            self.outdated.fetch_sub(1, Ordering::Relaxed);
            return Err(StateError::Outdated);
        }
        if self.revision.0 < request.revision {
            let (requested, current) = (Revision(request.revision), self.revision);
            return Err(Rejection::FutureRevision { requested, current }.into());
        }
        let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
        let found = self.rows.iter().filter(|(key, _)| range.contains(key));
        let count = found.clone().count();
        let limit = match usize::try_from(request.limit) {
            Ok(0) | Err(_) => usize::MAX,
            Ok(limit) => limit,
        };
        let rows = if request.count_only { 0 } else { limit };
        Ok(RangeAnswer {
            revision: self.revision,
            rows: found.take(rows).map(|(_, row)| row.clone()).collect(),
            more: limit < count,
            count: i64::try_from(count).expect("tests are small"),
        })
    }

    fn read_txn(&self, request: &TxnRequest) -> Result<TxnAnswer, StateError> {
        let succeeded = request.compare.is_empty();
        Ok(TxnAnswer { revision: self.revision, succeeded, answers: Vec::new() })
    }

    fn members(&self) -> Vec<pb::Member> {
        vec![pb::Member { id: MEMBER.0, name: "fake".to_owned(), ..pb::Member::default() }]
    }

    fn is_learner(&self, member: MemberId) -> Option<bool> {
        (member == MEMBER).then_some(self.learner)
    }

    fn alarms(&self) -> Vec<AlarmMember> {
        self.alarms.clone()
    }

    fn cluster_version(&self) -> Option<String> {
        self.cluster_version.clone()
    }

    fn storage_version(&self) -> Option<String> {
        self.cluster_version.clone()
    }

    fn downgrade(&self) -> pb::DowngradeInfo {
        pb::DowngradeInfo::default()
    }
}

impl Member for Fake {
    type State = FakeState;

    fn published(&self) -> Arc<FakeState> {
        self.with(|inner| Arc::new(inner.state.clone()))
    }

    async fn linearizable(&self) -> Result<Arc<FakeState>, Unavailable> {
        if self.with(|inner| inner.leader == MemberId(0)) {
            self.with(|inner| inner.waits = true);
            std::future::pending::<()>().await;
        }
        Ok(self.published())
    }

    async fn propose(&self, _caller: Caller, request: Request) -> Result<Outcome, Unavailable> {
        self.with(|inner| {
            let outcome = inner.outcome.take().unwrap_or_else(|| Ok(inner.apply(&request)));
            inner.proposed.push(request);
            outcome
        })
    }

    async fn add_member(
        &self,
        peer_ur_ls: Vec<String>,
        is_learner: bool,
    ) -> Result<(pb::Member, Vec<pb::Member>), CallError> {
        let member = pb::Member { id: 8, peer_ur_ls, is_learner, ..pb::Member::default() };
        let mut members = self.published().members();
        members.push(member.clone());
        Ok((member, members))
    }

    async fn remove_member(&self, member: MemberId) -> Result<Vec<pb::Member>, CallError> {
        Err(Rejection::MemberNotFound { member }.into())
    }

    async fn update_member(
        &self,
        _member: MemberId,
        _peer_urls: Vec<String>,
    ) -> Result<Vec<pb::Member>, CallError> {
        Ok(self.published().members())
    }

    async fn promote_member(&self, member: MemberId) -> Result<Vec<pb::Member>, CallError> {
        Err(Rejection::MemberNotLearner { member }.into())
    }

    fn watch(&self) -> Streams {
        self.with(|inner| inner.watch.clone()).expect("a test that watches has a service")
    }

    fn position(&self) -> Position {
        Position {
            member: MEMBER,
            cluster: ClusterId(9),
            leader: self.with(|inner| inner.leader),
            term: Term(3),
            committed: LogIndex(12),
            applied: LogIndex(11),
        }
    }

    fn gathers_until(&self) -> Duration {
        Duration::ZERO
    }

    fn new_request_id(&self) -> RequestId {
        RequestId(u64::MAX)
    }

    fn database(&self) -> DatabaseBytes {
        DatabaseBytes { total: 20, in_use: 10 }
    }

    fn has_room_for(&self, _request: &Request) -> bool {
        self.with(|inner| !inner.full)
    }

    async fn renew_lease(&self, lease: LeaseId) -> Result<i64, CallError> {
        if lease == LEASE { Ok(60) } else { Err(Rejection::LeaseNotFound { lease }.into()) }
    }

    async fn lease_time(
        &self,
        lease: LeaseId,
        with_keys: bool,
    ) -> Result<Option<LeaseTime>, CallError> {
        let keys = if with_keys { vec![Bytes::from_static(b"k")] } else { Vec::new() };
        let time = LeaseTime { ttl_seconds: 40, granted_ttl_seconds: 60, keys };
        Ok((lease == LEASE).then_some(time))
    }

    async fn leases(&self) -> Result<Vec<LeaseId>, CallError> {
        Ok(self.with(|inner| inner.leases.clone()))
    }

    async fn compaction_finished(&self, _revision: Revision) -> Result<(), Unavailable> {
        Ok(())
    }

    async fn defragment(&self) -> Result<(), CallError> {
        Ok(())
    }

    async fn hash_history(&self, revision: Revision) -> Result<HashedHistory, CallError> {
        let current = self.with(|inner| inner.state.revision);
        let revision = if revision.0 == 0 { current } else { revision };
        Ok(HashedHistory { hash: 5, compacted: Revision(-1), revision, current })
    }

    async fn hash_backend(&self) -> Result<HashedBackend, CallError> {
        Ok(HashedBackend { hash: 6, current: self.with(|inner| inner.state.revision) })
    }

    async fn backup(&self) -> Result<Backup, CallError> {
        let backup = self.with(|inner| inner.backup.clone());
        let pieces: Vec<_> = backup.chunks(1000).map(|piece| Ok(backup.slice_ref(piece))).collect();
        let total_bytes = u64::try_from(backup.len()).expect("tests are small");
        Ok(Backup { total_bytes, pieces: Box::new(pieces.into_iter()) })
    }

    async fn transfer_leadership(&self, _target: MemberId) -> Result<(), CallError> {
        Ok(())
    }
}
