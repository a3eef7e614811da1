//! HTTP/2 requests as no client of etcd would send them.
//!
//! Decides nothing about their content: path, headers and bytes are the caller's, and everything
//! that comes back is written down.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context as Task, Poll},
};

use bytes::Bytes;
use futures::future::poll_fn;
use tonic::{
    body::Body,
    codegen::{
        Body as HttpBody, Service,
        http::{HeaderMap, Request},
    },
    transport::{Channel, Endpoint},
};

/// A request in the shape of a gRPC call.
#[derive(Clone, Debug)]
pub struct Raw {
    /// The path, with the slash.
    pub path: &'static str,
    /// The method; POST for calls.
    pub method: &'static str,
    /// Names and values of headers.
    pub headers: Vec<(&'static str, &'static str)>,
    /// The whole body, with the prefixes of its messages.
    pub body: Vec<u8>,
}

impl Raw {
    /// A correct call with `body` as its bytes.
    #[must_use]
    pub fn call(path: &'static str, body: Vec<u8>) -> Self {
        let headers = vec![("content-type", "application/grpc"), ("te", "trailers")];
        Self { path, method: "POST", headers, body }
    }

    /// With another value of a header, or one more.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value));
        self
    }

    /// With another method.
    #[must_use]
    pub const fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }
}

/// `message` with the prefix that gRPC puts before it.
#[must_use]
pub fn framed(compressed: u8, message: &[u8]) -> Vec<u8> {
    let bytes = u32::try_from(message.len()).expect("messages of tests are small");
    let mut framed = vec![compressed];
    framed.extend_from_slice(&bytes.to_be_bytes());
    framed.extend_from_slice(message);
    framed
}

struct Once(Option<Bytes>);

impl HttpBody for Once {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _task: &mut Task<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(http_body::Frame::data(bytes))))
    }
}

/// Connects to an endpoint such as `http://127.0.0.1:2379`.
///
/// # Errors
/// If nothing answers.
pub async fn connect(endpoint: String) -> anyhow::Result<Channel> {
    Ok(Endpoint::from_shared(endpoint)?.connect().await?)
}

/// Sends `raw` and writes its answer down: HTTP status, type, and gRPC's status and text.
///
/// # Errors
/// If the connection fails.
pub async fn send(channel: &mut Channel, raw: Raw) -> anyhow::Result<String> {
    let mut request = Request::builder().method(raw.method).uri(raw.path);
    for (name, value) in raw.headers {
        request = request.header(name, value);
    }
    let request = request.body(Body::new(Once(Some(raw.body.into()))))?;
    poll_fn(|task| channel.poll_ready(task)).await?;
    let response = channel.call(request).await?;
    let (head, mut body) = response.into_parts();
    let (mut trailers, mut bytes) = (HeaderMap::new(), 0);
    while let Some(frame) = poll_fn(|task| Pin::new(&mut body).poll_frame(task)).await {
        match frame?.into_data() {
            Ok(data) => bytes += data.len(),
            Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    let find = |name: &str| {
        let value = trailers.get(name).or_else(|| head.headers.get(name));
        value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    Ok(format!(
        "http {} {}, status {}: {}, {bytes} bytes",
        head.status.as_u16(),
        find("content-type").unwrap_or_default(),
        find("grpc-status").unwrap_or_default(),
        // An absent text is an empty one.
        find("grpc-message").unwrap_or_default(),
    ))
}
