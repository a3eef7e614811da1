//! Checks the pages of a backend's data file before LMDB maps it.
//!
//! Decides whether every number that LMDB would follow leads somewhere: it trusts its file, and a
//! flipped bit in a page number kills the process instead of raising an error. Checksums of what
//! the pages hold are checked afterwards, through the backend. Called by `verify`.
//!
//! ```text
//!   page   | number LE8 | pad 2 | flags LE2 | lower LE2 | upper LE2 | places LE2.. |  | nodes |
//!   node   | low LE2 | high LE2 | flags LE2 | key length LE2 | key | data             |
//!            leaf: length of the data        branch: child, with the flags as its top bits
//! ```
//!
//! Source: LMDB `mdb.c`.

use std::{fmt, fs::File, io, os::unix::fs::FileExt, path::Path};

const HEADER_BYTES: usize = 16;
const NODE_BYTES: usize = 8;
const META_BYTES: usize = 152;
/// The record of a tree: where it starts is in its last eight bytes.
const TREE_BYTES: usize = 48;
const MAGIC: u32 = 0xBEEF_C0DE;
/// The root of an empty tree.
const NO_PAGE: u64 = u64::MAX;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const OVERFLOW: u16 = 4;
/// A leaf's data is in pages of its own.
const BIG_DATA: u16 = 1;
/// A leaf's data is the record of another tree.
const TREE: u16 = 2;
/// LMDB gives up on deeper trees.
const DEPTH_MAX: usize = 32;
/// More than these are not told.
const FAULTS_MAX: usize = 1000;

/// A page that LMDB must not follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageFault {
    pub(super) page: u64,
    pub(super) offset: u64,
    what: &'static str,
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {} at offset {}: {}", self.page, self.offset, self.what)
    }
}

/// Follows every page of the last commit in `path`; an empty list is good.
pub(super) fn check(path: &Path) -> io::Result<Vec<PageFault>> {
    let file = File::open(path)?;
    let file_bytes = file.metadata()?.len();
    let fault = |page, what| Ok(vec![PageFault { page, offset: 0, what }]);
    let mut first = [0; HEADER_BYTES + META_BYTES];
    if file_bytes < first.len() as u64 {
        return fault(0, "the file is too short");
    }
    file.read_exact_at(&mut first, 0)?;
    let page_bytes = u32_at(&first, HEADER_BYTES + 24);
    if u32_at(&first, HEADER_BYTES) != MAGIC
        || !page_bytes.is_power_of_two()
        || !(512..=65_536).contains(&page_bytes)
        || file_bytes < 2 * u64::from(page_bytes)
    {
        return fault(0, "the meta page is no such thing");
    }
    let mut second = [0; HEADER_BYTES + META_BYTES];
    file.read_exact_at(&mut second, u64::from(page_bytes))?;
    let newest = [first, second].into_iter().max_by_key(|meta| u64_at(meta, HEADER_BYTES + 128));
    let newest = newest.expect("there are two");
    let record = &newest[HEADER_BYTES..];
    let last = u64_at(record, 120);
    let pages = file_bytes / u64::from(page_bytes);
    if u64_at(record, 16) / u64::from(page_bytes) < last {
        return fault(0, "the last page lies outside of the map");
    }
    let words = usize::try_from(pages.div_ceil(64)).map_err(io::Error::other)?;
    let mut walk = Walk {
        file,
        page_bytes: u64::from(page_bytes),
        pages: pages.min(last + 1),
        seen: vec![0; words],
        faults: Vec::new(),
    };
    walk.tree(u64_at(record, 24 + 40), 0)?;
    walk.tree(u64_at(record, 72 + 40), 0)?;
    Ok(walk.faults)
}

struct Walk {
    file: File,
    page_bytes: u64,
    /// Pages that the file holds and the last commit may use.
    pages: u64,
    /// One bit for each page that was reached.
    seen: Vec<u64>,
    faults: Vec<PageFault>,
}

/// Why a page was not followed.
type Fault = &'static str;

impl Walk {
    /// Follows the tree whose root is `page`.
    fn tree(&mut self, page: u64, depth: usize) -> io::Result<()> {
        if page == NO_PAGE || FAULTS_MAX <= self.faults.len() {
            return Ok(());
        }
        let mut next = Vec::new();
        match self.page(page, depth, &mut next)? {
            Ok(()) => next.into_iter().try_for_each(|page| self.tree(page, depth + 1)),
            Err(what) => {
                let offset = page.saturating_mul(self.page_bytes);
                self.faults.push(PageFault { page, offset, what });
                Ok(())
            }
        }
    }

