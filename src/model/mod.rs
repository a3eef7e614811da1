//! The words that every module shares: identifiers, positions, ranges, commands and outcomes.
//!
//! Decides what a value *is*, never what is done with it. Everything here is plain data without a
//! thread, a clock, a lock or an I/O call; every other module may use it, and it uses none.
//!
//! ```text
//!   client request --> Command --(raft entry)--> state::Machine::apply --> Outcome --> answer
//!                                                                           |
//!                                              Ok(Answer)  or  Err(Rejection)
//!   no outcome known --> Unavailable
//! ```
//!
//! Invariants
//! - M1 A [`Command`] decodes to the same value on every member, whatever its bytes hold.
//! - M2 A [`Rejection`] depends on replicated state only.
//! - M3 Stored rows are canonical protobuf: ascending tags, defaults omitted.

mod command;
mod entry;
mod ids;
mod outcome;
mod range;
mod row;

pub use command::{Command, CommandError, Request};
pub use entry::{entry_data, entry_index, entry_kind, entry_term, new_entry};
pub use ids::{ClusterId, LeaseId, LogIndex, MemberId, RequestId, Revision, Term};
pub use outcome::{
    Answer, DeleteAnswer, Outcome, PutAnswer, RangeAnswer, Rejection, TxnAnswer, Unavailable,
};
pub use range::KeyRange;
pub use row::{Row, RowRevision};
