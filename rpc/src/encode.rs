//! Writes requests, responses and notifications straight to the end of a buffer.
//!
//! We write the shortest encodings only. A frame is checked before it is left in the buffer, and on any failure nothing of
//! it is: other calls share the buffer.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::Serialize;

use crate::error::CallError;
use crate::frame::{self, FrameError};
use crate::limits::Limits;
use crate::message::NIL;

const REQUEST: u8 = 0;
const RESPONSE: u8 = 1;
const NOTIFICATION: u8 = 2;

const EMPTY_ARRAY: u8 = 0x90;

/// Why a message could not be encoded. Our own side's fault; nothing of it is left in the buffer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EncodeError {
    /// The frame is larger than allowed.
    TooLarge {
        /// `Limits::frame_bytes_out_max`.
        limit: usize,
    },
    /// The method name is longer than allowed.
    MethodTooLong {
        /// `Limits::method_name_bytes_max`.
        limit: usize,
    },
    /// The arguments are neither a tuple nor a sequence.
    ParamsNotAnArray,
    /// The frame nests too deep or holds too many values for a peer with the same limits.
    Shape(FrameError),
    /// Not one whole MessagePack value: a `Serialize` implementation announced another length than it wrote, or raw bytes
    /// are not what they should be.
    NotOneValue,
    /// A `Serialize` implementation failed.
    Serialize(Arc<rmp_serde::encode::Error>),
}

/// Appends a request.
///
/// `params` become the array of arguments: a tuple or a sequence its elements, `()` none. For one argument write `(x,)`.
/// Structs inside travel as maps with their field names. A `Vec<u8>` travels as an array of numbers, twice as large and much
/// slower than bytes: wrap it in `serde_bytes::Bytes` or `ByteBuf`.
///
/// # Errors
///
/// An [`EncodeError`]; `out` is then as it was, also when a `Serialize` implementation panics.
#[inline]
pub fn encode_request<P>(
    out: &mut Vec<u8>,
    limits: &Limits,
    id: u32,
    method: &str,
    params: &P,
) -> Result<(), EncodeError>
where
    P: Serialize + ?Sized,
{
    encode(out, limits, |frame| {
        frame.request_header(id, method, limits)?;
        frame.params(params)
    })
}

/// Appends a request whose arguments are encoded already: `params` is one array.
///
/// # Errors
///
/// As [`encode_request`].
pub fn encode_request_raw(
    out: &mut Vec<u8>,
    limits: &Limits,
    id: u32,
    method: &str,
    params: &[u8],
) -> Result<(), EncodeError> {
    encode(out, limits, |frame| {
        frame.request_header(id, method, limits)?;
        frame.params_raw(params)
    })
}

/// Appends a notification; `params` as in [`encode_request`].
///
/// # Errors
///
/// As [`encode_request`].
#[inline]
pub fn encode_notification<P>(out: &mut Vec<u8>, limits: &Limits, method: &str, params: &P) -> Result<(), EncodeError>
where
    P: Serialize + ?Sized,
{
    encode(out, limits, |frame| {
        frame.notification_header(method, limits)?;
        frame.params(params)
    })
}

/// Appends a notification whose arguments are encoded already: `params` is one array.
///
/// # Errors
///
/// As [`encode_request`].
pub fn encode_notification_raw(
    out: &mut Vec<u8>,
    limits: &Limits,
    method: &str,
    params: &[u8],
) -> Result<(), EncodeError> {
    encode(out, limits, |frame| {
        frame.notification_header(method, limits)?;
        frame.params_raw(params)
    })
}

/// Appends the answer of a call that succeeded.
///
/// # Errors
///
/// As [`encode_request`].
#[inline]
pub fn encode_response_ok<R>(out: &mut Vec<u8>, limits: &Limits, id: u32, result: &R) -> Result<(), EncodeError>
where
    R: Serialize + ?Sized,
{
    encode(out, limits, |frame| {
        frame.success_header(id)?;
        frame.value(result)
    })
}

/// Appends the answer of a call that succeeded, its result encoded already: `result` is one value.
///
/// # Errors
///
/// As [`encode_request`].
pub fn encode_response_ok_raw(out: &mut Vec<u8>, limits: &Limits, id: u32, result: &[u8]) -> Result<(), EncodeError> {
    encode(out, limits, |frame| {
        frame.success_header(id)?;
        frame.write(result)
    })
}

