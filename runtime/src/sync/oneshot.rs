//! One message, from one to another.
//!
//! # Examples
//!
//! ```
//! let (sender, receiver) = dhaga::sync::oneshot::channel();
//! dhaga::spawn(move || sender.send(6 * 7));
//! assert_eq!(receiver.recv()?, 42);
//! # Ok::<(), dhaga::sync::oneshot::RecvError>(())
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use super::error::{RecvError, RecvTimeoutError, TryRecvError};
#[cfg(not(all(test, loom)))]
use super::short_lock::ShortLock;
use super::wait_queue::{Stopped, check_scope, check_unwinding, why_stopped};
use crate::around;
#[cfg(all(test, loom))]
use crate::atomic::ModelLock as ShortLock;
use crate::park::{self, Unparker, WaitReason};

/// A channel for one message.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let slot = Some(Arc::new(Slot::new()));
    let sender = Sender { slot: slot.clone() };
    (sender, Receiver { slot })
}

/// The right to send the message.
pub struct Sender<T> {
    /// Present until the message is sent.
    slot: Option<Arc<Slot<T>>>,
}

/// The right to receive the message.
pub struct Receiver<T> {
    /// Present until the message is received.
    slot: Option<Arc<Slot<T>>>,
}

/// Where both sides meet. `W` wakes the receiver.
struct Slot<T, W = Unparker>(ShortLock<State<T, W>>);

/// ```text
///   Empty <──> Awaited ──> Sent ──> Closed
///     └──────────┴────────────────────┘
/// ```
enum State<T, W> {
    /// Nothing was sent, and nobody waits.
    Empty,
    /// Nothing was sent, and the receiver waits.
    Awaited(W),
    Sent(T),
    /// One side is gone, or the message was received.
    Closed,
}

impl<T> Sender<T> {
    /// Sends the message. Never suspends.
    ///
    /// # Errors
    ///
    /// If the receiver is gone. The message is inside.
    #[inline]
    pub fn send(mut self, value: T) -> Result<(), T> {
        let Some(slot) = self.slot.take() else {
            return Err(value);
        };
        if let Some(receiver) = slot.send(value)? {
            receiver.unpark();
        }
        Ok(())
    }

    /// Whether the receiver is gone, so that the work for the message may stop.
    pub fn is_disconnected(&self) -> bool {
        self.slot.as_ref().is_none_or(|slot| slot.is_closed())
    }
}

impl<T> Receiver<T> {
    /// Receives the message. Suspends until it is sent.
    ///
    /// # Errors
    ///
    /// If the sender is gone and has sent nothing, or the scope is cancelled or out of time.
    #[inline(always)]
    pub fn recv(mut self) -> Result<T, RecvError> {
        let received = self.wait(|| None);
        received.map_err(RecvTimeoutError::without_timeout)
    }

    /// Receives the message if it was sent. Never suspends.
    ///
    /// # Errors
    ///
    /// If it was not sent yet, was received already, or never will be sent.
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        let slot = self.slot.as_ref().ok_or(TryRecvError::Disconnected)?;
        let value = slot.take()?;
        self.slot = None;
        Ok(value)
    }

    /// Receives the message. Suspends until it is sent, for `timeout` at most; it may be asked again.
    ///
    /// # Errors
    ///
    /// If the time is over, the sender is gone and has sent nothing, the message was received
    /// already, or the scope is cancelled or out of time.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.wait(|| around::after(timeout))
    }

    /// Leaves word whom to wake, until somebody else does. Returns false if `try_recv` has something to say already.
    pub(crate) fn await_message(&mut self, receiver: Unparker) -> bool {
        self.slot.as_ref().is_some_and(|slot| slot.await_message(receiver))
    }

    #[inline(always)]
    fn wait(&mut self, deadline: impl FnOnce() -> Option<Instant>) -> Result<T, RecvTimeoutError> {
        check_scope().map_err(RecvTimeoutError::Interrupted)?;
        let Some(slot) = &self.slot else {
            return Err(RecvTimeoutError::Disconnected);
        };
        let value = wait_for_message(slot, deadline)?;
        self.slot = None;
        Ok(value)
    }
}

#[inline(always)]
fn wait_for_message<T>(slot: &Slot<T>, deadline: impl FnOnce() -> Option<Instant>) -> Result<T, RecvTimeoutError> {
    let receiver = || match check_unwinding() {
        Ok(()) => Ok(park::unparker()),
        Err(interrupt) => Err(RecvTimeoutError::Interrupted(interrupt)),
    };
    if let Some(value) = slot.take_or_await(receiver)? {
        return Ok(value);
    }
    let deadline = deadline();
    let limit = park::earliest(deadline);
    loop {
        let stopped = why_stopped(park::park_until(WaitReason::Oneshot, limit), deadline);
        match (slot.take(), stopped) {
            (Ok(value), _) => return Ok(value),
            (Err(TryRecvError::Disconnected), _) => return Err(RecvTimeoutError::Disconnected),
            (_, Some(Stopped::TimedOut)) => return Err(RecvTimeoutError::Timeout),
            (_, Some(Stopped::Interrupted(why))) => return Err(RecvTimeoutError::Interrupted(why)),
            (_, None) => {}
        }
    }
}

