//! What the workers of one runtime share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};

use crate::front::Front;
use crate::run_queue::Injector;
use crate::thieves::Thieves;

/// What the workers of one runtime share.
pub(crate) struct Shared {
    /// The doors of all workers, in their order; filled once all have started.
    pub(crate) injectors: std::sync::OnceLock<Box<[&'static Injector]>>,
    /// Their fronts, in the same order.
    pub(crate) fronts: std::sync::OnceLock<Box<[Arc<Front>]>>,
    pub(super) thieves: Thieves,
    /// There are, or were, sources with callbacks.
    calls_back: AtomicBool,
    /// Workers whose loop has ended.
    ended: AtomicUsize,
    /// Dhagas that may still be spawned; negative when some were started beyond the limit.
    credit: AtomicIsize,
    pub(crate) workers: usize,
    pub(crate) tasks_max: usize,
    pub(crate) stack_bytes: usize,
    /// Polls without blocking before it sleeps; off when workers outnumber cores.
    pub(crate) dozes: bool,
}

impl Shared {
    pub(crate) fn new(workers: usize, tasks_max: usize, stack_bytes: usize, dozes: bool) -> Self {
        Self {
            injectors: std::sync::OnceLock::new(),
            fronts: std::sync::OnceLock::new(),
            thieves: Thieves::new(),
            calls_back: AtomicBool::new(false),
            ended: AtomicUsize::new(0),
            credit: AtomicIsize::new(isize::try_from(tasks_max).unwrap_or(isize::MAX)),
            workers,
            tasks_max,
            stack_bytes,
            dozes,
        }
    }

    pub(crate) fn injectors(&self) -> &[&'static Injector] {
        self.injectors.get().map_or(&[], |list| list)
    }

    /// Reserves room for `wanted` dhagas or fewer. Returns for how many there was room.
    pub(crate) fn draw_credit(&self, wanted: usize) -> usize {
        let mut drawn = 0;
        let _ = self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            drawn = wanted.min(usize::try_from(left).unwrap_or(0));
            Some(left - drawn as isize)
        });
        drawn
    }

    /// Reserves room for a dhaga that must not be refused.
    pub(super) fn overdraw_credit(&self) {
        self.credit.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn credit(&self) -> usize {
        usize::try_from(self.credit.load(Ordering::Relaxed)).unwrap_or(0)
    }

    pub(crate) fn return_credit(&self, count: usize) {
        self.credit.fetch_add(count as isize, Ordering::Relaxed);
    }

    /// The worker with the fewest live dhagas.
    pub(crate) fn least_loaded(&self) -> Option<&'static Injector> {
        self.injectors().iter().copied().min_by_key(|injector| injector.load() + injector.unstarted_len())
    }

    /// The last worker that ends gives the injectors back, all at once: while one lives it may look at the others', and
    /// must not find a stranger there.
    pub(super) fn end_worker(&self) {
        if self.ended.fetch_add(1, Ordering::SeqCst) + 1 == self.workers {
            self.injectors().iter().for_each(|injector| injector.retire());
        }
    }

    /// The doors and fronts of all workers.
    pub(super) fn doors(&self) -> impl Iterator<Item = (&'static Injector, &Front)> {
        let fronts = self.fronts.get().map_or(&[][..], |list| list);
        self.injectors().iter().copied().zip(fronts.iter().map(|front| &**front))
    }

    /// Whether idle workers look after the others: there is something that they could take over.
    pub(super) fn watches(&self) -> bool {
        self.workers > 1 && self.calls_back.load(Ordering::Relaxed)
    }

    /// From now on sources with callbacks are about.
    pub(crate) fn expect_callbacks(&self) {
        if !self.calls_back.load(Ordering::Relaxed) {
            self.calls_back.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn has_unstarted(&self) -> bool {
        self.injectors().iter().any(|injector| injector.unstarted_len() > 0)
    }

    pub(super) fn wake_thief(&self) {
        self.thieves.wake_one(self.injectors().iter().copied());
    }
}
