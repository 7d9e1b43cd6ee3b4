//! Who waits for room, in order. A pure table: its owner keeps it under a lock and decides when to wake.

use std::collections::VecDeque;

use dhaga::park::{self, Unparker};

/// Sleepers by the numbers of their places.
#[derive(Default)]
pub(crate) struct Waiters {
    /// The numbers grow from front to back.
    queue: VecDeque<(u64, Unparker)>,
    /// Places ever given.
    places: u64,
}

impl Waiters {
    /// Gives the caller a place at the end.
    pub(crate) fn join(&mut self) -> u64 {
        self.places += 1;
        self.queue.push_back((self.places, park::unparker()));
        self.places
    }

    /// Gives the caller its place again, if a wake has taken it.
    pub(crate) fn join_again(&mut self, place: u64) {
        if let Err(at) = self.queue.binary_search_by_key(&place, |(number, _)| *number) {
            self.queue.insert(at, (place, park::unparker()));
        }
    }

    /// Takes a place out. Returns whether it was still there; if not, a wake has taken it.
    pub(crate) fn leave(&mut self, place: u64) -> bool {
        let at = self.queue.binary_search_by_key(&place, |(number, _)| *number);
        at.is_ok_and(|at| self.queue.remove(at).is_some())
    }

    #[inline]
    pub(crate) fn wake_one(&mut self) {
        if !self.queue.is_empty() {
            self.wake_first();
        }
    }

    #[cold]
    fn wake_first(&mut self) {
        if let Some((_, waiter)) = self.queue.pop_front() {
            waiter.unpark();
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    #[inline]
    pub(crate) fn wake_all(&mut self) {
        if !self.queue.is_empty() {
            self.wake_each();
        }
    }

    #[cold]
    fn wake_each(&mut self) {
        self.queue.drain(..).for_each(|(_, waiter)| waiter.unpark());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_can_be_left_once_and_not_after_a_wake() {
        let mut waiters = Waiters::default();
        let (first, second, third) = (waiters.join(), waiters.join(), waiters.join());
        assert!(waiters.leave(second));
        assert!(!waiters.leave(second));
        waiters.wake_one();
        assert!(!waiters.leave(first), "a wake took it");
        assert!(waiters.leave(third));
        waiters.join();
        waiters.wake_all();
        assert!(waiters.is_empty());
    }

    #[test]
    fn who_was_woken_in_vain_keeps_its_place() {
        let mut waiters = Waiters::default();
        let (first, second) = (waiters.join(), waiters.join());
        waiters.wake_all();
        let third = waiters.join();
        [second, first, first].into_iter().for_each(|place| waiters.join_again(place));
        let places: Vec<_> = waiters.queue.iter().map(|(place, _)| *place).collect();
        assert_eq!(places, [first, second, third]);
    }
}
