//! The second pass: emits the planned file from front to back.
//!
//! Decides nothing: every page number comes from the plan, and entries that differ from those of
//! the first pass are an error, never a broken file. Called by `exchange`.

use std::io::Write;

use super::{
    BoltError, PAGE_BYTES, Plan,
    pack::Packer,
    page::{
        BUCKET_BYTES, BranchElement, ELEMENT_BUCKET, ELEMENT_BYTES, HEADER_BYTES, Header, Kind,
        LeafElement, Meta, PageId,
    },
    plan::{BucketPlan, FIRST_PAGE, Level, Place, TreePlan},
};

/// The page of the free list.
const FREELIST_PAGE: PageId = PageId(2);
const _: () = assert!(FREELIST_PAGE.0 + 1 == FIRST_PAGE.0, "no page may be unreachable (B3)");

/// Writes one file to `out`. Hand over what the [`super::Planner`] was given, with the values.
#[derive(Debug)]
pub struct Writer<W> {
    out: Out<W>,
    planned: std::vec::IntoIter<BucketPlan>,
    root: TreePlan,
    open: Option<OpenBucket>,
    /// What the root leaf will say: the buckets' names and values. Bounded by the number of buckets.
    finished: Vec<(Vec<u8>, Vec<u8>)>,
    bytes_total: u64,
}

#[derive(Debug)]
struct Out<W> {
    inner: W,
    /// The run of pages being assembled; reused.
    run: Vec<u8>,
    bytes: u64,
}

#[derive(Debug)]
struct OpenBucket {
    name: Vec<u8>,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Inline { leaf: Leaf, image_bytes: usize },
    Pages(TreeWriter),
}

/// Writes the leaves of a tree as entries come, then its branches.
#[derive(Debug)]
struct TreeWriter {
    plan: TreePlan,
    leaf: Leaf,
    /// Where the next leaf stands in the plan's first level.
    planned_leaf: usize,
    next_page: PageId,
}

/// The entries of the leaf being filled.
#[derive(Debug)]
struct Leaf {
    packer: Packer,
    elements: Vec<LeafElement>,
    payload: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Starts the file: the pages that precede the buckets.
    ///
    /// # Errors
    /// - [`BoltError::Io`] if `out` refuses.
    pub fn new(plan: Plan, out: W) -> Result<Self, BoltError> {
        let bytes_total = plan.bytes_total();
        let mut out = Out { inner: out, run: Vec::new(), bytes: 0 };
        for txid in [0, 1] {
            out.meta_page(&plan, txid)?;
        }
        Header::new(FREELIST_PAGE, Kind::Freelist, 0, 0).encode(&mut out.run);
        out.flush_run(1)?;
        Ok(Self {
            out,
            planned: plan.buckets.into_iter(),
            root: plan.root,
            open: None,
            finished: Vec::new(),
            bytes_total,
        })
    }

