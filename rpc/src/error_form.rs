//! The forms in which errors travel: what an answer says when a handler fails, or when none could be asked.
//!
//! | profile | the library's own answers | a handler's text | a handler's value |
//! |---|---|---|---|
//! | `Text` | the text | the text | the value |
//! | `CodeText` | `[0 or 1, text]` | `[0, text]` | the value |
//! | `Map` | `{code, name, message, data}` | a map with `message` | a map with `data` |
//!
//! In a map nothing of an application can be mistaken for an answer of the library. In the other forms a value of an
//! application that looks like such a map is wrapped in one more.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use crate::encode::{self, EncodeError};
use crate::error::{CallError, ErrorProfile, Refusal, RefusedReason, RemoteError};
use crate::frame;
use crate::limits::Limits;
use crate::message::NIL;

/// What a server that has all its room taken asks its callers to wait: at a mean of a few milliseconds a handler it has
/// run all that it holds by then, and it is no pause that a person would notice.
pub const RETRY_AFTER_OVERLOADED: Duration = Duration::from_millis(100);
/// What a server that ends asks its callers to wait: about what a restart takes.
pub const RETRY_AFTER_SHUTTING_DOWN: Duration = Duration::from_secs(1);
/// What we believe of a peer's wish at most: it must not put a caller to sleep for good.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// `[0, text]` is an exception and `[1, text]` a call that is wrong in itself, as in Neovim.
const EXCEPTION: u8 = 0;
const VALIDATION: u8 = 1;

/// Numbers and names of answers in a map. They never change. Where JSON-RPC has a number for it, it is that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Application,
    HandlerPanicked,
    Unsendable,
    ShuttingDown,
    Overloaded,
    Denied,
    Cancelled,
    TooLate,
    InvalidRequest,
    UnknownMethod,
    InvalidArguments,
}

const CODES: [(Code, i64, &str); 11] = [
    (Code::Application, -32000, "APPLICATION"),
    (Code::HandlerPanicked, -32001, "PANICKED"),
    (Code::Unsendable, -32002, "UNSENDABLE"),
    (Code::ShuttingDown, -32010, "REFUSED"),
    (Code::Overloaded, -32011, "OVERLOADED"),
    (Code::Denied, -32012, "DENIED"),
    (Code::Cancelled, -32013, "CANCELLED"),
    (Code::TooLate, -32014, "TOO_LATE"),
    (Code::InvalidRequest, -32600, "INVALID_REQUEST"),
    (Code::UnknownMethod, -32601, "UNKNOWN_METHOD"),
    (Code::InvalidArguments, -32602, "INVALID_ARGUMENTS"),
];

/// Numbers that are the library's, known or not: a newer peer may have more of them.
fn is_reserved(number: i64) -> bool {
    matches!(number, -32099..=-32000 | -32699..=-32600)
}

impl Code {
    fn of(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::UnknownMethod { .. } => Self::UnknownMethod,
            Refusal::BadRequest { .. } => Self::InvalidRequest,
            Refusal::BadArgument { .. } => Self::InvalidArguments,
            Refusal::HandlerPanicked => Self::HandlerPanicked,
            Refusal::TooManyInFlight { .. } => Self::Overloaded,
            Refusal::BadResult { .. } => Self::Unsendable,
            Refusal::ShuttingDown => Self::ShuttingDown,
            Refusal::Denied { .. } => Self::Denied,
            Refusal::Cancelled => Self::Cancelled,
            Refusal::TooLate => Self::TooLate,
        }
    }

    fn numbered(number: i64) -> Option<Self> {
        CODES.iter().find(|(_, known, _)| *known == number).map(|(code, ..)| *code)
    }

    /// Number and name.
    fn row(self) -> (i64, &'static str) {
        let row = CODES.iter().find(|(code, ..)| *code == self);
        row.map(|(_, number, name)| (*number, *name)).expect("the table has a row for each")
    }

    /// Why the call was not begun; `None` where it may have been.
    fn refused(self) -> Option<RefusedReason> {
        match self {
            Self::Application | Self::HandlerPanicked | Self::Unsendable => None,
            Self::ShuttingDown => Some(RefusedReason::ShuttingDown),
            Self::Overloaded => Some(RefusedReason::Overloaded),
            Self::Denied => Some(RefusedReason::Denied),
            Self::Cancelled => Some(RefusedReason::Cancelled),
            Self::TooLate => Some(RefusedReason::TooLate),
            Self::InvalidRequest => Some(RefusedReason::InvalidRequest),
            Self::UnknownMethod => Some(RefusedReason::UnknownMethod),
            Self::InvalidArguments => Some(RefusedReason::InvalidArguments),
        }
    }

    /// In the form of Neovim.
    fn short(self) -> u8 {
        match self {
            Self::InvalidRequest | Self::UnknownMethod | Self::InvalidArguments => VALIDATION,
            _ => EXCEPTION,
        }
    }
}

