//! The sizes that stacks come in.

use super::StackError;

/// Address space of a stack when no other size is asked for: 256 KiB, guard included. A hundred TLS handshakes needed
/// 55 KB in a debug build.
pub const STACK_BYTES_DEFAULT: usize = 256 << 10;

/// Smallest stack: 64 KiB, guard included. What is asked for below it is rounded up.
pub const STACK_BYTES_MIN: usize = 64 << 10;

/// Largest stack: 1 GiB. Beyond it lies a mistake in units more often than a need.
pub const STACK_BYTES_MAX: usize = 1 << 30;

/// Guard below each stack. Rust probes each page of a large frame and needs one; C does not, and 16 KiB catches the
/// frames that C code has in practice.
pub const GUARD_BYTES_MIN: usize = 16 << 10;

/// Largest page that a kernel for these machines may have.
const PAGE_BYTES_MAX: usize = 64 << 10;

/// Sizes are the powers of two from [`STACK_BYTES_MIN`] to [`STACK_BYTES_MAX`].
pub(super) const SIZES: usize = (STACK_BYTES_MAX.ilog2() - STACK_BYTES_MIN.ilog2()) as usize + 1;

/// A size that stacks come in: a power of two of address space, guard included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct StackSize {
    log2: u8,
}

impl StackSize {
    #[inline]
    pub(super) fn new(bytes: usize) -> Result<StackSize, StackError> {
        if bytes > STACK_BYTES_MAX {
            return Err(StackError::TooLarge { asked_bytes: bytes, max_bytes: STACK_BYTES_MAX });
        }
        let smallest = if bytes < 4 * PAGE_BYTES_MAX { smallest() } else { bytes };
        let log2 = bytes.max(smallest).next_power_of_two().ilog2();
        Ok(StackSize { log2: log2 as u8 })
    }

    #[inline]
    pub(super) fn bytes(self) -> usize {
        1 << self.log2
    }

    #[inline]
    pub(super) fn index(self) -> usize {
        self.log2 as usize - STACK_BYTES_MIN.ilog2() as usize
    }
}

/// Room for a guard of a page and thrice as much above it. Only where it may matter: the system's library looks the size of
/// a page up anew each time, which was a twentieth of a spawn.
#[cold]
fn smallest() -> usize {
    STACK_BYTES_MIN.max(4 * rustix::param::page_size())
}

pub(super) fn guard_bytes() -> usize {
    GUARD_BYTES_MIN.max(rustix::param::page_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_as_large_as_is_taken_for_granted() {
        assert!(rustix::param::page_size() <= PAGE_BYTES_MAX);
        assert_eq!(StackSize::new(4 * PAGE_BYTES_MAX).ok().map(StackSize::bytes), Some(4 * PAGE_BYTES_MAX));
    }

    #[test]
    fn sizes_are_powers_of_two_within_limits() {
        fn check(asked: usize, given: Option<usize>) {
            assert_eq!(StackSize::new(asked).ok().map(StackSize::bytes), given, "{asked}");
        }
        check(0, Some(STACK_BYTES_MIN));
        check(STACK_BYTES_MIN, Some(STACK_BYTES_MIN));
        check(STACK_BYTES_MIN + 1, Some(2 * STACK_BYTES_MIN));
        check(STACK_BYTES_DEFAULT, Some(STACK_BYTES_DEFAULT));
        check(1_000_000, Some(1 << 20));
        check(STACK_BYTES_MAX, Some(STACK_BYTES_MAX));
        check(STACK_BYTES_MAX + 1, None);
        check(usize::MAX, None);
    }
}
