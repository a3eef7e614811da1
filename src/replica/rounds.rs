//! The read rounds of one member: when to ask, and with which context.
//!
//! Decides that one round is under way at a time, so that each serves all that arrived during the
//! one before it, and when one that got no answer is asked again. Owned by the replica thread.
//!
//! Invariants
//! - R6 No two rounds share a context, whichever member starts them: a leader tells rounds apart by
//!   nothing else.
//! - R7 While readers wait, a round is under way: whoever takes a confirmation in starts the next
//!   one in the same turn. Only the first waiting reader wakes the thread, and that was during the
//!   round before.

use std::time::Duration;

use crate::{cluster::RequestIds, model::LogIndex};

use super::{metrics, reads::Reads};

/// How long a read round may take before it is asked for again.
///
/// Source: etcd `readIndexRetryTime`.
pub(super) const READ_RETRY: Duration = Duration::from_millis(500);

/// The read rounds of this member.
#[derive(Debug)]
pub(super) struct Rounds {
    contexts: RequestIds,
    retry: Duration,
    /// The context of the last round.
    context: u64,
    /// When it was sent, while it is unconfirmed.
    sent: Option<Duration>,
}

impl Rounds {
    /// Rounds with contexts from `contexts`, each asked again after `retry`.
    pub(super) const fn new(contexts: RequestIds, retry: Duration) -> Self {
        Self { contexts, retry, context: 0, sent: None }
    }

    /// The context of the round to be asked for now, which all waiting readers join.
    pub(super) fn start(&mut self, now: Duration, reads: &Reads) -> Option<u64> {
        if self.sent.is_some_and(|sent| sent + self.retry <= now) {
            tracing::warn!(
                "sent-request-id" = self.context,
                "waiting for ReadIndex response took too long, retrying"
            );
            metrics::SLOW_READS.inc();
            reads.retry_unconfirmed();
            self.sent = None;
        }
        let context = self.contexts.next().0;
        if self.sent.is_some() || !reads.start(context) {
            return None;
        }
        self.context = context;
        self.sent = Some(now);
        Some(context)
    }

    /// Takes a confirmation in: of the round under way, or a late one of an earlier round.
    pub(super) fn confirm(
        &mut self,
        context: u64,
        index: LogIndex,
        applied: LogIndex,
        reads: &Reads,
    ) {
        if context == self.context {
            self.sent = None;
        }
        reads.confirm(context, index);
        reads.answer_applied(applied);
    }
}
