//! One server from start to end, with the samples taken of it.
//!
//! Decides what surrounds every measurement: a disk probe before and after, readings of the
//! processor, and the mark of a disturbance.
//!
//! Invariants
//! - F1 A sample that is disturbed in any of its windows stays disturbed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Context;

use crate::bench::{
    caller::Caller,
    load::{CONNECTIONS, Generator, Requests, Shape, Tally, Until},
    probe::Probe,
    row::Figures,
    server::{Server, Side},
    usage::{Cost, Window},
};

/// Time of other processes and of the host, as a share of a window, that spoils it.
const DISTURBANCE_MAX: f64 = 0.05;

/// How long and how much.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Length of a window.
    pub window: Duration,
    /// Load before each window.
    pub warm_up: Duration,
    /// How many keys a large store has.
    pub large: u64,
    /// Sizes of the store at which costs are compared.
    pub sizes: &'static [u64],
    /// Median of a sync on the quiet disk, in microseconds.
    pub quiet_median_micros: f64,
}

/// What was measured for one row on one server.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// The figures.
    pub figures: Figures,
    /// Why they mean nothing, if they do not.
    pub disturbed: Option<String>,
    /// Why there are none, if a part does not work here.
    pub not_run: Option<String>,
}

/// A server under measurement.
#[derive(Debug)]
pub struct Life<'a> {
    /// The server.
    pub server: Server,
    /// How long and how much.
    pub plan: &'a Plan,
    /// Whether this life ends with a kill and a check of what is left.
    pub ends_with_kill: bool,
    wanted: &'a BTreeSet<&'static str>,
    samples: BTreeMap<&'static str, Sample>,
    /// The lowest median of a sync that any probe found, in microseconds.
    quietest_median_micros: f64,
}

impl<'a> Life<'a> {
    /// A life of `server` that measures the rows in `wanted`.
    #[must_use]
    pub const fn new(server: Server, plan: &'a Plan, wanted: &'a BTreeSet<&'static str>) -> Self {
        Self {
            server,
            plan,
            ends_with_kill: false,
            wanted,
            samples: BTreeMap::new(),
            quietest_median_micros: plan.quiet_median_micros,
        }
    }

    /// Whether this row is to be measured.
    #[must_use]
    pub fn wants(&self, row: &'static str) -> bool {
        self.wanted.contains(row)
    }

    /// Whether one of these rows is to be measured.
    #[must_use]
    pub fn wants_any(&self, rows: &[&'static str]) -> bool {
        rows.iter().any(|row| self.wants(row))
    }

    /// Which server this is.
    #[must_use]
    pub const fn side(&self) -> Side {
        self.server.side()
    }

    /// Notes a figure of a row.
    pub fn record(&mut self, row: &'static str, figure: &str, value: f64) {
        assert!(self.wants(row), "{row} is measured and nobody wants it");
        self.samples.entry(row).or_default().figures.insert(figure.to_owned(), value);
    }

    /// Notes that a row cannot be measured here.
    pub fn skip(&mut self, row: &'static str, reason: &str) {
        self.samples.entry(row).or_default().not_run = Some(reason.to_owned());
    }

    /// The samples, when the life is over.
    #[must_use]
    pub fn into_samples(self) -> BTreeMap<&'static str, Sample> {
        self.samples
    }

    /// The lowest median of a sync so far, in microseconds.
    #[must_use]
    pub const fn quietest_median_micros(&self) -> f64 {
        self.quietest_median_micros
    }

    /// A connection for single calls.
    ///
    /// # Errors
    /// If the server is gone.
    pub fn caller(&self) -> anyhow::Result<Caller> {
        Caller::connect(self.server.address())
    }

    /// Connections for a load with so many requests in flight.
    ///
    /// # Errors
    /// If the server is gone.
    pub fn generator(&self, in_flight: usize) -> anyhow::Result<Generator> {
        Generator::connect(&self.server.addresses(), in_flight.clamp(1, CONNECTIONS))
    }

    /// Runs `measured` inside a window for `row`.
    ///
    /// # Errors
    /// If it fails, or the server is gone.
    pub fn window<T>(
        &mut self,
        row: &'static str,
        measured: impl FnOnce(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, Cost)> {
        let before = Probe::take(self.server.dir())?;
        let window = Window::open(self.server.pids()?, self.server.dir())?;
        let outcome = measured(self)?;
        let cost = window.close()?;
        let after = Probe::take(self.server.dir())?;
        let quietest = before.median_micros.min(after.median_micros);
        self.quietest_median_micros = self.quietest_median_micros.min(quietest);
        let quiet = self.quietest_median_micros;
        let reason = if DISTURBANCE_MAX < cost.disturbance {
            Some(format!("others used {:.0} % of the processors", cost.disturbance * 100.0))
        } else if let Some(probe) = [before, after].iter().find(|probe| probe.is_disturbed(quiet)) {
            let p90 = probe.p90_micros;
            Some(format!("a sync took {p90:.0} us at p90 (quiet median {quiet:.0} us)"))
        } else {
            None
        };
        let sample = self.samples.entry(row).or_default();
        sample.disturbed = sample.disturbed.take().or(reason);
        Ok((outcome, cost))
    }

    /// Warms up, then measures a load: `ops`, `cpu` (seconds per 100,000), latencies in
    /// milliseconds and bytes to the disk, each with `prefix` in front.
    ///
    /// # Errors
    /// As [`Life::window`].
    pub fn load(
        &mut self,
        row: &'static str,
        prefix: &str,
        shape: Shape,
        requests: &mut dyn Requests,
    ) -> anyhow::Result<Tally> {
        let in_flight = match shape {
            Shape::Closed { in_flight } => in_flight,
            Shape::Open { .. } => CONNECTIONS,
        };
        let mut generator = self.generator(in_flight)?;
        let (warm_up, window) = (self.plan.warm_up, self.plan.window);
        generator.run(shape, Until::Elapsed(warm_up), requests)?;
        let measured = |_: &mut Self| generator.run(shape, Until::Elapsed(window), requests);
        let (tally, cost) = self.window(row, measured).with_context(|| format!("row {row}"))?;
        self.record_load(row, prefix, &tally, &cost);
        let anonymous = megabytes(self.server.memory()?.anonymous);
        self.record(row, &format!("{prefix}anonymous"), anonymous);
        Ok(tally)
    }

    /// Notes what a load measured.
    pub fn record_load(&mut self, row: &'static str, prefix: &str, tally: &Tally, cost: &Cost) {
        let operations = count(tally.operations);
        let mut figure = |name: &str, value| self.record(row, &format!("{prefix}{name}"), value);
        figure("operations", operations);
        figure("refused", count(tally.refused));
        figure("ops", tally.per_second());
        figure("cpu", cost.server.as_secs_f64() / operations * 1e5);
        figure("generator_cpu", cost.generator.as_secs_f64() / operations * 1e5);
        let system = cost.system.as_secs_f64().max(0.01);
        figure("generator_share", cost.generator.as_secs_f64() / system);
        figure("system_cpu", system / operations * 1e5);
        figure("written_per_op", count(cost.process_written) / operations);
        figure("device_written_per_op", count(cost.device_written) / operations);
        for (name, percent) in [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)] {
            figure(name, tally.latency_ms(percent));
        }
        figure("max", tally.latency_ms(100.0));
    }
}

/// A count as a figure.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
pub(super) const fn count(value: u64) -> f64 {
    value as f64
}

/// Bytes as a figure in MB (10^6).
#[must_use]
pub(super) const fn megabytes(bytes: u64) -> f64 {
    count(bytes) / 1e6
}
