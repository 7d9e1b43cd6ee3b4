//! What a future leaves with a source or a timer: its waker, and whether that is ours.
//!
//! ```text
//!   event ──▶ a waker of block_on: woken at once, it only pushes ──▶ its dhaga is ready, on its own worker
//!        └──▶ any other, as of FuturesUnordered or tokio: foreign code ──▶ a dhaga that wakes it
//! ```

use std::panic::Location;
use std::ptr;
use std::sync::{Arc, OnceLock};
use std::task::{RawWakerVTable, Waker};

use super::Signal;
use crate::blocking;
use crate::reactor::{FutureWaker, OnReady, WakerRef};
use crate::relay::Relay;
use crate::scheduler::worker;
use crate::spawn::detached;

/// What all wakers of `block_on` have in common, and no others: if a linker were to fold the equal tables of two types into one,
/// their functions would be equal, too.
static OWN: OnceLock<&'static RawWakerVTable> = OnceLock::new();

/// The waker of a `block_on`. Out of line, and so made in one place: the address of a table that the compiler makes in
/// several is not the same in all.
#[inline(never)]
pub(super) fn own_waker(signal: Arc<Signal>) -> Waker {
    let waker = Waker::from(signal);
    OWN.get_or_init(|| waker.vtable());
    waker
}

/// A wrong "no" would only be slower.
#[inline]
fn is_own(waker: &Waker) -> bool {
    OWN.get().is_some_and(|own| ptr::eq(*own, waker.vtable()))
}

/// The waker of a future's latest poll, as far as it is to be kept between polls.
#[derive(Default)]
pub(crate) struct Word(Option<Arc<Foreign>>);

impl Word {
    /// Says whom to wake for a poll with `waker`.
    #[inline]
    pub(crate) fn left<R>(&mut self, waker: &Waker, leave: impl FnOnce(WakerRef<'_>) -> R) -> R {
        if is_own(waker) { leave(WakerRef::Own(waker)) } else { self.left_by_foreign(waker, leave) }
    }

    #[inline(never)]
    fn left_by_foreign<R>(&mut self, waker: &Waker, leave: impl FnOnce(WakerRef<'_>) -> R) -> R {
        let foreign = match &self.0 {
            Some(foreign) => {
                foreign.0.redirect(waker);
                foreign
            }
            None => self.0.insert(Arc::new(Foreign(Relay::new(waker)))),
        };
        let foreign: Arc<dyn OnReady> = foreign.clone();
        leave(WakerRef::Foreign(&foreign))
    }
}

/// Wakes what was left, on the stack of the caller, who is not a worker's own context.
pub(crate) fn wake(waker: FutureWaker) {
    match waker {
        FutureWaker::Own(waker) => waker.wake(),
        FutureWaker::Foreign(waker) => waker.on_ready(),
    }
}

/// A waker that is somebody else's code.
struct Foreign(Relay);

impl OnReady for Foreign {
    fn on_ready(self: Arc<Self>) {
        match worker() {
            Some(worker) if worker.current().is_none() => {
                let wake = detached(Location::caller(), move || self.0.wake());
                // A worker that stops runs nothing new. Whoever waits would do so for ever if the wake were lost, and there are
                // no more of them than sources and timers.
                if worker.is_stopping() { blocking::submit_at_any_rate(wake) } else { worker.push_at_any_rate(wake) }
            }
            _ => self.0.wake(),
        }
    }
}
