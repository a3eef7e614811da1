//! The clients of a simulated group, and what they have seen.
//!
//! Decides what each does next: one operation at a time, at one member until that fails. Values are
//! unique, so that the history can be judged (`history`). Owned by the world.

use bytes::Bytes;
use proto::etcdserverpb::PutRequest;

use super::history::{Kind, Operation};
use crate::{
    base::random::Random,
    model::{Command, MemberId, Request, RequestId},
};

/// Few registers, so that operations meet.
const KEYS: u64 = 3;

/// Who waits for the answer to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pending {
    /// Where in the history it is.
    pub(super) operation: usize,
    pub(super) member: MemberId,
    /// The life of the member that took it.
    pub(super) life: u64,
    pub(super) request: Option<RequestId>,
}

/// One client.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Client {
    pub(super) member: Option<MemberId>,
    pub(super) pending: Option<Pending>,
}

/// Every operation of every client, and the moments of their starts and ends.
#[derive(Debug, Default)]
pub(super) struct History {
    operations: Vec<Operation>,
    /// Reads that failed say nothing.
    failed: Vec<usize>,
    moment: u64,
    last_value: u64,
}

impl History {
    fn next_moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// Begins a write of a new value, or a read.
    pub(super) fn begin(&mut self, kind: Kind, random: &mut Random) -> (usize, Operation) {
        let key = u8::try_from(random.below(KEYS)).expect("there are few keys");
        let value = match kind {
            Kind::Write => {
                self.last_value += 1;
                self.last_value
            }
            Kind::Read => 0,
        };
        let start = self.next_moment();
        let operation = Operation { key, value, kind, start, end: u64::MAX };
        self.operations.push(operation);
        (self.operations.len() - 1, operation)
    }

    /// The write is acknowledged, or the read found `value`.
    pub(super) fn end(&mut self, index: usize, value: u64) {
        let end = self.next_moment();
        let operation = &mut self.operations[index];
        operation.end = end;
        operation.value = value;
    }

    /// Nobody will hear of the outcome.
    pub(super) fn give_up(&mut self, index: usize) {
        if self.operations[index].kind == Kind::Read {
            self.failed.push(index);
        }
    }

    pub(super) fn operation(&self, index: usize) -> Operation {
        self.operations[index]
    }

    /// What can be judged: all but reads without an answer.
    pub(super) fn judged(&self) -> Vec<Operation> {
        let answered =
            |operation: &&Operation| operation.kind == Kind::Write || operation.end != u64::MAX;
        self.operations.iter().filter(answered).copied().collect()
    }
}

/// The write of an operation, as it stands in the log.
pub(super) fn encode(operation: Operation, id: RequestId) -> Bytes {
    let put = PutRequest {
        key: Bytes::copy_from_slice(&[operation.key]),
        value: Bytes::copy_from_slice(&operation.value.to_be_bytes()),
        ..PutRequest::default()
    };
    Command::new(id, Request::Put(put)).encode()
}
