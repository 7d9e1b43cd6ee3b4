//! A promise that a stretch of code does not wait.

use std::marker::PhantomData;

use crate::around;

/// Forbids the calling dhaga, or plain thread, to wait until the guard is dropped: a wait that would suspend panics, and
/// names itself. An operation that need not wait, as an uncontended lock, goes on; so does what gives way now and then
/// without being asked to.
///
/// For code that holds what a wait must not be held across: a borrow of a thread-local, a lock of `std`. Guards nest.
///
/// # Examples
///
/// ```
/// let outcome = dhaga::spawn(|| {
///     let _promise = dhaga::no_suspend();
///     dhaga::sleep(std::time::Duration::from_millis(1));
/// })
/// .join();
/// assert!(outcome.unwrap_err().to_string().contains("Sleep"));
/// ```
pub fn no_suspend() -> NoSuspend {
    around::change_no_suspend(|depth| depth + 1);
    NoSuspend { _stays: PhantomData }
}

/// A stretch of code that must not wait. Made by [`no_suspend`].
#[must_use = "waits are forbidden only as long as the guard lives"]
#[derive(Debug)]
pub struct NoSuspend {
    /// It counts for who made it.
    _stays: PhantomData<*const ()>,
}

impl Drop for NoSuspend {
    fn drop(&mut self) {
        // Another dhaga of the worker may have got hold of it, who promised nothing.
        around::change_no_suspend(|depth| depth.saturating_sub(1));
    }
}
