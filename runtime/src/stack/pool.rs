//! All stacks of one worker.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::high_water::{below_top_page, depth};
use super::mapping::advise;
use super::size::{SIZES, STACK_BYTES_MIN, StackSize, guard_bytes};
use super::slab::Slab;
use super::{Guards, HighWater, Stack, StackError};

/// First slab of each size: 16 MiB of address space, 64 stacks of the default size.
const SLAB_BYTES_FIRST: usize = 16 << 20;

/// Slabs double up to 8 GiB of address space, so that a million stacks of the default size are about 40 mappings.
const SLAB_BYTES_MAX: usize = 8 << 30;

/// Every so many-th stack that is handed out is measured, at five microseconds: one nanosecond for each. At first each
/// second one, then each fourth, and so on.
const SAMPLE_PERIOD_MAX: u32 = 4096;

/// 1 MiB: a larger stack is not kept for the next stretch of code, since it is never trimmed there.
const LENT_BYTES_MAX: usize = 1 << 20;

/// The stacks of one worker. It stays on the thread that made it, and so do its stacks.
///
/// A pool that is dropped gives back each slab none of whose stacks is out; the others stay mapped for good.
pub struct StackPool {
    free: [FreeStacks; SIZES],
    /// The free stack that [`lend`](Self::lend) hands out next.
    lent_last: Option<Stack>,
    slabs: Vec<Slab>,
    guards: Guards,
    /// Stacks to hand out until one is measured.
    until_sample: u32,
    /// Stacks between two samples.
    sample_period: u32,
    high_water: Arc<HighWater>,
}

/// What a pool holds, as [`StackPool::stats`] found it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct StackStats {
    /// Stacks that the slabs have room for, fresh ones included.
    pub mapped: usize,
    /// Stacks handed out and not given back.
    pub in_use: usize,
    /// Free stacks that still hold the memory of their last use.
    pub touched_free: usize,
    /// Slabs.
    pub slabs: usize,
    /// Bytes of address space in all slabs.
    pub mapped_bytes: usize,
    /// How the newest slab is guarded.
    pub guards: Guards,
    /// Kernel mappings in use, at most; `vm.max_map_count` limits these.
    pub mappings: usize,
}

/// Why there is no stack.
impl StackPool {
    /// Makes an empty pool; the first slab is mapped by the first [`take`](Self::take).
    pub fn new(guards: Guards) -> StackPool {
        StackPool::measured(guards, Arc::default())
    }

    /// As [`new`](Self::new), with samples that are added to those of other pools.
    pub fn measured(guards: Guards, high_water: Arc<HighWater>) -> StackPool {
        StackPool {
            free: [const { FreeStacks::new() }; SIZES],
            lent_last: None,
            slabs: Vec::new(),
            guards,
            until_sample: 1,
            sample_period: 1,
            high_water,
        }
    }

    /// Hands out the free stack that was used last, or the next fresh one, of `stack_bytes` of address space rounded up
    /// to a power of two; [`STACK_BYTES_MIN`] is the smallest. Part of it is the guard: 16 KiB where pages have 4 KiB.
    ///
    /// # Errors
    ///
    /// [`StackError::TooLarge`] above [`STACK_BYTES_MAX`]. [`StackError::OutOfMemory`] when there is no free stack and
    /// the system refuses even a slab of one, or a guard; the pool stays usable.
    #[inline]
    pub fn take(&mut self, stack_bytes: usize) -> Result<Stack, StackError> {
        let size = StackSize::new(stack_bytes)?;
        let stack = match self.free[size.index()].pop_warm() {
            Some(stack) => stack,
            None => self.take_cold(size)?,
        };
        self.note_out(&stack);
        Ok(stack)
    }

    #[inline(always)]
    fn note_out(&mut self, stack: &Stack) {
        self.slabs[stack.slot().slab()].out += 1;
        self.until_sample -= 1;
        if self.until_sample == 0 {
            self.begin_sample(stack);
        }
    }

    /// Takes back a stack, memory and all: the next [`take`](Self::take) of its size returns this one.
    ///
    /// # Panics
    ///
    /// When the stack came from another pool.
    #[inline]
    pub fn give_back(&mut self, stack: Stack) {
        let slab = self.slabs.get_mut(stack.slot().slab());
        match slab.filter(|slab| slab.stacks().contains(&stack.slot().limit())) {
            Some(slab) => {
                slab.out -= 1;
                self.free[slab.size.index()].stacks.push(stack);
            }
            None => self.take_back_marked(stack),
        }
    }

