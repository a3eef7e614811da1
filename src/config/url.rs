//! The URLs that members listen on and advertise.
//!
//! Decides what counts as one, with the sentences of Go's URL parser and of etcd for what does
//! not, and keeps the text as it was given: peers and clients compare it byte by byte. Used by the
//! flags and by everyone who binds or dials.
//!
//! Source: etcd `client/pkg/types/urls.go`, Go `net/url`.

use std::{
    fmt,
    net::{IpAddr, ToSocketAddrs as _},
};

/// How a URL's socket is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// TCP without TLS.
    Http,
    /// TCP with TLS.
    Https,
    /// A Unix socket without TLS.
    Unix,
    /// A Unix socket with TLS.
    Unixs,
}

/// A URL with a host and a port, or with the path of a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    text: String,
    scheme: Scheme,
    /// `host:port` as given; for Unix sockets what stands before the path, if anything.
    authority: String,
    path: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Url {
    /// Reads one URL.
    ///
    /// # Errors
    /// With the sentence that etcd prints.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (scheme, rest) = split_scheme(text)?;
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len())),
            None => ("", rest),
        };
        check_port(text, authority)?;
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => {
                return Err(format!("URL scheme must be http, https, unix, or unixs: {text}"));
            }
        };
        let url = Self {
            text: text.to_owned(),
            scheme,
            authority: authority.to_owned(),
            path: path.to_owned(),
        };
        if url.is_unix() {
            return Ok(url);
        }
        if split_host_port(url.host_port()).is_none() {
            return Err(format!("URL address does not have the form \"host:port\": {text}"));
        }
        if !path.is_empty() {
            return Err(format!("URL must not contain a path: {text}"));
        }
        Ok(url)
    }

    /// Reads a comma-separated list; sorted, duplicates kept.
    ///
    /// # Errors
    /// With the sentence for the first URL that is none.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        let mut urls = text.split(',').map(Self::parse).collect::<Result<Vec<_>, _>>()?;
        urls.sort();
        Ok(urls)
    }

    /// The URL as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// How its socket is reached.
    #[must_use]
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Whether it names a Unix socket.
    #[must_use]
    pub const fn is_unix(&self) -> bool {
        matches!(self.scheme, Scheme::Unix | Scheme::Unixs)
    }

    /// Whether it asks for TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        matches!(self.scheme, Scheme::Https | Scheme::Unixs)
    }

    /// What to bind or dial: `host:port`, or the path of a Unix socket.
    #[must_use]
    pub fn address(&self) -> String {
        if self.is_unix() {
            return format!("{}{}", self.authority, self.path);
        }
        self.host_port().to_owned()
    }

    /// The host without the brackets of an IPv6 address; empty for a Unix socket.
    #[must_use]
    pub fn host(&self) -> &str {
        if self.is_unix() {
            return "";
        }
        split_host_port(self.host_port()).map_or("", |(host, _)| host)
    }

    /// The port's digits; empty for a Unix socket.
    #[must_use]
    pub fn port(&self) -> &str {
        if self.is_unix() {
            return "";
        }
        split_host_port(self.host_port()).map_or("", |(_, port)| port)
    }

    /// The same URL at another host.
    #[must_use]
    pub fn with_host_port(&self, host: &str, port: &str) -> Self {
        let scheme = self.text.split("://").next().unwrap_or_default();
        Self {
            text: format!("{scheme}://{host}:{port}"),
            scheme: self.scheme,
            authority: format!("{host}:{port}"),
            path: String::new(),
        }
    }

    /// The text of the same URL at an address.
    pub(super) fn with_address(&self, host_port: &str) -> String {
        let scheme = self.text.split("://").next().unwrap_or_default();
        format!("{scheme}://{host_port}")
    }

    /// The addresses that the host stands for, asking the resolver if it is a name.
    pub(super) fn resolve(&self) -> Vec<String> {
        let addresses = self.host_port().to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        let mut shown: Vec<_> =
            addresses.unwrap_or_default().iter().map(ToString::to_string).collect();
        shown.sort();
        shown
    }

    fn host_port(&self) -> &str {
        self.authority.rsplit_once('@').map_or(&self.authority, |(_, host_port)| host_port)
    }

    /// Whether a socket can be bound to it without asking a resolver.
    pub(super) fn is_bindable(&self) -> bool {
        self.is_unix() || self.host() == "localhost" || self.host().parse::<IpAddr>().is_ok()
    }
}

