//! What is open, by number: for those who refer to it, and must not keep it.
//!
//! A weak pointer does the same, at two counts for each who has one. Who makes a reference for every request, which hardly
//! anybody follows, copies two words instead.

use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use slab::Slab;

/// All that are open.
pub(crate) struct Directory<T> {
    entries: Mutex<Entries<T>>,
}

struct Entries<T> {
    /// With their serials: a place that is used again must not pass for the one before.
    open: Slab<(u64, Weak<T>)>,
    serials: u64,
}

/// One of them, open or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Number {
    place: u32,
    /// 0: of nobody.
    serial: u64,
}

impl<T> Default for Directory<T> {
    fn default() -> Self {
        Self { entries: Mutex::new(Entries { open: Slab::new(), serials: 0 }) }
    }
}

impl<T> Directory<T> {
    /// Enters one, until it is [removed](Self::remove).
    pub(crate) fn add(&self, who: Weak<T>) -> Number {
        let mut entries = self.entries();
        entries.serials += 1;
        let serial = entries.serials;
        Number { place: entries.open.insert((serial, who)) as u32, serial }
    }

    pub(crate) fn remove(&self, number: Number) {
        let mut entries = self.entries();
        if entries.find(number).is_some() {
            entries.open.remove(number.place as usize);
        }
        if entries.open.is_empty() {
            entries.open = Slab::new();
        }
    }

    /// `Weak::new()`: it has gone.
    pub(crate) fn get(&self, number: Number) -> Weak<T> {
        self.entries().find(number).cloned().unwrap_or_default()
    }

    fn entries(&self) -> MutexGuard<'_, Entries<T>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Entries<T> {
    fn find(&self, number: Number) -> Option<&Weak<T>> {
        self.open.get(number.place as usize).filter(|(serial, _)| *serial == number.serial).map(|(_, who)| who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn who_has_gone_is_not_taken_for_who_came_to_its_place() {
        let (first, second) = (Arc::new(1), Arc::new(2));
        let directory = Directory::default();
        let of_first = directory.add(Arc::downgrade(&first));
        assert_eq!(directory.get(of_first).upgrade().as_deref(), Some(&1));
        directory.remove(of_first);
        let of_second = directory.add(Arc::downgrade(&second));
        assert_eq!(of_first.place, of_second.place, "the place is used again");
        directory.remove(of_first);
        assert_eq!(directory.get(of_first).upgrade(), None);
        assert_eq!(directory.get(of_second).upgrade().as_deref(), Some(&2));
        assert_eq!(directory.get(Number::default()).upgrade(), None);
    }

    #[test]
    fn nobody_is_kept() {
        let (one, directory) = (Arc::new(1), Directory::default());
        let number = directory.add(Arc::downgrade(&one));
        drop(one);
        assert_eq!(directory.get(number).upgrade(), None);
    }
}
