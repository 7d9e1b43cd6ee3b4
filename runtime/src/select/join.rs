//! The end of a dhaga, as an event of `select!`.

use crate::park::Unparker;
use crate::spawn::{JoinError, JoinHandle};
use crate::sync::select::{Arm, Claim, Event};

/// The end of a dhaga. The handle stays in its place unless the event happens; without a handle it never does.
pub struct Join<'a, T> {
    handle: &'a mut Option<JoinHandle<T>>,
    is_enlisted: bool,
    outcome: Option<Result<T, JoinError<T>>>,
}

impl<'a, T> Join<'a, T> {
    /// Makes the event.
    pub fn new(handle: &'a mut Option<JoinHandle<T>>) -> Self {
        Self { handle, is_enlisted: false, outcome: None }
    }
}

impl<T> Event for Join<'_, T> {
    fn attempt(&mut self) -> bool {
        self.outcome = self.handle.take_if(|handle| handle.is_finished()).map(JoinHandle::into_result);
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

impl<T> Arm for Join<'_, T> {
    type Outcome = Result<T, JoinError<T>>;

    fn outcome(&mut self) -> Option<Self::Outcome> {
        self.outcome.take()
    }
}
