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

use std::cell::RefCell;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::panicking;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

pub use crate::context::Interrupt;
use crate::context::{Node, Scope};
use crate::coroutine::Wake;
use crate::fork;
use crate::run_queue::{Address, Message};
use crate::scheduler::{Worker, current_task, worker};
pub use crate::task::WaitReason;
use crate::task::{Task, TaskId};

/// How long a lock that is taken while its thread panics may block the OS thread.
pub(crate) const UNWIND_BLOCK_MAX: Duration = Duration::from_secs(10);

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
    pub(crate) fn unpark_in_turn(&self) {
        match (&self.0, worker()) {
            (Sleeper::Dhaga(address), Some(worker)) if std::ptr::eq(address.injector, worker.injector) => {
                worker.unpark_in_turn(address.task);
            }
            _ => self.unpark(),
        }
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
    match park_raw(reason, deadline) {
        Wake::TimedOut => Parked::TimedOut,
        Wake::Unwind => throw(),
        Wake::Ready | Wake::Report => Parked::Woken,
    }
}

/// As [`park_until`], but an order to unwind comes back as a value: for a scope, which must see its children gone first.
#[inline(always)]
pub(crate) fn park_raw(reason: WaitReason, deadline: Option<Instant>) -> Wake {
    let Some(worker) = worker() else {
        return block_thread(deadline);
    };
    let Some(task) = worker.current() else {
        refuse_on_worker(reason);
    };
    if panicking() {
        return block_thread(deadline);
    }
    if task.is_unwinding.get() {
        return Wake::Unwind;
    }
    worker.suspend(task, reason, deadline)
}

/// Parks even in a dhaga that was told to unwind, and says whether it was: for a scope, whose end must be waited for.
pub(crate) fn park_through(reason: WaitReason) -> Wake {
    match worker().and_then(|worker| Some((worker, worker.current()?))) {
        Some((worker, task)) if !panicking() => {
            fork::abort_if_forked();
            let wake = worker.suspend(task, reason, None);
            if task.is_unwinding.get() { Wake::Unwind } else { wake }
        }
        _ => block_thread(None),
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
    fork::assert_not_forked();
    let mut polled: Vec<_> = descriptors.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
    match THREAD.try_with(|thread| thread.parker.clone()) {
        Ok(parker) => parker.poll_until(polled, deadline),
        Err(_) => poll_until(&mut polled, Some(nap_before(deadline))),
    }
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
        if task.is_unwinding.get() {
            throw();
        }
        worker.yield_now(task);
    } else {
        std::thread::yield_now();
    }
}

/// What unwinds a dhaga at shutdown. Private, so that nobody else can throw it.
pub(crate) struct Unwound;

/// Throws without the panic hook: nothing has gone wrong.
#[cold]
pub(crate) fn throw() -> ! {
    fork::abort_if_forked();
    resume_unwind(Box::new(Unwound))
}

/// Whether shutdown unwinds the calling dhaga: nothing it drops was left in disorder by a bug, so locks are not poisoned.
pub fn is_torn_down() -> bool {
    current_task().is_some_and(|task| task.is_unwinding.get())
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
    if !panicking() && is_in_dhaga() {
        yield_now();
    }
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
        Some(task) => check_task(&task),
        None => check_thread(),
    }
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

#[inline(always)]
fn check_task(task: &Task) -> Result<(), Interrupt> {
    if task.is_unwinding.get() {
        throw();
    }
    if task.shields.get() > 0 {
        return Ok(());
    }
    task.scope().map_or(Ok(()), check_scope)
}

#[cold]
fn check_thread() -> Result<(), Interrupt> {
    THREAD
        .try_with(|thread| thread.scope.borrow().as_ref().map_or(Ok(()), |node| check_scope(node.scope())))
        .unwrap_or(Ok(()))
}

#[inline(always)]
fn check_scope(scope: &Scope) -> Result<(), Interrupt> {
    if scope.is_cancelled() {
        return Err(Interrupt::Cancelled);
    }
    match scope.deadline() {
        Some(deadline) if deadline <= now() => Err(Interrupt::DeadlineExceeded),
        _ => Ok(()),
    }
}

