//! A dhaga for a future: it has a stack during a poll, and none while the future is pending.
//!
//! ```text
//!                       ┌─────── its waker was used ───────┐
//!                       ▼                                  │
//!   spawn ──▶ a stack of the pool ──▶ poll ──▶ pending: the stack goes back
//!                                       │
//!                                       └────▶ ready, cancelled or out of time: the future is dropped here
//! ```
//!
//! It is a dhaga like others: number, name, locals, deadline and cancellation stay from poll to poll, and so does its worker.

use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::{Signal, word};
use crate::around::expect_may_suspend;
use crate::interrupt::Interrupt;
use crate::park::{self, WaitReason};
use crate::runtime::SpawnError;
use crate::spawn::{Builder, JoinHandle, expect_spawned};

/// Starts a dhaga that polls `future` until it is ready: as `spawn(|| try_block_on(future))`, with less memory. While the
/// future is pending it has no stack; each poll runs on the one that its worker used last. So a future that mostly waits, a
/// connection of an `async` library above all, takes a few hundred bytes besides its own.
///
/// The code of the future may wait as any other code of a dhaga. Then it keeps that stack until the poll ends.
///
/// When the dhaga is cancelled or out of time, the future is dropped, and the result is an error, as that of
/// [`try_block_on`](super::try_block_on). When the runtime is shut down and the dhaga unwinds, the future is dropped as well.
///
/// # Panics
///
/// When the runtime's limit of dhagas is reached; [`Builder::spawn_future`] returns the error instead.
///
/// # Examples
///
/// ```
/// let doubled = dhaga::spawn_future(async { 2 * 21 });
/// assert_eq!(doubled.join()??, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn spawn_future<F>(future: F) -> JoinHandle<Result<F::Output, Interrupt>>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    expect_spawned(Builder::new().spawn_future(future))
}

impl Builder {
    /// As [`spawn_future`](crate::spawn_future()), with a limit that is met as an error. A stack size is that of each poll.
    ///
    /// # Errors
    ///
    /// As [`Builder::spawn`].
    #[track_caller]
    pub fn spawn_future<F>(self, future: F) -> Result<JoinHandle<Result<F::Output, Interrupt>>, SpawnError>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.submit_steps(Location::caller(), polls(Box::pin(future)))
    }

    /// As [`Builder::spawn_future`], on the caller's own worker; neither the future nor its output needs to be `Send`.
    ///
    /// # Errors
    ///
    /// As [`Builder::spawn_local`].
    #[track_caller]
    pub fn spawn_local_future<F>(self, future: F) -> Result<JoinHandle<Result<F::Output, Interrupt>>, SpawnError>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.submit_steps_here(Location::caller(), polls(Box::pin(future)))
    }
}

/// What its dhaga does whenever it is woken.
fn polls<F: Future>(future: Pin<Box<F>>) -> impl FnMut() -> Poll<Result<F::Output, Interrupt>> {
    let mut future = Some(future);
    let mut said = None;
    move || {
        let pending = future.as_mut().expect("a future is not polled after it was ready");
        let polled = poll_if_woken(pending.as_mut(), &mut said);
        if polled.is_ready() {
            // Here, where a panic of its `Drop` still goes to whoever joins.
            future = None;
        }
        polled
    }
}

fn poll_if_woken<F: Future>(
    future: Pin<&mut F>,
    said: &mut Option<(Arc<Signal>, Waker)>,
) -> Poll<Result<F::Output, Interrupt>> {
    // Also before a poll that is due: one that is always due shall end with its scope.
    if let Err(interrupt) = park::check() {
        return Poll::Ready(Err(interrupt));
    }
    if said.as_ref().is_some_and(|(signal, _)| !signal.take()) {
        return Poll::Pending;
    }
    let (signal, waker) = said.get_or_insert_with(|| {
        let signal = Arc::new(Signal::here());
        (signal.clone(), word::own_waker(signal))
    });
    if let Poll::Ready(output) = future.poll(&mut Context::from_waker(waker)) {
        return Poll::Ready(Ok(output));
    }
    // The future may keep such a promise from poll to poll. It is broken here, where a panic is the dhaga's own.
    expect_may_suspend(WaitReason::Future);
    // A wait inside the poll may have taken the wakes, that of a cancel as well as that of the waker.
    if let Err(interrupt) = park::check() {
        return Poll::Ready(Err(interrupt));
    }
    signal.renew();
    Poll::Pending
}
