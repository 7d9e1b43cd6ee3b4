//! A plain OS thread, as far as the runtime waits on one: how it blocks, and what a dhaga keeps in its task.

use std::cell::{Cell, OnceCell};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::thread::panicking;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::coroutine::Wake;
use crate::fork;
use crate::frame::{self, Frame, Innermost};
use crate::local_slots::LocalSlots;
use crate::relay::Relay;
use crate::scheduler::now;
use crate::task::{WaitReason, refuse_in_no_suspend};

/// A plain thread's side of a park: one saved permit under a lock.
#[derive(Default)]
pub(crate) struct ThreadParker {
    permit: Mutex<Permit>,
    condvar: Condvar,
    /// An eventfd, made when the thread waits for descriptors the first time.
    bell: OnceLock<OwnedFd>,
    /// What `thread::unpark` left for it, and `thread::park` has not taken yet.
    token: AtomicBool,
    /// No thread waits here but a future, to whose waker each wake goes on. It is here and no kind of its own in `Unparker`,
    /// where it would make every spawn longer by a word.
    relay: Option<Relay>,
}

#[derive(Default)]
struct Permit {
    is_there: bool,
    /// The thread does not wait at the condvar: it polls descriptors, and the bell.
    is_polling: bool,
}

impl ThreadParker {
    /// Stands for a future that was polled with this waker.
    pub(crate) fn of_future(waker: &Waker) -> Arc<Self> {
        Arc::new(Self { relay: Some(Relay::new(waker)), ..Self::default() })
    }

    /// The future is polled with this waker now.
    pub(crate) fn redirect(&self, waker: &Waker) {
        if let Some(relay) = &self.relay {
            relay.redirect(waker);
        }
    }

    fn permit(&self) -> MutexGuard<'_, Permit> {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn unpark(&self) {
        if let Some(relay) = &self.relay {
            return relay.wake();
        }
        let mut permit = self.permit();
        permit.is_there = true;
        if permit.is_polling
            && let Some(bell) = self.bell.get()
        {
            // A bell that cannot be rung because it has rung too often wakes the thread all the same.
            let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
        }
        drop(permit);
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
        let mut permit = self.permit();
        while !permit.is_there {
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
        permit.is_there = false;
        Wake::Ready
    }

    /// As `park_until`, and until one of the descriptors is ready.
    fn poll_until<'a>(&'a self, mut polled: Vec<PollFd<'a>>, deadline: Option<Instant>) {
        let bell = self.bell();
        polled.extend(bell.map(|bell| PollFd::new(bell, PollFlags::IN)));
        if self.begin_polling() {
            poll_until(&mut polled, if bell.is_some() { deadline } else { Some(nap_before(deadline)) });
        }
        *self.permit() = Permit::default();
        if let Some(bell) = bell {
            // Silent again, as it is now if it has not rung.
            let _ = rustix::io::read(bell, &mut [0; 8]);
        }
    }

    /// Returns false if there is a permit already.
    fn begin_polling(&self) -> bool {
        let mut permit = self.permit();
        permit.is_polling = !permit.is_there;
        permit.is_polling
    }

    /// The bell; `None` if the process has no descriptor left for it.
    fn bell(&self) -> Option<&OwnedFd> {
        if self.bell.get().is_none()
            && let Ok(bell) = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        {
            let _ = self.bell.set(bell);
        }
        self.bell.get()
    }
}

fn poll_until(polled: &mut [PollFd<'_>], deadline: Option<Instant>) {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(now()));
    // A time beyond what the kernel can count is for ever.
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    if let Err(error) = poll(polled, left.as_ref())
        && error != rustix::io::Errno::INTR
    {
        // The kernel has no memory, or is asked for more than the process may open.
        std::thread::sleep(NAP);
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

/// As [`block_thread`], for a wait that nothing may refuse: not even a `no_suspend` section.
pub(crate) fn block_thread_to_the_end() -> Wake {
    fork::assert_not_forked();
    THREAD.try_with(|thread| thread.parker.clone()).map_or_else(|_| nap(None), |parker| parker.park_until(None))
}

/// As [`block_thread`], and until one of the descriptors is ready. May return early.
pub(crate) fn block_thread_polling<'a>(
    reason: WaitReason,
    descriptors: impl Iterator<Item = (BorrowedFd<'a>, PollFlags)>,
    deadline: Option<Instant>,
) {
    fork::assert_not_forked();
    let mut polled: Vec<_> = descriptors.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
    match THREAD.try_with(|thread| (thread.no_suspend.get() > 0, thread.parker.clone())) {
        Ok((true, _)) if !panicking() => refuse_in_no_suspend(reason),
        Ok((_, parker)) => parker.poll_until(polled, deadline),
        Err(_) => poll_until(&mut polled, Some(nap_before(deadline))),
    }
}

/// How often a thread looks whether what it waits for has come while no wake reaches it: because its locals are destroyed, or
/// because it polls and there is no descriptor for a bell.
const NAP: Duration = Duration::from_millis(1);

/// The end of a nap that begins now.
fn nap_before(deadline: Option<Instant>) -> Instant {
    let end = now() + NAP;
    deadline.map_or(end, |deadline| deadline.min(end))
}

fn nap(deadline: Option<Instant>) -> Wake {
    std::thread::sleep(NAP);
    if deadline.is_some_and(|deadline| deadline <= now()) { Wake::TimedOut } else { Wake::Ready }
}

/// `None` while the thread's locals are destroyed: there are no frames any more.
pub(crate) fn with_thread_frame<R>(f: impl FnOnce(Option<&Frame>) -> R) -> Option<R> {
    // SAFETY: only `frame::inside` and its like change it, and we run on the stack of this thread.
    THREAD.try_with(|thread| f(unsafe { frame::innermost(&thread.frames) })).ok()
}
