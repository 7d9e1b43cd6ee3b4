//! Who waits, in order, and what each was given: the one queue inside every primitive.
//!
//! ```text
//!   join ──> Waiting ──grant───> Granted ────┐
//!               │                            ├──leave──> gone
//!               ├──────dismiss──> Dismissed ─┤
//!               └────────────────────────────┘ (timed out, cancelled, unwinding)
//! ```
//!
//! A waiter stays in the table until it leaves by itself, also after it was granted what it waits
//! for. So the two races of every wait are decided in one place, under the primitive's own lock: a
//! waiter that gives up learns from `leave` that it was granted meanwhile, and takes it or passes
//! it on.
//!
//! The table wakes nobody. It hands out the [`Unparker`], which its caller uses after the lock.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use slab::Slab;

use crate::park::{self, Interrupt, Parked, Unparker, WaitReason};

/// Waiters, first come first served. `V` is what a waiter wants, or is given.
#[derive(Debug)]
pub(super) struct WaitQueue<V> {
    waiters: Slab<Waiter<V>>,
    /// The ends of the list of those who are still `Waiting`.
    first: u32,
    last: u32,
}

/// One waiter's place. It is used by this waiter only, and up to its `leave`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Waiting,
    /// It got what it waits for.
    Granted,
    /// It never will.
    Dismissed,
}

#[derive(Debug)]
struct Waiter<V> {
    value: V,
    /// Present while the waiter is `Waiting`.
    unparker: Option<Unparker>,
    stage: Stage,
    previous: u32,
    next: u32,
}

const NONE: u32 = u32::MAX;

impl<V> WaitQueue<V> {
    pub(super) const fn new() -> Self {
        WaitQueue { waiters: Slab::new(), first: NONE, last: NONE }
    }

    /// Adds the caller as the last waiter.
    #[inline]
    pub(super) fn join(&mut self, unparker: Unparker, value: V) -> Place {
        let place = self.insert(unparker, value, self.last, NONE);
        match self.last {
            NONE => self.first = place.0,
            last => self.waiters[last as usize].next = place.0,
        }
        self.last = place.0;
        place
    }

    /// Adds the caller as the first waiter.
    pub(super) fn join_front(&mut self, unparker: Unparker, value: V) -> Place {
        let place = self.insert(unparker, value, NONE, self.first);
        match self.first {
            NONE => self.last = place.0,
            first => self.waiters[first as usize].previous = place.0,
        }
        self.first = place.0;
        place
    }

    /// Grants the first waiter what it waits for: write into its value what it gets, and unpark it
    /// when the lock is released.
    #[inline]
    pub(super) fn grant(&mut self) -> Option<(&mut V, Unparker)> {
        self.advance(Stage::Granted)
    }

    /// Tells the first waiter that its wait is in vain.
    pub(super) fn dismiss(&mut self) -> Option<Unparker> {
        let (_, unparker) = self.advance(Stage::Dismissed)?;
        Some(unparker)
    }

    /// Ends the caller's wait, at whichever stage it is.
    #[inline]
    pub(super) fn leave(&mut self, place: Place) -> (Stage, V) {
        let waiter = self.waiters.remove(place.0 as usize);
        if waiter.stage == Stage::Waiting {
            self.unlink(waiter.previous, waiter.next);
        }
        (waiter.stage, waiter.value)
    }

    /// Ends the caller's wait if it was granted or dismissed.
    #[inline]
    pub(super) fn leave_if_decided(&mut self, place: Place) -> Option<(Stage, V)> {
        self.is_decided(place).then(|| self.leave(place))
    }

    /// Whether the caller was granted or dismissed.
    #[inline]
    pub(super) fn is_decided(&self, place: Place) -> bool {
        self.waiters[place.0 as usize].stage != Stage::Waiting
    }

    /// What the first waiter wants.
    #[inline]
    pub(super) fn first(&self) -> Option<&V> {
        match self.first {
            NONE => None,
            first => Some(&self.waiters[first as usize].value),
        }
    }

    /// Whether nobody is `Waiting`.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.first == NONE
    }

    #[inline]
    fn insert(&mut self, unparker: Unparker, value: V, previous: u32, next: u32) -> Place {
        let index =
            self.waiters.insert(Waiter { value, unparker: Some(unparker), stage: Stage::Waiting, previous, next });
        let index = u32::try_from(index).ok().filter(|&index| index != NONE);
        Place(index.expect("memory ends before four billion waiters"))
    }

    #[inline]
    fn advance(&mut self, stage: Stage) -> Option<(&mut V, Unparker)> {
        if self.first == NONE {
            return None;
        }
        let first = self.first as usize;
        self.unlink(NONE, self.waiters[first].next);
        let waiter = &mut self.waiters[first];
        waiter.stage = stage;
        let unparker = waiter.unparker.take();
        let unparker = unparker.expect("a waiter keeps its unparker while it is waiting");
        Some((&mut waiter.value, unparker))
    }

    /// Closes the list over a waiter that was between these two.
    #[inline]
    fn unlink(&mut self, previous: u32, next: u32) {
        match previous {
            NONE => self.first = next,
            previous => self.waiters[previous as usize].next = next,
        }
        match next {
            NONE => self.last = previous,
            next => self.waiters[next as usize].previous = previous,
        }
    }
}

