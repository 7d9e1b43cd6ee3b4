//! A count of what is under way, for who waits until nothing is.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::crowd::Crowd;
use super::wait_queue::{Stopped, check_scope, check_unwinding};
use crate::around;
use crate::park::{Interrupt, WaitReason};

/// Counts what is under way, as Go's `sync.WaitGroup`: each task enters before it is started and is done when it ends, and
/// whoever waits goes on when all are done.
///
/// A [`scope`](crate::scope) does this for what it spawns itself; a group is for tasks that start elsewhere.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use dhaga::sync::WaitGroup;
///
/// let uploads = Arc::new(WaitGroup::new());
/// for _ in 0..3 {
///     let under_way = uploads.enter_owned();
///     dhaga::spawn(move || {
///         // ... upload ...
///         drop(under_way);
///     });
/// }
/// uploads.wait();
/// ```
pub struct WaitGroup {
    count: Crowd<usize>,
}

/// One that is under way, and is done when this is dropped, also by a panic.
#[must_use = "it is done as soon as the guard is dropped"]
#[derive(Debug)]
pub struct WaitGroupGuard<'a> {
    group: &'a WaitGroup,
}

/// As [`WaitGroupGuard`], and it may go wherever it wants, as into the dhaga that does the work.
#[must_use = "it is done as soon as the guard is dropped"]
#[derive(Debug)]
pub struct OwnedWaitGroupGuard {
    group: Arc<WaitGroup>,
}

/// Why [`WaitGroup::wait_timeout`] did not see all done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitTimeoutError {
    /// The timeout passed before all were done.
    Timeout,
    /// The scope was cancelled or ran out of time, or the thread is unwinding and cannot wait.
    Interrupted(Interrupt),
}

impl WaitGroup {
    /// A group with nothing under way.
    pub const fn new() -> Self {
        WaitGroup { count: Crowd::new(0) }
    }

    /// Counts `count` more that are under way, each of which is to call [`done`](Self::done). Call it before they start:
    /// else a wait may end between this one's end and the next one's beginning.
    ///
    /// # Panics
    ///
    /// If more are under way then than a `usize` counts.
    pub fn add(&self, count: usize) {
        let mut under_way = self.count.lock();
        let Some(more) = under_way.checked_add(count) else {
            drop(under_way);
            panic!("a wait group was given more than it can count");
        };
        *under_way = more;
    }

    /// Says that one of them is done. If it was the last, all who wait go on.
    ///
    /// # Panics
    ///
    /// If nothing is under way.
    pub fn done(&self) {
        let mut under_way = self.count.lock();
        let Some(left) = under_way.checked_sub(1) else {
            drop(under_way);
            panic!("`done` was called more often on a wait group than was added to it");
        };
        *under_way = left;
        if left == 0 {
            under_way.release();
        }
    }

    /// Counts one more, which is done when the guard is dropped.
    pub fn enter(&self) -> WaitGroupGuard<'_> {
        self.add(1);
        WaitGroupGuard { group: self }
    }

    /// As [`enter`](Self::enter), with a guard that keeps the group alive.
    pub fn enter_owned(self: &Arc<Self>) -> OwnedWaitGroupGuard {
        self.add(1);
        OwnedWaitGroupGuard { group: self.clone() }
    }

    /// Suspends until nothing is under way, and goes on doing so when the scope is cancelled or out of time. Returns at once
    /// if nothing is. What enters after all were done, but before the caller runs again, is not waited for.
    ///
    /// # Aborts
    ///
    /// A dhaga that is unwinding cannot let others run, so it blocks its OS thread. If not all are done after ten seconds,
    /// the process ends with a sentence that names it.
    pub fn wait(&self) {
        let under_way = self.count.lock();
        if *under_way > 0 {
            under_way.wait(WaitReason::WaitGroup, "a wait group to be done");
        }
    }

    /// As [`wait`](Self::wait), but suspends for `timeout` at most.
    ///
    /// # Errors
    ///
    /// If the time is over, or the scope is cancelled or out of time.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<(), WaitTimeoutError> {
        check_scope()?;
        let under_way = self.count.lock();
        if *under_way == 0 {
            return Ok(());
        }
        check_unwinding()?;
        Ok(under_way.wait_until(WaitReason::WaitGroup, around::after(timeout))?)
    }
}

impl Drop for WaitGroupGuard<'_> {
    fn drop(&mut self) {
        self.group.done();
    }
}

impl Drop for OwnedWaitGroupGuard {
    fn drop(&mut self) {
        self.group.done();
    }
}

impl Default for WaitGroup {
    fn default() -> Self {
        WaitGroup::new()
    }
}

impl fmt::Debug for WaitGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let under_way = *self.count.lock();
        f.debug_struct("WaitGroup").field("under_way", &under_way).finish_non_exhaustive()
    }
}

impl From<Interrupt> for WaitTimeoutError {
    fn from(interrupt: Interrupt) -> Self {
        WaitTimeoutError::Interrupted(interrupt)
    }
}

impl From<Stopped> for WaitTimeoutError {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::TimedOut => WaitTimeoutError::Timeout,
            Stopped::Interrupted(interrupt) => WaitTimeoutError::Interrupted(interrupt),
        }
    }
}

impl fmt::Display for WaitTimeoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WaitTimeoutError::Timeout => "not all were done within the timeout",
            WaitTimeoutError::Interrupted(_) => "the wait for a group was interrupted",
        })
    }
}

impl Error for WaitTimeoutError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            WaitTimeoutError::Interrupted(interrupt) => Some(interrupt),
            WaitTimeoutError::Timeout => None,
        }
    }
}
