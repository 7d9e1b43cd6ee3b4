//! Where an unstarted dhaga goes: here, to whoever is idle, or to who has the fewest.

use super::Worker;
use crate::job::Job;
use crate::run_queue::Injector;
use crate::thieves::shrink_if_emptied;

/// A worker with fewer live dhagas never sends new ones away: the mean of small numbers says nothing.
const PLACEMENT_LIVE_MIN: usize = 8;
/// So many that a dhaga spawned without giving way are shared at once: a few times what it costs to wake a worker.
const SHARED_LOT: usize = 512;
/// Unstarted dhagas that a worker takes back at once from those that it has shared: a few microseconds of work at least.
const TAKEN_BACK_MAX: usize = 16;
/// What a worker may have above the mean before it sends new ones away: a few, or this part of the mean.
const PLACEMENT_TOLERANCE_MIN: usize = 4;
const PLACEMENT_TOLERANCE: usize = 32;
/// Starts between two looks at the load of the others.
const STARTS_PER_PLACEMENT: u32 = 16;

impl Worker {
    /// Queues an unstarted dhaga. Signals nobody: the end of the batch does, or the end of a lot of a great burst, so that
    /// others need not wait until the spawner has spawned them all.
    #[inline(always)]
    pub(crate) fn push_fresh(&self, job: Job) {
        let mut fresh = self.fresh.borrow_mut();
        fresh.push_back(job);
        if fresh.len() >= SHARED_LOT && self.shared.workers > 1 {
            drop(fresh);
            self.share_lot();
        }
    }

    #[cold]
    fn share_lot(&self) {
        self.publish_fresh();
        if !self.has_shared_lot.replace(true) {
            self.shared.wake_thief();
        }
    }

    /// Queues a dhaga that must start on this worker.
    pub(crate) fn push_local(&self, job: Job) {
        self.local.borrow_mut().push_back(job);
    }

    /// As [`Worker::push_local`], whether there is room for it or not.
    pub(crate) fn push_at_any_rate(&self, job: Job) {
        if !self.take_credit() {
            self.shared.overdraw_credit();
        }
        self.push_local(job);
    }

    pub(super) fn receive(&self, job: Job) {
        self.push_fresh(job);
        self.set_arrived(self.arrived.get() + 1);
        self.injector.note_arrival();
    }

    fn set_arrived(&self, count: usize) {
        self.arrived.set(count);
        self.publish_live();
    }

    /// Step 4: what this batch did not start, idle workers may take; and others learn how many wait here.
    pub(super) fn share_unstarted(&self) {
        self.publish_live();
        if self.shared.workers < 2 {
            return;
        }
        self.publish_fresh();
        self.has_shared_lot.set(false);
        if self.injector.unstarted_len() > 0 {
            self.shared.wake_thief();
        }
    }

    fn publish_fresh(&self) {
        let mut fresh = self.fresh.borrow_mut();
        if !fresh.is_empty() {
            self.injector.publish(fresh.drain(..));
            shrink_if_emptied(&mut fresh);
            self.taken_back.set(0);
            self.set_arrived(0);
        }
    }

    /// Takes half of what another worker has not started. Returns whether it got some.
    pub(super) fn steal(&self) -> bool {
        if self.is_stopping() {
            return false;
        }
        let others = self.shared.injectors().iter().filter(|other| !std::ptr::eq(**other, self.injector));
        for victim in others {
            let taken = victim.take_unstarted(|len| len.div_ceil(2), &mut self.fresh.borrow_mut());
            if taken > 0 {
                if self.shared.has_unstarted() {
                    self.shared.wake_thief();
                }
                return true;
            }
        }
        false
    }

    /// In the order of a round: those of this worker, those whom a callback starts, those that may start anywhere. What has come
    /// since the round began keeps out none that was there.
    pub(super) fn next_unstarted(&self) -> Option<Job> {
        let left = self.unstarted_left.get();
        let local = if left >= self.behind_local.get() { self.pop_local() } else { None };
        local
            .or_else(|| if left >= self.behind_called.get() { self.start_by_callback() } else { None })
            .or_else(|| self.next_to_start_here())
            // Others have taken those whose turn it was.
            .or_else(|| self.pop_local())
            .or_else(|| self.start_by_callback())
    }

