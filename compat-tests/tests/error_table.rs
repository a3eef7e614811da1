//! Errors that one member without TLS and users can be made to answer: code and text as etcd's.
//!
//! `kv_scripts` has those of keys, leases and maintenance; here are those of membership, of
//! headers, of the quota, and of calls that do not exist.
#![expect(clippy::unwrap_used, reason = "a failed step of a test ends it")]

use oxetcd_compat_tests::{
    raw::{self, Raw, framed},
    script::{Call, Client},
    server::Server,
    transcript::assert_equal,
};
use prost::Message;
use proto::etcdserverpb::{
    LeaseGrantRequest, Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest,
    MemberRemoveRequest, MemberUpdateRequest, PutRequest, RangeRequest, TxnRequest,
    cluster_client::ClusterClient,
};
use tonic::{Response, Status, transport::Channel};

fn text<M>(answer: Result<Response<M>, Status>, members: impl Fn(M) -> Vec<Member>) -> String {
    match answer {
        Ok(answer) => format!("{} members", members(answer.into_inner()).len()),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

fn urls(urls: &[&str]) -> Vec<String> {
    urls.iter().map(|url| (*url).to_owned()).collect()
}

/// Sends what the membership refuses, and what it takes in between; each with its answer.
async fn member_errors(server: &Server) -> Vec<(String, String)> {
    let mut answers = Vec::new();
    let mut client: ClusterClient<Channel> =
        ClusterClient::connect(server.endpoint()).await.unwrap();
    let own = server.peer_url();
    let first = client.member_list(MemberListRequest::default()).await.unwrap().into_inner();
    let id = first.members[0].id;
    for (peers, is_learner) in [
        (vec![], true),
        (urls(&["nonsense"]), true),
        (urls(&["http://127.0.0.1:1/path"]), true),
        (urls(&["ftp://127.0.0.1:1"]), true),
        (urls(&[&own]), true),
        (urls(&[&own]), false),
        (urls(&["http://127.0.0.1:1"]), true),
        (urls(&["http://127.0.0.1:1"]), true),
        (urls(&["http://127.0.0.1:2"]), true),
    ] {
        let what = format!("add {peers:?} {is_learner}");
        let request = MemberAddRequest { peer_ur_ls: peers, is_learner };
        let answer = client.member_add(request).await;
        answers.push((what.replace(&own, "own"), text(answer, |answer| answer.members)));
    }
    let listed = client.member_list(MemberListRequest::default()).await.unwrap().into_inner();
    let learner = listed.members.iter().find(|member| member.is_learner).map_or(0, |m| m.id);
    for (name, target) in [("own", id), ("none", 404), ("learner", learner)] {
        let answer = client.member_promote(MemberPromoteRequest { id: target }).await;
        answers.push((format!("promote {name}"), text(answer, |answer| answer.members)));
    }
    for (name, target, peers) in [
        ("none", 404, urls(&["http://127.0.0.1:3"])),
        ("own", id, urls(&["nonsense"])),
        ("own", id, vec![]),
        ("learner", learner, urls(&[&own])),
        ("learner", learner, urls(&["http://127.0.0.1:4"])),
    ] {
        let what = format!("update {name} {peers:?}").replace(&own, "own");
        let request = MemberUpdateRequest { id: target, peer_ur_ls: peers };
        answers.push((what, text(client.member_update(request).await, |answer| answer.members)));
    }
    for (name, target) in [("none", 404), ("learner", learner), ("learner again", learner)] {
        let answer = client.member_remove(MemberRemoveRequest { id: target }).await;
        answers.push((format!("remove {name}"), text(answer, |answer| answer.members)));
    }
    let request = MemberUpdateRequest { id: learner, peer_ur_ls: urls(&["http://127.0.0.1:9"]) };
    let answer = client.member_update(request).await;
    answers.push(("update removed".to_owned(), text(answer, |answer| answer.members)));
    answers
}

fn compare(official: Vec<(String, String)>, ours: Vec<(String, String)>) {
    let (requests, official): (Vec<_>, Vec<_>) = official.into_iter().unzip();
    let (_, ours): (Vec<_>, Vec<_>) = ours.into_iter().unzip();
    assert_equal(&requests, &official, &ours);
}

#[tokio::test]
async fn members_are_refused_alike() {
    let Some((official, ours)) = Server::start_both(&[]).unwrap() else { return };
    compare(member_errors(&official).await, member_errors(&ours).await);
}

const RANGE: &str = "/etcdserverpb.KV/Range";
const PUT: &str = "/etcdserverpb.KV/Put";

fn range() -> Vec<u8> {
    framed(0, &RangeRequest { key: "k".into(), ..Default::default() }.encode_to_vec())
}

/// Calls that are wrong before anybody looks at keys.
fn wrong_calls() -> Vec<Raw> {
    vec![
        Raw::call(RANGE, range()),
        Raw::call(RANGE, range()).with("hasleader", "true"),
        Raw::call(RANGE, range()).with("token", "none"),
        Raw::call(RANGE, range()).with("client-api-version", "x"),
        Raw::call(PUT, framed(0, &PutRequest::default().encode_to_vec())),
        Raw::call("/etcdserverpb.KV/Nothing", range()),
        Raw::call("/etcdserverpb.Nothing/Range", range()),
        Raw::call("/etcdserverpb.KV", range()),
        Raw::call("/grpc.health.v1.Health/Check", framed(0, &[])),
        Raw::call("/grpc.health.v1.Health/Check", framed(0, b"\x0a\x04none")),
    ]
}

async fn answers(server: &Server, calls: Vec<Raw>) -> Vec<(String, String)> {
    let mut channel = raw::connect(server.endpoint()).await.unwrap();
    let mut answers = Vec::new();
    for call in calls {
        let what = format!("{call:?}");
        let answer = raw::send(&mut channel, call).await;
        // Sizes of headers of answers differ with the ids in them.
        let answer = answer.unwrap_or_else(|error| format!("{error:#}"));
        let answer = answer.rsplit_once(", ").map_or(answer.clone(), |(text, _)| text.to_owned());
        answers.push((what, answer));
    }
    answers
}

#[tokio::test]
async fn calls_that_do_not_exist_are_refused_alike() {
    let Some((official, ours)) = Server::start_both(&[]).unwrap() else { return };
    compare(answers(&official, wrong_calls()).await, answers(&ours, wrong_calls()).await);
}

#[tokio::test]
async fn full_quota_is_refused_alike() {
    let Some((official, ours)) = Server::start_both(&["--quota-backend-bytes=2000000"]).unwrap()
    else {
        return;
    };
    let big = PutRequest { key: "k".into(), value: vec![7; 700_000].into(), ..Default::default() };
    let small = PutRequest { key: "s".into(), value: "v".into(), ..Default::default() };
    let calls = [
        Call::Put(small),
        Call::Grant(LeaseGrantRequest { id: 5, ttl: 100 }),
        Call::Txn(TxnRequest::default()),
        Call::Range(RangeRequest { key: "s".into(), ..Default::default() }),
        Call::Alarm(Default::default()),
    ];
    let mut texts = Vec::new();
    for server in [&official, &ours] {
        let mut client = Client::connect(server).await.unwrap();
        // How many fit depends on the store; that one is refused, and how, does not.
        let mut refused = String::new();
        for _ in 0..8 {
            refused = client.call(Call::Put(big.clone())).await;
            if !refused.starts_with("PutResponse") {
                break;
            }
        }
        let mut lines = vec![refused];
        for call in calls.clone() {
            let line = client.call(call).await;
            // The head of the store and the id of the member are not those of the other server.
            let line = line.split("revision: ").next().unwrap_or_default().to_owned();
            lines.push(line);
        }
        texts.push(lines);
    }
    let requests = (0..6).map(|step| format!("step {step}")).collect::<Vec<_>>();
    assert_equal(&requests, &texts[0], &texts[1]);
    assert!(texts[0][0].contains("database space exceeded"), "{:?}", texts[0]);
}
