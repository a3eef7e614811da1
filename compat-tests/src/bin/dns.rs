//! Groups whose members find one another by DNS, official and ours alike.
//!
//! `dns` founds groups through a name server of its own and compares their ids with those of an
//! all-official group; then what both servers say of records that make no cluster.

use std::{net::Ipv4Addr, process::ExitCode};

use anyhow::{Context, ensure};
use oxetcd_compat_tests::{
    dns::NameServer,
    group::{Group, until},
    network,
    server::{Attempt, Kind, Server},
};
use serde_json::Value;

const OFFICIAL: Kind = Kind::Official;
const OURS: Kind = Kind::Oxetcd;

const DOMAIN: &str = "example.test";
const FLAGS: [&str; 3] =
    ["--discovery-srv=example.test", "--discovery-srv-name=blue", "--initial-cluster-token=t"];

#[expect(clippy::print_stdout, reason = "a person watches")]
fn main() -> anyhow::Result<ExitCode> {
    network::enter()?;
    let dns = NameServer::start()?;
    for member in 1..=3 {
        dns.add_address(&format!("m{member}.{DOMAIN}"), Ipv4Addr::LOCALHOST);
    }
    let checks = [
        ("a mixed group has the ids of an official one", mixed_groups_have_the_same_ids(&dns)),
        ("records that make no cluster are refused alike", bad_records_are_refused_alike(&dns)),
    ];
    let (mut passed, mut failed) = (0, 0);
    for (what, outcome) in checks {
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("dns: {what}");
            }
            Err(error) => {
                failed += 1;
                println!("dns: NOT {what}: {error:#}");
            }
        }
    }
    println!("dns: {passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What must not depend on who the members are: the cluster's id, and the ids, names and URLs of
/// its members.
fn identity(group: &Group) -> anyhow::Result<String> {
    let list: Value = serde_json::from_str(&group.ctl(&["member", "list", "-w", "json"])?)?;
    let members = list["members"].as_array().context("members")?;
    let mut shown: Vec<_> = members
        .iter()
        .map(|member| format!("{} {} {}", member["ID"], member["name"], member["peerURLs"]))
        .collect();
    shown.sort();
    Ok(format!("{} {}", list["header"]["cluster_id"], shown.join("; ")))
}

fn mixed_groups_have_the_same_ids(dns: &NameServer) -> anyhow::Result<()> {
    let group = Group::prepare(&[OFFICIAL; 3], &FLAGS)?;
    let mut group = group.context("official etcd is not installed")?;
    group.discover();
    for (number, server) in (1..).zip(group.members()) {
        let target = format!("m{number}.{DOMAIN}");
        let service = format!("_etcd-server-blue._tcp.{DOMAIN}");
        dns.add_service(&service, 9 - number, &target, port(server)?);
    }
    let mut expected = None;
    for (run, kinds) in [[OFFICIAL; 3], [OFFICIAL, OURS, OURS], [OURS, OURS, OFFICIAL], [OURS; 3]]
        .iter()
        .enumerate()
    {
        for (position, kind) in kinds.iter().enumerate() {
            let member = group.member(position);
            member.kill();
            let data_dir = member.work_dir().join(format!("data{run}"));
            member.set_kind(*kind)?;
            member.set_data_dir(data_dir);
        }
        group.resume()?;
        for position in 0..kinds.len() {
            until("a write gets through", || {
                group.ctl_at(position, &["put", "a", "x"]).map(|_| true)
            })?;
        }
        group.agree()?;
        let found = identity(&group)?;
        let expected = expected.get_or_insert_with(|| found.clone());
        ensure!(found == *expected, "{kinds:?}: {found}\nofficial: {expected}");
        rejoin(&mut group, &format!("again{run}")).with_context(|| format!("{kinds:?}"))?;
    }
    dns.forget_services();
    for member in 0..3 {
        group.member(member).kill();
    }
    group.resume().context("members with data do not ask")?;
    group.agree()
}

/// The last member loses its data and joins again, as one of those that DNS names.
fn rejoin(group: &mut Group, data_dir: &str) -> anyhow::Result<()> {
    let port = port(&group.members()[2])?;
    let id = format!("{:x}", group.status(2)?.member);
    group.member(2).kill();
    until("the member is removed", || group.ctl_at(0, &["member", "remove", &id]).map(|_| true))?;
    let url = format!("--peer-urls=http://m3.{DOMAIN}:{port}");
    until("it is added", || group.ctl_at(0, &["member", "add", "m3", &url]).map(|_| true))?;
    let member = group.member(2);
    member.set_data_dir(member.work_dir().join(data_dir));
    member.set_flags(&[&FLAGS[..], &["--initial-cluster-state=existing"]].concat());
    group.resume()?;
    group.agree()?;
    group.member(2).set_flags(&FLAGS);
    Ok(())
}

fn port(server: &Server) -> anyhow::Result<u16> {
    let url = server.peer_url();
    Ok(url.rsplit(':').next().context("a port")?.parse()?)
}

/// What a server says last about a start with the records of a domain.
fn refusal(kind: Kind, domain: &str, port: u16) -> anyhow::Result<String> {
    let flags = [
        format!("--discovery-srv={domain}"),
        format!("--listen-peer-urls=http://127.0.0.1:{port}"),
        format!("--initial-advertise-peer-urls=http://127.0.0.1:{port}"),
    ];
    let mut server = Server::prepare(kind, &flags.each_ref().map(String::as_str))?
        .context("official etcd is not installed")?;
    server.set_group("m1", String::new());
    let Attempt::Ended(ended) = server.attempt()? else { anyhow::bail!("{kind:?} has started") };
    let last = ended.log.lines().last().context("a log")?;
    let line: Value = serde_json::from_str(last)?;
    Ok(format!("{:?} {} {} {}", ended.status.code(), line["level"], line["msg"], line["error"]))
}

fn bad_records_are_refused_alike(dns: &NameServer) -> anyhow::Result<()> {
    let port = port(&Server::prepare(OURS, &[])?.context("ours is there")?)?;
    let service = |name: &str, domain: &str, target: &str, port| {
        dns.add_service(&format!("_{name}._tcp.{domain}.test"), 0, target, port);
    };
    service("etcd-server", "other", "m2.example.test", port ^ 1);
    service("etcd-server-ssl", "scheme", "m1.example.test", port);
    service("etcd-server", "twice", "m1.example.test", port);
    service("etcd-server", "twice", "m2.example.test", port);
    service("etcd-server", "tls", "m1.example.test", port);
    service("etcd-server-ssl", "tls", "m2.example.test", port ^ 1);
    for domain in ["unknown.test", "other.test", "scheme.test", "twice.test"] {
        let official = refusal(OFFICIAL, domain, port)?;
        let ours = refusal(OURS, domain, port)?;
        ensure!(ours == official, "{domain}:\n  ours {ours}\n  etcd {official}");
    }
    let ours = refusal(OURS, "tls.test", port)?;
    ensure!(ours.contains("but TLS is not available yet"), "no silent plain text: {ours}");
    Ok(())
}
