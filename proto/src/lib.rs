//! etcd's messages and services as Rust types, one module per protobuf package.
//!
//! Decides nothing: field numbers, types and names are etcd's wire contract and stand in the
//! `.proto` files. Every `bytes` field is a [`bytes::Bytes`], so decoding from a `Bytes` buffer
//! shares it instead of copying. Called by every crate of the workspace.

/// Generated code, held to the generator's style rather than ours.
macro_rules! package {
    ($(#[$doc:meta])* $name:ident, $file:literal) => {
        $(#[$doc])*
        #[expect(
            clippy::allow_attributes,
            clippy::allow_attributes_without_reason,
            reason = "generated code"
        )]
        pub mod $name {
            #![allow(warnings, clippy::all, reason = "generated code")]
            include!(concat!(env!("OUT_DIR"), "/", $file, ".rs"));
        }
    };
}

package!(
    /// Users, roles, permissions.
    authpb, "authpb"
);
package!(
    /// The client-facing services, and the payload of raft entries.
    etcdserverpb, "etcdserverpb"
);
package!(
    /// Leases as stored.
    leasepb, "leasepb"
);
package!(
    /// Replicated facts about members.
    membershippb, "membershippb"
);
package!(
    /// Keys and events.
    mvccpb, "mvccpb"
);
package!(
    /// Raft's log entries, state and messages.
    raftpb, "raftpb"
);
package!(
    /// The envelope of a `.snap` file.
    snappb, "snappb"
);
package!(
    /// Elections as a service.
    v3electionpb, "v3electionpb"
);
package!(
    /// Locks as a service.
    v3lockpb, "v3lockpb"
);
package!(
    /// Records of the write-ahead log.
    walpb, "walpb"
);
package!(
    /// The standard health service.
    health, "grpc.health.v1"
);

/// The compiled schema: an encoded `google.protobuf.FileDescriptorSet` of every file above.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
