//! `/metrics` of both servers after the same work: dashboards and alerts find what they look for.
#![expect(clippy::unwrap_used, reason = "a check that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::TcpStream,
};

use etcd_client::{Client, WatchOptions};
use oxetcd_compat_tests::server::{Kind, Server};

/// The prefix of what a server without a Go runtime has not.
const FOREIGN: &str = "go_";

/// Series by name and labels.
type Series = BTreeMap<String, f64>;

fn scrape(server: &Server) -> (BTreeSet<String>, Series) {
    let endpoint = server.endpoint();
    let host = endpoint.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    // In one piece, not in chunks.
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: {host}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    let families = answer.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let families = families.map(str::to_owned).collect();
    let series = answer.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    (families, series.collect())
}

/// What both servers are made to do.
async fn work(client: &mut Client) {
    for number in 0..5 {
        client.put(format!("k{number}"), "value", None).await.unwrap();
    }
    client.get("k0", None).await.unwrap();
    client.delete("k1", None).await.unwrap();
    let lease = client.lease_grant(60, None).await.unwrap();
    client.lease_revoke(lease.id()).await.unwrap();
    let mut watch = client.watch("k2", Some(WatchOptions::new())).await.unwrap();
    client.put("k2", "seen", None).await.unwrap();
    watch.message().await.unwrap();
    client.defragment().await.unwrap();
    let mut snapshot = client.snapshot().await.unwrap();
    while snapshot.message().await.unwrap().is_some() {}
}

/// The families of a server, and what `work` added to its series.
async fn measured(kind: Kind) -> Option<(BTreeSet<String>, Series)> {
    let server = Server::start(kind, &[]).unwrap()?;
    let mut client = Client::connect([server.endpoint()], None).await.unwrap();
    let (_, before) = scrape(&server);
    work(&mut client).await;
    let (families, mut series) = scrape(&server);
    for (name, value) in &mut series {
        *value -= before.get(name).unwrap_or(&0.0);
    }
    Some((families, series))
}

#[tokio::test]
async fn families_are_those_of_etcd() {
    let Some((official, _)) = measured(Kind::Official).await else { return };
    let (ours, _) = measured(Kind::Oxetcd).await.unwrap();
    let is_foreign = |family: &String| family.starts_with(FOREIGN);
    let missing: Vec<_> = official.difference(&ours).filter(|it| !is_foreign(it)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[tokio::test]
async fn what_was_done_is_counted_as_etcd_counts_it() {
    let Some((_, official)) = measured(Kind::Official).await else { return };
    let (_, ours) = measured(Kind::Oxetcd).await.unwrap();
    let mut differ = Vec::new();
    for name in [
        "etcd_disk_backend_defrag_duration_seconds_count",
        "etcd_disk_backend_snapshot_duration_seconds_count",
        "etcd_debugging_mvcc_total_put_size_in_bytes",
        "etcd_mvcc_put_total",
        "etcd_mvcc_delete_total",
        "etcd_mvcc_range_total",
        "etcd_mvcc_txn_total",
        "etcd_debugging_mvcc_keys_total",
        "etcd_debugging_mvcc_events_total",
        "etcd_debugging_lease_granted_total",
        "etcd_debugging_lease_revoked_total",
    ] {
        assert!(official.contains_key(name), "{name} is not of etcd");
        if ours.get(name) != official.get(name) {
            differ.push((name, ours.get(name), official.get(name)));
        }
    }
    assert!(differ.is_empty(), "ours first: {differ:#?}");
}
