//! Who comes last: one word between the job that ends and the handle that waits for it.
//!
//! ```text
//!                       ┌──── retract ─────┐
//!                       ▼                  │
//!               ┌──▶ PENDING ──register──▶ WAITING ──end──▶ ENDING ──▶ ENDED
//!    (spawned) ─┘       │  └─────────end──────────────────────────────▶ ENDED
//!                       └── detach ──▶ DETACHED
//! ```
//!
//! The result is written before ENDED and read after it. Whoever makes the second of the two last steps, ENDED and
//! DETACHED (or the take after ENDED), owns the whole allocation. In the usual case, where the handle looks after the
//! end, this costs one locked instruction in all.

use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU8, Ordering};

const PENDING: u8 = 0;
const WAITING: u8 = 1;
const ENDING: u8 = 2;
const ENDED: u8 = 3;
const DETACHED: u8 = 4;

/// The word, and whom to wake.
pub(crate) struct Handshake<W> {
    state: AtomicU8,
    /// Initialised while the state is WAITING. Belongs to the handle in PENDING, to the job in ENDING.
    waiter: UnsafeCell<MaybeUninit<W>>,
}

// SAFETY: the waiter belongs to one side at a time, which the state says, and goes from one to the other by an exchange
// that acquires and releases.
unsafe impl<W: Send> Sync for Handshake<W> {}

/// What the end of a job found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended<W> {
    /// The handle will come and look.
    Silent,
    /// The handle waits.
    Waited(W),
    /// There is no handle any more: the job owns everything.
    Detached,
}

impl<W> Handshake<W> {
    pub(crate) fn new(is_detached: bool) -> Self {
        let state = AtomicU8::new(if is_detached { DETACHED } else { PENDING });
        Self { state, waiter: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// Job: whether the handle is gone already.
    #[inline(always)]
    pub(crate) fn is_detached(&self) -> bool {
        self.state.load(Ordering::Acquire) == DETACHED
    }

    /// Job: the result is written. Unless this says `Detached`, nothing of the allocation may be touched after it.
    #[inline(always)]
    pub(crate) fn end(&self) -> Ended<W> {
        if self.is_detached() {
            return Ended::Detached;
        }
        match self.state.compare_exchange(PENDING, ENDED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ended::Silent,
            Err(_) => self.end_slowly(),
        }
    }

    #[inline(never)]
    fn end_slowly(&self) -> Ended<W> {
        loop {
            if self.state.compare_exchange(WAITING, ENDING, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                // SAFETY: it was WAITING, so the waiter is there, and in ENDING it is ours.
                let waiter = unsafe { (*self.waiter.get()).assume_init_read() };
                self.state.store(ENDED, Ordering::Release);
                return Ended::Waited(waiter);
            }
            // It gave up waiting meanwhile, and may be about to wait again or to go.
            match self.state.compare_exchange(PENDING, ENDED, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ended::Silent,
                Err(DETACHED) => return Ended::Detached,
                Err(_) => {}
            }
        }
    }

    /// Handle: whether the result is there.
    #[inline(always)]
    pub(crate) fn has_ended(&self) -> bool {
        match self.state.load(Ordering::Acquire) {
            ENDED => true,
            ENDING => self.await_end(),
            _ => false,
        }
    }

    /// Handle: the other side is between two instructions.
    #[cold]
    fn await_end(&self) -> bool {
        let mut rounds = 0_u32;
        while self.state.load(Ordering::Acquire) == ENDING {
            rounds += 1;
            if rounds.is_multiple_of(128) { std::thread::yield_now() } else { spin_loop() }
        }
        true
    }

    /// Handle: leaves word whom to wake. Returns false if the job has ended, and then nobody is woken. Only while no
    /// other waiter is registered.
    pub(crate) fn register(&self, waiter: W) -> bool {
        if self.has_ended() {
            return false;
        }
        // SAFETY: the state is PENDING, since only the handle makes it WAITING or DETACHED; so the waiter is ours.
        unsafe { (*self.waiter.get()).write(waiter) };
        match self.state.compare_exchange(PENDING, WAITING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(_) => {
                // SAFETY: it was written above, and the job, which has ended, has not seen it.
                unsafe { (*self.waiter.get()).assume_init_drop() };
                false
            }
        }
    }

    /// Handle: takes that word back, if there is one. Returns false if the job has ended.
    pub(crate) fn retract(&self) -> bool {
        match self.state.compare_exchange(WAITING, PENDING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                // SAFETY: it was WAITING, and in PENDING the waiter is ours.
                unsafe { (*self.waiter.get()).assume_init_drop() };
                true
            }
            Err(_) => !self.has_ended(),
        }
    }

    /// Handle: goes away. Returns false if the job has ended: then the handle owns everything. Otherwise nothing of the
    /// allocation may be touched after it.
    pub(crate) fn detach(&self) -> bool {
        self.retract() && self.state.compare_exchange(PENDING, DETACHED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}
