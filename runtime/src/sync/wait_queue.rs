//! Who waits, in order, and what each was given: the one queue inside every primitive.
//!
//! ```text
//!   join ──> Waiting ──grant───> Granted ────┐
//!               │                            ├──> the waiter's own again
//!               ├──────dismiss──> Dismissed ─┤
//!               └───leave (timed out, cancelled, unwinding)
//! ```
//!
//! A waiter is a node on the stack of who waits, linked into the list of the primitive: to wait allocates nothing, and
//! whoever was granted something finds it in its own frame, without the lock. Up to the decision the node belongs to
//! whoever holds the primitive's lock; from then on to the waiter. So the race of every wait is decided in one place: a
//! waiter that gives up learns from `leave` that it was granted meanwhile, and takes it or passes it on.
//!
//! Who waits for the first of several things has a node in the queue of each, and all of them refer to one [`Claim`].
//! Whoever would grant takes the claim first; if somebody else has it, the node is put out of the queue as `Idle`, and the
//! next waiter is tried. So nothing is ever given to one who has taken something else already.
//!
//! The queue wakes nobody. It hands out the [`Unparker`], which its caller uses after the lock.

use std::cell::Cell;
use std::marker::PhantomPinned;
use std::ptr;
use std::time::Instant;

use super::short_lock::{ShortGuard, ShortLock};
use crate::atomic::{AtomicBool, AtomicU8, Ordering, UnsafeCell};
use crate::park::{self, Interrupt, Parked, Unparker, WaitReason};

/// Waiters, first come first served. `V` is what a waiter wants, or is given.
pub(super) struct WaitQueue<V> {
    /// The ends of the list of those who are still `Waiting`.
    first: *const Waiter<V>,
    last: *const Waiter<V>,
}

// SAFETY: the nodes are reached under the primitive's lock only, and what they hold may go to other threads.
unsafe impl<V: Send> Send for WaitQueue<V> {}

/// One who waits.
pub(super) struct Waiter<V> {
    stage: AtomicU8,
    /// Present while the waiter is `Waiting`.
    unparker: Cell<Option<Unparker>>,
    value: UnsafeCell<V>,
    previous: Cell<*const Self>,
    next: Cell<*const Self>,
    /// What must be taken before it is granted anything; null if it waits here only.
    claim: Cell<*const Claim>,
    _stays: PhantomPinned,
}

/// The right to end a wait in several queues, which one of all who would end it gets: a granter, or the waiter itself.
///
/// It decides and nothing else. What is granted goes by the lock of a queue and the stage of a node, so no order of memory
/// hangs on it.
pub(crate) struct Claim {
    is_taken: AtomicBool,
}

impl Claim {
    /// A claim that is taken.
    pub(super) fn new() -> Self {
        Self { is_taken: AtomicBool::new(true) }
    }

    /// Only for the waiter, while it is in no queue.
    pub(super) fn release(&self) {
        self.is_taken.store(false, Ordering::Relaxed);
    }

    /// Returns whether the caller is the one who took it.
    pub(super) fn take(&self) -> bool {
        !self.is_taken.swap(true, Ordering::Relaxed)
    }

    pub(super) fn is_taken(&self) -> bool {
        self.is_taken.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Waiting = 0,
    /// It got what it waits for.
    Granted = 1,
    /// It never will.
    Dismissed = 2,
    /// It is in no queue.
    Idle = 3,
}

impl<V> Waiter<V> {
    #[inline(always)]
    pub(super) fn new(value: V) -> Self {
        Self {
            stage: AtomicU8::new(Stage::Idle as u8),
            unparker: Cell::new(None),
            value: UnsafeCell::new(value),
            previous: Cell::new(ptr::null()),
            next: Cell::new(ptr::null()),
            claim: Cell::new(ptr::null()),
            _stays: PhantomPinned,
        }
    }

