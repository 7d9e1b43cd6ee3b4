//! How a worker dozes: after useful work it polls without blocking for a little while, since waking a sleeping thread costs
//! the other side several microseconds, more than a loopback round trip.
//!
//! But it may be the other side itself that wants this core: of three processes on two cores that answer each other, two
//! would doze while the third, whose turn it is, waits for a core. Nothing tells a thread that others wait for its core, and
//! the scheduler lets it finish its slice, which is much longer than a doze. So it offers the core between two polls, by
//! `sched_yield(2)`. If nobody wants it, that returns at once; if somebody does, the other runs until it blocks or offers
//! the core in its turn, which is a switch instead of a wake.
//!
//! Who answers a peer waits for about as long each time, and polls before that time find nothing. So the worker remembers the
//! shortest wait of late, and makes none before three quarters of it have passed: half of the system calls. Only what comes much
//! earlier than anything of late did is late, by 38 µs at most, as is the first offer to who has not wanted the core before.
//!
//! ```text
//!   ├─ poll ─ pause ─ poll ─ poll ─ poll: an event                          three quarters of the shortest wait without a poll
//!   ├─ poll ─ poll ─ … 5 µs … ─ poll ─ offer: refused ─ poll ─ … 5 µs …     nobody else is here: a call in 5 µs
//!                                  └── offer: taken ─ poll ─ offer: taken   somebody is: offered after each poll
//!                                  └── offer: taken for long                somebody computes: no offer for as long, then
//!                                                                           twice as long, and so on
//! ```

use std::cell::Cell;
use std::hint::spin_loop;
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

/// What a worker has learned, from one doze to the next.
#[derive(Default)]
pub(super) struct Learned {
    offers: Offers,
    /// The shortest time of late after which a doze found something; none at all after one in vain.
    soonest: Cell<Duration>,
}

impl Learned {
    /// A shorter one counts at once, and longer ones little by little.
    fn note_wait(&self, wait: Duration) {
        self.soonest.set(wait.min((self.soonest.get() * 7 + wait) / 8));
    }
}

/// What came of offers.
#[derive(Default)]
struct Offers {
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
    learned: &'a Learned,
    /// When it began, put off by what others had of the core.
    began: Instant,
    /// When a poll last found nothing.
    polled: Instant,
    next_offer: Instant,
}

impl<'a> Doze<'a> {
    pub(super) fn new(learned: &'a Learned, now: Instant) -> Self {
        let offers = &learned.offers;
        let next_offer = if offers.is_wanted.get() { now } else { now + OFFER_PERIOD };
        let next_offer = offers.rests_until.get().map_or(next_offer, |until| next_offer.max(until));
        Self { learned, began: now, polled: now, next_offer }
    }

    /// After a poll that found something, or a look at anything else. Does not ask the clock: somebody waits for an answer.
    pub(super) fn note_found(&self) {
        self.learned.note_wait(self.polled.saturating_duration_since(self.began));
    }