/// Appends the answer of a request that met no handler, or whose handler gave no answer.
pub(crate) fn respond_refusal(
    out: &mut Vec<u8>,
    limits: &Limits,
    profile: ErrorProfile,
    id: u32,
    refusal: &Refusal,
) -> Result<(), EncodeError> {
    let (code, text) = (Code::of(refusal), refusal.to_string());
    match profile {
        ErrorProfile::Text => encode::encode_response_err(out, limits, id, &text),
        ErrorProfile::CodeText => encode::encode_response_err(out, limits, id, &(code.short(), text)),
        ErrorProfile::Map => encode::encode_response_err_raw(out, limits, id, &map(code, &text, &data_of(refusal))),
    }
}

/// Appends the answer of a handler that failed with a text.
pub(crate) fn respond_text(
    out: &mut Vec<u8>,
    limits: &Limits,
    profile: ErrorProfile,
    id: u32,
    text: &str,
) -> Result<(), EncodeError> {
    match profile {
        ErrorProfile::Text => encode::encode_response_err(out, limits, id, text),
        ErrorProfile::CodeText => encode::encode_response_err(out, limits, id, &(EXCEPTION, text)),
        ErrorProfile::Map => encode::encode_response_err_raw(out, limits, id, &map(Code::Application, text, &[NIL])),
    }
}

/// Appends the answer of a handler that failed with a value, `raw`.
pub(crate) fn respond_value(
    out: &mut Vec<u8>,
    limits: &Limits,
    profile: ErrorProfile,
    id: u32,
    raw: &[u8],
) -> Result<(), EncodeError> {
    // The peer may take more than we do, but no more than we send.
    let peers = Limits { frame_bytes_in_max: limits.frame_bytes_out_max, ..limits.clone() };
    // An error that is nil would read as success: what replaces it knows no profile either.
    let is_wrapped = raw != [NIL] && (profile == ErrorProfile::Map || Parts::read(raw, &peers).is_some());
    match is_wrapped {
        true => {
            let text = "the method answered with an error of its own";
            encode::encode_response_err_raw(out, limits, id, &map(Code::Application, text, raw))
        }
        false => encode::encode_response_err_raw(out, limits, id, raw),
    }
}

fn map(code: Code, message: &str, data: &[u8]) -> Vec<u8> {
    let (number, name) = code.row();
    let mut map = vec![0x84];
    let written = (|| {
        rmp::encode::write_str(&mut map, "code")?;
        rmp::encode::write_sint(&mut map, number)?;
        rmp::encode::write_str(&mut map, "name")?;
        rmp::encode::write_str(&mut map, name)?;
        rmp::encode::write_str(&mut map, "message")?;
        rmp::encode::write_str(&mut map, message)?;
        rmp::encode::write_str(&mut map, "data")
    })();
    written.expect("a vector takes everything");
    map.extend_from_slice(data);
    map
}

/// Encoded: nil, or a map of what a program may want to know.
fn data_of(refusal: &Refusal) -> Vec<u8> {
    let (key, number) = match refusal {
        Refusal::BadArgument { index, .. } => ("argument", *index as u64),
        Refusal::TooManyInFlight { .. } => (RETRY_AFTER_KEY, spread(RETRY_AFTER_OVERLOADED)),
        Refusal::ShuttingDown => (RETRY_AFTER_KEY, spread(RETRY_AFTER_SHUTTING_DOWN)),
        _ => return vec![NIL],
    };
    let mut data = vec![0x81];
    let written = rmp::encode::write_str(&mut data, key).and_then(|()| rmp::encode::write_uint(&mut data, number));
    written.expect("a vector takes everything");
    data
}

const RETRY_AFTER_KEY: &str = "retry_after_ms";

/// Milliseconds between `least` and twice that: who was refused together shall not come back together.
fn spread(least: Duration) -> u64 {
    let least = least.as_millis() as u64;
    least + RandomState::new().build_hasher().finish() % (least + 1)
}

/// The error of an answer, in whatever form it came.
pub(crate) fn read(raw: &[u8], limits: &Limits) -> CallError {
    let Some(parts) = Parts::read(raw, limits) else {
        return CallError::Remote(RemoteError::from_raw(raw));
    };
    match (Code::numbered(parts.number), Code::numbered(parts.number).and_then(Code::refused)) {
        (Some(Code::Application), _) if parts.data == [NIL] => CallError::Remote(RemoteError::from_raw(parts.message)),
        (Some(Code::Application), _) => CallError::Remote(RemoteError::from_raw(parts.data)),
        // The caller's own, which the server has seen pass first.
        (_, Some(RefusedReason::TooLate)) => CallError::DeadlineExceeded,
        (_, Some(reason)) => CallError::Refused {
            reason,
            retry_after: retry_after(parts.data, limits),
            answer: RemoteError::of_library(raw),
        },
        (_, None) => CallError::Remote(RemoteError::of_library(raw)),
    }
}

