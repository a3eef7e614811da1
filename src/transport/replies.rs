//! What peers are answered.
//!
//! Decides the form of answers, which is that of Go's HTTP library. Used by `routes` and the
//! requests behind it.

use std::{
    convert::Infallible,
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Response, StatusCode,
    header::{ALLOW, CONNECTION, CONTENT_TYPE, LOCATION, X_CONTENT_TYPE_OPTIONS},
};
use http_body::{Body, Frame, SizeHint};

use crate::model::ClusterId;

/// The type of sentences.
pub(super) const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

pub(super) const CLUSTER_ID: HeaderName = HeaderName::from_static("x-etcd-cluster-id");
pub(super) const SERVER_VERSION: HeaderName = HeaderName::from_static("x-server-version");

/// An answer.
pub(super) type Reply = Response<ReplyBody>;

/// The body of an answer.
#[derive(Debug)]
pub(super) enum ReplyBody {
    /// Nothing.
    Empty,
    /// All of it.
    Content(Bytes),
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match mem::replace(&mut *self, Self::Empty) {
            Self::Content(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Content(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(ReplyBody::Empty);
    *reply.status_mut() = status;
    reply
}

/// An answer of a type.
pub(super) fn content(status: StatusCode, kind: HeaderValue, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(ReplyBody::Content(body.into()));
    *reply.status_mut() = status;
    // Go lets nobody guess at its sentences.
    if kind == TEXT && status != StatusCode::OK {
        reply.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    reply.headers_mut().insert(CONTENT_TYPE, kind);
    reply
}

/// A refusal, as Go's `http.Error` writes it.
pub(super) fn error(status: StatusCode, text: &str) -> Reply {
    content(status, TEXT, format!("{text}\n"))
}

/// The refusal of a method, naming the one that is allowed.
pub(super) fn method_not_allowed(allowed: &'static str) -> Reply {
    let mut reply = error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    reply
}

/// Sends a client to another path. Only an answer to GET has a body.
pub(super) fn redirect(location: &str, has_body: bool) -> Reply {
    let Ok(value) = HeaderValue::from_str(location) else {
        return error(StatusCode::NOT_FOUND, "404 page not found");
    };
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    let text = format!("<a href=\"{location}\">Temporary Redirect</a>.\n\n");
    let mut reply = if has_body {
        content(StatusCode::TEMPORARY_REDIRECT, kind, text)
    } else {
        empty(StatusCode::TEMPORARY_REDIRECT)
    };
    reply.headers_mut().insert(LOCATION, value);
    reply
}

/// An answer after which the connection ends.
pub(super) fn closing(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}

/// Adds the cluster to an answer.
pub(super) fn of_cluster(mut reply: Reply, cluster: ClusterId) -> Reply {
    let value = HeaderValue::from_str(&cluster.to_string()).expect("hexadecimal digits");
    reply.headers_mut().insert(CLUSTER_ID, value);
    reply
}
