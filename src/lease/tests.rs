//! Behaviour of leases across both halves, with time as a number.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::{
    LeaseKeys, LeaseSettings, LeaseTable, Persist, Renewal, TTL_SECONDS_MAX, TimeToLive,
    ttl_seconds_min,
};
use crate::model::{LeaseId, Rejection};

const RETRY: Duration = Duration::from_secs(3);
const ONE: LeaseId = LeaseId(1);

fn settings() -> LeaseSettings {
    LeaseSettings {
        ttl_seconds_min: 2,
        checkpoints: false,
        checkpoints_persist: false,
        revoke_retry: RETRY,
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn leading() -> LeaseTable {
    let table = LeaseTable::new(settings());
    table.lessor().promote(at(0), at(0));
    table
}

fn granted(ttl_seconds: i64) -> LeaseTable {
    let mut table = leading();
    table.grant(ONE, ttl_seconds, at(0), &mut Vec::new()).expect("a new lease");
    table
}

fn remaining(table: &LeaseTable, now: Duration) -> TimeToLive {
    table.lessor().time_to_live(ONE, LeaseKeys::Omitted, now)
}

fn left(remaining_seconds: i64, granted_seconds: i64) -> TimeToLive {
    TimeToLive::Live { remaining_seconds, granted_seconds, keys: Vec::new() }
}

struct Ignore;
impl Wake for Ignore {
    fn wake(self: Arc<Self>) {}
}

fn poll(waiting: &mut (impl Future<Output = ()> + Unpin)) -> Poll<()> {
    pin!(waiting).poll(&mut Context::from_waker(&Waker::from(Arc::new(Ignore))))
}

#[test]
fn shortest_ttl_is_one_and_a_half_elections() {
    assert_eq!(ttl_seconds_min(Duration::from_millis(100), 10), 2);
    assert_eq!(ttl_seconds_min(Duration::from_millis(500), 10), 8);
    assert_eq!(ttl_seconds_min(Duration::from_millis(100), 20), 3);
}

#[test]
fn grant_raises_a_short_ttl_and_refuses_what_etcd_refuses() {
    let mut table = granted(-5);
    assert_eq!(remaining(&table, at(0)), left(2, 2));
    let mut grant = |id, ttl| table.grant(LeaseId(id), ttl, at(0), &mut Vec::new());
    assert_eq!(grant(1, 5), Err(Rejection::LeaseExists { lease: ONE }));
    assert_eq!(grant(0, 5), Err(Rejection::LeaseNotFound { lease: LeaseId(0) }));
    let ttl_seconds = TTL_SECONDS_MAX + 1;
    assert_eq!(grant(2, ttl_seconds), Err(Rejection::TtlTooLarge { ttl_seconds }));
    assert_eq!(grant(-2, TTL_SECONDS_MAX), Ok(TTL_SECONDS_MAX), "negative ids are the client's");
}

#[test]
fn renewal_gives_the_full_time_again() {
    let table = granted(10);
    assert_eq!(remaining(&table, Duration::from_millis(500)), left(9, 10));
    let renewal = table.lessor().renew(ONE, at(9));
    assert!(matches!(renewal, Renewal::Renewed { ttl_seconds: 10 }), "{renewal:?}");
    assert_eq!(remaining(&table, at(9)), left(10, 10));
    assert_eq!(table.lessor().expired(at(18), 10), []);
    assert_eq!(table.lessor().expired(at(19), 10), [ONE]);
}

#[test]
fn expired_lease_is_offered_again_until_it_is_revoked() {
    let mut table = granted(10);
    assert_eq!(table.lessor().next_expiry(), Some(at(10)));
    assert_eq!(table.lessor().expired(at(10), 10), [ONE]);
    assert_eq!(table.lessor().expired(at(12), 10), []);
    assert_eq!(table.lessor().expired(at(13), 10), [ONE]);
    table.revoke(ONE, &mut Vec::new()).expect("live");
    assert_eq!(table.lessor().expired(at(99), 10), []);
    assert_eq!(table.lessor().scheduled(), 0, "an ended lease stayed scheduled");
}

#[test]
fn renewal_of_an_expired_lease_waits_for_its_end() {
    let mut table = granted(10);
    let Renewal::Expired(mut waiting) = table.lessor().renew(ONE, at(10)) else {
        panic!("a lease was renewed at its deadline");
    };
    assert_eq!(poll(&mut waiting), Poll::Pending);
    table.revoke(ONE, &mut Vec::new()).expect("live");
    assert_eq!(poll(&mut waiting), Poll::Ready(()));
    assert!(matches!(table.lessor().renew(ONE, at(10)), Renewal::NotFound));
}

#[test]
fn renewal_of_an_expired_lease_ends_its_wait_when_leadership_goes() {
    let table = granted(10);
    assert_eq!(table.lessor().expired(at(10), 10), [ONE]);
    // Even a caller whose reading of the clock is older does not get it back.
    let Renewal::Expired(mut waiting) = table.lessor().renew(ONE, at(5)) else {
        panic!("a lease was renewed after it had been handed out as expired");
    };
    table.lessor().demote();
    assert_eq!(poll(&mut waiting), Poll::Ready(()));
    assert!(matches!(table.lessor().renew(ONE, at(10)), Renewal::NotPrimary));
    assert_eq!(remaining(&table, at(10)), TimeToLive::NotPrimary);
}

#[test]
fn new_leader_extends_every_lease_and_shortens_none() {
    let table = granted(10);
    table.lessor().demote();
    assert_eq!(table.lessor().expired(at(99), 10), []);
    table.lessor().promote(at(100), at(1));
    assert_eq!(remaining(&table, at(100)), left(11, 10));
    assert_eq!(table.lessor().expired(at(110), 10), []);
    assert_eq!(table.lessor().expired(at(111), 10), [ONE]);
}

#[test]
fn leases_are_listed_by_time_left_and_all_of_a_crowd_expires_at_once() {
    let mut table = leading();
    for id in 0..3000 {
        let ttl = 3000 - id;
        table.grant(LeaseId(id + 1), ttl, at(0), &mut Vec::new()).expect("new");
    }
    let order = table.lessor().leases();
    assert_eq!((order[0], order[2999]), (LeaseId(2999), ONE), "the minimum TTL makes a tie");
    assert_eq!(table.lessor().expired(at(3000), 5000).len(), 3000);
}

#[test]
fn checkpointed_time_is_what_a_new_leader_starts_from() {
    let checkpoints = LeaseSettings { checkpoints: true, ..settings() };
    let mut table = LeaseTable::new(checkpoints);
    table.lessor().promote(at(0), at(0));
    let mut writes = Vec::new();
    table.grant(ONE, 1000, at(0), &mut writes).expect("new");
    assert_eq!(table.lessor().due_checkpoints(at(299), 10), []);
    let due = table.lessor().due_checkpoints(at(300), 10);
    assert_eq!((due.len(), due[0].id, due[0].remaining_ttl), (1, 1, 700));

    table.checkpoint(ONE, 700, at(300), Persist::Yes, &mut writes);
    assert!(matches!(table.lessor().renew(ONE, at(301)), Renewal::CheckpointFirst));
    let mut restarted = LeaseTable::new(checkpoints);
    let stored = writes.last().expect("two writes");
    restarted.restore(&stored.key, stored.value.as_ref().expect("a lease")).expect("own bytes");
    restarted.lessor().promote(at(0), at(1));
    assert_eq!(remaining(&restarted, at(0)), left(701, 1000));

    table.checkpoint(ONE, 0, at(301), Persist::No, &mut writes);
    assert_eq!(writes.len(), 2, "a checkpoint of an old cluster was stored");
    assert!(matches!(table.lessor().renew(ONE, at(301)), Renewal::Renewed { .. }));
    assert_eq!(table.lessor().due_checkpoints(at(600), 10).len(), 1, "one plan per lease");
}

#[test]
fn revoking_early_does_not_let_the_schedule_grow() {
    let mut table = leading();
    for _ in 0..10_000 {
        table.grant(ONE, 1000, at(0), &mut Vec::new()).expect("new");
        table.revoke(ONE, &mut Vec::new()).expect("live");
    }
    let scheduled = table.lessor().scheduled();
    assert!(scheduled <= 1100, "{scheduled} ended leases are scheduled");
}

#[derive(Clone, Debug)]
enum Step {
    Grant(i64),
    Revoke(i64),
    Attach(u8, i64),
    Detach(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0_i64..4).prop_map(Step::Grant),
        (0_i64..4).prop_map(Step::Revoke),
        (any::<u8>(), 0_i64..4).prop_map(|(key, lease)| Step::Attach(key % 4, lease)),
        any::<u8>().prop_map(|key| Step::Detach(key % 4)),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    #[test]
    fn table_agrees_with_a_plain_map(steps in steps()) {
        let mut table = leading();
        let mut writes = Vec::new();
        let mut model: BTreeMap<i64, std::collections::BTreeSet<u8>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Grant(id) => {
                    let ok = table.grant(LeaseId(id), 5, at(0), &mut writes).is_ok();
                    prop_assert_eq!(ok, id != 0 && !model.contains_key(&id));
                    if ok {
                        model.insert(id, Default::default());
                    }
                }
                Step::Revoke(id) => {
                    let keys = table.revoke(LeaseId(id), &mut writes).ok();
                    let keys = keys.map(|keys| keys.iter().map(|key| key[0]).collect::<Vec<_>>());
                    let expected = model.remove(&id).map(|keys| keys.into_iter().collect());
                    prop_assert_eq!(keys, expected);
                }
                Step::Attach(key, id) => {
                    let ok = table.attach(&[key], LeaseId(id)).is_ok();
                    prop_assert_eq!(ok, id == 0 || model.contains_key(&id));
                    if ok {
                        model.values_mut().for_each(|keys| { keys.remove(&key); });
                        model.entry(id).and_modify(|keys| { keys.insert(key); });
                    }
                }
                Step::Detach(key) => {
                    table.detach(&[key]);
                    model.values_mut().for_each(|keys| { keys.remove(&key); });
                }
            }
            for (id, keys) in &model {
                prop_assert_eq!(table.lessor().keys(LeaseId(*id)).len(), keys.len());
                for key in keys {
                    prop_assert_eq!(table.lease_of(&[*key]), LeaseId(*id));
                }
            }
            prop_assert!(table.lessor().len() == model.len());
        }
    }
}
