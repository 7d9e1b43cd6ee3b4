//! Values that follow the code: set by a caller, found by all below it, inherited by dhagas that are spawned there.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ambient::Ambient;
use crate::around;
use crate::frame;

/// Names a value that callers leave for the code they call, with no argument passed: a request's id, a user, a trace.
///
/// A value is in force while [`ContextKey::with`] runs, in all that is called, and in each dhaga that is spawned meanwhile,
/// for as long as that lives. Values never travel upwards, and a dhaga that was [detached](crate::Builder::detached) begins
/// with none.
///
/// # Examples
///
/// ```
/// static REQUEST: dhaga::ContextKey<String> = dhaga::ContextKey::new();
///
/// fn log_line(text: &str) -> String {
///     format!("{}: {text}", REQUEST.get().as_deref().map_or("-", String::as_str))
/// }
///
/// let line = REQUEST.with("r-17".to_owned(), || dhaga::spawn(|| log_line("done")).join())?;
/// assert_eq!((line.as_str(), log_line("idle").as_str()), ("r-17: done", "-: idle"));
/// # Ok::<(), dhaga::JoinError<String>>(())
/// ```
pub struct ContextKey<T> {
    /// 0 until it is first used.
    number: AtomicU64,
    value: PhantomData<fn() -> T>,
}

impl<T: Send + Sync + 'static> ContextKey<T> {
    /// A key that no value was set for. Keep it in a `static`.
    pub const fn new() -> Self {
        Self { number: AtomicU64::new(0), value: PhantomData }
    }

    /// Runs `f`, in and below which the key has this value.
    pub fn with<R>(&self, value: T, f: impl FnOnce() -> R) -> R {
        self.with_shared(Arc::new(value), f)
    }

    /// As [`with`](Self::with), for a value that is shared already.
    pub fn with_shared<R>(&self, value: Arc<T>, f: impl FnOnce() -> R) -> R {
        let outer = around::ambient();
        let ambient = Ambient { values: outer.values.with(self.number(), value), ..outer };
        around::with_frames(|frames| frame::inside(frames, ambient, f))
    }

    /// The value that is in force for the caller, if there is one.
    pub fn get(&self) -> Option<Arc<T>> {
        let find = |ambient: Option<&Ambient>| ambient.and_then(|ambient| ambient.values.get(self.number()).cloned());
        let found: Option<Arc<dyn Any + Send + Sync>> = around::with_ambient(find);
        found.map(|value| value.downcast().expect("only this key stores under its number"))
    }

    fn number(&self) -> u64 {
        let number = self.number.load(Ordering::Relaxed);
        if number != 0 {
            return number;
        }
        let next = next_number();
        self.number.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed).map_or_else(|first| first, |_| next)
    }
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl<T: Send + Sync + 'static> Default for ContextKey<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for ContextKey<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContextKey").field("type", &std::any::type_name::<T>()).finish_non_exhaustive()
    }
}
