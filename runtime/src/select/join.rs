//! The end of a dhaga, as an event of `select!`.

use crate::park::Unparker;
use crate::scope::ScopedJoinHandle;
use crate::spawn::{JoinError, JoinHandle};
use crate::sync::select::{Arm, Claim, Event};

/// What a [`select!`](crate::select!) can join: [`JoinHandle`] and [`ScopedJoinHandle`].
#[expect(private_bounds, reason = "only our own handles know the end of a dhaga")]
pub trait Joinable: Awaited {
    /// What comes of it, as from the `join` of the handle.
    type Outcome;
}

trait Awaited: Sized {
    fn is_finished(&self) -> bool;
    /// Leaves word whom to wake at the end. Returns false if it has come. Not twice without `retract`.
    fn register(&mut self, waiter: Unparker) -> bool;
    /// Takes that word back.
    fn retract(&mut self);
    /// The outcome of one that has ended.
    fn into_outcome(self) -> <Self as Joinable>::Outcome
    where
        Self: Joinable;
}

impl<T> Joinable for JoinHandle<T> {
    type Outcome = Result<T, JoinError<T>>;
}

impl<T> Awaited for JoinHandle<T> {
    fn is_finished(&self) -> bool {
        self.is_finished()
    }

    fn register(&mut self, waiter: Unparker) -> bool {
        self.register(waiter)
    }

    fn retract(&mut self) {
        self.retract();
    }

    fn into_outcome(self) -> <Self as Joinable>::Outcome {
        self.into_result()
    }
}

impl<T> Joinable for ScopedJoinHandle<'_, T> {
    type Outcome = Result<T, JoinError<()>>;
}

impl<T> Awaited for ScopedJoinHandle<'_, T> {
    fn is_finished(&self) -> bool {
        self.is_finished()
    }

    fn register(&mut self, waiter: Unparker) -> bool {
        self.register(waiter)
    }

    fn retract(&mut self) {
        self.retract();
    }

    fn into_outcome(self) -> <Self as Joinable>::Outcome {
        self.into_result()
    }
}

/// The end of a dhaga. The handle stays in its place unless the event happens; without a handle it never does.
pub struct Join<'a, H: Joinable> {
    handle: &'a mut Option<H>,
    is_enlisted: bool,
    outcome: Option<H::Outcome>,
}

impl<'a, H: Joinable> Join<'a, H> {
    /// Makes the event.
    pub fn new(handle: &'a mut Option<H>) -> Self {
        Self { handle, is_enlisted: false, outcome: None }
    }
}

impl<H: Joinable> Event for Join<'_, H> {
    fn attempt(&mut self) -> bool {
        self.outcome = self.handle.take_if(|handle| handle.is_finished()).map(Awaited::into_outcome);
        self.outcome.is_some()
    }

    unsafe fn enlist(&mut self, _: &Claim, unparker: Unparker) -> bool {
        self.is_enlisted = self.handle.as_mut().is_some_and(|handle| handle.register(unparker));
        self.is_enlisted || self.handle.is_none()
    }

    fn withdraw(&mut self) -> bool {
        if let Some(handle) = self.handle.as_mut().filter(|_| self.is_enlisted) {
            handle.retract();
        }
        self.is_enlisted = false;
        false
    }
}

impl<H: Joinable> Arm for Join<'_, H> {
    type Outcome = H::Outcome;

    fn outcome(&mut self) -> Option<Self::Outcome> {
        self.outcome.take()
    }
}
