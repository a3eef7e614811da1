//! Medians, percentiles, and how sure we are of a median.
//!
//! Decides the one statistic of a report: the median of paired figures with a bootstrap interval.
//! Pure; the same figures and seed give the same interval.

/// Resamples of one bootstrap.
const RESAMPLES: usize = 10_000;
/// The share of resampled medians that the interval leaves out on each side, in percent.
const TAIL_PERCENT: f64 = 2.5;

/// A median and the interval that holds it with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The median.
    pub median: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The value below which `percent` of `values` lie, interpolated; NaN of nothing.
#[must_use]
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    percentile_of_sorted(&sorted, percent)
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a place among a few thousand values"
)]
fn percentile_of_sorted(sorted: &[f64], percent: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = percent / 100.0 * last as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    let share = place - place.floor();
    sorted[below] + (sorted[above] - sorted[below]) * share
}

/// The median of `values` with its 95 % interval, by resampling them `RESAMPLES` times.
#[must_use]
pub fn estimate(values: &[f64], seed: u64) -> Option<Estimate> {
    if values.is_empty() {
        return None;
    }
    let mut random = Random(seed);
    let mut resample = vec![0.0; values.len()];
    let mut medians: Vec<_> = (0..RESAMPLES)
        .map(|_| {
            resample.fill_with(|| values[random.below(values.len())]);
            percentile(&resample, 50.0)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    Some(Estimate {
        median: percentile(values, 50.0),
        low: percentile_of_sorted(&medians, TAIL_PERCENT),
        high: percentile_of_sorted(&medians, 100.0 - TAIL_PERCENT),
    })
}

/// SplitMix64: small, seeded, good enough to pick samples.
#[derive(Debug)]
struct Random(u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        let wide = u128::from(self.next()) * limit as u128;
        usize::try_from(wide >> 64).expect("below the limit")
    }
}

#[cfg(test)]
mod tests {
    use super::{estimate, percentile};

    #[test]
    fn percentiles_are_interpolated() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert!((percentile(&values, 0.0) - 1.0).abs() < 1e-9);
        assert!((percentile(&values, 50.0) - 2.5).abs() < 1e-9);
        assert!((percentile(&values, 100.0) - 4.0).abs() < 1e-9);
        assert!(percentile(&[], 50.0).is_nan());
    }

    #[test]
    fn interval_holds_the_median_and_is_repeatable() {
        let values = [5.1, 4.8, 5.5, 4.9, 5.0, 5.2, 6.1, 4.7, 5.3, 5.0];
        let first = estimate(&values, 1).unwrap();
        assert_eq!(Some(first), estimate(&values, 1), "one seed, one interval");
        assert!(first.low <= first.median && first.median <= first.high, "{first:?}");
        assert!(4.7 <= first.low && first.high <= 6.1, "{first:?}");
        assert!((first.median - 5.05).abs() < 1e-9, "{first:?}");
    }

    #[test]
    fn interval_narrows_with_more_values() {
        let few: Vec<f64> = (0..5).map(|n| 1.0 + f64::from(n * 37 % 11) / 10.0).collect();
        let many: Vec<f64> = (0..100).map(|n| 1.0 + f64::from(n * 37 % 11) / 10.0).collect();
        let width = |values: &[f64]| {
            let estimate = estimate(values, 7).unwrap();
            estimate.high - estimate.low
        };
        assert!(width(&many) < width(&few), "{} and {}", width(&many), width(&few));
    }

    #[test]
    fn interval_of_one_value_is_the_value_and_of_none_is_nothing() {
        let one = estimate(&[3.0], 1).unwrap();
        assert!((one.low - 3.0).abs() < 1e-9 && (one.high - 3.0).abs() < 1e-9, "{one:?}");
        assert_eq!(estimate(&[], 1), None);
    }
}
