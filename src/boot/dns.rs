//! Questions to the name servers of the system.
//!
//! Decides how DNS is asked: the servers and search domains of `/etc/resolv.conf`, one server after
//! the other, as Go does it. Names in records are given back as they stand in them, because ids
//! are made of them. Called by `srv`.
//!
//! Source: Go `net`, `LookupSRV`, `ResolveTCPAddr`; the texts of errors are Go's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolverConfig, ResolverOpts, ServerOrderingStrategy},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData, RecordType},
    system_conf::read_system_conf,
};

/// Where DNS is served.
const PORT: u16 = 53;

/// The servers of a system that names none.
///
/// Source: Go `defaultNS`.
const LOCAL_SERVERS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// One record of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SrvRecord {
    /// Lower ones come first.
    pub(super) priority: u16,
    /// The share of those with this priority.
    pub(super) weight: u16,
    /// Where the service is on the target.
    pub(super) port: u16,
    /// A host without the dot at its end.
    pub(super) target: String,
}

/// The name servers of the system.
pub(super) struct Dns {
    resolver: TokioResolver,
    /// The first server, for the texts of errors.
    server: SocketAddr,
}

impl Dns {
    /// Reads the configuration of the system.
    ///
    /// # Errors
    /// With a sentence if it cannot be used.
    pub(super) fn of_system() -> Result<Self, String> {
        let (config, mut options) = read_system_conf().unwrap_or_else(|_unreadable| {
            let servers = LOCAL_SERVERS.map(NameServerConfig::udp_and_tcp).to_vec();
            (ResolverConfig::from_parts(None, Vec::new(), servers), ResolverOpts::default())
        });
        options.num_concurrent_reqs = 1;
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        let server = config.name_servers().first().map_or(LOCAL_SERVERS[0], |server| server.ip);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let resolver = builder.build().map_err(|error| format!("cannot use DNS: {error}"))?;
        Ok(Self { resolver, server: SocketAddr::new(server, PORT) })
    }

    /// The records of `service` in `domain`, in the order in which the server gave them.
    ///
    /// # Errors
    /// With Go's sentence if there are none.
    pub(super) async fn services(
        &self,
        service: &str,
        domain: &str,
    ) -> Result<Vec<SrvRecord>, String> {
        let name = format!("_{service}._tcp.{domain}");
        let parsed = Name::from_ascii(&name);
        let parsed = parsed.map_err(|_no_name| format!("lookup {name}: no such host"))?;
        let found = self.resolver.lookup(parsed, RecordType::SRV).await;
        let found = found
            .map_err(|error| format!("lookup {name} on {}: {}", self.server, reason(&error)))?;
        let mut records = Vec::new();
        for answer in found.answers() {
            if let RData::SRV(srv) = &answer.data {
                let target = srv.target.to_ascii();
                let target = target.strip_suffix('.').unwrap_or(&target).to_owned();
                if !is_host(&target) {
                    let why = "DNS response contained records which contain invalid names";
                    return Err(format!("lookup {domain}: {why}"));
                }
                let (priority, weight, port) = (srv.priority, srv.weight, srv.port);
                records.push(SrvRecord { priority, weight, port, target });
            }
        }
        Ok(records)
    }
}

/// The address that is dialed for a host: its first one of version 4, or its first one.
///
/// # Errors
/// With a sentence if it has none.
pub(super) async fn address(host: &str, port: u16) -> Result<SocketAddr, String> {
    let found = tokio::net::lookup_host((host, port)).await;
    let addresses: Vec<_> = found.map_err(|error| format!("lookup {host}: {error}"))?.collect();
    let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    first.copied().ok_or_else(|| format!("lookup {host}: no such host"))
}

fn reason(error: &NetError) -> String {
    if let NetError::Dns(DnsError::NoRecordsFound(_)) = error {
        "no such host".to_owned()
    } else if let NetError::Dns(DnsError::ResponseCode(_)) = error {
        "server misbehaving".to_owned()
    } else if let NetError::Timeout = error {
        "i/o timeout".to_owned()
    } else {
        error.to_string()
    }
}

/// Whether a name can stand in a URL and in a list of members.
fn is_host(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    name.bytes().all(fits)
}