fn retry_after(data: &[u8], limits: &Limits) -> Option<Duration> {
    let millis = entries(data, limits)?.find(|(key, _)| *key == RETRY_AFTER_KEY)?.1;
    let millis: u64 = rmp::decode::read_int(&mut &*millis).ok()?;
    Some(Duration::from_millis(millis).min(RETRY_AFTER_MAX))
}

/// What stands in a map of the library's; the values are encoded.
struct Parts<'a> {
    number: i64,
    message: &'a [u8],
    data: &'a [u8],
}

impl<'a> Parts<'a> {
    /// `None` for every other error.
    fn read(raw: &'a [u8], limits: &Limits) -> Option<Self> {
        let (mut number, mut message, mut data, mut is_named) = (None, None, &[NIL][..], false);
        for (key, value) in entries(raw, limits)? {
            match key {
                "code" => number = rmp::decode::read_int(&mut &*value).ok().filter(|number| is_reserved(*number)),
                "name" => is_named = rmp::decode::read_str_from_slice(value).is_ok(),
                "message" => message = rmp::decode::read_str_from_slice(value).is_ok().then_some(value),
                "data" => data = value,
                _ => {}
            }
        }
        Some(Self { number: number.filter(|_| is_named)?, message: message?, data })
    }
}

/// The entries of a small map whose keys are texts, values encoded. `None` for anything else; it ends where something else
/// comes.
fn entries<'a>(raw: &'a [u8], limits: &Limits) -> Option<impl Iterator<Item = (&'a str, &'a [u8])>> {
    let (&marker @ 0x80..=0x8f, mut rest) = raw.split_first()? else { return None };
    Some((0..marker & 0x0f).map_while(move |_| {
        let (key, after) = rmp::decode::read_str_from_slice(rest).ok()?;
        let len = frame::value_len(after, limits).ok()??;
        let (value, after) = after.split_at_checked(len)?;
        rest = after;
        Some((key, value))
    }))
}

#[cfg(test)]
mod tests {
    use rmpv::Value;

    use super::*;
    use crate::message::Message;

    const PROFILES: [ErrorProfile; 3] = [ErrorProfile::Text, ErrorProfile::CodeText, ErrorProfile::Map];

    fn answer(respond: impl FnOnce(&mut Vec<u8>, &Limits) -> Result<(), EncodeError>) -> Vec<u8> {
        let (mut out, limits) = (Vec::new(), Limits::default());
        respond(&mut out, &limits).expect("it fits");
        match Message::parse(&out, &limits) {
            Ok(Message::Response { id: 7, outcome: Err(raw) }) => raw.to_vec(),
            other => panic!("no error answer: {other:?}"),
        }
    }

    fn refused(profile: ErrorProfile, refusal: &Refusal) -> Vec<u8> {
        answer(|out, limits| respond_refusal(out, limits, profile, 7, refusal))
    }

    fn value(raw: &[u8]) -> Value {
        rmpv::decode::read_value(&mut &*raw).expect("it is a value")
    }

    fn refusals() -> Vec<Refusal> {
        vec![
            Refusal::UnknownMethod { method: "m".to_owned() },
            Refusal::BadRequest { reason: "r".to_owned() },
            Refusal::BadArgument { index: 3, reason: "r".to_owned() },
            Refusal::HandlerPanicked,
            Refusal::TooManyInFlight { limit: 5 },
            Refusal::BadResult { reason: "r".to_owned() },
            Refusal::ShuttingDown,
            Refusal::Denied { reason: "r".to_owned() },
            Refusal::Cancelled,
            Refusal::TooLate,
        ]
    }

    #[test]
    fn each_profile_has_its_form() {
        for refusal in refusals() {
            let text = refusal.to_string();
            assert_eq!(value(&refused(ErrorProfile::Text, &refusal)), text.as_str().into());
            let pair = value(&refused(ErrorProfile::CodeText, &refusal));
            assert!(matches!(pair[0].as_u64(), Some(0 | 1)) && pair[1] == text.as_str().into(), "{pair}");
            let map = value(&refused(ErrorProfile::Map, &refusal));
            let keys: Vec<_> = map.as_map().expect("it is one").iter().map(|(key, _)| key.as_str()).collect();
            assert_eq!(keys, [Some("code"), Some("name"), Some("message"), Some("data")]);
            assert_eq!(map["message"], text.as_str().into());
        }
        assert_eq!(value(&refused(ErrorProfile::CodeText, &Refusal::ShuttingDown))[0], 0.into());
        assert_eq!(value(&refused(ErrorProfile::CodeText, &refusals()[0]))[0], 1.into());
    }

