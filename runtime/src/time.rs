//! Waiting for time to pass.

use std::fmt;
use std::time::{Duration, Instant};

use crate::around;
use crate::identity::{Dhaga, current};
use crate::park::{self, WaitReason};
use crate::scheduler::now;

/// Waits for `duration` at least. Parks a dhaga, blocks a plain thread. Accurate to about a millisecond.
///
/// Returns early when the deadline of the scope around it passes, or when it is cancelled; still each call passes through
/// the scheduler once, so that a loop of sleeps starves nobody; a thousand in a row are logged, since such a loop should ask
/// [`checkpoint`](crate::checkpoint). While the thread unwinds from a panic it returns at once. When a
/// [`shutdown`](crate::Runtime::shutdown) has cancelled its dhaga it does not return but unwinds it, unless it is in an
/// [`uncancellable`](crate::uncancellable) section.
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
    sleep_until_or_for_ever(around::after(duration));
}

/// As [`sleep`], until an instant.
pub fn sleep_until(deadline: Instant) {
    sleep_until_or_for_ever(Some(deadline));
}

fn sleep_until_or_for_ever(deadline: Option<Instant>) {
    let wait = park::earliest(deadline);
    let is_early = park::check().is_err();
    if around::count_early_sleep(is_early) == EARLY_SLEEPS_LOGGED {
        log::warn!("{}", EarlySleeps(current()));
    }
    if is_early || wait.is_some_and(|wait| wait <= now()) {
        return park::yield_now();
    }
    while wait.is_none_or(|wait| now() < wait) {
        if park::check().is_err() {
            return park::yield_now();
        }
        park::park_until(WaitReason::Sleep, wait);
    }
}

/// Sleeps in a row that return at once before that is logged: code that means to end has done so by then.
const EARLY_SLEEPS_LOGGED: u32 = 1000;

/// What is logged of a loop that sleeps and looks at nothing else.
struct EarlySleeps(Dhaga);

impl fmt::Display for EarlySleeps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{EARLY_SLEEPS_LOGGED} sleeps in a row returned at once in dhaga {}", self.0)?;
        if let Some(site) = self.0.spawn_site() {
            write!(f, " spawned at {site}")?;
        }
        f.write_str(
            ": its scope was cancelled or is out of time, so let the loop around the sleep ask `dhaga::checkpoint`",
        )
    }
}
