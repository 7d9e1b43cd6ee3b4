//! What can become of a call, by who is guilty and by what the caller can do about it, and the errors a server answers with.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rmpv::Value;
use serde::de::DeserializeOwned;

/// A cause, shared because a broken connection fails many calls at once.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// Why a call gave no result. `E` is the error type of a [`service`](macro@crate::service)'s method; an untyped call has none.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CallError<E = Infallible> {
    /// The method answered with its own error.
    App(E),
    /// The remote handler answered with another error, or the library at its side did after the handler had begun: a panic,
    /// an answer that could not be sent. Ask the [`RemoteError`] what it says. Of a peer that answers with mere texts it may
    /// also be a refusal.
    Remote(RemoteError),
    /// The library at the peer's side refused the call before its handler began: surely nothing was executed.
    Refused {
        /// Why, and so whether it makes sense to call again: see [`RefusedReason::is_passing`].
        reason: RefusedReason,
        /// What the peer asks to wait before that, 60 s at most.
        retry_after: Option<Duration>,
        /// What it says.
        answer: RemoteError,
    },
    /// The deadline passed first. The call may have been executed.
    DeadlineExceeded,
    /// The scope of the caller was cancelled. The call may have been executed.
    Cancelled,
    /// The caller is unwinding from a panic, and nothing may wait meanwhile.
    Panicking,
    /// No connection could be made. Nothing was sent.
    Connect(Arc<io::Error>),
    /// The connection ended before the answer came.
    Disconnected {
        /// Whether the request may have reached the peer. If not, it is safe to call again.
        maybe_executed: bool,
        /// What ended the connection; none for a peer that closed it in good order.
        source: Option<Cause>,
    },
    /// The peer broke the protocol, and the connection was closed.
    Malformed(Cause),
    /// The connection has as many unsent bytes as it may. Nothing was sent; call again later.
    Overloaded {
        /// `Limits::unsent_bytes_max`.
        limit: usize,
    },
    /// As many calls as allowed wait on the connection. Nothing was sent; call again later.
    TooManyInFlight {
        /// `Limits::calls_per_connection_max`, or the peer's `Limits::in_flight_per_connection_max` if that is less.
        limit: usize,
    },
    /// The request is larger than one frame may be. Nothing was sent; the connection lives.
    TooLarge {
        /// `Limits::frame_bytes_out_max`.
        limit: usize,
    },
    /// The call succeeded, and its result does not fit the type that was asked for.
    Decode(Cause),
    /// The arguments cannot be encoded. Nothing was sent.
    Encode(Cause),
    /// The peer knows no extensions, and [`Extensions::Require`](crate::Extensions) asks for them. No call was sent.
    PlainPeer {
        /// Its address.
        peer: String,
    },
    /// The call is wrong in itself, and why. Nothing was sent.
    ApiMisuse(&'static str),
}

impl CallError {
    /// The same error where methods have one of their own: that of the peer's answer, if it is an `E`.
    pub fn typed<E: DeserializeOwned>(self) -> CallError<E> {
        match self {
            Self::Remote(remote) if remote.is_from_library() => CallError::Remote(remote),
            Self::Remote(remote) => match remote.decode() {
                Ok(error) => CallError::App(error),
                Err(_) => CallError::Remote(remote),
            },
            Self::Refused { reason, retry_after, answer } => CallError::Refused { reason, retry_after, answer },
            Self::DeadlineExceeded => CallError::DeadlineExceeded,
            Self::Cancelled => CallError::Cancelled,
            Self::Panicking => CallError::Panicking,
            Self::Connect(cause) => CallError::Connect(cause),
            Self::Disconnected { maybe_executed, source } => CallError::Disconnected { maybe_executed, source },
            Self::Malformed(cause) => CallError::Malformed(cause),
            Self::Overloaded { limit } => CallError::Overloaded { limit },
            Self::TooManyInFlight { limit } => CallError::TooManyInFlight { limit },
            Self::TooLarge { limit } => CallError::TooLarge { limit },
            Self::Decode(cause) => CallError::Decode(cause),
            Self::Encode(cause) => CallError::Encode(cause),
            Self::PlainPeer { peer } => CallError::PlainPeer { peer },
            Self::ApiMisuse(why) => CallError::ApiMisuse(why),
        }
    }
}

