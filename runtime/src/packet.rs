//! The one allocation of a spawn: the closure, in its place later the result, and who waits for it.
//!
//! ```text
//!   Packet:  ┌───────────────── Prefix ────────────────┬───────── payload ─────────┐
//!            │ Head (job.rs)  │ Handshake (handshake.rs)│ closure, then its Ending  │
//!            └─────────────────────────────────────────┴───────────────────────────┘
//!   Job ─────── runs the closure, once or step by step, writes the ending, says so in the handshake
//!   Handle<T> ─ reads the ending, or says in the handshake that nobody will
//! ```

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, offset_of};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::task::Poll;

use crate::ambient::Ambient;
use crate::blocks::Blocks;
use crate::context::Node;
use crate::handshake::{Ended, Handshake};
use crate::job::{Head, Home, Job, JobRef, Label, Operations, Unwound, Wish, quietly};
use crate::park::{self, Unparker};
use crate::run_queue::Address;
use crate::scheduler::worker;

/// How a dhaga ended.
pub(crate) enum Ending<T> {
    Returned(T),
    Panicked(Box<dyn Any + Send>),
    NeverRan,
    Unwound,
    /// Somebody has taken or dropped it.
    Taken,
}

impl<T> Ending<T> {
    #[inline(always)]
    fn of(result: Result<T, Box<dyn Any + Send>>) -> Self {
        match result {
            Ok(value) => Self::Returned(value),
            Err(payload) if payload.is::<Unwound>() => Self::Unwound,
            Err(payload) => Self::Panicked(payload),
        }
    }
}

/// The part that a handle knows, whatever the closure was.
#[repr(C)]
struct Prefix {
    head: Head,
    handshake: Handshake<Unparker>,
}

#[repr(C)]
struct Packet<F, T> {
    prefix: Prefix,
    payload: UnsafeCell<Payload<F, T>>,
}

/// The closure until it is executed or discarded, the ending from then on.
#[repr(C)]
union Payload<F, T> {
    closure: ManuallyDrop<F>,
    ending: ManuallyDrop<Ending<T>>,
}

impl<F: FnOnce() -> T, T> Packet<F, T> {
    const OPERATIONS: Operations = Operations { execute: Self::execute, is_stepped: false, ..Self::COMMON };

    /// As [`Operations::execute`] wants it.
    unsafe fn execute(head: NonNull<Head>) -> bool {
        // SAFETY: the caller owns the job, so the payload is ours, and is the closure; after the read it is nobody's.
        let closure = unsafe { ptr::read(&raw const (*Self::payload(head)).closure) };
        let ending = Ending::of(catch_unwind(AssertUnwindSafe(ManuallyDrop::into_inner(closure))));
        // SAFETY: the payload is still ours, and holds nothing.
        unsafe { Self::put_ending(head, ending) };
        true
    }
}

/// A closure that is called until it is ready.
impl<F: FnMut() -> Poll<T>, T> Packet<F, T> {
    const STEPS: Operations = Operations { execute: Self::step, is_stepped: true, ..Self::COMMON };

    /// As [`Operations::execute`] wants it.
    unsafe fn step(head: NonNull<Head>) -> bool {
        // SAFETY: the caller owns the job, so the payload is ours, and is the closure.
        let closure = unsafe { &mut (*Self::payload(head)).closure };
        let ending = match catch_unwind(AssertUnwindSafe(&mut **closure)) {
            Ok(Poll::Pending) => return false,
            Ok(Poll::Ready(value)) => Ending::of(Ok(value)),
            Err(payload) => Ending::of(Err(payload)),
        };
        // SAFETY: the closure is still there, and not used again: the ending takes its place.
        let drop_closure = || unsafe { ManuallyDrop::drop(closure) };
        // SAFETY: the caller owns the job, which keeps the head alive.
        quietly(unsafe { head.as_ref() }.label(), drop_closure);
        // SAFETY: the payload is still ours, and holds nothing.
        unsafe { Self::put_ending(head, ending) };
        true
    }
}

impl<F, T> Packet<F, T> {
    /// What does not depend on how the closure is run.
    const COMMON: Operations = Operations {
        execute: |_| unreachable!("each kind of closure has its own"),
        is_stepped: false,
        discard: Self::discard,
        drop_unwanted: Self::drop_unwanted,
        complete: Self::complete,
        free: Self::free,
        payload_offset: offset_of!(Self, payload),
        wake,
    };

