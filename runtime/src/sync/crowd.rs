//! Many who wait for the same event and are let go together: what [`Barrier`](super::Barrier), [`Once`](super::Once) and
//! [`WaitGroup`](super::WaitGroup) share.
//!
//! A waiter belongs to the *round* in which it came; a release ends the round. Whoever releases then unparks all waiters of
//! rounds that are over, one at a time and none under the lock. So one who waits again at once belongs to the next round and
//! is not let go twice, and of two who release at the same time neither leaves a waiter to the other and goes.
//!
//! A thread that is no worker had better not do so for a thousand dhagas: it contends with workers for cores and for the lock,
//! and while it is preempted with the lock taken they spin. It lets go the first alone, and each that is let go passes it on
//! to some more: see [`CrowdGuard::release_first`].

use std::ops::{Deref, DerefMut};
use std::time::Instant;

use super::short_lock::{ShortGuard, ShortLock};
use super::wait_queue::{Stage, Stopped, WaitQueue, Waiter, park_until_decided, unpark_each};
use crate::around;
use crate::owner;
use crate::park::{self, Parked, Unparker, WaitReason};

/// Whom each who was let go lets go in its turn: few enough for about a microsecond.
const PASSED_ON_MAX: usize = 32;

/// Some state, and who waits for it to change.
pub(crate) struct Crowd<S> {
    inside: ShortLock<Inside<S>>,
}

struct Inside<S> {
    state: S,
    round: u64,
    /// In which round each came.
    waiters: WaitQueue<u64>,
}

/// The state, locked, until the holder lets go, waits or releases.
pub(crate) struct CrowdGuard<'a, S> {
    crowd: &'a Crowd<S>,
    inside: ShortGuard<'a, Inside<S>>,
}

impl<S> Crowd<S> {
    pub(crate) const fn new(state: S) -> Self {
        Self { inside: ShortLock::new(Inside { state, round: 0, waiters: WaitQueue::new() }) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> CrowdGuard<'_, S> {
        CrowdGuard { crowd: self, inside: self.inside.lock() }
    }

    fn pass_on(&self) {
        for _ in 0..PASSED_ON_MAX {
            let Some(next) = self.inside.lock().next_released() else { return };
            next.unpark_in_turn();
        }
    }
}

impl<S> CrowdGuard<'_, S> {
    /// Suspends until the next release, whatever becomes of the scope.
    ///
    /// Whoever unwinds blocks its OS thread instead, and not for ever: nobody owns an event, so nothing tells a long wait
    /// from a deadlock. To return without the event would be worse than to abort, since code behind it may rely on it.
    #[inline]
    pub(crate) fn wait(self, reason: WaitReason, what: &str) {
        let waiter = Waiter::new(self.inside.round);
        let waiting = self.join(&waiter);
        if std::thread::panicking() {
            return waiting.block_while_unwinding(reason, what);
        }
        while !waiter.is_decided() {
            park::park(reason);
        }
    }

    /// Suspends until the next release, or until `deadline` or the end of the scope.
    #[inline]
    pub(crate) fn wait_until(self, reason: WaitReason, deadline: Option<Instant>) -> Result<(), Stopped> {
        let waiter = Waiter::new(self.inside.round);
        let waiting = self.join(&waiter);
        match park_until_decided(&waiter, reason, deadline) {
            Some(stopped) if waiting.leave() == Stage::Waiting => Err(stopped),
            _ => Ok(()),
        }
    }

    /// As [`wait_until`](Self::wait_until), in a crowd that is released by [`release_first`](Self::release_first). However this
    /// ends, by unwinding too, the release goes on.
    pub(crate) fn wait_and_pass_on(self, reason: WaitReason, deadline: Option<Instant>) -> Result<(), Stopped> {
        let _others = PassesOn(self.crowd);
        self.wait_until(reason, deadline)
    }

    /// Lets all go who wait by [`wait_and_pass_on`](Self::wait_and_pass_on): the first here, and the others when those before
    /// them run. So all who wait should be of one worker, where none is later for another's being late.
    pub(crate) fn release_first(self) {
        let Self { mut inside, .. } = self;
        inside.round += 1;
        let first = inside.next_released();
        drop(inside);
        first.into_iter().for_each(|first| first.unpark());
    }

    /// Lets all go who wait.
    #[inline]
    pub(crate) fn release(self) {
        let Self { crowd, mut inside } = self;
        inside.round += 1;
        let first = inside.next_released();
        drop(inside);
        if let Some(first) = first {
            first.unpark();
            unpark_each(|| crowd.inside.lock().next_released());
        }
    }
}

