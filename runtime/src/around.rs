//! What is around the caller: deadline, cancellation, context, and what a dhaga or thread keeps for itself.
//!
//! Everything here is asked of the dhaga that runs, or of the plain thread where none does.

use std::cell::Cell;
use std::panic::resume_unwind;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::panicking;
use std::time::{Duration, Instant};

use crate::ambient::{Ambient, Deadline};
use crate::context::{Node, Scope};
use crate::fork;
use crate::frame::{Enclosing, Frame, Innermost};
use crate::interrupt::Interrupt;
use crate::job::{Head, Unwound};
use crate::local_slots::LocalSlots;
use crate::plain_thread::{THREAD, with_thread_frame};
use crate::scheduler::{current_task, worker};
use crate::task::{Attention, Task, WaitReason, refuse_in_no_suspend};

/// Throws without the panic hook: nothing has gone wrong. Whoever catches it is thrown again at the next wait.
#[cold]
pub(crate) fn throw() -> ! {
    fork::abort_if_forked();
    if let Some(task) = current_task() {
        task.attention.add(Attention::UNWINDING);
    }
    resume_unwind(Box::new(Unwound))
}

/// What stands against a fallible wait: the deadline or cancellation of the scope around it, or that the thread panics.
///
/// # Errors
///
/// One variant for each.
#[inline(always)]
pub fn check() -> Result<(), Interrupt> {
    if panicking() {
        return Err(Interrupt::Panicking);
    }
    match current_task() {
        Some(task) if is_free(&task) => Ok(()),
        Some(task) => check_task(&task),
        None => check_thread(),
    }
}

/// Whether nothing stands against a wait of the dhaga that runs, not even a deadline to come: the usual case.
#[inline(always)]
pub(crate) fn is_undisturbed(task: &Task) -> bool {
    !panicking() && is_free(task)
}

#[inline(always)]
fn is_free(task: &Task) -> bool {
    task.is_unbound() && !task.is_unwinding() && !task.scope().is_some_and(Scope::is_cancelled)
}

/// As [`check`], before an attempt that will not wait: a panic in flight stops no attempt, so that a `Drop` may still say
/// good-bye.
///
/// # Errors
///
/// As [`check`], without [`Interrupt::Panicking`].
#[inline(always)]
pub fn check_attempt() -> Result<(), Interrupt> {
    match check() {
        Err(Interrupt::Panicking) => Ok(()),
        checked => checked,
    }
}

#[cold]
fn check_task(task: &Task) -> Result<(), Interrupt> {
    if task.is_unwinding() {
        throw();
    }
    if let Some(frame) = task.frame() {
        return check_frame(frame, || task.scope().is_some_and(Scope::is_cancelled));
    }
    task.head().map_or(Ok(()), check_head)
}

/// Code of a dhaga that is in no frame.
#[inline(always)]
fn check_head(head: &Head) -> Result<(), Interrupt> {
    if head.scope().is_cancelled() {
        return Err(Interrupt::Cancelled);
    }
    check_deadline(head.deadline())
}

#[inline(never)]
fn check_frame(frame: &Frame, is_root_cancelled: impl FnOnce() -> bool) -> Result<(), Interrupt> {
    if frame.is_cancelled(is_root_cancelled) {
        return Err(Interrupt::Cancelled);
    }
    check_deadline(frame.ambient().deadline)
}

#[cold]
fn check_thread() -> Result<(), Interrupt> {
    with_thread_frame(|frame| frame.map_or(Ok(()), |frame| check_frame(frame, || false))).unwrap_or(Ok(()))
}

#[inline(always)]
fn check_deadline(deadline: Option<Deadline>) -> Result<(), Interrupt> {
    match deadline {
        Some(deadline) if deadline.at <= now() => Err(deadline.interrupt()),
        _ => Ok(()),
    }
}

/// Whether the caller or a scope around it is cancelled, as far as that reaches it.
pub(crate) fn is_cancelled() -> bool {
    match current_task() {
        Some(task) => {
            let is_root_cancelled = || task.scope().is_some_and(Scope::is_cancelled);
            task.frame().map_or_else(is_root_cancelled, |frame| frame.is_cancelled(is_root_cancelled))
        }
        None => with_thread_frame(|frame| frame.is_some_and(|frame| frame.is_cancelled(|| false))).unwrap_or(false),
    }
}

