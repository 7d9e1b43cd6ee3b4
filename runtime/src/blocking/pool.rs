//! The threads, and the queue of what they shall run.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::ambient::Ambient;
use crate::around;
use crate::context::{Node, Scope};
use crate::frame;
use crate::interrupt::Interrupt;
use crate::job::{Job, Label, quietly};
use crate::machine;
use crate::park::{self, Unparker};
use crate::sync::{AcquireError, Semaphore, SemaphorePermit};

/// OS threads of the pool at most, unless [`set_threads_max`](super::BlockingPool::set_threads_max) says otherwise. As
/// tokio's: far more than a disk serves at once, far fewer than a pid limit.
pub const BLOCKING_THREADS_MAX: usize = 512;
/// Closures that may wait for a thread at most, unless [`set_queued_max`](super::BlockingPool::set_queued_max) says otherwise:
/// some ten MiB of closures. Beyond it the next one waits for room.
pub const BLOCKING_QUEUED_MAX: usize = 65_536;
/// How long a thread waits for more work before it ends, unless [`set_keep_alive`](super::BlockingPool::set_keep_alive) says
/// otherwise. Long enough for the pause between two bursts; a thread costs some 20 µs to start.
pub const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(10);

pub(super) static POOL: Pool = Pool {
    state: Mutex::new(State {
        queue: BTreeMap::new(),
        next: Ticket(0),
        threads: 0,
        idle: 0,
        threads_max: BLOCKING_THREADS_MAX,
        queued_max: BLOCKING_QUEUED_MAX,
        owed: 0,
        keep_alive: BLOCKING_KEEP_ALIVE,
    }),
    work: Condvar::new(),
    room: Semaphore::new(BLOCKING_QUEUED_MAX),
};

pub(super) struct Pool {
    state: Mutex<State>,
    work: Condvar,
    /// A permit for each that may wait for a thread.
    room: Semaphore,
}

struct State {
    /// By ticket, that is in the order of arrival. Not a `VecDeque`: any of them may be taken out.
    queue: BTreeMap<Ticket, Queued>,
    next: Ticket,
    threads: usize,
    idle: usize,
    threads_max: usize,
    queued_max: usize,
    /// Permits that are to vanish as they come back, since the limit was lowered.
    owed: usize,
    keep_alive: Duration,
}

struct Queued {
    job: Job,
    /// Absent if there was none, and it could not wait.
    room: Option<SemaphorePermit<'static>>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Ticket(u64);

/// What the pool does. See [`BlockingPool::stats`](super::BlockingPool::stats).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockingStats {
    /// OS threads that there are.
    pub threads: usize,
    /// Of these, how many have nothing to run.
    pub idle: usize,
    /// Closures that wait for a thread.
    pub queued: usize,
}

/// Where a closure waits for its thread. Dropped, it takes the closure out of the queue.
#[must_use = "a place that is dropped takes the closure out of the queue"]
pub(super) struct Place(Ticket);

impl Place {
    /// Takes the closure out of the queue and drops it here. Returns false if a thread has begun it.
    pub(super) fn withdraw(self) -> bool {
        let ticket = self.0;
        self.leave();
        POOL.withdraw(ticket)
    }

    /// Leaves the closure where it is.
    pub(super) fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        POOL.withdraw(self.0);
    }
}

thread_local! {
    static IS_OF_POOL: Cell<bool> = const { Cell::new(false) };
}

/// Whether the caller blocks its own thread: a plain one that nothing around it may have to get away from. So does a thread
/// of the pool in any case: closures that wait for closures could have all threads otherwise, and none would be left to run.
pub(super) fn runs_in_place() -> bool {
    IS_OF_POOL.get() || !park::is_in_dhaga() && !around::is_in_frame()
}

impl Pool {
    /// Queues a closure, when there is room.
    ///
    /// # Errors
    ///
    /// The caller's scope ended before there was room, or it cannot wait. The closure is dropped here.
    pub(super) fn submit(&'static self, job: Job) -> Result<Place, Interrupt> {
        let room = self.take_room()?;
        Ok(self.enqueue(job, Some(room)))
    }

    /// As [`Pool::submit`], where nobody can wait for room, and nothing may be lost.
    pub(super) fn submit_at_any_rate(&'static self, job: Job) {
        let room = self.room.try_acquire().ok();
        self.enqueue(job, room).leave();
    }

    fn enqueue(&'static self, job: Job, room: Option<SemaphorePermit<'static>>) -> Place {
        let mut state = self.lock();
        let ticket = state.next;
        state.next = Ticket(ticket.0 + 1);
        state.queue.insert(ticket, Queued { job, room });
        let place = Place(ticket);
        if state.idle >= state.queue.len() {
            self.work.notify_one();
        } else if state.threads < state.threads_max {
            state.threads += 1;
            drop(state);
            self.start_thread();
        }
        place
    }

