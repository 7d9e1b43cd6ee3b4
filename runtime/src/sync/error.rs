//! How sending and receiving can fail.
//!
//! The variants are std's, and `Interrupted`: the end of the scope is neither the other side's doing
//! nor a timeout of this call, and a caller who does not ask for it passes it up.

use std::error::Error;
use std::fmt;

use crate::park::Interrupt;

/// Why a message was not sent. It is inside.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SendError<T> {
    /// All receivers are gone.
    Disconnected(T),
    /// The scope was cancelled or ran out of time, or the thread is unwinding and cannot wait.
    Interrupted(T, Interrupt),
}

/// Why a message was not sent at once. It is inside.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// There is no room now; in a rendezvous, no receiver waits now.
    Full(T),
    /// All receivers are gone.
    Disconnected(T),
}

/// Why a message was not sent in time. It is inside.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SendTimeoutError<T> {
    /// There was no room within the timeout.
    Timeout(T),
    /// All receivers are gone.
    Disconnected(T),
    /// The scope was cancelled or ran out of time, or the thread is unwinding and cannot wait.
    Interrupted(T, Interrupt),
}

/// Why there is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvError {
    /// All senders are gone, and every message was received.
    Disconnected,
    /// The scope was cancelled or ran out of time, or the thread is unwinding and cannot wait.
    Interrupted(Interrupt),
}

/// Why there is no message now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryRecvError {
    /// None was sent yet that was not received.
    Empty,
    /// All senders are gone, and every message was received.
    Disconnected,
}

/// Why no message came in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvTimeoutError {
    /// None came within the timeout.
    Timeout,
    /// All senders are gone, and every message was received.
    Disconnected,
    /// The scope was cancelled or ran out of time, or the thread is unwinding and cannot wait.
    Interrupted(Interrupt),
}

const NO_RECEIVER: &str = "all receivers are gone";
pub(super) const NO_SENDER: &str = "all senders are gone and nothing is left to receive";

impl<T> SendError<T> {
    /// The message.
    pub fn into_inner(self) -> T {
        match self {
            SendError::Disconnected(value) | SendError::Interrupted(value, _) => value,
        }
    }

    fn text(&self) -> &'static str {
        match self {
            SendError::Disconnected(_) => NO_RECEIVER,
            SendError::Interrupted(..) => "sending was interrupted",
        }
    }
}

impl<T> TrySendError<T> {
    /// The message.
    pub fn into_inner(self) -> T {
        match self {
            TrySendError::Full(value) | TrySendError::Disconnected(value) => value,
        }
    }

    /// Whether it would have to wait for room.
    pub fn is_full(&self) -> bool {
        matches!(self, TrySendError::Full(_))
    }

    fn text(&self) -> &'static str {
        match self {
            TrySendError::Full(_) => "the channel has no room",
            TrySendError::Disconnected(_) => NO_RECEIVER,
        }
    }
}

impl<T> SendTimeoutError<T> {
    /// The message.
    pub fn into_inner(self) -> T {
        match self {
            SendTimeoutError::Timeout(value)
            | SendTimeoutError::Disconnected(value)
            | SendTimeoutError::Interrupted(value, _) => value,
        }
    }

    /// Whether the time was over.
    pub fn is_timeout(&self) -> bool {
        matches!(self, SendTimeoutError::Timeout(_))
    }

    fn text(&self) -> &'static str {
        match self {
            SendTimeoutError::Timeout(_) => "the channel had no room within the timeout",
            SendTimeoutError::Disconnected(_) => NO_RECEIVER,
            SendTimeoutError::Interrupted(..) => "sending was interrupted",
        }
    }
}

impl RecvError {
    fn text(&self) -> &'static str {
        match self {
            RecvError::Disconnected => NO_SENDER,
            RecvError::Interrupted(_) => "receiving was interrupted",
        }
    }
}

impl TryRecvError {
    /// Whether a message may still come.
    pub fn is_empty(&self) -> bool {
        matches!(self, TryRecvError::Empty)
    }

    fn text(&self) -> &'static str {
        match self {
            TryRecvError::Empty => "the channel is empty",
            TryRecvError::Disconnected => NO_SENDER,
        }
    }
}

impl RecvTimeoutError {
    /// Whether the time was over.
    pub fn is_timeout(&self) -> bool {
        matches!(self, RecvTimeoutError::Timeout)
    }

    fn text(&self) -> &'static str {
        match self {
            RecvTimeoutError::Timeout => "nothing was sent within the timeout",
            RecvTimeoutError::Disconnected => NO_SENDER,
            RecvTimeoutError::Interrupted(_) => "receiving was interrupted",
        }
    }
}

/// What all of them have. `Debug` and `Error` ask nothing of the message, as in std, so that any
/// result can be unwrapped.
macro_rules! channel_error {
    ($name:ident $(<$message:ident>)?, $disconnected:pat, $($interrupted:pat => $interrupt:ident)?) => {
        impl $(<$message>)? $name $(<$message>)? {
            /// Whether the other side is gone, so that trying again is in vain.
            pub fn is_disconnected(&self) -> bool {
                matches!(self, $disconnected)
            }
        }

        impl $(<$message>)? fmt::Display for $name $(<$message>)? {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.text())
            }
        }

        impl $(<$message>)? Error for $name $(<$message>)? {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                match self {
                    $($interrupted => Some($interrupt),)?
                    _ => None,
                }
            }
        }

        $(impl<$message> fmt::Debug for $name<$message> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), self.text())
            }
        })?
    };
}

channel_error!(SendError<T>, SendError::Disconnected(_), SendError::Interrupted(_, why) => why);
channel_error!(TrySendError<T>, TrySendError::Disconnected(_),);
channel_error!(SendTimeoutError<T>, SendTimeoutError::Disconnected(_), SendTimeoutError::Interrupted(_, why) => why);
channel_error!(RecvError, RecvError::Disconnected, RecvError::Interrupted(why) => why);
channel_error!(TryRecvError, TryRecvError::Disconnected,);
channel_error!(RecvTimeoutError, RecvTimeoutError::Disconnected, RecvTimeoutError::Interrupted(why) => why);

/// A wait without a timeout fails as one with a timeout that never passes.
pub(super) const NO_TIMEOUT: &str = "a wait without a timeout timed out";

impl<T> SendTimeoutError<T> {
    pub(super) fn without_timeout(self) -> SendError<T> {
        match self {
            SendTimeoutError::Timeout(_) => unreachable!("{NO_TIMEOUT}"),
            SendTimeoutError::Disconnected(value) => SendError::Disconnected(value),
            SendTimeoutError::Interrupted(value, why) => SendError::Interrupted(value, why),
        }
    }
}

impl RecvTimeoutError {
    pub(super) fn without_timeout(self) -> RecvError {
        match self {
            RecvTimeoutError::Timeout => unreachable!("{NO_TIMEOUT}"),
            RecvTimeoutError::Disconnected => RecvError::Disconnected,
            RecvTimeoutError::Interrupted(why) => RecvError::Interrupted(why),
        }
    }
}