    #[inline(always)]
    fn allocate(operations: &'static Operations, plan: Plan, is_detached: bool, closure: F) -> NonNull<Prefix> {
        let prefix = Prefix {
            head: Head::new(operations, plan.label, plan.wish, plan.ambient),
            handshake: Handshake::new(is_detached),
        };
        let payload = UnsafeCell::new(Payload { closure: ManuallyDrop::new(closure) });
        Blocks::put(blocks(), Self { prefix, payload }).cast()
    }

    /// # Safety
    ///
    /// `head` is that of a live packet of this type, whose payload is the caller's: by the job before its end, by the handle
    /// after it.
    #[inline(always)]
    unsafe fn payload(head: NonNull<Head>) -> *mut Payload<F, T> {
        // SAFETY: by the caller's promise.
        unsafe { head.cast::<Self>().as_ref() }.payload.get()
    }

    unsafe fn discard(head: NonNull<Head>) {
        // SAFETY: the caller owns the job, so the payload is ours, and is the closure; dropped where it lies, since it may be larger than this stack.
        let drop_closure = || unsafe { ManuallyDrop::drop(&mut (*Self::payload(head)).closure) };
        // SAFETY: the caller owns the job, which keeps the head alive.
        quietly(unsafe { head.as_ref() }.label(), drop_closure);
        // SAFETY: the payload is still ours, and holds nothing.
        unsafe { Self::put_ending(head, Ending::NeverRan) };
    }

    /// # Safety
    ///
    /// The payload is the caller's, and holds nothing that must be dropped.
    #[inline(always)]
    unsafe fn put_ending(head: NonNull<Head>, ending: Ending<T>) {
        // SAFETY: by the caller's promise.
        unsafe { (&raw mut (*Self::payload(head)).ending).write(ManuallyDrop::new(ending)) };
    }

    unsafe fn drop_unwanted(head: NonNull<Head>) {
        // SAFETY: the caller owns the job, which keeps the packet alive.
        let prefix = unsafe { head.cast::<Prefix>().as_ref() };
        if prefix.handshake.is_detached() {
            // SAFETY: the payload is ours before the end, and after `execute` or `discard` it is an ending.
            let ending = unsafe { take_ending::<T>(head.cast()) };
            quietly(prefix.head.label(), || drop(ending));
        }
    }

    unsafe fn complete(head: NonNull<Head>) -> bool {
        // SAFETY: the caller owns the job, which keeps the packet alive up to the end of the handshake.
        let prefix = unsafe { head.cast::<Prefix>().as_ref() };
        // Whoever it handed its cancellation down to has ended. Here and not when it is freed, where it would recurse.
        prefix.head.scope().forget_children();
        match prefix.handshake.end() {
            Ended::Silent => true,
            Ended::Waited(waiter) => {
                waiter.unpark_in_turn();
                true
            }
            Ended::Detached => {
                // SAFETY: there is no handle, so the payload is ours, and it is an ending.
                let is_taken = unsafe { matches!(*(*Self::payload(head)).ending, Ending::Taken) };
                if is_taken {
                    // SAFETY: both halves are ours, and nothing is left in the payload.
                    unsafe { Head::release_pair(head) };
                }
                is_taken
            }
        }
    }

    unsafe fn free(head: NonNull<Head>) {
        let packet = head.cast::<Self>();
        // SAFETY: `allocate` made it for this type, and nobody refers to it any more. The payload, a union, drops nothing: what
        // was in it was taken.
        unsafe {
            packet.drop_in_place();
            Blocks::free(blocks(), packet);
        }
    }
}

/// Those of the caller's worker.
#[inline(always)]
fn blocks() -> Option<&'static Blocks> {
    worker().map(|worker| &worker.blocks)
}

fn wake(home: Home) {
    // SAFETY: this is called with what `Head::settle` was given, and that comes from `Address::home`.
    park::unpark_dhaga(unsafe { Address::at_home(home) });
}

/// # Safety
///
/// The packet lives, its payload is an ending of this type, and belongs to the caller.
#[inline(always)]
unsafe fn take_ending<T>(prefix: NonNull<Prefix>) -> Ending<T> {
    // SAFETY: the payload lies at that offset of the same allocation, and an ending at the start of it.
    unsafe {
        let offset = prefix.as_ref().head.payload_offset();
        prefix.cast::<u8>().add(offset).cast::<Ending<T>>().replace(Ending::Taken)
    }
}

/// What a dhaga will be, besides its closure.
pub(crate) struct Plan {
    pub(crate) label: Label,
    pub(crate) wish: Wish,
    pub(crate) ambient: Option<Arc<Ambient>>,
}

/// The closure of a dhaga, and the handle for its result.
#[inline(always)]
pub(crate) fn pair<F, T>(plan: Plan, closure: F) -> (Job, Handle<T>)
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    // SAFETY: the job may go to any thread, because the closure and its result may.
    unsafe { pair_unchecked(plan, closure) }
}

