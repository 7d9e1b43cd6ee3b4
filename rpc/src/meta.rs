//! What goes with a call beside its arguments: the time that is left, a trace, and pairs of the user's.
//!
//! ```text
//!   [2, "$/meta", [7, {d: 1500, tp: "00-…", md: {"tenant": "blue"}}]]
//!   [0, 7, "add", [1, 2]]
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dhaga::ContextKey;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::encode::{self, EncodeError};
use crate::error::CallError;
use crate::extension::META;
use crate::limits::{Limits, METADATA_BYTES_MAX, METADATA_PAIRS_MAX};
use crate::message;
use crate::trace::TraceContext;

/// What a whole `$/meta` may take beside the pairs, their headers included.
const REST_BYTES_MAX: usize = 1 << 10;

/// Milliseconds of a second.
const MILLIS: f64 = 1000.0;

/// Pairs of text that go with calls, by name; see [`with_metadata`](crate::with_metadata).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(BTreeMap<String, String>);

/// Metadata above a limit. Nothing was sent; it is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetadataError {
    /// More pairs than go with a call.
    TooMany {
        /// [`METADATA_PAIRS_MAX`].
        limit: usize,
    },
    /// Names and values are longer than what goes with a call.
    TooLarge {
        /// [`METADATA_BYTES_MAX`].
        limit: usize,
    },
}

impl Metadata {
    /// No pairs.
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// The value under a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All pairs, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These pairs and `more`, which win where the name is the same.
    pub(crate) fn with<K, V>(&self, more: impl IntoIterator<Item = (K, V)>) -> Result<Self, MetadataError>
    where
        K: Into<String>,
        V: Into<String>,
    {
        let mut all = self.clone();
        all.0.extend(more.into_iter().map(|(name, value)| (name.into(), value.into())));
        all.check()?;
        Ok(all)
    }

    fn check(&self) -> Result<(), MetadataError> {
        if self.0.len() > METADATA_PAIRS_MAX {
            return Err(MetadataError::TooMany { limit: METADATA_PAIRS_MAX });
        }
        let bytes: usize = self.0.iter().map(|(name, value)| name.len() + value.len()).sum();
        match bytes > METADATA_BYTES_MAX {
            true => Err(MetadataError::TooLarge { limit: METADATA_BYTES_MAX }),
            false => Ok(()),
        }
    }
}

/// What the calls below some code say beside their arguments.
#[derive(Clone, Default)]
pub(crate) struct Outgoing {
    pub(crate) metadata: Arc<Metadata>,
    pub(crate) trace: Option<TraceContext>,
}

/// As `with_metadata` and `with_trace` have left it.
pub(crate) static OUTGOING: ContextKey<Outgoing> = ContextKey::new();

/// What came with a request.
#[derive(Default)]
pub(crate) struct Meta {
    pub(crate) deadline: Option<Instant>,
    pub(crate) trace: Option<TraceContext>,
    pub(crate) metadata: Metadata,
}

/// A `$/meta` that was read, before its request is.
pub(crate) struct Announced {
    /// The request that it belongs to.
    pub(crate) id: u32,
    /// What it is charged: its bytes.
    pub(crate) bytes: usize,
    /// Or why that one is refused.
    pub(crate) meta: Result<Meta, String>,
}

#[derive(Serialize)]
struct Said<'a> {
    /// Milliseconds, with a fraction: each further hop has less, and none less than its caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    d: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tp: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    md: &'a BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Heard {
    #[serde(default)]
    d: Option<f64>,
    #[serde(default)]
    tp: Option<String>,
    #[serde(default)]
    md: BTreeMap<String, String>,
}

/// Appends the `$/meta` of the request `id`.
pub(crate) fn encode_meta(
    out: &mut Vec<u8>,
    limits: &Limits,
    id: u32,
    left: Option<Duration>,
    outgoing: &Outgoing,
) -> Result<(), EncodeError> {
    let said = Said {
        d: left.map(|left| left.as_secs_f64() * MILLIS),
        tp: outgoing.trace.map(|trace| trace.to_string()),
        md: &outgoing.metadata.0,
    };
    encode::encode_notification(out, limits, META, &(id, said))
}

/// Reads the params of a `$/meta`, at `now`. `None`: it is of no form that names a request.
pub(crate) fn read_meta(params: &[u8], limits: &Limits, now: Instant) -> Option<Announced> {
    let (id, _): (u32, IgnoredAny) = message::decode(params, limits).ok()?;
    let bytes = params.len();
    if bytes > METADATA_BYTES_MAX + REST_BYTES_MAX {
        let error = MetadataError::TooLarge { limit: METADATA_BYTES_MAX };
        return Some(Announced { id, bytes: 0, meta: Err(error.to_string()) });
    }
    let heard: Result<(u32, Heard), _> = message::decode(params, limits);
    let meta = match heard {
        Ok((_, heard)) => heard.understood(now),
        Err(error) => Err(format!("its $/meta cannot be read: {error}")),
    };
    Some(Announced { id, bytes, meta })
}

