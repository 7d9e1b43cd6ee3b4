//! The bridge to `async` code: a dhaga waits for a future, and a future of any executor waits for a dhaga.
//!
//! ```text
//!   block_on(future)    poll ──▶ ready: the output
//!                        ▲ └──▶ pending: park until its waker was used ──┐
//!                        └───────────────────────────────────────────────┘
//!   handle.await        poll ──▶ ended: the result
//!                          └───▶ not yet: leave word, as a join does, with the executor's waker behind it
//! ```
//!
//! There is no executor here: a dhaga that calls [`block_on`] is what a task is elsewhere, or one that [`spawn_future`]
//! starts, which has a stack only while its future is polled. The sockets of this runtime are futures' sockets in
//! [`net::Async`](crate::net::Async), its timers in [`sleep`]. What a future needs of another runtime (tokio's own sockets
//! and timers do) must be there beside this one.

mod sleep;
mod spawned;
pub(crate) mod word;

use std::convert::Infallible;
use std::fmt;
use std::future::IntoFuture;
use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::panicking;
use std::time::Instant;

use crate::big_stack::Lender;
use crate::interrupt::Interrupt;
use crate::owner;
use crate::park::{self, Unparker, WaitReason};
use crate::plain_thread::ThreadParker;
use crate::spawn::{JoinError, JoinHandle};
use crate::sync::oneshot::{Receiver, RecvError, TryRecvError};

pub use self::sleep::{Sleep, sleep, sleep_until};
pub use self::spawned::spawn_future;

/// Waits until `future` is ready, and returns its output. Parks a dhaga, blocks a plain thread, as often as the future is
/// pending; polls it here whenever its waker was used.
///
/// A dhaga polls on a stack that its worker lends it, as large as its own, so that a future which goes deep in its polls
/// keeps no more of the dhaga's stack than one page while it is pending. A poll that waits keeps the lent one, too.
///
/// The code of the future may wait as any other code of the dhaga: for a lock, a socket, in a `block_on` of its own. One that
/// wakes itself at each poll gives way to others now and then.
///
/// It cannot fail, so it goes on when the scope is cancelled or out of time; [`try_block_on`] does not. When the runtime is
/// shut down and the dhaga unwinds, the future is dropped in its place.
///
/// # Panics
///
/// When a poll does, with its payload. As [`park`](park::park()).
///
/// # Aborts
///
/// A dhaga that is unwinding cannot let others run, so it blocks its OS thread. If the future is not ready after ten
/// seconds, the process ends with a sentence that names the dhaga.
///
/// # Examples
///
/// ```
/// let doubled = dhaga::spawn(|| 21);
/// let answer = dhaga::block_on(async { doubled.await.map(|half| half * 2) });
/// assert_eq!(answer?, 42);
/// # Ok::<(), dhaga::JoinError<i32>>(())
/// ```
#[track_caller]
pub fn block_on<F: IntoFuture>(future: F) -> F::Output {
    let limit = panicking().then(|| park::now() + owner::UNWIND_BLOCK_MAX);
    let wait = |signal: &Signal| {
        match limit {
            None => signal.wait(),
            Some(limit) => signal.wait_while_unwinding(limit),
        }
        Ok::<_, Infallible>(())
    };
    let Ok(output) = poll_until_ready(pin!(future.into_future()), Location::caller(), wait);
    output
}

/// As [`block_on`], until the scope ends: then the future is dropped, here.
///
/// The scope is looked at before the first poll, and again whenever the future is pending. An output that is there is
/// delivered.
///
/// # Errors
///
/// The deadline of a scope around the wait passed, or the dhaga or such a scope was cancelled. While the thread unwinds from a
/// panic: [`Interrupt::Panicking`], and the future is not polled at all.
///
/// # Panics
///
/// As [`block_on`].
///
/// # Examples
///
/// ```
/// use std::{future, time::Duration};
///
/// let answer = dhaga::within(Duration::from_millis(5), || dhaga::try_block_on(future::pending::<()>()));
/// assert!(matches!(answer, Err(dhaga::Interrupt::DeadlineExceeded { .. })));
/// ```
#[track_caller]
pub fn try_block_on<F: IntoFuture>(future: F) -> Result<F::Output, Interrupt> {
    // Who tries again and again keeps nobody out, and what is refused has not begun.
    park::spend();
    park::check()?;
    poll_until_ready(pin!(future.into_future()), Location::caller(), Signal::try_wait)
}

/// Polls, and waits between two polls, until it is ready or the wait fails.
fn poll_until_ready<F: Future, E>(
    mut future: Pin<&mut F>,
    site: &'static Location<'static>,
    wait: impl Fn(&Signal) -> Result<(), E>,
) -> Result<F::Output, E> {
    let signal = Arc::new(Signal::here());
    let waker = word::own_waker(signal.clone());
    let mut context = Context::from_waker(&waker);
    let lender = Lender::here(site);
    loop {
        // A future that is always ready, or wakes itself at each poll, never waits.
        park::spend();
        let mut poll = || future.as_mut().poll(&mut context);
        let polled = match &lender {
            Some(lender) => lender.run(poll),
            None => poll(),
        };
        if let Poll::Ready(output) = polled {
            return Ok(output);
        }
        wait(&signal)?;
    }
}

/// Says that a future wants to be polled, and wakes whoever polls it. One for each `block_on`: a wake is not mixed up with
/// that of a wait inside the poll, nor with one for a future that has ended.
struct Signal {
    is_set: AtomicBool,
    sleeper: Unparker,
}

impl Signal {
    /// For polls by the caller.
    fn here() -> Self {
        Self { is_set: AtomicBool::new(false), sleeper: park::unparker() }
    }

