//! What a call's metadata says, as far as anybody looks at it.
//!
//! Decides how the metadata of etcd's clients is read: of several values the first counts, and of
//! `hasleader` only `true`. The token is kept as it came; authentication resolves it. Filled by
//! `serve` while it reads a request's fields, used by `gate`, `dispatch` and `wire`.
//!
//! Source: etcd `api/v3rpc/rpctypes/metadatafields.go` and `server/auth/store.go`; grpc-go
//! `internal/transport/http_util.go` for timeouts.

use std::time::Duration;

use bytes::Bytes;

use super::status::Refusal;

/// The metadata of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// How long the caller wants to wait, from `grpc-timeout`; `None` for ever.
    pub timeout: Option<Duration>,
    /// How messages are compressed, if they are.
    pub encoding: Option<Bytes>,
    /// Whether the caller wants no answer from a member without a leader; `None` if it does not
    /// say.
    leader: Option<bool>,
    version: Option<Bytes>,
    token: Option<Bytes>,
    authorization: Option<Bytes>,
}

impl Metadata {
    /// Adds a field; most fields mean nothing here. `keep` makes the value one's own.
    pub fn add(&mut self, name: &[u8], value: &[u8], keep: impl FnOnce(&[u8]) -> Bytes) {
        match name {
            b"grpc-timeout" => self.timeout = self.timeout.or_else(|| timeout(value)),
            b"hasleader" => {
                self.leader.get_or_insert(value == b"true");
            }
            b"grpc-encoding" => {
                self.encoding.get_or_insert_with(|| keep(value));
            }
            b"client-api-version" => {
                self.version.get_or_insert_with(|| keep(value));
            }
            b"token" => {
                self.token.get_or_insert_with(|| keep(value));
            }
            b"authorization" => {
                self.authorization.get_or_insert_with(|| keep(value));
            }
            _ => {}
        }
    }

    /// The auth token, from `token` or else `authorization`, without `Bearer `.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        let value = self.token.as_ref().or(self.authorization.as_ref())?;
        let token = std::str::from_utf8(value).ok()?;
        let token = token.strip_prefix("Bearer ").unwrap_or(token);
        (!token.is_empty()).then_some(token)
    }

    /// Whether the caller wants no answer from a member without a leader.
    #[must_use]
    pub const fn requires_leader(&self) -> bool {
        matches!(self.leader, Some(true))
    }

    /// The version of the client's library, or `unknown`.
    ///
    /// # Errors
    /// - [`Refusal::InvalidClientVersion`] if it is not UTF-8.
    pub fn client_version(&self) -> Result<&str, Refusal> {
        let Some(version) = &self.version else { return Ok("unknown") };
        std::str::from_utf8(version).map_err(|_invalid| Refusal::InvalidClientVersion)
    }

    /// The same call with another field, for tests.
    #[cfg(test)]
    pub(crate) fn with(mut self, name: &str, value: &[u8]) -> Self {
        self.add(name.as_bytes(), value, Bytes::copy_from_slice);
        self
    }
}

fn timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(count.saturating_mul(3600)),
        b'M' => Duration::from_secs(count.saturating_mul(60)),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &[u8]) -> Metadata {
        Metadata::default().with(name, value)
    }

    #[test]
    fn bearer_prefix_is_not_part_of_the_token() {
        assert_eq!(one("token", b"abc.1").token(), Some("abc.1"));
        assert_eq!(one("authorization", b"Bearer abc.1").token(), Some("abc.1"));
        assert_eq!(one("authorization", b"b").with("token", b"a").token(), Some("a"));
        assert_eq!(Metadata::default().token(), None);
    }

    #[test]
    fn only_true_requires_a_leader_and_the_first_value_counts() {
        assert!(one("hasleader", b"true").requires_leader());
        assert!(!one("hasleader", b"1").requires_leader());
        assert!(!one("hasleader", b"false").with("hasleader", b"true").requires_leader());
    }

    #[test]
    fn client_version_that_is_no_text_is_refused() {
        assert_eq!(one("client-api-version", b"3.7").client_version(), Ok("3.7"));
        assert_eq!(Metadata::default().client_version(), Ok("unknown"));
        let invalid = one("client-api-version", b"\xff");
        assert_eq!(invalid.client_version(), Err(Refusal::InvalidClientVersion));
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        let read = |text: &str| one("grpc-timeout", text.as_bytes()).timeout;
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("5000000u"), Some(Duration::from_secs(5)));
        assert_eq!(read("S"), None);
        assert_eq!(read("5x"), None);
        assert_eq!(Metadata::default().timeout, None);
    }
}
