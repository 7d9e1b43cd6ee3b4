//! A value that many may read at once, or one may write.

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LockResult, TryLockError, TryLockResult};
use std::thread;
use std::time::Duration;

use super::mutex::{LockTimeoutError, poison};
use super::raw_rwlock::{Access, RawRwLock};
use crate::around;
use crate::park;

/// A lock around a value, as [`std::sync::RwLock`], whose waiters are parked. It may be held across a wait.
///
/// Those who wait are served in the order in which they came, and nobody who comes running overtakes them: neither readers
/// nor writers starve. Readers that wait side by side enter together. A waiting writer keeps new readers out, so as in std
/// whoever holds a read guard and asks for another may wait for ever: for a writer that waits for its first.
///
/// As in std, a panic poisons the lock if it passes a write guard, and one that passes a read guard does not. A runtime that
/// unwinds its dhagas as it shuts down poisons nothing.
///
/// # Examples
///
/// ```
/// use dhaga::sync::RwLock;
///
/// let names = RwLock::new(vec!["warp"]);
/// {
///     let (one, another) = (names.read().expect("nobody panicked"), names.read().expect("nobody panicked"));
///     assert_eq!(one.len(), another.len());
/// }
/// names.write().expect("nobody panicked").push("weft");
/// assert_eq!(*names.read().expect("nobody panicked"), ["warp", "weft"]);
/// ```
pub struct RwLock<T: ?Sized> {
    lock: RawRwLock,
    poisoned: AtomicBool,
    value: UnsafeCell<T>,
}

/// The right to read the value of a [`RwLock`], given back when it is dropped.
#[must_use = "the lock is released as soon as its guard is dropped"]
pub struct RwLockReadGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    /// As std's, a guard stays on its thread, and is as safe to unwind through as a reference: a reader that panics poisons
    /// nothing.
    stays: PhantomData<*const T>,
}

/// The right to read and write the value of a [`RwLock`], given back when it is dropped.
#[must_use = "the lock is released as soon as its guard is dropped"]
pub struct RwLockWriteGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    /// Whether the thread was unwinding already: then it is not this guard's work that was cut short.
    panicking: bool,
    /// As std's, a guard stays on its thread.
    stays: PhantomData<*const ()>,
}

// SAFETY: sending the lock sends the value in it, and nothing else that is bound to a thread.
unsafe impl<T: ?Sized + Send> Send for RwLock<T> {}

// SAFETY: a shared lock gives out its value by `&` to several threads at once, which `T: Sync` allows, or by `&mut` to one,
// which is sending it: the lock sees to that, and its acquire and release order what they do.
unsafe impl<T: ?Sized + Send + Sync> Sync for RwLock<T> {}

// SAFETY: a shared guard gives out `&T` and nothing more. Only the owner of the guard can release the lock.
unsafe impl<T: ?Sized + Sync> Sync for RwLockReadGuard<'_, T> {}

// SAFETY: as for a read guard.
unsafe impl<T: ?Sized + Sync> Sync for RwLockWriteGuard<'_, T> {}

/// What a panic may have left in disorder is poisoned.
impl<T: ?Sized> UnwindSafe for RwLock<T> {}
impl<T: ?Sized> RefUnwindSafe for RwLock<T> {}

impl<T> RwLock<T> {
    /// An unlocked lock.
    pub const fn new(value: T) -> Self {
        RwLock { lock: RawRwLock::new(), poisoned: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Takes the value out.
    ///
    /// # Errors
    ///
    /// If the lock is poisoned; the value is inside the error.
    pub fn into_inner(self) -> LockResult<T> {
        let poisoned = self.is_poisoned();
        poison(poisoned, self.value.into_inner())
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Locks for reading. Suspends while a writer is inside or waits, and goes on doing so when the scope is cancelled or out
    /// of time; [`read_timeout`](Self::read_timeout) gives up.
    ///
    /// # Errors
    ///
    /// If a writer panicked while holding the lock. The guard is inside the error.
    ///
    /// # Panics
    ///
    /// If a billion readers are inside.
    ///
    /// # Aborts
    ///
    /// A dhaga that is unwinding cannot let others run. It enters past those who wait; but if it finds a writer inside that
    /// is a dhaga of its own worker, or anybody else for ten seconds, the process ends with a sentence that says so.
    #[inline]
    pub fn read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
        self.lock.acquire(Access::Read);
        self.read_guard()
    }

    /// Locks for reading if no writer is inside or waits. Never suspends.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if a writer is inside or waits; `Poisoned`, with the guard, as for [`read`](Self::read).
    #[inline]
    pub fn try_read(&self) -> TryLockResult<RwLockReadGuard<'_, T>> {
        if !self.lock.try_acquire(Access::Read) {
            return Err(TryLockError::WouldBlock);
        }
        Ok(self.read_guard()?)
    }

    /// Locks for reading, but suspends for `timeout` at most.
    ///
    /// # Errors
    ///
    /// If the time is over, if the scope is cancelled or out of time, and with the guard if the lock is poisoned.
    pub fn read_timeout(
        &self,
        timeout: Duration,
    ) -> Result<RwLockReadGuard<'_, T>, LockTimeoutError<RwLockReadGuard<'_, T>>> {
        match self.lock.acquire_until(Access::Read, || around::after(timeout)) {
            Ok(()) => self.read_guard().map_err(LockTimeoutError::Poisoned),
            Err(stopped) => Err(stopped.into()),
        }
    }

    /// Locks for writing. Suspends while anybody else is inside, and goes on doing so when the scope is cancelled or out of
    /// time; [`write_timeout`](Self::write_timeout) gives up.
    ///
    /// # Errors
    ///
    /// If another writer panicked while holding the lock. The guard is inside the error.
    ///
    /// # Aborts
    ///
    /// A dhaga that is unwinding cannot let others run. If it finds the lock held by a writer of its own worker, or by a
    /// reader of its own worker that was the last to enter, or by anybody for ten seconds, the process ends with a sentence
    /// that says so.
    #[inline]
    pub fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
        self.lock.acquire(Access::Write);
        self.write_guard()
    }

