//! Tests of the core as a whole, one file per way of testing it.

mod chaos;
mod cluster;
mod gone;
mod interaction;
mod pure;
mod raft_crate;
mod random_scripts;
mod script;
mod single;
mod traps;

use std::panic::{AssertUnwindSafe, catch_unwind};

use proto::raftpb::{Message, MessageType};

use crate::{consensus::Raft, model::entry_index};

/// A message of member `id` to member 1.
fn from(id: u64, kind: MessageType, term: u64) -> Message {
    Message {
        r#type: Some(kind.into()),
        from: Some(id),
        to: Some(1),
        term: Some(term),
        ..Message::default()
    }
}

/// Takes what is ready, reports it durable and applied, and gives all messages.
fn finish(raft: &mut Raft) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(ready) = raft.ready() {
        messages.extend(ready.messages);
        if let Some(batch) = ready.batch {
            messages.extend(batch.messages);
            raft.persisted(batch.number);
        }
        if let Some(entry) = ready.committed.last() {
            raft.applied(entry_index(entry));
        }
    }
    messages
}

/// Runs the seed in `OXETCD_SEED`, or as many as `OXETCD_SEEDS` says, or `seeds`; what each gave.
///
/// # Panics
/// With `name`, the seed and the cause, if a run panics.
fn run_seeds<T>(name: &str, seeds: u64, run: impl Fn(u64) -> T) -> Vec<T> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number("OXETCD_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("OXETCD_SEEDS").unwrap_or(seeds),
    };
    let run = |seed| {
        catch_unwind(AssertUnwindSafe(|| run(seed))).unwrap_or_else(|cause| {
            let text = cause.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("?");
            panic!("{name}, OXETCD_SEED={seed}: {text}");
        })
    };
    seeds.map(run).collect()
}
