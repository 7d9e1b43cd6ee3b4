//! Looking after each other.
//!
//! An idle worker serves at the front of one that is late. To notice it, it wakes once a millisecond for a while after it
//! had work itself, and then as long as the worker *after* it in the ring is awake. Beyond that it sleeps for good: an idle
//! process makes no wake. Whoever gets up to work then rouses the one *before* it, if that sleeps for good:
//!
//! ```text
//!   the one before: asleep, unwatchful = true │ fence │ next awake?      then look again in a millisecond
//!   the next:       awake                     │ fence │ before unwatchful?  then rouse it
//! ```
//!
//! so of the two one sees the other.

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use super::{Worker, now};
use crate::front::{Front, end_all};
use crate::run_queue::Injector;
use crate::thieves::Door;

/// A worker that has not finished a turn for so long is late: five times what a batch may take.
const LATE_AFTER: Duration = Duration::from_micros(500);
/// Between two looks of an idle worker after the others: the shortest that a poll can wait.
pub(super) const LOOK_PERIOD: Duration = Duration::from_millis(1);
/// How often a worker wakes to look after the others when it has nothing to do itself: ten milliseconds, so that one wake of a
/// neighbour in so long is the most that it costs to be called to this.
pub(super) const LOOKS: u32 = 10;

impl Worker {
    /// Serves at the fronts of others who have not finished a turn for a while. Returns whether there was something to do.
    pub(super) fn relieve_late(&self) -> bool {
        if !self.shared.watches() || self.is_stopping() {
            return false;
        }
        let now = now();
        let (mut seen, mut at_end) = (self.seen.borrow_mut(), Vec::new());
        if seen.is_empty() {
            *seen = self.shared.doors().map(|(_, front)| Seen { turn: front.turn(), since: now }).collect();
        }
        for (seen, (injector, front)) in seen.iter_mut().zip(self.shared.doors()) {
            if seen.is_late(front.turn(), now) && !injector.inbox.is_asleep() && !std::ptr::eq(injector, self.injector)
            {
                front.serve(|report| self.take_report(report));
                at_end.append(&mut front.take_at_end());
            }
        }
        drop(seen);
        end_all(&mut at_end);
        self.call_back();
        self.has_work()
    }

    /// Before it blocks: whether it looks after the others again soon.
    pub(super) fn is_watchful(&self) -> bool {
        let left = self.looks_left.get();
        if left > 0 {
            self.looks_left.set(left - 1);
            return true;
        }
        self.front.set_watchful(false);
        fence(Ordering::SeqCst);
        let is_needed = self.neighbour(1).is_some_and(|(next, _)| !next.inbox.is_asleep());
        if is_needed {
            self.front.set_watchful(true);
        }
        is_needed
    }

    /// After it blocked, and is known to be awake.
    pub(super) fn end_unwatchful_sleep(&self) {
        if !self.front.is_watchful() {
            self.front.set_watchful(true);
            self.looks_left.set(LOOKS);
        }
        if !self.has_work() && !self.injector.inbox.has_messages() {
            return;
        }
        fence(Ordering::SeqCst);
        if let Some((before, front)) = self.neighbour(self.shared.workers - 1)
            && !front.is_watchful()
        {
            before.rouse();
        }
    }

    /// The worker so many places further in the ring.
    fn neighbour(&self, places: usize) -> Option<(&'static Injector, &Front)> {
        let here = self.shared.injectors().iter().position(|injector| std::ptr::eq(*injector, self.injector))?;
        self.shared.doors().nth((here + places) % self.shared.workers)
    }
}

/// What a worker last saw of another.
pub(super) struct Seen {
    turn: u32,
    since: Instant,
}

impl Seen {
    /// Whether the other has been in this turn for long, as far as was seen.
    fn is_late(&mut self, turn: u32, now: Instant) -> bool {
        if turn != self.turn {
            *self = Self { turn, since: now };
        }
        now - self.since >= LATE_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stays_in_a_turn_is_late_and_who_goes_on_is_not() {
        let since = now();
        let mut seen = Seen { turn: 1, since };
        assert!(!seen.is_late(1, since + LATE_AFTER / 2));
        assert!(seen.is_late(1, since + LATE_AFTER));
        assert!(!seen.is_late(2, since + LATE_AFTER));
        assert!(seen.is_late(2, since + 2 * LATE_AFTER));
    }
}