    /// Those who are unstarted now are a round.
    pub(super) fn begin_round_of_unstarted(&self) {
        let shareable = self.count_shareable();
        let behind_local = shareable + self.called_len();
        self.behind_called.set(shareable);
        self.behind_local.set(behind_local);
        self.unstarted_left.set(behind_local + self.local.borrow().len());
    }

    #[inline(always)]
    fn pop_local(&self) -> Option<Job> {
        self.local.borrow_mut().pop_front()
    }

    fn start_by_callback(&self) -> Option<Job> {
        while let Some(callback) = self.pop_called() {
            callback.on_ready();
            let job = self.pop_local();
            if job.is_some() {
                return job;
            }
        }
        None
    }

    /// The next one that may start anywhere and belongs here; those before it are sent to where they belong.
    fn next_to_start_here(&self) -> Option<Job> {
        loop {
            let job = self.next_shareable()?;
            match self.placement() {
                Some(other) => match other.push_start(job) {
                    // Its reservation goes with it: credit is returned where a dhaga ends, and the lots even out.
                    Ok(()) => {}
                    Err(job) => return Some(job),
                },
                None => return Some(job),
            }
        }
    }

    /// The oldest first: what was published before what is fresh.
    fn next_shareable(&self) -> Option<Job> {
        let mut fresh = self.fresh.borrow_mut();
        if self.taken_back.get() == 0 && self.injector.unstarted_len() > 0 {
            // Some at a time, for the sake of the lock, and never all, for the sake of the thieves.
            let spawned_since = fresh.len();
            let taken = self.injector.take_unstarted(|len| len.div_ceil(2).min(TAKEN_BACK_MAX), &mut fresh);
            fresh.rotate_left(spawned_since);
            self.taken_back.set(taken);
        }
        let job = fresh.pop_front()?;
        self.taken_back.set(self.taken_back.get().saturating_sub(1));
        shrink_if_emptied(&mut fresh);
        self.arrived.set(self.arrived.get().saturating_sub(1));
        Some(job)
    }

    /// Where a new dhaga belongs, if not here. Asked again after so many starts only, because the answer lies in lines that
    /// other workers write.
    #[inline(always)]
    fn placement(&self) -> Option<&'static Injector> {
        if self.shared.workers < 2 {
            return None;
        }
        if self.placed_left.get() == 0 {
            self.place_next();
        }
        self.placed_left.set(self.placed_left.get() - 1);
        self.placed_on.get()
    }

    /// Decides for the next starts: a worker with more than its share of live dhagas sends the surplus to the least loaded.
    ///
    /// What counts are dhagas that wait, since those that start and end within a turn are not there when it is over. So
    /// the tolerance can be small, and is there for the lateness of the counts.
    #[inline(never)]
    fn place_next(&self) {
        self.placed_on.set(None);
        self.placed_left.set(STARTS_PER_PLACEMENT);
        self.publish_live();
        let (workers, live) = (self.shared.workers, self.injector.load());
        if live < PLACEMENT_LIVE_MIN || self.is_stopping() {
            return;
        }
        let total: usize = self.shared.injectors().iter().map(|injector| injector.load()).sum();
        let mean = total / workers;
        if live <= mean + PLACEMENT_TOLERANCE_MIN.max(mean / PLACEMENT_TOLERANCE) {
            return;
        }
        let surplus = u32::try_from(live - mean).unwrap_or(u32::MAX);
        self.placed_on.set(self.shared.least_loaded().filter(|other| !std::ptr::eq(*other, self.injector)));
        self.placed_left.set(surplus.clamp(1, STARTS_PER_PLACEMENT));
    }

    pub(super) fn count_unstarted(&self) -> usize {
        self.local.borrow().len() + self.called_len() + self.count_shareable()
    }

    fn count_shareable(&self) -> usize {
        self.fresh.borrow().len() + self.injector.unstarted_len()
    }

    #[inline(always)]
    pub(super) fn has_unstarted(&self) -> bool {
        !self.local.borrow().is_empty()
            || self.called_len() > 0
            || !self.fresh.borrow().is_empty()
            || self.injector.unstarted_len() > 0
    }

    pub(super) fn publish_live(&self) {
        self.injector.set_live(self.tasks.borrow().len() + self.arrived.get());
    }
}
