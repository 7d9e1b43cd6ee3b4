//! A value that is set once.

use std::cell::UnsafeCell;
use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};

use super::once::Once;

/// A cell that can be written once, as [`std::sync::OnceLock`]. The closure that makes the value may wait; those who need it
/// meanwhile are parked.
///
/// # Examples
///
/// ```
/// use dhaga::sync::OnceLock;
///
/// static ADDRESS: OnceLock<String> = OnceLock::new();
/// let asked = dhaga::spawn(|| ADDRESS.get_or_init(|| "found after a while".to_owned()).as_str());
/// assert_eq!(asked.join()?, "found after a while");
/// assert_eq!(ADDRESS.get().map(String::as_str), Some("found after a while"));
/// # Ok::<(), dhaga::JoinError<&'static str>>(())
/// ```
pub struct OnceLock<T> {
    /// Complete if there is a value.
    once: Once,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: a shared cell gives out `&T` to many threads, which `T: Sync` allows; and the value that one thread set is taken
// out or dropped by another, which is sending it. The `Once` lets one closure write, before anybody reads.
unsafe impl<T: Sync + Send> Sync for OnceLock<T> {}

/// A closure that panics leaves the cell empty.
impl<T: UnwindSafe> UnwindSafe for OnceLock<T> {}
impl<T: RefUnwindSafe + UnwindSafe> RefUnwindSafe for OnceLock<T> {}

impl<T> OnceLock<T> {
    /// An empty cell.
    pub const fn new() -> Self {
        OnceLock { once: Once::new(), value: UnsafeCell::new(None) }
    }

    /// The value, if it is set. Never suspends.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        if !self.once.is_completed() {
            return None;
        }
        // SAFETY: the one closure that writes has ended, and what it wrote is seen by whoever sees that. From then on the
        // value changes by `&mut self` only.
        unsafe { (*self.value.get()).as_ref() }
    }

    /// The value, if it is set. The borrow shows that nobody else can have it.
    #[inline]
    pub fn get_mut(&mut self) -> Option<&mut T> {
        self.value.get_mut().as_mut()
    }

    /// Suspends until the value is set, and goes on doing so when the scope is cancelled or out of time.
    ///
    /// # Panics
    ///
    /// If it is called by the closure that makes the value.
    ///
    /// # Aborts
    ///
    /// As [`get_or_init`](Self::get_or_init).
    pub fn wait(&self) -> &T {
        self.once.wait_force();
        self.get().expect(IS_SET)
    }

    /// Sets the value. Suspends while another makes one.
    ///
    /// # Errors
    ///
    /// If there is a value already; the new one comes back.
    pub fn set(&self, value: T) -> Result<(), T> {
        let mut value = Some(value);
        self.once.call_once_force(|_| self.write(value.take()));
        value.map_or(Ok(()), Err)
    }

    /// The value; if there is none, `f` makes it. Suspends while another makes one, and goes on doing so when the scope is
    /// cancelled or out of time.
    ///
    /// If `f` panics the cell stays empty, and the next who asks makes the value.
    ///
    /// # Panics
    ///
    /// If `f` does, or if it asks for this very value.
    ///
    /// # Aborts
    ///
    /// A dhaga that is unwinding cannot let others run. If it finds that a dhaga of its own worker makes the value, or
    /// anybody for ten seconds, the process ends with a sentence that says so.
    #[inline]
    pub fn get_or_init<F: FnOnce() -> T>(&self, f: F) -> &T {
        if let Some(value) = self.get() {
            return value;
        }
        self.once.call_once_force(|_| {
            let value = f();
            self.write(Some(value));
        });
        self.get().expect(IS_SET)
    }

    /// Takes the value out.
    #[inline]
    pub fn into_inner(self) -> Option<T> {
        self.value.into_inner()
    }

    /// Takes the value out and leaves the cell empty.
    #[inline]
    pub fn take(&mut self) -> Option<T> {
        std::mem::take(self).into_inner()
    }

    /// Sets the value. Only for the closure of the `Once`.
    fn write(&self, value: Option<T>) {
        // SAFETY: the `Once` runs one closure at a time, and none after one that has ended well. Before that nobody reads.
        // There is no value yet, so nothing is dropped here.
        unsafe { *self.value.get() = value }
    }
}

const IS_SET: &str = "whoever completes the `Once` of a cell has set its value";

impl<T> Default for OnceLock<T> {
    fn default() -> Self {
        OnceLock::new()
    }
}

impl<T> From<T> for OnceLock<T> {
    fn from(value: T) -> Self {
        let cell = OnceLock::new();
        let set = cell.set(value);
        assert!(set.is_ok(), "a new cell is empty");
        cell
    }
}

impl<T: Clone> Clone for OnceLock<T> {
    fn clone(&self) -> Self {
        self.get().map_or_else(OnceLock::new, |value| OnceLock::from(value.clone()))
    }
}

impl<T: PartialEq> PartialEq for OnceLock<T> {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl<T: Eq> Eq for OnceLock<T> {}

impl<T: fmt::Debug> fmt::Debug for OnceLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_tuple("OnceLock");
        match self.get() {
            Some(value) => text.field(value),
            None => text.field(&format_args!("<uninit>")),
        };
        text.finish()
    }
}