    /// As [`take`](Self::take), for a stretch of code that ends soon: the stack that was lent last, if it has that size.
    ///
    /// One such stack is kept apart from the others. Were it among them, the next dhaga would begin on it and keep all the
    /// memory that the stretch has touched, and the next stretch would touch as much of another.
    ///
    /// # Errors
    ///
    /// As [`take`](Self::take).
    #[inline]
    pub fn lend(&mut self, stack_bytes: usize) -> Result<Stack, StackError> {
        let Some(stack) = self.lent_last.take_if(|stack| stack.size_bytes() == stack_bytes) else {
            return self.take(stack_bytes);
        };
        self.note_out(&stack);
        Ok(stack)
    }

    /// Takes back what [`lend`](Self::lend) has handed out.
    #[inline]
    pub fn take_back_lent(&mut self, stack: Stack) {
        match self.slabs.get_mut(stack.slot().slab()) {
            Some(slab)
                if self.lent_last.is_none()
                    && slab.size.bytes() <= LENT_BYTES_MAX
                    && slab.stacks().contains(&stack.slot().limit()) =>
            {
                slab.out -= 1;
                self.lent_last = Some(stack);
            }
            _ => self.give_back(stack),
        }
    }

    /// Free stacks that still hold the memory of their last use: at least a page each.
    pub fn touched_free(&self) -> usize {
        self.free.iter().map(FreeStacks::warm).sum::<usize>() + usize::from(self.lent_last.is_some())
    }

    /// Free stacks that still hold memory, without those that together take `kept_bytes` of address space. The smallest
    /// are kept: there are many of them, and what a large one holds may be much.
    pub fn spare(&self, kept_bytes: usize) -> usize {
        self.spares(kept_bytes).iter().sum()
    }

    /// Gives the memory of free stacks back to the system, as long as there are [`spare`](Self::spare) ones, and at most
    /// `stacks_max` of them in this call. Begins with the largest size, and within a size with those that lay unused
    /// longest. Returns how many it trimmed.
    ///
    /// Neighbours go with one `madvise`: half a microsecond for each that used one page, against two microseconds with
    /// a call for each. A trimmed stack will fault its pages in again; so trim seldom and in small steps. Guards
    /// survive; the page tables (512 B a stack of the default size) stay. Locked memory cannot be given back: then
    /// nothing is trimmed.
    pub fn trim(&mut self, kept_bytes: usize, stacks_max: usize) -> usize {
        let (spares, mut left) = (self.spares(kept_bytes), stacks_max);
        for (free, spare) in self.free.iter_mut().zip(spares).rev() {
            left -= free.trim(spare.min(left));
        }
        stacks_max - left
    }

    /// Spare stacks of each size.
    fn spares(&self, kept_bytes: usize) -> [usize; SIZES] {
        let (mut spares, mut left_bytes) = ([0; SIZES], kept_bytes);
        for (index, spare) in spares.iter_mut().enumerate() {
            let (warm, bytes) = (self.free[index].warm(), STACK_BYTES_MIN << index);
            let kept = warm.min(left_bytes / bytes);
            left_bytes -= kept * bytes;
            *spare = warm - kept;
        }
        spares
    }

    /// Counts what the pool holds.
    pub fn stats(&self) -> StackStats {
        StackStats {
            mapped: self.slabs.iter().map(Slab::len).sum(),
            in_use: self.slabs.iter().map(|slab| slab.out).sum(),
            touched_free: self.touched_free(),
            slabs: self.slabs.len(),
            mapped_bytes: self.slabs.iter().map(|slab| slab.mapping.bytes).sum(),
            guards: self.slabs.last().map_or(self.guards, |slab| slab.guards),
            mappings: self.slabs.iter().map(Slab::mappings_max).sum(),
        }
    }