fn split_scheme(text: &str) -> Result<(&str, &str), String> {
    let fail = |why: &str| Err(format!("parse {text:?}: {why}"));
    if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
        return fail("net/url: invalid control character in URL");
    }
    if text.is_empty() {
        return Ok(("", ""));
    }
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if at > 0 => {}
            b':' if at == 0 => return fail("missing protocol scheme"),
            b':' => return Ok((&text[..at], &text[at + 1..])),
            _ => break,
        }
    }
    let first_segment = text.split('/').next().unwrap_or_default();
    if !text.starts_with('/') && first_segment.contains(':') {
        return fail("first path segment in URL cannot contain colon");
    }
    Ok(("", text))
}

fn check_port(text: &str, authority: &str) -> Result<(), String> {
    let host_port = authority.rsplit_once('@').map_or(authority, |(_, host_port)| host_port);
    let port = match host_port.strip_prefix('[') {
        Some(bracketed) => match bracketed.rsplit_once(']') {
            Some((_, port)) => port,
            None => return Err(format!("parse {text:?}: missing ']' in host")),
        },
        None => host_port.rfind(':').map_or("", |at| &host_port[at..]),
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    let valid = port.is_empty() || port.starts_with(':');
    if !valid || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("parse {text:?}: invalid port {port:?} after host"));
    }
    Ok(())
}

/// Splits as Go's `net.SplitHostPort`: the host of an IPv6 address must stand in brackets.
fn split_host_port(host_port: &str) -> Option<(&str, &str)> {
    if let Some(rest) = host_port.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        return Some((host, port.strip_prefix(':')?));
    }
    let (host, port) = host_port.rsplit_once(':')?;
    (!host.contains(':')).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::{Scheme, Url};

    #[test]
    fn urls_split_into_what_a_socket_needs() {
        for (text, scheme, address, host, port) in [
            ("http://localhost:2379", Scheme::Http, "localhost:2379", "localhost", "2379"),
            (" https://[::1]:2380 ", Scheme::Https, "[::1]:2380", "::1", "2380"),
            ("http://:2379", Scheme::Http, ":2379", "", "2379"),
            ("unix:///run/etcd.sock", Scheme::Unix, "/run/etcd.sock", "", ""),
            ("unixs://localhost:123", Scheme::Unixs, "localhost:123", "", ""),
            ("unix:/run/etcd.sock", Scheme::Unix, "/run/etcd.sock", "", ""),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!(url.scheme(), scheme, "scheme of {text}");
            assert_eq!(url.address(), address, "address of {text}");
            assert_eq!((url.host(), url.port()), (host, port), "host and port of {text}");
            assert_eq!(url.as_str(), text.trim(), "text of {text}");
        }
    }

    #[test]
    fn what_is_no_url_gets_the_sentence_of_etcd() {
        for (text, sentence) in [
            ("", "URL scheme must be http, https, unix, or unixs: "),
            ("abc", "URL scheme must be http, https, unix, or unixs: abc"),
            ("tcp://a:1", "URL scheme must be http, https, unix, or unixs: tcp://a:1"),
            ("http://a", "URL address does not have the form \"host:port\": http://a"),
            ("http://::1", "URL address does not have the form \"host:port\": http://::1"),
            ("http://a:1/", "URL must not contain a path: http://a:1/"),
            (":2379", "parse \":2379\": missing protocol scheme"),
            (
                "127.0.0.1:1",
                "parse \"127.0.0.1:1\": first path segment in URL cannot contain colon",
            ),
            ("http://a:b", "parse \"http://a:b\": invalid port \":b\" after host"),
            ("http://[::1", "parse \"http://[::1\": missing ']' in host"),
        ] {
            assert_eq!(Url::parse(text), Err(sentence.to_owned()), "{text:?} must be refused");
        }
    }

    #[test]
    fn a_list_is_sorted() {
        let urls = Url::parse_list("http://b:2,http://a:1").unwrap();
        let shown: Vec<_> = urls.iter().map(Url::as_str).collect();
        assert_eq!(shown, ["http://a:1", "http://b:2"], "the order of the list");
    }
}
