//! The futures that wait for a source.
//!
//! A dhaga queues for one event. A future cannot: whoever was told of an event may be dropped, or polled no more, and would
//! have taken it from the others. So each handle that futures use has a *place* here with a waker for each direction, as the
//! traits of I/O want it, and an event wakes all of them.

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

/// The futures that wait in one direction: a place for each handle. Nearly always there is one at most, whose place lies
/// here and not on the heap.
#[derive(Default)]
pub(super) struct Places {
    first: Option<FutureWaker>,
    /// Some handle has that place: its key is 0.
    has_first: bool,
    /// Keys from 1.
    others: Option<Box<Slab<Option<FutureWaker>>>>,
}

impl Places {
    /// Takes out the wakers of all.
    #[inline]
    pub(super) fn take(&mut self, mut report: impl FnMut(FutureWaker)) {
        if let Some(waker) = self.first.take() {
            report(waker);
        }
        if let Some(others) = &mut self.others {
            others.iter_mut().filter_map(|(_, place)| place.take()).for_each(report);
        }
    }

    /// The place with this key, or a new one if there is no key yet.
    fn place(&mut self, key: &mut Option<usize>) -> &mut Option<FutureWaker> {
        match *key.get_or_insert_with(|| self.new_key()) {
            0 => &mut self.first,
            key => &mut self.others.get_or_insert_default()[key - 1],
        }
    }

    fn new_key(&mut self) -> usize {
        if !self.has_first {
            self.has_first = true;
            return 0;
        }
        self.others.get_or_insert_default().insert(None) + 1
    }

    /// Ends the use of a place. Returns what was left there.
    fn remove(&mut self, key: usize) -> Option<FutureWaker> {
        if key == 0 {
            self.has_first = false;
            return self.first.take();
        }
        self.others.as_mut().and_then(|others| others.remove(key - 1))
    }
}

impl<W: Copy + PartialEq> Readiness<W> {
    /// Has a waker woken at the next event, instead of the one that was there. Returns false if the direction became ready
    /// meanwhile, or its reactor has gone. The key is the handle's for this direction, to be given up with [`Readiness::give_up`].
    #[inline]
    pub(crate) fn leave_word(&self, key: &mut Option<usize>, direction: Direction, waker: WakerRef<'_>) -> bool {
        let mut waiters = self.lock();
        if !self.is_awaited(direction) {
            return false;
        }
        let place = waiters.others().futures[direction as usize].place(key);
        if place.as_ref().is_some_and(|kept| waker.is_kept_in(kept)) {
            return true;
        }
        let last = place.replace(waker.keep());
        drop(waiters);
        // Only now that nothing is locked: it may be foreign.
        drop(last);
        true
    }

    /// Ends the use of a place.
    pub(crate) fn give_up(&self, key: usize, direction: Direction) {
        let mut waiters = self.lock();
        let last = waiters.others().futures[direction as usize].remove(key);
        drop(waiters);
        drop(last);
    }

    /// The futures that wait in one direction, for an event that the kernel does not send.
    pub(crate) fn take_futures(&self, direction: Direction) -> Vec<FutureWaker> {
        let mut taken = Vec::new();
        self.lock().take_futures(direction, |waker| taken.push(waker));
        taken
    }
}
