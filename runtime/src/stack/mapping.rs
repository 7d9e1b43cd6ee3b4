//! Memory from the system, and advice to the system about it.

use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};

/// Private anonymous memory, unmapped on drop.
pub(super) struct Mapping {
    pub(super) start: NonNull<u8>,
    pub(super) bytes: usize,
}

impl Mapping {
    /// Maps zeroed memory; `bytes` is a multiple of the page size.
    pub(super) fn new(bytes: usize) -> io::Result<Mapping> {
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

    /// Whether the system gave it memory when it was mapped, as it does after `mlockall(MCL_FUTURE)`.
    pub(super) fn is_populated(&self) -> bool {
        let page_bytes = rustix::param::page_size();
        let (last, mut is_resident) = (self.end() - page_bytes, 0u8);
        // SAFETY: the last page of this mapping, and room for the one byte that tells of it.
        let result = unsafe { libc::mincore(ptr::with_exposed_provenance_mut(last), page_bytes, &mut is_resident) };
        result == 0 && is_resident & 1 == 1
    }

    /// Huge pages would turn each touched page of a stack into 2 MiB; and see the top of this file for dumps. Kernels
    /// built without either refuse, and nothing is lost.
    pub(super) fn prepare(&self, head_bytes: usize) {
        let start = self.start.as_ptr().addr();
        // SAFETY: both ranges are page-aligned and lie in this mapping; the advices change no memory.
        unsafe {
            let _ = advise(start..self.end(), libc::MADV_NOHUGEPAGE);
            let _ = advise(start + head_bytes..self.end(), libc::MADV_DONTDUMP);
        }
    }

    pub(super) fn end(&self) -> usize {
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
pub(super) unsafe fn advise(range: Range<usize>, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the caller's promise is what `madvise` asks for.
    let result = unsafe { libc::madvise(ptr::with_exposed_provenance_mut(range.start), range.len(), advice) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// # Safety
///
/// `range` is page-aligned and lies in a [`Mapping`]; nothing refers to that memory.
pub(super) unsafe fn make_inaccessible(range: Range<usize>) -> io::Result<()> {
    let start = ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: the caller's promise is what `mprotect` asks for.
    let result = unsafe { libc::mprotect(start, range.len(), libc::PROT_NONE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the system would still map so many bytes for the rest of the program.
pub(super) fn has_room(bytes: usize) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory that exists. Nobody may use
    // it, so that it takes no memory even where mappings are locked.
    let start = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping that was made above, whole, and nothing refers to it.
    let result = unsafe { libc::munmap(start, bytes) };
    debug_assert_eq!(result, 0, "munmap of a whole mapping cannot fail");
    Ok(())
}
