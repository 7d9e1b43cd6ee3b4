//! The calls of one connection that wait for an answer: an id for each, and its slot.
//!
//! ```text
//! id    1, 2, 3 … 2³¹−1, 1 …          slot = id & (slots − 1)
//!
//!        slot   0     1     2     3     4     5     6     7
//!             ┌─────┬─────┬─────┬─────┬─────┬─────┬─────┬─────┐
//!             │     │  9  │ 10  │     │     │     │  6  │     │    next id 11; 14 would find its slot
//!             └─────┴─────┴─────┴─────┴─────┴─────┴─────┴─────┘    busy and be skipped
//! ```
//!
//! The whole id is compared, so an id comes back only after 2³¹ calls and a late answer never reaches a stranger. A slab
//! key as id would be reused by the next call; a hash map costs a hash a call and keeps no order.

use std::fmt;

/// Ids have 31 bits: several peers keep them in a signed `int`.
const ID_MAX: u32 = i32::MAX as u32;

/// The table begins with 16 slots at the first call, so that an idle connection has none.
const FIRST_SLOTS: usize = 16;

/// What waits, by id. `T` is what the connection wants back when the answer comes.
#[derive(Debug)]
pub struct InFlight<T> {
    /// A power of two of slots, at most half of them taken, or none at all.
    slots: Vec<Option<Entry<T>>>,
    next_id: u32,
    len: usize,
    limit: usize,
}

#[derive(Debug)]
struct Entry<T> {
    id: u32,
    value: T,
}

/// The table already holds as many calls as its limit allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// The limit that was met.
    pub limit: usize,
}

impl<T> InFlight<T> {
    /// An empty table for `limit` calls at a time; it allocates nothing before the first.
    pub fn new(limit: usize) -> Self {
        Self { slots: Vec::new(), next_id: 1, len: 0, limit: limit.min(1 << 30) }
    }

    /// Keeps `value` under a fresh id, which is never 0: some peers send unsolicited answers with id 0.
    ///
    /// # Errors
    ///
    /// [`Full`] when as many calls wait as the limit allows.
    pub fn insert(&mut self, value: T) -> Result<u32, Full> {
        if self.len == self.limit {
            return Err(Full { limit: self.limit });
        }
        if self.len * 2 >= self.slots.len() {
            self.grow();
        }
        let id = self.free_id();
        let slot = self.slot(id);
        self.slots[slot] = Some(Entry { id, value });
        self.len += 1;
        Ok(id)
    }

    /// Takes out what waits under `id` because its answer came; `None` for an id that nobody waits for.
    #[inline]
    pub fn complete(&mut self, id: u32) -> Option<T> {
        self.take(id, |_| true)
    }

    /// As [`complete`](Self::complete), if what waits is as `is_ready` wants it.
    #[inline]
    pub fn complete_if(&mut self, id: u32, is_ready: impl FnOnce(&T) -> bool) -> Option<T> {
        self.take(id, is_ready)
    }

    /// Takes out what waits under `id` because its caller gave up; an answer that comes later finds nobody.
    pub fn cancel(&mut self, id: u32) -> Option<T> {
        self.take(id, |_| true)
    }

    /// What waits under `id`, left where it is; `None` for an id that nobody waits for.
    #[inline]
    pub fn waiting(&mut self, id: u32) -> Option<&mut T> {
        if self.slots.is_empty() {
            return None;
        }
        let slot = self.slot(id);
        self.slots[slot].as_mut().filter(|entry| entry.id == id).map(|entry| &mut entry.value)
    }

    /// All that wait, in no special order.
    pub fn all_waiting(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().flatten().map(|entry| &mut entry.value)
    }

    /// Takes out everything, with its id, in no special order, for a connection that died. The table is empty and
    /// without memory at once; what the iterator does not yield is dropped with it.
    pub fn fail_all(&mut self) -> impl Iterator<Item = (u32, T)> + use<T> {
        self.len = 0;
        std::mem::take(&mut self.slots).into_iter().flatten().map(|entry| (entry.id, entry.value))
    }

    /// How many calls wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no call waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn take(&mut self, id: u32, is_ready: impl FnOnce(&T) -> bool) -> Option<T> {
        if self.slots.is_empty() {
            return None;
        }
        let slot = self.slot(id);
        let entry = self.slots[slot].take_if(|entry| entry.id == id && is_ready(&entry.value))?;
        self.len -= 1;
        Some(entry.value)
    }

    /// The next id whose slot is free. At most half of the slots are taken, so a walk ends, and costs two steps on average.
    fn free_id(&mut self) -> u32 {
        loop {
            let id = self.next_id;
            self.next_id = if id == ID_MAX { 1 } else { id + 1 };
            if self.slots[self.slot(id)].is_none() {
                return id;
            }
        }
    }

    /// Ids that differ in their low bits still do with one bit more, so the entries never collide in the larger table.
    #[cold]
    fn grow(&mut self) {
        let slots = (self.slots.len() * 2).max(FIRST_SLOTS);
        let old = std::mem::replace(&mut self.slots, std::iter::repeat_with(|| None).take(slots).collect());
        for entry in old.into_iter().flatten() {
            let slot = self.slot(entry.id);
            self.slots[slot] = Some(entry);
        }
    }

    fn slot(&self, id: u32) -> usize {
        id as usize & (self.slots.len() - 1)
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} calls already wait on this connection (Limits::calls_per_connection_max)", self.limit)
    }
}

