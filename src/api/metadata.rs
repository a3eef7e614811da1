//! What a call's metadata says, as far as anybody looks at it.
//!
//! Decides how the metadata of etcd's clients is read: of several values the first counts, and of
//! `hasleader` only `true`; a timeout that cannot be read is refused. The token is kept as it came;
//! authentication resolves it. Filled by `serve` while it reads a request's fields, used by `gate`,
//! `dispatch` and `wire`.
//!
//! Source: etcd `api/v3rpc/rpctypes/metadatafields.go` and `server/auth/store.go`; grpc-go
//! `internal/transport/http_util.go` for timeouts.

use std::time::Duration;

use bytes::Bytes;
use tonic::Code;

use super::{
    gzip,
    status::{Failure, Refusal},
};

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
    /// Why `grpc-timeout` cannot be read.
    malformed: Option<String>,
}

impl Metadata {
    /// Adds a field; most fields mean nothing here. `keep` makes the value one's own.
    pub fn add(&mut self, name: &[u8], value: &[u8], keep: impl FnOnce(&[u8]) -> Bytes) {
        match name {
            b"grpc-timeout" => match timeout(&String::from_utf8_lossy(value)) {
                Ok(limit) => self.timeout = Some(limit),
                Err(why) => self.malformed = Some(why),
            },
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

    /// Refuses metadata that cannot be read.
    ///
    /// # Errors
    /// With grpc-go's text.
    pub fn check(&self) -> Result<(), Failure> {
        let Some(why) = &self.malformed else { return Ok(()) };
        Err(Failure::new(Code::Internal, format!("malformed grpc-timeout: {why}")))
    }

    /// Refuses compression that nobody knows, whether or not a message uses it.
    ///
    /// # Errors
    /// With grpc-go's text.
    pub fn check_encoding(&self) -> Result<(), Failure> {
        match self.encoding.as_deref() {
            None | Some(b"" | b"identity" | gzip::ENCODING) => Ok(()),
            Some(encoding) => Err(unknown_encoding(encoding)),
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

/// The refusal of a message or call that is compressed in a way nobody here can undo.
pub(super) fn unknown_encoding(encoding: &[u8]) -> Failure {
    let encoding = String::from_utf8_lossy(encoding);
    let text = format!("grpc: Decompressor is not installed for grpc-encoding {encoding:?}");
    Failure::new(Code::Unimplemented, text)
}

fn timeout(text: &str) -> Result<Duration, String> {
    match text.len() {
        0 | 1 => return Err(format!("transport: timeout string is too short: {text:?}")),
        2..=9 => {}
        _ => return Err(format!("transport: timeout string is too long: {text:?}")),
    }
    let unknown = || format!("transport: timeout unit is not recognized: {text:?}");
    let (digits, unit) = text.split_at_checked(text.len() - 1).ok_or_else(unknown)?;
    let of: fn(u64) -> Duration = match unit {
        "H" => |hours| Duration::from_secs(hours * 3600),
        "M" => |minutes| Duration::from_secs(minutes * 60),
        "S" => Duration::from_secs,
        "m" => Duration::from_millis,
        "u" => Duration::from_micros,
        "n" => Duration::from_nanos,
        _ => return Err(unknown()),
    };
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(format!("strconv.ParseUint: parsing {digits:?}: invalid syntax"));
    }
    Ok(of(digits.parse().expect("eight digits are a number")))
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
        assert_eq!(Metadata::default().timeout, None);
    }

    // The expectations were read off a running etcd 3.7.1.
    #[test]
    fn timeouts_that_are_none_are_refused_with_the_texts_of_grpc_go() {
        for (text, why) in [
            ("S", "transport: timeout string is too short: \"S\""),
            ("5x", "transport: timeout unit is not recognized: \"5x\""),
            ("123456789S", "transport: timeout string is too long: \"123456789S\""),
            ("+5S", "strconv.ParseUint: parsing \"+5\": invalid syntax"),
        ] {
            let failure = one("grpc-timeout", text.as_bytes()).check().expect_err("refused");
            assert_eq!(failure.text, format!("malformed grpc-timeout: {why}"));
            assert_eq!(failure.code, Code::Internal);
        }
        assert_eq!(one("grpc-timeout", b"5S").check(), Ok(()));
    }
}
