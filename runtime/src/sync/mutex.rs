//! A value that one dhaga at a time may touch.

use std::cell::UnsafeCell;
use std::error::Error;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};
use std::thread;
use std::time::Duration;

use super::raw_lock::RawLock;
use super::wait_queue::Stopped;
use crate::around;
use crate::park::{self, Interrupt};

/// A lock around a value, as [`std::sync::Mutex`], whose waiters are parked.
///
/// It may be held across a wait, which a lock of `std` must not be: the second dhaga that wants it
/// would block the worker that must run the first.
///
/// Whoever comes running by a free lock may take it before those who queue, but no waiter loses more
/// than four times in a row. As in std, a panic while the lock is held poisons it; a runtime that
/// unwinds its dhagas as it shuts down does not.
///
/// # Examples
///
/// ```
/// use dhaga::sync::Mutex;
///
/// let total = Mutex::new(1);
/// *total.lock().expect("nobody panicked") += 2;
/// assert_eq!(total.into_inner().expect("nobody panicked"), 3);
/// ```
pub struct Mutex<T: ?Sized> {
    lock: RawLock,
    poisoned: AtomicBool,
    value: UnsafeCell<T>,
}

/// The right to touch the value of a [`Mutex`], given back when it is dropped.
#[must_use = "the mutex unlocks as soon as its guard is dropped"]
pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
    /// Whether the thread was unwinding already: then it is not this guard's work that was cut short.
    panicking: bool,
    /// As std's, a guard stays on its thread. A dhaga does so too, and carries it anywhere.
    stays: PhantomData<*const ()>,
}

/// Why [`Mutex::lock_timeout`] gave no plain guard, and the like of a [`RwLock`](super::RwLock).
pub enum LockTimeoutError<G> {
    /// The timeout passed before the lock was free.
    Timeout,
    /// The scope was cancelled or ran out of time, or the thread is unwinding and cannot wait.
    Interrupted(Interrupt),
    /// Locked, but somebody panicked while holding the lock; the guard is inside.
    Poisoned(PoisonError<G>),
}

// SAFETY: sending the mutex sends the value in it, and nothing else that is bound to a thread.
unsafe impl<T: ?Sized + Send> Send for Mutex<T> {}

// SAFETY: a shared mutex gives out its value to one thread at a time, by `&mut`: the lock sees to
// that, and its acquire and release order what they do. That is sending the value back and forth.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}

// SAFETY: a shared guard gives out `&T` and nothing more; that several threads may do so at once is
// what `T: Sync` says. Only the owner of the guard can unlock.
unsafe impl<T: ?Sized + Sync> Sync for MutexGuard<'_, T> {}

/// What a panic may have left in disorder is poisoned.
impl<T: ?Sized> UnwindSafe for Mutex<T> {}
impl<T: ?Sized> RefUnwindSafe for Mutex<T> {}

