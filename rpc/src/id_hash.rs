//! A cheap hash: for the ids of requests, which their peer chooses, and for the names of methods, which it does not.

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

    /// Names that begin or end alike differ in a word.
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.write_u64(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.write_u64(u64::from_le_bytes(last));
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(u64::from(byte));
    }

    fn write_u32(&mut self, id: u32) {
        self.write_u64(u64::from(id));
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.hash ^ word) * u128::from(self.multiplier);
        self.hash = (product >> 64) as u64 ^ product as u64;
    }
}
