//! What a server answered, as text that two servers can be compared by.
//!
//! Decides what may differ between two healthy servers: the ids of member and cluster, the raft
//! term, and sizes and indexes of their logs. Everything else must be equal, texts included.

use proto::etcdserverpb::{ResponseHeader, StatusResponse};
use tonic::Status;

/// Makes what may differ equal.
pub trait Normalize {
    /// Replaces whatever may differ between two healthy servers.
    fn normalize(&mut self);
}

impl Normalize for Option<ResponseHeader> {
    fn normalize(&mut self) {
        if let Some(header) = self {
            header.cluster_id = header.cluster_id.min(1);
            header.member_id = header.member_id.min(1);
            header.raft_term = header.raft_term.min(1);
        }
    }
}

/// Implements [`Normalize`] for answers in which only the header may differ.
macro_rules! header_only {
    ($($message:ident),* $(,)?) => {
        $(impl Normalize for proto::etcdserverpb::$message {
            fn normalize(&mut self) {
                self.header.normalize();
            }
        })*
    };
}

header_only!(
    RangeResponse,
    PutResponse,
    DeleteRangeResponse,
    TxnResponse,
    CompactionResponse,
    HashKvResponse,
    HashResponse,
    LeaseGrantResponse,
    LeaseRevokeResponse,
    LeaseLeasesResponse,
    LeaseTimeToLiveResponse,
    LeaseKeepAliveResponse,
    WatchResponse,
    AlarmResponse,
    DefragmentResponse,
    MoveLeaderResponse,
    DowngradeResponse,
    AuthStatusResponse,
);

impl Normalize for StatusResponse {
    fn normalize(&mut self) {
        self.header.normalize();
        self.leader = self.leader.min(1);
        self.db_size = self.db_size.min(1);
        self.db_size_in_use = self.db_size_in_use.min(1);
        self.raft_index = 0;
        self.raft_applied_index = 0;
        self.raft_term = 0;
    }
}

/// One answer as one line.
pub fn line<M: Normalize + std::fmt::Debug>(answer: Result<M, Status>) -> String {
    match answer {
        Ok(mut message) => {
            message.normalize();
            format!("{message:?}")
        }
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// Panics with the first line that differs, and the request that led to it.
///
/// # Panics
/// If the two differ.
pub fn assert_equal(requests: &[String], official: &[String], ours: &[String]) {
    assert_eq!(official.len(), ours.len(), "the servers answered different numbers of requests");
    for (step, (expected, found)) in official.iter().zip(ours).enumerate() {
        assert!(
            expected == found,
            "step {step}: {}\n  official: {expected}\n  oxetcd:   {found}",
            requests.get(step).map_or("?", String::as_str)
        );
    }
}
