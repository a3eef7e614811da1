//! The log of a member that has none: it founds a cluster with others, or joins one.
//!
//! Decides who the member is. Founders derive their ids, and the first entries of the log, from
//! the list that all of them are given. A member that joins asks those on its list, and takes its
//! id from their answer; its log begins empty, and the leader fills it. Called by `open`.
//!
//! ```text
//!   state new:       --initial-cluster --> Bootstrap --> ids, entries 1..N
//!                          |                  ^ only if nobody knows this member as started
//!                    or a registry (`discovery`), or DNS (`srv`)
//!   state existing:  --initial-cluster --> GET /members --> match by URLs --> ids, no entries
//!                                          GET /version --> versions must fit
//! ```
//!
//! Source: etcd `server/etcdserver/bootstrap.go`.

use std::{collections::BTreeMap, error::Error, fmt, time::Duration};

use proto::raftpb::{Entry, HardState};

use crate::{
    cluster::{
        BOOTSTRAP_TERM, Bootstrap, CLUSTER_VERSION_MIN, Member, SERVER_VERSION, Version, Versions,
    },
    config::{
        ClusterState, Config,
        bootstrap::{Members, same_addresses},
        url::Url,
    },
    model::{ClusterId, MemberId},
    replica::remote::{
        Failures, RemoteCluster, RemoteClusterError, cluster_at, downgrade_is_enabled, versions_of,
    },
    storage::wal::{Recovered, Wal, WalOptions, WalSnapshot},
};

use super::{
    discovery::join_cluster,
    open::{Log, Peers, StartError},
};

/// How long each member may take to say whether the cluster has been founded before.
///
/// Source: etcd `BootstrapTimeoutEffective`.
const FOUNDED_TIMEOUT: Duration = Duration::from_secs(1);

/// How long each member may take to describe the cluster that is to be joined.
///
/// Source: etcd `GetClusterFromRemotePeers`.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a cluster does not take this member.
#[derive(Debug)]
pub(super) enum JoinError {
    /// The cluster knows this member as one that has run, and its data directory is new.
    AlreadyBootstrapped(MemberId),
    /// Nobody described the cluster.
    Fetch(RemoteClusterError),
    /// The list and the cluster's members are not the same.
    Mismatch { cluster: String, why: String },
    /// The versions of the cluster do not fit.
    Incompatible,
    /// There are more learners than `--max-learners` allows.
    TooManyLearners,
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyBootstrapped(member) => {
                write!(f, "member {member} has already been bootstrapped")
            }
            Self::Fetch(_) => f.write_str("cannot fetch cluster info from peer urls"),
            Self::Mismatch { cluster, why } => {
                write!(f, "error validating peerURLs {cluster}: {why}")
            }
            Self::Incompatible => f.write_str("incompatible with current running cluster"),
            Self::TooManyLearners => f.write_str("membership: too many learner members in cluster"),
        }
    }
}

impl Error for JoinError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Fetch(source) => Some(source),
            Self::AlreadyBootstrapped(_)
            | Self::Mismatch { .. }
            | Self::Incompatible
            | Self::TooManyLearners => None,
        }
    }
}

/// What a member begins with.
pub(super) struct Beginning {
    pub(super) member: MemberId,
    pub(super) cluster: ClusterId,
    /// Committed from the start.
    pub(super) entries: Vec<Entry>,
    pub(super) peers: Peers,
}

/// Makes the log of a member that starts for the first time; and the other members.
///
/// # Errors
/// - [`StartError`], before anything is written that a corrected start would miss.
pub(super) async fn create_log(
    config: &Config,
    options: &WalOptions,
) -> Result<(Log, Peers), StartError> {
    let beginning = match config.initial_cluster_state {
        ClusterState::New => found(config).await?,
        ClusterState::Existing => join(config).await?,
    };
    tracing::info!(
        "local-member-id" = %beginning.member,
        "cluster-id" = %beginning.cluster,
        "starting local member"
    );
    begin(options, beginning)
}

