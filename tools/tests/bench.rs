//! The benchmark's client, loads and verification against a real oxetcd.
//!
//! Small loads on a debug build: this checks that a lost write would be noticed, not how fast
//! anything is. Needs the `oxetcd` program, which `make test` builds.

#![expect(clippy::unwrap_used, reason = "a server that cannot be used fails the test")]

use std::path::PathBuf;

use oxetcd_tools::bench::{
    caller::Caller,
    ledger::Ledger,
    load::{Generator, Shape, Until},
    path,
    requests::{Gets, KeepAlives, Puts, Reading},
    server::{Options, Server, Side},
    watchers::{Detail, Spread, watching},
};
use proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
    WatchCreateRequest,
};

fn program() -> PathBuf {
    let dir = std::env::var_os("OXETCD_BIN_DIR").map(PathBuf::from);
    let beside = || std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
    let program = dir.unwrap_or_else(beside).join("oxetcd");
    assert!(program.exists(), "{} is missing: run `cargo build` first", program.display());
    program
}

/// A server whose directory no other test uses.
fn server(name: &str) -> Server {
    let work_dir = std::env::temp_dir().join(format!("oxetcd-bench-{name}"));
    Server::start(Side::Ours, &program(), &work_dir, &Options::default()).unwrap()
}

const SHAPE: Shape = Shape::Closed { in_flight: 16 };

#[test]
fn verification_passes_after_a_kill_and_catches_a_lost_key() {
    let mut server = server("verification");
    let mut ledger = Ledger::new("a/", 200);
    let base = Caller::connect(server.address()).unwrap().revision().unwrap();
    let mut generator = Generator::connect(&[server.address()], 3).unwrap();
    let tally = generator.run(SHAPE, Until::Sent(500), &mut Puts { ledger: &mut ledger }).unwrap();
    assert_eq!(tally.operations, 500, "every put is answered");
    assert_eq!(tally.latency.len(), 500, "every answer has a latency");
    server.kill();
    server.resume().unwrap();
    let mut caller = Caller::connect(server.address()).unwrap();
    caller.verify(&ledger, &(base + 500..=base + 500)).unwrap();
    assert!(
        caller.verify(&ledger, &(base + 501..=base + 501)).is_err(),
        "an acknowledged write more was made"
    );

    let (_, lost) = ledger.sample(10)[4];
    let delete = DeleteRangeRequest { key: lost.to_vec().into(), ..Default::default() };
    let answer: DeleteRangeResponse = caller.call(path::DELETE_RANGE, &delete).unwrap();
    assert_eq!(answer.deleted, 1);
    let error = caller.verify(&ledger, &(base + 501..=base + 501)).unwrap_err().to_string();
    assert!(error.contains("199 keys were found of 200"), "{error}");

    let other = PutRequest { key: lost.to_vec().into(), value: "x".into(), ..Default::default() };
    let _answer: PutResponse = caller.call(path::PUT, &other).unwrap();
    let error = caller.verify(&ledger, &(base + 502..=base + 502)).unwrap_err().to_string();
    assert!(error.contains("does not hold the value of put"), "{error}");
}

#[test]
fn every_kind_of_load_is_answered() {
    let server = server("loads");
    let mut ledger = Ledger::new("a/", 100);
    let open = Shape::Open { per_second: 500.0 };
    let mut generator = Generator::connect(&[server.address()], 2).unwrap();
    let tally = generator.run(open, Until::Sent(150), &mut Puts { ledger: &mut ledger }).unwrap();
    assert_eq!(tally.operations, 150);
    assert!(0.25 < tally.elapsed.as_secs_f64(), "150 requests are due over 0.3 s: {tally:?}");
    for reading in [Reading::Serializable, Reading::Linearizable] {
        let mut gets = Gets::new(&ledger, reading);
        assert_eq!(generator.run(SHAPE, Until::Sent(300), &mut gets).unwrap().operations, 300);
    }
    let mut caller = Caller::connect(server.address()).unwrap();
    let leases = (0..8).map(|_| caller.grant(60).unwrap()).collect();
    let streams = Shape::Closed { in_flight: 8 };
    let tally = generator.run(streams, Until::Sent(200), &mut KeepAlives::new(leases)).unwrap();
    assert_eq!(tally.operations, 200, "every keepalive is answered on its stream");
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let bytes = caller.count(path::RANGE_STREAM, &all).unwrap();
    assert!(100 * (32 + 256) < bytes, "{bytes} bytes are less than all keys and values");
}

#[test]
fn watchers_see_every_event() {
    let server = server("watchers");
    let mut ledger = Ledger::new("w/", 10);
    let create = WatchCreateRequest {
        key: ledger.prefix().into(),
        range_end: ledger.range_end().into(),
        ..Default::default()
    };
    let spread = Spread { streams: 3, per_stream: 4 };
    let address = server.address();
    let ((), arrivals) = watching(address, spread, &create, Detail::Arrivals, |observer| {
        observer.wait_created(spread.watchers())?;
        let mut generator = Generator::connect(&[address], 1)?;
        generator.run(SHAPE, Until::Sent(50), &mut Puts { ledger: &mut ledger })?;
        observer.wait_events(50 * spread.watchers())
    })
    .unwrap();
    assert_eq!(arrivals.len(), 600, "50 puts, 12 watchers");
}
