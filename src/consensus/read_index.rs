//! Linearizable reads that wait for proof that this leader still leads.
//!
//! Decides when a read may be answered with the commit index it was given on arrival: when a
//! quorum has answered a heartbeat that was sent after it. Reads are numbered within the term; a
//! heartbeat carries the number of the newest one, and an answer confirms it and all before.
//!
//! Invariants
//! - I1 A number is never used twice within a term, so a late answer confirms only reads that were
//!   already waiting when its heartbeat was sent. A new term starts with an empty queue, and
//!   answers of an earlier term are dropped before they get here.
//! - I2 Reads are answered in order.
//!
//! Source: etcd raft `read_only.go` (3.7); the context on the wire is the number, 8 bytes little
//! endian. Older generations put the client's own context there, which can come twice.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::{config::READS_WAITING_MAX, quorum::Voters};
use crate::model::{LogIndex, MemberId};

/// A linearizable read may be served once the state machine has applied `index`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadState {
    /// The commit index when the request reached the leader.
    pub index: LogIndex,
    /// What the request was sent with.
    pub context: Bytes,
}

/// A read on its way to an answer.
#[derive(Clone, Debug)]
pub(super) struct ReadRequest {
    /// Who asked; this member itself or a follower.
    pub(super) from: MemberId,
    pub(super) context: Bytes,
}

/// The reads of one term that wait for a quorum.
#[derive(Debug, Default)]
pub(super) struct ReadQueue {
    waiting: VecDeque<(ReadRequest, LogIndex)>,
    /// How many reads of this term were confirmed: the number of the last one.
    confirmed: u64,
    /// The highest number each member has answered for.
    answered: BTreeMap<MemberId, u64>,
}

impl ReadQueue {
    /// Adds a read that must see everything up to `commit`. The leader itself answers for it at
    /// once. False if too many wait already; the reader asks again.
    pub(super) fn add(&mut self, leader: MemberId, request: ReadRequest, commit: LogIndex) -> bool {
        if READS_WAITING_MAX <= self.waiting.len() {
            return false;
        }
        assert!(
            self.waiting.back().is_none_or(|(_, before)| *before <= commit),
            "the commit index fell to {commit}"
        );
        self.waiting.push_back((request, commit));
        self.answered.insert(leader, self.newest());
        true
    }

    /// Whether a read waits.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn newest(&self) -> u64 {
        self.confirmed + u64::try_from(self.waiting.len()).expect("a length fits 64 bits")
    }

    /// What a heartbeat carries so that its answer confirms everything that waits now.
    pub(super) fn heartbeat_context(&self) -> Bytes {
        if self.waiting.is_empty() {
            return Bytes::new();
        }
        Bytes::copy_from_slice(&self.newest().to_le_bytes())
    }

    /// Notes that `from` answered a heartbeat with `context`. Contexts that this leader cannot have
    /// sent are ignored.
    pub(super) fn answer(&mut self, from: MemberId, context: &[u8]) {
        let Ok(number) = <[u8; 8]>::try_from(context) else { return };
        let number = u64::from_le_bytes(number);
        if self.newest() < number {
            return;
        }
        let answered = self.answered.entry(from).or_default();
        *answered = number.max(*answered);
    }

    /// Takes out the reads that a quorum of `voters` has confirmed.
    pub(super) fn take_confirmed(&mut self, voters: &Voters) -> Vec<(ReadRequest, LogIndex)> {
        let reached = voters.reached(|id| self.answered.get(&id).copied()).min(self.newest());
        if reached <= self.confirmed {
            return Vec::new();
        }
        let count = usize::try_from(reached - self.confirmed).expect("no more than are waiting");
        self.confirmed = reached;
        self.waiting.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{ReadQueue, ReadRequest, Voters};
    use crate::model::{LogIndex, MemberId};

    fn three() -> Voters {
        Voters { incoming: (1..=3).map(MemberId).collect(), ..Voters::default() }
    }

    fn read(context: &'static [u8]) -> ReadRequest {
        ReadRequest { from: MemberId(1), context: Bytes::from_static(context) }
    }

    #[test]
    fn a_late_answer_does_not_confirm_a_read_with_the_same_client_context() {
        let mut reads = ReadQueue::default();
        assert!(reads.add(MemberId(1), read(b"same"), LogIndex(5)));
        let first = reads.heartbeat_context();
        reads.answer(MemberId(2), &first);
        assert_eq!(reads.take_confirmed(&three()).len(), 1);

        assert!(reads.add(MemberId(1), read(b"same"), LogIndex(9)));
        assert_ne!(reads.heartbeat_context(), first);
        reads.answer(MemberId(3), &first);
        assert!(reads.take_confirmed(&three()).is_empty());
    }

    #[test]
    fn one_answer_confirms_every_read_before_it() {
        let mut reads = ReadQueue::default();
        assert!(reads.add(MemberId(1), read(b"a"), LogIndex(5)));
        assert!(reads.add(MemberId(1), read(b"b"), LogIndex(6)));
        let context = reads.heartbeat_context();
        assert!(reads.add(MemberId(1), read(b"c"), LogIndex(7)));
        reads.answer(MemberId(2), &context);
        let indexes: Vec<u64> =
            reads.take_confirmed(&three()).iter().map(|(_, index)| index.0).collect();
        assert_eq!(indexes, [5, 6]);
        assert_eq!(reads.waiting.len(), 1);
    }

    #[test]
    fn an_answer_from_the_future_or_of_another_shape_is_ignored() {
        let mut reads = ReadQueue::default();
        assert!(reads.add(MemberId(1), read(b"a"), LogIndex(5)));
        reads.answer(MemberId(2), &99u64.to_le_bytes());
        reads.answer(MemberId(2), b"short");
        assert!(reads.take_confirmed(&three()).is_empty());
    }
}
