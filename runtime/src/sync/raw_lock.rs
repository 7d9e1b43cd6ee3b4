//! One enters at a time: the lock of [`Mutex`](super::Mutex), without the value.
//!
//! ```text
//!   state     LOCKED   somebody is inside
//!             QUEUED   whoever leaves must look at the queue
//!   queue     behind a std mutex, touched only when two meet
//! ```
//!
//! With nobody else around, entering and leaving are one compare-exchange each. `QUEUED` changes only
//! under the queue's mutex, and this holds whenever that is free: if somebody waits, either `QUEUED`
//! is set, or one waiter was woken and is on its way, and it will set it.
//!
//! Whoever leaves wakes the first waiter but does not hand the lock over: who comes running by may
//! take it (*barging*). A hand-over would leave the lock idle for as long as the wake takes, each time,
//! and a lock that is often wanted would from then on go at the pace of wakes. But a waiter that has
//! come in vain `LOST_MAX` times, keeping its place, is handed the lock: so nobody starves.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use super::short_lock::{ShortGuard, ShortLock};
use super::wait_queue::{Stage, Stopped, WaitQueue, Waiter, check_scope, check_unwinding, why_stopped};
use crate::around;
use crate::owner::{self, Here};
use crate::park::{self, Parked, Unparker, WaitReason};

const LOCKED: u32 = 1;
const QUEUED: u32 = 2;

/// How often a waiter may be woken and find that somebody else was faster. At 4, a fifth of all
/// wakes at most are hand-overs, which are what makes a wanted lock slow.
const LOST_MAX: u8 = 4;

/// No owner, or one that is just coming or going.
const NOBODY: u64 = 0;

#[derive(Debug)]
pub(super) struct RawLock {
    state: AtomicU32,
    /// Who is inside. Read only by the panicking, to tell a long wait from a deadlock; it names
    /// somebody only while that one is inside.
    owner: AtomicU64,
    queue: ShortLock<Queue>,
}

#[derive(Debug)]
struct Queue {
    waiters: WaitQueue<Contender>,
    /// A waiter was woken and has not tried yet. Until then nobody else is woken.
    woken: bool,
}

#[derive(Debug)]
struct Contender {
    here: Here,
    lost: u8,
    handed_over: bool,
}

impl RawLock {
    pub(super) const fn new() -> Self {
        let queue = Queue { waiters: WaitQueue::new(), woken: false };
        RawLock { state: AtomicU32::new(0), owner: AtomicU64::new(NOBODY), queue: ShortLock::new(queue) }
    }

    /// Enters. Suspends while somebody else is inside, whatever becomes of the scope.
    #[inline]
    pub(super) fn acquire(&self) {
        if !self.acquire_at_once() {
            self.acquire_contended();
        }
        self.record_owner();
    }

    /// Enters, or gives up when `deadline` has passed or the scope has ended.
    #[inline]
    pub(super) fn acquire_until(&self, deadline: impl FnOnce() -> Option<Instant>) -> Result<(), Stopped> {
        check_scope().map_err(Stopped::Interrupted)?;
        if !self.acquire_at_once() {
            self.acquire_contended_until(deadline)?;
        }
        self.record_owner();
        Ok(())
    }

