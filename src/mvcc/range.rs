//! Answers of `Range`.
//!
//! Decides which keys a request selects, in which order, and what is told of them. Asked by the
//! edge for reads and by `state` inside transactions, on any view.
//!
//! Filters, sorting and the limit work on the key index, which knows every number that they look
//! at; rows are read for the keys of the answer only. The exception is sorting by value.
//!
//! Source: etcd `server/etcdserver/txn/range.go` and `server/storage/mvcc/kvstore_txn.go`.

use std::{cmp::Ordering, ops::ControlFlow};

use bytes::Bytes;
use proto::{etcdserverpb::RangeRequest, etcdserverpb::range_request, mvccpb::KeyValue};

use super::{
    encoding::{self, Block},
    metrics,
    version::KeyVersion,
    view::{ReadError, View},
};
use crate::model::{KeyRange, RangeAnswer, Revision};

/// A read, as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeOptions {
    /// Which keys.
    pub range: KeyRange,
    /// At which revision; 0 and below stand for the newest.
    pub revision: Revision,
    /// How many keys at most; 0 and below stand for all.
    pub limit: i64,
    /// What is told of each key.
    pub content: Content,
    /// What the keys are ordered by.
    pub sort_by: SortBy,
    /// How they are ordered.
    pub order: Order,
    /// Which versions are left out.
    pub filters: Filters,
}

/// What an answer tells of each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Content {
    /// Everything.
    #[default]
    Rows,
    /// Everything but the value.
    Keys,
    /// Nothing: only how many there are.
    Count,
}

/// What an answer is ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SortBy {
    /// The key.
    #[default]
    Key,
    /// How often the key was written since it was created.
    Version,
    /// When it was created.
    Create,
    /// When it was written last.
    Modified,
    /// The value.
    Value,
}

/// How an answer is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Order {
    /// As found: by key. With a limit and another target than the key, the keys that the limit
    /// selects, plus one, are ordered by the target (RNG-12).
    #[default]
    None,
    /// Smallest first.
    Ascend,
    /// Largest first.
    Descend,
}

/// Bounds on the revisions of a key, each inclusive; 0 stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Filters {
    /// No key that was last written before.
    pub min_modified: Revision,
    /// No key that was last written after.
    pub max_modified: Revision,
    /// No key that was created before.
    pub min_create: Revision,
    /// No key that was created after.
    pub max_create: Revision,
}

impl RangeOptions {
    /// A read of everything in `range`, now.
    #[must_use]
    pub fn of(range: KeyRange) -> Self {
        Self {
            range,
            revision: Revision(0),
            limit: 0,
            content: Content::default(),
            sort_by: SortBy::default(),
            order: Order::default(),
            filters: Filters::default(),
        }
    }

    /// Reads a request. Orders that nobody knows, which the edge refuses but a foreign log may
    /// hold, count as none.
    #[must_use]
    pub fn from_wire(request: &RangeRequest) -> Self {
        use range_request::{SortOrder, SortTarget};
        let sort_by = match SortTarget::try_from(request.sort_target) {
            Ok(SortTarget::Version) => SortBy::Version,
            Ok(SortTarget::Create) => SortBy::Create,
            Ok(SortTarget::Mod) => SortBy::Modified,
            Ok(SortTarget::Value) => SortBy::Value,
            Ok(SortTarget::Key) | Err(_) => SortBy::Key,
        };
        let order = match SortOrder::try_from(request.sort_order) {
            Ok(SortOrder::Ascend) => Order::Ascend,
            Ok(SortOrder::Descend) => Order::Descend,
            Ok(SortOrder::None) | Err(_) => Order::None,
        };
        let content = match (request.count_only, request.keys_only) {
            (true, _) => Content::Count,
            (false, true) => Content::Keys,
            (false, false) => Content::Rows,
        };
        Self {
            range: KeyRange::from_wire(request.key.clone(), request.range_end.clone()),
            revision: Revision(request.revision),
            limit: request.limit,
            content,
            sort_by,
            order,
            filters: Filters {
                min_modified: Revision(request.min_mod_revision),
                max_modified: Revision(request.max_mod_revision),
                min_create: Revision(request.min_create_revision),
                max_create: Revision(request.max_create_revision),
            },
        }
    }

