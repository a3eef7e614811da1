//! Whether the disk is quiet: small appends with a sync, as a log makes them.
//!
//! Decides when a measurement on this disk means something: a disk that somebody else writes to
//! answers in two modes, forty times apart, and every figure that waits for it is then chance.

use std::{
    fs::File,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;

use super::statistics::percentile;

/// Syncs of one probe.
const SYNCS: usize = 200;
/// Bytes appended before each.
const APPEND_BYTES: usize = 4096;
/// A disk whose 90th percentile is above so many times its quiet median is disturbed.
const DISTURBED_TIMES: f64 = 3.0;
/// Probes from which the quiet median is taken.
const QUIET_PROBES: usize = 5;

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probe {
    /// Median time of a sync, in microseconds.
    pub median_micros: f64,
    /// The time below which nine in ten stay, in microseconds.
    pub p90_micros: f64,
}

impl Probe {
    /// Appends and syncs in `dir`.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn take(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("probe");
        let mut file = File::create(&path).context("cannot create the file of the disk probe")?;
        let block = [0x5a; APPEND_BYTES];
        let mut micros = Vec::with_capacity(SYNCS);
        for _ in 0..SYNCS {
            let start = Instant::now();
            file.write_all(&block)?;
            file.sync_data()?;
            micros.push(start.elapsed().as_secs_f64() * 1e6);
        }
        std::fs::remove_file(path)?;
        Ok(Self { median_micros: percentile(&micros, 50.0), p90_micros: percentile(&micros, 90.0) })
    }

    /// The quiet median: the lowest of a few probes.
    ///
    /// # Errors
    /// As [`Probe::take`].
    pub fn quiet_median(dir: &Path) -> anyhow::Result<f64> {
        let mut lowest = f64::INFINITY;
        for _ in 0..QUIET_PROBES {
            lowest = lowest.min(Self::take(dir)?.median_micros);
        }
        Ok(lowest)
    }

    /// Whether somebody else used the disk.
    #[must_use]
    pub fn is_disturbed(&self, quiet_median_micros: f64) -> bool {
        quiet_median_micros * DISTURBED_TIMES < self.p90_micros
    }
}

/// Waits, for conditions that nobody announces.
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
