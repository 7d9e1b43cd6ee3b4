//! Structured spawning: dhagas that borrow from the code that waits for them.
//!
//! What makes the borrow sound is that [`scope`] does not return, and does not unwind out, before the last of its dhagas
//! has dropped its closure and its result: not on a panic, and not when shutdown unwinds the dhaga that called it.

use std::any::Any;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::around;
use crate::context::{self, Node};
use crate::coroutine::Wake;
use crate::frame;
use crate::identity::{Dhaga, current};
use crate::job::Unwound;
use crate::park::{self, Unparker, WaitReason};
use crate::runtime::SpawnError;
use crate::spawn::{Builder, JoinError, JoinHandle, spawn_linked};

/// Runs `f`, which may spawn dhagas that borrow what lives outside of it, and waits until all of them have ended. As
/// `std::thread::scope`. They inherit the caller's deadline, and are cancelled with it.
///
/// The wait goes on in spite of a deadline or a cancel: they reach the dhagas inside, which then end by themselves. See
/// [`try_scope`](crate::try_scope) for dhagas that stand and fall together.
///
/// # Panics
///
/// When a dhaga of the scope panicked, or never ran for want of memory, and its handle was not joined.
///
/// # Examples
///
/// ```
/// let words = ["one", "two", "three"];
/// let total = std::sync::atomic::AtomicUsize::new(0);
/// dhaga::scope(|s| {
///     for word in &words {
///         s.spawn(|| total.fetch_add(word.len(), std::sync::atomic::Ordering::Relaxed));
///     }
/// });
/// assert_eq!(total.into_inner(), 11);
/// ```
pub fn scope<'env, F, T>(f: F) -> T
where
    F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T,
{
    let scope = Scope::new();
    scope.run(|| f(&scope))
}

/// Where scoped dhagas are spawned. Made by [`scope`].
pub struct Scope<'scope, 'env: 'scope> {
    data: Arc<Data>,
    /// Invariant, as in std: the lifetimes must not be shortened under a spawned closure.
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

struct Data {
    /// What its dhagas, and the code of `scope` itself, are cancelled by.
    cancelled: context::Scope,
    /// Whose code `scope` runs.
    owner: Unparker,
    running: AtomicUsize,
    has_failed: AtomicBool,
    /// A dhaga of the scope was unwound by shutdown, which reaches the others only a moment later.
    was_unwound: AtomicBool,
    /// Who waits in `scope`.
    waiter: Mutex<Option<Unparker>>,
}

impl Data {
    fn new() -> Arc<Self> {
        let data = Arc::new(Self {
            cancelled: context::Scope::default(),
            owner: park::unparker(),
            running: AtomicUsize::new(0),
            has_failed: AtomicBool::new(false),
            was_unwound: AtomicBool::new(false),
            waiter: Mutex::new(None),
        });
        around::with_enclosing_scope(|around| around.adopt(Link(data.clone())));
        data
    }

    /// Parks until no dhaga of the scope is left. Returns whether shutdown wants this dhaga to unwind.
    fn wait_for_all(&self) -> bool {
        let mut was_unwound = false;
        loop {
            *self.waiter.lock().unwrap_or_else(PoisonError::into_inner) = Some(park::unparker());
            if self.running.load(Ordering::SeqCst) == 0 {
                return was_unwound;
            }
            was_unwound |= park::park_through(WaitReason::Scope) == Wake::Unwind;
        }
    }
}

/// By which a scope is cancelled with the code around it.
#[derive(Clone)]
struct Link(Arc<Data>);

impl Node for Link {
    fn scope(&self) -> &context::Scope {
        &self.0.cancelled
    }

    fn wake(&self) {
        self.0.owner.unpark();
    }

    fn is_over(&self) -> bool {
        // Neither `scope` nor one of its dhagas is left.
        Arc::strong_count(&self.0) == 1
    }
}

/// One count of `running`. Dropped last in a closure, when nothing of it borrows any more.
struct Running(Arc<Data>);

impl Running {
    fn new(data: &Arc<Data>) -> Self {
        data.running.fetch_add(1, Ordering::SeqCst);
        Self(data.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::SeqCst) == 1
            && let Some(waiter) = &*self.0.waiter.lock().unwrap_or_else(PoisonError::into_inner)
        {
            waiter.unpark();
        }
    }
}

/// Where a scoped dhaga leaves its result. Notes a failure that nobody took.
struct Slot<T> {
    outcome: Mutex<Outcome<T>>,
    data: Arc<Data>,
}

enum Outcome<T> {
    /// It has not ended; if nothing of it is left, it never ran.
    Pending,
    Ended(Result<T, Box<dyn Any + Send>>),
    Taken,
}

