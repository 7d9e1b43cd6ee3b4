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
//!                                      `--trim_to--> cold --take--> out    (its pages come back zeroed, one by one)
//! ```
//!
//! Fresh stacks cost two system calls in seventeen (one guard each, one [`libc::MADV_DODUMP`] for sixteen) and their
//! first page fault. Guards are installed when a stack is first handed out and not with the slab, because each guard
//! makes the kernel allocate page tables, and thirty thousand at once would stall the worker.
//!
//! **Guards.** `MADV_GUARD_INSTALL` (Linux 6.13) marks the guard in the page tables, so a slab stays one mapping.
//! Where it is missing, and in locked memory, it fails with `EINVAL`, and the rest of that slab is guarded by
//! `mprotect`: two more mappings a stack, so that `vm.max_map_count` ends it near 32 000 stacks. There is no stack
//! without a guard.
//!
//! **Core dumps.** What was never handed out is `MADV_DONTDUMP`, otherwise a dump pipe would be fed gigabytes of
//! zeros; what was, is dumped, since those stacks are what one reads a dump for.
//!
//! **Locked memory.** After `mlockall(MCL_FUTURE)` the kernel populates a slab when it is mapped, reserve or not, and
//! `trim_to` frees nothing. A slab that the limit refuses (`ENOMEM`, or `EAGAIN` for locked memory) is asked for again
//! at half the size, down to one stack, before [`StackError::OutOfMemory`] is returned.

use std::fmt;
use std::io;
use std::mem;
use std::ops::Range;
use std::panic::Location;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use corosensei::stack::StackPointer;
use log::debug;

/// Address space of a stack when no other size is asked for: 256 KiB, guard included. A hundred TLS handshakes needed
/// 55 KB in a debug build.
pub const STACK_BYTES_DEFAULT: usize = 256 << 10;

/// Smallest stack: 64 KiB, guard included. What is asked for below it is rounded up.
pub const STACK_BYTES_MIN: usize = 64 << 10;

/// Largest stack: 1 GiB. Beyond it lies a mistake in units more often than a need.
pub const STACK_BYTES_MAX: usize = 1 << 30;

/// Bytes of a name that a stack keeps for the overflow message: 39, so that all it keeps is one cache line. The rest is
/// cut off at a character.
pub const LABEL_NAME_BYTES_MAX: usize = NAME_BYTES - 1;

/// Guard below each stack. Rust probes each page of a large frame and needs one; C does not, and 16 KiB catches the
/// frames that C code has in practice.
const GUARD_BYTES_MIN: usize = 16 << 10;

/// First slab of each size: 16 MiB of address space, 64 stacks of the default size.
const SLAB_BYTES_FIRST: usize = 16 << 20;

/// Slabs double up to 8 GiB of address space, so that a million stacks of the default size are about 40 mappings.
const SLAB_BYTES_MAX: usize = 8 << 30;

/// Stack tops are shifted by a multiple of 64 B, a cache line, in 16 steps: without it the hot frames of all stacks
/// fall into the same sets of the first-level cache. More steps would make parked stacks straddle two pages.
const COLOUR_BYTES: usize = 64;
const COLOURS: usize = 16;

/// Room at the top of each stack, above what coroutines use, for the books of its owner.
pub const HEAD_BYTES: usize = 128;

/// Stacks that are made dumpable with one system call.
const DUMPABLE_BATCH: usize = 16;

/// Sizes are the powers of two from [`STACK_BYTES_MIN`] to [`STACK_BYTES_MAX`].
const SIZES: usize = (STACK_BYTES_MAX.ilog2() - STACK_BYTES_MIN.ilog2()) as usize + 1;

/// `MADV_GUARD_INSTALL` of Linux 6.13, which the `libc` crate does not name yet.
const MADV_GUARD_INSTALL: libc::c_int = 102;

/// The stacks of one worker. It stays on the thread that made it, and so do its stacks.
///
/// A pool that is dropped gives back each slab none of whose stacks is out; the others stay mapped for good.
pub struct StackPool {
    free: [FreeStacks; SIZES],
    slabs: Vec<Slab>,
    guards: Guards,
}

/// A stack and its guard. To drop it is safe, but the stack then counts as used for good: hand it to
/// [`StackPool::give_back`].
#[must_use = "a stack that is dropped is lost to its pool"]
#[derive(Debug)]
pub struct Stack {
    /// Here and not in the slot, since each switch reads it.
    base: StackPointer,
    slot: NonNull<Slot>,
}

/// How a stack is guarded against overflow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Guards {
    /// In the page tables, by `MADV_GUARD_INSTALL`; slab by slab [`Guards::Protect`] where the kernel refuses that.
    #[default]
    Install,
    /// By `mprotect`, at two more mappings a stack.
    Protect,
}

