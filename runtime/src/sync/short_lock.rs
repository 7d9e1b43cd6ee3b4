//! The lock around the inside of a primitive, or of a protocol crate's: held for some nanoseconds, never across a park or
//! foreign code.
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

/// A lock that is held for some nanoseconds, or now and then for a system call that cannot block: it costs half of what std's
/// does. Who finds it taken spins, then yields the core, and in the end sleeps, and its whole worker with it. So nothing inside may
/// take long or run foreign code, and a dhaga that waits inside may never be resumed. A panic inside does not poison it.
///
/// # Examples
///
/// ```
/// use dhaga::turn::ShortLock;
///
/// let unsent = ShortLock::new(Vec::new());
/// unsent.lock().push(7);
/// let taken = std::mem::take(&mut *unsent.lock());
/// assert_eq!((taken, unsent.lock().len()), (vec![7], 0));
/// ```
pub struct ShortLock<S, F = AtomicBool> {
    is_taken: F,
    inside: UnsafeCell<S>,
}

/// Whether somebody is inside: std's atomic, or loom's in the model, which cannot be made in a constant. Public in name only:
/// nobody outside of the crate can reach it, and so there is no third.
pub trait Flag {
    /// As the atomic's.
    fn swap(&self, value: bool, order: Ordering) -> bool;
    /// As the atomic's.
    fn load(&self, order: Ordering) -> bool;
    /// As the atomic's.
    fn store(&self, value: bool, order: Ordering);
    /// Passes some time between two looks.
    fn pause(round: u32);
}

/// Not `inline(always)`: in a build without optimisation each call site would keep room for the arguments, on each stack.
impl Flag for AtomicBool {
    #[inline]
    fn swap(&self, value: bool, order: Ordering) -> bool {
        self.swap(value, order)
    }

    #[inline]
    fn load(&self, order: Ordering) -> bool {
        self.load(order)
    }

    #[inline]
    fn store(&self, value: bool, order: Ordering) {
        self.store(value, order);
    }

    #[inline]
    fn pause(round: u32) {
        match round {
            0..SPINS => spin_loop(),
            SPINS..LOOKS => thread::yield_now(),
            _ => thread::sleep(SLEEP),
        }
    }
}

// SAFETY: `is_taken` lets one thread at a time in, and hands over what it wrote (acquire, release).
unsafe impl<S: Send, F: Sync> Sync for ShortLock<S, F> {}

/// Nothing of ours panics inside, so nothing is left half-done. This makes the primitives around it as safe to unwind through
/// as std's are.
impl<S> UnwindSafe for ShortLock<S> {}
impl<S> RefUnwindSafe for ShortLock<S> {}

/// Who is inside. Dropped, it leaves.
#[must_use = "who does not keep it has left"]
pub struct ShortGuard<'a, S, F: Flag = AtomicBool> {
    lock: &'a ShortLock<S, F>,
    /// Not for other threads: who enters leaves.
    _stays: std::marker::PhantomData<*const ()>,
}

impl<S> ShortLock<S> {
    /// With nobody inside.
    pub const fn new(inside: S) -> Self {
        Self { is_taken: AtomicBool::new(false), inside: UnsafeCell::new(inside) }
    }
}

impl<S, F: Flag> ShortLock<S, F> {
    /// Goes inside.
    #[inline(always)]
    pub fn lock(&self) -> ShortGuard<'_, S, F> {
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
                F::pause(round);
                round += 1;
            }
            if !self.is_taken.swap(true, Ordering::Acquire) {
                return;
            }
        }
    }
}

impl<S, F: Flag> Deref for ShortGuard<'_, S, F> {
    type Target = S;

    #[inline(always)]
    fn deref(&self) -> &S {
        // SAFETY: we are the one inside.
        unsafe { &*self.lock.inside.get() }
    }
}

impl<S, F: Flag> DerefMut for ShortGuard<'_, S, F> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut S {
        // SAFETY: we are the one inside, and this is our only guard.
        unsafe { &mut *self.lock.inside.get() }
    }
}

impl<S, F: Flag> Drop for ShortGuard<'_, S, F> {
    #[inline(always)]
    fn drop(&mut self) {
        self.lock.is_taken.store(false, Ordering::Release);
    }
}

impl<S: Default> Default for ShortLock<S> {
    fn default() -> Self {
        Self::new(S::default())
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

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::atomic::{UnsafeCell as WatchedCell, model};
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicBool as ModelFlag;

    impl Flag for ModelFlag {
        fn swap(&self, value: bool, order: Ordering) -> bool {
            self.swap(value, order)
        }

        /// The latest value. Nothing hangs on this look, and who finds an old one again and again never ends.
        fn load(&self, order: Ordering) -> bool {
            self.fetch_or(false, order)
        }

        /// By an exchange: loom does not know that a plain store comes behind an exchange that has read the value before it,
        /// and would have who finds the lock taken lock it for good.
        fn store(&self, value: bool, order: Ordering) {
            self.swap(value, order);
        }

        /// As soon as another thread has done something, there is no sense in looking again.
        fn pause(_round: u32) {
            loom::thread::yield_now();
        }
    }

    /// Each finds what those before it wrote, and loom sees to it that no two are inside at once.
    #[test]
    fn loom_one_is_inside_at_a_time_and_finds_what_others_wrote() {
        model(3, || {
            let lock = ShortLock { is_taken: ModelFlag::new(false), inside: UnsafeCell::new(WatchedCell::new(0)) };
            let lock = Arc::new(lock);
            let enter = |lock: &ShortLock<WatchedCell<usize>, ModelFlag>| {
                // SAFETY: we are the one inside, which is what is modelled.
                lock.lock().with_mut(|count| unsafe { *count += 1 });
            };
            // One: two who find it taken would send each other round for ever, in some order.
            let other = loom::thread::spawn({
                let lock = lock.clone();
                move || (0..2).for_each(|_| enter(&lock))
            });
            enter(&lock);
            enter(&lock);
            other.join().expect("it ends");
            // SAFETY: as above.
            assert_eq!(lock.lock().with_mut(|count| unsafe { *count }), 4);
        });
    }
}
