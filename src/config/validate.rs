//! The checks on flags that read well one by one.
//!
//! Decides, in etcd's order and with etcd's words, which settings a member starts with. The first
//! fault is told. Called by `load` after the log is set up.
//!
//! Source: etcd `server/embed/config.go`, `Validate` and `setupLogging`; for [`listeners`]
//! `server/embed/etcd.go`.

use std::{collections::BTreeSet, path::PathBuf};

use tracing::warn;

use super::{flags::Flags, gates::Gate, slot::Slot as _, url::Url};
use crate::base::{duration, log};

/// Told when clients would be sent to the default address although we listen elsewhere.
pub(super) const UNSET_ADVERTISE: &str =
    "--advertise-client-urls is required when --listen-client-urls is set explicitly";

const DEFAULT_OUTPUT: &str = "default";
const JOURNAL_OUTPUT: &str = "systemd/journal";
const ELECTION_TIMEOUT_MAX_MS: u64 = 50_000;

/// The log options that the flags ask for.
///
/// # Errors
/// With etcd's sentence.
pub(super) fn logging(flags: &Flags) -> Result<log::Options, String> {
    match flags.logger.as_str() {
        "zap" => {}
        "capnslog" => return Err("--logger=capnslog is removed in v3.5".to_owned()),
        other => return Err(format!("unknown logger option {other:?}")),
    }
    let outputs = &flags.log_outputs.0;
    if outputs.len() > 1 && outputs.contains(DEFAULT_OUTPUT) {
        return Err(format!("multi logoutput for {DEFAULT_OUTPUT:?} is not supported yet"));
    }
    if flags.enable_log_rotation {
        rotation(outputs, &flags.log_rotation_config_json)?;
    }
    Ok(log::Options {
        level: level(&flags.log_level)?,
        format: match flags.log_format.as_str() {
            "json" | "" => log::Format::Json,
            "console" => log::Format::Console,
            other => {
                let known = "supported values json, console";
                return Err(format!("unknown log format: {other}, {known}"));
            }
        },
        outputs: outputs_of(outputs),
    })
}

fn level(name: &str) -> Result<log::Level, String> {
    match name.to_lowercase().as_str() {
        "debug" => Ok(log::Level::Debug),
        "info" | "" => Ok(log::Level::Info),
        "warn" | "warning" => Ok(log::Level::Warn),
        "error" => Ok(log::Level::Error),
        "dpanic" | "panic" => Ok(log::Level::Panic),
        "fatal" => Ok(log::Level::Fatal),
        _ => Err(format!("unrecognized level: {name:?}")),
    }
}

fn outputs_of(names: &BTreeSet<String>) -> Vec<log::Output> {
    // zap's agreed way to discard everything.
    if names.contains("/dev/null") {
        return Vec::new();
    }
    let mut outputs: Vec<_> = names
        .iter()
        .map(|name| match name.as_str() {
            DEFAULT_OUTPUT | JOURNAL_OUTPUT | "stderr" => log::Output::Stderr,
            "stdout" => log::Output::Stdout,
            path => log::Output::File(PathBuf::from(path)),
        })
        .collect();
    if outputs.is_empty() {
        outputs.push(log::Output::Stderr);
    }
    outputs.sort();
    outputs.dedup();
    outputs
}

fn rotation(outputs: &BTreeSet<String>, json: &str) -> Result<(), String> {
    let streams = [DEFAULT_OUTPUT, "stderr", "stdout"];
    let files = outputs.iter().filter(|output| !streams.contains(&output.as_str())).count();
    if 1 < files || (outputs.len() == 1 && files == 0) {
        let sentence = "--log-outputs requires a single file path when --log-rotate-config-json \
                        is defined";
        return Err(sentence.to_owned());
    }
    serde_json::from_str::<serde_json::Value>(json)
        .map(|_parsed| ())
        .map_err(|error| format!("improperly formatted log rotation config: {error}"))
}

