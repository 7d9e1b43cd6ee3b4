//! Messages from many to many, each received by everybody.
//!
//! ```text
//!              oldest                    next to be sent
//!                │                         │
//!   messages:   [b]──[c]──[d]──[e]         ┆        up to `capacity`
//!                │         │               │
//!   receivers:   2         1               3        how many stand where; those at the end wait, or could
//! ```
//!
//! A receiver is a place in the row of messages, and the channel knows how many stand at each. So a message goes as soon as
//! nobody stands at it or before it. A sender never waits: when the channel is full the oldest message goes all the same, and
//! who stood there stands at the next one, and is told by `Lagged` how many it lost.
//!
//! Messages are cloned and dropped outside the lock, since that is foreign code; so several receivers may clone a message at
//! the same time, and to go between threads it must be `Sync`. The last to receive a message gets it without a clone.
//!
//! # Examples
//!
//! ```
//! use dhaga::sync::broadcast;
//!
//! let (sender, mut first) = broadcast::channel(16);
//! let mut second = sender.subscribe();
//! assert_eq!(sender.send("hello"), Ok(2));
//! assert_eq!(first.recv()?, "hello");
//! assert_eq!(second.recv()?, "hello");
//! # Ok::<(), broadcast::RecvError>(())
//! ```

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
pub use std::sync::mpsc::SendError;
use std::time::{Duration, Instant};

use super::error::{NO_SENDER, NO_TIMEOUT};
use super::short_lock::ShortLock;
use super::wait_queue::{Stopped, WaitQueue, check_scope, check_unwinding, unpark_each, wait_for_wake};
use crate::around;
use crate::park::{Interrupt, Unparker, WaitReason};

/// A channel that keeps up to `capacity` messages for those receivers that have not received them yet. A capacity of 0
/// counts as 1.
///
/// It takes room only for messages that are there. A receiver that waits takes none.
pub fn channel<T: Clone>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(capacity);
    let receiver = sender.subscribe();
    (sender, receiver)
}

/// The sending side. Clone it for each sender.
///
/// When the last one is dropped, receivers get what is left, and then `Disconnected`.
pub struct Sender<T> {
    channel: Arc<Channel<T>>,
}

/// A receiving side. Each gets every message that is sent while it is there, in order; a clone gets what this one would get
/// from now on.
///
/// One that falls more than the capacity of the channel behind loses the oldest messages, and is told so.
pub struct Receiver<T> {
    channel: Arc<Channel<T>>,
    /// The number of the message that it has not received yet.
    next: u64,
}

/// Why there is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvError {
    /// The receiver fell behind, and this many messages were lost to it. The next call goes on with the oldest that is left.
    Lagged(u64),
    /// All senders are gone, and every message was received.
    Disconnected,
    /// The scope was cancelled or ran out of time, or the thread is unwinding and cannot wait.
    Interrupted(Interrupt),
}

/// Why there is no message now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryRecvError {
    /// None was sent yet that was not received.
    Empty,
    /// The receiver fell behind, and this many messages were lost to it. The next call goes on with the oldest that is left.
    Lagged(u64),
    /// All senders are gone, and every message was received.
    Disconnected,
}

/// Why no message came in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvTimeoutError {
    /// None came within the timeout.
    Timeout,
    /// The receiver fell behind, and this many messages were lost to it. The next call goes on with the oldest that is left.
    Lagged(u64),
    /// All senders are gone, and every message was received.
    Disconnected,
    /// The scope was cancelled or ran out of time, or the thread is unwinding and cannot wait.
    Interrupted(Interrupt),
}

impl<T> Sender<T> {
    /// A channel that has no receiver yet; see [`channel`].
    pub fn new(capacity: usize) -> Self {
        let state = State::new(capacity);
        Sender { channel: Arc::new(Channel { state: ShortLock::new(state) }) }
    }

