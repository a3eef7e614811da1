//! From arguments, environment and file to a [`Config`], or to an exit code.
//!
//! Decides precedence (a file hides everything else), what is printed and logged on the way, and
//! the exit codes. Called by `bin/oxetcd.rs` only.
//!
//! Source: etcd `server/etcdmain/config.go`, `server/etcdmain/etcd.go`.

use std::{
    fs,
    io::{self, Write as _},
    net::UdpSocket,
    path::Path,
};

use rustix::process::{Resource, getrlimit};
use tracing::{error, info, warn};

use super::{
    Config,
    environment::{self, variable},
    file,
    flags::{CLIENT_URL, Flags, INITIAL_CLUSTER, PEER_URL},
    help, pending,
    syntax::{self, Parsed},
    url::Url,
    validate,
};
use crate::base::log::{self, FATAL, Json, PANIC};

/// What to do after the configuration was read.
#[derive(Debug)]
pub enum Start {
    /// Run a member.
    Run(Box<Config>),
    /// Leave with this code; what there was to say is said.
    Exit(u8),
}

/// The configuration is wrong.
const EXIT_INVALID: u8 = 1;
/// The arguments cannot be read.
const EXIT_USAGE: u8 = 2;

/// Open files that the member itself may need; the rest is for clients.
const FILES_RESERVED: u64 = 150;

/// Reads the configuration. `arguments` start with the program's name.
#[must_use]
pub fn load(arguments: &[String], environment: &[(String, String)]) -> Start {
    let (program, rest) = arguments
        .split_first()
        .map_or(("oxetcd", &[][..]), |(program, rest)| (program.as_str(), rest));
    if let Some(command @ ("gateway" | "grpc-proxy")) = rest.first().map(String::as_str) {
        complain(&format!("{program} {command} is not available yet; use etcd's own for it\n"));
        return Start::Exit(EXIT_INVALID);
    }
    if let Err(code) = check_architecture(help::arch(), environment) {
        return Start::Exit(code);
    }
    let mut flags = Flags::default();
    let leftover = match syntax::parse(&mut flags, rest) {
        Ok(Parsed::Set { leftover }) => leftover,
        Ok(Parsed::Help) => return tell(&help::help()),
        Err(sentence) => {
            complain(&format!("{sentence}\n{}", help::USAGE));
            return Start::Exit(EXIT_USAGE);
        }
    };
    if flags.version && leftover.is_none() {
        return tell(&help::version());
    }
    let read = match leftover {
        Some(leftover) => Err(Fault::Invalid(format!("{leftover:?} is not a valid flag"))),
        None => read(flags, environment),
    };
    let flags = match read {
        Err(Fault::Plain(sentence)) => {
            complain(&format!("{sentence}\n"));
            return Start::Exit(EXIT_INVALID);
        }
        Err(Fault::Fatal { variable }) => {
            error!(
                target: FATAL,
                { "environment-variable" = %variable },
                "conflicting environment variable is shadowed by corresponding command-line flag \
                 (either unset environment variable or disable flag))"
            );
            return Start::Exit(EXIT_INVALID);
        }
        Err(Fault::Invalid(sentence)) => {
            info!(args = ?Json(arguments), "Running: ");
            return invalid(&sentence);
        }
        Ok(flags) => flags,
    };
    info!(args = ?Json(arguments), "Running: ");
    settle(flags)
}

/// Refuses processors that etcd is not tested on, unless the operator insists.
fn check_architecture(arch: &str, environment: &[(String, String)]) -> Result<(), u8> {
    if ["amd64", "arm64", "ppc64le", "s390x"].contains(&arch) {
        return Ok(());
    }
    let insists = |(key, value): &(String, String)| key == "ETCD_UNSUPPORTED_ARCH" && value == arch;
    if environment.iter().any(insists) {
        info!(%arch, "running etcd on unsupported architecture since ETCD_UNSUPPORTED_ARCH is set");
        return Ok(());
    }
    error!(
        %arch,
        "Refusing to run etcd on unsupported architecture since ETCD_UNSUPPORTED_ARCH is not set"
    );
    Err(EXIT_INVALID)
}

/// Why flags cannot be read.
#[derive(Debug)]
enum Fault {
    /// Told in the log.
    Invalid(String),
    /// Told outside of the log, as etcd does.
    Plain(String),
    /// A variable and its flag are both set.
    Fatal { variable: String },
}