impl<T> Mutex<T> {
    /// An unlocked mutex.
    pub const fn new(value: T) -> Self {
        Mutex { lock: RawLock::new(), poisoned: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Takes the value out.
    ///
    /// # Errors
    ///
    /// If the mutex is poisoned; the value is inside the error.
    pub fn into_inner(self) -> LockResult<T> {
        let poisoned = self.is_poisoned();
        poison(poisoned, self.value.into_inner())
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Locks the mutex. Suspends while another holds it, and goes on doing so when the scope is
    /// cancelled or out of time; [`lock_timeout`](Self::lock_timeout) gives up.
    ///
    /// A dhaga that locks a mutex which it holds already waits for ever.
    ///
    /// # Errors
    ///
    /// If somebody panicked while holding the lock. The guard is inside the error.
    ///
    /// # Aborts
    ///
    /// A dhaga that is unwinding cannot let others run. If it finds the mutex held by a dhaga of
    /// its own worker, or by anybody for ten seconds, the process ends with a sentence that names both.
    #[inline]
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        self.lock.acquire();
        self.guard()
    }

    /// Locks the mutex if nobody holds it. Never suspends.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if somebody holds it; `Poisoned`, with the guard, as for [`lock`](Self::lock).
    #[inline]
    pub fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        if !self.lock.try_acquire() {
            return Err(TryLockError::WouldBlock);
        }
        Ok(self.guard()?)
    }

    /// Locks the mutex, but suspends for `timeout` at most.
    ///
    /// # Errors
    ///
    /// If the time is over, if the scope is cancelled or out of time, and with the guard if the
    /// mutex is poisoned.
    pub fn lock_timeout(&self, timeout: Duration) -> Result<MutexGuard<'_, T>, LockTimeoutError<MutexGuard<'_, T>>> {
        match self.lock.acquire_until(|| around::after(timeout)) {
            Ok(()) => self.guard().map_err(LockTimeoutError::Poisoned),
            Err(stopped) => Err(stopped.into()),
        }
    }

    /// The value, without locking: the borrow shows that nobody else can have it.
    ///
    /// # Errors
    ///
    /// If the mutex is poisoned; the value is inside the error.
    pub fn get_mut(&mut self) -> LockResult<&mut T> {
        let poisoned = self.is_poisoned();
        poison(poisoned, self.value.get_mut())
    }

    /// Whether somebody panicked while holding the lock.
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    /// Declares the value sound again.
    pub fn clear_poison(&self) {
        self.poisoned.store(false, Ordering::Relaxed);
    }

    /// The guard of who has just acquired the lock.
    #[inline]
    fn guard(&self) -> LockResult<MutexGuard<'_, T>> {
        let guard = MutexGuard { mutex: self, panicking: thread::panicking(), stays: PhantomData };
        poison(self.is_poisoned(), guard)
    }
}

#[inline]
pub(super) fn poison<T>(poisoned: bool, value: T) -> LockResult<T> {
    if poisoned {
        return Err(PoisonError::new(value));
    }
    Ok(value)
}

impl<'a, T: ?Sized> MutexGuard<'a, T> {
    /// Unlocks for the wait of a [`Condvar`](super::Condvar), which is no end of the work.
    #[inline]
    pub(super) fn unlock_to_wait(self) -> &'a Mutex<T> {
        let mutex = self.mutex;
        std::mem::forget(self);
        mutex.lock.release();
        mutex
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard exists, so its owner holds the lock, and with it the only way to the
        // value; the borrow of the guard excludes `deref_mut` and the unlocking drop.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the borrow of the guard is exclusive.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if !self.panicking && thread::panicking() && !park::is_torn_down() {
            self.mutex.poisoned.store(true, Ordering::Relaxed);
        }
        self.mutex.lock.release();
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Mutex::new(T::default())
    }
}

impl<T> From<T> for Mutex<T> {
    fn from(value: T) -> Self {
        Mutex::new(value)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Mutex");
        match self.try_lock() {
            Ok(guard) => text.field("data", &&*guard),
            Err(TryLockError::Poisoned(error)) => text.field("data", &&**error.get_ref()),
            Err(TryLockError::WouldBlock) => text.field("data", &format_args!("<locked>")),
        };
        text.field("poisoned", &self.is_poisoned());
        text.finish_non_exhaustive()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<G> From<Stopped> for LockTimeoutError<G> {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::TimedOut => LockTimeoutError::Timeout,
            Stopped::Interrupted(interrupt) => LockTimeoutError::Interrupted(interrupt),
        }
    }
}

impl<G> fmt::Display for LockTimeoutError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LockTimeoutError::Timeout => "the lock was not free within the timeout",
            LockTimeoutError::Interrupted(_) => "the wait for the lock was interrupted",
            LockTimeoutError::Poisoned(_) => "somebody panicked while holding the lock",
        })
    }
}

impl<G> fmt::Debug for LockTimeoutError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockTimeoutError::Timeout => f.write_str("Timeout"),
            LockTimeoutError::Interrupted(why) => f.debug_tuple("Interrupted").field(why).finish(),
            LockTimeoutError::Poisoned(_) => f.write_str("Poisoned(..)"),
        }
    }
}

impl<G> Error for LockTimeoutError<G> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            LockTimeoutError::Interrupted(interrupt) => Some(interrupt),
            _ => None,
        }
    }
}
