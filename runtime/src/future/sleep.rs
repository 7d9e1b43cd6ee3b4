//! Waiting for time to pass, as a future.

use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::JoinFuture;
use super::word::Word;
use crate::around;
use crate::scheduler::{Alarm, Worker, now, worker};
use crate::spawn::Builder;

/// A future that is ready after `duration`, counted from this call. Accurate to about a millisecond.
///
/// For code that is `async` already; elsewhere [`dhaga::sleep`](crate::sleep()) is shorter. It may be polled by any executor:
/// in a dhaga it is a timer of its worker and takes no memory but its own; on a plain thread, which has no timers, a dhaga of
/// the default runtime keeps the time for it.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
///
/// let begun = Instant::now();
/// dhaga::block_on(dhaga::future::sleep(Duration::from_millis(5)));
/// assert!(begun.elapsed() >= Duration::from_millis(5));
/// ```
pub fn sleep(duration: Duration) -> Sleep {
    Sleep::new(around::after(duration))
}

/// As [`sleep`], until an instant.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep::new(Some(deadline))
}

/// Ready when its time has come. Made by [`sleep`] and [`sleep_until`].
///
/// # Panics
///
/// A poll on a plain thread panics when the default runtime cannot be started, or has no room for another dhaga.
#[must_use = "a future does nothing before it is polled"]
pub struct Sleep {
    /// `None`: beyond what the clock can tell.
    deadline: Option<Instant>,
    clock: Clock,
    word: Word,
}

/// Who keeps the time.
enum Clock {
    /// Nobody yet.
    Unset,
    /// The worker where it was polled last.
    Alarm(Alarm),
    /// A dhaga, for a plain thread.
    Dhaga(Sleeper),
}

impl Sleep {
    fn new(deadline: Option<Instant>) -> Self {
        Self { deadline, clock: Clock::Unset, word: Word::default() }
    }

    /// When it is ready; `None` for a time beyond what the clock can tell.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether its time has come.
    pub fn is_elapsed(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now())
    }

    /// Sets another time. As with every change to a future, poll it again to be woken then.
    ///
    /// A later time costs nothing: the timer that is armed wakes the future once too often.
    pub fn reset(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
        match &self.clock {
            Clock::Alarm(alarm) if alarm.at <= deadline => {}
            _ => self.clock = Clock::Unset,
        }
    }

    fn poll_at(&mut self, worker: &'static Worker, at: Instant, context: &Context<'_>) {
        let Self { clock, word, .. } = self;
        word.left(context.waker(), |waker| {
            if let Clock::Alarm(alarm) = clock
                && alarm.is_of(worker)
                && worker.redirect_alarm(alarm, waker)
            {
                return;
            }
            *clock = Clock::Alarm(worker.set_alarm(at, waker));
        });
    }

    fn poll_on_thread(&mut self, deadline: Instant, context: &mut Context<'_>) -> Poll<()> {
        if !matches!(self.clock, Clock::Dhaga(_)) {
            self.clock = Clock::Dhaga(Sleeper::start(deadline));
        }
        match &mut self.clock {
            Clock::Dhaga(sleeper) => Pin::new(&mut sleeper.0).poll(context).map(drop),
            _ => unreachable!("it was just set"),
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        while now() < deadline {
            if let Some(worker) = worker() {
                self.poll_at(worker, deadline, context);
                return Poll::Pending;
            }
            if self.poll_on_thread(deadline, context).is_pending() {
                return Poll::Pending;
            }
            // Its runtime was shut down, and another may be there.
            self.clock = Clock::Unset;
        }
        self.clock = Clock::Unset;
        Poll::Ready(())
    }
}

/// A dhaga that sleeps for a plain thread.
struct Sleeper(JoinFuture<()>);

impl Sleeper {
    fn start(deadline: Instant) -> Self {
        let started = Builder::new().detached().spawn(move || crate::sleep_until(deadline));
        match started {
            Ok(handle) => Self(handle.into_future()),
            Err(error) => panic!("no dhaga could be started that keeps the time for a plain thread: {error}"),
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}
