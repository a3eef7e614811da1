//! What a call's metadata says about who calls and what they insist on.
//!
//! Decides how the metadata of etcd's clients is read: first value only, other values of
//! `hasleader` ignored. The token is kept as it came; authentication resolves it. Called by `gate`.
//!
//! Source: etcd `api/v3rpc/rpctypes/metadatafields.go` and `server/auth/store.go`.

use http::HeaderMap;

use super::status::Refusal;

/// On whose behalf a request is proposed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The authenticated user; empty while authentication is off.
    pub username: String,
    /// The auth revision at which the user was checked.
    pub auth_revision: u64,
}

/// The auth token, from `token` or else `authorization`, without `Bearer `.
#[must_use]
pub fn token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get("token").or_else(|| headers.get("authorization"))?;
    let token = value.to_str().ok()?;
    let token = token.strip_prefix("Bearer ").unwrap_or(token);
    (!token.is_empty()).then_some(token)
}

/// Whether the caller wants no answer from a member without a leader.
#[must_use]
pub fn requires_leader(headers: &HeaderMap) -> bool {
    headers.get("hasleader").is_some_and(|value| value.as_bytes() == b"true")
}

/// The version of the client's library, or `unknown`.
///
/// # Errors
/// - [`Refusal::InvalidClientVersion`] if it is not UTF-8.
pub fn client_version(headers: &HeaderMap) -> Result<&str, Refusal> {
    let Some(value) = headers.get("client-api-version") else { return Ok("unknown") };
    std::str::from_utf8(value.as_bytes()).map_err(|_invalid| Refusal::InvalidClientVersion)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(name: &'static str, value: &[u8]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_bytes(value).expect("a header value"));
        headers
    }

    #[test]
    fn bearer_prefix_is_not_part_of_the_token() {
        assert_eq!(token(&headers("token", b"abc.1")), Some("abc.1"));
        assert_eq!(token(&headers("authorization", b"Bearer abc.1")), Some("abc.1"));
        assert_eq!(token(&HeaderMap::new()), None);
    }

    #[test]
    fn only_true_requires_a_leader() {
        assert!(requires_leader(&headers("hasleader", b"true")));
        assert!(!requires_leader(&headers("hasleader", b"1")));
    }

    #[test]
    fn client_version_that_is_no_text_is_refused() {
        assert_eq!(client_version(&headers("client-api-version", b"3.7")), Ok("3.7"));
        assert_eq!(client_version(&HeaderMap::new()), Ok("unknown"));
        let invalid = headers("client-api-version", b"\xff");
        assert_eq!(client_version(&invalid), Err(Refusal::InvalidClientVersion));
    }
}