/// Completes the flags from the file or the environment, and checks them.
fn read(mut flags: Flags, environment: &[(String, String)]) -> Result<Flags, Fault> {
    let config_file = Some(flags.config_file.clone()).filter(|path| !path.is_empty());
    let from_environment = || {
        let key = variable("config-file");
        environment.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone())
    };
    let path = config_file.or_else(from_environment).filter(|path| !path.is_empty());
    if let Some(path) = path {
        let mut flags = Flags::default();
        file::apply(&mut flags, &path).map_err(|refused| match refused {
            file::Refused::Url(sentence) => Fault::Plain(sentence),
            file::Refused::Text(sentence) => Fault::Invalid(sentence),
        })?;
        check(&mut flags)?;
        info!(
            %path,
            "loaded server configuration, other configuration command line flags and environment \
             variables will be ignored if provided"
        );
        deprecated(&flags);
        return Ok(flags);
    }
    environment::apply(&mut flags, environment).map_err(|refused| match refused {
        environment::Refused::Shadowed { variable } => Fault::Fatal { variable },
        environment::Refused::Value(sentence) => Fault::Invalid(sentence),
    })?;
    settle_command_line(&mut flags);
    let proxy = "proxy";
    if flags.discovery_fallback.value == proxy {
        let sentence = "v2 proxy is deprecated, and --discovery-fallback can't be configured as";
        return Err(Fault::Invalid(format!("{sentence} {proxy:?}")));
    }
    let checked = check(&mut flags);
    deprecated(&flags);
    checked.map(|()| flags)
}

/// Defaults that only hold while other flags are left alone.
fn settle_command_line(flags: &mut Flags) {
    let set = |name: &str| flags.explicit.contains(name);
    if set("listen-client-urls") && !set("advertise-client-urls") {
        flags.advertise_client_urls.0.clear();
    }
    let discovery = !flags.discovery_srv.is_empty()
        || !flags.discovery_srv_name.is_empty()
        || !flags.discovery_endpoints.0.is_empty();
    if discovery && !flags.explicit.contains("initial-cluster") {
        flags.initial_cluster.clear();
    }
    for (name, timeout) in [
        ("raft-read-timeout", flags.raft_read_timeout.0),
        ("raft-write-timeout", flags.raft_write_timeout.0),
    ] {
        if timeout < 5_000_000_000 {
            info!("{name} increased to minimum value: 5s");
        }
    }
}

/// Sets the log up and checks everything that etcd checks.
fn check(flags: &mut Flags) -> Result<(), Fault> {
    let options = validate::logging(flags).map_err(Fault::Invalid)?;
    log::configure(&options).map_err(|error| {
        let path = error.path.display();
        let why = file::go_error(&error.source);
        Fault::Invalid(format!("open sink \"{path}\": open {path}: {why}"))
    })?;
    validate::flags(flags).map_err(Fault::Invalid)
}

fn deprecated(flags: &Flags) {
    if flags.explicit.contains("max-snapshots") {
        warn!("--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.");
    }
    if flags.explicit.contains("v2-deprecation") {
        warn!(
            "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value \
             is enforced, ignoring user input."
        );
    }
}

/// What follows once the flags are valid: addresses, the data directory, missing features.
fn settle(mut flags: Flags) -> Start {
    if let Err(sentence) = pending::check(&mut flags) {
        // Where etcd has a sentence of its own for the setting, it comes first.
        if let Err(sentence) = validate::listeners(&flags) {
            return fatal(&sentence);
        }
        return invalid(&sentence);
    }
    detect_host(&mut flags);
    if flags.name != "default" && flags.initial_cluster == INITIAL_CLUSTER {
        let urls = &flags.initial_advertise_peer_urls.0;
        let pairs: Vec<_> = urls.iter().map(|url| format!("{}={url}", flags.name)).collect();
        flags.initial_cluster = pairs.join(",");
    }
    if flags.data_dir.is_empty() {
        flags.data_dir = format!("{}.etcd", flags.name);
        warn!("data-dir" = %flags.data_dir, "'data-dir' was empty; using default");
    }
    if let Err(code) = identify(Path::new(&flags.data_dir)) {
        return Start::Exit(code);
    }
    let files_max = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if files_max <= FILES_RESERVED {
        error!(
            target: FATAL,
            { limit = files_max, "recommended-limit" = FILES_RESERVED },
            "file descriptor limit of etcd process is too low; please set higher"
        );
        return Start::Exit(EXIT_INVALID);
    }
    match validate::listeners(&flags).and_then(|()| Config::of(flags)) {
        Ok(config) => Start::Run(Box::new(config)),
        Err(sentence) => fatal(&sentence),
    }
}

