//! Time as a value that is handed in.
//!
//! Decides where time comes from: the system in production, a hand-turned counter in tests and
//! simulation. Cores never read it; their shells pass the reading on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A source of time. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System(Instant),
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The system's clocks: monotonic for [`Clock::now`], real for [`Clock::unix`].
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is where time enters")]
    pub fn system() -> Self {
        Self(Source::System(Instant::now()))
    }

    /// A clock that stands still until it is advanced.
    #[must_use]
    pub fn manual() -> Self {
        Self(Source::Manual(Arc::default()))
    }

    /// Time since the clock was made; never moves back.
    #[must_use]
    pub fn now(&self) -> Duration {
        match &self.0 {
            Source::System(start) => start.elapsed(),
            Source::Manual(nanos) => Duration::from_nanos(nanos.load(Ordering::Relaxed)),
        }
    }

    /// Time since the Unix epoch; may jump.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is where time enters")]
    pub fn unix(&self) -> Duration {
        match &self.0 {
            Source::System(_) => {
                SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
            }
            Source::Manual(_) => self.now(),
        }
    }

    /// Moves a manual clock on.
    ///
    /// # Panics
    /// On the system's clock, which nobody can move.
    pub fn advance(&self, by: Duration) {
        match &self.0 {
            Source::System(_) => panic!("only a manual clock can be advanced"),
            Source::Manual(nanos) => {
                let by = u64::try_from(by.as_nanos()).expect("tests stay below 584 years");
                nanos.fetch_add(by, Ordering::Relaxed);
            }
        }
    }
}