/// What a pool holds, as [`StackPool::stats`] found it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct StackStats {
    /// Stacks that the slabs have room for, fresh ones included.
    pub mapped: usize,
    /// Stacks handed out and not given back.
    pub in_use: usize,
    /// Free stacks that still hold the memory of their last use.
    pub touched_free: usize,
    /// Slabs.
    pub slabs: usize,
    /// Bytes of address space in all slabs.
    pub mapped_bytes: usize,
    /// How the newest slab is guarded.
    pub guards: Guards,
    /// Kernel mappings in use, at most; `vm.max_map_count` limits these.
    pub mappings: usize,
}

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

impl StackPool {
    /// Makes an empty pool; the first slab is mapped by the first [`take`](Self::take).
    pub fn new(guards: Guards) -> StackPool {
        StackPool { free: [const { FreeStacks::new() }; SIZES], slabs: Vec::new(), guards }
    }

    /// Hands out the free stack that was used last, or the next fresh one, of `stack_bytes` of address space rounded up
    /// to a power of two; [`STACK_BYTES_MIN`] is the smallest. Part of it is the guard: 16 KiB where pages have 4 KiB.
    ///
    /// # Errors
    ///
    /// [`StackError::TooLarge`] above [`STACK_BYTES_MAX`]. [`StackError::OutOfMemory`] when there is no free stack and
    /// the system refuses even a slab of one, or a guard; the pool stays usable.
    #[inline]
    pub fn take(&mut self, stack_bytes: usize) -> Result<Stack, StackError> {
        let size = StackSize::new(stack_bytes)?;
        let stack = match self.free[size.index()].warm.pop() {
            Some(stack) => stack,
            None => self.take_cold(size)?,
        };
        self.slabs[stack.slot().slab()].out += 1;
        Ok(stack)
    }

    /// Takes back a stack, memory and all: the next [`take`](Self::take) of its size returns this one.
    ///
    /// # Panics
    ///
    /// When the stack came from another pool.
    #[inline]
    pub fn give_back(&mut self, stack: Stack) {
        let slab = self
            .slabs
            .get_mut(stack.slot().slab())
            .filter(|slab| slab.stacks().contains(&stack.slot().limit()))
            .expect("a stack goes back to the pool that handed it out");
        slab.out -= 1;
        self.free[slab.size.index()].warm.push(stack);
    }

    /// Free stacks that still hold the memory of their last use: at least a page each.
    pub fn touched_free(&self) -> usize {
        self.free.iter().map(|free| free.warm.len()).sum()
    }

    /// Gives the memory of free stacks back to the system until at most `warm_max` keep theirs, at most `stacks_max`
    /// of them in this call. Begins with the largest size, and within a size with those that lay unused longest.
    /// Returns how many it trimmed.
    ///
    /// Costs one `madvise` a stack, about a microsecond, and each trimmed stack will fault its pages in again; so trim
    /// seldom and in small steps. Guards survive; the page tables (512 B a stack of the default size) stay. Locked
    /// memory cannot be given back: then nothing is trimmed.
    pub fn trim_to(&mut self, warm_max: usize, stacks_max: usize) -> usize {
        let mut left = self.touched_free().saturating_sub(warm_max).min(stacks_max);
        let mut trimmed = 0;
        for free in self.free.iter_mut().rev() {
            let stacks = free.trim(left);
            left -= stacks;
            trimmed += stacks;
        }
        trimmed
    }

    /// Counts what the pool holds.
    pub fn stats(&self) -> StackStats {
        StackStats {
            mapped: self.slabs.iter().map(Slab::len).sum(),
            in_use: self.slabs.iter().map(|slab| slab.out).sum(),
            touched_free: self.touched_free(),
            slabs: self.slabs.len(),
            mapped_bytes: self.slabs.iter().map(|slab| slab.mapping.bytes).sum(),
            guards: self.slabs.last().map_or(self.guards, |slab| slab.guards),
            mappings: self.slabs.iter().map(Slab::mappings_max).sum(),
        }
    }

    #[cold]
    fn take_cold(&mut self, size: StackSize) -> Result<Stack, StackError> {
        if let Some(stack) = self.free[size.index()].cold.pop() {
            return Ok(stack);
        }
        let newest = match self.free[size.index()].newest_slab {
            Some(index) if !self.slabs[index].is_used_up() => index,
            _ => self.grow(size)?,
        };
        self.slabs[newest].carve(newest)
    }

    /// Maps the next slab of this size and returns its index.
    fn grow(&mut self, size: StackSize) -> Result<usize, StackError> {
        let free = &mut self.free[size.index()];
        let slab = Slab::map(size, free.slab_bytes_next, self.guards)?;
        free.slab_bytes_next = (slab.len() * size.bytes() * 2).clamp(SLAB_BYTES_FIRST, SLAB_BYTES_MAX);
        free.newest_slab = Some(self.slabs.len());
        self.slabs.push(slab);
        Ok(self.slabs.len() - 1)
    }
}

impl Default for StackPool {
    fn default() -> StackPool {
        StackPool::new(Guards::default())
    }
}

impl fmt::Debug for StackPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StackPool").field(&self.stats()).finish()
    }
}

impl Drop for StackPool {
    fn drop(&mut self) {
        for slab in self.slabs.drain(..) {
            slab.unmap_unless_in_use();
        }
    }
}