impl<T> Slot<T> {
    fn take(&self) -> Outcome<T> {
        std::mem::replace(&mut *self.outcome.lock().unwrap_or_else(PoisonError::into_inner), Outcome::Taken)
    }
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        match self.take() {
            Outcome::Ended(Err(payload)) if payload.is::<Unwound>() => {
                self.data.was_unwound.store(true, Ordering::SeqCst)
            }
            Outcome::Ended(Err(_)) | Outcome::Pending => self.data.has_failed.store(true, Ordering::SeqCst),
            Outcome::Ended(Ok(_)) | Outcome::Taken => {}
        }
    }
}

/// What a scoped dhaga runs. The order of its fields is the order in which they are dropped if it never runs.
struct Body<F, T> {
    closure: F,
    slot: Arc<Slot<T>>,
    running: Running,
}

impl<F: FnOnce() -> T, T> Body<F, T> {
    /// `at_end` comes after the closure, and before anybody learns of its end.
    fn run(self, at_end: impl FnOnce()) {
        let Self { closure, slot, running } = self;
        let outcome = catch_unwind(AssertUnwindSafe(closure));
        at_end();
        *slot.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Outcome::Ended(outcome);
        // If the handle is gone, the result is dropped here; a panic in its `Drop` has nobody else to go to.
        if catch_unwind(AssertUnwindSafe(|| drop(slot))).is_err() {
            running.0.has_failed.store(true, Ordering::SeqCst);
        }
    }
}

impl Scope<'_, '_> {
    /// Not to be given away: whoever makes one runs the code that may spawn in it by [`Scope::run`].
    pub(crate) fn new() -> Self {
        around::expect_may_suspend(WaitReason::Scope);
        Self { data: Data::new(), scope: PhantomData, env: PhantomData }
    }

    /// Runs the code of the scope, and waits for its dhagas.
    pub(crate) fn run<T>(&self, f: impl FnOnce() -> T) -> T {
        let run = || catch_unwind(AssertUnwindSafe(f));
        let result =
            around::with_frames(|frames| frame::inside_scope(frames, &self.data.cancelled, around::ambient(), run));
        let is_unwound = self.data.wait_for_all() || self.data.was_unwound.load(Ordering::SeqCst);
        // The code around may run for long, and keeps its link to this scope meanwhile.
        self.data.cancelled.forget_children();
        match result {
            Err(payload) => resume_unwind(payload),
            // What comes after the scope may rely on what its dhagas have done.
            Ok(_) if is_unwound => around::throw(),
            Ok(_) if self.data.has_failed.load(Ordering::SeqCst) => {
                panic!("a scoped dhaga panicked or never ran, and was not joined")
            }
            Ok(value) => value,
        }
    }
}

impl<'scope> Scope<'scope, '_> {
    /// Spawns a dhaga that the scope waits for. While the caller's thread unwinds from a panic, `f` runs inline instead,
    /// because a `Drop` that opens a scope could not wait for it.
    ///
    /// # Panics
    ///
    /// When the runtime's limit of dhagas is reached.
    #[track_caller]
    pub fn spawn<F, T>(&'scope self, f: F) -> ScopedJoinHandle<'scope, T>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        match self.spawn_with(Builder::new(), Location::caller(), f) {
            Ok(handle) => handle,
            Err(error) => panic!("cannot spawn a dhaga: {error}"),
        }
    }

    /// Cancels the code of the scope and all its dhagas: their waits that can fail return an error from now on. The scope
    /// ends when they do. What comes after the scope is not touched.
    ///
    /// # Examples
    ///
    /// ```
    /// let (sender, receiver) = dhaga::sync::channel::bounded::<u32>(1);
    /// dhaga::scope(|s| {
    ///     s.spawn(|| receiver.recv());
    ///     s.cancel(); // or this scope would never end
    ///     assert!(dhaga::is_cancelled());
    /// });
    /// assert!(!dhaga::is_cancelled());
    /// # drop(sender);
    /// ```
    pub fn cancel(&self) {
        context::cancel(&Link(self.data.clone()));
    }

    pub(crate) fn spawn_with<F, T>(
        &'scope self,
        builder: Builder,
        site: &'static Location<'static>,
        f: F,
    ) -> Result<ScopedJoinHandle<'scope, T>, SpawnError>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        let slot = Arc::new(Slot { outcome: Mutex::new(Outcome::Pending), data: self.data.clone() });
        let body = Body { closure: f, slot: slot.clone(), running: Running::new(&self.data) };
        if std::thread::panicking() {
            // What `local!` keeps is the caller's.
            body.run(|| ());
            return Ok(ScopedJoinHandle { handle: None, slot, scope: PhantomData });
        }
        let closure: Box<dyn FnOnce() + Send + 'scope> = Box::new(move || body.run(around::drop_own));
        // SAFETY: only the lifetime changes. Whatever `closure` borrows lives until `scope` returns or unwinds, and that
        // happens after `running` fell to zero; `Running` is the last field of `Body`, so by then the closure and its
        // result are dropped, whether it ran, panicked, was unwound, or was discarded unrun. Should a dhaga be leaked at a
        // shutdown, its count never falls and `scope` never returns.
        let closure = unsafe {
            std::mem::transmute::<Box<dyn FnOnce() + Send + 'scope>, Box<dyn FnOnce() + Send + 'static>>(closure)
        };
        // Refused is not failed: the caller knows.
        let refuse = |_: &SpawnError| drop(slot.take());
        let handle = spawn_linked(builder, &self.data.cancelled, site, closure).inspect_err(refuse)?;
        Ok(ScopedJoinHandle { handle: Some(handle), slot, scope: PhantomData })
    }
}