/// Whether the runtime of the caller is being shut down: nothing new is taken on, and what was begun shall be brought to an
/// end. False on a plain thread. For libraries that serve: an accept ends by itself, but a connection that is kept open
/// may bring more and more.
///
/// # Examples
///
/// ```
/// fn serve_next(request: &str) -> Result<String, String> {
///     if dhaga::is_shutting_down() {
///         return Err("going away".to_owned());
///     }
///     Ok(request.to_uppercase())
/// }
/// assert_eq!(serve_next("hello").as_deref(), Ok("HELLO"));
/// ```
pub fn is_shutting_down() -> bool {
    worker().is_some_and(|worker| worker.shared.is_shutting_down())
}

/// The deadline in force for the caller; `None` if there is none, or in an `uncancellable` section.
#[inline(always)]
pub(crate) fn scope_deadline() -> Option<Deadline> {
    match current_task() {
        Some(task) if task.is_unbound() => None,
        Some(task) => bound_deadline(&task),
        None => thread_deadline(),
    }
}

#[inline(never)]
fn bound_deadline(task: &Task) -> Option<Deadline> {
    match task.frame() {
        Some(frame) => frame.ambient().deadline,
        None => task.head().and_then(Head::deadline),
    }
}

#[cold]
fn thread_deadline() -> Option<Deadline> {
    with_thread_frame(|frame| frame.and_then(|frame| frame.ambient().deadline)).flatten()
}

/// Whether a deadline or a scope around the caller may end its waits; of a dhaga, one inside its own.
pub(crate) fn is_in_frame() -> bool {
    match current_task() {
        Some(task) => task.frame().is_some(),
        None => with_thread_frame(|frame| frame.is_some()).unwrap_or(false),
    }
}

/// What a dhaga that the caller spawns inherits.
#[inline(always)]
pub(crate) fn inherited() -> Option<Arc<Ambient>> {
    match current_task() {
        Some(task) => match task.frame() {
            Some(frame) => frame.shared(),
            None => task.head().and_then(Head::ambient),
        },
        None => inherited_on_thread(),
    }
}

#[inline(never)]
fn inherited_on_thread() -> Option<Arc<Ambient>> {
    with_thread_frame(|frame| frame.and_then(Frame::shared)).flatten()
}

/// All that is in force for the caller.
pub(crate) fn ambient() -> Ambient {
    match current_task() {
        Some(task) => match task.frame() {
            Some(frame) => frame.ambient().clone(),
            None => task.head().and_then(Head::ambient).map_or_else(Ambient::default, Arc::unwrap_or_clone),
        },
        None => with_thread_frame(|frame| frame.map(|frame| frame.ambient().clone())).flatten().unwrap_or_default(),
    }
}

/// Calls `f` with all that is in force for the caller, if anything is.
#[inline]
pub(crate) fn with_ambient<R>(f: impl FnOnce(Option<&Ambient>) -> R) -> R {
    match current_task() {
        Some(task) => match task.frame() {
            Some(frame) => f(Some(frame.ambient())),
            None => f(task.head().and_then(Head::ambient).as_deref()),
        },
        None => f(with_thread_frame(|frame| frame.map(|frame| frame.ambient().clone())).flatten().as_ref()),
    }
}

/// Calls `f` with the place where the caller's frames are linked; with one of its own while a thread's locals are
/// destroyed.
pub(crate) fn with_frames<R>(f: impl FnOnce(&Innermost) -> R) -> R {
    if let Some(task) = current_task() {
        return f(&task.frames);
    }
    let mut f = Some(f);
    let mut call = |frames: &Innermost| f.take().map(|f| f(frames));
    match THREAD.try_with(|thread| call(&thread.frames)) {
        Ok(result) => result,
        Err(_) => call(&Cell::new(ptr::null())),
    }
    .expect("it is called once")
}

