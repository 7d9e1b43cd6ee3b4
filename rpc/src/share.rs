//! How much of its worker's time a connection takes, and so how it is served.
//!
//! ```text
//!   little   served as it comes, whole buffers at a time
//!   much     *greedy*: in portions of a fixed time, each behind all who take little
//! ```
//!
//! A hundred peers who always have something to read cannot all be served within a millisecond, whatever the order. But who
//! asks for little can be, if it goes before those who ask for much. These share what is left, and never less than a third.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// How long a reader may be at what it has read at a time.
const PORTION_MAX: Duration = Duration::from_micros(50);
/// 1 KiB at the least: with less, the system call takes longer than most of what it brings.
const PORTION_BYTES_MIN: usize = 1 << 10;
/// A stranger is read an eighth of a buffer at a time, until it is known how long that takes.
const HALVINGS_FIRST: u8 = 3;
const HALVINGS_MAX: u8 = 16;
/// Reads that took little after which who was greedy is not any more: the rest of a burst is often small.
const MODEST_READS: u8 = 8;
/// The same for a stranger: who connects again and again, to be closed for what it sends, never goes before those who are known.
const MODEST_READS_FIRST: u8 = 2;
/// A read of fewer bytes takes no time worth a look at the clock.
pub(crate) const SMALL_READ_BYTES: usize = 1 << 10;

/// One connection's share. Written by whoever serves it; an update that is lost is made up for by the next.
pub(crate) struct Share {
    /// How often the buffer is halved for a read.
    halvings: AtomicU8,
    /// How many reads must yet take little before it is not greedy.
    greed: AtomicU8,
}

impl Default for Share {
    fn default() -> Self {
        Self { halvings: AtomicU8::new(HALVINGS_FIRST), greed: AtomicU8::new(MODEST_READS_FIRST) }
    }
}

impl Share {
    /// Whether it is served behind those who are not.
    #[inline]
    pub(crate) fn is_greedy(&self) -> bool {
        self.greed.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn set_greedy(&self) {
        self.greed.store(MODEST_READS, Ordering::Relaxed);
    }

    /// How much of `buffer` the next read may fill.
    pub(crate) fn portion<'b>(&self, buffer: &'b mut [u8]) -> &'b mut [u8] {
        let bytes = (buffer.len() >> self.halvings.load(Ordering::Relaxed)).max(PORTION_BYTES_MIN);
        let end = bytes.min(buffer.len());
        &mut buffer[..end]
    }

    /// Notes how long it took to deal with a read of many bytes, which has filled its portion or not.
    pub(crate) fn note(&self, took: Duration, was_full: bool) {
        let halvings = self.halvings.load(Ordering::Relaxed);
        if took > PORTION_MAX {
            self.halvings.store((halvings + 1).min(HALVINGS_MAX), Ordering::Relaxed);
        } else if was_full && took < PORTION_MAX / 4 {
            self.halvings.store(halvings.saturating_sub(1), Ordering::Relaxed);
        }
        if took > PORTION_MAX / 2 {
            self.set_greedy();
        } else if !was_full && took < PORTION_MAX / 4 {
            self.note_small();
        }
    }

    /// Notes a read of few bytes, behind which there were no more.
    #[inline]
    pub(crate) fn note_small(&self) {
        let greed = self.greed.load(Ordering::Relaxed);
        if greed > 0 {
            self.greed.store(greed - 1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUFFER: usize = 64 << 10;

    fn after(share: &Share, took: Duration) -> usize {
        share.note(took, true);
        share.portion(&mut vec![0; BUFFER]).len()
    }

    #[test]
    fn a_reader_takes_less_while_it_takes_long_and_more_again_when_it_does_not() {
        let share = Share::default();
        assert_eq!([Duration::ZERO; 3].map(|took| after(&share, took)), [16 << 10, 32 << 10, BUFFER]);
        assert_eq!([PORTION_MAX * 10; 3].map(|took| after(&share, took)), [32 << 10, 16 << 10, 8 << 10]);
        assert_eq!(after(&share, PORTION_MAX), 8 << 10, "it is just right");
        assert_eq!(after(&share, PORTION_MAX / 5), 16 << 10);
        assert_eq!([PORTION_MAX * 10; 100].map(|took| after(&share, took))[99], PORTION_BYTES_MIN);
    }

    #[test]
    fn a_stranger_is_not_before_the_others() {
        let share = Share::default();
        (0..MODEST_READS_FIRST).for_each(|_| {
            assert!(share.is_greedy());
            share.note_small();
        });
        assert!(!share.is_greedy());
    }

    #[test]
    fn who_takes_long_is_greedy_until_it_has_asked_for_little_for_a_while() {
        let share = Share::default();
        (0..MODEST_READS_FIRST).for_each(|_| share.note_small());
        share.note(PORTION_MAX / 3, false);
        assert!(!share.is_greedy(), "it is in between");
        share.note(PORTION_MAX, true);
        share.note(PORTION_MAX / 5, true);
        (1..MODEST_READS).for_each(|_| share.note_small());
        assert!(share.is_greedy(), "one is not enough");
        share.note(PORTION_MAX / 5, false);
        assert!(!share.is_greedy());
    }
}
