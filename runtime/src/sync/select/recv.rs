//! To receive from a channel.

use super::{Arm, Claim, Event};
use crate::park::{Interrupt, Unparker};
use crate::sync::channel::{Channel, Receiver, RecvError, TryRecvError};
use crate::sync::wait_queue::{Stage, Waiter};

/// To receive from a channel.
pub struct Recv<'a, T> {
    channel: &'a Channel<T>,
    place: Waiter<Option<T>>,
    is_enlisted: bool,
    outcome: Option<Result<T, RecvError>>,
}

impl<'a, T> Recv<'a, T> {
    /// Makes the event.
    pub fn new(receiver: &'a Receiver<T>) -> Self {
        Self { channel: &receiver.channel, place: Waiter::new(None), is_enlisted: false, outcome: None }
    }

    /// Lets the wait end as an interrupted `recv`.
    pub fn interrupt(&mut self, why: Interrupt) {
        self.outcome = Some(Err(RecvError::Interrupted(why)));
    }
}

impl<T> Event for Recv<'_, T> {
    fn attempt(&mut self) -> bool {
        let taken = self.channel.state.lock().take();
        self.outcome = match taken {
            Ok((value, sender)) => {
                if let Some(sender) = sender {
                    sender.unpark();
                }
                Some(Ok(value))
            }
            Err(TryRecvError::Disconnected) => Some(Err(RecvError::Disconnected)),
            Err(TryRecvError::Empty) => None,
        };
        self.outcome.is_some()
    }

    unsafe fn enlist(&mut self, claim: &Claim, unparker: Unparker) -> bool {
        let mut state = self.channel.state.lock();
        if state.can_take(claim) {
            return false;
        }
        // SAFETY: by the caller's promise; and we are in no other queue, because we have left the last one.
        unsafe { state.waiting_receivers.join_with(&self.place, unparker, claim) };
        self.is_enlisted = true;
        true
    }

    fn withdraw(&mut self) -> bool {
        if !std::mem::take(&mut self.is_enlisted) {
            return false;
        }
        let stage = self.channel.state.lock().waiting_receivers.leave(&self.place);
        match stage {
            Stage::Waiting | Stage::Idle => false,
            Stage::Granted => {
                self.outcome = self.place.with_value(Option::take).map(Ok);
                true
            }
            // All senders are gone. But the last message may have come back from a receiver that was torn down.
            Stage::Dismissed => self.attempt(),
        }
    }

    fn give_back(&mut self) {
        if let Some(Ok(value)) = self.outcome.take() {
            let next = self.channel.state.lock().put_back(value);
            if let Some(next) = next {
                next.unpark();
            }
        }
    }
}

impl<T> Arm for Recv<'_, T> {
    type Outcome = Result<T, RecvError>;

    fn outcome(&mut self) -> Option<Self::Outcome> {
        self.outcome.take()
    }
}