/// Writes the log: a founder's with the entries that are committed from the start. At no moment is
/// there one that lacks them, for such a member would never campaign.
pub(super) fn begin(
    options: &WalOptions,
    beginning: Beginning,
) -> Result<(Log, Peers), StartError> {
    let Beginning { member, cluster, entries, peers } = beginning;
    let hard_state = committed(&entries);
    let wal = Wal::create_with(options, member, cluster, &hard_state, &entries);
    let wal = wal.map_err(StartError::Wal)?;
    let snapshot = WalSnapshot::default();
    let recovered = Recovered { member, cluster, hard_state, entries, snapshot };
    Ok((Log { wal, recovered }, peers))
}

/// The state of a log that begins with these entries.
pub(super) fn committed(entries: &[Entry]) -> HardState {
    if entries.is_empty() {
        return HardState::default();
    }
    HardState { term: Some(BOOTSTRAP_TERM.0), vote: Some(0), commit: Some(entries.len() as u64) }
}

/// Gives a founder's log the entries that are committed from the start, if it lacks them: official
/// etcd writes them after the log is there, and its first start may have ended between. Does
/// nothing to all others.
///
/// # Errors
/// - [`StartError::Unfinished`] if the flags do not say what to write.
/// - [`StartError::Wal`] if the log cannot be written.
pub(super) fn finish_log(config: &Config, log: &mut Log) -> Result<(), StartError> {
    if !is_unfinished(&log.recovered) || config.initial_cluster_state != ClusterState::New {
        return Ok(());
    }
    let members = config.bootstrap_members().ok().filter(|_| config.discovery.is_none());
    let founded = members.and_then(|members| derive(config, &members).ok());
    let founded = founded.filter(|founded| {
        let own = founded.member_named(&config.name).map(|own| own.id);
        own == Some(log.recovered.member) && founded.cluster == log.recovered.cluster
    });
    let unfinished = || StartError::Unfinished { wal_dir: config.wal_path() };
    finish(log, founded.ok_or_else(unfinished)?.entries())
}

/// Whether a log has no word on what is committed. Its member has neither voted nor acknowledged
/// anything. A founder of official etcd may have written some of the first entries.
pub(super) fn is_unfinished(recovered: &Recovered) -> bool {
    recovered.hard_state == HardState::default() && recovered.snapshot == WalSnapshot::default()
}

/// Writes the first entries in place of those that are there.
pub(super) fn finish(log: &mut Log, entries: Vec<Entry>) -> Result<(), StartError> {
    let hard_state = committed(&entries);
    log.wal.append(Some(&hard_state), &entries, true).map_err(StartError::Wal)?;
    log.recovered.hard_state = hard_state;
    log.recovered.entries = entries;
    Ok(())
}

async fn found(config: &Config) -> Result<Beginning, StartError> {
    let mut members = config.bootstrap_members().map_err(StartError::Config)?;
    let mut bootstrap = derive(config, &members)?;
    if let Some(discovery) = &config.discovery {
        tracing::info!("Bootstrapping cluster using v3 discovery.");
        let own = bootstrap.member_named(&config.name).expect("it is the only one");
        let found = join_cluster(discovery, own.id, &members).await;
        let found = found.map_err(StartError::Discovery)?;
        members = config.discovered_members(&found).map_err(StartError::Config)?;
        bootstrap = derive(config, &members)?;
    }
    let own = bootstrap.member_named(&config.name).expect("the flags were checked");
    if is_bootstrapped(own, &others(&members, &config.name)).await {
        return Err(StartError::Join(JoinError::AlreadyBootstrapped(own.id)));
    }
    let others = bootstrap.members.iter().filter(|member| member.id != own.id);
    Ok(Beginning {
        member: own.id,
        cluster: bootstrap.cluster,
        entries: bootstrap.entries(),
        peers: others.map(|member| (member.id, member.peer_urls.clone())).collect(),
    })
}

fn derive(config: &Config, members: &Members) -> Result<Bootstrap, StartError> {
    let urls: BTreeMap<_, Vec<_>> =
        members.iter().map(|(name, urls)| (name.clone(), texts(urls))).collect();
    let discovered = config.discovery.as_ref().map(|discovery| &discovery.token);
    let token = discovered.unwrap_or(&config.initial_cluster_token);
    Bootstrap::new(&urls, token).map_err(StartError::Bootstrap)
}

fn texts(urls: &[Url]) -> Vec<String> {
    urls.iter().map(|url| url.as_str().to_owned()).collect()
}

