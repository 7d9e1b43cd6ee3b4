//! An elastic pool of OS threads for what blocks outside the runtime: files, name look-ups, foreign libraries.

use std::collections::VecDeque;
use std::panic::Location;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::ambient::Ambient;
use crate::around;
use crate::frame;
use crate::job::{Job, Label, quietly};
use crate::machine;
use crate::park;
use crate::spawn::{JoinError, detached, pair_for_pool};

/// OS threads of the pool at most. As tokio's: far more than a disk serves at once, far fewer than a pid limit.
pub const THREADS_MAX: usize = 512;
/// Closures that may wait for a thread at most. Beyond it [`blocking`] is an error.
pub const QUEUED_MAX: usize = 65_536;
/// How long a thread waits for more work before it ends.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Runs `f` on a pool thread while the caller's dhaga is parked, so that its worker goes on with others. On a plain thread
/// `f` runs in place, unless a deadline or a scope around the caller may have to end the wait.
///
/// # Errors
///
/// [`JoinError::Panicked`] when `f` panicked. [`JoinError::Stopped`] when the caller's scope ended: before the call, then
/// `f` never runs, or during it, then `f` runs on and the handle inside can still be joined. [`JoinError::NeverRan`] when
/// 65 536 closures wait already, or the machine gives no thread at all.
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
    let (job, handle) = pair_for_pool(Location::caller(), f);
    if let Err(interrupt) = park::check() {
        park::spend();
        drop(job);
        return Err(JoinError::Stopped(interrupt, handle));
    }
    if park::is_in_dhaga() || around::is_in_frame() {
        POOL.submit(job);
    } else {
        job.execute().finish();
    }
    handle.join_until(park::WaitReason::Blocking, None)
}

/// Has a thread of the pool run what belongs to nobody's scope. It is dropped if there is no thread for it.
#[track_caller]
pub(crate) fn run_detached(f: impl FnOnce() + Send + 'static) {
    POOL.submit(detached(Location::caller(), f));
}

static POOL: Pool =
    Pool { state: Mutex::new(State { queue: VecDeque::new(), threads: 0, idle: 0 }), work: Condvar::new() };

struct Pool {
    state: Mutex<State>,
    work: Condvar,
}

struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Pool {
    fn submit(&'static self, job: Job) {
        let mut state = self.lock();
        if state.queue.len() >= QUEUED_MAX {
            drop(state);
            log::error!(
                "{QUEUED_MAX} closures wait for the blocking pool: one spawned at {} never runs",
                job.label().site
            );
            // Outside the lock: the closure's `Drop` is user code.
            return drop(job);
        }
        state.queue.push_back(job);
        if state.idle >= state.queue.len() {
            self.work.notify_one();
        } else if state.threads < THREADS_MAX {
            state.threads += 1;
            drop(state);
            self.start_thread();
        }
    }

    fn start_thread(&'static self) {
        let run = machine::unpinned(|| self.run());
        let started = thread::Builder::new().name("dhaga-blocking".to_owned()).spawn(run);
        if let Err(error) = started {
            let mut state = self.lock();
            state.threads -= 1;
            let stranded = if state.threads == 0 { std::mem::take(&mut state.queue) } else { VecDeque::new() };
            drop(state);
            log::error!("no thread for the blocking pool: {error}; {} closures never run", stranded.len());
            drop(stranded);
        }
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            while let Some(job) = state.queue.pop_front() {
                drop(state);
                run(job);
                state = self.lock();
            }
            state.idle += 1;
            let (next, waited) = self.work.wait_timeout(state, KEEP_ALIVE).unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a closure under the deadline and the values that were in force where it was submitted.
fn run(job: Job) {
    let ambient = job.head().take_ambient().map_or_else(Ambient::default, Arc::unwrap_or_clone);
    let (label, mut execution) = (Label::of_site(job.label().site), None);
    let execute = || execution = Some(job.execute());
    // Whoever waits learns of the end when the values have gone, whose `Drop` may panic.
    quietly(&label, || around::with_frames(|frames| frame::inside(frames, ambient, execute)));
    execution.expect("a job that is executed never unwinds").finish();
}
