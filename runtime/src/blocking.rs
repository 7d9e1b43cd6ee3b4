//! Code that blocks outside the runtime, on OS threads of its own: files, foreign libraries, long computations.
//!
//! ```text
//!   blocking(f) ──▶ room? ──▶ queue ──────────▶ a thread runs f ──▶ the result
//!                     │          │                    │
//!   the scope ends:   error,     error,               error, f runs on;
//!                     f dropped  f taken out          its handle comes back
//! ```
//!
//! `pool`: the threads and the queue; `lend`: for closures that borrow from who waits for them.

mod lend;
mod pool;

use std::panic::Location;
use std::time::Duration;

use crate::around;
use crate::job::Job;
use crate::park::{self, WaitReason};
use crate::spawn::{JoinError, JoinHandle, detached, pair_for_pool};

use self::pool::{POOL, Place};

pub(crate) use self::lend::{Turns, lend_in_turn};
pub use self::pool::{BLOCKING_KEEP_ALIVE, BLOCKING_QUEUED_MAX, BLOCKING_THREADS_MAX, BlockingStats};

/// Runs `f` on a pool thread while the caller's dhaga is parked, so that its worker goes on with others. On a plain thread
/// `f` runs in place, unless a deadline or a scope around the caller may have to end the wait.
///
/// `f` sees the deadline and the context values of the caller, and not its cancel: nothing can end code that does not look.
/// What of it waits by the runtime ends when the handle that comes back is cancelled. While [`BLOCKING_QUEUED_MAX`] closures wait for
/// a thread, the caller waits for room.
///
/// # Errors
///
/// [`JoinError::Panicked`] when `f` panicked. When the caller's scope ends, there are two cases: [`JoinError::Withdrawn`] if no
/// thread had begun `f` by then, which is dropped here and never runs; [`JoinError::Stopped`] if one had, then `f` runs on and
/// the handle inside can still be joined. [`JoinError::NeverRan`] when the machine gives no thread at all.
///
/// # Examples
///
/// ```
/// let text = dhaga::spawn(|| dhaga::blocking(|| std::fs::read_to_string("/proc/self/comm"))).join()??;
/// assert!(!text?.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn blocking<F, T>(f: F) -> Result<T, JoinError<T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let site = Location::caller();
    if let Err(interrupt) = park::check() {
        park::spend();
        return Err(JoinError::Withdrawn(interrupt));
    }
    let (job, handle) = pair_for_pool(site, f);
    if pool::runs_in_place() {
        job.execute().finish();
        return handle.into_result();
    }
    match POOL.submit(job) {
        Ok(place) => join(handle, place, site),
        Err(interrupt) => Err(JoinError::Withdrawn(interrupt)),
    }
}

/// Should shutdown throw here, `place` takes the closure out of the queue as well.
fn join<T>(handle: JoinHandle<T>, place: Place, site: &Location<'_>) -> Result<T, JoinError<T>> {
    match handle.join_until(WaitReason::Blocking, None) {
        Err(JoinError::Stopped(interrupt, handle)) => {
            if place.withdraw() {
                return Err(JoinError::Withdrawn(interrupt));
            }
            if around::is_shutting_down() {
                log::warn!("a closure given to `blocking` at {site} runs on while its runtime is shut down");
            }
            Err(JoinError::Stopped(interrupt, handle))
        }
        ended => {
            place.leave();
            ended
        }
    }
}

/// Starts `f` on a pool thread, and returns a handle to wait for it: [`spawn`](crate::spawn()) for code that blocks. Waits only
/// while [`BLOCKING_QUEUED_MAX`] closures wait for a thread already.
///
/// `f` inherits the deadline and the context values of the caller. Its waits by the runtime see that deadline and
/// [`JoinHandle::cancel`]; nothing ends code that does not look. No shutdown of a runtime waits for it or ends it, and a
/// process that ends takes it along, as any thread.
///
/// The join is [`JoinError::NeverRan`] when there was no room up to the end of the caller's scope, or the machine gives no
/// thread at all; both are also logged.
///
/// # Examples
///
/// ```
/// let digest = dhaga::spawn_blocking(|| (1..=1000_u64).fold(7, |digest, n| digest * 31 % 1_000_003 + n));
/// assert!(digest.join()? > 0);
/// # Ok::<(), dhaga::JoinError<u64>>(())
/// ```
#[track_caller]
pub fn spawn_blocking<F, T>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let site = Location::caller();
    let (job, handle) = pair_for_pool(site, f);
    match POOL.submit(job) {
        Ok(place) => place.leave(),
        Err(interrupt) => {
            let error = JoinError::<()>::Withdrawn(interrupt);
            log::error!("of `spawn_blocking` at {site}: {error}");
        }
    }
    handle
}

/// Has a thread of the pool run what belongs to nobody's scope. It is dropped if there is no thread for it, or if the caller
/// ends before there is room.
#[track_caller]
pub(crate) fn run_detached(f: impl FnOnce() + Send + 'static) {
    if let Ok(place) = POOL.submit(detached(Location::caller(), f)) {
        place.leave();
    }
}

/// As [`run_detached`], for a job of a library, where nobody can wait: it is queued beyond the limit, too. The caller has a
/// limit of its own for such jobs.
pub(crate) fn submit_at_any_rate(job: Job) {
    POOL.submit_at_any_rate(job);
}

/// The pool of threads for [`blocking`], [`spawn_blocking`] and files. There is one in a process, whatever runtimes it has:
/// threads and disks are the machine's.
///
/// # Examples
///
/// ```
/// let pool = dhaga::blocking_pool();
/// pool.set_threads_max(64);
/// assert!(pool.stats().threads <= 64);
/// # pool.set_threads_max(512);
/// ```
pub fn blocking_pool() -> BlockingPool {
    BlockingPool(())
}

/// The limits of the pool, and what it does. Made by [`blocking_pool`].
#[derive(Clone, Copy, Debug)]
pub struct BlockingPool(());

impl BlockingPool {
    /// OS threads at most; one at least. Default: [`BLOCKING_THREADS_MAX`]. If there are more, they end when they have run what they
    /// have begun.
    pub fn set_threads_max(&self, count: usize) {
        POOL.set_threads_max(count.max(1));
    }

    /// Closures that may wait for a thread; one at least. Default: [`BLOCKING_QUEUED_MAX`]. Those that wait already go on to do so.
    pub fn set_queued_max(&self, count: usize) {
        POOL.set_queued_max(count.max(1));
    }

    /// How long a thread waits for more work before it ends. Default: [`BLOCKING_KEEP_ALIVE`].
    pub fn set_keep_alive(&self, time: Duration) {
        POOL.set_keep_alive(time);
    }

    /// What it does now: a snapshot of numbers that move meanwhile.
    pub fn stats(&self) -> BlockingStats {
        POOL.stats()
    }
}
