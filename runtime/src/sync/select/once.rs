//! To receive from a oneshot.

use super::{Arm, Claim, Event};
use crate::park::{Interrupt, Unparker};
use crate::sync::oneshot::{Receiver, RecvError, TryRecvError};

/// To receive from a oneshot.
pub struct Once<'a, T> {
    receiver: &'a mut Receiver<T>,
    outcome: Option<Result<T, RecvError>>,
}

impl<'a, T> Once<'a, T> {
    /// Makes the event.
    pub fn new(receiver: &'a mut Receiver<T>) -> Self {
        Self { receiver, outcome: None }
    }

    /// Lets the wait end as an interrupted `recv`.
    pub fn interrupt(&mut self, why: Interrupt) {
        self.outcome = Some(Err(RecvError::Interrupted(why)));
    }
}

impl<T> Event for Once<'_, T> {
    fn attempt(&mut self) -> bool {
        self.outcome = match self.receiver.try_recv() {
            Ok(value) => Some(Ok(value)),
            Err(TryRecvError::Disconnected) => Some(Err(RecvError::Disconnected)),
            Err(TryRecvError::Empty) => None,
        };
        self.outcome.is_some()
    }

    unsafe fn enlist(&mut self, _: &Claim, unparker: Unparker) -> bool {
        self.receiver.await_message(unparker)
    }

    /// The note stays: to be woken without need harms nobody.
    fn withdraw(&mut self) -> bool {
        false
    }
}

impl<T> Arm for Once<'_, T> {
    type Outcome = Result<T, RecvError>;

    fn outcome(&mut self) -> Option<Self::Outcome> {
        self.outcome.take()
    }
}
