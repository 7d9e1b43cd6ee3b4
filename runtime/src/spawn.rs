//! Spawning and joining.

use std::any::Any;
use std::panic::Location;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use crate::ambient::Deadline;
use crate::around;
use crate::context;
use crate::identity::Dhaga;
use crate::interrupt::Interrupt;
use crate::job::{Job, Label, Wish};
use crate::packet::{self, Ending, Handle, Plan};
use crate::park::{self, Unparker, WaitReason};
use crate::runtime::{Runtime, SpawnError, submit, submit_at, submit_here};
use crate::scheduler::worker;
use crate::stack::{STACK_BYTES_MAX, STACK_BYTES_MIN};

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
pub fn spawn_local<F, T>(f: F) -> JoinHandle<T>
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
///
/// When a [`shutdown`](Runtime::shutdown) has cancelled the dhaga, this unwinds it, as [`sleep`](crate::sleep) does.
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
pub(crate) fn expect_spawned<T>(result: Result<JoinHandle<T>, SpawnError>) -> JoinHandle<T> {
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
    name: Option<Box<Box<str>>>,
    stack_bytes: usize,
    inherit: Inherit,
}

/// What a new dhaga takes over from the code that spawns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inherit {
    /// Its deadline and the values of its context.
    Ambient,
    /// Nothing: what a library keeps.
    Nothing,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// No name, the runtime's stack size, the caller's deadline and context.
    pub fn new() -> Self {
        Self { name: None, stack_bytes: 0, inherit: Inherit::Ambient }
    }

    /// The name shown in reports, in the message of a stack overflow, and by [`current`](crate::current()).
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(Box::new(name.into().into_boxed_str()));
        self
    }

    /// Bytes of stack, guard included; rounded up to a power of two. Default: the runtime's.
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_bytes = bytes;
        self
    }

    /// Inherits neither the caller's deadline nor its context, and an orderly [`shutdown`](Runtime::shutdown) does not wait
    /// until it has finished: for what outlives the code that happens to start it, as a library's keepalive does.
    pub fn detached(mut self) -> Self {
        self.inherit = Inherit::Nothing;
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
    pub fn spawn_local<F, T>(self, f: F) -> Result<JoinHandle<T>, SpawnError>
    where
        F: FnOnce() -> T + 'static,
        T: 'static,
    {
        self.spawn_local_at(Location::caller(), f)
    }

    /// As [`Builder::spawn_local`], for somebody else's code, which was given to us at `site`.
    pub(crate) fn spawn_local_at<F, T>(
        self,
        site: &'static Location<'static>,
        f: F,
    ) -> Result<JoinHandle<T>, SpawnError>
    where
        F: FnOnce() -> T + 'static,
        T: 'static,
    {
        if worker().is_none() {
            return Err(SpawnError::NoWorker);
        }
        let plan = self.check(site)?;
        // SAFETY: `submit_here` puts the job into the queue of this thread's worker that nobody steals from, or drops it here.
        let (job, handle) = unsafe { packet::pair_unchecked(plan, f) };
        submit_here(job)?;
        Ok(JoinHandle { handle })
    }

    /// As [`Builder::spawn`], on a worker of the caller's runtime, from 0.
    pub(crate) fn spawn_at<F, T>(
        self,
        worker: usize,
        site: &'static Location<'static>,
        f: F,
    ) -> Result<JoinHandle<T>, SpawnError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let (job, handle) = packet::pair(self.check(site)?, f);
        submit_at(worker, job)?;
        Ok(JoinHandle { handle })
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
        let (job, handle) = packet::pair(self.check(site)?, f);
        submit(runtime, job)?;
        Ok(JoinHandle { handle })
    }

    /// As [`Builder::spawn`], of a closure that is called until it is ready, again whenever its dhaga is woken.
    pub(crate) fn submit_steps<F, T>(self, site: &'static Location<'static>, f: F) -> Result<JoinHandle<T>, SpawnError>
    where
        F: FnMut() -> Poll<T> + Send + 'static,
        T: Send + 'static,
    {
        // SAFETY: both are `Send`.
        let (job, handle) = unsafe { packet::pair_of_steps(self.check(site)?, f) };
        submit(None, job)?;
        Ok(JoinHandle { handle })
    }

    /// As [`Builder::submit_steps`], on the caller's worker.
    pub(crate) fn submit_steps_here<F, T>(
        self,
        site: &'static Location<'static>,
        f: F,
    ) -> Result<JoinHandle<T>, SpawnError>
    where
        F: FnMut() -> Poll<T> + 'static,
        T: 'static,
    {
        if worker().is_none() {
            return Err(SpawnError::NoWorker);
        }
        let plan = self.check(site)?;
        // SAFETY: `submit_here` puts the job into the queue of this thread's worker that nobody steals from, or drops it here.
        let (job, handle) = unsafe { packet::pair_of_steps(plan, f) };
        submit_here(job)?;
        Ok(JoinHandle { handle })
    }

    #[inline(always)]
    fn check(self, site: &'static Location<'static>) -> Result<Plan, SpawnError> {
        if self.stack_bytes != 0 && !(STACK_BYTES_MIN..=STACK_BYTES_MAX).contains(&self.stack_bytes) {
            return Err(SpawnError::StackSize { bytes: self.stack_bytes });
        }
        let wish = Wish::of_stack(self.stack_bytes as u32);
        let label = Label { name: self.name, site };
        Ok(match self.inherit {
            Inherit::Ambient => Plan { label, wish, ambient: around::inherited() },
            Inherit::Nothing => Plan { label, wish: wish.in_background(), ambient: None },
        })
    }
}

