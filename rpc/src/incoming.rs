//! The unfinished end of what was read: whole frames out, the rest kept.

use crate::frame::{Cutter, FrameError, Progress};
use crate::limits::Limits;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// It was taken.
    Taken,
    /// There is no room for it now: it stays, and nothing after it is looked at.
    Wait,
}

/// Bytes that are no whole frame yet, or that had to wait. Empty, and one word, on an idle connection.
#[derive(Default)]
pub(crate) struct Incoming {
    rest: Option<Box<Rest>>,
}

struct Rest {
    bytes: Vec<u8>,
    /// Where the first frame that is not taken begins.
    start: usize,
    cutter: Cutter,
}

impl Incoming {
    /// Whether a frame has begun and not ended.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.rest.is_some()
    }

    /// Bytes of memory that are kept for a frame which has not ended, or has to wait: at most twice what came of it.
    pub(crate) fn unfinished_bytes(&self) -> usize {
        self.rest.as_ref().map_or(0, |rest| rest.bytes.capacity())
    }

    /// Cuts `fresh`, behind what was left, into frames for `take`. Returns `Wait` if that is what `take` said last.
    ///
    /// # Errors
    ///
    /// The bytes are no MessagePack array, or beyond a limit. The stream cannot be understood any further.
    pub(crate) fn feed(
        &mut self,
        fresh: &[u8],
        limits: &Limits,
        mut take: impl FnMut(&[u8]) -> Flow,
    ) -> Result<Flow, FrameError> {
        match self.rest.take() {
            None => {
                let mut cutter = Cutter::new(limits);
                let (taken, flow) = cut(fresh, &mut cutter, &mut take)?;
                if taken < fresh.len() {
                    let cutter = renewed(cutter, flow, limits);
                    self.rest = Some(Box::new(Rest { bytes: fresh[taken..].to_vec(), start: 0, cutter }));
                }
                Ok(flow)
            }
            Some(mut rest) => {
                rest.append(fresh, limits.frame_bytes_in_max);
                let (taken, flow) = cut(&rest.bytes[rest.start..], &mut rest.cutter, &mut take)?;
                rest.start += taken;
                if rest.start < rest.bytes.len() {
                    rest.let_go();
                    rest.cutter = renewed(rest.cutter, flow, limits);
                    self.rest = Some(rest);
                }
                Ok(flow)
            }
        }
    }
}

/// A frame that has to wait is cut again when its time comes.
fn renewed(cutter: Cutter, flow: Flow, limits: &Limits) -> Cutter {
    match flow {
        Flow::Taken => cutter,
        Flow::Wait => Cutter::new(limits),
    }
}

/// Returns how many bytes were taken.
fn cut(bytes: &[u8], cutter: &mut Cutter, take: &mut impl FnMut(&[u8]) -> Flow) -> Result<(usize, Flow), FrameError> {
    let mut taken = 0;
    while taken < bytes.len() {
        match cutter.advance(&bytes[taken..])? {
            Progress::Whole { len } => match take(&bytes[taken..taken + len]) {
                Flow::Taken => taken += len,
                Flow::Wait => return Ok((taken, Flow::Wait)),
            },
            Progress::NeedMore { .. } => break,
        }
    }
    Ok((taken, Flow::Taken))
}

impl Rest {
    /// Doubles the memory as a vector does, but not beyond what one frame and one read may need.
    fn append(&mut self, fresh: &[u8], frame_bytes_max: usize) {
        let needed = self.bytes.len() + fresh.len();
        if needed > self.bytes.capacity() {
            let doubled = (2 * self.bytes.capacity()).min(frame_bytes_max.saturating_add(fresh.len()));
            self.bytes.reserve_exact(doubled.max(needed) - self.bytes.len());
        }
        self.bytes.extend_from_slice(fresh);
    }

