//! Reads a file that may lie.
//!
//! Decides which pages to believe: a page is used only after its number, kind, extent, elements
//! and key order were checked against its parent and the length of the file. Called by `exchange`
//! for foreign data directories and backups, and by the offline tools.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use bytes::Bytes;

use super::{
    BoltError, Damage, PageId,
    page::{
        BUCKET_BYTES, BranchElement, ELEMENT_BUCKET, ELEMENT_BYTES, HEADER_BYTES, Header, Kind,
        LeafElement, META_BYTES, Meta, MetaFault, u64_at,
    },
};

/// Deeper than any tree can be whose branches have two children each.
const DEPTH_MAX: usize = 64;
/// The page sizes that a writer may have chosen: 1 KiB to 64 MiB, as bbolt tries them.
const PAGE_BYTES_MIN: u32 = 1024;
const PAGE_BYTES_MAX: u32 = 64 << 20;

/// Where the bytes of a file come from.
pub trait Source {
    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// If the bytes cannot be had, all of them.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// The length in bytes.
    ///
    /// # Errors
    /// If it cannot be found out.
    fn length(&self) -> io::Result<u64>;
}

/// An open file.
#[derive(Debug)]
pub struct Database<S = File> {
    source: S,
    pub(super) meta: Meta,
}

/// A top-level bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Its name.
    pub name: Bytes,
    pub(super) root: Root,
}

/// One key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// The value; shares the memory of its page.
    pub value: Bytes,
}

/// Where a tree starts.
#[derive(Clone, Debug)]
pub(super) enum Root {
    Page(PageId),
    /// A page image within the leaf of `within`.
    Inline {
        image: Bytes,
        within: PageId,
    },
}

/// A page whose header and elements were checked.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    pub(super) id: PageId,
    pub(super) overflow: u32,
    pub(super) kind: Kind,
    count: usize,
    bytes: Bytes,
}

/// The entries of one tree, in key order.
#[derive(Debug)]
pub struct Entries<'a, S> {
    database: &'a Database<S>,
    root: Option<Root>,
    path: Vec<Step>,
    last_key: Option<Bytes>,
    failed: bool,
}

/// A page on the way to the current entry.
#[derive(Debug)]
struct Step {
    page: Loaded,
    next: usize,
    /// The first key that belongs to the next sibling of this page.
    below: Option<Bytes>,
}

/// A leaf element with its flags.
pub(super) struct Element {
    pub(super) flags: u32,
    pub(super) entry: Entry,
    pub(super) page: PageId,
}

impl Source for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl Source for Bytes {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buffer.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(part);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl Database<File> {
    /// Opens the file at `path` for reading. Whatever follows the pages is ignored: backups end
    /// in a hash.
    ///
    /// # Errors
    /// - [`BoltError::Io`] if it cannot be read.
    /// - [`BoltError::NotADatabase`], [`BoltError::OtherVersion`], [`BoltError::MetaChecksum`]
    ///   without a valid meta page.
    /// - [`BoltError::Damaged`] if the file is shorter than its pages.
    pub fn open(path: &Path) -> Result<Self, BoltError> {
        Self::new(File::open(path)?)
    }
}

impl<S: Source> Database<S> {
    /// Reads from `source`.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub fn new(source: S) -> Result<Self, BoltError> {
        let length = source.length()?;
        let meta = find_meta(&source, length)?;
        let page_bytes = u64::from(meta.page_bytes);
        let sound = page_bytes.is_power_of_two()
            && (PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&meta.page_bytes)
            && meta.root.0 < meta.high_water
            && 2 < meta.high_water
            && meta.high_water.checked_mul(page_bytes).is_some_and(|end| end <= length);
        if !sound {
            let page = PageId(meta.txid % 2);
            return Err(BoltError::Damaged {
                page,
                offset: page.0.saturating_mul(page_bytes),
                damage: Damage::BadMeta,
            });
        }
        Ok(Self { source, meta })
    }

