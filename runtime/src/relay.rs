//! A wake that goes on to the waker of a future.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use crate::job::Unwound;

/// Whom to wake for a future: the waker of its latest poll. A waker is foreign code, so it is cloned, woken and dropped
/// outside the lock.
pub(crate) struct Relay(Mutex<Option<Waker>>);

impl Relay {
    pub(crate) fn new(waker: &Waker) -> Self {
        Self(Mutex::new(Some(waker.clone())))
    }

    /// Wakes this one from now on, and the one before no more.
    pub(crate) fn redirect(&self, waker: &Waker) {
        let is_there = self.waker().as_ref().is_some_and(|there| there.will_wake(waker));
        if !is_there {
            let next = Some(waker.clone());
            let last = mem::replace(&mut *self.waker(), next);
            drop(last);
        }
    }

    /// Wakes, once for a poll. A panic of the waker is none of the caller's, who only has news.
    pub(crate) fn wake(&self) {
        let Some(waker) = self.waker().take() else {
            return;
        };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| waker.wake()))
            && !payload.is::<Unwound>()
        {
            log::error!("the waker of a future panicked, so its executor may never poll it again");
            mem::forget(payload);
        }
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
