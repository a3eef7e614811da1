//! One member as it is stored and sent.
//!
//! Decides the JSON forms of a member: the value in the `members` table, and the context of a
//! configuration change. Both are read by official members and tools, so field order, omitted
//! fields and escapes are those of Go's encoder. Used by the membership, bootstrap and exchange.
//!
//! Source: etcd `server/etcdserver/api/membership/{member,cluster}.go`.

use std::fmt;

use bytes::Bytes;
use proto::etcdserverpb as pb;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::model::MemberId;

/// A member of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its id; never used again after its removal.
    pub id: MemberId,
    /// Its name; empty until the member has started and published it.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until published.
    pub client_urls: Vec<String>,
    /// Whether it receives the log without a vote.
    pub is_learner: bool,
}

/// What a configuration change to add or promote a member says about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberContext {
    /// The member; only the id if it is promoted.
    pub member: Member,
    /// Whether an existing learner becomes a voter.
    pub is_promote: bool,
}

/// Why bytes are not the JSON of a member.
#[derive(Debug)]
pub enum MemberError {
    /// Not JSON at all.
    Syntax(serde_json::Error),
    /// A field of the wrong type.
    Field(&'static str),
}

impl fmt::Display for MemberError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(_) => f.write_str("the member is not valid JSON"),
            Self::Field(name) => write!(f, "the member's field {name} has the wrong type"),
        }
    }
}

impl std::error::Error for MemberError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Syntax(source) => Some(source),
            Self::Field(_) => None,
        }
    }
}

impl Member {
    /// Whether the member has been seen running.
    #[must_use]
    pub const fn is_started(&self) -> bool {
        !self.name.is_empty()
    }

    /// The JSON that the `members` table and the change of a member's URLs hold.
    #[must_use]
    pub fn to_json(&self) -> Bytes {
        go_json(&MemberJson::new(self, None))
    }

    /// Reads what [`Member::to_json`] or an official member wrote.
    ///
    /// # Errors
    /// - [`MemberError`] if `json` is something else.
    pub fn from_json(json: &[u8]) -> Result<Self, MemberError> {
        MemberContext::from_json(json).map(|context| context.member)
    }

    /// The answer of a member that is asked for all `members` on its peer URL.
    #[must_use]
    pub fn list_to_json(members: &[&Self]) -> Bytes {
        let list: Vec<_> = members.iter().map(|member| MemberJson::new(member, None)).collect();
        let mut json = Vec::from(go_json(&list));
        json.push(b'\n');
        json.into()
    }

    /// Reads what [`Member::list_to_json`] or an official member wrote.
    ///
    /// # Errors
    /// - [`MemberError`] if `json` is something else.
    pub fn list_from_json(json: &[u8]) -> Result<Vec<Self>, MemberError> {
        let list: Vec<Value> = serde_json::from_slice(json).map_err(MemberError::Syntax)?;
        let read = |value| MemberContext::from_value(value).map(|context| context.member);
        list.into_iter().map(read).collect()
    }

    /// As the cluster service sends it.
    #[must_use]
    pub fn to_wire(&self) -> pb::Member {
        pb::Member {
            id: self.id.0,
            name: self.name.clone(),
            peer_ur_ls: self.peer_urls.clone(),
            client_ur_ls: self.client_urls.clone(),
            is_learner: self.is_learner,
        }
    }

    /// The part of the JSON that `.snap` files keep under `raftAttributes`.
    #[must_use]
    pub(super) fn raft_attributes_json(&self) -> Bytes {
        go_json(&RaftAttributesJson::new(self))
    }

    /// The part of the JSON that `.snap` files keep under `attributes`.
    #[must_use]
    pub(super) fn attributes_json(&self) -> Bytes {
        go_json(&AttributesJson::new(self))
    }
}

impl MemberContext {
    /// The JSON that a configuration change carries.
    #[must_use]
    pub fn to_json(&self) -> Bytes {
        go_json(&MemberJson::new(&self.member, Some(self.is_promote)))
    }

    /// Reads the context of a configuration change, with or without `isPromote`.
    ///
    /// As lenient as Go: unknown fields are skipped, the last of equal names counts, names match
    /// without regard to case, `null` leaves a field empty.
    ///
    /// # Errors
    /// - [`MemberError`] if `json` is not a JSON object or a known field has another type.
    pub fn from_json(json: &[u8]) -> Result<Self, MemberError> {
        let text = String::from_utf8_lossy(json);
        Self::from_value(serde_json::from_str(&text).map_err(MemberError::Syntax)?)
    }

    fn from_value(value: Value) -> Result<Self, MemberError> {
        let object = match value {
            Value::Object(object) => object,
            Value::Null => Map::new(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(MemberError::Field("(all)"));
            }
        };
        let id = match field(&object, "id") {
            None => 0,
            Some(value) => value.as_u64().ok_or(MemberError::Field("id"))?,
        };
        let member = Member {
            id: MemberId(id),
            name: string(&object, "name")?,
            peer_urls: strings(&object, "peerURLs")?,
            client_urls: strings(&object, "clientURLs")?,
            is_learner: boolean(&object, "isLearner")?,
        };
        Ok(Self { member, is_promote: boolean(&object, "isPromote")? })
    }
}

/// `value` as Go's encoder spells it: compact, and with the characters escaped that could end a
/// script element.
pub(super) fn go_json(value: &impl Serialize) -> Bytes {
    let plain = serde_json::to_string(value).expect("a struct of strings has a JSON form");
    let mut escaped = String::with_capacity(plain.len());
    for character in plain.chars() {
        match character {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            other => escaped.push(other),
        }
    }
    Bytes::from(escaped)
}

