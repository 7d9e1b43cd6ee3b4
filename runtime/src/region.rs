//! Work for somebody outside: a stretch of code that can be cancelled by handle, and whom it is done for.

use std::ops::Deref;
use std::panic::Location;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::panicking;
use std::time::Instant;

use crate::ambient::{Ambient, Deadline, Holder};
use crate::around;
use crate::context::{self, Node, Scope};
use crate::frame;
use crate::park::{self, Unparker};

/// A stretch of code that serves a request, say: whoever holds it can cancel what runs in it, and all below finds it.
///
/// One allocation, made by whoever takes the request, long before the code runs. What is spawned in it inherits it; scopes
/// that are opened in it are cancelled with it. A cancel from outside reaches the code in it as any other code, but scoped
/// dhagas in it only by their own waits: who spawns a region's dhaga keeps no handle to cancel it by.
///
/// # Examples
///
/// ```
/// use dhaga::turn::Region;
///
/// let request = Region::new("r-17".to_owned());
/// let handle = request.clone();
/// let seen = request.run(None, || {
///     handle.cancel(); // from anywhere
///     let inside = Region::<String>::current().map(|region| region.to_string());
///     (inside, dhaga::checkpoint().is_err())
/// });
/// assert_eq!(seen, (Some("r-17".to_owned()), true));
/// dhaga::checkpoint()?;
/// # Ok::<(), dhaga::Interrupt>(())
/// ```
pub struct Region<T> {
    cancelled: Scope,
    /// Who runs the code, or has run it: a wake that comes too late does nothing.
    owner: Mutex<Option<Unparker>>,
    /// The owner was known before anybody else could find the region, so that nothing need be locked to enter it.
    has_known_owner: bool,
    value: T,
}

impl<T: Send + Sync + 'static> Region<T> {
    /// A region around `value` in which nothing runs yet.
    pub fn new(value: T) -> Arc<Self> {
        Arc::new(Self { cancelled: Scope::default(), owner: Mutex::default(), has_known_owner: false, value })
    }

    /// As [`new`](Self::new), for the caller to run something in it.
    pub fn for_caller(value: T) -> Arc<Self> {
        let owner = Mutex::new(Some(park::unparker()));
        Arc::new(Self { cancelled: Scope::default(), owner, has_known_owner: true, value })
    }

    /// Makes it as new, so that the caller may run something else in it, if nobody else holds it. Returns its value, to be changed.
    #[inline]
    pub fn renew(self: &mut Arc<Self>) -> Option<&mut T> {
        let region = Arc::get_mut(self)?;
        region.cancelled = Scope::default();
        *region.owner.get_mut().unwrap_or_else(PoisonError::into_inner) = Some(park::unparker());
        region.has_known_owner = true;
        Some(&mut region.value)
    }

    /// Whether it is as new although something has run in it, so that something else may run where that has, without leaving the
    /// region: it was not cancelled, nothing that was opened in it is left, and nobody but `holders` holds it, who would cancel
    /// what comes next for what is over. The caller knows these holders, and that none of them clones it meanwhile.
    #[inline]
    pub fn is_unused(self: &Arc<Self>, holders: usize) -> bool {
        if Arc::strong_count(self) != holders {
            return false;
        }
        // What somebody did before he let it go is seen.
        fence(Ordering::Acquire);
        !self.cancelled.is_cancelled() && !self.cancelled.has_had_children()
    }

    /// Runs `f` in the region, until `deadline` at the latest as [`with_deadline`](crate::with_deadline) does it.
    ///
    /// # Panics
    ///
    /// When something has run in this region before, unless it was made [for the caller](Self::for_caller) or
    /// [renewed](Self::renew) by him: then he alone runs in it, one thing after the other.
    #[track_caller]
    #[inline]
    pub fn run<R>(self: &Arc<Self>, deadline: Option<Instant>, f: impl FnOnce() -> R) -> R {
        let outer = around::ambient();
        let own = deadline.map(|at| Deadline { at, set_at: Location::caller() });
        let ambient = Ambient {
            deadline: Deadline::earlier(outer.deadline, own),
            values: outer.values,
            // SAFETY: `self` is borrowed for longer than the frame is linked, and what is cloned from it is counted.
            region: unsafe { Holder::lend(self) },
        };
        assert!(self.has_known_owner || self.set_owner(), "code runs once in a region");
        debug_assert!(!self.has_known_owner || self.is_of_caller(), "who has renewed a region runs in it");
        // Also when `f` unwinds.
        let _leave = Leave(&self.cancelled);
        around::with_frames(|frames| frame::inside_scope(frames, &self.cancelled, ambient, f))
    }

    /// Either `wake` finds the owner, or what runs sees the flag: whoever has the lock later sees what was written before.
    /// Returns false if there was one before.
    #[inline]
    fn set_owner(&self) -> bool {
        let mut owner = self.owner();
        let is_first = owner.is_none();
        if is_first {
            *owner = Some(park::unparker());
        }
        is_first
    }

    fn is_of_caller(&self) -> bool {
        // A dhaga that unwinds waits as its thread.
        panicking() || self.owner().as_ref().is_some_and(|owner| owner.address() == park::unparker().address())
    }

    #[inline]
    fn owner(&self) -> MutexGuard<'_, Option<Unparker>> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cancels the code in the region, also if it has not begun: its waits that can fail return an error from now on.
    pub fn cancel(self: &Arc<Self>) {
        context::cancel(&**self);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled_by_now()
    }

    /// The innermost region around the caller, or around the code that has spawned it, if it is one of a `T`.
    pub fn current() -> Option<Arc<Self>> {
        around::with_ambient(|ambient| ambient.and_then(|ambient| ambient.region.share()))?.downcast().ok()
    }
}

/// Ends a region's run: all that was opened in it has ended.
struct Leave<'a>(&'a Scope);

impl Drop for Leave<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.forget_children();
    }
}

impl<T: Send + Sync + 'static> Node for Region<T> {
    fn scope(&self) -> &Scope {
        &self.cancelled
    }

    fn wake(&self) {
        let owner = Region::owner(self).clone();
        if let Some(owner) = owner {
            owner.unpark();
        }
    }
}

impl<T> Deref for Region<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Region<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region").field("value", &self.value).finish_non_exhaustive()
    }
}
