//! The values that `local!` keeps for one dhaga, or for one plain thread.
//!
//! A short list, searched by key: code has few such variables, and a dhaga that uses none has one null word.

use std::any::Any;
use std::cell::Cell;
use std::rc::Rc;

/// The address of a key, which is a static.
pub(crate) type Key = usize;

/// All values of one dhaga or thread.
#[derive(Default)]
pub(crate) struct LocalSlots(Cell<Option<Box<List>>>);

/// Boxed, to be one word in each dhaga.
#[derive(Default)]
struct List(Vec<Slot>);

struct Slot {
    key: Key,
    /// Shared, so that a value stays where it is while its user makes others. `None` once it is being dropped.
    value: Option<Rc<dyn Any>>,
}

/// What is found under a key.
pub(crate) enum Found {
    Value(Rc<dyn Any>),
    /// It was never made.
    Nothing,
    /// It is dropped, or was: its owner ends.
    Gone,
}

impl LocalSlots {
    pub(crate) fn find(&self, key: Key) -> Found {
        if self.is_untouched() {
            return Found::Nothing;
        }
        self.with(|slots| match slots.iter().find(|slot| slot.key == key) {
            None => Found::Nothing,
            Some(Slot { value: Some(value), .. }) => Found::Value(value.clone()),
            Some(Slot { value: None, .. }) => Found::Gone,
        })
    }

    /// Keeps a value under a key that has none.
    pub(crate) fn insert(&self, key: Key, value: Rc<dyn Any>) {
        self.with(|slots| slots.push(Slot { key, value: Some(value) }));
    }

    /// Whether nothing was ever kept here.
    pub(crate) fn is_untouched(&self) -> bool {
        let list = self.0.take();
        let is_untouched = list.is_none();
        self.0.set(list);
        is_untouched
    }

    /// Drops all values, the last made first, and those too that are made meanwhile. What was dropped is not made again.
    pub(crate) fn clear(&self) {
        while let Some(value) = self.take_last() {
            drop(value);
        }
    }

    /// One step of [`LocalSlots::clear`].
    pub(crate) fn take_last(&self) -> Option<Rc<dyn Any>> {
        if self.is_untouched() {
            return None;
        }
        self.with(|slots| slots.iter_mut().rev().find_map(|slot| slot.value.take()))
    }

    /// `f` is ours, and does not come back here.
    fn with<R>(&self, f: impl FnOnce(&mut Vec<Slot>) -> R) -> R {
        let mut list = self.0.take().unwrap_or_default();
        let result = f(&mut list.0);
        self.0.set(Some(list));
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    struct Drops(Rc<RefCell<Vec<u32>>>, u32);

    impl Drop for Drops {
        fn drop(&mut self) {
            self.0.borrow_mut().push(self.1);
        }
    }

    #[test]
    fn the_last_made_is_dropped_first_and_never_found_again() {
        let (slots, drops) = (LocalSlots::default(), Rc::default());
        assert!(slots.is_untouched());
        for key in [1, 2, 3] {
            slots.insert(key, Rc::new(Drops(Rc::clone(&drops), key as u32)));
        }
        assert!(matches!(slots.find(2), Found::Value(_)));
        assert!(matches!(slots.find(4), Found::Nothing));
        slots.clear();
        assert_eq!(*drops.borrow(), [3, 2, 1]);
        assert!(matches!(slots.find(2), Found::Gone));
    }
}
