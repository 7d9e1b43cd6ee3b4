//! Messages from many to one, by the names of [`std::sync::mpsc`], so that a program moves over by its `use` line.
//!
//! It is a face over [`sync::channel`](super::channel), which has more: several receivers, timeouts on both sides, and errors
//! that say why. The errors here are std's own, and they have no room for the end of a scope: when the scope around a wait was
//! cancelled or is out of time, or when a wait is called while its thread unwinds from a panic, [`Sender::send`],
//! [`SyncSender::send`] and [`Receiver::recv`] fail **as if the other side were gone**. So a loop like
//! `while let Ok(message) = receiver.recv()` ends. [`Receiver::recv_timeout`] says `Disconnected` then, not `Timeout`, because
//! a loop that goes on at each timeout would spin. Who must tell the two apart asks `dhaga::checkpoint`, or receives by
//! [`sync::channel`](super::channel), whose errors are typed.
//!
//! # Examples
//!
//! ```
//! use dhaga::sync::mpsc;
//!
//! let (sender, receiver) = mpsc::channel();
//! for name in ["a", "b", "c"] {
//!     let sender = sender.clone();
//!     dhaga::spawn(move || sender.send(name.to_owned()));
//! }
//! drop(sender);
//! let mut names: Vec<_> = receiver.iter().collect();
//! names.sort();
//! assert_eq!(names, ["a", "b", "c"]);
//! ```

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{RefUnwindSafe, UnwindSafe};
pub use std::sync::mpsc::{RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError};
use std::time::Duration;

use super::channel;

/// A channel whose senders never wait, as [`std::sync::mpsc::channel`]. It grows as long as memory lasts: prefer
/// [`sync_channel`] wherever the senders can be faster than the receiver.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = channel::unbounded();
    (Sender { sender }, Receiver::new(receiver))
}

/// A channel that holds up to `bound` messages, as [`std::sync::mpsc::sync_channel`]; when it is full, senders wait. With a
/// bound of 0 it holds none, and each sender waits for the receiver to take its message.
///
/// # Examples
///
/// ```
/// use dhaga::sync::mpsc::{TrySendError, sync_channel};
///
/// let (sender, receiver) = sync_channel(1);
/// sender.send(1)?;
/// assert_eq!(sender.try_send(2), Err(TrySendError::Full(2)));
/// dhaga::spawn(move || sender.send(2));
/// assert!(receiver.iter().eq([1, 2]));
/// # Ok::<(), dhaga::sync::mpsc::SendError<i32>>(())
/// ```
pub fn sync_channel<T>(bound: usize) -> (SyncSender<T>, Receiver<T>) {
    let (sender, receiver) = channel::bounded(bound);
    (SyncSender { sender }, Receiver::new(receiver))
}

/// The sending side of a [`channel`](channel()). Clone it for each sender.
///
/// When the last one is dropped, the receiver gets what is left, and then an error.
pub struct Sender<T> {
    sender: channel::Sender<T>,
}

/// The sending side of a [`sync_channel`]. Clone it for each sender.
///
/// When the last one is dropped, the receiver gets what is left, and then an error.
pub struct SyncSender<T> {
    sender: channel::Sender<T>,
}

/// The receiving side. There is one; it may go to another thread, but as std's it is not shared.
///
/// When it is dropped, messages that are left are dropped too, and senders get an error.
pub struct Receiver<T> {
    receiver: channel::Receiver<T>,
    /// Not `Sync`, so that a program which compiles here compiles with std, too.
    _single: PhantomData<Cell<()>>,
}

impl<T> Sender<T> {
    /// Sends a message. Never waits for the receiver; but as with each operation of a channel, a dhaga that does nothing
    /// else gives way to others now and then.
    ///
    /// # Errors
    ///
    /// If the receiver is gone, or the scope is cancelled or out of time. The message is inside.
    #[inline(always)]
    pub fn send(&self, t: T) -> Result<(), SendError<T>> {
        self.sender.send(t).map_err(plain)
    }
}

