//! Ticks at equal distances.

use std::time::{Duration, Instant};

use crate::interrupt::Interrupt;
use crate::park::{self, WaitReason};
use crate::scheduler::now;

/// Ticks, `period` after each other, the first at once.
///
/// # Panics
///
/// When `period` is zero, or longer than the clock can tell.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let mut interval = dhaga::interval(Duration::from_millis(2));
/// for beat in 0..3 {
///     interval.tick()?;
///     println!("beat {beat}");
/// }
/// # Ok::<(), dhaga::Interrupt>(())
/// ```
pub fn interval(period: Duration) -> Interval {
    interval_at(now(), period)
}

/// As [`interval`], with the first tick at `start`.
///
/// # Panics
///
/// As [`interval`].
pub fn interval_at(start: Instant, period: Duration) -> Interval {
    assert!(!period.is_zero(), "an interval needs a period that is not zero");
    assert!(
        start.checked_add(period).is_some(),
        "an interval's period of {period:?} is longer than the clock can tell"
    );
    Interval { next: start, period, missed: MissedTicks::default() }
}

/// What becomes of ticks that nobody waited for in time, because the work between two took longer than the period or the
/// machine was busy.
///
/// ```text
///   period    |----|----|----|----|----|----|       work: =
///   Burst     t====t=========tt=t===t====           all ticks, those that are late at once
///   Delay     t====t=========t====t====t            a whole period after the late one
///   Skip      t====t=========.t===t====t            the next one that is still ahead in the old beat
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissedTicks {
    /// They come at once, one after the other, until the beat is caught up. For work of which each tick counts.
    #[default]
    Burst,
    /// The beat begins anew with the late tick. For pauses between pieces of work.
    Delay,
    /// They are left out, and the beat stays. For a clock or a report.
    Skip,
}

/// Ticks at equal distances. Made by [`interval`].
#[derive(Debug)]
pub struct Interval {
    /// When the next tick is due.
    next: Instant,
    period: Duration,
    missed: MissedTicks,
}

impl Interval {
    /// Says what becomes of missed ticks. [`MissedTicks::Burst`] unless it is called.
    #[must_use = "it gives the interval back"]
    pub fn missed_ticks(mut self, missed: MissedTicks) -> Self {
        self.missed = missed;
        self
    }

    /// Waits for the next tick, and returns the instant at which it was due. Suspends until then.
    ///
    /// # Errors
    ///
    /// If the scope is cancelled or out of time, or the stack unwinds from a panic. The tick is still to come then.
    pub fn tick(&mut self) -> Result<Instant, Interrupt> {
        park::check()?;
        // For a beat that is never caught up: it gives way now and then, though it never waits.
        park::spend();
        while now() < self.next {
            park::park_until(WaitReason::Sleep, park::earliest(Some(self.next)));
            park::check()?;
        }
        let due = self.next;
        self.next = self.after(due, now());
        Ok(due)
    }

    /// Begins anew: the next tick is a period from now.
    pub fn reset(&mut self) {
        self.next = now() + self.period;
    }

    /// The distance of two ticks.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// When the tick comes that follows the one which was due, and was taken `now`.
    fn after(&self, due: Instant, now: Instant) -> Instant {
        let next = due + self.period;
        match self.missed {
            _ if now < next => next,
            MissedTicks::Burst => next,
            MissedTicks::Delay => now + self.period,
            MissedTicks::Skip => {
                let late = (now - due).as_nanos() % self.period.as_nanos();
                let (seconds, nanos) = (late / NANOS_PER_SECOND, late % NANOS_PER_SECOND);
                now + self.period - Duration::new(seconds as u64, nanos as u32)
            }
        }
    }
}

const NANOS_PER_SECOND: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the ticks lie, in units of the period, of one that is asked at these times.
    fn check(missed: MissedTicks, asked: &[u32], expected: &[u32]) {
        let (start, period) = (Instant::now(), Duration::from_secs(10));
        let mut interval = interval_at(start, period).missed_ticks(missed);
        let mut at = Vec::new();
        for &now in asked {
            let now = start + period / 10 * now;
            let due = interval.next.max(now);
            at.push(((due - start).as_nanos() / (period / 10).as_nanos()) as u32);
            interval.next = interval.after(interval.next, due);
        }
        assert_eq!(at, expected, "{missed:?}");
    }

    #[test]
    fn missed_ticks_come_at_once_or_later_or_not_at_all() {
        let in_time = [0, 3, 12, 25];
        let late = [0, 3, 37, 38, 39, 40, 41];
        check(MissedTicks::Burst, &in_time, &[0, 10, 20, 30]);
        check(MissedTicks::Delay, &in_time, &[0, 10, 20, 30]);
        check(MissedTicks::Skip, &in_time, &[0, 10, 20, 30]);
        check(MissedTicks::Burst, &late, &[0, 10, 37, 38, 40, 50, 60]);
        check(MissedTicks::Delay, &late, &[0, 10, 37, 47, 57, 67, 77]);
        check(MissedTicks::Skip, &late, &[0, 10, 37, 40, 50, 60, 70]);
    }
}
