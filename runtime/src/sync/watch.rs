//! The latest value, and who wants to know when it changes.
//!
//! Receivers see the newest value and are woken when there is a newer one; those in between may pass unseen, so a slow
//! receiver costs nothing and holds up nobody. It is the channel for settings, for "shut down now", for the state of
//! something.
//!
//! The value lies in an [`Arc`], and whoever looks at it gets a [`Ref`] that keeps that one alive: no lock is held while
//! somebody looks, compares or waits, and a `Ref` may be kept across any wait. It goes on showing what it showed. What is
//! changed in place ([`Sender::send_modify`]) is changed in a clone that then takes the place of the old one.
//!
//! # Examples
//!
//! ```
//! use dhaga::sync::watch;
//!
//! let (sender, mut receiver) = watch::channel("starting");
//! let waiter = dhaga::spawn(move || {
//!     receiver.wait_for(|state| *state == "ready")?;
//!     Ok::<_, watch::RecvError>(receiver)
//! });
//! sender.send_replace("connecting");
//! sender.send_replace("ready");
//! let receiver = waiter.join()??;
//! assert_eq!(*receiver.borrow(), "ready");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::ops::Deref;
pub use std::sync::mpsc::SendError;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

pub use super::error::{RecvError, RecvTimeoutError};
use super::mutex::{Mutex, MutexGuard};
use super::short_lock::ShortLock;
use super::wait_queue::{Stopped, WaitQueue, check_scope, check_unwinding, unpark_each, wait_for_wake};
use crate::around;
use crate::park::{self, Interrupt, Unparker, WaitReason};

/// A channel that holds one value, which the receiver counts as seen.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

/// The side that changes the value. Clone it for each who does.
///
/// When the last one is dropped, receivers still see the last value, and then `Disconnected`.
pub struct Sender<T> {
    channel: Arc<Channel<T>>,
}

/// The side that looks at the value. Each has seen it up to some change; a clone has seen what this one has.
pub struct Receiver<T> {
    channel: Arc<Channel<T>>,
    /// The version that it has seen.
    seen: u64,
}

/// A value as it was when somebody looked. It stays as it is, and alive, while others change it.
pub struct Ref<T> {
    value: Arc<T>,
    has_changed: bool,
}

impl<T> Sender<T> {
    /// A channel that has no receiver yet; see [`channel`](channel()).
    pub fn new(value: T) -> Self {
        let state = State {
            value: Arc::new(value),
            version: 0,
            senders: 1,
            receivers: 0,
            waiting: WaitQueue::new(),
            closing: WaitQueue::new(),
        };
        let channel = Channel { state: ShortLock::new(state), turn: Mutex::new(()) };
        Sender { channel: Arc::new(channel) }
    }

    /// Replaces the value, and wakes all receivers that wait. Never suspends.
    ///
    /// # Errors
    ///
    /// If all receivers are gone. The value is inside, and the old one stays; [`send_replace`](Self::send_replace)
    /// replaces it nevertheless.
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.is_disconnected() {
            return Err(SendError(value));
        }
        self.channel.replace(Arc::new(value));
        Ok(())
    }

    /// Replaces the value, and wakes all receivers that wait, if there are any. Returns the old value. Suspends while
    /// another sender modifies it, as [`send_if_modified`](Self::send_if_modified) does.
    pub fn send_replace(&self, value: T) -> Ref<T> {
        let turn = self.channel.turn();
        let value = self.channel.replace(Arc::new(value));
        drop(turn);
        Ref { value, has_changed: true }
    }

    /// Changes the value, and wakes all receivers that wait. Suspends while another sender modifies it.
    ///
    /// As [`send_if_modified`](Self::send_if_modified), with a closure that always modifies.
    pub fn send_modify(&self, modify: impl FnOnce(&mut T))
    where
        T: Clone,
    {
        self.send_if_modified(|value| {
            modify(value);
            true
        });
    }

    /// Changes the value if `modify` returns true, which this call then does, too, and wakes all receivers that wait.
    /// Suspends while another sender modifies it.
    ///
    /// `modify` works on a clone, which takes the place of the value when it returns true and is dropped when it returns
    /// false or panics: nobody ever sees half a change. It may look at the channel and may wait, which holds up others who
    /// modify but nobody who looks or [`send`](Self::send)s. A value that is sent meanwhile stays: it counts as sent after
    /// the change. A `modify` that modifies or replaces the same value by a call of its own waits for itself, for ever.
    ///
    /// # Aborts
    ///
    /// Where [`Mutex::lock`] does: if the caller unwinds, and another dhaga of its worker waits inside its `modify`.
    ///
    /// # Examples
    ///
    /// ```
    /// use dhaga::sync::watch;
    ///
    /// let (jobs, receiver) = watch::channel(vec![3, 5]);
    /// let start = |job| {
    ///     jobs.send_if_modified(|jobs| {
    ///         let is_new = !jobs.contains(&job);
    ///         jobs.extend(is_new.then_some(job));
    ///         is_new
    ///     })
    /// };
    /// assert!(start(8));
    /// assert!(!start(5));
    /// assert_eq!(*receiver.borrow(), [3, 5, 8]);
    /// ```
    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool
    where
        T: Clone,
    {
        // Declared before the turn, and so dropped after it: their own drop may use this channel.
        let (old, version);
        let mut value;
        let turn = self.channel.turn();
        (old, version) = self.channel.current();
        value = T::clone(&old);
        if !modify(&mut value) {
            return false;
        }
        let replaced = self.channel.replace_version(version, Arc::new(value));
        drop(turn);
        drop(replaced);
        true
    }

    /// The value as it is now.
    pub fn borrow(&self) -> Ref<T> {
        let (value, _) = self.channel.current();
        Ref { value, has_changed: false }
    }

    /// A receiver that counts the value as it is now as seen.
    pub fn subscribe(&self) -> Receiver<T> {
        let mut state = self.channel.state.lock();
        state.receivers += 1;
        Receiver { channel: self.channel.clone(), seen: state.version }
    }

    /// How many receivers there are.
    pub fn receiver_count(&self) -> usize {
        self.channel.state.lock().receivers
    }

    /// Whether all receivers are gone.
    pub fn is_disconnected(&self) -> bool {
        self.receiver_count() == 0
    }

    /// Suspends until all receivers are gone.
    ///
    /// # Errors
    ///
    /// If the scope is cancelled or out of time.
    pub fn closed(&self) -> Result<(), Interrupt> {
        self.wait_until_closed(|| None).map(drop)
    }

    /// Suspends until all receivers are gone, for `timeout` at most. Says whether they are gone.
    ///
    /// # Errors
    ///
    /// If the scope is cancelled or out of time.
    pub fn closed_timeout(&self, timeout: Duration) -> Result<bool, Interrupt> {
        self.wait_until_closed(|| around::after(timeout))
    }

    fn wait_until_closed(&self, deadline: impl FnOnce() -> Option<Instant>) -> Result<bool, Interrupt> {
        check_scope()?;
        let lock = &self.channel.state;
        let state = lock.lock();
        if state.receivers == 0 {
            return Ok(true);
        }
        check_unwinding()?;
        match wait_for_wake(lock, state, |state| &mut state.closing, (), WaitReason::Watch, deadline) {
            None => Ok(true),
            Some(Stopped::TimedOut) => Ok(false),
            Some(Stopped::Interrupted(interrupt)) => Err(interrupt),
        }
    }
}

