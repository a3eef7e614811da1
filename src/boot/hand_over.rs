//! The last thing that a leader does: it gives the lead to another voter, so that the others need
//! not first notice that it is gone.
//!
//! Decides who is next: the voter with the oldest connection. Called by `boot` at the end, when
//! clients are served no more.
//!
//! Source: etcd `server/etcdserver/server.go`, `TryTransferLeadershipOnShutdown`.

use std::time::Duration;

use crate::{model::MemberId, replica::Handle};

/// Pause between two looks at who leads.
const LOOK: Duration = Duration::from_millis(5);

/// Gives the lead away if this member has it. `timeout` should be longer than an election: raft
/// gives a transfer up after that time.
pub(super) async fn hand_over(handle: &Handle, timeout: Duration) {
    let status = handle.status();
    if status.leader != status.member {
        tracing::info!(
            "local-member-id" = %status.member,
            "current-leader-member-id" = %status.leader,
            "skipped leadership transfer; local server is not leader"
        );
        return;
    }
    let membership = &handle.published().membership;
    if membership.voters().count() < 2 {
        tracing::info!(
            "local-member-id" = %status.member,
            "current-leader-member-id" = %status.leader,
            "skipped leadership transfer for single voting member cluster"
        );
        return;
    }
    let connected = membership.voters().filter_map(|voter| {
        let since = handle.transport().active_since(voter.id)?;
        (voter.id != status.member).then_some((since, voter.id))
    });
    let Some((_, next)) = connected.min() else {
        tracing::warn!(
            "local-member-id" = %status.member,
            error = "no other voter is connected",
            "leadership transfer failed"
        );
        return;
    };
    give_to(handle, next, timeout).await;
}

async fn give_to(handle: &Handle, next: MemberId, timeout: Duration) {
    let own = handle.status().member;
    tracing::info!(
        "local-member-id" = %own,
        "transferee-member-id" = %next,
        "leadership transfer starting"
    );
    let given = async {
        if handle.transfer_leadership(next).is_err() {
            return;
        }
        while handle.status().leader != next {
            tokio::time::sleep(LOOK).await;
        }
    };
    match tokio::time::timeout(timeout, given).await {
        Ok(()) => tracing::info!(
            "local-member-id" = %own,
            "old-leader-member-id" = %own,
            "new-leader-member-id" = %next,
            "leadership transfer finished"
        ),
        Err(_elapsed) => tracing::warn!(
            "local-member-id" = %own,
            error = "it took too long",
            "leadership transfer failed"
        ),
    }
}