    #[test]
    fn numbers_and_names_are_given_once_and_reserved() {
        for (index, (code, number, name)) in CODES.iter().enumerate() {
            assert!(is_reserved(*number) && Code::numbered(*number) == Some(*code) && code.row() == (*number, *name));
            assert!(CODES[..index].iter().all(|(_, other, title)| other != number && title != name));
        }
    }

    #[test]
    fn what_the_library_says_in_a_map_comes_back_typed() {
        for refusal in refusals() {
            let raw = refused(ErrorProfile::Map, &refusal);
            match read(&raw, &Limits::default()) {
                CallError::Refused { retry_after, answer, .. } => {
                    assert!(refusal.is_before_execution(), "{refusal}");
                    assert_eq!(answer.text(), Some(refusal.to_string()));
                    let (least, most) = match refusal {
                        Refusal::TooManyInFlight { .. } => (RETRY_AFTER_OVERLOADED, RETRY_AFTER_OVERLOADED * 2),
                        Refusal::ShuttingDown => (RETRY_AFTER_SHUTTING_DOWN, RETRY_AFTER_SHUTTING_DOWN * 2),
                        _ => {
                            assert_eq!(retry_after, None);
                            continue;
                        }
                    };
                    assert!(retry_after.is_some_and(|after| (least..=most).contains(&after)), "{retry_after:?}");
                }
                CallError::Remote(error) => {
                    assert!(!refusal.is_before_execution() && error.is_from_library(), "{refusal}");
                    let typed = CallError::Remote(error).typed::<Value>();
                    assert!(matches!(typed, CallError::Remote(_)), "no error of the service's");
                }
                CallError::DeadlineExceeded => assert_eq!(refusal, Refusal::TooLate),
                other => panic!("{other}"),
            }
        }
    }

    #[test]
    fn errors_of_handlers_come_back_as_they_were_in_every_profile() {
        let like_ours = refused(ErrorProfile::Map, &Refusal::ShuttingDown);
        let wrapped = answer(|out, limits| respond_value(out, limits, ErrorProfile::Map, 7, &like_ours));
        for profile in PROFILES {
            for raw in [&[0xc3][..], &[0x92, 1, 0xa1, b'x'], &[0x80], &like_ours, &wrapped] {
                let sent = answer(|out, limits| respond_value(out, limits, profile, 7, raw));
                let CallError::Remote(error) = read(&sent, &Limits::default()) else { panic!("{raw:02x?}") };
                assert!(error.raw() == raw && !error.is_from_library(), "{raw:02x?} as {:02x?}", error.raw());
            }
            let sent = answer(|out, limits| respond_text(out, limits, profile, 7, "full"));
            let CallError::Remote(error) = read(&sent, &Limits::default()) else { panic!("{sent:02x?}") };
            assert_eq!(error.text().as_deref(), Some("full"));
        }
    }

    #[test]
    fn maps_of_strangers_are_values() {
        let limits = Limits::default();
        let check = |map: &[(&str, Value)], is_ours: bool| {
            let map = Value::Map(map.iter().map(|(key, value)| ((*key).into(), value.clone())).collect());
            let mut raw = Vec::new();
            rmpv::encode::write_value(&mut raw, &map).expect("a vector takes everything");
            assert_eq!(Parts::read(&raw, &limits).is_some(), is_ours, "{map}");
            for len in 0..raw.len() {
                // Whatever it is, it does not panic.
                let _ = (read(&raw[..len], &limits), retry_after(&raw[..len], &limits));
            }
        };
        check(&[("code", (-32000).into()), ("message", "m".into())], false);
        check(&[("code", 7.into()), ("name", "N".into()), ("message", "m".into())], false);
        check(&[("code", "x".into()), ("name", "N".into()), ("message", "m".into())], false);
        check(&[("message", "m".into()), ("name", "N".into()), ("code", (-32050).into())], true);
        check(&[("code", (-32601).into()), ("name", 1.into()), ("message", "m".into())], false);
        check(&[("code", (-32601).into()), ("name", "N".into()), ("message", Value::Nil)], false);
    }

    #[test]
    fn a_wish_to_wait_is_believed_within_bounds() {
        let wish = |value: Value| {
            let mut data = Vec::new();
            let map = Value::Map(vec![(RETRY_AFTER_KEY.into(), value)]);
            rmpv::encode::write_value(&mut data, &map).expect("a vector takes everything");
            retry_after(&data, &Limits::default())
        };
        assert_eq!(wish(5.into()), Some(Duration::from_millis(5)));
        assert_eq!(wish(u64::MAX.into()), Some(RETRY_AFTER_MAX));
        assert_eq!(wish((-5).into()), None);
        assert_eq!(wish("soon".into()), None);
    }
}
