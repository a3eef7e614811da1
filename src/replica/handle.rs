//! How the edge reaches a replica.
//!
//! Decides what may be proposed at all (size, backlog), gives each request its id, and waits for
//! the outcome. Cheap to clone; lives on every connection's thread. A serializable read never
//! leaves that thread, and neither does a linearizable one on a group of one.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use proto::raftpb::{ConfChange, Message, MessageType};
use tokio::sync::oneshot;

use crate::{
    base::{
        clock::Clock,
        queue::{Refused, Sender},
        reply::reply,
    },
    cluster::RequestIds,
    consensus::SnapshotReport,
    lease::Lessor,
    model::{
        ClusterId, Command, LogIndex, MemberId, Outcome, Request, RequestId, Revision, Term,
        Unavailable,
    },
    mvcc::View,
    state::Published,
    storage::{
        backend::Backend,
        flusher::{DefragmentError, FlushJob, FlusherHandle, Reply as FlushReply},
    },
    transport::Transport,
    watch,
};

use super::{
    Input,
    core::{KnownProgress, ProgressReply},
    pending::Reply,
    shared::Shared,
};

/// Entries that may be committed and not applied before proposals are refused.
///
/// Source: etcd `maxGapBetweenApplyAndCommitIndex`.
pub(super) const BACKLOG_ENTRIES_MAX: u64 = 5_000;

/// Proposals that may wait for the replica thread: far more than clients keep in flight, so that
/// the bound is met only when the thread is stuck.
pub(super) const QUEUE_PROPOSALS_MAX: usize = 262_144;

/// Bounds on requests.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest command, in bytes as it stands in the log.
    pub request_bytes_max: usize,
    /// How long a caller waits for an outcome: 5 s and two election timeouts.
    pub request_timeout: Duration,
}

/// Who asks.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// The authenticated user; empty while authentication is off.
    pub username: String,
    /// The auth revision at which the user was checked.
    pub auth_revision: u64,
}

/// Where the member stands.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// This member.
    pub member: MemberId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Who leads; 0 is nobody known.
    pub leader: MemberId,
    /// The present term.
    pub term: Term,
    /// The last entry known to be committed.
    pub committed: LogIndex,
    /// The last entry applied here.
    pub applied: LogIndex,
}

/// The edge's access to a replica.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    inputs: Sender<Input>,
    limits: Limits,
    ids: RequestIds,
    lessor: Lessor,
    flusher: FlusherHandle,
    backend: Backend,
    watch: watch::thread::Handle<View>,
    transport: Transport,
}

/// Takes a caller out of the waiting ones when its task goes away first.
struct Waiting<'a> {
    shared: &'a Shared,
    id: RequestId,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        drop(self.shared.pending.remove(self.id));
    }
}

/// The parts that a handle gives access to.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) shared: Arc<Shared>,
    pub(super) inputs: Sender<Input>,
    pub(super) limits: Limits,
    pub(super) lessor: Lessor,
    pub(super) flusher: FlusherHandle,
    pub(super) backend: Backend,
    pub(super) watch: watch::thread::Handle<View>,
    pub(super) transport: Transport,
}

fn unavailable(refused: Refused<Input>) -> Unavailable {
    match refused {
        Refused::Full(_) => {
            Unavailable::Overloaded { backlog_entries_max: QUEUE_PROPOSALS_MAX as u64 }
        }
        Refused::Closed(_) => Unavailable::Stopped,
    }
}

