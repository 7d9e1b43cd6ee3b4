//! Deadlines to values: arm, cancel and expire in constant time.
//!
//! A timeout is armed for nearly every call and almost never fires, so arming and cancelling must
//! cost next to nothing. This is a hierarchical wheel without rotation:
//!
//! ```text
//! level 0:  64 slots of 1 tick              131 µs each,   8 ms in all
//! level 1:  64 slots of 64 ticks              8 ms each, 537 ms in all
//! level 2:  64 slots of 64² ticks           537 ms each,  34 s  in all
//!   …
//! level 7:  64 slots of 64⁷ ticks            18 years each
//! ```
//!
//! A timer lies at the level of the highest group of six bits in which its tick differs from the
//! current one, in the slot that this group names. Two facts follow, and everything rests on them:
//!
//! - all timers of one level come before all timers of the next, and all timers of one slot before
//!   all of the next slot: the earliest timer is in the first occupied slot of the lowest occupied
//!   level, which two bit scans find;
//! - a timer's level changes only when the current tick enters its slot. At that moment, and at no
//!   other, the slot is *cascaded*: its timers move down, at most seven times in a timer's life.
//!
//! A heap was not taken because of its logarithmic cancel, and a list for each duration because every
//! deadline that a scope hands down is a different duration.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// log2 of a tick in nanoseconds: 131 µs.
///
/// Deadlines are rounded up to a tick, so this is how late the table alone makes a timer. epoll adds
/// up to 1 ms of its own; a tick of a millisecond would double the sum, and a finer one would only
/// add cascades that nobody can notice.
const TICK_NANOS_LOG2: u32 = 17;
const TICK_NANOS: u64 = 1 << TICK_NANOS_LOG2;

/// Slots of a level, as bits of the tick. 64 slots make a level's occupancy one word.
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;

/// Enough for every tick: 64 bits of nanoseconds (584 years) are 47 bits of ticks.
const LEVELS: usize = 8;

/// A slot with more timers than this is not searched for its earliest one; its beginning is
/// reported instead. Keeps `next_deadline` within some tens of nanoseconds.
const SEARCHED_MAX: usize = 8;

/// How much room an empty table keeps, in timers: 32 KiB with an eight-byte value.
const KEPT_MAX: usize = 1024;

const NONE: u32 = u32::MAX;

/// Names one armed timer. A key of a timer that has expired or was cancelled names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimerKey {
    index: u32,
    /// Differs for each of 2³² timers armed in a row.
    generation: NonZeroU32,
}

/// All timers of one worker.
pub(crate) struct Timers<T> {
    start: Instant,
    /// Every timer before this tick has been handed out.
    current: u64,
    levels: [Level; LEVELS],
    /// Bit `l` is set while level `l` holds a timer.
    occupied: u8,
    entries: Vec<Entry<T>>,
    free: u32,
    len: usize,
    last_generation: NonZeroU32,
}

struct Level {
    /// Bit `s` is set while slot `s` holds a timer.
    occupied: u64,
    /// The oldest timer of each slot, the head of a ring of entries.
    heads: [u32; SLOTS],
}

struct Entry<T> {
    tick: u64,
    value: T,
    /// None while the entry is free.
    generation: Option<NonZeroU32>,
    /// Neighbours in the slot's ring; a free entry uses `next` only, for the free list.
    previous: u32,
    next: u32,
}