    /// Enters if nobody is inside.
    #[inline]
    pub(super) fn try_acquire(&self) -> bool {
        let free = |state| (state & LOCKED == 0).then_some(state | LOCKED);
        let entered = self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, free);
        if entered.is_ok() {
            self.record_owner();
        }
        entered.is_ok()
    }

    /// Leaves. Only who is inside may call this.
    #[inline]
    pub(super) fn release(&self) {
        self.owner.store(NOBODY, Ordering::Relaxed);
        let left = self.state.compare_exchange(LOCKED, 0, Ordering::Release, Ordering::Relaxed);
        if left.is_err() {
            self.release_contended();
        }
    }

    #[inline]
    fn acquire_at_once(&self) -> bool {
        let entered = self.state.compare_exchange(0, LOCKED, Ordering::Acquire, Ordering::Relaxed);
        entered.is_ok()
    }

    #[inline]
    fn record_owner(&self) {
        self.owner.store(owner::here().to_bits(), Ordering::Relaxed);
    }

    #[cold]
    fn acquire_contended(&self) {
        let contender = Contender::waiter();
        let Some(waiting) = self.enter_or_wait(&contender) else {
            return;
        };
        if std::thread::panicking() {
            return waiting.block_while_unwinding();
        }
        let mut waiting = waiting;
        loop {
            park::park(WaitReason::Lock);
            match waiting.retry() {
                Ok(()) => return,
                Err(still_waiting) => waiting = still_waiting,
            }
        }
    }

    #[cold]
    fn acquire_contended_until(&self, deadline: impl FnOnce() -> Option<Instant>) -> Result<(), Stopped> {
        let contender = Contender::waiter();
        let Some(mut waiting) = self.enter_or_wait(&contender) else {
            return Ok(());
        };
        if let Err(interrupt) = check_unwinding() {
            return waiting.give_up(Stopped::Interrupted(interrupt));
        }
        let deadline = deadline();
        let limit = park::earliest(deadline);
        loop {
            let parked = park::park_until(WaitReason::Lock, limit);
            let stopped = why_stopped(parked, deadline);
            match (waiting.retry(), stopped) {
                (Ok(()), _) => return Ok(()),
                (Err(still_waiting), Some(stopped)) => return still_waiting.give_up(stopped),
                (Err(still_waiting), None) => waiting = still_waiting,
            }
        }
    }

    /// Enters, or joins the queue.
    fn enter_or_wait<'a>(&'a self, contender: &'a Waiter<Contender>) -> Option<Waiting<'a>> {
        let mut queue = self.queue.lock();
        if self.enter_or_flag(&queue) {
            return None;
        }
        // SAFETY: what is returned borrows the waiter, and leaves the queue when it is dropped. Its methods forget it only
        // after it has left, or join again at once.
        unsafe {
            // Who unwinds blocks its worker, and those ahead of it may need that worker to run.
            match std::thread::panicking() {
                true => queue.waiters.join_front(contender, park::unparker()),
                false => queue.waiters.join(contender, park::unparker()),
            }
        }
        Some(Waiting { lock: self, contender })
    }

    /// Enters, or makes sure that whoever is inside looks at the queue as it leaves.
    fn enter_or_flag(&self, queue: &Queue) -> bool {
        let queued = if queue.waiters.is_empty() { 0 } else { QUEUED };
        let next = |state: u32| match state & LOCKED {
            0 => Some(LOCKED | queued),
            _ => Some(state | QUEUED),
        };
        let before = self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, next);
        before.is_ok_and(|state| state & LOCKED == 0)
    }

    #[cold]
    fn release_contended(&self) {
        let mut queue = self.queue.lock();
        // We are inside and hold the queue: nobody else changes the state, so stores will do.
        let next = match queue.waiters.first() {
            Some(first) if first.lost >= LOST_MAX && !queue.woken => self.hand_over(&mut queue),
            _ => {
                self.state.store(0, Ordering::Release);
                queue.wake_first()
            }
        };
        drop(queue);
        if let Some(next) = next {
            next.unpark();
        }
    }

    /// Makes the first waiter the owner without opening the lock.
    fn hand_over(&self, queue: &mut Queue) -> Option<Unparker> {
        let unparker = queue.waiters.grant(|first| {
            first.handed_over = true;
            self.owner.store(first.here.to_bits(), Ordering::Relaxed);
        })?;
        let queued = if queue.waiters.is_empty() { 0 } else { QUEUED };
        self.state.store(LOCKED | queued, Ordering::Release);
        Some(unparker)
    }

    fn owner(&self) -> Here {
        Here::from_bits(self.owner.load(Ordering::Relaxed))
    }
}

impl Queue {
    /// Wakes the first waiter, unless one is on its way already.
    fn wake_first(&mut self) -> Option<Unparker> {
        if self.woken {
            return None;
        }
        let unparker = self.waiters.grant(|_| ())?;
        self.woken = true;
        Some(unparker)
    }
}

impl Contender {
    /// The caller, who has not tried yet.
    fn waiter() -> Waiter<Self> {
        Waiter::new(Self { here: owner::here(), lost: 0, handed_over: false })
    }
}

/// A place in the queue. If it is dropped, whatever its waiter was given goes on to the next.
struct Waiting<'a> {
    lock: &'a RawLock,
    contender: &'a Waiter<Contender>,
}

