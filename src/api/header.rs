//! The header of answers.
//!
//! Decides which of its four fields an answer carries. Most have all; answers about members leave
//! the revision at 0, and two of Maintenance have no header at all, as with etcd. Called by every
//! service.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/header.go` and `member.go`.

use proto::etcdserverpb::ResponseHeader;

use super::member::{Member, State};
use crate::model::Revision;

/// A full header with the revision that the handler settled.
pub(super) fn at(member: &impl Member, revision: Revision) -> ResponseHeader {
    ResponseHeader { revision: revision.0, ..without_revision(member) }
}

/// A full header with the newest revision.
pub(super) fn now(member: &impl Member) -> ResponseHeader {
    at(member, member.published().revision())
}

/// A header as answers about members have it.
pub(super) fn without_revision(member: &impl Member) -> ResponseHeader {
    let position = member.position();
    ResponseHeader {
        cluster_id: position.cluster.0,
        member_id: position.member.0,
        revision: 0,
        raft_term: position.term.0,
    }
}
