//! Dhagas that stand and fall together: the first error cancels the rest, and is the error of the whole.

use std::fmt;
use std::panic::{Location, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::around;
use crate::identity::Dhaga;
use crate::owner::{Here, here, is_here};
use crate::runtime::SpawnError;
use crate::scope::{Scope, ScopedJoinHandle};
use crate::spawn::{Builder, JoinError};
use crate::within::uncancellable;

/// Runs `f`, which may spawn dhagas that borrow what lives outside of it, and waits until all of them have ended. When one
/// of them returns an error, or `f` itself does, the rest are cancelled, `f` included, and that first error is returned.
///
/// As [`scope`](crate::scope()) in everything else: nothing that was spawned outlives the call, deadlines and cancellation
/// reach inside, and what was cancelled ends at its next wait that can fail.
///
/// # Errors
///
/// The error that came first.
///
/// # Panics
///
/// When `f` or a dhaga of the group panicked, or one never ran for want of memory: it can say neither yes nor no. Here too the
/// rest are cancelled first. If the shutdown of the runtime has unwound one, the caller is unwound, too.
///
/// # Examples
///
/// ```
/// use std::num::ParseIntError;
///
/// fn sum(left: &str, right: &str) -> Result<i32, ParseIntError> {
///     dhaga::try_scope(|s| {
///         let left = s.spawn(|| left.parse::<i32>());
///         let right = s.spawn(|| right.parse::<i32>());
///         Ok(left.join()? + right.join()?)
///     })
/// }
/// assert_eq!(sum("20", "22"), Ok(42));
/// assert!(sum("20", "many").is_err());
/// ```
pub fn try_scope<'env, F, T, E>(f: F) -> Result<T, E>
where
    F: for<'scope> FnOnce(&'scope TryScope<'scope, 'env, E>) -> Result<T, E>,
    E: Send,
{
    let group = TryScope { scope: Scope::new(), first: Mutex::new(First::None), was_cut_short: AtomicBool::new(false) };
    let result = group.scope.run(|| {
        let guard = CutShort::new(&group.scope, &group.was_cut_short).started();
        let result = f(&group);
        std::mem::forget(guard);
        result.map_err(|error| group.fail(error))
    });
    assert!(
        !group.was_cut_short.load(Ordering::SeqCst),
        "a dhaga of the group panicked, was unwound by the shutdown of its runtime, or never ran"
    );
    let first = std::mem::replace(&mut *group.lock_first(), First::Taken);
    match (first, result) {
        (First::Kept(first), _) | (_, Err(Some(first))) | (First::Next(first), _) => Err(first),
        (_, Ok(value)) => Ok(value),
        (_, Err(None)) => unreachable!("an error that was kept is there, or its handle took it and passed it on"),
    }
}

/// Where dhagas are spawned that stand and fall together. Made by [`try_scope`].
pub struct TryScope<'scope, 'env: 'scope, E> {
    scope: Scope<'scope, 'env>,
    first: Mutex<First<E>>,
    /// A dhaga of the group did not return.
    was_cut_short: AtomicBool,
}

/// The error that came first.
enum First<E> {
    None,
    Kept(E),
    /// By the handle of the dhaga that returned it.
    Taken,
    /// The first after that, perhaps the same that another one passes on.
    Next(E),
}

impl<E> First<E> {
    fn take(&mut self) -> Option<E> {
        match std::mem::replace(self, Self::Taken) {
            Self::Kept(error) | Self::Next(error) => Some(error),
            Self::None | Self::Taken => None,
        }
    }
}