impl<E> CallError<E> {
    /// Whether the peer may have run the call, or begun to. In doubt this is true.
    pub fn maybe_executed(&self) -> bool {
        match self {
            Self::Disconnected { maybe_executed, .. } => *maybe_executed,
            Self::App(_)
            | Self::Remote(_)
            | Self::DeadlineExceeded
            | Self::Cancelled
            | Self::Panicking
            | Self::Malformed(_)
            | Self::Decode(_) => true,
            Self::Refused { .. }
            | Self::Connect(_)
            | Self::Overloaded { .. }
            | Self::TooManyInFlight { .. }
            | Self::TooLarge { .. }
            | Self::Encode(_)
            | Self::PlainPeer { .. }
            | Self::ApiMisuse(_) => false,
        }
    }

    /// Whether the same call may succeed later, and surely was not executed this time. What may have been executed is for
    /// the caller to judge: repeat it if it does no harm twice.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Overloaded { .. } | Self::TooManyInFlight { .. } => true,
            Self::Disconnected { maybe_executed, .. } => !maybe_executed,
            Self::Refused { reason, .. } => reason.is_passing(),
            _ => false,
        }
    }
}

impl<E: fmt::Display> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App(error) => write!(f, "the method answered with an error: {error}"),
            Self::Remote(error) => write!(f, "the remote handler answered with an error: {error}"),
            Self::Refused { answer, .. } => write!(f, "the peer refused the call: {answer}"),
            Self::DeadlineExceeded => write!(f, "the deadline passed before the peer answered"),
            Self::Cancelled => write!(f, "the caller was cancelled while it waited for the answer"),
            Self::Panicking => write!(f, "the caller unwinds from a panic and may not wait for an answer"),
            Self::Connect(_) => write!(f, "no connection to the peer could be made"),
            Self::Disconnected { maybe_executed: true, .. } => {
                write!(f, "the connection ended before the answer came, and the peer may have run the call")
            }
            Self::Disconnected { maybe_executed: false, .. } => {
                write!(f, "the connection ended before the call was sent")
            }
            Self::Malformed(_) => write!(f, "the peer broke the protocol and the connection was closed"),
            Self::Overloaded { limit } => write!(
                f,
                "the peer takes less than we send: {limit} bytes are unsent on this connection (Limits::unsent_bytes_max)"
            ),
            Self::TooManyInFlight { limit } => {
                write!(
                    f,
                    "{limit} calls already wait on this connection (Limits::calls_per_connection_max, or what the peer serves at a time)"
                )
            }
            Self::TooLarge { limit } => {
                write!(f, "the request is larger than the {limit} bytes of a frame (Limits::frame_bytes_out_max)")
            }
            Self::Decode(_) => write!(f, "the result does not fit the type that the caller asked for"),
            Self::Encode(_) => write!(f, "the arguments of the caller cannot be encoded"),
            Self::PlainPeer { peer } => {
                write!(
                    f,
                    "{peer} is a plain peer, which knows no extensions, and they are required (Extensions::Require)"
                )
            }
            Self::ApiMisuse(why) => f.write_str(why),
        }
    }
}

/// Also for an `E` that is a mere text: it stands in the sentence, and is no source.
impl<E: fmt::Debug + fmt::Display> Error for CallError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Connect(cause) => Some(cause.as_ref()),
            Self::Disconnected { source, .. } => source.as_ref().map(|cause| cause.as_ref() as _),
            Self::Malformed(cause) | Self::Decode(cause) | Self::Encode(cause) => Some(cause.as_ref()),
            _ => None,
        }
    }
}

/// Names of the kinds of errors that a client counts.
pub(crate) const CALL_ERROR_KINDS: &[&str] = &[
    "remote",
    "refused",
    "deadline",
    "cancelled",
    "panicking",
    "connect",
    "disconnected",
    "malformed",
    "overloaded",
    "too_many_in_flight",
    "too_large",
    "decode",
    "encode",
    "misuse",
    "plain_peer",
];

