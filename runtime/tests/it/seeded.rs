//! Tests by chance that can be repeated: each round has a seed, which a failure prints.

use std::hash::{BuildHasher, Hasher};

/// Repeats the one round that has this seed.
const SEED: &str = "DHAGA_SEED";

/// Runs `round` so many times, each with dice of its own; with the environment variable `DHAGA_SEED` once, with that seed.
/// What the threads of a round do to each other is not in the seed, so try a few times.
pub fn rounds(count: u64, mut round: impl FnMut(Dice)) {
    if let Ok(seed) = std::env::var(SEED) {
        return round(Dice(seed.parse().expect("DHAGA_SEED is a number")));
    }
    let first = std::hash::RandomState::new().build_hasher().finish();
    for seed in (0..count).map(|index| first.wrapping_add(index)) {
        let named = Named(seed);
        round(Dice(seed));
        std::mem::forget(named);
    }
}

/// Names the seed of a round that fails.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        eprintln!("repeat this round with {SEED}={}", self.0);
    }
}

/// A source of chance: splitmix64, whose seeds may be consecutive.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    /// Dice for somebody else, whose rolls do not depend on when they are made.
    pub fn split(&mut self) -> Self {
        Self(self.roll())
    }
}