impl Stack {
    /// Says whose stack this is, for the message when it overflows. A few ns, no allocation; the name is cut to
    /// [`LABEL_NAME_BYTES_MAX`] bytes.
    #[inline]
    pub fn set_label(&self, name: Option<&str>, site: &'static Location<'static>) {
        self.slot().set_label(name.unwrap_or(""), site);
    }

    /// The room above the base: [`HEAD_BYTES`] bytes, aligned to a cache line, for whoever has the stack out. Their content
    /// is whatever was there before.
    #[inline(always)]
    pub fn head(&self) -> NonNull<u8> {
        // The coroutine that runs here and the fault handler come to this memory by address alone, too.
        let head = ptr::with_exposed_provenance_mut(self.base.get());
        NonNull::new(head).expect("no mapping lies at address zero")
    }

    /// Address space of this stack, guard included.
    fn size_bytes(&self) -> usize {
        // The colour takes less than one step of the smallest size, so rounding up undoes it.
        (self.base.get() - self.slot().limit()).next_multiple_of(STACK_BYTES_MIN)
    }

    #[inline]
    fn slot(&self) -> &Slot {
        // SAFETY: the slot is aligned and initialised (see `Slab::map`). It stays mapped while this stack is out, which is
        // as long as a caller can hold `self`; and the stacks in the free lists of a pool are not read after it has unmapped
        // a slab. A slot consists of atomics only, so a shared reference to it conflicts with nothing.
        unsafe { self.slot.as_ref() }
    }
}

// SAFETY: `Slab::carve` lays a guard of at least one page over the low end before it makes a `Stack`, and fails
// otherwise. `limit` is that low end, guard included; `base` is at most 1088 bytes below the high end and a multiple of
// 64, as the alignment of stacks (16) asks. Between guard and base lie more than 4096 bytes, since a stack has at least
// 64 KiB and at least four pages, and its guard 16 KiB or one page. Both stay the same for the life of the value, which
// alone owns that memory: a stack lies in exactly one of `warm`, `cold`, the fresh part of its slab, or a `Stack`.
unsafe impl corosensei::stack::Stack for Stack {
    #[inline]
    fn base(&self) -> StackPointer {
        self.base
    }

    #[inline]
    fn limit(&self) -> StackPointer {
        StackPointer::new(self.slot().limit()).expect("no mapping lies at address zero")
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

/// A size that stacks come in: a power of two of address space, guard included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct StackSize {
    log2: u8,
}

impl StackSize {
    #[inline]
    fn new(bytes: usize) -> Result<StackSize, StackError> {
        if bytes > STACK_BYTES_MAX {
            return Err(StackError::TooLarge { asked_bytes: bytes, max_bytes: STACK_BYTES_MAX });
        }
        // Room for a guard of a page and twice as much above it, where pages have 64 KiB.
        let smallest = STACK_BYTES_MIN.max(4 * rustix::param::page_size());
        let log2 = bytes.max(smallest).next_power_of_two().ilog2();
        Ok(StackSize { log2: log2 as u8 })
    }

    #[inline]
    fn bytes(self) -> usize {
        1 << self.log2
    }

    #[inline]
    fn index(self) -> usize {
        self.log2 as usize - STACK_BYTES_MIN.ilog2() as usize
    }
}

/// The free stacks of one size.
struct FreeStacks {
    /// Touched, the last used at the end.
    warm: Vec<Stack>,
    /// Trimmed: guard and page tables are there, the memory is not.
    cold: Vec<Stack>,
    /// The slab whose fresh stacks are handed out next.
    newest_slab: Option<usize>,
    slab_bytes_next: usize,
}

impl FreeStacks {
    const fn new() -> FreeStacks {
        FreeStacks { warm: Vec::new(), cold: Vec::new(), newest_slab: None, slab_bytes_next: SLAB_BYTES_FIRST }
    }

