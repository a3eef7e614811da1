//! What a client may ask of its stream.
//!
//! Decides how etcd's `WatchRequest` is read. Sent by `api`, answered by the hub.

use proto::etcdserverpb::{
    WatchCreateRequest, WatchRequest, watch_create_request::FilterType, watch_request::RequestUnion,
};

use crate::model::{KeyRange, Revision};

/// The id in responses that concern no watcher, or all of them.
pub const NO_WATCH_ID: i64 = -1;

/// Why a watcher without keys is refused. Source: etcd `server/storage/mvcc/watcher.go`.
pub(super) const EMPTY_RANGE: &str = "mvcc: watcher range is empty";

/// Why a taken id is refused. Source: as above.
pub(super) const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// A client's wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Watch something.
    Create(CreateWatch),
    /// Watch something that `api` has found the caller may not watch; answered in turn.
    Refuse {
        /// The text for the client.
        reason: String,
    },
    /// Stop watching.
    Cancel {
        /// The watcher.
        watch_id: i64,
    },
    /// Say how far the whole stream is.
    Progress,
}

/// A watcher to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of the wire message")]
pub struct CreateWatch {
    /// What it watches; empty ranges are refused.
    pub range: KeyRange,
    /// The first revision of interest; 0 for whatever comes.
    pub start: Revision,
    /// The id it wants; 0 for any.
    pub watch_id: i64,
    /// Whether events carry the row before them.
    pub previous: bool,
    /// Whether puts are left out.
    pub no_put: bool,
    /// Whether deletions are left out.
    pub no_delete: bool,
    /// Whether it wants to hear of progress from time to time.
    pub progress_notify: bool,
    /// Whether large responses may be split.
    pub fragment: bool,
}

impl Request {
    /// Reads the wire form; nothing if it asks for nothing that this version knows.
    #[must_use]
    pub fn from_wire(request: WatchRequest) -> Option<Self> {
        match request.request_union? {
            RequestUnion::CreateRequest(create) => {
                Some(Self::Create(CreateWatch::from_wire(create)))
            }
            RequestUnion::CancelRequest(cancel) => Some(Self::Cancel { watch_id: cancel.watch_id }),
            RequestUnion::ProgressRequest(_) => Some(Self::Progress),
        }
    }
}

impl CreateWatch {
    /// Reads the wire form. An empty key stands for the smallest one; unknown filters for none.
    #[must_use]
    pub fn from_wire(request: WatchCreateRequest) -> Self {
        let filters = |filter: FilterType| request.filters.contains(&i32::from(filter));
        let (no_put, no_delete) = (filters(FilterType::Noput), filters(FilterType::Nodelete));
        let key = if request.key.is_empty() { "\0".into() } else { request.key };
        Self {
            range: KeyRange::from_wire(key, request.range_end),
            start: Revision(request.start_revision),
            watch_id: request.watch_id,
            previous: request.prev_kv,
            no_put,
            no_delete,
            progress_notify: request.progress_notify,
            fragment: request.fragment,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_key_stands_for_the_smallest_one() {
        let all = WatchCreateRequest { range_end: "\0".into(), ..Default::default() };
        assert_eq!(CreateWatch::from_wire(all).range, KeyRange::From("\0".into()));
        let one = CreateWatch::from_wire(WatchCreateRequest::default());
        assert_eq!(one.range, KeyRange::Single("\0".into()));
    }

    #[test]
    fn unknown_filters_and_unions_ask_for_nothing() {
        let request = WatchCreateRequest { filters: vec![7, 1], ..Default::default() };
        let create = CreateWatch::from_wire(request);
        assert!(!create.no_put && create.no_delete);
        assert_eq!(Request::from_wire(WatchRequest { request_union: None }), None);
    }
}
