//! What the handle and the tasks of the transport have in common.
//!
//! Decides who is a peer, where a message of the replica goes, and which messages of peers the
//! replica gets to see. Owned by the handles and by every task.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use proto::raftpb::Message;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Local, Settings, SnapshotBody,
    body::LARGE_BODIES_MAX,
    kind::{StreamKind, may_come_from_peer},
    lanes::Full,
    peer::{Peer, Standing},
};
use crate::{
    base::{clock::Clock, log::Json},
    consensus::SnapshotReport,
    model::MemberId,
};

/// Peers that are known only because they asked for something. More are not remembered: whoever
/// can reach the port could name any number.
const REMOTES_MAX: usize = 64;

/// Databases that are received at a time. There is one leader, and a former one perhaps.
const SNAPSHOTS_RECEIVED_MAX: usize = 4;

/// Snapshots that wait for the service. Raft sends one at a time to each peer.
const SNAPSHOTS_WAITING_MAX: usize = 64;

/// The name of a sender of snapshots that is not known.
///
/// Source: etcd `rafthttp/http.go`, `unknownSnapshotSender`.
pub(super) const UNKNOWN_SENDER: &str = "UNKNOWN_SNAPSHOT_SENDER";

/// What the handles and the tasks share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    /// Cancelled when everything is to end.
    pub(super) stop: CancellationToken,
    /// There are jobs.
    pub(super) jobs_waiting: Notify,
    /// For large bodies.
    pub(super) room_for_bodies: Semaphore,
    /// For databases that are received.
    pub(super) room_for_snapshots: Semaphore,
    local: OnceLock<Arc<dyn Local>>,
    registry: Mutex<Registry>,
}

#[derive(Debug, Default)]
struct Registry {
    members: BTreeMap<MemberId, Arc<Peer>>,
    remotes: BTreeMap<MemberId, Arc<Peer>>,
    jobs: Vec<Job>,
}

/// Something to be started on the `peer` thread.
#[derive(Debug)]
pub(super) enum Job {
    /// The tasks of a peer.
    Peer(Arc<Peer>),
    /// A snapshot to send.
    Snapshot(Arc<Peer>, Box<Message>, SnapshotBody),
}

/// Why a message of a peer is not for the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It comes from a member that was removed.
    Removed,
    /// It is for another member.
    Mismatch,
}

impl Refused {
    /// What the peer is told.
    ///
    /// Source: etcd `server/etcdserver/server.go`, `Process`.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Removed => "cannot process message from removed member",
            Self::Mismatch => "cannot process message to mismatch member",
        }
    }
}

impl Shared {
    pub(super) fn new(settings: Settings, clock: Clock) -> Self {
        Self {
            settings,
            clock,
            stop: CancellationToken::new(),
            jobs_waiting: Notify::new(),
            room_for_bodies: Semaphore::new(LARGE_BODIES_MAX),
            room_for_snapshots: Semaphore::new(SNAPSHOTS_RECEIVED_MAX),
            local: OnceLock::new(),
            registry: Mutex::default(),
        }
    }

    /// Gives the transport the member that it works for. Called once, on the `peer` thread.
    pub(super) fn begin(&self, local: Arc<dyn Local>) {
        let is_first = self.local.set(local).is_ok();
        assert!(is_first, "a transport has one service");
    }

    /// The member behind the transport.
    pub(super) fn local(&self) -> &dyn Local {
        self.local.get().expect("tasks start after the service has begun").as_ref()
    }

    pub(super) fn send(&self, messages: Vec<Message>) {
        let mut reached: Vec<Arc<Peer>> = Vec::new();
        let mut dropped = Vec::new();
        let registry = self.lock();
        for message in messages {
            let to = MemberId(message.to());
            let Some(peer) = registry.find(to) else {
                let kind = message.r#type().as_str_name();
                debug!(
                    r#type = kind,
                    "unknown-target-peer-id" = %to,
                    "ignored message send request; unknown remote peer target"
                );
                continue;
            };
            let kind = message.r#type();
            match peer.lanes.push(message) {
                Ok(()) if reached.iter().any(|known| Arc::ptr_eq(known, peer)) => {}
                Ok(()) => reached.push(Arc::clone(peer)),
                Err(full) => dropped.push((Arc::clone(peer), kind.as_str_name(), full)),
            }
        }
        drop(registry);
        for peer in reached {
            peer.sent_bytes.inc_by(peer.lanes.flush_now());
        }
        let mut unreachable = BTreeSet::new();
        for (peer, kind, full) in dropped {
            self.tell_dropped(&peer, kind, full);
            unreachable.insert(peer.id);
        }
        if let Some(local) = self.local.get() {
            unreachable.into_iter().for_each(|member| local.unreachable(member));
        }
    }

    fn tell_dropped(&self, peer: &Peer, kind: &'static str, full: Full) {
        peer.count_failure();
        warn!(
            "message-type" = kind,
            "local-member-id" = %self.settings.member,
            from = %self.settings.member,
            "remote-peer-id" = %peer.id,
            "remote-peer-name" = %full,
            "remote-peer-active" = peer.status.active_since().is_some(),
            "dropped internal Raft message since sending buffer is full"
        );
    }

    pub(super) fn send_snapshot(&self, message: Message, body: SnapshotBody) {
        let to = MemberId(message.to());
        let mut registry = self.lock();
        let peer = registry.members.get(&to).map(Arc::clone);
        match peer {
            Some(peer) if registry.jobs.len() < SNAPSHOTS_WAITING_MAX => {
                registry.jobs.push(Job::Snapshot(peer, Box::new(message), body));
                drop(registry);
                self.jobs_waiting.notify_one();
            }
            _ => {
                drop(registry);
                drop(body);
                if let Some(local) = self.local.get() {
                    local.snapshot_sent(to, SnapshotReport::Failed);
                }
            }
        }
    }

