//! Cuts whole MessagePack values out of a byte stream.
//!
//! MessagePack-RPC has no length prefix: where a message ends is known only by walking over its values. The [`Cutter`]
//! walks with a table of counters, not by recursion, remembers how far it came, and looks at each header once, however the
//! bytes arrive. It allocates nothing, whatever lengths a peer claims.
//!
//! `rmp::decode::MessageLen` has the same purpose and cannot stand here: any ext value makes it panic, `0xc1` passes, a
//! broken limit reads as "more bytes, please", and it recurses.

use std::fmt;

use crate::limits::{DEPTH_MAX_CEILING, Limits};

/// Finds the end of one frame after the other.
///
/// Give [`advance`](Cutter::advance) the bytes of the stream from the first byte of the unfinished frame on. When it says
/// `NeedMore`, append to them and call again; when it says `Whole`, take that many bytes off the front and call again.
/// After an error the stream cannot be resynchronised: close it.
#[derive(Clone, Debug)]
pub struct Cutter {
    walk: Walk,
    bounds: Bounds,
}

/// How far a [`Cutter`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The frame goes on.
    NeedMore {
        /// How many bytes are missing at the very least. The peer's claim: read until they are there, never reserve for
        /// them.
        at_least: usize,
    },
    /// The frame is there.
    Whole {
        /// Its length in bytes.
        len: usize,
    },
}

/// Why bytes are not a frame. Always our peer's fault, unless a limit of ours is too small for what both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// The byte `0xc1`, which MessagePack never uses.
    ReservedByte,
    /// A message is an array, and this value is not one.
    NotAnArray {
        /// Its first byte.
        first_byte: u8,
    },
    /// More containers inside one another than allowed.
    TooDeep {
        /// `Limits::depth_max`.
        limit: usize,
    },
    /// More bytes than allowed.
    TooLarge {
        /// The length so far, what the frame's headers claim included.
        claimed: usize,
        /// `Limits::frame_bytes_in_max`, or `frame_bytes_out_max` for a frame of our own.
        limit: usize,
    },
    /// More values than allowed.
    TooManyElements {
        /// `Limits::elements_max`.
        limit: u32,
    },
}

impl Cutter {
    /// A cutter at the start of a stream, for incoming frames within `limits`.
    pub fn new(limits: &Limits) -> Self {
        Self { walk: Walk::new(limits.elements_max), bounds: Bounds::incoming(limits) }
    }

    /// Walks on over `bytes`, which begin where the unfinished frame begins.
    ///
    /// # Errors
    ///
    /// A [`FrameError`] as soon as the bytes cannot become a frame within the limits: a claim counts before its bytes are
    /// there.
    #[inline]
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Progress, FrameError> {
        if self.walk.at == 0 {
            match bytes.first() {
                None | Some(0x90..=0x9f | 0xdc | 0xdd) => {}
                Some(0xc1) => return Err(FrameError::ReservedByte),
                Some(&first_byte) => return Err(FrameError::NotAnArray { first_byte }),
            }
            if let Some(len) = whole_len(bytes, &self.bounds) {
                return Ok(Progress::Whole { len });
            }
        }
        let progress = self.walk.advance(&self.bounds, bytes)?;
        if let Progress::Whole { .. } = progress {
            self.walk.restart(self.bounds.elements_max);
        }
        Ok(progress)
    }

    /// Whether no frame is unfinished, so that a fresh cutter would do as well: an idle connection need not keep one.
    pub fn is_between_frames(&self) -> bool {
        self.walk.at == 0
    }
}

/// The length of the one value that `bytes` begin with, of any type, within the bounds of an incoming frame; `None` if it
/// is not whole.
pub(crate) fn value_len(bytes: &[u8], limits: &Limits) -> Result<Option<usize>, FrameError> {
    walk_once(bytes, &Bounds::incoming(limits))
}

/// The same within the bounds of an outgoing frame.
pub(crate) fn outgoing_value_len(bytes: &[u8], limits: &Limits) -> Result<Option<usize>, FrameError> {
    walk_once(bytes, &Bounds { bytes_max: limits.frame_bytes_out_max, ..Bounds::incoming(limits) })
}

