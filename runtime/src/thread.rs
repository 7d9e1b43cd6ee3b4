//! [`std::thread`]'s names and signatures for dhagas, so that a program moves over by its `use` lines.
//!
//! ```
//! use dhaga::thread; // was: use std::thread;
//!
//! let worker = thread::Builder::new().name("adder".to_string()).spawn(|| 20 + 22)?;
//! assert_eq!(worker.thread().name(), Some("adder"));
//! assert_eq!(worker.join().unwrap(), 42);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! What is spawned here is a dhaga as any other: [`dhaga::spawn`](crate::spawn()) and its like say the same with errors that
//! can be told apart. On a plain thread, as in `main`, everything works as well.
//!
//! What differs from std:
//!
//! - A dhaga never changes its OS thread, but shares it with others: the three rules of the [crate] are the user's.
//! - [`thread_local!`] is a macro of its own here, which `use dhaga::thread::thread_local` puts in the place of std's.
//!   Variables of std's are shared by all dhagas of a worker.
//! - Deadlines and cancellation ([`within`](crate::within), [`Scope::cancel`](crate::Scope::cancel)) reach these calls too;
//!   a program that uses neither does not meet them. [`JoinHandle::join`] then fails, [`sleep`] and [`park_timeout`] return
//!   early, and [`park()`] and the end of a [`scope()`] go on.
//! - What std has for its own thread handles alone is not here: `as_raw`, `JoinHandleExt`, and the deprecated `sleep_ms` and
//!   `park_timeout_ms`.

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::Location;
use std::sync::OnceLock;
use std::time::Duration;

use crate::around;
use crate::park::{self, Interrupt, Parked, WaitReason};
use crate::scope::{self};
use crate::spawn::{self, JoinError};
use crate::stack::{GUARD_BYTES_MIN, STACK_BYTES_MAX, STACK_BYTES_MIN};

pub use std::thread::{Result, available_parallelism, panicking};

pub use crate::identity::{Dhaga as Thread, DhagaId as ThreadId, current};
pub use crate::local as thread_local;
pub use crate::local::{AccessError, LocalKey};
pub use crate::spawn::yield_now;
pub use crate::time::sleep;

/// Starts a dhaga that runs `f`. As [`std::thread::spawn`]; see [`dhaga::spawn`](crate::spawn()) for where it starts and what
/// it inherits.
///
/// # Panics
///
/// When the runtime's limit of dhagas is reached; [`Builder::spawn`] returns the error instead.
///
/// # Examples
///
/// ```
/// use dhaga::thread;
///
/// let answer = thread::spawn(|| 6 * 7);
/// assert_eq!(answer.join().unwrap(), 42);
/// ```
#[track_caller]
pub fn spawn<F, T>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    JoinHandle::new(spawn::spawn(f))
}

/// Runs `f`, which may spawn dhagas that borrow what lives outside of it, and waits until all of them have ended. As
/// [`std::thread::scope`].
///
/// # Panics
///
/// When a dhaga of the scope panicked, or never ran for want of memory, and its handle was not joined.
///
/// # Examples
///
/// ```
/// use dhaga::thread;
///
/// let mut numbers = vec![1, 2, 3];
/// let mut sum = 0;
/// thread::scope(|s| {
///     s.spawn(|| sum = numbers.iter().sum());
/// });
/// numbers.push(sum);
/// assert_eq!(numbers, [1, 2, 3, 6]);
/// ```
pub fn scope<'env, F, T>(f: F) -> T
where
    F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T,
{
    let scope = Scope { scope: scope::Scope::new() };
    scope.scope.run(|| f(&scope))
}

/// Where scoped dhagas are spawned. Made by [`scope()`].
#[derive(Debug)]
pub struct Scope<'scope, 'env: 'scope> {
    scope: scope::Scope<'scope, 'env>,
}

