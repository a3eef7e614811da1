//! Flags from the environment: `ETCD_` and the flag's name.
//!
//! Decides which variables count and which are worth a warning. Called by `load` when there is no
//! configuration file.
//!
//! Source: etcd `pkg/flags/flag.go`, `SetFlagsFromEnv`.

use tracing::{info, warn};

use super::{flags::Flags, table};

const PREFIX: &str = "ETCD_";

/// Set on purpose by scripts that start etcd; it must not reach `--version`.
const VERSION: &str = "ETCD_VERSION";

/// The variable of a flag.
pub(super) fn variable(flag: &str) -> String {
    format!("{PREFIX}{}", flag.to_uppercase().replace('-', "_"))
}

/// Why the environment cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// A variable and its flag are both set. The process ends at once.
    Shadowed { variable: String },
    /// A value that its flag does not take, in etcd's words.
    Value(String),
}

/// Sets the flags that the command line left alone.
///
/// # Errors
/// As [`Refused`] says; a shadowed variable goes before a bad value, and of several bad values
/// the last in the order of flag names is told, as in etcd.
pub(super) fn apply(flags: &mut Flags, environment: &[(String, String)]) -> Result<(), Refused> {
    let given =
        |name: &str| environment.iter().find(|(key, value)| key == name && !value.is_empty());
    if let Some((key, value)) = given(VERSION) {
        warn!(key = %key, value = %value, "cannot set special environment variable");
    }
    let on_command_line = flags.explicit.clone();
    let mut names: Vec<_> = table::all().map(|flag| flag.name).collect();
    names.extend(table::IGNORED);
    names.sort_unstable();

    let mut used = Vec::new();
    let mut refused = None;
    for name in names {
        let key = variable(name);
        if on_command_line.contains(name) || key == VERSION {
            continue;
        }
        let Some((_, value)) = given(&key) else { continue };
        let flag = table::find(name).expect("the name is from the table");
        match (flag.slot)(flags).set(value) {
            Ok(()) => info!(
                "variable-name" = %key,
                "variable-value" = %value,
                "recognized and used environment variable"
            ),
            Err(error) => {
                refused =
                    Some(Refused::Value(format!("invalid value {value:?} for {key}: {error}")));
            }
        }
        flags.explicit.insert(flag.name);
        used.push(key);
    }
    let shadows: Vec<_> = on_command_line.iter().map(|name| variable(name)).collect();
    check_rest(environment, &used, &shadows)?;
    refused.map_or(Ok(()), Err)
}

fn check_rest(
    environment: &[(String, String)],
    used: &[String],
    shadows: &[String],
) -> Result<(), Refused> {
    for (key, value) in environment.iter().filter(|(key, _)| key.starts_with(PREFIX)) {
        if used.contains(key) || key == VERSION {
            continue;
        }
        if shadows.contains(key) {
            return Err(Refused::Shadowed { variable: key.clone() });
        }
        warn!(
            "environment-variable" = %format_args!("{key}={value}"),
            "unrecognized environment variable"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Flags, Refused, apply};

    fn applied(flags: &mut Flags, variables: &[(&str, &str)]) -> Result<(), Refused> {
        let owned: Vec<_> =
            variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        apply(flags, &owned)
    }

    #[test]
    fn variables_set_flags_and_empty_ones_do_not() {
        let mut flags = Flags::default();
        let variables = [("ETCD_NAME", "n1"), ("ETCD_DATA_DIR", ""), ("ETCD_SOMETHING", "x")];
        assert_eq!(applied(&mut flags, &variables), Ok(()), "unknown variables only warn");
        assert_eq!(flags.name, "n1", "ETCD_NAME is --name");
        assert!(flags.explicit.contains("name"), "a variable counts as set");
        assert!(!flags.explicit.contains("data-dir"), "an empty variable counts as unset");
    }

    #[test]
    fn a_variable_beside_its_flag_is_refused() {
        let mut flags = Flags::default();
        flags.explicit.insert("name");
        let refused = applied(&mut flags, &[("ETCD_NAME", "n1")]);
        let variable = "ETCD_NAME".to_owned();
        assert_eq!(refused, Err(Refused::Shadowed { variable }), "both are set");
    }

    #[test]
    fn a_bad_value_names_the_variable() {
        let refused = applied(&mut Flags::default(), &[("ETCD_MAX_WALS", "a")]);
        let sentence = "invalid value \"a\" for ETCD_MAX_WALS: parse error".to_owned();
        assert_eq!(refused, Err(Refused::Value(sentence)), "a is no number");
    }

    #[test]
    fn the_version_variable_does_not_ask_for_the_version() {
        let mut flags = Flags::default();
        assert_eq!(applied(&mut flags, &[("ETCD_VERSION", "3.7.1")]), Ok(()), "it is special");
        assert!(!flags.version, "ETCD_VERSION is not --version");
    }
}
