//! On whose behalf a request runs.
//!
//! Decides nothing yet: while authentication is off, everybody is nobody. Made by `gate`, passed on
//! with every proposal.

/// On whose behalf a request is proposed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The authenticated user; empty while authentication is off.
    pub username: String,
    /// The auth revision at which the user was checked.
    pub auth_revision: u64,
}