    #[inline(always)]
    pub(super) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Waiting,
            1 => Stage::Granted,
            2 => Stage::Dismissed,
            _ => Stage::Idle,
        }
    }

    /// Whether it was granted or dismissed; then it is in no queue any more.
    #[inline(always)]
    pub(super) fn is_decided(&self) -> bool {
        self.stage() != Stage::Waiting
    }

    /// What it holds. Only for the waiter itself.
    ///
    /// # Panics
    ///
    /// While it is `Waiting`.
    #[inline(always)]
    pub(super) fn with_value<R>(&self, f: impl FnOnce(&mut V) -> R) -> R {
        assert!(self.is_decided(), "a waiter in a queue belongs to who holds the lock");
        // SAFETY: it is in no queue, so nobody else refers to it; and it is not `Sync`, so this is its own thread. `f` is
        // ours, and does not come back here.
        self.value.with_mut(|value| f(unsafe { &mut *value }))
    }
}

impl<V> WaitQueue<V> {
    pub(super) const fn new() -> Self {
        WaitQueue { first: ptr::null(), last: ptr::null() }
    }

    /// Adds a waiter as the last one.
    ///
    /// # Safety
    ///
    /// The waiter is in no queue, and stays where it is until it is decided or has left this queue.
    #[inline(always)]
    pub(super) unsafe fn join(&mut self, waiter: &Waiter<V>, unparker: Unparker) {
        waiter.enter(unparker, self.last, ptr::null());
        // SAFETY: a waiter in the list stays where it is, and is ours while we hold the lock.
        match unsafe { self.last.as_ref() } {
            None => self.first = waiter,
            Some(last) => last.next.set(waiter),
        }
        self.last = waiter;
    }

    /// Adds a waiter as the last one, for one who waits in other queues as well.
    ///
    /// # Safety
    ///
    /// As [`join`](Self::join); and the claim stays where it is as long.
    pub(super) unsafe fn join_with(&mut self, waiter: &Waiter<V>, unparker: Unparker, claim: &Claim) {
        waiter.claim.set(claim);
        // SAFETY: by the caller's promise.
        unsafe { self.join(waiter, unparker) };
    }

    /// Adds a waiter as the first one.
    ///
    /// # Safety
    ///
    /// As [`join`](Self::join).
    pub(super) unsafe fn join_front(&mut self, waiter: &Waiter<V>, unparker: Unparker) {
        waiter.enter(unparker, ptr::null(), self.first);
        // SAFETY: as in `join`.
        match unsafe { self.first.as_ref() } {
            None => self.last = waiter,
            Some(first) => first.previous.set(waiter),
        }
        self.first = waiter;
    }

    /// Grants the first waiter what it waits for, which `give` writes into its value. Unpark it when the lock is released.
    #[inline(always)]
    pub(super) fn grant(&mut self, give: impl FnOnce(&mut V)) -> Option<Unparker> {
        self.next().map(|next| next.grant(give))
    }

    /// Tells the first waiter that its wait is in vain.
    pub(super) fn dismiss(&mut self) -> Option<Unparker> {
        self.next().map(|next| next.decide(Stage::Dismissed, |_| ()))
    }

