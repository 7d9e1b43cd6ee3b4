//! The futures that wait for time to pass: a waker behind each of their timers.
//!
//! They lie beside the dhagas in the worker's one table of timers, under ids that no dhaga has.

use std::time::Instant;

use slab::Slab;

use super::Worker;
use crate::reactor::{FutureWaker, WakerRef};
use crate::run_queue::{Injector, Message};
use crate::task::TaskId;
use crate::timer::TimerKey;

/// Set in the slot of a sleeper's id. A worker has fewer dhagas.
const SLEEPER: u32 = 1 << 31;

#[derive(Default)]
pub(super) struct Sleepers {
    entries: Slab<Sleeper>,
}

struct Sleeper {
    generation: u32,
    timer: TimerKey,
    waker: FutureWaker,
}

impl Sleepers {
    fn next_id(&self, generation: u32) -> TaskId {
        let slot = u32::try_from(self.entries.vacant_key()).expect("memory ends before four billion timers");
        debug_assert!(slot < SLEEPER, "memory ends before two billion timers");
        TaskId { slot: slot | SLEEPER, generation }
    }

    fn get_mut(&mut self, id: TaskId) -> Option<&mut Sleeper> {
        let sleeper = self.entries.get_mut((id.slot & !SLEEPER) as usize)?;
        (id.slot & SLEEPER != 0 && sleeper.generation == id.generation).then_some(sleeper)
    }

    fn remove(&mut self, id: TaskId) -> Option<Sleeper> {
        self.get_mut(id)?;
        Some(self.entries.remove((id.slot & !SLEEPER) as usize))
    }
}

/// A timer of a future, armed at a worker. It is disarmed with [`Worker::disarm_alarm`] there, and when it is dropped.
pub(crate) struct Alarm {
    injector: &'static Injector,
    id: TaskId,
    pub(crate) at: Instant,
}

impl Alarm {
    pub(crate) fn is_of(&self, worker: &Worker) -> bool {
        std::ptr::eq(self.injector, worker.injector)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        match super::worker() {
            Some(worker) if self.is_of(worker) => drop(worker.disarm_alarm(self.id)),
            // One that has ended has no timers either.
            _ => drop(self.injector.push(Message::Disarm(self.id))),
        }
    }
}

impl Worker {
    /// Wakes a future at `at`, from the caller's worker.
    pub(crate) fn set_alarm(&self, at: Instant, waker: WakerRef<'_>) -> Alarm {
        let waker = waker.keep();
        let mut sleepers = self.sleepers.borrow_mut();
        let id = sleepers.next_id(self.injector.number_alarm());
        let timer = self.timers.borrow_mut().arm(at, id);
        sleepers.entries.insert(Sleeper { generation: id.generation, timer, waker });
        Alarm { injector: self.injector, id, at }
    }

    /// Has an alarm of this worker wake another waker from now on. Returns whether it is still to ring.
    pub(crate) fn redirect_alarm(&self, alarm: &Alarm, waker: WakerRef<'_>) -> bool {
        let mut sleepers = self.sleepers.borrow_mut();
        let Some(sleeper) = sleepers.get_mut(alarm.id) else { return false };
        if !waker.is_kept_in(&sleeper.waker) {
            let last = std::mem::replace(&mut sleeper.waker, waker.keep());
            drop(sleepers);
            drop(last);
        }
        true
    }

    /// The caller drops what comes back, now that nothing is borrowed.
    fn disarm_alarm(&self, id: TaskId) -> Option<FutureWaker> {
        let sleeper = self.sleepers.borrow_mut().remove(id)?;
        self.timers.borrow_mut().cancel(sleeper.timer);
        Some(sleeper.waker)
    }

    /// As [`Worker::disarm_alarm`] for another thread. A waker too many is harmless; to drop a foreign one here is not.
    pub(super) fn disarm_from_afar(&self, id: TaskId) {
        match self.disarm_alarm(id) {
            Some(FutureWaker::Foreign(waker)) => {
                self.wake_future(FutureWaker::Foreign(waker));
                self.call_back();
            }
            own => drop(own),
        }
    }

    /// Its time has come.
    #[cold]
    pub(super) fn rouse_sleeper(&self, id: TaskId) {
        let sleeper = self.sleepers.borrow_mut().remove(id);
        if let Some(sleeper) = sleeper {
            self.wake_future(sleeper.waker);
        }
    }

    /// The worker ends: who sleeps on looks for another.
    pub(super) fn rouse_all_sleepers(&self) {
        let sleepers = std::mem::take(&mut *self.sleepers.borrow_mut());
        for (_, sleeper) in sleepers.entries {
            self.timers.borrow_mut().cancel(sleeper.timer);
            self.wake_future(sleeper.waker);
        }
    }
}