impl<T: Copy> Timers<T> {
    /// An empty table. Deadlines before `now` count as `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Timers {
            start: now,
            current: 0,
            levels: [const { Level { occupied: 0, heads: [NONE; SLOTS] } }; LEVELS],
            occupied: 0,
            entries: Vec::new(),
            free: NONE,
            len: 0,
            last_generation: NonZeroU32::MAX,
        }
    }

    /// Arms a timer. It expires never before `deadline` and at most one tick after it.
    ///
    /// Timers of the same tick expire in the order in which they were armed.
    pub(crate) fn arm(&mut self, deadline: Instant, value: T) -> TimerKey {
        self.arm_nanos(self.nanos(deadline), value)
    }

    /// As [`arm`](Self::arm), for a deadline that was converted by [`nanos`](Self::nanos).
    pub(crate) fn arm_nanos(&mut self, nanos: u64, value: T) -> TimerKey {
        let tick = nanos.div_ceil(TICK_NANOS).max(self.current);
        let generation = self.next_generation();
        let index = self.allocate(Entry { tick, value, generation: Some(generation), previous: NONE, next: NONE });
        self.link(index);
        self.len += 1;
        TimerKey { index, generation }
    }

    /// Disarms a timer; false if it has expired or was cancelled before.
    #[inline]
    pub(crate) fn cancel(&mut self, key: TimerKey) -> bool {
        let armed = self.entries.get(key.index as usize).is_some_and(|entry| entry.generation == Some(key.generation));
        if armed {
            self.remove(key.index);
        }
        armed
    }

    /// Takes out one timer whose deadline has passed, the earliest; call it until it gives none.
    ///
    /// The caller may arm and cancel in between. A timer armed with a passed deadline is given out in
    /// the same series of calls.
    #[inline]
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<T> {
        let now = self.nanos(now) / TICK_NANOS;
        loop {
            let due = self.first_slot().filter(|slot| slot.first_tick <= now);
            let Some(slot) = due else {
                self.current = self.current.max(now);
                return None;
            };
            self.current = self.current.max(slot.first_tick);
            if slot.level == 0 {
                return Some(self.remove(slot.head));
            }
            self.cascade(slot);
        }
    }

    /// When to look again: the deadline of the earliest timer, rounded up to a tick.
    ///
    /// If many timers lie together far away it is an earlier moment, at which they get sorted more
    /// finely: at most one such early moment for each level, seven in all.
    #[inline]
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let slot = self.first_slot()?;
        let tick = match slot.level {
            0 => slot.first_tick,
            _ => self.earliest_tick(&slot).unwrap_or(slot.first_tick),
        };
        let since_start = Duration::from_nanos(tick.saturating_mul(TICK_NANOS));
        Some(self.start.checked_add(since_start).expect("a clock that starts within its range holds 584 years more"))
    }

    /// How many timers are armed.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether no timer is armed.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Time since the start, saturating at both ends.
    #[inline]
    pub(crate) fn nanos(&self, instant: Instant) -> u64 {
        let since_start = instant.saturating_duration_since(self.start);
        let seconds = since_start.as_secs().saturating_mul(1_000_000_000);
        seconds.saturating_add(u64::from(since_start.subsec_nanos()))
    }

    #[inline]
    fn next_generation(&mut self) -> NonZeroU32 {
        self.last_generation = self.last_generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        self.last_generation
    }
}

// The wheel: which slot a timer lies in.

/// An occupied slot.
struct Slot {
    level: usize,
    index: usize,
    head: u32,
    /// No timer of the slot is earlier; at level 0, none is later either.
    first_tick: u64,
}

/// The level and slot of a timer that expires at `tick`.
#[inline]
fn position(current: u64, tick: u64) -> (usize, usize) {
    // The lowest group counts as differing, so that a timer of the current tick has a level.
    let differing = (current ^ tick) | (SLOTS as u64 - 1);
    let level = (differing.ilog2() / SLOT_BITS) as usize;
    (level, slot_index(tick, level))
}

#[inline]
fn slot_index(tick: u64, level: usize) -> usize {
    (tick >> (SLOT_BITS * level as u32)) as usize % SLOTS
}

impl<T: Copy> Timers<T> {
    /// The slot that holds the earliest timer.
    #[inline]
    fn first_slot(&self) -> Option<Slot> {
        if self.occupied == 0 {
            return None;
        }
        let level = self.occupied.trailing_zeros() as usize;
        let index = self.levels[level].occupied.trailing_zeros() as usize;
        // The groups above the slot's are the current tick's, those below are zero.
        let shift = SLOT_BITS * level as u32;
        let above = (self.current >> shift) & !(SLOTS as u64 - 1);
        let first_tick = (above | index as u64) << shift;
        Some(Slot { level, index, head: self.levels[level].heads[index], first_tick })
    }

