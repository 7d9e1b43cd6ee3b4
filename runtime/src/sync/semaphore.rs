//! A number of permits: so many may be inside at once.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::short_lock::{ShortGuard, ShortLock};
use super::wait_queue::{
    Stage, Stopped, WaitQueue, Waiter, check_scope, check_unwinding, park_until_decided, unpark_each,
};
use crate::around;
use crate::park::{self, Interrupt, Unparker, WaitReason};

/// Limits how many do something at once.
///
/// Permits go out strictly in the order of asking: one who wants many is not overtaken by those who
/// want few, and nobody is overtaken by who never waited.
///
/// # Examples
///
/// ```
/// use dhaga::sync::Semaphore;
///
/// let uploads = Semaphore::new(2);
/// let first = uploads.acquire()?;
/// let second = uploads.acquire()?;
/// assert!(uploads.try_acquire().is_err());
/// drop(first);
/// assert_eq!(uploads.available_permits(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Semaphore {
    state: ShortLock<State>,
}

#[derive(Debug)]
struct State {
    permits: usize,
    closed: bool,
    /// How many permits each waiter wants.
    waiters: WaitQueue<usize>,
}

/// Permits of a [`Semaphore`], given back when it is dropped.
#[must_use = "the permit goes back as soon as it is dropped"]
#[derive(Debug)]
pub struct SemaphorePermit<'a> {
    semaphore: &'a Semaphore,
    count: usize,
}

/// As [`SemaphorePermit`], and it may go wherever it wants, as into the dhaga that does the work.
#[must_use = "the permit goes back as soon as it is dropped"]
#[derive(Debug)]
pub struct OwnedSemaphorePermit {
    semaphore: Arc<Semaphore>,
    count: usize,
}

/// Why [`Semaphore::acquire`] gave no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcquireError {
    /// The semaphore was closed.
    Closed,
    /// The scope was cancelled or ran out of time, or the thread is unwinding and cannot wait.
    Interrupted(Interrupt),
}

/// Why [`Semaphore::try_acquire`] gave no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryAcquireError {
    /// Too few permits are left, or others wait for them.
    NoPermits,
    /// The semaphore was closed.
    Closed,
}

/// Why [`Semaphore::acquire_timeout`] gave no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcquireTimeoutError {
    /// The timeout passed before a permit was free.
    Timeout,
    /// The semaphore was closed.
    Closed,
    /// The scope was cancelled or ran out of time, or the thread is unwinding and cannot wait.
    Interrupted(Interrupt),
}

impl Semaphore {
    /// A semaphore with this many permits.
    pub const fn new(permits: usize) -> Self {
        let state = State { permits, closed: false, waiters: WaitQueue::new() };
        Semaphore { state: ShortLock::new(state) }
    }

