//! Readers that wait for a linearizable point.
//!
//! Decides which readers share a round: all that arrived before the round was sent. A round has a
//! context of its own, so a late answer to an earlier round can never serve a later reader.
//! Readers are added by [`super::Handle`]; the replica thread starts rounds and answers them.
//!
//! ```text
//!   join --> waiting --(start)--> rounds[context] --(confirm: index)--> until applied --> answered
//! ```
//!
//! Invariants
//! - R5 A reader is answered at an index that was committed after the reader arrived.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use crate::model::{LogIndex, Unavailable};

/// How a reader is answered: from now on, the published view is recent enough.
pub(super) type ReadReply = oneshot::Sender<Result<(), Unavailable>>;

/// One waiting reader.
#[derive(Debug)]
struct Reader {
    reply: ReadReply,
    since: Duration,
}

/// Every reader that waits, by how far it has come.
#[derive(Debug, Default)]
pub(super) struct Reads(Mutex<Stages>);

#[derive(Debug, Default)]
struct Stages {
    waiting: Vec<Reader>,
    rounds: BTreeMap<u64, Vec<Reader>>,
    until_applied: BTreeMap<LogIndex, Vec<Reader>>,
}

impl Reads {
    fn lock(&self) -> MutexGuard<'_, Stages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a reader; true if it is the first, so that somebody must ask for a round.
    pub(super) fn join(&self, since: Duration, reply: ReadReply) -> bool {
        let mut stages = self.lock();
        stages.waiting.push(Reader { reply, since });
        stages.waiting.len() == 1
    }

    /// Moves all waiting readers into the round `context`; false if there is none.
    pub(super) fn start(&self, context: u64) -> bool {
        let mut stages = self.lock();
        if stages.waiting.is_empty() {
            return false;
        }
        let readers = mem::take(&mut stages.waiting);
        let replaced = stages.rounds.insert(context, readers);
        assert!(replaced.is_none(), "read context {context} was used twice");
        true
    }

    /// The quorum has confirmed that everything committed before the round `context` is at or
    /// below `index`.
    pub(super) fn confirm(&self, context: u64, index: LogIndex) {
        let mut stages = self.lock();
        if let Some(readers) = stages.rounds.remove(&context) {
            stages.until_applied.entry(index).or_default().extend(readers);
        }
    }

    /// Answers every confirmed reader whose index is applied.
    pub(super) fn answer_applied(&self, applied: LogIndex) {
        let mut stages = self.lock();
        let later = stages.until_applied.split_off(&applied.next());
        let due = mem::replace(&mut stages.until_applied, later);
        drop(stages);
        for reader in due.into_values().flatten() {
            // A reader that went away needs no answer.
            drop(reader.reply.send(Ok(())));
        }
    }

    /// Whether a confirmed reader waits for something to be applied.
    pub(super) fn waits_for_apply(&self) -> bool {
        !self.lock().until_applied.is_empty()
    }

    /// Puts the readers of unconfirmed rounds back to the waiting ones, to be asked for again.
    pub(super) fn retry_unconfirmed(&self) {
        let mut stages = self.lock();
        let rounds = mem::take(&mut stages.rounds);
        stages.waiting.extend(rounds.into_values().flatten());
    }

    /// Ends every unconfirmed reader, because what it waits for can no longer happen.
    pub(super) fn fail_unconfirmed(&self, why: &Unavailable) {
        let mut stages = self.lock();
        let mut failed = mem::take(&mut stages.waiting);
        failed.extend(mem::take(&mut stages.rounds).into_values().flatten());
        drop(stages);
        for reader in failed {
            drop(reader.reply.send(Err(why.clone())));
        }
    }

    /// Ends every reader that arrived at or before `started_before`.
    pub(super) fn fail_older(&self, started_before: Duration, why: &Unavailable) {
        let mut stages = self.lock();
        let mut failed = Vec::new();
        let Stages { waiting, rounds, until_applied } = &mut *stages;
        let groups = rounds.values_mut().chain(until_applied.values_mut());
        for readers in groups.chain(std::iter::once(waiting)) {
            failed.extend(readers.extract_if(.., |reader| reader.since <= started_before));
        }
        drop(stages);
        for reader in failed {
            drop(reader.reply.send(Err(why.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(reads: &Reads, since: u64) -> oneshot::Receiver<Result<(), Unavailable>> {
        let (reply, answer) = oneshot::channel();
        reads.join(Duration::from_secs(since), reply);
        answer
    }

    #[test]
    fn reader_that_arrives_after_the_round_was_sent_is_not_served_by_it() {
        let reads = Reads::default();
        let mut early = reader(&reads, 0);
        assert!(reads.start(1));
        let mut late = reader(&reads, 0);
        reads.confirm(1, LogIndex(5));
        reads.answer_applied(LogIndex(5));
        assert_eq!(early.try_recv(), Ok(Ok(())));
        assert!(late.try_recv().is_err());
    }

    #[test]
    fn confirmed_reader_waits_until_its_index_is_applied() {
        let reads = Reads::default();
        let mut answer = reader(&reads, 0);
        reads.start(1);
        reads.confirm(1, LogIndex(5));
        reads.answer_applied(LogIndex(4));
        assert!(reads.waits_for_apply() && answer.try_recv().is_err());
        reads.answer_applied(LogIndex(6));
        assert_eq!(answer.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn retried_round_does_not_accept_the_answer_of_the_first() {
        let reads = Reads::default();
        let mut answer = reader(&reads, 0);
        reads.start(1);
        reads.retry_unconfirmed();
        reads.start(2);
        reads.confirm(1, LogIndex(3));
        reads.answer_applied(LogIndex(9));
        assert!(answer.try_recv().is_err());
        reads.confirm(2, LogIndex(9));
        reads.answer_applied(LogIndex(9));
        assert_eq!(answer.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn old_readers_are_failed_in_every_stage() {
        let reads = Reads::default();
        let mut confirmed = reader(&reads, 1);
        reads.start(1);
        reads.confirm(1, LogIndex(5));
        let mut waiting = reader(&reads, 2);
        reads.fail_older(Duration::from_secs(2), &Unavailable::Timeout);
        assert_eq!(confirmed.try_recv(), Ok(Err(Unavailable::Timeout)));
        assert_eq!(waiting.try_recv(), Ok(Err(Unavailable::Timeout)));
    }
}