    /// Checks one page of a tree; `next` gets the pages below it.
    fn page(
        &mut self,
        page: u64,
        depth: usize,
        next: &mut Vec<u64>,
    ) -> io::Result<Result<(), Fault>> {
        if DEPTH_MAX <= depth {
            return Ok(Err("the tree is too deep"));
        }
        if let Err(what) = self.reach(page, 1) {
            return Ok(Err(what));
        }
        let bytes = self.read(page, self.page_bytes)?;
        let kind = u16_at(&bytes, 10);
        let (lower, upper) = (usize::from(u16_at(&bytes, 12)), usize::from(u16_at(&bytes, 14)));
        if u64_at(&bytes, 0) != page {
            return Ok(Err("is marked as another page"));
        }
        if kind != BRANCH && kind != LEAF {
            return Ok(Err("is of an unexpected kind"));
        }
        if lower < HEADER_BYTES || lower % 2 != 0 || upper < lower || bytes.len() < upper {
            return Ok(Err("its bounds are impossible"));
        }
        let places = bytes[HEADER_BYTES..lower].chunks_exact(2);
        let count_min = if kind == BRANCH { 2 } else { 1 };
        if places.len() < count_min {
            return Ok(Err("has too few nodes"));
        }
        for place in places {
            let at = usize::from(u16_at(place, 0));
            let checked = if at < upper { Err("a node lies outside") } else { Ok(()) };
            let checked = match checked {
                Ok(()) if kind == BRANCH => branch_node(&bytes, at, next),
                Ok(()) => self.leaf_node(&bytes, at, next)?,
                Err(what) => Err(what),
            };
            if checked.is_err() {
                return Ok(checked);
            }
        }
        Ok(Ok(()))
    }

    fn leaf_node(
        &mut self,
        bytes: &[u8],
        at: usize,
        next: &mut Vec<u64>,
    ) -> io::Result<Result<(), Fault>> {
        let Some(node) = bytes.get(at..at + NODE_BYTES) else {
            return Ok(Err("a node lies outside"));
        };
        let data_bytes = u64::from(u16_at(node, 0)) | u64::from(u16_at(node, 2)) << 16;
        let flags = u16_at(node, 4);
        let data = at + NODE_BYTES + usize::from(u16_at(node, 6));
        let stored = match flags {
            0 => data_bytes,
            BIG_DATA => 8,
            TREE => TREE_BYTES as u64,
            _ => return Ok(Err("a node is of an unexpected kind")),
        };
        let end = data as u64 + stored;
        if (bytes.len() as u64) < end {
            return Ok(Err("a node's data lies outside"));
        }
        match flags {
            BIG_DATA => return self.overflow(u64_at(bytes, data), data_bytes),
            TREE => next.push(u64_at(bytes, data + 40)),
            _ => {}
        }
        Ok(Ok(()))
    }

    /// Checks the run of pages that holds `data_bytes` of one node.
    fn overflow(&mut self, page: u64, data_bytes: u64) -> io::Result<Result<(), Fault>> {
        let needed = (HEADER_BYTES as u64 + data_bytes).div_ceil(self.page_bytes);
        if let Err(what) = self.reach(page, needed) {
            return Ok(Err(what));
        }
        let header = self.read(page, HEADER_BYTES as u64)?;
        let sound = u64_at(&header, 0) == page
            && u16_at(&header, 10) == OVERFLOW
            && needed <= u64::from(u32_at(&header, 12));
        Ok(if sound { Ok(()) } else { Err("a node's data is not where it should be") })
    }

    /// Marks a run as reached; it must lie in the file and be new.
    fn reach(&mut self, page: u64, count: u64) -> Result<(), Fault> {
        let end = page.checked_add(count).filter(|end| *end <= self.pages);
        let Some(end) = end.filter(|_| 2 <= page) else {
            return Err("lies outside of the file");
        };
        for page in page..end {
            let word = usize::try_from(page / 64).map_err(|_too_far| "lies outside of the file")?;
            let bit = 1 << (page % 64);
            if self.seen[word] & bit != 0 {
                return Err("is used twice");
            }
            self.seen[word] |= bit;
        }
        Ok(())
    }

    fn read(&self, page: u64, bytes: u64) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut buffer, page * self.page_bytes)?;
        Ok(buffer)
    }
}

fn branch_node(bytes: &[u8], at: usize, next: &mut Vec<u64>) -> Result<(), Fault> {
    let node = bytes.get(at..at + NODE_BYTES).ok_or("a node lies outside")?;
    let key_end = at + NODE_BYTES + usize::from(u16_at(node, 6));
    if bytes.len() < key_end {
        return Err("a node's key lies outside");
    }
    let [low, high, top] = [0, 2, 4].map(|at| u64::from(u16_at(node, at)));
    next.push(low | high << 16 | top << 32);
    Ok(())
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of that length")
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}