impl<T> SyncSender<T> {
    /// Sends a message. Suspends while the channel is full; with a bound of 0, until the message is received.
    ///
    /// # Errors
    ///
    /// If the receiver is gone, or the scope is cancelled or out of time. The message is inside.
    #[inline(always)]
    pub fn send(&self, t: T) -> Result<(), SendError<T>> {
        self.sender.send(t).map_err(plain)
    }

    /// Sends a message if there is room; with a bound of 0, if the receiver waits. Never suspends.
    ///
    /// # Errors
    ///
    /// If there is no room, or the receiver is gone. The message is inside.
    #[inline]
    pub fn try_send(&self, t: T) -> Result<(), TrySendError<T>> {
        self.sender.try_send(t).map_err(|error| match error {
            channel::TrySendError::Full(message) => TrySendError::Full(message),
            channel::TrySendError::Disconnected(message) => TrySendError::Disconnected(message),
        })
    }
}

fn plain<T>(error: channel::SendError<T>) -> SendError<T> {
    SendError(error.into_inner())
}

impl<T> Receiver<T> {
    fn new(receiver: channel::Receiver<T>) -> Self {
        Receiver { receiver, _single: PhantomData }
    }

    /// Receives a message if there is one. Never suspends.
    ///
    /// # Errors
    ///
    /// If there is none now, or all senders are gone and nothing is left.
    #[inline]
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.receiver.try_recv().map_err(|error| match error {
            channel::TryRecvError::Empty => TryRecvError::Empty,
            channel::TryRecvError::Disconnected => TryRecvError::Disconnected,
        })
    }

    /// Receives a message. Suspends until there is one.
    ///
    /// # Errors
    ///
    /// If all senders are gone and nothing is left, or the scope is cancelled or out of time.
    #[inline(always)]
    pub fn recv(&self) -> Result<T, RecvError> {
        self.receiver.recv().map_err(|_| RecvError)
    }

    /// Receives a message. Suspends until there is one, for `timeout` at most.
    ///
    /// # Errors
    ///
    /// `Timeout` if the time is over. `Disconnected` if all senders are gone and nothing is left, and also if the scope is
    /// cancelled or out of time: then every further call would fail at once, and a loop that goes on at each `Timeout` would
    /// never end.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.receiver.recv_timeout(timeout).map_err(|error| match error {
            channel::RecvTimeoutError::Timeout => RecvTimeoutError::Timeout,
            channel::RecvTimeoutError::Disconnected | channel::RecvTimeoutError::Interrupted(_) => {
                RecvTimeoutError::Disconnected
            }
        })
    }

    /// All messages to come: it suspends for each, and ends when all senders are gone, or when the scope is cancelled or out
    /// of time.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter { receiver: self }
    }

    /// The messages that are there already. Never suspends.
    pub fn try_iter(&self) -> TryIter<'_, T> {
        TryIter { receiver: self }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender { sender: self.sender.clone() }
    }
}

impl<T> Clone for SyncSender<T> {
    fn clone(&self) -> Self {
        SyncSender { sender: self.sender.clone() }
    }
}

// As std's: a panic in the midst of a send or a receive leaves the channel in order.
impl<T> UnwindSafe for Sender<T> {}
impl<T> RefUnwindSafe for Sender<T> {}
impl<T> UnwindSafe for SyncSender<T> {}
impl<T> RefUnwindSafe for SyncSender<T> {}
impl<T> UnwindSafe for Receiver<T> {}
impl<T> RefUnwindSafe for Receiver<T> {}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for SyncSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncSender").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

/// All messages to come; made by [`Receiver::iter`].
#[derive(Debug)]
pub struct Iter<'a, T: 'a> {
    receiver: &'a Receiver<T>,
}

/// The messages that are there; made by [`Receiver::try_iter`].
#[derive(Debug)]
pub struct TryIter<'a, T: 'a> {
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