/// Advertises this machine's own address where the flags listen on all of them and leave the
/// advertised URL at its default.
fn detect_host(flags: &mut Flags) {
    let peers = (&flags.listen_peer_urls.0, &flags.initial_advertise_peer_urls.0, PEER_URL);
    let clients = (&flags.listen_client_urls.0, &flags.advertise_client_urls.0, CLIENT_URL);
    let wanted = |(listen, advertise, default): (&Vec<Url>, &Vec<Url>, &str)| {
        let first = listen.first().filter(|url| url.host() == "0.0.0.0")?;
        let [only] = advertise.as_slice() else { return None };
        (only.as_str() == default).then(|| (only.clone(), first.port().to_owned()))
    };
    let (peer, client) = (wanted(peers), wanted(clients));
    if peer.is_none() && client.is_none() {
        return;
    }
    match default_host() {
        Ok(host) => {
            if let Some((url, port)) = peer {
                flags.initial_advertise_peer_urls.0 = vec![url.with_host_port(&host, &port)];
            }
            if let Some((url, port)) = client {
                flags.advertise_client_urls.0 = vec![url.with_host_port(&host, &port)];
            }
            info!(%host, "detected default host for advertise");
        }
        Err(error) => info!(error = %error, "failed to detect default host"),
    }
}

/// The address that packets to the outside carry. Connecting a datagram socket looks the route
/// up and sends nothing; the address is one that is reserved for documentation.
fn default_host() -> io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("192.0.2.1:9")?;
    Ok(socket.local_addr()?.ip().to_string())
}

/// Tells what the data directory holds.
fn identify(dir: &Path) -> Result<(), u8> {
    let shown = dir.display();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            info!("data-dir" = %shown, "dir-type" = "empty", "Initialize and start etcd server");
            return Ok(());
        }
        Err(error) => {
            error!(target: FATAL, dir = %shown, error = %error, "failed to list data directory");
            return Err(EXIT_INVALID);
        }
    };
    let (mut member, mut proxy) = (false, false);
    for entry in entries.flatten() {
        match entry.file_name().to_string_lossy().as_ref() {
            "member" => member = true,
            "proxy" => proxy = true,
            other => warn!(
                filename = %other,
                "data-dir" = %shown,
                "found invalid file under data directory"
            ),
        }
    }
    match (member, proxy) {
        (true, true) => {
            error!(target: FATAL, "invalid datadir; both member and proxy directories exist");
            Err(EXIT_INVALID)
        }
        (false, true) => {
            error!(
                target: PANIC,
                { "dir-type" = "proxy" },
                "v2 http proxy has already been deprecated in 3.6"
            );
            Err(EXIT_USAGE)
        }
        (true, false) => {
            info!(
                "data-dir" = %shown,
                "dir-type" = "member",
                "server has already been initialized"
            );
            Ok(())
        }
        (false, false) => {
            info!("data-dir" = %shown, "dir-type" = "empty", "Initialize and start etcd server");
            Ok(())
        }
    }
}

fn invalid(sentence: &str) -> Start {
    warn!(error = %sentence, "failed to verify flags");
    if sentence == validate::UNSET_ADVERTISE {
        warn!(error = %sentence, "advertise client URLs are not set");
    }
    Start::Exit(EXIT_INVALID)
}

/// etcd reports every failure to start with the words of one of them.
fn fatal(sentence: &str) -> Start {
    error!(target: FATAL, error = %sentence, "discovery failed");
    Start::Exit(EXIT_INVALID)
}

fn tell(text: &str) -> Start {
    // Whoever closed standard output does not want to know.
    drop(io::stdout().write_all(text.as_bytes()));
    Start::Exit(0)
}

