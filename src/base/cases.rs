//! How many cases a property is tried with; for tests only.
//!
//! Decides that a long run tries more: `OXETCD_CASES_TIMES` times as many, which `make fuzz` sets.
//! Used by properties whose cases are too dear for proptest's default of 256.

use proptest::prelude::ProptestConfig;

/// A configuration with `cases` cases, or a multiple of that in a long run.
#[must_use]
pub fn cases(cases: u32) -> ProptestConfig {
    let times = std::env::var("OXETCD_CASES_TIMES").ok();
    let times = times.map_or(1, |text| text.parse().expect("OXETCD_CASES_TIMES is a number"));
    let cases = cases.checked_mul(times).expect("nobody has the time for that many cases");
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}
