//! The lock around the inside of a primitive: held for some nanoseconds, never across a park or foreign code.
//!
//! Taking it is one locked instruction and leaving it none, half of what a lock with a queue costs; and these two are most
//! of what a send or a receive costs. Who finds it taken spins, since the holder is about to leave; if that one lost its
//! core, yields to the system, and in the end sleeps, so that even a holder of the lowest priority gets a core.

use std::cell::UnsafeCell;
use std::fmt;
use std::hint::spin_loop;
use std::ops::{Deref, DerefMut};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Looks before the first yield: about a microsecond, many times what a holder needs.
const SPINS: u32 = 100;
/// Yields before the first sleep.
const YIELDS: u32 = 100;
const LOOKS: u32 = SPINS + YIELDS;
const SLEEP: Duration = Duration::from_micros(50);

pub(super) struct ShortLock<S> {
    is_taken: AtomicBool,
    inside: UnsafeCell<S>,
}

// SAFETY: `is_taken` lets one thread at a time in, and hands over what it wrote (acquire, release).
unsafe impl<S: Send> Sync for ShortLock<S> {}

/// Nothing panics inside, so nothing is left half-done. This makes the primitives around it as safe to unwind through as
/// std's are.
impl<S> UnwindSafe for ShortLock<S> {}
impl<S> RefUnwindSafe for ShortLock<S> {}

pub(super) struct ShortGuard<'a, S> {
    lock: &'a ShortLock<S>,
    /// Not for other threads: who enters leaves.
    _stays: std::marker::PhantomData<*const ()>,
}

impl<S> ShortLock<S> {
    pub(super) const fn new(inside: S) -> Self {
        Self { is_taken: AtomicBool::new(false), inside: UnsafeCell::new(inside) }
    }

    #[inline(always)]
    pub(super) fn lock(&self) -> ShortGuard<'_, S> {
        if self.is_taken.swap(true, Ordering::Acquire) {
            self.lock_contended();
        }
        ShortGuard { lock: self, _stays: std::marker::PhantomData }
    }

    #[cold]
    fn lock_contended(&self) {
        let mut round = 0;
        loop {
            while self.is_taken.load(Ordering::Relaxed) {
                match round {
                    0..SPINS => spin_loop(),
                    SPINS..LOOKS => thread::yield_now(),
                    _ => thread::sleep(SLEEP),
                }
                round += 1;
            }
            if !self.is_taken.swap(true, Ordering::Acquire) {
                return;
            }
        }
    }
}

impl<S> Deref for ShortGuard<'_, S> {
    type Target = S;

    #[inline(always)]
    fn deref(&self) -> &S {
        // SAFETY: we are the one inside.
        unsafe { &*self.lock.inside.get() }
    }
}

impl<S> DerefMut for ShortGuard<'_, S> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut S {
        // SAFETY: we are the one inside, and this is our only guard.
        unsafe { &mut *self.lock.inside.get() }
    }
}

impl<S> Drop for ShortGuard<'_, S> {
    #[inline(always)]
    fn drop(&mut self) {
        self.lock.is_taken.store(false, Ordering::Release);
    }
}

impl<S> fmt::Debug for ShortLock<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShortLock").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_inside_at_a_time() {
        const EACH: usize = 50_000;
        let lock = ShortLock::new([0_usize; 2]);
        thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for _ in 0..EACH {
                        let mut inside = lock.lock();
                        let [first, second] = *inside;
                        assert_eq!(first, second);
                        *inside = [first + 1, second + 1];
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), [4 * EACH; 2]);
    }
}