    /// Sends a message to all receivers, and says how many there are. Never suspends: if the channel is full, the oldest
    /// message is lost to those who have not received it.
    ///
    /// # Errors
    ///
    /// If there is no receiver. The message is inside. It may work later, when somebody has subscribed.
    pub fn send(&self, value: T) -> Result<usize, SendError<T>> {
        let message = Arc::new(value);
        let mut state = self.channel.state.lock();
        if state.receivers == 0 {
            drop(state);
            let message = Arc::into_inner(message).expect("nobody else has it yet");
            return Err(SendError(message));
        }
        let (receivers, number) = (state.receivers, state.end());
        let lost = state.push(message);
        drop(state);
        unpark_each(|| self.channel.state.lock().grant_up_to(number));
        drop(lost);
        Ok(receivers)
    }

    /// A receiver for what is sent from now on.
    pub fn subscribe(&self) -> Receiver<T> {
        self.channel.subscribe()
    }

    /// How many receivers there are.
    pub fn receiver_count(&self) -> usize {
        self.channel.state.lock().receivers
    }

    /// How many messages the channel holds because some receiver has not received them.
    pub fn len(&self) -> usize {
        self.channel.state.lock().messages.len()
    }

    /// Whether every receiver has received everything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many messages the channel can hold.
    pub fn capacity(&self) -> usize {
        self.channel.state.lock().capacity
    }
}

impl<T: Clone> Receiver<T> {
    /// Receives a message. Suspends until there is one.
    ///
    /// # Errors
    ///
    /// If messages were lost, once; if all senders are gone and nothing is left; if the scope is cancelled or out of time.
    pub fn recv(&mut self) -> Result<T, RecvError> {
        self.wait(|| None).map_err(RecvTimeoutError::without_timeout)
    }

    /// Receives a message if there is one. Never suspends.
    ///
    /// # Errors
    ///
    /// If there is none now; if messages were lost, once; if all senders are gone and nothing is left.
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        self.take().map(Arc::unwrap_or_clone)
    }

    /// Receives a message. Suspends until there is one, for `timeout` at most.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv), and if the time is over.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.wait(|| around::after(timeout))
    }

    /// Receives a message. Suspends until there is one or the deadline passes.
    ///
    /// # Errors
    ///
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_deadline(&mut self, deadline: Instant) -> Result<T, RecvTimeoutError> {
        self.wait(|| Some(deadline))
    }

    fn wait(&mut self, deadline: impl FnOnce() -> Option<Instant>) -> Result<T, RecvTimeoutError> {
        self.take_or_wait(deadline).map(Arc::unwrap_or_clone)
    }
}

impl<T> Receiver<T> {
    /// A receiver for what is sent from now on.
    pub fn resubscribe(&self) -> Self {
        self.channel.subscribe()
    }

    /// How many messages are there for this receiver.
    pub fn len(&self) -> usize {
        let state = self.channel.state.lock();
        state.messages.len() - state.index(self.next)
    }

    /// Whether no message is there for this receiver.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn take(&mut self) -> Result<Arc<T>, TryRecvError> {
        self.channel.state.lock().take(&mut self.next)
    }

    fn take_or_wait(&mut self, deadline: impl FnOnce() -> Option<Instant>) -> Result<Arc<T>, RecvTimeoutError> {
        check_scope().map_err(RecvTimeoutError::Interrupted)?;
        let lock = &self.channel.state;
        let mut state = lock.lock();
        match state.take(&mut self.next) {
            Err(TryRecvError::Empty) => {}
            taken => return taken.map_err(RecvTimeoutError::at_last),
        }
        check_unwinding().map_err(RecvTimeoutError::Interrupted)?;
        let stopped = wait_for_wake(lock, state, |state| &mut state.waiting, self.next, WaitReason::Recv, deadline);
        match (self.take(), stopped) {
            (Err(TryRecvError::Empty), Some(Stopped::Interrupted(why))) => Err(RecvTimeoutError::Interrupted(why)),
            (taken, _) => taken.map_err(RecvTimeoutError::at_last),
        }
    }
}

struct Channel<T> {
    state: ShortLock<State<T>>,
}

struct State<T> {
    capacity: usize,
    messages: VecDeque<Message<T>>,
    /// The number of the oldest message; they are numbered through.
    first: u64,
    /// How many receivers have received everything.
    standing_at_end: usize,
    receivers: usize,
    senders: usize,
    /// Receivers that wait, each with the number of the message that it waits for. As they come to wait at the end of the
    /// row, these numbers only grow.
    waiting: WaitQueue<u64>,
}

