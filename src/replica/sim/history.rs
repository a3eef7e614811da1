//! Whether what clients saw can be explained by one order of operations.
//!
//! Decides linearizability of registers whose every written value is unique. With unique values no
//! search is needed: the operations on one value are its zone, and a history is linearizable if and
//! only if the zones fit (Gibbons and Korach, "Testing shared memories", 1997).
//!
//! ```text
//!   forward zone    the first end of an operation on the value is before the last start: between
//!                   the two the register must hold the value
//!   backward zone   all operations on the value overlap: it needs one moment in between
//!
//!   write a |---|      read a |--|          forward zone of a:   ...|[-------]|...
//!            read b |--| write b |--|                backward of b:   [---]   inside: a violation
//! ```

use std::collections::BTreeMap;

/// A register that was never written.
pub(super) const UNWRITTEN: u64 = 0;

/// What a client did, and when. Moments are unique, above 0, and in the order of real time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) key: u8,
    /// What was written or read.
    pub(super) value: u64,
    pub(super) kind: Kind,
    pub(super) start: u64,
    /// `u64::MAX` if the client never heard of the outcome.
    pub(super) end: u64,
}

/// What an operation does to its register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Write,
    Read,
}

/// The operations on one value of one register.
#[derive(Debug)]
struct Zone {
    write: Operation,
    /// The first end and the last start.
    first_end: u64,
    last_start: u64,
    is_read: bool,
}

impl Zone {
    fn of(write: Operation) -> Self {
        let Operation { start, end, .. } = write;
        Self { write, first_end: end, last_start: start, is_read: false }
    }

    /// A write of unknown outcome that nobody saw may not have happened.
    const fn may_be_left_out(&self) -> bool {
        self.write.end == u64::MAX && !self.is_read
    }

    const fn is_forward(&self) -> bool {
        self.first_end < self.last_start
    }
}

/// Finds an operation that no order explains.
pub(super) fn check(history: &[Operation]) -> Result<(), String> {
    let mut registers: BTreeMap<u8, Vec<Operation>> = BTreeMap::new();
    for operation in history {
        registers.entry(operation.key).or_default().push(*operation);
    }
    registers.values().try_for_each(|operations| check_register(operations))
}

fn check_register(operations: &[Operation]) -> Result<(), String> {
    let zones = zones(operations)?;
    let (mut forward, backward): (Vec<_>, Vec<_>) =
        zones.into_values().filter(|zone| !zone.may_be_left_out()).partition(Zone::is_forward);
    forward.sort_unstable_by_key(|zone| zone.first_end);
    for pair in forward.windows(2) {
        if pair[1].first_end < pair[0].last_start {
            return Err(format!("two values at once: {:?} and {:?}", pair[0], pair[1]));
        }
    }
    for zone in backward {
        // The forward zones are disjoint and in order: one may hold the moment.
        let after = forward.partition_point(|other| other.first_end < zone.last_start);
        let Some(around) = after.checked_sub(1).map(|index| &forward[index]) else { continue };
        if zone.first_end < around.last_start {
            return Err(format!("no moment for {zone:?} while the value is that of {around:?}"));
        }
    }
    Ok(())
}

fn zones(operations: &[Operation]) -> Result<BTreeMap<u64, Zone>, String> {
    let key = operations.first().map_or(0, |operation| operation.key);
    let unwritten = Operation { key, value: UNWRITTEN, kind: Kind::Write, start: 0, end: 0 };
    let mut zones = BTreeMap::from([(UNWRITTEN, Zone::of(unwritten))]);
    for write in operations.iter().filter(|operation| operation.kind == Kind::Write) {
        let replaced = zones.insert(write.value, Zone::of(*write));
        assert!(replaced.is_none(), "{write:?}: the value was written before");
    }
    for read in operations.iter().filter(|operation| operation.kind == Kind::Read) {
        let Some(zone) = zones.get_mut(&read.value) else {
            return Err(format!("{read:?}: nobody wrote that"));
        };
        if read.end < zone.write.start {
            return Err(format!("{read:?}: before {:?}", zone.write));
        }
        zone.is_read = true;
        zone.first_end = zone.first_end.min(read.end);
        zone.last_start = zone.last_start.max(read.start);
    }
    Ok(zones)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn write(value: u64, start: u64, end: u64) -> Operation {
        Operation { key: 1, value, kind: Kind::Write, start, end }
    }

    const fn read(value: u64, start: u64, end: u64) -> Operation {
        Operation { key: 1, value, kind: Kind::Read, start, end }
    }

    const NEVER: u64 = u64::MAX;

    #[test]
    fn overlapping_operations_may_take_effect_in_any_order() {
        let histories = [
            vec![],
            vec![write(1, 1, 10), write(2, 2, 9), read(2, 11, 12)],
            vec![write(1, 1, 10), read(0, 2, 3), read(1, 4, 5)],
            vec![write(1, 1, NEVER), read(0, 2, 3), read(1, 8, 9)],
            vec![write(1, 1, NEVER), write(2, 2, 3), read(2, 4, 5), read(1, 8, 9)],
        ];
        for history in histories {
            assert_eq!(check(&history), Ok(()), "{history:?}");
        }
    }

    #[test]
    fn stale_lost_and_invented_values_are_found() {
        let histories = [
            vec![write(1, 1, 2), read(0, 3, 4)],
            vec![write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)],
            vec![write(1, 1, 6), read(1, 2, 3), read(0, 4, 5)],
            vec![write(1, 1, 2), write(2, 3, NEVER), read(2, 4, 5), read(1, 6, 7)],
            vec![read(7, 1, 2)],
            vec![read(7, 1, 2), write(7, 3, 4)],
            vec![write(1, 1, 2), write(2, 3, 4), read(2, 5, 6), read(1, 7, 8), read(2, 9, 10)],
        ];
        for history in histories {
            assert!(check(&history).is_err(), "{history:?}");
        }
    }

    /// Tries every order.
    fn search(rest: &[Operation], value: u64) -> bool {
        if rest.iter().all(|operation| operation.end == NEVER) {
            return true;
        }
        let first_end = rest.iter().map(|operation| operation.end).min().unwrap();
        (0..rest.len()).any(|position| {
            let next = rest[position];
            if first_end < next.start || (next.kind == Kind::Read && next.value != value) {
                return false;
            }
            let mut others = rest.to_vec();
            others.remove(position);
            search(&others, next.value)
        })
    }

    fn histories() -> impl Strategy<Value = Vec<Operation>> {
        let operation = (any::<bool>(), 0..4_u64, 0..40_u64, 0..12_u64, 0..6_u64);
        prop::collection::vec(operation, 0..7).prop_map(|drawn| {
            let mut history = Vec::new();
            for (number, (writes, value, start, length, lost)) in (0..).zip(drawn) {
                // Unique moments: the number of the operation makes the difference.
                let (start, end) = (start * 20 + number * 2 + 1, (start + length) * 20 + 15);
                let end = end.max(start) + number * 2;
                history.push(match writes {
                    true if lost == 0 => write(number + 1, start, NEVER),
                    true => write(number + 1, start, end),
                    false => read(value, start, end),
                });
            }
            history
        })
    }

    proptest! {
        #[test]
        fn verdict_is_that_of_a_search_through_all_orders(history in histories()) {
            prop_assert_eq!(check(&history).is_ok(), search(&history, UNWRITTEN));
        }
    }
}
