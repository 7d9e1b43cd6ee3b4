//! Waiting, outside a lock, for what the lock guards to change.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LockResult, PoisonError};
use std::time::{Duration, Instant};

use super::mutex::MutexGuard;
use super::short_lock::ShortLock;
use super::wait_queue::{Stage, Stopped, WaitQueue, Waiter, park_until_decided};
use crate::around;
use crate::owner;
use crate::park::{self, Interrupt, Parked, Unparker, WaitReason};

/// A condition variable, as [`std::sync::Condvar`], for a [`Mutex`](super::Mutex).
///
/// Who waits first is notified first. A notification that reaches a waiter just as it gives up counts
/// as received; one whose receiver is torn down goes to the next.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use dhaga::sync::{Condvar, Mutex};
///
/// let shared = Arc::new((Mutex::new(false), Condvar::new()));
/// let there = shared.clone();
/// let opener = dhaga::spawn(move || {
///     if let Ok(mut open) = there.0.lock() {
///         *open = true;
///     }
///     there.1.notify_one();
/// });
/// let (open, changed) = &*shared;
/// let guard = open.lock().expect("nobody panicked");
/// let guard = changed.wait_while(guard, |open| !*open).expect("nobody panicked");
/// assert!(*guard);
/// # drop(guard);
/// # opener.join().expect("nobody panicked");
/// ```
pub struct Condvar {
    /// How many wait: lets a notification without receivers end with one load. Changed under the
    /// queue's lock; whoever changes the condition under the mutex sees all who wait because of it.
    waiting: AtomicUsize,
    queue: ShortLock<WaitQueue<()>>,
}

/// How a wait of limited time ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(Option<Stopped>);

impl WaitTimeoutResult {
    /// Whether the wait ended for another reason than a notification: the timeout passed, or the
    /// scope ended.
    pub fn timed_out(&self) -> bool {
        self.0.is_some()
    }

    /// What ended the wait before its time, if anything did.
    pub fn interrupt(&self) -> Option<Interrupt> {
        match self.0 {
            Some(Stopped::Interrupted(interrupt)) => Some(interrupt),
            _ => None,
        }
    }
}

impl Condvar {
    /// A condition variable that nobody waits for.
    pub const fn new() -> Self {
        Condvar { waiting: AtomicUsize::new(0), queue: ShortLock::new(WaitQueue::new()) }
    }

    /// Unlocks, suspends until notified, and locks again. Goes on when the scope is cancelled or out
    /// of time. Call it in a loop: it may return without a notification.
    ///
    /// On a thread that is unwinding it blocks, and returns every ten seconds.
    ///
    /// # Errors
    ///
    /// If the mutex is poisoned. The guard is inside the error.
    pub fn wait<'a, T: ?Sized>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        let waiter = Waiter::new(());
        let waiting = self.join(&waiter);
        let mutex = guard.unlock_to_wait();
        if std::thread::panicking() {
            waiting.block_while_unwinding();
        } else {
            waiting.park();
        }
        mutex.lock()
    }

    /// Waits for as long as `condition` holds, as [`wait`](Self::wait) does.
    ///
    /// # Errors
    ///
    /// If the mutex is poisoned. The guard is inside the error.
    pub fn wait_while<'a, T: ?Sized>(
        &self,
        mut guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<MutexGuard<'a, T>> {
        while condition(&mut guard) {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    /// Unlocks, suspends until notified, for `timeout` at most, and locks again.
    ///
    /// If the scope is or gets cancelled or out of time, the wait ends at once, others run, and the
    /// result says so. A loop must look at the result, or ask the condition, to end.
    ///
    /// # Errors
    ///
    /// If the mutex is poisoned. The guard and the result are inside the error.
    pub fn wait_timeout<'a, T: ?Sized>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        self.wait_until(guard, around::after(timeout))
    }

    /// Waits for as long as `condition` holds, for `timeout` at most. The result tells of a timeout
    /// or of the end of the scope only if the condition still holds.
    ///
    /// # Errors
    ///
    /// If the mutex is poisoned. The guard and the result are inside the error.
    pub fn wait_timeout_while<'a, T: ?Sized>(
        &self,
        mut guard: MutexGuard<'a, T>,
        timeout: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        let deadline = around::after(timeout);
        let mut result = WaitTimeoutResult(None);
        while condition(&mut guard) {
            if result.timed_out() {
                return Ok((guard, result));
            }
            (guard, result) = self.wait_until(guard, deadline)?;
        }
        Ok((guard, WaitTimeoutResult(None)))
    }

    /// Wakes the one who has waited longest. Costs next to nothing if nobody waits.
    #[inline]
    pub fn notify_one(&self) {
        if self.waiting.load(Ordering::Acquire) > 0
            && let Some(unparker) = self.notify()
        {
            unparker.unpark();
        }
    }

    /// Wakes all who wait now.
    #[inline]
    pub fn notify_all(&self) {
        // Counted first: those who wait again as soon as they are woken must not be woken again.
        for _ in 0..self.waiting.load(Ordering::Acquire) {
            self.notify_one();
        }
    }

    fn wait_until<'a, T: ?Sized>(
        &self,
        guard: MutexGuard<'a, T>,
        deadline: Option<Instant>,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        // An interrupted wait is one of no length, but not none: the lock is free meanwhile, and
        // others run. A loop that ignores the result would otherwise keep them out for ever.
        let deadline = match park::check() {
            Ok(()) => deadline,
            Err(_) => around::after(Duration::ZERO),
        };
        let waiter = Waiter::new(());
        let waiting = self.join(&waiter);
        let mutex = guard.unlock_to_wait();
        let result = WaitTimeoutResult(waiting.park_until(deadline));
        match mutex.lock() {
            Ok(guard) => Ok((guard, result)),
            Err(poisoned) => Err(PoisonError::new((poisoned.into_inner(), result))),
        }
    }

    #[cold]
    fn notify(&self) -> Option<Unparker> {
        let mut queue = self.queue.lock();
        let unparker = queue.grant(|()| ())?;
        self.waiting.fetch_sub(1, Ordering::Release);
        Some(unparker)
    }

    fn join<'a>(&'a self, waiter: &'a Waiter<()>) -> Waiting<'a> {
        let mut queue = self.queue.lock();
        // SAFETY: what is returned borrows the waiter, and leaves the queue when it is dropped. It is forgotten in
        // `Waiting::end` only, after it has left.
        unsafe { queue.join(waiter, park::unparker()) };
        self.waiting.fetch_add(1, Ordering::Release);
        Waiting { condvar: self, waiter }
    }
}