#[derive(Serialize)]
struct RaftAttributesJson<'a> {
    /// Go's nil slice is `null`.
    #[serde(rename = "peerURLs")]
    peer_urls: Option<&'a [String]>,
    #[serde(rename = "isLearner", skip_serializing_if = "is_false")]
    is_learner: bool,
}

impl<'a> RaftAttributesJson<'a> {
    fn new(member: &'a Member) -> Self {
        let peer_urls = (!member.peer_urls.is_empty()).then_some(member.peer_urls.as_slice());
        Self { peer_urls, is_learner: member.is_learner }
    }
}

#[derive(Serialize)]
struct AttributesJson<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(rename = "clientURLs", skip_serializing_if = "<[String]>::is_empty")]
    client_urls: &'a [String],
}

impl<'a> AttributesJson<'a> {
    fn new(member: &'a Member) -> Self {
        Self { name: &member.name, client_urls: &member.client_urls }
    }
}

#[derive(Serialize)]
struct MemberJson<'a> {
    id: u64,
    #[serde(flatten)]
    raft_attributes: RaftAttributesJson<'a>,
    #[serde(flatten)]
    attributes: AttributesJson<'a>,
    #[serde(rename = "isPromote", skip_serializing_if = "Option::is_none")]
    is_promote: Option<bool>,
}

impl<'a> MemberJson<'a> {
    fn new(member: &'a Member, is_promote: Option<bool>) -> Self {
        Self {
            id: member.id.0,
            raft_attributes: RaftAttributesJson::new(member),
            attributes: AttributesJson::new(member),
            is_promote,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
const fn is_false(value: &bool) -> bool {
    !*value
}

fn field<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let exact = object.get(name);
    let found = exact.or_else(|| {
        object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    });
    found.filter(|value| !value.is_null())
}

fn string(object: &Map<String, Value>, name: &'static str) -> Result<String, MemberError> {
    match field(object, name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(MemberError::Field(name)),
    }
}

fn boolean(object: &Map<String, Value>, name: &'static str) -> Result<bool, MemberError> {
    match field(object, name) {
        None => Ok(false),
        Some(value) => value.as_bool().ok_or(MemberError::Field(name)),
    }
}

fn strings(object: &Map<String, Value>, name: &'static str) -> Result<Vec<String>, MemberError> {
    let Some(value) = field(object, name) else { return Ok(Vec::new()) };
    let items = value.as_array().ok_or(MemberError::Field(name))?;
    let text = |item: &Value| item.as_str().map(str::to_owned).ok_or(MemberError::Field(name));
    items.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Member {
        Member {
            id: MemberId(10_276_657_743_932_975_437),
            name: "default".to_owned(),
            peer_urls: vec!["http://localhost:2380".to_owned()],
            client_urls: vec!["http://localhost:2379".to_owned()],
            is_learner: false,
        }
    }

    #[test]
    fn json_of_a_stored_member_is_that_of_the_official_server() {
        // Dumped from the `members` bucket of an official 3.7.1 data directory.
        let expected = concat!(
            r#"{"id":10276657743932975437,"peerURLs":["http://localhost:2380"],"#,
            r#""name":"default","clientURLs":["http://localhost:2379"]}"#,
        );
        assert_eq!(member().to_json(), expected);
    }

    #[test]
    fn context_of_a_learner_and_of_a_promotion_have_their_own_fields() {
        let learner = Member { is_learner: true, ..Member::default() };
        let learner = Member { id: MemberId(5), peer_urls: vec!["u&v".to_owned()], ..learner };
        let add = MemberContext { member: learner, is_promote: false };
        let expected = r#"{"id":5,"peerURLs":["u\u0026v"],"isLearner":true,"isPromote":false}"#;
        assert_eq!(add.to_json(), expected);

        let promoted = Member { id: MemberId(5), ..Member::default() };
        let promote = MemberContext { member: promoted, is_promote: true };
        assert_eq!(promote.to_json(), r#"{"id":5,"peerURLs":null,"isPromote":true}"#);
        for context in [add, promote] {
            assert_eq!(MemberContext::from_json(&context.to_json()).expect("own JSON"), context);
        }
    }

    #[test]
    fn list_is_that_of_an_official_member_on_its_peer_url() {
        let learner = Member {
            id: MemberId(u64::MAX),
            peer_urls: vec!["http://b:1".to_owned()],
            is_learner: true,
            ..Member::default()
        };
        let members = [member(), learner];
        let expected = concat!(
            r#"[{"id":10276657743932975437,"peerURLs":["http://localhost:2380"],"#,
            r#""name":"default","clientURLs":["http://localhost:2379"]},"#,
            r#"{"id":18446744073709551615,"peerURLs":["http://b:1"],"isLearner":true}]"#,
            "\n",
        );
        let json = Member::list_to_json(&members.each_ref());
        assert_eq!(json, expected);
        assert_eq!(Member::list_from_json(&json).expect("own JSON"), members);
        for bad in ["{}", "[1]", "x"] {
            assert!(Member::list_from_json(bad.as_bytes()).is_err(), "{bad} was read as members");
        }
    }

    #[test]
    fn reading_is_as_lenient_as_go_and_refuses_what_go_refuses() {
        let odd = br#"{"ID":7,"extra":{"a":[1]},"peerurls":["x"],"name":null}"#;
        let read = Member::from_json(odd).expect("Go reads this");
        assert_eq!((read.id, read.peer_urls), (MemberId(7), vec!["x".to_owned()]));
        for bad in [&b"{"[..], b"[]", b"\"x\"", br#"{"id":-1}"#, br#"{"peerURLs":"x"}"#] {
            assert!(Member::from_json(bad).is_err(), "{bad:?} was read as a member");
        }
    }
}