struct Message<T> {
    value: Arc<T>,
    /// How many receivers will receive it next.
    standing: usize,
}

impl<T> State<T> {
    fn new(capacity: usize) -> Self {
        State {
            capacity: capacity.max(1),
            messages: VecDeque::new(),
            first: 0,
            standing_at_end: 0,
            receivers: 0,
            senders: 1,
            waiting: WaitQueue::new(),
        }
    }

    /// The number of the message that is sent next.
    fn end(&self) -> u64 {
        self.first + self.messages.len() as u64
    }

    /// Where a receiver stands whose next message has this number; one that has lagged stands at the oldest.
    fn index(&self, next: u64) -> usize {
        next.saturating_sub(self.first) as usize
    }

    fn standing(&mut self, index: usize) -> &mut usize {
        match self.messages.get_mut(index) {
            Some(message) => &mut message.standing,
            None => &mut self.standing_at_end,
        }
    }

    /// Adds a message. If that is one too many, returns the oldest.
    fn push(&mut self, value: Arc<T>) -> Option<Arc<T>> {
        let standing = std::mem::take(&mut self.standing_at_end);
        self.messages.push_back(Message { value, standing });
        if self.messages.len() <= self.capacity {
            return None;
        }
        let oldest = self.pop()?;
        *self.standing(0) += oldest.standing;
        Some(oldest.value)
    }

    fn pop(&mut self) -> Option<Message<T>> {
        let oldest = self.messages.pop_front()?;
        self.first += 1;
        Some(oldest)
    }

    /// The message with the number `next`, which then is the number of the one after it.
    fn take(&mut self, next: &mut u64) -> Result<Arc<T>, TryRecvError> {
        if *next < self.first {
            let lost = self.first - *next;
            *next = self.first;
            return Err(TryRecvError::Lagged(lost));
        }
        let index = self.index(*next);
        let Some(message) = self.messages.get_mut(index) else {
            return Err(if self.senders == 0 { TryRecvError::Disconnected } else { TryRecvError::Empty });
        };
        message.standing -= 1;
        let value = message.value.clone();
        *self.standing(index + 1) += 1;
        *next += 1;
        if index == 0 {
            // If it goes, nothing is dropped under the lock: the value above keeps it, and is the only one that does.
            self.pop_received();
        }
        Ok(value)
    }

    /// The oldest message, if nobody will receive it any more.
    fn pop_received(&mut self) -> Option<Message<T>> {
        self.messages.front().filter(|oldest| oldest.standing == 0)?;
        self.pop()
    }

    /// Wakes the first who waits for a message up to this number.
    fn grant_up_to(&mut self, number: u64) -> Option<Unparker> {
        self.waiting.first().filter(|&&next| next <= number)?;
        self.waiting.grant(|_| ())
    }
}

impl<T> Channel<T> {
    fn subscribe(self: &Arc<Self>) -> Receiver<T> {
        let mut state = self.state.lock();
        state.receivers += 1;
        state.standing_at_end += 1;
        Receiver { channel: self.clone(), next: state.end() }
    }