impl Heard {
    fn understood(self, now: Instant) -> Result<Meta, String> {
        let metadata = Metadata(self.md);
        metadata.check().map_err(|error| error.to_string())?;
        if self.d.is_some_and(|millis| millis.is_nan() || millis < 0.0) {
            return Err("its $/meta cannot be read: d is no time".to_owned());
        }
        let left = self.d.and_then(|millis| Duration::try_from_secs_f64(millis / MILLIS).ok());
        Ok(Meta {
            // Beyond what the clock can tell is no deadline.
            deadline: left.and_then(|left| now.checked_add(left)),
            // A broken one begins a new trace, says its specification.
            trace: self.tp.and_then(|text| text.parse().ok()),
            metadata,
        })
    }
}

impl fmt::Display for MetadataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany { limit } => write!(f, "more than {limit} pairs of metadata (METADATA_PAIRS_MAX)"),
            Self::TooLarge { limit } => write!(f, "metadata of more than {limit} bytes (METADATA_BYTES_MAX)"),
        }
    }
}

impl std::error::Error for MetadataError {}

/// So that `?` passes it on where calls are made.
impl<E> From<MetadataError> for CallError<E> {
    fn from(error: MetadataError) -> Self {
        Self::Encode(Arc::new(error))
    }
}

#[cfg(test)]
mod tests {
    use rmpv::Value;

    use super::*;
    use crate::message::Message;

    fn read(value: Value) -> Option<Announced> {
        let raw = rmp_serde::to_vec(&value).expect("a value encodes");
        read_meta(&raw, &Limits::default(), Instant::now())
    }

    fn meta(entries: Vec<(&str, Value)>) -> Value {
        let map = Value::Map(entries.into_iter().map(|(key, value)| (key.into(), value)).collect());
        Value::Array(vec![7.into(), map])
    }

    fn check_refused(value: Value, reason: &str) {
        let announced = read(value).expect("it names a request");
        let refused = announced.meta.err().expect("it is refused");
        assert!(announced.id == 7 && refused.contains(reason), "{refused}");
    }

    #[test]
    fn what_is_said_is_heard() {
        let limits = Limits::default();
        let trace = TraceContext::new(true);
        let metadata = Metadata::default().with([("tenant", "blue"), ("user", "asha")]).expect("it is little");
        let outgoing = Outgoing { metadata: Arc::new(metadata.clone()), trace: Some(trace) };
        let mut frame = Vec::new();
        encode_meta(&mut frame, &limits, 7, Some(Duration::from_micros(1500)), &outgoing).expect("it encodes");
        let Ok(Message::Notification { method: META, params }) = Message::parse(&frame, &limits) else {
            panic!("{frame:x?}")
        };
        let now = Instant::now();
        let announced = read_meta(params, &limits, now).expect("it is one");
        let heard = announced.meta.expect("it is in order");
        assert_eq!((announced.id, heard.trace, heard.metadata), (7, Some(trace), metadata));
        assert_eq!(heard.deadline, Some(now + Duration::from_micros(1500)));
    }

    #[test]
    fn what_is_not_said_is_not_sent_and_unknown_keys_are_ignored() {
        let mut frame = Vec::new();
        encode_meta(&mut frame, &Limits::default(), 1, None, &Outgoing::default()).expect("it encodes");
        assert_eq!(frame, [&[0x93, 2, 0xa6][..], b"$/meta", &[0x92, 1, 0x80]].concat());
        let heard =
            read(meta(vec![("x", 1.into())])).and_then(|announced| announced.meta.ok()).expect("it is in order");
        assert!(heard.deadline.is_none() && heard.trace.is_none() && heard.metadata.is_empty());
    }

    #[test]
    fn a_broken_trace_is_none_and_a_deadline_beyond_the_clock_too() {
        for far in [Value::from(f64::INFINITY), f64::MAX.into()] {
            let heard = read(meta(vec![("tp", "00-xyz".into()), ("d", far)]));
            let heard = heard.and_then(|announced| announced.meta.ok()).expect("it is in order");
            assert!(heard.trace.is_none() && heard.deadline.is_none());
        }
    }

    #[test]
    fn strange_metadata_refuses_its_request() {
        for time in [Value::from(-1), f64::NAN.into(), (-0.5).into(), "soon".into()] {
            check_refused(meta(vec![("d", time)]), "cannot be read");
        }
        check_refused(meta(vec![("md", 7.into())]), "cannot be read");
        check_refused(meta(vec![("md", Value::Map(vec![("key".into(), 1.into())]))]), "cannot be read");
        check_refused(Value::Array(vec![7.into(), Value::Nil]), "cannot be read");
        let many = (0..=METADATA_PAIRS_MAX).map(|n| (n.to_string().into(), "".into())).collect();
        check_refused(meta(vec![("md", Value::Map(many))]), "METADATA_PAIRS_MAX");
        for bytes in [METADATA_BYTES_MAX, 1 << 20] {
            let large = Value::Map(vec![("key".into(), "x".repeat(bytes).into())]);
            check_refused(meta(vec![("md", large)]), "METADATA_BYTES_MAX");
        }
    }

    #[test]
    fn what_names_no_request_is_none() {
        assert!(read(Value::Array(vec![])).is_none());
        assert!(read(Value::Array(vec![7.into()])).is_none());
        assert!(read(Value::Array(vec![(-7).into(), Value::Map(vec![])])).is_none());
        assert!(read(Value::Array(vec![7.into(), Value::Map(vec![]), 1.into()])).is_none());
    }
}
