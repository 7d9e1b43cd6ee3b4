//! The ready dhagas of one worker, first come first served: a ring that only its own thread sees.
//!
//! Written out rather than taken from std because this is half of what a switch costs: no borrow flag, no bounds that
//! were not checked already, and a mask instead of a wrap.

use std::cell::{Cell, UnsafeCell};

use crate::task::TaskRef;

/// Ring of tasks.
///
/// ```text
///   head (counts up) ──▶ next to run ... last come ◀── tail (counts up);  place = count & mask
/// ```
pub(crate) struct ReadyQueue {
    ring: UnsafeCell<Box<[Option<TaskRef>]>>,
    head: Cell<usize>,
    tail: Cell<usize>,
}

/// Places of a new ring.
const PLACES_FIRST: usize = 64;

impl Default for ReadyQueue {
    fn default() -> Self {
        let ring = UnsafeCell::new(vec![None; PLACES_FIRST].into_boxed_slice());
        Self { ring, head: Cell::new(0), tail: Cell::new(0) }
    }
}

impl ReadyQueue {
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.tail.get().wrapping_sub(self.head.get())
    }

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.head.get() == self.tail.get()
    }

    /// Counts those that were taken, less those that were put before the others. Begins anew when the ring grows.
    pub(crate) fn head(&self) -> usize {
        self.head.get()
    }

    /// Adds one behind the others.
    #[inline(always)]
    pub(crate) fn push_back(&self, task: TaskRef) {
        if self.len() == self.ring().len() {
            self.grow();
        }
        let tail = self.tail.get();
        self.put(tail, task);
        self.tail.set(tail.wrapping_add(1));
    }

    /// Adds one before the others.
    pub(crate) fn push_front(&self, task: TaskRef) {
        if self.len() == self.ring().len() {
            self.grow();
        }
        let head = self.head.get().wrapping_sub(1);
        self.put(head, task);
        self.head.set(head);
    }

    #[inline(always)]
    pub(crate) fn pop_front(&self) -> Option<TaskRef> {
        let head = self.head.get();
        if head == self.tail.get() {
            return None;
        }
        self.head.set(head.wrapping_add(1));
        self.at(head)
    }

    /// The next one.
    #[inline(always)]
    pub(crate) fn first(&self) -> Option<TaskRef> {
        if self.is_empty() { None } else { self.at(self.head.get()) }
    }

    /// Tells of the next ones, `max` at most.
    #[inline(always)]
    pub(crate) fn each_of_first(&self, max: usize, tell: impl Fn(TaskRef)) {
        for ahead in 0..self.len().min(max) {
            if let Some(task) = self.at(self.head.get().wrapping_add(ahead)) {
                tell(task);
            }
        }
    }

    #[inline(always)]
    fn ring(&self) -> &[Option<TaskRef>] {
        // SAFETY: the queue is not `Sync`, and no method calls foreign code, so the only unique references, those of `put`
        // and `grow`, do not overlap with this one.
        unsafe { &*self.ring.get() }
    }

    #[inline(always)]
    fn at(&self, count: usize) -> Option<TaskRef> {
        let ring = self.ring();
        // SAFETY: the length is a power of two, so the masked count is below it.
        unsafe { *ring.get_unchecked(count & (ring.len() - 1)) }
    }

    #[inline(always)]
    fn put(&self, count: usize, task: TaskRef) {
        // SAFETY: as in `ring`: this reference ends with this method.
        let ring = unsafe { &mut *self.ring.get() };
        let mask = ring.len() - 1;
        // SAFETY: as in `at`.
        unsafe { *ring.get_unchecked_mut(count & mask) = Some(task) };
    }

    /// Doubles the ring, which is full.
    #[cold]
    fn grow(&self) {
        let len = self.len();
        let mut places = Vec::with_capacity(2 * len);
        places.extend((0..len).map(|ahead| self.at(self.head.get().wrapping_add(ahead))));
        places.resize(2 * len, None);
        // SAFETY: as in `ring`.
        unsafe { *self.ring.get() = places.into_boxed_slice() };
        self.head.set(0);
        self.tail.set(len);
    }
}