/// Calls `f` with the innermost scope that a cancel from outside reaches, if there is one.
pub(crate) fn with_enclosing_scope(f: impl FnOnce(&Scope)) {
    let task = current_task();
    let root = || task.as_ref().and_then(|task| task.scope());
    let found = |frame: Option<&Frame>| match frame.map_or(Enclosing::Root, Frame::enclosing_scope) {
        Enclosing::None => {}
        Enclosing::Scope(scope) => f(scope),
        Enclosing::Root => root().map_or((), f),
    };
    match &task {
        Some(task) => found(task.frame()),
        None => with_thread_frame(found).unwrap_or(()),
    }
}

/// Calls `f` with what `local!` keeps for the caller. `None` while a thread's locals are destroyed.
pub(crate) fn with_locals<R>(f: impl FnOnce(&LocalSlots) -> R) -> Option<R> {
    match current_task() {
        Some(task) => Some(f(&task.locals)),
        None => THREAD.try_with(|thread| f(&thread.locals)).ok(),
    }
}

/// Drops what the calling dhaga keeps for itself, before anybody learns of its end.
pub(crate) fn drop_own() {
    if let Some(task) = current_task() {
        task.drop_own();
    }
}

/// Panics if the caller is in a `no_suspend` section: for a wait that must not be refused once it has begun.
pub(crate) fn expect_may_suspend(reason: WaitReason) {
    let is_forbidden = match current_task() {
        Some(task) => task.attention.has(Attention::NO_SUSPEND),
        None => THREAD.try_with(|thread| thread.no_suspend.get() > 0).unwrap_or(false),
    };
    if is_forbidden && !panicking() {
        refuse_in_no_suspend(reason);
    }
}

/// Calls `f` with how deep the caller is in `no_suspend` sections, which it may change.
pub(crate) fn change_no_suspend(f: impl FnOnce(u32) -> u32) {
    let Some(task) = current_task() else {
        // While a thread's locals are destroyed there is nothing left to forbid.
        let _ = THREAD.try_with(|thread| thread.no_suspend.set(f(thread.no_suspend.get())));
        return;
    };
    task.no_suspend.set(f(task.no_suspend.get()));
    if task.no_suspend.get() > 0 {
        task.attention.add(Attention::NO_SUSPEND);
    } else {
        task.attention.take(Attention::NO_SUSPEND);
    }
}

/// Counts the sleeps of the caller in a row that were cut short; a whole one begins anew. Returns how many there are.
pub(crate) fn count_early_sleep(is_early: bool) -> u32 {
    let count = |sleeps: &Cell<u32>| {
        sleeps.set(if is_early { sleeps.get().saturating_add(1) } else { 0 });
        sleeps.get()
    };
    match current_task() {
        Some(task) => count(&task.early_sleeps),
        None => THREAD.try_with(|thread| count(&thread.early_sleeps)).unwrap_or(0),
    }
}

/// Takes the token that `unpark` left for the caller. Returns whether it was there; also true where no token can come any
/// more, since the dhaga has handed its result over or the thread's locals are destroyed, so that nobody waits for one.
pub(crate) fn take_token() -> bool {
    match current_task() {
        Some(task) => task.head().is_none_or(Head::take_token),
        None => THREAD.try_with(|thread| thread.parker.take_token()).unwrap_or(true),
    }
}

/// The number of the calling dhaga or thread in the process, which nobody else ever has.
pub(crate) fn number() -> u64 {
    if let Some(task) = current_task()
        && let Some(head) = task.head()
    {
        return number_of(head);
    }
    THREAD.try_with(|thread| *thread.process_number.get_or_init(next_number)).unwrap_or_else(|_| next_number())
}

pub(crate) fn number_of(head: &Head) -> u64 {
    head.number(next_number)
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The earlier of a wait's own deadline and that of the scope around it.
#[inline(always)]
pub fn earliest(own: Option<Instant>) -> Option<Instant> {
    match (own, scope_deadline()) {
        (Some(own), Some(around)) => Some(own.min(around.at)),
        (own, around) => own.or(around.map(|around| around.at)),
    }
}

/// The clock that all deadlines are measured by: monotonic.
#[inline(always)]
pub fn now() -> Instant {
    crate::scheduler::now()
}

/// The instant `timeout` from now. `None` (no deadline) when it lies beyond what the clock can tell.
pub(crate) fn after(timeout: Duration) -> Option<Instant> {
    now().checked_add(timeout)
}
