//! The same random histories on both servers: every answer equal, and every hash.

use std::env;

use oxetcd_compat_tests::{
    random::Generator,
    script::{Call, Client},
    server::Server,
    transcript::assert_equal,
};
use proto::etcdserverpb::{HashKvRequest, RangeRequest};

/// How many requests a history has, unless `OXETCD_HISTORY_CALLS` says otherwise.
const CALLS: usize = 3_000;

fn number(name: &str, default: usize) -> usize {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The current revision, read from a header in a transcript line.
fn revision_in(line: &str) -> Option<i64> {
    let rest = line.split("header: Some(ResponseHeader").nth(1)?;
    let digits = rest.split("revision: ").nth(1)?;
    digits.split([',', ' ']).next()?.parse().ok()
}

async fn compare_histories(seed: u64, keys: u64) -> anyhow::Result<()> {
    let Some((mut official, mut ours)) = Server::start_both(&[])? else { return Ok(()) };
    let mut clients = (Client::connect(&official).await?, Client::connect(&ours).await?);
    let mut generator = Generator::new(seed, keys);
    let mut last_revision = 1;
    for step in 0..number("OXETCD_HISTORY_CALLS", CALLS) {
        let call = generator.call();
        let text = format!("seed {seed} step {step}: {call:?}");
        let expected = clients.0.call(call.clone()).await;
        let found = clients.1.call(call).await;
        assert_equal(&[text], std::slice::from_ref(&expected), &[found]);
        if let Some(revision) = revision_in(&expected) {
            generator.seen(revision);
            last_revision = last_revision.max(revision);
        }
    }
    compare_hashes(&mut clients, last_revision).await;
    official.terminate()?;
    ours.kill();
    official.resume()?;
    ours.resume()?;
    let mut clients = (Client::connect(&official).await?, Client::connect(&ours).await?);
    compare_hashes(&mut clients, last_revision).await;
    Ok(())
}

/// Hashes at 20 revisions spread over what is left of the history, and everything at the head.
async fn compare_hashes(clients: &mut (Client, Client), last_revision: i64) {
    let mut calls = vec![Call::Range(RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        ..Default::default()
    })];
    let stride = (last_revision / 20).max(1);
    calls.extend(
        (0..20)
            .map(|step| last_revision - step * stride)
            .filter(|revision| 0 < *revision)
            .map(|revision| Call::HashKv(HashKvRequest { revision })),
    );
    for call in calls {
        let text = format!("{call:?}");
        let expected = clients.0.call(call.clone()).await;
        let found = clients.1.call(call).await;
        assert_equal(&[text], &[expected], &[found]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_over_few_keys_are_answered_alike() {
    let seed = number("OXETCD_SEED", 1) as u64;
    compare_histories(seed, 12).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_over_many_keys_are_answered_alike() {
    let seed = number("OXETCD_SEED", 2) as u64;
    compare_histories(seed, 2_000).await.unwrap();
}
