//! A source as futures wait for it: an attempt, and word left with the source where it would block.

use std::future::IntoFuture;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::{Source, flags_of, is_ready_in_kernel, is_shortage};
use crate::future::word::Word;
use crate::future::{JoinFuture, Sleep, sleep};
use crate::park;
use crate::reactor::{Direction, Readiness};
use crate::scheduler::{current_task, worker};
use crate::spawn::Builder;

/// Where the futures of one handle leave word with its source: one for each direction, the latest.
pub(crate) struct Place {
    readiness: Arc<Readiness>,
    /// Its keys there and what is kept for its wakers, by direction.
    keys: [Option<usize>; 2],
    words: [Word; 2],
    /// Registers the source for who polls on a plain thread, which has no reactor.
    registering: Option<JoinFuture<io::Result<()>>>,
    /// What an accept waits for that has found no descriptor left.
    pause: Option<Box<Sleep>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        for direction in [Direction::Read, Direction::Write] {
            if let Some(key) = self.keys[direction as usize] {
                self.readiness.give_up(key, direction);
            }
        }
    }
}

impl<S: AsFd> Source<S> {
    /// A place for the futures of a new handle.
    pub(crate) fn place(&self) -> Place {
        let readiness = self.registration.readiness.clone();
        Place { readiness, keys: [None; 2], words: Default::default(), registering: None, pause: None }
    }
}

impl<S: AsFd + Send + Sync + 'static> Source<S> {
    /// As [`Source::io`], for a future: attempts until the result is other than `WouldBlock`, or word is left with the source.
    /// The socket's own timeouts are not looked at, which are those of a wait.
    ///
    /// On a plain thread the first that would wait has a dhaga of the default runtime register the source with its worker.
    #[inline]
    pub(crate) fn poll_io<T>(
        self: &Arc<Self>,
        place: &mut Place,
        direction: Direction,
        context: &mut Context<'_>,
        mut attempt: impl FnMut(&S) -> io::Result<T>,
        is_drained: impl Fn(&T) -> bool,
    ) -> Poll<io::Result<T>> {
        loop {
            // A future that is always ready may never come back to whoever polls it.
            park::spend();
            park::check_attempt()?;
            if let Some(done) = self.attempt(direction, &mut attempt, &is_drained) {
                return Poll::Ready(done);
            }
            ready!(self.poll_registered(place, context))?;
            let Place { readiness, keys, words, .. } = &mut *place;
            let (key, word) = (&mut keys[direction as usize], &mut words[direction as usize]);
            if word.left(context.waker(), |waker| readiness.leave_word(key, direction, waker)) {
                self.expect_next_poll();
                return Poll::Pending;
            }
        }
    }

    /// Tells the dhaga that polls what its next poll will touch, most likely.
    #[inline]
    fn expect_next_poll(self: &Arc<Self>) {
        if let Some(task) = current_task() {
            task.expect_event(Arc::as_ptr(self).cast(), Arc::as_ptr(&self.registration.readiness).cast());
        }
    }

    /// As [`Source::accept`], for a future.
    pub(crate) fn poll_accept<T>(
        self: &Arc<Self>,
        place: &mut Place,
        context: &mut Context<'_>,
        mut attempt: impl FnMut(&S) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            let has_paused = place.pause.is_some();
            if let Some(pause) = &mut place.pause {
                park::check_attempt()?;
                ready!(Pin::new(&mut **pause).poll(context));
                place.pause = None;
            }
            let accepted = ready!(self.poll_io(place, Direction::Read, context, &mut attempt, |_| false));
            if !has_paused && accepted.as_ref().is_err_and(is_shortage) {
                place.pause = self.count_shortage().map(|pause| Box::new(sleep(pause)));
                if place.pause.is_some() {
                    continue;
                }
            }
            self.forget_shortages(&accepted);
            return Poll::Ready(accepted);
        }
    }

    /// As [`Source::become_ready`], for a future.
    pub(crate) fn poll_ready(
        self: &Arc<Self>,
        place: &mut Place,
        direction: Direction,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let flags = flags_of(direction);
        let look = |socket: &S| {
            is_ready_in_kernel(socket, flags).then_some(()).ok_or_else(|| io::ErrorKind::WouldBlock.into())
        };
        self.poll_io(place, direction, context, look, |()| false)
    }

    #[inline]
    fn poll_registered(self: &Arc<Self>, place: &mut Place, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.registration.readiness.look().is_registered() {
            return Poll::Ready(Ok(()));
        }
        match worker() {
            Some(worker) => Poll::Ready(self.register(worker)),
            None => self.poll_registered_elsewhere(place, context),
        }
    }

    #[cold]
    fn poll_registered_elsewhere(
        self: &Arc<Self>,
        place: &mut Place,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if place.registering.is_none() {
            let source = self.clone();
            let registers = Builder::new().detached().spawn(move || source.ensure_registered());
            // Its kind might be `WouldBlock`, which would be taken for an attempt's.
            place.registering = Some(registers.map_err(io::Error::other)?.into_future());
        }
        let registering = place.registering.as_mut().expect("it was just set");
        let registered = ready!(Pin::new(registering).poll(context));
        place.registering = None;
        Poll::Ready(registered.unwrap_or_else(|_| Err(io::Error::other(NOT_REGISTERED))))
    }
}

const NOT_REGISTERED: &str = "no worker of the default runtime watches the socket: it had no memory for another dhaga";