    /// The first waiter that can still be granted something, which the caller must do then.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Option<Next<'_, V>> {
        // SAFETY: as in `join`.
        let first = unsafe { self.first.as_ref() }?;
        if !first.claim.get().is_null() && !self.claim_first() {
            return None;
        }
        Some(Next { queue: self })
    }

    /// Ends a wait, at whichever stage it is, and says at which it was.
    pub(super) fn leave(&mut self, waiter: &Waiter<V>) -> Stage {
        let stage = waiter.stage();
        if stage == Stage::Waiting {
            self.unlink(waiter);
            waiter.stage.store(Stage::Idle as u8, Ordering::Relaxed);
        }
        stage
    }

    /// What the first waiter wants. Only where nobody waits with a claim, since the next grant may pass over such a one.
    #[inline]
    pub(super) fn first(&self) -> Option<&V> {
        // SAFETY: as in `join`; and nobody writes the value while this reference lives, since that takes `&mut self`.
        unsafe { self.first.as_ref().map(|first| first.value.with_mut(|value| &*value)) }
    }

    /// Whether nobody is `Waiting`. If it is not empty a grant may be in vain all the same, when nobody in it can be claimed.
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_null()
    }

    /// Whether a grant would find somebody now who is not the owner of `own`.
    pub(super) fn has_other_than(&self, own: &Claim) -> bool {
        let mut next = self.first;
        // SAFETY: as in `join`.
        while let Some(waiter) = unsafe { next.as_ref() } {
            let claim = waiter.claim.get();
            // SAFETY: as in `join`: it stays as long as its waiter does.
            if !ptr::eq(claim, own) && unsafe { claim.as_ref() }.is_none_or(|claim| !claim.is_taken()) {
                return true;
            }
            next = waiter.next.get();
        }
        false
    }

    /// Puts out of the queue those whose claim is lost, until the first one's claim could be taken, or it needs none.
    #[cold]
    fn claim_first(&mut self) -> bool {
        // SAFETY: as in `join`.
        while let Some(first) = unsafe { self.first.as_ref() } {
            // SAFETY: as in `join`: it stays as long as its waiter does.
            if unsafe { first.claim.get().as_ref() }.is_none_or(Claim::take) {
                return true;
            }
            self.unlink(first);
            first.unparker.take();
            // From here on it belongs to its waiter, who comes for it under the lock.
            first.stage.store(Stage::Idle as u8, Ordering::Release);
        }
        false
    }

    /// Closes the list over a waiter.
    #[inline(always)]
    fn unlink(&mut self, waiter: &Waiter<V>) {
        let (previous, next) = (waiter.previous.get(), waiter.next.get());
        // SAFETY: as in `join`.
        match unsafe { previous.as_ref() } {
            None => self.first = next,
            Some(previous) => previous.next.set(next),
        }
        // SAFETY: as in `join`.
        match unsafe { next.as_ref() } {
            None => self.last = previous,
            Some(next) => next.previous.set(previous),
        }
    }
}

/// The first waiter of a queue, whose claim is taken for the caller if it has one.
#[must_use = "who has been claimed waits for ever unless it is granted something"]
pub(super) struct Next<'a, V> {
    queue: &'a mut WaitQueue<V>,
}

impl<V> Next<'_, V> {
    /// As [`WaitQueue::grant`].
    #[inline(always)]
    pub(super) fn grant(self, give: impl FnOnce(&mut V)) -> Unparker {
        self.decide(Stage::Granted, give)
    }

    #[inline(always)]
    fn decide(self, stage: Stage, give: impl FnOnce(&mut V)) -> Unparker {
        // SAFETY: as in `join`; there is a first one, and the queue was ours since.
        let first = unsafe { &*self.queue.first };
        self.queue.unlink(first);
        // SAFETY: it is undecided, so its value is ours.
        first.value.with_mut(|value| give(unsafe { &mut *value }));
        let unparker = first.unparker.take();
        // From here on it belongs to its waiter, and may be gone.
        first.stage.store(stage as u8, Ordering::Release);
        unparker.expect("a waiter keeps its unparker while it is waiting")
    }
}

impl<V> Waiter<V> {
    #[inline(always)]
    fn enter(&self, unparker: Unparker, previous: *const Self, next: *const Self) {
        debug_assert!(self.is_decided(), "a waiter is in one queue at a time");
        self.unparker.set(Some(unparker));
        self.previous.set(previous);
        self.next.set(next);
        self.stage.store(Stage::Waiting as u8, Ordering::Relaxed);
    }
}

impl<V> Drop for Waiter<V> {
    #[inline(always)]
    fn drop(&mut self) {
        debug_assert!(self.is_decided(), "a waiter leaves its queue before its frame goes");
    }
}

impl<V> std::fmt::Debug for WaitQueue<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WaitQueue").field("is_empty", &self.is_empty()).finish_non_exhaustive()
    }
}

/// Why a wait that can fail ends without what it waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    TimedOut,
    Interrupted(Interrupt),
}

/// Parks until the waiter is decided, or until `deadline` or the end of the scope, and says which of these came first. It
/// may well have been granted meanwhile: ask the queue before you stop.
#[inline(always)]
pub(super) fn park_until_decided<V>(
    waiter: &Waiter<V>,
    reason: WaitReason,
    deadline: Option<Instant>,
) -> Option<Stopped> {
    let limit = park::earliest(deadline);
    loop {
        let parked = park::park_until(reason, limit);
        if waiter.is_decided() {
            return None;
        }
        let stopped = why_stopped(parked, deadline);
        if stopped.is_some() {
            return stopped;
        }
    }
}

