//! Spawning and joining: one allocation holds the closure, its result, and who waits for it.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::context::{self, Interrupt, Node, Scope};
use crate::park::{self, Unparker, Unwound, WaitReason};
use crate::run_queue::Address;
use crate::runtime::{Runtime, SpawnError, submit, submit_here};
use crate::scheduler::with_worker;
use crate::stack::{STACK_BYTES_MAX, STACK_BYTES_MIN};
use crate::task::{Job, Label};

/// Starts a dhaga that runs `f`, on the caller's runtime or else on the default one. Does not wait.
///
/// Where `f` starts is open: any idle worker may take it, from the moment the caller's worker ends its batch of work (100 µs,
/// or when the dhaga that runs waits or yields). Once started it stays on its OS thread. So a dhaga that computes for long
/// holds back what its worker has not shared yet: let it call [`yield_now`] now and then, or compute in
/// [`blocking`](crate::blocking).
///
/// # Panics
///
/// When the runtime's limit of dhagas is reached, as std's `spawn` does; [`Builder::spawn`] returns the error instead.
///
/// # Examples
///
/// ```
/// let answer = dhaga::spawn(|| 6 * 7);
/// assert_eq!(answer.join()?, 42);
/// # Ok::<(), dhaga::JoinError<i32>>(())
/// ```
#[track_caller]
pub fn spawn<F, T>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    expect_spawned(Builder::new().spawn(f))
}

/// Starts a dhaga on the caller's own worker; neither the closure nor its result needs to be `Send`.
///
/// # Panics
///
/// On a plain thread, which has no worker; [`Builder::spawn_local`] returns the error instead. When the runtime's limit is
/// reached.
///
/// # Examples
///
/// ```
/// dhaga::spawn(|| {
///     let shared = std::rc::Rc::new(42);
///     let copy = shared.clone();
///     assert_eq!(dhaga::spawn_local(move || *copy).join().unwrap(), 42);
/// })
/// .join()?;
/// # Ok::<(), dhaga::JoinError<()>>(())
/// ```
#[track_caller]
pub fn spawn_local<F, T>(f: F) -> LocalJoinHandle<T>
where
    F: FnOnce() -> T + 'static,
    T: 'static,
{
    match Builder::new().spawn_local(f) {
        Ok(handle) => handle,
        Err(error) => panic!("cannot spawn a dhaga here: {error}"),
    }
}

/// Gives way: the caller goes to the tail of its worker's run queue. Once in a while sockets and timers are looked at as
/// well, so a loop of yields starves nobody. On a plain thread: `std::thread::yield_now`.
#[inline(always)]
pub fn yield_now() {
    park::yield_now();
}

impl Runtime {
    /// As [`spawn`], on this runtime.
    ///
    /// # Panics
    ///
    /// When the limit of dhagas is reached.
    #[track_caller]
    pub fn spawn<F, T>(&self, f: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        expect_spawned(Builder::new().spawn_on(self, f))
    }
}

#[track_caller]
fn expect_spawned<T>(result: Result<JoinHandle<T>, SpawnError>) -> JoinHandle<T> {
    match result {
        Ok(handle) => handle,
        Err(error) => panic!("cannot spawn a dhaga: {error}"),
    }
}

/// How a dhaga shall be: its name, its stack, what it inherits.
///
/// # Examples
///
/// ```
/// let indexer = dhaga::Builder::new().name("indexer").stack_size(1 << 20).spawn(|| dhaga::current().name().map(str::to_owned))?;
/// assert_eq!(indexer.join()?.as_deref(), Some("indexer"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing before `spawn`"]
pub struct Builder {
    name: Option<Box<str>>,
    stack_bytes: usize,
    inherit: Inherit,
}