impl Builder {
    /// As [`Scope::spawn`], with a name and a stack of your choice, and a limit that is met as an error.
    ///
    /// # Errors
    ///
    /// As [`Builder::spawn`].
    ///
    /// # Examples
    ///
    /// ```
    /// let text = String::from("borrowed");
    /// dhaga::scope(|s| {
    ///     let length = dhaga::Builder::new().name("measurer").spawn_scoped(s, || text.len())?;
    ///     assert_eq!(length.join()?, 8);
    ///     Ok::<(), Box<dyn std::error::Error>>(())
    /// })
    /// # .unwrap();
    /// ```
    #[track_caller]
    pub fn spawn_scoped<'scope, F, T>(
        self,
        scope: &'scope Scope<'scope, '_>,
        f: F,
    ) -> Result<ScopedJoinHandle<'scope, T>, SpawnError>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        scope.spawn_with(self, Location::caller(), f)
    }
}

impl std::fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scope").field("running", &self.data.running).finish_non_exhaustive()
    }
}

/// As [`JoinHandle`], for a scoped dhaga. Dropping it changes nothing: the scope waits all the same.
pub struct ScopedJoinHandle<'scope, T> {
    /// `None`: it ran inline.
    handle: Option<JoinHandle<()>>,
    slot: Arc<Slot<T>>,
    scope: PhantomData<&'scope ()>,
}

impl<T> ScopedJoinHandle<'_, T> {
    /// Waits for the dhaga and returns its result.
    ///
    /// # Errors
    ///
    /// As [`JoinHandle::join`]. The handle in [`JoinError::Stopped`] can be joined again, but without the result.
    pub fn join(mut self) -> Result<T, JoinError<()>> {
        let ended = self.handle.take().map_or(Ok(()), JoinHandle::join);
        self.outcome(ended)
    }

    /// The result of a dhaga that has ended.
    pub(crate) fn into_result(mut self) -> Result<T, JoinError<()>> {
        let ended = self.handle.take().map_or(Ok(()), JoinHandle::into_result);
        self.outcome(ended)
    }

    fn outcome(self, ended: Result<(), JoinError<()>>) -> Result<T, JoinError<()>> {
        ended.inspect_err(|error| {
            if let JoinError::NeverRan = error {
                self.slot.take();
            }
        })?;
        match self.slot.take() {
            Outcome::Ended(Ok(value)) => Ok(value),
            Outcome::Ended(Err(payload)) if payload.is::<Unwound>() => Err(JoinError::Unwound),
            Outcome::Ended(Err(payload)) => Err(JoinError::panicked(payload)),
            Outcome::Pending | Outcome::Taken => Err(JoinError::NeverRan),
        }
    }

    /// As [`JoinHandle::register`].
    pub(crate) fn register(&mut self, waiter: Unparker) -> bool {
        self.handle.as_mut().is_some_and(|handle| handle.register(waiter))
    }

    /// As [`JoinHandle::retract`].
    pub(crate) fn retract(&mut self) {
        self.handle.iter_mut().for_each(JoinHandle::retract);
    }

    /// The dhaga that this handle is for; the caller, if it ran inline (see [`Scope::spawn`]).
    pub fn dhaga(&self) -> Dhaga {
        self.handle.as_ref().map_or_else(current, JoinHandle::dhaga)
    }

    /// As [`JoinHandle::is_finished`].
    pub fn is_finished(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// As [`JoinHandle::cancel`].
    pub fn cancel(&self) {
        if let Some(handle) = &self.handle {
            handle.cancel();
        }
    }
}