    /// Trims the `stacks_max` that lay unused longest and returns how many these were.
    fn trim(&mut self, stacks_max: usize) -> usize {
        let coldest = self.warm.iter().take(stacks_max);
        let trimmed = coldest.take_while(|stack| release_memory(stack).is_ok()).count();
        self.cold.extend(self.warm.drain(..trimmed));
        trimmed
    }
}

/// Gives the pages of a free stack back to the system; they read as zeros from now on. The guard stays.
fn release_memory(stack: &Stack) -> io::Result<()> {
    let limit = stack.slot().limit();
    let usable = limit + guard_bytes()..limit + stack.size_bytes();
    // SAFETY: the range is the usable part of one stack and page-aligned at both ends. The stack is free (only the free
    // lists call this), so no frame or reference lies in memory that is about to be zeroed.
    unsafe { advise(usable, libc::MADV_DONTNEED) }
}

fn guard_bytes() -> usize {
    GUARD_BYTES_MIN.max(rustix::param::page_size())
}

/// One mapping with the stacks in it, and what became of them.
struct Slab {
    mapping: Mapping,
    region: &'static Region,
    size: StackSize,
    guards: Guards,
    /// Low end of stack 0.
    first: usize,
    /// Stacks below this index have been handed out at least once, and have a guard.
    fresh_from: usize,
    /// Stacks below this index go into core dumps.
    dumpable_to: usize,
    /// Guards made by `mprotect`.
    protected: usize,
    /// Stacks handed out and not given back.
    out: usize,
}

impl Slab {
    /// Maps `slab_bytes`, or half of it, or half of that, down to a single stack.
    fn map(size: StackSize, slab_bytes: usize, guards: Guards) -> Result<Slab, StackError> {
        let mut stacks = (slab_bytes / size.bytes()).max(1);
        let (mapping, head_bytes) = loop {
            let head_bytes = (stacks * size_of::<Slot>()).next_multiple_of(guard_bytes());
            let bytes = head_bytes + stacks * size.bytes();
            match Mapping::new(bytes) {
                Ok(mapping) => break (mapping, head_bytes),
                Err(error) if stacks > 1 => {
                    debug!("no slab of {bytes} bytes for stacks ({error}), trying half of it");
                    stacks /= 2;
                }
                Err(source) => {
                    return Err(StackError::OutOfMemory { refused: Refused::Slab, bytes, source });
                }
            }
        };
        let first = mapping.start.as_ptr().addr() + head_bytes;
        mapping.prepare(head_bytes);
        // The head of the mapping is the array of slots. The system has zeroed it, which is a valid `Slot`, and it is
        // page-aligned, hence aligned for it.
        let slots = mapping.start.cast::<Slot>();
        let region = Region::register(first..first + stacks * size.bytes(), size, slots);
        Ok(Slab { mapping, region, size, guards, first, fresh_from: 0, dumpable_to: 0, protected: 0, out: 0 })
    }

    /// Makes the next fresh stack, guard first.
    fn carve(&mut self, slab: usize) -> Result<Stack, StackError> {
        let index = self.fresh_from;
        debug_assert!(index < self.len(), "the caller has seen a fresh stack here");
        let limit = self.first + index * self.size.bytes();
        self.guard(limit)?;
        self.fresh_from += 1;
        if index == self.dumpable_to {
            self.make_dumpable();
        }
        let base = limit + self.size.bytes() - HEAD_BYTES - index % COLOURS * COLOUR_BYTES;
        let stack = Stack {
            base: StackPointer::new(base).expect("no mapping lies at address zero"),
            // SAFETY: the mapping begins with one slot for each of its stacks, and `index` is one of these.
            slot: unsafe { self.mapping.start.cast::<Slot>().add(index) },
        };
        stack.slot().place(limit, slab);
        Ok(stack)
    }

    /// Guards the fresh stack whose low end is `limit`.
    fn guard(&mut self, limit: usize) -> Result<(), StackError> {
        let guard = limit..limit + guard_bytes();
        if self.guards == Guards::Install {
            // SAFETY: the range is page-aligned and lies in this slab's mapping, at the low end of a stack that was never
            // handed out, so nothing refers to the pages that become inaccessible.
            match unsafe { advise(guard.clone(), MADV_GUARD_INSTALL) } {
                Ok(()) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    debug!("the kernel installs no guards (before 6.13, or memory is locked): mprotect instead");
                    self.guards = Guards::Protect;
                }
                Err(source) => return Err(StackError::no_guard(source)),
            }
        }
        // SAFETY: as above.
        unsafe { make_inaccessible(guard) }.map_err(StackError::no_guard)?;
        self.protected += 1;
        Ok(())
    }

    /// Lets the next batch of stacks into core dumps. A refusal costs a dump that lacks them, so it is ignored.
    fn make_dumpable(&mut self) {
        let to = (self.dumpable_to + DUMPABLE_BATCH).min(self.len());
        let address = |index| self.first + index * self.size.bytes();
        // SAFETY: the range is page-aligned and lies in this slab's mapping; the advice changes no memory.
        let _ = unsafe { advise(address(self.dumpable_to)..address(to), libc::MADV_DODUMP) };
        self.dumpable_to = to;
    }

    fn unmap_unless_in_use(self) {
        if self.out == 0 {
            self.region.retire();
            drop(self.mapping);
        } else {
            debug!("{} stacks are still in use, their slab stays mapped", self.out);
            mem::forget(self.mapping);
        }
    }

    fn stacks(&self) -> Range<usize> {
        self.first..self.mapping.end()
    }

    fn len(&self) -> usize {
        self.stacks().len() / self.size.bytes()
    }

    fn is_used_up(&self) -> bool {
        self.fresh_from == self.len()
    }

    /// Each guard by `mprotect` cuts a mapping in three, and the stacks that go into dumps are apart from the others.
    fn mappings_max(&self) -> usize {
        2 + 2 * self.protected
    }
}

impl StackError {
    fn no_guard(source: io::Error) -> StackError {
        StackError::OutOfMemory { refused: Refused::Guard, bytes: guard_bytes(), source }
    }
}