/// The deadline of the scope around the caller; `None` if there is none, or in an `uncancellable` section.
#[inline(always)]
pub(crate) fn scope_deadline() -> Option<Instant> {
    match current_task() {
        Some(task) if task.shields.get() > 0 => None,
        Some(task) => task.scope().and_then(Scope::deadline),
        None => thread_deadline(),
    }
}

#[cold]
fn thread_deadline() -> Option<Instant> {
    THREAD.try_with(|thread| thread.scope.borrow().as_ref().and_then(|node| node.scope().deadline())).unwrap_or(None)
}

/// The earlier of a wait's own deadline and that of the scope around it.
#[inline(always)]
pub fn earliest(own: Option<Instant>) -> Option<Instant> {
    match (own, scope_deadline()) {
        (Some(own), Some(around)) => Some(own.min(around)),
        (own, around) => own.or(around),
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

/// Calls `f` with the innermost scope around the caller, if there is one.
pub(crate) fn with_current_scope(f: impl FnOnce(&Scope)) {
    if let Some(task) = current_task() {
        return task.scope().map_or((), f);
    }
    // While a thread's locals are destroyed there is no scope any more.
    let _ = THREAD.try_with(|thread| thread.scope.borrow().as_ref().map_or((), |node| f(node.scope())));
}

/// Who holds something: a dhaga, or a plain thread. One word, so that a lock can keep it beside its state.
///
/// ```text
///   63 ........... 48   47 ........ 16   15 ........ 0
///   ┌─────────────────┬────────────────┬──────────────┐
///   │ worker's number │ slot           │ generation   │   a dhaga
///   │ 0               │ thread, from 1 │ 0            │   a plain thread
///   └─────────────────┴────────────────┴──────────────┘
/// ```
///
/// Only the low half of the generation fits. It serves reports and the question who shares a worker, where a mistake in
/// 65 536 uses of a slot does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Here(u64);

impl Here {
    #[inline(always)]
    fn dhaga(worker: &Worker, task: &Task) -> Self {
        let TaskId { slot, generation } = task.id();
        Self(u64::from(worker.injector.number) << 48 | u64::from(slot) << 16 | u64::from(generation as u16))
    }

    fn worker(self) -> u64 {
        self.0 >> 48
    }

    fn slot(self) -> u32 {
        (self.0 >> 16) as u32
    }

    #[inline(always)]
    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

/// Whether the caller is a dhaga, which parks, rather than a plain thread, which blocks.
pub(crate) fn is_in_dhaga() -> bool {
    current_task().is_some()
}

/// Identifies the caller, for as long as it lives.
#[inline(always)]
pub(crate) fn here() -> Here {
    match worker().and_then(|worker| Some((worker, worker.current()?))) {
        Some((worker, task)) => Here::dhaga(worker, &task),
        None => here_on_thread(),
    }
}

#[inline(never)]
fn here_on_thread() -> Here {
    // While a thread's locals are destroyed it has no number any more: it is some thread.
    let number = THREAD.try_with(|thread| thread.number).unwrap_or(u32::MAX);
    Here(u64::from(number) << 16)
}

/// Whether the caller, who unwinds from a panic and so cannot switch, would wait for a dhaga of its own worker.
pub(crate) fn would_deadlock_while_unwinding(owner: Here) -> bool {
    panicking() && owner.worker() != 0 && here().worker() == owner.worker()
}

/// Ends the process: `owner` holds what the caller needs, and cannot run while the caller unwinds.
pub(crate) fn abort_deadlock(what: &str, owner: Here) -> ! {
    let describe = |who: Here| {
        let found = worker().and_then(|worker| worker.describe_slot(who.slot()));
        found.filter(|_| who.worker() != 0).unwrap_or_else(|| "a plain thread".to_owned())
    };
    eprintln!(
        "\n{} unwinds from a panic and waits for {what}, which is held by {} of the same OS thread. A dhaga never switches while \
         it unwinds, so the wait would never end: aborting. Release {what} before a panic can pass, or keep it out of `Drop`.",
        describe(here()),
        describe(owner),
    );
    std::process::abort()
}

/// A plain thread's side of a park: one saved permit under a lock.
#[derive(Default)]
struct ThreadParker {
    permit: Mutex<Permit>,
    condvar: Condvar,
    /// An eventfd, made when the thread waits for descriptors the first time.
    bell: OnceLock<OwnedFd>,
}

#[derive(Default)]
struct Permit {
    is_there: bool,
    /// The thread does not wait at the condvar: it polls descriptors, and the bell.
    is_polling: bool,
}

impl ThreadParker {
    fn permit(&self) -> MutexGuard<'_, Permit> {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unpark(&self) {
        let mut permit = self.permit();
        permit.is_there = true;
        if permit.is_polling
            && let Some(bell) = self.bell.get()
        {
            // A bell that cannot be rung because it has rung too often wakes the thread all the same.
            let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
        }
        drop(permit);
        self.condvar.notify_one();
    }

    fn park_until(&self, deadline: Option<Instant>) -> Wake {
        let mut permit = self.permit();
        while !permit.is_there {
            permit = match deadline {
                None => self.condvar.wait(permit).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(now());
                    if left.is_zero() {
                        return Wake::TimedOut;
                    }
                    self.condvar.wait_timeout(permit, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        permit.is_there = false;
        Wake::Ready
    }

    /// As `park_until`, and until one of the descriptors is ready.
    fn poll_until<'a>(&'a self, mut polled: Vec<PollFd<'a>>, deadline: Option<Instant>) {
        let bell = self.bell();
        polled.extend(bell.map(|bell| PollFd::new(bell, PollFlags::IN)));
        if self.begin_polling() {
            poll_until(&mut polled, if bell.is_some() { deadline } else { Some(nap_before(deadline)) });
        }
        *self.permit() = Permit::default();
        if let Some(bell) = bell {
            // Silent again, as it is now if it has not rung.
            let _ = rustix::io::read(bell, &mut [0; 8]);
        }
    }

    /// Returns false if there is a permit already.
    fn begin_polling(&self) -> bool {
        let mut permit = self.permit();
        permit.is_polling = !permit.is_there;
        permit.is_polling
    }

    /// The bell; `None` if the process has no descriptor left for it.
    fn bell(&self) -> Option<&OwnedFd> {
        if self.bell.get().is_none()
            && let Ok(bell) = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        {
            let _ = self.bell.set(bell);
        }
        self.bell.get()
    }
}

fn poll_until(polled: &mut [PollFd<'_>], deadline: Option<Instant>) {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(now()));
    // A time beyond what the kernel can count is for ever.
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    if let Err(error) = poll(polled, left.as_ref())
        && error != rustix::io::Errno::INTR
    {
        // The kernel has no memory, or is asked for more than the process may open.
        std::thread::sleep(NAP);
    }
}

struct PlainThread {
    parker: Arc<ThreadParker>,
    number: u32,
    scope: RefCell<Option<Arc<dyn Node>>>,
}

thread_local! {
    static THREAD: PlainThread = PlainThread {
        parker: Arc::default(),
        number: next_thread_number(),
        scope: RefCell::default(),
    };
}

/// The parker of this OS thread. While the thread's locals are destroyed, one that nobody waits at: see `block_thread`.
fn this_thread() -> Arc<ThreadParker> {
    THREAD.try_with(|thread| thread.parker.clone()).unwrap_or_default()
}

fn next_thread_number() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

#[cold]
fn block_thread(deadline: Option<Instant>) -> Wake {
    fork::assert_not_forked();
    match THREAD.try_with(|thread| thread.parker.clone()) {
        Ok(parker) => parker.park_until(deadline),
        Err(_) => nap(deadline),
    }
}

/// How often a thread looks whether what it waits for has come while no wake reaches it: because its locals are destroyed, or
/// because it polls and there is no descriptor for a bell.
const NAP: Duration = Duration::from_millis(1);

/// The end of a nap that begins now.
fn nap_before(deadline: Option<Instant>) -> Instant {
    let end = now() + NAP;
    deadline.map_or(end, |deadline| deadline.min(end))
}

fn nap(deadline: Option<Instant>) -> Wake {
    std::thread::sleep(NAP);
    if deadline.is_some_and(|deadline| deadline <= now()) { Wake::TimedOut } else { Wake::Ready }
}
