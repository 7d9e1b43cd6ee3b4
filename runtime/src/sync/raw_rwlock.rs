//! One writer or many readers are inside: the lock of [`RwLock`](super::RwLock), without the value.
//!
//! ```text
//!   state     WRITER       a writer is inside
//!             QUEUED       somebody waits: who comes now must queue, and whoever leaves last looks at the queue
//!             READER × n   so many readers are inside
//!   queue     behind a short lock, touched only when two meet
//! ```
//!
//! With nobody else around, entering and leaving are one locked instruction each. `QUEUED` changes only under the queue's
//! lock, and whenever that is free it says whether somebody waits. While it is set nobody enters but those who are granted
//! it, in the order in which they came, by whoever makes that possible: the last to leave, or a waiter that gives up its
//! place. Readers that stand side by side are granted one after the other and are inside together.
//!
//! Unlike a [`RawLock`](super::raw_lock), which whoever comes running may take before those who wait, this one is handed
//! over. A reader that overtakes a writer must have an end somewhere, and a lock that is mostly read changes hands so often
//! only if it is also often written, where a mutex is the better choice anyway.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use super::short_lock::{ShortGuard, ShortLock};
use super::wait_queue::{
    Stage, Stopped, WaitQueue, Waiter, check_scope, check_unwinding, park_until_decided, unpark_each,
};
use crate::around;
use crate::owner::{self, Here};
use crate::park::{self, Parked, Unparker, WaitReason};

const WRITER: u32 = 1;
const QUEUED: u32 = 2;
const READER: u32 = 4;

/// No owner, or one that is just coming or going.
const NOBODY: u64 = 0;

#[derive(Debug)]
pub(super) struct RawRwLock {
    state: AtomicU32,
    /// The writer inside, or the last reader that entered if it is still inside. Read only by the panicking, to tell a long
    /// wait from a deadlock; whom it names on the worker that asks is inside, since what is stored there is seen there.
    owner: AtomicU64,
    queue: ShortLock<WaitQueue<Contender>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

#[derive(Debug)]
struct Contender {
    here: Here,
    access: Access,
}

/// What someone who wants to enter does to the state, if it may.
fn entered(state: u32, access: Access) -> Option<u32> {
    match access {
        Access::Read if state & WRITER == 0 => {
            Some(state.checked_add(READER).expect("fewer than a billion readers are inside a lock"))
        }
        Access::Write if state & !QUEUED == 0 => Some(state | WRITER),
        _ => None,
    }
}

/// As [`entered`], for one who is not granted it but comes: not past those who wait.
fn entered_at_once(state: u32, access: Access) -> Option<u32> {
    if state & QUEUED == 0 { entered(state, access) } else { None }
}

impl RawRwLock {
    pub(super) const fn new() -> Self {
        let queue = ShortLock::new(WaitQueue::new());
        RawRwLock { state: AtomicU32::new(0), owner: AtomicU64::new(NOBODY), queue }
    }

    /// Enters. Suspends while others are inside, whatever becomes of the scope.
    #[inline]
    pub(super) fn acquire(&self, access: Access) {
        if !self.try_acquire(access) {
            self.acquire_contended(access);
        }
    }

    /// Enters, or gives up when `deadline` has passed or the scope has ended.
    #[inline]
    pub(super) fn acquire_until(
        &self,
        access: Access,
        deadline: impl FnOnce() -> Option<Instant>,
    ) -> Result<(), Stopped> {
        check_scope().map_err(Stopped::Interrupted)?;
        if self.try_acquire(access) { Ok(()) } else { self.acquire_contended_until(access, deadline()) }
    }

    /// Enters if that is possible now and nobody waits.
    #[inline]
    pub(super) fn try_acquire(&self, access: Access) -> bool {
        let entered = self.update(|state| entered_at_once(state, access));
        if entered {
            self.owner.store(owner::here().to_bits(), Ordering::Relaxed);
        }
        entered
    }

    /// Leaves. Only who is inside may call this, with the access that it has.
    #[inline]
    pub(super) fn release(&self, access: Access) {
        let left = match access {
            Access::Write => {
                self.owner.store(NOBODY, Ordering::Relaxed);
                self.state.fetch_sub(WRITER, Ordering::Release) - WRITER
            }
            Access::Read => {
                // A reader that enters just now may lose its entry by this: then nobody is named, which is never wrong.
                if self.owner.load(Ordering::Relaxed) == owner::here().to_bits() {
                    self.owner.store(NOBODY, Ordering::Relaxed);
                }
                self.state.fetch_sub(READER, Ordering::Release) - READER
            }
        };
        if left == QUEUED {
            self.serve();
        }
    }

    /// Makes a reader of the writer inside, without a moment in which nobody is.
    pub(super) fn downgrade(&self) {
        let before = self.state.fetch_add(READER - WRITER, Ordering::Release);
        if before & QUEUED != 0 {
            self.serve();
        }
    }

