//! A bar for work that takes long.
//!
//! Decides that nothing is drawn unless a terminal watches standard error, so that logs and
//! scripts see only results. Used by the commands.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often the bar is drawn while nothing moves.
const TICK: Duration = Duration::from_millis(200);

/// Counts bytes of one piece of work; finished when dropped.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar for `bytes_total` of `work`.
    #[must_use]
    pub fn new(work: &'static str, bytes_total: u64) -> Self {
        let bar = ProgressBar::new(bytes_total);
        let style = ProgressStyle::with_template(
            "{msg:12} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        );
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_message(work);
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// Counts `bytes` more.
    pub fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