    /// Takes what was said since the last poll began. Whoever said it, and whoever found that it was said already, did so
    /// before what comes after this.
    fn take(&self) -> bool {
        self.is_set.swap(false, Ordering::AcqRel)
    }

    /// Wakes the sleeper, who has not parked yet, once more if something was said: a wait inside the poll may have taken the wake.
    fn renew(&self) {
        if self.is_set.load(Ordering::Acquire) {
            self.sleeper.unpark_in_turn();
        }
    }

    fn wait(&self) {
        while !self.take() {
            park::park(WaitReason::Future);
        }
    }

    fn try_wait(&self) -> Result<(), Interrupt> {
        // Also before a poll that is due: one that is always due shall end with its scope.
        park::check()?;
        let deadline = park::earliest(None);
        while !self.take() {
            park::park_until(WaitReason::Future, deadline);
            if !self.is_set.load(Ordering::Relaxed) {
                park::check()?;
            }
        }
        Ok(())
    }

    /// Waits as one who unwinds: on the OS thread. The limit is for all polls together, or a future that wakes itself and
    /// waits for a dhaga of this thread would be polled for ever.
    fn wait_while_unwinding(&self, limit: Instant) {
        while park::now() < limit {
            if self.take() {
                return;
            }
            park::park_until(WaitReason::Future, Some(limit));
        }
        owner::abort_unwinding_wait("a future to become ready");
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_set.swap(true, Ordering::AcqRel) {
            // Behind all who are ready: a connection of HTTP/2, say, is woken by each of its many requests, and shall write what
            // all of them have for it.
            self.sleeper.unpark_in_turn();
        }
    }
}

/// The end of a dhaga, as a future for any executor: what [`JoinHandle`]'s `await` waits for.
///
/// It needs nothing of the executor but its waker. That is used where the dhaga ends, and a panic of it is logged. Dropping
/// the future detaches the dhaga, which runs on, as dropping the handle does.
///
/// # Panics
///
/// When it is polled after it was ready.
#[must_use = "a future does nothing before it is polled, and dropping this one detaches its dhaga"]
pub struct JoinFuture<T> {
    /// Present until the dhaga has ended and its result was given out.
    handle: Option<JoinHandle<T>>,
    /// Present once it was left with the dhaga: one for all polls.
    word: Option<Arc<ThreadParker>>,
}

impl<T> JoinFuture<T> {
    /// Cancels the dhaga, if it has not ended.
    pub(crate) fn cancel(&self) {
        self.handle.as_ref().map(JoinHandle::cancel);
    }
}

/// Awaits the end of the dhaga. Its errors are those of [`JoinHandle::join`] but [`JoinError::Stopped`]: no scope ends it.
impl<T> IntoFuture for JoinHandle<T> {
    type Output = Result<T, JoinError<T>>;
    type IntoFuture = JoinFuture<T>;

    fn into_future(self) -> JoinFuture<T> {
        JoinFuture { handle: Some(self), word: None }
    }
}

impl<T> Future for JoinFuture<T> {
    type Output = Result<T, JoinError<T>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { handle, word } = &mut *self;
        let awaited = handle.as_mut().expect("a future is not polled after it was ready");
        if !awaited.is_finished() && leave_word(awaited, word, context.waker()) {
            return Poll::Pending;
        }
        *word = None;
        let ended = handle.take().expect("it was just there");
        Poll::Ready(ended.into_result())
    }
}

/// Has `waker` woken at the end of the dhaga. Returns false if it has ended.
fn leave_word<T>(handle: &mut JoinHandle<T>, word: &mut Option<Arc<ThreadParker>>, waker: &Waker) -> bool {
    if let Some(word) = word {
        word.redirect(waker);
        // The end may have come before, and woken the waker of an earlier poll.
        return !handle.is_finished();
    }
    let left = word.insert(ThreadParker::of_future(waker));
    handle.register(Unparker::of_future(left))
}

/// The result, which it gives out, is never pinned.
impl<T> Unpin for JoinFuture<T> {}

impl<T> fmt::Debug for JoinFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinFuture").field("handle", &self.handle).finish_non_exhaustive()
    }
}

/// The message of a oneshot, as a future for any executor: what its [`Receiver`]'s `await` waits for.
///
/// Its waker is used where the message is sent or the sender dropped, and a panic of it is logged.
#[must_use = "a future does nothing before it is polled, and dropping this one loses the message"]
pub struct RecvFuture<T> {
    receiver: Receiver<T>,
    word: Option<Arc<ThreadParker>>,
}

/// Awaits the message. It fails with [`RecvError::Disconnected`] only: no scope ends it.
impl<T> IntoFuture for Receiver<T> {
    type Output = Result<T, RecvError>;
    type IntoFuture = RecvFuture<T>;

    fn into_future(self) -> RecvFuture<T> {
        RecvFuture { receiver: self, word: None }
    }
}

impl<T> Future for RecvFuture<T> {
    type Output = Result<T, RecvError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { receiver, word } = &mut *self;
        loop {
            match receiver.try_recv() {
                Ok(value) => return Poll::Ready(Ok(value)),
                Err(TryRecvError::Disconnected) => return Poll::Ready(Err(RecvError::Disconnected)),
                Err(TryRecvError::Empty) => {}
            }
            let word = word.get_or_insert_with(|| ThreadParker::of_future(context.waker()));
            word.redirect(context.waker());
            if receiver.await_message(Unparker::of_future(word)) {
                return Poll::Pending;
            }
        }
    }
}

/// The message, which it gives out, is never pinned.
impl<T> Unpin for RecvFuture<T> {}

impl<T> fmt::Debug for RecvFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvFuture").finish_non_exhaustive()
    }
}