    /// The limit, if there is one.
    fn limit(&self) -> Option<usize> {
        usize::try_from(self.limit).ok().filter(|limit| 0 < *limit)
    }

    /// Whether the answer is the rows of the keys in their order, and nothing else.
    fn is_plain(&self) -> bool {
        self.content == Content::Rows && self.sort_by == SortBy::Key && self.limits_early()
    }

    /// How many keys need to be looked at: one more than the limit if that is enough to go on
    /// with.
    fn enough(&self) -> usize {
        match self.limit() {
            _ if matches!(self.range, KeyRange::Single(_)) => 1,
            Some(limit) if self.limits_early() => limit.saturating_add(1),
            _ => usize::MAX,
        }
    }

    /// Whether the limit can be applied before filters and order.
    fn limits_early(&self) -> bool {
        let natural = match self.order {
            Order::None => true,
            Order::Ascend => self.sort_by == SortBy::Key,
            Order::Descend => false,
        };
        natural && self.filters == Filters::default()
    }
}

impl Filters {
    fn keep(&self, version: &KeyVersion) -> bool {
        let (modified, create) = (version.modified.main, version.create);
        let unset = Revision(0);
        (self.max_modified == unset || modified <= self.max_modified)
            && (self.min_modified == unset || self.min_modified <= modified)
            && (self.max_create == unset || create <= self.max_create)
            && (self.min_create == unset || self.min_create <= create)
    }
}

/// A selected key. Keys come in key order, so nothing here needs the key itself.
#[derive(Clone, Debug)]
struct Selected {
    version: KeyVersion,
    /// The answer without the value, if that was asked for.
    row: Option<Bytes>,
}

/// The rows of an answer.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) rows: Vec<Bytes>,
    pub(super) more: bool,
    /// How many keys the range holds, if all were seen.
    pub(super) count: Option<usize>,
}

impl View {
    /// Answers a read.
    ///
    /// # Errors
    /// - [`ReadError::Rejected`] if the revision is compacted or in the future.
    /// - [`ReadError::Outdated`] if a newer view must be asked.
    /// - [`ReadError::Damaged`] if rows are lost or broken.
    pub fn range(&self, options: &RangeOptions) -> Result<RangeAnswer, ReadError> {
        metrics::RANGES.inc();
        let at = self.readable(options.revision)?;
        if options.content == Content::Count {
            let count = self.index.count(&options.range, at);
            return Ok(self.answer(Vec::new(), count, false));
        }
        if let (KeyRange::Single(key), Content::Rows) = (&options.range, options.content) {
            return self.single(key, options, at);
        }
        let page = self.page(options, at)?;
        let count = page.count.unwrap_or_else(|| self.index.count(&options.range, at));
        Ok(self.answer(page.rows, count, page.more))
    }

    /// The rows of an answer, without counting what the limit left unseen.
    pub(super) fn page(&self, options: &RangeOptions, at: Revision) -> Result<Page, ReadError> {
        if options.is_plain() {
            return self.plain_page(options, at);
        }
        let mut selected = self.select(options, at);
        let seen = selected.len();
        let saw_all = !options.limits_early() || options.limit().is_none_or(|limit| seen <= limit);
        selected.retain(|key| options.filters.keep(&key.version));
        let (rows, more) = match options.sort_by {
            SortBy::Value => self.by_value(options, &selected)?,
            SortBy::Key | SortBy::Version | SortBy::Create | SortBy::Modified => {
                sort_by_number(options, &mut selected);
                let more = cut(&mut selected, options);
                (self.rows_of(options.content, selected)?, more)
            }
        };
        Ok(Page { rows, more, count: saw_all.then_some(seen) })
    }

