//! W3C trace context: which trace a call belongs to, and under which span.
//!
//! ```text
//!   00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
//!   version   trace (16 bytes)          span (8 bytes)   flags
//! ```

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::str::FromStr;

/// Bytes of the text form.
const TEXT_BYTES: usize = 55;
/// The trace is recorded.
const SAMPLED: u8 = 1;

/// A position in a distributed trace, as in the `traceparent` of W3C.
///
/// # Examples
///
/// ```
/// use dhaga_rpc::TraceContext;
///
/// let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// let trace: TraceContext = text.parse()?;
/// assert!(trace.is_sampled());
/// assert_eq!(trace.to_string(), text);
/// assert_eq!(trace.child().trace_id(), trace.trace_id());
/// # Ok::<(), dhaga_rpc::TraceContextError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    flags: u8,
}

/// A text that is no `traceparent` of version 00.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContextError;

impl TraceContext {
    /// Begins a trace, with random ids.
    pub fn new(is_sampled: bool) -> Self {
        let (first, second) = (random().to_be_bytes(), random().to_be_bytes());
        let mut trace_id = [0; 16];
        trace_id[..8].copy_from_slice(&first);
        trace_id[8..].copy_from_slice(&second);
        Self { trace_id, span_id: random().to_be_bytes(), flags: if is_sampled { SAMPLED } else { 0 } }
    }

    /// From ids that come from elsewhere. `None` when one of them is all zeros, which stands for none.
    pub fn from_parts(trace_id: [u8; 16], span_id: [u8; 8], flags: u8) -> Option<Self> {
        let is_whole = trace_id != [0; 16] && span_id != [0; 8];
        is_whole.then_some(Self { trace_id, span_id, flags })
    }

    /// The same trace and flags, under a new span.
    pub fn child(&self) -> Self {
        Self { span_id: random().to_be_bytes(), ..*self }
    }

    /// The trace.
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// The span in it that calls.
    pub fn span_id(&self) -> [u8; 8] {
        self.span_id
    }

    /// All flags, those included that have no meaning yet.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Whether the caller may have recorded the trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// Never 0. Unlike any other of the process, and not to be guessed from outside; no more is needed.
fn random() -> u64 {
    let random = RandomState::new().build_hasher().finish();
    if random == 0 { 1 } else { random }
}

impl FromStr for TraceContext {
    type Err = TraceContextError;

    fn from_str(text: &str) -> Result<Self, TraceContextError> {
        let bytes = text.as_bytes();
        if bytes.len() != TEXT_BYTES || !text.starts_with("00-") || bytes[35] != b'-' || bytes[52] != b'-' {
            return Err(TraceContextError);
        }
        let parts = (hex(&bytes[3..35]), hex(&bytes[36..52]), hex::<1>(&bytes[53..]));
        let (Some(trace_id), Some(span_id), Some([flags])) = parts else { return Err(TraceContextError) };
        Self::from_parts(trace_id, span_id, flags).ok_or(TraceContextError)
    }
}

/// `N` bytes out of twice as many digits, in lower case only.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.span_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", self.flags)
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceContext({self})")
    }
}

impl fmt::Display for TraceContextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this is no traceparent of version 00")
    }
}

impl std::error::Error for TraceContextError {}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn check_refused(text: &str) {
        assert_eq!(text.parse::<TraceContext>(), Err(TraceContextError), "{text}");
    }

    #[test]
    fn a_traceparent_reads_and_writes_as_it_is() {
        let trace: TraceContext = TEXT.parse().expect("it is one");
        assert_eq!((trace.to_string().as_str(), trace.flags(), trace.span_id()[0]), (TEXT, 1, 0xb7));
        let unsampled = TEXT.replace("-01", "-00").parse::<TraceContext>().expect("it is one");
        assert!(trace.is_sampled() && !unsampled.is_sampled());
    }

    #[test]
    fn whatever_is_not_exactly_one_is_refused() {
        check_refused("");
        check_refused(&TEXT[..54]);
        check_refused(&format!("{TEXT}0"));
        check_refused(&TEXT.replace("00-0a", "01-0a"));
        check_refused(&TEXT.replace("0af7", "0AF7"));
        check_refused(&TEXT.replace("0af7", "0xf7"));
        check_refused(&TEXT.replace('-', "_"));
        check_refused("00-00000000000000000000000000000000-b7ad6b7169203331-01");
        check_refused("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01");
        check_refused(&"é".repeat(27));
        check_refused(&format!("00-{}-{}-01", "é".repeat(16), "é".repeat(8)));
    }

    #[test]
    fn a_child_keeps_the_trace_and_has_a_span_of_its_own() {
        let trace = TraceContext::new(true);
        let child = trace.child();
        assert_eq!((child.trace_id(), child.flags()), (trace.trace_id(), trace.flags()));
        assert_ne!(child.span_id(), trace.span_id());
        assert_eq!(child.to_string().parse(), Ok(child));
    }
}
