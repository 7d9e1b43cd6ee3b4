//! How a worker dozes: after useful work it polls without blocking for a little while, since waking a sleeping thread costs
//! the other side several microseconds, more than a loopback round trip.
//!
//! But it may be the other side itself that wants this core: of three processes on two cores that answer each other, two
//! would doze while the third, whose turn it is, waits for a core. Nothing tells a thread that others wait for its core, and
//! the scheduler lets it finish its slice, which is much longer than a doze. So it offers the core between two polls, by
//! `sched_yield(2)`. If nobody wants it, that returns at once; if somebody does, the other runs until it blocks or offers
//! the core in its turn, which is a switch instead of a wake.
//!
//! ```text
//!   ├─ poll ─ poll ─ … 5 µs … ─ poll ─ offer: refused ─ poll ─ … 5 µs …     nobody else is here: a call in 5 µs
//!                                  └── offer: taken ─ poll ─ offer: taken   somebody is: offered after each poll
//!                                  └── offer: taken for long                somebody computes: no offer for as long, then
//!                                                                           twice as long, and so on
//! ```

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

use super::now;

/// How much processor time a doze may take. While others have the core, it does not count.
const DOZE_MAX: Duration = Duration::from_micros(50);
/// Between two offers, while nobody takes them. An offer costs as much as a poll, and a doze is mostly shorter than this.
const OFFER_PERIOD: Duration = Duration::from_micros(5);
/// An offer that took so long was taken: a system call takes less, two switches take more.
const TAKEN_MIN: Duration = Duration::from_micros(2);
/// Whoever keeps the core for longer is not about to give it back: many batches of a worker, and less than a slice of the
/// scheduler, which is what somebody takes who computes.
const SHARED_MAX: Duration = Duration::from_millis(1);
/// How often the rest after such an offer is doubled: events were late by what the offer took, and if that goes on, it must
/// become too rare to show among the slowest hundredth.
const DOUBLINGS_MAX: u32 = 8;
/// No rest is longer, whatever the offer took: a process that was stopped meanwhile, or had used up its quota, met nobody who
/// computes. Of the slice of one who does, it is about the longest.
const REST_MAX: Duration = Duration::from_secs(1);
/// So many offers in a row that were taken for a short time, or not at all: nobody computes here any more.
const SHORT_ENOUGH: u32 = 16;

/// What a worker has learned from its offers, from one doze to the next.
#[derive(Default)]
pub(super) struct Offers {
    /// The last one was taken.
    is_wanted: Cell<bool>,
    /// No offer before this, since one was taken for long.
    rests_until: Cell<Option<Instant>>,
    /// How often the next such rest is doubled,
    doublings: Cell<u32>,
    /// and how many offers were taken for a short time since the last.
    short: Cell<u32>,
}

impl Offers {
    /// How long there is none after one that was taken for so long.
    fn rest(&self, took: Duration) -> Duration {
        if took <= SHARED_MAX {
            self.short.set(self.short.get().saturating_add(1));
            return Duration::ZERO;
        }
        let doublings = if self.short.replace(0) >= SHORT_ENOUGH { 0 } else { self.doublings.get() };
        self.doublings.set((doublings + 1).min(DOUBLINGS_MAX));
        (took * (1 << doublings)).min(REST_MAX)
    }
}

/// One doze.
pub(super) struct Doze<'a> {
    offers: &'a Offers,
    until: Instant,
    next_offer: Instant,
}

impl<'a> Doze<'a> {
    pub(super) fn new(offers: &'a Offers, now: Instant) -> Self {
        let next_offer = if offers.is_wanted.get() { now } else { now + OFFER_PERIOD };
        let next_offer = offers.rests_until.get().map_or(next_offer, |until| next_offer.max(until));
        Self { offers, until: now + DOZE_MAX, next_offer }
    }

    /// After a poll that found nothing.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }

    /// Lets whoever waits for the core have it, if an offer is due.
    #[inline]
    pub(super) fn offer(&mut self, made: Instant) {
        if made >= self.next_offer {
            thread::yield_now();
            self.note_offer(made, now());
        }
    }

    fn note_offer(&mut self, made: Instant, over: Instant) {
        let took = over - made;
        let (is_taken, rest) = (took >= TAKEN_MIN, self.offers.rest(took));
        self.offers.is_wanted.set(is_taken && rest.is_zero());
        if !is_taken {
            self.next_offer = over + OFFER_PERIOD;
            return;
        }
        self.until += took;
        self.next_offer = over + rest;
        if !rest.is_zero() {
            self.offers.rests_until.set(Some(self.next_offer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);

    /// Makes a poll and an offer every microsecond, of which each takes as long as `took` says. Returns how many were made,
    /// and how long the doze lasted.
    fn doze(offers: &Offers, began: Instant, took: Duration) -> (usize, Duration) {
        let (mut doze, mut now, mut made) = (Doze::new(offers, began), began, 0);
        while !doze.is_over(now) {
            if now >= doze.next_offer {
                doze.note_offer(now, now + took);
                now += took;
                made += 1;
            }
            now += MICROSECOND;
        }
        (made, now - began)
    }

    #[test]
    fn a_core_that_nobody_wants_is_rarely_offered() {
        let offers = Offers::default();
        let (made, lasted) = doze(&offers, now(), MICROSECOND / 4);
        assert!((7..=10).contains(&made), "{made}");
        assert!((DOZE_MAX..DOZE_MAX + 2 * MICROSECOND).contains(&lasted), "{lasted:?}");
        assert!(!offers.is_wanted.get());
    }

    #[test]
    fn a_core_that_is_wanted_is_offered_after_each_poll_and_the_time_of_others_does_not_count() {
        let (offers, began) = (Offers::default(), now());
        let (made, lasted) = doze(&offers, began, 10 * MICROSECOND);
        assert_eq!((made, lasted), (45, DOZE_MAX + 450 * MICROSECOND), "the first was due after five polls");
        let (made, _) = doze(&offers, began, 10 * MICROSECOND);
        assert_eq!(made, 50, "the next doze knows it");
        doze(&offers, began, MICROSECOND / 4);
        assert!(!offers.is_wanted.get(), "the other has gone");
    }

    #[test]
    fn a_process_that_was_stopped_during_an_offer_offers_again_soon() {
        let (offers, began, stopped) = (Offers::default(), now(), Duration::from_secs(3600));
        doze(&offers, began, stopped);
        let rests_until = offers.rests_until.get().expect("it was taken for long");
        assert!(rests_until <= began + DOZE_MAX + stopped + REST_MAX);
    }

    #[test]
    fn who_computes_is_offered_less_and_less() {
        let (offers, mut began, slice) = (Offers::default(), now(), Duration::from_millis(3));
        for doublings in (0..DOUBLINGS_MAX).chain([DOUBLINGS_MAX; 2]) {
            let (made, lasted) = doze(&offers, began, slice);
            assert_eq!((made, lasted), (1, DOZE_MAX + slice));
            let rests_until = offers.rests_until.get().expect("it was taken for long");
            assert!(rests_until >= began + slice * (1 << doublings));
            assert_eq!(doze(&offers, rests_until - slice / 2, slice), (0, DOZE_MAX));
            began = rests_until;
        }
        doze(&offers, began, 10 * MICROSECOND);
        assert_eq!(offers.rest(slice), slice, "whoever computed had gone");
    }
}