    /// The length of all pages, in bytes; what bbolt calls the size of the database.
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        self.meta.high_water * u64::from(self.meta.page_bytes)
    }

    /// All top-level buckets, in name order.
    ///
    /// # Errors
    /// - [`BoltError::Damaged`] if the root tree is, or holds anything but buckets.
    pub fn buckets(&self) -> Result<Vec<Bucket>, BoltError> {
        let mut buckets = Vec::new();
        let mut walk = Entries::new(self, Root::Page(self.meta.root));
        while let Some(element) = walk.next_element()? {
            if element.flags & ELEMENT_BUCKET == 0 {
                return Err(self.damaged(element.page, Damage::WrongEntry));
            }
            let root = self.bucket_root(element.page, &element.entry.value)?;
            buckets.push(Bucket { name: element.entry.key, root });
        }
        Ok(buckets)
    }

    /// The entries of `bucket`, in key order.
    #[must_use]
    pub fn entries(&self, bucket: &Bucket) -> Entries<'_, S> {
        Entries::new(self, bucket.root.clone())
    }

    fn bucket_root(&self, page: PageId, value: &Bytes) -> Result<Root, BoltError> {
        let bad = || self.damaged(page, Damage::BadBucket);
        if value.len() < BUCKET_BYTES {
            return Err(bad());
        }
        match u64_at(value, 0).ok_or_else(bad)? {
            0 => Ok(Root::Inline { image: value.slice(BUCKET_BYTES..), within: page }),
            root => Ok(Root::Page(PageId(root))),
        }
    }

    /// Reads the page or run that starts at `id`, and checks it.
    pub(super) fn load(&self, id: PageId) -> Result<Loaded, BoltError> {
        let (header, first) = self.load_raw(id)?;
        let kind = match Kind::of(header.flags) {
            Some(kind @ (Kind::Branch | Kind::Leaf)) => kind,
            Some(Kind::Meta | Kind::Freelist) | None => {
                return Err(self.damaged(id, Damage::WrongKind));
            }
        };
        let run_bytes = (u64::from(header.overflow) + 1) * u64::from(self.meta.page_bytes);
        let count = usize::from(header.count);
        // Only what the elements point at is read, so a wrong overflow alone costs no memory.
        let table_bytes = HEADER_BYTES + count * ELEMENT_BYTES;
        let table = self.extend(id, first, table_bytes as u64, run_bytes)?;
        let mut extent = table_bytes as u64;
        for index in 0..count {
            let (key, value) = extents(kind, &table, index)
                .ok_or_else(|| self.damaged(id, Damage::ElementOutOfBounds))?;
            if key.start < table_bytes as u64 {
                return Err(self.damaged(id, Damage::ElementOutOfBounds));
            }
            if key.start == key.end {
                return Err(self.damaged(id, Damage::Empty));
            }
            extent = extent.max(value.end);
        }
        let bytes = Bytes::from(self.extend(id, table, extent, run_bytes)?);
        let page = Loaded { id, overflow: header.overflow, kind, count, bytes };
        if !page.keys_ascend() {
            return Err(self.damaged(id, Damage::KeyOrder));
        }
        Ok(page)
    }

    /// Reads the first page at `id` and checks its header: number and run.
    pub(super) fn load_raw(&self, id: PageId) -> Result<(Header, Vec<u8>), BoltError> {
        if self.meta.high_water <= id.0 {
            return Err(self.damaged(id, Damage::OutOfBounds));
        }
        let page_bytes = usize::try_from(self.meta.page_bytes).expect("at most 64 MiB");
        let mut first = vec![0; page_bytes];
        self.source.read_exact_at(&mut first, self.offset(id))?;
        let header = Header::decode(&first).expect("a page is larger than its header");
        if header.id != id {
            return Err(self.damaged(id, Damage::OtherId));
        }
        let end = id.0.checked_add(u64::from(header.overflow)).and_then(|last| last.checked_add(1));
        if end.is_none_or(|end| self.meta.high_water < end) {
            return Err(self.damaged(id, Damage::OutOfBounds));
        }
        Ok((header, first))
    }

    /// Makes `bytes`, which are the first ones of the run at `id`, at least `wanted` long.
    pub(super) fn extend(
        &self,
        id: PageId,
        mut bytes: Vec<u8>,
        wanted: u64,
        run_bytes: u64,
    ) -> Result<Vec<u8>, BoltError> {
        if run_bytes < wanted {
            return Err(self.damaged(id, Damage::ElementOutOfBounds));
        }
        let have = bytes.len();
        let wanted = usize::try_from(wanted)
            .map_err(|_too_large| self.damaged(id, Damage::ElementOutOfBounds))?;
        if have < wanted {
            bytes.resize(wanted, 0);
            self.source.read_exact_at(&mut bytes[have..], self.offset(id) + have as u64)?;
        }
        Ok(bytes)
    }

    /// Checks the page image of an inline bucket.
    fn load_inline(&self, image: &Bytes, within: PageId) -> Result<Loaded, BoltError> {
        let bad = || self.damaged(within, Damage::BadBucket);
        let header = Header::decode(image).ok_or_else(bad)?;
        if Kind::of(header.flags) != Some(Kind::Leaf) || header.overflow != 0 {
            return Err(bad());
        }
        let count = usize::from(header.count);
        let table_bytes = HEADER_BYTES + count * ELEMENT_BYTES;
        for index in 0..count {
            let (key, value) = extents(Kind::Leaf, image, index).ok_or_else(bad)?;
            let inside = table_bytes as u64 <= key.start && value.end <= image.len() as u64;
            if !inside || key.start == key.end {
                return Err(bad());
            }
        }
        let page =
            Loaded { id: within, overflow: 0, kind: Kind::Leaf, count, bytes: image.clone() };
        if !page.keys_ascend() {
            return Err(self.damaged(within, Damage::KeyOrder));
        }
        Ok(page)
    }

    fn offset(&self, id: PageId) -> u64 {
        id.0 * u64::from(self.meta.page_bytes)
    }

    pub(super) fn damaged(&self, page: PageId, damage: Damage) -> BoltError {
        let offset = page.0.saturating_mul(u64::from(self.meta.page_bytes));
        BoltError::Damaged { page, offset, damage }
    }
}

