//! The seam for protocol crates: what they need of a worker's turn to read on demand and to flush once.
//!
//! Exempt from semantic versioning. Everything here is safe, but what it takes runs on a worker's own context, where a
//! wait panics: it may push, and do I/O that cannot block, and nothing else.
//!
//! ```text
//!   one turn of a worker:   events ──▶ on_ready: start a reader ──▶ dhagas run, answers are buffered ──▶ at_end: flush
//! ```

use std::io;
use std::panic::Location;
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::coroutine::{CACHE_LINE_BYTES, prefetch_lines};
use crate::reactor::Direction;

pub use crate::front::AtEnd;
pub use crate::io::take::take_stdio;
pub use crate::net::on_demand::{Input, Output};
use crate::park::Unparker;
pub use crate::reactor::OnReady;
pub use crate::region::Region;
use crate::runtime::{SpawnError, submit, submit_at, submit_here};
use crate::scheduler::worker;
use crate::spawn::detached;
pub use crate::sync::short_lock::{ShortGuard, ShortLock};

/// Calls `work` at the end of the worker's current turn, or of the next if the time of this one ends among dhagas that are quick:
/// others of them may add to it. On a plain thread, which has no turns, at once.
pub fn at_end(work: Arc<dyn AtEnd>) {
    match worker() {
        Some(worker) => worker.push_at_end(work),
        None => work.at_end(),
    }
}

/// Calls `callback` for each event that makes `input` readable, from now on: on the worker with which it is registered, which
/// is the caller's if nobody has waited for it before, or on an idle one of the same runtime while a dhaga keeps that one from
/// its sockets. Bytes that are there already count as an event.
///
/// # Errors
///
/// What the kernel says to the registration; an error in words on a plain thread.
pub fn on_ready(input: &impl Input, callback: Arc<dyn OnReady>) -> io::Result<()> {
    input.source().on_ready(callback)
}

/// Takes the callback away again, and drops it.
pub fn stop_on_ready(input: &impl Input) {
    input.source().stop_callbacks();
}

/// Reads what is there. `None`: nothing is, and an event will tell when something comes.
///
/// # Errors
///
/// What the kernel says.
#[inline]
pub fn try_read(input: &impl Input, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    input.try_read(buffer)
}

/// Whether an event may have come that no read has answered.
#[inline]
pub fn is_readable(input: &impl Input) -> bool {
    input.source().is_ready(Direction::Read)
}

/// Asks the processor for what a read or write of `input` will touch.
#[inline]
pub fn bring_near(input: &impl Input) {
    input.source().bring_near();
}

/// Asks the processor for the memory of a value that will be used soon. Touches nothing of it.
#[inline]
pub fn bring_value_near<T>(value: &T) {
    prefetch_lines(ptr::from_ref(value).addr(), size_of::<T>().div_ceil(CACHE_LINE_BYTES));
}

/// Writes what the kernel takes. `None`: it takes nothing now; [`wait_for_room`] waits until it does.
///
/// # Errors
///
/// What the kernel says.
#[inline]
pub fn try_write(output: &impl Output, bytes: &[u8]) -> io::Result<Option<usize>> {
    output.try_write(bytes)
}

/// Waits until the kernel may take something, for `timeout` at most, or until somebody calls [`rouse_writers`]. May return
/// early: call it in a loop with [`try_write`]. Suspends.
///
/// # Errors
///
/// Those of the scope around it, and what the kernel says to the registration.
pub fn wait_for_room(output: &impl Output, timeout: Duration) -> io::Result<()> {
    output.wait_for_room(timeout)
}

/// Wakes one who waits in [`wait_for_room`], who tries again: for an end of which no event tells, such as the caller's own.
pub fn rouse_writers(output: &impl Output) {
    output.source().rouse(Direction::Write);
}

/// Starts a dhaga without a handle, which inherits neither deadline nor cancellation, on any worker.
///
/// # Errors
///
/// As [`Builder::spawn`](crate::Builder::spawn).
#[track_caller]
pub fn spawn(f: impl FnOnce() + Send + 'static) -> Result<(), SpawnError> {
    submit(None, detached(Location::caller(), f))
}