impl<T> Receiver<T> {
    /// The value as it is now. If the receiver has not seen it yet, that stays so.
    pub fn borrow(&self) -> Ref<T> {
        let (value, version) = self.channel.current();
        Ref { value, has_changed: version != self.seen }
    }

    /// The value as it is now, which counts as seen from now on.
    pub fn borrow_and_update(&mut self) -> Ref<T> {
        let (value, version) = self.channel.current();
        let seen = std::mem::replace(&mut self.seen, version);
        Ref { value, has_changed: version != seen }
    }

    /// Whether there is a value that the receiver has not seen. Never suspends.
    ///
    /// Every replacement counts, also one by an equal value.
    ///
    /// # Errors
    ///
    /// If all senders are gone and the last value was seen.
    pub fn has_changed(&self) -> Result<bool, RecvError> {
        let state = self.channel.state.lock();
        if state.version != self.seen {
            return Ok(true);
        }
        if state.senders == 0 { Err(RecvError::Disconnected) } else { Ok(false) }
    }

    /// Suspends until there is a value that the receiver has not seen, which counts as seen from then on.
    ///
    /// # Errors
    ///
    /// If all senders are gone and the last value was seen, or the scope is cancelled or out of time.
    pub fn changed(&mut self) -> Result<(), RecvError> {
        self.wait_for_change(|| None).map_err(RecvTimeoutError::without_timeout)
    }

    /// As [`changed`](Self::changed), for `timeout` at most.
    ///
    /// # Errors
    ///
    /// As [`changed`](Self::changed), and if the time is over.
    pub fn changed_timeout(&mut self, timeout: Duration) -> Result<(), RecvTimeoutError> {
        self.wait_for_change(|| around::after(timeout))
    }

    /// Suspends until the value is as wanted, and returns it. The value as it is now is the first that is asked about, and
    /// each that was asked about counts as seen.
    ///
    /// # Errors
    ///
    /// If all senders are gone and the last value is not as wanted, or the scope is cancelled or out of time.
    pub fn wait_for(&mut self, is_wanted: impl FnMut(&T) -> bool) -> Result<Ref<T>, RecvError> {
        self.wait_until(is_wanted, || None).map_err(RecvTimeoutError::without_timeout)
    }

    /// As [`wait_for`](Self::wait_for), for `timeout` at most.
    ///
    /// # Errors
    ///
    /// As [`wait_for`](Self::wait_for), and if the time is over.
    pub fn wait_for_timeout(
        &mut self,
        is_wanted: impl FnMut(&T) -> bool,
        timeout: Duration,
    ) -> Result<Ref<T>, RecvTimeoutError> {
        let deadline = around::after(timeout);
        self.wait_until(is_wanted, || deadline)
    }

