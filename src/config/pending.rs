//! What etcd can do and this version cannot.
//!
//! Decides, for every flag whose feature is missing, whether setting it stops the start or is
//! worth a warning. This is the only list: whoever adds a feature takes its line away here and in
//! `README.md`. Silence would be worse than a refusal: an operator who asks for TLS must not get
//! a server without it. Called by `load` after the checks that etcd has too.

use tracing::warn;

use super::{bootstrap::Members, flags::Flags, table, url::Url};

const TLS: &str = "TLS is not available yet";
const DISCOVERY_USER: &str = "only discovery without a user is available yet";
const TRACING: &str = "distributed tracing is not available yet";

/// Flags that stop the start when set to other than their default, and why.
const REFUSED: &[(&str, &str)] = &[
    ("cert-file", TLS),
    ("key-file", TLS),
    ("client-cert-file", TLS),
    ("client-key-file", TLS),
    ("client-cert-auth", TLS),
    ("client-crl-file", TLS),
    ("client-cert-allowed-hostname", TLS),
    ("trusted-ca-file", TLS),
    ("auto-tls", TLS),
    ("peer-cert-file", TLS),
    ("peer-key-file", TLS),
    ("peer-client-cert-file", TLS),
    ("peer-client-key-file", TLS),
    ("peer-client-cert-auth", TLS),
    ("peer-crl-file", TLS),
    ("peer-trusted-ca-file", TLS),
    ("peer-cert-allowed-cn", TLS),
    ("peer-cert-allowed-hostname", TLS),
    ("peer-auto-tls", TLS),
    ("discovery-cert", TLS),
    ("discovery-key", TLS),
    ("discovery-cacert", TLS),
    ("discovery-insecure-transport", TLS),
    ("discovery-user", DISCOVERY_USER),
    ("discovery-password", DISCOVERY_USER),
    ("enable-distributed-tracing", TRACING),
    ("auth-token", "only simple tokens are available yet"),
    ("enable-log-rotation", "log rotation is not available yet; let logrotate or the like do it"),
    ("memory-mlock", "locking memory is not available yet; turn swap off for the process"),
    ("bootstrap-defrag-threshold-megabytes", "reclaiming space at start is not available yet"),
];

/// Flags that are worth a warning when set to other than their default: nothing depends on them
/// but comfort.
const WARNED: &[(&str, &str)] = &[("enable-pprof", "profiles are not available yet")];

/// Whether a flag's feature is missing, for the help.
pub(super) fn is_missing(name: &str) -> bool {
    REFUSED.iter().chain(WARNED).any(|(missing, _)| *missing == name)
}

/// Refuses settings whose feature is missing.
///
/// # Errors
/// With a sentence that names the flag and says what to do.
pub(super) fn check(flags: &mut Flags) -> Result<(), String> {
    let mut defaults = Flags::default();
    for (name, why) in WARNED {
        if differs(flags, &mut defaults, name) {
            warn!("flag-name" = *name, reason = *why, "flag has no effect");
        }
    }
    for (name, why) in REFUSED {
        if differs(flags, &mut defaults, name) {
            return Err(format!("--{name} is set, but {why}"));
        }
    }
    if flags.log_outputs.0.contains("systemd/journal") {
        let why = "the journal is not available yet; systemd collects what goes to stderr";
        return Err(format!("--log-outputs is set to systemd/journal, but {why}"));
    }
    urls(flags)
}

/// Whether a flag has another value than its default, however it came by it: kubeadm and the
/// sample configuration spell out defaults.
fn differs(flags: &mut Flags, defaults: &mut Flags, name: &str) -> bool {
    let flag = table::find(name).expect("the lists name flags of the table");
    (flag.slot)(flags).show() != (flag.slot)(defaults).show()
}

fn urls(flags: &Flags) -> Result<(), String> {
    for (name, urls) in [
        ("listen-peer-urls", &flags.listen_peer_urls),
        ("listen-client-urls", &flags.listen_client_urls),
        ("listen-client-http-urls", &flags.listen_client_http_urls),
        ("listen-metrics-urls", &flags.listen_metrics_urls),
    ] {
        if let Some(url) = urls.0.iter().find(|url| url.is_tls()) {
            return Err(format!("--{name} has {url}, but {TLS}"));
        }
    }
    if let Some(endpoint) = flags.discovery_endpoints.0.iter().find(|one| one.contains("https:")) {
        return Err(format!("--discovery-endpoints has {endpoint}, but {TLS}"));
    }
    let unix = flags.listen_peer_urls.0.iter().find(|url| Url::is_unix(url));
    unix.map_or(Ok(()), |url| {
        Err(format!("--listen-peer-urls has {url}, but peers are reached over TCP only"))
    })
}

/// Refuses members that cannot be reached without a missing feature.
///
/// # Errors
/// With a sentence that names a URL.
pub(super) fn check_members(members: &Members) -> Result<(), String> {
    match members.values().flatten().find(|url| url.is_tls()) {
        Some(url) => Err(format!("DNS names the member {url}, but {TLS}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Flags, REFUSED, WARNED, check};
    use crate::config::{table, url::Url};

    #[test]
    fn the_defaults_start_and_a_missing_feature_does_not() {
        assert_eq!(check(&mut Flags::default()), Ok(()), "nothing is asked for");
        let mut flags = Flags { auto_tls: true, ..Flags::default() };
        let refused = check(&mut flags).unwrap_err();
        assert_eq!(
            refused, "--auto-tls is set, but TLS is not available yet",
            "no silent plain text"
        );
        let mut flags = Flags::default();
        flags.listen_client_urls.0 = vec![Url::parse("https://127.0.0.1:1").unwrap()];
        assert!(check(&mut flags).is_err(), "an https URL asks for TLS as well");
    }

    #[test]
    fn every_listed_flag_exists() {
        for (name, _) in REFUSED.iter().chain(WARNED) {
            assert!(table::find(name).is_some(), "{name} is no flag");
        }
    }
}
