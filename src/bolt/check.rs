//! Checks a whole file: every page once, none lost, every tree in order.
//!
//! Decides what counts as a finding, and goes on after one. Called by the offline tools before
//! they believe a backup.
//!
//! Source: bbolt `tx_check.go`; the texts that overlap are its own, because people search for them.

use std::fmt;

use super::{
    BoltError, Damage, Database, PageId, Source,
    page::{COUNT_OVERFLOW, HEADER_BYTES, Kind, u64_at},
    reader::{Entries, Root},
};

/// The findings after which a check gives up listing them.
const FINDINGS_MAX: usize = 1000;

/// One inconsistency of a file.
#[derive(Debug)]
pub enum Finding {
    /// A page is listed twice as free.
    AlreadyFreed(PageId),
    /// A page is in use and listed as free.
    ReachableFreed(PageId),
    /// A page is used twice.
    MultipleReferences(PageId),
    /// A page is neither in use nor free.
    UnreachableUnfreed(PageId),
    /// A page or a tree cannot be read.
    Unreadable(BoltError),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyFreed(page) => write!(f, "page {page}: already freed"),
            Self::ReachableFreed(page) => write!(f, "page {page}: reachable freed"),
            Self::MultipleReferences(page) => write!(f, "page {page}: multiple references"),
            Self::UnreachableUnfreed(page) => write!(f, "page {page}: unreachable unfreed"),
            Self::Unreadable(error) => write!(f, "{error}"),
        }
    }
}

/// What is known of each page.
struct Pages {
    used: Bits,
    free: Bits,
    findings: Vec<Finding>,
}

struct Bits(Vec<u64>);

impl<S: Source> Database<S> {
    /// Checks everything that can be checked; an empty list is good.
    #[must_use]
    pub fn check(&self) -> Vec<Finding> {
        let mut pages = Pages {
            used: Bits::new(self.meta.high_water),
            free: Bits::new(self.meta.high_water),
            findings: Vec::new(),
        };
        pages.used.set(0);
        pages.used.set(1);
        if let Err(error) = self.check_freelist(&mut pages) {
            pages.find(Finding::Unreadable(error));
        }
        self.check_tree(&mut pages, self.meta.root);
        match self.buckets() {
            Err(error) => pages.find(Finding::Unreadable(error)),
            Ok(buckets) => {
                for bucket in buckets {
                    if let Root::Page(root) = bucket.root {
                        self.check_tree(&mut pages, root);
                    }
                    let bad = Entries::new(self, bucket.root).find_map(Result::err);
                    pages.findings.extend(bad.map(Finding::Unreadable));
                }
            }
        }
        // A file without a written free list has free pages that nobody lists.
        if self.meta.freelist.is_some() && pages.findings.is_empty() {
            for page in 0..self.meta.high_water {
                if !pages.used.get(page) && !pages.free.get(page) {
                    pages.find(Finding::UnreachableUnfreed(PageId(page)));
                }
            }
        }
        pages.findings
    }

    fn check_freelist(&self, pages: &mut Pages) -> Result<(), BoltError> {
        let Some(id) = self.meta.freelist else { return Ok(()) };
        let (header, first) = self.load_raw(id)?;
        if Kind::of(header.flags) != Some(Kind::Freelist) {
            return Err(self.damaged(id, Damage::WrongKind));
        }
        pages.take(id, header.overflow);
        let out_of_bounds = || self.damaged(id, Damage::ElementOutOfBounds);
        let (skip, count) = if header.count == COUNT_OVERFLOW {
            (1, u64_at(&first, HEADER_BYTES).ok_or_else(out_of_bounds)?)
        } else {
            (0, u64::from(header.count))
        };
        let run_bytes = (u64::from(header.overflow) + 1) * u64::from(self.meta.page_bytes);
        let wanted = count
            .checked_add(skip)
            .and_then(|count| count.checked_mul(8))
            .and_then(|bytes| bytes.checked_add(HEADER_BYTES as u64))
            .ok_or_else(out_of_bounds)?;
        let bytes = self.extend(id, first, wanted, run_bytes)?;
        let start = HEADER_BYTES + if skip == 1 { 8 } else { 0 };
        let end = usize::try_from(wanted).map_err(|_too_large| out_of_bounds())?;
        for offset in (start..end).step_by(8) {
            let free = u64_at(&bytes, offset).ok_or_else(out_of_bounds)?;
            if self.meta.high_water <= free {
                return Err(self.damaged(PageId(free), Damage::OutOfBounds));
            }
            if pages.free.set(free) {
                pages.find(Finding::AlreadyFreed(PageId(free)));
            }
        }
        Ok(())
    }

    /// Marks every page of the tree at `root`. Key order is the business of [`Entries`].
    fn check_tree(&self, pages: &mut Pages, root: PageId) {
        let mut waiting = vec![root];
        while let Some(id) = waiting.pop() {
            match self.load(id) {
                Err(error) => pages.find(Finding::Unreadable(error)),
                // A page that was seen before is not followed again, so loops end.
                Ok(page) if pages.take(id, page.overflow) && page.kind == Kind::Branch => {
                    waiting.extend((0..page.count()).map(|index| page.child(index)));
                }
                Ok(_) => {}
            }
        }
    }
}

impl Pages {
    /// Marks a run as used; whether its first page is new.
    fn take(&mut self, id: PageId, overflow: u32) -> bool {
        let mut new = true;
        for page in id.0..=id.0 + u64::from(overflow) {
            if self.used.set(page) {
                new = new && page != id.0;
                self.find(Finding::MultipleReferences(PageId(page)));
            }
            if self.free.get(page) {
                self.find(Finding::ReachableFreed(PageId(page)));
            }
        }
        new
    }

    fn find(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}

impl Bits {
    fn new(count: u64) -> Self {
        // The count is bounded by the length of the file over its page size.
        let words = usize::try_from(count.div_ceil(64)).expect("the pages of a file are countable");
        Self(vec![0; words])
    }

    fn get(&self, index: u64) -> bool {
        let (word, bit) = place(index);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Sets a bit; whether it was set before.
    fn set(&mut self, index: u64) -> bool {
        let (word, bit) = place(index);
        let Some(word) = self.0.get_mut(word) else { return false };
        let before = *word & bit != 0;
        *word |= bit;
        before
    }
}

fn place(index: u64) -> (usize, u64) {
    (usize::try_from(index / 64).unwrap_or(usize::MAX), 1 << (index % 64))
}
