//! MessagePack-RPC for the bare server and its load: cuts whole messages out of bytes, and writes
//! the few that they need.
//!
//! Written apart from `dhaga-rpc`, with which it shares only the bytes on the wire: the limit must
//! not get slower or faster with what is held against it.
//!
//! ```text
//! request   [0, id, method, params]
//! response  [1, id, error, result]
//! ```

/// Why no message was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The bytes end inside a message: read more.
    Incomplete,
    /// No MessagePack-RPC message of the wanted kind begins so: close the connection.
    Malformed,
}

/// A request, of which only the header has been read.
#[derive(Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// What the answer must carry.
    pub id: u32,
    /// The name, not checked to be UTF-8.
    pub method: &'a [u8],
    /// One MessagePack value.
    pub params: &'a [u8],
    /// How long the whole message is.
    pub message_bytes: usize,
}

/// An answer that is no error.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The request's.
    pub id: u32,
    /// The length of the string or binary that came back.
    pub payload_bytes: usize,
    /// How long the whole message is.
    pub message_bytes: usize,
}

/// Cuts the request that `bytes` begin with.
///
/// # Errors
///
/// See [`Stop`].
#[inline]
pub fn cut_request(bytes: &[u8]) -> Result<Request<'_>, Stop> {
    let mut cursor = Cursor { rest: bytes };
    cursor.expect(ARRAY_OF_4)?;
    cursor.expect(REQUEST)?;
    let id = cursor.id()?;
    let method = cursor.text_or_binary()?;
    let params_onwards = cursor.rest;
    cursor.skip_value()?;
    let params = &params_onwards[..params_onwards.len() - cursor.rest.len()];
    Ok(Request { id, method, params, message_bytes: bytes.len() - cursor.rest.len() })
}

/// Cuts the answer that `bytes` begin with. An error answer counts as malformed, since a load asks
/// for nothing that can fail.
///
/// # Errors
///
/// See [`Stop`].
#[inline]
pub fn cut_answer(bytes: &[u8]) -> Result<Answer, Stop> {
    let mut cursor = Cursor { rest: bytes };
    cursor.expect(ARRAY_OF_4)?;
    cursor.expect(RESPONSE)?;
    let id = cursor.id()?;
    cursor.expect(NIL)?;
    let payload_bytes = cursor.text_or_binary()?.len();
    Ok(Answer { id, payload_bytes, message_bytes: bytes.len() - cursor.rest.len() })
}

/// Writes what stands before the result in a successful answer.
#[inline]
pub fn begin_answer(out: &mut Vec<u8>, id: u32) {
    out.extend_from_slice(&[ARRAY_OF_4, RESPONSE]);
    push_id(out, id);
    out.push(NIL);
}

/// Writes an answer that says no more than that the call failed.
pub fn push_error_answer(out: &mut Vec<u8>, id: u32, error: &str) {
    let length = u8::try_from(error.len()).expect("the bare server's error texts are short");
    out.extend_from_slice(&[ARRAY_OF_4, RESPONSE]);
    push_id(out, id);
    out.extend_from_slice(&[STR_8, length]);
    out.extend_from_slice(error.as_bytes());
    out.push(NIL);
}

/// How a load's payload travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PayloadKind {
    /// As MessagePack `bin`.
    Binary,
    /// As MessagePack `str`.
    Text,
}

/// A request for `echo` with everything but its id filled in.
pub struct EchoRequest {
    bytes: Vec<u8>,
}

impl EchoRequest {
    /// A request whose params are an array of one value of `payload_bytes` bytes.
    pub fn new(kind: PayloadKind, payload_bytes: u8) -> EchoRequest {
        let mut bytes = vec![ARRAY_OF_4, REQUEST, UINT_32, 0, 0, 0, 0, FIXSTR | 4];
        bytes.extend_from_slice(b"echo");
        bytes.push(ARRAY_OF_1);
        bytes.push(match kind {
            PayloadKind::Binary => BIN_8,
            PayloadKind::Text => STR_8,
        });
        bytes.push(payload_bytes);
        bytes.extend((0..payload_bytes).map(|i| b'a' + i % 26));
        EchoRequest { bytes }
    }

    /// Appends the request with this id, which is written in four bytes whatever its value.
    #[inline]
    pub fn push(&self, out: &mut Vec<u8>, id: u32) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        out[start + ID_AT..start + ID_AT + 4].copy_from_slice(&id.to_be_bytes());
    }
}

/// Where the id's four bytes stand in a request.
const ID_AT: usize = 3;

const REQUEST: u8 = 0;
const RESPONSE: u8 = 1;
const ARRAY_OF_1: u8 = 0x91;
const ARRAY_OF_4: u8 = 0x94;
const FIXSTR: u8 = 0xa0;
const NIL: u8 = 0xc0;
const BIN_8: u8 = 0xc4;
const UINT_8: u8 = 0xcc;
const UINT_16: u8 = 0xcd;
const UINT_32: u8 = 0xce;
const UINT_64: u8 = 0xcf;
const STR_8: u8 = 0xd9;