    /// Starts the bucket `name`.
    ///
    /// # Errors
    /// - [`BoltError::PlanBroken`] if it is not the planned one, or the one before it is short.
    /// - [`BoltError::Io`] if the output refuses.
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), BoltError> {
        self.close()?;
        let planned = self.planned.next().filter(|planned| planned.name == name);
        let Some(BucketPlan { name, place }) = planned else {
            return Err(BoltError::PlanBroken { page: self.out.page() });
        };
        let target = match place {
            Place::Inline { image_bytes } => Target::Inline { leaf: Leaf::new(), image_bytes },
            Place::Pages(plan) => Target::Pages(TreeWriter::new(plan)),
        };
        self.open = Some(OpenBucket { name, target });
        Ok(())
    }

    /// Adds an entry to the bucket started last.
    ///
    /// # Errors
    /// - [`BoltError::PlanBroken`] if the plan has no such entry here.
    /// - [`BoltError::Io`] if the output refuses.
    ///
    /// # Panics
    /// Before the first bucket.
    pub fn entry(&mut self, key: &[u8], value: &[u8]) -> Result<(), BoltError> {
        let open = self.open.as_mut().expect("callers start a bucket first");
        match &mut open.target {
            Target::Pages(tree) => tree.entry(&mut self.out, 0, key, value),
            Target::Inline { leaf, image_bytes } => {
                leaf.add(0, key, value);
                if *image_bytes < leaf.packer.bytes() {
                    return Err(BoltError::PlanBroken { page: self.out.page() });
                }
                Ok(())
            }
        }
    }

    /// Writes the root and gives the output back.
    ///
    /// # Errors
    /// - [`BoltError::PlanBroken`] if planned entries are missing.
    /// - [`BoltError::Io`] if the output refuses.
    pub fn finish(mut self) -> Result<W, BoltError> {
        self.close()?;
        if self.planned.next().is_some() {
            return Err(BoltError::PlanBroken { page: self.out.page() });
        }
        let mut root = TreeWriter::new(self.root);
        for (name, value) in &self.finished {
            root.entry(&mut self.out, ELEMENT_BUCKET, name, value)?;
        }
        root.finish(&mut self.out)?;
        assert!(
            self.out.bytes == self.bytes_total,
            "wrote {} of {} planned bytes",
            self.out.bytes,
            self.bytes_total
        );
        self.out.inner.flush()?;
        Ok(self.out.inner)
    }

    fn close(&mut self) -> Result<(), BoltError> {
        let Some(OpenBucket { name, target }) = self.open.take() else { return Ok(()) };
        let mut value = Vec::with_capacity(BUCKET_BYTES);
        match target {
            Target::Pages(tree) => {
                bucket_header(&mut value, tree.plan.root());
                tree.finish(&mut self.out)?;
            }
            Target::Inline { mut leaf, image_bytes } => {
                bucket_header(&mut value, PageId(0));
                leaf.encode(PageId(0), 0, &mut value);
                if value.len() != BUCKET_BYTES + image_bytes {
                    return Err(BoltError::PlanBroken { page: self.out.page() });
                }
            }
        }
        self.finished.push((name, value));
        Ok(())
    }
}

impl<W: Write> Out<W> {
    /// The page that the next byte belongs to.
    fn page(&self) -> PageId {
        PageId(self.bytes / PAGE_BYTES as u64)
    }

    fn meta_page(&mut self, plan: &Plan, txid: u64) -> Result<(), BoltError> {
        Header::new(PageId(txid), Kind::Meta, 0, 0).encode(&mut self.run);
        let meta = Meta {
            page_bytes: u32::try_from(PAGE_BYTES).expect("a page is small"),
            root: plan.root.root(),
            root_sequence: 0,
            freelist: Some(FREELIST_PAGE),
            high_water: plan.high_water(),
            txid,
        };
        meta.encode(&mut self.run);
        self.flush_run(1)
    }

    /// Pads the run to `pages` pages and writes it.
    fn flush_run(&mut self, pages: u32) -> Result<(), BoltError> {
        let bytes = usize::try_from(pages).expect("a run fits memory") * PAGE_BYTES;
        assert!(self.run.len() <= bytes, "{} bytes in {pages} pages", self.run.len());
        self.run.resize(bytes, 0);
        self.inner.write_all(&self.run)?;
        self.bytes += bytes as u64;
        self.run.clear();
        Ok(())
    }
}

impl TreeWriter {
    fn new(plan: TreePlan) -> Self {
        Self { next_page: plan.first_page, plan, leaf: Leaf::new(), planned_leaf: 0 }
    }

    fn entry<W: Write>(
        &mut self,
        out: &mut Out<W>,
        flags: u32,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), BoltError> {
        if !self.leaf.packer.admits(key.len() + value.len()) {
            self.flush_leaf(out)?;
        }
        if self.leaf.packer.count() == 0 {
            // A branch will name this key, so it has to be the planned one.
            let planned =
                self.plan.levels.first().and_then(|level| level.node_at(self.planned_leaf));
            if planned.is_none_or(|(_, planned, _)| planned != key) {
                return Err(BoltError::PlanBroken { page: self.next_page });
            }
        }
        self.leaf.add(flags, key, value);
        Ok(())
    }

    fn finish<W: Write>(mut self, out: &mut Out<W>) -> Result<(), BoltError> {
        let no_leaf = self.planned_leaf == 0;
        if 0 < self.leaf.packer.count() || no_leaf {
            self.flush_leaf(out)?;
        }
        if self.next_page != self.plan.level_start(1) {
            return Err(BoltError::PlanBroken { page: self.next_page });
        }
        for index in 1..self.plan.levels.len() {
            let children = self.plan.level_start(index - 1);
            let at = self.plan.level_start(index);
            write_branches(out, &self.plan.levels[index - 1], children, at)?;
        }
        assert!(out.page() == self.plan.end(), "tree ends at {}, not as planned", out.page());
        Ok(())
    }

