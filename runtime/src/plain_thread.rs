//! A plain OS thread, as far as the runtime waits on one: how it blocks, and what a dhaga keeps in its task.

use std::cell::{Cell, OnceCell};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::panicking;
use std::time::{Duration, Instant};

use crate::coroutine::Wake;
use crate::fork;
use crate::frame::{self, Frame, Innermost};
use crate::local_slots::LocalSlots;
use crate::scheduler::now;
use crate::task::{WaitReason, refuse_in_no_suspend};

/// A plain thread's side of a park: one saved permit under a lock.
#[derive(Default)]
pub(crate) struct ThreadParker {
    permit: Mutex<bool>,
    condvar: Condvar,
    /// What `thread::unpark` left for it, and `thread::park` has not taken yet.
    token: AtomicBool,
}

impl ThreadParker {
    pub(crate) fn unpark(&self) {
        *self.permit.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.condvar.notify_one();
    }

    /// As that of a dhaga (`Head::leave_token`).
    pub(crate) fn leave_token(&self) {
        if !self.token.swap(true, Ordering::SeqCst) {
            self.unpark();
        }
    }

    /// Takes the token. Returns whether it was there.
    pub(crate) fn take_token(&self) -> bool {
        self.token.swap(false, Ordering::SeqCst)
    }

    fn park_until(&self, deadline: Option<Instant>) -> Wake {
        let mut permit = self.permit.lock().unwrap_or_else(PoisonError::into_inner);
        while !*permit {
            permit = match deadline {
                None => self.condvar.wait(permit).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(now());
                    if left.is_zero() {
                        return Wake::TimedOut;
                    }
                    self.condvar.wait_timeout(permit, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        *permit = false;
        Wake::Ready
    }
}

pub(crate) struct PlainThread {
    pub(crate) parker: Arc<ThreadParker>,
    pub(crate) number: u32,
    /// Its number among all dhagas and threads; made when somebody asks.
    pub(crate) process_number: OnceCell<u64>,
    pub(crate) frames: Innermost,
    pub(crate) locals: LocalSlots,
    pub(crate) no_suspend: Cell<u32>,
    pub(crate) early_sleeps: Cell<u32>,
}

impl Drop for PlainThread {
    fn drop(&mut self) {
        self.locals.clear();
    }
}

thread_local! {
    pub(crate) static THREAD: PlainThread = PlainThread {
        parker: Arc::default(),
        number: next_thread_number(),
        process_number: OnceCell::new(),
        frames: Cell::new(ptr::null()),
        locals: LocalSlots::default(),
        no_suspend: Cell::new(0),
        early_sleeps: Cell::new(0),
    };
}

/// The parker of this OS thread. While the thread's locals are destroyed, one that nobody waits at: see `block_thread`.
pub(crate) fn this_thread() -> Arc<ThreadParker> {
    THREAD.try_with(|thread| thread.parker.clone()).unwrap_or_default()
}

fn next_thread_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cold]
pub(crate) fn block_thread(reason: WaitReason, deadline: Option<Instant>) -> Wake {
    fork::assert_not_forked();
    match THREAD.try_with(|thread| (thread.no_suspend.get() > 0, thread.parker.clone())) {
        Ok((true, _)) if !panicking() => refuse_in_no_suspend(reason),
        Ok((_, parker)) => parker.park_until(deadline),
        Err(_) => nap(deadline),
    }
}

/// How often a thread whose locals are destroyed looks whether what it waits for has come, since no wake reaches it.
const NAP: Duration = Duration::from_millis(1);

fn nap(deadline: Option<Instant>) -> Wake {
    std::thread::sleep(NAP);
    if deadline.is_some_and(|deadline| deadline <= now()) { Wake::TimedOut } else { Wake::Ready }
}

/// `None` while the thread's locals are destroyed: there are no frames any more.
pub(crate) fn with_thread_frame<R>(f: impl FnOnce(Option<&Frame>) -> R) -> Option<R> {
    // SAFETY: only `frame::inside` and its like change it, and we run on the stack of this thread.
    THREAD.try_with(|thread| f(unsafe { frame::innermost(&thread.frames) })).ok()
}
