//! Metrics, each a static beside the code that measures it.
//!
//! Decides the shape of a metric's registration: once, on first use, in the process registry that
//! `http` renders. Modules offer a `register_metrics` function that touches their statics, so that
//! every series exists from the start. Names, labels and buckets are etcd's; dashboards know them.

pub use prometheus::{
    Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
};
use prometheus::{HistogramOpts, Opts, core::Collector};

fn register<C: Collector + Clone + 'static>(collector: C) -> C {
    prometheus::register(Box::new(collector.clone())).expect("metric names are unique");
    collector
}

/// A counter that starts at zero.
#[must_use]
pub fn counter(name: &str, help: &str) -> IntCounter {
    register(IntCounter::new(name, help).expect("the name is valid"))
}

/// A family of counters.
#[must_use]
pub fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(IntCounterVec::new(Opts::new(name, help), labels).expect("the name is valid"))
}

/// An integer gauge.
#[must_use]
pub fn gauge(name: &str, help: &str) -> IntGauge {
    register(IntGauge::new(name, help).expect("the name is valid"))
}

/// A family of integer gauges.
#[must_use]
pub fn gauges(name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(IntGaugeVec::new(Opts::new(name, help), labels).expect("the name is valid"))
}

/// A histogram with `count` buckets that double from `start`.
#[must_use]
pub fn histogram(name: &str, help: &str, start: f64, count: usize) -> Histogram {
    register(
        Histogram::with_opts(HistogramOpts::new(name, help).buckets(doubling(start, count)))
            .expect("the name is valid"),
    )
}

/// A family of histograms with `count` buckets that double from `start`.
#[must_use]
pub fn histograms(
    name: &str,
    help: &str,
    start: f64,
    count: usize,
    labels: &[&str],
) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(doubling(start, count));
    register(HistogramVec::new(options, labels).expect("the name is valid"))
}

fn doubling(start: f64, count: usize) -> Vec<f64> {
    prometheus::exponential_buckets(start, 2.0, count).expect("start and count are positive")
}
