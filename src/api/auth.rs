//! The service `etcdserverpb.Auth`, for a server whose authentication is off.
//!
//! Decides that everybody learns that it is off, and that nobody can switch it on yet. Called by
//! `dispatch`.
//!
//! Source: etcd `server/etcdserver/api/v3rpc/auth.go`.

use proto::etcdserverpb::{AuthStatusRequest, AuthStatusResponse};

use super::{answer::Reply, caller::Caller, edge::Edge, header, member::Member, status::CallError};

/// The revision of a permission table that was never changed.
const AUTH_REVISION_INITIAL: u64 = 1;

/// Tells whether authentication is on.
#[expect(clippy::unnecessary_wraps, reason = "the shape of every unary call")]
pub(super) fn status<M: Member>(
    edge: &Edge<M>,
    _caller: Caller,
    _request: AuthStatusRequest,
) -> Result<Reply, CallError> {
    Ok(Reply::message(&AuthStatusResponse {
        header: Some(header::now(&edge.member)),
        enabled: false,
        auth_revision: AUTH_REVISION_INITIAL,
    }))
}