/// Whether `bytes` are the last value of an outgoing message, nothing more or less, and surely within its bounds. Its other
/// values are of one level.
#[inline]
pub(crate) fn is_last_value(bytes: &[u8], limits: &Limits) -> bool {
    let Some(elements_max) = limits.elements_max.checked_sub(MESSAGE_VALUES_MAX) else { return false };
    let bounds = Bounds {
        bytes_max: limits.frame_bytes_out_max,
        depth_max: limits.depth_max.min(DEPTH_MAX_CEILING).saturating_sub(1),
        elements_max,
    };
    whole_len(bytes, &bounds) == Some(bytes.len())
}

/// The values of a message, the array among them.
const MESSAGE_VALUES_MAX: u32 = 5;

#[inline]
fn walk_once(bytes: &[u8], bounds: &Bounds) -> Result<Option<usize>, FrameError> {
    match whole_len(bytes, bounds) {
        Some(len) => Ok(Some(len)),
        None => walk_slowly(bytes, bounds),
    }
}

#[inline(never)]
fn walk_slowly(bytes: &[u8], bounds: &Bounds) -> Result<Option<usize>, FrameError> {
    match Walk::new(bounds.elements_max).advance(bounds, bytes)? {
        Progress::Whole { len } => Ok(Some(len)),
        Progress::NeedMore { .. } => Ok(None),
    }
}

/// The length of the value that `bytes` begin with, if it is whole, in order, and has too few containers to be too deep: as
/// nearly all are. One counter is enough for it, where a [`Walk`] keeps one for each level. `None`: a walk has to find out.
#[inline]
fn whole_len(bytes: &[u8], bounds: &Bounds) -> Option<usize> {
    let (mut at, mut values_missing) = (0, 1_u64);
    let (mut containers_left, mut elements_left) = (bounds.depth_max, u64::from(bounds.elements_max).saturating_sub(1));
    while values_missing > 0 {
        let marker = *bytes.get(at)?;
        values_missing -= 1;
        let scalar_bytes = SCALAR_BYTES[usize::from(marker)];
        if scalar_bytes > 0 {
            at += usize::from(scalar_bytes);
            continue;
        }
        let (len, values) = match marker {
            0x90..=0x9f => (1, Some(u64::from(marker & 0x0f))),
            0xc4 | 0xd9 => (2 + usize::from(*bytes.get(at + 1)?), None),
            _ => Header::read_rare(&bytes[at..])?,
        };
        at += len;
        if let Some(values) = values {
            containers_left = containers_left.checked_sub(1)?;
            elements_left = elements_left.checked_sub(values)?;
            values_missing += values;
        }
    }
    (at <= bytes.len().min(bounds.bytes_max)).then_some(at)
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    bytes_max: usize,
    depth_max: usize,
    elements_max: u32,
}

impl Bounds {
    fn incoming(limits: &Limits) -> Self {
        Self {
            bytes_max: limits.frame_bytes_in_max,
            depth_max: limits.depth_max.min(DEPTH_MAX_CEILING),
            elements_max: limits.elements_max,
        }
    }
}

/// A walk over one value, from header to header.
///
/// ```text
/// bytes   93 │ 01 │ 92 │ a1 'x' │ c0 │ 05           at ▸ the next header, or beyond the bytes that are there
/// left    1→0, 3→2→1, 2→1→0, then back to 1→0       left[depth]: values still missing in the container at that depth;
///                                                   left[0] is the walk itself, which misses one value
/// ```
#[derive(Clone, Debug)]
struct Walk {
    at: usize,
    depth: usize,
    /// How many values the frame may still announce.
    elements_left: u32,
    left: [u32; DEPTH_MAX_CEILING + 1],
}

/// What a header says: its own bytes, the bytes to skip behind it, and the values it announces.
enum Header {
    Data { len: usize },
    Container { len: usize, values: u64 },
    Incomplete,
}

impl Walk {
    fn new(elements_max: u32) -> Self {
        let mut walk = Self { at: 0, depth: 0, elements_left: 0, left: [0; DEPTH_MAX_CEILING + 1] };
        walk.restart(elements_max);
        walk
    }

