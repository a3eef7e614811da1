//! How the members of a new cluster are found by DNS.
//!
//! Decides who they are: every target of the records of two services in the domain of
//! `--discovery-srv`. The one at an address that this member advertises is this member; the others
//! are numbered, for their names are theirs to tell. Called by `open` at a first start, and what
//! was found then stands for `--initial-cluster`.
//!
//! ```text
//!   _etcd-server-ssl[-suffix]._tcp.<domain>   --> 0=https://host:port, ..
//!   _etcd-server[-suffix]._tcp.<domain>       --> 0=http://host:port, own-name=http://host:port, ..
//! ```
//!
//! The order of targets with one priority and different weights is random in etcd. Nothing but
//! the numbers depends on it, so here it is not.
//!
//! Source: etcd `client/pkg/srv/srv.go`, `server/embed/config.go`, `GetDNSClusterNames`.

use std::{collections::BTreeMap, net::SocketAddr};

use crate::{
    base::log::Json,
    config::{
        Config, DiscoverySrv,
        url::{Scheme, Url},
    },
};

use super::{
    dns::{Dns, SrvRecord, address},
    open::StartError,
};

/// What members register as.
#[derive(Debug)]
struct Service {
    name: String,
    scheme: Scheme,
}

impl Service {
    /// With TLS, and without.
    fn both(suffix: &str) -> [Self; 2] {
        let suffix = if suffix.is_empty() { String::new() } else { format!("-{suffix}") };
        [
            Self { name: format!("etcd-server-ssl{suffix}"), scheme: Scheme::Https },
            Self { name: format!("etcd-server{suffix}"), scheme: Scheme::Http },
        ]
    }

    const fn scheme(&self) -> &'static str {
        match self.scheme {
            Scheme::Https | Scheme::Unixs => "https",
            Scheme::Http | Scheme::Unix => "http",
        }
    }
}

/// A target, and the address that it stands for.
#[derive(Clone, Debug)]
struct Target {
    host: String,
    port: u16,
    address: Result<SocketAddr, String>,
}

/// What this member advertises, by the address that it stands for.
type Own = BTreeMap<SocketAddr, Url>;

/// The configuration with the members that DNS names in place of `--initial-cluster`.
///
/// # Errors
/// - [`StartError::Config`] with etcd's sentence if there are none, or this one is not among them.
pub(super) async fn discovered(
    config: &Config,
    discovery: &DiscoverySrv,
) -> Result<Config, StartError> {
    let dns = Dns::of_system().map_err(StartError::Config)?;
    let own = resolve_own(config).await;
    let (mut pairs, mut faults) = (Vec::new(), Vec::new());
    for service in Service::both(&discovery.service_suffix) {
        let found = match &own {
            Ok(own) => ask(&dns, &service, &config.name, own, &discovery.domain).await,
            Err(why) => Err(why.clone()),
        };
        log_found(&service, config, discovery, &found);
        match found {
            Ok(found) => pairs.extend(found),
            Err(fault) => faults.push(fault),
        }
    }
    let fault = faults.join("\n");
    if !fault.is_empty() {
        tracing::warn!(error = fault, "failed to resolve during SRV discovery");
    }
    if pairs.is_empty() {
        return Err(StartError::Config(format!("error setting up initial cluster: {fault}")));
    }
    for node in &pairs {
        tracing::info!(node, "got bootstrap from DNS for etcd-server");
    }
    config.with_members_from_dns(&pairs.join(",")).map_err(StartError::Config)
}

fn log_found(
    service: &Service,
    config: &Config,
    discovery: &DiscoverySrv,
    found: &Result<Vec<String>, String>,
) {
    let urls: Vec<_> = config.initial_advertise_peer_urls.iter().map(Url::as_str).collect();
    tracing::info!(
        "service-scheme" = service.scheme(),
        "service-name" = service.name,
        "server-name" = config.name,
        "discovery-srv" = discovery.domain,
        "advertise-peer-urls" = ?Json(&urls),
        "found-cluster" = ?Json(found.as_deref().unwrap_or_default()),
        error = found.as_ref().err(),
        "get cluster for {} SRV",
        if service.scheme == Scheme::Https { "etcd-server-ssl" } else { "etcd-server" }
    );
}

/// Resolves what this member advertises to others.
///
/// # Errors
/// With a sentence about the first host that has no address.
async fn resolve_own(config: &Config) -> Result<Own, String> {
    let mut own = Own::new();
    for url in config.initial_advertise_peer_urls.iter().filter(|url| !url.is_unix()) {
        // Of the form of a port by its check; none is port 0, as in Go.
        let port = url.port().parse().unwrap_or(0);
        own.insert(address(url.host(), port).await?, url.clone());
    }
    Ok(own)
}

async fn ask(
    dns: &Dns,
    service: &Service,
    own_name: &str,
    own: &Own,
    domain: &str,
) -> Result<Vec<String>, String> {
    let members = async {
        let mut targets = Vec::new();
        for SrvRecord { port, target: host, .. } in
            in_order(dns.services(&service.name, domain).await?)
        {
            let address = address(&host, port).await;
            targets.push(Target { host, port, address });
        }
        members(service, own_name, own, &targets)
    };
    let name = &service.name;
    members.await.map_err(|why| format!("error querying DNS SRV records for _{name} {why}"))
}