    /// Takes a permit. Suspends until one is free.
    ///
    /// # Errors
    ///
    /// If the semaphore is closed, or the scope is cancelled or out of time.
    #[inline]
    pub fn acquire(&self) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.acquire_many(1)
    }

    /// Takes `count` permits at once. Suspends until so many are free; if the semaphore never has so
    /// many, for ever.
    ///
    /// # Errors
    ///
    /// If the semaphore is closed, or the scope is cancelled or out of time.
    #[inline]
    pub fn acquire_many(&self, count: usize) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.take_or_wait(count, || None).map_err(AcquireTimeoutError::without_timeout)?;
        Ok(self.permit(count))
    }

    /// Takes a permit. Suspends until one is free, for `timeout` at most.
    ///
    /// # Errors
    ///
    /// If the time is over, the semaphore is closed, or the scope is cancelled or out of time.
    pub fn acquire_timeout(&self, timeout: Duration) -> Result<SemaphorePermit<'_>, AcquireTimeoutError> {
        self.acquire_many_timeout(1, timeout)
    }

    /// Takes `count` permits at once. Suspends until so many are free, for `timeout` at most.
    ///
    /// # Errors
    ///
    /// If the time is over, the semaphore is closed, or the scope is cancelled or out of time.
    pub fn acquire_many_timeout(
        &self,
        count: usize,
        timeout: Duration,
    ) -> Result<SemaphorePermit<'_>, AcquireTimeoutError> {
        self.take_or_wait(count, || around::after(timeout))?;
        Ok(self.permit(count))
    }

    /// Takes a permit that keeps the semaphore alive. Suspends until one is free.
    ///
    /// # Errors
    ///
    /// If the semaphore is closed, or the scope is cancelled or out of time.
    pub fn acquire_owned(self: &Arc<Self>) -> Result<OwnedSemaphorePermit, AcquireError> {
        self.take_or_wait(1, || None).map_err(AcquireTimeoutError::without_timeout)?;
        Ok(self.owned_permit())
    }

    /// Takes a permit if one is free and nobody waits. Never suspends.
    ///
    /// # Errors
    ///
    /// If no permit is free, or the semaphore is closed.
    #[inline]
    pub fn try_acquire(&self) -> Result<SemaphorePermit<'_>, TryAcquireError> {
        self.state.lock().take(1)?;
        Ok(self.permit(1))
    }

    /// Takes a permit that keeps the semaphore alive, if one is free and nobody waits. Never
    /// suspends.
    ///
    /// # Errors
    ///
    /// If no permit is free, or the semaphore is closed.
    pub fn try_acquire_owned(self: &Arc<Self>) -> Result<OwnedSemaphorePermit, TryAcquireError> {
        self.state.lock().take(1)?;
        Ok(self.owned_permit())
    }

    /// Adds permits, for good.
    ///
    /// # Panics
    ///
    /// If there are more permits then than a `usize` counts.
    pub fn add_permits(&self, count: usize) {
        self.give(count);
    }

    /// Takes free permits away, for good: so many, or as many as there are. Returns how many.
    pub(crate) fn forget_permits(&self, count: usize) -> usize {
        let mut state = self.state.lock();
        let taken = count.min(state.permits);
        state.permits -= taken;
        taken
    }

    /// How many permits are free.
    pub fn available_permits(&self) -> usize {
        self.state.lock().permits
    }

    /// Ends all waits for a permit, now and from now on. Permits that are out stay good.
    pub fn close(&self) {
        self.state.lock().closed = true;
        unpark_each(|| self.state.lock().waiters.dismiss());
    }

    /// Whether [`close`](Self::close) was called.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    #[inline]
    fn permit(&self, count: usize) -> SemaphorePermit<'_> {
        SemaphorePermit { semaphore: self, count }
    }

    fn owned_permit(self: &Arc<Self>) -> OwnedSemaphorePermit {
        OwnedSemaphorePermit { semaphore: self.clone(), count: 1 }
    }

    #[inline]
    fn take_or_wait(
        &self,
        count: usize,
        deadline: impl FnOnce() -> Option<Instant>,
    ) -> Result<(), AcquireTimeoutError> {
        check_scope()?;
        let mut state = self.state.lock();
        match state.take(count) {
            Ok(()) => Ok(()),
            Err(TryAcquireError::Closed) => Err(AcquireTimeoutError::Closed),
            Err(TryAcquireError::NoPermits) => self.wait(state, count, deadline),
        }
    }

    #[inline(always)]
    fn wait(
        &self,
        mut state: ShortGuard<'_, State>,
        count: usize,
        deadline: impl FnOnce() -> Option<Instant>,
    ) -> Result<(), AcquireTimeoutError> {
        check_unwinding()?;
        let waiter = Waiter::new(count);
        // SAFETY: `waiting` leaves the queue before `waiter` goes, unless it is decided.
        unsafe { state.waiters.join(&waiter, park::unparker()) };
        drop(state);
        let waiting = Waiting { semaphore: self, waiter: &waiter };
        let stopped = park_until_decided(&waiter, WaitReason::Semaphore, deadline());
        waiting.end(stopped)
    }

    #[inline]
    fn give(&self, count: usize) {
        let mut state = self.state.lock();
        let permits = state.permits.checked_add(count);
        let Some(permits) = permits else {
            drop(state);
            panic!("a semaphore was given more permits than it can count");
        };
        state.permits = permits;
        let first = state.grant_first();
        drop(state);
        if let Some(first) = first {
            first.unpark();
            self.serve();
        }
    }

    /// Grants permits to those whose turn it is.
    fn serve(&self) {
        unpark_each(|| self.state.lock().grant_first());
    }
}

impl State {
    #[inline]
    fn take(&mut self, count: usize) -> Result<(), TryAcquireError> {
        if self.closed {
            return Err(TryAcquireError::Closed);
        }
        if self.permits < count || !self.waiters.is_empty() {
            return Err(TryAcquireError::NoPermits);
        }
        self.permits -= count;
        Ok(())
    }

    /// Grants the first waiter its permits, if there are enough.
    fn grant_first(&mut self) -> Option<Unparker> {
        let left = self.permits.checked_sub(*self.waiters.first()?)?;
        self.permits = left;
        self.waiters.grant(|_| ())
    }
}