impl<T, W> Slot<T, W> {
    fn new() -> Self {
        Slot(ShortLock::new(State::Empty))
    }

    /// Leaves the message. Returns who waits for it.
    #[inline(always)]
    fn send(&self, value: T) -> Result<Option<W>, T> {
        let mut state = self.0.lock();
        if matches!(*state, State::Closed) {
            return Err(value);
        }
        Ok(std::mem::replace(&mut *state, State::Sent(value)).receiver())
    }

    #[inline(always)]
    fn take(&self) -> Result<T, TryRecvError> {
        self.0.lock().take()
    }

    /// Takes the message, or notes who waits for it. That note stays when the wait gives up: to be woken without need harms
    /// nobody.
    #[inline(always)]
    fn take_or_await(
        &self,
        receiver: impl FnOnce() -> Result<W, RecvTimeoutError>,
    ) -> Result<Option<T>, RecvTimeoutError> {
        let mut state = self.0.lock();
        match state.take() {
            Ok(value) => return Ok(Some(value)),
            Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
            Err(TryRecvError::Empty) => {}
        }
        *state = State::Awaited(receiver()?);
        Ok(None)
    }

    /// Notes who waits for the message, if there may be one that is not there yet.
    fn await_message(&self, receiver: W) -> bool {
        let mut state = self.0.lock();
        let is_pending = matches!(*state, State::Empty | State::Awaited(_));
        if is_pending {
            *state = State::Awaited(receiver);
        }
        is_pending
    }

    /// What was there when one side went. The caller drops it, or wakes it, outside the lock: a message that nobody received
    /// is foreign code too.
    #[inline(always)]
    fn close(&self) -> State<T, W> {
        std::mem::replace(&mut *self.0.lock(), State::Closed)
    }

    fn is_closed(&self) -> bool {
        matches!(*self.0.lock(), State::Closed)
    }
}

impl<T, W> State<T, W> {
    #[inline]
    fn take(&mut self) -> Result<T, TryRecvError> {
        match self {
            State::Empty | State::Awaited(_) => Err(TryRecvError::Empty),
            State::Closed => Err(TryRecvError::Disconnected),
            State::Sent(_) => match std::mem::replace(self, State::Closed) {
                State::Sent(value) => Ok(value),
                _ => unreachable!("the message was just there"),
            },
        }
    }

    fn receiver(self) -> Option<W> {
        match self {
            State::Awaited(receiver) => Some(receiver),
            _ => None,
        }
    }
}

impl<T> Drop for Sender<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(receiver) = self.slot.as_ref().and_then(|slot| slot.close().receiver()) {
            receiver.unpark();
        }
    }
}

impl<T> Drop for Receiver<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(slot) = &self.slot {
            drop(slot.close());
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

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::atomic::model;
    use loom::sync::Notify;
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::thread;

    type Meeting = Arc<Slot<Counted, Arc<Notify>>>;

    /// A message that counts when it is dropped.
    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// As `wait_for_message`, on a bell: a wake that is lost is a deadlock, which loom reports.
    fn receive(slot: &Meeting) -> Result<Counted, TryRecvError> {
        let bell = Arc::new(Notify::new());
        match slot.take_or_await(|| Ok(bell.clone())) {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(_) => return Err(TryRecvError::Disconnected),
        }
        loop {
            bell.wait();
            match slot.take() {
                Err(TryRecvError::Empty) => {}
                taken => return taken,
            }
        }
    }

    /// As `recv_timeout` whose time is over at once.
    fn give_up(slot: &Meeting) -> Result<Counted, TryRecvError> {
        let _ = slot.take_or_await(|| Ok(Arc::new(Notify::new())));
        slot.take()
    }

    /// Runs both sides beside each other, and expects that the message was dropped once.
    fn check(send: fn(&Meeting, Counted), receive: fn(&Meeting) -> Result<Counted, TryRecvError>) {
        model(3, move || {
            let (slot, drops) = (Arc::new(Slot::new()), Arc::new(AtomicUsize::new(0)));
            let (meeting, message): (Meeting, _) = (slot.clone(), Counted(drops.clone()));
            let sender = thread::spawn(move || send(&meeting, message));
            let received = receive(&slot);
            drop(received);
            drop(slot.close());
            sender.join().expect("it ends");
            assert_eq!(drops.load(Ordering::Relaxed), 1);
        });
    }

    fn send(slot: &Meeting, message: Counted) {
        if let Ok(Some(receiver)) = slot.send(message) {
            receiver.notify();
        }
    }

    fn go(slot: &Meeting, message: Counted) {
        if let Some(receiver) = slot.close().receiver() {
            receiver.notify();
        }
        drop(message);
    }

    #[test]
    fn loom_a_oneshot_delivers_its_message_once() {
        check(send, receive);
        check(send, give_up);
        check(send, |_| Err(TryRecvError::Empty));
    }

    #[test]
    fn loom_a_oneshot_whose_sender_goes_wakes_its_receiver() {
        check(go, |slot| match receive(slot) {
            Err(TryRecvError::Disconnected) => Err(TryRecvError::Disconnected),
            _ => panic!("nothing was sent"),
        });
    }
}