/// Writes an id in the fewest bytes, as rmp does.
#[inline]
fn push_id(out: &mut Vec<u8>, id: u32) {
    match id {
        0..=0x7f => out.push(id as u8),
        0x80..=0xff => out.extend_from_slice(&[UINT_8, id as u8]),
        0x100..=0xffff => {
            out.push(UINT_16);
            out.extend_from_slice(&(id as u16).to_be_bytes());
        }
        _ => {
            let [a, b, c, d] = id.to_be_bytes();
            out.extend_from_slice(&[UINT_32, a, b, c, d]);
        }
    }
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    #[inline]
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(Stop::Incomplete)?;
        self.rest = rest;
        Ok(head)
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, Stop> {
        let (&byte, rest) = self.rest.split_first().ok_or(Stop::Incomplete)?;
        self.rest = rest;
        Ok(byte)
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Result<(), Stop> {
        if self.byte()? == byte { Ok(()) } else { Err(Stop::Malformed) }
    }

    /// A big-endian number of `width` bytes.
    #[inline]
    fn number(&mut self, width: usize) -> Result<usize, Stop> {
        let bytes = self.bytes(width)?;
        Ok(bytes.iter().fold(0, |number, &byte| number << 8 | usize::from(byte)))
    }

    #[inline]
    fn id(&mut self) -> Result<u32, Stop> {
        let id = match self.byte()? {
            small @ 0..=0x7f => usize::from(small),
            UINT_8 => self.number(1)?,
            UINT_16 => self.number(2)?,
            UINT_32 => self.number(4)?,
            UINT_64 => self.number(8)?,
            _ => return Err(Stop::Malformed),
        };
        u32::try_from(id).map_err(|_| Stop::Malformed)
    }

    #[inline]
    fn text_or_binary(&mut self) -> Result<&'a [u8], Stop> {
        let length = match self.byte()? {
            fixstr @ 0xa0..=0xbf => usize::from(fixstr & 0x1f),
            BIN_8 | STR_8 => self.number(1)?,
            0xc5 | 0xda => self.number(2)?,
            0xc6 | 0xdb => self.number(4)?,
            _ => return Err(Stop::Malformed),
        };
        self.bytes(length)
    }

    /// Steps over one value and all that is in it, without recursion.
    #[inline]
    fn skip_value(&mut self) -> Result<(), Stop> {
        let mut values_left = 1;
        while values_left > 0 {
            values_left += self.skip_marker()?;
            values_left -= 1;
        }
        Ok(())
    }

    /// Steps over one marker with its bytes; returns how many values it says are inside.
    #[inline]
    fn skip_marker(&mut self) -> Result<usize, Stop> {
        let (payload_bytes, values) = match self.byte()? {
            map @ 0x80..=0x8f => (0, usize::from(map & 0x0f) * 2),
            array @ 0x90..=0x9f => (0, usize::from(array & 0x0f)),
            fixstr @ 0xa0..=0xbf => (usize::from(fixstr & 0x1f), 0),
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => (0, 0),
            0xc1 => return Err(Stop::Malformed),
            BIN_8 | STR_8 => (self.number(1)?, 0),
            0xc5 | 0xda => (self.number(2)?, 0),
            0xc6 | 0xdb => (self.number(4)?, 0),
            0xc7 => (self.number(1)? + 1, 0),
            0xc8 => (self.number(2)? + 1, 0),
            0xc9 => (self.number(4)? + 1, 0),
            0xcc | 0xd0 => (1, 0),
            0xcd | 0xd1 => (2, 0),
            0xca | 0xce | 0xd2 => (4, 0),
            0xcb | 0xcf | 0xd3 => (8, 0),
            fixext @ 0xd4..=0xd8 => (1 + (1 << (fixext - 0xd4)), 0),
            0xdc => (0, self.number(2)?),
            0xdd => (0, self.number(4)?),
            0xde => (0, self.number(2)? * 2),
            0xdf => (0, self.number(4)? * 2),
        };
        self.bytes(payload_bytes)?;
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo_request(id: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        EchoRequest::new(PayloadKind::Binary, 32).push(&mut bytes, id);
        bytes
    }

    #[test]
    fn a_request_comes_back_as_it_was_written() {
        let bytes = echo_request(70_000);
        let request = cut_request(&bytes).expect("the request is whole");
        assert_eq!(request.id, 70_000);
        assert_eq!(request.method, b"echo");
        assert_eq!(&request.params[..3], [ARRAY_OF_1, BIN_8, 32]);
        assert_eq!(request.message_bytes, bytes.len());
    }

    #[test]
    fn each_beginning_of_a_request_is_incomplete() {
        let bytes = echo_request(1);
        for end in 0..bytes.len() {
            assert_eq!(cut_request(&bytes[..end]), Err(Stop::Incomplete), "the first {end} bytes");
        }
    }

    #[test]
    fn an_answer_comes_back_whatever_the_width_of_its_id() {
        for id in [0, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000, u32::MAX] {
            let mut bytes = Vec::new();
            begin_answer(&mut bytes, id);
            bytes.extend_from_slice(&[BIN_8, 2, 7, 7]);
            let message_bytes = bytes.len();
            assert_eq!(cut_answer(&bytes), Ok(Answer { id, payload_bytes: 2, message_bytes }));
        }
    }

    #[test]
    fn an_error_answer_and_a_reserved_marker_are_malformed() {
        let mut bytes = Vec::new();
        push_error_answer(&mut bytes, 1, "no such method");
        assert_eq!(cut_answer(&bytes), Err(Stop::Malformed));
        assert_eq!(cut_request(&[ARRAY_OF_4, REQUEST, 1, FIXSTR, 0xc1]), Err(Stop::Malformed));
    }

    #[test]
    fn nested_values_are_stepped_over_whole() {
        let nested = [0x92, 0x81, 0x01, 0xdc, 0, 2, 0xcb, 0, 0, 0, 0, 0, 0, 0, 0, 0xc3, 0xd6, 1, 2, 3, 4, 5];
        let mut cursor = Cursor { rest: &nested };
        assert_eq!(cursor.skip_value(), Ok(()));
        assert!(cursor.rest.is_empty());
    }
}
