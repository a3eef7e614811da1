//! Durations in Go's notation, as flags take them and logs show them.
//!
//! Decides the spelling only: `1h30m0s`, `1.5s`, `100ms`. Values are signed nanoseconds, because
//! etcd accepts negative durations and gives some of them a meaning. Used by `config` for flags
//! and by everyone who logs how long something took.
//!
//! Source: the `ParseDuration` and `String` functions of Go's `time` package.

use std::{fmt, time::Duration};

const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Shows a duration as etcd's logs do: `took = %Took(duration)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Took(pub Duration);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format(i64::try_from(self.0.as_nanos()).unwrap_or(i64::MAX)))
    }
}

/// The nanoseconds that `text` stands for.
///
/// # Errors
/// With Go's sentence, if there is no number, no unit, an unknown unit, or an overflow.
pub fn parse(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let (whole, after) = split_digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => split_digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {text:?}"));
        }
        let Some((_, nanos)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!("time: unknown unit {unit:?} in duration {text:?}"));
        };
        total = scaled(whole, fraction, *nanos)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(invalid)?;
        rest = next;
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_overflow| invalid())
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn scaled(whole: &str, fraction: &str, nanos: i128) -> Option<i128> {
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // Eighteen digits are below a nanosecond even for hours; Go drops the rest as well.
    let fraction = &fraction[..fraction.len().min(18)];
    let numerator: i128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let denominator = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_mul(nanos)?.checked_add(numerator * nanos / denominator)
}

/// Writes `nanos` as Go does.
#[must_use]
pub fn format(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let size = nanos.unsigned_abs();
    match size {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{size}ns"),
        1_000..1_000_000 => format!("{sign}{}\u{b5}s", decimal(size, 1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", decimal(size, 1_000_000)),
        _ => {
            let minutes = size / 60_000_000_000;
            let seconds = decimal(size % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

fn decimal(value: u64, unit: u64) -> String {
    let (whole, rest) = (value / unit, value % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let digits = unit.ilog10() as usize;
    format!("{whole}.{}", format!("{rest:0digits$}").trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{format, parse};

    #[test]
    fn durations_read_and_print_as_in_go() {
        for (text, nanos, shown) in [
            ("0", 0, "0s"),
            ("10m", 600_000_000_000, "10m0s"),
            ("1h30m", 5_400_000_000_000, "1h30m0s"),
            ("1.5s", 1_500_000_000, "1.5s"),
            ("-100ms", -100_000_000, "-100ms"),
            (".5us", 500, "500ns"),
            ("2.000000001s", 2_000_000_001, "2.000000001s"),
        ] {
            assert_eq!(parse(text), Ok(nanos), "{text} in nanoseconds");
            assert_eq!(format(nanos), shown, "{text} printed");
        }
    }

    #[test]
    fn a_bad_duration_gets_go_s_sentence() {
        for (text, sentence) in [
            ("", "time: invalid duration \"\""),
            ("s", "time: invalid duration \"s\""),
            ("10", "time: missing unit in duration \"10\""),
            ("1y", "time: unknown unit \"y\" in duration \"1y\""),
            ("9999999h", "time: invalid duration \"9999999h\""),
        ] {
            assert_eq!(parse(text), Err(sentence.to_owned()), "{text} must be refused");
        }
    }

    proptest! {
        #[test]
        fn every_printed_duration_reads_back(nanos in any::<i64>()) {
            // The smallest value has no positive twin; Go refuses it as well.
            let nanos = nanos.max(-i64::MAX);
            assert_eq!(parse(&format(nanos)), Ok(nanos), "printed as {}", format(nanos));
        }
    }
}
