//! Requests, responses and notifications, read from frames; `encode` writes them.
//!
//! ```text
//! request       [0, id, method, params]
//! response      [1, id, error, result]
//! notification  [2, method, params]
//! ```
//!
//! The header is typed here; params, error and result stay raw MessagePack until somebody knows their type. We read every
//! encoding that MessagePack allows.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::error::CallError;
use crate::frame;
use crate::limits::Limits;

pub(crate) const NIL: u8 = 0xc0;

/// One message, borrowed from its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A call that must be answered.
    Request {
        /// What the answer must carry; opaque.
        id: u32,
        /// The method's name.
        method: &'a str,
        /// The encoded array of arguments.
        params: &'a [u8],
    },
    /// The answer to a call.
    Response {
        /// The id of the request.
        id: u32,
        /// The encoded result, or the encoded error; an answer with both is an error.
        outcome: Result<&'a [u8], &'a [u8]>,
    },
    /// A call that is never answered.
    Notification {
        /// The method's name.
        method: &'a str,
        /// The encoded array of arguments.
        params: &'a [u8],
    },
}

/// A frame that is MessagePack and not a message. Our peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageError {
    /// The id of the request that this was meant to be, if so much could be read: answer it with an error. Without one,
    /// close the connection.
    pub request_id: Option<u32>,
    /// What is wrong.
    pub flaw: Flaw,
}

/// What can be wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flaw {
    /// Not an array.
    NotAnArray,
    /// The type is not one of the integers 0, 1 and 2.
    UnknownType,
    /// A request or response without four elements, or a notification without three.
    WrongLength {
        /// The elements it has.
        elements: u32,
    },
    /// The id is not an integer of 32 bits without sign.
    BadId,
    /// The method name is neither str nor bin.
    MethodNotText,
    /// The method name is not UTF-8.
    MethodNotUtf8,
    /// The method name is longer than allowed.
    MethodTooLong {
        /// `Limits::method_name_bytes_max`.
        limit: usize,
    },
    /// The params are not an array.
    ParamsNotAnArray,
    /// The bytes end inside the message, or the error value inside is not MessagePack.
    Truncated,
}

impl<'a> Message<'a> {
    /// Reads one frame as the cutter cut it. Params, error and result are not looked into.
    ///
    /// # Errors
    ///
    /// A [`MessageError`], which says whether the peer is owed an answer.
    #[inline]
    pub fn parse(frame: &'a [u8], limits: &Limits) -> Result<Self, MessageError> {
        let mut reader = Reader { bytes: frame };
        let mut request_id = None;
        parse(&mut reader, limits, &mut request_id).map_err(|flaw| MessageError { request_id, flaw })
    }
}

/// The parts of a request of the usual form, its name not looked at: id, name, params. `None`: it is something else, or not in
/// order, as [`Message::parse`] will say.
#[inline]
pub(crate) fn plain_request<'a>(frame: &'a [u8], limits: &Limits) -> Option<(u32, &'a [u8], &'a [u8])> {
    let [0x94, 0, rest @ ..] = frame else { return None };
    let mut reader = Reader { bytes: rest };
    let id = reader.id().ok()?;
    let len = reader.text_len().ok()? as usize;
    let (name, params) = reader.bytes.split_at_checked(len)?;
    reader.bytes = params;
    (len <= limits.method_name_bytes_max).then_some((id, name, reader.params().ok()?))
}

/// The parts of the answer of a call that succeeded, of the usual form: id, result. `None`: it is something else, or not in order,
/// as [`Message::parse`] will say.
#[inline]
pub(crate) fn plain_answer(frame: &[u8]) -> Option<(u32, &[u8])> {
    let [0x94, 1, rest @ ..] = frame else { return None };
    let mut reader = Reader { bytes: rest };
    let id = reader.id().ok()?;
    match reader.bytes {
        [NIL, result @ ..] if !result.is_empty() => Some((id, result)),
        _ => None,
    }
}

