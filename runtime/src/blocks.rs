//! Memory for what each spawn allocates, used again by the worker that freed it.
//!
//! ```text
//!   free:  [ 24 B ] ─▶ block ─▶ block        each free block holds the address of the next
//!          [ 40 B ]
//!          [ 56 B ] ─▶ block
//! ```
//!
//! The system's allocator keeps seven free blocks of a size at hand for a thread. A batch of a thousand spawns goes past
//! them, and with it each spawn and join took 320 instructions of 1 220 to allocate and free; here they are ten.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::ptr::{self, NonNull};

/// Sizes are so far apart, and each is 8 bytes above a multiple of it: just what a block of glibc's allocator holds, so that
/// rounding up costs no memory.
const STEP_BYTES: usize = 16;
/// Sizes up to 504 bytes. What is larger holds a large closure, and is rare.
const SIZES: usize = 32;
/// Free memory that a worker keeps: 1 600 of the smallest spawns.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// The free blocks of one worker.
pub(crate) struct Blocks {
    free: [Cell<*mut Free>; SIZES],
    kept_bytes: Cell<usize>,
}

/// What a free block holds.
struct Free {
    next: *mut Free,
}

/// One of the sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size(usize);

impl Size {
    const fn of<T>() -> Option<Size> {
        let size = Size(size_of::<T>().saturating_sub(STEP_BYTES / 2).div_ceil(STEP_BYTES));
        // A block is to hold the address of the next; and the sanitizer wants to see each block freed.
        let fits = size.bytes() >= size_of::<Free>() && size.0 < SIZES && align_of::<T>() <= STEP_BYTES;
        if fits && !cfg!(feature = "sanitizer") { Some(size) } else { None }
    }

    const fn bytes(self) -> usize {
        self.0 * STEP_BYTES + STEP_BYTES / 2
    }

    const fn layout(self) -> Layout {
        match Layout::from_size_align(self.bytes(), STEP_BYTES) {
            Ok(layout) => layout,
            Err(_) => panic!("a small size and a power of two make a layout"),
        }
    }
}

const fn layout_of<T>() -> Layout {
    match Size::of::<T>() {
        Some(size) => size.layout(),
        None => Layout::new::<T>(),
    }
}

impl Blocks {
    pub(crate) const fn new() -> Self {
        Self { free: [const { Cell::new(ptr::null_mut()) }; SIZES], kept_bytes: Cell::new(0) }
    }

    /// Moves `value` to the heap: into one of `blocks`, if the caller has some, or else into fresh memory.
    #[inline(always)]
    pub(crate) fn put<T>(blocks: Option<&Self>, value: T) -> NonNull<T> {
        const { assert!(size_of::<T>() > 0, "what has no size needs no memory") };
        let kept = match (const { Size::of::<T>() }, blocks) {
            (Some(size), Some(blocks)) => blocks.pop(size).map(NonNull::cast),
            _ => None,
        };
        let place = kept.unwrap_or_else(fresh::<T>);
        // SAFETY: the memory has the layout of a `T` at least, and is nobody else's.
        unsafe { place.write(value) };
        place
    }

    /// Frees the memory of a value whose content was taken or dropped; `blocks` keeps it for the next, if it has room.
    ///
    /// # Safety
    ///
    /// `place` comes from [`put`](Self::put) for this type, and nobody uses it any more.
    #[inline(always)]
    pub(crate) unsafe fn free<T>(blocks: Option<&Self>, place: NonNull<T>) {
        if let (Some(size), Some(blocks)) = (const { Size::of::<T>() }, blocks)
            // SAFETY: `put` made it with the layout of this size.
            && unsafe { blocks.push(size, place.cast()) }
        {
            return;
        }
        // SAFETY: `put` got it from the allocator with this layout, be it now or for an earlier value of the same size.
        unsafe { dealloc(place.as_ptr().cast(), layout_of::<T>()) };
    }

    #[inline(always)]
    fn pop(&self, size: Size) -> Option<NonNull<Free>> {
        let head = &self.free[size.0];
        let block = NonNull::new(head.get())?;
        // SAFETY: what is in the list is free memory, in which `push` has written.
        head.set(unsafe { block.as_ref() }.next);
        self.kept_bytes.set(self.kept_bytes.get() - size.bytes());
        Some(block)
    }