/// Everything else, in etcd's order.
///
/// # Errors
/// With etcd's sentence for the first fault.
pub(super) fn flags(flags: &Flags) -> Result<(), String> {
    urls(flags)?;
    bootstrap(flags)?;
    timing(flags)?;
    if flags.advertise_client_urls.0.is_empty() {
        return Err(UNSET_ADVERTISE.to_owned());
    }
    match flags.auto_compaction_mode.as_str() {
        "periodic" | "revision" => {}
        "" => return Err("undefined auto-compaction-mode".to_owned()),
        other => return Err(format!("unknown auto-compaction-mode {other:?}")),
    }
    let rate = flags.distributed_tracing_sampling_rate;
    if flags.enable_distributed_tracing && !(0..=1_000_000).contains(&rate) {
        let limit = if rate < 0 { "positive" } else { "less than 1000000" };
        return Err(format!(
            "distributed tracing configurition is not valid: (tracing sampling rate must be \
             {limit})"
        ));
    }
    let (checkpoint, persist) = (
        flags.feature_gates.enabled(Gate::LeaseCheckpoint),
        flags.feature_gates.enabled(Gate::LeaseCheckpointPersist),
    );
    if checkpoint && !persist {
        warn!(
            "Detected that checkpointing is enabled without persistence. Consider enabling \
             feature gate LeaseCheckpointPersist"
        );
    }
    if persist && !checkpoint {
        let sentence = "enabling feature gate LeaseCheckpointPersist requires enabling feature \
                        gate LeaseCheckpoint";
        return Err(sentence.to_owned());
    }
    if flags.compact_hash_check_time.0 <= 0 {
        let set = flags.compact_hash_check_time.show();
        return Err(format!("--compact-hash-check-time must be >0 (set to {set})"));
    }
    if flags.name == "default" {
        warn!(
            name = %flags.name,
            "it isn't recommended to use default name, please set a value for --name. Note that \
             etcd might run into issue when multiple members have the same default name"
        );
    }
    tls_versions(flags)
}

fn urls(flags: &Flags) -> Result<(), String> {
    check_bind(&flags.listen_peer_urls.0)?;
    check_bind(&flags.listen_client_urls.0)?;
    check_bind(&flags.listen_client_http_urls.0)?;
    if flags.listen_client_http_urls.0.is_empty() {
        warn!(
            "Running http and grpc server on single port. This is not recommended for production."
        );
    }
    check_bind(&flags.listen_metrics_urls.0)?;
    check_host(&flags.initial_advertise_peer_urls.0).map_err(|error| {
        let shown = flags.initial_advertise_peer_urls.show();
        format!("--initial-advertise-peer-urls {shown:?} must be \"host:port\" ({error})")
    })?;
    check_host(&flags.advertise_client_urls.0).map_err(|error| {
        let shown = flags.advertise_client_urls.show();
        let form = "\"host:port\", \"unix:/path/to/socket\" or \"unixs:/path/to/socket\"";
        format!("--advertise-client-urls {shown:?} must be in the format {form} ({error})")
    })
}

fn check_bind(urls: &[Url]) -> Result<(), String> {
    match urls.iter().find(|url| !url.is_bindable()) {
        Some(url) => Err(format!("expected IP in URL for binding ({url})")),
        None => Ok(()),
    }
}

fn check_host(urls: &[Url]) -> Result<(), String> {
    match urls.iter().find(|url| !url.is_unix() && url.host().is_empty()) {
        Some(url) => Err(format!("unexpected empty host ({url})")),
        None => Ok(()),
    }
}

fn bootstrap(flags: &Flags) -> Result<(), String> {
    let ways = [
        !flags.initial_cluster.is_empty(),
        !flags.discovery_srv.is_empty(),
        !flags.discovery_endpoints.0.is_empty(),
    ];
    if 1 < ways.iter().filter(|way| **way).count() {
        let sentence = "multiple discovery or bootstrap flags are set. Choose one of \
                        \"initial-cluster\", \"discovery-endpoints\" or \"discovery-srv\"";
        return Err(sentence.to_owned());
    }
    let endpoints = &flags.discovery_endpoints.0;
    if flags.discovery_token.is_empty() != endpoints.is_empty() {
        return Err("both --discovery-token and --discovery-endpoints must be set".to_owned());
    }
    if endpoints.iter().any(|endpoint| endpoint.trim().is_empty()) {
        return Err("--discovery-endpoints must not contain empty endpoints".to_owned());
    }
    Ok(())
}

