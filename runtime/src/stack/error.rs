//! Why there is no stack.

use std::fmt;
use std::io;

use super::size::guard_bytes;

/// Why there is no stack.
#[derive(Debug)]
#[non_exhaustive]
pub enum StackError {
    /// More was asked for than any stack may have; the caller's mistake.
    TooLarge {
        /// What was asked for.
        asked_bytes: usize,
        /// [`STACK_BYTES_MAX`].
        max_bytes: usize,
    },
    /// The system refused a mapping. Wait until other stacks are given back, or raise the limit that the text names.
    OutOfMemory {
        /// Which mapping was refused.
        refused: Refused,
        /// Its size, the last one tried.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
}

/// The step at which the system refused memory for a stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Address space for a slab of one stack.
    Slab,
    /// The guard of a stack.
    Guard,
}

impl StackError {
    pub(super) fn no_guard(source: io::Error) -> StackError {
        StackError::OutOfMemory { refused: Refused::Guard, bytes: guard_bytes(), source }
    }
}

impl fmt::Display for StackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StackError::TooLarge { asked_bytes, max_bytes } => {
                write!(f, "a stack of {asked_bytes} bytes was asked for and {max_bytes} is the most")
            }
            StackError::OutOfMemory { refused: Refused::Slab, bytes, .. } => write!(
                f,
                "the system refuses {bytes} bytes of address space for a stack; raise RLIMIT_AS (ulimit -v), RLIMIT_MEMLOCK \
                 if memory is locked, vm.max_map_count or vm.overcommit_memory, or run fewer dhagas at once"
            ),
            StackError::OutOfMemory { refused: Refused::Guard, bytes, .. } => write!(
                f,
                "the system refuses a guard of {bytes} bytes for a stack; raise vm.max_map_count, use Linux 6.13 or later \
                 without locked memory, or run fewer dhagas at once"
            ),
        }
    }
}

impl std::error::Error for StackError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StackError::TooLarge { .. } => None,
            StackError::OutOfMemory { source, .. } => Some(source),
        }
    }
}