    /// Empties a stack below its top page, so that what is found there later is of the dhaga that gets it now.
    #[cold]
    fn begin_sample(&mut self, stack: &Stack) {
        self.sample_period = (2 * self.sample_period).min(SAMPLE_PERIOD_MAX);
        self.until_sample = self.sample_period;
        // SAFETY: the range is page-aligned and lies in the usable part of this stack, which is about to be handed out: no
        // frame and no reference lies there.
        let emptied = unsafe { advise(below_top_page(&stack.usable()), libc::MADV_DONTNEED) };
        // Locked memory cannot be emptied, nor measured.
        if emptied.is_ok() {
            stack.slot().mark();
        }
    }

    /// Takes back a stack that is to be measured, whose slot names no slab for that reason.
    #[cold]
    fn take_back_marked(&mut self, stack: Stack) {
        let slot = stack.slot();
        assert!(slot.unmark(), "a stack goes back to the pool that handed it out");
        if let Some(site) = slot.site() {
            // SAFETY: that is the memory of this stack without its guard, and no coroutine runs on it any more.
            let used_bytes = unsafe { depth(stack.usable()) };
            self.high_water.record(site, used_bytes, stack.size_bytes());
        }
        self.give_back(stack);
    }

    #[cold]
    fn take_cold(&mut self, size: StackSize) -> Result<Stack, StackError> {
        if let Some(stack) = self.free[size.index()].pop_cold() {
            return Ok(stack);
        }
        let newest = match self.free[size.index()].newest_slab {
            Some(index) if !self.slabs[index].is_used_up() => index,
            _ => self.grow(size)?,
        };
        self.slabs[newest].carve(newest)
    }

    /// Maps the next slab of this size and returns its index.
    fn grow(&mut self, size: StackSize) -> Result<usize, StackError> {
        let free = &mut self.free[size.index()];
        let slab = Slab::map(size, free.slab_bytes_next, self.guards).inspect_err(|_| {
            // Not even one stack: the next attempt need not begin with many.
            free.slab_bytes_next = size.bytes();
        })?;
        if !slab.is_populated() {
            free.slab_bytes_next = (slab.len() * size.bytes() * 2).clamp(SLAB_BYTES_FIRST, SLAB_BYTES_MAX);
        }
        free.newest_slab = Some(self.slabs.len());
        self.slabs.push(slab);
        Ok(self.slabs.len() - 1)
    }
}

impl Default for StackPool {
    fn default() -> StackPool {
        StackPool::new(Guards::default())
    }
}

impl fmt::Debug for StackPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StackPool").field(&self.stats()).finish()
    }
}

impl Drop for StackPool {
    fn drop(&mut self) {
        for slab in self.slabs.drain(..) {
            slab.unmap_unless_in_use();
        }
    }
}

/// The free stacks of one size.
struct FreeStacks {
    /// The last used at the end. The first `cold` of them are trimmed: guard and page tables are there, the memory is not.
    stacks: Vec<Stack>,
    cold: usize,
    /// The slab whose fresh stacks are handed out next.
    newest_slab: Option<usize>,
    slab_bytes_next: usize,
}

impl FreeStacks {
    const fn new() -> FreeStacks {
        FreeStacks { stacks: Vec::new(), cold: 0, newest_slab: None, slab_bytes_next: SLAB_BYTES_FIRST }
    }

    #[inline]
    fn warm(&self) -> usize {
        self.stacks.len() - self.cold
    }

    #[inline]
    fn pop_warm(&mut self) -> Option<Stack> {
        if self.stacks.len() > self.cold { self.stacks.pop() } else { None }
    }

    fn pop_cold(&mut self) -> Option<Stack> {
        debug_assert_eq!(self.warm(), 0, "a warm one comes first");
        let stack = self.stacks.pop()?;
        self.cold -= 1;
        Some(stack)
    }

    /// Trims the `count` that lay unused longest, as far as the system lets it, and returns how many these were.
    fn trim(&mut self, count: usize) -> usize {
        let coldest = &mut self.stacks[self.cold..][..count];
        // Stacks that were taken one after another lie side by side, and often come back so.
        coldest.sort_unstable_by_key(Stack::slot_address);
        let mut trimmed = 0;
        for run in coldest.chunk_by(Stack::is_followed_by) {
            if release_memory(run).is_err() {
                break;
            }
            trimmed += run.len();
        }
        self.cold += trimmed;
        trimmed
    }
}