impl Loaded {
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// The key of element `index`.
    pub(super) fn key(&self, index: usize) -> Bytes {
        let (key, _) = self.extents(index);
        self.bytes.slice(key)
    }

    /// The child of element `index` of a branch.
    pub(super) fn child(&self, index: usize) -> PageId {
        BranchElement::decode(&self.bytes, HEADER_BYTES + index * ELEMENT_BYTES)
            .expect("elements were checked when the page was loaded")
            .child
    }

    /// Element `index` of a leaf.
    pub(super) fn leaf(&self, index: usize) -> Element {
        let element = LeafElement::decode(&self.bytes, HEADER_BYTES + index * ELEMENT_BYTES)
            .expect("elements were checked when the page was loaded");
        let (key, value) = self.extents(index);
        let entry = Entry { key: self.bytes.slice(key), value: self.bytes.slice(value) };
        Element { flags: element.flags, entry, page: self.id }
    }

    fn extents(&self, index: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let (key, value) = extents(self.kind, &self.bytes, index)
            .expect("elements were checked when the page was loaded");
        let narrow = |range: std::ops::Range<u64>| {
            let place = |at| usize::try_from(at).expect("the page is in memory");
            place(range.start)..place(range.end)
        };
        (narrow(key), narrow(value))
    }

    fn keys_ascend(&self) -> bool {
        let key = |index| {
            let (key, _) = self.extents(index);
            &self.bytes[key]
        };
        (1..self.count).all(|index| key(index - 1) < key(index))
    }
}

impl<'a, S: Source> Entries<'a, S> {
    pub(super) const fn new(database: &'a Database<S>, root: Root) -> Self {
        Self { database, root: Some(root), path: Vec::new(), last_key: None, failed: false }
    }

    /// The next leaf element, bucket or not.
    pub(super) fn next_element(&mut self) -> Result<Option<Element>, BoltError> {
        if let Some(root) = self.root.take() {
            let page = match root {
                Root::Page(id) => self.database.load(id)?,
                Root::Inline { image, within } => self.database.load_inline(&image, within)?,
            };
            self.path.push(Step { page, next: 0, below: None });
        }
        while let Some(step) = self.path.last_mut() {
            let index = step.next;
            if step.page.count() <= index {
                self.path.pop();
                continue;
            }
            step.next += 1;
            match step.page.kind {
                Kind::Branch => self.descend(index)?,
                Kind::Leaf => return self.take(index).map(Some),
                Kind::Meta | Kind::Freelist => unreachable!("load refuses other kinds"),
            }
        }
        Ok(None)
    }

