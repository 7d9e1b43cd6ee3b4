//! The futures that wait for a source.
//!
//! A dhaga queues for one event. A future cannot: whoever was told of an event may be dropped, or polled no more, and would
//! have taken it from the others. So each handle that futures use has a *place* here with a waker for each direction, as the
//! traits of I/O want it, and an event wakes all of them.

use std::mem;
use std::sync::Arc;
use std::task::Waker;

use slab::Slab;

use super::{Direction, OnReady, Readiness};

/// Whom to wake for a future.
pub(crate) enum FutureWaker {
    /// A waker of our own: it only pushes, so it is woken where the event is seen.
    Own(Waker),
    /// It stands for somebody else's code, which it wakes where that may run.
    Foreign(Arc<dyn OnReady>),
}

/// As [`FutureWaker`], before it is known whether it is to be kept.
#[derive(Clone, Copy)]
pub(crate) enum WakerRef<'a> {
    Own(&'a Waker),
    Foreign(&'a Arc<dyn OnReady>),
}

impl WakerRef<'_> {
    pub(crate) fn is_kept_in(self, kept: &FutureWaker) -> bool {
        match (self, kept) {
            (Self::Own(this), FutureWaker::Own(kept)) => this.will_wake(kept),
            (Self::Foreign(this), FutureWaker::Foreign(kept)) => Arc::ptr_eq(this, kept),
            _ => false,
        }
    }

    pub(crate) fn keep(self) -> FutureWaker {
        match self {
            Self::Own(waker) => FutureWaker::Own(waker.clone()),
            Self::Foreign(waker) => FutureWaker::Foreign(waker.clone()),
        }
    }
}

/// The wakers of one handle, by direction.
pub(crate) type Place = [Option<FutureWaker>; 2];

/// The places of a source. Boxed, since most sources have none.
#[derive(Default)]
pub(super) struct Places(Option<Box<Slab<Place>>>);

impl Places {
    /// Takes out the wakers of one direction.
    pub(super) fn take(&mut self, direction: Direction, mut report: impl FnMut(FutureWaker)) {
        let places = self.0.iter_mut().flat_map(|places| places.iter_mut());
        places.filter_map(|(_, place)| place[direction as usize].take()).for_each(&mut report);
    }
}

impl<W: Copy + PartialEq> Readiness<W> {
    /// A place for the futures of one handle.
    pub(crate) fn add_place(&self) -> usize {
        self.lock().places.0.get_or_insert_default().insert(Place::default())
    }

    /// Gives it up. What is in it the caller drops, now that nothing is locked.
    #[must_use = "dropping it may run a foreign waker's code"]
    pub(crate) fn remove_place(&self, key: usize) -> Option<Place> {
        let mut waiters = self.lock();
        waiters.places.0.as_mut().map(|places| places.remove(key))
    }

    /// Has a waker woken at the next event, instead of the one that was there. Returns false if the direction became ready
    /// meanwhile.
    #[inline]
    pub(crate) fn leave_word(&self, key: usize, direction: Direction, waker: WakerRef<'_>) -> bool {
        let mut waiters = self.lock();
        if self.look().is_ready(direction) {
            return false;
        }
        let Some(places) = &mut waiters.places.0 else { return false };
        let place = &mut places[key][direction as usize];
        if place.as_ref().is_some_and(|kept| waker.is_kept_in(kept)) {
            return true;
        }
        let last = mem::replace(place, Some(waker.keep()));
        drop(waiters);
        drop(last);
        true
    }

    /// The futures that wait in one direction, for an event that the kernel does not send.
    pub(crate) fn take_futures(&self, direction: Direction) -> Vec<FutureWaker> {
        let mut taken = Vec::new();
        self.lock().places.take(direction, |waker| taken.push(waker));
        taken
    }
}
