//! A stack and its guard.

use std::ops::Range;
use std::panic::Location;
use std::ptr::{self, NonNull};

use corosensei::stack::StackPointer;

use super::size::{STACK_BYTES_MIN, guard_bytes};
use super::slot::{IS_LENT, IS_OF_THREAD, Slot};

/// Room at the top of each stack, above what coroutines use, for the books of its owner; with a sanitizer's, one line more.
pub const HEAD_BYTES: usize = if cfg!(feature = "sanitizer") { 192 } else { 128 };

/// A stack and its guard. To drop it is safe, but the stack then counts as used for good: hand it to
/// [`StackPool::give_back`](super::StackPool::give_back).
#[must_use = "a stack that is dropped is lost to its pool"]
#[derive(Debug)]
pub struct Stack {
    /// Here and not in the slot, since each switch reads it.
    pub(super) base: StackPointer,
    pub(super) slot: NonNull<Slot>,
}

impl Stack {
    /// Says whose stack this is, for the message when it overflows. A few ns, no allocation; the name is cut to
    /// [`LABEL_NAME_BYTES_MAX`] bytes.
    #[inline]
    pub fn set_label(&self, name: Option<&str>, site: &'static Location<'static>) {
        self.slot().set_label(name.unwrap_or(""), site);
    }

    /// As [`set_label`](Self::set_label), of a stack that is lent to a stretch of a dhaga's code, at `site`.
    pub fn set_label_of_dhaga(&self, name: Option<&str>, site: &'static Location<'static>) {
        self.slot().set_lent_label(name.unwrap_or(""), site, IS_LENT);
    }

    /// As [`set_label_of_dhaga`](Self::set_label_of_dhaga), for code of a plain thread.
    pub fn set_label_of_thread(&self, name: Option<&str>, site: &'static Location<'static>) {
        self.slot().set_lent_label(name.unwrap_or(""), site, IS_LENT | IS_OF_THREAD);
    }

    /// The room above the base: [`HEAD_BYTES`] bytes, aligned to a cache line, for whoever has the stack out. Their content
    /// is whatever was there before.
    #[inline(always)]
    pub fn head(&self) -> NonNull<u8> {
        // The coroutine that runs here and the fault handler come to this memory by address alone, too.
        let head = ptr::with_exposed_provenance_mut(self.base.get());
        NonNull::new(head).expect("no mapping lies at address zero")
    }

    /// What a coroutine may use of it.
    pub(super) fn usable(&self) -> Range<usize> {
        let limit = self.slot().limit();
        limit + guard_bytes()..limit + self.size_bytes()
    }

    /// Address space of this stack, guard included.
    pub fn size_bytes(&self) -> usize {
        // Head and colour take less than one step of the smallest size, so rounding up undoes it.
        (self.base.get() - self.slot().limit()).next_multiple_of(STACK_BYTES_MIN)
    }

    /// Orders stacks by where they lie.
    pub(super) fn slot_address(&self) -> usize {
        self.slot.as_ptr().addr()
    }

    /// Whether `next` begins where this stack ends. Slots lie in the order of their stacks, and those of two slabs are
    /// apart by the stacks of one.
    pub(super) fn is_followed_by(&self, next: &Stack) -> bool {
        self.slot_address() + size_of::<Slot>() == next.slot_address()
    }

    #[inline]
    pub(super) fn slot(&self) -> &Slot {
        // SAFETY: the slot is aligned and initialised (see `Slab::map`). It stays mapped while this stack is out, which is
        // as long as a caller can hold `self`; and the stacks in the free lists of a pool are not read after it has unmapped
        // a slab. A slot consists of atomics only, so a shared reference to it conflicts with nothing.
        unsafe { self.slot.as_ref() }
    }
}

// SAFETY: `Slab::carve` lays a guard of at least one page over the low end before it makes a `Stack`, and fails
// otherwise. `limit` is that low end, guard included; `base` is at most 1088 (with a sanitizer, 1152) bytes below the high end and a multiple of
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