/// Appends the answer of a call that failed. An error that encodes as nil would read as success, so it travels as a text
/// instead. Several foreign clients also take 0, an empty text and an empty array for success.
///
/// # Errors
///
/// As [`encode_request`].
pub fn encode_response_err<E>(out: &mut Vec<u8>, limits: &Limits, id: u32, error: &E) -> Result<(), EncodeError>
where
    E: Serialize + ?Sized,
{
    encode(out, limits, |frame| {
        frame.response_header(id)?;
        frame.error(|frame| frame.value(error))
    })
}

/// Appends the answer of a call that failed, its error encoded already: `error` is one value.
///
/// # Errors
///
/// As [`encode_request`].
pub fn encode_response_err_raw(out: &mut Vec<u8>, limits: &Limits, id: u32, error: &[u8]) -> Result<(), EncodeError> {
    encode(out, limits, |frame| {
        frame.response_header(id)?;
        frame.error(|frame| frame.write(error))
    })
}

/// Lets `write` append one frame, and keeps it only if it is one whole frame that a peer with our limits accepts. Our own
/// walk over it costs a few nanoseconds; a frame with a wrong length would cost every call on the connection.
#[inline]
fn encode(
    out: &mut Vec<u8>,
    limits: &Limits,
    write: impl FnOnce(&mut Frame<'_>) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    let start = out.len();
    let bytes_max = limits.frame_bytes_out_max;
    let mut frame = Frame { out, start, last_value: None, bytes_max, overflowed: false, keep: false };
    write(&mut frame)?;
    // What is before the last value we have written ourselves.
    if frame.last_value.is_some_and(|at| frame::is_last_value(&frame.out[at..], limits)) {
        frame.keep = true;
        return Ok(());
    }
    let bytes = &frame.out[start..];
    match frame::outgoing_value_len(bytes, limits) {
        Ok(Some(len)) if len == bytes.len() => {
            frame.keep = true;
            Ok(())
        }
        Ok(_) | Err(FrameError::ReservedByte) => Err(EncodeError::NotOneValue),
        // It holds fewer bytes than allowed, so it announces more than it holds.
        Err(FrameError::TooLarge { .. }) => Err(EncodeError::NotOneValue),
        Err(shape) => Err(EncodeError::Shape(shape)),
    }
}

/// The frame under work at the end of a buffer. It never grows above its limit, and goes when it is dropped unkept.
struct Frame<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    /// Where the last of its values begins, if only that one comes from elsewhere.
    last_value: Option<usize>,
    bytes_max: usize,
    overflowed: bool,
    keep: bool,
}

impl Frame<'_> {
    #[inline]
    fn request_header(&mut self, id: u32, method: &str, limits: &Limits) -> Result<(), EncodeError> {
        let mut head = Head::new([0x94, REQUEST]);
        head.uint(id);
        self.method(head, method, limits)
    }

    #[inline]
    fn notification_header(&mut self, method: &str, limits: &Limits) -> Result<(), EncodeError> {
        self.method(Head::new([0x93, NOTIFICATION]), method, limits)
    }

    #[inline]
    fn response_header(&mut self, id: u32) -> Result<(), EncodeError> {
        let mut head = Head::new([0x94, RESPONSE]);
        head.uint(id);
        self.head(&head)
    }

    #[inline]
    fn success_header(&mut self, id: u32) -> Result<(), EncodeError> {
        let mut head = Head::new([0x94, RESPONSE]);
        head.uint(id);
        head.push(u64::from(NIL), 1);
        self.head(&head)?;
        self.last_value = Some(self.out.len());
        Ok(())
    }

    #[inline]
    fn head(&mut self, head: &Head) -> Result<(), EncodeError> {
        self.write(&head.word.to_le_bytes()[..head.len])
    }

    #[inline]
    fn method(&mut self, mut head: Head, method: &str, limits: &Limits) -> Result<(), EncodeError> {
        let limit = limits.method_name_bytes_max;
        match u32::try_from(method.len()) {
            Ok(len) if method.len() <= limit => head.str_len(len),
            _ => return Err(EncodeError::MethodTooLong { limit }),
        }
        self.head(&head)?;
        self.write(method.as_bytes())?;
        self.last_value = Some(self.out.len());
        Ok(())
    }

    #[inline]
    fn params<P: Serialize + ?Sized>(&mut self, params: &P) -> Result<(), EncodeError> {
        let start = self.out.len();
        self.value(params)?;
        if self.out[start..] == [NIL] {
            self.out[start] = EMPTY_ARRAY;
        }
        check_params(&self.out[start..])
    }

    #[inline]
    fn params_raw(&mut self, params: &[u8]) -> Result<(), EncodeError> {
        check_params(params)?;
        self.write(params)
    }

    /// The error that `write` appends, or a text if that is nil, and a nil result.
    fn error(&mut self, write: impl FnOnce(&mut Self) -> Result<(), EncodeError>) -> Result<(), EncodeError> {
        let start = self.out.len();
        write(self)?;
        if self.out[start..] == [NIL] {
            self.out.truncate(start);
            self.value("the handler failed and did not say why")?;
        }
        self.write(&[NIL])
    }

    #[inline]
    fn value<V: Serialize + ?Sized>(&mut self, value: &V) -> Result<(), EncodeError> {
        let mut serializer = rmp_serde::Serializer::new(&mut *self).with_struct_map();
        value.serialize(&mut serializer).map_err(|error| self.refused(error))
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        io::Write::write_all(self, bytes).map_err(|_| EncodeError::TooLarge { limit: self.bytes_max })
    }

    #[cold]
    fn refused(&self, error: rmp_serde::encode::Error) -> EncodeError {
        if self.overflowed {
            EncodeError::TooLarge { limit: self.bytes_max }
        } else {
            EncodeError::Serialize(Arc::new(error))
        }
    }
}

