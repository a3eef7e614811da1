//! Randomness as a value that is handed in.
//!
//! Decides where random numbers come from: a seed, which is printed wherever it matters, so that
//! a run can be repeated. Not for secrets.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A small, fast generator (`SplitMix64`).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    #[must_use]
    pub const fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// A seed from the operating system.
    #[must_use]
    pub fn from_system() -> Self {
        Self(RandomState::new().build_hasher().finish())
    }

    /// Any 64 bits.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which must be positive.
    pub const fn below(&mut self, bound: u64) -> u64 {
        assert!(0 < bound, "no number is below zero");
        self.next() % bound
    }
}