fn complain(text: &str) {
    drop(io::stderr().write_all(text.as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::{Start, check_architecture, load};
    use crate::config::Config;

    fn started(arguments: &[&str], variables: &[(&str, &str)]) -> Start {
        let arguments: Vec<_> =
            ["oxetcd"].iter().chain(arguments).map(|text| (*text).to_owned()).collect();
        let variables: Vec<_> =
            variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        load(&arguments, &variables)
    }

    fn config(arguments: &[&str], variables: &[(&str, &str)]) -> Config {
        match started(arguments, variables) {
            Start::Run(config) => *config,
            Start::Exit(code) => panic!("{arguments:?} {variables:?} left with {code}"),
        }
    }

    fn code(arguments: &[&str], variables: &[(&str, &str)]) -> u8 {
        match started(arguments, variables) {
            Start::Run(_) => panic!("{arguments:?} {variables:?} started"),
            Start::Exit(code) => code,
        }
    }

    #[test]
    fn the_defaults_and_kubeadm_s_flags_start() {
        let defaults = config(&[], &[]);
        assert_eq!(defaults.initial_cluster, "default=http://localhost:2380", "one member");
        assert_eq!(defaults.election_ticks, 10, "1000 ms of 100 ms");
        let named = config(
            &[
                "--name=n1",
                "--snapshot-count=10000",
                "--listen-metrics-urls=http://127.0.0.1:2381",
                "--listen-client-urls=http://127.0.0.1:2379,http://10.0.0.1:2379",
                "--advertise-client-urls=http://10.0.0.1:2379",
                "--feature-gates=InitialCorruptCheck=true",
                "--watch-progress-notify-interval=5s",
                "--initial-advertise-peer-urls=http://10.0.0.1:2380",
                "--listen-peer-urls=http://10.0.0.1:2380",
            ],
            &[],
        );
        assert_eq!(named.initial_cluster, "n1=http://10.0.0.1:2380", "made from the name");
        assert_eq!(named.data_dir.to_str(), Some("n1.etcd"), "made from the name");
    }

    #[test]
    fn exit_codes_are_etcd_s() {
        assert_eq!(code(&["--nope"], &[]), 2, "an unknown flag");
        assert_eq!(code(&["stray"], &[]), 1, "a positional argument");
        assert_eq!(code(&["--name=a"], &[("ETCD_NAME", "b")]), 1, "a shadowed variable");
        assert_eq!(code(&[], &[("ETCD_MAX_WALS", "b")]), 1, "a bad variable");
        assert_eq!(code(&["--listen-client-urls=http://127.0.0.1:1"], &[]), 1, "no advertised URL");
        assert_eq!(code(&["--discovery-fallback=proxy"], &[]), 1, "the proxy is gone");
        assert_eq!(code(&["--config-file=/nonexistent"], &[]), 1, "no such file");
        assert_eq!(code(&["--auto-compaction-retention=x"], &[]), 1, "a bad retention");
        assert_eq!(code(&["--cert-file=x", "--key-file=y"], &[]), 1, "TLS is missing");
        assert_eq!(code(&["gateway", "start"], &[]), 1, "the gateway is missing");
    }

    #[test]
    fn an_untested_processor_needs_the_operator_s_word() {
        let word = |arch: &str| [("ETCD_UNSUPPORTED_ARCH".to_owned(), arch.to_owned())];
        assert_eq!(check_architecture("amd64", &[]), Ok(()), "tested");
        assert_eq!(check_architecture("riscv64", &[]), Err(1), "untested");
        assert_eq!(check_architecture("riscv64", &word("riscv64")), Ok(()), "insisted on");
        assert_eq!(check_architecture("riscv64", &word("mips")), Err(1), "another one");
    }

    #[test]
    fn a_file_hides_flags_and_variables() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("etcd.yml");
        std::fs::write(&path, "name: from-file\nelection-timeout: 2000\n").unwrap();
        let path = path.to_str().unwrap();
        let by_flag = config(&["--config-file", path, "--name=x"], &[("ETCD_NAME", "y")]);
        assert_eq!(by_flag.name, "from-file", "the file alone counts");
        assert_eq!(by_flag.election_ticks, 20, "2000 ms of 100 ms");
        let by_variable = config(&[], &[("ETCD_CONFIG_FILE", path)]);
        assert_eq!(by_variable.name, "from-file", "the variable names the file");
    }

    #[test]
    fn listening_everywhere_advertises_an_address_of_this_machine() {
        let everywhere = config(&["--listen-peer-urls=http://0.0.0.0:3380"], &[]);
        let advertised = &everywhere.initial_advertise_peer_urls[0];
        let detected = advertised.port() == "3380" && advertised.host() != "0.0.0.0";
        let kept = advertised.as_str() == "http://localhost:2380";
        assert!(detected || kept, "a machine without a route keeps the default: {advertised}");
    }
}
