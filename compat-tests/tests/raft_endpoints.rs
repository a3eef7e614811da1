//! What official etcd answers to raft's own requests on a peer URL, and that ours answers the same:
//! requests of members of other versions and clusters, of members that are not known, and requests
//! that are none. A member that was removed hears it there.
//!
//! Needs `OXETCD_OFFICIAL_BIN`, the folder with the official binaries, and says nothing without it.

#![expect(clippy::unwrap_used, reason = "a server that does not answer fails the test")]

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::Duration,
};

use oxetcd_compat_tests::{
    group::{Group, until},
    server::Kind::{self, Official as OFFICIAL, Oxetcd as OURS},
};

/// Longer than an answer takes; as long as official etcd leaves a connection open without a word.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request, without the headers that say who asks.
struct Request {
    line: &'static str,
    /// In place of those that a member of the same cluster sends; an empty value leaves one out.
    headers: Vec<(&'static str, String)>,
    body: &'static [u8],
}

fn request(line: &'static str, headers: &[(&'static str, &str)], body: &'static [u8]) -> Request {
    let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Request { line, headers, body }
}

fn requests(member: &str) -> Vec<Request> {
    let to = ("X-Raft-To", member);
    let version = |version| ("X-Server-Version", version);
    let oldest = |version| ("X-Min-Cluster-Version", version);
    let other_cluster = ("X-Etcd-Cluster-ID", "1");
    vec![
        request("GET /raft", &[], b""),
        request("GET /raft/", &[], b""),
        request("GET /raft/snapshot", &[], b""),
        request("GET /raft/snapshot/", &[], b""),
        request("POST /raft/stream/msgapp/1", &[], b""),
        request("GET /raft/stream", &[], b""),
        request("POST /raft/stream", &[], b""),
        request("GET /raft//probing?x=1", &[], b""),
        request("GET /raft/stream/", &[], b""),
        request("GET /raft/stream/foo/1", &[], b""),
        request("GET /raft/stream/msgapp", &[], b""),
        request("GET /raft/stream/msgapp/", &[], b""),
        request("GET /raft/stream/msgapp/zz", &[], b""),
        request("GET /raft/stream/msgapp/1/x", &[to], b""),
        request("GET /raft/stream/message/77", &[to], b""),
        request("GET /raft/stream/message/2", &[], b""),
        request("GET /raft/stream/message/2", &[("X-Raft-To", "1")], b""),
        request("GET /raft/stream/message/2", &[version("2.3.1"), oldest("2.3.0")], b""),
        request("GET /raft/stream/message/2", &[version("3.9.0"), oldest("3.8.0")], b""),
        request("GET /raft/stream/message/2", &[version(""), oldest("")], b""),
        request("GET /raft/stream/message/2", &[other_cluster], b""),
        request("GET /raft/stream/message/2", &[("X-Etcd-Cluster-ID", "")], b""),
        request("POST /raft", &[other_cluster], b"zzzz"),
        request("POST /raft", &[version("2.3.1")], b""),
        request("POST /raft", &[], b"zzzz"),
        request("POST /raft", &[], b""),
        request("POST /raft", &[], b"\x08\x08\x10\x05\x18\x07"),
        request("POST /raft/snapshot", &[other_cluster], b""),
        request("POST /raft/snapshot", &[], b""),
        request("POST /raft/snapshot", &[], b"abc"),
        request("POST /raft/snapshot", &[], b"\0\0\0\0\0\0\0\x06\x08\x08\x10\x05\x18\x07"),
        request("POST /raft/snapshot", &[], b"\0\0\0\0\x10\0\0\x06\x08\x08\x10\x05\x18\x07"),
        request(
            "POST /raft/snapshot",
            &[],
            b"\0\0\0\0\0\0\0\x0c\x08\x07\x10\x05\x18\x07\x4a\x04\x12\x02\x10\x05abc",
        ),
    ]
}

/// Sends one request to the peer URL, and shows the answer without what differs between runs.
fn ask(url: &str, cluster: &str, request: &Request) -> String {
    let address = url.strip_prefix("http://").unwrap();
    let mut headers = vec![
        ("X-Server-From", "2".to_owned()),
        ("X-Server-Version", "3.7.1".to_owned()),
        ("X-Min-Cluster-Version", "3.0.0".to_owned()),
        ("X-Etcd-Cluster-ID", cluster.to_owned()),
    ];
    for (name, value) in &request.headers {
        headers.retain(|(other, _)| other != name);
        headers.push((*name, value.clone()));
    }
    headers.retain(|(_, value)| !value.is_empty());
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = request.body.len();
    let mut text = format!(
        "{} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n",
        request.line
    );
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{text}\r\n").as_bytes()).unwrap();
    stream.write_all(request.body).unwrap();
    show(&mut BufReader::new(stream), cluster)
}

fn show(answer: &mut impl BufRead, cluster: &str) -> String {
    let mut shown = Vec::new();
    let (mut length, mut is_chunked) = (0, false);
    loop {
        let mut line = String::new();
        answer.read_line(&mut line).unwrap();
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        match line.split_once(": ") {
            // How an answer is cut into pieces is nobody's business.
            Some(("date" | "connection", _)) => {}
            Some(("content-length", value)) => length = value.parse().unwrap(),
            Some(("transfer-encoding", _)) => is_chunked = true,
            _ => shown.push(line),
        }
    }
    shown[1..].sort();
    if is_chunked {
        let mut line = String::new();
        answer.read_line(&mut line).unwrap();
        length = usize::from_str_radix(line.trim_end(), 16).unwrap();
    }
    let mut body = vec![0; length];
    answer.read_exact(&mut body).unwrap();
    shown.push(String::from_utf8_lossy(&body).into_owned());
    shown.join("\n").replace(cluster, "CLUSTER")
}

/// What a server of `kind`, alone in its cluster, answers to everything.
fn answers(kind: Kind) -> Option<Vec<(&'static str, String)>> {
    let group = Group::start(&[kind], &[]).unwrap()?;
    let status = group.status(0).unwrap();
    let member = format!("{:x}", status.member);
    let cluster = group.ask_peer(0, "GET", "/members", b"").unwrap().cluster;
    let url = group.members()[0].peer_url();
    let asked = requests(&member);
    Some(asked.iter().map(|one| (one.line, ask(&url, &cluster, one))).collect())
}

#[test]
fn answers_to_raft_s_requests_are_etcd_s() {
    let Some(official) = answers(OFFICIAL) else { return };
    let ours = answers(OURS).unwrap();
    for ((line, official), (_, ours)) in official.iter().zip(&ours) {
        assert_eq!(ours, official, "{line}: ours on the left");
    }
}

/// Removes a member that is down from a group, and starts it again.
fn remove_while_away(kinds: &[Kind]) {
    let Some(mut group) = Group::start(kinds, &[]).unwrap() else { return };
    let away = kinds.len() - 1;
    let id = format!("{:x}", group.status(away).unwrap().member);
    group.member(away).kill();
    until("the member is removed", || group.ctl_at(0, &["member", "remove", &id]).map(|_| true))
        .unwrap();
    // Its own log says nothing of that; its peers do.
    let log = group.refused(away).unwrap();
    assert!(log.contains("the member has been permanently removed from the cluster"), "{log}");
}

#[test]
fn an_official_member_hears_from_ours_that_it_was_removed() {
    remove_while_away(&[OURS, OURS, OFFICIAL]);
}

#[test]
fn a_member_of_ours_hears_from_its_peers_that_it_was_removed() {
    remove_while_away(&[OFFICIAL, OFFICIAL, OURS]);
    remove_while_away(&[OURS, OURS, OURS]);
}