    pub(super) fn set_peer(&self, id: MemberId, urls: Vec<String>) {
        let local = self.settings.member;
        if id == local {
            return;
        }
        let shown = urls.clone();
        let mut registry = self.lock();
        if let Some(peer) = registry.members.get(&id) {
            if peer.picker.update(urls) {
                info!(
                    "local-member-id" = %local,
                    "updated-remote-peer-id" = %id,
                    "updated-remote-peer-urls" = ?Json(shown),
                    "updated remote peer"
                );
            }
            return;
        }
        let remote = registry.remotes.remove(&id);
        info!("remote-peer-id" = %id, "starting remote peer");
        registry.begin(self.new_peer(id, Standing::Member, urls));
        drop(registry);
        self.jobs_waiting.notify_one();
        if let Some(remote) = remote {
            remote.end(local);
        }
        for _ in StreamKind::ALL {
            info!(
                "local-member-id" = %local,
                "remote-peer-id" = %id,
                "started stream writer with remote peer"
            );
        }
        info!("remote-peer-id" = %id, "started remote peer");
        info!(
            "local-member-id" = %local,
            "remote-peer-id" = %id,
            "remote-peer-urls" = ?Json(shown),
            "added remote peer"
        );
    }

    pub(super) fn remove_peer(&self, id: MemberId) {
        let removed = self.lock().members.remove(&id);
        let local = self.settings.member;
        match removed {
            Some(peer) => {
                peer.end(local);
                info!(
                    "local-member-id" = %local,
                    "removed-remote-peer-id" = %id,
                    "removed remote peer"
                );
            }
            None => warn!(
                "local-member-id" = %local,
                "removed-remote-peer-id" = %id,
                "skipped removing already removed peer"
            ),
        }
    }

    /// Remembers how to answer a member that is not known yet.
    pub(super) fn add_remote(&self, id: MemberId, urls: &str) {
        if id == self.settings.member || id.0 == 0 || self.local().is_removed(id) {
            return;
        }
        let mut registry = self.lock();
        if registry.find(id).is_some() || REMOTES_MAX <= registry.remotes.len() {
            return;
        }
        let urls: Vec<_> = urls.split(',').map(str::to_owned).collect();
        let shown = urls.clone();
        registry.begin(self.new_peer(id, Standing::Remote, urls));
        drop(registry);
        self.jobs_waiting.notify_one();
        info!(
            "local-member-id" = %self.settings.member,
            "remote-peer-id" = %id,
            "remote-peer-urls" = ?Json(shown),
            "added new remote peer"
        );
    }

    /// Ends everything.
    pub(super) fn end(&self) {
        let Registry { members, remotes, jobs } = mem::take(&mut *self.lock());
        drop(jobs);
        for peer in members.values().chain(remotes.values()) {
            peer.end(self.settings.member);
        }
        self.stop.cancel();
    }

    /// The peer, if it is in the cluster.
    pub(super) fn member(&self, id: MemberId) -> Option<Arc<Peer>> {
        self.lock().members.get(&id).map(Arc::clone)
    }

    pub(super) fn take_jobs(&self) -> Vec<Job> {
        mem::take(&mut self.lock().jobs)
    }

    /// Hands a message of a peer to the replica.
    ///
    /// # Errors
    /// - [`Refused`] if it is not for it. What no peer may send is dropped without a word.
    pub(super) fn receive(&self, message: Message) -> Result<(), Refused> {
        let local = self.settings.member;
        let from = MemberId(message.from());
        if self.local().is_removed(from) {
            warn!(
                "local-member-id" = %local,
                "removed-member-id" = %from,
                "rejected Raft message from removed member"
            );
            return Err(Refused::Removed);
        }
        if message.to() != local.0 {
            warn!(
                "local-member-id" = %local,
                "mismatch-member-id" = %MemberId(message.to()),
                "rejected Raft message to mismatch member"
            );
            return Err(Refused::Mismatch);
        }
        if may_come_from_peer(&message) {
            self.local().step(message);
        }
        Ok(())
    }

    /// Counts what came from `from`, if that is a peer: others could have any number of names.
    pub(super) fn count_received(&self, from: MemberId, bytes: u64) {
        if let Some(peer) = self.lock().find(from) {
            peer.received_bytes.inc_by(bytes);
        }
    }

    /// How the metrics name the sender of a snapshot.
    pub(super) fn sender_label(&self, from: MemberId) -> String {
        let is_peer = self.lock().find(from).is_some();
        if is_peer { from.to_string() } else { UNKNOWN_SENDER.to_owned() }
    }

    /// The cluster has no place for this member any more.
    pub(super) fn report_removed(&self) {
        self.local().removed();
    }

    fn new_peer(&self, id: MemberId, standing: Standing, urls: Vec<String>) -> Peer {
        Peer::new(self.settings.member, id, standing, urls, self.stop.child_token())
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // Nothing panics half-way through a change, so a poisoned registry is still whole.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// Takes a peer in, and has its tasks started.
    fn begin(&mut self, peer: Peer) {
        let peer = Arc::new(peer);
        let peers = match peer.standing {
            Standing::Member => &mut self.members,
            Standing::Remote => &mut self.remotes,
        };
        peers.insert(peer.id, Arc::clone(&peer));
        self.jobs.push(Job::Peer(peer));
    }

    fn find(&self, id: MemberId) -> Option<&Arc<Peer>> {
        self.members.get(&id).or_else(|| self.remotes.get(&id))
    }
}