    /// The earliest tick in a slot, unless it holds too many timers to look at.
    fn earliest_tick(&self, slot: &Slot) -> Option<u64> {
        let mut earliest = u64::MAX;
        let mut index = slot.head;
        for _ in 0..SEARCHED_MAX {
            let entry = &self.entries[index as usize];
            earliest = earliest.min(entry.tick);
            index = entry.next;
            if index == slot.head {
                return Some(earliest);
            }
        }
        None
    }

    /// Moves the timers of a slot which the current tick has just entered to the levels below,
    /// oldest first.
    #[cold]
    fn cascade(&mut self, slot: Slot) {
        debug_assert_eq!(self.current, slot.first_tick, "a slot is cascaded as it is entered");
        self.set_head(slot.level, slot.index, NONE);
        let mut index = slot.head;
        loop {
            let next = self.entries[index as usize].next;
            self.link(index);
            if next == slot.head {
                return;
            }
            index = next;
        }
    }

    /// Appends an entry to the ring of its slot.
    #[inline]
    fn link(&mut self, index: u32) {
        let (level, slot) = position(self.current, self.entries[index as usize].tick);
        let head = self.levels[level].heads[slot];
        if head == NONE {
            let entry = &mut self.entries[index as usize];
            (entry.previous, entry.next) = (index, index);
            self.set_head(level, slot, index);
            return;
        }
        let last = self.entries[head as usize].previous;
        let entry = &mut self.entries[index as usize];
        (entry.previous, entry.next) = (last, head);
        self.entries[last as usize].next = index;
        self.entries[head as usize].previous = index;
    }

    /// Takes an entry out of the ring of its slot.
    #[inline]
    fn unlink(&mut self, index: u32) {
        let &Entry { tick, previous, next, .. } = &self.entries[index as usize];
        self.entries[previous as usize].next = next;
        self.entries[next as usize].previous = previous;
        let (level, slot) = position(self.current, tick);
        if self.levels[level].heads[slot] == index {
            self.set_head(level, slot, if next == index { NONE } else { next });
        }
    }

    /// Sets the head of a slot, and with it whether the slot and its level are occupied.
    #[inline]
    fn set_head(&mut self, level: usize, slot: usize, head: u32) {
        let at = &mut self.levels[level];
        at.heads[slot] = head;
        if head == NONE {
            at.occupied &= !(1 << slot);
        } else {
            at.occupied |= 1 << slot;
        }
        if at.occupied == 0 {
            self.occupied &= !(1 << level);
        } else {
            self.occupied |= 1 << level;
        }
    }
}

// The entries: allocated once, linked while free, given back when the table is empty.
impl<T: Copy> Timers<T> {
    #[inline]
    fn allocate(&mut self, entry: Entry<T>) -> u32 {
        let index = self.free;
        if index == NONE {
            let index = u32::try_from(self.entries.len()).ok().filter(|&index| index != NONE);
            self.entries.push(entry);
            return index.expect("memory ends before four billion timers");
        }
        let place = &mut self.entries[index as usize];
        self.free = place.next;
        *place = entry;
        index
    }

    /// Unlinks and frees an armed entry.
    #[inline]
    fn remove(&mut self, index: u32) -> T {
        self.unlink(index);
        let entry = &mut self.entries[index as usize];
        entry.generation = None;
        entry.next = self.free;
        let value = entry.value;
        self.free = index;
        self.len -= 1;
        if self.len == 0 && self.entries.len() > KEPT_MAX {
            self.give_back();
        }
        value
    }

