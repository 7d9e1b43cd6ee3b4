//! A cheap hash for the ids of requests, which their peer chooses.

use std::hash::{BuildHasher, Hasher};

/// Hashes ids with a multiplier that the peer cannot know. No more is needed for a set that holds a thousand of them at
/// most, and it costs a fifth of SipHash.
#[derive(Clone)]
pub(crate) struct IdHash {
    multiplier: u64,
}

impl Default for IdHash {
    fn default() -> Self {
        let random = std::hash::RandomState::new().build_hasher().finish();
        Self { multiplier: random | 1 }
    }
}

impl BuildHasher for IdHash {
    type Hasher = IdHasher;

    fn build_hasher(&self) -> IdHasher {
        IdHasher { multiplier: self.multiplier, hash: 0 }
    }
}

pub(crate) struct IdHasher {
    multiplier: u64,
    hash: u64,
}

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.hash
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, id: u32) {
        let product = u128::from(self.hash ^ u64::from(id)) * u128::from(self.multiplier);
        self.hash = (product >> 64) as u64 ^ product as u64;
    }
}
