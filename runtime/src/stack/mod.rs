//! Guarded stacks for the coroutines of one worker: many in one mapping, reused without a system call.
//!
//! A *slab* is one mapping that holds many stacks of one size. Its address space is reserved and nothing more; memory
//! comes with the first touch of each page.
//!
//! ```text
//!  one slab, low addresses at the left
//!
//!  | slots  | guard | usable <---- grows | guard | usable <---- grows | ...
//!           ^       ^                    ^
//!           |       |                    `- limit of stack 1 = highest base of stack 0
//!           |       `- lowest byte that a coroutine may use
//!           `- limit of stack 0
//!
//!  the four lives of a stack
//!
//!  fresh --take--> out --give_back--> warm --take--> out      (a few ns each, no system call)
//!                                      `--trim--> cold --take--> out       (its pages come back zeroed, one by one)
//! ```
//!
//! Sixteen fresh stacks cost seventeen system calls (one guard each, one [`libc::MADV_DODUMP`] for all) and the first
//! fault of each. Guards are installed when a stack is first handed out and not with the slab, because each guard
//! makes the kernel allocate page tables, and thirty thousand at once would stall the worker.
//!
//! **Where the time of a fresh stack goes** (a million of them, two cores, Linux 6.18): 1.7 to 2.3 µs are the first fault,
//! 1.0 µs is the guard, of which page tables are a part, 0.07 µs the dump advice. Tried and left out:
//! `process_madvise` on oneself with the guards of 16 or 64 stacks takes 0.85 µs each instead of 1.0 and has to fall
//! back where the kernel refuses it; to populate the top pages of 16 stacks with one call takes 2.1 µs each, more than
//! the faults that it saves, and memory that may not be used.
//!
//! **Guards.** `MADV_GUARD_INSTALL` (Linux 6.13) marks the guard in the page tables, so a slab stays one mapping.
//! Where it is missing, and in locked memory, it fails with `EINVAL`, and the rest of that slab is guarded by
//! `mprotect`: two more mappings a stack, so that `vm.max_map_count` ends it near 31 000 stacks. There is no stack
//! without a guard.
//!
//! **Headroom.** A dhaga that gets no stack is an error that somebody can handle; a heap that gets no memory aborts the
//! process. So a slab is taken only if the system would map an eighth more (4 to 64 MiB), and guards by `mprotect` leave
//! a sixteenth of the mappings.
//!
//! **Core dumps.** What was never handed out is `MADV_DONTDUMP`, otherwise a dump pipe would be fed gigabytes of
//! zeros; what was, is dumped, since those stacks are what one reads a dump for.
//!
//! **Locked memory.** After `mlockall(MCL_FUTURE)` the kernel populates a slab when it is mapped, reserve or not; so slabs
//! stay small then, and `trim` frees nothing. A slab that the limit refuses (`ENOMEM`, or `EAGAIN` for locked memory) is
//! asked for again at half the size, down to one stack, before [`StackError::OutOfMemory`] is returned.
//!
//! From below to above, a file each: `error`; `size`: the sizes that stacks come in; `mapping`: memory from the system;
//! `slot`: what is known of a stack, kept apart from it; `region`: which stack an address lies in; `stack`: a stack and
//! its guard; `slab`: many in one mapping; `high_water`: how deep they were used; `pool`: all of one worker.

mod error;
mod high_water;
mod mapping;
mod pool;
mod region;
mod size;
mod slab;
mod slot;
#[expect(clippy::module_inception, reason = "files are called by their main type")]
mod stack;
#[cfg(test)]
pub(crate) mod tests;

pub use self::error::{Refused, StackError};
pub use self::high_water::{HighWater, StackUse};
pub use self::pool::StackPool;
pub use self::region::{GuardHit, guard_hit, stack_around, stack_bytes_around};
pub use self::size::{GUARD_BYTES_MIN, STACK_BYTES_DEFAULT, STACK_BYTES_MAX, STACK_BYTES_MIN};
pub use self::slab::{Guards, guards_here, protected_max, stacks_in};
pub use self::stack::{HEAD_BYTES, Stack};
