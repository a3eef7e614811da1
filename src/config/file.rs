//! Flags from the configuration file.
//!
//! Decides where each flag stands in the YAML: mostly at the top under its own name, with a few
//! sections. Unknown keys are ignored, values of the wrong type are not, and durations are
//! integers (nanoseconds), all as in etcd. Called by `load`.
//!
//! Source: etcd `server/embed/config.go`, `configFromFile`; `sigs.k8s.io/yaml`.

use serde_json::{Map, Value};

use super::{
    flags::{Flags, INITIAL_CLUSTER},
    slot::Refused as Unfit,
    table,
};

/// Why the file cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// A URL in it is none. etcd prints this sentence outside of its log.
    Url(String),
    /// Any other reason.
    Text(String),
}

/// Flags that stand in a section of the file: flag, section, key.
const SECTIONS: &[(&str, &[&str])] = &[
    ("cert-file", &[CLIENT, "cert-file"]),
    ("key-file", &[CLIENT, "key-file"]),
    ("client-cert-file", &[CLIENT, "client-cert-file"]),
    ("client-key-file", &[CLIENT, "client-key-file"]),
    ("client-cert-auth", &[CLIENT, "client-cert-auth"]),
    ("trusted-ca-file", &[CLIENT, "trusted-ca-file"]),
    ("auto-tls", &[CLIENT, "auto-tls"]),
    ("client-cert-allowed-hostname", &[CLIENT, "allowed-hostname"]),
    ("peer-cert-file", &[PEER, "cert-file"]),
    ("peer-key-file", &[PEER, "key-file"]),
    ("peer-client-cert-file", &[PEER, "client-cert-file"]),
    ("peer-client-key-file", &[PEER, "client-key-file"]),
    ("peer-client-cert-auth", &[PEER, "client-cert-auth"]),
    ("peer-trusted-ca-file", &[PEER, "trusted-ca-file"]),
    ("peer-auto-tls", &[PEER, "auto-tls"]),
    ("peer-cert-allowed-cn", &[PEER, "allowed-cn"]),
    ("peer-cert-allowed-hostname", &[PEER, "allowed-hostname"]),
    ("peer-skip-client-san-verification", &[PEER, "skip-client-san-verification"]),
    ("socket-reuse-port", &["socket-options", "reuse-port"]),
    ("socket-reuse-address", &["socket-options", "reuse-address"]),
    ("discovery-token", &[DISCOVERY, "token"]),
    ("discovery-endpoints", &[DISCOVERY, "client", "endpoints"]),
    ("discovery-request-timeout", &[DISCOVERY, "client", "request-timeout"]),
    ("discovery-dial-timeout", &[DISCOVERY, "client", "dial-timeout"]),
    ("discovery-keepalive-time", &[DISCOVERY, "client", "keepalive-time"]),
    ("discovery-keepalive-timeout", &[DISCOVERY, "client", "keepalive-timeout"]),
    ("discovery-cert", &[DISCOVERY, "client", "secure", "cert"]),
    ("discovery-key", &[DISCOVERY, "client", "secure", "key"]),
    ("discovery-cacert", &[DISCOVERY, "client", "secure", "cacert"]),
    ("discovery-insecure-transport", &[DISCOVERY, "client", "secure", "insecure-transport"]),
    (
        "discovery-insecure-skip-tls-verify",
        &[DISCOVERY, "client", "secure", "insecure-skip-tls-verify"],
    ),
    ("discovery-user", &[DISCOVERY, "client", "auth", "username"]),
    ("discovery-password", &[DISCOVERY, "client", "auth", "password"]),
];

const CLIENT: &str = "client-transport-security";
const PEER: &str = "peer-transport-security";
const DISCOVERY: &str = "discovery-config";

/// Flags that the file cannot set.
const ABSENT: &[&str] = &[
    "client-crl-file",
    "config-file",
    "discovery-fallback",
    "peer-crl-file",
    "raft-read-timeout",
    "raft-write-timeout",
    "version",
];

/// Keys that Go's structure holds beside `Config`, which shows in its errors.
const OUTER: &[&str] = &[
    "advertise-client-urls",
    "cors",
    "feature-gates",
    "host-whitelist",
    "initial-advertise-peer-urls",
    "listen-client-http-urls",
    "listen-client-urls",
    "listen-peer-urls",
    CLIENT,
    PEER,
];