/// A dhaga of a library: it has no handle and inherits nothing.
pub(crate) fn detached(site: &'static Location<'static>, f: impl FnOnce() + Send + 'static) -> Job {
    packet::detached(Label::of_site(site), f)
}

/// A closure for a thread of the blocking pool, and the handle that waits for it.
pub(crate) fn pair_for_pool<F, T>(site: &'static Location<'static>, f: F) -> (Job, JoinHandle<T>)
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let plan = Plan { label: Label::of_site(site), wish: Wish::default(), ambient: around::inherited() };
    let (job, handle) = packet::pair(plan, f);
    (job, JoinHandle { handle })
}

/// Queues the closure of a dhaga that is cancelled with `scope`.
pub(crate) fn spawn_linked<F, T>(
    builder: Builder,
    scope: &context::Scope,
    site: &'static Location<'static>,
    f: F,
) -> Result<JoinHandle<T>, SpawnError>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let (job, handle) = packet::pair(builder.check(site)?, f);
    scope.adopt(handle.reference());
    submit(None, job)?;
    Ok(JoinHandle { handle })
}

/// Owns the right to a dhaga's result. Dropping it detaches the dhaga, which runs on.
#[must_use = "a dropped handle detaches its dhaga and loses its result; call detach() to say so"]
pub struct JoinHandle<T> {
    handle: Handle<T>,
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
    #[track_caller]
    pub fn join_timeout(self, timeout: Duration) -> Result<T, JoinError<T>> {
        let set_at = Location::caller();
        let deadline = around::after(timeout).map(|at| Deadline { at, set_at });
        self.join_until(WaitReason::Join, deadline)
    }

    #[inline]
    pub(crate) fn join_until(mut self, reason: WaitReason, deadline: Option<Deadline>) -> Result<T, JoinError<T>> {
        if let Err(interrupt) = park::check() {
            // Who tries again and again keeps nobody out.
            park::spend();
            return Err(JoinError::Stopped(interrupt, self));
        }
        if !self.handle.has_ended()
            && let Err(interrupt) = self.wait(reason, deadline)
        {
            return Err(JoinError::Stopped(interrupt, self));
        }
        self.into_result()
    }