    #[inline]
    fn restart(&mut self, elements_max: u32) {
        self.at = 0;
        self.depth = 0;
        self.elements_left = elements_max.saturating_sub(1);
        self.left[0] = 1;
    }

    #[inline]
    fn advance(&mut self, bounds: &Bounds, bytes: &[u8]) -> Result<Progress, FrameError> {
        let mut at = self.at;
        let mut left = self.left[self.depth];
        loop {
            while left == 0 {
                if self.depth == 0 {
                    self.at = at;
                    self.left[0] = 0;
                    return self.finish(bounds, bytes.len());
                }
                self.depth -= 1;
                left = self.left[self.depth];
            }
            let header = match bytes.get(at) {
                Some(&marker) => match SCALAR_BYTES[marker as usize] {
                    0 => Header::read(&bytes[at..])?,
                    len => Header::Data { len: len as usize },
                },
                None => Header::Incomplete,
            };
            match header {
                Header::Data { len } => {
                    at += len;
                    left -= 1;
                }
                Header::Container { len, values } => {
                    at += len;
                    self.left[self.depth] = left - 1;
                    left = self.enter(bounds, values)?;
                }
                Header::Incomplete => {
                    self.at = at;
                    self.left[self.depth] = left;
                    return self.pause(bounds, bytes.len());
                }
            }
        }
    }

    /// Goes one level down, into a container that announces `values`, and returns their number.
    #[inline]
    fn enter(&mut self, bounds: &Bounds, values: u64) -> Result<u32, FrameError> {
        if self.depth == bounds.depth_max {
            return Err(FrameError::TooDeep { limit: bounds.depth_max });
        }
        if values > u64::from(self.elements_left) {
            return Err(FrameError::TooManyElements { limit: bounds.elements_max });
        }
        self.elements_left -= values as u32;
        self.depth += 1;
        Ok(values as u32)
    }

    /// All headers were seen; the bytes of the last value may still be missing.
    #[inline]
    fn finish(&self, bounds: &Bounds, there: usize) -> Result<Progress, FrameError> {
        bounds.check_bytes(self.at)?;
        match self.at.checked_sub(there) {
            None | Some(0) => Ok(Progress::Whole { len: self.at }),
            Some(at_least) => Ok(Progress::NeedMore { at_least }),
        }
    }

    /// The next header is not there. Each missing value takes one byte at least.
    #[cold]
    fn pause(&self, bounds: &Bounds, there: usize) -> Result<Progress, FrameError> {
        let missing: usize = self.left[..=self.depth].iter().map(|&left| left as usize).sum();
        let len = (self.at + missing).max(there + 1);
        bounds.check_bytes(len)?;
        Ok(Progress::NeedMore { at_least: len - there })
    }
}

impl Bounds {
    #[inline]
    fn check_bytes(&self, claimed: usize) -> Result<(), FrameError> {
        if claimed > self.bytes_max {
            return Err(FrameError::TooLarge { claimed, limit: self.bytes_max });
        }
        Ok(())
    }
}

impl Header {
    /// Reads the header that `bytes` begin with, of a format whose length is not in [`SCALAR_BYTES`].
    #[inline]
    fn read(bytes: &[u8]) -> Result<Self, FrameError> {
        let marker = bytes[0];
        Ok(match marker {
            0x80..=0x8f => Self::Container { len: 1, values: 2 * u64::from(marker & 0x0f) },
            0x90..=0x9f => Self::Container { len: 1, values: u64::from(marker & 0x0f) },
            0xc4 | 0xd9 => Self::data::<1>(bytes, 2),
            0xc5 | 0xda => Self::data::<2>(bytes, 3),
            0xc6 | 0xdb => Self::data::<4>(bytes, 5),
            0xc7 => Self::data::<1>(bytes, 3),
            0xc8 => Self::data::<2>(bytes, 4),
            0xc9 => Self::data::<4>(bytes, 6),
            0xdc => Self::container::<2>(bytes, 1),
            0xdd => Self::container::<4>(bytes, 1),
            0xde => Self::container::<2>(bytes, 2),
            0xdf => Self::container::<4>(bytes, 2),
            _ => return Err(FrameError::ReservedByte),
        })
    }

