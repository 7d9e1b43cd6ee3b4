//! What code finds around it without an argument: a deadline, and values that a caller left for all below it.
//!
//! Both are handed down, to inner code and to dhagas that are spawned, and never up. A deadline only gets earlier on the
//! way down. What a dhaga inherited is shared with its siblings by one pointer, and most inherit nothing.
//!
//! ```text
//!   within(3 s) ──▶ REQUEST.with("r-17") ──▶ within(1 s) ──▶ spawn
//!   3 s              3 s                      1 s             1 s
//!   -                REQUEST = "r-17"         REQUEST         REQUEST
//! ```

use std::any::Any;
use std::mem::ManuallyDrop;
use std::panic::Location;
use std::sync::Arc;
use std::time::Instant;

use crate::interrupt::Interrupt;

/// An instant after which fallible waits fail, and where it was set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    pub(crate) set_at: &'static Location<'static>,
}

impl Deadline {
    /// What a wait is told that meets it.
    pub(crate) fn interrupt(self) -> Interrupt {
        Interrupt::DeadlineExceeded { set_at: self.set_at }
    }

    /// The earlier of two; of equal ones the outer, since it is the outer code that is out of time.
    pub(crate) fn earlier(outer: Option<Self>, inner: Option<Self>) -> Option<Self> {
        match (outer, inner) {
            (Some(outer), Some(inner)) => Some(if inner.at < outer.at { inner } else { outer }),
            (outer, inner) => outer.or(inner),
        }
    }
}

/// All that is handed down.
#[derive(Clone, Default)]
pub(crate) struct Ambient {
    pub(crate) deadline: Option<Deadline>,
    pub(crate) values: Values,
    /// The innermost `turn::Region`.
    pub(crate) region: Holder,
}

impl Ambient {
    pub(crate) fn is_empty(&self) -> bool {
        self.deadline.is_none() && self.values.0.is_none() && self.region.is_nothing()
    }
}

/// A hold on the innermost region. That of the frame in which the region's code runs is not counted, for whoever runs it holds the
/// region longer: most requests have no other, and are served without touching the count.
#[derive(Default)]
pub(crate) enum Holder {
    #[default]
    Nothing,
    Counted(Arc<dyn Any + Send + Sync>),
    /// As it lies there it is never dropped.
    Lent(ManuallyDrop<Arc<dyn Any + Send + Sync>>),
}

impl Holder {
    /// A hold that is not counted.
    ///
    /// # Safety
    ///
    /// `region` is held for as long as this.
    #[inline]
    pub(crate) unsafe fn lend<T: Send + Sync + 'static>(region: &Arc<T>) -> Self {
        // SAFETY: the pointer comes from an `Arc` that lives on, by the caller's promise, and nobody drops this one.
        let lent: Arc<T> = unsafe { Arc::from_raw(Arc::as_ptr(region)) };
        Self::Lent(ManuallyDrop::new(lent))
    }

    #[inline]
    pub(crate) fn share(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        match self {
            Self::Nothing => None,
            Self::Counted(region) => Some(region.clone()),
            Self::Lent(region) => Some(Arc::clone(region)),
        }
    }

    #[inline]
    fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }
}

impl Clone for Holder {
    #[inline]
    fn clone(&self) -> Self {
        self.share().map_or(Self::Nothing, Self::Counted)
    }
}

/// Values by key, innermost first: a list that inner code extends and shares.
#[derive(Clone, Default)]
pub(crate) struct Values(Option<Arc<Entry>>);

struct Entry {
    key: u64,
    value: Arc<dyn Any + Send + Sync>,
    outer: Values,
}

impl Values {
    pub(crate) fn with(&self, key: u64, value: Arc<dyn Any + Send + Sync>) -> Self {
        // What it hides is left out: else code that sets the same keys for each child would make the list longer with every
        // generation.
        Self(Some(Arc::new(Entry { key, value, outer: self.without(key) })))
    }

    /// The same list if the key is not there, otherwise one that shares what comes after it.
    fn without(&self, key: u64) -> Self {
        let Some(hidden) = self.entries().position(|entry| entry.key == key) else { return self.clone() };
        let before: Vec<_> = self.entries().take(hidden).collect();
        let after = self.entries().nth(hidden).map(|entry| entry.outer.clone()).unwrap_or_default();
        before.into_iter().rev().fold(after, |outer, entry| {
            Self(Some(Arc::new(Entry { key: entry.key, value: entry.value.clone(), outer })))
        })
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        std::iter::successors(self.0.as_deref(), |entry| entry.outer.0.as_deref())
    }

    pub(crate) fn get(&self, key: u64) -> Option<&Arc<dyn Any + Send + Sync>> {
        self.entries().find(|entry| entry.key == key).map(|entry| &entry.value)
    }
}

impl Drop for Values {
    /// In a loop: the list may be long, and the stack is short.
    fn drop(&mut self) {
        let mut next = self.0.take();
        while let Some(entry) = next {
            next = Arc::into_inner(entry).and_then(|mut last| last.outer.0.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn text(values: &Values, key: u64) -> Option<&str> {
        values.get(key).and_then(|value| value.downcast_ref::<&str>()).copied()
    }

    #[test]
    fn the_innermost_value_of_a_key_counts() {
        let outer = Values::default().with(1, Arc::new("a")).with(2, Arc::new("b"));
        let inner = outer.with(1, Arc::new("c"));
        assert_eq!([1, 2, 3].map(|key| text(&inner, key)), [Some("c"), Some("b"), None]);
        assert_eq!([1, 2, 3].map(|key| text(&outer, key)), [Some("a"), Some("b"), None]);
    }

    #[test]
    fn a_list_of_a_million_is_dropped_without_recursion() {
        // As `with` makes it, without its look at all keys.
        let add = |outer, key: u64| Values(Some(Arc::new(Entry { key, value: Arc::new(key), outer })));
        let values = (0..1_000_000).fold(Values::default(), add);
        assert_eq!(values.get(0).and_then(|value| value.downcast_ref()), Some(&0_u64));
    }

    #[test]
    fn keys_that_are_set_again_and_again_take_one_entry_each() {
        for keys in [1, 2, 7] {
            let values = (0..1000).fold(Values::default(), |values, round| values.with(round % keys, Arc::new(round)));
            assert_eq!(values.entries().count() as u64, keys);
            let found = values.get(3 % keys).and_then(|value| value.downcast_ref::<u64>()).copied();
            assert_eq!(found.map(|round| round % keys), Some(3 % keys));
        }
    }

    #[test]
    fn the_earlier_deadline_counts_and_of_equal_ones_the_outer() {
        let (now, here) = (Instant::now(), Location::caller());
        let deadline = |millis, set_at| Some(Deadline { at: now + Duration::from_millis(millis), set_at });
        let other = Location::caller();
        let check = |outer, inner, expected: Option<Deadline>| {
            let found = Deadline::earlier(outer, inner);
            assert_eq!(found.map(|found| (found.at, found.set_at)), expected.map(|found| (found.at, found.set_at)));
        };
        check(None, None, None);
        check(deadline(1, here), None, deadline(1, here));
        check(None, deadline(1, here), deadline(1, here));
        check(deadline(1, here), deadline(2, other), deadline(1, here));
        check(deadline(2, here), deadline(1, other), deadline(1, other));
        check(deadline(1, here), deadline(1, other), deadline(1, here));
    }
}
