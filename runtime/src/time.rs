//! Waiting for time to pass.

use std::time::{Duration, Instant};

use crate::park::{self, WaitReason};
use crate::scheduler::now;

/// Waits for `duration` at least. Parks a dhaga, blocks a plain thread. Accurate to about a millisecond.
///
/// Returns early when the deadline of the scope around it passes, or when it is cancelled; still each call passes through
/// the scheduler once, so that a loop of sleeps starves nobody. While the thread unwinds from a panic it returns at once.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
/// let start = Instant::now();
/// dhaga::sleep(Duration::from_millis(5));
/// assert!(start.elapsed() >= Duration::from_millis(5));
/// ```
pub fn sleep(duration: Duration) {
    sleep_until_or_for_ever(park::after(duration));
}

/// As [`sleep`], until an instant.
pub fn sleep_until(deadline: Instant) {
    sleep_until_or_for_ever(Some(deadline));
}

fn sleep_until_or_for_ever(deadline: Option<Instant>) {
    let wait = park::earliest(deadline);
    if park::check().is_err() || wait.is_some_and(|wait| wait <= now()) {
        return park::yield_now();
    }
    while park::check().is_ok() && wait.is_none_or(|wait| now() < wait) {
        park::park_until(WaitReason::Sleep, wait);
    }
}