/// Leaves the id of a request in `request_id` as soon as it is read.
#[inline]
fn parse<'a>(reader: &mut Reader<'a>, limits: &Limits, request_id: &mut Option<u32>) -> Result<Message<'a>, Flaw> {
    let elements = reader.array_len().ok_or(Flaw::NotAnArray)?;
    let kind = if elements == 0 { None } else { reader.uint() };
    match kind {
        Some(0) => {
            if elements < 2 {
                return Err(Flaw::WrongLength { elements });
            }
            let id = reader.id()?;
            *request_id = Some(id);
            check_len(elements, 4)?;
            Ok(Message::Request { id, method: reader.method(limits)?, params: reader.params()? })
        }
        Some(1) => {
            check_len(elements, 4)?;
            Ok(Message::Response { id: reader.id()?, outcome: reader.outcome(limits)? })
        }
        Some(2) => {
            check_len(elements, 3)?;
            Ok(Message::Notification { method: reader.method(limits)?, params: reader.params()? })
        }
        _ => Err(Flaw::UnknownType),
    }
}

#[inline]
fn check_len(elements: u32, expected: u32) -> Result<(), Flaw> {
    if elements == expected { Ok(()) } else { Err(Flaw::WrongLength { elements }) }
}

/// What is left of a frame.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    fn array_len(&mut self) -> Option<u32> {
        match self.byte()? {
            marker @ 0x90..=0x9f => Some(u32::from(marker & 0x0f)),
            0xdc => Some(self.number::<2>()? as u32),
            0xdd => Some(self.number::<4>()? as u32),
            _ => None,
        }
    }

    /// An integer of any encoding that is not negative.
    #[inline]
    fn uint(&mut self) -> Option<u64> {
        match self.byte()? {
            value @ 0x00..=0x7f => Some(u64::from(value)),
            0xcc => self.number::<1>(),
            0xcd => self.number::<2>(),
            0xce => self.number::<4>(),
            0xcf => self.number::<8>(),
            0xd0 => self.number::<1>().filter(|&value| value <= i8::MAX as u64),
            0xd1 => self.number::<2>().filter(|&value| value <= i16::MAX as u64),
            0xd2 => self.number::<4>().filter(|&value| value <= i32::MAX as u64),
            0xd3 => self.number::<8>().filter(|&value| value <= i64::MAX as u64),
            _ => None,
        }
    }

    #[inline]
    fn id(&mut self) -> Result<u32, Flaw> {
        self.uint().and_then(|id| u32::try_from(id).ok()).ok_or(Flaw::BadId)
    }

    #[inline]
    fn method(&mut self, limits: &Limits) -> Result<&'a str, Flaw> {
        let limit = limits.method_name_bytes_max;
        let len = self.text_len()? as usize;
        if len > limit {
            return Err(Flaw::MethodTooLong { limit });
        }
        let (name, rest) = self.bytes.split_at_checked(len).ok_or(Flaw::Truncated)?;
        self.bytes = rest;
        std::str::from_utf8(name).map_err(|_| Flaw::MethodNotUtf8)
    }

    #[inline]
    fn text_len(&mut self) -> Result<u64, Flaw> {
        let len = match self.byte().ok_or(Flaw::Truncated)? {
            marker @ 0xa0..=0xbf => Some(u64::from(marker & 0x1f)),
            0xd9 | 0xc4 => self.number::<1>(),
            0xda | 0xc5 => self.number::<2>(),
            0xdb | 0xc6 => self.number::<4>(),
            _ => return Err(Flaw::MethodNotText),
        };
        len.ok_or(Flaw::Truncated)
    }

    /// The last element, so all the bytes that are left.
    #[inline]
    fn params(&mut self) -> Result<&'a [u8], Flaw> {
        match self.bytes.first() {
            Some(0x90..=0x9f | 0xdc | 0xdd) => Ok(self.bytes),
            Some(_) => Err(Flaw::ParamsNotAnArray),
            None => Err(Flaw::Truncated),
        }
    }

    /// Error and result are the last elements. An error that is not nil wins.
    #[inline]
    fn outcome(&mut self, limits: &Limits) -> Result<Result<&'a [u8], &'a [u8]>, Flaw> {
        match self.bytes {
            [] | [NIL] => Err(Flaw::Truncated),
            [NIL, result @ ..] => Ok(Ok(result)),
            bytes => match frame::value_len(bytes, limits) {
                Ok(Some(len)) if len < bytes.len() => Ok(Err(&bytes[..len])),
                _ => Err(Flaw::Truncated),
            },
        }
    }

    #[inline]
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(byte)
    }

    /// `N` bytes, big-endian.
    #[inline]
    fn number<const N: usize>(&mut self) -> Option<u64> {
        let (number, rest) = self.bytes.split_at_checked(N)?;
        self.bytes = rest;
        Some(number.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }
}

/// Why a value is not what somebody asked for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DecodeError {
    /// It has another type, or nests too deep.
    Mismatch(Arc<rmp_serde::decode::Error>),
    /// More bytes follow it.
    Surplus,
}