/// Lower priorities first, then lower weights.
fn in_order(mut records: Vec<SrvRecord>) -> Vec<SrvRecord> {
    records.sort_by_key(|record| (record.priority, record.weight));
    records
}

/// The members that the targets are, as `name=url`. A target that has no address, or is this
/// member under another scheme, is left out.
///
/// # Errors
/// With a sentence about the last one left out, if that leaves none.
fn members(
    service: &Service,
    own_name: &str,
    own: &Own,
    targets: &[Target],
) -> Result<Vec<String>, String> {
    let (mut members, mut unnamed, mut fault) = (Vec::new(), 0_usize, None);
    for Target { host, port, address } in targets {
        let address = match address {
            Ok(address) => address,
            Err(why) => {
                fault = Some(why.clone());
                continue;
            }
        };
        let advertised = own.get(address);
        let name = if advertised.is_some() && !own_name.is_empty() {
            own_name.to_owned()
        } else {
            unnamed += 1;
            (unnamed - 1).to_string()
        };
        let url = format!("{}://{host}:{port}", service.scheme());
        match advertised {
            Some(advertised) if advertised.scheme() != service.scheme => {
                let service = &service.name;
                fault = Some(format!(
                    "bootstrap at {url} from DNS for {service} has scheme mismatch with expected \
                     peer {advertised}"
                ));
            }
            _ => members.push(format!("{name}={url}")),
        }
    }
    match fault {
        Some(why) if members.is_empty() => Err(why),
        _ => Ok(members),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn own(advertised: &[(&str, &str)]) -> Own {
        let parse = |(address, url): &(&str, &str)| {
            (address.parse().expect("an address"), Url::parse(url).expect("a URL"))
        };
        advertised.iter().map(parse).collect()
    }

    fn target(host: &str, port: u16, address: &str) -> Target {
        let address = match address.parse::<IpAddr>() {
            Ok(ip) => Ok(SocketAddr::new(ip, port)),
            Err(_no_address) => Err(format!("lookup {host}: {address}")),
        };
        Target { host: host.to_owned(), port, address }
    }

    #[test]
    fn services_are_asked_for_with_and_without_tls_and_with_a_suffix() {
        let names = |suffix| Service::both(suffix).map(|service| service.name);
        assert_eq!(names(""), ["etcd-server-ssl", "etcd-server"]);
        assert_eq!(names("blue"), ["etcd-server-ssl-blue", "etcd-server-blue"]);
    }

    #[test]
    fn records_are_taken_by_priority_then_weight_then_as_they_came() {
        let record = |priority, weight, target: &str| SrvRecord {
            priority,
            weight,
            port: 1,
            target: target.to_owned(),
        };
        let records = vec![
            record(2, 0, "d"),
            record(1, 5, "c"),
            record(1, 0, "b"),
            record(2, 0, "e"),
            record(0, 9, "a"),
        ];
        let order: Vec<_> = in_order(records).into_iter().map(|record| record.target).collect();
        assert_eq!(order, ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn the_member_at_an_advertised_address_gets_its_name_and_others_are_numbered() {
        let [_, plain] = Service::both("");
        let own = own(&[("10.0.0.2:2380", "http://m2.example.com:2380")]);
        let targets = [
            target("m1.example.com", 2380, "10.0.0.1"),
            target("m2.example.com", 2380, "10.0.0.2"),
            target("m2.example.com", 2381, "10.0.0.2"),
            target("gone.example.com", 2380, "no such host"),
            target("m3.example.com", 2380, "fd00::3"),
        ];
        let found = members(&plain, "own", &own, &targets).expect("some have addresses");
        let expected = [
            "0=http://m1.example.com:2380",
            "own=http://m2.example.com:2380",
            "1=http://m2.example.com:2381",
            "2=http://m3.example.com:2380",
        ];
        assert_eq!(found, expected, "an address is a host and a port");
        let found = members(&plain, "", &own, &targets[1..2]);
        assert_eq!(found, Ok(vec!["0=http://m2.example.com:2380".to_owned()]), "without a name");
    }

    #[test]
    fn this_member_under_another_scheme_is_left_out_but_counts_as_named() {
        let [tls, _] = Service::both("");
        let own = own(&[("10.0.0.2:2380", "http://10.0.0.2:2380")]);
        let targets = [target("m2", 2380, "10.0.0.2"), target("m1", 2380, "10.0.0.1")];
        let found = members(&tls, "own", &own, &targets);
        assert_eq!(found, Ok(vec!["0=https://m1:2380".to_owned()]), "the other one stays");
        let sentence = "bootstrap at https://m2:2380 from DNS for etcd-server-ssl has scheme \
                        mismatch with expected peer http://10.0.0.2:2380";
        let found = members(&tls, "own", &own, &targets[..1]);
        assert_eq!(found, Err(sentence.to_owned()), "nobody is left");
    }

    #[test]
    fn targets_without_an_address_are_told_only_if_nobody_is_left() {
        let [_, plain] = Service::both("");
        let targets = [target("a", 1, "first"), target("b", 1, "second")];
        let found = members(&plain, "own", &Own::new(), &targets);
        assert_eq!(found, Err("lookup b: second".to_owned()), "the last fault");
    }
}
