//! The first cluster a member belongs to, as the flags describe it.
//!
//! Decides who the members are when a data directory is founded. Called by `boot` for a member
//! without data; one that has data ignores all of this, as in etcd.
//!
//! Source: etcd `server/config/config.go`, `VerifyBootstrap`; `client/pkg/types/urlsmap.go`.

use std::collections::{BTreeMap, BTreeSet};

use super::{Config, pending, url::Url};

/// The members of a cluster: their names and peer URLs.
pub type Members = BTreeMap<String, Vec<Url>>;

impl Config {
    /// The members that `--initial-cluster` lists.
    ///
    /// # Errors
    /// With etcd's sentence if one of the URLs is none.
    pub fn initial_members(&self) -> Result<Members, String> {
        parse_members(&self.initial_cluster)
    }

    /// The members that a new cluster is founded with, checked against the other flags: this one
    /// alone if the others are still to be discovered.
    ///
    /// # Errors
    /// With etcd's sentence if the flags contradict each other.
    pub fn bootstrap_members(&self) -> Result<Members, String> {
        if self.discovery.is_some() {
            let own = self.initial_advertise_peer_urls.clone();
            return Ok(Members::from([(self.name.clone(), own)]));
        }
        let members = self.listed_members()?;
        self.advertise_matches(&members[&self.name])?;
        without_duplicates(&members)?;
        Ok(members)
    }

    /// The members of the cluster that this one joins, as the flags have them. What it advertises
    /// is not compared: it was announced to the cluster before.
    ///
    /// # Errors
    /// With etcd's sentence if the flags contradict each other.
    pub fn joining_members(&self) -> Result<Members, String> {
        if self.discovery.is_some() {
            let sentence = "discovery URL should not be set when joining existing initial cluster";
            return Err(sentence.to_owned());
        }
        let members = self.listed_members()?;
        without_duplicates(&members)?;
        Ok(members)
    }

    /// The members that a discovery service found.
    ///
    /// # Errors
    /// With etcd's sentence if they make no cluster.
    pub fn discovered_members(&self, found: &str) -> Result<Members, String> {
        let members = parse_members(found)?;
        if !members.contains_key(&self.name) {
            return Err(format!("{:?} is not among the members {found}", self.name));
        }
        let cluster = |sentence: String| sentence.replace("initial cluster", "discovery cluster");
        without_duplicates(&members).map_err(cluster)?;
        Ok(members)
    }

    /// The same with the members that DNS names, as `name=url`, for `--initial-cluster`.
    ///
    /// # Errors
    /// With etcd's sentence if this member is not among them.
    pub fn with_members_from_dns(&self, found: &str) -> Result<Self, String> {
        let members = parse_members(found).unwrap_or_default();
        if !members.contains_key(&self.name) {
            let name = &self.name;
            return Err(format!(
                "error setting up initial cluster: cannot find local etcd member {name:?} in SRV \
                 records"
            ));
        }
        pending::check_members(&members)?;
        Ok(Self { initial_cluster: found.to_owned(), ..self.clone() })
    }

    fn listed_members(&self) -> Result<Members, String> {
        let members = self
            .initial_members()
            .map_err(|error| format!("error setting up initial cluster: {error}"))?;
        let name = &self.name;
        if !members.contains_key(name) {
            return Err(format!(
                "couldn't find local name {name:?} in the initial cluster configuration"
            ));
        }
        Ok(members)
    }

    /// The members as etcd prints them, for the log; empty if they cannot be read.
    pub(super) fn initial_members_shown(&self) -> String {
        self.initial_members().map(|members| shown(&members)).unwrap_or_default()
    }