    /// As [`read`](Self::read): the bytes to skip, and of a container the values it announces. `None`: it is not whole, or
    /// wrong.
    #[inline(never)]
    fn read_rare(bytes: &[u8]) -> Option<(usize, Option<u64>)> {
        match Self::read(bytes).ok()? {
            Self::Data { len } => Some((len, None)),
            Self::Container { len, values } => Some((len, Some(values))),
            Self::Incomplete => None,
        }
    }

    /// `head` bytes (marker, length and, for ext, the type), then as many as the length of `N` bytes says.
    #[inline]
    fn data<const N: usize>(bytes: &[u8], head: usize) -> Self {
        length::<N>(bytes).map_or(Self::Incomplete, |len| Self::Data { len: head + len as usize })
    }

    #[inline]
    fn container<const N: usize>(bytes: &[u8], values_each: u64) -> Self {
        length::<N>(bytes).map_or(Self::Incomplete, |entries| Self::Container {
            len: 1 + N,
            values: values_each * u64::from(entries),
        })
    }
}

/// The big-endian length of `N` bytes behind the marker.
#[inline]
fn length<const N: usize>(bytes: &[u8]) -> Option<u32> {
    let bytes = bytes.get(1..1 + N)?;
    Some(bytes.iter().fold(0, |length, &byte| length << 8 | u32::from(byte)))
}

/// Marker and data together, for the formats whose marker says it all; 0 for the others. Most values of a call end here.
static SCALAR_BYTES: [u8; 256] = scalar_bytes();

const fn scalar_bytes() -> [u8; 256] {
    let mut bytes = [0; 256];
    let mut marker = 0;
    while marker < 256 {
        bytes[marker] = match marker {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => 1,
            0xa0..=0xbf => 1 + (marker as u8 & 0x1f),
            0xcc | 0xd0 => 2,
            0xcd | 0xd1 | 0xd4 => 3,
            0xd5 => 4,
            0xca | 0xce | 0xd2 => 5,
            0xd6 => 6,
            0xcb | 0xcf | 0xd3 => 9,
            0xd7 => 10,
            0xd8 => 18,
            _ => 0,
        };
        marker += 1;
    }
    bytes
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReservedByte => write!(f, "the bytes hold 0xc1, which MessagePack never uses"),
            Self::NotAnArray { first_byte } => {
                write!(f, "a message must be an array, and this begins with {first_byte:#04x}")
            }
            Self::TooDeep { limit } => write!(f, "the frame nests deeper than {limit} levels (Limits::depth_max)"),
            Self::TooLarge { claimed, limit } => {
                write!(
                    f,
                    "the frame claims {claimed} bytes, above the {limit} allowed (Limits::frame_bytes_in_max and _out_max)"
                )
            }
            Self::TooManyElements { limit } => {
                write!(f, "the frame holds more than {limit} values (Limits::elements_max)")
            }
        }
    }
}

impl std::error::Error for FrameError {}

#[cfg(test)]
#[path = "frame_split.rs"]
pub(crate) mod split;

#[cfg(test)]
mod tests {
    use super::*;

    /// Cuts `frame` at once, byte by byte, and at every single place; all three must come to `expected`.
    fn check(frame: &[u8], expected: Result<usize, FrameError>) {
        check_within(&Limits::default(), frame, expected);
    }

    fn check_within(limits: &Limits, frame: &[u8], expected: Result<usize, FrameError>) {
        let whole: Vec<_> = [frame.len()].into();
        let bytewise: Vec<_> = (1..=frame.len()).collect();
        assert_eq!(cut(limits, frame, &whole), expected, "whole: {frame:02x?}");
        assert_eq!(cut(limits, frame, &bytewise), expected, "byte by byte: {frame:02x?}");
        for place in 1..frame.len().min(100) {
            assert_eq!(cut(limits, frame, &[place, frame.len()]), expected, "cut at {place}: {frame:02x?}");
        }
    }