impl<'scope> Scope<'scope, '_> {
    /// Spawns a dhaga that the scope waits for. As [`std::thread::Scope::spawn`].
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
        ScopedJoinHandle::new(self.scope.spawn(f))
    }
}

/// How a dhaga shall be: its name and its stack. As [`std::thread::Builder`].
#[derive(Debug)]
#[must_use = "must eventually spawn the dhaga"]
pub struct Builder {
    name: Option<String>,
    stack_bytes: Option<usize>,
}

impl Builder {
    /// No name, the runtime's stack size.
    #[expect(clippy::new_without_default, reason = "std's builder has none")]
    pub fn new() -> Self {
        Self { name: None, stack_bytes: None }
    }

    /// The name, without null bytes.
    pub fn name(self, name: String) -> Self {
        Self { name: Some(name), ..self }
    }

    /// Bytes of stack that the dhaga can use at least. They are rounded up to what a stack comes in: a power of two from
    /// 64 KiB, of which 16 KiB are the guard. Default: the runtime's, 256 KiB.
    pub fn stack_size(self, bytes: usize) -> Self {
        Self { stack_bytes: Some(bytes), ..self }
    }

    /// As [`spawn`](spawn()), with a limit that is met as an error.
    ///
    /// # Errors
    ///
    /// `WouldBlock` at the runtime's limit of dhagas, `InvalidInput` for a stack of more than 1 GiB; inside is a
    /// [`SpawnError`](crate::SpawnError).
    ///
    /// # Panics
    ///
    /// When the name has a null byte.
    #[track_caller]
    pub fn spawn<F, T>(self, f: F) -> io::Result<JoinHandle<T>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        Ok(JoinHandle::new(self.into_builder().spawn(f)?))
    }

    /// As [`Scope::spawn`], with a name and a stack of your choice, and a limit that is met as an error.
    ///
    /// # Errors
    ///
    /// As [`Builder::spawn`].
    ///
    /// # Panics
    ///
    /// When the name has a null byte.
    #[track_caller]
    pub fn spawn_scoped<'scope, F, T>(
        self,
        scope: &'scope Scope<'scope, '_>,
        f: F,
    ) -> io::Result<ScopedJoinHandle<'scope, T>>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        let handle = scope.scope.spawn_with(self.into_builder(), Location::caller(), f)?;
        Ok(ScopedJoinHandle::new(handle))
    }

    fn into_builder(self) -> spawn::Builder {
        let mut builder = spawn::Builder::new();
        if let Some(name) = self.name {
            assert!(!name.contains('\0'), "the name of a thread may not contain null bytes: {name:?}");
            builder = builder.name(name);
        }
        match self.stack_bytes {
            Some(bytes) => builder.stack_size(with_guard(bytes)),
            None => builder,
        }
    }
}

/// Std's sizes are those of the stack alone, ours with its guard. What is too large stays so.
fn with_guard(bytes: usize) -> usize {
    if bytes > STACK_BYTES_MAX { bytes } else { (bytes + GUARD_BYTES_MIN).clamp(STACK_BYTES_MIN, STACK_BYTES_MAX) }
}

/// Owns the right to a dhaga's result. Dropping it detaches the dhaga, which runs on. As [`std::thread::JoinHandle`].
pub struct JoinHandle<T> {
    handle: spawn::JoinHandle<T>,
    /// Made when somebody asks.
    thread: OnceLock<Thread>,
}

impl<T> JoinHandle<T> {
    fn new(handle: spawn::JoinHandle<T>) -> Self {
        Self { handle, thread: OnceLock::new() }
    }

    /// Waits until the dhaga has ended, and returns its result.
    ///
    /// # Errors
    ///
    /// What the dhaga panicked with, as in std. Where std has no errors, what is in the box says why, by its `Display`:
    ///
    /// - [`JoinError<()>`](JoinError): the dhaga [never ran](JoinError::NeverRan) for want of memory or because its runtime was
    ///   shut down, or was [unwound](JoinError::Unwound) by that;
    /// - [`Interrupt`]: the scope around the *caller* was cancelled or is out of time, or the caller unwinds from a panic. The
    ///   dhaga is detached and runs on; [`dhaga::JoinHandle`](crate::JoinHandle) gives the handle back.
    pub fn join(self) -> Result<T> {
        self.handle.join().map_err(into_payload)
    }