impl Waiting<'_> {
    /// Tries to enter if this waiter was woken; gives the place back if it has to wait on.
    fn retry(self) -> Result<(), Self> {
        if !self.contender.is_decided() {
            return Err(self);
        }
        let mut queue = self.lock.queue.lock();
        if self.was_handed_over() || self.enter_woken(&mut queue) {
            drop(queue);
            std::mem::forget(self);
            return Ok(());
        }
        self.contender.with_value(|contender| contender.lost = contender.lost.saturating_add(1));
        // SAFETY: as in `enter_or_wait`: it was decided, so it is in no queue.
        unsafe { queue.waiters.join_front(self.contender, park::unparker()) };
        drop(queue);
        Err(self)
    }

    /// Ends the wait without the lock; with it, if it was handed over or is free by now.
    fn give_up(self, stopped: Stopped) -> Result<(), Stopped> {
        let mut queue = self.lock.queue.lock();
        let entered = match queue.waiters.leave(self.contender) {
            Stage::Waiting => false,
            _ => self.was_handed_over() || self.enter_woken(&mut queue),
        };
        drop(queue);
        std::mem::forget(self);
        if entered { Ok(()) } else { Err(stopped) }
    }

    /// Whether the lock is ours. Only once it is decided.
    fn was_handed_over(&self) -> bool {
        self.contender.with_value(|contender| contender.handed_over)
    }

    fn enter_woken(&self, queue: &mut ShortGuard<'_, Queue>) -> bool {
        queue.woken = false;
        self.lock.enter_or_flag(queue)
    }

    /// Waits as one who unwinds: on the OS thread, and not for ever.
    fn block_while_unwinding(self) {
        const WHAT: &str = "a mutex";
        let mut waiting = self;
        let deadline = around::after(owner::UNWIND_BLOCK_MAX);
        loop {
            let owner = waiting.lock.owner();
            if owner.to_bits() != NOBODY && owner::would_deadlock_while_unwinding(owner) {
                owner::abort_deadlock(WHAT, owner);
            }
            let parked = park::park_until(WaitReason::Lock, deadline);
            match waiting.retry() {
                Ok(()) => return,
                Err(_) if parked == Parked::TimedOut => owner::abort_deadlock(WHAT, owner),
                Err(still_waiting) => waiting = still_waiting,
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut queue = self.lock.queue.lock();
        let next = match queue.waiters.leave(self.contender) {
            Stage::Waiting => None,
            _ if self.was_handed_over() => {
                drop(queue);
                return self.lock.release();
            }
            _ => {
                queue.woken = false;
                queue.wake_first()
            }
        };
        drop(queue);
        if let Some(next) = next {
            next.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lock that is taken, with a waiter.
    fn contended<'a>(lock: &'a RawLock, contender: &'a Waiter<Contender>) -> Waiting<'a> {
        assert!(lock.try_acquire());
        wait(lock, contender)
    }

    fn wait<'a>(lock: &'a RawLock, contender: &'a Waiter<Contender>) -> Waiting<'a> {
        lock.enter_or_wait(contender).expect("the lock is taken")
    }

    /// Lets the waiter come in vain until its next wake is a hand-over, and releases the lock.
    fn hand_over<'a>(lock: &RawLock, mut waiting: Waiting<'a>) -> Waiting<'a> {
        for _ in 0..LOST_MAX {
            lock.release();
            assert!(lock.try_acquire(), "a woken waiter may be overtaken");
            waiting = waiting.retry().expect_err("somebody else is inside");
        }
        lock.release();
        assert!(!lock.try_acquire(), "a lock that is handed over was never free");
        waiting
    }

    #[test]
    fn a_waiter_is_woken_and_enters() {
        let (lock, contender) = (RawLock::new(), Contender::waiter());
        let waiting = contended(&lock, &contender);
        let waiting = waiting.retry().expect_err("somebody else is inside");
        lock.release();
        assert!(waiting.retry().is_ok());
        assert!(!lock.try_acquire());
        lock.release();
        assert!(lock.acquire_at_once(), "nothing is left to look at");
    }

    #[test]
    fn a_waiter_that_often_came_in_vain_is_handed_the_lock() {
        let (lock, contender) = (RawLock::new(), Contender::waiter());
        let waiting = hand_over(&lock, contended(&lock, &contender));
        assert_eq!(lock.owner(), owner::here());
        assert!(waiting.retry().is_ok());
    }

    #[test]
    fn who_is_torn_down_passes_on_what_it_was_given() {
        let (lock, contenders) = (RawLock::new(), [Contender::waiter(), Contender::waiter()]);
        let (first, second) = (contended(&lock, &contenders[0]), wait(&lock, &contenders[1]));
        lock.release();
        drop(first);
        assert!(second.retry().is_ok(), "the wake went on");
        drop(hand_over(&lock, wait(&lock, &contenders[0])));
        assert!(lock.try_acquire(), "the lock went on");
    }

    #[test]
    fn who_gives_up_strands_nobody() {
        let (lock, contenders) = (RawLock::new(), [Contender::waiter(), Contender::waiter()]);
        let (first, second) = (contended(&lock, &contenders[0]), wait(&lock, &contenders[1]));
        lock.release();
        assert!(lock.try_acquire());
        assert_eq!(first.give_up(Stopped::TimedOut), Err(Stopped::TimedOut));
        lock.release();
        assert!(second.retry().is_ok());
    }

    #[test]
    fn who_gives_up_just_as_it_is_given_the_lock_has_it() {
        let (lock, contender) = (RawLock::new(), Contender::waiter());
        let waiting = contended(&lock, &contender);
        lock.release();
        assert_eq!(waiting.give_up(Stopped::TimedOut), Ok(()));
        let contender = Contender::waiter();
        let waiting = hand_over(&lock, wait(&lock, &contender));
        assert_eq!(waiting.give_up(Stopped::TimedOut), Ok(()));
        assert!(!lock.try_acquire());
    }
}
