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

use std::mem::MaybeUninit;

use crate::atomic::{AtomicU8, Ordering, UnsafeCell, spin_loop, yield_now};

const PENDING: u8 = 0;
const WAITING: u8 = 1;
const ENDING: u8 = 2;
const ENDED: u8 = 3;
const DETACHED: u8 = 4;

/// Looks at a job between two instructions before a yield, in case it lost its core there. A model has no instructions to
/// wait for, and must see that the other one goes on.
const SPINS_PER_YIELD: u32 = if cfg!(all(test, loom)) { 1 } else { 128 };

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
                let waiter = self.waiter.with_mut(|waiter| unsafe { (*waiter).assume_init_read() });
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
            if rounds.is_multiple_of(SPINS_PER_YIELD) { yield_now() } else { spin_loop() }
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
        self.waiter.with_mut(|place| unsafe { (*place).write(waiter) });
        match self.state.compare_exchange(PENDING, WAITING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(_) => {
                // SAFETY: it was written above, and the job, which has ended, has not seen it.
                self.waiter.with_mut(|waiter| unsafe { (*waiter).assume_init_drop() });
                false
            }
        }
    }

    /// Handle: takes that word back, if there is one. Returns false if the job has ended.
    pub(crate) fn retract(&self) -> bool {
        match self.state.compare_exchange(WAITING, PENDING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                // SAFETY: it was WAITING, and in PENDING the waiter is ours.
                self.waiter.with_mut(|waiter| unsafe { (*waiter).assume_init_drop() });
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

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::atomic::model;
    use loom::sync::{Arc, Notify};
    use loom::thread;

    /// A result behind a handshake, and whether both sides know whose it is.
    struct Packet {
        handshake: Handshake<Arc<Notify>>,
        result: UnsafeCell<Option<u32>>,
    }

    // SAFETY: what the models check: the result belongs to one side at a time.
    unsafe impl Sync for Packet {}

    impl Packet {
        fn new() -> Arc<Self> {
            Arc::new(Self { handshake: Handshake::new(false), result: UnsafeCell::new(None) })
        }

        fn put(&self, value: u32) {
            // SAFETY: loom fails if somebody else is at it.
            self.result.with_mut(|result| unsafe { *result = Some(value) });
        }

        /// Takes the result and frees everything, which nobody else may be at then.
        fn take(&self) -> Option<u32> {
            self.handshake.waiter.with_mut(|_| ());
            // SAFETY: as in `put`.
            self.result.with_mut(|result| unsafe { (*result).take() })
        }

        /// The life of a job. Returns the result if it is left with it.
        fn run(&self) -> Option<u32> {
            self.put(7);
            match self.handshake.end() {
                Ended::Silent => None,
                Ended::Waited(waiter) => {
                    waiter.notify();
                    None
                }
                Ended::Detached => self.take(),
            }
        }
    }

    fn beside_a_job(handle: impl Fn(&Packet) -> Option<u32> + Send + Sync + 'static) {
        model(3, move || {
            let packet = Packet::new();
            let job = packet.clone();
            let job = thread::spawn(move || job.run());
            let by_handle = handle(&packet);
            let by_job = job.join().expect("it ends");
            assert_eq!(by_handle.or(by_job), Some(7), "one of the two has the result");
            assert!(by_handle.is_none() || by_job.is_none(), "and the other has not");
        });
    }

    /// A bell may ring for nothing.
    fn wait(packet: &Packet, bell: &Notify) {
        while !packet.handshake.has_ended() {
            bell.wait();
        }
    }

    #[test]
    fn loom_a_join_is_woken_and_finds_the_result() {
        beside_a_job(|packet| {
            let bell = Arc::new(Notify::new());
            if packet.handshake.register(bell.clone()) {
                wait(packet, &bell);
            }
            packet.take()
        });
    }

    #[test]
    fn loom_a_join_that_gives_up_and_comes_again_finds_the_result() {
        beside_a_job(|packet| {
            if packet.handshake.register(Arc::new(Notify::new())) {
                packet.handshake.retract();
            }
            let bell = Arc::new(Notify::new());
            if packet.handshake.register(bell.clone()) {
                wait(packet, &bell);
            }
            packet.take()
        });
    }

    #[test]
    fn loom_a_handle_that_goes_leaves_the_result_to_one_side() {
        beside_a_job(|packet| if packet.handshake.detach() { None } else { packet.take() });
    }

    #[test]
    fn loom_a_handle_that_goes_while_it_waits_leaves_the_result_to_one_side() {
        beside_a_job(|packet| {
            packet.handshake.register(Arc::new(Notify::new()));
            if packet.handshake.detach() { None } else { packet.take() }
        });
    }
}