    /// Lets the cutter see `frame` up to each of `ends` in turn.
    fn cut(limits: &Limits, frame: &[u8], ends: &[usize]) -> Result<usize, FrameError> {
        let mut cutter = Cutter::new(limits);
        let mut claimed = 0;
        for &end in ends {
            match cutter.advance(&frame[..end])? {
                Progress::Whole { len } => {
                    assert!(cutter.is_between_frames());
                    return Ok(len);
                }
                Progress::NeedMore { at_least } => {
                    assert!(at_least > 0 && end + at_least >= claimed, "a claim never shrinks");
                    claimed = end + at_least;
                }
            }
        }
        panic!("not whole after {} bytes, {claimed} claimed: {frame:02x?}", frame.len());
    }

    fn in_array(value: &[u8]) -> Vec<u8> {
        [&[0x91], value].concat()
    }

    fn long(head: &[u8], len: usize) -> Vec<u8> {
        in_array(&[head, &vec![0; len]].concat())
    }

    #[test]
    fn every_format_has_its_length() {
        let values: &[&[u8]] = &[
            &[0x00],
            &[0x7f],
            &[0xe0],
            &[0xff],
            &[0xc0],
            &[0xc2],
            &[0xc3],
            &[0xcc, 1],
            &[0xcd, 1, 1],
            &[0xce, 1, 1, 1, 1],
            &[0xcf, 1, 1, 1, 1, 1, 1, 1, 1],
            &[0xd0, 1],
            &[0xd1, 1, 1],
            &[0xd2, 1, 1, 1, 1],
            &[0xd3, 1, 1, 1, 1, 1, 1, 1, 1],
            &[0xca, 1, 1, 1, 1],
            &[0xcb, 1, 1, 1, 1, 1, 1, 1, 1],
            &[0xa0],
            &[0xa3, 1, 1, 1],
            &[0x90],
            &[0x92, 1, 1],
            &[0x80],
            &[0x82, 1, 1, 1, 1],
            &[0xd4, 5, 1],
            &[0xd5, 5, 1, 1],
            &[0xd6, 0xff, 1, 1, 1, 1],
        ];
        for value in values {
            check(&in_array(value), Ok(value.len() + 1));
        }
        check(&long(&[0xbf], 31), Ok(33));
        check(&long(&[0xd7, 5], 8), Ok(11));
        check(&long(&[0xd8, 5], 16), Ok(19));
    }

    #[test]
    fn overlong_and_long_forms_are_legal() {
        check(&in_array(&[0xd9, 2, 1, 1]), Ok(5));
        check(&in_array(&[0xda, 0, 1, 1]), Ok(5));
        check(&in_array(&[0xdb, 0, 0, 0, 1, 1]), Ok(7));
        check(&in_array(&[0xc4, 0]), Ok(3));
        check(&in_array(&[0xc5, 0, 1, 1]), Ok(5));
        check(&in_array(&[0xc6, 0, 0, 0, 1, 1]), Ok(7));
        check(&in_array(&[0xc7, 1, 9, 1]), Ok(5));
        check(&in_array(&[0xc8, 0, 1, 9, 1]), Ok(6));
        check(&in_array(&[0xc9, 0, 0, 0, 1, 9, 1]), Ok(8));
        check(&[0xdc, 0, 2, 0xde, 0, 1, 1, 1, 0xdf, 0, 0, 0, 0], Ok(13));
        check(&[0xdd, 0, 0, 0, 1, 0xdd, 0, 0, 0, 0], Ok(10));
        check(&long(&[0xda, 1, 0], 256), Ok(260));
        check(&long(&[0xc6, 0, 1, 0, 0], 65_536), Ok(65_542));
    }

    #[test]
    fn frames_back_to_back_are_cut_one_by_one() {
        let stream = [0x93, 2, 0xa1, b'm', 0x90, 0x94, 0, 1, 0xa1, b'm', 0x90, 0x90];
        let mut cutter = Cutter::new(&Limits::default());
        let mut rest = &stream[..];
        for expected in [5, 6, 1] {
            assert_eq!(cutter.advance(rest), Ok(Progress::Whole { len: expected }));
            rest = &rest[expected..];
        }
        assert_eq!(cutter.advance(rest), Ok(Progress::NeedMore { at_least: 1 }));
    }