/// Private anonymous memory, unmapped on drop.
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    /// Maps zeroed memory; `bytes` is a multiple of the page size.
    fn new(bytes: usize) -> io::Result<Mapping> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory that exists.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).expect("mmap without a fixed address never returns null");
        // Coroutines and the fault handler come back to this memory by address alone.
        let _ = start.as_ptr().expose_provenance();
        Ok(Mapping { start, bytes })
    }

    /// Huge pages would turn each touched page of a stack into 2 MiB; and see the top of this file for dumps. Kernels
    /// built without either refuse, and nothing is lost.
    fn prepare(&self, head_bytes: usize) {
        let start = self.start.as_ptr().addr();
        // SAFETY: both ranges are page-aligned and lie in this mapping; the advices change no memory.
        unsafe {
            let _ = advise(start..self.end(), libc::MADV_NOHUGEPAGE);
            let _ = advise(start + head_bytes..self.end(), libc::MADV_DONTDUMP);
        }
    }

    fn end(&self) -> usize {
        self.start.as_ptr().addr() + self.bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly one mapping of ours. `Slab::unmap_unless_in_use` drops it only when no `Stack` of
        // it is out and its region is retired; the free lists that still name it are dropped unread by `StackPool`.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(result, 0, "munmap of a whole mapping cannot fail");
    }
}

