//! Where each request of the peer is, by the id that the peer has given it.

use std::hash::BuildHasher;

use crate::id_hash::IdHash;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It waits; its number in the queue.
    Pending(u32),
    /// It runs; the place of its runner.
    Running(u32),
    /// Its answer waits for room.
    Answered,
}

/// A table of ids in flight. Open addressing, half full at most: an id comes, moves on once and goes, a few instructions each. One
/// that comes when there is no other needs no table.
#[derive(Default)]
pub(super) struct Ids {
    lone: Option<Entry>,
    hash: IdHash,
    /// None, or a power of two.
    slots: Box<[Option<Entry>]>,
    len: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    id: u32,
    place: Place,
}

impl Ids {
    /// Enters an id. Returns false, and leaves it where it is, if it was there.
    #[inline]
    pub(super) fn insert(&mut self, id: u32, place: Place) -> bool {
        match &self.lone {
            Some(lone) if lone.id == id => false,
            None if self.len == 0 => {
                self.lone = Some(Entry { id, place });
                true
            }
            _ => self.insert_in_table(id, place),
        }
    }

    fn insert_in_table(&mut self, id: u32, place: Place) -> bool {
        self.reserve_in_table(1);
        let mut at = self.home(id);
        while let Some(entry) = self.slots[at] {
            if entry.id == id {
                return false;
            }
            at = self.behind(at);
        }
        self.slots[at] = Some(Entry { id, place });
        self.len += 1;
        true
    }

    /// Moves an id that is there.
    #[inline]
    pub(super) fn set(&mut self, id: u32, place: Place) {
        if let Some(lone) = self.lone.as_mut().filter(|lone| lone.id == id) {
            lone.place = place;
            return;
        }
        if let Some(at) = self.find(id) {
            self.slots[at] = Some(Entry { id, place });
        }
    }

    #[inline]
    pub(super) fn remove(&mut self, id: u32) {
        if self.lone.as_ref().is_some_and(|lone| lone.id == id) {
            self.lone = None;
            return;
        }
        let Some(mut hole) = self.find(id) else { return };
        self.slots[hole] = None;
        self.len -= 1;
        // Whoever was pushed on by what is gone moves back, so that a search may end at the first free slot.
        let mut at = self.behind(hole);
        while let Some(entry) = self.slots[at] {
            if self.steps(self.home(entry.id), at) >= self.steps(hole, at) {
                self.slots[hole] = self.slots[at].take();
                hole = at;
            }
            at = self.behind(at);
        }
    }

    /// Makes room for so many more.
    #[inline]
    pub(super) fn reserve(&mut self, more: usize) {
        let has_place = self.lone.is_none() && self.len == 0;
        self.reserve_in_table(more.saturating_sub(usize::from(has_place)));
    }

    #[inline]
    fn reserve_in_table(&mut self, more: usize) {
        if 2 * (self.len + more) > self.slots.len() {
            self.grow(more);
        }
    }

    #[cold]
    fn grow(&mut self, more: usize) {
        let count = (2 * (self.len + more)).next_power_of_two();
        let entries = std::mem::replace(&mut self.slots, vec![None; count].into());
        self.len = 0;
        for Entry { id, place } in entries.into_iter().flatten() {
            self.insert_in_table(id, place);
        }
    }

    /// Frees the memory of a table that holds nothing, if it has room for more than `kept_max`.
    #[inline]
    pub(super) fn let_go(&mut self, kept_max: usize) {
        if self.len == 0 && self.slots.len() > 2 * kept_max {
            self.slots = Box::default();
        }
    }

    #[inline]
    pub(super) fn get(&self, id: u32) -> Option<Place> {
        match &self.lone {
            Some(lone) if lone.id == id => Some(lone.place),
            _ => self.slots[self.find(id)?].map(|entry| entry.place),
        }
    }

    /// Where all of them are.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.lone.iter().chain(self.slots.iter().flatten()).map(|entry| entry.place)
    }

    #[inline]
    fn find(&self, id: u32) -> Option<usize> {
        if self.len == 0 {
            return None;
        }
        let mut at = self.home(id);
        while self.slots[at]?.id != id {
            at = self.behind(at);
        }
        Some(at)
    }

    #[inline]
    fn home(&self, id: u32) -> usize {
        self.hash.hash_one(id) as usize & (self.slots.len() - 1)
    }

    #[inline]
    fn behind(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }

    #[inline]
    fn steps(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn it_knows_what_a_map_of_std_knows() {
        let (mut ids, mut map) = (Ids::default(), HashMap::new());
        let mut random = 1_u32;
        for step in 0..100_000 {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            let (id, place) = (random % 61, Place::Pending(step));
            match random >> 29 {
                0..4 => assert_eq!(
                    ids.insert(id, place),
                    map.insert(id, place).is_none_or(|before| {
                        map.insert(id, before);
                        false
                    })
                ),
                4 => {
                    ids.set(id, place);
                    map.entry(id).and_modify(|there| *there = place);
                }
                _ => {
                    ids.remove(id);
                    map.remove(&id);
                }
            }
            assert!((0..61).all(|id| ids.get(id) == map.get(&id).copied()), "step {step}");
        }
    }

    #[test]
    fn an_empty_table_keeps_little() {
        let mut ids = Ids::default();
        (0..1000).for_each(|id| assert!(ids.insert(id, Place::Running(id))));
        (0..1000).for_each(|id| ids.remove(id));
        ids.let_go(8);
        assert_eq!((ids.slots.len(), ids.get(7)), (0, None));
    }
}
