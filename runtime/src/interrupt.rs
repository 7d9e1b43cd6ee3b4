//! Why a wait that can fail gave up, although nothing was wrong with what it waited for.

use std::error::Error;
use std::fmt;
use std::io;
use std::panic::Location;

/// Why a fallible wait gave up although nothing was wrong with what it waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Interrupt {
    /// The deadline of a scope around the wait has passed: of several, the one that came first.
    DeadlineExceeded {
        /// Where that deadline was set.
        set_at: &'static Location<'static>,
    },
    /// The dhaga, or a scope around the wait, was cancelled.
    Cancelled,
    /// The wait was called while its dhaga or thread unwinds from a panic (from a `Drop`, that is). A dhaga never
    /// switches while it unwinds, because std counts panics per OS thread.
    Panicking,
}

impl fmt::Display for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeadlineExceeded { set_at } => write!(f, "the deadline set at {set_at} has passed"),
            Self::Cancelled => f.write_str("the surrounding scope was cancelled"),
            Self::Panicking => f.write_str("refused to wait while the stack unwinds from a panic"),
        }
    }
}

impl Error for Interrupt {}

/// A wait ended because its dhaga was cancelled: the inner error of an [`std::io::Error`] of kind `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Interrupt::Cancelled.fmt(f)
    }
}

impl Error for Cancelled {}

/// A wait was refused because its thread unwinds from a panic: the inner error of an [`std::io::Error`] of kind `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panicking;

impl fmt::Display for Panicking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Interrupt::Panicking.fmt(f)
    }
}

impl Error for Panicking {}

/// The runtime of the caller is being shut down and accepts nothing more: the inner error of an [`std::io::Error`] of kind
/// `Other`, with which an accept ends. See [`Runtime::shutdown`](crate::Runtime::shutdown).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShuttingDown;

impl fmt::Display for ShuttingDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the runtime is being shut down and accepts no more connections")
    }
}

impl Error for ShuttingDown {}

/// A deadline becomes `TimedOut`; the others become `Other`, never `Interrupted`, on which std's helpers would loop.
impl From<Interrupt> for io::Error {
    fn from(interrupt: Interrupt) -> Self {
        match interrupt {
            Interrupt::DeadlineExceeded { .. } => Self::new(io::ErrorKind::TimedOut, interrupt),
            Interrupt::Cancelled => Self::other(Cancelled),
            Interrupt::Panicking => Self::other(Panicking),
        }
    }
}