/// Why a wait that can fail ends without what it waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    TimedOut,
    Interrupted(Interrupt),
}

/// Parks once, until `deadline` or that of the scope, and says whether the wait may go on. It may well have been granted
/// meanwhile: ask the queue before you stop.
#[inline(always)]
pub(super) fn park_fallibly(reason: WaitReason, deadline: Option<Instant>) -> Option<Stopped> {
    let parked = park::park_until(reason, park::earliest(deadline));
    match park::check() {
        Err(interrupt) => Some(Stopped::Interrupted(interrupt)),
        Ok(()) if parked == Parked::TimedOut && deadline.is_some() => Some(Stopped::TimedOut),
        Ok(()) => None,
    }
}

/// To be asked before the attempt: whether the scope is cancelled or out of time.
///
/// A panic in flight stops no attempt, only waiting: a destructor may return things by a channel.
#[inline(always)]
pub(super) fn check_scope() -> Result<(), Interrupt> {
    park::spend();
    match park::check() {
        Err(Interrupt::Panicking) => Ok(()),
        checked => checked,
    }
}

/// To be asked before waiting: whether the caller unwinds, and so cannot.
#[inline(always)]
pub(super) fn check_unwinding() -> Result<(), Interrupt> {
    if std::thread::panicking() { Err(Interrupt::Panicking) } else { Ok(()) }
}

/// Unparks one after the other, none of them while `next` holds its lock.
#[inline]
pub(super) fn unpark_each(mut next: impl FnMut() -> Option<Unparker>) {
    while let Some(unparker) = next() {
        unparker.unpark();
    }
}

/// Locks the inside of a primitive: for some nanoseconds, and never across a park or foreign code.
///
/// Nothing panics inside, so what std calls poisoned is sound.
#[inline(always)]
pub(super) fn locked<S>(inside: &Mutex<S>) -> MutexGuard<'_, S> {
    inside.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(values: &[u32]) -> (WaitQueue<u32>, Vec<Place>) {
        let mut queue = WaitQueue::new();
        let places = values.iter().map(|&value| queue.join(park::unparker(), value)).collect();
        (queue, places)
    }

    fn check_order(mut queue: WaitQueue<u32>, expected: &[u32]) {
        for value in expected {
            assert_eq!(queue.first(), Some(value));
            assert_eq!(queue.grant().map(|(value, _)| *value), Some(*value));
        }
        assert!(queue.is_empty());
        assert!(queue.grant().is_none());
    }

    #[test]
    fn first_come_first_served() {
        check_order(queue(&[1, 2, 3]).0, &[1, 2, 3]);
        let (mut queue, _) = queue(&[1, 2]);
        queue.join_front(park::unparker(), 0);
        check_order(queue, &[0, 1, 2]);
    }

    #[test]
    fn whoever_gives_up_leaves_no_gap() {
        for gone in 0..3 {
            let (mut queue, places) = queue(&[0, 1, 2]);
            assert_eq!(queue.leave(places[gone as usize]), (Stage::Waiting, gone));
            let left: Vec<_> = (0..3).filter(|&value| value != gone).collect();
            check_order(queue, &left);
        }
    }

    #[test]
    fn a_waiter_learns_how_its_wait_ended() {
        let (mut queue, places) = queue(&[0, 1, 2]);
        *queue.grant().expect("three wait").0 = 7;
        assert!(queue.dismiss().is_some());
        assert_eq!(queue.leave_if_decided(places[2]), None);
        assert_eq!(queue.leave_if_decided(places[0]), Some((Stage::Granted, 7)));
        assert_eq!(queue.leave(places[1]), (Stage::Dismissed, 1));
        assert_eq!(queue.leave(places[2]), (Stage::Waiting, 2));
        assert!(queue.is_empty() && queue.waiters.is_empty());
    }

    #[test]
    fn places_are_reused() {
        let (mut queue, places) = queue(&[0]);
        queue.leave(places[0]);
        for value in 0..1000 {
            let place = queue.join(park::unparker(), value);
            assert_eq!(queue.leave(place), (Stage::Waiting, value));
        }
        assert!(queue.waiters.capacity() < 8);
    }
}
