//! The first pass: where every page of a file will be.
//!
//! Decides page numbers and the total length from keys and value lengths alone. A tree level is
//! kept as one byte string, about 23 bytes for each leaf of a history bucket.

use super::{
    BoltError, KEY_BYTES_MAX, PAGE_BYTES, PageId, VALUE_BYTES_MAX,
    pack::Packer,
    page::{BUCKET_BYTES, INLINE_BYTES_MAX, Kind},
};

/// The pages that precede the first bucket: two metas and the free list.
pub(super) const FIRST_PAGE: PageId = PageId(3);

/// Collects lengths. Hand over buckets in name order, and each one's entries in key order.
#[derive(Debug)]
pub struct Planner {
    buckets: Vec<BucketPlan>,
    open: Option<(Vec<u8>, TreePlanner)>,
    next_page: u64,
}

/// The finished page plan.
#[derive(Debug)]
pub struct Plan {
    pub(super) buckets: Vec<BucketPlan>,
    pub(super) root: TreePlan,
}

/// The plan of one bucket.
#[derive(Debug)]
pub(super) struct BucketPlan {
    pub(super) name: Vec<u8>,
    pub(super) place: Place,
}

/// Where the entries of a bucket will be.
#[derive(Debug)]
pub(super) enum Place {
    /// In the parent's leaf: a page image of this many bytes.
    Inline { image_bytes: usize },
    /// In pages of their own.
    Pages(TreePlan),
}

/// The plan of one tree: its levels from the leaves up, in pages that follow each other.
#[derive(Debug)]
pub(super) struct TreePlan {
    pub(super) first_page: PageId,
    pub(super) levels: Vec<Level>,
}

/// The pages of one level: for each, how many numbers it takes and its first key.
#[derive(Debug, Default)]
pub(super) struct Level {
    packed: Vec<u8>,
    runs: u64,
    pages: u64,
}

/// The first pass over one tree.
#[derive(Debug)]
struct TreePlanner {
    leaves: Level,
    packer: Packer,
    first_key: Vec<u8>,
    last_key: Vec<u8>,
}

impl Planner {
    /// A plan for a file without buckets.
    #[must_use]
    pub fn new() -> Self {
        Self { buckets: Vec::new(), open: None, next_page: FIRST_PAGE.0 }
    }

    /// Starts the bucket `name`; the entries that follow are its own.
    ///
    /// # Errors
    /// - [`BoltError::OutOfOrder`] unless names ascend.
    /// - [`BoltError::Unfit`] for an empty name or one above [`KEY_BYTES_MAX`].
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), BoltError> {
        check_lengths(name, 0)?;
        self.close();
        if self.buckets.last().is_some_and(|before| name <= before.name.as_slice()) {
            return Err(BoltError::OutOfOrder);
        }
        self.open = Some((name.to_vec(), TreePlanner::new()));
        Ok(())
    }

    /// Adds an entry to the bucket started last.
    ///
    /// # Errors
    /// - [`BoltError::OutOfOrder`] unless keys ascend within the bucket.
    /// - [`BoltError::Unfit`] for an empty key, or lengths above [`KEY_BYTES_MAX`] and
    ///   [`VALUE_BYTES_MAX`].
    ///
    /// # Panics
    /// Before the first bucket.
    pub fn entry(&mut self, key: &[u8], value_bytes: usize) -> Result<(), BoltError> {
        let (_, tree) = self.open.as_mut().expect("callers start a bucket first");
        tree.entry(key, value_bytes)
    }

    /// Fixes the plan.
    ///
    /// # Errors
    /// None today; bucket names were checked when they came.
    pub fn finish(mut self) -> Result<Plan, BoltError> {
        self.close();
        let mut root = TreePlanner::new();
        for bucket in &self.buckets {
            root.entry(&bucket.name, bucket.place.value_bytes())?;
        }
        Ok(Plan { root: root.finish(PageId(self.next_page)), buckets: self.buckets })
    }

    fn close(&mut self) {
        let Some((name, tree)) = self.open.take() else { return };
        let place = match tree.inline_bytes() {
            Some(image_bytes) => Place::Inline { image_bytes },
            None => {
                let plan = tree.finish(PageId(self.next_page));
                self.next_page = plan.end().0;
                Place::Pages(plan)
            }
        };
        self.buckets.push(BucketPlan { name, place });
    }
}

impl Default for Planner {
    fn default() -> Self {
        Self::new()
    }
}

impl Plan {
    /// The exact length of the file, in bytes; a multiple of [`PAGE_BYTES`].
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        self.high_water() * PAGE_BYTES as u64
    }

    /// The first page number that the file does not use.
    pub(super) fn high_water(&self) -> u64 {
        self.root.end().0
    }
}

impl Place {
    /// The length of the bucket's value in the root leaf.
    const fn value_bytes(&self) -> usize {
        match self {
            Self::Inline { image_bytes } => BUCKET_BYTES + *image_bytes,
            Self::Pages(_) => BUCKET_BYTES,
        }
    }
}

