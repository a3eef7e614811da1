//! What a request asks for.
//!
//! Decides from the fields of an HTTP/2 request whether it is a call of gRPC's and which, or plain
//! HTTP. Of a call only what somebody looks at is kept; values that come with every request, such
//! as a token, are kept once per connection. Used by `driver`.
//!
//! Source: grpc-go `internal/transport/http2_server.go`, `operateHeaders`.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use tonic::Code;

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

/// What a listener serves over HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// gRPC and nothing else.
    Grpc,
    /// Plain HTTP as well.
    Both,
}

/// What a request asks for.
#[derive(Debug)]
pub(super) enum Asked {
    /// A call.
    Rpc(Rpc, Metadata),
    /// A call that cannot be; the caller is told why, under this status of HTTP.
    Refused(&'static str, Failure),
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
    pub(super) fn read(&mut self, fields: &Fields, speaks: Speaks) -> Asked {
        let mut metadata = Metadata::default();
        let (mut kind, mut path, mut method) = (&b""[..], &b""[..], &b""[..]);
        for (name, value) in fields.iter() {
            match name {
                b":path" => path = value,
                b":method" => method = value,
                b"content-type" => kind = value,
                _ => metadata.add(name, value, |value| self.keep(value)),
            }
        }
        if !is_grpc(kind) {
            if speaks == Speaks::Grpc || kind.starts_with(b"application/grpc") {
                return Asked::Refused("415", not_grpc(kind));
            }
            return plain(fields).map_or(Asked::Malformed, |plain| Asked::Plain(Box::new(plain)));
        }
        if let Err(failure) = metadata.check() {
            return Asked::Refused("400", failure);
        }
        if method != b"POST" {
            return Asked::Refused("405", not_post(method));
        }
        let path = String::from_utf8_lossy(path);
        match Rpc::from_path(&path) {
            Some(rpc) => match metadata.check_encoding() {
                Ok(()) => Asked::Rpc(rpc, metadata),
                Err(failure) => Asked::Refused("200", failure),
            },
            None => Asked::Refused("200", rpc::unknown(&path)),
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

fn is_grpc(kind: &[u8]) -> bool {
    let rest = kind.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

fn not_grpc(kind: &[u8]) -> Failure {
    let kind = String::from_utf8_lossy(kind);
    Failure::new(Code::InvalidArgument, format!("invalid gRPC request content-type {kind:?}"))
}

fn not_post(method: &[u8]) -> Failure {
    let method = String::from_utf8_lossy(method);
    let text = format!("Received a HEADERS frame with :method {method:?} which should be POST");
    Failure::new(Code::Internal, text)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: &[(&str, &str)], speaks: Speaks) -> Asked {
        let mut fields = Fields::new(1000);
        for (name, value) in list {
            fields.push(name.as_bytes(), value.as_bytes());
        }
        Reader::default().read(&fields, speaks)
    }

    const CALL: [(&str, &str); 3] =
        [(":method", "POST"), (":scheme", "http"), (":path", "/etcdserverpb.KV/Range")];

    // The expectations were read off a running etcd 3.7.1.
    #[test]
    fn calls_that_cannot_be_are_refused_as_grpc_go_does() {
        let kind = ("content-type", "application/grpc");
        let refused = |list: &[(&str, &str)]| match read(list, Speaks::Grpc) {
            Asked::Refused(status, failure) => (status, failure.code, failure.text.into_owned()),
            asked @ (Asked::Rpc(..) | Asked::Plain(_) | Asked::Malformed) => panic!("{asked:?}"),
        };
        let text = "Received a HEADERS frame with :method \"GET\" which should be POST";
        let get = [(":method", "GET"), CALL[1], CALL[2], kind];
        assert_eq!(refused(&get), ("405", Code::Internal, text.to_owned()));
        let text = "invalid gRPC request content-type \"application/grpcx\"";
        let other = [CALL[0], CALL[1], CALL[2], ("content-type", "application/grpcx")];
        assert_eq!(refused(&other), ("415", Code::InvalidArgument, text.to_owned()));
        let late = [CALL[0], CALL[1], CALL[2], kind, ("grpc-timeout", "5x")];
        assert_eq!(refused(&late).0, "400");
        let unknown = [CALL[0], CALL[1], (":path", "/a/b"), kind];
        assert_eq!(refused(&unknown), ("200", Code::Unimplemented, "unknown service a".to_owned()));
    }

    #[test]
    fn everything_else_is_plain_http_where_that_is_served() {
        let list = [CALL[0], CALL[1], (":path", "/a?b"), (":authority", "h:1"), ("x", "y")];
        let Asked::Plain(request) = read(&list, Speaks::Both) else { panic!("plain") };
        assert_eq!(request.uri().to_string(), "http://h:1/a?b");
        assert_eq!(
            (request.method(), &request.headers()["x"]),
            (&Method::POST, &"y".parse().expect("a value"))
        );
        let kind = ("content-type", "application/grpc+proto");
        let Asked::Rpc(rpc, _) = read(&[CALL[0], CALL[1], CALL[2], kind], Speaks::Both) else {
            panic!("a call")
        };
        assert_eq!(rpc, Rpc::Range);
    }

    #[test]
    fn values_that_come_again_are_kept_once() {
        let mut reader = Reader::default();
        let first = reader.keep(b"3.7.1");
        for value in 0..10u8 {
            assert_eq!(reader.keep(&[value]), [value][..]);
        }
        let again = reader.keep(b"3.7.1");
        assert_eq!(first, again);
        assert_eq!(reader.keep(b"3.7.1").as_ptr(), again.as_ptr(), "one copy");
        assert_eq!(reader.kept.len(), KEPT_MAX, "values that are remembered");
    }
}
