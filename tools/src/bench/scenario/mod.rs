//! Server lives: what is done to a server from its start to its end, and measured meanwhile.
//!
//! Decides which measurements share one life. Filling a store takes longer than measuring it, so
//! rows that need the same store are measured one after the other in it, always in the same order
//! on both servers.
//!
//! ```text
//!   campaign --start--> Life { server, samples } --run--> keys, large, ..
//!                          |
//!                          +-- window: probe, readings, load, readings, probe --> Figures
//! ```

mod group;
mod growth;
mod keys;
mod large;
mod lease;
mod life;
mod slow_disk;
mod watch;

pub use self::life::{Life, Plan, Sample};

use super::server::Options;

/// One kind of server life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// Puts, gets and transactions on single keys.
    Keys,
    /// Watchers.
    Watch,
    /// Leases.
    Lease,
    /// Reads on a disk that syncs slowly.
    SlowDisk,
    /// A group of three members.
    Group,
    /// A store of a million keys.
    Large,
    /// A store that grows to ten million keys.
    Growth,
}

/// Room for ten million keys in both servers; neither is full then.
const QUOTA_GROWTH: &str = "--quota-backend-bytes=34359738368";

impl Scenario {
    /// How the server is started.
    #[must_use]
    pub fn options(self) -> Options {
        match self {
            Self::Keys | Self::Watch | Self::Lease | Self::Large => Options::default(),
            Self::SlowDisk => slow_disk::options(),
            Self::Group => Options { companions: group::COMPANIONS, ..Options::default() },
            Self::Growth => Options { flags: vec![QUOTA_GROWTH.to_owned()], ..Options::default() },
        }
    }

    /// How many pairs are run where `wanted` are asked for: the longer a life, the fewer. Ratios of
    /// hundreds need fewer too.
    #[must_use]
    pub const fn pairs(self, wanted: usize) -> usize {
        match self {
            Self::Keys | Self::Watch | Self::SlowDisk | Self::Group => wanted,
            Self::Lease | Self::Large => wanted.div_ceil(2),
            Self::Growth => wanted.div_ceil(5),
        }
    }

    /// Measures the rows that `life` wants.
    ///
    /// # Errors
    /// If a server fails, or has lost an acknowledged write.
    pub fn run(self, life: &mut Life<'_>) -> anyhow::Result<()> {
        match self {
            Self::Keys => keys::run(life),
            Self::Watch => watch::run(life),
            Self::Lease => lease::run(life),
            Self::SlowDisk => slow_disk::run(life),
            Self::Group => group::run(life),
            Self::Large => large::run(life),
            Self::Growth => growth::run(life),
        }
    }
}