/// As [`spawn`], on the caller's worker.
///
/// # Errors
///
/// As [`spawn`], and [`SpawnError::NoWorker`] on a plain thread.
#[track_caller]
pub fn spawn_here(f: impl FnOnce() + Send + 'static) -> Result<(), SpawnError> {
    submit_here(detached(Location::caller(), f))
}

/// As [`spawn`], on a worker of the caller's runtime, from 0.
///
/// # Errors
///
/// As [`spawn_here`]; [`SpawnError::NoWorker`] also when there is no such worker.
#[track_caller]
pub fn spawn_at(worker: usize, f: impl FnOnce() + Send + 'static) -> Result<(), SpawnError> {
    submit_at(worker, detached(Location::caller(), f))
}

/// Wakes many at a time. None of them goes before others who are ready, as who is woken alone does: what they do is better done
/// in a row, for those who can send it together. Each is woken by the time when the list has come to its end, and not each as soon
/// as the list names it.
#[inline]
pub fn unpark_all(sleepers: impl IntoIterator<Item = Unparker>) {
    let Some(worker) = worker() else { return sleepers.into_iter().for_each(|sleeper| sleeper.unpark()) };
    worker.unpark_all_in_turn(sleepers.into_iter().filter_map(|sleeper| {
        let dhaga = sleeper.address();
        if dhaga.is_none() {
            sleeper.unpark();
        }
        dhaga
    }));
}

/// As [`yield_now`](crate::yield_now), but behind all who are ready, and who become so before the caller's turn comes: for who
/// has had much of the worker's time, so that who needs little of it need not wait for long. All who stepped back together have
/// a third of the time if the others have work for all of it, and are resumed in the order in which they stepped back.
pub fn step_back() {
    crate::park::step_back();
}

/// Drops `value`, which may own what users wrote. On a worker's own context, where that must not run, a dhaga drops it.
pub fn drop_in_dhaga(value: impl Send + 'static) {
    match worker() {
        // Not refused at the limit of dhagas: it was there before, in a way.
        Some(worker) if worker.current().is_none() => {
            worker.push_at_any_rate(detached(Location::caller(), move || drop(value)));
        }
        _ => drop(value),
    }
}

/// Whether nothing is in force for the caller that could be handed down: no deadline, no value of a context, no [`Region`].
/// Cheaper than to ask for each.
#[inline]
pub fn is_bare() -> bool {
    crate::around::with_ambient(|ambient| ambient.is_none_or(|ambient| ambient.is_empty()))
}

/// Whether the caller runs among those who stepped back.
#[inline]
pub fn is_patient() -> bool {
    worker().is_some_and(|worker| worker.is_patient_turn.get())
}

/// A number that changes with each turn of the caller's worker: who has not waited meanwhile finds it as it was. 0 on a plain
/// thread.
pub fn number() -> u32 {
    worker().map_or(0, |worker| worker.front.turn())
}

/// Workers of the caller's runtime; `None` on a plain thread.
pub fn workers() -> Option<usize> {
    worker().map(|worker| worker.shared.workers)
}

/// A number for the caller's worker among those that live, of all runtimes; `None` on a plain thread.
pub fn worker_id() -> Option<u16> {
    worker().map(|worker| worker.injector.number)
}

/// The one value of type `T` of the caller's worker, made by its `Default` at first use; `None` on a plain thread.
pub fn worker_local<T: Default + 'static>() -> Option<Rc<T>> {
    worker().map(|worker| worker.extensions.get::<T>())
}

/// Bytes of a worker's read buffer: enough for a burst of small messages in one system call.
pub const READ_BUFFER_BYTES: usize = 64 << 10;

/// The worker's read buffer, taken by value; who finds none makes another. Give it back with [`return_read_buffer`]
/// before you wait, so that idle connections hold none.
#[inline]
pub fn read_buffer() -> Box<[u8]> {
    let spare = worker().and_then(|worker| worker.read_buffer.take());
    spare.unwrap_or_else(|| vec![0; READ_BUFFER_BYTES].into_boxed_slice())
}

/// Gives a read buffer back to the worker.
#[inline]
pub fn return_read_buffer(buffer: Box<[u8]>) {
    if let Some(worker) = worker() {
        worker.read_buffer.set(Some(buffer));
    }
}
