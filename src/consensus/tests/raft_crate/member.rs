//! What a group asks of a member, whoever implements it. A member's disk is done at once.

use bytes::Bytes;
use prost::Message as _;
use proto::raftpb::{
    ConfChange, ConfChangeSingle, ConfChangeV2, ConfState, Entry, EntryType, Message,
};

use crate::model::{LogIndex, Term, entry_data, entry_kind};

/// Where founders begin: behind a snapshot that names them, which newcomers are sent.
pub(super) const FOUNDED: (LogIndex, Term) = (LogIndex(1), Term(1));

/// What a turn of a member made happen.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) messages: Vec<Message>,
    /// A snapshot's position.
    pub(super) installed: Option<(LogIndex, ConfState)>,
    pub(super) applied: Vec<(LogIndex, Term, Bytes)>,
    /// The membership after each change of it.
    pub(super) conf_states: Vec<(LogIndex, ConfState)>,
    /// Contexts of reads with what they are to see.
    pub(super) reads: Vec<(Bytes, LogIndex)>,
}

/// One implementation of a member, with a disk that is done at once.
pub(super) trait Member {
    fn start(&mut self);
    fn crash(&mut self);
    fn is_running(&self) -> bool;
    fn tick(&mut self);
    fn step(&mut self, message: Message);
    /// Does everything there is to do.
    fn turn(&mut self) -> Turn;
    fn propose(&mut self, payload: Bytes);
    fn propose_change(&mut self, change: &ConfChangeV2);
    fn read(&mut self, context: Bytes);
    fn transfer(&mut self, to: u64);
    fn report_snapshot(&mut self, about: u64, arrived: bool);
    fn report_unreachable(&mut self, about: u64);
    /// Forgets the log up to what is applied.
    fn compact(&mut self);
    /// Its term, if it leads.
    fn leads(&self) -> Option<Term>;
    fn applied(&self) -> LogIndex;
}

/// The change of membership that an entry asks for.
pub(super) fn change_of(entry: &Entry) -> Option<ConfChangeV2> {
    let data = entry_data(entry);
    match entry_kind(entry).expect("a known kind") {
        EntryType::EntryNormal => None,
        EntryType::EntryConfChange => {
            let change = ConfChange::decode(data).unwrap();
            let single = ConfChangeSingle { r#type: change.r#type, node_id: change.node_id };
            Some(ConfChangeV2 { changes: vec![single], ..ConfChangeV2::default() })
        }
        EntryType::EntryConfChangeV2 => Some(ConfChangeV2::decode(data).unwrap()),
    }
}