    fn take_room(&'static self) -> Result<SemaphorePermit<'static>, Interrupt> {
        // Who need not wait is not asked whether it may.
        if let Ok(permit) = self.room.try_acquire() {
            return Ok(permit);
        }
        self.room.acquire().map_err(|error| match error {
            AcquireError::Interrupted(interrupt) => interrupt,
            AcquireError::Closed => unreachable!("nobody closes it"),
        })
    }

    fn return_room(&self, room: Option<SemaphorePermit<'static>>) {
        let Some(permit) = room else { return };
        let mut state = self.lock();
        if state.owed > 0 {
            state.owed -= 1;
            std::mem::forget(permit);
        }
    }

    fn start_thread(&'static self) {
        let run = machine::unpinned(|| self.run());
        let started = thread::Builder::new().name("dhaga-blocking".to_owned()).spawn(run);
        if let Err(error) = started {
            let mut state = self.lock();
            state.threads -= 1;
            let stranded = if state.threads == 0 { std::mem::take(&mut state.queue) } else { BTreeMap::new() };
            drop(state);
            log::error!("no thread for the blocking pool: {error}; {} closures never run", stranded.len());
            stranded.into_values().for_each(|queued| self.discard(queued));
        }
    }

    fn withdraw(&self, ticket: Ticket) -> bool {
        let queued = self.lock().queue.remove(&ticket);
        let was_there = queued.is_some();
        queued.into_iter().for_each(|queued| self.discard(queued));
        was_there
    }

    /// Outside the lock: the closure's `Drop` is user code.
    fn discard(&self, queued: Queued) {
        self.return_room(queued.room);
        drop(queued.job);
    }

    fn run(&self) {
        IS_OF_POOL.set(true);
        let mut state = self.lock();
        while state.threads <= state.threads_max {
            if let Some((_, queued)) = state.queue.pop_first() {
                drop(state);
                self.return_room(queued.room);
                run(queued.job);
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let keep_alive = state.keep_alive;
            let (next, waited) = self.work.wait_timeout(state, keep_alive).unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() {
                break;
            }
        }
        state.threads -= 1;
        // The wake for it may have come here.
        if !state.queue.is_empty() {
            self.work.notify_one();
        }
    }

    pub(super) fn set_threads_max(&'static self, count: usize) {
        let mut state = self.lock();
        state.threads_max = count;
        // Who waits may be served now, and who is idle may be one too many.
        let missing = count.saturating_sub(state.threads).min(state.queue.len());
        state.threads += missing;
        drop(state);
        self.work.notify_all();
        (0..missing).for_each(|_| self.start_thread());
    }

    pub(super) fn set_queued_max(&'static self, count: usize) {
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.queued_max, count);
        let added = count.saturating_sub(before);
        let forgiven = added.min(state.owed);
        state.owed += before.saturating_sub(count);
        state.owed -= forgiven;
        state.owed -= self.room.forget_permits(state.owed);
        drop(state);
        self.room.add_permits(added - forgiven);
    }

    pub(super) fn set_keep_alive(&self, time: Duration) {
        self.lock().keep_alive = time;
        self.work.notify_all();
    }

    pub(super) fn stats(&self) -> BlockingStats {
        let state = self.lock();
        BlockingStats { threads: state.threads, idle: state.idle, queued: state.queue.len() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a closure under the deadline and the values that were in force where it was submitted.
fn run(job: Job) {
    let ambient = job.head().take_ambient().map_or_else(Ambient::default, Arc::unwrap_or_clone);
    let (label, mut execution) = (Label::of_site(job.label().site), None);
    let stop = Link::new();
    job.head().scope().adopt(stop.clone());
    let execute = || execution = Some(job.execute());
    // Whoever waits learns of the end when the values have gone, whose `Drop` may panic.
    quietly(&label, || {
        around::with_frames(|frames| frame::inside_scope(frames, &stop.0.cancelled, ambient, execute));
    });
    execution.expect("a job that is executed never unwinds").finish();
}

/// By which a closure that runs is cancelled with its handle.
#[derive(Clone)]
struct Link(Arc<Running>);

struct Running {
    cancelled: Scope,
    thread: Unparker,
}

impl Link {
    fn new() -> Self {
        Self(Arc::new(Running { cancelled: Scope::default(), thread: park::unparker() }))
    }
}

impl Node for Link {
    fn scope(&self) -> &Scope {
        &self.0.cancelled
    }

    fn wake(&self) {
        self.0.thread.unpark();
    }

    fn is_over(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}
