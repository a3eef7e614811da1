//! The members of a restored cluster, from the command line.
//!
//! Decides whether the flags agree with each other, in etcd's sentences. Called by `restore`.
//!
//! Source: etcd `server/config/config.go`, `VerifyBootstrap`; `client/pkg/types/urlsmap.go`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::ToSocketAddrs,
};

use super::{OfflineError, restore::RestoreOptions};
use crate::config::url::Url;

/// Names and peer URLs.
pub(super) type Members = BTreeMap<String, Vec<Url>>;

/// Reads and checks the members that `options` ask for.
pub(super) fn members(options: &RestoreOptions) -> Result<Members, OfflineError> {
    let refused = OfflineError::Refused;
    let advertised = Url::parse_list(&options.initial_advertise_peer_urls).map_err(refused)?;
    let mut members = Members::new();
    for pair in options.initial_cluster.split(',').filter(|pair| !pair.is_empty()) {
        let (name, url) = pair.split_once('=').unwrap_or((pair, ""));
        members.entry(name.to_owned()).or_default().push(Url::parse(url).map_err(refused)?);
    }
    members.values_mut().for_each(|urls| urls.sort());
    let name = &options.name;
    let Some(own) = members.get(name) else {
        return Err(refused(format!(
            "couldn't find local name {name:?} in the initial cluster configuration"
        )));
    };
    advertise_matches(name, own, &advertised).map_err(refused)?;
    let all: Vec<&Url> = members.values().flatten().collect();
    if all.iter().collect::<BTreeSet<_>>().len() < all.len() {
        return Err(refused(format!("initial cluster {} has duplicate url", shown(&members))));
    }
    Ok(members)
}

fn advertise_matches(name: &str, own: &[Url], advertised: &[Url]) -> Result<(), String> {
    if own == advertised || resolved(own) == resolved(advertised) {
        return Ok(());
    }
    let missing = |from: &[Url], of: &[Url]| {
        of.iter().filter(|url| !from.contains(url)).cloned().collect::<Vec<_>>()
    };
    let unadvertised = missing(advertised, own);
    if !unadvertised.is_empty() {
        let pairs: Vec<String> = unadvertised.iter().map(|url| format!("{name}={url}")).collect();
        return Err(format!(
            "--initial-cluster has {} but missing from --initial-advertise-peer-urls={} \
             (resolved urls: {:?} != {:?})",
            pairs.join(","),
            joined(advertised),
            resolved(advertised),
            resolved(own),
        ));
    }
    let listed = shown(&Members::from([(name.to_owned(), advertised.to_vec())]));
    Err(format!(
        "--initial-advertise-peer-urls has {} but missing from --initial-cluster={listed}",
        joined(&missing(own, advertised)),
    ))
}

/// URLs with addresses instead of names: two names of one machine are as good as one another.
fn resolved(urls: &[Url]) -> BTreeSet<String> {
    let address = |url: &Url| {
        let mut addresses = url.address().to_socket_addrs().ok()?;
        addresses.next().map(|address| format!("{:?}://{address}", url.scheme()))
    };
    urls.iter().map(|url| address(url).unwrap_or_else(|| url.to_string())).collect()
}

fn joined(urls: &[Url]) -> String {
    urls.iter().map(Url::as_str).collect::<Vec<_>>().join(",")
}

/// Members as etcd prints them: pairs, sorted.
fn shown(members: &Members) -> String {
    let pairs = members.iter().flat_map(|(name, urls)| urls.iter().map(move |url| (name, url)));
    let mut pairs: Vec<String> = pairs.map(|(name, url)| format!("{name}={url}")).collect();
    pairs.sort();
    pairs.join(",")
}