impl Default for Condvar {
    fn default() -> Self {
        Condvar::new()
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condvar").finish_non_exhaustive()
    }
}

/// A place in the queue. If it is dropped by an unwinding, its notification goes to the next.
struct Waiting<'a> {
    condvar: &'a Condvar,
    waiter: &'a Waiter<()>,
}

impl Waiting<'_> {
    fn park(self) {
        while !self.waiter.is_decided() {
            park::park(WaitReason::Condvar);
        }
        self.end();
    }

    /// What ended the wait instead of a notification.
    fn park_until(self, deadline: Option<Instant>) -> Option<Stopped> {
        let stopped = park_until_decided(self.waiter, WaitReason::Condvar, deadline);
        if self.end() == Stage::Waiting { stopped } else { None }
    }

    /// Waits as one who unwinds: on the OS thread. Nobody owns a condition, so nothing tells a long
    /// wait from a deadlock; it says so, and returns as a spurious wake.
    fn block_while_unwinding(self) {
        let deadline = around::after(owner::UNWIND_BLOCK_MAX);
        let mut parked = Parked::Woken;
        while !self.waiter.is_decided() && parked != Parked::TimedOut {
            parked = park::park_until(WaitReason::Condvar, deadline);
        }
        if self.end() == Stage::Waiting {
            let waited = owner::UNWIND_BLOCK_MAX;
            log::error!("a panicking thread has waited {waited:?} on a condvar");
        }
    }

    /// Ends the wait, and says at which stage it was.
    fn end(self) -> Stage {
        let stage = self.leave();
        std::mem::forget(self);
        stage
    }

    fn leave(&self) -> Stage {
        let mut queue = self.condvar.queue.lock();
        let stage = queue.leave(self.waiter);
        if stage == Stage::Waiting {
            self.condvar.waiting.fetch_sub(1, Ordering::Release);
        }
        stage
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.leave() == Stage::Granted {
            self.condvar.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_for_one_that_is_torn_down_goes_to_the_next() {
        let condvar = Condvar::new();
        let waiters = [Waiter::new(()), Waiter::new(())];
        let (first, second) = (condvar.join(&waiters[0]), condvar.join(&waiters[1]));
        condvar.notify_one();
        drop(first);
        assert_eq!(second.end(), Stage::Granted);
        assert_eq!(condvar.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn who_gives_up_is_not_counted() {
        let condvar = Condvar::new();
        let waiter = Waiter::new(());
        assert_eq!(condvar.join(&waiter).end(), Stage::Waiting);
        drop(condvar.join(&waiter));
        assert_eq!(condvar.waiting.load(Ordering::Relaxed), 0);
    }
}
