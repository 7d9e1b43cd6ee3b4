//! Messages from many to many, each received once.
//!
//! ```text
//!   senders that wait,        buffer,            receivers that wait,
//!   each with its message     up to capacity     each with an empty place
//!   [e] [f] ───────────────>  [b] [c] [d]
//!                                                [ ] [ ]  <─── the next message
//! ```
//!
//! Whoever comes second does the work of both, under one short lock: a sender puts its message into the
//! place of the first receiver that waits; a receiver, as it takes from the buffer, moves the message of the
//! first sender that waits to the end of it. So a waiter is woken when its wait is over and not before,
//! order is strict, nobody overtakes, and one message wakes one waiter. At most one of the two sides waits:
//! senders only while the buffer is full, receivers only while it is empty. One who waits for several things
//! at once, in a `select!`, may stand in either queue and yet take nothing any more; it is passed over.
//!
//! A message is always in one of these three places and belongs to the channel, save that a waiting
//! sender may take its own back. If a receiver is torn down with a message in its place, the message goes to
//! the next receiver or back to the front.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use super::error::{RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError};
use super::short_lock::{ShortGuard, ShortLock};
use super::wait_queue::{
    Claim, Stage, Stopped, WaitQueue, Waiter, check_scope, check_unwinding, park_until_decided, unpark_each,
};
use crate::around;
use crate::park::{self, Unparker, WaitReason};

/// A channel that holds up to `capacity` messages; when it is full, senders wait. With a capacity of
/// 0 it is a [`rendezvous`].
///
/// # Examples
///
/// ```
/// let (sender, receiver) = dhaga::sync::channel::bounded(8);
/// dhaga::spawn(move || {
///     for number in 1..=100 {
///         sender.send(number)?;
///     }
///     Ok::<(), dhaga::sync::channel::SendError<u64>>(())
/// });
/// assert_eq!(receiver.iter().sum::<u64>(), 5050);
/// ```
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let state = State {
        capacity,
        buffer: VecDeque::new(),
        waiting_senders: WaitQueue::new(),
        waiting_receivers: WaitQueue::new(),
        senders: 1,
        receivers: 1,
    };
    let channel = Arc::new(Channel { state: ShortLock::new(state) });
    let sender = Sender { channel: channel.clone() };
    (sender, Receiver { channel })
}

/// A channel whose senders never wait. It grows as long as memory lasts: prefer [`bounded`] wherever
/// the sender can be faster than the receiver.
pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    bounded(UNBOUNDED)
}

/// A channel that holds nothing: each sender waits for a receiver to take its message.
pub fn rendezvous<T>() -> (Sender<T>, Receiver<T>) {
    bounded(0)
}

/// More messages than memory can hold.
const UNBOUNDED: usize = usize::MAX;

/// The sending side of a channel. Clone it for each sender.
///
/// When the last one is dropped, receivers get what is left, and then `Disconnected`.
pub struct Sender<T> {
    pub(super) channel: Arc<Channel<T>>,
}

/// The receiving side of a channel. Clone it for several receivers; each message goes to one of them.
///
/// When the last one is dropped, messages that are left are dropped too, and senders get
/// `Disconnected`.
pub struct Receiver<T> {
    pub(super) channel: Arc<Channel<T>>,
}