impl<'scope, E: Send> TryScope<'scope, '_, E> {
    /// Spawns a dhaga of the group.
    ///
    /// # Panics
    ///
    /// When the runtime's limit of dhagas is reached.
    #[track_caller]
    pub fn spawn<F, T>(&'scope self, f: F) -> TryJoinHandle<'scope, T, E>
    where
        F: FnOnce() -> Result<T, E> + Send + 'scope,
        T: Send + 'scope,
        E: 'scope,
    {
        match self.spawn_with(Builder::new(), f) {
            Ok(handle) => handle,
            Err(error) => panic!("cannot spawn a dhaga: {error}"),
        }
    }

    /// As [`TryScope::spawn`], with a name and a stack of your choice, and a limit that is met as an error.
    ///
    /// # Errors
    ///
    /// As [`Builder::spawn`].
    #[track_caller]
    pub fn spawn_with<F, T>(&'scope self, builder: Builder, f: F) -> Result<TryJoinHandle<'scope, T, E>, SpawnError>
    where
        F: FnOnce() -> Result<T, E> + Send + 'scope,
        T: Send + 'scope,
        E: 'scope,
    {
        let guard = CutShort::new(&self.scope, &self.was_cut_short);
        let run = move || {
            let guard = guard.started();
            let result = f();
            std::mem::forget(guard);
            result.map_err(|error| self.fail(error))
        };
        let handle = self.scope.spawn_with(builder, Location::caller(), run)?;
        Ok(TryJoinHandle { handle, first: &self.first })
    }

    /// Cancels the code of the group and all its dhagas. They end with an error of their own, or with none.
    pub fn cancel(&self) {
        self.scope.cancel();
    }

    /// Keeps the error if it is the first, and cancels the rest. Returns it otherwise.
    fn fail(&self, error: E) -> Option<E> {
        let later = match &mut *self.lock_first() {
            first @ First::None => {
                *first = First::Kept(error);
                None
            }
            taken @ First::Taken => {
                *taken = First::Next(error);
                None
            }
            First::Kept(_) | First::Next(_) => Some(error),
        };
        self.scope.cancel();
        later
    }

    fn lock_first(&self) -> MutexGuard<'_, First<E>> {
        lock(&self.first)
    }
}

fn lock<E>(first: &Mutex<First<E>>) -> MutexGuard<'_, First<E>> {
    first.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cancels the group unless it is forgotten: by a closure that panics, is unwound, or is dropped unrun.
struct CutShort<'a, 'scope, 'env: 'scope> {
    scope: &'a Scope<'scope, 'env>,
    was_cut_short: &'a AtomicBool,
    /// Who spawns it; `None` once it has started.
    spawner: Option<Here>,
}

impl<'a, 'scope, 'env> CutShort<'a, 'scope, 'env> {
    fn new(scope: &'a Scope<'scope, 'env>, was_cut_short: &'a AtomicBool) -> Self {
        Self { scope, was_cut_short, spawner: Some(here()) }
    }

    fn started(mut self) -> Self {
        self.spawner = None;
        self
    }
}

impl Drop for CutShort<'_, '_, '_> {
    fn drop(&mut self) {
        // Unrun, and by the spawner itself: the spawn was refused, as it is told.
        if !self.spawner.is_some_and(is_here) {
            self.was_cut_short.store(true, Ordering::SeqCst);
            self.scope.cancel();
        }
    }
}

/// Owns the right to the result of one dhaga of a group. Dropping it changes nothing: the group waits all the same.
pub struct TryJoinHandle<'scope, T, E> {
    /// An error is inside unless it is the group's first.
    handle: ScopedJoinHandle<'scope, Result<T, Option<E>>>,
    first: &'scope Mutex<First<E>>,
}

impl<T, E> TryJoinHandle<'_, T, E> {
    /// Waits for the dhaga and returns its result. Goes on in spite of a deadline or a cancel, which reach that dhaga too.
    ///
    /// # Errors
    ///
    /// What the dhaga returned.
    ///
    /// # Panics
    ///
    /// With the panic of the dhaga; or when it never ran. If the shutdown of the runtime has unwound it, the caller is
    /// unwound, too.
    pub fn join(self) -> Result<T, E> {
        match uncancellable(|| self.handle.join()) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Some(error))) => Err(error),
            Ok(Err(None)) => {
                Err(lock(self.first).take().expect("only the handle of the first to fail takes its error"))
            }
            Err(JoinError::Panicked(panic)) => resume_unwind(panic.into_payload()),
            Err(JoinError::Unwound) => around::throw(),
            Err(error) => panic!("no result of a dhaga of the group: {error}"),
        }
    }

    /// Whether the dhaga has ended, so that `join` would not wait.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Cancels this dhaga alone. Should it return an error for that, the whole group fails.
    pub fn cancel(&self) {
        self.handle.cancel();
    }

    /// The dhaga that this handle is for.
    pub fn dhaga(&self) -> Dhaga {
        self.handle.dhaga()
    }
}

impl<E> fmt::Debug for TryScope<'_, '_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TryScope").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl<T, E> fmt::Debug for TryJoinHandle<'_, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TryJoinHandle").field("is_finished", &self.is_finished()).finish_non_exhaustive()
    }
}