    /// Locks for writing if nobody is inside or waits. Never suspends.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if somebody is inside or waits; `Poisoned`, with the guard, as for [`write`](Self::write).
    #[inline]
    pub fn try_write(&self) -> TryLockResult<RwLockWriteGuard<'_, T>> {
        if !self.lock.try_acquire(Access::Write) {
            return Err(TryLockError::WouldBlock);
        }
        Ok(self.write_guard()?)
    }

    /// Locks for writing, but suspends for `timeout` at most. Readers that came behind it go on when it gives up.
    ///
    /// # Errors
    ///
    /// If the time is over, if the scope is cancelled or out of time, and with the guard if the lock is poisoned.
    pub fn write_timeout(
        &self,
        timeout: Duration,
    ) -> Result<RwLockWriteGuard<'_, T>, LockTimeoutError<RwLockWriteGuard<'_, T>>> {
        match self.lock.acquire_until(Access::Write, || around::after(timeout)) {
            Ok(()) => self.write_guard().map_err(LockTimeoutError::Poisoned),
            Err(stopped) => Err(stopped.into()),
        }
    }

    /// The value, without locking: the borrow shows that nobody else can have it.
    ///
    /// # Errors
    ///
    /// If the lock is poisoned; the value is inside the error.
    pub fn get_mut(&mut self) -> LockResult<&mut T> {
        let poisoned = self.is_poisoned();
        poison(poisoned, self.value.get_mut())
    }

    /// Whether a writer panicked while holding the lock.
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    /// Declares the value sound again.
    pub fn clear_poison(&self) {
        self.poisoned.store(false, Ordering::Relaxed);
    }

    /// The guard of who has just acquired the lock for reading.
    #[inline]
    fn read_guard(&self) -> LockResult<RwLockReadGuard<'_, T>> {
        poison(self.is_poisoned(), RwLockReadGuard { lock: self, stays: PhantomData })
    }

    /// The guard of who has just acquired the lock for writing.
    #[inline]
    fn write_guard(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
        let guard = RwLockWriteGuard { lock: self, panicking: thread::panicking(), stays: PhantomData };
        poison(self.is_poisoned(), guard)
    }
}

impl<'a, T: ?Sized> RwLockWriteGuard<'a, T> {
    /// Turns the right to write into one to read, and lets readers in that wait. No writer comes in between.
    pub fn downgrade(guard: Self) -> RwLockReadGuard<'a, T> {
        let lock = guard.lock;
        std::mem::forget(guard);
        lock.lock.downgrade();
        RwLockReadGuard { lock, stays: PhantomData }
    }
}

impl<T: ?Sized> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard exists, so its owner is inside as a reader: no writer is, and so nobody has a `&mut`; the borrow
        // of the guard excludes the drop that ends this.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard exists, so its owner alone is inside; the borrow of the guard excludes `deref_mut` and the drop
        // that ends this.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> DerefMut for RwLockWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the borrow of the guard is exclusive.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: ?Sized> Drop for RwLockReadGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.lock.release(Access::Read);
    }
}

impl<T: ?Sized> Drop for RwLockWriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if !self.panicking && thread::panicking() && !park::is_torn_down() {
            self.lock.poisoned.store(true, Ordering::Relaxed);
        }
        self.lock.lock.release(Access::Write);
    }
}

impl<T: Default> Default for RwLock<T> {
    fn default() -> Self {
        RwLock::new(T::default())
    }
}

impl<T> From<T> for RwLock<T> {
    fn from(value: T) -> Self {
        RwLock::new(value)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("RwLock");
        match self.try_read() {
            Ok(guard) => text.field("data", &&*guard),
            Err(TryLockError::Poisoned(error)) => text.field("data", &&**error.get_ref()),
            Err(TryLockError::WouldBlock) => text.field("data", &format_args!("<locked>")),
        };
        text.field("poisoned", &self.is_poisoned());
        text.finish_non_exhaustive()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