    /// Returns false when there is no room.
    ///
    /// # Safety
    ///
    /// The block was allocated with the layout of `size`, and is nobody's.
    #[inline(always)]
    unsafe fn push(&self, size: Size, block: NonNull<Free>) -> bool {
        let kept = self.kept_bytes.get() + size.bytes();
        if kept > KEPT_BYTES_MAX {
            return false;
        }
        let head = &self.free[size.0];
        // SAFETY: by the caller's promise it is free, aligned to 16 bytes, and has 8 at least.
        unsafe { block.write(Free { next: head.get() }) };
        head.set(block.as_ptr());
        self.kept_bytes.set(kept);
        true
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        for size in (0..SIZES).map(Size) {
            while let Some(block) = self.pop(size) {
                // SAFETY: `push` takes only what was allocated with the layout of this size.
                unsafe { dealloc(block.as_ptr().cast(), size.layout()) };
            }
        }
    }
}

#[cold]
#[inline(never)]
fn fresh<T>() -> NonNull<T> {
    let layout = layout_of::<T>();
    // SAFETY: the size is not zero, as `put` asserts.
    NonNull::new(unsafe { alloc(layout) }.cast()).unwrap_or_else(|| handle_alloc_error(layout))
}

#[cfg(all(test, not(feature = "sanitizer")))]
mod tests {
    use super::*;

    #[repr(align(64))]
    struct Aligned(#[expect(dead_code, reason = "for its size")] u8);

    #[test]
    fn sizes_hold_their_values_and_fill_the_allocators_blocks() {
        assert_eq!(Size::of::<u64>().map(Size::bytes), Some(8));
        assert_eq!(Size::of::<[u8; 9]>().map(Size::bytes), Some(24));
        assert_eq!(Size::of::<[u64; 19]>().map(Size::bytes), Some(152));
        assert_eq!(Size::of::<[u8; 504]>().map(Size::bytes), Some(504));
        assert_eq!(Size::of::<[u8; 505]>(), None);
        assert_eq!(Size::of::<Aligned>(), None);
    }

    #[test]
    fn the_block_that_was_freed_last_is_used_again_for_its_size() {
        let blocks = Blocks::new();
        let [first, second] = [1_u64, 2].map(|n| Blocks::put(Some(&blocks), [n; 5]));
        // SAFETY: each comes from `put`, holds a value, and is freed once.
        unsafe {
            assert_eq!((first.read(), second.read()), ([1; 5], [2; 5]));
            Blocks::free(Some(&blocks), first);
            Blocks::free(Some(&blocks), second);
        }
        let other = Blocks::put(Some(&blocks), [0_u64; 7]);
        let again = Blocks::put(Some(&blocks), [3_u32; 10]);
        assert!(other.addr() != first.addr() && other.addr() != second.addr());
        assert_eq!(again.addr(), second.addr());
        assert_eq!(blocks.kept_bytes.get(), 40);
        // SAFETY: as above; without blocks it goes to the allocator.
        unsafe {
            Blocks::free(None, again);
            Blocks::free(Some(&blocks), other);
        }
        assert_eq!(blocks.kept_bytes.get(), 40 + 56);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let blocks = Blocks::new();
        let values: Vec<_> = (0..3 * KEPT_BYTES_MAX / 200).map(|n| Blocks::put(Some(&blocks), [n; 25])).collect();
        for (n, value) in values.into_iter().enumerate() {
            // SAFETY: each comes from `put`, holds a value, and is freed once.
            unsafe {
                assert_eq!(value.read(), [n; 25]);
                Blocks::free(Some(&blocks), value);
            }
        }
        let kept = blocks.kept_bytes.get();
        assert!((KEPT_BYTES_MAX - 200..=KEPT_BYTES_MAX).contains(&kept), "{kept}");
    }

    #[test]
    fn what_does_not_fit_goes_to_the_allocator() {
        let blocks = Blocks::new();
        let large = Blocks::put(Some(&blocks), [7_u8; 1000]);
        let aligned = Blocks::put(Some(&blocks), Aligned(1));
        assert!(aligned.addr().get().is_multiple_of(64));
        // SAFETY: as above.
        unsafe {
            assert_eq!(large.read(), [7; 1000]);
            Blocks::free(Some(&blocks), large);
            Blocks::free(Some(&blocks), aligned);
        }
        assert_eq!(blocks.kept_bytes.get(), 0);
    }
}
