//! Which stack an address lies in, for the fault handler: it takes no lock and does not allocate.

use std::ops::Range;
use std::panic::Location;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::size::{StackSize, guard_bytes};
use super::slot::{IS_LENT, IS_OF_THREAD, NAME_BYTES, Slot};

/// The stack in whose guard an address lies.
pub struct GuardHit {
    name: [u8; NAME_BYTES],
    /// Where its dhaga was spawned, or the stack was lent, if [`Stack::set_label`] or its like was ever called.
    pub site: Option<&'static Location<'static>>,
    /// Size of the stack, guard included.
    pub stack_bytes: usize,
}

impl GuardHit {
    /// The name of its dhaga, empty when it has none.
    pub fn name(&self) -> &[u8] {
        let len = usize::from(self.name[0] & !(IS_LENT | IS_OF_THREAD));
        self.name.get(1..=len).unwrap_or(&[])
    }

    /// Whether it is not the stack of a dhaga, but was lent to a stretch of code.
    pub fn is_lent(&self) -> bool {
        self.name[0] & IS_LENT != 0
    }

    /// Whether it was lent to a plain thread.
    pub fn is_of_thread(&self) -> bool {
        self.name[0] & IS_OF_THREAD != 0
    }
}

/// Finds the stack in whose guard `address` lies. Takes no lock and does not allocate, so a signal handler may call it.
///
/// # Safety
///
/// Either the stack around `address` is out and stays out during the call (it is the one that the calling thread runs
/// on), or the process is about to die: the slab of another thread's stack may be unmapped meanwhile, and then this
/// faults.
pub unsafe fn guard_hit(address: usize) -> Option<GuardHit> {
    let place = regions().find_map(|region| region.place(address))?;
    if address >= place.usable.start {
        return None;
    }
    // SAFETY: the region is registered, so its array of slots has an element for each stack of its range, and by the
    // caller's promise it is still mapped.
    let slot = unsafe { &*place.slots.add(place.index) };
    Some(GuardHit { name: slot.name(), site: slot.site(), stack_bytes: place.stack_bytes })
}

/// The usable part of the stack of ours that `address` lies in, whichever thread it belongs to.
#[allow(dead_code, reason = "for the adviser on stack sizes")]
pub fn stack_around(address: usize) -> Option<Range<usize>> {
    let place = regions().find_map(|region| region.place(address))?;
    Some(place.usable)
}

/// Address space of the stack of ours that both addresses lie in, guard included.
pub fn stack_bytes_around(address: usize, other: usize) -> Option<usize> {
    let place = regions().find_map(|region| region.place(address))?;
    place.usable.contains(&other).then_some(place.stack_bytes)
}

/// A slab as the fault handler sees it. Records are never freed, since a handler may be reading them; a retired one
/// serves the next slab.
pub(super) struct Region {
    /// End of its last stack; zero while the record serves no slab.
    end: AtomicUsize,
    /// Low end of its first stack.
    first: AtomicUsize,
    stack_bytes: AtomicUsize,
    slots: AtomicPtr<Slot>,
    next: Option<&'static Region>,
}

/// The newest record, from which all others can be reached.
static NEWEST_REGION: AtomicPtr<Region> = AtomicPtr::new(ptr::null_mut());

/// Records that serve no slab. Its lock is also held to change the list.
static RETIRED_REGIONS: Mutex<Vec<&'static Region>> = Mutex::new(Vec::new());

/// Where an address lies.
struct Place {
    slots: *const Slot,
    index: usize,
    usable: Range<usize>,
    stack_bytes: usize,
}

fn newest_region() -> Option<&'static Region> {
    // SAFETY: the pointer is null or was made from a leaked box in `Region::publish`; the load acquires what was written
    // to it before.
    unsafe { NEWEST_REGION.load(Ordering::Acquire).as_ref() }
}

fn regions() -> impl Iterator<Item = &'static Region> {
    std::iter::successors(newest_region(), |region| region.next)
}

impl Region {
    pub(super) fn register(stacks: Range<usize>, size: StackSize, slots: NonNull<Slot>) -> &'static Region {
        let mut retired = RETIRED_REGIONS.lock().unwrap_or_else(PoisonError::into_inner);
        let region = retired.pop().unwrap_or_else(Region::publish);
        drop(retired);
        region.first.store(stacks.start, Ordering::Relaxed);
        region.stack_bytes.store(size.bytes(), Ordering::Relaxed);
        region.slots.store(slots.as_ptr(), Ordering::Relaxed);
        region.end.store(stacks.end, Ordering::Release);
        region
    }

    /// Adds an empty record to the list; the caller holds the lock of `RETIRED_REGIONS`.
    fn publish() -> &'static Region {
        let region = Box::leak(Box::new(Region {
            end: AtomicUsize::new(0),
            first: AtomicUsize::new(0),
            stack_bytes: AtomicUsize::new(0),
            slots: AtomicPtr::new(ptr::null_mut()),
            next: newest_region(),
        }));
        NEWEST_REGION.store(region, Ordering::Release);
        region
    }

    pub(super) fn retire(&'static self) {
        self.end.store(0, Ordering::Release);
        let mut retired = RETIRED_REGIONS.lock().unwrap_or_else(PoisonError::into_inner);
        retired.push(self);
    }

    /// Where `address` lies in this slab's stacks.
    fn place(&self, address: usize) -> Option<Place> {
        let end = self.end.load(Ordering::Acquire);
        let first = self.first.load(Ordering::Acquire);
        let stack_bytes = self.stack_bytes.load(Ordering::Acquire);
        let slots = self.slots.load(Ordering::Acquire);
        // A record that changed under our hands belonged to a slab without stacks in use, so not to this address.
        if !(first..end).contains(&address) || self.end.load(Ordering::Relaxed) != end {
            return None;
        }
        let index = (address - first).checked_div(stack_bytes)?;
        let limit = first + index * stack_bytes;
        Some(Place { slots, index, usable: limit + guard_bytes()..limit + stack_bytes, stack_bytes })
    }
}

#[cfg(test)]
mod tests {
    use corosensei::stack::Stack as _;

    use super::super::tests::take_many;
    use super::super::{STACK_BYTES_DEFAULT, Stack, StackPool};
    use super::*;

    #[test]
    fn labels_are_cut_at_a_character() {
        fn check(stack: &Stack, name: Option<&str>, kept: &str) {
            let site = Location::caller();
            stack.set_label(name, site);
            // SAFETY: the stack is out, we hold it.
            let hit = unsafe { guard_hit(stack.limit().get() + 5) }.expect("that is its guard");
            assert_eq!(hit.name(), kept.as_bytes());
            assert!(ptr::eq(hit.site.expect("a site was set"), site));
            assert_eq!(hit.stack_bytes, STACK_BYTES_DEFAULT);
        }
        let mut pool = StackPool::default();
        let stack = &take_many(&mut pool, 20)[19];
        check(stack, Some("indexer"), "indexer");
        check(stack, Some("indexers"), "indexers");
        check(stack, None, "");
        check(stack, Some(&"x".repeat(1000)), &"x".repeat(39));
        check(stack, Some(&"ü".repeat(40)), &"ü".repeat(19));
        // SAFETY: the stack is out, we hold it.
        let above = unsafe { guard_hit(stack.limit().get() + guard_bytes()) };
        assert!(above.is_none());
    }
}