/// As [`pair`], for a closure that stays on its thread.
///
/// # Safety
///
/// The job is run, discarded or dropped on the caller's OS thread.
#[inline(always)]
pub(crate) unsafe fn pair_unchecked<F, T>(plan: Plan, closure: F) -> (Job, Handle<T>)
where
    F: FnOnce() -> T + 'static,
    T: 'static,
{
    let prefix = Packet::<F, T>::allocate(&Packet::<F, T>::OPERATIONS, plan, false, closure);
    // SAFETY: the packet is new, and nobody else has its two halves.
    (unsafe { Job::new(prefix.cast()) }, Handle { prefix, result: PhantomData })
}

/// As [`pair`], of a closure that is called, each time it wants to be, until it is ready.
///
/// # Safety
///
/// If closure or result is not `Send`: as [`pair_unchecked`].
pub(crate) unsafe fn pair_of_steps<F, T>(plan: Plan, closure: F) -> (Job, Handle<T>)
where
    F: FnMut() -> Poll<T> + 'static,
    T: 'static,
{
    let prefix = Packet::<F, T>::allocate(&Packet::<F, T>::STEPS, plan, false, closure);
    // SAFETY: the packet is new, and nobody else has its two halves.
    (unsafe { Job::new(prefix.cast()) }, Handle { prefix, result: PhantomData })
}

/// A dhaga of a library: it has no handle and inherits nothing.
pub(crate) fn detached(label: Label, closure: impl FnOnce() + Send + 'static) -> Job {
    fn operations<F: FnOnce() + 'static>(_: &F) -> &'static Operations {
        &Packet::<F, ()>::OPERATIONS
    }

    let plan = Plan { label, wish: Wish::default(), ambient: None };
    let prefix = Packet::<_, ()>::allocate(operations(&closure), plan, true, closure);
    // SAFETY: the packet is new, and nobody has its job.
    unsafe { Job::new(prefix.cast()) }
}

/// The right to a dhaga's result. To drop it detaches the dhaga.
pub(crate) struct Handle<T> {
    prefix: NonNull<Prefix>,
    result: PhantomData<T>,
}

// SAFETY: what it gives away is a `T`. The rest is the head and the handshake, which are for all threads.
unsafe impl<T: Send> Send for Handle<T> {}
// SAFETY: a shared handle gives no access to the `T`.
unsafe impl<T> Sync for Handle<T> {}

impl<T> Handle<T> {
    #[inline(always)]
    fn prefix(&self) -> &Prefix {
        // SAFETY: the handle's half of the pair keeps it alive.
        unsafe { self.prefix.as_ref() }
    }

    pub(crate) fn head(&self) -> &Head {
        &self.prefix().head
    }

    /// A counted reference, which outlives the handle.
    pub(crate) fn reference(&self) -> JobRef {
        // SAFETY: the handle's half of the pair keeps it alive.
        unsafe { Head::reference(self.prefix.cast()) }
    }

    #[inline(always)]
    pub(crate) fn has_ended(&self) -> bool {
        self.prefix().handshake.has_ended()
    }

    /// Leaves word whom to wake at the end. Returns false if it has ended. Not twice without [`Handle::retract`].
    pub(crate) fn register(&mut self, waiter: Unparker) -> bool {
        self.prefix().handshake.register(waiter)
    }

    /// Takes that word back.
    pub(crate) fn retract(&mut self) {
        self.prefix().handshake.retract();
    }

    /// Takes the ending.
    ///
    /// # Panics
    ///
    /// When it has not ended.
    #[inline(always)]
    pub(crate) fn take(self) -> Ending<T> {
        assert!(self.has_ended(), "the ending of a dhaga is taken after its end");
        let this = ManuallyDrop::new(self);
        // SAFETY: after the end the payload is the handle's, and with it the whole pair; `this` is not used again.
        unsafe {
            let ending = take_ending(this.prefix);
            Head::release_pair(this.prefix.cast());
            ending
        }
    }
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        if !self.prefix().handshake.detach() {
            // SAFETY: as in `take`; a value that is dropped is not used again.
            let ending = unsafe { take_ending::<T>(self.prefix) };
            // SAFETY: as above. First, because the `Drop` of the result may panic.
            unsafe { Head::release_pair(self.prefix.cast()) };
            drop(ending);
        }
    }
}

/// What a spawn allocates besides the closure: small, because a million parked dhagas have it each.
#[cfg(not(all(test, loom)))]
const _: () = assert!(size_of::<Prefix>() <= 104);