    fn flush_leaf<W: Write>(&mut self, out: &mut Out<W>) -> Result<(), BoltError> {
        let planned = self.plan.levels.first().and_then(|level| level.node_at(self.planned_leaf));
        let pages = self.leaf.packer.pages();
        let Some((_, _, next_leaf)) = planned.filter(|(planned, _, _)| *planned == pages) else {
            return Err(BoltError::PlanBroken { page: self.next_page });
        };
        self.leaf.encode(self.next_page, pages - 1, &mut out.run);
        out.flush_run(pages)?;
        self.planned_leaf = next_leaf;
        self.next_page = PageId(self.next_page.0 + u64::from(pages));
        Ok(())
    }
}

/// Writes the branches above `children`, whose first page is `child_start`, from page `at` on.
fn write_branches<W: Write>(
    out: &mut Out<W>,
    children: &Level,
    child_start: PageId,
    at: PageId,
) -> Result<(), BoltError> {
    assert!(out.page() == at, "branches belong at {at}, not at {}", out.page());
    let mut packer = Packer::new(Kind::Branch);
    let mut elements: Vec<(PageId, &[u8])> = Vec::new();
    for (page, _, key) in children.nodes() {
        if !packer.admits(key.len()) {
            write_branch(out, &elements, packer.pages())?;
            elements.clear();
            packer.clear();
        }
        packer.add(key.len());
        elements.push((PageId(child_start.0 + page), key));
    }
    if !elements.is_empty() {
        write_branch(out, &elements, packer.pages())?;
    }
    Ok(())
}

fn write_branch<W: Write>(
    out: &mut Out<W>,
    elements: &[(PageId, &[u8])],
    pages: u32,
) -> Result<(), BoltError> {
    let count = u16::try_from(elements.len()).expect("the packer bounds the count");
    Header::new(out.page(), Kind::Branch, count, pages - 1).encode(&mut out.run);
    let mut payload = elements.len() * ELEMENT_BYTES;
    for (index, (child, key)) in elements.iter().enumerate() {
        let element = BranchElement {
            position: length(payload - index * ELEMENT_BYTES),
            key_bytes: length(key.len()),
            child: *child,
        };
        element.encode(&mut out.run);
        payload += key.len();
    }
    for (_, key) in elements {
        out.run.extend_from_slice(key);
    }
    out.flush_run(pages)
}

impl Leaf {
    fn new() -> Self {
        Self { packer: Packer::new(Kind::Leaf), elements: Vec::new(), payload: Vec::new() }
    }

    fn add(&mut self, flags: u32, key: &[u8], value: &[u8]) {
        self.packer.add(key.len() + value.len());
        self.elements.push(LeafElement {
            flags,
            // Relative to the payload until the number of elements is known.
            position: length(self.payload.len()),
            key_bytes: length(key.len()),
            value_bytes: length(value.len()),
        });
        self.payload.extend_from_slice(key);
        self.payload.extend_from_slice(value);
    }

    /// Appends the page image and empties the leaf.
    fn encode(&mut self, id: PageId, overflow: u32, out: &mut Vec<u8>) {
        let start = out.len();
        Header::new(id, Kind::Leaf, self.packer.count(), overflow).encode(out);
        let count = self.elements.len();
        for (index, element) in self.elements.drain(..).enumerate() {
            let position = element.position + length((count - index) * ELEMENT_BYTES);
            LeafElement { position, ..element }.encode(out);
        }
        assert!(out.len() - start == HEADER_BYTES + count * ELEMENT_BYTES, "elements come first");
        out.extend_from_slice(&self.payload);
        assert!(out.len() - start == self.packer.bytes(), "the packer counts every byte");
        self.payload.clear();
        self.packer.clear();
    }
}

fn bucket_header(out: &mut Vec<u8>, root: PageId) {
    out.extend_from_slice(&root.0.to_le_bytes());
    // The sequence, which nothing here draws numbers from.
    out.extend_from_slice(&0_u64.to_le_bytes());
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("keys and values were checked, so a run is below 4 GiB")
}