/// Reads `raw` as one whole `T`.
///
/// An ext value, Neovim's Buffer for one, reads as a newtype struct with serde's name `_ExtStruct` around a tuple of type and
/// bytes, or as a [`Value`](rmpv::Value).
///
/// # Errors
///
/// A [`DecodeError`] when it is anything else.
#[inline]
pub fn decode<T: DeserializeOwned>(raw: &[u8], limits: &Limits) -> Result<T, DecodeError> {
    let mut decoder = decoder(raw, limits);
    let value = T::deserialize(&mut decoder)?;
    // The library does not show how far it read. At the end of the bytes a further value cannot begin.
    match IgnoredAny::deserialize(&mut decoder) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(DecodeError::Surplus),
    }
}

pub(crate) type Decoder<'a> = rmp_serde::Deserializer<rmp_serde::decode::ReadRefReader<'a, [u8]>>;

/// A decoder over `raw` that recurses no deeper than a frame may nest. The library takes one level off and counts an ext
/// value as one.
pub(crate) fn decoder<'a>(raw: &'a [u8], limits: &Limits) -> Decoder<'a> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(raw);
    decoder.set_max_depth(limits.depth_max.saturating_add(2));
    decoder
}

/// Reads the header of an array: its elements, and the bytes of the header.
pub(crate) fn array_header(raw: &[u8]) -> Option<(u32, usize)> {
    let mut reader = Reader { bytes: raw };
    let elements = reader.array_len()?;
    Some((elements, raw.len() - reader.bytes.len()))
}

impl From<rmp_serde::decode::Error> for DecodeError {
    fn from(error: rmp_serde::decode::Error) -> Self {
        Self::Mismatch(Arc::new(error))
    }
}

impl From<DecodeError> for CallError {
    fn from(error: DecodeError) -> Self {
        Self::Decode(Arc::new(error))
    }
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.flaw.fmt(f)
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnArray => write!(f, "a message must be an array"),
            Self::UnknownType => write!(f, "the type of a message must be the integer 0, 1 or 2"),
            Self::WrongLength { elements } => {
                write!(f, "requests and responses have 4 elements and notifications 3, not {elements}")
            }
            Self::BadId => write!(f, "the id must be an integer from 0 to 2^32-1"),
            Self::MethodNotText => write!(f, "the method name must be str or bin"),
            Self::MethodNotUtf8 => write!(f, "the method name is not UTF-8"),
            Self::MethodTooLong { limit } => {
                write!(f, "the method name is longer than {limit} bytes (Limits::method_name_bytes_max)")
            }
            Self::ParamsNotAnArray => write!(f, "params must be an array"),
            Self::Truncated => write!(f, "the message ends too early"),
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mismatch(error) => error.fmt(f),
            Self::Surplus => write!(f, "more bytes follow the value"),
        }
    }
}

impl std::error::Error for MessageError {}
impl std::error::Error for DecodeError {}

#[cfg(test)]
mod tests {
    use serde_bytes::ByteBuf;

    use super::*;

    fn limits() -> Limits {
        Limits { frame_bytes_out_max: 100, ..Limits::default() }
    }

    fn check(frame: &[u8], expected: Message<'_>) {
        assert_eq!(Message::parse(frame, &limits()), Ok(expected), "{frame:02x?}");
    }

    fn check_refused(frame: &[u8], request_id: Option<u32>, flaw: Flaw) {
        assert_eq!(Message::parse(frame, &limits()), Err(MessageError { request_id, flaw }), "{frame:02x?}");
    }