/// Sets `flags` from the file at `path`.
///
/// # Errors
/// As [`Refused`] says.
pub(super) fn apply(flags: &mut Flags, path: &str) -> Result<(), Refused> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Refused::Text(format!("open {path}: {}", go_error(&error))))?;
    apply_text(flags, &text)
}

/// The system's message without the error number that Rust appends, in lower case as in Go.
pub(super) fn go_error(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

fn apply_text(flags: &mut Flags, text: &str) -> Result<(), Refused> {
    let root: Value = serde_saphyr::from_str(text).map_err(|error| {
        let picture = error.to_string();
        let sentence = picture.lines().next().unwrap_or_default().trim_start_matches("error: ");
        Refused::Text(format!("error converting YAML to JSON: yaml: {sentence}"))
    })?;
    let root = match &root {
        Value::Object(root) => root,
        Value::Null => &Map::new(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            let (wanted, found) = ("embed.configYAML", kind(&root, ""));
            return Err(decoding(&format!("{found} into Go value of type {wanted}")));
        }
    };
    for flag in table::all().filter(|flag| !ABSENT.contains(&flag.name)) {
        let section = SECTIONS.iter().find(|(name, _)| *name == flag.name);
        let path = section.map_or(std::slice::from_ref(&flag.name), |(_, path)| path);
        let Some(value) = look_up(root, path)? else { continue };
        let slot = (flag.slot)(flags);
        slot.set_from_file(value).map_err(|refused| explain(refused, value, path))?;
        flags.explicit.insert(flag.name);
    }
    settle(flags);
    Ok(())
}

/// The value at `path`; a null counts as absent.
fn look_up<'a>(root: &'a Map<String, Value>, path: &[&str]) -> Result<Option<&'a Value>, Refused> {
    let mut map = root;
    let (last, sections) = path.split_last().expect("no path is empty");
    for (depth, section) in sections.iter().enumerate() {
        match map.get(*section) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(inner)) => map = inner,
            Some(other) => {
                let path = &path[..=depth];
                return Err(explain(Unfit::Type(section_type(path)), other, path));
            }
        }
    }
    Ok(map.get(*last).filter(|value| !value.is_null()))
}

fn explain(refused: Unfit, value: &Value, path: &[&str]) -> Refused {
    let key = path.join(".");
    match refused {
        Unfit::Text(text) => Refused::Text(text),
        Unfit::Url(error) => {
            // etcd names another flag here.
            let key = if key == "advertise-client-urls" { "advertise-peer-urls" } else { &key };
            Refused::Url(format!("unexpected error setting up {key}: {error}"))
        }
        Unfit::Type(wanted) => {
            let wanted = match key.as_str() {
                "snapshot-count" | "snapshot-catchup-entries" => "uint64",
                "quota-backend-bytes" => "int64",
                _ => wanted,
            };
            let found = kind(value, wanted);
            decoding(&format!(
                "{found} into Go struct field {}.{key} of type {wanted}",
                holder(path)
            ))
        }
    }
}

/// Go's names of the structures around a key: the innermost one and the one that is embedded.
fn holder(path: &[&str]) -> String {
    let embedded = if OUTER.contains(&path[0]) { "configJSON" } else { "Config" };
    let innermost = match path {
        [_] => "configYAML",
        ["socket-options", ..] => "SocketOpts",
        [DISCOVERY, "client", "secure", _] => "SecureConfig",
        [DISCOVERY, "client", "auth", _] => "AuthConfig",
        [DISCOVERY, "client", _] => "ConfigSpec",
        [DISCOVERY, ..] => "DiscoveryConfig",
        _ => "securityConfig",
    };
    format!("{innermost}.{embedded}")
}

/// Go's type of a section.
fn section_type(path: &[&str]) -> &'static str {
    match path {
        ["socket-options", ..] => "transport.SocketOpts",
        [DISCOVERY] => "v3discovery.DiscoveryConfig",
        [DISCOVERY, "client"] => "clientv3.ConfigSpec",
        [DISCOVERY, _, "secure"] => "clientv3.SecureConfig",
        [DISCOVERY, ..] => "clientv3.AuthConfig",
        _ => "embed.securityConfig",
    }
}