fn timing(flags: &Flags) -> Result<(), String> {
    let (heartbeat, election) = (flags.heartbeat_interval, flags.election_timeout);
    if heartbeat == 0 {
        return Err(format!("--heartbeat-interval must be >0 (set to {heartbeat}ms)"));
    }
    if election == 0 {
        return Err(format!("--election-timeout must be >0 (set to {election}ms)"));
    }
    if election < heartbeat.saturating_mul(5) {
        return Err(format!(
            "--election-timeout[{election}ms] should be at least as 5 times as \
             --heartbeat-interval[{heartbeat}ms]"
        ));
    }
    if ELECTION_TIMEOUT_MAX_MS < election {
        return Err(format!(
            "--election-timeout[{election}ms] is too long, and should be set less than \
             {ELECTION_TIMEOUT_MAX_MS}ms"
        ));
    }
    Ok(())
}

fn tls_versions(flags: &Flags) -> Result<(), String> {
    let rank = |version: &str| match version {
        "" => Ok(0),
        "TLS1.2" => Ok(12),
        "TLS1.3" => Ok(13),
        other => {
            let known = "(must be one of: TLS1.2, TLS1.3)";
            Err(format!("unexpected TLS version {other:?} {known}"))
        }
    };
    let (min, max) = (rank(&flags.tls_min_version)?, rank(&flags.tls_max_version)?);
    if max != 0 && max < min {
        let (min, max) = (&flags.tls_min_version, &flags.tls_max_version);
        return Err(format!("min version ({min}) is greater than max version ({max})"));
    }
    if min == 13 && !flags.cipher_suites.is_empty() {
        return Err("cipher suites cannot be configured when only TLS1.3 is enabled".to_owned());
    }
    Ok(())
}

/// Faults of listeners that show before any is bound.
///
/// # Errors
/// With the sentence that etcd fails to start with.
pub(super) fn listeners(flags: &Flags) -> Result<(), String> {
    let certificate = !flags.cert_file.is_empty() && !flags.key_file.is_empty();
    let clients = flags.listen_client_urls.0.iter().chain(&flags.listen_client_http_urls.0);
    if let Some(url) = clients.filter(|url| url.is_tls()).find(|_| !certificate && !flags.auto_tls)
    {
        return Err(format!(
            "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with \
             HTTPS scheme"
        ));
    }
    let taken: BTreeSet<_> = flags.listen_client_urls.0.iter().map(Url::address).collect();
    let http = &flags.listen_client_http_urls.0;
    if let Some(url) = http.iter().find(|url| taken.contains(&url.address())) {
        return Err(format!(
            "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url \
             {url}"
        ));
    }
    let metrics = &flags.listen_metrics_urls.0;
    if metrics.iter().any(Url::is_tls) && !certificate && !flags.auto_tls {
        let sentence = "client TLS key/cert (--cert-file, --key-file) must be provided for \
                        metrics secure url";
        return Err(sentence.to_owned());
    }
    Ok(())
}