    /// The dhaga that this handle is for.
    pub fn thread(&self) -> &Thread {
        self.thread.get_or_init(|| self.handle.dhaga())
    }

    /// Whether the dhaga has ended, so that `join` would not wait.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

/// As [`JoinHandle`], for a scoped dhaga. Dropping it changes nothing: the scope waits all the same.
pub struct ScopedJoinHandle<'scope, T> {
    handle: scope::ScopedJoinHandle<'scope, T>,
    thread: OnceLock<Thread>,
}

impl<'scope, T> ScopedJoinHandle<'scope, T> {
    fn new(handle: scope::ScopedJoinHandle<'scope, T>) -> Self {
        Self { handle, thread: OnceLock::new() }
    }

    /// Waits until the dhaga has ended, and returns its result.
    ///
    /// # Errors
    ///
    /// As [`JoinHandle::join`].
    pub fn join(self) -> Result<T> {
        self.handle.join().map_err(into_payload)
    }

    /// The dhaga that this handle is for.
    pub fn thread(&self) -> &Thread {
        self.thread.get_or_init(|| self.handle.dhaga())
    }

    /// Whether the dhaga has ended, so that `join` would not wait.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for ScopedJoinHandle<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedJoinHandle").finish_non_exhaustive()
    }
}

/// An error as std's join has it: a payload, whose text `unwrap` does not show. So what no panic hook has printed is logged.
#[cold]
fn into_payload<T>(error: JoinError<T>) -> Box<dyn Any + Send> {
    if !matches!(error, JoinError::Panicked(_)) {
        log::debug!("a join in {} has no result: {error}", current());
    }
    match error {
        JoinError::Panicked(panic) => panic.into_payload(),
        JoinError::NeverRan => Box::new(JoinError::<()>::NeverRan),
        JoinError::Unwound => Box::new(JoinError::<()>::Unwound),
        JoinError::Withdrawn(interrupt) | JoinError::Stopped(interrupt, _) => Box::<Interrupt>::new(interrupt),
    }
}

/// Waits until somebody calls [`Thread::unpark`] for the caller, unless somebody did since the last `park`. As
/// [`std::thread::park`]: may return early, so call it in a loop.
///
/// Goes on when the scope is cancelled or out of time. While the caller unwinds from a panic it returns at once.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use dhaga::thread;
///
/// let is_open = Arc::new(AtomicBool::new(false));
/// let door = is_open.clone();
/// let guest = thread::spawn(move || {
///     while !door.load(Ordering::Acquire) {
///         thread::park();
///     }
/// });
/// is_open.store(true, Ordering::Release);
/// guest.thread().unpark();
/// guest.join().unwrap();
/// ```
pub fn park() {
    park::spend();
    // A wake that is none of `unpark`'s, as of a lock that was waited for, leaves no token.
    while !around::take_token() {
        if panicking() {
            // A dhaga that unwinds must not switch, and a wake would not reach it.
            return std::thread::yield_now();
        }
        park::park(WaitReason::Park);
    }
}

/// As [`park()`], for `timeout` at most. As [`std::thread::park_timeout`].
///
/// Returns early when the scope is or gets cancelled or out of time, as [`sleep`] does.
pub fn park_timeout(timeout: Duration) {
    park::spend();
    let deadline = park::earliest(around::after(timeout));
    while !around::take_token() {
        if park::check().is_err() {
            return yield_now();
        }
        if park::park_until(WaitReason::Park, deadline) == Parked::TimedOut {
            around::take_token();
            return;
        }
    }
}