    fn request(id: u32) -> Message<'static> {
        Message::Request { id, method: "m", params: &[0x90] }
    }

    #[test]
    fn messages_of_each_type_are_read() {
        check(&[0x94, 0, 1, 0xa1, b'm', 0x90], request(1));
        check(&[0x94, 1, 1, 0xc0, 5], Message::Response { id: 1, outcome: Ok(&[5]) });
        check(&[0x94, 1, 1, 0xc0, 0xc0], Message::Response { id: 1, outcome: Ok(&[0xc0]) });
        check(&[0x94, 1, 1, 0xa1, b'e', 0xc0], Message::Response { id: 1, outcome: Err(&[0xa1, b'e']) });
        check(&[0x93, 2, 0xa1, b'm', 0x91, 7], Message::Notification { method: "m", params: &[0x91, 7] });
    }

    #[test]
    fn error_wins_over_result() {
        check(&[0x94, 1, 1, 0x92, 0, 0xa0, 5], Message::Response { id: 1, outcome: Err(&[0x92, 0, 0xa0]) });
        check(&[0x94, 1, 1, 0xc2, 5], Message::Response { id: 1, outcome: Err(&[0xc2]) });
    }

    #[test]
    fn every_integer_encoding_is_legal_for_type_and_id() {
        for id in [
            &[0x07][..],
            &[0xcc, 7],
            &[0xcd, 0, 7],
            &[0xce, 0, 0, 0, 7],
            &[0xcf, 0, 0, 0, 0, 0, 0, 0, 7],
            &[0xd0, 7],
            &[0xd1, 0, 7],
            &[0xd2, 0, 0, 0, 7],
            &[0xd3, 0, 0, 0, 0, 0, 0, 0, 7],
        ] {
            check(&[&[0x94, 0], id, &[0xa1, b'm', 0x90]].concat(), request(7));
        }
        check(&[0x94, 0xd3, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xa1, b'm', 0x90], request(1));
        check(&[0x94, 0, 0, 0xa1, b'm', 0x90], request(0));
        check(&[0x94, 0, 0xce, 0xff, 0xff, 0xff, 0xff, 0xa1, b'm', 0x90], request(u32::MAX));
    }

    #[test]
    fn every_form_of_name_and_header_is_legal() {
        for name in [
            &[0xa1, b'm'][..],
            &[0xd9, 1, b'm'],
            &[0xda, 0, 1, b'm'],
            &[0xdb, 0, 0, 0, 1, b'm'],
            &[0xc4, 1, b'm'],
            &[0xc5, 0, 1, b'm'],
            &[0xc6, 0, 0, 0, 1, b'm'],
        ] {
            check(&[&[0x94, 0, 1], name, &[0x90]].concat(), request(1));
        }
        check(&[0xdc, 0, 4, 0, 1, 0xa1, b'm', 0x90], request(1));
        check(&[0xdd, 0, 0, 0, 4, 0, 1, 0xa1, b'm', 0x90], request(1));
        let params = &[0xdc, 0, 0][..];
        check(&[0x94, 0, 1, 0xa1, b'm', 0xdc, 0, 0], Message::Request { id: 1, method: "m", params });
    }

    #[test]
    fn what_is_no_message_owes_no_answer() {
        check_refused(&[], None, Flaw::NotAnArray);
        check_refused(&[0x80], None, Flaw::NotAnArray);
        check_refused(&[0x90], None, Flaw::UnknownType);
        check_refused(&[0x93, 3, 0xa0, 0x90], None, Flaw::UnknownType);
        check_refused(&[0x93, 0xff, 0xa0, 0x90], None, Flaw::UnknownType);
        check_refused(&[0x94, 0xca, 0, 0, 0, 0, 1, 0xa0, 0x90], None, Flaw::UnknownType);
        check_refused(&[0x91, 0], None, Flaw::WrongLength { elements: 1 });
        check_refused(&[0x93, 1, 1, 0xc0], None, Flaw::WrongLength { elements: 3 });
        check_refused(&[0x94, 2, 1, 0xa0, 0x90], None, Flaw::WrongLength { elements: 4 });
        check_refused(&[0x94, 1, 1, 0xc1, 0xc0], None, Flaw::Truncated);
    }

    #[test]
    fn ids_outside_of_32_bits_are_refused() {
        for id in [
            &[0xff][..],
            &[0xd0, 0x80],
            &[0xd1, 0xff, 0xff],
            &[0xd2, 0xff, 0xff, 0xff, 0xff],
            &[0xd3, 0xff, 0, 0, 0, 0, 0, 0, 0],
            &[0xcf, 0, 0, 0, 1, 0, 0, 0, 0],
            &[0xca, 0, 0, 0, 0],
            &[0xcb, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0xc0],
            &[0xa1, b'1'],
        ] {
            check_refused(&[&[0x94, 0], id, &[0xa1, b'm', 0x90]].concat(), None, Flaw::BadId);
            check_refused(&[&[0x94, 1], id, &[0xc0, 0xc0]].concat(), None, Flaw::BadId);
        }
    }

    #[test]
    fn a_request_with_an_id_is_owed_an_error() {
        check_refused(&[0x93, 0, 1, 0xa1, b'm'], Some(1), Flaw::WrongLength { elements: 3 });
        check_refused(&[0x95, 0, 1, 0xa1, b'm', 0x90, 0x80], Some(1), Flaw::WrongLength { elements: 5 });
        check_refused(&[0x94, 0, 1, 5, 0x90], Some(1), Flaw::MethodNotText);
        check_refused(&[0x94, 0, 1, 0xa1, 0xff, 0x90], Some(1), Flaw::MethodNotUtf8);
        check_refused(&[0x94, 0, 1, 0xa1, b'm', 0x80], Some(1), Flaw::ParamsNotAnArray);
        check_refused(&[0x94, 0, 1, 0xa1, b'm', 0xc0], Some(1), Flaw::ParamsNotAnArray);
        let long = [&[0x94, 0, 1, 0xd9, 101][..], &[b'm'; 101], &[0x90]].concat();
        check_refused(&long, Some(1), Flaw::MethodTooLong { limit: 100 });
    }

    #[test]
    fn no_prefix_of_a_message_is_one_and_none_panics() {
        for frame in
            [&[0x94, 0, 1, 0xd9, 1, b'm', 0x90][..], &[0x94, 1, 1, 0xa1, b'e', 0xc0], &[0x93, 2, 0xa1, b'm', 0x90]]
        {
            for len in 0..frame.len() {
                assert!(Message::parse(&frame[..len], &limits()).is_err(), "{len} bytes of {frame:02x?}");
            }
        }
    }

    #[test]
    fn broken_messages_never_panic_and_never_point_outside() {
        let good: [&[u8]; 3] = [
            &[0xdc, 0, 4, 0xcc, 0, 0xcd, 0, 1, 0xd9, 1, b'm', 0x91, 0x80],
            &[0x94, 1, 0xce, 0, 0, 0, 1, 0x92, 1, 0xa1, b'e', 0xc0],
            &[0x93, 2, 0xc4, 1, b'm', 0xdd, 0, 0, 0, 1, 5],
        ];
        for frame in good {
            assert!(Message::parse(frame, &limits()).is_ok());
            for (place, byte) in (0..frame.len()).flat_map(|place| (0..=255).map(move |byte| (place, byte))) {
                let mut broken = frame.to_vec();
                broken[place] = byte;
                match Message::parse(&broken, &limits()) {
                    Ok(Message::Request { params, .. } | Message::Notification { params, .. }) => {
                        assert!(broken.ends_with(params));
                    }
                    Ok(Message::Response { outcome: Ok(value) | Err(value), .. }) => assert!(!value.is_empty()),
                    Err(_) => {}
                }
            }
        }
    }

    #[test]
    fn decoding_takes_exactly_one_value_of_the_type() {
        let limits = limits();
        assert_eq!(decode::<(u8, String)>(&[0x92, 1, 0xa1, b'x'], &limits).expect("it is such a pair").1, "x");
        assert_eq!(decode::<ByteBuf>(&[0xc4, 1, 9], &limits).expect("it is bin").as_ref(), [9]);
        assert!(matches!(decode::<u8>(&[1, 2], &limits), Err(DecodeError::Surplus)));
        assert!(matches!(decode::<u8>(&[1, 0xc1], &limits), Err(DecodeError::Surplus)));
        assert!(matches!(decode::<u8>(&[0xa0], &limits), Err(DecodeError::Mismatch(_))));
        assert!(matches!(decode::<u8>(&[0xcd, 1, 0], &limits), Err(DecodeError::Mismatch(_))));
        assert!(matches!(decode::<String>(&[0xa1, 0xff], &limits), Err(DecodeError::Mismatch(_))));
        assert!(matches!(decode::<String>(&[0xdb, 0xff, 0xff, 0xff, 0xff], &limits), Err(DecodeError::Mismatch(_))));
        assert!(matches!(decode::<Vec<u64>>(&[0xdd, 0xff, 0xff, 0xff, 0xff], &limits), Err(DecodeError::Mismatch(_))));
        assert!(matches!(decode::<u8>(&[], &limits), Err(DecodeError::Mismatch(_))));
    }

    #[test]
    fn decoding_recurses_as_deep_as_a_frame_may_nest_and_no_deeper() {
        let nested = |levels: usize| [vec![0x91; levels], vec![0xd4, 1, 1]].concat();
        assert!(decode::<rmpv::Value>(&nested(32), &limits()).is_ok());
        assert!(decode::<rmpv::Value>(&nested(33), &limits()).is_err());
        assert!(decode::<rmpv::Value>(&[0x91; 100_000], &limits()).is_err());
    }
}
