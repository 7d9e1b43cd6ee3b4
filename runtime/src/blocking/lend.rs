//! Closures that borrow from who waits for them, on a thread of the pool.
//!
//! What makes the borrow sound is that [`lend`] neither returns nor unwinds before the closure is gone: it was taken out of
//! the queue, or it has run to its end. As with [`scope`](crate::scope), that holds on a panic, and when shutdown unwinds the
//! dhaga.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread::panicking;
use std::time::Duration;

use super::pool::{POOL, Place};
use crate::around;
use crate::coroutine::Wake;
use crate::interrupt::Interrupt;
use crate::park::{self, WaitReason};
use crate::spawn::{JoinHandle, pair_for_pool};
use crate::sync::{AcquireTimeoutError, Semaphore, SemaphorePermit};

/// Runs `f` on a thread of the pool while the caller's dhaga is parked; in place on a plain thread, and while the stack
/// unwinds. A panic of `f` passes through.
///
/// When the caller's scope ends before a thread has begun `f`, it is taken back and dropped. Once begun it is waited for,
/// whatever happens: a shutdown that unwinds the dhaga does so after its end. So `f` should be of the kind that ends by
/// itself.
///
/// # Errors
///
/// The caller's scope ended, before the call or before a thread had begun `f`; the machine gives no thread at all.
///
/// # Panics
///
/// In a `no_suspend` section.
#[track_caller]
fn lend<R: Send>(f: impl FnOnce() -> R + Send) -> io::Result<R> {
    park::check_attempt()?;
    if !park::is_in_dhaga() || panicking() {
        park::spend();
        return Ok(f());
    }
    around::expect_may_suspend(WaitReason::Blocking);
    let outcome = Mutex::new(None);
    let body = || keep(&outcome, catch_unwind(AssertUnwindSafe(f)));
    let body: Box<dyn FnOnce() + Send + '_> = Box::new(body);
    // SAFETY: only the lifetime changes. Whatever `body` borrows lives until this function returns or unwinds, and by then
    // `body` is gone. It is in one place at a time: in the job that `submit` takes, which drops it if it returns an error or
    // unwinds; in the queue, from which `Loan` takes it out; or in the hands of a thread, which has consumed it when it says
    // that the job has ended, and for that `Loan` waits: in `wait`, and in its `Drop` if anything unwinds before, be it out of
    // `submit`.
    // Should the dhaga be leaked at a shutdown, this function does neither, and its frame stays.
    let body =
        unsafe { std::mem::transmute::<Box<dyn FnOnce() + Send + '_>, Box<dyn FnOnce() + Send + 'static>>(body) };
    let (job, handle) = pair_for_pool(Location::caller(), body);
    let mut loan = Loan { handle, place: None };
    loan.place = Some(POOL.submit(job)?);
    loan.wait()?;
    let outcome = outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    match outcome {
        Some(Ok(value)) => Ok(value),
        Some(Err(payload)) => resume_unwind(payload),
        None => Err(io::Error::other("the machine has no thread for the blocking pool")),
    }
}

/// How many at a time shall use the pool for one purpose. Threads that all want to run take the processors from each other, from
/// the workers, and by the locks that they hold when they lose them: a few get as much done.
///
/// Not a limit, but an order: those who are under way may never end, as who opens a FIFO, and shall not keep out the others.
pub(crate) struct Turns {
    free: Semaphore,
    patience: Duration,
}

impl Turns {
    /// So many at a time, and others when they have waited for so long.
    pub(crate) const fn new(count: usize, patience: Duration) -> Self {
        Self { free: Semaphore::new(count), patience }
    }

    /// A turn; `None` for who has waited long enough.
    fn take(&self) -> Result<Option<SemaphorePermit<'_>>, Interrupt> {
        match self.free.acquire_timeout(self.patience) {
            Ok(turn) => Ok(Some(turn)),
            Err(AcquireTimeoutError::Interrupted(interrupt)) => Err(interrupt),
            Err(AcquireTimeoutError::Timeout | AcquireTimeoutError::Closed) => Ok(None),
        }
    }
}

/// As [`lend`], when it is the caller's turn.
///
/// # Errors
///
/// As [`lend`], also while it waits for its turn.
///
/// # Panics
///
/// As [`lend`].
#[track_caller]
pub(crate) fn lend_in_turn<R: Send>(turns: &Turns, f: impl FnOnce() -> R + Send) -> io::Result<R> {
    if !park::is_in_dhaga() || panicking() {
        return lend(f);
    }
    let turn = turns.take()?;
    let lent = lend(f);
    drop(turn);
    lent
}

type Outcome<R> = Result<R, Box<dyn Any + Send>>;

fn keep<R>(place: &Mutex<Option<Outcome<R>>>, outcome: Outcome<R>) {
    *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
}

/// A closure that borrows, from its submission until it is gone.
struct Loan {
    handle: JoinHandle<()>,
    /// `None`: it is not to be taken out of the queue, or is not there any more.
    place: Option<Place>,
}

/// Why a loan is asked back.
enum Recall {
    Scope(Interrupt),
    Shutdown,
}

impl Loan {
    /// Waits until the closure has ended or was taken back.
    fn wait(mut self) -> Result<(), Interrupt> {
        let Some(recall) = self.wait_or_recall() else { return Ok(()) };
        if self.take_back() {
            return match recall {
                Recall::Scope(interrupt) => Err(interrupt),
                Recall::Shutdown => around::throw(),
            };
        }
        if self.wait_to_the_end() || park::is_torn_down() {
            around::throw();
        }
        Ok(())
    }

    /// Waits until the closure has ended, or something wants the caller back.
    fn wait_or_recall(&mut self) -> Option<Recall> {
        loop {
            if !self.leave_word() {
                return None;
            }
            let wake = park::park_raw(WaitReason::Blocking, park::earliest(None));
            if self.handle.is_finished() {
                return None;
            }
            // Asked first: `check` would throw.
            if wake == Wake::Unwind || park::is_torn_down() {
                return Some(Recall::Shutdown);
            }
            if let Err(interrupt) = park::check() {
                return Some(Recall::Scope(interrupt));
            }
        }
    }

    /// Parks until the closure has ended, whatever happens. Returns whether shutdown wants the dhaga to unwind.
    fn wait_to_the_end(&mut self) -> bool {
        let mut is_unwound = false;
        while self.leave_word() {
            is_unwound |= park::park_through(WaitReason::Blocking) == Wake::Unwind;
        }
        is_unwound
    }

    /// Leaves word whom to wake at the end: the dhaga, or its OS thread if that unwinds. Returns false if the closure is gone.
    fn leave_word(&mut self) -> bool {
        self.handle.retract();
        self.handle.register(park::unparker())
    }

    /// Takes the closure out of the queue. Returns false if a thread has begun it.
    fn take_back(&mut self) -> bool {
        self.place.take().is_some_and(Place::withdraw)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if self.handle.is_finished() {
            self.place.take().into_iter().for_each(Place::leave);
        } else if !self.take_back() {
            self.wait_to_the_end();
        }
    }
}