/// # Safety
///
/// `range` is page-aligned and lies in a [`Mapping`]; if the advice discards memory or takes it away, nothing refers to
/// that memory.
unsafe fn advise(range: Range<usize>, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the caller's promise is what `madvise` asks for.
    let result = unsafe { libc::madvise(ptr::with_exposed_provenance_mut(range.start), range.len(), advice) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// # Safety
///
/// `range` is page-aligned and lies in a [`Mapping`]; nothing refers to that memory.
unsafe fn make_inaccessible(range: Range<usize>) -> io::Result<()> {
    let start = ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: the caller's promise is what `mprotect` asks for.
    let result = unsafe { libc::mprotect(start, range.len(), libc::PROT_NONE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What is known of a stack, kept apart from it: where it lies, and for the fault handler, whose it is. One cache line,
/// made of atomics, since another thread's handler may look while this one writes.
#[repr(C, align(64))]
struct Slot {
    limit: AtomicUsize,
    slab: AtomicUsize,
    site: AtomicPtr<Location<'static>>,
    /// The length of the name in the first byte, then the name.
    name: [AtomicU64; NAME_BYTES / 8],
}

const NAME_BYTES: usize = 40;

impl Slot {
    fn place(&self, limit: usize, slab: usize) {
        self.limit.store(limit, Ordering::Relaxed);
        self.slab.store(slab, Ordering::Relaxed);
    }

    #[inline]
    fn set_label(&self, name: &str, site: &'static Location<'static>) {
        self.site.store(ptr::from_ref(site).cast_mut(), Ordering::Relaxed);
        if name.is_empty() {
            self.name[0].store(0, Ordering::Relaxed);
        } else {
            self.set_name(name);
        }
    }

    fn set_name(&self, name: &str) {
        let mut len = name.len().min(LABEL_NAME_BYTES_MAX);
        while !name.is_char_boundary(len) {
            len -= 1;
        }
        let mut packed = [0; NAME_BYTES];
        packed[0] = len as u8;
        packed[1..=len].copy_from_slice(&name.as_bytes()[..len]);
        for (slot, word) in self.name.iter().zip(packed.as_chunks::<8>().0) {
            slot.store(u64::from_ne_bytes(*word), Ordering::Relaxed);
        }
    }

    /// Low end of the stack, where its guard begins.
    #[inline]
    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Index of its slab in its pool.
    #[inline]
    fn slab(&self) -> usize {
        self.slab.load(Ordering::Relaxed)
    }

    fn name(&self) -> [u8; NAME_BYTES] {
        let mut packed = [0; NAME_BYTES];
        for (bytes, slot) in packed.as_chunks_mut::<8>().0.iter_mut().zip(&self.name) {
            *bytes = slot.load(Ordering::Relaxed).to_ne_bytes();
        }
        packed
    }

    fn site(&self) -> Option<&'static Location<'static>> {
        // SAFETY: the pointer is null, as the system zeroed it, or comes from a `&'static Location`.
        unsafe { self.site.load(Ordering::Relaxed).as_ref() }
    }
}

/// The stack in whose guard an address lies.
pub struct GuardHit {
    name: [u8; NAME_BYTES],
    /// Where its dhaga was spawned, if [`Stack::set_label`] was ever called.
    pub site: Option<&'static Location<'static>>,
    /// Size of the stack, guard included.
    pub stack_bytes: usize,
}

impl GuardHit {
    /// The name of its dhaga, empty when it has none.
    pub fn name(&self) -> &[u8] {
        let len = usize::from(self.name[0]);
        self.name.get(1..=len).unwrap_or(&[])
    }
}

/// Finds the stack in whose guard `address` lies. Takes no lock and does not allocate, so a signal handler may call it.
///
/// # Safety
///
/// Either the stack around `address` is out and stays out during the call (it is the one that the calling thread runs
/// on), or the process is about to die: the slab of another thread's stack may be unmapped meanwhile, and then this
/// faults.
pub unsafe fn guard_hit(address: usize) -> Option<GuardHit> {
    let place = regions().find_map(|region| region.place(address))?;
    if address >= place.usable.start {
        return None;
    }
    // SAFETY: the region is registered, so its array of slots has an element for each stack of its range, and by the
    // caller's promise it is still mapped.
    let slot = unsafe { &*place.slots.add(place.index) };
    Some(GuardHit { name: slot.name(), site: slot.site(), stack_bytes: place.stack_bytes })
}

/// The usable part of the stack of ours that `address` lies in, whichever thread it belongs to.
#[allow(dead_code, reason = "for the adviser on stack sizes")]
pub fn stack_around(address: usize) -> Option<Range<usize>> {
    let place = regions().find_map(|region| region.place(address))?;
    Some(place.usable)
}

/// A slab as the fault handler sees it. Records are never freed, since a handler may be reading them; a retired one
/// serves the next slab.
struct Region {
    /// End of its last stack; zero while the record serves no slab.
    end: AtomicUsize,
    /// Low end of its first stack.
    first: AtomicUsize,
    stack_bytes: AtomicUsize,
    slots: AtomicPtr<Slot>,
    next: Option<&'static Region>,
}

/// The newest record, from which all others can be reached.
static NEWEST_REGION: AtomicPtr<Region> = AtomicPtr::new(ptr::null_mut());

/// Records that serve no slab. Its lock is also held to change the list.
static RETIRED_REGIONS: Mutex<Vec<&'static Region>> = Mutex::new(Vec::new());

/// Where an address lies.
struct Place {
    slots: *const Slot,
    index: usize,
    usable: Range<usize>,
    stack_bytes: usize,
}

fn newest_region() -> Option<&'static Region> {
    // SAFETY: the pointer is null or was made from a leaked box in `Region::publish`; the load acquires what was written
    // to it before.
    unsafe { NEWEST_REGION.load(Ordering::Acquire).as_ref() }
}

fn regions() -> impl Iterator<Item = &'static Region> {
    std::iter::successors(newest_region(), |region| region.next)
}

impl Region {
    fn register(stacks: Range<usize>, size: StackSize, slots: NonNull<Slot>) -> &'static Region {
        let mut retired = RETIRED_REGIONS.lock().unwrap_or_else(PoisonError::into_inner);
        let region = retired.pop().unwrap_or_else(Region::publish);
        drop(retired);
        region.first.store(stacks.start, Ordering::Relaxed);
        region.stack_bytes.store(size.bytes(), Ordering::Relaxed);
        region.slots.store(slots.as_ptr(), Ordering::Relaxed);
        region.end.store(stacks.end, Ordering::Release);
        region
    }

    /// Adds an empty record to the list; the caller holds the lock of `RETIRED_REGIONS`.
    fn publish() -> &'static Region {
        let region = Box::leak(Box::new(Region {
            end: AtomicUsize::new(0),
            first: AtomicUsize::new(0),
            stack_bytes: AtomicUsize::new(0),
            slots: AtomicPtr::new(ptr::null_mut()),
            next: newest_region(),
        }));
        NEWEST_REGION.store(region, Ordering::Release);
        region
    }

    fn retire(&'static self) {
        self.end.store(0, Ordering::Release);
        let mut retired = RETIRED_REGIONS.lock().unwrap_or_else(PoisonError::into_inner);
        retired.push(self);
    }

    /// Where `address` lies in this slab's stacks.
    fn place(&self, address: usize) -> Option<Place> {
        let end = self.end.load(Ordering::Acquire);
        let first = self.first.load(Ordering::Acquire);
        let stack_bytes = self.stack_bytes.load(Ordering::Acquire);
        let slots = self.slots.load(Ordering::Acquire);
        // A record that changed under our hands belonged to a slab without stacks in use, so not to this address.
        if !(first..end).contains(&address) || self.end.load(Ordering::Relaxed) != end {
            return None;
        }
        let index = (address - first).checked_div(stack_bytes)?;
        let limit = first + index * stack_bytes;
        Some(Place { slots, index, usable: limit + guard_bytes()..limit + stack_bytes, stack_bytes })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::fd::AsRawFd;
    use std::process::{Command, Output};

    use corosensei::stack::Stack as _;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::*;

    const CHILD: &str = "DHAGA_TEST_CHILD";

    /// Whether this process is the child that [`run_in_child`] started.
    pub(crate) fn is_child() -> bool {
        std::env::var_os(CHILD).is_some()
    }

    /// Runs one test of this binary in a process of its own, where it may crash.
    pub(crate) fn run_in_child(test: &str) -> Output {
        let (_crate, test) = test.split_once("::").expect("a test path begins with the crate");
        Command::new(std::env::current_exe().expect("the test binary exists"))
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .output()
            .expect("the test binary can be run again")
    }

    /// The path of a test of this module.
    macro_rules! test_path {
        ($test:ident) => {
            concat!(module_path!(), "::", stringify!($test))
        };
    }
    pub(crate) use test_path;

    /// Runs the body in a child and expects it to succeed there.
    fn in_child(test: &str, body: impl FnOnce()) {
        if is_child() {
            return body();
        }
        let output = run_in_child(test);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
    }

    fn take_many(pool: &mut StackPool, count: usize) -> Vec<Stack> {
        (0..count).map(|_| pool.take(STACK_BYTES_DEFAULT).expect("address space for the test")).collect()
    }

    fn touch(stack: &Stack) -> *mut u8 {
        let top = ptr::with_exposed_provenance_mut::<u8>(stack.base().get() - 1);
        // SAFETY: the top byte of a stack that we hold and that no coroutine runs on.
        unsafe { top.write(7) };
        top
    }

    /// How much of the address space around `range` the kernel counts as mappings.
    fn mappings_in(range: Range<usize>) -> usize {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        let starts = maps.lines().filter_map(|line| usize::from_str_radix(line.split_once('-')?.0, 16).ok());
        starts.filter(|start| range.contains(start)).count()
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

    #[test]
    fn the_last_stack_given_back_is_the_first_taken() {
        let mut pool = StackPool::default();
        let mut stacks = take_many(&mut pool, 3);
        let limits: Vec<_> = stacks.iter().map(Stack::limit).collect();
        for stack in stacks.drain(..) {
            pool.give_back(stack);
        }
        let again = take_many(&mut pool, 3);
        let again: Vec<_> = again.iter().map(Stack::limit).rev().collect();
        assert_eq!(limits, again);
        assert_eq!(pool.stats().slabs, 1);
    }

    #[test]
    fn sizes_do_not_mix() {
        let mut pool = StackPool::default();
        for bytes in [64 << 10, 256 << 10, 1 << 20, 64 << 20] {
            let stack = pool.take(bytes).expect("address space for the test");
            assert_eq!(stack.size_bytes(), bytes);
            let other = pool.take(bytes).expect("address space for the test");
            assert_eq!((other.size_bytes(), other.slot().slab() == stack.slot().slab()), (bytes, bytes < 16 << 20));
            pool.give_back(stack);
            pool.give_back(other);
        }
        assert_eq!(pool.touched_free(), 8);
        assert_eq!(pool.stats().in_use, 0);
    }

    #[test]
    fn neighbours_have_different_colours() {
        let mut pool = StackPool::default();
        let stacks = take_many(&mut pool, 64);
        let mut colours = [0; COLOURS];
        for stack in &stacks {
            let high_end = stack.limit().get() + STACK_BYTES_DEFAULT;
            colours[(high_end - HEAD_BYTES - stack.base().get()) / COLOUR_BYTES] += 1;
            assert_eq!(stack.size_bytes(), STACK_BYTES_DEFAULT);
        }
        assert_eq!(colours, [4; COLOURS]);
    }

    #[test]
    fn a_hundred_thousand_stacks_are_few_mappings() {
        in_child(test_path!(a_hundred_thousand_stacks_are_few_mappings), || {
            let mut pool = StackPool::default();
            let stacks = take_many(&mut pool, 100_000);
            let stats = pool.stats();
            assert_eq!(stats.in_use, 100_000);
            if stats.guards == Guards::Install {
                assert!(mappings_in(0..usize::MAX) < 200, "{stats:?}");
            }
            for stack in stacks.iter().step_by(9_999) {
                touch(stack);
                assert!(is_inaccessible(stack.limit().get()));
                assert!(is_inaccessible(stack.limit().get() + GUARD_BYTES_MIN - 1));
                assert!(!is_inaccessible(stack.limit().get() + guard_bytes()));
            }
        });
    }

    /// Asks the kernel to read a byte for us, which it refuses without a signal.
    fn is_inaccessible(address: usize) -> bool {
        let (_reader, writer) = io::pipe().expect("a pipe");
        // SAFETY: the kernel checks the address itself and answers EFAULT.
        let written = unsafe { libc::write(writer.as_raw_fd(), ptr::with_exposed_provenance(address), 1) };
        written == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
    }

    #[test]
    fn protected_guards_cost_two_mappings_each() {
        let mut pool = StackPool::new(Guards::Protect);
        let stacks = take_many(&mut pool, 50);
        let stats = pool.stats();
        assert_eq!((stats.guards, stats.mappings), (Guards::Protect, 102));
        let slab = pool.slabs[0].mapping.start.as_ptr().addr()..pool.slabs[0].mapping.end();
        assert!((100..=102).contains(&mappings_in(slab)));
        assert!(stacks.iter().all(|stack| is_inaccessible(stack.limit().get())));
    }

    #[test]
    fn slabs_shrink_under_an_address_space_limit_until_a_typed_error() {
        in_child(test_path!(slabs_shrink_under_an_address_space_limit_until_a_typed_error), || {
            let status = std::fs::read_to_string("/proc/self/statm").expect("procfs");
            let pages: u64 = status.split(' ').next().and_then(|n| n.parse().ok()).expect("a number of pages");
            let maximum = getrlimit(Resource::As).maximum;
            let current = Some(pages * rustix::param::page_size() as u64 + (100 << 20));
            setrlimit(Resource::As, Rlimit { current, maximum }).expect("a limit may be lowered");

            let mut pool = StackPool::default();
            let mut stacks = Vec::with_capacity(1000);
            let error = loop {
                match pool.take(STACK_BYTES_DEFAULT) {
                    Ok(stack) => stacks.push(stack),
                    Err(error) => break error,
                }
            };
            // 400 stacks of 256 KiB fit into 100 MiB; slabs of 16, 32 and 64 MiB would have stopped at 192.
            assert!(stacks.len() > 380, "{} stacks", stacks.len());
            assert!(
                matches!(&error, StackError::OutOfMemory { refused: Refused::Slab, source, .. }
                    if source.raw_os_error() == Some(libc::ENOMEM)),
                "{error:?}"
            );
            assert!(error.to_string().contains("RLIMIT_AS"));
            pool.give_back(stacks.pop().expect("there are some"));
            stacks.push(pool.take(STACK_BYTES_DEFAULT).expect("one was given back"));
        });
    }

    #[test]
    fn locked_memory_gets_protected_guards() {
        in_child(test_path!(locked_memory_gets_protected_guards), || {
            use rustix::mm::{MlockAllFlags, mlockall};
            if mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).is_err() {
                return; // the machine's limits do not let us lock that much
            }
            let mut pool = StackPool::default();
            let stack = pool.take(STACK_BYTES_DEFAULT).expect("64 stacks fit, or fewer");
            assert_eq!(pool.stats().guards, Guards::Protect);
            assert!(is_inaccessible(stack.limit().get()));
            pool.give_back(stack);
            assert_eq!(pool.trim_to(0, 1), 0);
            assert_eq!(pool.touched_free(), 1);
        });
    }

    #[test]
    fn trimming_frees_the_coldest_and_keeps_their_guards() {
        for guards in [Guards::Install, Guards::Protect] {
            let mut pool = StackPool::new(guards);
            let stacks = take_many(&mut pool, 10);
            let tops: Vec<_> = stacks.iter().map(touch).collect();
            let warmest = stacks[9].limit();
            stacks.into_iter().for_each(|stack| pool.give_back(stack));
            assert_eq!(pool.touched_free(), 10);

            assert_eq!(pool.trim_to(4, 1), 1);
            assert_eq!(pool.trim_to(4, usize::MAX), 5);
            assert_eq!(pool.trim_to(4, usize::MAX), 0);
            assert_eq!(pool.touched_free(), 4);

            // SAFETY: the top bytes of stacks that the pool has free, on which no coroutine runs.
            let bytes: Vec<u8> = tops.iter().map(|top| unsafe { top.read() }).collect();
            assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 7, 7, 7, 7]);

            let stacks = take_many(&mut pool, 10);
            assert_eq!(stacks[0].limit(), warmest);
            assert!(stacks.iter().all(|stack| is_inaccessible(stack.limit().get())));
            assert_eq!(pool.stats().slabs, 1);
        }
    }

    #[test]
    fn a_pool_unmaps_what_is_not_in_use_and_nothing_else() {
        let mut pool = StackPool::default();
        let small = pool.take(STACK_BYTES_DEFAULT).expect("address space for the test");
        let large = pool.take(1 << 20).expect("address space");
        let (kept, gone) = (small.limit().get(), large.limit().get());
        pool.give_back(large);
        drop(pool);
        touch(&small);
        assert!(stack_around(kept + guard_bytes()).is_some());
        assert!(stack_around(gone + guard_bytes()).is_none());
    }

    #[test]
    #[should_panic(expected = "the pool that handed it out")]
    fn a_stack_of_another_pool_is_refused() {
        let stack = take_many(&mut StackPool::default(), 1).remove(0);
        let mut other = StackPool::default();
        let _mine = take_many(&mut other, 1);
        other.give_back(stack);
    }

    #[test]
    fn labels_are_cut_at_a_character() {
        fn check(stack: &Stack, name: Option<&str>, kept: &str) {
            let site = Location::caller();
            stack.set_label(name, site);
            // SAFETY: the stack is out, we hold it.
            let hit = unsafe { guard_hit(stack.limit().get() + 5) }.expect("that is its guard");
            assert_eq!(hit.name(), kept.as_bytes());
            assert!(ptr::eq(hit.site.expect("a site was set"), site));
            assert_eq!(hit.stack_bytes, STACK_BYTES_DEFAULT);
        }
        let mut pool = StackPool::default();
        let stack = &take_many(&mut pool, 20)[19];
        check(stack, Some("indexer"), "indexer");
        check(stack, Some("indexers"), "indexers");
        check(stack, None, "");
        check(stack, Some(&"x".repeat(1000)), &"x".repeat(39));
        check(stack, Some(&"ü".repeat(40)), &"ü".repeat(19));
        // SAFETY: the stack is out, we hold it.
        let above = unsafe { guard_hit(stack.limit().get() + guard_bytes()) };
        assert!(above.is_none());
    }
}