    /// Gives the room of a peak back. Old keys stay harmless, since generations never start anew.
    #[cold]
    fn give_back(&mut self) {
        self.entries.clear();
        self.entries.shrink_to(KEPT_MAX);
        self.free = NONE;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const TICK: Duration = Duration::from_nanos(TICK_NANOS);

    fn drain(timers: &mut Timers<u32>, now: Instant) -> Vec<u32> {
        std::iter::from_fn(|| timers.pop_expired(now)).collect()
    }

    fn check(after: Duration) {
        let start = Instant::now();
        let mut timers = Timers::new(start);
        timers.arm(start + after, 7);
        let next = timers.next_deadline().expect("one timer is armed");
        assert!(next >= start + after && next < start + after + TICK, "next deadline for {after:?}");
        let before = next - Duration::from_nanos(1);
        assert_eq!(drain(&mut timers, before), [], "early for {after:?}");
        assert_eq!(timers.next_deadline(), Some(next), "exact for {after:?}");
        assert_eq!(drain(&mut timers, next), [7], "late for {after:?}");
        assert!(timers.is_empty());
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn a_single_timer_fires_within_a_tick_and_is_foretold_exactly() {
        for exponent in 1..60 {
            for offset in [-1i64, 0, 1] {
                check(Duration::from_nanos((1i64 << exponent).saturating_add(offset) as u64));
            }
        }
    }

    #[test]
    fn instants_at_the_end_of_time_neither_panic_nor_fire() {
        let start = Instant::now();
        let (mut near, mut far) = (Duration::ZERO, Duration::MAX);
        while far - near > Duration::from_nanos(1) {
            let middle = near + (far - near) / 2;
            match start.checked_add(middle) {
                Some(_) => near = middle,
                None => far = middle,
            }
        }
        let end_of_time = start + near;
        let mut timers = Timers::new(start);
        let key = timers.arm(end_of_time, 1);
        timers.arm(start + Duration::from_secs(3600 * 24 * 365 * 500), 2);
        assert_eq!(drain(&mut timers, start + Duration::from_secs(3600 * 24 * 365 * 499)), []);
        assert!(timers.next_deadline().is_some());
        assert!(timers.cancel(key));
        assert_eq!(timers.len(), 1);
        assert_eq!(drain(&mut timers, end_of_time), [2]);
    }

    #[test]
    fn passed_deadlines_fire_at_once() {
        let start = Instant::now();
        let mut timers = Timers::new(start + Duration::from_secs(9));
        timers.arm(start, 1);
        assert_eq!(drain(&mut timers, start + Duration::from_secs(9)), [1]);
        assert_eq!(drain(&mut timers, start + Duration::from_secs(50)), []);
        timers.arm(start + Duration::from_secs(20), 2);
        assert_eq!(timers.pop_expired(start), None, "a clock that goes back expires nothing");
        assert_eq!(drain(&mut timers, start + Duration::from_secs(50)), [2]);
    }

    #[test]
    fn timers_of_one_tick_fire_in_the_order_armed() {
        let start = Instant::now();
        let deadline = start + Duration::from_secs(100);
        let mut timers = Timers::new(start);
        for value in 0..40 {
            timers.arm(deadline, value);
            drain(&mut timers, start + Duration::from_millis(2400) * value);
        }
        assert_eq!(drain(&mut timers, deadline + TICK), (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn timers_armed_while_others_expire_take_part() {
        let start = Instant::now();
        let mut timers = Timers::new(start);
        timers.arm(start + Duration::from_secs(1), 1);
        let victim = timers.arm(start + Duration::from_secs(2), 2);
        let now = start + Duration::from_secs(3);
        assert_eq!(timers.pop_expired(now), Some(1));
        assert!(timers.cancel(victim));
        timers.arm(start, 3);
        assert_eq!(drain(&mut timers, now), [3]);
    }

    #[test]
    fn stale_keys_name_nothing_even_after_the_room_was_given_back() {
        let start = Instant::now();
        let mut timers = Timers::new(start);
        let keys: Vec<_> = (0..2 * KEPT_MAX as u32).map(|value| timers.arm(start, value)).collect();
        assert_eq!(drain(&mut timers, start).len(), keys.len());
        assert!(timers.entries.capacity() <= KEPT_MAX, "the peak was given back");
        for value in 0..KEPT_MAX as u32 {
            timers.arm(start + Duration::from_secs(1), value);
        }
        assert!(keys.iter().all(|&key| !timers.cancel(key)));
        assert_eq!(timers.len(), KEPT_MAX);
    }

    #[test]
    fn memory_is_reused() {
        let start = Instant::now();
        let mut timers = Timers::new(start);
        for value in 0..10_000u32 {
            let key = timers.arm(start + Duration::from_secs(u64::from(value)), value);
            assert!(timers.cancel(key));
            assert!(!timers.cancel(key));
        }
        assert_eq!(timers.entries.len(), 1);
    }

    #[test]
    fn an_idle_process_with_a_few_far_timers_wakes_a_handful_of_times() {
        let start = Instant::now();
        for count in [1, SEARCHED_MAX as u32, 1000] {
            let mut timers = Timers::new(start);
            for value in 0..count {
                timers.arm(start + Duration::from_secs(10), value);
            }
            let (mut wakes, mut fired) = (0, 0);
            while let Some(next) = timers.next_deadline() {
                wakes += 1;
                fired += drain(&mut timers, next).len();
            }
            assert_eq!(fired, count as usize);
            assert!(wakes <= LEVELS, "{wakes} wakes for {count} timers of 10 s");
        }
    }

    struct XorShift(u64);

    impl XorShift {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % bound
        }

        /// Spread over all magnitudes up to 2 to the power of `bits`.
        fn magnitude(&mut self, bits: u64) -> u64 {
            let bits = self.below(bits) + 1;
            self.below(1 << bits)
        }
    }

    /// The obvious table: exact deadlines in a tree.
    #[derive(Default)]
    struct Model {
        armed: BTreeMap<u32, (Instant, TimerKey)>,
        gone: Vec<TimerKey>,
    }

    impl Model {
        fn random(&self, random: &mut XorShift) -> Option<(u32, TimerKey)> {
            let from = random.below(u64::from(u32::MAX)) as u32;
            let next = self.armed.range(from..).next().or_else(|| self.armed.iter().next());
            next.map(|(&value, &(_, key))| (value, key))
        }

        fn expire(&mut self, value: u32, now: Instant) {
            let (deadline, key) = self.armed.remove(&value).expect("only an armed timer fires, and once");
            assert!(deadline <= now, "a timer fired {:?} early", deadline - now);
            self.gone.push(key);
        }

        fn check_after_expiry(&self, timers: &Timers<u32>, now: Instant) {
            assert_eq!(timers.len(), self.armed.len());
            let earliest = self.armed.values().map(|&(deadline, _)| deadline).min();
            assert!(earliest.is_none_or(|earliest| earliest + TICK > now), "a timer is late");
            let next = timers.next_deadline();
            assert_eq!(next.is_none(), earliest.is_none());
            assert!(next.is_none_or(|next| next > now), "the next deadline has passed");
            assert!(next <= earliest.map(|earliest| earliest + TICK), "the next deadline is late");
        }
    }

    fn compare_with_model(seed: u64) {
        let start = Instant::now();
        let mut random = XorShift(seed);
        let (mut timers, mut model) = (Timers::new(start), Model::default());
        let mut now = start;
        for _ in 0..3000 {
            match random.below(8) {
                0..4 => {
                    let deadline = now + Duration::from_nanos(random.magnitude(50));
                    let value = random.below(u64::from(u32::MAX)) as u32;
                    let arm = || (deadline, timers.arm(deadline, value));
                    model.armed.entry(value).or_insert_with(arm);
                }
                4 | 5 => {
                    if let Some((value, key)) = model.random(&mut random) {
                        assert!(timers.cancel(key));
                        model.armed.remove(&value);
                        model.gone.push(key);
                    }
                }
                6 => {
                    if let Some(&key) = model.gone.last() {
                        assert!(!timers.cancel(key));
                    }
                }
                _ => {
                    now = match random.below(2) {
                        0 => now + Duration::from_nanos(random.magnitude(48)),
                        _ => timers.next_deadline().unwrap_or(now).max(now),
                    };
                    for value in drain(&mut timers, now) {
                        model.expire(value, now);
                    }
                    model.check_after_expiry(&timers, now);
                }
            }
        }
    }

    #[test]
    fn the_wheel_agrees_with_a_tree() {
        for seed in 1..200u64 {
            compare_with_model(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        }
    }

    #[test]
    fn a_million_timers_fire_once_each() {
        const COUNT: u64 = 1_000_000;
        let start = Instant::now();
        let mut random = XorShift(42);
        let mut timers = Timers::new(start);
        for value in 0..COUNT {
            timers.arm(start + Duration::from_nanos(random.below(1 << 40)), value as u32);
        }
        let mut fired = vec![false; COUNT as usize];
        while let Some(next) = timers.next_deadline() {
            for value in drain(&mut timers, next) {
                assert!(!std::mem::replace(&mut fired[value as usize], true));
            }
        }
        assert!(fired.into_iter().all(|fired| fired));
    }
}
