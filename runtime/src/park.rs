//! The narrow waist: everything that waits, waits here, in a dhaga and on a plain OS thread alike.
//!
//! A wait is always a loop: register with whoever will wake you, check your own condition, [`park_until`], check again.
//! A park may end early, so a wake too many is harmless, and a wake that came first is saved as a permit, so none is lost.
//!
//! ```text
//!                     park_until(reason, deadline)
//!                 ┌──────────────┼─────────────────────┐
//!            in a dhaga     on a plain thread   while the thread panics
//!            suspend        block on a condvar  block the OS thread: never switch while unwinding
//! ```

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread::panicking;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

pub use crate::around::{check, check_attempt, earliest, now};
use crate::around::{is_cancelled, throw};
use crate::coroutine::Wake;
use crate::fork;
pub use crate::interrupt::Interrupt;
use crate::plain_thread::{ThreadParker, block_thread, block_thread_polling, block_thread_to_the_end, this_thread};
use crate::run_queue::{Address, Message};
use crate::scheduler::{Worker, current_task, worker};
pub use crate::task::WaitReason;
use crate::task::{Attention, TaskRef, refuse_in_no_suspend};

/// What ended a park.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parked {
    /// An `unpark`, or nothing at all: check your own condition.
    Woken,
    /// The deadline passed. Check your own condition all the same: a wake may have come together with it.
    TimedOut,
}

/// Wakes one dhaga or plain thread out of its park. A wake for one that is not parked is saved: its next park returns at
/// once. A wake for one that has ended does nothing.
#[derive(Clone)]
pub struct Unparker(Sleeper);

#[derive(Clone)]
enum Sleeper {
    Dhaga(Address),
    Thread(Arc<ThreadParker>),
}

impl Unparker {
    /// Wakes the sleeper. Never blocks, never switches; from any thread.
    #[inline(always)]
    pub fn unpark(&self) {
        match &self.0 {
            Sleeper::Dhaga(address) => unpark_dhaga(*address),
            Sleeper::Thread(parker) => parker.unpark(),
        }
    }

    /// As [`Unparker::unpark`], but the sleeper is not first in its worker's queue for it: for one that will wait for many
    /// of the caller's kind, and shall not be resumed for each.
    #[inline]
    pub(crate) fn unpark_in_turn(&self) {
        match (&self.0, worker()) {
            (Sleeper::Dhaga(address), Some(worker)) if std::ptr::eq(address.injector, worker.injector) => {
                worker.unpark_in_turn(address.task);
            }
            _ => self.unpark(),
        }
    }

    /// Wakes a future: see [`ThreadParker::of_future`].
    pub(crate) fn of_future(parker: &Arc<ThreadParker>) -> Self {
        Self(Sleeper::Thread(parker.clone()))
    }

    pub(crate) fn address(&self) -> Option<Address> {
        match &self.0 {
            Sleeper::Dhaga(address) => Some(*address),
            Sleeper::Thread(_) => None,
        }
    }
}

impl std::fmt::Debug for Unparker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Sleeper::Dhaga(address) => write!(f, "Unparker(dhaga {:?})", address.task),
            Sleeper::Thread(_) => f.write_str("Unparker(thread)"),
        }
    }
}

#[inline(always)]
pub(crate) fn unpark_dhaga(address: Address) {
    match worker() {
        Some(worker) => worker.unpark_anywhere(address),
        None => unpark_from_thread(address),
    }
}

#[inline(never)]
fn unpark_from_thread(address: Address) {
    // A worker that has ended has no dhaga left to wake.
    let _ = address.injector.push(Message::Wake(address.task));
}

/// The handle that wakes the caller: its dhaga, or its OS thread if it is on a plain one or unwinds from a panic.
#[inline(always)]
pub fn unparker() -> Unparker {
    if let Some(worker) = worker()
        && let Some(task) = worker.current()
        && !panicking()
    {
        return Unparker(Sleeper::Dhaga(worker.address(&task)));
    }
    Unparker(Sleeper::Thread(this_thread()))
}

/// Parks the caller until its [`Unparker`] is used. May return early; call it in a loop.
///
/// # Panics
///
/// Where no dhaga runs on a worker's thread, that is in a callback of the runtime, which must not wait.
#[inline(always)]
pub fn park(reason: WaitReason) {
    park_until(reason, None);
}

/// As [`park`], until `deadline` at the latest.
///
/// # Panics
///
/// As [`park`].
#[inline(always)]
pub fn park_until(reason: WaitReason, deadline: Option<Instant>) -> Parked {
    outcome(park_raw(reason, deadline))
}

/// As [`park_until`], for who knows that this dhaga runs here and does not unwind.
#[inline(always)]
pub(crate) fn park_dhaga(worker: &Worker, task: TaskRef, reason: WaitReason, deadline: Option<Instant>) -> Parked {
    outcome(worker.suspend(task, reason, deadline))
}