impl std::error::Error for Full {}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn an_answer_finds_its_call_once() {
        let mut calls = InFlight::new(8);
        let id = calls.insert("a").expect("the table is empty");
        assert_eq!(id, 1);
        assert_eq!(calls.waiting(id), Some(&mut "a"));
        assert_eq!(calls.waiting(id + FIRST_SLOTS as u32), None);
        assert_eq!(calls.complete_if(id, |_| false), None);
        assert_eq!(calls.complete_if(id, |value| *value == "a"), Some("a"));
        assert_eq!(calls.waiting(id), None);
        assert_eq!(calls.complete(id), None);
        assert_eq!(calls.cancel(id), None);
        assert!(calls.is_empty());
    }

    #[test]
    fn unknown_ids_of_any_size_find_nobody() {
        let mut calls = InFlight::new(8);
        assert_eq!(calls.complete(7), None);
        calls.insert(()).expect("the table is empty");
        for id in [0, 2, 17, 33, ID_MAX, u32::MAX] {
            assert_eq!(calls.complete(id), None, "{id}");
        }
        assert_eq!(calls.len(), 1);
    }

    #[test]
    fn a_late_answer_does_not_reach_the_call_in_its_old_slot() {
        let mut calls = InFlight::new(8);
        let late = calls.insert("late").expect("the table is empty");
        calls.cancel(late);
        let mut strangers = Vec::new();
        for _ in 0..FIRST_SLOTS {
            let id = calls.insert("stranger").expect("the table is empty");
            assert_eq!(calls.complete(late), None);
            calls.cancel(id);
            strangers.push(id);
        }
        assert!(strangers.contains(&(late + FIRST_SLOTS as u32)));
    }

    #[test]
    fn busy_slots_are_skipped() {
        let mut calls = InFlight::new(100);
        let long = calls.insert("long").expect("the table is empty");
        for _ in 0..1000 {
            let id = calls.insert("short").expect("two calls at most");
            assert_ne!(id % FIRST_SLOTS as u32, long);
            calls.complete(id);
        }
        assert_eq!(calls.complete(long), Some("long"));
    }

    #[test]
    fn the_limit_is_exact_and_says_itself() {
        let mut calls = InFlight::new(100);
        for _ in 0..100 {
            calls.insert(()).expect("below the limit");
        }
        assert_eq!(calls.insert(()), Err(Full { limit: 100 }));
        calls.complete(50);
        assert!(calls.insert(()).is_ok());
    }

    #[test]
    fn ids_wrap_to_one_and_skip_who_still_waits() {
        let mut calls = InFlight::new(8);
        let first = calls.insert("first").expect("the table is empty");
        calls.next_id = ID_MAX;
        assert_eq!(calls.insert("last"), Ok(ID_MAX));
        assert_eq!(calls.insert("wrapped"), Ok(first + 1));
    }

    #[test]
    fn fail_all_empties_the_table_and_ids_go_on() {
        let mut calls = InFlight::new(100);
        for n in 1..=40 {
            assert_eq!(calls.insert(n), Ok(n));
        }
        let mut failed: Vec<_> = calls.fail_all().collect();
        failed.sort_unstable();
        assert_eq!(failed, (1..=40).map(|n| (n, n)).collect::<Vec<_>>());
        assert!(calls.is_empty());
        assert_eq!(calls.complete(3), None);
        assert_eq!(calls.insert(41), Ok(41));
    }

    #[test]
    fn behaves_as_a_map_under_random_use() {
        let mut calls = InFlight::new(300);
        let mut model = HashMap::new();
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for step in 0..100_000_u64 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            if seed % 100 < 52 {
                match calls.insert(step) {
                    Ok(id) => assert_eq!(model.insert(id, step), None, "id {id} is in use"),
                    Err(full) => assert_eq!(full.limit, model.len()),
                }
            } else {
                let id = ((seed >> 32) % (step / 2 + 2)) as u32;
                let id = if seed & 64 == 0 { id } else { model.keys().next().copied().unwrap_or(id) };
                assert_eq!(calls.complete(id), model.remove(&id));
            }
            assert_eq!(calls.len(), model.len());
        }
    }
}
