//! Results as text.
//!
//! Decides the shapes, which are those of `etcdutl -w`. Called by the binary.
//!
//! Source: etcd `etcdutl/etcdutl/printer*.go`.

use serde::Serialize;

use super::{HashKv, OfflineError, Status};

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Values, separated by a comma and a space.
    Simple,
    /// A frame with a headline.
    Table,
    /// One line of JSON.
    Json,
    /// A quoted name and a value on each line.
    Fields,
    /// Accepted, and refused by every command there is.
    Protobuf,
}

impl Format {
    /// The format called `name`.
    ///
    /// # Errors
    /// - [`OfflineError::Format`] if there is none.
    pub fn parse(name: &str) -> Result<Self, OfflineError> {
        match name {
            "simple" => Ok(Self::Simple),
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            "fields" => Ok(Self::Fields),
            "protobuf" => Ok(Self::Protobuf),
            _ => Err(OfflineError::Format("unsupported output format".to_owned())),
        }
    }
}

/// A status as text, with the last line's end.
///
/// # Errors
/// - [`OfflineError::Format`] for a format that cannot hold it.
pub fn status_text(status: &Status, format: Format) -> Result<String, OfflineError> {
    let columns = [
        ("hash", format!("{:x}", status.hash)),
        ("revision", status.revision.to_string()),
        ("total keys", status.total_key.to_string()),
        ("total size", human_bytes(status.total_size)),
        ("version", status.version.clone()),
    ];
    let fields = [
        ("Hash", status.hash.to_string()),
        ("Revision", status.revision.to_string()),
        ("Keys", status.total_key.to_string()),
        ("Size", status.total_size.to_string()),
        ("Version", status.version.clone()),
    ];
    text(status, &columns, &fields, format)
}

/// A history's hash as text, with the last line's end.
///
/// # Errors
/// - [`OfflineError::Format`] for a format that cannot hold it.
pub fn hash_kv_text(hash: &HashKv, format: Format) -> Result<String, OfflineError> {
    let columns = [
        ("hash", hash.hash.to_string()),
        ("hash revision", hash.hash_revision.to_string()),
        ("compact revision", hash.compact_revision.to_string()),
    ];
    let fields = [
        ("Hash", hash.hash.to_string()),
        ("Hash revision", hash.hash_revision.to_string()),
        ("Compact revision", hash.compact_revision.to_string()),
    ];
    text(hash, &columns, &fields, format)
}

fn text(
    value: &impl Serialize,
    columns: &[(&str, String)],
    fields: &[(&str, String)],
    format: Format,
) -> Result<String, OfflineError> {
    Ok(match format {
        Format::Simple => {
            let values: Vec<&str> = columns.iter().map(|(_, value)| value.as_str()).collect();
            format!("{}\n", values.join(", "))
        }
        Format::Table => table(columns),
        Format::Json => {
            let json = serde_json::to_string(value).expect("a struct of numbers and texts");
            format!("{json}\n")
        }
        Format::Fields => {
            fields.iter().map(|(name, value)| format!("\"{name}\" : {value}\n")).collect()
        }
        Format::Protobuf => {
            let text = "protobuf not supported as output format";
            return Err(OfflineError::Format(text.to_owned()));
        }
    })
}

/// One row in a frame: headlines centred, values to the right.
fn table(columns: &[(&str, String)]) -> String {
    let widths: Vec<usize> =
        columns.iter().map(|(name, value)| name.len().max(value.chars().count())).collect();
    let rule = |left: char, middle: char, right: char| {
        let parts: Vec<String> = widths.iter().map(|width| "\u{2500}".repeat(width + 2)).collect();
        format!("{left}{}{right}\n", parts.join(&middle.to_string()))
    };
    let row = |cells: Vec<String>| {
        let cells: Vec<String> = cells.into_iter().map(|cell| format!(" {cell} ")).collect();
        format!("\u{2502}{}\u{2502}\n", cells.join("\u{2502}"))
    };
    let names = columns.iter().zip(&widths);
    let names =
        names.map(|((name, _), width)| format!("{:^width$}", name.to_uppercase())).collect();
    let values = columns.iter().zip(&widths);
    let values = values.map(|((_, value), width)| format!("{value:>width$}")).collect();
    [
        rule('\u{250c}', '\u{252c}', '\u{2510}'),
        row(names),
        rule('\u{251c}', '\u{253c}', '\u{2524}'),
        row(values),
        rule('\u{2514}', '\u{2534}', '\u{2518}'),
    ]
    .concat()
}

/// A length in decimal units, with one digit behind the point below ten.
///
/// Source: go-humanize `Bytes`, which etcd's tools print.
pub(super) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut divisor = 1_u64;
    while unit + 1 < UNITS.len() && 1000 <= bytes / divisor {
        divisor *= 1000;
        unit += 1;
    }
    // Tenths, rounded half up; in u128 because ten times an exabyte is more than a u64 holds.
    let tenths = (u128::from(bytes) * 20 + u128::from(divisor)) / (u128::from(divisor) * 2);
    let name = UNITS[unit];
    if tenths < 100 {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    } else {
        // Go rounds the tenths to the nearest even integer when it drops them.
        let whole = tenths / 10;
        let rest = tenths % 10;
        let up = 5 < rest || (rest == 5 && whole % 2 == 1);
        format!("{} {name}", if up { whole + 1 } else { whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_read_as_those_of_etcd() {
        let cases = [
            (0, "0 B"),
            (9, "9 B"),
            (10, "10 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (9_949, "9.9 kB"),
            (9_951, "10 kB"),
            (24_576, "25 kB"),
            (24_500, "24 kB"),
            (82_854_982, "83 MB"),
            (2_147_483_648, "2.1 GB"),
            (u64::MAX, "18 EB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(human_bytes(bytes), expected, "{bytes} bytes");
        }
    }

    #[test]
    fn results_have_the_shapes_of_etcdutl() {
        let status = Status {
            hash: 0x2498_e2b6,
            revision: 68,
            total_key: 57,
            total_size: 24_576,
            version: "3.7.0".to_owned(),
        };
        let text = |format| status_text(&status, format).expect("a supported format");
        assert_eq!(text(Format::Simple), "2498e2b6, 68, 57, 25 kB, 3.7.0\n");
        let json = concat!(
            r#"{"hash":613999286,"revision":68,"totalKey":57,"totalSize":24576,"#,
            "\"version\":\"3.7.0\"}\n"
        );
        assert_eq!(text(Format::Json), json);
        let fields = concat!(
            "\"Hash\" : 613999286\n\"Revision\" : 68\n\"Keys\" : 57\n",
            "\"Size\" : 24576\n\"Version\" : 3.7.0\n"
        );
        assert_eq!(text(Format::Fields), fields);
        assert!(matches!(status_text(&status, Format::Protobuf), Err(OfflineError::Format(_))));
    }
}