impl<'a, S> CrowdGuard<'a, S> {
    fn join(mut self, waiter: &'a Waiter<u64>) -> Waiting<'a, S> {
        // SAFETY: what is returned borrows the waiter, and leaves the queue when it is dropped unless it is decided.
        unsafe { self.inside.waiters.join(waiter, park::unparker()) };
        Waiting { crowd: self.crowd, waiter }
    }
}

impl<S> Inside<S> {
    /// Grants the first waiter, if its round is over.
    fn next_released(&mut self) -> Option<Unparker> {
        if *self.waiters.first()? == self.round {
            return None;
        }
        self.waiters.grant(|_| ())
    }
}

impl<S> Deref for CrowdGuard<'_, S> {
    type Target = S;

    #[inline]
    fn deref(&self) -> &S {
        &self.inside.state
    }
}

impl<S> DerefMut for CrowdGuard<'_, S> {
    #[inline]
    fn deref_mut(&mut self) -> &mut S {
        &mut self.inside.state
    }
}

/// A place in the crowd.
struct Waiting<'a, S> {
    crowd: &'a Crowd<S>,
    waiter: &'a Waiter<u64>,
}

impl<S> Waiting<'_, S> {
    /// Waits as one who unwinds: on the OS thread.
    fn block_while_unwinding(self, reason: WaitReason, what: &str) {
        let deadline = around::after(owner::UNWIND_BLOCK_MAX);
        while !self.waiter.is_decided() {
            if park::park_until(reason, deadline) == Parked::TimedOut && self.leave() == Stage::Waiting {
                owner::abort_unwinding_wait(what);
            }
        }
    }

    fn leave(&self) -> Stage {
        self.crowd.inside.lock().waiters.leave(self.waiter)
    }
}

impl<S> Drop for Waiting<'_, S> {
    #[inline]
    fn drop(&mut self) {
        if !self.waiter.is_decided() {
            self.leave();
        }
    }
}

/// One who may have been let go, and then has others to let go.
struct PassesOn<'a, S>(&'a Crowd<S>);

impl<S> Drop for PassesOn<'_, S> {
    fn drop(&mut self) {
        self.0.pass_on();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join<'a>(crowd: &'a Crowd<()>, waiter: &'a Waiter<u64>) -> Waiting<'a, ()> {
        crowd.lock().join(waiter)
    }

    fn waiter(crowd: &Crowd<()>) -> Waiter<u64> {
        Waiter::new(crowd.inside.lock().round)
    }

    #[test]
    fn a_release_lets_go_who_waits_and_not_who_comes_after() {
        let crowd = Crowd::new(());
        let early = [waiter(&crowd), waiter(&crowd)];
        let waiting = [join(&crowd, &early[0]), join(&crowd, &early[1])];
        crowd.lock().release();
        assert!(early.iter().all(Waiter::is_decided));
        drop(waiting);
        let late = waiter(&crowd);
        let waiting = join(&crowd, &late);
        assert!(crowd.inside.lock().next_released().is_none());
        assert!(!late.is_decided());
        drop(waiting);
    }

    #[test]
    fn a_second_release_lets_go_also_whom_the_first_has_not_reached() {
        let crowd = Crowd::new(());
        let early = waiter(&crowd);
        let _first = join(&crowd, &early);
        crowd.inside.lock().round += 1;
        let late = waiter(&crowd);
        let _second = join(&crowd, &late);
        crowd.lock().release();
        assert!(early.is_decided() && late.is_decided());
    }

    #[test]
    fn a_release_is_passed_on_by_whoever_was_let_go() {
        const WAITERS: usize = PASSED_ON_MAX + 2;
        let crowd = Crowd::new(());
        let waiters: [_; WAITERS] = std::array::from_fn(|_| waiter(&crowd));
        let _waiting = waiters.each_ref().map(|waiter| join(&crowd, waiter));
        crowd.lock().release_first();
        let late = waiter(&crowd);
        let _late = join(&crowd, &late);
        let count = || waiters.iter().filter(|waiter| waiter.is_decided()).count();
        assert_eq!(count(), 1);
        drop(PassesOn(&crowd));
        assert_eq!(count(), WAITERS - 1);
        drop(PassesOn(&crowd));
        assert_eq!(count(), WAITERS);
        assert!(!late.is_decided());
    }

    #[test]
    fn who_is_let_go_and_unwinds_passes_it_on() {
        let crowd = Crowd::new(());
        let other = waiter(&crowd);
        let waiting = join(&crowd, &other);
        crowd.inside.lock().round += 1;
        let caught = std::panic::catch_unwind(|| {
            let _others = PassesOn(&crowd);
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(caught.is_err() && other.is_decided());
        drop(waiting);
    }

    #[test]
    fn who_is_torn_down_leaves_no_gap() {
        let crowd = Crowd::new(());
        let waiters = [waiter(&crowd), waiter(&crowd)];
        let (first, second) = (join(&crowd, &waiters[0]), join(&crowd, &waiters[1]));
        drop(first);
        crowd.lock().release();
        assert!(waiters[1].is_decided());
        drop(second);
        assert!(crowd.inside.lock().waiters.is_empty());
    }
}