    /// The result of a dhaga that has ended.
    #[inline(always)]
    pub(crate) fn into_result(self) -> Result<T, JoinError<T>> {
        match self.handle.take() {
            Ending::Returned(value) => Ok(value),
            Ending::Panicked(payload) => Err(JoinError::panicked(payload)),
            Ending::NeverRan => Err(JoinError::NeverRan),
            Ending::Unwound => Err(JoinError::Unwound),
            Ending::Taken => unreachable!("only the one handle takes the ending"),
        }
    }

    /// Leaves word whom to wake at the end. Returns false if the dhaga has ended. Not twice without `retract`.
    pub(crate) fn register(&mut self, waiter: Unparker) -> bool {
        self.handle.register(waiter)
    }

    /// Takes that word back.
    pub(crate) fn retract(&mut self) {
        self.handle.retract();
    }

    /// Waits until the dhaga has ended.
    #[inline(never)]
    fn wait(&mut self, reason: WaitReason, deadline: Option<Deadline>) -> Result<(), Interrupt> {
        let wait = park::earliest(deadline.map(|deadline| deadline.at));
        if !self.handle.register(park::unparker()) {
            return Ok(());
        }
        // Should shutdown throw in the park, the handle is dropped, and takes the word back.
        loop {
            let is_late = park::park_until(reason, wait) == park::Parked::TimedOut;
            if self.handle.has_ended() {
                return Ok(());
            }
            let own = deadline.filter(|_| is_late).map(Deadline::interrupt);
            let stopped = park::check().err().or(own);
            if let Some(interrupt) = stopped {
                self.handle.retract();
                return if self.handle.has_ended() { Ok(()) } else { Err(interrupt) };
            }
        }
    }

    /// Whether the dhaga has ended, so that `join` would not wait.
    pub fn is_finished(&self) -> bool {
        self.handle.has_ended()
    }

    /// Cancels the dhaga and whatever it spawned in a scope: their waits that can fail return an error from now on. It
    /// ends when its code returns, so join it to see it gone. One that has not started yet starts all the same.
    pub fn cancel(&self) {
        context::cancel(self.handle.head());
    }

    /// The dhaga that this handle is for.
    pub fn dhaga(&self) -> Dhaga {
        Dhaga::of_job(self.handle.reference())
    }

    /// Lets the dhaga run on by itself; its result is dropped when it ends. The same as dropping the handle.
    pub fn detach(self) {}
}

impl<T> std::fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinHandle")
            .field("label", self.handle.head().label())
            .field("is_finished", &self.is_finished())
            .finish()
    }
}

/// Why a join has no result.
#[non_exhaustive]
pub enum JoinError<T> {
    /// The dhaga panicked.
    Panicked(Panic),
    /// The dhaga was dropped before its first run: its runtime was shut down, or had no memory for its stack. Or a closure for
    /// the blocking pool was, for which there was no thread.
    NeverRan,
    /// A closure for [`blocking`](crate::blocking()) was dropped before any thread had begun it, because the caller gave up, for
    /// the reason given.
    Withdrawn(Interrupt),
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
            Self::Withdrawn(interrupt) => write!(
                f,
                "the closure never ran, and was dropped while it waited for a thread of the blocking pool: {interrupt}; \
                 dhaga::blocking_pool() sets how many threads there are"
            ),
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
        let message = text(&*payload).unwrap_or_else(|| "(a payload that is no text)".into());
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

/// The text of a payload: of `panic!`, or of an error that [`thread`](crate::thread) joins with and that was thrown on.
fn text(payload: &(dyn Any + Send)) -> Option<Box<str>> {
    if let Some(text) = payload.downcast_ref::<&str>() {
        return Some((*text).into());
    }
    if let Some(text) = payload.downcast_ref::<String>() {
        return Some(text.as_str().into());
    }
    if let Some(error) = payload.downcast_ref::<JoinError<()>>() {
        return Some(error.to_string().into());
    }
    payload.downcast_ref::<Interrupt>().map(|interrupt| interrupt.to_string().into())
}

impl std::fmt::Debug for Panic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Panic({:?})", self.message)
    }
}
