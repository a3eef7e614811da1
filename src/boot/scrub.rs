//! The scrub thread: looks for damage before a client meets it.
//!
//! Decides the pace, and that damage is told and nothing else: whoever reads a damaged row is
//! refused, and everything else is still served. Started by `threads`.

use std::time::Duration;

use crate::{
    base::{
        error::chain,
        queue::{Drained, Receiver},
    },
    storage::{
        backend::Backend,
        scrub::{Scrub, ScrubProgress},
    },
};

/// Between two slices of some megabytes: a round through 2 GiB takes about ten minutes, and a
/// hundredth of a core.
const SLICE_PAUSE: Duration = Duration::from_secs(1);

/// Between two rounds, and before the first.
const ROUND_PAUSE: Duration = Duration::from_hours(1);

/// Checks what is stored, again and again, until the other end of `stop` is gone.
pub(super) fn run(backend: &Backend, mut stop: Receiver<()>) {
    let mut scrub = Scrub::default();
    let mut pause = ROUND_PAUSE;
    while stop.drain(&mut Vec::new(), Some(pause)) != Drained::Closed {
        pause = match scrub.step(backend) {
            Ok(ScrubProgress::Slice) => SLICE_PAUSE,
            Ok(ScrubProgress::Round { checked }) => {
                tracing::info!(checked, "checked everything that is stored");
                ROUND_PAUSE
            }
            Err(error) => {
                tracing::error!(
                    error = chain(&error),
                    "stored data is damaged; restore this member from its group or from a backup"
                );
                SLICE_PAUSE
            }
        };
    }
}
