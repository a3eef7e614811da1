//! Requests to the API server: JSON over HTTP/1.1 over TLS.
//!
//! Decides which answers are final. A store that elects a leader makes the API server answer 5xx or
//! nothing for a while, and its clients ask again; so does [`Caller::insist`].

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

use super::process::TOKEN;

/// A name in the certificate that an API server makes for itself.
const NAME: &str = "kubernetes";

/// How long one request may take; the API server gives up after a minute.
const ANSWER_MAX: Duration = Duration::from_secs(65);

/// How long a request is asked again.
const INSIST_MAX: Duration = Duration::from_secs(90);

/// Between two tries.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Request {
    method: Method,
    path: String,
    body: Option<(&'static str, Value)>,
}

impl Request {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: None }
    }

    pub(super) fn post(path: impl Into<String>, object: Value) -> Self {
        let body = Some(("application/json", object));
        Self { method: Method::POST, path: path.into(), body }
    }

    /// Server-side apply, in the name of one manager.
    pub(super) fn apply(path: &str, object: Value) -> Self {
        let body = Some(("application/apply-patch+yaml", object));
        Self { method: Method::PATCH, path: format!("{path}?fieldManager=drill&force=true"), body }
    }

    /// A merge patch.
    pub(super) fn merge(path: impl Into<String>, change: Value) -> Self {
        let body = Some(("application/merge-patch+json", change));
        Self { method: Method::PATCH, path: path.into(), body }
    }
}

/// What was answered.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Value,
}

impl Answer {
    /// The object's version.
    pub(super) fn version(&self) -> anyhow::Result<u64> {
        version(&self.body)
    }
}

/// The version of an object or a list.
pub(super) fn version(object: &Value) -> anyhow::Result<u64> {
    let text = object["metadata"]["resourceVersion"].as_str();
    text.with_context(|| format!("no version in {object}"))?.parse().context("not a number")
}

/// The way to an API server.
#[derive(Clone)]
pub(super) struct Endpoint {
    address: SocketAddr,
    connector: TlsConnector,
}

impl Endpoint {
    /// The API server on loopback that shows the certificate in a file.
    pub(super) fn new(port: u16, certificate: &Path) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for one in CertificateDer::pem_file_iter(certificate)? {
            roots.add(one?)?;
        }
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Self { address, connector: TlsConnector::from(Arc::new(config)) })
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(NAME)?;
        let stream = self.connector.connect(name, stream).await?;
        let (requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Whoever waits for an answer hears of a failure.
        tokio::spawn(async move { drop(connection.await) });
        Ok(requests)
    }
}

/// One connection, made again when it is gone.
pub(super) struct Caller {
    endpoint: Endpoint,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Caller {
    pub(super) const fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, connection: None }
    }

    /// Sends a request; its answer may be of any length.
    pub(super) async fn open(&mut self, request: &Request) -> anyhow::Result<Response<Incoming>> {
        let mut connection = match self.connection.take().filter(|one| !one.is_closed()) {
            Some(connection) => connection,
            None => self.endpoint.connect().await?,
        };
        connection.ready().await?;
        let (content_type, body) = match &request.body {
            Some((content_type, body)) => (*content_type, serde_json::to_vec(body)?),
            None => ("application/json", Vec::new()),
        };
        let wire = http::Request::builder()
            .method(&request.method)
            .uri(&request.path)
            .header("Host", NAME)
            .header("Authorization", format!("Bearer {TOKEN}"))
            .header("Accept", "application/json")
            .header("Content-Type", content_type)
            .body(Full::from(body))?;
        let answer = connection.send_request(wire).await?;
        self.connection = Some(connection);
        Ok(answer)
    }

    /// Asks once.
    pub(super) async fn ask(&mut self, request: &Request) -> anyhow::Result<Answer> {
        let asked = timeout(ANSWER_MAX, async {
            let answer = self.open(request).await?;
            let status = answer.status();
            Ok::<_, anyhow::Error>((status, answer.into_body().collect().await?.to_bytes()))
        });
        let (status, body) = match asked.await.context("no answer in time") {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) | Err(error) => {
                self.connection = None;
                return Err(error);
            }
        };
        // What is not JSON is a sentence.
        let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
        Ok(Answer { status, body: serde_json::from_slice(&body).unwrap_or_else(|_text| text()) })
    }

    /// Asks until there is an answer that asking again would not change.
    pub(super) async fn insist(&mut self, request: &Request) -> anyhow::Result<Answer> {
        let started = Instant::now();
        loop {
            let last = match self.ask(request).await {
                Ok(answer) if !is_passing(answer.status) => return Ok(answer),
                Ok(answer) => format!("{} {}", answer.status, answer.body),
                Err(error) => format!("{error:#}"),
            };
            let Request { method, path, .. } = request;
            ensure!(
                started.elapsed() < INSIST_MAX,
                "{method} {path} got no answer within {INSIST_MAX:?}; the last: {last}"
            );
            sleep(PAUSE).await;
        }
    }

    /// As [`Caller::insist`], and the answer must be a success.
    pub(super) async fn must(&mut self, request: &Request) -> anyhow::Result<Answer> {
        let answer = self.insist(request).await?;
        if !answer.status.is_success() {
            bail!("{} {}: {} {}", request.method, request.path, answer.status, answer.body);
        }
        Ok(answer)
    }

    /// Everything at `path`, page by page, all at one version; and that version.
    pub(super) async fn list(&mut self, path: &str) -> anyhow::Result<(Vec<Value>, u64)> {
        let (mut items, mut next) = (Vec::new(), String::new());
        loop {
            let page = Request::get(format!("{path}?limit=500&continue={next}"));
            let answer = self.insist(&page).await?;
            if answer.status == StatusCode::GONE && !next.is_empty() {
                // What the first pages were of is compacted.
                (items, next) = (Vec::new(), String::new());
                continue;
            }
            ensure!(answer.status.is_success(), "{path}: {} {}", answer.status, answer.body);
            let list_version = answer.version()?;
            let Value::Object(mut body) = answer.body else { bail!("{path} is no list") };
            if let Some(Value::Array(page)) = body.remove("items") {
                items.extend(page);
            }
            match body["metadata"]["continue"].as_str() {
                Some(token) if !token.is_empty() => token.clone_into(&mut next),
                _ => return Ok((items, list_version)),
            }
        }
    }
}

/// Whether the server says that it may be different soon.
fn is_passing(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}
