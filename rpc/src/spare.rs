//! What has served one call and may serve another: a list for each thread, so that a call need not ask the allocator for it.

use std::cell::RefCell;

/// Bytes of a buffer that is kept with what owns it: most arguments and results have fewer.
pub(crate) const KEPT_BYTES_MAX: usize = 128;

/// Things that nobody holds any more, emptied.
pub(crate) struct Spares<T> {
    list: RefCell<Vec<T>>,
    kept_max: usize,
}

impl<T> Spares<T> {
    /// At most `kept_max` are kept.
    pub(crate) const fn new(kept_max: usize) -> Self {
        Self { list: RefCell::new(Vec::new()), kept_max }
    }

    #[inline]
    pub(crate) fn take(&self) -> Option<T> {
        self.list.borrow_mut().pop()
    }

    /// Keeps one for the next call, if there is room.
    #[inline]
    pub(crate) fn keep(&self, spare: T) {
        let mut list = self.list.borrow_mut();
        if list.len() < self.kept_max {
            list.push(spare);
        }
    }
}