#[inline(always)]
fn outcome(wake: Wake) -> Parked {
    if wake == Wake::Unwind {
        throw();
    }
    if wake == Wake::TimedOut { Parked::TimedOut } else { Parked::Woken }
}

/// As [`park_until`], but an order to unwind comes back as a value: for a scope, which must see its children gone first.
#[inline(always)]
pub(crate) fn park_raw(reason: WaitReason, deadline: Option<Instant>) -> Wake {
    let Some(worker) = worker() else {
        return block_thread(reason, deadline);
    };
    let Some(task) = worker.current() else {
        refuse_on_worker(reason);
    };
    if panicking() {
        return block_thread(reason, deadline);
    }
    worker.suspend(task, reason, deadline)
}

/// Parks even where a wait is refused, and says whether the dhaga was told to unwind: for a scope, whose end must be waited
/// for.
pub(crate) fn park_through(reason: WaitReason) -> Wake {
    match worker().and_then(|worker| Some((worker, worker.current()?))) {
        Some((worker, task)) if !panicking() => {
            fork::abort_if_forked();
            let wake = worker.suspend_to_the_end(task, reason);
            if task.is_unwinding() { Wake::Unwind } else { wake }
        }
        _ => block_thread_to_the_end(),
    }
}

#[cold]
fn refuse_on_worker(reason: WaitReason) -> ! {
    panic!(
        "a wait ({reason:?}) was called on a worker's own context, where no dhaga runs: callbacks of the runtime may only push"
    );
}

/// Parks a plain thread until its [`Unparker`] is used, one of the descriptors is ready, or the deadline passes. May return
/// early. A dhaga leaves word with a source instead.
pub(crate) fn park_polling<'a>(
    reason: WaitReason,
    descriptors: impl Iterator<Item = (BorrowedFd<'a>, PollFlags)>,
    deadline: Option<Instant>,
) {
    if worker().is_some() {
        refuse_on_worker(reason);
    }
    block_thread_polling(reason, descriptors, deadline);
}

/// Sends the caller to the tail of the run queue.
#[inline(always)]
pub(crate) fn yield_now() {
    if let Some(worker) = worker()
        && let Some(task) = worker.current()
    {
        if panicking() {
            return;
        }
        if task.attention.has(Attention::UNWINDING | Attention::NO_SUSPEND | Attention::LEAVING) {
            return yield_or_leave(worker, task);
        }
        worker.yield_now(task);
    } else {
        std::thread::yield_now();
    }
}

/// Sends the caller behind all who are ready, and who become so meanwhile.
pub(crate) fn step_back() {
    const OBSTACLES: u8 = Attention::UNWINDING | Attention::NO_SUSPEND | Attention::LEAVING;
    match worker().and_then(|worker| Some((worker, worker.current()?))) {
        Some((worker, task)) if !panicking() && !task.attention.has(OBSTACLES) => {
            worker.step_back(task);
        }
        _ => yield_now(),
    }
}

#[cold]
fn yield_or_leave(worker: &Worker, task: TaskRef) {
    if task.is_unwinding() {
        throw();
    }
    if task.attention.has(Attention::NO_SUSPEND) {
        refuse_in_no_suspend(WaitReason::Yield);
    }
    // Others first: what they are about to release, a `Drop` of this one may want.
    worker.yield_now(task);
    if task.attention.has(Attention::LEAVING) && is_cancelled() {
        leave(worker, task);
    }
}

/// How long a dhaga that shutdown has cancelled is held in a `sleep` or `yield_now` where panics abort, so that nothing can
/// be thrown: a loop of them that looks at nothing else takes little of a processor then.
const UNTHROWN_PAUSE: Duration = Duration::from_millis(10);

/// Ends a dhaga that was cancelled by shutdown, in a wait that cannot say so.
fn leave(worker: &Worker, task: TaskRef) {
    if !cfg!(panic = "abort") {
        throw();
    }
    worker.suspend(task, WaitReason::Yield, now().checked_add(UNTHROWN_PAUSE));
}

/// Whether shutdown unwinds the calling dhaga: nothing it drops was left in disorder by a bug, so locks are not poisoned.
pub fn is_torn_down() -> bool {
    current_task().is_some_and(|task| task.is_unwinding())
}

/// Counts an operation that may well not wait. Now and then it gives way first, so that a dhaga whose operations never wait
/// cannot keep its worker to itself. Call it before the operation: what was consumed must not be lost if this throws.
#[inline(always)]
pub fn spend() {
    if let Some(worker) = worker()
        && worker.spend()
    {
        give_way();
    }
}

#[cold]
fn give_way() {
    if let Some(worker) = worker()
        && let Some(task) = worker.current()
        && !panicking()
        && !task.attention.has(Attention::NO_SUSPEND)
    {
        if task.is_unwinding() {
            throw();
        }
        worker.yield_now(task);
    }
}

/// Whether the caller is a dhaga, which parks, rather than a plain thread, which blocks.
pub(crate) fn is_in_dhaga() -> bool {
    current_task().is_some()
}