    /// Frees taken bytes once they are the larger part, so that each byte is moved at most twice. The memory goes with them:
    /// whoever sent a large frame and one byte more would keep it for that byte.
    fn let_go(&mut self) {
        if self.start > self.bytes.len() / 2 {
            self.bytes = self.bytes[self.start..].to_vec();
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three frames: `[0]`, `["ab"]`, `[nil, nil]`.
    const STREAM: &[u8] = &[0x91, 0, 0x91, 0xa2, b'a', b'b', 0x92, 0xc0, 0xc0];

    fn frames() -> Vec<Vec<u8>> {
        vec![STREAM[..2].to_vec(), STREAM[2..6].to_vec(), STREAM[6..].to_vec()]
    }

    #[test]
    fn every_split_gives_the_same_frames() {
        let limits = Limits::default();
        for first in 0..=STREAM.len() {
            for second in first..=STREAM.len() {
                let (mut incoming, mut seen) = (Incoming::default(), Vec::new());
                for part in [&STREAM[..first], &STREAM[first..second], &STREAM[second..]] {
                    let flow = incoming.feed(part, &limits, |frame| {
                        seen.push(frame.to_vec());
                        Flow::Taken
                    });
                    assert_eq!(flow, Ok(Flow::Taken));
                }
                assert_eq!(seen, frames(), "split at {first} and {second}");
                assert!(!incoming.is_unfinished());
            }
        }
    }

    #[test]
    fn every_form_of_a_message_comes_out_of_small_steps() {
        let limits = Limits::default();
        let messages = crate::frame::split::messages();
        for messages in messages.chunks(3) {
            let stream = messages.concat();
            for step in 1..=3 {
                let (mut incoming, mut seen) = (Incoming::default(), Vec::new());
                for part in stream.chunks(step) {
                    let flow = incoming.feed(part, &limits, |frame| {
                        seen.push(frame.to_vec());
                        Flow::Taken
                    });
                    assert_eq!(flow, Ok(Flow::Taken));
                }
                assert_eq!(seen, messages, "in steps of {step}");
                assert!(!incoming.is_unfinished());
            }
        }
    }

    #[test]
    fn a_frame_that_has_to_wait_comes_again_and_keeps_its_order() {
        let limits = Limits::default();
        let (mut incoming, mut seen, mut turns) = (Incoming::default(), Vec::new(), 0);
        let mut fresh = STREAM;
        loop {
            let mut room = 1;
            let flow = incoming.feed(fresh, &limits, |frame| {
                if room == 0 {
                    return Flow::Wait;
                }
                room -= 1;
                seen.push(frame.to_vec());
                Flow::Taken
            });
            fresh = &[];
            turns += 1;
            if flow == Ok(Flow::Taken) {
                break;
            }
        }
        assert_eq!((seen, turns), (frames(), 3));
    }

    /// Feeds a stream in steps of so many bytes, and looks after each at what is kept.
    fn check_memory(stream: &[u8], step: usize, limits: &Limits) {
        let mut incoming = Incoming::default();
        let mut whole = 0;
        for (index, part) in stream.chunks(step).enumerate() {
            let flow = incoming.feed(part, limits, |frame| {
                whole += frame.len();
                Flow::Taken
            });
            assert_eq!(flow, Ok(Flow::Taken));
            let came = (index * step + part.len() - whole).max(step);
            let kept = incoming.unfinished_bytes();
            assert!(kept <= 2 * came, "{kept} bytes are kept of {came} that came, in steps of {step}");
            assert!(kept <= limits.frame_bytes_in_max + step, "{kept} bytes are kept, in steps of {step}");
        }
    }

    #[test]
    fn what_is_kept_is_no_more_than_twice_what_came() {
        let large = [&[0x91, 0xc6, 0, 1, 0, 0][..], &[7; 65_536]].concat();
        let stream = [&large, STREAM, &large, &large[..40_000]].concat();
        let limits = Limits { frame_bytes_in_max: large.len(), ..Limits::default() };
        [1, 2, 3, 7, 100, 1000, 5000, 65_536].iter().for_each(|step| check_memory(&stream, *step, &limits));
    }

    /// Ten thousand peers that each send a large frame and the first byte of another hold ten thousand bytes.
    #[test]
    fn a_large_frame_leaves_its_memory_to_nobody() {
        let limits = Limits::default();
        let large = [&[0x91, 0xc6, 0, 16, 0, 0][..], &vec![7; 1 << 20], &[0x91]].concat();
        for first in [1, 1 << 19, 1 << 20] {
            let mut incoming = Incoming::default();
            for part in [&large[..first], &large[first..]] {
                assert_eq!(incoming.feed(part, &limits, |_| Flow::Taken), Ok(Flow::Taken));
            }
            assert!(incoming.is_unfinished() && incoming.unfinished_bytes() < 64, "{}", incoming.unfinished_bytes());
        }
    }

    #[test]
    fn what_is_no_frame_is_an_error_wherever_it_stands() {
        let limits = Limits::default();
        let check =
            |bytes: &[u8]| assert!(Incoming::default().feed(bytes, &limits, |_| Flow::Taken).is_err(), "{bytes:x?}");
        check(&[0xc1]);
        check(&[0x91, 0xc1]);
        check(&[0x91, 0, 0xc1]);
        check(&[0x80]);
    }
}