impl CallError {
    /// A refusal by a layer of our own side: see [`CallError::Refused`].
    pub fn denied(reason: impl fmt::Display) -> Self {
        let mut raw = Vec::new();
        rmp::encode::write_str(&mut raw, &reason.to_string()).expect("a vector takes everything");
        Self::Refused { reason: RefusedReason::Denied, retry_after: None, answer: RemoteError::of_library(raw) }
    }

    /// Of what kind it is: a number in [`CALL_ERROR_KINDS`].
    pub(crate) fn kind(&self) -> u8 {
        match self {
            Self::App(_) | Self::Remote(_) => 0,
            Self::Refused { .. } => 1,
            Self::DeadlineExceeded => 2,
            Self::Cancelled => 3,
            Self::Panicking => 4,
            Self::Connect(_) => 5,
            Self::Disconnected { .. } => 6,
            Self::Malformed(_) => 7,
            Self::Overloaded { .. } => 8,
            Self::TooManyInFlight { .. } => 9,
            Self::TooLarge { .. } => 10,
            Self::Decode(_) => 11,
            Self::Encode(_) => 12,
            Self::ApiMisuse(_) => 13,
            Self::PlainPeer { .. } => 14,
        }
    }
}

/// Why a peer refused a call before its handler began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusedReason {
    /// What came was no request. A mistake of the library's at one of the two sides.
    InvalidRequest,
    /// The server has no such method.
    UnknownMethod,
    /// An argument is missing or has another type.
    InvalidArguments,
    /// The server ends. Another one, or the same after its start, may take the call.
    ShuttingDown,
    /// The server has no room for more calls now.
    Overloaded,
    /// The server does not let this caller call this.
    Denied,
    /// It was given up before it began.
    Cancelled,
    /// Its deadline had passed before it began.
    TooLate,
}

impl RefusedReason {
    /// Whether the same call may be taken later.
    pub fn is_passing(self) -> bool {
        matches!(self, Self::ShuttingDown | Self::Overloaded)
    }
}

/// In which form a server's errors travel. All forms are read by every [`Client`](crate::Client).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorProfile {
    /// Texts, which every peer can show. What the server's library says cannot be told from what a method says.
    #[default]
    Text,
    /// `[code, text]` as Neovim does: 1 for a call that is wrong in itself, 0 for everything else.
    CodeText,
    /// `{code, name, message, data}`, in which nothing is lost: refusals arrive as [`CallError::Refused`]. Errors of methods
    /// stand in `data`. The codes are listed in `docs/protocol.md`.
    Map,
}

/// The error value of an answer, as the peer sent it.
///
/// Peers write errors as text, as `[code, text]` (Neovim), or as a map with `code` and `message`; `Display` shows each of
/// them as a sentence and any other value as it is. [`decode`](RemoteError::decode) gives the value in a type of yours.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteError {
    raw: Arc<[u8]>,
    is_from_library: bool,
}

/// Characters of a peer's error text that are shown: the peer must not fill our logs.
const SHOWN_CHARS_MAX: usize = 1000;

/// Levels of a peer's error value that are decoded: as many as a frame may nest by default, and the two that the library
/// charges more. Decoding recurses on whatever stack it is called on.
const DECODED_DEPTH_MAX: usize = 34;

impl RemoteError {
    /// An error from its encoded value.
    pub fn from_raw(raw: impl Into<Arc<[u8]>>) -> Self {
        Self { raw: raw.into(), is_from_library: false }
    }

    /// What no method has said.
    pub(crate) fn of_library(raw: impl Into<Arc<[u8]>>) -> Self {
        Self { raw: raw.into(), is_from_library: true }
    }

    /// Whether surely the library at the peer's side says it, and no method.
    pub fn is_from_library(&self) -> bool {
        self.is_from_library
    }

