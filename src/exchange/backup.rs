//! A database file in parts, through a bounded channel.
//!
//! Decides the size of parts and how many wait: an export runs at the pace of its receiver, and a
//! receiver that leaves ends it. Hashes are the receiver's business: a follower needs none. Called
//! on a thread of its own by whoever serves the parts.

use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::{ExchangeError, export};
use crate::{
    base::clock::Clock,
    model::{LogIndex, Term},
    storage::{
        Backend, Reader, Table, backup_took, keys,
        tables::{CONF_STATE, STORAGE_VERSION, TERM},
    },
};

/// The size of one part: large enough that hand-overs cost nothing beside copying and hashing.
const PART_BYTES: usize = 256 << 10;
const _: () = assert!(32 << 10 <= PART_BYTES, "parts are cut into blobs, never joined");

/// What is being sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The exact length of all parts, in bytes; a multiple of 512.
    pub bytes_total: u64,
    /// The position of the last log entry that it holds.
    pub index: LogIndex,
    /// The term of that entry.
    pub term: Term,
    /// The membership at that entry, as JSON; empty if it was never stored.
    pub conf_state: Bytes,
    /// The version of the storage schema, such as `3.7.0`; empty if unknown.
    pub storage_version: String,
}

/// A step of a transfer: [`Part::Begin`], then [`Part::Data`] any number of times, then
/// [`Part::End`]; or [`Part::Failed`] at any time, and nothing after it.
#[derive(Debug)]
pub enum Part {
    /// What follows.
    Begin(About),
    /// The next bytes.
    Data(Bytes),
    /// All bytes were sent.
    End,
    /// The export failed; what was sent is not a database.
    Failed(ExchangeError),
}

/// Sends the state of `backend` as one database file. Blocks while the channel is full, so it
/// belongs on a thread of its own; returns when everything was taken or the receiver is gone.
///
/// Only what has been flushed is sent: ask the flusher for a sync first where it matters.
pub fn run_backup(backend: &Backend, parts: &mpsc::Sender<Part>) {
    give_backup(backend, &mut |part| parts.blocking_send(part).map_err(|_gone| Gone));
}

/// Whoever takes the parts has left.
#[derive(Clone, Copy, Debug)]
pub struct Gone;

/// As [`run_backup`], to anybody who takes parts; `take` may block.
pub fn give_backup(backend: &Backend, take: &mut Taker<'_>) {
    let clock = Clock::system();
    let began = clock.now();
    let sent = send(backend, take);
    backup_took(clock.now() - began);
    match sent {
        // A receiver that left needs no message.
        Ok(()) | Err(ExchangeError::Receiver(_)) => {}
        Err(error) => drop(take(Part::Failed(error))),
    }
}

/// Takes the parts of a backup.
type Taker<'a> = dyn FnMut(Part) -> Result<(), Gone> + 'a;

fn send(backend: &Backend, take: &mut Taker<'_>) -> Result<(), ExchangeError> {
    let reader = backend.reader()?;
    let about = about(&reader)?;
    let mut refused = false;
    let out = Parts { take: &mut *take, buffer: BytesMut::new() };
    export(&reader, out, |bytes_total, out| {
        refused = (out.take)(Part::Begin(About { bytes_total, ..about })).is_err();
        out
    })?;
    if refused {
        return Err(ExchangeError::Receiver(gone()));
    }
    take(Part::End).map_err(|Gone| ExchangeError::Receiver(gone()))
}

/// The receiver's end of a backup that has begun: its bytes, in parts of any size. Blocks while
/// none is there, so it belongs on a thread that may.
#[derive(Debug)]
pub struct Pieces {
    parts: mpsc::Receiver<Part>,
    ended: bool,
}

/// Waits for the beginning of a backup: what it is, and its bytes.
///
/// # Errors
/// - what the export failed with; [`ExchangeError::Receiver`] if its thread is gone.
pub async fn receive_backup(
    mut parts: mpsc::Receiver<Part>,
) -> Result<(About, Pieces), ExchangeError> {
    match parts.recv().await {
        Some(Part::Begin(about)) => Ok((about, Pieces { parts, ended: false })),
        Some(Part::Failed(error)) => Err(error),
        Some(Part::Data(_) | Part::End) | None => Err(ExchangeError::Receiver(gone())),
    }
}

impl Iterator for Pieces {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let part = self.parts.blocking_recv();
        self.ended = !matches!(part, Some(Part::Data(_)));
        match part {
            Some(Part::Data(bytes)) => Some(Ok(bytes)),
            Some(Part::End) => None,
            Some(Part::Failed(error)) => Some(Err(io::Error::other(error))),
            // An export that ended without saying so is not a whole one.
            Some(Part::Begin(_)) | None => Some(Err(gone())),
        }
    }
}

fn about(reader: &Reader<'_>) -> Result<About, ExchangeError> {
    let text = |key| {
        let value = reader.get(Table::Meta, key)?;
        Ok::<_, ExchangeError>(Bytes::copy_from_slice(value.unwrap_or_default()))
    };
    let term = reader.get(Table::Meta, TERM)?.and_then(keys::parse_number);
    Ok(About {
        bytes_total: 0,
        index: reader.consistent_index()?,
        term: Term(term.unwrap_or(0)),
        conf_state: text(CONF_STATE)?,
        storage_version: String::from_utf8_lossy(&text(STORAGE_VERSION)?).into_owned(),
    })
}

/// Collects bytes into parts.
struct Parts<'a, 't> {
    take: &'a mut Taker<'t>,
    buffer: BytesMut,
}

impl Write for Parts<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(PART_BYTES);
        }
        let taken = bytes.len().min(PART_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == PART_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            let part = self.buffer.split().freeze();
            (self.take)(Part::Data(part)).map_err(|Gone| gone())?;
        }
        Ok(())
    }
}

fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}
