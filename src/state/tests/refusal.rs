//! States that must not be served, and the quota, which each member judges by its own size.

use proto::etcdserverpb::{AlarmRequest, AlarmType, PutRequest, alarm_request::AlarmAction};

use super::member::{LOCAL, Member};
use crate::{
    model::{Command, Rejection, Request, RequestId},
    state::{Effect, Quota, RecoverError},
    storage::Table,
};

fn restart_with(table: Table, key: &[u8], value: &[u8]) -> RecoverError {
    let mut member = Member::new();
    member.tamper(table, key, value);
    let refused = member.try_restart().err();
    refused.expect("a state that must not be served was")
}

#[test]
fn data_with_authentication_on_is_not_served() {
    let refused = restart_with(Table::Auth, b"authEnabled", &[1]);
    assert!(matches!(refused, RecoverError::AuthEnabled), "{refused}");
    assert!(refused.to_string().contains("etcdctl auth disable"), "{refused}");
}

#[test]
fn users_that_are_stored_stay_as_they_are() {
    let mut member = Member::new();
    member.flush();
    for (table, key) in [(Table::AuthUsers, b"u"), (Table::AuthRoles, b"r")] {
        member.tamper(table, key, b"as it was");
    }
    member.tamper(Table::Auth, b"authRevision", &9_u64.to_be_bytes());
    let before = member.tables();
    let mut member = member.restart();
    assert_eq!(member.machine.publish().auth.revision, 9);
    assert_eq!(member.tables(), before);
}

#[test]
fn cluster_that_is_too_new_is_not_joined() {
    let refused = restart_with(Table::Cluster, b"clusterVersion", b"3.8.0");
    assert!(matches!(refused, RecoverError::ClusterTooNew(_)), "{refused}");
}

#[test]
fn damaged_tables_are_not_served() {
    let damaged = [
        (Table::Lease, &b"\0\0\0\0\0\0\0\x01"[..], &b"\xff"[..]),
        (Table::Alarm, b"\xff", b""),
        (Table::Members, b"not hexadecimal", b"{}"),
        (Table::Members, b"1", b"{"),
        (Table::Cluster, b"clusterVersion", b"three"),
        (Table::Cluster, b"downgrade", b"down"),
        (Table::Meta, b"confState", b"{\"voters\":7}"),
    ];
    for (table, key, value) in damaged {
        let refused = restart_with(table, key, value);
        assert!(!refused.to_string().is_empty(), "{table:?} {value:?}");
    }
}

#[test]
fn put_over_the_quota_is_applied_and_raises_an_alarm() {
    let mut member = Member::with_quota(Quota::from_flag(1));
    let put = PutRequest { key: "a".into(), ..PutRequest::default() };
    let applied = member.apply_command(&Command::new(RequestId(1), Request::Put(put)));
    assert_eq!(applied.outcome, Err(Rejection::NoSpace));
    assert_eq!(member.machine.publish().kv.keys(), 1, "other members may have room for it");
    let alarm = AlarmRequest {
        action: AlarmAction::Activate.into(),
        member_id: LOCAL.0,
        alarm: AlarmType::Nospace.into(),
    };
    assert_eq!(applied.effects, [Effect::Propose(Request::Alarm(alarm))]);
    let [Effect::Propose(alarm)] = &applied.effects[..] else { unreachable!("just compared") };
    assert!(member.apply(alarm.clone()).is_ok());

    // From now on it is refused everywhere, and the alarm is not raised again.
    let put = PutRequest { key: "b".into(), ..PutRequest::default() };
    let applied = member.apply_command(&Command::new(RequestId(2), Request::Put(put)));
    assert_eq!((applied.outcome, applied.effects), (Err(Rejection::NoSpace), vec![]));
    assert_eq!(member.machine.publish().kv.keys(), 1);
}
