//! What `--help` and `--version` print.
//!
//! Decides the words around the table of flags; clap lays them out. Called by `load`.

use clap::{Arg, Command};

use super::{
    flags::Flags,
    gates::{GATES, Gate, Stage},
    pending, table,
};

/// The release of etcd that is imitated, as `--version` and the API tell it.
pub const ETCD_VERSION: &str = "3.7.1";

/// Our own version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit this was built from, if the build was told.
pub const COMMIT: &str = match option_env!("OXETCD_COMMIT") {
    Some(commit) => commit,
    None => "not provided",
};

/// Printed beside the sentence about an argument that cannot be taken.
pub(super) const USAGE: &str = "\
Usage: oxetcd [flags]
  oxetcd --help       every flag, with its meaning and default
  oxetcd --version    the release of etcd that this server stands for, and its own version
";

const BEFORE: &str = "\
oxetcd is an etcd v3 server: the same clients, files and flags. Without any flag it serves clients
on localhost:2379 and keeps its data in ./default.etcd.

A member that others can reach needs at least:
  oxetcd --name n1 --data-dir /var/lib/etcd \\
    --listen-client-urls http://10.0.0.1:2379 --advertise-client-urls http://10.0.0.1:2379 \\
    --listen-peer-urls http://10.0.0.1:2380 --initial-advertise-peer-urls http://10.0.0.1:2380 \\
    --initial-cluster n1=http://10.0.0.1:2380

One dash or two, --flag value or --flag=value; a boolean is --flag or --flag=false. The last of
several wins. Every flag can come from the environment instead: --data-dir is ETCD_DATA_DIR. With
--config-file all other flags and the environment are ignored. Some flags of etcd belong to
features that are not available yet: setting one of them stops the start and says so.";

/// The help.
pub(super) fn help() -> String {
    let mut defaults = Flags::default();
    let mut command = Command::new("oxetcd")
        .about("An etcd v3 server")
        .before_help(BEFORE)
        .override_usage("oxetcd [flags]")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .next_line_help(true)
        .term_width(100)
        .after_help(after());
    for (group, flags) in table::GROUPS {
        for flag in *flags {
            let slot = (flag.slot)(&mut defaults);
            let shown = match slot.show() {
                none if none.is_empty() => "none".to_owned(),
                default => default,
            };
            let missing = if pending::is_missing(flag.name) { " Not available yet." } else { "" };
            let text = format!("{}{missing} [default: {shown}]", flag.help);
            let argument = Arg::new(flag.name).long(flag.name).help_heading(*group).help(text);
            command = command.arg(if slot.is_boolean() {
                argument.action(clap::ArgAction::SetTrue)
            } else {
                argument.value_name("VALUE")
            });
        }
    }
    command.render_long_help().to_string()
}

fn after() -> String {
    let gates = GATES.iter().map(|(gate, name, stage)| match (gate, stage) {
        (Gate::AllAlpha | Gate::AllBeta, _) => format!("  {name} (sets the others of its stage)\n"),
        (_, Stage::Alpha) => format!("  {name} (alpha, off by default)\n"),
        (_, Stage::Beta) => format!("  {name} (beta, on by default)\n"),
    });
    format!("Feature gates:\n{}", gates.collect::<String>())
}

/// What `--version` prints: four lines as etcd has them, then one of our own.
pub(super) fn version() -> String {
    let (os, arch) = (os(), arch());
    format!(
        "etcd Version: {ETCD_VERSION}\nGit SHA: {COMMIT}\nGo Version: none\nGo OS/Arch: \
         {os}/{arch}\noxetcd Version: {VERSION}\n"
    )
}

/// The operating system, by Go's name.
pub(super) fn os() -> &'static str {
    match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    }
}

/// The processor, by Go's name.
pub(super) fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::{help, table, version};

    #[test]
    fn the_help_names_every_flag_with_its_default() {
        let help = help();
        for flag in table::all() {
            assert!(help.contains(&format!("--{}", flag.name)), "--{} is missing", flag.name);
        }
        assert!(help.contains("[default: http://localhost:2379]"), "defaults are shown");
    }

    #[test]
    fn the_version_starts_with_the_four_lines_of_etcd() {
        let version = version();
        let labels: Vec<_> = version.lines().filter_map(|line| line.split(':').next()).collect();
        let expected = ["etcd Version", "Git SHA", "Go Version", "Go OS/Arch", "oxetcd Version"];
        assert_eq!(labels, expected, "in {version}");
        assert!(version.starts_with("etcd Version: 3.7.1\n"), "plain semantic version");
    }
}