/// The beginning of a message, put together in a word and appended at once: what lies in memory in small pieces cannot be read as
/// one for a while after they were written.
struct Head {
    word: u128,
    len: usize,
}

/// Array and type, id, and the length of a name.
const HEAD_BYTES_MAX: usize = 2 + 5 + 5;
const _: () = assert!(HEAD_BYTES_MAX <= size_of::<u128>());

impl Head {
    #[inline]
    fn new(array_and_type: [u8; 2]) -> Self {
        Self { word: u128::from(u16::from_le_bytes(array_and_type)), len: 2 }
    }

    /// Appends `len` bytes, of which the lowest is the first.
    #[inline(always)]
    fn push(&mut self, bytes: u64, len: usize) {
        self.word |= u128::from(bytes) << (8 * self.len);
        self.len += len;
    }

    #[inline]
    fn uint(&mut self, value: u32) {
        self.shortest(value, 0..=0x7f, 0xcc);
    }

    #[inline]
    fn str_len(&mut self, len: u32) {
        self.shortest(len, 0xa0..=0xbf, 0xd9);
    }

    /// A number in its shortest form: in one of the `short` markers if there are enough, else in the bytes behind `marker`,
    /// which are one, or two or four behind the next ones.
    #[inline(always)]
    fn shortest(&mut self, value: u32, short: RangeInclusive<u8>, marker: u8) {
        let short_max = u32::from(short.end() - short.start());
        let behind = |step: u8, value: u64| u64::from(marker + step) | value << 8;
        match value {
            _ if value <= short_max => self.push(u64::from(*short.start()) + u64::from(value), 1),
            0..=0xff => self.push(behind(0, u64::from(value)), 2),
            0x100..=0xffff => self.push(behind(1, u64::from((value as u16).swap_bytes())), 3),
            _ => self.push(behind(2, u64::from(value.swap_bytes())), 5),
        }
    }
}

#[inline]
fn check_params(params: &[u8]) -> Result<(), EncodeError> {
    match params.first() {
        Some(0x90..=0x9f | 0xdc | 0xdd) => Ok(()),
        _ => Err(EncodeError::ParamsNotAnArray),
    }
}

impl io::Write for Frame<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.out.len() - self.start + bytes.len() > self.bytes_max {
            self.overflowed = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Frame<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.keep {
            self.out.truncate(self.start);
        }
    }
}

impl From<EncodeError> for CallError {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::TooLarge { limit } => Self::TooLarge { limit },
            EncodeError::ParamsNotAnArray => Self::ApiMisuse("params must be a tuple or a sequence"),
            error => Self::Encode(Arc::new(error)),
        }
    }
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { limit } => {
                write!(f, "the message is larger than the {limit} bytes of a frame (Limits::frame_bytes_out_max)")
            }
            Self::MethodTooLong { limit } => {
                write!(f, "the method name is longer than {limit} bytes (Limits::method_name_bytes_max)")
            }
            Self::ParamsNotAnArray => write!(f, "params must be a tuple or a sequence"),
            Self::Shape(shape) => write!(f, "the message would be refused by a peer with our limits: {shape}"),
            Self::NotOneValue => write!(f, "what was written is not one whole MessagePack value"),
            Self::Serialize(error) => write!(f, "a value cannot be serialised: {error}"),
        }
    }
}

