//! Whether the bytes that a memory map lends are in its file.
//!
//! Decides what is read of a record whose stored length goes beyond the end of the file, as one
//! flipped bit can make it: nothing, which no record is. To touch what is not there would end the
//! process by a signal. LMDB neither bounds lengths nor tells where its map begins, so the kernel is
//! asked, which reports a byte that it cannot copy. Used by whatever reads an environment.
//!
//! ```text
//!   map   |--------------------------------------------|:::::::::::::::::::|
//!                 ^ a record begins    ^ known_to      ^ end of the file
//!                                       a byte per page is tried from here to the record's end
//! ```
//!
//! Invariants
//! - R1 From the beginning of the map to `known_to` all is in the file, which never shrinks under
//!   its map. So no page is tried twice, and most never.
//!
//! Deliberately absent: memory that no map lends. LMDB has changed pages of a write transaction on
//! the heap.

use std::{
    io,
    os::fd::OwnedFd,
    sync::atomic::{AtomicUsize, Ordering},
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::{Errno, pwrite},
};

/// The smallest page of any system, in bytes.
const PAGE_BYTES: usize = 4096;

/// How far the file under one map is known to go.
#[derive(Debug)]
pub(super) struct Reach {
    /// Where tried bytes are copied to: memory.
    probe: OwnedFd,
    /// An address in the map.
    known_to: AtomicUsize,
}

impl Reach {
    /// Of a map of which nothing is known yet.
    ///
    /// # Errors
    /// If the process has too many files open.
    pub(super) fn new() -> io::Result<Self> {
        let probe = memfd_create("oxetcd-probe", MemfdFlags::CLOEXEC)?;
        Ok(Self { probe, known_to: AtomicUsize::new(0) })
    }

    /// A key and what is stored under it, as the map lent them, or nothing for what is not all in
    /// the file. What is stored may begin where the key ends.
    pub(super) fn record<'t>(&self, key: &'t [u8], sealed: &'t [u8]) -> (&'t [u8], &'t [u8]) {
        let key = self.within(key);
        (key, if key.is_empty() { key } else { self.within(sealed) })
    }

    /// What the map lent, or nothing if not all of it is in the file.
    pub(super) fn within<'t>(&self, lent: &'t [u8]) -> &'t [u8] {
        let start = lent.as_ptr().addr();
        let end = start + lent.len();
        // What stands before it, a key or a header, has been read.
        let is_in_page = lent.is_empty() || (start - 1) / PAGE_BYTES == (end - 1) / PAGE_BYTES;
        let known_to = self.known_to.load(Ordering::Relaxed);
        if is_in_page || end <= known_to || self.is_readable(lent, known_to.saturating_sub(start)) {
            lent
        } else {
            &[]
        }
    }

    /// Tries every page of `lent` behind its first `known` bytes.
    #[cold]
    fn is_readable(&self, lent: &[u8], known: usize) -> bool {
        let last = lent.len() - 1;
        for position in (known..last).step_by(PAGE_BYTES).chain([last]) {
            match pwrite(&self.probe, &lent[position..=position], 0) {
                Ok(_) => {}
                Err(Errno::FAULT) => return false,
                // The system is at its limits, and nothing is learned.
                Err(_) => return true,
            }
        }
        self.known_to.fetch_max(lent.as_ptr().addr() + lent.len(), Ordering::Relaxed);
        true
    }
}