    /// The encoded MessagePack value.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The value as a `T`.
    ///
    /// # Errors
    ///
    /// [`CallError::Decode`] when the value is not a `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, CallError> {
        let mut decoder = rmp_serde::Deserializer::from_read_ref(&self.raw);
        decoder.set_max_depth(DECODED_DEPTH_MAX);
        T::deserialize(&mut decoder).map_err(|error| CallError::Decode(Arc::new(error)))
    }

    /// The text in the value, if it has one of the usual forms.
    pub fn text(&self) -> Option<String> {
        match self.decode().ok()? {
            Value::Array(parts) if parts.len() <= 2 => parts.last()?.as_str().map(str::to_owned),
            Value::Map(entries) => {
                ["message", "text", "error"].iter().find_map(|key| entry(&entries, key)?.as_str().map(str::to_owned))
            }
            value => value.as_str().map(str::to_owned),
        }
    }

    /// The number in the value, if it has the form `[code, text]` or a map with `code`.
    pub fn code(&self) -> Option<i64> {
        match self.decode().ok()? {
            Value::Array(parts) if parts.len() == 2 => parts[0].as_i64(),
            Value::Map(entries) => entry(&entries, "code")?.as_i64(),
            _ => None,
        }
    }
}

fn entry<'v>(entries: &'v [(Value, Value)], key: &str) -> Option<&'v Value> {
    entries.iter().find(|(name, _)| name.as_str() == Some(key)).map(|(_, value)| value)
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match (self.text(), self.code()) {
            (Some(text), Some(code)) if !self.is_from_library => format!("{text} (code {code})"),
            (Some(text), _) => text,
            (None, _) => match self.decode::<Value>() {
                Ok(value) => value.to_string(),
                Err(_) => format!("a value of {} bytes", self.raw.len()),
            },
        };
        // Control characters could repaint a terminal; line ends are kept for the tracebacks of some peers.
        for shown in text.chars().take(SHOWN_CHARS_MAX) {
            match shown {
                '\n' | '\t' => write!(f, "{shown}")?,
                _ if shown.is_control() => write!(f, "{}", shown.escape_default())?,
                _ => write!(f, "{shown}")?,
            }
        }
        if text.chars().nth(SHOWN_CHARS_MAX).is_some() { f.write_str(" …") } else { Ok(()) }
    }
}

impl fmt::Debug for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteError({self})")
    }
}

impl Error for RemoteError {}

/// What a server answers when no handler could: sent in the form of the connection's [`ErrorProfile`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Nobody registered the method.
    UnknownMethod {
        /// The name in the request.
        method: String,
    },
    /// The request is MessagePack and not a request.
    BadRequest {
        /// What is wrong with it.
        reason: String,
    },
    /// An argument is missing or has another type.
    BadArgument {
        /// Which one, from 0.
        index: usize,
        /// What the decoder says.
        reason: String,
    },
    /// The handler panicked.
    HandlerPanicked,
    /// As many handlers run for this connection or this server as may.
    TooManyInFlight {
        /// The limit that was met.
        limit: usize,
    },
    /// The handler's result, or its error, cannot be sent.
    BadResult {
        /// Why not.
        reason: String,
    },
    /// The server ends and takes no new calls.
    ShuttingDown,
    /// The caller has given it up before it began.
    Cancelled,
    /// The deadline of the caller had passed before it began.
    TooLate,
    /// The server does not let this caller call this.
    Denied {
        /// Why not.
        reason: String,
    },
}

impl Refusal {
    /// Whether the handler has not begun, so that the same request may be sent again.
    pub fn is_before_execution(&self) -> bool {
        !matches!(self, Self::HandlerPanicked | Self::BadResult { .. })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownMethod { method } => write!(f, "this server has no method {method:?}"),
            Self::BadRequest { reason } => write!(f, "this is not a request: {reason}"),
            Self::BadArgument { index, reason } => {
                write!(f, "argument {index} does not fit the method: {reason}")
            }
            Self::HandlerPanicked => write!(f, "the handler panicked"),
            Self::TooManyInFlight { limit } => {
                write!(f, "the server already runs {limit} calls, call again later")
            }
            Self::BadResult { reason } => {
                write!(f, "the handler's answer cannot be sent: {reason}")
            }
            Self::ShuttingDown => write!(f, "the server is shutting down"),
            Self::Cancelled => write!(f, "the call was cancelled before it began"),
            Self::TooLate => write!(f, "the deadline of the call had passed before it began"),
            Self::Denied { reason } => write!(f, "the server does not allow this call: {reason}"),
        }
    }
}

