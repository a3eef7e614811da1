//! Members come, go, crash and hand over while somebody writes; nothing acknowledged is lost, and
//! all members hold the same.
#![expect(clippy::unwrap_used, reason = "a failed step of a test ends it")]
#![expect(clippy::disallowed_methods, reason = "servers under test run on real time")]

use std::{
    env,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use oxetcd_compat_tests::{
    group::{Group, ctl, until},
    server::Kind,
};

/// How many things happen.
const ROUNDS: usize = 12;

/// Members at most.
const MEMBERS_MAX: usize = 5;

/// A small generator: the seed is printed, and `OXETCD_SEED` sets it.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = env::var("OXETCD_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
        #[expect(clippy::print_stderr, reason = "whoever reads a failed test needs the seed")]
        {
            eprintln!("OXETCD_SEED={seed}");
        }
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }

    fn kind(&mut self) -> Kind {
        if self.below(3) == 0 { Kind::Official } else { Kind::Oxetcd }
    }
}

/// Writes numbered keys until it is told to stop; the acknowledged ones.
fn write(endpoints: &Mutex<String>, stop: &AtomicBool) -> Vec<usize> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let at = endpoints.lock().unwrap().clone();
        let put = ["put", &format!("key{number}"), &number.to_string(), "--command-timeout=2s"];
        if ctl(&at, &put).is_ok_and(|output| output.status.success()) {
            acknowledged.push(number);
        }
    }
    acknowledged
}

fn happen(group: &mut Group, dice: &mut Dice) {
    let position = dice.below(group.members().len());
    match dice.below(5) {
        0 => {
            group.member(position).kill();
            group.resume().unwrap();
        }
        1 => {
            group.member(position).terminate().unwrap();
            group.resume().unwrap();
        }
        2 if group.members().len() < MEMBERS_MAX => {
            let kind = dice.kind();
            group.add(kind, &[]).unwrap();
            group.resume().unwrap();
        }
        3 if group.members().len() < MEMBERS_MAX => {
            let kind = dice.kind();
            let added = group.add(kind, &["--learner"]).unwrap();
            group.resume().unwrap();
            let id = format!("{:x}", group.status(added).unwrap().member);
            until("the learner is promoted", || {
                group.ctl_at(0, &["member", "promote", &id]).map(|_| true)
            })
            .unwrap();
        }
        4 if 3 < group.members().len() => {
            let id = format!("{:x}", group.status(position).unwrap().member);
            let other = (position + 1) % group.members().len();
            until("a member is removed", || {
                group.ctl_at(other, &["member", "remove", &id]).map(|_| true)
            })
            .unwrap();
            drop(group.forget(position));
        }
        _ => {
            let leader = group.leader().unwrap();
            let next = format!("{:x}", group.status(position).unwrap().member);
            if leader != position {
                group.ctl_at(leader, &["move-leader", &next]).unwrap();
            }
        }
    }
}

#[test]
fn nothing_is_lost_while_members_come_and_go() {
    let mut dice = Dice::new();
    let kinds = [Kind::Oxetcd, dice.kind(), Kind::Oxetcd];
    let flags = ["--snapshot-count=200", "--snapshot-catchup-entries=50"];
    let Some(mut group) = Group::start(&kinds, &flags).unwrap() else { return };
    let endpoints = Arc::new(Mutex::new(group.endpoints()));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (endpoints, stop) = (Arc::clone(&endpoints), Arc::clone(&stop));
        thread::spawn(move || write(&endpoints, &stop))
    };
    for _ in 0..ROUNDS {
        happen(&mut group, &mut dice);
        *endpoints.lock().unwrap() = group.endpoints();
    }
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writer.join().unwrap();
    assert!(20 < acknowledged.len(), "only {} writes got through", acknowledged.len());
    group.agree().unwrap();
    let all = group.ctl(&["get", "key", "--prefix"]).unwrap();
    let lines: Vec<_> = all.lines().collect();
    for number in acknowledged {
        let key = format!("key{number}");
        let at = lines.chunks(2).find(|pair| pair[0] == key);
        let value = at.map(|pair| pair[1].to_owned());
        assert_eq!(value, Some(number.to_string()), "{key} was acknowledged");
    }
}
