//! The checks of `--strict-reconfig-check`: whether a change of members would cost the quorum.
//!
//! Decides from counts alone; who is connected, and since when, the transport knows. Called by the
//! cluster service before a change is proposed, so a refusal here is not part of the log.
//!
//! Source: etcd `server/etcdserver/server.go` (`mayAddMember` and its siblings) and
//! `api/membership/cluster.go` (`IsReadyTo...`).

use std::time::Duration;

/// How long a connection must have lasted to count.
pub const CONNECTED_MIN: Duration = Duration::from_secs(5);

/// The voters of the group, as this member sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voters {
    /// How many there are.
    pub total: usize,
    /// How many have published a name.
    pub started: usize,
    /// How many have been connected for [`CONNECTED_MIN`], this member included.
    pub connected: usize,
}

/// What the new member will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewMember {
    /// It votes at once.
    Voter,
    /// It only receives the log.
    Learner,
}

/// The voter to be removed, as this member sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// Whether it has published a name.
    pub is_started: bool,
    /// Whether there is a connection to it; this member itself counts as connected.
    pub is_connected: bool,
}

/// Why a change is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReconfigureError {
    /// Too few members have started.
    NotEnoughStarted,
    /// Too few members have been connected for long enough.
    Unhealthy,
}

const fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// Whether a member may be added. The new one counts as down until proven otherwise.
///
/// # Errors
/// - [`ReconfigureError::NotEnoughStarted`] if a new voter would leave the started ones without a
///   quorum. A group of one may always grow to two: that is how a restored member gets company.
/// - [`ReconfigureError::Unhealthy`] if the connected voters are no quorum of the larger group.
pub const fn may_add(voters: Voters, new: NewMember) -> Result<(), ReconfigureError> {
    let enlarged = voters.total + 1;
    let grows_from_one = voters.started == 1 && enlarged == 2;
    if matches!(new, NewMember::Voter) && !grows_from_one && voters.started < quorum(enlarged) {
        return Err(ReconfigureError::NotEnoughStarted);
    }
    if 1 < voters.total && voters.connected < quorum(enlarged) {
        return Err(ReconfigureError::Unhealthy);
    }
    Ok(())
}

/// Whether a voter may be removed; a learner always may. One that is down is safe to remove.
///
/// # Errors
/// - [`ReconfigureError::NotEnoughStarted`] if the started ones that stay are no quorum.
/// - [`ReconfigureError::Unhealthy`] if the connected ones that stay are too few.
pub const fn may_remove(voters: Voters, leaving: Leaving) -> Result<(), ReconfigureError> {
    let total = voters.total.saturating_sub(1);
    let started = voters.started.saturating_sub(leaving.is_started as usize);
    if started < quorum(total) {
        return Err(ReconfigureError::NotEnoughStarted);
    }
    if !leaving.is_connected {
        return Ok(());
    }
    if voters.connected.saturating_sub(1) < 1 + total / 2 {
        return Err(ReconfigureError::Unhealthy);
    }
    Ok(())
}

/// Whether a learner may be promoted; it counts as started.
///
/// # Errors
/// - [`ReconfigureError::NotEnoughStarted`] if the started ones would be no quorum.
pub const fn may_promote(voters: Voters) -> Result<(), ReconfigureError> {
    if voters.started + 1 < quorum(voters.total + 1) {
        return Err(ReconfigureError::NotEnoughStarted);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn voters(total: usize, started: usize, connected: usize) -> Voters {
        Voters { total, started, connected }
    }

    #[test]
    fn adding_needs_a_started_and_connected_quorum_of_the_larger_group() {
        let refused = Err(ReconfigureError::NotEnoughStarted);
        assert_eq!(may_add(voters(1, 1, 1), NewMember::Voter), Ok(()));
        assert_eq!(may_add(voters(2, 1, 1), NewMember::Voter), refused);
        assert_eq!(may_add(voters(3, 2, 3), NewMember::Voter), refused);
        assert_eq!(may_add(voters(3, 3, 3), NewMember::Voter), Ok(()));
        let unhealthy = Err(ReconfigureError::Unhealthy);
        assert_eq!(may_add(voters(3, 3, 2), NewMember::Voter), unhealthy);
        assert_eq!(may_add(voters(3, 1, 2), NewMember::Learner), unhealthy);
        assert_eq!(may_add(voters(5, 5, 4), NewMember::Voter), Ok(()), "one of five is down");
    }

    #[test]
    fn removing_a_member_that_is_down_is_always_safe() {
        let down = Leaving { is_started: true, is_connected: false };
        let up = Leaving { is_connected: true, ..down };
        assert_eq!(may_remove(voters(3, 3, 2), down), Ok(()));
        assert_eq!(may_remove(voters(3, 3, 2), up), Err(ReconfigureError::Unhealthy));
        assert_eq!(may_remove(voters(3, 3, 3), up), Ok(()));
        assert_eq!(may_remove(voters(2, 1, 2), up), Err(ReconfigureError::NotEnoughStarted));
    }

    #[test]
    fn promoting_counts_the_learner_as_started() {
        assert_eq!(may_promote(voters(1, 1, 1)), Ok(()));
        assert_eq!(may_promote(voters(3, 1, 3)), Err(ReconfigureError::NotEnoughStarted));
    }
}