/// A place in the queue of one who may yet give up, be torn down, or be granted at that very moment.
struct Waiting<'a> {
    semaphore: &'a Semaphore,
    waiter: &'a Waiter<usize>,
}

impl Waiting<'_> {
    /// Ends the wait: it is decided, or has stopped for another reason.
    #[inline(always)]
    fn end(self, stopped: Option<Stopped>) -> Result<(), AcquireTimeoutError> {
        if let Some(stopped) = stopped
            && self.semaphore.state.lock().waiters.leave(self.waiter) == Stage::Waiting
        {
            // Whoever wanted many may have stood before one who wants few.
            self.semaphore.serve();
            std::mem::forget(self);
            return Err(stopped.into());
        }
        let stage = self.waiter.stage();
        std::mem::forget(self);
        if stage == Stage::Granted { Ok(()) } else { Err(AcquireTimeoutError::Closed) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.semaphore.state.lock();
        if state.waiters.leave(self.waiter) == Stage::Granted {
            state.permits += self.waiter.with_value(|count| *count);
        }
        drop(state);
        // Also when nothing was granted: whoever wanted many may have stood before one who wants few.
        self.semaphore.serve();
    }
}

impl SemaphorePermit<'_> {
    /// Keeps the permits from going back: the semaphore has that many fewer from now on.
    pub fn forget(mut self) {
        self.count = 0;
    }
}

impl Drop for SemaphorePermit<'_> {
    #[inline]
    fn drop(&mut self) {
        self.semaphore.give(self.count);
    }
}

impl OwnedSemaphorePermit {
    /// Keeps the permit from going back: the semaphore has one fewer from now on.
    pub fn forget(mut self) {
        self.count = 0;
    }
}

impl Drop for OwnedSemaphorePermit {
    fn drop(&mut self) {
        self.semaphore.give(self.count);
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        let (permits, closed) = (state.permits, state.closed);
        drop(state);
        let mut text = f.debug_struct("Semaphore");
        text.field("permits", &permits).field("closed", &closed);
        text.finish_non_exhaustive()
    }
}

impl From<Interrupt> for AcquireTimeoutError {
    fn from(interrupt: Interrupt) -> Self {
        AcquireTimeoutError::Interrupted(interrupt)
    }
}

impl From<Stopped> for AcquireTimeoutError {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::TimedOut => AcquireTimeoutError::Timeout,
            Stopped::Interrupted(interrupt) => AcquireTimeoutError::Interrupted(interrupt),
        }
    }
}

impl AcquireTimeoutError {
    fn without_timeout(self) -> AcquireError {
        match self {
            AcquireTimeoutError::Closed => AcquireError::Closed,
            AcquireTimeoutError::Interrupted(interrupt) => AcquireError::Interrupted(interrupt),
            AcquireTimeoutError::Timeout => unreachable!("a wait without a timeout timed out"),
        }
    }
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AcquireError::Closed => "the semaphore was closed",
            AcquireError::Interrupted(_) => "the wait for a permit was interrupted",
        })
    }
}

impl fmt::Display for TryAcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TryAcquireError::NoPermits => "no permit is free",
            TryAcquireError::Closed => "the semaphore was closed",
        })
    }
}

impl fmt::Display for AcquireTimeoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AcquireTimeoutError::Timeout => "no permit was free within the timeout",
            AcquireTimeoutError::Closed => "the semaphore was closed",
            AcquireTimeoutError::Interrupted(_) => "the wait for a permit was interrupted",
        })
    }
}

impl Error for AcquireError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            AcquireError::Interrupted(interrupt) => Some(interrupt),
            _ => None,
        }
    }
}

impl Error for TryAcquireError {}

impl Error for AcquireTimeoutError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            AcquireTimeoutError::Interrupted(interrupt) => Some(interrupt),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait<'a>(semaphore: &'a Semaphore, waiter: &'a Waiter<usize>) -> Waiting<'a> {
        // SAFETY: the caller drops what is returned before the waiter.
        unsafe { semaphore.state.lock().waiters.join(waiter, park::unparker()) };
        Waiting { semaphore, waiter }
    }

    #[test]
    fn permits_of_one_that_is_torn_down_go_to_the_next() {
        let semaphore = Semaphore::new(0);
        let waiters = [Waiter::new(2), Waiter::new(1)];
        let (first, second) = (wait(&semaphore, &waiters[0]), wait(&semaphore, &waiters[1]));
        semaphore.add_permits(2);
        drop(first);
        assert_eq!(semaphore.available_permits(), 1);
        drop(second);
        assert_eq!(semaphore.available_permits(), 2);
    }
}