impl Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(value: &Value) -> RemoteError {
        RemoteError::from_raw(rmp_serde::to_vec(value).expect("a value encodes"))
    }

    fn check(value: Value, shown: &str) {
        assert_eq!(remote(&value).to_string(), shown);
    }

    #[test]
    fn every_usual_form_of_error_reads_as_a_sentence() {
        check("no such file".into(), "no such file");
        check(Value::Array(vec![0.into(), "bad buffer".into()]), "bad buffer (code 0)");
        check(Value::Array(vec!["only text".into()]), "only text");
        check(Value::Map(vec![("code".into(), 7.into()), ("message".into(), "quota".into())]), "quota (code 7)");
        check(Value::Map(vec![("error".into(), "quota".into())]), "quota");
        check(42.into(), "42");
        check(Value::Array(vec![1.into(), 2.into(), 3.into()]), "[1, 2, 3]");
    }

    #[test]
    fn hostile_errors_are_shown_in_bounds() {
        check("a\x1b[2Jb\nc".into(), "a\\u{1b}[2Jb\nc");
        assert_eq!(remote(&"x".repeat(1 << 20).into()).to_string().chars().count(), SHOWN_CHARS_MAX + 2);
        assert_eq!(RemoteError::from_raw(vec![0x91; 100_000]).to_string(), "a value of 100000 bytes");
        assert_eq!(RemoteError::from_raw(vec![0xc1]).to_string(), "a value of 1 bytes");
        assert_eq!(RemoteError::from_raw(vec![]).to_string(), "a value of 0 bytes");
    }

    #[test]
    fn errors_decode_into_the_callers_type() {
        let error = remote(&Value::Array(vec![3.into(), "text".into()]));
        assert_eq!(error.decode::<(u8, String)>().expect("it is such a pair"), (3, "text".to_owned()));
        assert!(matches!(error.decode::<bool>(), Err(CallError::Decode(_))));
    }

    fn refused(reason: RefusedReason) -> CallError {
        CallError::Refused { reason, retry_after: None, answer: remote(&"not now".into()) }
    }

    #[test]
    fn only_what_surely_was_not_executed_is_retryable() {
        let source = || Arc::new(io::Error::from(io::ErrorKind::ConnectionReset));
        let cases = [
            (CallError::<Infallible>::Remote(remote(&1.into())), true, false),
            (CallError::DeadlineExceeded, true, false),
            (CallError::Connect(source()), false, true),
            (CallError::Disconnected { maybe_executed: true, source: Some(source()) }, true, false),
            (CallError::Disconnected { maybe_executed: false, source: None }, false, true),
            (CallError::Overloaded { limit: 1 }, false, true),
            (CallError::TooManyInFlight { limit: 1 }, false, true),
            (CallError::TooLarge { limit: 1 }, false, false),
            (refused(RefusedReason::Overloaded), false, true),
            (refused(RefusedReason::ShuttingDown), false, true),
            (refused(RefusedReason::UnknownMethod), false, false),
            (refused(RefusedReason::Denied), false, false),
        ];
        for (error, maybe_executed, retryable) in cases {
            assert_eq!(error.maybe_executed(), maybe_executed, "{error}");
            assert_eq!(error.is_retryable(), retryable, "{error}");
        }
    }

    #[test]
    fn the_cause_is_the_source_and_not_in_the_text() {
        let reset = Arc::new(io::Error::from(io::ErrorKind::ConnectionReset));
        let error = CallError::<Infallible>::Disconnected { maybe_executed: true, source: Some(reset) };
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("connection reset"));
        assert!(!error.to_string().contains("reset"));
    }
}
