//! Deadlines and cancellation that follow sequential code: set around it, seen by every wait below it.

use std::panic::Location;
use std::time::{Duration, Instant};

use crate::ambient::{Ambient, Deadline};
use crate::around;
use crate::frame;
use crate::interrupt::Interrupt;
use crate::park;

/// Runs `f`, in which every wait that can fail does so `timeout` from now at the latest, and so in all that `f` calls and
/// spawns. The deadline ends nothing by itself: `f` returns what it makes of the errors.
///
/// Such a wait returns an [`Interrupt::DeadlineExceeded`] in its own error type; for I/O that is
/// [`TimedOut`](std::io::ErrorKind::TimedOut). Of nested deadlines the earliest counts, and the error says where that one
/// was set. Whether the code outside is out of time too, [`checkpoint`] tells after the return.
///
/// A timeout beyond what the clock can tell is none.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use dhaga::sync::channel::{self, RecvError};
///
/// let (sender, receiver) = channel::bounded::<u32>(1);
/// let late = dhaga::within(Duration::from_millis(5), || receiver.recv());
/// assert!(matches!(late, Err(RecvError::Interrupted(dhaga::Interrupt::DeadlineExceeded { .. }))));
/// dhaga::checkpoint()?; // the code out here has all the time it wants
/// # drop(sender);
/// # Ok::<(), dhaga::Interrupt>(())
/// ```
#[track_caller]
pub fn within<R>(timeout: Duration, f: impl FnOnce() -> R) -> R {
    until(around::after(timeout), Location::caller(), f)
}

/// As [`within`], until an instant.
#[track_caller]
pub fn with_deadline<R>(deadline: Instant, f: impl FnOnce() -> R) -> R {
    until(Some(deadline), Location::caller(), f)
}

fn until<R>(at: Option<Instant>, set_at: &'static Location<'static>, f: impl FnOnce() -> R) -> R {
    let outer = around::ambient();
    let own = at.map(|at| Deadline { at, set_at });
    let ambient = Ambient { deadline: Deadline::earlier(outer.deadline, own), ..outer };
    around::with_frames(|frames| frame::inside(frames, ambient, f))
}

/// Runs `f`, which neither a deadline nor a cancel from outside reaches: to hand something back in order, say.
///
/// Deadlines and scopes that are opened inside count there. What `f` spawns is not reached from outside either, unless it
/// spawns into a scope that was opened outside; it inherits no deadline, and keeps the context's values.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
///
/// let checks = dhaga::with_deadline(Instant::now(), || {
///     (dhaga::checkpoint().is_err(), dhaga::uncancellable(|| dhaga::checkpoint().is_ok()))
/// });
/// assert_eq!(checks, (true, true));
/// ```
pub fn uncancellable<R>(f: impl FnOnce() -> R) -> R {
    let ambient = Ambient { deadline: None, ..around::ambient() };
    around::with_frames(|frames| frame::inside_shield(frames, ambient, f))
}

/// Whether the caller, or a scope around it, was cancelled. False in an [`uncancellable`] section.
pub fn is_cancelled() -> bool {
    around::is_cancelled()
}

/// The instant at which fallible waits begin to fail here: the earliest of the deadlines around the caller.
pub fn deadline() -> Option<Instant> {
    around::scope_deadline().map(|deadline| deadline.at)
}

/// Looks whether the code shall go on, for stretches that compute and do not wait. It may give way to others first.
///
/// # Errors
///
/// What a fallible wait would be told: the deadline has passed, or a scope was cancelled, or the stack unwinds from a panic.
///
/// # Examples
///
/// ```
/// fn sum(numbers: &[u64]) -> Result<u64, dhaga::Interrupt> {
///     let mut sum = 0;
///     for chunk in numbers.chunks(4096) {
///         dhaga::checkpoint()?;
///         sum += chunk.iter().sum::<u64>();
///     }
///     Ok(sum)
/// }
/// assert_eq!(sum(&[1, 2, 3]), Ok(6));
/// ```
pub fn checkpoint() -> Result<(), Interrupt> {
    park::spend();
    park::check()
}