    /// After a poll that found nothing.
    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        self.polled = now;
        let is_over = now >= self.began + DOZE_MAX;
        if is_over {
            self.learned.soonest.set(Duration::ZERO);
        }
        is_over
    }

    /// Lets the time pass in which nothing is likely to come, unless somebody wants the core.
    #[inline]
    pub(super) fn pause(&self) {
        if self.learned.offers.is_wanted.get() {
            return;
        }
        let (mut time, until) = (self.polled, self.next_poll());
        while time < until {
            spin_loop();
            time = now();
        }
    }

    fn next_poll(&self) -> Instant {
        self.began + self.learned.soonest.get() * 3 / 4
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
        let offers = &self.learned.offers;
        let (is_taken, rest) = (took >= TAKEN_MIN, offers.rest(took));
        offers.is_wanted.set(is_taken && rest.is_zero());
        if !is_taken {
            self.next_offer = over + OFFER_PERIOD;
            return;
        }
        self.began += took;
        self.next_offer = over + rest;
        if !rest.is_zero() {
            offers.rests_until.set(Some(self.next_offer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);

    /// Makes a poll and an offer every microsecond, of which each takes as long as `took` says. Returns how many were made,
    /// and how long the doze lasted.
    fn doze(learned: &Learned, began: Instant, took: Duration) -> (usize, Duration) {
        let (mut doze, mut now, mut made) = (Doze::new(learned, began), began, 0);
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
    fn no_poll_before_three_quarters_of_the_shortest_wait_of_late() {
        let (learned, began) = (Learned::default(), now());
        let wait = |micros: u32| {
            let mut doze = Doze::new(&learned, began);
            let pause = doze.next_poll() - began;
            assert!(!doze.is_over(began + MICROSECOND * micros));
            doze.note_found();
            pause
        };
        assert_eq!(wait(8), Duration::ZERO, "nothing is known at first");
        let learning: Vec<_> = (0..40).map(|_| wait(8)).collect();
        assert!(
            learning.is_sorted() && learning[39] > MICROSECOND * 59 / 10 && learning[39] <= MICROSECOND * 6,
            "{learning:?}"
        );
        wait(40);
        assert!(wait(2) < MICROSECOND * 10, "a longer one counts little");
        assert_eq!(wait(2), MICROSECOND * 3 / 2, "a shorter one at once");
        assert!(Doze::new(&learned, began).is_over(began + DOZE_MAX));
        assert_eq!(wait(2), Duration::ZERO, "after one in vain nothing is known");
    }

    #[test]
    fn a_core_that_nobody_wants_is_rarely_offered() {
        let learned = Learned::default();
        let (made, lasted) = doze(&learned, now(), MICROSECOND / 4);
        assert!((7..=10).contains(&made), "{made}");
        assert!((DOZE_MAX..DOZE_MAX + 2 * MICROSECOND).contains(&lasted), "{lasted:?}");
        assert!(!learned.offers.is_wanted.get());
    }

    #[test]
    fn a_core_that_is_wanted_is_offered_after_each_poll_and_the_time_of_others_does_not_count() {
        let (learned, began) = (Learned::default(), now());
        let (made, lasted) = doze(&learned, began, 10 * MICROSECOND);
        assert_eq!((made, lasted), (45, DOZE_MAX + 450 * MICROSECOND), "the first was due after five polls");
        let (made, _) = doze(&learned, began, 10 * MICROSECOND);
        assert_eq!(made, 50, "the next doze knows it");
        doze(&learned, began, MICROSECOND / 4);
        assert!(!learned.offers.is_wanted.get(), "the other has gone");
    }

    #[test]
    fn a_process_that_was_stopped_during_an_offer_offers_again_soon() {
        let (learned, began, stopped) = (Learned::default(), now(), Duration::from_secs(3600));
        doze(&learned, began, stopped);
        let rests_until = learned.offers.rests_until.get().expect("it was taken for long");
        assert!(rests_until <= began + DOZE_MAX + stopped + REST_MAX);
    }

    #[test]
    fn who_computes_is_offered_less_and_less() {
        let (learned, mut began, slice) = (Learned::default(), now(), Duration::from_millis(3));
        for doublings in (0..DOUBLINGS_MAX).chain([DOUBLINGS_MAX; 2]) {
            let (made, lasted) = doze(&learned, began, slice);
            assert_eq!((made, lasted), (1, DOZE_MAX + slice));
            let rests_until = learned.offers.rests_until.get().expect("it was taken for long");
            assert!(rests_until >= began + slice * (1 << doublings));
            assert_eq!(doze(&learned, rests_until - slice / 2, slice), (0, DOZE_MAX));
            began = rests_until;
        }
        doze(&learned, began, 10 * MICROSECOND);
        assert_eq!(learned.offers.rest(slice), slice, "whoever computed had gone");
    }
}