impl<T> Sender<T> {
    /// Sends a message. Suspends while the channel is full, in a rendezvous until a receiver takes
    /// the message.
    ///
    /// # Errors
    ///
    /// If all receivers are gone, or the scope is cancelled or out of time. The message is inside.
    #[inline(always)]
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        let sent = self.channel.send(value, || None);
        sent.map_err(SendTimeoutError::without_timeout)
    }

    /// Sends a message if there is room. Never suspends.
    ///
    /// # Errors
    ///
    /// If there is no room, or all receivers are gone. The message is inside.
    #[inline]
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        let receiver = self.channel.state.lock().offer(value)?;
        if let Some(receiver) = receiver {
            receiver.unpark();
        }
        Ok(())
    }

    /// Sends a message. Suspends as [`send`](Self::send) does, for `timeout` at most.
    ///
    /// # Errors
    ///
    /// If the time is over, all receivers are gone, or the scope is cancelled or out of time. The
    /// message is inside, and nobody has received it.
    pub fn send_timeout(&self, value: T, timeout: Duration) -> Result<(), SendTimeoutError<T>> {
        self.channel.send(value, || around::after(timeout))
    }

    /// How many messages the channel holds.
    pub fn len(&self) -> usize {
        self.channel.len()
    }

    /// Whether the channel holds no message.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many messages the channel can hold; `None` if there is no limit.
    pub fn capacity(&self) -> Option<usize> {
        self.channel.capacity()
    }

    /// Whether all receivers are gone.
    pub fn is_disconnected(&self) -> bool {
        self.channel.state.lock().receivers == 0
    }
}

impl<T> Receiver<T> {
    /// Receives a message. Suspends until there is one.
    ///
    /// # Errors
    ///
    /// If all senders are gone and nothing is left, or the scope is cancelled or out of time.
    #[inline(always)]
    pub fn recv(&self) -> Result<T, RecvError> {
        let received = self.channel.recv(|| None);
        received.map_err(RecvTimeoutError::without_timeout)
    }

    /// Receives a message if there is one. Never suspends.
    ///
    /// # Errors
    ///
    /// If there is none now, or all senders are gone and nothing is left.
    #[inline]
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        let (value, sender) = self.channel.state.lock().take()?;
        if let Some(sender) = sender {
            sender.unpark();
        }
        Ok(value)
    }

    /// Receives a message. Suspends until there is one, for `timeout` at most.
    ///
    /// # Errors
    ///
    /// If the time is over, all senders are gone and nothing is left, or the scope is cancelled or
    /// out of time.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.channel.recv(|| around::after(timeout))
    }

    /// Receives a message. Suspends until there is one or the deadline passes.
    ///
    /// # Errors
    ///
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_deadline(&self, deadline: Instant) -> Result<T, RecvTimeoutError> {
        self.channel.recv(|| Some(deadline))
    }

    /// All messages to come: it suspends for each, and ends when all senders are gone, or when the
    /// scope is cancelled or out of time.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter { receiver: self }
    }

    /// The messages that are there already. Never suspends.
    pub fn try_iter(&self) -> TryIter<'_, T> {
        TryIter { receiver: self }
    }

    /// How many messages the channel holds.
    pub fn len(&self) -> usize {
        self.channel.len()
    }

    /// Whether the channel holds no message.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many messages the channel can hold; `None` if there is no limit.
    pub fn capacity(&self) -> Option<usize> {
        self.channel.capacity()
    }
}

pub(super) struct Channel<T> {
    pub(super) state: ShortLock<State<T>>,
}

pub(super) struct State<T> {
    capacity: usize,
    buffer: VecDeque<T>,
    /// Each with the message it wants to send; a granted one's was taken.
    pub(super) waiting_senders: WaitQueue<Option<T>>,
    /// Each with room for a message; a granted one's is there.
    pub(super) waiting_receivers: WaitQueue<Option<T>>,
    senders: usize,
    receivers: usize,
}

impl<T> State<T> {
    /// Gives a message to the first receiver that waits, which is to be unparked, or to the buffer.
    #[inline(always)]
    pub(super) fn offer(&mut self, value: T) -> Result<Option<Unparker>, TrySendError<T>> {
        if let Some(receiver) = self.waiting_receivers.next() {
            return Ok(Some(receiver.grant(|place| *place = Some(value))));
        }
        self.keep(value).map(|()| None)
    }

    /// Puts a message into the buffer, if there is room.
    #[inline(always)]
    fn keep(&mut self, value: T) -> Result<(), TrySendError<T>> {
        if self.receivers == 0 {
            return Err(TrySendError::Disconnected(value));
        }
        if self.buffer.len() >= self.capacity {
            return Err(TrySendError::Full(value));
        }
        self.buffer.push_back(value);
        Ok(())
    }

