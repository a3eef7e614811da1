//! A replicated request: the payload of a normal raft entry.
//!
//! Decides which of the request kinds an entry holds. The generated message has a field for each
//! of some thirty kinds; here the one that is present is decoded and the rest cost nothing.
//! Proposed by `replica` for `api`, applied by `state`, read by `exchange` and offline tools.
//!
//! Source: etcd `InternalRaftRequest` in `api/etcdserverpb/raft_internal.proto`.

use std::fmt;

use bytes::{Buf, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, decode_key, encode_key, encode_varint, skip_field},
};
use proto::{etcdserverpb as pb, membershippb};

use super::RequestId;

const HEADER_TAG: u32 = 100;
const LEGACY_ID_TAG: u32 = 1;

/// A request with the identity of who asked for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Command {
    /// Unique among members and restarts; pairs an applied entry with the waiting caller.
    pub id: RequestId,
    /// The authenticated user; empty while authentication is off.
    pub username: String,
    /// The auth revision at which the caller was checked; 0 while authentication is off.
    pub auth_revision: u64,
    /// What is asked for; `None` for a kind that this version does not know.
    pub request: Option<Request>,
}

/// Why an entry's data is not a command. Such an entry is refused, never a reason to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandError(DecodeError);

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the entry's data is not a request")
    }
}

impl std::error::Error for CommandError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident($message:ty) = $tag:literal,)*) => {
        /// Every kind of request that can stand in the log.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Request {
            $($(#[$doc])* $name($message),)*
        }

        impl Request {
            /// The field number of this kind.
            #[must_use]
            pub const fn tag(&self) -> u32 {
                match self { $(Self::$name(_) => $tag,)* }
            }

            /// The name of this kind, as metrics and logs spell it.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name),)* }
            }

            fn encoded_len(&self) -> usize {
                match self { $(Self::$name(message) => message.encoded_len(),)* }
            }

            fn encode_raw(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$name(message) => message
                        .encode(out)
                        .expect("a Vec grows as needed"),)*
                }
            }

            fn decode(tag: u32, body: Bytes) -> Result<Option<Self>, DecodeError> {
                Ok(match tag {
                    $($tag => Some(Self::$name(<$message>::decode(body)?)),)*
                    _ => None,
                })
            }
        }
    };
}

requests! {
    /// A read; only inside transactions today, but older logs hold it.
    Range(pb::RangeRequest) = 3,
    /// Write one key.
    Put(pb::PutRequest) = 4,
    /// Delete a range.
    DeleteRange(pb::DeleteRangeRequest) = 5,
    /// Compare, then run one of two branches.
    Txn(pb::TxnRequest) = 6,
    /// Drop history.
    Compaction(pb::CompactionRequest) = 7,
    /// Create a lease.
    LeaseGrant(pb::LeaseGrantRequest) = 8,
    /// End a lease and delete its keys.
    LeaseRevoke(pb::LeaseRevokeRequest) = 9,
    /// List, raise or clear alarms.
    Alarm(pb::AlarmRequest) = 10,
    /// Record remaining lease times.
    LeaseCheckpoint(pb::LeaseCheckpointRequest) = 11,
    /// Switch authentication on.
    AuthEnable(pb::AuthEnableRequest) = 1000,
    /// Switch authentication off.
    AuthDisable(pb::AuthDisableRequest) = 1011,
    /// Register a token.
    Authenticate(pb::InternalAuthenticateRequest) = 1012,
    /// Ask whether authentication is on.
    AuthStatus(pb::AuthStatusRequest) = 1013,
    /// Add a user.
    AuthUserAdd(pb::AuthUserAddRequest) = 1100,
    /// Delete a user.
    AuthUserDelete(pb::AuthUserDeleteRequest) = 1101,
    /// Read a user.
    AuthUserGet(pb::AuthUserGetRequest) = 1102,
    /// Change a password.
    AuthUserChangePassword(pb::AuthUserChangePasswordRequest) = 1103,
    /// Give a role to a user.
    AuthUserGrantRole(pb::AuthUserGrantRoleRequest) = 1104,
    /// Take a role from a user.
    AuthUserRevokeRole(pb::AuthUserRevokeRoleRequest) = 1105,
    /// List users.
    AuthUserList(pb::AuthUserListRequest) = 1106,
    /// List roles.
    AuthRoleList(pb::AuthRoleListRequest) = 1107,
    /// Add a role.
    AuthRoleAdd(pb::AuthRoleAddRequest) = 1200,
    /// Delete a role.
    AuthRoleDelete(pb::AuthRoleDeleteRequest) = 1201,
    /// Read a role.
    AuthRoleGet(pb::AuthRoleGetRequest) = 1202,
    /// Add a permission to a role.
    AuthRoleGrantPermission(pb::AuthRoleGrantPermissionRequest) = 1203,
    /// Take a permission from a role.
    AuthRoleRevokePermission(pb::AuthRoleRevokePermissionRequest) = 1204,
    /// Set the cluster version.
    ClusterVersionSet(membershippb::ClusterVersionSetRequest) = 1300,
    /// Publish a member's name and client URLs.
    ClusterMemberAttrSet(membershippb::ClusterMemberAttrSetRequest) = 1301,
    /// Start or end a downgrade.
    DowngradeInfoSet(membershippb::DowngradeInfoSetRequest) = 1302,
    /// For tests of storage versions.
    DowngradeVersionTest(pb::DowngradeVersionTestRequest) = 9900,
}

