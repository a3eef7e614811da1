//! What a request asks for.
//!
//! Decides from the fields of an HTTP/2 request whether it is a call of gRPC's and which, or plain
//! HTTP. Of a call only what somebody looks at is kept; values that come with every request, such
//! as a token, are kept once per connection. Used by `driver`.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri};

use super::http2::Fields;
use crate::api::{
    metadata::Metadata,
    rpc::{self, Rpc},
    status::Failure,
};

/// Different values of metadata that are remembered on a connection.
const KEPT_MAX: usize = 4;

/// Longer values are not remembered.
const KEPT_BYTES_MAX: usize = 1 << 10;

/// What a request asks for.
#[derive(Debug)]
pub(super) enum Asked {
    /// A call.
    Rpc(Rpc, Metadata),
    /// A call that does not exist, and what its caller is told.
    Unknown(Failure),
    /// Plain HTTP.
    Plain(Box<Request<()>>),
    /// Nothing that can be understood.
    Malformed,
}

/// Reads requests of one connection.
#[derive(Debug, Default)]
pub(super) struct Reader {
    kept: Vec<Bytes>,
    next: usize,
}

impl Reader {
    /// Reads one.
    pub(super) fn read(&mut self, fields: &Fields) -> Asked {
        let mut metadata = Metadata::default();
        let (mut grpc, mut path) = (false, &b""[..]);
        for (name, value) in fields.iter() {
            match name {
                b":path" => path = value,
                b"content-type" => grpc |= value.starts_with(b"application/grpc"),
                _ => metadata.add(name, value, |value| self.keep(value)),
            }
        }
        if !grpc {
            return plain(fields).map_or(Asked::Malformed, |plain| Asked::Plain(Box::new(plain)));
        }
        let Ok(path) = std::str::from_utf8(path) else { return Asked::Malformed };
        match Rpc::from_path(path) {
            Some(rpc) => Asked::Rpc(rpc, metadata),
            None => Asked::Unknown(rpc::unknown(path)),
        }
    }

    /// The value as one's own; the same one as before if it is known.
    fn keep(&mut self, value: &[u8]) -> Bytes {
        if let Some(known) = self.kept.iter().find(|known| *known == value) {
            return known.clone();
        }
        let own = Bytes::copy_from_slice(value);
        if value.len() <= KEPT_BYTES_MAX {
            if self.kept.len() < KEPT_MAX {
                self.kept.push(own.clone());
            } else {
                self.kept[self.next % KEPT_MAX] = own.clone();
                self.next = (self.next + 1) % KEPT_MAX;
            }
        }
        own
    }
}

/// The request as `http` takes it; its content is not read.
fn plain(fields: &Fields) -> Option<Request<()>> {
    let pseudo = fields.pseudo();
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(pseudo.method).ok()?;
    let mut uri = Uri::builder().path_and_query(pseudo.path);
    if let Some(authority) = pseudo.authority {
        uri = uri.scheme(pseudo.scheme).authority(authority);
    }
    *request.uri_mut() = uri.build().ok()?;
    for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with(b":")) {
        let name = HeaderName::from_bytes(name).ok()?;
        request.headers_mut().append(name, HeaderValue::from_bytes(value).ok()?);
    }
    Some(request)
}
