//! What the workers of one runtime share.

use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::front::Front;
use crate::job::Job;
use crate::phase::{AtomicPhase, Phase};
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
    phase: AtomicPhase,
    /// Who waits for the end of a phase of the shutdown.
    observers: Mutex<Vec<Observer>>,
    /// Workers whose loop has ended.
    ended: AtomicUsize,
    /// Dhagas that an orderly shutdown does not wait for: how many live in the low half, how often that has changed in the
    /// high half.
    background: AtomicU64,
    /// Dhagas that may still be spawned; negative when some were started beyond the limit.
    credit: AtomicIsize,
    pub(crate) workers: usize,
    pub(crate) tasks_max: usize,
    pub(crate) stack_bytes: usize,
    /// Polls without blocking before it sleeps; off when workers outnumber cores.
    pub(crate) dozes: bool,
}

/// Looks whether what it waits for has come. Called under a lock: it may push, and nothing else.
type Observer = Box<dyn Fn() + Send + Sync>;

/// One more background dhaga, and one change.
const BACKGROUND_BEGINS: u64 = (1 << 32) + 1;
/// One less, and one change: the low half carries into the high one.
const BACKGROUND_ENDS: u64 = (1 << 32) - 1;

/// Credit of a runtime of which no dhaga lives.
fn full_credit(tasks_max: usize) -> isize {
    isize::try_from(tasks_max).unwrap_or(isize::MAX)
}

impl Shared {
    pub(crate) fn new(workers: usize, tasks_max: usize, stack_bytes: usize, dozes: bool) -> Self {
        Self {
            injectors: std::sync::OnceLock::new(),
            fronts: std::sync::OnceLock::new(),
            thieves: Thieves::new(),
            calls_back: AtomicBool::new(false),
            phase: AtomicPhase::new(),
            observers: Mutex::default(),
            ended: AtomicUsize::new(0),
            background: AtomicU64::new(0),
            credit: AtomicIsize::new(full_credit(tasks_max)),
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
        // What the dhagas that it was drawn for have done comes before.
        self.credit.fetch_add(count as isize, Ordering::SeqCst);
    }

    /// Dhagas that live, started or not. A snapshot of counters that move meanwhile.
    pub(crate) fn tasks(&self) -> usize {
        (0..self.injectors().len()).map(|worker| self.tasks_of(worker)).sum()
    }

    /// As [`Shared::tasks`], of one worker.
    pub(crate) fn tasks_of(&self, worker: usize) -> usize {
        let injector = self.injectors()[worker];
        injector.load() + injector.unstarted_len()
    }

    /// The worker with the fewest live dhagas.
    pub(crate) fn least_loaded(&self) -> Option<&'static Injector> {
        self.injectors().iter().copied().min_by_key(|injector| injector.load() + injector.unstarted_len())
    }

    pub(super) fn end_worker(&self) {
        self.ended.fetch_add(1, Ordering::SeqCst);
        self.notify();
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

/// The shutdown.
impl Shared {
    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(crate) fn is_shutting_down(&self) -> bool {
        self.phase() != Phase::Running
    }

    /// Goes on to a phase, which the workers are yet to be told.
    pub(crate) fn advance(&self, phase: Phase) {
        self.phase.advance(phase);
    }

    /// Whether nothing is left that the phase waits for.
    ///
    /// What lives is known by the credit that is out: it is drawn before a dhaga is queued and returned after it has ended,
    /// wherever it went meanwhile, and during a shutdown workers keep none at the end of a turn. So it is never less than
    /// what lives, and exact when all have returned theirs.
    pub(crate) fn is_over(&self, phase: Phase) -> bool {
        match phase {
            Phase::Running => false,
            Phase::Draining => self.is_only_background_left(),
            Phase::Cancelling => self.reserved() == 0,
            Phase::Unwinding => self.live_workers() == 0,
        }
    }

    /// Background dhagas are counted in after their credit is drawn and out before it is returned. If no count has changed
    /// around the look at the credit, the two were of one moment.
    fn is_only_background_left(&self) -> bool {
        let before = self.background.load(Ordering::SeqCst);
        let reserved = self.reserved();
        reserved == (before & u64::from(u32::MAX)) as isize && self.background.load(Ordering::SeqCst) == before
    }

    fn reserved(&self) -> isize {
        full_credit(self.tasks_max) - self.credit.load(Ordering::SeqCst)
    }

    /// Workers whose loop has not ended.
    pub(crate) fn live_workers(&self) -> usize {
        self.injectors().len().saturating_sub(self.ended.load(Ordering::SeqCst))
    }

    /// A dhaga for which credit was drawn is about to be queued.
    #[inline(always)]
    pub(crate) fn note_spawn(&self, job: &Job) {
        if job.head().is_background() {
            self.background.fetch_add(BACKGROUND_BEGINS, Ordering::SeqCst);
        }
    }

    /// It never ran, and its credit is about to be returned.
    pub(crate) fn note_end(&self, job: &Job) {
        if job.head().is_background() {
            self.end_background();
        }
    }

    #[cold]
    pub(super) fn end_background(&self) {
        self.background.fetch_add(BACKGROUND_ENDS, Ordering::SeqCst);
    }

    /// Calls `observer` whenever a phase may be over, from now on.
    pub(crate) fn observe(&self, observer: impl Fn() + Send + Sync + 'static) {
        self.observers.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(observer));
    }

    pub(super) fn notify(&self) {
        self.observers.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|observer| observer());
    }
}

/// While a worker or a handle of the runtime is there, it may look at all injectors, and must not find a stranger's.
impl Drop for Shared {
    fn drop(&mut self) {
        self.injectors().iter().for_each(|injector| injector.retire());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(word: u64) -> u64 {
        word & u64::from(u32::MAX)
    }

    #[test]
    fn background_dhagas_are_counted_and_each_change_is_seen() {
        let shared = Shared::new(1, 10, 0, false);
        let look = || shared.background.load(Ordering::SeqCst);
        let mut seen = vec![look()];
        for (change, expected) in
            [(BACKGROUND_BEGINS, 1), (BACKGROUND_BEGINS, 2), (BACKGROUND_ENDS, 1), (BACKGROUND_ENDS, 0)]
        {
            shared.background.fetch_add(change, Ordering::SeqCst);
            assert_eq!(live(look()), expected);
            assert!(!seen.contains(&look()), "a change cannot be told from none");
            seen.push(look());
        }
    }

    #[test]
    fn a_drain_is_over_when_only_background_is_left() {
        let shared = Shared::new(1, 10, 0, false);
        let check =
            |expected| assert_eq!([Phase::Draining, Phase::Cancelling].map(|phase| shared.is_over(phase)), expected);
        check([true, true]);
        assert_eq!(shared.draw_credit(2), 2);
        check([false, false]);
        shared.background.fetch_add(BACKGROUND_BEGINS, Ordering::SeqCst);
        shared.return_credit(1);
        check([true, false]);
        shared.end_background();
        shared.return_credit(1);
        check([true, true]);
    }
}
