//! How long ready dhagas run before the worker looks at anything else.

use std::time::{Duration, Instant};

use super::now;

/// How long ready dhagas run before timers and sockets are looked at again: long against a switch (nanoseconds) and a
/// poll (about a microsecond), short against what a network client notices.
const BATCH_MAX: Duration = Duration::from_micros(100);
/// Resumes between two looks at the clock at most. A look costs as much as a few switches; every 32nd is 1 ns for each.
const RESUMES_PER_LOOK_MAX: u32 = 32;
/// Time between two looks that a batch aims at: a quarter of what it may last.
const LOOK_NANOS: u64 = BATCH_MAX.as_nanos() as u64 / 4;

/// At this pace and above, dhagas do little before they wait: those of one connection run in a row.
const PACE_QUICK: u32 = RESUMES_PER_LOOK_MAX / 2;

/// How a batch has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// All have run, or those who have were slow.
    AllRan,
    /// The clock came between dhagas that do little.
    Amid,
}

/// How long a batch has run. Looks at the clock often where a single dhaga may use up the whole time, and rarely where
/// a look would cost more than the resume before it.
pub(super) struct Batch {
    looked: Instant,
    /// Up to the last look.
    ran_nanos: u64,
    /// Resumes between two looks.
    pub(super) pace: u32,
    until_look: u32,
}

impl Batch {
    pub(super) fn new(pace: u32, now: Instant) -> Self {
        Self { looked: now, ran_nanos: 0, pace, until_look: pace }
    }

    /// Counts one resume, and says whether the time is over.
    #[inline(always)]
    pub(super) fn is_over(&mut self) -> bool {
        self.until_look -= 1;
        self.until_look == 0 && self.look(now())
    }

    /// How it has ended, if the next ones go on where it was ended by the clock.
    pub(super) fn cut_short(&self) -> Ended {
        if self.pace >= PACE_QUICK { Ended::Amid } else { Ended::AllRan }
    }

    fn look(&mut self, now: Instant) -> bool {
        let elapsed = (now - self.looked).as_nanos() as u64;
        let pace = u64::from(self.pace) * LOOK_NANOS / elapsed.max(1);
        // One that was quick says little about those behind it.
        let max = RESUMES_PER_LOOK_MAX.min(self.pace * 2);
        self.pace = pace.clamp(1, u64::from(max)) as u32;
        (self.looked, self.until_look) = (now, self.pace);
        self.ran_nanos += elapsed;
        self.ran_nanos > BATCH_MAX.as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many resumes of equal length fit into a batch that begins with a pace.
    fn check_batch(pace: u32, resume: Duration, expected: std::ops::RangeInclusive<u32>) {
        let mut batch = Batch::new(pace, now());
        let (mut now, mut count) = (batch.looked, 0);
        loop {
            now += resume;
            count += 1;
            batch.until_look -= 1;
            if batch.until_look == 0 && batch.look(now) {
                break;
            }
        }
        assert!(expected.contains(&count), "{count} resumes of {resume:?}");
    }

    #[test]
    fn a_batch_ends_by_time() {
        check_batch(1, Duration::from_nanos(100), 1000..=1033);
        check_batch(1, Duration::from_micros(10), 10..=12);
        check_batch(1, Duration::from_millis(1), 1..=1);
        // What the last batch has learned costs one pace at most.
        check_batch(RESUMES_PER_LOOK_MAX, Duration::from_millis(1), RESUMES_PER_LOOK_MAX..=RESUMES_PER_LOOK_MAX);
    }

    #[test]
    fn a_quick_one_among_slow_ones_does_not_make_the_batch_long() {
        let mut batch = Batch::new(1, now());
        let quick = batch.looked + Duration::from_nanos(100);
        assert!(!batch.look(quick));
        assert!(batch.pace <= 2, "{} of those behind it run unwatched", batch.pace);
    }

    #[test]
    fn a_batch_is_cut_amid_those_who_are_quick() {
        let check = |resume: Duration, expected| {
            let mut batch = Batch::new(1, now());
            let mut now = batch.looked;
            while {
                now += resume * batch.pace;
                !batch.look(now)
            } {}
            assert_eq!(batch.cut_short(), expected, "{resume:?}");
        };
        check(Duration::from_nanos(400), Ended::Amid);
        check(Duration::from_micros(5), Ended::AllRan);
        check(Duration::from_millis(1), Ended::AllRan);
    }

    #[test]
    fn a_batch_looks_at_the_clock_rarely_when_dhagas_are_quick() {
        let mut batch = Batch::new(1, now());
        let mut now = batch.looked;
        for _ in 0..8 {
            now += Duration::from_nanos(100) * batch.pace;
            batch.look(now);
        }
        assert_eq!(batch.pace, RESUMES_PER_LOOK_MAX);
    }
}
