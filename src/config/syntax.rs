//! The syntax of Go's flag package.
//!
//! Decides how arguments become flag settings: one dash or two, `=` or the next argument, booleans
//! that stand for themselves, the last of several wins. And how Go reads booleans and numbers.
//! Scripts and unit files were written against exactly this, so clap, which would refuse `-name`
//! and read on after a positional argument, only prints the help. Called by `load`.
//!
//! Source: Go `flag/flag.go`, `strconv`.

use super::{flags::Flags, table};

/// What the arguments ask for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// Flags are set; the first argument that is no flag, if there is one, ended them.
    Set { leftover: Option<String> },
    /// The help.
    Help,
}

/// Sets `flags` from `arguments`, without the program's name.
///
/// # Errors
/// With Go's sentence for the first argument that cannot be taken.
pub(super) fn parse(flags: &mut Flags, arguments: &[String]) -> Result<Parsed, String> {
    let mut arguments = arguments.iter();
    loop {
        let Some(argument) = arguments.next() else {
            return Ok(Parsed::Set { leftover: None });
        };
        if argument.len() < 2 || !argument.starts_with('-') {
            return Ok(Parsed::Set { leftover: Some(argument.clone()) });
        }
        if argument == "--" {
            return Ok(Parsed::Set { leftover: arguments.next().cloned() });
        }
        let body = argument.strip_prefix("--").unwrap_or(&argument[1..]);
        if body.is_empty() || body.starts_with(['-', '=']) {
            return Err(format!("bad flag syntax: {argument}"));
        }
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        let Some(flag) = table::find(name) else {
            if name == "help" || name == "h" {
                return Ok(Parsed::Help);
            }
            return Err(format!("flag provided but not defined: -{name}"));
        };
        let slot = (flag.slot)(flags);
        if slot.is_boolean() {
            let value = value.unwrap_or("true");
            slot.set(value)
                .map_err(|error| format!("invalid boolean value {value:?} for -{name}: {error}"))?;
        } else {
            let value = value.or_else(|| arguments.next().map(String::as_str));
            let value = value.ok_or_else(|| format!("flag needs an argument: -{name}"))?;
            slot.set(value)
                .map_err(|error| format!("invalid value {value:?} for flag -{name}: {error}"))?;
        }
        flags.explicit.insert(flag.name);
    }
}

/// Reads a boolean as Go's `strconv.ParseBool`.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Why a text is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    /// It does not look like one.
    Syntax,
    /// It does not fit.
    Range,
}

/// Reads an unsigned number as Go does with base 0: prefixes and underscores are welcome.
pub(super) fn parse_unsigned(text: &str) -> Result<u64, Number> {
    let lower = text.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    // An underscore may stand between digits, or between a prefix and its digits.
    let prefixed = digits.len() < lower.len();
    let misplaced = digits.ends_with('_') || digits.contains("__");
    if misplaced || (digits.starts_with('_') && !prefixed) {
        return Err(Number::Syntax);
    }
    let digits = digits.replace('_', "");
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(Number::Syntax);
    }
    u64::from_str_radix(&digits, radix).map_err(|_too_long| Number::Range)
}

/// Reads a signed number as Go does with base 0.
pub(super) fn parse_signed(text: &str) -> Result<i64, Number> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let size = i128::from(parse_unsigned(digits)?);
    i64::try_from(if negative { -size } else { size }).map_err(|_wide| Number::Range)
}

#[cfg(test)]
mod tests {
    use super::{Flags, Number, Parsed, parse, parse_signed, parse_unsigned};

    fn parsed(arguments: &[&str]) -> (Flags, Result<Parsed, String>) {
        let mut flags = Flags::default();
        let arguments: Vec<_> = arguments.iter().map(|text| (*text).to_owned()).collect();
        let parsed = parse(&mut flags, &arguments);
        (flags, parsed)
    }

    #[test]
    fn dashes_and_equal_signs_are_interchangeable_and_the_last_wins() {
        let (flags, result) = parsed(&[
            "-name",
            "a",
            "--name=b",
            "--pre-vote=F",
            "-force-new-cluster",
            "--snapshot-count",
            "0x10",
            "-vv",
            "--config=x",
        ]);
        assert_eq!(result, Ok(Parsed::Set { leftover: None }), "all of it is flags");
        assert_eq!(flags.name, "b", "the last name wins");
        assert!(!flags.pre_vote, "F is false");
        assert!(flags.force_new_cluster, "a boolean needs no value");
        assert_eq!(flags.snapshot_count, 16, "numbers may be hexadecimal");
    }

    #[test]
    fn a_boolean_does_not_take_the_next_argument() {
        let (flags, result) = parsed(&["--pre-vote", "false", "--name", "x"]);
        let leftover = Some("false".to_owned());
        assert_eq!(result, Ok(Parsed::Set { leftover }), "false is a positional argument");
        assert_eq!(flags.name, "default", "what follows is not read");
    }

    #[test]
    fn arguments_that_cannot_be_taken_get_go_s_sentence() {
        for (arguments, sentence) in [
            (&["--xyz"][..], "flag provided but not defined: -xyz"),
            (&["---name=x"], "bad flag syntax: ---name=x"),
            (&["--=x"], "bad flag syntax: --=x"),
            (&["--name"], "flag needs an argument: -name"),
            (&["--max-wals=-1"], "invalid value \"-1\" for flag -max-wals: parse error"),
            (
                &["--max-wals=99999999999999999999"],
                "invalid value \"99999999999999999999\" for flag -max-wals: value out of range",
            ),
            (&["--pre-vote=yes"], "invalid boolean value \"yes\" for -pre-vote: parse error"),
            (
                &["--v2-deprecation", "not-yet"],
                "invalid value \"not-yet\" for flag -v2-deprecation: invalid value \"not-yet\"",
            ),
            (
                &["--initial-cluster-state=old"],
                "invalid value \"old\" for flag -initial-cluster-state: invalid value",
            ),
            (
                &["--max-concurrent-streams", "a"],
                "invalid value \"a\" for flag -max-concurrent-streams: strconv.ParseUint: \
                 parsing \"a\": invalid syntax",
            ),
            (
                &["--listen-client-urls=localhost"],
                "invalid value \"localhost\" for flag -listen-client-urls: URL scheme must be \
                 http, https, unix, or unixs: localhost",
            ),
            (
                &["--experimental-initial-corrupt-check=true"],
                "flag provided but not defined: -experimental-initial-corrupt-check",
            ),
        ] {
            let (_, result) = parsed(arguments);
            assert_eq!(result, Err(sentence.to_owned()), "{arguments:?} must be refused");
        }
    }

    #[test]
    fn numbers_follow_go_s_base_zero() {
        for (text, number) in [
            ("10", Ok(10)),
            ("010", Ok(8)),
            ("0b101", Ok(5)),
            ("1_000", Ok(1000)),
            ("0x_f", Ok(15)),
            ("_1", Err(Number::Syntax)),
            ("1__0", Err(Number::Syntax)),
            ("08", Err(Number::Syntax)),
            ("", Err(Number::Syntax)),
            ("+1", Err(Number::Syntax)),
        ] {
            assert_eq!(parse_unsigned(text), number, "{text:?} as an unsigned number");
        }
        assert_eq!(parse_signed("-0x10"), Ok(-16), "a sign stands before the prefix");
        assert_eq!(parse_signed("9223372036854775808"), Err(Number::Range), "one above the top");
    }
}