    /// Rows in key order: the answer that may be as large as the store, so nothing but the places
    /// of its rows is kept of the keys.
    fn plain_page(&self, options: &RangeOptions, at: Revision) -> Result<Page, ReadError> {
        let (limit, enough) = (options.limit(), options.enough());
        let expected = match limit {
            None if at == self.revision => self.index.count(&options.range, at),
            None | Some(_) => 0,
        };
        let mut wanted = Vec::with_capacity(expected);
        self.index.visit(&options.range, at, |_, version| {
            wanted.push(version.modified);
            if wanted.len() < enough { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        let seen = wanted.len();
        let more = cut(&mut wanted, options);
        Ok(Page { rows: self.rows(wanted)?, more, count: (!more).then_some(seen) })
    }

    /// The answer to the most frequent question: everything about one key.
    fn single(
        &self,
        key: &[u8],
        options: &RangeOptions,
        at: Revision,
    ) -> Result<RangeAnswer, ReadError> {
        let Some(version) = self.index.get(key).and_then(|entry| entry.at(at)) else {
            return Ok(self.answer(Vec::new(), 0, false));
        };
        if !options.filters.keep(&version) {
            return Ok(self.answer(Vec::new(), 1, false));
        }
        let rows = match self.ring.get(version.modified) {
            Some(row) => vec![row.value.clone()],
            None => self.rows(vec![version.modified])?,
        };
        Ok(self.answer(rows, 1, false))
    }

    fn answer(&self, rows: Vec<Bytes>, count: usize, more: bool) -> RangeAnswer {
        let count = i64::try_from(count).expect("fewer keys than bytes of memory");
        RangeAnswer { revision: self.revision, rows, more, count }
    }

    /// The keys of the range in key order: all of them, or one more than the limit if that is
    /// enough to go on with.
    fn select(&self, options: &RangeOptions, at: Revision) -> Vec<Selected> {
        let enough = options.enough();
        let mut selected = Vec::new();
        let mut block = Block::new(enough.min(self.index.live()));
        let keys = options.content == Content::Keys && options.sort_by != SortBy::Value;
        self.index.visit(&options.range, at, |key, version| {
            let row = keys.then(|| {
                let bytes = encoding::keys_only_len(key, &version);
                block.row(bytes, |out| encoding::put_keys_only(out, key, &version))
            });
            selected.push(Selected { version, row });
            if selected.len() < enough { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        selected
    }

    fn rows_of(&self, content: Content, selected: Vec<Selected>) -> Result<Vec<Bytes>, ReadError> {
        match content {
            Content::Count => Ok(Vec::new()),
            Content::Keys => Ok(selected.into_iter().filter_map(|key| key.row).collect()),
            Content::Rows => {
                self.rows(selected.into_iter().map(|key| key.version.modified).collect())
            }
        }
    }

    /// Rows in the order of their values. Here the lease of a key without value is known.
    fn by_value(
        &self,
        options: &RangeOptions,
        selected: &[Selected],
    ) -> Result<(Vec<Bytes>, bool), ReadError> {
        let wanted: Vec<_> = selected.iter().map(|key| key.version.modified).collect();
        let mut rows = Vec::with_capacity(wanted.len());
        for (row, at) in self.rows(wanted.clone())?.into_iter().zip(wanted) {
            rows.push((encoding::decode(at, row.clone())?, row));
        }
        sort(options.order, &mut rows, |(left, _), (right, _)| left.value.cmp(&right.value));
        let more = cut(&mut rows, options);
        let told = |(decoded, row): (KeyValue, Bytes)| match options.content {
            Content::Keys => encoding::without_value(decoded),
            Content::Rows | Content::Count => row,
        };
        Ok((rows.into_iter().map(told).collect(), more))
    }
}

/// Cuts an answer at the limit. Returns whether there was more.
fn cut<T>(selected: &mut Vec<T>, options: &RangeOptions) -> bool {
    let more = options.limit().is_some_and(|limit| limit < selected.len());
    if let Some(limit) = options.limit() {
        selected.truncate(limit);
    }
    more
}

/// Orders keys, which are in key order, by what the index knows of them.
fn sort_by_number(options: &RangeOptions, selected: &mut [Selected]) {
    let number = |selected: &Selected| match options.sort_by {
        SortBy::Key | SortBy::Value => 0,
        SortBy::Version => selected.version.version,
        SortBy::Create => selected.version.create.0,
        SortBy::Modified => selected.version.modified.main.0,
    };
    match (options.sort_by, options.order) {
        (SortBy::Key, Order::None | Order::Ascend) => {}
        (SortBy::Key, Order::Descend) => selected.reverse(),
        _ => sort(options.order, selected, |left, right| number(left).cmp(&number(right))),
    }
}

fn sort<T>(order: Order, selected: &mut [T], compare: impl Fn(&T, &T) -> Ordering) {
    match order {
        Order::None | Order::Ascend => selected.sort_by(compare),
        Order::Descend => selected.sort_by(|left, right| compare(right, left)),
    }
}