/// Why a wait shall not go on after it was woken, if so.
pub(super) fn why_stopped(parked: Parked, deadline: Option<Instant>) -> Option<Stopped> {
    match park::check() {
        Err(interrupt) => Some(Stopped::Interrupted(interrupt)),
        Ok(()) if parked == Parked::TimedOut && deadline.is_some() => Some(Stopped::TimedOut),
        Ok(()) => None,
    }
}

/// To be asked before the attempt: whether the scope is cancelled or out of time.
///
/// A panic in flight stops no attempt, only waiting: a destructor may return things by a channel.
#[inline(always)]
pub(super) fn check_scope() -> Result<(), Interrupt> {
    park::spend();
    match park::check() {
        Err(Interrupt::Panicking) => Ok(()),
        checked => checked,
    }
}

/// To be asked before waiting: whether the caller unwinds, and so cannot.
#[inline(always)]
pub(super) fn check_unwinding() -> Result<(), Interrupt> {
    if std::thread::panicking() { Err(Interrupt::Panicking) } else { Ok(()) }
}

/// Waits for nothing but a wake, in a queue behind a lock that is held already. Says what ended the wait instead, if
/// anything did.
#[inline(always)]
pub(super) fn wait_for_wake<S, V>(
    lock: &ShortLock<S>,
    mut state: ShortGuard<'_, S>,
    queue: fn(&mut S) -> &mut WaitQueue<V>,
    wants: V,
    reason: WaitReason,
    deadline: impl FnOnce() -> Option<Instant>,
) -> Option<Stopped> {
    let waiter = Waiter::new(wants);
    // SAFETY: `place` leaves the queue before `waiter` goes, unless it is decided.
    unsafe { queue(&mut state).join(&waiter, park::unparker()) };
    drop(state);
    let place = Place { lock, queue, waiter: &waiter };
    let stopped = park_until_decided(&waiter, reason, deadline());
    let stage = if stopped.is_some() { place.leave() } else { waiter.stage() };
    std::mem::forget(place);
    stopped.filter(|_| stage == Stage::Waiting)
}

/// A place in a queue whose waiters are given nothing. If it is dropped by an unwinding, nothing is lost to others.
struct Place<'a, S, V> {
    lock: &'a ShortLock<S>,
    queue: fn(&mut S) -> &mut WaitQueue<V>,
    waiter: &'a Waiter<V>,
}

impl<S, V> Place<'_, S, V> {
    fn leave(&self) -> Stage {
        let mut state = self.lock.lock();
        (self.queue)(&mut state).leave(self.waiter)
    }
}

