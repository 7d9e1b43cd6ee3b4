//! Something that is done once, whoever comes first.

use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};

use super::crowd::{Crowd, CrowdGuard};
use crate::owner::{self, Here};
use crate::park::{self, WaitReason};

/// An initialisation that runs once, as [`std::sync::Once`]. It may wait; those who need it meanwhile are parked.
///
/// As in std, an initialisation that panics poisons the `Once`. One that is unwound by the shutdown of its runtime does not:
/// the next who comes runs its own.
///
/// # Examples
///
/// ```
/// use dhaga::sync::Once;
///
/// static GREETING: Once = Once::new();
/// GREETING.call_once(|| println!("said once"));
/// GREETING.call_once(|| unreachable!("it was said"));
/// assert!(GREETING.is_completed());
/// ```
pub struct Once {
    /// Set last, and read without the lock.
    is_complete: AtomicBool,
    progress: Crowd<Progress>,
}

/// What the closure of [`Once::call_once_force`] is told.
pub struct OnceState {
    poisoned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    NotBegun,
    Running(Here),
    Poisoned,
    Complete,
}

/// What one who finds the `Once` poisoned does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnPoison {
    Panic,
    GoOn,
}

impl Once {
    /// One that nobody has called yet.
    pub const fn new() -> Self {
        Once { is_complete: AtomicBool::new(false), progress: Crowd::new(Progress::NotBegun) }
    }

    /// Runs `f` if no initialisation has been completed yet. When it returns, one has. Suspends while another runs one, and
    /// goes on doing so when the scope is cancelled or out of time.
    ///
    /// # Panics
    ///
    /// If an initialisation has panicked; if `f` does, which poisons the `Once`; and if it is called by the very
    /// initialisation that it would wait for.
    ///
    /// # Aborts
    ///
    /// A dhaga that is unwinding cannot let others run. If it finds that a dhaga of its own worker runs the initialisation,
    /// or anybody for ten seconds, the process ends with a sentence that says so.
    #[inline]
    #[track_caller]
    pub fn call_once<F: FnOnce()>(&self, f: F) {
        if !self.is_completed() {
            self.call(OnPoison::Panic, |_| f());
        }
    }

    /// As [`call_once`](Self::call_once), but an initialisation that has panicked is tried again, and `f` is told so.
    ///
    /// # Panics
    ///
    /// If `f` does, or if it is called by the very initialisation that it would wait for.
    #[inline]
    #[track_caller]
    pub fn call_once_force<F: FnOnce(&OnceState)>(&self, f: F) {
        if !self.is_completed() {
            self.call(OnPoison::GoOn, f);
        }
    }

    /// Whether an initialisation has been completed. What it did is seen by whoever is told so.
    #[inline]
    pub fn is_completed(&self) -> bool {
        self.is_complete.load(Ordering::Acquire)
    }

    /// Suspends until somebody has completed an initialisation. Never begins one.
    ///
    /// # Panics
    ///
    /// If an initialisation panics or has panicked, or if it is called by the one that it would wait for.
    ///
    /// # Aborts
    ///
    /// As [`call_once`](Self::call_once).
    #[track_caller]
    pub fn wait(&self) {
        self.wait_for_completion(OnPoison::Panic);
    }

    /// As [`wait`](Self::wait), and goes on waiting when an initialisation panics.
    ///
    /// # Panics
    ///
    /// If it is called by the initialisation that it would wait for.
    #[track_caller]
    pub fn wait_force(&self) {
        self.wait_for_completion(OnPoison::GoOn);
    }

    #[cold]
    #[track_caller]
    fn call(&self, on_poison: OnPoison, f: impl FnOnce(&OnceState)) {
        if let Some(attempt) = self.begin(on_poison) {
            f(&OnceState { poisoned: attempt.before == Progress::Poisoned });
            attempt.complete();
        }
    }

    /// Makes the caller the one who initialises. `None` if that has been done, at the latest by the one it waited for.
    #[track_caller]
    fn begin(&self, on_poison: OnPoison) -> Option<Attempt<'_>> {
        loop {
            let mut progress = self.progress.lock();
            match (*progress, on_poison) {
                (Progress::Complete, _) => return None,
                (Progress::Running(owner), _) => wait_for(progress, owner),
                (Progress::Poisoned, OnPoison::Panic) => panic_poisoned(progress),
                (before @ (Progress::NotBegun | Progress::Poisoned), _) => {
                    *progress = Progress::Running(owner::here());
                    return Some(Attempt { once: self, before });
                }
            }
        }
    }

    #[track_caller]
    fn wait_for_completion(&self, on_poison: OnPoison) {
        while !self.is_completed() {
            let progress = self.progress.lock();
            match (*progress, on_poison) {
                (Progress::Complete, _) => return,
                (Progress::Running(owner), _) => wait_for(progress, owner),
                (Progress::Poisoned, OnPoison::Panic) => panic_poisoned(progress),
                (Progress::NotBegun | Progress::Poisoned, _) => progress.wait(WaitReason::Once, WHAT),
            }
        }
    }
}

const WHAT: &str = "an initialisation";

/// Waits until the attempt of `owner` has ended, well or not.
#[track_caller]
fn wait_for(progress: CrowdGuard<'_, Progress>, owner: Here) {
    if owner::is_here(owner) {
        drop(progress);
        panic!("an initialisation needs its own result: it would wait for itself");
    }
    if owner::would_deadlock_while_unwinding(owner) {
        drop(progress);
        owner::abort_deadlock(WHAT, owner);
    }
    progress.wait(WaitReason::Once, WHAT);
}

#[cold]
#[track_caller]
fn panic_poisoned(progress: CrowdGuard<'_, Progress>) -> ! {
    drop(progress);
    panic!("Once instance has previously been poisoned")
}

/// An initialisation that runs. If it is dropped, it has failed.
struct Attempt<'a> {
    once: &'a Once,
    before: Progress,
}

impl Attempt<'_> {
    fn complete(self) {
        let mut progress = self.once.progress.lock();
        *progress = Progress::Complete;
        self.once.is_complete.store(true, Ordering::Release);
        progress.release();
        mem::forget(self);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut progress = self.once.progress.lock();
        *progress = if park::is_torn_down() { self.before } else { Progress::Poisoned };
        progress.release();
    }
}

impl OnceState {
    /// Whether an initialisation before this one has panicked.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }
}

impl Default for Once {
    fn default() -> Self {
        Once::new()
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once").finish_non_exhaustive()
    }
}

impl fmt::Debug for OnceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnceState").field("poisoned", &self.is_poisoned()).finish()
    }
}