    fn advertise_matches(&self, own: &[Url]) -> Result<(), String> {
        let advertised = &self.initial_advertise_peer_urls;
        let Err(why) = same_addresses(advertised, own) else { return Ok(()) };
        let name = &self.name;
        let missing = |from: &[Url], of: &[Url]| {
            of.iter().filter(|url| !from.contains(url)).cloned().collect::<Vec<_>>()
        };
        let unadvertised = missing(advertised, own);
        if !unadvertised.is_empty() {
            let with_name: Vec<_> =
                unadvertised.iter().map(|url| format!("{name}={url}")).collect();
            let (given, unknown) = (joined(advertised), with_name.join(","));
            return Err(format!(
                "--initial-cluster has {unknown} but missing from \
                 --initial-advertise-peer-urls={given} ({why})"
            ));
        }
        let unlisted = joined(&missing(own, advertised));
        let listed = shown(&BTreeMap::from([(name.clone(), advertised.clone())]));
        Err(format!(
            "--initial-advertise-peer-urls has {unlisted} but missing from \
             --initial-cluster={listed}"
        ))
    }
}

/// Reads pairs of a name and a URL, separated by commas.
fn parse_members(text: &str) -> Result<Members, String> {
    let mut members = Members::new();
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let (name, url) = pair.split_once('=').unwrap_or((pair, ""));
        members.entry(name.to_owned()).or_default().push(Url::parse(url)?);
    }
    members.values_mut().for_each(|urls| urls.sort());
    Ok(members)
}

/// Compares two lists of URLs, and the addresses behind them where the texts differ: names of one
/// machine are as good as one another.
///
/// # Errors
/// With etcd's sentence about the first difference.
pub fn same_addresses(one: &[Url], other: &[Url]) -> Result<(), String> {
    if one.len() != other.len() {
        return Err(format!("len({}) != len({})", quoted(one), quoted(other)));
    }
    if one == other {
        return Ok(());
    }
    let (one, other) = (resolved(one), resolved(other));
    match one.iter().zip(&other).find(|(one, other)| one != other) {
        Some((one, other)) => Err(format!("resolved urls: {one:?} != {other:?}")),
        None => Ok(()),
    }
}

/// The URLs with addresses in place of names, sorted.
fn resolved(urls: &[Url]) -> Vec<String> {
    let mut resolved: Vec<_> = urls
        .iter()
        .map(|url| match url.resolve().first() {
            Some(address) => url.with_address(address),
            None => url.to_string(),
        })
        .collect();
    resolved.sort();
    resolved
}

/// A list as Go's `%q` has it.
fn quoted(urls: &[Url]) -> String {
    let quoted: Vec<_> = urls.iter().map(|url| format!("{:?}", url.as_str())).collect();
    format!("[{}]", quoted.join(" "))
}

fn without_duplicates(members: &Members) -> Result<(), String> {
    let urls: Vec<_> = members.values().flatten().collect();
    if urls.iter().collect::<BTreeSet<_>>().len() < urls.len() {
        return Err(format!("initial cluster {} has duplicate url", shown(members)));
    }
    Ok(())
}

fn joined(urls: &[Url]) -> String {
    urls.iter().map(Url::as_str).collect::<Vec<_>>().join(",")
}

/// The members as flags have them.
#[must_use]
pub fn shown(members: &Members) -> String {
    let mut pairs: Vec<_> = members
        .iter()
        .flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}")))
        .collect();
    pairs.sort();
    pairs.join(",")
}

#[cfg(test)]
mod tests {
    use super::same_addresses;
    use crate::config::{Config, flags::Flags, url::Url};

    fn config(cluster: &str, advertised: &str) -> Config {
        let mut flags = Flags { initial_cluster: cluster.to_owned(), ..Flags::default() };
        flags.name = "a".to_owned();
        flags.initial_advertise_peer_urls.0 = Url::parse_list(advertised).unwrap();
        Config::of(flags).unwrap()
    }

    #[test]
    fn one_member_that_advertises_what_the_cluster_lists_is_founded() {
        let config = config(
            "a=http://127.0.0.1:2,a=http://127.0.0.1:1",
            "http://127.0.0.1:1,http://127.0.0.1:2",
        );
        let members = config.bootstrap_members().unwrap();
        assert_eq!(members["a"][0].as_str(), "http://127.0.0.1:1", "URLs are sorted");
        assert_eq!(members["a"].len(), 2, "a member may have several URLs");
    }

