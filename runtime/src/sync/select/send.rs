//! To send to a channel.

use super::{Arm, Claim, Event};
use crate::park::{Interrupt, Unparker};
use crate::sync::channel::{Channel, SendError, Sender, TrySendError};
use crate::sync::wait_queue::{Stage, Waiter};

/// To send to a channel. The message stays in its place unless the event happens; without a message it never does.
pub struct Send<'a, T> {
    channel: &'a Channel<T>,
    message: &'a mut Option<T>,
    place: Waiter<Option<T>>,
    is_enlisted: bool,
    outcome: Option<Result<(), SendError<T>>>,
}

impl<'a, T> Send<'a, T> {
    /// Makes the event.
    pub fn new(sender: &'a Sender<T>, message: &'a mut Option<T>) -> Self {
        Self { channel: &sender.channel, message, place: Waiter::new(None), is_enlisted: false, outcome: None }
    }

    /// Lets the wait end as an interrupted `send`, which gives the message back.
    pub fn interrupt(&mut self, why: Interrupt) {
        self.outcome = self.message.take().map(|message| Err(SendError::Interrupted(message, why)));
    }
}

impl<T> Event for Send<'_, T> {
    fn attempt(&mut self) -> bool {
        let Some(message) = self.message.take() else {
            return false;
        };
        let offered = self.channel.state.lock().offer(message);
        self.outcome = match offered {
            Ok(receiver) => {
                if let Some(receiver) = receiver {
                    receiver.unpark();
                }
                Some(Ok(()))
            }
            Err(TrySendError::Disconnected(message)) => Some(Err(SendError::Disconnected(message))),
            Err(TrySendError::Full(message)) => {
                *self.message = Some(message);
                None
            }
        };
        self.outcome.is_some()
    }

    unsafe fn enlist(&mut self, claim: &Claim, unparker: Unparker) -> bool {
        if self.message.is_none() {
            return true;
        }
        let mut state = self.channel.state.lock();
        if state.can_offer(claim) {
            return false;
        }
        self.place.with_value(|place| *place = self.message.take());
        // SAFETY: by the caller's promise; and we are in no other queue, because we have left the last one.
        unsafe { state.waiting_senders.join_with(&self.place, unparker, claim) };
        self.is_enlisted = true;
        true
    }

    fn withdraw(&mut self) -> bool {
        if !std::mem::take(&mut self.is_enlisted) {
            return false;
        }
        let stage = self.channel.state.lock().waiting_senders.leave(&self.place);
        let message = self.place.with_value(Option::take);
        match (stage, message) {
            (Stage::Granted, _) => self.outcome = Some(Ok(())),
            (Stage::Dismissed, Some(message)) => self.outcome = Some(Err(SendError::Disconnected(message))),
            (_, message) => *self.message = message,
        }
        self.outcome.is_some()
    }
}

impl<T> Arm for Send<'_, T> {
    type Outcome = Result<(), SendError<T>>;

    fn outcome(&mut self) -> Option<Self::Outcome> {
        self.outcome.take()
    }
}