    /// Takes a message; the room goes to the first sender that waits, which is to be unparked.
    #[inline(always)]
    pub(super) fn take(&mut self) -> Result<(T, Option<Unparker>), TryRecvError> {
        if self.waiting_senders.is_empty() {
            return self.take_kept();
        }
        self.take_and_refill()
    }

    #[inline(always)]
    fn take_kept(&mut self) -> Result<(T, Option<Unparker>), TryRecvError> {
        match self.buffer.pop_front() {
            Some(value) => Ok((value, None)),
            None if self.senders == 0 => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }

    fn take_and_refill(&mut self) -> Result<(T, Option<Unparker>), TryRecvError> {
        // A message that came back makes the buffer longer than it may be: then there is no room yet.
        if self.buffer.len() > self.capacity {
            return self.take_kept();
        }
        let Some(sender) = self.waiting_senders.next() else {
            return self.take_kept();
        };
        let mut message = None;
        let sender = sender.grant(|place| message = place.take());
        let message = message.expect("a sender waits, and has a message");
        match self.buffer.pop_front() {
            Some(value) => {
                self.buffer.push_back(message);
                Ok((value, Some(sender)))
            }
            None => Ok((message, Some(sender))),
        }
    }

    /// Takes a message back from a receiver that cannot use it.
    pub(super) fn put_back(&mut self, value: T) -> Option<Unparker> {
        if let Some(receiver) = self.waiting_receivers.next() {
            return Some(receiver.grant(|place| *place = Some(value)));
        }
        self.buffer.push_front(value);
        None
    }

    /// Whether `take` has something to say to the owner of `own`, who may wait at the other end as well.
    pub(super) fn can_take(&self, own: &Claim) -> bool {
        !self.buffer.is_empty() || self.senders == 0 || self.waiting_senders.has_other_than(own)
    }

    /// Whether `offer` has something to say to the owner of `own`, who may wait at the other end as well.
    pub(super) fn can_offer(&self, own: &Claim) -> bool {
        self.buffer.len() < self.capacity || self.receivers == 0 || self.waiting_receivers.has_other_than(own)
    }
}

impl<T> Channel<T> {
    #[inline(always)]
    fn send(&self, value: T, deadline: impl FnOnce() -> Option<Instant>) -> Result<(), SendTimeoutError<T>> {
        if let Err(interrupt) = check_scope() {
            return Err(SendTimeoutError::Interrupted(value, interrupt));
        }
        let mut state = self.state.lock();
        let receiver = match state.offer(value) {
            Ok(receiver) => receiver,
            Err(TrySendError::Full(value)) => return self.wait_for_room(state, value, deadline),
            Err(TrySendError::Disconnected(value)) => {
                return Err(SendTimeoutError::Disconnected(value));
            }
        };
        drop(state);
        if let Some(receiver) = receiver {
            receiver.unpark();
        }
        Ok(())
    }

    #[inline(always)]
    fn recv(&self, deadline: impl FnOnce() -> Option<Instant>) -> Result<T, RecvTimeoutError> {
        check_scope().map_err(RecvTimeoutError::Interrupted)?;
        let mut state = self.state.lock();
        let (value, sender) = match state.take() {
            Ok(taken) => taken,
            Err(TryRecvError::Empty) => return self.wait_for_message(state, deadline),
            Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
        };
        drop(state);
        if let Some(sender) = sender {
            sender.unpark();
        }
        Ok(value)
    }

    #[inline(always)]
    fn wait_for_room(
        &self,
        mut state: ShortGuard<'_, State<T>>,
        value: T,
        deadline: impl FnOnce() -> Option<Instant>,
    ) -> Result<(), SendTimeoutError<T>> {
        if let Err(interrupt) = check_unwinding() {
            return Err(SendTimeoutError::Interrupted(value, interrupt));
        }
        let waiter = Waiter::new(Some(value));
        // SAFETY: `waiting` leaves the queue before `waiter` goes, unless it is decided.
        unsafe { state.waiting_senders.join(&waiter, park::unparker()) };
        drop(state);
        let waiting = WaitingSender { channel: self, waiter: &waiter };
        let stopped = park_until_decided(&waiter, WaitReason::Send, deadline());
        waiting.end(stopped)
    }