    fn descend(&mut self, index: usize) -> Result<(), BoltError> {
        let depth = self.path.len();
        let step = self.path.last().expect("the caller looked at it");
        let (parent, child, from) = (step.page.id, step.page.child(index), step.page.key(index));
        let below = if index + 1 < step.page.count() {
            Some(step.page.key(index + 1))
        } else {
            step.below.clone()
        };
        if DEPTH_MAX <= depth {
            return Err(self.database.damaged(parent, Damage::TooDeep));
        }
        let page = self.database.load(child)?;
        if page.count() == 0 {
            return Err(self.database.damaged(child, Damage::Empty));
        }
        if page.key(0) < from {
            return Err(self.database.damaged(child, Damage::KeyOrder));
        }
        self.path.push(Step { page, next: 0, below });
        Ok(())
    }

    fn take(&mut self, index: usize) -> Result<Element, BoltError> {
        let step = self.path.last().expect("the caller looked at it");
        let element = step.page.leaf(index);
        let key = &element.entry.key;
        let late = self.last_key.as_ref().is_some_and(|last| key <= last);
        let beyond = step.below.as_ref().is_some_and(|below| below <= key);
        if late || beyond {
            return Err(self.database.damaged(step.page.id, Damage::KeyOrder));
        }
        self.last_key = Some(key.clone());
        Ok(element)
    }
}

impl<S: Source> Iterator for Entries<'_, S> {
    type Item = Result<Entry, BoltError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_element().and_then(|element| match element {
            Some(element) if element.flags & ELEMENT_BUCKET != 0 => {
                Err(self.database.damaged(element.page, Damage::WrongEntry))
            }
            element => Ok(element.map(|element| element.entry)),
        });
        self.failed = next.is_err();
        next.transpose()
    }
}

/// Where key and value of element `index` lie in a run; `None` if the element itself does not fit.
fn extents(
    kind: Kind,
    bytes: &[u8],
    index: usize,
) -> Option<(std::ops::Range<u64>, std::ops::Range<u64>)> {
    let at = HEADER_BYTES + index * ELEMENT_BYTES;
    let (position, key_bytes, value_bytes) = if kind == Kind::Branch {
        let element = BranchElement::decode(bytes, at)?;
        (element.position, element.key_bytes, 0)
    } else {
        let element = LeafElement::decode(bytes, at)?;
        (element.position, element.key_bytes, element.value_bytes)
    };
    // Three u32 and a small offset cannot overflow a u64.
    let key_start = at as u64 + u64::from(position);
    let key_end = key_start + u64::from(key_bytes);
    Some((key_start..key_end, key_end..key_end + u64::from(value_bytes)))
}

/// The valid meta page with the highest transaction.
fn find_meta<S: Source>(source: &S, length: u64) -> Result<Meta, BoltError> {
    let first = meta_at(source, length, 0)?;
    let mut best = first.ok();
    // The second one lies one page further; without the first, the page size has to be guessed.
    let sizes = match best {
        Some(meta) => vec![meta.page_bytes],
        None => (0..16).map(|shift| PAGE_BYTES_MIN << shift).collect(),
    };
    for page_bytes in sizes {
        if let Ok(meta) = meta_at(source, length, u64::from(page_bytes))?
            && meta.page_bytes == page_bytes
            && best.is_none_or(|best| best.txid < meta.txid)
        {
            best = Some(meta);
        }
    }
    best.ok_or(match first {
        Err(MetaFault::Version) => BoltError::OtherVersion,
        Err(MetaFault::Checksum) => BoltError::MetaChecksum,
        Ok(_) | Err(MetaFault::Magic) => BoltError::NotADatabase,
    })
}

fn meta_at<S: Source>(
    source: &S,
    length: u64,
    offset: u64,
) -> Result<Result<Meta, MetaFault>, BoltError> {
    let record = (HEADER_BYTES + META_BYTES) as u64;
    if offset.checked_add(record).is_none_or(|end| length < end) {
        return Ok(Err(MetaFault::Magic));
    }
    let mut bytes = [0; HEADER_BYTES + META_BYTES];
    source.read_exact_at(&mut bytes, offset)?;
    Ok(Meta::decode(&bytes[HEADER_BYTES..]))
}