/// Gives the pages of free stacks that lie side by side back to the system; they read as zeros from now on. The guards
/// between them stay, of whichever kind they are.
fn release_memory(run: &[Stack]) -> io::Result<()> {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(()) };
    let memory = first.slot().limit() + guard_bytes()..last.slot().limit() + last.size_bytes();
    // SAFETY: the range is page-aligned at both ends, lies in one slab, and consists of these stacks and their guards. They
    // are free (only `FreeStacks` calls this), so no frame or reference lies in memory that is about to be zeroed.
    unsafe { advise(memory, libc::MADV_DONTNEED) }
}

#[cfg(test)]
mod tests {
    use std::panic::Location;
    use std::ptr;

    use corosensei::stack::Stack as _;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::super::size::GUARD_BYTES_MIN;
    use super::super::slab::{COLOUR_BYTES, COLOURS};
    use super::super::tests::{in_child, is_inaccessible, mappings_in, take_many, test_path, touch};
    use super::super::{HEAD_BYTES, Refused, STACK_BYTES_DEFAULT, stack_around};
    use super::*;

    #[test]
    fn the_last_stack_given_back_is_the_first_taken() {
        let mut pool = StackPool::default();
        let mut stacks = take_many(&mut pool, 3);
        let limits: Vec<_> = stacks.iter().map(Stack::limit).collect();
        for stack in stacks.drain(..) {
            pool.give_back(stack);
        }
        let again = take_many(&mut pool, 3);
        let again: Vec<_> = again.iter().map(Stack::limit).rev().collect();
        assert_eq!(limits, again);
        assert_eq!(pool.stats().slabs, 1);
    }

    #[test]
    fn sizes_do_not_mix() {
        let mut pool = StackPool::default();
        for bytes in [64 << 10, 256 << 10, 1 << 20, 64 << 20] {
            let stack = pool.take(bytes).expect("address space for the test");
            assert_eq!(stack.size_bytes(), bytes);
            let other = pool.take(bytes).expect("address space for the test");
            let slab = |stack: &Stack| {
                pool.slabs.iter().position(|slab| slab.stacks().contains(&stack.slot().limit())).expect("it has one")
            };
            assert_eq!((other.size_bytes(), slab(&other) == slab(&stack)), (bytes, bytes < 16 << 20));
            pool.give_back(stack);
            pool.give_back(other);
        }
        assert_eq!(pool.touched_free(), 8);
        assert_eq!(pool.stats().in_use, 0);
    }

    #[test]
    fn the_stack_that_was_lent_last_is_lent_again_and_taken_by_nobody() {
        let mut pool = StackPool::default();
        // The first that a pool hands out is measured, and goes to the others.
        let measured = pool.lend(STACK_BYTES_DEFAULT).expect("address space for the test");
        let lent = pool.lend(STACK_BYTES_DEFAULT).expect("address space for the test");
        let first = lent.slot_address();
        pool.take_back_lent(measured);
        pool.take_back_lent(lent);
        assert_eq!((pool.touched_free(), pool.stats().in_use), (2, 0));
        let taken = take_many(&mut pool, 3);
        assert!(taken.iter().all(|stack| stack.slot_address() != first), "it is kept apart");
        let other = pool.lend(2 * STACK_BYTES_DEFAULT).expect("address space for the test");
        let again = pool.lend(STACK_BYTES_DEFAULT).expect("address space for the test");
        assert_eq!(
            (again.slot_address(), pool.stats().in_use),
            (first, 5),
            "one of another size does not take its place"
        );
        pool.take_back_lent(again);
        pool.take_back_lent(other);
        taken.into_iter().for_each(|stack| pool.give_back(stack));
        let large = pool.lend(2 * LENT_BYTES_MAX).expect("address space for the test");
        pool.take_back_lent(large);
        assert_eq!((pool.spare(0), pool.stats().in_use), (5, 0), "all but one can be trimmed");
    }

    #[test]
    fn stretches_of_code_on_one_lent_stack_are_measured_now_and_then() {
        let mut pool = StackPool::default();
        let site = Location::caller();
        let samples = [1, 10, 100, 1000].map(|lends| {
            for _ in 0..lends {
                let stack = pool.lend(STACK_BYTES_DEFAULT).expect("address space for the test");
                use_stack(&stack, 100_000, site);
                pool.take_back_lent(stack);
            }
            let found = pool.high_water.sites();
            assert_eq!((found[0].site, found[0].used_bytes), (site, 100_000));
            found[0].samples
        });
        assert_eq!(samples, [1, 3, 6, 10]);
        assert_eq!((pool.stats().in_use, pool.touched_free()), (0, 1));
    }

