//! Where requests run, by the place of their runner.

use slab::Slab;

use super::asked::Here;

/// Mostly there is one: it lies in the connection itself, and not behind a pointer that would be one more miss.
#[derive(Default)]
pub(super) struct Running {
    first: Option<Here>,
    /// From place 1 on.
    others: Slab<Here>,
}

/// Capacity that is kept when nobody runs.
const KEPT_MAX: usize = 8;

impl Running {
    /// Returns its place.
    #[inline]
    pub(super) fn insert(&mut self, here: Here) -> usize {
        if self.first.is_none() {
            self.first = Some(here);
            return 0;
        }
        1 + self.others.insert(here)
    }

    #[inline]
    pub(super) fn get(&self, place: usize) -> Option<&Here> {
        match place.checked_sub(1) {
            None => self.first.as_ref(),
            Some(other) => self.others.get(other),
        }
    }

    /// A runner goes on elsewhere. Returns where it has run.
    pub(super) fn replace(&mut self, place: usize, here: Here) -> Option<Here> {
        match place.checked_sub(1) {
            None => self.first.replace(here),
            Some(other) => self.others.get_mut(other).map(|other| std::mem::replace(other, here)),
        }
    }

    /// A runner is done. Returns where it has run.
    #[inline]
    pub(super) fn remove(&mut self, place: usize) -> Option<Here> {
        match place.checked_sub(1) {
            None => self.first.take(),
            Some(other) => self.remove_other(other),
        }
    }

    /// Whether nobody runs.
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none() && self.others.is_empty()
    }

    #[inline(never)]
    fn remove_other(&mut self, other: usize) -> Option<Here> {
        let left = self.others.try_remove(other);
        if self.others.is_empty() && self.others.capacity() > KEPT_MAX {
            self.others = Slab::new();
        }
        left
    }
}