/// What a new dhaga takes over from the code that spawns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inherit {
    /// Its deadline: a plain spawn.
    Deadline,
    /// Its deadline and its cancellation: a scoped spawn.
    DeadlineAndCancel,
    /// Nothing: what a library keeps.
    Nothing,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// No name, the runtime's stack size, the caller's deadline.
    pub fn new() -> Self {
        Self { name: None, stack_bytes: 0, inherit: Inherit::Deadline }
    }

    /// The name shown in reports, in the message of a stack overflow, and by [`current`].
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into().into_boxed_str());
        self
    }

    /// Bytes of stack, guard included; rounded up to a power of two. Default: the runtime's.
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_bytes = bytes;
        self
    }

    /// Inherits no deadline: for what outlives the code that happens to start it, as a library's keepalive does.
    pub fn detached(mut self) -> Self {
        self.inherit = Inherit::Nothing;
        self
    }

    pub(crate) fn inherit(mut self, inherit: Inherit) -> Self {
        self.inherit = inherit;
        self
    }

    /// As [`spawn`](crate::spawn()), with a limit that is met as an error.
    ///
    /// # Errors
    ///
    /// [`SpawnError::TooMany`] at the runtime's limit, [`SpawnError::StackSize`] for a stack that cannot be.
    #[track_caller]
    pub fn spawn<F, T>(self, f: F) -> Result<JoinHandle<T>, SpawnError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.submit(None, Location::caller(), f)
    }

    /// As [`Builder::spawn`], on a runtime of your choice.
    ///
    /// # Errors
    ///
    /// As [`Builder::spawn`].
    #[track_caller]
    pub fn spawn_on<F, T>(self, runtime: &Runtime, f: F) -> Result<JoinHandle<T>, SpawnError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.submit(Some(runtime), Location::caller(), f)
    }

    /// As [`spawn_local`](crate::spawn_local()), with errors.
    ///
    /// # Errors
    ///
    /// [`SpawnError::NoWorker`] on a plain thread, otherwise as [`Builder::spawn`].
    #[track_caller]
    pub fn spawn_local<F, T>(self, f: F) -> Result<LocalJoinHandle<T>, SpawnError>
    where
        F: FnOnce() -> T + 'static,
        T: 'static,
    {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        let body = move || *slot.borrow_mut() = Some(f());
        let handle = self.spawn_local_job(Location::caller(), body)?;
        Ok(LocalJoinHandle { handle, result })
    }

    /// As `spawn`, for a closure that another module's caller wrote.
    pub(crate) fn spawn_at<F, T>(self, site: &'static Location<'static>, f: F) -> Result<JoinHandle<T>, SpawnError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.submit(None, site, f)
    }

    fn spawn_local_job(
        self,
        site: &'static Location<'static>,
        body: impl FnOnce() + 'static,
    ) -> Result<JoinHandle<()>, SpawnError> {
        let label = self.check(site)?;
        let key = with_worker(|worker| worker.keep_closure(Box::new(body)));
        let closure = LocalClosure { key: Some(key.ok_or(SpawnError::NoWorker)?) };
        let packet = Packet::new(label, self.inherit, move || closure.run());
        submit_here(packet.clone())?;
        Ok(JoinHandle { packet })
    }

    #[inline]
    fn submit<F, T>(
        self,
        runtime: Option<&Runtime>,
        site: &'static Location<'static>,
        f: F,
    ) -> Result<JoinHandle<T>, SpawnError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let inherit = self.inherit;
        let packet = Packet::new(self.check(site)?, inherit, f);
        submit(runtime, packet.clone())?;
        Ok(JoinHandle { packet })
    }

    fn check(&self, site: &'static Location<'static>) -> Result<Label, SpawnError> {
        if self.stack_bytes != 0 && !(STACK_BYTES_MIN..=STACK_BYTES_MAX).contains(&self.stack_bytes) {
            return Err(SpawnError::StackSize { bytes: self.stack_bytes });
        }
        Ok(Label { name: self.name.clone(), site, stack_bytes: self.stack_bytes })
    }
}

/// A closure that stays in its worker's own table, so that what is queued can be `Send`. Runs on that worker only: its job
/// lies in the queue that nobody steals from.
struct LocalClosure {
    /// Its place in the table; `None` once it was taken, since another closure may lie there then.
    key: Option<usize>,
}

impl LocalClosure {
    fn run(mut self) {
        if let Some(closure) = self.take() {
            closure();
        }
    }

    fn take(&mut self) -> Option<Box<dyn FnOnce()>> {
        let key = self.key.take()?;
        with_worker(|worker| worker.take_closure(key)).flatten()
    }
}