impl<S, V> Drop for Place<'_, S, V> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Unparks one after the other, none of them while `next` holds its lock.
#[inline]
pub(super) fn unpark_each(mut next: impl FnMut() -> Option<Unparker>) {
    while let Some(unparker) = next() {
        unparker.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue of waiters that want these values, and what it leaves.
    fn with_queue(values: &[u32], test: impl FnOnce(&mut WaitQueue<u32>, &[Waiter<u32>])) {
        let mut queue = WaitQueue::new();
        let waiters: Vec<_> = values.iter().map(|&value| Waiter::new(value)).collect();
        for waiter in &waiters {
            // SAFETY: each leaves below, before the vector goes.
            unsafe { queue.join(waiter, park::unparker()) };
        }
        test(&mut queue, &waiters);
        for waiter in &waiters {
            queue.leave(waiter);
        }
        assert!(queue.is_empty());
    }

    fn check_order(queue: &mut WaitQueue<u32>, expected: &[u32]) {
        for value in expected {
            assert_eq!(queue.first(), Some(value));
            assert!(queue.grant(|granted| assert_eq!(granted, value)).is_some());
        }
        assert!(queue.is_empty());
        assert!(queue.grant(|_| ()).is_none());
    }

    #[test]
    fn first_come_first_served() {
        with_queue(&[1, 2, 3], |queue, _| check_order(queue, &[1, 2, 3]));
        with_queue(&[1, 2], |queue, _| {
            let first = Waiter::new(0);
            // SAFETY: it is granted before it goes.
            unsafe { queue.join_front(&first, park::unparker()) };
            check_order(queue, &[0, 1, 2]);
        });
    }

    #[test]
    fn whoever_gives_up_leaves_no_gap() {
        for gone in 0..3_u32 {
            with_queue(&[0, 1, 2], |queue, waiters| {
                assert_eq!(queue.leave(&waiters[gone as usize]), Stage::Waiting);
                let left: Vec<_> = (0..3).filter(|&value| value != gone).collect();
                check_order(queue, &left);
            });
        }
    }

    #[test]
    fn a_waiter_learns_how_its_wait_ended() {
        with_queue(&[0, 1, 2], |queue, waiters| {
            assert!(queue.grant(|value| *value = 7).is_some());
            assert!(queue.dismiss().is_some());
            assert!(!waiters[2].is_decided());
            assert_eq!((waiters[0].stage(), waiters[0].with_value(|value| *value)), (Stage::Granted, 7));
            assert_eq!((waiters[1].stage(), waiters[1].with_value(|value| *value)), (Stage::Dismissed, 1));
            assert_eq!(queue.leave(&waiters[2]), Stage::Waiting);
        });
    }

    #[test]
    fn whose_claim_is_lost_is_passed_over() {
        with_queue(&[], |queue, _| {
            let claims = [Claim::new(), Claim::new()];
            let waiters = [Waiter::new(0), Waiter::new(1), Waiter::new(2)];
            claims.iter().for_each(Claim::release);
            // SAFETY: all of them are decided below.
            unsafe {
                queue.join_with(&waiters[0], park::unparker(), &claims[0]);
                queue.join_with(&waiters[1], park::unparker(), &claims[1]);
                queue.join(&waiters[2], park::unparker());
            }
            assert!(claims[0].take());
            for expected in [1, 2] {
                assert!(queue.grant(|value| assert_eq!(*value, expected)).is_some());
            }
            assert_eq!(waiters.each_ref().map(Waiter::stage), [Stage::Idle, Stage::Granted, Stage::Granted]);
            assert!(!claims[1].take());
            assert_eq!(queue.leave(&waiters[0]), Stage::Idle);
        });
    }

    #[test]
    fn a_queue_of_lost_claims_grants_nothing() {
        with_queue(&[], |queue, _| {
            let claim = Claim::new();
            let waiters = [Waiter::new(0), Waiter::new(1)];
            // SAFETY: both are put out of the queue below.
            waiters.iter().for_each(|waiter| unsafe { queue.join_with(waiter, park::unparker(), &claim) });
            assert!(!queue.is_empty());
            assert!(queue.grant(|_| unreachable!("nobody is granted anything")).is_none());
            assert!(queue.is_empty());
        });
    }

    #[test]
    fn who_looks_for_others_does_not_see_itself() {
        with_queue(&[], |queue, _| {
            let (own, other) = (Claim::new(), Claim::new());
            let waiters = [Waiter::new(0), Waiter::new(1)];
            own.release();
            other.release();
            // SAFETY: both leave below.
            unsafe { queue.join_with(&waiters[0], park::unparker(), &own) };
            assert!(!queue.has_other_than(&own));
            assert!(queue.has_other_than(&other));
            // SAFETY: as above.
            unsafe { queue.join_with(&waiters[1], park::unparker(), &other) };
            assert!(queue.has_other_than(&own));
            assert!(other.take());
            assert!(!queue.has_other_than(&own));
            waiters.iter().for_each(|waiter| assert_eq!(queue.leave(waiter), Stage::Waiting));
        });
    }

    #[test]
    fn a_waiter_may_wait_again() {
        with_queue(&[], |queue, _| {
            let waiter = Waiter::new(0);
            for round in 0..3 {
                // SAFETY: it is granted before it goes.
                unsafe { queue.join(&waiter, park::unparker()) };
                assert!(queue.grant(|value| *value += 1).is_some());
                assert_eq!(waiter.with_value(|value| *value), round + 1);
            }
        });
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::atomic::{ModelLock, model, yield_now};
    use loom::sync::Arc;
    use loom::thread;

    /// A waiter reads what it was granted without the lock; one that gives up meanwhile learns of it.
    fn beside_a_grant(end: impl Fn(&ModelLock<WaitQueue<u32>>, &Waiter<u32>) -> Stage + Send + Sync + 'static) {
        model(3, move || {
            let queue = Arc::new(ModelLock::new(WaitQueue::new()));
            let waiter = Waiter::new(0);
            // SAFETY: it has left, or is decided, when `end` returns.
            unsafe { queue.lock().join(&waiter, park::unparker()) };
            let granter = queue.clone();
            let granter = thread::spawn(move || {
                let granted = granter.lock().grant(|value| *value = 7);
                granted.is_some()
            });
            let stage = end(&queue, &waiter);
            let value = waiter.with_value(|value| *value);
            let was_granted = granter.join().expect("it ends");
            assert_eq!(was_granted, stage == Stage::Granted);
            assert_eq!(value, if was_granted { 7 } else { 0 });
        });
    }

    #[test]
    fn loom_a_waiter_finds_what_it_was_granted() {
        beside_a_grant(|_, waiter| {
            while !waiter.is_decided() {
                yield_now();
            }
            waiter.stage()
        });
    }

    #[test]
    fn loom_a_waiter_that_gives_up_learns_what_it_was_granted() {
        beside_a_grant(|queue, waiter| queue.lock().leave(waiter));
    }

    type Shared = Arc<ModelLock<WaitQueue<u32>>>;

    /// A grant beside others, in a thread of its own. It keeps what nobody took.
    fn grant(queue: &Shared, value: u32) -> thread::JoinHandle<Option<u32>> {
        let queue = queue.clone();
        thread::spawn(move || {
            let granted = queue.lock().grant(|place| *place = value);
            granted.is_none().then_some(value)
        })
    }

    /// One who waits in two queues is granted by one of them or gives up, and what is not granted to it is kept. Then
    /// whoever waits behind it is not forgotten.
    #[test]
    fn loom_a_claim_is_taken_once() {
        model(3, || {
            let queues: [Shared; 2] = std::array::from_fn(|_| Arc::new(ModelLock::new(WaitQueue::new())));
            let (claim, waiters) = (Claim::new(), [Waiter::new(0), Waiter::new(0)]);
            claim.release();
            for (queue, waiter) in queues.iter().zip(&waiters) {
                // SAFETY: each leaves below.
                unsafe { queue.lock().join_with(waiter, park::unparker(), &claim) };
            }
            let granters = [grant(&queues[0], 7), grant(&queues[1], 8)];
            let gave_up = claim.take();
            let stages = [0, 1].map(|index: usize| queues[index].lock().leave(&waiters[index]));
            let values = waiters.each_ref().map(|waiter| waiter.with_value(|value| *value));
            let kept = granters.map(|granter| granter.join().expect("it ends"));
            for (index, sent) in [7, 8].into_iter().enumerate() {
                let was_granted = stages[index] == Stage::Granted;
                assert_eq!(values[index], if was_granted { sent } else { 0 });
                assert_eq!(kept[index], (!was_granted).then_some(sent), "each value is in one place");
            }
            let grants = stages.iter().filter(|stage| **stage == Stage::Granted).count();
            assert_eq!(grants + usize::from(gave_up), 1, "one of the three has the claim");
        });
    }

    #[test]
    fn loom_who_waits_behind_a_lost_claim_is_granted() {
        model(3, || {
            let queue: Shared = Arc::new(ModelLock::new(WaitQueue::new()));
            let (claim, first, second) = (Claim::new(), Waiter::new(0), Waiter::new(0));
            claim.release();
            // SAFETY: both leave below.
            unsafe {
                queue.lock().join_with(&first, park::unparker(), &claim);
                queue.lock().join(&second, park::unparker());
            }
            let granter = grant(&queue, 7);
            let gave_up = claim.take();
            queue.lock().leave(&first);
            let kept = granter.join().expect("it ends");
            queue.lock().leave(&second);
            let values = [&first, &second].map(|waiter| waiter.with_value(|value| *value));
            assert_eq!((values, kept), (if gave_up { [0, 7] } else { [7, 0] }, None));
        });
    }
}
