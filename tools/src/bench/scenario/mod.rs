//! Server lives: what is done to a server from its start to its end, and measured meanwhile.
//!
//! Decides which measurements share one life. Filling a store takes longer than measuring it, so
//! rows that need the same store are measured one after the other in it, always in the same order
//! on both servers.
//!
//! ```text
//!   campaign --start--> Life { server, samples } --run--> keys | ...
//!                          |
//!                          +-- window: probe, readings, load, readings, probe --> Figures
//! ```

mod keys;
mod life;

pub use self::life::{Life, Plan, Sample};

use super::server::Options;

/// One kind of server life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// Puts, gets and transactions on single keys.
    Keys,
}

impl Scenario {
    /// How the server is started.
    #[must_use]
    pub fn options(self) -> Options {
        match self {
            Self::Keys => Options::default(),
        }
    }

    /// How many pairs are enough: the longer a life, the fewer.
    #[must_use]
    pub const fn pairs_max(self) -> usize {
        match self {
            Self::Keys => usize::MAX,
        }
    }

    /// Measures the rows that `life` wants.
    ///
    /// # Errors
    /// If a server fails, or has lost an acknowledged write.
    pub fn run(self, life: &mut Life<'_>) -> anyhow::Result<()> {
        match self {
            Self::Keys => keys::run(life),
        }
    }
}