    #[test]
    fn what_is_missing_is_said_exactly_where_it_is_known() {
        let mut cutter = Cutter::new(&Limits::default());
        assert_eq!(cutter.advance(&[0x94, 0]), Ok(Progress::NeedMore { at_least: 3 }));
        assert_eq!(cutter.advance(&[0x94, 0, 1, 0xa3]), Ok(Progress::NeedMore { at_least: 4 }));
        assert_eq!(cutter.advance(&[0x94, 0, 1, 0xa3, 1, 1, 1, 0xc5, 1]), Ok(Progress::NeedMore { at_least: 1 }));
        assert_eq!(cutter.advance(&[0x94, 0, 1, 0xa3, 1, 1, 1, 0xc5, 1, 0]), Ok(Progress::NeedMore { at_least: 256 }));
    }

    #[test]
    fn only_arrays_are_messages() {
        for first_byte in [0x00, 0x80, 0xa0, 0xc0, 0xc4, 0xd4, 0xde, 0xff] {
            check(&[first_byte; 20], Err(FrameError::NotAnArray { first_byte }));
        }
        check(&[0xc1], Err(FrameError::ReservedByte));
        check(&[0x92, 0x01, 0xc1], Err(FrameError::ReservedByte));
    }

    #[test]
    fn depth_counts_every_container() {
        let levels = |n: usize| [vec![0x91; n - 1], vec![0x80]].concat();
        check(&levels(32), Ok(32));
        check(&levels(33), Err(FrameError::TooDeep { limit: 32 }));
        check(&vec![0x91; 100_000], Err(FrameError::TooDeep { limit: 32 }));
        check(&[0x81; 1000].map(|b| b ^ 0x10), Err(FrameError::TooDeep { limit: 32 }));
        let raised = Limits { depth_max: usize::MAX, ..Limits::default() };
        check_within(&raised, &levels(63), Ok(63));
        check_within(&raised, &levels(64), Err(FrameError::TooDeep { limit: 63 }));
    }

    #[test]
    fn claims_of_four_gib_are_refused_by_their_header() {
        let huge = [0xff, 0xff, 0xff, 0xff];
        for marker in [0xc6, 0xdb, 0xc9] {
            let frame = in_array(&[&[marker], &huge[..], &[0]].concat());
            let error = cut(&Limits::default(), &frame, &[frame.len()]).map(|_| ());
            assert!(
                matches!(error, Err(FrameError::TooLarge { claimed, .. }) if claimed > u32::MAX as usize),
                "{error:?}"
            );
        }
        for marker in [0xdd, 0xdf] {
            check(&in_array(&[&[marker], &huge[..]].concat()), Err(FrameError::TooManyElements { limit: 1 << 20 }));
        }
        check(&[0xdd, 0xff, 0xff, 0xff, 0xff], Err(FrameError::TooManyElements { limit: 1 << 20 }));
    }

    #[test]
    fn a_frame_may_have_just_the_bytes_allowed() {
        let limits = Limits { frame_bytes_in_max: 10, ..Limits::default() };
        check_within(&limits, &long(&[0xa8], 8), Ok(10));
        check_within(&limits, &[&[0x99][..], &[0; 9]].concat(), Ok(10));
        check_within(&limits, &[&[0x9a][..], &[0; 10]].concat(), Err(FrameError::TooLarge { claimed: 11, limit: 10 }));
    }

    #[test]
    fn the_claims_of_every_level_add_up() {
        let limits = Limits { frame_bytes_in_max: 10, ..Limits::default() };
        let check_claim = |bytes: &[u8], claimed| {
            let error = FrameError::TooLarge { claimed, limit: 10 };
            assert_eq!(Cutter::new(&limits).advance(bytes), Err(error), "{bytes:02x?}");
        };
        check_claim(&[0x91, 0xaf], 17);
        check_claim(&[0x92, 0xaf], 18);
        check_claim(&[0x9a], 11);
        check_claim(&[0x92, 0x98], 11);
        check_claim(&[0x94, 0x92, 0x83], 3 + 3 + 1 + 6);
    }