    #[test]
    fn neighbours_have_different_colours() {
        let mut pool = StackPool::default();
        let stacks = take_many(&mut pool, 64);
        let mut colours = [0; COLOURS];
        for stack in &stacks {
            let high_end = stack.limit().get() + STACK_BYTES_DEFAULT;
            colours[(high_end - HEAD_BYTES - stack.base().get()) / COLOUR_BYTES] += 1;
            assert_eq!(stack.size_bytes(), STACK_BYTES_DEFAULT);
        }
        assert_eq!(colours, [4; COLOURS]);
    }

    #[test]
    fn a_hundred_thousand_stacks_are_few_mappings() {
        in_child(test_path!(a_hundred_thousand_stacks_are_few_mappings), || {
            let mut pool = StackPool::default();
            let stacks = take_many(&mut pool, 100_000);
            let stats = pool.stats();
            assert_eq!(stats.in_use, 100_000);
            if stats.guards == Guards::Install {
                assert!(mappings_in(0..usize::MAX) < 200, "{stats:?}");
            }
            for stack in stacks.iter().step_by(9_999) {
                touch(stack);
                assert!(is_inaccessible(stack.limit().get()));
                assert!(is_inaccessible(stack.limit().get() + GUARD_BYTES_MIN - 1));
                assert!(!is_inaccessible(stack.limit().get() + guard_bytes()));
            }
        });
    }

    #[test]
    fn protected_guards_cost_two_mappings_each() {
        let mut pool = StackPool::new(Guards::Protect);
        let stacks = take_many(&mut pool, 50);
        let stats = pool.stats();
        assert_eq!((stats.guards, stats.mappings), (Guards::Protect, 102));
        let slab = pool.slabs[0].mapping.start.as_ptr().addr()..pool.slabs[0].mapping.end();
        assert!((100..=102).contains(&mappings_in(slab)));
        assert!(stacks.iter().all(|stack| is_inaccessible(stack.limit().get())));
    }

    #[test]
    fn slabs_shrink_under_an_address_space_limit_until_a_typed_error() {
        in_child(test_path!(slabs_shrink_under_an_address_space_limit_until_a_typed_error), || {
            let status = std::fs::read_to_string("/proc/self/statm").expect("procfs");
            let pages: u64 = status.split(' ').next().and_then(|n| n.parse().ok()).expect("a number of pages");
            let maximum = getrlimit(Resource::As).maximum;
            let current = Some(pages * rustix::param::page_size() as u64 + (100 << 20));
            setrlimit(Resource::As, Rlimit { current, maximum }).expect("a limit may be lowered");

            let mut pool = StackPool::default();
            let mut stacks = Vec::with_capacity(1000);
            let error = loop {
                match pool.take(STACK_BYTES_DEFAULT) {
                    Ok(stack) => stacks.push(stack),
                    Err(error) => break error,
                }
            };
            // An eighth of what they take is left: 355 stacks of 256 KiB fit into 100 MiB. Slabs of 16, 32 and 64 MiB would
            // have stopped at 192.
            assert!((340..360).contains(&stacks.len()), "{} stacks", stacks.len());
            assert!(
                matches!(&error, StackError::OutOfMemory { refused: Refused::Slab, source, .. }
                    if source.raw_os_error() == Some(libc::ENOMEM)),
                "{error:?}"
            );
            assert!(error.to_string().contains("RLIMIT_AS"));
            pool.give_back(stacks.pop().expect("there are some"));
            stacks.push(pool.take(STACK_BYTES_DEFAULT).expect("one was given back"));
        });
    }