    #[inline(always)]
    fn wait_for_message(
        &self,
        mut state: ShortGuard<'_, State<T>>,
        deadline: impl FnOnce() -> Option<Instant>,
    ) -> Result<T, RecvTimeoutError> {
        check_unwinding().map_err(RecvTimeoutError::Interrupted)?;
        let waiter = Waiter::new(None);
        // SAFETY: `waiting` leaves the queue before `waiter` goes, unless it is decided.
        unsafe { state.waiting_receivers.join(&waiter, park::unparker()) };
        drop(state);
        let waiting = WaitingReceiver { channel: self, waiter: &waiter };
        let stopped = park_until_decided(&waiter, WaitReason::Recv, deadline());
        waiting.end(stopped)
    }

    fn len(&self) -> usize {
        self.state.lock().buffer.len()
    }

    fn capacity(&self) -> Option<usize> {
        let capacity = self.state.lock().capacity;
        (capacity != UNBOUNDED).then_some(capacity)
    }
}

/// The place of a sender. If it is dropped by an unwinding, so is the message.
struct WaitingSender<'a, T> {
    channel: &'a Channel<T>,
    waiter: &'a Waiter<Option<T>>,
}

impl<T> WaitingSender<'_, T> {
    /// Ends the wait: it is decided, or has stopped for another reason.
    #[inline(always)]
    fn end(self, stopped: Option<Stopped>) -> Result<(), SendTimeoutError<T>> {
        if stopped.is_some() {
            self.channel.state.lock().waiting_senders.leave(self.waiter);
        }
        let waiter = self.waiter;
        std::mem::forget(self);
        let Some(value) = waiter.with_value(Option::take) else {
            return Ok(());
        };
        Err(match stopped {
            Some(Stopped::Interrupted(interrupt)) if waiter.stage() == Stage::Idle => {
                SendTimeoutError::Interrupted(value, interrupt)
            }
            Some(Stopped::TimedOut) if waiter.stage() == Stage::Idle => SendTimeoutError::Timeout(value),
            _ => SendTimeoutError::Disconnected(value),
        })
    }
}

impl<T> Drop for WaitingSender<'_, T> {
    fn drop(&mut self) {
        // The message goes with its waiter, after the lock: its own drop may use this channel.
        self.channel.state.lock().waiting_senders.leave(self.waiter);
    }
}

/// The place of a receiver. If it is dropped by an unwinding, a message in it goes back.
struct WaitingReceiver<'a, T> {
    channel: &'a Channel<T>,
    waiter: &'a Waiter<Option<T>>,
}

impl<T> WaitingReceiver<'_, T> {
    /// Ends the wait: it is decided, or has stopped for another reason.
    #[inline(always)]
    fn end(self, stopped: Option<Stopped>) -> Result<T, RecvTimeoutError> {
        if stopped.is_some() {
            self.channel.state.lock().waiting_receivers.leave(self.waiter);
        }
        let (channel, waiter) = (self.channel, self.waiter);
        std::mem::forget(self);
        match waiter.with_value(Option::take) {
            Some(value) => Ok(value),
            None => channel.received_nothing(waiter.stage(), stopped),
        }
    }
}

impl<T> Channel<T> {
    #[cold]
    fn received_nothing(&self, stage: Stage, stopped: Option<Stopped>) -> Result<T, RecvTimeoutError> {
        match stopped {
            Some(Stopped::Interrupted(why)) if stage == Stage::Idle => Err(RecvTimeoutError::Interrupted(why)),
            Some(Stopped::TimedOut) if stage == Stage::Idle => Err(RecvTimeoutError::Timeout),
            // It was dismissed; but the last message may have come back from a receiver that was torn down.
            _ => self.state.lock().take().map(|(value, _)| value).map_err(|_| RecvTimeoutError::Disconnected),
        }
    }
}