    #[inline]
    fn update(&self, next: impl FnMut(u32) -> Option<u32>) -> bool {
        self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, next).is_ok()
    }

    #[cold]
    fn acquire_contended(&self, access: Access) {
        let waiter = Contender::waiter(access);
        let Some(waiting) = self.enter_or_wait(&waiter) else {
            return;
        };
        if std::thread::panicking() {
            return waiting.block_while_unwinding();
        }
        while !waiter.is_decided() {
            park::park(WaitReason::Lock);
        }
        waiting.end();
    }

    #[cold]
    fn acquire_contended_until(&self, access: Access, deadline: Option<Instant>) -> Result<(), Stopped> {
        let waiter = Contender::waiter(access);
        let Some(waiting) = self.enter_or_wait(&waiter) else {
            return Ok(());
        };
        let stopped = match check_unwinding() {
            Err(interrupt) => Some(Stopped::Interrupted(interrupt)),
            Ok(()) => park_until_decided(&waiter, WaitReason::Lock, deadline),
        };
        match (waiting.end(), stopped) {
            (Stage::Waiting, Some(stopped)) => Err(stopped),
            _ => Ok(()),
        }
    }

    /// Enters, or joins the queue.
    fn enter_or_wait<'a>(&'a self, waiter: &'a Waiter<Contender>) -> Option<Waiting<'a>> {
        let access = waiter.with_value(|contender| contender.access);
        let mut queue = self.queue.lock();
        // Who unwinds blocks its worker, and those ahead of it may need that worker to run.
        let goes_first = std::thread::panicking();
        if self.enter_or_flag(access, goes_first) {
            drop(queue);
            self.owner.store(owner::here().to_bits(), Ordering::Relaxed);
            return None;
        }
        // SAFETY: what is returned borrows the waiter, and leaves the queue when it is dropped. `end` forgets it only after
        // it has left.
        unsafe {
            match goes_first {
                true => queue.join_front(waiter, park::unparker()),
                false => queue.join(waiter, park::unparker()),
            }
        }
        Some(Waiting { lock: self, waiter, access })
    }

    /// Enters, or makes sure that whoever leaves last looks at the queue.
    fn enter_or_flag(&self, access: Access, goes_first: bool) -> bool {
        let enter = if goes_first { entered } else { entered_at_once };
        let next = |state| Some(enter(state, access).unwrap_or(state | QUEUED));
        let before = self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, next);
        before.is_ok_and(|state| enter(state, access).is_some())
    }

    /// Lets those in whose turn it is.
    #[cold]
    fn serve(&self) {
        unpark_each(|| self.let_first_in(&mut self.queue.lock()));
    }

    /// Makes the first waiter one of those inside, if it may be.
    fn let_first_in(&self, queue: &mut ShortGuard<'_, WaitQueue<Contender>>) -> Option<Unparker> {
        let access = queue.first()?.access;
        if !self.update(|state| entered(state, access)) {
            return None;
        }
        let owner = |first: &mut Contender| self.owner.store(first.here.to_bits(), Ordering::Relaxed);
        let unparker = queue.grant(owner);
        self.unflag_if_empty(queue);
        unparker
    }

    fn unflag_if_empty(&self, queue: &WaitQueue<Contender>) {
        if queue.is_empty() {
            self.state.fetch_and(!QUEUED, Ordering::Relaxed);
        }
    }

    fn owner(&self) -> Here {
        Here::from_bits(self.owner.load(Ordering::Relaxed))
    }
}

impl Contender {
    /// The caller.
    fn waiter(access: Access) -> Waiter<Self> {
        Waiter::new(Self { here: owner::here(), access })
    }
}

/// A place in the queue. If it is dropped, whatever its waiter was given goes on to the next.
struct Waiting<'a> {
    lock: &'a RawRwLock,
    waiter: &'a Waiter<Contender>,
    access: Access,
}

