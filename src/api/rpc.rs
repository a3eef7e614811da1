//! The list of calls.
//!
//! Decides which paths exist, and how a path that does not is refused. One table; the dispatcher
//! matches on the enum, so a call without a handler does not compile. Called by `dispatch` and
//! `metrics`.
//!
//! Source: etcd `api/etcdserverpb/rpc.proto`; the texts of refusals are grpc-go's `server.go`.

use tonic::Code;

use super::status::Failure;

/// Who sends how many messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One each.
    Unary,
    /// One question, many answers.
    ServerStream,
    /// Many of both.
    Bidirectional,
}

impl Kind {
    /// The name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStream => "server_stream",
            Self::Bidirectional => "bidi_stream",
        }
    }
}

macro_rules! rpcs {
    ($($rpc:ident = $kind:ident $service:literal $method:literal,)*) => {
        /// A call that the client port serves.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Rpc {
            $(#[doc = concat!("`", $service, "/", $method, "`.")] $rpc,)*
        }

        impl Rpc {
            /// Every call.
            pub const ALL: &[Self] = &[$(Self::$rpc,)*];

            /// The call at an HTTP path.
            #[must_use]
            pub fn from_path(path: &str) -> Option<Self> {
                match path {
                    $(concat!("/", $service, "/", $method) => Some(Self::$rpc),)*
                    _ => None,
                }
            }

            /// Its HTTP path.
            #[must_use]
            pub const fn path(self) -> &'static str {
                match self { $(Self::$rpc => concat!("/", $service, "/", $method),)* }
            }

            /// The full name of its service.
            #[must_use]
            pub const fn service(self) -> &'static str {
                match self { $(Self::$rpc => $service,)* }
            }

            /// Its name within the service.
            #[must_use]
            pub const fn method(self) -> &'static str {
                match self { $(Self::$rpc => $method,)* }
            }

            /// Who sends how many messages.
            #[must_use]
            pub const fn kind(self) -> Kind {
                match self { $(Self::$rpc => Kind::$kind,)* }
            }
        }
    };
}

rpcs! {
    Range = Unary "etcdserverpb.KV" "Range",
    RangeStream = ServerStream "etcdserverpb.KV" "RangeStream",
    Put = Unary "etcdserverpb.KV" "Put",
    DeleteRange = Unary "etcdserverpb.KV" "DeleteRange",
    Txn = Unary "etcdserverpb.KV" "Txn",
    Compact = Unary "etcdserverpb.KV" "Compact",
    Watch = Bidirectional "etcdserverpb.Watch" "Watch",
    LeaseGrant = Unary "etcdserverpb.Lease" "LeaseGrant",
    LeaseRevoke = Unary "etcdserverpb.Lease" "LeaseRevoke",
    LeaseKeepAlive = Bidirectional "etcdserverpb.Lease" "LeaseKeepAlive",
    LeaseTimeToLive = Unary "etcdserverpb.Lease" "LeaseTimeToLive",
    LeaseLeases = Unary "etcdserverpb.Lease" "LeaseLeases",
    MemberAdd = Unary "etcdserverpb.Cluster" "MemberAdd",
    MemberRemove = Unary "etcdserverpb.Cluster" "MemberRemove",
    MemberUpdate = Unary "etcdserverpb.Cluster" "MemberUpdate",
    MemberList = Unary "etcdserverpb.Cluster" "MemberList",
    MemberPromote = Unary "etcdserverpb.Cluster" "MemberPromote",
    Alarm = Unary "etcdserverpb.Maintenance" "Alarm",
    Status = Unary "etcdserverpb.Maintenance" "Status",
    Defragment = Unary "etcdserverpb.Maintenance" "Defragment",
    Hash = Unary "etcdserverpb.Maintenance" "Hash",
    HashKv = Unary "etcdserverpb.Maintenance" "HashKV",
    Snapshot = ServerStream "etcdserverpb.Maintenance" "Snapshot",
    MoveLeader = Unary "etcdserverpb.Maintenance" "MoveLeader",
    Downgrade = Unary "etcdserverpb.Maintenance" "Downgrade",
    AuthEnable = Unary "etcdserverpb.Auth" "AuthEnable",
    AuthDisable = Unary "etcdserverpb.Auth" "AuthDisable",
    AuthStatus = Unary "etcdserverpb.Auth" "AuthStatus",
    Authenticate = Unary "etcdserverpb.Auth" "Authenticate",
    UserAdd = Unary "etcdserverpb.Auth" "UserAdd",
    UserGet = Unary "etcdserverpb.Auth" "UserGet",
    UserList = Unary "etcdserverpb.Auth" "UserList",
    UserDelete = Unary "etcdserverpb.Auth" "UserDelete",
    UserChangePassword = Unary "etcdserverpb.Auth" "UserChangePassword",
    UserGrantRole = Unary "etcdserverpb.Auth" "UserGrantRole",
    UserRevokeRole = Unary "etcdserverpb.Auth" "UserRevokeRole",
    RoleAdd = Unary "etcdserverpb.Auth" "RoleAdd",
    RoleGet = Unary "etcdserverpb.Auth" "RoleGet",
    RoleList = Unary "etcdserverpb.Auth" "RoleList",
    RoleDelete = Unary "etcdserverpb.Auth" "RoleDelete",
    RoleGrantPermission = Unary "etcdserverpb.Auth" "RoleGrantPermission",
    RoleRevokePermission = Unary "etcdserverpb.Auth" "RoleRevokePermission",
    HealthCheck = Unary "grpc.health.v1.Health" "Check",
    HealthList = Unary "grpc.health.v1.Health" "List",
    HealthWatch = ServerStream "grpc.health.v1.Health" "Watch",
    Campaign = Unary "v3electionpb.Election" "Campaign",
    Proclaim = Unary "v3electionpb.Election" "Proclaim",
    Leader = Unary "v3electionpb.Election" "Leader",
    Observe = ServerStream "v3electionpb.Election" "Observe",
    Resign = Unary "v3electionpb.Election" "Resign",
    Lock = Unary "v3lockpb.Lock" "Lock",
    Unlock = Unary "v3lockpb.Lock" "Unlock",
}

/// Why there is no call at `path`.
#[must_use]
pub fn unknown(path: &str) -> Failure {
    let text = match path.strip_prefix('/').and_then(|path| path.rsplit_once('/')) {
        None => format!("malformed method name: {path:?}"),
        Some((service, method)) => {
            if Rpc::ALL.iter().any(|rpc| rpc.service() == service) {
                format!("unknown method {method} for service {service}")
            } else {
                format!("unknown service {service}")
            }
        }
    };
    Failure::new(Code::Unimplemented, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_leads_back_to_its_call() {
        for rpc in Rpc::ALL {
            assert_eq!(Rpc::from_path(rpc.path()), Some(*rpc));
        }
    }

    // The expectations were read off a running etcd 3.7.1.
    #[test]
    fn unknown_paths_are_refused_with_the_texts_of_grpc_go() {
        let cases = [
            ("/etcdserverpb.KV/Nope", "unknown method Nope for service etcdserverpb.KV"),
            ("/nope.KV/Nope", "unknown service nope.KV"),
            ("/nope", "malformed method name: \"/nope\""),
        ];
        for (path, text) in cases {
            assert_eq!(unknown(path), Failure::new(Code::Unimplemented, text));
        }
    }
}