impl<T> Drop for WaitingReceiver<'_, T> {
    fn drop(&mut self) {
        let mut state = self.channel.state.lock();
        state.waiting_receivers.leave(self.waiter);
        let message = self.waiter.with_value(Option::take);
        let next = message.and_then(|value| state.put_back(value));
        drop(state);
        if let Some(next) = next {
            next.unpark();
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.channel.state.lock().senders += 1;
        Sender { channel: self.channel.clone() }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.channel.state.lock().receivers += 1;
        Receiver { channel: self.channel.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.channel.state.lock();
        state.senders -= 1;
        let last = state.senders == 0;
        drop(state);
        if last {
            unpark_each(|| self.channel.state.lock().waiting_receivers.dismiss());
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.channel.state.lock();
        state.receivers -= 1;
        if state.receivers > 0 {
            return;
        }
        let left = std::mem::take(&mut state.buffer);
        drop(state);
        unpark_each(|| self.channel.state.lock().waiting_senders.dismiss());
        // Only now, after the lock: a message's own drop may use this channel.
        drop(left);
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

/// All messages to come; made by [`Receiver::iter`].
#[derive(Debug)]
pub struct Iter<'a, T> {
    receiver: &'a Receiver<T>,
}

/// The messages that are there; made by [`Receiver::try_iter`].
#[derive(Debug)]
pub struct TryIter<'a, T> {
    receiver: &'a Receiver<T>,
}

/// All messages to come, with the receiver inside.
#[derive(Debug)]
pub struct IntoIter<T> {
    receiver: Receiver<T>,
}

impl<T> Iterator for Iter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.receiver.recv().ok()
    }
}

impl<T> Iterator for TryIter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.receiver.try_recv().ok()
    }
}

impl<T> Iterator for IntoIter<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.receiver.recv().ok()
    }
}

impl<'a, T> IntoIterator for &'a Receiver<T> {
    type Item = T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

impl<T> IntoIterator for Receiver<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    fn into_iter(self) -> IntoIter<T> {
        IntoIter { receiver: self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait<'a, T>(receiver: &'a Receiver<T>, waiter: &'a Waiter<Option<T>>) -> WaitingReceiver<'a, T> {
        let channel = &*receiver.channel;
        // SAFETY: the caller ends or drops what is returned before the waiter.
        unsafe { channel.state.lock().waiting_receivers.join(waiter, park::unparker()) };
        WaitingReceiver { channel, waiter }
    }

    #[test]
    fn the_message_of_a_receiver_that_is_torn_down_goes_to_the_next() {
        let (sender, receiver) = rendezvous();
        let waiters = [Waiter::new(None), Waiter::new(None)];
        let (first, second) = (wait(&receiver, &waiters[0]), wait(&receiver, &waiters[1]));
        assert_eq!(sender.try_send(1), Ok(()));
        drop(first);
        assert!(waiters[1].is_decided());
        assert_eq!(second.end(None), Ok(1));
    }

    #[test]
    fn the_message_of_the_only_receiver_that_is_torn_down_goes_back_to_the_front() {
        let (sender, receiver) = bounded(1);
        let waiter = Waiter::new(None);
        let torn_down = wait(&receiver, &waiter);
        assert_eq!((sender.try_send(1), sender.try_send(2)), (Ok(()), Ok(())));
        drop(torn_down);
        assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
        assert!(receiver.try_iter().eq([1, 2]));
    }

    #[test]
    fn a_sender_that_is_torn_down_takes_its_message_along() {
        let (sender, receiver) = rendezvous();
        let channel = &*sender.channel;
        let waiter = Waiter::new(Some(1));
        // SAFETY: it leaves at the end of the next line.
        unsafe { channel.state.lock().waiting_senders.join(&waiter, park::unparker()) };
        drop(WaitingSender { channel, waiter: &waiter });
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    }
}
