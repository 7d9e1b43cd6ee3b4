//! A value that is made when it is first needed.

use std::cell::UnsafeCell;
use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::panic::{RefUnwindSafe, UnwindSafe};

use super::once::Once;

/// A value that its closure makes at the first access, as [`std::sync::LazyLock`]. The closure may wait; those who need the
/// value meanwhile are parked.
///
/// If the closure panics the lock is poisoned for good, since the closure is gone. So it is when the shutdown of a runtime
/// unwinds it.
///
/// # Examples
///
/// ```
/// use dhaga::sync::LazyLock;
///
/// static ANSWER: LazyLock<u32> = LazyLock::new(|| {
///     dhaga::sleep(std::time::Duration::from_millis(1));
///     42
/// });
/// assert_eq!(dhaga::spawn(|| *ANSWER).join()?, 42);
/// # Ok::<(), dhaga::JoinError<u32>>(())
/// ```
pub struct LazyLock<T, F = fn() -> T> {
    /// Complete if there is a value.
    once: Once,
    state: UnsafeCell<State<T, F>>,
}

enum State<T, F> {
    Closure(F),
    /// The closure runs, or has failed.
    Nothing,
    Value(T),
}

// SAFETY: a shared lock gives out `&T` to many threads, which `T: Sync` allows. Closure and value are made by one thread and
// called, taken out or dropped by another, which is sending them. The `Once` lets one thread write, before anybody reads.
unsafe impl<T: Sync + Send, F: Send> Sync for LazyLock<T, F> {}

/// A closure that panics leaves the lock poisoned.
impl<T: UnwindSafe, F: UnwindSafe> UnwindSafe for LazyLock<T, F> {}
impl<T: RefUnwindSafe + UnwindSafe, F: UnwindSafe> RefUnwindSafe for LazyLock<T, F> {}

impl<T, F: FnOnce() -> T> LazyLock<T, F> {
    /// A value that `f` will make.
    pub const fn new(f: F) -> Self {
        LazyLock { once: Once::new(), state: UnsafeCell::new(State::Closure(f)) }
    }

    /// The value, made now if it was not yet: what `Deref` does. Suspends while another makes it, and goes on doing so when
    /// the scope is cancelled or out of time.
    ///
    /// # Panics
    ///
    /// If the closure does or has done so, was unwound by a shutdown, or asks for this very value.
    ///
    /// # Aborts
    ///
    /// A dhaga that is unwinding cannot let others run. If it finds that a dhaga of its own worker makes the value, or
    /// anybody for ten seconds, the process ends with a sentence that says so.
    #[inline]
    pub fn force(this: &Self) -> &T {
        if let Some(value) = LazyLock::get(this) {
            return value;
        }
        this.once.call_once_force(|_| this.make());
        LazyLock::get(this).expect("whoever completes the `Once` of a lazy lock has made its value")
    }

    /// As [`force`](Self::force), for one who owns it.
    ///
    /// # Panics
    ///
    /// As [`force`](Self::force).
    pub fn force_mut(this: &mut Self) -> &mut T {
        LazyLock::force(this);
        LazyLock::get_mut(this).expect("it was made just now")
    }

    /// Makes the value. Only for the closure of the `Once`.
    #[cold]
    fn make(&self) {
        // SAFETY: the `Once` runs one closure at a time, and none after one that has ended well; before that nobody reads. The
        // access ends with this line.
        let before = unsafe { mem::replace(&mut *self.state.get(), State::Nothing) };
        let State::Closure(f) = before else {
            panic!("LazyLock instance has previously been poisoned");
        };
        let value = f();
        // SAFETY: as above: we are still the only one. What is overwritten is `Nothing`.
        unsafe { *self.state.get() = State::Value(value) }
    }
}

impl<T, F> LazyLock<T, F> {
    /// The value, if it has been made. Never suspends.
    #[inline]
    pub fn get(this: &Self) -> Option<&T> {
        if !this.once.is_completed() {
            return None;
        }
        // SAFETY: the value was made, and what its maker wrote is seen by whoever sees that. From then on it changes by
        // `&mut` only.
        match unsafe { &*this.state.get() } {
            State::Value(value) => Some(value),
            _ => None,
        }
    }

    /// The value, if it has been made, for one who owns it.
    pub fn get_mut(this: &mut Self) -> Option<&mut T> {
        match this.state.get_mut() {
            State::Value(value) => Some(value),
            _ => None,
        }
    }
}

impl<T, F: FnOnce() -> T> Deref for LazyLock<T, F> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        LazyLock::force(self)
    }
}

impl<T, F: FnOnce() -> T> DerefMut for LazyLock<T, F> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        LazyLock::force_mut(self)
    }
}

impl<T: Default> Default for LazyLock<T> {
    fn default() -> Self {
        LazyLock::new(T::default)
    }
}

impl<T: fmt::Debug, F> fmt::Debug for LazyLock<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_tuple("LazyLock");
        match LazyLock::get(self) {
            Some(value) => text.field(value),
            None => text.field(&format_args!("<uninit>")),
        };
        text.finish()
    }
}
