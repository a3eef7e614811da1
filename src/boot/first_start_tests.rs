//! Crashes of a first start: whatever is left, the next start makes of it what this one would have.

use std::{collections::BTreeMap, path::Path};

use proto::raftpb::{Entry, HardState};

use super::{
    first_start::{Beginning, begin, committed, finish, is_unfinished},
    open::{Log, StartError},
};
use crate::{
    base::{file::Disk, random::Random},
    cluster::Bootstrap,
    replica::restart::open_log,
    storage::wal::{Recovered, Wal, WalOptions, WalSnapshot},
};

/// Small enough to be filled at once, without a thread.
const SEGMENT_BYTES: u64 = 1 << 14;

fn founders(members: usize) -> Bootstrap {
    let member = |number| (format!("m{number}"), vec![format!("http://127.0.0.1:{number}")]);
    let urls: BTreeMap<_, _> = (1..=members).map(member).collect();
    Bootstrap::new(&urls, "token").expect("they can be told apart")
}

fn beginning(founded: &Bootstrap) -> Beginning {
    let member = founded.member_named("m1").expect("the first one").id;
    let entries = founded.entries();
    Beginning { member, cluster: founded.cluster, entries, peers: Vec::new() }
}

fn options(dir: &Path, disk: &Disk, zero_fill: bool) -> WalOptions {
    let usual = WalOptions::new(dir.join("wal"));
    WalOptions { zero_fill, segment_bytes: SEGMENT_BYTES, disk: disk.clone(), ..usual }
}

/// What a start makes of the directory: begins the log if there is none, or opens it.
fn start(options: &WalOptions, founded: &Bootstrap) -> Result<Recovered, StartError> {
    if !Wal::exists(&options.dir) {
        return Ok(begin(options, beginning(founded))?.0.recovered);
    }
    let opened = open_log(options, WalSnapshot::default(), Default::default());
    let (_wal, recovered) = opened.map_err(StartError::Wal)?;
    Ok(recovered)
}

/// Starts on a disk with this fault, cuts the power, and starts again. Whether the fault came.
fn crash(founded: &Bootstrap, zero_fill: bool, seed: u64, fault: impl Fn(&Disk)) -> bool {
    let dir = tempfile::TempDir::new().expect("a directory");
    let disk = Disk::faulty();
    fault(&disk);
    let first = start(&options(dir.path(), &disk, zero_fill), founded);
    disk.crash(&mut Random::from_seed(seed)).expect("the files can be changed back");
    let healthy = options(dir.path(), &disk.restarted(), zero_fill);
    let second = start(&healthy, founded).expect("a working disk");
    assert!(!is_unfinished(&second), "the member would never campaign");
    let third = start(&healthy, founded).expect("a working disk");
    for recovered in [&second, &third] {
        assert_eq!(recovered.entries, founded.entries(), "seed {seed}");
        assert_eq!(recovered.hard_state, committed(&recovered.entries), "seed {seed}");
        assert_eq!(recovered.cluster, founded.cluster, "seed {seed}");
    }
    first.is_err()
}

#[test]
fn a_founder_that_crashes_at_any_change_of_its_first_start_founds_the_same_cluster_again() {
    for (members, zero_fill) in [(1, true), (3, false)] {
        let founded = founders(members);
        let crashes = |fault: &dyn Fn(&Disk, u64)| {
            let last = (0..100).find(|number| {
                let crashed = |seed| crash(&founded, zero_fill, seed, |disk| fault(disk, *number));
                (0..3).filter(|seed| crashed(*seed)).count() == 0
            });
            last.expect("a first start has fewer changes")
        };
        let steps = crashes(&|disk, steps| disk.fail_after(steps));
        assert!(8 <= steps, "only {steps} changes were cut off");
        for short_bytes in [0, 512, 700, 1 << 20] {
            let writes = crashes(&|disk, writes| disk.fail_write_after(writes, short_bytes));
            assert!(0 < writes, "no write failed");
        }
        let syncs = crashes(&|disk, syncs| disk.fail_sync_after(syncs));
        assert!(0 < syncs, "no sync failed");
    }
}

#[test]
fn the_log_of_a_founder_that_official_etcd_left_unfinished_is_finished() {
    let founded = founders(3);
    for written in 0..=3 {
        let dir = tempfile::TempDir::new().expect("a directory");
        let options = options(dir.path(), &Disk::system(), false);
        let Beginning { member, cluster, .. } = beginning(&founded);
        let entries: Vec<Entry> = founded.entries().into_iter().take(written).collect();
        Wal::create_with(&options, member, cluster, &HardState::default(), &entries)
            .expect("an empty place");
        let opened = open_log(&options, WalSnapshot::default(), Default::default());
        let (wal, recovered) = opened.expect("a log");
        let mut log = Log { wal, recovered };
        assert!(is_unfinished(&log.recovered), "with {written} entries and no commit index");
        finish(&mut log, founded.entries()).expect("a working disk");
        let Log { wal, recovered } = log;
        drop(wal);
        let reopened = start(&options, &founded).expect("a log");
        assert_eq!(reopened, recovered, "what was finished is on the disk");
        assert_eq!(reopened.entries, founded.entries(), "after {written} entries");
        assert_eq!(reopened.hard_state.commit, Some(3), "after {written} entries");
    }
}