impl Command {
    /// A command on behalf of nobody in particular, as the server's own duties propose them.
    #[must_use]
    pub const fn new(id: RequestId, request: Request) -> Self {
        Self { id, username: String::new(), auth_revision: 0, request: Some(request) }
    }

    /// The marshalled `InternalRaftRequest`.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let header = pb::RequestHeader {
            id: self.id.0,
            username: self.username.clone(),
            auth_revision: self.auth_revision,
        };
        let body_bytes = self.request.as_ref().map_or(0, Request::encoded_len);
        let mut out = Vec::with_capacity(body_bytes + header.encoded_len() + 16);
        if let Some(request) = &self.request {
            encode_key(request.tag(), WireType::LengthDelimited, &mut out);
            encode_varint(body_bytes as u64, &mut out);
            request.encode_raw(&mut out);
        }
        encode_key(HEADER_TAG, WireType::LengthDelimited, &mut out);
        encode_varint(header.encoded_len() as u64, &mut out);
        header.encode(&mut out).expect("a Vec grows as needed");
        Bytes::from(out)
    }

    /// Reads the data of a normal entry, sharing its bytes.
    ///
    /// Unknown fields are skipped; if several requests are present, the last one counts.
    ///
    /// # Errors
    /// - [`CommandError`] if `data` is not valid protobuf.
    pub fn decode(mut data: Bytes) -> Result<Self, CommandError> {
        let mut command = Self::default();
        while data.has_remaining() {
            command.merge_field(&mut data).map_err(CommandError)?;
        }
        Ok(command)
    }

    fn merge_field(&mut self, data: &mut Bytes) -> Result<(), DecodeError> {
        let (tag, wire_type) = decode_key(data)?;
        match (tag, wire_type) {
            (LEGACY_ID_TAG, WireType::Varint) => {
                let id = prost::encoding::decode_varint(data)?;
                if self.id == RequestId(0) {
                    self.id = RequestId(id);
                }
            }
            (_, WireType::LengthDelimited) => {
                let body = take_delimited(data)?;
                if tag == HEADER_TAG {
                    let header = pb::RequestHeader::decode(body)?;
                    self.id = RequestId(header.id);
                    self.username = header.username;
                    self.auth_revision = header.auth_revision;
                } else if let Some(request) = Request::decode(tag, body)? {
                    self.request = Some(request);
                }
            }
            _ => skip_field(wire_type, tag, data, DecodeContext::default())?,
        }
        Ok(())
    }
}

fn take_delimited(data: &mut Bytes) -> Result<Bytes, DecodeError> {
    let length = prost::encoding::decode_varint(data)?;
    match usize::try_from(length) {
        Ok(length) if length <= data.len() => Ok(data.split_to(length)),
        // A nested decode of a truncated field makes prost's own error, whose type has no
        // public constructor.
        _ => Err(pb::RequestHeader::decode(&[0x0a, 0xff][..]).expect_err("truncated by design")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static [u8]) -> Request {
        Request::Put(pb::PutRequest { key: Bytes::from_static(key), ..Default::default() })
    }

    #[test]
    fn command_survives_its_encoding() {
        let command = Command {
            id: RequestId(0xdead_beef),
            username: "root".to_owned(),
            auth_revision: 7,
            request: Some(put(b"k")),
        };
        assert_eq!(Command::decode(command.encode()), Ok(command));
    }

    #[test]
    fn encoding_is_the_generated_message() {
        let command = Command::new(RequestId(5), put(b"k"));
        let generated = pb::InternalRaftRequest::decode(command.encode()).expect("valid");
        assert_eq!(generated.header.expect("present").id, 5);
        assert_eq!(generated.put.expect("present").key, "k");
    }

    #[test]
    fn unknown_kind_decodes_to_no_request() {
        // Field 2, length-delimited: the v2 request of old logs.
        let command = Command::decode(Bytes::from_static(&[0x12, 0x01, 0x00])).expect("valid");
        assert_eq!(command.request, None);
    }

    #[test]
    fn truncated_data_is_an_error_and_not_a_panic() {
        let whole = Command::new(RequestId(5), put(b"key")).encode();
        for cut in 1..whole.len() {
            drop(Command::decode(whole.slice(..cut)));
        }
        assert!(Command::decode(Bytes::from_static(&[0x22, 0x7f, 0x00])).is_err());
    }
}
