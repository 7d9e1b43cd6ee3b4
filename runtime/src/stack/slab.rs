//! One mapping with many stacks of one size.

use std::fs;
use std::io;
use std::mem;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use corosensei::stack::StackPointer;
use log::debug;

use super::mapping::{Mapping, advise, has_room, make_inaccessible};
use super::region::Region;
use super::size::{StackSize, guard_bytes};
use super::slot::Slot;
use super::{HEAD_BYTES, Refused, Stack, StackError};

/// How a stack is guarded against overflow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Guards {
    /// In the page tables, by `MADV_GUARD_INSTALL`; slab by slab [`Guards::Protect`] where the kernel refuses that.
    #[default]
    Install,
    /// By `mprotect`, at two more mappings a stack.
    Protect,
}

/// Stack tops are shifted by a multiple of 64 B, a cache line, in 16 steps: without it the hot frames of all stacks
/// fall into the same sets of the first-level cache. More steps would make parked stacks straddle two pages.
pub(super) const COLOUR_BYTES: usize = 64;
pub(super) const COLOURS: usize = 16;

/// Stacks that are made dumpable with one system call.
const DUMPABLE_BATCH: usize = 16;

/// Address space that stacks leave to the rest of the program: an eighth of what they take, within these bounds. A heap
/// that gets none ends the process, while a dhaga that gets no stack is an error that somebody can handle.
const HEADROOM_BYTES_MIN: usize = 4 << 20;
const HEADROOM_BYTES_MAX: usize = 64 << 20;

/// The kernel's default of `vm.max_map_count`, for where it tells nothing.
const MAPPINGS_FALLBACK: usize = 65_530;

/// `MADV_GUARD_INSTALL` of Linux 6.13, which the `libc` crate does not name yet.
const MADV_GUARD_INSTALL: libc::c_int = 102;

/// Bytes of all slabs of the process.
static MAPPED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Guards by `mprotect` in the process.
static PROTECTED: AtomicUsize = AtomicUsize::new(0);

/// Stacks that can be guarded by `mprotect` at two mappings each: a sixteenth of what the kernel allows a process is left
/// to the rest of it.
pub fn protected_max() -> usize {
    static MAX: OnceLock<usize> = OnceLock::new();
    *MAX.get_or_init(|| {
        let text = fs::read_to_string("/proc/sys/vm/max_map_count").ok();
        let mappings = text.and_then(|text| text.trim().parse().ok()).unwrap_or(MAPPINGS_FALLBACK);
        (mappings - mappings / 16) / 2
    })
}

/// How stacks are guarded here: as asked for, if the kernel knows how.
pub fn guards_here(asked: Guards) -> Guards {
    let installs = |mapping: Mapping| {
        // SAFETY: the range is the whole of a mapping that nobody uses.
        unsafe { advise(mapping.start.as_ptr().addr()..mapping.end(), MADV_GUARD_INSTALL) }
    };
    match asked {
        Guards::Install if Mapping::new(guard_bytes()).and_then(installs).is_ok() => Guards::Install,
        _ => Guards::Protect,
    }
}

/// Stacks of so many bytes that fit into address space, besides what they leave to the rest of the program.
pub fn stacks_in(address_space_bytes: u64, stack_bytes: usize) -> usize {
    let headroom = (address_space_bytes / 9).clamp(HEADROOM_BYTES_MIN as u64, HEADROOM_BYTES_MAX as u64);
    usize::try_from(address_space_bytes.saturating_sub(headroom) / stack_bytes as u64).unwrap_or(usize::MAX)
}

/// Maps memory for stacks if enough is left for everything else.
fn map_with_headroom(bytes: usize) -> io::Result<Mapping> {
    let mapping = Mapping::new(bytes)?;
    let taken = MAPPED_BYTES.load(Ordering::Relaxed) + bytes;
    has_room((taken / 8).clamp(HEADROOM_BYTES_MIN, HEADROOM_BYTES_MAX))?;
    Ok(mapping)
}

/// One mapping with the stacks in it, and what became of them.
pub(super) struct Slab {
    pub(super) mapping: Mapping,
    region: &'static Region,
    pub(super) size: StackSize,
    pub(super) guards: Guards,
    /// Low end of stack 0.
    first: usize,
    /// Stacks below this index have been handed out at least once, and have a guard.
    fresh_from: usize,
    /// Stacks below this index go into core dumps.
    dumpable_to: usize,
    /// Guards made by `mprotect`.
    protected: usize,
    /// Stacks handed out and not given back.
    pub(super) out: usize,
}

impl Slab {
    /// Maps `slab_bytes`, or half of it, or half of that, down to a single stack.
    pub(super) fn map(size: StackSize, slab_bytes: usize, guards: Guards) -> Result<Slab, StackError> {
        let mut stacks = (slab_bytes / size.bytes()).max(1);
        let (mapping, head_bytes) = loop {
            let head_bytes = (stacks * size_of::<Slot>()).next_multiple_of(guard_bytes());
            let bytes = head_bytes + stacks * size.bytes();
            match map_with_headroom(bytes) {
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
        MAPPED_BYTES.fetch_add(mapping.bytes, Ordering::Relaxed);
        Ok(Slab { mapping, region, size, guards, first, fresh_from: 0, dumpable_to: 0, protected: 0, out: 0 })
    }

    /// Makes the next fresh stack, guard first.
    pub(super) fn carve(&mut self, slab: usize) -> Result<Stack, StackError> {
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

    /// Whether memory came with it, since the program locks what it maps.
    pub(super) fn is_populated(&self) -> bool {
        self.mapping.is_populated()
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
        self.protect(guard).map_err(StackError::no_guard)
    }

    fn protect(&mut self, guard: Range<usize>) -> io::Result<()> {
        if PROTECTED.fetch_add(1, Ordering::Relaxed) >= protected_max() {
            PROTECTED.fetch_sub(1, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        // SAFETY: as in `guard`, whose range this is.
        unsafe { make_inaccessible(guard) }.inspect_err(|_| {
            PROTECTED.fetch_sub(1, Ordering::Relaxed);
        })?;
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

    pub(super) fn unmap_unless_in_use(self) {
        if self.out == 0 {
            MAPPED_BYTES.fetch_sub(self.mapping.bytes, Ordering::Relaxed);
            PROTECTED.fetch_sub(self.protected, Ordering::Relaxed);
            self.region.retire();
            drop(self.mapping);
        } else {
            debug!("{} stacks are still in use, their slab stays mapped", self.out);
            mem::forget(self.mapping);
        }
    }

    pub(super) fn stacks(&self) -> Range<usize> {
        self.first..self.mapping.end()
    }

    pub(super) fn len(&self) -> usize {
        self.stacks().len() / self.size.bytes()
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.fresh_from == self.len()
    }

    /// Each guard by `mprotect` cuts a mapping in three, and the stacks that go into dumps are apart from the others.
    pub(super) fn mappings_max(&self) -> usize {
        2 + 2 * self.protected
    }
}