impl Handle {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { shared, inputs, limits, lessor, flusher, backend, watch, transport } = parts;
        let ids = RequestIds::new(shared.member, shared.clock.unix());
        Self(Arc::new(Inner {
            shared,
            inputs,
            limits,
            ids,
            lessor,
            flusher,
            backend,
            watch,
            transport,
        }))
    }

    /// Replicates `request` and returns what applying it came to.
    ///
    /// Dropping the future gives up the answer, not the request.
    ///
    /// # Errors
    /// - [`Unavailable::TooLarge`] or [`Unavailable::Overloaded`]: nothing was proposed.
    /// - [`Unavailable::Stopped`] while the member stops.
    /// - The timeouts, after [`Limits::request_timeout`]: the request may still be applied.
    pub async fn propose(
        &self,
        identity: Identity,
        request: Request,
    ) -> Result<Outcome, Unavailable> {
        let (id, data) = self.encode(identity, request)?;
        self.wait_for(id, Input::Propose(data)).await
    }

    /// As [`Handle::propose`], for what only the leader of `term` may decide: the request is not
    /// passed on to another leader.
    ///
    /// # Errors
    /// As [`Handle::propose`]; a time-out too if this member does not lead `term`.
    pub async fn propose_as_leader(
        &self,
        term: Term,
        request: Request,
    ) -> Result<Outcome, Unavailable> {
        let (id, data) = self.encode(Identity::default(), request)?;
        self.wait_for(id, Input::ProposeAsLeader(term, data)).await
    }

    fn encode(
        &self,
        identity: Identity,
        request: Request,
    ) -> Result<(RequestId, Bytes), Unavailable> {
        self.check_backlog()?;
        let id = self.0.ids.next();
        let Identity { username, auth_revision } = identity;
        let data = Command { id, username, auth_revision, request: Some(request) }.encode();
        let request_bytes_max = self.0.limits.request_bytes_max;
        if request_bytes_max < data.len() {
            return Err(Unavailable::TooLarge { request_bytes_max });
        }
        Ok((id, data))
    }

    /// Replicates a change of membership, and returns the membership after it.
    ///
    /// # Errors
    /// As [`Handle::propose`].
    pub async fn change_members(&self, mut change: ConfChange) -> Result<Outcome, Unavailable> {
        self.check_backlog()?;
        let id = self.0.ids.next();
        change.id = Some(id.0);
        self.wait_for(id, Input::ProposeConfChange(Box::new(change))).await
    }

    fn check_backlog(&self) -> Result<(), Unavailable> {
        let shared = &self.0.shared;
        // In this order: applied never passes committed, so the difference cannot be negative.
        let applied = shared.applied.get();
        let committed = shared.committed.get();
        if applied.0 + BACKLOG_ENTRIES_MAX < committed.0 {
            return Err(Unavailable::Overloaded { backlog_entries_max: BACKLOG_ENTRIES_MAX });
        }
        Ok(())
    }

    async fn wait_for(&self, id: RequestId, input: Input) -> Result<Outcome, Unavailable> {
        let shared = &self.0.shared;
        let (reply, answer): (Reply, _) = reply();
        shared.pending.insert(id, shared.clock.now(), reply);
        let _waiting = Waiting { shared, id };
        self.0.inputs.try_send_patient(input).map_err(unavailable)?;
        answer.await.unwrap_or(Err(Unavailable::Stopped))
    }

    fn send(&self, input: Input) -> Result<(), Unavailable> {
        self.0.inputs.try_send(input).map_err(unavailable)
    }

    /// What has been applied here, without asking anybody: for serializable reads.
    #[must_use]
    pub fn published(&self) -> Arc<Published> {
        self.0.shared.published.load_full()
    }

    /// A state that holds every write acknowledged anywhere before the call.
    ///
    /// # Errors
    /// - [`Unavailable::LeaderChanged`], [`Unavailable::Timeout`] if no quorum confirms the point.
    /// - [`Unavailable::Stopped`] while the member stops.
    pub async fn linearizable(&self) -> Result<Arc<Published>, Unavailable> {
        let shared = &self.0.shared;
        if !shared.reads_without_round.load(Ordering::Acquire) {
            let (reply, answer) = oneshot::channel();
            if shared.reads.join(shared.clock.now(), reply) {
                self.send(Input::Read)?;
            }
            answer.await.unwrap_or(Err(Unavailable::Stopped))?;
        }
        Ok(self.published())
    }

    /// Where the member stands now.
    #[must_use]
    pub fn status(&self) -> Status {
        let shared = &self.0.shared;
        let applied = shared.applied.get();
        Status {
            member: shared.member,
            cluster: shared.cluster,
            leader: shared.leader(),
            term: shared.term(),
            committed: shared.committed.get().max(applied),
            applied,
        }
    }

    /// Waits until the rows below the compaction point `revision` are gone from the backend.
    ///
    /// # Errors
    /// - [`Unavailable::Stopped`] while the member stops.
    pub async fn compaction_finished(&self, revision: Revision) -> Result<(), Unavailable> {
        let (reply, answer) = oneshot::channel();
        let reply = Box::new(move |outcome| drop(reply.send(outcome)));
        self.0.flusher.on_compaction_finished(revision, reply);
        answer.await.map(drop).map_err(|_gone| Unavailable::Stopped)
    }

    /// Reclaims the space of deleted rows, while reads and writes go on.
    ///
    /// # Errors
    /// - [`Unavailable::Stopped`] while the member stops; inside, why the database is as it was.
    pub async fn defragment(&self) -> Result<Result<(), DefragmentError>, Unavailable> {
        self.flush(FlushJob::Defragment).await
    }

    /// Waits until the backend holds everything that was applied before the call.
    ///
    /// # Errors
    /// - [`Unavailable::Stopped`] while the member stops.
    pub async fn sync_backend(&self) -> Result<(), Unavailable> {
        self.flush(FlushJob::Sync).await.map(drop)
    }

    /// As [`Handle::sync_backend`], for a thread that may wait.
    ///
    /// # Errors
    /// - [`Unavailable::Stopped`] if the flush thread is gone.
    pub fn sync_backend_blocking(&self) -> Result<(), Unavailable> {
        self.0.flusher.sync().map_err(|_gone| Unavailable::Stopped)
    }

    async fn flush(
        &self,
        job: impl FnOnce(FlushReply) -> FlushJob,
    ) -> Result<Result<(), DefragmentError>, Unavailable> {
        let (reply, answer) = oneshot::channel();
        let job = job(Box::new(move |outcome| drop(reply.send(outcome))));
        self.0.flusher.submit(job).map_err(|_gone| Unavailable::Stopped)?;
        answer.await.map_err(|_gone| Unavailable::Stopped)
    }

    /// Hands leadership to `to`; whether it gets there shows in [`Handle::status`].
    ///
    /// # Errors
    /// - [`Unavailable::Stopped`] while the member stops.
    pub fn transfer_leadership(&self, to: MemberId) -> Result<(), Unavailable> {
        self.send(Input::TransferLeader(to))
    }

    /// Takes a peer's raft message; one that finds no room is lost, as on the way.
    pub fn step(&self, message: Message) {
        let forwards = message.r#type == Some(MessageType::MsgProp.into());
        let input = Input::Peer(Box::new(message));
        let inputs = &self.0.inputs;
        drop(if forwards { inputs.try_send_patient(input) } else { inputs.try_send(input) });
    }

    /// Learns that a message to `member` did not get through.
    pub fn unreachable(&self, member: MemberId) {
        drop(self.0.inputs.try_send(Input::Unreachable(member)));
    }

    /// Learns that the process of `member` has ended.
    pub fn gone(&self, member: MemberId) {
        drop(self.0.inputs.try_send(Input::LeaderGone(member)));
    }

    /// Learns what became of the state that was sent to `member`.
    pub fn snapshot_sent(&self, member: MemberId, report: SnapshotReport) {
        // A replica thread that is gone needs no telling.
        drop(self.0.inputs.send_reserved(Input::SnapshotSent(member, report)));
    }

    /// Until when proposals are gathered that will be written together, in the clock's time: one
    /// that comes earlier is not answered sooner. In the past while none are.
    #[must_use]
    pub fn gathers_until(&self) -> Duration {
        Duration::from_micros(self.0.shared.gathers_until_us.load(Ordering::Relaxed))
    }

    /// Whether the replica thread has ticked lately. If it has not, as after a pause of the process,
    /// what it shows of the leader may be long over.
    #[must_use]
    pub fn is_awake(&self) -> bool {
        let shared = &self.0.shared;
        shared.clock.now() < Duration::from_millis(shared.awake_until_ms.load(Ordering::Acquire))
    }

    /// How far the log of `member` is known to reach; `None` inside if there is no such member.
    ///
    /// # Errors
    /// - [`Unavailable::NotLeader`] if this member does not lead, and so does not know.
    /// - [`Unavailable::Stopped`] while the member stops.
    pub async fn progress_of(
        &self,
        member: MemberId,
    ) -> Result<Option<KnownProgress>, Unavailable> {
        let (reply, answer) = oneshot::channel();
        let reply = ProgressReply(Box::new(move |progress| {
            // A caller that left needs no answer.
            reply.send(progress).ok();
        }));
        self.send(Input::AskProgress(member, reply))?;
        answer.await.map_err(|_gone| Unavailable::Stopped)?.ok_or(Unavailable::NotLeader)
    }

    /// The way to the other members.
    #[must_use]
    pub fn transport(&self) -> &Transport {
        &self.0.transport
    }

    /// Waits until this member has been removed from the cluster. For one waiter.
    pub async fn removed(&self) {
        self.0.shared.removed.notified().await;
    }

    /// A peer says that this member was removed from the cluster, of which its own log does not know
    /// yet, and will not know.
    pub fn told_removed(&self) {
        self.0.shared.removed.notify_one();
    }

    /// An id that no other request of the cluster has.
    #[must_use]
    pub fn new_request_id(&self) -> RequestId {
        self.0.ids.next()
    }

    /// How long a request may take.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.0.limits
    }

    /// The clock that all of the member's times are of.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.0.shared.clock
    }

    /// The leases and their remaining times.
    #[must_use]
    pub fn lessor(&self) -> &Lessor {
        &self.0.lessor
    }

    /// The backend, for reading.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.0.backend
    }

    /// Where watch streams are opened.
    #[must_use]
    pub fn watch(&self) -> &watch::thread::Handle<View> {
        &self.0.watch
    }

    /// Whether the member is on its way out.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.0.shared.stopping()
    }

    /// Starts the end of the replica: its threads finish what is under way and return.
    pub fn stop(&self) {
        self.0.shared.stopping.store(true, Ordering::Release);
        // A replica thread that is gone needs no telling.
        drop(self.0.inputs.send_reserved(Input::Stop));
    }
}
