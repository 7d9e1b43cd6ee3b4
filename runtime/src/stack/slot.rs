//! What is known of a stack, kept apart from it.

use std::panic::Location;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// Bytes of a name that a stack keeps for the overflow message: 39, so that all it keeps is one cache line. The rest is
/// cut off at a character.
pub const LABEL_NAME_BYTES_MAX: usize = NAME_BYTES - 1;

/// Where a stack lies, and for the fault handler, whose it is. One cache line,
/// made of atomics, since another thread's handler may look while this one writes.
#[repr(C, align(64))]
pub(super) struct Slot {
    limit: AtomicUsize,
    slab: AtomicUsize,
    site: AtomicPtr<Location<'static>>,
    /// The length of the name in the first byte, with two flags, then the name.
    name: [AtomicU64; NAME_BYTES / 8],
}

pub(super) const NAME_BYTES: usize = 40;

/// In the byte with the length of the name: the stack is lent to a stretch of code,
pub(super) const IS_LENT: u8 = 1 << 7;
/// which is that of a plain thread.
pub(super) const IS_OF_THREAD: u8 = 1 << 6;
const _: () = assert!(NAME_BYTES <= IS_OF_THREAD as usize);

/// Far above the index of any slab.
const MARK: usize = 1 << (usize::BITS - 1);

impl Slot {
    pub(super) fn place(&self, limit: usize, slab: usize) {
        self.limit.store(limit, Ordering::Relaxed);
        self.slab.store(slab, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn set_label(&self, name: &str, site: &'static Location<'static>) {
        self.site.store(ptr::from_ref(site).cast_mut(), Ordering::Relaxed);
        if name.is_empty() {
            self.name[0].store(0, Ordering::Relaxed);
        } else {
            self.set_name(name, 0);
        }
    }

    /// As `set_label`, of a stack that is lent: `site` is where. `flags`: [`IS_LENT`], and [`IS_OF_THREAD`] if it is.
    pub(super) fn set_lent_label(&self, name: &str, site: &'static Location<'static>, flags: u8) {
        self.site.store(ptr::from_ref(site).cast_mut(), Ordering::Relaxed);
        self.set_name(name, flags);
    }

    fn set_name(&self, name: &str, flags: u8) {
        let mut len = name.len().min(LABEL_NAME_BYTES_MAX);
        while !name.is_char_boundary(len) {
            len -= 1;
        }
        let mut packed = [0; NAME_BYTES];
        packed[0] = len as u8 | flags;
        packed[1..=len].copy_from_slice(&name.as_bytes()[..len]);
        for (slot, word) in self.name.iter().zip(packed.as_chunks::<8>().0) {
            slot.store(u64::from_ne_bytes(*word), Ordering::Relaxed);
        }
    }

    /// Marks the stack as one to be measured when it comes back; [`slab`](Self::slab) then names no slab.
    pub(super) fn mark(&self) {
        self.slab.fetch_or(MARK, Ordering::Relaxed);
    }

    /// Takes the mark away. Returns whether there was one.
    pub(super) fn unmark(&self) -> bool {
        self.slab.fetch_and(!MARK, Ordering::Relaxed) & MARK != 0
    }

    /// Low end of the stack, where its guard begins.
    #[inline]
    pub(super) fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Index of its slab in its pool, or a number that is none while the stack is marked.
    #[inline]
    pub(super) fn slab(&self) -> usize {
        self.slab.load(Ordering::Relaxed)
    }

    pub(super) fn name(&self) -> [u8; NAME_BYTES] {
        let mut packed = [0; NAME_BYTES];
        for (bytes, slot) in packed.as_chunks_mut::<8>().0.iter_mut().zip(&self.name) {
            *bytes = slot.load(Ordering::Relaxed).to_ne_bytes();
        }
        packed
    }

    pub(super) fn site(&self) -> Option<&'static Location<'static>> {
        // SAFETY: the pointer is null, as the system zeroed it, or comes from a `&'static Location`.
        unsafe { self.site.load(Ordering::Relaxed).as_ref() }
    }
}
