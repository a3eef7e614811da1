//! The keys and values of a run, and what must be found afterwards.
//!
//! Decides which key a put with a given number writes and what its value is, so that both servers
//! get the same sequence and the answer to "is it there?" needs no copy of the data. A key is
//! written again only after all others were, so two puts of one key are never in flight together
//! and the last one sent is the one to be found.
//!
//! Invariants
//! - L1 Put `n` of a key space of `k` writes key `n * STRIDE mod k`: every key once per `k` puts.

use std::ops::RangeInclusive;

use anyhow::{Context, ensure};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes of a value.
pub const VALUE_BYTES: usize = 256;

/// A prime far from any size of a key space, so that neighbours in time are far apart in key order.
const STRIDE: u64 = 2_654_435_761;

/// Digits of the number that ends a key, and of the one that begins a value.
const DIGITS: usize = 12;

/// What stands in a value behind its number: letters that do not compress to nothing, from a
/// fixed seed.
fn filler() -> [u8; VALUE_BYTES] {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    [0; VALUE_BYTES].map(|_: u8| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        b'a' + u8::try_from(state >> 59).expect("five bits") % 26
    })
}

/// The puts of one run.
#[derive(Clone, Debug)]
pub struct Ledger {
    prefix: &'static str,
    keys: u64,
    /// How many puts were sent.
    sent: u64,
    filler: [u8; VALUE_BYTES],
}

impl Ledger {
    /// Puts over `keys` keys that begin with `prefix`.
    #[must_use]
    pub fn new(prefix: &'static str, keys: u64) -> Self {
        assert!(prefix.len() <= KEY_BYTES - DIGITS, "{prefix} leaves no room for a number");
        assert!(!keys.is_multiple_of(STRIDE), "L1 needs a key space without the stride");
        Self { prefix, keys, sent: 0, filler: filler() }
    }

    /// The key that has this place in key order.
    #[must_use]
    pub fn key(&self, place: u64) -> [u8; KEY_BYTES] {
        let mut key = [b'-'; KEY_BYTES];
        key[..self.prefix.len()].copy_from_slice(self.prefix.as_bytes());
        write_number(place, &mut key[KEY_BYTES - DIGITS..]);
        key
    }

    /// The first key behind all of them.
    #[must_use]
    pub fn range_end(&self) -> Vec<u8> {
        let mut end = self.prefix.as_bytes().to_vec();
        let last = end.last_mut().expect("a prefix is not empty");
        *last += 1;
        end
    }

    /// The prefix of all keys, which is also where their range begins.
    #[must_use]
    pub const fn prefix(&self) -> &'static str {
        self.prefix
    }

    /// The value of put number `number`.
    #[must_use]
    pub fn value(&self, number: u64) -> [u8; VALUE_BYTES] {
        let mut value = self.filler;
        write_number(number, &mut value[..DIGITS]);
        value
    }

    /// Takes the next put: its key and value.
    pub fn next_put(&mut self) -> ([u8; KEY_BYTES], [u8; VALUE_BYTES]) {
        let number = self.sent;
        self.sent += 1;
        (self.key(self.place_of(number)), self.value(number))
    }

    /// The place of the key that the next put writes.
    #[must_use]
    pub fn next_place(&self) -> usize {
        usize::try_from(self.place_of(self.sent)).expect("a key space fits in memory")
    }

    /// Which key put `number` writes (L1).
    fn place_of(&self, number: u64) -> u64 {
        let product = u128::from(number) * u128::from(STRIDE) % u128::from(self.keys);
        u64::try_from(product).expect("below the key space")
    }

    /// How many puts were sent.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    /// How many keys must exist.
    #[must_use]
    pub fn keys_written(&self) -> u64 {
        self.sent.min(self.keys)
    }

    /// How large the key space is.
    #[must_use]
    pub const fn keys(&self) -> u64 {
        self.keys
    }

    /// One of the keys that exist, picked by `pick`.
    #[must_use]
    pub fn written_key(&self, pick: u64) -> [u8; KEY_BYTES] {
        assert!(0 < self.sent, "nothing was written");
        let written = self.keys_written();
        self.key(self.place_of(self.sent - written + pick % written))
    }

    /// A sample of `count` puts whose values must be found: number and key of each.
    #[must_use]
    pub fn sample(&self, count: u64) -> Vec<(u64, [u8; KEY_BYTES])> {
        let written = self.keys_written();
        let count = count.min(written);
        // The last `written` puts are those that nothing overwrote.
        let oldest = self.sent - written;
        (0..count)
            .map(|at| oldest + at * written / count)
            .map(|number| (number, self.key(self.place_of(number))))
            .collect()
    }
}