impl Drop for LocalClosure {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// The closure, its result, and who waits for it: the one allocation of a spawn.
struct Packet<F, T> {
    label: Label,
    scope: Scope,
    stage: Mutex<Stage<F, T>>,
}

/// ```text
///   Unstarted ──run──▶ Running ──ends──▶ Ended ──join──▶ Taken
///       └──────────discard──────────────▶ Ended(NeverRan)
/// ```
enum Stage<F, T> {
    Unstarted { closure: F, waits: Option<Unparker>, is_detached: bool },
    Running { home: Option<Address>, waits: Option<Unparker>, is_detached: bool },
    Ended(Ending<T>),
    Taken,
}

enum Ending<T> {
    Returned(T),
    Panicked(Box<dyn Any + Send>),
    NeverRan,
    Unwound,
}

impl<F, T> Packet<F, T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    fn new(label: Label, inherit: Inherit, closure: F) -> Arc<Self> {
        let deadline = if inherit == Inherit::Nothing { None } else { park::scope_deadline() };
        let stage = Mutex::new(Stage::Unstarted { closure, waits: None, is_detached: false });
        let packet = Arc::new(Self { label, scope: Scope::new(deadline, None), stage });
        if inherit == Inherit::DeadlineAndCancel
            && let Some(parent) = park::current_node()
        {
            parent.scope().adopt(&(packet.clone() as Arc<dyn Node>));
        }
        packet
    }

    fn stage(&self) -> MutexGuard<'_, Stage<F, T>> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a running or unstarted packet to its end. What is dropped here is user code, so it is dropped outside the
    /// lock, and before anybody learns of the end.
    fn end(&self, ending: Ending<T>) {
        let mut ending = Some(ending);
        let mut stage = self.stage();
        if let Stage::Running { is_detached: true, .. } = &*stage {
            drop(stage);
            drop_quietly(&self.label, ending.take());
            stage = self.stage();
        }
        let old = std::mem::replace(&mut *stage, ending.map_or(Stage::Taken, Stage::Ended));
        drop(stage);
        if let Stage::Running { waits: Some(waiter), .. } = old {
            waiter.unpark();
        }
    }

    /// Takes the closure and notes where it runs.
    fn start(&self, home: Option<Address>) -> Option<F> {
        let mut stage = self.stage();
        match std::mem::replace(&mut *stage, Stage::Taken) {
            Stage::Unstarted { closure, waits, is_detached } => {
                *stage = Stage::Running { home, waits, is_detached };
                Some(closure)
            }
            other => {
                *stage = other;
                None
            }
        }
    }
}

/// A dhaga of a library: it has no handle and inherits nothing.
pub(crate) fn detached(site: &'static Location<'static>, f: impl FnOnce() + Send + 'static) -> Arc<dyn Job> {
    let label = Label { name: None, site, stack_bytes: 0 };
    let stage = Stage::Unstarted { closure: f, waits: None, is_detached: true };
    Arc::new(Packet { label, scope: Scope::default(), stage: Mutex::new(stage) })
}

/// A closure for a thread of the blocking pool, and the handle that waits for it.
pub(crate) fn packet_for_pool<F, T>(site: &'static Location<'static>, f: F) -> (Arc<dyn Job>, JoinHandle<T>)
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let packet = Packet::new(Label { name: None, site, stack_bytes: 0 }, Inherit::Deadline, f);
    (packet.clone(), JoinHandle { packet })
}

/// Drops user values where a panic in their `Drop` has nobody to go to.
fn drop_quietly<V>(label: &Label, value: V) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(value)))
        && !payload.is::<Unwound>()
    {
        log::error!("a Drop panicked in dhaga {:?} spawned at {}", label.display_name(), label.site);
        std::mem::forget(payload);
    }
}

impl<F, T> Node for Packet<F, T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    fn scope(&self) -> &Scope {
        &self.scope
    }

    fn wake(&self) {
        let home = match &*self.stage() {
            Stage::Running { home, .. } => *home,
            _ => None,
        };
        if let Some(address) = home {
            park::unpark_dhaga(address);
        }
    }
}

impl<F, T> Job for Packet<F, T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    fn label(&self) -> &Label {
        &self.label
    }

    fn run(&self) {
        let home = park::with_task(|worker, task| worker.address(task));
        let Some(closure) = self.start(home) else {
            return;
        };
        let ending = match catch_unwind(AssertUnwindSafe(closure)) {
            Ok(value) => Ending::Returned(value),
            Err(payload) if payload.is::<Unwound>() => Ending::Unwound,
            Err(payload) => Ending::Panicked(payload),
        };
        self.end(ending);
    }

    fn discard(&self) {
        let home = park::with_task(|worker, task| worker.address(task));
        if let Some(closure) = self.start(home) {
            drop_quietly(&self.label, closure);
            self.end(Ending::NeverRan);
        }
    }
}