    #[test]
    fn locked_memory_gets_protected_guards() {
        in_child(test_path!(locked_memory_gets_protected_guards), || {
            use rustix::mm::{MlockAllFlags, mlockall};
            if mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).is_err() {
                return; // the machine's limits do not let us lock that much
            }
            let mut pool = StackPool::default();
            let stack = pool.take(STACK_BYTES_DEFAULT).expect("64 stacks fit, or fewer");
            assert_eq!(pool.stats().guards, Guards::Protect);
            assert!(is_inaccessible(stack.limit().get()));
            pool.give_back(stack);
            assert_eq!(pool.trim(0, 1), 0);
            assert_eq!(pool.touched_free(), 1);
        });
    }

    #[test]
    fn trimming_frees_the_coldest_and_keeps_their_guards() {
        for guards in [Guards::Install, Guards::Protect] {
            let mut pool = StackPool::new(guards);
            let stacks = take_many(&mut pool, 10);
            let tops: Vec<_> = stacks.iter().map(touch).collect();
            let warmest = stacks[9].limit();
            stacks.into_iter().for_each(|stack| pool.give_back(stack));
            assert_eq!(pool.touched_free(), 10);

            assert_eq!(pool.trim(4 * STACK_BYTES_DEFAULT, 1), 1);
            assert_eq!(pool.trim(4 * STACK_BYTES_DEFAULT, usize::MAX), 5);
            assert_eq!(pool.trim(4 * STACK_BYTES_DEFAULT, usize::MAX), 0);
            assert_eq!(pool.touched_free(), 4);

            // SAFETY: the top bytes of stacks that the pool has free, on which no coroutine runs.
            let bytes: Vec<u8> = tops.iter().map(|top| unsafe { top.read() }).collect();
            assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 7, 7, 7, 7]);

            let stacks = take_many(&mut pool, 10);
            assert_eq!(stacks[0].limit(), warmest);
            assert!(stacks.iter().all(|stack| is_inaccessible(stack.limit().get())));
            assert_eq!(pool.stats().slabs, 1);
        }
    }

    #[test]
    fn large_stacks_are_trimmed_first_and_the_smallest_are_kept() {
        fn check(kept_bytes: usize, stacks_max: usize, trimmed: usize, kept: [u8; 6]) {
            let mut pool = StackPool::default();
            let sizes = [64 << 10, 64 << 10, 256 << 10, 1 << 20, 1 << 20, 64 << 20];
            let stacks = sizes.map(|bytes| pool.take(bytes).expect("address space for the test"));
            let tops = stacks.each_ref().map(touch);
            stacks.into_iter().for_each(|stack| pool.give_back(stack));
            assert_eq!(pool.trim(kept_bytes, stacks_max), trimmed);
            // SAFETY: the top bytes of stacks that the pool has free, on which no coroutine runs.
            assert_eq!(tops.map(|top| unsafe { top.read() } / 7), kept, "{kept_bytes} {stacks_max}");
            assert_eq!(pool.touched_free(), 6 - trimmed);
            // Trimmed or not, each is handed out again, and no other.
            let again = sizes.map(|bytes| pool.take(bytes).expect("it is there"));
            assert_eq!(again.each_ref().map(Stack::size_bytes), sizes);
            assert!(again.iter().all(|stack| tops.contains(&touch(stack))));
        }
        check(usize::MAX, usize::MAX, 0, [1; 6]);
        check(3 << 20, usize::MAX, 1, [1, 1, 1, 1, 1, 0]);
        check(2 << 20, usize::MAX, 2, [1, 1, 1, 0, 1, 0]);
        check(384 << 10, usize::MAX, 3, [1, 1, 1, 0, 0, 0]);
        check(64 << 10, 4, 4, [1, 1, 0, 0, 0, 0]);
        check(64 << 10, usize::MAX, 5, [0, 1, 0, 0, 0, 0]);
        check(0, usize::MAX, 6, [0; 6]);
    }

    #[test]
    fn a_stack_that_was_trimmed_counts_as_touched_once_it_was_used_again() {
        let mut pool = StackPool::default();
        take_many(&mut pool, 8).into_iter().for_each(|stack| pool.give_back(stack));
        assert_eq!(pool.trim(0, usize::MAX), 8);
        assert_eq!((pool.touched_free(), pool.spare(0)), (0, 0));
        let stacks = take_many(&mut pool, 3);
        let tops: Vec<_> = stacks.iter().map(touch).collect();
        stacks.into_iter().for_each(|stack| pool.give_back(stack));
        assert_eq!((pool.touched_free(), pool.spare(STACK_BYTES_DEFAULT)), (3, 2));
        assert_eq!(pool.trim(0, usize::MAX), 3);
        // SAFETY: the top bytes of stacks that the pool has free, on which no coroutine runs.
        assert!(tops.iter().all(|top| unsafe { top.read() } == 0));
        assert_eq!(pool.stats().slabs, 1);
    }

    /// Writes a word so many bytes below the top, as a dhaga of this site that went so deep.
    fn use_stack(stack: &Stack, bytes: usize, site: &'static Location<'static>) {
        stack.set_label(None, site);
        let word = ptr::with_exposed_provenance_mut::<usize>(stack.usable().end - bytes);
        // SAFETY: a word of a stack that we hold and that no coroutine runs on.
        unsafe { word.write(7) };
    }

    /// Two places.
    fn sites() -> [&'static Location<'static>; 2] {
        #[track_caller]
        fn here() -> &'static Location<'static> {
            Location::caller()
        }
        [here(), here()]
    }

    #[test]
    fn samples_tell_how_deep_the_one_dhaga_went() {
        let [first, second] = sites();
        let mut pool = StackPool::default();
        // The first stack is measured, the second not; then each is used by the other site, less deep.
        let stacks = take_many(&mut pool, 2);
        let (sampled, other) = (stacks[0].limit(), stacks[1].limit());
        stacks.iter().for_each(|stack| use_stack(stack, 200_000, first));
        stacks.into_iter().for_each(|stack| pool.give_back(stack));
        let found = pool.high_water.sites();
        assert_eq!((found.len(), found[0].used_bytes, found[0].samples), (1, 200_000, 1));
        assert_eq!((found[0].site, found[0].stack_bytes), (first, STACK_BYTES_DEFAULT));

        let stacks = take_many(&mut pool, 2);
        assert_eq!([stacks[0].limit(), stacks[1].limit()], [other, sampled]);
        stacks.iter().for_each(|stack| use_stack(stack, 5_000, second));
        stacks.into_iter().for_each(|stack| pool.give_back(stack));
        let found = pool.high_water.sites();
        assert_eq!((found[0].used_bytes, found[1].used_bytes), (200_000, 5_000), "no trace of who was there before");
        assert_eq!(pool.stats().in_use, 0);
    }

    #[test]
    fn few_stacks_are_measured_and_never_none() {
        let mut pool = StackPool::default();
        let mut taken = 0;
        let counts = [1, 10, 100, 1000, 10_000, 100_000].map(|count| {
            while taken < count {
                let stack = pool.take(STACK_BYTES_DEFAULT).expect("address space for the test");
                stack.set_label(None, Location::caller());
                pool.give_back(stack);
                taken += 1;
            }
            pool.high_water.sites()[0].samples
        });
        assert_eq!(counts, [1, 3, 6, 9, 13, 35]);
    }

    #[test]
    fn a_large_stack_is_measured_to_its_bottom() {
        let mut pool = StackPool::default();
        let stack = pool.take(64 << 20).expect("address space for the test");
        let deep = stack.usable().len();
        use_stack(&stack, 16, Location::caller());
        use_stack(&stack, deep, Location::caller());
        pool.give_back(stack);
        assert_eq!(pool.high_water.sites()[0].used_bytes, deep);
    }

    #[test]
    fn what_fits_in_the_top_page_counts_as_a_page() {
        let mut pool = StackPool::default();
        let stack = pool.take(STACK_BYTES_DEFAULT).expect("address space for the test");
        use_stack(&stack, 16, Location::caller());
        pool.give_back(stack);
        assert_eq!(pool.high_water.sites()[0].used_bytes, rustix::param::page_size());
    }

    #[test]
    fn a_pool_unmaps_what_is_not_in_use_and_nothing_else() {
        let mut pool = StackPool::default();
        let small = pool.take(STACK_BYTES_DEFAULT).expect("address space for the test");
        let large = pool.take(1 << 20).expect("address space");
        let (kept, gone) = (small.limit().get(), large.limit().get());
        pool.give_back(large);
        drop(pool);
        touch(&small);
        assert!(stack_around(kept + guard_bytes()).is_some());
        assert!(stack_around(gone + guard_bytes()).is_none());
    }

    #[test]
    #[should_panic(expected = "the pool that handed it out")]
    fn a_stack_of_another_pool_is_refused() {
        let stack = take_many(&mut StackPool::default(), 1).remove(0);
        let mut other = StackPool::default();
        let _mine = take_many(&mut other, 1);
        other.give_back(stack);
    }
}