/// The peer URLs of all members but the one with this name.
fn others(members: &Members, name: &str) -> Vec<String> {
    let others = members.iter().filter(|(other, _)| *other != name);
    others.flat_map(|(_, urls)| texts(urls)).collect()
}

/// Whether the cluster runs already and has seen this member run: then its data was lost, and a
/// vote that it gave before may be given twice.
async fn is_bootstrapped(own: &Member, others: &[String]) -> bool {
    let known = cluster_at(others, FOUNDED_TIMEOUT, Failures::Expected).await;
    let Ok(RemoteCluster { members, .. }) = known else { return false };
    members.iter().any(|member| member.id == own.id && !member.client_urls.is_empty())
}

async fn join(config: &Config) -> Result<Beginning, StartError> {
    let listed = config.joining_members().map_err(StartError::Config)?;
    let asked = others(&listed, &config.name);
    let existing = cluster_at(&asked, JOIN_TIMEOUT, Failures::Warned).await;
    let existing = existing.map_err(|error| StartError::Join(JoinError::Fetch(error)))?;
    let own = own_id(&existing.members, &listed, &config.name);
    let own = own.map_err(|why| {
        let cluster = shown(&existing);
        StartError::Join(JoinError::Mismatch { cluster, why })
    })?;
    let RemoteCluster { id: cluster, members } = existing;
    let learners = members.iter().filter(|member| member.is_learner).count();
    let others: Vec<_> = members.into_iter().filter(|member| member.id != own).collect();
    if !is_compatible(&others, config.request_timeout()).await {
        return Err(StartError::Join(JoinError::Incompatible));
    }
    if config.max_learners < learners {
        return Err(StartError::Join(JoinError::TooManyLearners));
    }
    let peers = others.into_iter().map(|member| (member.id, member.peer_urls)).collect();
    Ok(Beginning { member: own, cluster, entries: Vec::new(), peers })
}

/// The id that the cluster gave to the member called `name`: that of the member with its URLs. Every
/// member of the cluster has to be on the list.
fn own_id(existing: &[Member], listed: &Members, name: &str) -> Result<MemberId, String> {
    if existing.len() != listed.len() {
        return Err("member count is unequal".to_owned());
    }
    let mut ids = BTreeMap::new();
    for member in existing {
        let mut last_error = String::new();
        let found = listed.iter().find(|(_, urls)| match matches(member, urls) {
            Ok(()) => true,
            Err(error) => {
                last_error = error;
                false
            }
        });
        let Some((name, _)) = found else {
            return Err(format!(
                "PeerURLs: no match found for existing member ({}, [{}]), last resolver error \
                 ({last_error})",
                member.id,
                member.peer_urls.join(" "),
            ));
        };
        ids.insert(name.clone(), member.id);
    }
    ids.get(name).copied().ok_or_else(|| format!("no member has the URLs of {name:?}"))
}

fn matches(member: &Member, urls: &[Url]) -> Result<(), String> {
    let parsed: Result<Vec<_>, _> = member.peer_urls.iter().map(|url| Url::parse(url)).collect();
    let mut parsed = parsed?;
    parsed.sort();
    same_addresses(&parsed, urls)
}

/// A cluster as etcd prints it.
fn shown(cluster: &RemoteCluster) -> String {
    let members: Vec<_> = cluster
        .members
        .iter()
        .map(|member| {
            format!(
                "&{{ID:{} RaftAttributes:{{PeerURLs:[{}] IsLearner:{}}} Attributes:{{Name:{} \
                 ClientURLs:[{}]}}}}",
                member.id,
                member.peer_urls.join(" "),
                member.is_learner,
                member.name,
                member.client_urls.join(" "),
            )
        })
        .collect();
    format!("{{ClusterID:{} Members:[{}] RemovedMemberIDs:[]}}", cluster.id, members.join(" "))
}

/// Whether this server may join a cluster of these other members: one of them has to say so, and
/// none may say otherwise.
async fn is_compatible(others: &[Member], timeout: Duration) -> bool {
    let versions = others.iter().map(|member| versions_of(member, timeout));
    let versions = futures::future::join_all(versions).await;
    let range = allowed_versions(downgrade_is_enabled(others, timeout).await);
    let known = versions
        .into_iter()
        .zip(others)
        .filter_map(|(versions, member)| versions.map(|versions| (member.id, versions)));
    are_compatible(known, range)
}