/// What a join handle needs of its packet, whatever the closure was.
trait Joinable<T>: Job {
    /// The result, if the dhaga has ended. Otherwise `waiter` is woken when it does.
    fn poll(&self, waiter: Option<Unparker>) -> Option<Ending<T>>;
    fn is_finished(&self) -> bool;
    /// The handle goes: nobody will take the result.
    fn detach(&self);
}

impl<F, T> Joinable<T> for Packet<F, T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    fn poll(&self, waiter: Option<Unparker>) -> Option<Ending<T>> {
        let mut stage = self.stage();
        match &mut *stage {
            Stage::Unstarted { waits, .. } | Stage::Running { waits, .. } => *waits = waiter,
            Stage::Ended(_) | Stage::Taken => {}
        }
        match &*stage {
            Stage::Ended(_) => match std::mem::replace(&mut *stage, Stage::Taken) {
                Stage::Ended(ending) => Some(ending),
                _ => unreachable!("it was looked at under the same lock"),
            },
            _ => None,
        }
    }

    fn is_finished(&self) -> bool {
        matches!(&*self.stage(), Stage::Ended(_) | Stage::Taken)
    }

    fn detach(&self) {
        let mut stage = self.stage();
        match &mut *stage {
            Stage::Unstarted { is_detached, .. } | Stage::Running { is_detached, .. } => *is_detached = true,
            Stage::Ended(_) => {
                let ended = std::mem::replace(&mut *stage, Stage::Taken);
                drop(stage);
                drop(ended);
            }
            Stage::Taken => {}
        }
    }
}

/// Owns the right to a dhaga's result. Dropping it detaches the dhaga, which runs on.
#[must_use = "a dropped handle detaches its dhaga and loses its result; call detach() to say so"]
pub struct JoinHandle<T> {
    packet: Arc<dyn Joinable<T>>,
}

impl<T> JoinHandle<T> {
    /// Waits until the dhaga has ended, and returns its result. Parks a dhaga, blocks a plain thread.
    ///
    /// # Errors
    ///
    /// [`JoinError::Panicked`], [`JoinError::NeverRan`] and [`JoinError::Unwound`] tell of the dhaga that was joined.
    /// [`JoinError::Stopped`] tells of the caller: its scope's deadline passed, it was cancelled, or it is unwinding; the
    /// handle is inside.
    pub fn join(self) -> Result<T, JoinError<T>> {
        self.join_until(WaitReason::Join, None)
    }

    /// As [`JoinHandle::join`], for `timeout` at most.
    ///
    /// # Errors
    ///
    /// As [`JoinHandle::join`]; when the time is over, [`JoinError::Stopped`] with [`Interrupt::DeadlineExceeded`] and the
    /// handle.
    pub fn join_timeout(self, timeout: Duration) -> Result<T, JoinError<T>> {
        let deadline = park::after(timeout);
        self.join_until(WaitReason::Join, deadline)
    }

    pub(crate) fn join_until(self, reason: WaitReason, deadline: Option<Instant>) -> Result<T, JoinError<T>> {
        let wait = park::earliest(deadline);
        let mut is_late = false;
        loop {
            if let Err(interrupt) = park::check() {
                return Err(JoinError::Stopped(interrupt, self));
            }
            match self.packet.poll(Some(park::unparker())) {
                Some(Ending::Returned(value)) => return Ok(value),
                Some(Ending::Panicked(payload)) => return Err(JoinError::panicked(payload)),
                Some(Ending::NeverRan) => return Err(JoinError::NeverRan),
                Some(Ending::Unwound) => return Err(JoinError::Unwound),
                None if is_late => {
                    return Err(JoinError::Stopped(Interrupt::DeadlineExceeded, self));
                }
                None => is_late = park::park_until(reason, wait) == park::Parked::TimedOut,
            }
        }
    }

    /// Whether the dhaga has ended, so that `join` would not wait.
    pub fn is_finished(&self) -> bool {
        self.packet.is_finished()
    }

    /// Cancels the dhaga and whatever it spawned in a scope: their waits that can fail return an error from now on. It
    /// ends when its code returns, so join it to see it gone. One that has not started yet starts all the same.
    pub fn cancel(&self) {
        context::cancel(&*self.packet);
    }

    /// The dhaga that this handle is for.
    pub fn dhaga(&self) -> Dhaga {
        Dhaga(Who::Dhaga(self.packet.clone()))
    }

    /// Lets the dhaga run on by itself; its result is dropped when it ends. The same as dropping the handle.
    pub fn detach(self) {}
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        self.packet.detach();
    }
}