impl TreePlan {
    /// The page of the topmost node.
    pub(super) fn root(&self) -> PageId {
        let top = self.levels.last().expect("a tree has at least its leaves");
        assert!(top.runs == 1, "a tree with {} roots", top.runs);
        PageId(self.end().0 - top.pages)
    }

    /// The page after the last one.
    pub(super) fn end(&self) -> PageId {
        PageId(self.first_page.0 + self.levels.iter().map(|level| level.pages).sum::<u64>())
    }

    /// The first page of level `index`.
    pub(super) fn level_start(&self, index: usize) -> PageId {
        let below = self.levels.iter().take(index).map(|level| level.pages).sum::<u64>();
        PageId(self.first_page.0 + below)
    }
}

impl Level {
    fn push(&mut self, first_key: &[u8], pages: u32) {
        let key_bytes =
            u16::try_from(first_key.len()).expect("keys are checked against KEY_BYTES_MAX");
        self.packed.extend_from_slice(&pages.to_le_bytes());
        self.packed.extend_from_slice(&key_bytes.to_le_bytes());
        self.packed.extend_from_slice(first_key);
        self.runs += 1;
        self.pages += u64::from(pages);
    }

    /// Each node of the level: its first page relative to the level, its pages, its first key.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (u64, u32, &[u8])> {
        let mut page = 0;
        let mut rest = self.packed.as_slice();
        std::iter::from_fn(move || {
            let (pages, after) = rest.split_first_chunk::<4>()?;
            let (key_bytes, after) = after.split_first_chunk::<2>()?;
            let (key, after) =
                after.split_at_checked(usize::from(u16::from_le_bytes(*key_bytes)))?;
            rest = after;
            let (start, pages) = (page, u32::from_le_bytes(*pages));
            page += u64::from(pages);
            Some((start, pages, key))
        })
    }

    /// The node that starts at `offset` of the level's bytes, and the offset of the next one.
    pub(super) fn node_at(&self, offset: usize) -> Option<(u32, &[u8], usize)> {
        let (pages, after) = self.packed.get(offset..)?.split_first_chunk::<4>()?;
        let (key_bytes, after) = after.split_first_chunk::<2>()?;
        let key_bytes = usize::from(u16::from_le_bytes(*key_bytes));
        Some((u32::from_le_bytes(*pages), after.get(..key_bytes)?, offset + 6 + key_bytes))
    }

    /// The branches above this level.
    fn parents(&self) -> Self {
        let mut parents = Self::default();
        let mut packer = Packer::new(Kind::Branch);
        let mut first_key: &[u8] = &[];
        for (_, _, key) in self.nodes() {
            if !packer.admits(key.len()) {
                parents.push(first_key, packer.pages());
                packer.clear();
            }
            if packer.count() == 0 {
                first_key = key;
            }
            packer.add(key.len());
        }
        if 0 < packer.count() {
            parents.push(first_key, packer.pages());
        }
        parents
    }
}

impl TreePlanner {
    fn new() -> Self {
        Self {
            leaves: Level::default(),
            packer: Packer::new(Kind::Leaf),
            first_key: Vec::new(),
            last_key: Vec::new(),
        }
    }

    fn entry(&mut self, key: &[u8], value_bytes: usize) -> Result<(), BoltError> {
        check_lengths(key, value_bytes)?;
        if key <= self.last_key.as_slice() {
            return Err(BoltError::OutOfOrder);
        }
        let payload_bytes = key.len() + value_bytes;
        if !self.packer.admits(payload_bytes) {
            self.close_leaf();
        }
        if self.packer.count() == 0 {
            replace(&mut self.first_key, key);
        }
        self.packer.add(payload_bytes);
        replace(&mut self.last_key, key);
        Ok(())
    }

    /// The size of the page image, if the whole tree is small enough to lie in its parent.
    fn inline_bytes(&self) -> Option<usize> {
        let bytes = self.packer.bytes();
        (self.leaves.runs == 0 && bytes <= INLINE_BYTES_MAX).then_some(bytes)
    }

    fn finish(mut self, first_page: PageId) -> TreePlan {
        // The root of a file without buckets is a leaf without elements.
        if 0 < self.packer.count() || self.leaves.runs == 0 {
            self.close_leaf();
        }
        let mut levels = vec![self.leaves];
        while let Some(parents) = levels.last().filter(|level| 1 < level.runs).map(Level::parents) {
            levels.push(parents);
        }
        TreePlan { first_page, levels }
    }

    fn close_leaf(&mut self) {
        self.leaves.push(&self.first_key, self.packer.pages());
        self.packer.clear();
    }
}

fn replace(buffer: &mut Vec<u8>, with: &[u8]) {
    buffer.clear();
    buffer.extend_from_slice(with);
}

fn check_lengths(key: &[u8], value_bytes: usize) -> Result<(), BoltError> {
    if key.is_empty() || KEY_BYTES_MAX < key.len() || VALUE_BYTES_MAX < value_bytes {
        return Err(BoltError::Unfit { key_bytes: key.len(), value_bytes });
    }
    Ok(())
}
