//! How deep stacks were used, by spawn site, from samples.
//!
//! A stack that is to be measured is emptied below its top page when it is taken: from then on each page there that has
//! memory was touched by this one dhaga. When it comes back, the lowest such page tells how deep it went. Both cost
//! microseconds, hence samples; a stack that is not sampled costs one subtraction. The top page is left alone: every dhaga
//! needs it, and would only fault it in again.

use std::ops::Range;
use std::panic::Location;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Spawn sites that are remembered; what others use is not. A program has fewer, and a table without a bound is none.
const SITES_MAX: usize = 512;

/// Pages that the kernel is asked about at once, a byte for each.
const PAGES_PER_QUESTION: usize = 1024;

/// How deep the dhagas of one spawn site have used their stacks, as samples found it. See
/// [`Runtime::stack_high_water`](crate::Runtime::stack_high_water).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct StackUse {
    /// Where they were spawned.
    pub site: &'static Location<'static>,
    /// Bytes that the deepest one used, of those that were measured: from the top of the stack to the lowest word that is
    /// not zero. What is less than a page counts as a page.
    pub used_bytes: usize,
    /// Address space of its stack, guard included.
    pub stack_bytes: usize,
    /// How many were measured.
    pub samples: u64,
}

/// What the samples of all workers of a runtime found.
#[derive(Default, Debug)]
pub struct HighWater {
    sites: Mutex<Vec<StackUse>>,
}

impl HighWater {
    /// Adds a sample. The larger of two stack sizes counts.
    pub(super) fn record(&self, site: &'static Location<'static>, used_bytes: usize, stack_bytes: usize) {
        let mut sites = self.lock();
        if let Some(known) = sites.iter_mut().find(|known| known.site == site) {
            known.used_bytes = known.used_bytes.max(used_bytes);
            known.stack_bytes = known.stack_bytes.max(stack_bytes);
            known.samples += 1;
        } else if sites.len() < SITES_MAX {
            sites.push(StackUse { site, used_bytes, stack_bytes, samples: 1 });
        }
    }

    /// All sites, the deepest first.
    pub fn sites(&self) -> Vec<StackUse> {
        let mut sites = self.lock().clone();
        sites.sort_by_key(|known| std::cmp::Reverse(known.used_bytes));
        sites
    }

    fn lock(&self) -> MutexGuard<'_, Vec<StackUse>> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of a stack is emptied to measure it: all but the top page.
pub(super) fn below_top_page(usable: &Range<usize>) -> Range<usize> {
    usable.start..usable.end - rustix::param::page_size()
}

/// Bytes from the end of `usable` down to its lowest word that is not zero, or to the lowest page that has memory, if that
/// holds zeros only. A page at least.
///
/// # Safety
///
/// `usable` is page-aligned and is the memory of a stack, without its guard, that nobody writes to meanwhile.
pub(super) unsafe fn depth(usable: Range<usize>) -> usize {
    let page_bytes = rustix::param::page_size();
    let Some(page) = lowest_resident(&below_top_page(&usable), page_bytes) else { return page_bytes };
    let words = (page..page + page_bytes).step_by(size_of::<usize>());
    // SAFETY: the page lies in the stack, which can be read, by the caller's promise; the address is a multiple of eight.
    let mut used = words.filter(|word| unsafe { ptr::with_exposed_provenance::<usize>(*word).read_volatile() } != 0);
    usable.end - used.next().unwrap_or(page)
}

/// The lowest page that has memory. A page that was swapped out counts as having none.
fn lowest_resident(usable: &Range<usize>, page_bytes: usize) -> Option<usize> {
    let mut is_resident = [0_u8; PAGES_PER_QUESTION];
    for start in usable.clone().step_by(PAGES_PER_QUESTION * page_bytes) {
        let bytes = (usable.end - start).min(PAGES_PER_QUESTION * page_bytes);
        let first = ptr::with_exposed_provenance_mut(start);
        // SAFETY: it reads nothing of the range, and there is room for a byte for each page of it.
        if unsafe { libc::mincore(first, bytes, is_resident.as_mut_ptr()) } != 0 {
            return None;
        }
        let pages = &is_resident[..bytes / page_bytes];
        if let Some(index) = pages.iter().position(|page| page & 1 == 1) {
            return Some(start + index * page_bytes);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::panic::Location;

    use super::*;

    #[track_caller]
    fn here() -> &'static Location<'static> {
        Location::caller()
    }

    #[test]
    fn the_deepest_sample_of_a_site_counts() {
        let high_water = HighWater::default();
        let (shallow, deep) = (here(), here());
        high_water.record(shallow, 100, 1 << 16);
        high_water.record(deep, 300, 1 << 18);
        high_water.record(deep, 200, 1 << 16);
        let found =
            high_water.sites().into_iter().map(|site| (site.site, site.used_bytes, site.stack_bytes, site.samples));
        assert_eq!(found.collect::<Vec<_>>(), [(deep, 300, 1 << 18, 2), (shallow, 100, 1 << 16, 1)]);
    }
}
