//! The rule that decides which elements share a page.
//!
//! Decides the fill: a page takes elements while they fit, up to the whole page. An element larger
//! than a page gets a run of pages, and what follows it may use the rest of the run. Both passes
//! of the writer follow this rule and nothing else (B1).

use super::page::{COUNT_MAX, ELEMENT_BYTES, HEADER_BYTES, Kind, PAGE_BYTES};

/// The page being filled.
#[derive(Clone, Debug)]
pub(super) struct Packer {
    bytes: usize,
    count: u16,
    count_min: u16,
}

impl Packer {
    /// A packer for pages of `kind`. A branch takes two children whatever their size: otherwise a
    /// tree of long keys would never come together at one root.
    pub(super) fn new(kind: Kind) -> Self {
        let count_min = match kind {
            Kind::Branch => 2,
            Kind::Leaf | Kind::Meta | Kind::Freelist => 1,
        };
        Self { bytes: HEADER_BYTES, count: 0, count_min }
    }

    /// Whether an element with `payload_bytes` of key and value belongs to this page.
    pub(super) const fn admits(&self, payload_bytes: usize) -> bool {
        if self.count < self.count_min {
            return true;
        }
        let room = run_pages(self.bytes) * PAGE_BYTES - self.bytes;
        self.count < COUNT_MAX && ELEMENT_BYTES + payload_bytes <= room
    }

    /// Adds an element that was admitted.
    pub(super) fn add(&mut self, payload_bytes: usize) {
        debug_assert!(self.admits(payload_bytes), "{payload_bytes} bytes were not admitted");
        self.bytes += ELEMENT_BYTES + payload_bytes;
        self.count += 1;
    }

    /// Starts the next page.
    pub(super) fn clear(&mut self) {
        self.bytes = HEADER_BYTES;
        self.count = 0;
    }

    /// Bytes in use, with the page header.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Elements of the page so far.
    pub(super) const fn count(&self) -> u16 {
        self.count
    }

    /// How many pages the elements so far need.
    pub(super) fn pages(&self) -> u32 {
        u32::try_from(run_pages(self.bytes))
            .expect("keys and values are bounded, so a run has fewer than 2^32 pages")
    }
}

const fn run_pages(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_takes_elements_up_to_its_last_byte() {
        let mut packer = Packer::new(Kind::Leaf);
        let rest = PAGE_BYTES - HEADER_BYTES - 2 * ELEMENT_BYTES - 100;
        packer.add(100);
        assert!(packer.admits(rest));
        assert!(!packer.admits(rest + 1));
    }

    #[test]
    fn entry_larger_than_a_page_leaves_the_rest_of_its_run_to_the_next() {
        let mut packer = Packer::new(Kind::Leaf);
        packer.add(PAGE_BYTES);
        assert_eq!(packer.pages(), 2);
        assert!(packer.admits(100));
        assert!(!packer.admits(PAGE_BYTES));
    }
}
