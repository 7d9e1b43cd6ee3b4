//! Every wait under every condition: the table of `docs/waits.md`, a test for each of its cells.
//!
//! A row is a [`Wait`], a column one of the functions in [`columns`]; a cell is the test `waits::<row>::<column>`.

use std::io;

use dhaga::sync::{
    AcquireError, AcquireTimeoutError, LockTimeoutError, WaitTimeoutError,
    channel::{RecvError, RecvTimeoutError, SendError, SendTimeoutError},
};
use dhaga::{Cancelled, Interrupt, JoinError, Panicking, ShuttingDown};

mod columns;
mod rows;
mod table;

/// One way to wait, for something that is not there yet.
trait Wait: Send + Sync + 'static {
    /// What it does when it is stopped from outside.
    const MANNER: Manner = Manner::Fails;
    /// It suspends even when what it waits for is there.
    const ALWAYS_SUSPENDS: bool = false;
    /// What one that fails is told at a shutdown.
    const AT_SHUTDOWN: Ended = Ended::Cancelled;

    fn new() -> Self;
    /// Waits for it.
    fn wait(&self) -> Ended;
    /// Brings it about, so that one wait ends: now, or when it comes. Never waits for the waiter.
    fn wake(&self);
    /// As [`Wait::wake`], for a wait that comes after one that was unwound.
    fn wake_again(&self) {
        self.wake();
    }
}

/// What a wait does that is stopped by a deadline or a cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// It returns an error.
    Fails,
    /// It goes on until it has what it waits for.
    GoesOn,
    /// It returns early, since it has no error to return.
    Returns,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Done,
    Deadline,
    Cancelled,
    Panicking,
    ShuttingDown,
    /// In another way, which no cell of the table knows.
    Otherwise(&'static str),
}

impl From<Interrupt> for Ended {
    fn from(interrupt: Interrupt) -> Self {
        match interrupt {
            Interrupt::DeadlineExceeded { .. } => Self::Deadline,
            Interrupt::Cancelled => Self::Cancelled,
            Interrupt::Panicking => Self::Panicking,
            _ => Self::Otherwise("an unknown interrupt"),
        }
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        let is = |found: bool, ended| found.then_some(ended);
        let cause = error.get_ref();
        let deadline = error.kind() == io::ErrorKind::TimedOut
            && cause.is_some_and(|cause| matches!(cause.downcast_ref(), Some(Interrupt::DeadlineExceeded { .. })));
        is(deadline, Self::Deadline)
            .or_else(|| is(cause.is_some_and(|cause| cause.is::<Cancelled>()), Self::Cancelled))
            .or_else(|| is(cause.is_some_and(|cause| cause.is::<Panicking>()), Self::Panicking))
            .or_else(|| is(cause.is_some_and(|cause| cause.is::<ShuttingDown>()), Self::ShuttingDown))
            .unwrap_or(Self::Otherwise("another I/O error"))
    }
}

/// From an error that may hold an [`Interrupt`].
macro_rules! ended_from {
    ($($type:ty: $interrupt:pat => $why:ident),+ $(,)?) => {
        $(impl From<$type> for Ended {
            fn from(error: $type) -> Self {
                match error {
                    $interrupt => $why.into(),
                    #[allow(unreachable_patterns)]
                    _ => Self::Otherwise(stringify!($type)),
                }
            }
        })+
    };
}

ended_from! {
    RecvError: RecvError::Interrupted(why) => why,
    RecvTimeoutError: RecvTimeoutError::Interrupted(why) => why,
    SendError<()>: SendError::Interrupted((), why) => why,
    SendTimeoutError<()>: SendTimeoutError::Interrupted((), why) => why,
    AcquireError: AcquireError::Interrupted(why) => why,
    AcquireTimeoutError: AcquireTimeoutError::Interrupted(why) => why,
    WaitTimeoutError: WaitTimeoutError::Interrupted(why) => why,
    JoinError<()>: JoinError::Stopped(why, _) | JoinError::Withdrawn(why) => why,
}

impl<G> From<LockTimeoutError<G>> for Ended {
    fn from(error: LockTimeoutError<G>) -> Self {
        match error {
            LockTimeoutError::Interrupted(why) => why.into(),
            _ => Self::Otherwise("LockTimeoutError"),
        }
    }
}

impl<E: Into<Self>> From<Result<(), E>> for Ended {
    fn from(result: Result<(), E>) -> Self {
        result.map_or_else(Into::into, |()| Self::Done)
    }
}
