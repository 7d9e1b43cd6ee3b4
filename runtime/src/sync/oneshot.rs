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
use super::short_lock::ShortLock;
use super::wait_queue::{Stopped, check_scope, check_unwinding, why_stopped};
use crate::park::{self, Unparker, WaitReason};

/// A channel for one message.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let state = Some(Arc::new(ShortLock::new(State::Empty)));
    let sender = Sender { state: state.clone() };
    (sender, Receiver { state })
}

/// The right to send the message.
pub struct Sender<T> {
    /// Present until the message is sent.
    state: Option<Arc<ShortLock<State<T>>>>,
}

/// The right to receive the message.
pub struct Receiver<T> {
    /// Present until the message is received.
    state: Option<Arc<ShortLock<State<T>>>>,
}

/// ```text
///   Empty <──> Awaited ──> Sent ──> Closed
///     └──────────┴────────────────────┘
/// ```
enum State<T> {
    /// Nothing was sent, and nobody waits.
    Empty,
    /// Nothing was sent, and the receiver waits.
    Awaited(Unparker),
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
        let Some(state) = self.state.take() else {
            return Err(value);
        };
        let mut state = state.lock();
        if matches!(*state, State::Closed) {
            return Err(value);
        }
        let before = std::mem::replace(&mut *state, State::Sent(value));
        drop(state);
        unpark_receiver(before);
        Ok(())
    }

    /// Whether the receiver is gone, so that the work for the message may stop.
    pub fn is_disconnected(&self) -> bool {
        let is_closed = |state: &Arc<ShortLock<State<T>>>| matches!(*state.lock(), State::Closed);
        self.state.as_ref().is_none_or(is_closed)
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
        let state = self.state.as_ref().ok_or(TryRecvError::Disconnected)?;
        let value = state.lock().take()?;
        self.state = None;
        Ok(value)
    }

    /// Receives the message. Suspends until it is sent, for `timeout` at most; it may be asked again.
    ///
    /// # Errors
    ///
    /// If the time is over, the sender is gone and has sent nothing, the message was received
    /// already, or the scope is cancelled or out of time.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.wait(|| park::after(timeout))
    }

    #[inline(always)]
    fn wait(&mut self, deadline: impl FnOnce() -> Option<Instant>) -> Result<T, RecvTimeoutError> {
        check_scope().map_err(RecvTimeoutError::Interrupted)?;
        let Some(state) = &self.state else {
            return Err(RecvTimeoutError::Disconnected);
        };
        let value = wait_for_message(state, deadline)?;
        self.state = None;
        Ok(value)
    }
}

#[inline(always)]
fn wait_for_message<T>(
    shared: &ShortLock<State<T>>,
    deadline: impl FnOnce() -> Option<Instant>,
) -> Result<T, RecvTimeoutError> {
    let mut state = shared.lock();
    match state.take() {
        Ok(value) => return Ok(value),
        Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
        Err(TryRecvError::Empty) => {}
    }
    check_unwinding().map_err(RecvTimeoutError::Interrupted)?;
    // Stays when this wait gives up: to be unparked without need harms nobody.
    *state = State::Awaited(park::unparker());
    drop(state);
    let deadline = deadline();
    let limit = park::earliest(deadline);
    loop {
        let stopped = why_stopped(park::park_until(WaitReason::Oneshot, limit), deadline);
        let taken = shared.lock().take();
        match (taken, stopped) {
            (Ok(value), _) => return Ok(value),
            (Err(TryRecvError::Disconnected), _) => return Err(RecvTimeoutError::Disconnected),
            (_, Some(Stopped::TimedOut)) => return Err(RecvTimeoutError::Timeout),
            (_, Some(Stopped::Interrupted(why))) => return Err(RecvTimeoutError::Interrupted(why)),
            (_, None) => {}
        }
    }
}

impl<T> State<T> {
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
}

fn unpark_receiver<T>(before: State<T>) {
    if let State::Awaited(receiver) = before {
        receiver.unpark();
    }
}

impl<T> Drop for Sender<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(state) = &self.state {
            let before = std::mem::replace(&mut *state.lock(), State::Closed);
            unpark_receiver(before);
        }
    }
}

impl<T> Drop for Receiver<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(state) = &self.state {
            let before = std::mem::replace(&mut *state.lock(), State::Closed);
            // Only now, after the lock: a message that nobody received is foreign code too.
            drop(before);
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