/// Writes `number` with leading zeros over all of `digits`.
fn write_number(mut number: u64, digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).expect("one digit");
        number /= 10;
    }
    assert!(number == 0, "a number of more than {DIGITS} digits");
}

/// What a server says it holds.
#[derive(Clone, Debug)]
pub struct Found {
    /// The revision of the store.
    pub revision: i64,
    /// Keys with the ledger's prefix.
    pub count: i64,
    /// Values of the sample, in its order; `None` where there is no such key.
    pub values: Vec<Option<Vec<u8>>>,
}

/// Compares what a server holds with the ledger. Its revision must be in `revisions`: more than one
/// is right only where some writes were not acknowledged.
///
/// # Errors
/// If a write is missing, with a sentence that says which.
pub fn check(
    ledger: &Ledger,
    sample: &[(u64, [u8; KEY_BYTES])],
    revisions: &RangeInclusive<i64>,
    found: &Found,
) -> anyhow::Result<()> {
    let keys = i64::try_from(ledger.keys_written()).context("a count of keys")?;
    ensure!(found.count == keys, "{} keys were found of {keys}", found.count);
    ensure!(
        revisions.contains(&found.revision),
        "the store is at revision {}, and {revisions:?} follows from the acknowledged writes",
        found.revision
    );
    for ((number, key), value) in sample.iter().zip(&found.values) {
        let key = String::from_utf8_lossy(key);
        let value = value.as_deref().with_context(|| format!("{key} is lost"))?;
        let wanted = ledger.value(*number);
        ensure!(value == wanted, "{key} does not hold the value of put {number}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{Found, Ledger, check};

    fn found(ledger: &Ledger, store: &HashMap<Vec<u8>, Vec<u8>>, revision: i64) -> Found {
        let sample = ledger.sample(50);
        let values = sample.iter().map(|(_, key)| store.get(&key[..]).cloned()).collect();
        Found { revision, count: i64::try_from(store.len()).unwrap(), values }
    }

    fn filled(ledger: &mut Ledger, puts: u64) -> HashMap<Vec<u8>, Vec<u8>> {
        let puts = (0..puts).map(|_| ledger.next_put());
        puts.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    }

    #[test]
    fn every_key_is_written_once_before_any_is_written_twice() {
        for keys in [1, 7, 1000, 1024] {
            let mut ledger = Ledger::new("a/", keys);
            assert_eq!(filled(&mut ledger, keys).len() as u64, keys, "of {keys} keys");
        }
    }

    #[test]
    fn store_with_all_writes_passes_and_one_without_does_not() {
        for puts in [30, 100, 250] {
            let mut ledger = Ledger::new("a/", 100);
            let store = filled(&mut ledger, puts);
            let sample = ledger.sample(50);
            let revision = i64::try_from(puts).unwrap();
            check(&ledger, &sample, &(revision..=revision), &found(&ledger, &store, revision))
                .unwrap();
            let behind = found(&ledger, &store, revision - 1);
            assert!(
                check(&ledger, &sample, &(revision..=revision), &behind).is_err(),
                "a revision is missing"
            );

            let mut without = store.clone();
            without.remove(&sample[3].1[..]).unwrap();
            let lost = found(&ledger, &without, revision);
            assert!(
                check(&ledger, &sample, &(revision..=revision), &lost).is_err(),
                "a key is missing"
            );

            let mut stale = store.clone();
            stale.insert(sample[3].1.to_vec(), ledger.value(u64::MAX % 999).to_vec());
            let lost = found(&ledger, &stale, revision);
            assert!(
                check(&ledger, &sample, &(revision..=revision), &lost).is_err(),
                "a value is an old one"
            );
        }
    }
}