impl std::error::Error for EncodeError {}

#[cfg(test)]
mod tests {
    use serde_bytes::Bytes;

    use super::*;
    use crate::message::Message;

    fn limits() -> Limits {
        Limits { frame_bytes_out_max: 100, ..Limits::default() }
    }

    fn check(frame: &[u8], expected: Message<'_>) {
        assert_eq!(Message::parse(frame, &limits()), Ok(expected), "{frame:02x?}");
    }

    fn check_params<P: Serialize>(params: P, expected: Result<&[u8], &str>) {
        let mut out = b"before".to_vec();
        let outcome = encode_request(&mut out, &limits(), 300, "m", &params);
        match expected {
            Ok(bytes) => {
                outcome.expect("these are params");
                assert_eq!(out, [b"before\x94\x00\xcd\x01\x2c\xa1m", bytes].concat());
            }
            Err(text) => {
                assert_eq!(outcome.expect_err("these are no params").to_string(), text);
                assert_eq!(out, b"before");
            }
        }
    }

    #[derive(Serialize)]
    struct Meta {
        size: u8,
    }

    #[test]
    fn params_are_always_an_array() {
        check_params((), Ok(&[0x90]));
        check_params((1, "a"), Ok(&[0x92, 1, 0xa1, b'a']));
        check_params([1, 2], Ok(&[0x92, 1, 2]));
        check_params(vec![0xc0_u8; 2], Ok(&[0x92, 0xcc, 0xc0, 0xcc, 0xc0]));
        check_params(((),), Ok(&[0x91, 0xc0]));
        check_params((Meta { size: 1 },), Ok(b"\x91\x81\xa4size\x01"));
        check_params((Bytes::new(&[1, 2]),), Ok(&[0x91, 0xc4, 2, 1, 2]));
        for no_params in ["5", "text"] {
            check_params(no_params, Err("params must be a tuple or a sequence"));
        }
        check_params(5, Err("params must be a tuple or a sequence"));
        check_params(Meta { size: 1 }, Err("params must be a tuple or a sequence"));
        check_params(Bytes::new(&[1, 2]), Err("params must be a tuple or a sequence"));
    }

    /// Announces `announced` elements, writes `written` and then panics if told so.
    struct Liar {
        announced: usize,
        written: usize,
        panics: bool,
    }

