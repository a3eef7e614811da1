//! What an operation costs as the store grows.
//!
//! Each size has keys of its own, put beside those of the sizes before; puts, gets, lists and
//! counts are measured over the newest.

use proto::etcdserverpb::RangeRequest;

use super::life::Life;
use crate::bench::{
    ledger::Ledger,
    load::{Shape, Until},
    path,
    requests::{Gets, Puts, Reading, Same},
    server::Side,
};

/// The row of this scenario.
const ROW: &str = "growth";
/// Official etcd is measured up to this size: a list at ten million keys takes it seconds.
const OFFICIAL_KEYS_MAX: u64 = 1_000_000;
/// Prefixes of the keys of each size.
const PREFIXES: [&str; 4] = ["g0/", "g1/", "g2/", "g3/"];

/// Measures the row.
pub(super) fn run(life: &mut Life<'_>) -> anyhow::Result<()> {
    for (prefix, &keys) in PREFIXES.iter().zip(life.plan.sizes) {
        if life.side() == Side::Official && OFFICIAL_KEYS_MAX < keys {
            return Ok(());
        }
        let mut ledger = Ledger::new(prefix, keys);
        let fill = Shape::Closed { in_flight: 256 };
        life.generator(256)?.run(fill, Until::Sent(keys), &mut Puts { ledger: &mut ledger })?;
        at_size(life, keys, &mut ledger)?;
    }
    Ok(())
}

fn at_size(life: &mut Life<'_>, keys: u64, ledger: &mut Ledger) -> anyhow::Result<()> {
    let shape = Shape::Closed { in_flight: 64 };
    life.load(ROW, &format!("{keys}.put."), shape, &mut Puts { ledger: &mut *ledger })?;
    let mut gets = Gets::new(ledger, Reading::Linearizable);
    life.load(ROW, &format!("{keys}.get."), shape, &mut gets)?;
    let all = RangeRequest {
        key: ledger.prefix().into(),
        range_end: ledger.range_end().into(),
        ..Default::default()
    };
    let alone = Shape::Closed { in_flight: 1 };
    let list = RangeRequest { limit: 500, ..all.clone() };
    let counting = RangeRequest { count_only: true, ..all };
    for (name, request) in [("list", list), ("count", counting)] {
        let mut same = Same::new(path::RANGE, &request);
        life.load(ROW, &format!("{keys}.{name}."), alone, &mut same)?;
    }
    Ok(())
}
