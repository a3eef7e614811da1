//! What the listeners are told.
//!
//! Decides the defaults, which are etcd's. Made by `boot` from the configuration.

use std::{collections::BTreeSet, time::Duration};

use super::SocketError;

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// gRPC and plain HTTP.
    GrpcAndHttp,
    /// gRPC only, because plain HTTP has listeners of its own.
    Grpc,
    /// Plain HTTP only.
    Http,
    /// Metrics and health.
    Metrics,
}

impl Traffic {
    /// Whether gRPC is served.
    pub(super) const fn has_grpc(self) -> bool {
        matches!(self, Self::GrpcAndHttp | Self::Grpc)
    }

    /// The name in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::GrpcAndHttp => "grpc+http",
            Self::Grpc => "grpc",
            Self::Http => "http",
            Self::Metrics => "metrics",
        }
    }
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Address {
    /// `host:port`.
    Tcp(String),
    /// The path of a socket.
    Unix(String),
}

/// A place to listen and what to serve there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where.
    pub(super) address: Address,
    /// What.
    pub(super) traffic: Traffic,
}

impl Endpoint {
    /// The endpoint of a URL: `http://host:port` or `unix://path`.
    ///
    /// # Errors
    /// - [`SocketError::Tls`] for `https` and `unixs`, [`SocketError::Url`] for anything else.
    pub fn from_url(url: &str, traffic: Traffic) -> Result<Self, SocketError> {
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| SocketError::Url { url: url.to_owned() })?;
        let address = match scheme {
            "http" => Address::Tcp(rest.trim_end_matches('/').to_owned()),
            "unix" => Address::Unix(rest.to_owned()),
            "https" | "unixs" => return Err(SocketError::Tls { url: url.to_owned() }),
            _ => return Err(SocketError::Url { url: url.to_owned() }),
        };
        Ok(Self { address, traffic })
    }

    /// The endpoints of all URLs, each address once. If there are URLs for plain HTTP, the client
    /// URLs serve gRPC only.
    ///
    /// # Errors
    /// - those of [`Endpoint::from_url`], and [`SocketError::Both`] if an address is in both lists.
    pub fn of_clients(clients: &[String], http: &[String]) -> Result<Vec<Self>, SocketError> {
        let traffic = if http.is_empty() { Traffic::GrpcAndHttp } else { Traffic::Grpc };
        let mut endpoints = Vec::new();
        let mut grpc = BTreeSet::new();
        for url in clients {
            let endpoint = Self::from_url(url, traffic)?;
            if grpc.insert(endpoint.address.clone()) {
                endpoints.push(endpoint);
            }
        }
        let mut plain = BTreeSet::new();
        for url in http {
            let endpoint = Self::from_url(url, Traffic::Http)?;
            if grpc.contains(&endpoint.address) {
                return Err(SocketError::Both { url: url.clone() });
            }
            if plain.insert(endpoint.address.clone()) {
                endpoints.push(endpoint);
            }
        }
        Ok(endpoints)
    }
}

/// How connections are served.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads that serve connections.
    pub workers: usize,
    /// Streams that a client may have open on one connection.
    pub concurrent_streams_max: u32,
    /// A client that pings more often than this is sent away.
    pub ping_interval_min: Duration,
    /// An idle connection is pinged after this time; zero never.
    pub keepalive_interval: Duration,
    /// A ping is answered within this time, or the connection ends; zero sends no pings.
    pub keepalive_timeout: Duration,
    /// Prints the authority of each HTTP/2 request, as a Go server does with
    /// `GODEBUG=http2debug=2`.
    pub show_authority: bool,
    /// Lets several processes listen on one port.
    pub reuse_port: bool,
    /// Lets a port be bound that closed connections still occupy. Always on, as in Go.
    pub reuse_address: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            concurrent_streams_max: u32::MAX,
            ping_interval_min: Duration::from_secs(5),
            keepalive_interval: Duration::from_hours(2),
            keepalive_timeout: Duration::from_secs(20),
            show_authority: false,
            reuse_port: false,
            reuse_address: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(urls: &[&str]) -> Vec<String> {
        urls.iter().map(|url| (*url).to_owned()).collect()
    }

    #[test]
    fn client_urls_serve_grpc_only_beside_urls_for_http() {
        let endpoints = Endpoint::of_clients(&urls(&["http://a:1", "http://a:1"]), &[]);
        let only = Endpoint::from_url("http://a:1", Traffic::GrpcAndHttp).expect("a URL");
        assert_eq!(endpoints.expect("valid"), [only]);
        let both = Endpoint::of_clients(&urls(&["http://a:1"]), &urls(&["unix://b:2"]));
        let traffic: Vec<Traffic> =
            both.expect("valid").iter().map(|endpoint| endpoint.traffic).collect();
        assert_eq!(traffic, [Traffic::Grpc, Traffic::Http]);
    }

    #[test]
    fn urls_that_cannot_be_served_are_refused_with_a_sentence() {
        let sentence =
            |url: &str| Endpoint::from_url(url, Traffic::Http).expect_err("refused").to_string();
        assert_eq!(
            sentence("https://a:1"),
            "TLS key/cert (--cert-file, --key-file) must be provided for client url https://a:1 \
             with HTTPS scheme"
        );
        assert_eq!(sentence("a:1"), "the URL a:1 cannot be listened on");
        let both = Endpoint::of_clients(&urls(&["http://a:1"]), &urls(&["http://a:1"]));
        assert_eq!(
            both.expect_err("refused").to_string(),
            "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url \
             http://a:1"
        );
    }
}