    #[test]
    fn each_value_is_charged() {
        let limits = Limits { elements_max: 5, ..Limits::default() };
        check_within(&limits, &[0x92, 0x92, 0, 0, 0], Ok(5));
        check_within(&limits, &[0x93, 0x92, 0, 0, 0, 0], Err(FrameError::TooManyElements { limit: 5 }));
        check_within(&limits, &[0x92, 0x81, 0, 0, 0], Ok(5));
        check_within(&limits, &[0x92, 0x82, 0, 0, 0, 0, 0], Err(FrameError::TooManyElements { limit: 5 }));
        let nils = |n: u32| [&[0xdd][..], &n.to_be_bytes(), &vec![0xc0; n as usize]].concat();
        let limits = Limits::default();
        assert_eq!(cut(&limits, &nils((1 << 20) - 1), &[(1 << 20) + 4]), Ok((1 << 20) + 4));
        assert_eq!(cut(&limits, &nils(1 << 20), &[5]), Err(FrameError::TooManyElements { limit: 1 << 20 }));
    }

    #[test]
    fn a_large_frame_in_single_bytes_takes_linear_time() {
        let nils = 1 << 19;
        let mut frame = [&[0x91, 0xdd][..], &u32::to_be_bytes(nils)].concat();
        frame.resize(frame.len() + nils as usize, 0xc0);
        let bytewise: Vec<_> = (1..=frame.len()).collect();
        assert_eq!(cut(&Limits::default(), &frame, &bytewise), Ok(frame.len()));
    }

    #[test]
    fn random_frames_cut_at_random_places_end_where_they_end() {
        let mut random = Random(7);
        for _ in 0..2000 {
            let mut stream = Vec::new();
            let mut lengths = Vec::new();
            for _ in 0..random.below(5) + 1 {
                let start = stream.len();
                random.array(&mut stream, 0);
                lengths.push(stream.len() - start);
            }
            assert_eq!(cut_at_random(&mut random, &stream), lengths);
        }
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut random = Random(11);
        let limits = Limits { frame_bytes_in_max: 1000, ..Limits::default() };
        for _ in 0..20_000 {
            let mut bytes: Vec<_> = (0..random.below(60) + 1).map(|_| random.next() as u8).collect();
            bytes[0] = 0x90 | bytes[0] & 0x0f;
            let whole = Cutter::new(&limits).advance(&bytes);
            let mut cutter = Cutter::new(&limits);
            let stepwise = (1..=bytes.len())
                .map(|end| cutter.advance(&bytes[..end]))
                .find(|step| !matches!(step, Ok(Progress::NeedMore { .. })));
            match (whole, stepwise) {
                (Ok(Progress::NeedMore { .. }), None) => {}
                // A pause adds up every claim, so it may see that a frame is too large before the byte that is wrong.
                (Err(_), Some(Err(_))) => {}
                (whole, stepwise) => assert_eq!(Some(whole), stepwise, "{bytes:02x?}"),
            }
        }
    }

    /// What the walk from level to level says to these bytes.
    fn slowly(bounds: &Bounds, bytes: &[u8]) -> Result<Progress, FrameError> {
        Walk::new(bounds.elements_max).advance(bounds, bytes)
    }

    /// Whatever one counter takes for whole, the walk does too; and a cutter says what the walk says, errors included.
    fn check_counter(limits: &Limits, bytes: &[u8]) {
        let bounds = Bounds::incoming(limits);
        let expected = slowly(&bounds, bytes);
        if let Some(len) = whole_len(bytes, &bounds) {
            assert_eq!(expected, Ok(Progress::Whole { len }), "{bytes:02x?} within {bounds:?}");
        }
        if let Some(0x90..=0x9f | 0xdc | 0xdd) = bytes.first() {
            assert_eq!(Cutter::new(limits).advance(bytes), expected, "{bytes:02x?} within {bounds:?}");
        }
    }