    #[test]
    fn names_of_one_address_match() {
        let config = config("a=http://localhost:1", "http://127.0.0.1:1");
        let v4_first = Url::parse("http://localhost:1").unwrap().resolve()[0] == "127.0.0.1:1";
        assert_eq!(config.bootstrap_members().is_ok(), v4_first, "localhost is 127.0.0.1");
    }

    #[test]
    fn contradictions_get_etcd_s_sentences() {
        let url = "http://127.0.0.1:1";
        for (cluster, sentence) in [
            (
                "b=http://127.0.0.1:1",
                "couldn't find local name \"a\" in the initial cluster configuration",
            ),
            (
                "a=x",
                "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: x",
            ),
            (
                "a=http://127.0.0.1:1,b=http://127.0.0.1:1",
                "initial cluster a=http://127.0.0.1:1,b=http://127.0.0.1:1 has duplicate url",
            ),
            (
                "a=http://127.0.0.1:9",
                "--initial-cluster has a=http://127.0.0.1:9 but missing from --initial-advertise-peer-urls=http://127.0.0.1:1 ",
            ),
        ] {
            let refused = config(cluster, url).bootstrap_members().unwrap_err();
            assert!(refused.starts_with(sentence), "{cluster}: {refused}");
        }
    }

    #[test]
    fn several_members_are_founded_or_joined_alike_but_for_what_is_advertised() {
        let list = "b=http://127.0.0.1:2,a=http://127.0.0.1:1,c=http://127.0.0.1:3";
        let mut config = config(list, "http://127.0.0.1:1");
        let members = config.bootstrap_members().unwrap();
        assert_eq!(members.keys().map(String::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
        config.initial_advertise_peer_urls = Url::parse_list("http://127.0.0.1:9").unwrap();
        assert!(config.bootstrap_members().is_err(), "a founder advertises what is listed");
        assert_eq!(config.joining_members(), Ok(members), "whoever joins may be elsewhere");
    }

    #[test]
    fn members_from_dns_stand_for_the_list_if_this_one_is_among_them() {
        let config = config("", "http://127.0.0.1:1");
        let list = "0=http://127.0.0.1:2,a=http://127.0.0.1:1";
        let members = config.with_members_from_dns(list).unwrap().bootstrap_members().unwrap();
        assert_eq!(members.keys().map(String::as_str).collect::<Vec<_>>(), ["0", "a"]);
        let refused = config.with_members_from_dns("0=http://127.0.0.1:2").map(|_config| ());
        let sentence = "error setting up initial cluster: cannot find local etcd member \"a\" in \
                        SRV records";
        assert_eq!(refused, Err(sentence.to_owned()));
        let refused = config.with_members_from_dns("0=https://h:2,a=http://127.0.0.1:1");
        let sentence = "DNS names the member https://h:2, but TLS is not available yet";
        assert_eq!(refused.map(|_config| ()), Err(sentence.to_owned()), "no silent plain text");
    }

    #[test]
    fn lists_of_urls_are_compared_by_their_addresses() {
        let same = |one: &str, other: &str| {
            same_addresses(&Url::parse_list(one).unwrap(), &Url::parse_list(other).unwrap())
        };
        assert_eq!(same("http://127.0.0.1:1", "http://127.0.0.1:1"), Ok(()));
        let refused = same("http://127.0.0.1:1", "http://127.0.0.1:2").unwrap_err();
        assert_eq!(refused, r#"resolved urls: "http://127.0.0.1:1" != "http://127.0.0.1:2""#);
        let refused = same("http://127.0.0.1:1", "http://127.0.0.1:1,http://127.0.0.1:2");
        assert_eq!(
            refused.unwrap_err(),
            r#"len(["http://127.0.0.1:1"]) != len(["http://127.0.0.1:1" "http://127.0.0.1:2"])"#
        );
    }
}