fn decoding(what: &str) -> Refused {
    Refused::Text(format!(
        "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {what}"
    ))
}

/// Go's name for what was found; a number is shown where another number would do.
fn kind(value: &Value, wanted: &str) -> String {
    let numeric = wanted.starts_with("uint") || wanted.starts_with("int");
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(number) if numeric || wanted == "time.Duration" => format!("number {number}"),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    }
}

/// What etcd settles only for files.
fn settle(flags: &mut Flags) {
    let discovery = !flags.discovery_srv.is_empty() || !flags.discovery_endpoints.0.is_empty();
    if discovery && flags.initial_cluster == INITIAL_CLUSTER {
        flags.initial_cluster.clear();
    }
    if flags.self_signed_cert_validity == 0 {
        flags.self_signed_cert_validity = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::{Flags, Refused, apply_text};

    #[test]
    fn keys_and_sections_set_flags() {
        let mut flags = Flags::default();
        let text = "name: n1\nmax-wals: 7\nunknown: {a: b}\nwal-dir:\npre-vote: no\n\
             log-outputs: [stderr, /tmp/x]\nwarning-apply-duration: 5000000\n\
             listen-client-urls: http://127.0.0.1:1,http://127.0.0.1:2\n\
             cors: http://a:1\nhost-whitelist: a,b\nfeature-gates: LeaseCheckpoint=true\n\
             peer-transport-security:\n  client-cert-auth: true\n  allowed-cn: [x, z]\n\
             discovery-config: {client: {endpoints: [e], secure: {cert: c}}}\n\
             socket-options: {reuse-port: true}\n";
        assert_eq!(apply_text(&mut flags, text), Ok(()), "the file is fine");
        assert_eq!((flags.name.as_str(), flags.max_wals), ("n1", 7), "plain keys");
        assert!(!flags.pre_vote, "etcd's YAML has no as a boolean");
        assert_eq!(flags.log_outputs.0.len(), 2, "a list of outputs");
        assert_eq!(flags.warning_apply_duration.0, 5_000_000, "nanoseconds");
        assert_eq!(flags.listen_client_urls.0.len(), 2, "URLs with commas");
        assert_eq!(flags.cors.0.len(), 1, "the star is gone");
        assert!(flags.peer_client_cert_auth, "a section");
        assert_eq!(flags.peer_cert_allowed_cn, ["x", "z"], "a list in a section");
        assert_eq!(flags.discovery_cert, "c", "a section in sections");
        assert!(flags.socket_reuse_port, "socket options");
        assert_eq!(flags.initial_cluster, "", "discovery clears the default cluster");
        assert!(!flags.explicit.contains("wal-dir"), "null counts as absent");
    }

    #[test]
    fn bad_files_get_etcd_s_sentences() {
        let json = "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal ";
        for (text, rest) in [
            (
                "snapshot-count: \"abc\"",
                "string into Go struct field configYAML.Config.snapshot-count of type uint64",
            ),
            (
                "corrupt-check-time: 10s",
                "string into Go struct field configYAML.Config.corrupt-check-time of type \
                 time.Duration",
            ),
            (
                "max-txn-ops: -5",
                "number -5 into Go struct field configYAML.Config.max-txn-ops of type uint",
            ),
            (
                "listen-peer-urls: [a]",
                "array into Go struct field configYAML.configJSON.listen-peer-urls of type string",
            ),
            ("hello", "string into Go value of type embed.configYAML"),
            (
                "log-outputs: stderr",
                "string into Go struct field configYAML.Config.log-outputs of type []string",
            ),
        ] {
            let refused = apply_text(&mut Flags::default(), text);
            assert_eq!(refused, Err(Refused::Text(format!("{json}{rest}"))), "in {text:?}");
        }
    }

    #[test]
    fn a_bad_url_is_told_apart() {
        let refused = apply_text(&mut Flags::default(), "advertise-client-urls: abc");
        let sentence = "unexpected error setting up advertise-peer-urls: URL scheme must be http, \
                        https, unix, or unixs: abc";
        assert_eq!(refused, Err(Refused::Url(sentence.to_owned())), "abc is no URL");
    }
}