impl<T> std::fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinHandle")
            .field("label", self.packet.label())
            .field("is_finished", &self.is_finished())
            .finish()
    }
}

/// As [`JoinHandle`], for a dhaga of the same worker.
#[must_use = "a dropped handle detaches its dhaga and loses its result"]
pub struct LocalJoinHandle<T> {
    handle: JoinHandle<()>,
    result: Rc<RefCell<Option<T>>>,
}

impl<T> LocalJoinHandle<T> {
    /// As [`JoinHandle::join`].
    ///
    /// # Errors
    ///
    /// As [`JoinHandle::join`]; the handle inside [`JoinError::Stopped`] can still be joined, but without the result.
    pub fn join(self) -> Result<T, JoinError<()>> {
        self.handle.join()?;
        Ok(self.result.borrow_mut().take().expect("a dhaga that returned has left its result"))
    }

    /// As [`JoinHandle::is_finished`].
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// As [`JoinHandle::cancel`].
    pub fn cancel(&self) {
        self.handle.cancel();
    }
}

impl<T> std::fmt::Debug for LocalJoinHandle<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.handle.fmt(f)
    }
}

/// Why a join has no result.
#[non_exhaustive]
pub enum JoinError<T> {
    /// The dhaga panicked.
    Panicked(Panic),
    /// The dhaga was dropped before its first run: its runtime was shut down, or had no memory for its stack.
    NeverRan,
    /// Its runtime was shut down while it ran.
    Unwound,
    /// The join itself gave up, for the reason given; the handle comes back.
    Stopped(Interrupt, JoinHandle<T>),
}

impl<T> JoinError<T> {
    pub(crate) fn panicked(payload: Box<dyn Any + Send>) -> Self {
        Self::Panicked(Panic::new(payload))
    }
}

impl<T> std::fmt::Display for JoinError<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Panicked(panic) => write!(f, "the dhaga panicked: {}", panic.message()),
            Self::NeverRan => {
                f.write_str("the dhaga never ran: its runtime was shut down or had no memory for its stack")
            }
            Self::Unwound => f.write_str("the dhaga was unwound by the shutdown of its runtime"),
            Self::Stopped(interrupt, _) => write!(f, "the join was stopped: {interrupt}"),
        }
    }
}

impl<T> std::fmt::Debug for JoinError<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinError({self})")
    }
}

impl<T> std::error::Error for JoinError<T> {}

/// What a dhaga panicked with.
pub struct Panic {
    /// Behind a lock only to be `Sync`, so that the error travels with `?` everywhere.
    payload: Mutex<Box<dyn Any + Send>>,
    message: Box<str>,
}

impl Panic {
    fn new(payload: Box<dyn Any + Send>) -> Self {
        let text =
            payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let message = text.unwrap_or("(a payload that is no text)").into();
        Self { payload: Mutex::new(payload), message }
    }

    /// The text it panicked with.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The payload, for [`std::panic::resume_unwind`].
    pub fn into_payload(self) -> Box<dyn Any + Send> {
        self.payload.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Panic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Panic({:?})", self.message)
    }
}

/// A dhaga, or a plain thread, as others may know it.
#[derive(Clone)]
pub struct Dhaga(Who);

#[derive(Clone)]
enum Who {
    Dhaga(Arc<dyn Job>),
    Thread(std::thread::Thread),
}

/// Who runs the caller.
pub fn current() -> Dhaga {
    let job = park::with_task(|_, task| task.job.borrow().clone()).flatten();
    Dhaga(job.map_or_else(|| Who::Thread(std::thread::current()), Who::Dhaga))
}

impl Dhaga {
    /// Its name, if it was given one.
    pub fn name(&self) -> Option<&str> {
        match &self.0 {
            Who::Dhaga(job) => job.label().name.as_deref(),
            Who::Thread(thread) => thread.name(),
        }
    }

    /// Where it was spawned; `None` for a plain thread.
    pub fn spawn_site(&self) -> Option<&'static Location<'static>> {
        match &self.0 {
            Who::Dhaga(job) => Some(job.label().site),
            Who::Thread(_) => None,
        }
    }

    /// Whether it is a dhaga rather than a plain thread.
    pub fn is_dhaga(&self) -> bool {
        matches!(self.0, Who::Dhaga(_))
    }
}

impl std::fmt::Debug for Dhaga {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dhaga").field("name", &self.name()).field("spawn_site", &self.spawn_site()).finish()
    }
}