    fn wait_until(
        &mut self,
        mut is_wanted: impl FnMut(&T) -> bool,
        deadline: impl Fn() -> Option<Instant>,
    ) -> Result<Ref<T>, RecvTimeoutError> {
        check_scope().map_err(RecvTimeoutError::Interrupted)?;
        loop {
            let value = self.borrow_and_update();
            if is_wanted(&value) {
                return Ok(value);
            }
            // Not kept while waiting: it may be large.
            drop(value);
            // Changes that keep coming keep nobody past its time.
            let is_late = deadline().is_some_and(|deadline| deadline <= park::now());
            if is_late && self.has_changed() == Ok(true) {
                return Err(RecvTimeoutError::Timeout);
            }
            self.wait_for_change(&deadline)?;
        }
    }

    fn wait_for_change(&mut self, deadline: impl FnOnce() -> Option<Instant>) -> Result<(), RecvTimeoutError> {
        check_scope().map_err(RecvTimeoutError::Interrupted)?;
        let lock = &self.channel.state;
        let state = lock.lock();
        if let Some(known) = state.see(&mut self.seen) {
            return known;
        }
        check_unwinding().map_err(RecvTimeoutError::Interrupted)?;
        let stopped = wait_for_wake(lock, state, |state| &mut state.waiting, self.seen, WaitReason::Watch, deadline);
        match (lock.lock().see(&mut self.seen), stopped) {
            (Some(known), _) => known,
            (None, Some(Stopped::Interrupted(why))) => Err(RecvTimeoutError::Interrupted(why)),
            (None, _) => Err(RecvTimeoutError::Timeout),
        }
    }
}

impl<T> Ref<T> {
    /// Whether the receiver who looked had not seen it before. What a [`Sender`] looks at has not changed; what it replaced
    /// has.
    pub fn has_changed(&self) -> bool {
        self.has_changed
    }

    /// The value, to be shared without the channel.
    pub fn into_arc(self) -> Arc<T> {
        self.value
    }
}

impl<T> Deref for Ref<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

struct Channel<T> {
    state: ShortLock<State<T>>,
    /// Held by who makes a new value out of the old one, while foreign code does so.
    turn: Mutex<()>,
}

struct State<T> {
    value: Arc<T>,
    /// How often the value was replaced.
    version: u64,
    senders: usize,
    receivers: usize,
    /// Receivers that wait for another value, each with the version that it has seen. As that is the latest when they come to
    /// wait, these only grow.
    waiting: WaitQueue<u64>,
    /// Senders that wait for the last receiver to go.
    closing: WaitQueue<()>,
}

impl<T> State<T> {
    fn replace(&mut self, value: Arc<T>) -> Arc<T> {
        self.version += 1;
        std::mem::replace(&mut self.value, value)
    }

    /// What a receiver that has seen this version can know without waiting. It has seen the latest then.
    fn see(&self, seen: &mut u64) -> Option<Result<(), RecvTimeoutError>> {
        if *seen != self.version {
            *seen = self.version;
            return Some(Ok(()));
        }
        (self.senders == 0).then_some(Err(RecvTimeoutError::Disconnected))
    }

    /// Wakes the first who waits for this version or an earlier one.
    fn grant_up_to(&mut self, version: u64) -> Option<Unparker> {
        self.waiting.first().filter(|&&seen| seen < version)?;
        self.waiting.grant(|_| ())
    }

    /// Wakes the first who waits for the last receiver to go, unless one has come meanwhile.
    fn grant_closed(&mut self) -> Option<Unparker> {
        if self.receivers == 0 { self.closing.grant(|()| ()) } else { None }
    }
}

impl<T> Channel<T> {
    /// The right to make a new value out of the old one. Whoever panicked with it has left the value as it was.
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value, and its version.
    fn current(&self) -> (Arc<T>, u64) {
        let state = self.state.lock();
        (state.value.clone(), state.version)
    }

    /// Puts a value into the place of the old one, which the caller drops: that is foreign code.
    fn replace(&self, value: Arc<T>) -> Arc<T> {
        let mut state = self.state.lock();
        let old = state.replace(value);
        let version = state.version;
        drop(state);
        self.tell(version);
        old
    }

    /// Puts a value into the place of the one with this version. If a later one was sent meanwhile, that stays.
    fn replace_version(&self, version: u64, value: Arc<T>) -> Arc<T> {
        let mut state = self.state.lock();
        if state.version != version {
            return value;
        }
        let old = state.replace(value);
        let version = state.version;
        drop(state);
        self.tell(version);
        old
    }

    /// Wakes who waits for this version.
    fn tell(&self, version: u64) {
        unpark_each(|| self.state.lock().grant_up_to(version));
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
        Receiver { channel: self.channel.clone(), seen: self.seen }
    }
}

impl<T> Clone for Ref<T> {
    fn clone(&self) -> Self {
        Ref { value: self.value.clone(), has_changed: self.has_changed }
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
        state.receivers -= 1;
        let last = state.receivers == 0;
        drop(state);
        if last {
            unpark_each(|| self.channel.state.lock().grant_closed());
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

impl<T: fmt::Debug> fmt::Debug for Ref<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
