//! The end of a worker: what it does in each phase of the shutdown, until everything has ended.

use super::Worker;
use crate::context;
use crate::coroutine::Wake;
use crate::phase::Phase;
use crate::stuck::{STUCK_REPORTED_MAX, StuckDhaga, WorkerReport};
use crate::task::{Attention, State, TaskId, WaitReason};

impl Worker {
    /// Does what the shutdown asks by now.
    pub(super) fn follow_shutdown(&self) {
        let (before, now) = (self.phase.get(), self.shared.phase());
        self.phase.set(now);
        let has_come_to = |phase| before < phase && now >= phase;
        if has_come_to(Phase::Draining) {
            self.end_accepts();
        }
        if has_come_to(Phase::Cancelling) {
            self.cancel_all();
        }
        if has_come_to(Phase::Unwinding) {
            self.unwind_all();
        }
    }

    /// Wakes whoever waits for a connection: it looks at the phase, and gives up. Also whoever is ready: it may be about to go on
    /// with such a wait, since the timer of an earlier one has rung.
    fn end_accepts(&self) {
        let tasks = self.tasks.borrow();
        let may_wait = |state| matches!(state, State::Ready | State::Parked(WaitReason::Accept));
        let waiting = tasks.live().filter(|task| may_wait(task.state.get()));
        waiting.for_each(|task| self.unpark_in_turn(task.id()));
    }

    /// Cancels every dhaga. What starts from now on starts so.
    fn cancel_all(&self) {
        for task in self.tasks.borrow().live() {
            task.attention.add(Attention::LEAVING);
            if let Some(head) = task.head() {
                context::cancel(head);
            }
        }
    }

    /// Unwinds every dhaga; what is unstarted will be discarded instead of run.
    fn unwind_all(&self) {
        let live: Vec<_> = self.tasks.borrow().live().map(|task| task.id()).collect();
        live.into_iter().for_each(|id| self.unwind(id));
    }

    /// Throws in a dhaga at its next wait, or in the one in which it is parked. Where panics abort, so would a throw: there
    /// the dhaga goes on.
    pub(crate) fn unwind(&self, id: TaskId) {
        if cfg!(panic = "abort") {
            return;
        }
        let Some(task) = self.tasks.borrow().get(id) else { return };
        task.attention.add(Attention::UNWINDING);
        if let State::Parked(_) = task.state.get() {
            task.state.set(State::Ready);
            task.verdict.set(Wake::Unwind);
            self.ready.push_back(task);
        }
    }

    /// Returns the credit that is not in use, by which all know what still lives, and says so if that is nothing.
    #[cold]
    pub(super) fn note_what_is_left(&self) {
        if self.called_len() > 0 {
            // It stands for those whom these callbacks will start.
            return;
        }
        let unused = self.credit.take();
        if unused > 0 {
            self.shared.return_credit(unused);
        }
        if self.shared.is_over(self.phase.get()) {
            self.shared.notify();
        }
    }

    /// Who has not ended here.
    pub(super) fn report(&self, worker: usize) -> WorkerReport {
        let tasks = self.tasks.borrow();
        let stuck = tasks.live().filter_map(|task| StuckDhaga::of(&task, worker)).take(STUCK_REPORTED_MAX).collect();
        WorkerReport { worker, dhagas: tasks.len() + self.count_unstarted(), stuck }
    }

    #[inline(always)]
    pub(crate) fn is_stopping(&self) -> bool {
        self.phase.get() == Phase::Unwinding
    }

    pub(super) fn is_finished(&self) -> bool {
        self.is_empty_and_stopping() && !self.has_work() && self.injector.inbox.close_if_empty()
    }

    pub(super) fn is_empty_and_stopping(&self) -> bool {
        self.is_stopping() && self.tasks.borrow().len() == 0
    }

    /// The worker's last act: no dhaga of its own is left, and its injector is closed.
    pub(super) fn close(&self) {
        self.front.close(|report| self.take_report(report));
        self.rouse_all_sleepers();
        self.callbacks.take();
        self.called.take();
        self.flush();
        self.extensions.clear();
        self.return_first_stack();
        self.shared.return_credit(self.credit.take());
    }
}