impl Waiting<'_> {
    /// Ends the wait, and says at which stage it was: inside, if it was granted.
    fn end(self) -> Stage {
        let stage = self.leave();
        std::mem::forget(self);
        stage
    }

    fn leave(&self) -> Stage {
        if self.waiter.is_decided() {
            return self.waiter.stage();
        }
        let mut queue = self.lock.queue.lock();
        let stage = queue.leave(self.waiter);
        self.lock.unflag_if_empty(&queue);
        drop(queue);
        if stage == Stage::Waiting {
            // A writer may have stood before readers who could have entered.
            self.lock.serve();
        }
        stage
    }

    /// Waits as one who unwinds: on the OS thread, and not for ever.
    fn block_while_unwinding(self) {
        const WHAT: &str = "a reader-writer lock";
        let deadline = around::after(owner::UNWIND_BLOCK_MAX);
        let mut parked = Parked::Woken;
        while !self.waiter.is_decided() {
            let owner = self.lock.owner();
            if owner.to_bits() != NOBODY && owner::would_deadlock_while_unwinding(owner) {
                owner::abort_deadlock(WHAT, owner);
            }
            if parked == Parked::TimedOut {
                owner::abort_unwinding_wait(WHAT);
            }
            parked = park::park_until(WaitReason::Lock, deadline);
        }
        self.end();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.leave() == Stage::Granted {
            self.lock.release(self.access);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Access::{Read, Write};
    use super::*;

    fn wait<'a>(lock: &'a RawRwLock, waiter: &'a Waiter<Contender>) -> Waiting<'a> {
        lock.enter_or_wait(waiter).expect("somebody is inside")
    }

    /// A lock with `inside`, and waiters for `wanted` in this order.
    fn with_waiters(inside: Access, wanted: &[Access], test: impl FnOnce(&RawRwLock, Vec<Option<Waiting>>)) {
        let lock = RawRwLock::new();
        assert!(lock.try_acquire(inside));
        let waiters: Vec<_> = wanted.iter().map(|&access| Contender::waiter(access)).collect();
        let waiting = waiters.iter().map(|waiter| Some(wait(&lock, waiter))).collect();
        test(&lock, waiting);
        assert!(lock.try_acquire(Write), "nothing is left inside or in the queue");
    }

    /// Which of those who wait have been let in.
    fn let_in(waiting: &[Option<Waiting>]) -> Vec<bool> {
        waiting.iter().map(|one| one.as_ref().is_some_and(|one| one.waiter.is_decided())).collect()
    }

    #[test]
    fn who_may_enter() {
        let check = |state, access, expected| assert_eq!(entered(state, access), expected, "{state:b} {access:?}");
        check(0, Read, Some(READER));
        check(0, Write, Some(WRITER));
        check(READER, Read, Some(2 * READER));
        check(READER, Write, None);
        check(WRITER, Read, None);
        check(WRITER, Write, None);
        check(QUEUED | READER, Read, Some(QUEUED + 2 * READER));
        check(QUEUED, Write, Some(QUEUED | WRITER));
        assert_eq!(entered_at_once(QUEUED | READER, Read), None);
        assert_eq!(entered_at_once(QUEUED, Write), None);
        assert_eq!(entered_at_once(READER, Read), Some(2 * READER));
    }

    #[test]
    fn readers_that_wait_together_enter_together_and_a_writer_alone() {
        with_waiters(Write, &[Read, Read, Write, Read], |lock, mut waiting| {
            lock.release(Write);
            assert_eq!(let_in(&waiting), [true, true, false, false]);
            waiting[0] = None;
            assert_eq!(let_in(&waiting), [false, true, false, false]);
            waiting[1] = None;
            assert_eq!(let_in(&waiting), [false, false, true, false]);
            waiting[2] = None;
            assert_eq!(let_in(&waiting), [false, false, false, true]);
        });
    }

    #[test]
    fn a_writer_that_waits_keeps_new_readers_out() {
        with_waiters(Read, &[Write], |lock, waiting| {
            assert!(!lock.try_acquire(Read));
            drop(waiting);
            assert!(lock.try_acquire(Read), "it has given up");
            lock.release(Read);
            lock.release(Read);
        });
    }

    #[test]
    fn a_writer_that_gives_up_lets_the_readers_behind_it_pass() {
        with_waiters(Read, &[Write, Read, Read], |lock, mut waiting| {
            assert_eq!(waiting[0].take().map(Waiting::end), Some(Stage::Waiting));
            assert_eq!(let_in(&waiting), [false, true, true]);
            drop(waiting);
            lock.release(Read);
        });
    }

    #[test]
    fn who_is_torn_down_passes_on_what_it_was_granted() {
        with_waiters(Write, &[Write, Write], |lock, mut waiting| {
            lock.release(Write);
            waiting[0] = None;
            assert_eq!(let_in(&waiting), [false, true]);
        });
    }

    #[test]
    fn who_gives_up_just_as_it_is_granted_the_lock_has_it() {
        with_waiters(Write, &[Read], |lock, mut waiting| {
            lock.release(Write);
            assert_eq!(waiting[0].take().map(Waiting::end), Some(Stage::Granted));
            assert!(!lock.try_acquire(Write));
            lock.release(Read);
        });
    }

    #[test]
    fn a_downgrade_lets_readers_in_and_no_writer() {
        with_waiters(Write, &[Read, Write], |lock, mut waiting| {
            lock.downgrade();
            assert_eq!(let_in(&waiting), [true, false]);
            waiting[0] = None;
            assert_eq!(let_in(&waiting), [false, false]);
            lock.release(Read);
            assert_eq!(let_in(&waiting), [false, true]);
        });
    }

    #[test]
    fn the_owner_is_named_only_while_it_is_inside() {
        let lock = RawRwLock::new();
        for access in [Read, Write] {
            assert!(lock.try_acquire(access));
            assert_eq!(lock.owner(), owner::here());
            lock.release(access);
            assert_eq!(lock.owner().to_bits(), NOBODY);
        }
    }
}