    #[test]
    fn one_counter_is_as_strict_as_the_walk_for_every_marker_and_length() {
        for marker in 0..=u8::MAX {
            for fill in [0, 1, 2, 0x90, 0xc0, 0xc1, 0xff] {
                for len in 0..40 {
                    let limits = Limits { frame_bytes_in_max: 20, depth_max: 3, elements_max: 9, ..Limits::default() };
                    let value = [&[marker][..], &vec![fill; len]].concat();
                    check_counter(&limits, &value);
                    check_counter(&limits, &in_array(&value));
                    check_counter(&limits, &[&[0x92, 0x91][..], &value, &value].concat());
                }
            }
        }
    }

    #[test]
    fn one_counter_is_as_strict_as_the_walk_at_every_limit() {
        let mut random = Random(13);
        for _ in 0..5000 {
            let mut bytes = Vec::new();
            random.array(&mut bytes, 0);
            for _ in 0..random.below(3) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.next() as u8;
            }
            let end = random.below(bytes.len() as u64 + 4) as usize;
            bytes.resize(end.max(1), 0);
            for depth_max in 1..8 {
                let elements_max = random.below(60) as u32;
                let frame_bytes_in_max = bytes.len() + 2 - random.below(5).min(bytes.len() as u64) as usize;
                check_counter(&Limits { frame_bytes_in_max, depth_max, elements_max, ..Limits::default() }, &bytes);
                check_counter(&Limits { depth_max, ..Limits::default() }, &bytes);
            }
        }
    }

    fn cut_at_random(random: &mut Random, stream: &[u8]) -> Vec<usize> {
        let mut cutter = Cutter::new(&Limits::default());
        let (mut start, mut end) = (0, 0);
        let mut lengths = Vec::new();
        while start < stream.len() {
            match cutter.advance(&stream[start..end]).expect("the stream is well formed") {
                Progress::Whole { len } => {
                    lengths.push(len);
                    start += len;
                }
                Progress::NeedMore { at_least } => {
                    assert!(end + at_least <= stream.len(), "a claim is never too high");
                    end = (end + 1 + random.below(40) as usize).min(stream.len());
                }
            }
        }
        lengths
    }

    /// Xorshift: enough to make frames, and a failing seed stays a failing seed.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        fn below(&mut self, end: u64) -> u64 {
            self.next() % end
        }

        fn array(&mut self, out: &mut Vec<u8>, depth: u32) {
            let len = self.below(6) as u8;
            match self.below(3) {
                0 => out.push(0x90 | len),
                1 => out.extend([0xdc, 0, len]),
                _ => out.extend([0xdd, 0, 0, 0, len]),
            }
            (0..len).for_each(|_| self.value(out, depth + 1));
        }

        fn map(&mut self, out: &mut Vec<u8>, depth: u32) {
            let len = self.below(4) as u8;
            match self.below(2) {
                0 => out.push(0x80 | len),
                _ => out.extend([0xde, 0, len]),
            }
            (0..2 * len).for_each(|_| self.value(out, depth + 1));
        }

        fn value(&mut self, out: &mut Vec<u8>, depth: u32) {
            match self.below(if depth < 6 { 9 } else { 7 }) {
                0 => out.push(self.next() as u8 & 0x7f),
                1 => out.extend([0xcf, 1, 2, 3, 4, 5, 6, 7, 8]),
                2 => self.data(out, &[0xd9], 200),
                3 => self.data(out, &[0xc5, 1], 256),
                4 => self.data(out, &[0xdb, 0, 0, 2], 256),
                5 => out.extend([0xd5, 0xff, 1, 2]),
                6 => out.push(0xc0),
                7 => self.array(out, depth),
                _ => self.map(out, depth),
            }
        }

        /// `head`, one byte more of length below `len_end`, and as much data as the two say.
        fn data(&mut self, out: &mut Vec<u8>, head: &[u8], len_end: u64) {
            let low = self.below(len_end) as u8;
            out.extend(head);
            out.push(low);
            let len = head[1..].iter().chain([&low]).fold(0, |len, &byte| len << 8 | byte as usize);
            out.resize(out.len() + len, 0xc1);
        }
    }
}