    fn pop_received(&self) -> Option<Message<T>> {
        self.state.lock().pop_received()
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
        let mut state = self.channel.state.lock();
        let index = state.index(self.next);
        *state.standing(index) += 1;
        state.receivers += 1;
        Receiver { channel: self.channel.clone(), next: self.next }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.channel.state.lock();
        state.senders -= 1;
        let last = state.senders == 0;
        drop(state);
        if last {
            unpark_each(|| self.channel.state.lock().waiting.dismiss());
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.channel.state.lock();
        let index = state.index(self.next);
        *state.standing(index) -= 1;
        state.receivers -= 1;
        drop(state);
        // One by one, and each after the lock: a message's own drop may use this channel.
        while let Some(message) = self.channel.pop_received() {
            drop(message);
        }
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

impl RecvTimeoutError {
    /// Whether the time was over.
    pub fn is_timeout(&self) -> bool {
        matches!(self, RecvTimeoutError::Timeout)
    }

    /// What a wait says that is at its end and still finds no message.
    fn at_last(error: TryRecvError) -> Self {
        match error {
            TryRecvError::Empty => RecvTimeoutError::Timeout,
            TryRecvError::Lagged(lost) => RecvTimeoutError::Lagged(lost),
            TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
        }
    }

    fn without_timeout(self) -> RecvError {
        match self {
            RecvTimeoutError::Timeout => unreachable!("{NO_TIMEOUT}"),
            RecvTimeoutError::Lagged(lost) => RecvError::Lagged(lost),
            RecvTimeoutError::Disconnected => RecvError::Disconnected,
            RecvTimeoutError::Interrupted(why) => RecvError::Interrupted(why),
        }
    }
}

impl From<RecvError> for RecvTimeoutError {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Lagged(lost) => RecvTimeoutError::Lagged(lost),
            RecvError::Disconnected => RecvTimeoutError::Disconnected,
            RecvError::Interrupted(why) => RecvTimeoutError::Interrupted(why),
        }
    }
}

impl fmt::Display for RecvTimeoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecvTimeoutError::Timeout => f.write_str("nothing was sent within the timeout"),
            RecvTimeoutError::Lagged(lost) => write!(f, "the receiver fell behind and lost {lost} messages"),
            RecvTimeoutError::Disconnected => f.write_str(NO_SENDER),
            RecvTimeoutError::Interrupted(_) => f.write_str("receiving was interrupted"),
        }
    }
}

impl fmt::Display for RecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        RecvTimeoutError::from(*self).fmt(f)
    }
}

impl fmt::Display for TryRecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            TryRecvError::Empty => f.write_str("the channel is empty"),
            error => RecvTimeoutError::at_last(error).fmt(f),
        }
    }
}

impl Error for RecvError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            RecvError::Interrupted(why) => Some(why),
            _ => None,
        }
    }
}

impl Error for TryRecvError {}

impl Error for RecvTimeoutError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            RecvTimeoutError::Interrupted(why) => Some(why),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each receiver should get, kept in the simplest way: everything that was sent, and where each stands.
    struct Model {
        capacity: usize,
        sent: u64,
        places: Vec<u64>,
    }

    impl Model {
        fn take(&mut self, receiver: usize) -> Result<u64, TryRecvError> {
            let place = &mut self.places[receiver];
            let oldest = self.sent.saturating_sub(self.capacity as u64);
            if *place < oldest {
                let lost = oldest - *place;
                *place = oldest;
                return Err(TryRecvError::Lagged(lost));
            }
            if *place == self.sent {
                return Err(TryRecvError::Empty);
            }
            *place += 1;
            Ok(*place - 1)
        }

        /// How many messages somebody has not received.
        fn held(&self) -> usize {
            let behind = self.places.iter().map(|place| self.sent - place).max();
            (behind.unwrap_or(0) as usize).min(self.capacity)
        }
    }

    fn check_at_random(capacity: usize, mut seed: u64) {
        let mut below = |bound: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % bound
        };
        let (sender, receiver) = channel(capacity);
        let mut model = Model { capacity, sent: 0, places: vec![0] };
        let mut receivers = vec![receiver];
        for _ in 0..2000 {
            let one = below(receivers.len().max(1));
            match below(16) {
                0 => {
                    receivers.push(sender.subscribe());
                    model.places.push(model.sent);
                }
                1 if !receivers.is_empty() => {
                    receivers.push(receivers[one].clone());
                    model.places.push(model.places[one]);
                }
                2 | 3 if !receivers.is_empty() => {
                    receivers.swap_remove(one);
                    model.places.swap_remove(one);
                }
                4..8 if !receivers.is_empty() => {
                    assert_eq!(sender.send(model.sent), Ok(receivers.len()));
                    model.sent += 1;
                }
                4..8 => assert_eq!(sender.send(model.sent), Err(SendError(model.sent))),
                _ if !receivers.is_empty() => assert_eq!(receivers[one].try_recv(), model.take(one)),
                _ => {}
            }
            assert_eq!((sender.receiver_count(), sender.len()), (receivers.len(), model.held()));
        }
    }

    #[test]
    fn everybody_gets_everything_that_is_left_and_nothing_else_is_kept() {
        for capacity in [1, 2, 3, 10] {
            (0..20).for_each(|seed| check_at_random(capacity, seed));
        }
    }
}