    impl Serialize for Liar {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            use serde::ser::SerializeSeq;
            let mut seq = serializer.serialize_seq(Some(self.announced))?;
            (0..self.written).try_for_each(|_| seq.serialize_element(&1))?;
            assert!(!self.panics, "on purpose");
            seq.end()
        }
    }

    #[test]
    fn frames_that_would_hurt_the_connection_are_not_written() {
        let no_value = Err("what was written is not one whole MessagePack value");
        check_params(Liar { announced: 3, written: 2, panics: false }, no_value);
        check_params(Liar { announced: 2, written: 3, panics: false }, no_value);
        check_params(Liar { announced: 5000, written: 0, panics: false }, no_value);
        let too_large = Err("the message is larger than the 100 bytes of a frame (Limits::frame_bytes_out_max)");
        check_params(("x".repeat(90),), Ok(&[&[0x91, 0xd9, 90][..], &[b'x'; 90]].concat()));
        check_params(("x".repeat(91),), too_large);
        check_params((vec![1; 200],), too_large);
        let deep = (0..40).fold(rmpv::Value::Nil, |inner, _| rmpv::Value::Array(vec![inner]));
        check_params(
            (deep,),
            Err(
                "the message would be refused by a peer with our limits: the frame nests deeper than 32 levels (Limits::depth_max)",
            ),
        );
    }

    #[test]
    fn a_panic_while_encoding_leaves_nothing_behind() {
        let mut out = b"before".to_vec();
        let liar = Liar { announced: 3, written: 2, panics: true };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            encode_response_ok(&mut out, &limits(), 1, &liar)
        }));
        assert!(outcome.is_err());
        assert_eq!(out, b"before");
    }

    #[test]
    fn names_are_bounded_when_sent() {
        let outcome = encode_notification(&mut Vec::new(), &Limits::default(), &"m".repeat(101), &());
        assert!(matches!(outcome, Err(EncodeError::MethodTooLong { limit: 100 })));
    }

    #[test]
    fn each_encoder_writes_what_the_parser_reads() {
        let limits = limits();
        let mut out = Vec::new();
        encode_notification(&mut out, &limits, "n", &(1,)).expect("it fits");
        check(&out, Message::Notification { method: "n", params: &[0x91, 1] });
        out.clear();
        encode_notification_raw(&mut out, &limits, "n", &[0x90]).expect("it fits");
        check(&out, Message::Notification { method: "n", params: &[0x90] });
        out.clear();
        encode_request_raw(&mut out, &limits, 1, "m", &[0x90]).expect("it fits");
        check(&out, Message::Request { id: 1, method: "m", params: &[0x90] });
        out.clear();
        encode_response_ok(&mut out, &limits, 70_000, &()).expect("it fits");
        check(&out, Message::Response { id: 70_000, outcome: Ok(&[0xc0]) });
        out.clear();
        encode_response_ok_raw(&mut out, &limits, 2, &[0x91, 1]).expect("it fits");
        check(&out, Message::Response { id: 2, outcome: Ok(&[0x91, 1]) });
        out.clear();
        encode_response_err(&mut out, &limits, 2, "e").expect("it fits");
        check(&out, Message::Response { id: 2, outcome: Err(&[0xa1, b'e']) });
        out.clear();
        encode_response_err_raw(&mut out, &limits, 2, &[5]).expect("it fits");
        check(&out, Message::Response { id: 2, outcome: Err(&[5]) });
    }

    #[test]
    fn raw_values_are_checked_before_they_are_sent() {
        let limits = limits();
        let mut out = Vec::new();
        assert!(matches!(encode_request_raw(&mut out, &limits, 1, "m", &[0x80]), Err(EncodeError::ParamsNotAnArray)));
        assert!(matches!(encode_request_raw(&mut out, &limits, 1, "m", &[0x91]), Err(EncodeError::NotOneValue)));
        assert!(matches!(encode_response_ok_raw(&mut out, &limits, 1, &[]), Err(EncodeError::NotOneValue)));
        assert!(matches!(encode_response_ok_raw(&mut out, &limits, 1, &[1, 2]), Err(EncodeError::NotOneValue)));
        assert!(matches!(encode_response_err_raw(&mut out, &limits, 1, &[0xc1]), Err(EncodeError::NotOneValue)));
        assert!(out.is_empty());
    }

    #[test]
    fn numbers_and_lengths_of_a_head_have_their_shortest_form() {
        let edges = [0, 0x1f, 0x20, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000, u32::MAX];
        for value in edges {
            let mut head = Head::new([0x94, REQUEST]);
            head.uint(value);
            head.str_len(value);
            let mut expected = vec![0x94, REQUEST];
            rmp::encode::write_uint(&mut expected, u64::from(value)).expect("a vector takes everything");
            rmp::encode::write_str_len(&mut expected, value).expect("a vector takes everything");
            assert_eq!(head.word.to_le_bytes()[..head.len], expected, "{value}");
        }
    }

    #[test]
    fn a_message_holds_the_values_allowed_and_no_more() {
        for (elements_max, is_allowed) in [(4, false), (5, true), (6, true)] {
            let limits = Limits { elements_max, ..limits() };
            let mut out = Vec::new();
            let outcome = encode_response_ok(&mut out, &limits, 1, &7);
            assert_eq!(outcome.is_ok(), is_allowed, "{elements_max}");
            assert_eq!(frame::value_len(&out, &limits).ok().flatten().is_some(), is_allowed, "{elements_max}");
        }
    }

    #[test]
    fn a_nil_error_does_not_read_as_success() {
        let mut out = Vec::new();
        encode_response_err(&mut out, &limits(), 1, &()).expect("it fits");
        assert!(matches!(Message::parse(&out, &limits()), Ok(Message::Response { outcome: Err(_), .. })));
    }

    #[test]
    fn misuse_and_faults_are_told_apart() {
        assert!(matches!(CallError::from(EncodeError::ParamsNotAnArray), CallError::ApiMisuse(_)));
        assert!(matches!(CallError::from(EncodeError::TooLarge { limit: 1 }), CallError::TooLarge { limit: 1 }));
        assert!(matches!(CallError::from(EncodeError::NotOneValue), CallError::Encode(_)));
    }
}