/// What `--auto-compaction-retention` asks for: nanoseconds or revisions; 0 is off.
///
/// # Errors
/// With etcd's sentence.
pub(super) fn retention(flags: &Flags) -> Result<i64, String> {
    let text = if flags.auto_compaction_retention.is_empty() {
        "0"
    } else {
        &flags.auto_compaction_retention
    };
    match text.parse::<i64>() {
        Ok(count) if 0 <= count && flags.auto_compaction_mode == "revision" => Ok(count),
        Ok(hours) if 0 <= hours => Ok(hours.wrapping_mul(3_600_000_000_000)),
        _ => duration::parse(text)
            .map_err(|error| format!("error parsing CompactionRetention: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::{Flags, listeners, logging, retention};
    use crate::config::table;

    fn set(pairs: &[(&str, &str)]) -> Flags {
        let mut flags = Flags::default();
        for (name, value) in pairs {
            let flag = table::find(name).unwrap();
            (flag.slot)(&mut flags).set(value).unwrap();
        }
        flags
    }

    #[test]
    fn faults_get_etcd_s_sentences() {
        for (pairs, sentence) in [
            (
                &[("listen-client-urls", "http://:2379")][..],
                "expected IP in URL for binding (http://:2379)",
            ),
            (&[("listen-peer-urls", "http://h:1")], "expected IP in URL for binding (http://h:1)"),
            (
                &[("initial-advertise-peer-urls", "http://:1")],
                "--initial-advertise-peer-urls \"http://:1\" must be \"host:port\" (unexpected \
                 empty host (http://:1))",
            ),
            (
                &[("discovery-srv", "d")],
                "multiple discovery or bootstrap flags are set. Choose one of \
                 \"initial-cluster\", \"discovery-endpoints\" or \"discovery-srv\"",
            ),
            (
                &[("discovery-token", "t")],
                "both --discovery-token and --discovery-endpoints must be set",
            ),
            (&[("heartbeat-interval", "0")], "--heartbeat-interval must be >0 (set to 0ms)"),
            (&[("election-timeout", "0")], "--election-timeout must be >0 (set to 0ms)"),
            (
                &[("election-timeout", "499")],
                "--election-timeout[499ms] should be at least as 5 times as \
                 --heartbeat-interval[100ms]",
            ),
            (
                &[("election-timeout", "50001")],
                "--election-timeout[50001ms] is too long, and should be set less than 50000ms",
            ),
            (&[("auto-compaction-mode", "")], "undefined auto-compaction-mode"),
            (&[("auto-compaction-mode", "x")], "unknown auto-compaction-mode \"x\""),
            (
                &[("feature-gates", "LeaseCheckpointPersist=true")],
                "enabling feature gate LeaseCheckpointPersist requires enabling feature gate \
                 LeaseCheckpoint",
            ),
            (
                &[("compact-hash-check-time", "0")],
                "--compact-hash-check-time must be >0 (set to 0s)",
            ),
            (
                &[("tls-min-version", "TLS1.3"), ("tls-max-version", "TLS1.2")],
                "min version (TLS1.3) is greater than max version (TLS1.2)",
            ),
            (
                &[("tls-min-version", "TLS1.3"), ("cipher-suites", "a")],
                "cipher suites cannot be configured when only TLS1.3 is enabled",
            ),
        ] {
            let refused = super::flags(&set(pairs));
            assert_eq!(refused, Err(sentence.to_owned()), "{pairs:?} must be refused");
        }
        assert_eq!(super::flags(&Flags::default()), Ok(()), "the defaults are valid");
    }

    #[test]
    fn faults_of_the_log_get_etcd_s_sentences() {
        for (pairs, sentence) in [
            (&[("logger", "capnslog")][..], "--logger=capnslog is removed in v3.5"),
            (&[("logger", "x")], "unknown logger option \"x\""),
            (
                &[("log-outputs", "default,stdout")],
                "multi logoutput for \"default\" is not supported yet",
            ),
            (
                &[("enable-log-rotation", "true")],
                "--log-outputs requires a single file path when --log-rotate-config-json is defined",
            ),
            (&[("log-format", "x")], "unknown log format: x, supported values json, console"),
        ] {
            let refused = logging(&set(pairs)).map(|_options| ());
            assert_eq!(refused, Err(sentence.to_owned()), "{pairs:?} must be refused");
        }
    }

    #[test]
    fn faults_of_listeners_get_etcd_s_sentences() {
        for (pairs, sentence) in [
            (
                &[("listen-client-urls", "https://127.0.0.1:1")][..],
                "TLS key/cert (--cert-file, --key-file) must be provided for client url \
                 https://127.0.0.1:1 with HTTPS scheme",
            ),
            (
                &[("listen-client-http-urls", "http://localhost:2379")],
                "cannot bind both --listen-client-urls and --listen-client-http-urls on the same \
                 url http://localhost:2379",
            ),
            (
                &[("listen-metrics-urls", "https://127.0.0.1:1")],
                "client TLS key/cert (--cert-file, --key-file) must be provided for metrics \
                 secure url",
            ),
        ] {
            let refused = listeners(&set(pairs));
            assert_eq!(refused, Err(sentence.to_owned()), "{pairs:?} must be refused");
        }
    }

    #[test]
    fn retention_is_hours_a_duration_or_revisions() {
        let of = |mode, text| {
            retention(&set(&[("auto-compaction-mode", mode), ("auto-compaction-retention", text)]))
        };
        assert_eq!(of("periodic", "1"), Ok(3_600_000_000_000), "a number is hours");
        assert_eq!(of("periodic", "5m"), Ok(300_000_000_000), "a duration is itself");
        assert_eq!(of("revision", "1000"), Ok(1000), "revisions are counted");
        let sentence = "error parsing CompactionRetention: time: invalid duration \"x\"".to_owned();
        assert_eq!(of("periodic", "x"), Err(sentence), "x is neither");
    }
}