/// The cluster versions that this server can join: while a cluster is downgraded, only the one that
/// comes down to this server's.
fn allowed_versions(downgrading: bool) -> (Version, Version) {
    let own = SERVER_VERSION.without_patch();
    if downgrading {
        let above = Version::new(own.major, own.minor + 1, 0);
        return (above, above);
    }
    (CLUSTER_VERSION_MIN, own)
}

fn are_compatible(
    known: impl Iterator<Item = (MemberId, Versions)>,
    (lowest, highest): (Version, Version),
) -> bool {
    let mut somebody_fits = false;
    for (member, versions) in known {
        let Ok(cluster) = versions.cluster.parse::<Version>() else {
            tracing::warn!(
                "remote-member-id" = %member,
                "remote-member-cluster-version" = versions.cluster,
                "failed to parse cluster version of remote member"
            );
            continue;
        };
        if cluster < lowest || highest < cluster {
            tracing::warn!(
                "remote-member-id" = %member,
                "remote-member-cluster-version" = %cluster,
                "minimum-cluster-version-supported" = %lowest,
                "maximum-cluster-version-supported" = %highest,
                "cluster version of remote member is not compatible; too {}",
                if cluster < lowest { "low" } else { "high" }
            );
            return false;
        }
        somebody_fits = true;
    }
    somebody_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, url: &str) -> Member {
        Member { id: MemberId(id), peer_urls: vec![url.to_owned()], ..Member::default() }
    }

    fn listed(pairs: &[(&str, &str)]) -> Members {
        let parse = |url: &str| Url::parse_list(url).expect("URLs");
        pairs.iter().map(|(name, url)| ((*name).to_owned(), parse(url))).collect()
    }

    #[test]
    fn a_joining_member_is_the_one_with_its_urls() {
        let existing = [member(7, "http://127.0.0.1:2"), member(9, "http://127.0.0.1:1")];
        let list = listed(&[("a", "http://127.0.0.1:1"), ("b", "http://127.0.0.1:2")]);
        assert_eq!(own_id(&existing, &list, "a"), Ok(MemberId(9)));
        assert_eq!(own_id(&existing, &list, "b"), Ok(MemberId(7)));
    }

    #[test]
    fn a_list_that_is_not_the_cluster_gets_etcd_s_sentences() {
        let existing = [member(7, "http://127.0.0.1:2"), member(0xaf, "http://127.0.0.1:3")];
        let one = listed(&[("a", "http://127.0.0.1:1")]);
        assert_eq!(own_id(&existing, &one, "a"), Err("member count is unequal".to_owned()));
        let list = listed(&[("a", "http://127.0.0.1:1"), ("b", "http://127.0.0.1:2")]);
        let sentence = concat!(
            "PeerURLs: no match found for existing member (af, [http://127.0.0.1:3]), ",
            "last resolver error (resolved urls: ",
            r#""http://127.0.0.1:3" != "http://127.0.0.1:2")"#,
        );
        assert_eq!(own_id(&existing, &list, "a"), Err(sentence.to_owned()));
    }

    #[test]
    fn one_member_must_fit_and_none_may_not() {
        let versions = |clusters: &[&str]| {
            let answers = clusters.iter().map(|cluster| {
                let cluster = (*cluster).to_owned();
                (MemberId(1), Versions { cluster, ..Versions::default() })
            });
            answers.collect::<Vec<_>>()
        };
        let check = |clusters: &[&str], downgrading| {
            are_compatible(versions(clusters).into_iter(), allowed_versions(downgrading))
        };
        assert!(check(&["3.7.0", "not_decided"], false), "one fits, one does not know");
        assert!(check(&["3.6.0"], false), "a cluster that is to be upgraded");
        assert!(!check(&["3.7.0", "3.8.0"], false), "one is too new");
        assert!(!check(&["not_decided"], false), "nobody fits");
        assert!(!check(&[], false), "nobody answered");
        assert!(check(&["3.8.0"], true), "a cluster that comes down to ours");
        assert!(!check(&["3.7.0"], true), "a cluster that goes below ours");
    }
}
