//! What the threads of a replica show to each other and to [`super::Handle`].
//!
//! Decides nothing. Each field has one writing thread, named beside it; everybody may read. The
//! two fields that several threads change, the waiting callers and readers, guard themselves.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::{
    base::clock::Clock,
    model::{ClusterId, LogIndex, MemberId, Term},
    state::Published,
};

use super::{pending::Pending, reads::Reads};

/// State that is visible outside of the thread that owns it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) clock: Clock,
    pub(super) member: MemberId,
    pub(super) cluster: ClusterId,
    /// Written by the apply thread, after each batch and before its answers.
    pub(super) published: ArcSwap<Published>,
    /// Written by the apply thread.
    pub(super) applied: Position,
    /// Written by the replica thread.
    pub(super) committed: Position,
    /// Written by the replica thread.
    pub(super) term: Arc<AtomicU64>,
    /// Written by the replica thread; 0 while nobody is known to lead.
    pub(super) leader: AtomicU64,
    /// Written by the replica thread: when the present leader became known, in milliseconds of
    /// the clock.
    pub(super) leader_since_ms: AtomicU64,
    /// Written by the replica thread at each tick: until when, in milliseconds of the clock, it
    /// counts as awake.
    pub(super) awake_until_ms: AtomicU64,
    /// Written by the replica thread: this member is alone and has applied all that anybody can have
    /// been told of, so its published view is linearizable without asking anybody.
    pub(super) reads_without_round: AtomicBool,
    /// Written by the replica thread: until when, in microseconds of the clock, it gathers
    /// proposals for the next write of the log, if it does.
    pub(super) gathers_until_us: AtomicU64,
    /// Written by whoever starts the shutdown.
    pub(super) stopping: AtomicBool,
    /// Told by the apply thread when this member is not one any more.
    pub(super) removed: Notify,
    pub(super) pending: Pending,
    pub(super) reads: Reads,
}

/// A log position that only grows.
#[derive(Debug)]
pub(super) struct Position(AtomicU64);

impl Position {
    pub(super) const fn new(index: LogIndex) -> Self {
        Self(AtomicU64::new(index.0))
    }

    pub(super) fn get(&self) -> LogIndex {
        LogIndex(self.0.load(Ordering::Acquire))
    }

    pub(super) fn set(&self, index: LogIndex) {
        let before = self.0.swap(index.0, Ordering::Release);
        assert!(before <= index.0, "a position moved back from {before} to {index}");
    }
}

impl Shared {
    pub(super) fn new(
        clock: Clock,
        member: MemberId,
        cluster: ClusterId,
        term: Arc<AtomicU64>,
        published: Published,
        applied: LogIndex,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock,
            member,
            cluster,
            published: ArcSwap::from_pointee(published),
            applied: Position::new(applied),
            committed: Position::new(applied),
            term,
            leader: AtomicU64::new(0),
            leader_since_ms: AtomicU64::new(0),
            awake_until_ms: AtomicU64::new(0),
            reads_without_round: AtomicBool::new(false),
            gathers_until_us: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            removed: Notify::new(),
            pending: Pending::new(),
            reads: Reads::default(),
        })
    }

    pub(super) fn leader(&self) -> MemberId {
        MemberId(self.leader.load(Ordering::Acquire))
    }

    pub(super) fn term(&self) -> Term {
        Term(self.term.load(Ordering::Acquire))
    }

    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}
